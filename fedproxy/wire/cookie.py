"""The affinity cookie on the wire (RFC 6265 sections 4.1 and 4.2)."""

from __future__ import annotations

import re
from functools import lru_cache

# What may stand around a name for one reader or another: Python's and JavaScript's strip() take off white
# space of Unicode too, from bytes read as Latin-1 or as UTF-8; others take off quotes.
_AROUND = rb"[\0- \"\x7f-\xff]*"
# Where Python's http.cookies and WebOb see another pair begin, besides a semicolon.
_BEFORE = rb"[\0- \",\[\\\]\x7f-\xff]"


def take(value: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    """The values of the cookie `name` in a Cookie field, and the field without anything that is read as one.

    Several values are each said once, with a semicolon between, in their order. What is left keeps its bytes
    and its order; it is empty when no other cookie was there.
    """
    before, there, after = value.partition(name + b"=")
    # Not `in`, which for bytes tries a number first, and costs twice as much.
    if there and not before and after.find(name) < 0:
        first, _, rest = after.partition(b";")
        return first.strip(b' \t"'), rest.strip(b" \t")
    if not there and value.find(name) < 0:
        return None, value
    return _take_each(value, name)


def _take_each(value: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    hidden = _hidden(name).search
    values: list[bytes] = []
    others: list[bytes] = []
    for pair in value.split(b";"):
        pair = pair.strip(b" \t")
        if name in pair:
            said, equals, given = pair.partition(b"=")
            # RFC 6265 section 5.2: white space around a name is no part of it.
            if equals and said.rstrip(b" \t") == name:
                values.append(given.strip(b' \t"'))
                continue
            match = hidden(pair)
            # What is left of a pair may itself be the bare name, but never a third time.
            while match is not None:
                pair = pair[: match.start()].rstrip(b" \t,")
                match = hidden(pair)
            if not pair:
                continue
        others.append(pair)
    found = b";".join(dict.fromkeys(filter(None, values))) if values else None
    return found, b"; ".join(others)


@lru_cache(16)
def _hidden(name: bytes) -> re.Pattern[bytes]:
    """Finds the cookie in a pair of which it is not plainly the name, or is all there is (Go reads that)."""
    escaped = re.escape(name)
    first = b"^%b%b%b(?:=|$)" % (_AROUND, escaped, _AROUND)
    # One byte before it and no more: a run of them would be gone over from each of its bytes.
    later = b"%b%b%b=" % (_BEFORE, escaped, _AROUND)
    return re.compile(b"%b|%b" % (first, later))


def set_cookie(name: str, value: bytes, max_age: int, *, secure: bool) -> bytes:
    """A whole Set-Cookie line, its CRLF included. `max_age` is in seconds."""
    tail = b"; Secure" if secure else b""
    return b"Set-Cookie: %b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b\r\n" % (
        name.encode("ascii"),
        value,
        max_age,
        tail,
    )
