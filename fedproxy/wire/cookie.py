"""The affinity cookie on the wire (RFC 6265 sections 4.1 and 4.2)."""

from __future__ import annotations

import re
from functools import lru_cache

# Bytes around a name that some readers strip: Python's and JavaScript's strip() remove Unicode white space
# too, from bytes read as Latin-1 or as UTF-8; others remove quotes.
_AROUND = rb"[\0- \"\x7f-\xff]*"
# Besides a semicolon, Python's http.cookies and WebOb start another pair after these.
_BEFORE = rb"[\0- \",\[\\\]\x7f-\xff]"


def take(value: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    """The values of the cookie `name` in a Cookie field, and the field without anything read as that cookie.

    Several values are joined by semicolons, in order and without repetition. The rest keeps its bytes and
    its order; it is empty if there was no other cookie.
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
            # RFC 6265 section 5.2: white space around a name does not belong to it.
            if equals and said.rstrip(b" \t") == name:
                values.append(given.strip(b' \t"'))
                continue
            match = hidden(pair)
            # The rest of a pair may itself be the bare name, but only once.
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
    """Finds the cookie in a pair that some readers take for it, also the bare name (as Go does)."""
    escaped = re.escape(name)
    first = b"^%b%b%b(?:=|$)" % (_AROUND, escaped, _AROUND)
    # Only one byte before it: matching a run would start anew at each of its bytes.
    later = b"%b%b%b=" % (_BEFORE, escaped, _AROUND)
    return re.compile(b"%b|%b" % (first, later))


# No part of a stamp has it: names of members do not, an HMAC is hexadecimal, and a time is digits.
_BETWEEN = b"!"
_LONGEST_TIME = 12


def stamp(value: bytes, time: int, home: bytes = b"") -> bytes:
    """The cookie's value with the time at which it is set, in seconds since the epoch, and with a home.

    `value` and `home` each stand for a member: where the visitor is sent, and where they were before they
    were moved.
    """
    if home:
        return b"%b!%d!%b" % (value, time, home)
    return b"%b!%d" % (value, time)


def read_stamp(stamped: bytes) -> tuple[bytes, int | None, bytes]:
    """What `stamp` was given: the value, the time, the home. None for no time that can be read."""
    value, between, rest = stamped.partition(_BETWEEN)
    if not between:
        return stamped, None, b""
    time, _, home = rest.partition(_BETWEEN)
    return value, int(time) if time.isdigit() and len(time) <= _LONGEST_TIME else None, home


def set_cookie(name: str, value: bytes, max_age: int, *, secure: bool) -> bytes:
    """The value of a Set-Cookie field. `max_age` is in seconds."""
    tail = b"; Secure" if secure else b""
    return b"%b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b" % (
        name.encode("ascii"),
        value,
        max_age,
        tail,
    )
