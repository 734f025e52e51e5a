"""Where a key or a value is in the text of a file, and that line as it may be shown to anybody."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from fedproxy.config.units import MASK, without_password
from fedproxy.errors import Position

if TYPE_CHECKING:
    import yaml

#: A position in the data: the keys and list positions that lead there.
Location = tuple[str | int, ...]

_LINE_END = re.compile(r"\r\n|\r|\n")
_BEFORE = 60  # characters of a line shown before what is wrong in it ...
_WIDTH = 100  # ... and altogether
_SECRETS = ("token", "secret", "password", "passphrase", "authorization")
_SECTION = re.compile(r"[^\s}\])#]")  # a line that is not indented
_SECRETISH = re.compile("tok|sec|pass|auth|key", re.IGNORECASE)


class Finding(NamedTuple):
    """A fault and its position.

    where: the location. text: what is wrong. at: the character of the file, if that of the location is not
    meant. of_key: the key at the location is meant, and not its value.
    """

    where: Location
    text: str
    at: int | None = None
    of_key: bool = False


@dataclass
class Spot:
    """Where a value is in the text: its key (or itself, in a list), its begin, its end. `items`: its parts.

    alias: the value is written elsewhere.
    """

    key: int
    value: int
    end: int
    items: dict[str | int, Spot] = field(default_factory=dict)
    alias: bool = False

    def shift(self, offset: int) -> None:
        """Moves it and all its parts by so many characters."""
        self.key, self.value, self.end = self.key + offset, self.value + offset, self.end + offset
        for part in self.items.values():
            part.shift(offset)

    @classmethod
    def of(cls, node: yaml.Node) -> Spot:
        """The spot of a whole document."""
        return cls(node.start_mark.index, node.start_mark.index, node.end_mark.index)


class Shown(NamedTuple):
    """A line of the file, shortened and without its secrets.

    before: what of it comes before the place that is meant.
    """

    text: str
    before: str


class _File(NamedTuple):
    """A file in the text: its name, none of the config itself; where it begins; whether it was understood."""

    name: str
    begin: int
    understood: bool


class Places:
    """The places of a text. `root`: of its data. `texts`: location, begin and end of each scalar in it.

    What a config includes is added to its text.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.root: Spot | None = None
        self.texts: list[tuple[Location, int, int]] = []
        self._more: list[_File] = []

    def add(self, more: Places, name: str) -> int:
        """Adds the text of a further file, whose spots become some of this one; returns where it begins."""
        self.text += "\n"
        offset = len(self.text)
        self.text += more.text
        self.texts += [(where, begin + offset, end + offset) for where, begin, end in more.texts]
        self._more.append(_File(name, offset, more.root is not None))
        if more.root is not None:
            more.root.shift(offset)
        for known in ("_starts", "_secrets"):
            self.__dict__.pop(known, None)
        return offset

    def _file_at(self, at: int) -> _File:
        number = bisect_right(self._more, at, key=lambda file: file.begin)
        return self._more[number - 1] if number else _File("", 0, self.root is not None)

    def find(self, finding: Finding) -> int | None:
        """The character of the file that a finding is about; None if that is the whole file.

        A key that is not in the file is at the nearest one that should have it.
        """
        if finding.at is not None:
            return finding.at
        if self.root is None or not finding.where:
            return None
        spot = self.root
        for part in finding.where:
            inner = spot.items.get(part)
            if inner is None:
                return spot.key
            spot = inner
        return spot.key if finding.of_key else spot.value

    def place(self, at: int | None) -> Position | None:
        """The line and column of a character."""
        return None if at is None else self.position(at)

    def position(self, at: int) -> Position:
        """The line and column of a character."""
        file, line = self._file_at(at), bisect_right(self._starts, at)
        first = bisect_right(self._starts, file.begin)
        return Position(line - first + 1, at - self._starts[line - 1] + 1, file.name)

    def index(self, place: Position) -> int:
        """The character at a line and column."""
        return self._start(place) + place.column - 1

    def _start(self, place: Position) -> int:
        """Where the line of a place begins."""
        begin = next((file.begin for file in self._more if file.name == place.file), 0)
        return self._starts[bisect_right(self._starts, begin) + place.line - 2]

    def shown(self, place: Position) -> Shown | None:
        """The line of a place.

        None if a secret might be in it that cannot be told from the rest, or if it is in a file that is none
        of these.
        """
        if place.file and not any(file.name == place.file for file in self._more):
            return None
        at, begin = self.index(place), self._start(place)
        ending = _LINE_END.search(self.text, begin)
        end = ending.start() if ending else len(self.text)
        file = self._file_at(begin)
        if not file.understood:
            # What was not understood may be anything in its section.
            line = bisect_right(self._starts, begin) - 1
            while self._starts[line] > file.begin and not _SECTION.match(self.text, self._starts[line]):
                line -= 1
            if _SECRETISH.search(self.text, self._starts[line], end):
                return None
        head, rest = self._public(begin, at), self._public(at, end)
        if len(head) > _BEFORE:
            head = f"...{head[3 - _BEFORE :]}"
        if len(head) + len(rest) > _WIDTH:
            rest = f"{rest[: _WIDTH - 3 - len(head)]}..."
        return Shown(head + rest, head)

    def _public(self, begin: int, end: int) -> str:
        """The text from `begin` to `end` without what is secret in it, and without control characters."""
        parts = []
        for start, stop in self._secrets:
            if start < end and stop > begin:
                parts.append(self.text[begin : max(start, begin)])
                parts.append(MASK)
                begin = min(stop, end)
        parts.append(self.text[begin:end])
        public = without_password("".join(parts))
        return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in public)

    @cached_property
    def _starts(self) -> list[int]:
        """Where lines begin, as editors count them."""
        return [0, *(match.end() for match in _LINE_END.finditer(self.text))]

    @cached_property
    def _secrets(self) -> list[tuple[int, int]]:
        return sorted(
            (begin, end)
            for where, begin, end in self.texts
            if begin < end and any(isinstance(part, str) and _is_secret(part) for part in where)
        )


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    """Whether a key has a secret, also if it is misspelt."""
    key = key[:100].lower()
    return any(word in key for word in _SECRETS) or bool(difflib.get_close_matches(key, _SECRETS, 1, 0.7))
