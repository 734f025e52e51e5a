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


class Places:
    """The places of a text. `root`: of its data. `texts`: location, begin and end of each scalar in it."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.root: Spot | None = None
        self.texts: list[tuple[Location, int, int]] = []

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
        if at is None:
            return None
        line = bisect_right(self._starts, at)
        return Position(line, at - self._starts[line - 1] + 1)

    def index(self, place: Position) -> int:
        """The character at a line and column."""
        return self._starts[place.line - 1] + place.column - 1

    def shown(self, place: Position) -> Shown | None:
        """The line of a place. None if a secret might be in it that cannot be told from the rest."""
        at, begin = self.index(place), self._starts[place.line - 1]
        ending = _LINE_END.search(self.text, begin)
        end = ending.start() if ending else len(self.text)
        if self.root is None:
            # What was not understood may be anything in its section.
            line = place.line - 1
            while line > 0 and not _SECTION.match(self.text, self._starts[line]):
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
