"""A file's text -> plain data, and the place of each key in the file. Nothing here knows what a key means.

YAML features that a config does not need are refused, so that a file means what it looks like: a duplicate
key, a tag, a date, a number to base 60. The work is bounded for any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedproxy.config.places import Finding, Location, Places, Spot

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NODES = 50_000
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """`data`: dictionaries with text keys, lists and scalars. `places`: where each of them is in the text.

    files: what was read besides the text, or would have been, and folders that were searched.
    """

    data: Any = None
    places: Places = field(default_factory=Places)
    findings: list[Finding] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class _TooDeep(yaml.MarkedYAMLError):
    """Too deep: refused before Python's stack overflows."""


class _Composer(yaml.SafeLoader):
    """YAML text -> nodes, in which a plain scalar is only null, a boolean, a number or text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to say it
    depth = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # Where each alias is, by the collection and the key or number below which it is used: the node of an
        # alias is that of its anchor.
        self.aliases: dict[tuple[int, int], int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if parent is not None and self.check_event(yaml.AliasEvent):
            self.aliases[id(parent), _number(index)] = self.current_event.start_mark.index
        if self.depth > _MAX_DEPTH and parent:
            raise _TooDeep(problem=f"more than {_MAX_DEPTH} levels", problem_mark=parent.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _number(index: yaml.Node | int | None) -> int:
    """What tells the parts of a collection apart: a list's numbers, a mapping's key nodes."""
    return index if isinstance(index, int) else id(index)


# What YAML 1.1 and JSON agree on; in addition YAML's booleans and JSON's numbers.
for _name, _expression, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        list("yYnNtTfFoO"),
    ),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),
    (
        "float",
        r"[-+]?[0-9]{1,18}(?:\.[0-9]{0,30})?[eE][-+]?[0-9]{1,3}|[-+]?[0-9]{1,18}\.[0-9]{0,30}"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Composer.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_expression})$"), _first)


_SCALARS: dict[str, Callable[[str], Any]] = {
    f"{_TAG}null": lambda value: None,
    f"{_TAG}bool": lambda value: value.lower() in ("yes", "true", "on"),
    f"{_TAG}int": int,
    f"{_TAG}float": lambda value: float(value.lower().replace(".inf", "inf").replace(".nan", "nan")),
    f"{_TAG}merge": str,
    # JSON writes a character beyond U+FFFF as two escapes.
    f"{_TAG}str": lambda value: value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
}


def read(text: str) -> Document:
    """The document in `text`; its faults are in its findings. Without any value there is no root."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        return Document(findings=[Finding((), f"is larger than {MAX_BYTES >> 20} MiB")])
    # JSON allows tabs between tokens, YAML does not; JSON strings contain no raw tabs.
    spaced = text.replace("\t", " ") if text.lstrip("\ufeff \t\r\n").startswith("{") else text
    places = Places(text)
    try:
        composer = _Composer(spaced)
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = mark.index if mark else None
        tab = mark is not None and spaced[mark.index : mark.index + 1] == "\t"
        problem = "a tab, expected spaces" if tab else error.problem or error.context
        return Document(None, places, [Finding((), f"not valid YAML: {problem}", at)])
    except yaml.reader.ReaderError as error:
        message = f"not valid YAML: character U+{error.character:04X} is not allowed"
        return Document(None, places, [Finding((), message, error.position)])
    except (ValueError, OverflowError):
        return Document(
            None, places, [Finding((), "not valid YAML: an escape in a string is not a character")]
        )
    if node is None:
        return Document(None, places)
    walk = _Walk(Document(None, places), composer.aliases)
    walk.document.data, places.root = walk.value(node, (), Spot.of(node))
    return walk.document


