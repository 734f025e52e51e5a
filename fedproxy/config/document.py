"""A file's text -> plain data, and the position of each key in the file. Nothing here knows what a key means.

YAML features that a config does not need are refused, so that a file means what it looks like: a duplicate
key, a tag, a date, a number to base 60. The work is bounded for any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

#: A position in the data: the keys and list positions that lead there.
Location = tuple[str | int, ...]
#: A fault and its position: what is wrong, and where.
Finding = tuple[Location, str]

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NODES = 50_000
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """`data`: dictionaries with text keys, lists and scalars. `order`: the place of each location."""

    data: Any = None
    order: dict[Location, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class _TooDeep(yaml.MarkedYAMLError):
    """Too deep: refused before Python's stack overflows."""


class _Composer(yaml.SafeLoader):
    """YAML text -> nodes, in which a plain scalar is only null, a boolean, a number or text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to say it
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH and parent:
            raise _TooDeep(problem=f"more than {_MAX_DEPTH} levels", problem_mark=parent.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


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
    """The document in `text`; its faults are in its findings."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        return Document(findings=[((), f"is larger than {MAX_BYTES >> 20} MiB")])
    # JSON allows tabs between tokens, YAML does not; JSON strings contain no raw tabs.
    text = text.replace("\t", " ") if text.lstrip("\ufeff \t\r\n").startswith("{") else text
    try:
        node = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return Document(findings=[((), f"{where}not valid YAML: {error.problem or error.context}")])
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Document(
            findings=[((), f"line {line}: not valid YAML: character U+{error.character:04X} is not allowed")]
        )
    except (ValueError, OverflowError):
        return Document(findings=[((), "not valid YAML: an escape in a string is not a character")])
    if node is None:
        return Document(findings=[((), "is empty, expected at least `members`")])
    walk = _Walk()
    walk.document.data = walk.value(node, ())
    return walk.document


class _Walk:
    """Nodes -> data. Aliases are expanded each time they are used, and every step counts."""

    def __init__(self) -> None:
        self.document = Document()
        self.steps = 0

    def find(self, where: Location, message: str) -> None:
        self.document.findings.append((where, message))

    def value(self, node: yaml.Node, where: Location) -> Any:
        self.steps += 1
        if self.steps > _MAX_NODES:
            if self.steps == _MAX_NODES + 1:
                self.find((), f"holds more than {_MAX_NODES} values with its aliases expanded")
            return None
        self.document.order.setdefault(where, len(self.document.order))
        if len(where) > _MAX_DEPTH:
            self.find(where[:1], "contains itself, or is nested too deeply")
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*where, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, where)

    def scalar(self, node: yaml.Node, where: Location) -> Any:
        construct = _SCALARS.get(node.tag)
        try:
            if construct and isinstance(node, yaml.ScalarNode):
                return construct(node.value)
        except ValueError:
            pass
        tag = node.tag.replace(_TAG, "!!")
        self.find(where, f"has the tag {tag[:40]} on line {node.start_mark.line + 1}, expected a plain value")
        return None

    def mapping(self, node: yaml.MappingNode, where: Location) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.find(where, f"has a key on line {line} that is a list or a mapping, expected text")
            elif key_node.tag == f"{_TAG}merge":
                self.merge(value_node, where, merged)
            elif (key := key_node.value) in data:
                self.find((*where, key), f"is given twice, on line {lines[key]} and line {line}")
            else:
                lines[key] = line
                data[key] = self.value(value_node, (*where, key))
        return {**merged, **data}

    def merge(self, node: yaml.Node, where: Location, merged: dict[str, Any]) -> None:
        """Merge the sources of `<<`: the first source that has a key wins."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            taken = self.value(source, (*where, "<<"))
            if not isinstance(taken, dict):
                self.find((*where, "<<"), "merges something that is not a mapping")
                continue
            for key, value in taken.items():
                merged.setdefault(key, value)


_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def interpolate(document: Document, env: Mapping[str, str]) -> None:
    """Replace `${NAME}` by environment variables in every text; `$${` stands for `${`."""
    seen: dict[str, tuple[str, list[str]]] = {}

    def visit(value: Any, where: Location) -> Any:
        if isinstance(value, dict):
            return {key: visit(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item, (*where, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if value not in seen:
            seen[value] = _expand(value, env)
        expanded, messages = seen[value]
        document.findings += [(where, message) for message in messages]
        return expanded

    document.data = visit(document.data, ())


def _expand(value: str, env: Mapping[str, str]) -> tuple[str, list[str]]:
    messages: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if not match[2] or not _VARIABLE.fullmatch(name):
            messages.append(
                f"has {match[0][:40]!r}, expected ${{NAME}} with the name of an environment variable"
            )
        elif name not in env:
            messages.append(f"needs the environment variable {name}, which is not set")
        return env.get(name, "")

    return _REFERENCE.sub(replace, value), messages


def escape(data: Any) -> Any:
    """The reverse of `interpolate`: `${` stays `${` when the data is written and read again."""
    if isinstance(data, dict):
        return {key: escape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [escape(value) for value in data]
    return data.replace("${", "$${") if isinstance(data, str) else data
