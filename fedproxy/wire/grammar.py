"""The grammar that requests, responses, trailers and cookies share (RFC 9110 section 5, RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

# RFC 9110 section 5.6.2, and section 5.5 without obs-fold: no CR, LF, NUL or other control byte but HTAB.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD = re.compile(
    rb"("
    + TOKEN
    # White space before a value is matched possessively: n bytes that divide in n ways take n squared.
    + rb"):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
VALUE_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
IS_TOKEN = re.compile(TOKEN).fullmatch
LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch

Value = TypeVar("Value")


# Honest peers send short lists; many different long ones would fill the memory.
_LONGEST_LIST = 128


def tokens(value: bytes) -> tuple[bytes, ...]:
    """The elements of a comma-separated list, in lower case, without empty ones (RFC 9110 section 5.6.1)."""
    return _known_tokens(value) if len(value) <= _LONGEST_LIST else _tokens(value)


def _tokens(value: bytes) -> tuple[bytes, ...]:
    return tuple(token for part in value.lower().split(b",") if (token := part.strip(b" \t")))


_known_tokens = lru_cache(1024)(_tokens)


class Memo(dict[bytes, Value], Generic[Value]):
    """A bounded cache from bytes to their parsed form: equal bytes have equal meaning.

    `memo[key]` is one dictionary look-up if the key is known; otherwise `read(key)` is called, and its result
    kept unless the key is longer than `longest` bytes. It holds two generations of at most `entries` keys
    each: when the young one is full it becomes the old one, and a key that is used again moves back, so that
    a flood of new keys cannot evict for long what is in steady use. Errors of `read` pass through.
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
