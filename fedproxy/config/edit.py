"""Changes of a config's text that leave everything else in it as it was written, comments too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedproxy.config.document import escape, read
from fedproxy.config.load import to_yaml

if TYPE_CHECKING:
    from fedproxy.config.places import Spot


class CannotEdit(ValueError):
    """The text cannot be changed by a program. Its message says why, and what to do."""


def add_member(text: str, name: str, settings: Mapping[str, Any]) -> str:
    """The text of a config with one more member, after those that it has. Raises CannotEdit."""
    after = _line_by_line(text, lambda lines: _with_member(lines, name, settings))
    return _checked(text, after, name, settings)


def set_key(text: str, name: str, key: str, value: object) -> str:
    """The text of a config in which a member's key has this plain value. Raises CannotEdit."""
    after = _line_by_line(text, lambda lines: _with_key(lines, name, key, value))
    return _checked(text, after, name, {key: value})


def _line_by_line(text: str, change: Callable[[str], str]) -> str:
    """The text after a change; new lines end as the others do."""
    lines = text.replace("\r\n", "\n")
    if "\r\n" not in text or lines.replace("\n", "\r\n") != text:
        return change(text)
    return change(lines).replace("\n", "\r\n")


def _checked(before: str, after: str, name: str, change: Mapping[str, Any]) -> str:
    """The text after a change of one member, of which nothing else may have changed."""
    wanted = copy.deepcopy(read(before).data) or {}
    members = wanted["members"] = wanted.get("members") or {}
    members[name] = {**members.get(name, {}), **escape(change)}
    if read(after).data != wanted:
        raise CannotEdit("the change would also change something else, so make it by hand")
    return after


def _with_member(text: str, name: str, settings: Mapping[str, Any]) -> str:
    members = _members(text)
    if members is None:
        return f"{_whole_lines(text)}members:\n{_block({name: settings}, 2)}"
    if name in members.items:
        raise CannotEdit(f"{name} is already in this file")
    if not members.items:
        if "#" in text[members.value : members.end]:
            raise CannotEdit("`members` has a comment in its braces, so it has to be changed by hand")
        at = _line_end(text, members.end)
        comment = text[members.end : at].strip()
        head = f"members:  {comment}" if comment.startswith("#") else "members:"
        return f"{text[: members.key]}{head}\n{_block({name: settings}, 2)}{_rest(text, at)}"
    first = next(iter(members.items.values()))
    _in_block_style(text, members, first, "members")
    at = _line_end(text, _last(members).end)
    return f"{_whole_lines(text[:at])}{_block({name: settings}, _column(text, first.key))}{_rest(text, at)}"


def _with_key(text: str, name: str, key: str, value: object) -> str:
    members = _members(text)
    member = members.items.get(name) if members is not None else None
    if member is None:
        raise CannotEdit(
            f"{name} is not in this file; if it is in a file that this one includes, give that file"
        )
    if member.alias or not member.items:
        raise CannotEdit(f"the entry of {name} is not a mapping of its own, so change it by hand")
    first = next(iter(member.items.values()))
    _in_block_style(text, member, first, name)
    written = to_yaml({key: value}).strip()
    spot = member.items.get(key)
    if spot is not None:
        if spot.items or spot.alias:
            raise CannotEdit(f"`{key}` of {name} is not a plain value, so change it by hand")
        return f"{text[: spot.key]}{written}{text[spot.end :]}"
    at = _line_end(text, _last(member).end)
    return f"{_whole_lines(text[:at])}{' ' * _column(text, first.key)}{written}\n{_rest(text, at)}"


def _members(text: str) -> Spot | None:
    """Where the members are in a text; None if it has none."""
    document = read(text)
    if document.findings:
        where, text, *_ = document.findings[0]
        what = ".".join(map(str, where)) or "it"
        raise CannotEdit(f"{what} {'is ' if text.startswith('not ') else ''}{text}")
    root = document.places.root
    if document.data is not None and not isinstance(document.data, dict):
        raise CannotEdit("it is not a mapping")
    if not isinstance((document.data or {}).get("members"), dict | None):
        raise CannotEdit("`members` is not a mapping, so its members cannot be changed")
    if root is not None and text[root.value : root.value + 1] == "{":
        raise CannotEdit("it is written in braces, so change it by hand")
    return root.items.get("members") if root is not None else None


def _in_block_style(text: str, whole: Spot, first: Spot, what: str) -> None:
    if whole.alias or text[whole.value] == "{" or _line_start(text, first.key) <= whole.key:
        raise CannotEdit(f"{what} is written in braces or in another place, so change it by hand")


def _last(spot: Spot) -> Spot:
    """The last value that is written in it. Comments and empty lines behind it are not part of that."""
    while spot.items:
        spot = [*spot.items.values()][-1]
    return spot


def _block(data: Mapping[str, Any], indent: int) -> str:
    lines = to_yaml(data).splitlines()
    return "".join(f"{' ' * indent}{line}\n" if line else "\n" for line in lines)


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_end(text: str, at: int) -> int:
    """The end of the line in which the character before `at` is."""
    end = text.find("\n", max(0, at - 1))
    return len(text) if end < 0 else end


def _column(text: str, at: int) -> int:
    return at - _line_start(text, at)


def _whole_lines(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _rest(text: str, at: int) -> str:
    return text[at:].removeprefix("\n")
