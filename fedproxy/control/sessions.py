"""What is kept of sessions over a restart.

A store is told what has changed, now and then, and gives everything back at the next start. What it has is
only ever a hint: without it a session is found by its visitor's cookie.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from fedproxy.control.state import beside, put_aside, write_file, writing
from fedproxy.decide.sessions import Ground, SessionRecord

_VERSION: Final = 1
_HEAD: Final = json.dumps({"version": _VERSION}).encode() + b"\n"
_MOST_BYTES: Final = 256 << 20
_SPARE: Final = 1000  # lines that a file may have beyond twice as many as there are sessions


class SessionStore(Protocol):
    """Where it is kept. Its calls may block, so they are made in a thread, one after the other."""

    def load(self) -> tuple[list[SessionRecord], list[str]]:
        """What was kept, and lines for an operator about what is wrong. Raises nothing."""

    def save(self, changed: Sequence[SessionRecord], count: int) -> bool:
        """Keeps what has changed; `count`: how many sessions there are. False, with nothing kept, if
        `save_all` is to be called instead.

        Raises OSError with a line for an operator.
        """

    def save_all(self, known: Sequence[SessionRecord]) -> None:
        """Keeps this and nothing else. Raises OSError with a line for an operator."""


def sessions_path(state: Path | None) -> Path | None:
    """The path of the file beside the operators' state."""
    return beside(state, "sessions.jsonl")


class SessionFile:
    """Keeps sessions in a file, one JSON object a line, the latest of each last; nowhere if `path` is None.

    The first line says what the file is. A line that is not whole was being written when the machine went
    down, and is skipped.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lines = -1  # in the file; below 0 if it has to be written anew
        self._size = 0

    def load(self) -> tuple[list[SessionRecord], list[str]]:
        """As `SessionStore`."""
        if self.path is None:
            return [], []
        try:
            _check(self.path)
            with self.path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self.path} cannot be read: {error.strerror}; sessions are found by cookies"]
        first, *lines = content.split(b"\n")
        if _object(first).get("version") != _VERSION or len(content) > _MOST_BYTES:
            line, path = put_aside(self.path, f"{self.path} is not a file of sessions")
            self.path = path
            return [], [line]
        self._lines, self._size = len(lines), len(content)
        return [told for line in lines if (told := _read(line)) is not None], []

    def save(self, changed: Sequence[SessionRecord], count: int) -> bool:
        """As `SessionStore`."""
        if self.path is None:
            return True
        lines = self._lines + len(changed) + 1
        if self._lines < 0 or lines > 2 * count + _SPARE:
            return False
        # A line before that is not whole must not take the first of these with it.
        content = b"\n" + b"".join(map(_line, changed))
        with self._anew_if_it_fails(), writing(self.path):
            _check(self.path)
            with self.path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) != self._size:
                    # Somebody else has written to it.
                    return False
                file.write(content)
        self._lines = lines
        self._size += len(content)
        return True

    def save_all(self, known: Sequence[SessionRecord]) -> None:
        """As `SessionStore`."""
        if self.path is not None:
            content = _HEAD + b"".join(map(_line, known))
            with self._anew_if_it_fails():
                write_file(self.path, content)
            self._lines, self._size = len(known), len(content)

    @contextlib.contextmanager
    def _anew_if_it_fails(self) -> Iterator[None]:
        """Whatever is in the file after an OSError, the next time it is written anew."""
        try:
            yield
        except OSError:
            self._lines = -1
            raise


def _check(path: Path) -> None:
    """Raises OSError for what is there and no file: a pipe would block."""
    if path.exists() and not path.is_file():
        kind = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(kind, os.strerror(kind) if path.is_dir() else "Not a file")


def _line(record: SessionRecord) -> bytes:
    key, ground, url, name, since, used, launch = record
    said = {
        "path": key.decode("latin-1"),
        "ground": Ground(ground).name.lower(),
        "url": url,
        "member": name,
        "since": int(since),
        "used": int(used),
    }
    if launch:
        said["launch"] = launch.decode("latin-1")
    return json.dumps(said).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(line)
        if isinstance(said, dict):
            return said
    return {}


def _read(line: bytes) -> SessionRecord | None:
    said = _object(line)
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        path, launch = said["path"].encode("latin-1"), said.get("launch", "").encode("ascii")
        url, name, since, used = said["url"], said["member"], float(said["since"]), float(said["used"])
        named = isinstance(url, str) and isinstance(name, str) and (url + name).isprintable()
        if named and math.isfinite(since) and math.isfinite(used):
            return path, int(Ground[said["ground"].upper()]), url, name, since, used, launch
    return None