class _Walk:
    """Nodes -> data. Aliases are expanded each time they are used, and every step counts.

    What an alias brings in is at the alias: what is wrong with it is also found at its anchor, and a fault
    that only this use of it has would not be understood there.
    """

    def __init__(self, document: Document, aliases: Mapping[tuple[int, int], int]) -> None:
        self.document = document
        self.aliases = aliases
        self.steps = 0

    def find(self, where: Location, message: str, at: int | None = None) -> None:
        self.document.findings.append(Finding(where, message, at))

    def spot(self, parent: yaml.Node, key: yaml.Node | int, node: yaml.Node, outer: Spot) -> Spot:
        """Where a part of a collection is."""
        if outer.alias:
            return Spot(outer.value, outer.value, outer.value, alias=True)
        begins = key.start_mark.index if isinstance(key, yaml.Node) else node.start_mark.index
        alias = self.aliases.get((id(parent), _number(key)))
        if alias is not None:
            return Spot(alias if isinstance(key, int) else begins, alias, alias, alias=True)
        # A block has no sign of its own where it begins: its first key would look as if it were meant.
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        return Spot(begins, begins if is_block else node.start_mark.index, node.end_mark.index)

    def value(self, node: yaml.Node, where: Location, spot: Spot) -> tuple[Any, Spot]:
        """The data of a node that is at `spot`, and that spot with all below it."""
        self.steps += 1
        if self.steps > _MAX_NODES:
            if self.steps == _MAX_NODES + 1:
                self.find((), f"holds more than {_MAX_NODES} values with its aliases expanded")
            return None, spot
        if len(where) > _MAX_DEPTH:
            self.find(where[:1], "contains itself, or is nested too deeply", spot.value)
            return None, spot
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, where, spot), spot
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return self.sequence(node, where, spot), spot
        if not spot.alias:
            self.document.places.texts.append((where, spot.value, spot.end))
        return self.scalar(node, where, spot), spot

    def scalar(self, node: yaml.Node, where: Location, spot: Spot) -> Any:
        construct = _SCALARS.get(node.tag)
        try:
            if construct and isinstance(node, yaml.ScalarNode):
                return construct(node.value)
        except ValueError:
            pass
        tag = node.tag.replace(_TAG, "!!")
        self.find(where, f"has the tag {tag[:40]}, expected a plain value", spot.value)
        return None

    def sequence(self, node: yaml.SequenceNode, where: Location, spot: Spot) -> list[Any]:
        data = []
        for index, item in enumerate(node.value):
            value, inner = self.value(item, (*where, index), self.spot(node, index, item, spot))
            spot.items[index] = inner
            data.append(value)
        return data

    def mapping(self, node: yaml.MappingNode, where: Location, spot: Spot) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            at = self.spot(node, key_node, value_node, spot)
            if not isinstance(key_node, yaml.ScalarNode):
                self.find(where, "has a key that is a list or a mapping, expected text", at.key)
            elif key_node.tag == f"{_TAG}merge":
                self.merge(value_node, where, merged, spot, at)
            elif (key := key_node.value) in data:
                self.document.places.texts.append(((*where, key), at.value, at.end))
                self.find((*where, key), f"is given twice, on line {lines[key]} and line {line}", at.key)
            else:
                lines[key] = line
                data[key], spot.items[key] = self.value(value_node, (*where, key), at)
        return {**merged, **data}

    def merge(self, node: yaml.Node, where: Location, merged: dict[str, Any], spot: Spot, at: Spot) -> None:
        """Merge the sources of `<<`: the first source that has a key wins."""
        is_list = isinstance(node, yaml.SequenceNode)
        for index, source in enumerate(node.value if is_list else [node]):
            inner = self.spot(node, index, source, at) if is_list else at
            taken, inner = self.value(source, (*where, "<<"), inner)
            if not isinstance(taken, dict):
                self.find((*where, "<<"), "merges something that is not a mapping", inner.value)
                continue
            for key, value in taken.items():
                if key not in merged and key not in spot.items:
                    spot.items[key] = inner.items.get(key, inner)
                merged.setdefault(key, value)


_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = "file:"
_MAX_SECRET = 64 << 10  # bytes of a file that is the value of a key


def interpolate(document: Document, env: Mapping[str, str]) -> None:
    """Replace `${NAME}` by environment variables and `${file:PATH}` by what files hold, in every text.

    `$${` stands for `${`.
    """
    seen: dict[str, tuple[str, list[str]]] = {}

    def visit(value: Any, where: Location) -> Any:
        if isinstance(value, dict):
            return {key: visit(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item, (*where, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if value not in seen:
            seen[value] = _expand(value, env, document.files)
        expanded, messages = seen[value]
        document.findings += [Finding(where, message) for message in messages]
        return expanded

    document.data = visit(document.data, ())


def _expand(value: str, env: Mapping[str, str], files: list[Path]) -> tuple[str, list[str]]:
    messages: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if match[2] and name.startswith(_FILE):
            path = name.removeprefix(_FILE)
            files.append(Path(path))
            try:
                return _content(path)
            except ValueError as error:
                messages.append(f"needs the file {path[:200]!r}, which {error}")
                return ""
        if not match[2] or not _VARIABLE.fullmatch(name):
            messages.append(
                f"has {match[0][:40]!r}, expected ${{NAME}} with the name of an environment variable, or "
                "${file:PATH}"
            )
        elif name not in env:
            messages.append(f"needs the environment variable {name}, which is not set")
        return env.get(name, "")

    return _REFERENCE.sub(replace, value), messages


def expand(value: str, env: Mapping[str, str]) -> str:
    """A text with its variables replaced, those that cannot be by nothing."""
    return _expand(value, env, [])[0]


def _content(path: str) -> str:
    """What a file holds, without the end of its last line. Raises ValueError with what is wrong."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_SECRET + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("cannot be read") from None
    if len(content) > _MAX_SECRET:
        raise ValueError(f"is larger than {_MAX_SECRET >> 10} KiB")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def escape(data: Any) -> Any:
    """The reverse of `interpolate`: `${` stays `${` when the data is written and read again."""
    if isinstance(data, dict):
        return {key: escape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [escape(value) for value in data]
    return data.replace("${", "$${") if isinstance(data, str) else data
