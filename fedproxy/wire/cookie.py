"""The affinity cookie on the wire (RFC 6265 sections 4.1 and 4.2)."""

from __future__ import annotations

import re
from functools import cache


def take(value: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    """The first value of the cookie `name` in a Cookie field, and the field without any cookie of that name.

    What is left keeps its bytes and its order; it is empty when no other cookie was there.
    """
    pattern = _pattern(name)
    found = pattern.search(value)
    if found is None:
        return None, value
    return found[1], pattern.sub(b"", value).lstrip(b"; \t")


@cache
def _pattern(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:^|;)[ \t]*" + re.escape(name) + rb'="?([^;"]*)[^;]*')


def set_cookie(name: str, value: bytes, max_age: int, *, secure: bool) -> bytes:
    """A whole Set-Cookie line, its CRLF included. `max_age` is in seconds."""
    tail = b"; Secure" if secure else b""
    return b"Set-Cookie: %b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b\r\n" % (
        name.encode("ascii"),
        value,
        max_age,
        tail,
    )
