"""The grammar that requests, responses, trailers and cookies share (RFC 9110 section 5, RFC 9112)."""

from __future__ import annotations

import re
from functools import lru_cache

# RFC 9110 section 5.6.2, and section 5.5 without obs-fold: no CR, LF, NUL or other control byte but HTAB.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD = re.compile(
    rb"("
    + TOKEN
    # White space before a value is matched possessively: n bytes that divide in n ways take n squared.
    + rb"):[ \t]*+((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
VALUE_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
# Translated by this, a value stays as it is; every byte that no value has becomes another one.
VALUE = bytes([byte if byte in VALUE_BYTES else byte ^ 0x40 for byte in range(0x100)])
# The same for a query: what RFC 3986 has in one, and a few bytes that all servers let pass; no `#`.
QUERY = bytes(
    [byte if 0x21 <= byte <= 0x7E and byte != 0x23 else (byte + 1) % 0x100 for byte in range(0x100)]
)
IS_TOKEN = re.compile(TOKEN).fullmatch
LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch

# What honest peers send is short; long lists, each another, would fill the memory.
_LONGEST_LIST = 128


def tokens(value: bytes) -> tuple[bytes, ...]:
    """The elements of a comma-separated list, in lower case, without empty ones (RFC 9110 section 5.6.1)."""
    return _known_tokens(value) if len(value) <= _LONGEST_LIST else _tokens(value)


def _tokens(value: bytes) -> tuple[bytes, ...]:
    return tuple(token for part in value.lower().split(b",") if (token := part.strip(b" \t")))


_known_tokens = lru_cache(1024)(_tokens)
