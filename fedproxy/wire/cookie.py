"""The affinity cookie on the wire (RFC 6265 sections 4.1 and 4.2)."""

from __future__ import annotations


def take(value: bytes, name: bytes) -> tuple[bytes | None, bytes]:
    """The first value of the cookie `name` in a Cookie field, and the field without any cookie of that name.

    What is left keeps its bytes and its order; it is empty when no other cookie was there.
    """
    start = name + b"="
    before, there, after = value.partition(start)
    if not there:
        return None, value
    if not before and start not in after:
        first, _, rest = after.partition(b";")
        return first.strip(b' \t"'), rest.strip(b" \t")
    found: bytes | None = None
    others: list[bytes] = []
    for pair in value.split(b";"):
        pair = pair.strip(b" \t")
        if not pair.startswith(start):
            others.append(pair)
        elif found is None:
            found = pair[len(start) :].strip(b'"')
    return found, b"; ".join(others)


def set_cookie(name: str, value: bytes, max_age: int, *, secure: bool) -> bytes:
    """A whole Set-Cookie line, its CRLF included. `max_age` is in seconds."""
    tail = b"; Secure" if secure else b""
    return b"Set-Cookie: %b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b\r\n" % (
        name.encode("ascii"),
        value,
        max_age,
        tail,
    )
