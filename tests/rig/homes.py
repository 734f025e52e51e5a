"""Members that say who they are, and the cookie that leads to one."""

from __future__ import annotations

import re

from tests.rig.member import Script, answer
from tests.rig.message import Message

COOKIE = re.compile(rb"fedproxy_member=([^;]+); Path=/; Max-Age=14400; HttpOnly; SameSite=Lax(; Secure)?")


def get(target: bytes = b"/", *lines: bytes, host: bytes = b"hub.test", method: bytes = b"GET") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", b"Host: " + host, *lines, b"", b""))


def cookie(value: bytes) -> bytes:
    return b"Cookie: fedproxy_member=" + value


def named(name: str, *lines: bytes) -> Script:
    """A member that says who it is."""
    body = name.encode()
    return answer(b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", body)))


def cookie_of(response: Message) -> tuple[bytes, bool] | None:
    """The affinity cookie that a response sets: the value that names a member, and whether it is Secure."""
    value = response.value("set-cookie")
    if value is None:
        return None
    match = COOKIE.fullmatch(value)
    assert match, value
    return match[1].partition(b"!")[0], match[2] is not None
