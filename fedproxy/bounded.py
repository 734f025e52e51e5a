"""What remembers and forgets: tables of two generations, so that a flood of new keys cannot push out for long
what is in steady use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Generations(Generic[Key, Value]):
    """A table whose owner says when it is full: `turn` makes the young generation the old one, and forgets
    the old one. What is used again moves back to the young one.

    young: what was used since the last turn, for reading.
    """

    __slots__ = ("_old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def take(self, key: Key) -> Value | None:
        """What is known of the key. If that was in the old generation, it is not there any more: `put` it."""
        value = self.young.get(key)
        return self._old.pop(key, None) if value is None else value

    def put(self, key: Key, value: Value) -> None:
        """Keeps it in the young generation."""
        self.young[key] = value

    def turn(self) -> None:
        """Forgets what was not used since the last turn."""
        self._old, self.young = self.young, {}


class Memo(dict[bytes, Value], Generic[Value]):
    """A bounded memory of what bytes mean: the same bytes, the same meaning.

    `memo[key]` is one dictionary look-up when the key is known; otherwise `read(key)` is called, and its
    result is kept unless the key is longer than `longest` bytes. Each of the two generations has at most
    `entries` keys; this dictionary is the young one. Errors of `read` pass through.
    """

    def __init__(self, read: Callable[[bytes], Value], entries: int = 4096, longest: int = 4096) -> None:
        super().__init__()
        self._read = read
        self._entries = entries
        self._longest = longest
        self._old: dict[bytes, Value] = {}

    def __missing__(self, key: bytes) -> Value:
        value = self._old.pop(key, None)
        if value is None:
            value = self._read(key)
        if len(key) <= self._longest:
            if len(self) >= self._entries:
                self._old = dict(self)
                self.clear()
            self[key] = value
        return value
