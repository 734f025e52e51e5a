"""What operators said at any edge of a fleet: one word for each member, the newest by the store's order.

A word is all that operators have said of a member. It is said over the one that the edge knew. While the
store is away, a word holds on its own edge and waits. When the store is back, it is taken if nobody has said
anything about that member meanwhile; else the fleet's word holds.

Words are also kept in a file, so that an edge that starts while the store is away knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedproxy.control.foreign import read_json
from fedproxy.control.state import Said, State, beside, put_aside, read_file, read_said, with_said, write_file
from fedproxy.control.store import Stored
from fedproxy.errors import ConfigError

_VERSION: Final = 1
_MOST_BYTES: Final = 16 << 20
_LONGEST: Final = 1 << 18  # bytes of a word
_LONGEST_NAME: Final = 200  # characters


@dataclass(frozen=True)
class Word:
    """Of an operator, on a member. who: said it; edge: where; at: in seconds since the epoch, there."""

    said: Said
    who: str = ""
    edge: str = ""
    at: float = 0.0

    def pack(self) -> bytes:
        """As the store keeps it."""
        said = self.said.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"said": said, "who": self.who, "edge": self.edge, "at": self.at}).encode()


def read_word(name: str, content: bytes) -> Word:
    """A word on the member of that name. Raises ValueError, with a line for an operator."""
    if len(content) > _LONGEST:
        raise ValueError(f"is larger than {_LONGEST >> 10} KiB")
    try:
        found = read_json(content, _LONGEST)
        said = read_said(name, found["said"])
        who, edge, at = found["who"], found["edge"], found["at"]
        if not (isinstance(who, str) and isinstance(edge, str) and isinstance(at, int | float)):
            raise TypeError  # noqa: TRY301 -- as for any other nonsense
    except ConfigError as error:
        raise ValueError(str(error)) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("is not what an edge writes") from error
    return Word(said, who[:_LONGEST_NAME], edge[:_LONGEST_NAME], float(at))


class Words:
    """All words that this edge knows.

    stored: those of the store. waiting: those that it does not have yet, with the order of the word that each
    was said over. order: the greatest that was seen.
    """

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.waiting: dict[str, tuple[int, Word]] = {}
        self.order = 0
        self._read: dict[str, Word] = {}
        self._tried: dict[str, set[bytes]] = {}

    def base(self, name: str) -> int:
        """The order of the word that holds for a member; 0 for none."""
        stored = self.stored.get(name)
        return stored.order if stored is not None else 0

    def word(self, name: str) -> Word | None:
        """The word that holds on this edge."""
        waiting = self.waiting.get(name)
        return waiting[1] if waiting is not None else self._read.get(name)

    def take(self, name: str, stored: Stored) -> bool:
        """A word of the store; False if it is not news. Raises ValueError, and keeps what was known."""
        self.order = max(self.order, stored.order)
        before = self.stored.get(name)
        if before is not None and before.order >= stored.order:
            return False
        # Once: what cannot be read is not read again.
        self.stored[name] = stored
        try:
            self._read[name] = read_word(name, stored.word)
        except ValueError as error:
            raise ValueError(f"what operators said of {name[:_LONGEST_NAME]!r} {error}") from error
        return True

    def wait(self, name: str, word: Word) -> None:
        """A word that the store does not have yet."""
        base, _ = self.waiting.get(name, (self.base(name), word))
        self.waiting[name] = base, word

    def done(self, name: str, word: Word, taken: bool) -> None:
        """A word that waited was told to the store, which took it or not.

        One that was said here meanwhile goes on waiting: over this word, if it was taken.
        """
        base, newest = self.waiting.pop(name, (0, word))
        if newest is not word:
            self.waiting[name] = self.base(name) if taken else base, newest

    # A store that does not answer in time may have taken a word all the same.

    def trying(self, name: str, content: bytes) -> None:
        """The store is told a word."""
        self._tried.setdefault(name, set()).add(content)

    def is_own(self, name: str, content: bytes) -> bool:
        """Whether the store was told this word by this edge, and has not answered."""
        return content in self._tried.get(name, ())

    def settled(self, name: str) -> None:
        """The store has answered."""
        self._tried.pop(name, None)

    def newer_than(self, words: Mapping[str, Stored]) -> dict[str, Stored]:
        """What the store should have and has lost, given all that it has."""
        return {
            name: stored
            for name, stored in self.stored.items()
            if name not in words or words[name].order < stored.order
        }

    def state(self) -> State:
        """What operators have said that holds here."""
        said = {name: word.said for name, word in self._read.items()}
        said |= {name: word.said for name, (_, word) in self.waiting.items()}
        return with_said(said)

    # The file

    def pack(self) -> bytes:
        """Everything, for a file."""
        stored = {
            name: [each.order, each.word.decode("utf-8", "replace")] for name, each in self.stored.items()
        }
        waiting = {name: [base, word.pack().decode()] for name, (base, word) in self.waiting.items()}
        return json.dumps({"version": _VERSION, "stored": stored, "waiting": waiting}).encode() + b"\n"

    def unpack(self, content: bytes) -> list[str]:
        """Takes what `pack` returned; lines for an operator about words that are none.

        Raises ValueError for anything else.
        """
        lines = []
        try:
            found: Any = json.loads(content)
            if found["version"] != _VERSION:
                raise ValueError("it is of another version")
            stored = {
                str(name): Stored(int(order), word.encode())
                for name, (order, word) in found["stored"].items()
            }
            waiting = {
                str(name): (int(base), read_word(name, word.encode()))
                for name, (base, word) in found["waiting"].items()
            }
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError("it has no words") from error
        for name, each in stored.items():
            try:
                self.take(name, each)
            except ValueError as error:
                lines.append(str(error))
        self.waiting.update(waiting)
        return lines


class WordsFile:
    """Keeps words beside the operators' state; nowhere if `state` is None. Its calls may block."""

    def __init__(self, state: Path | None) -> None:
        self.path = beside(state, "fleet")

    def load(self, into: Words) -> list[str]:
        """Reads it; returns lines for an operator about what is wrong. Raises nothing."""
        if self.path is None:
            return []
        try:
            content = read_file(self.path, _MOST_BYTES)
        except OSError as error:
            return [str(error.strerror)]
        if content is None:
            return []
        try:
            return into.unpack(content)
        except ValueError as error:
            line, self.path = put_aside(self.path, f"{self.path} is not what operators said: {error}")
            return [line]

    def save(self, content: bytes) -> None:
        """Keeps what `Words.pack` returned. Raises OSError with a line for an operator."""
        if self.path is not None:
            try:
                write_file(self.path, content)
            except OSError as error:
                raise OSError(error.errno, f"{self.path} cannot be written: {error.strerror}") from error
