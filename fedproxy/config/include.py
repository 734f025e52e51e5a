"""The files that a config includes, and what all of them say together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedproxy.config.document import Document, read
from fedproxy.config.places import Finding, Location, Spot
from fedproxy.errors import ConfigError

#: More are not read: files, and characters of all of them.
MAX_FILES: Final = 256
MAX_TEXT: Final = 16 << 20
_KEY: Final = "include"


class _Wanted(NamedTuple):
    """A file to include: its path, and where it is asked for in what was read so far."""

    path: Path
    where: int | None


def include(
    document: Document, file: Path, expand: Callable[[str], str], read_text: Callable[[Path], str]
) -> bool:
    """Adds to a config's document all that it includes; returns whether all of it was understood.

    file: the config's own. expand: replaces the variables in a path. read_text: raises
    ConfigError for a file that cannot be read.

    Mappings are put together key by key, so that members may be in several files. Anything else that two
    files give is a finding: no file overrides another.
    """
    seen = {file.resolve()}
    complete = True
    wanted = deque(_wanted(document, file.parent, expand))
    while wanted:
        path, where = wanted.popleft()
        too_much = None
        if len(seen) > MAX_FILES:
            too_much = f"{MAX_FILES} files"
        elif len(document.places.text) > MAX_TEXT:
            too_much = f"{MAX_TEXT >> 20} MiB"
        if too_much is not None:
            document.findings.append(Finding((_KEY,), f"is of more than {too_much}", where))
            return False
        resolved = path.resolve()
        if resolved in seen:
            document.findings.append(Finding((_KEY,), f"has {path}, which is included already", where))
            continue
        seen.add(resolved)
        document.files.append(path)
        try:
            more = read(read_text(path))
        except ConfigError as error:
            document.findings += [
                Finding((_KEY,), f"has {path}, which {fault.message}", where) for fault in error.faults
            ]
            complete = False
            continue
        found = [(finding, more.places.find(finding)) for finding in more.findings]
        offset = document.places.add(more.places, str(path))
        document.findings += [
            finding._replace(at=None if at is None else at + offset) for finding, at in found
        ]
        if isinstance(more.data, dict) and more.places.root is not None:
            wanted += _wanted(more, path.parent, expand)
            document.files += more.files
            more.data.pop(_KEY, None)
            _merge(document, document.data, more.data, document.places.root, more.places.root, ())
        elif more.data is not None:
            text = f"has {path}, which is not a mapping, expected keys of a config"
            document.findings.append(Finding((_KEY,), text, where))
            complete = False
        elif more.findings:
            complete = False
    return complete


def _wanted(document: Document, folder: Path, expand: Callable[[str], str]) -> Iterator[_Wanted]:
    """The files that a document includes, patterns expanded. What is no list of texts is found later."""
    paths = document.data.get(_KEY) if isinstance(document.data, dict) else None
    for number, text in enumerate(paths if isinstance(paths, list) else []):
        if not isinstance(text, str) or "\0" in text:
            continue
        at = document.places.find(Finding((_KEY, number), ""))
        path = folder / expand(text)
        found = [path]
        if any(sign in path.name for sign in "*?["):
            document.files.append(path.parent)
            found = sorted(path.parent.glob(path.name))
        yield from (_Wanted(each, at) for each in found)


def _merge(
    document: Document, into: Any, more: dict[str, Any], spot: Spot | None, others: Spot, where: Location
) -> None:
    """Adds a mapping to one of the document's. The spots of both are those of one text."""
    if spot is None or not isinstance(into, dict):
        return
    for key, value in more.items():
        other = others.items.get(key, others)
        if key not in into or into[key] is None:
            into[key], spot.items[key] = value, other
        elif isinstance(value, dict) and isinstance(into[key], dict):
            _merge(document, into[key], value, spot.items.get(key, spot), other, (*where, key))
        elif value is not None:
            first = document.places.position(spot.items.get(key, spot).key)
            text = f"is given twice, first in {first.file or 'the config itself'}, line {first.line}"
            document.findings.append(Finding((*where, key), text, other.key))
