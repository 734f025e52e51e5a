"""Members that fail in every way, and requests that meet them."""

from __future__ import annotations

from typing import Any

from tests.rig.member import Conn, Script, answer

HOST = b"Host: hub.test\r\n"


PIN = b"Cookie: fedproxy_member=a\r\n"


GET = b"GET / HTTP/1.1\r\n" + HOST + PIN + b"\r\n"


POST = b"POST / HTTP/1.1\r\n" + HOST + PIN + b"Content-Length: 5\r\n\r\nhello"


PATIENT: dict[str, Any] = {"retry": {"attempts": 3, "budget": 1, "floor": 100}}


SHORT = {"connect": "1s", "response_head": "500ms", "response_idle": "500ms"}


def from_member(body: bytes) -> Script:
    return answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def never_answers(conn: Conn) -> None:
    await conn.request()
    await conn.stall()


async def resets_before_the_head(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def closes_before_the_head(conn: Conn) -> None:
    await conn.request()


async def resets_in_the_head(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-")
    await conn.flush()
    conn.reset()


async def closes_in_the_head(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-")


async def closes_in_the_status_line(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HT")


async def stalls_in_the_head(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\n")
    await conn.stall()


async def speaks_nonsense(conn: Conn) -> None:
    await conn.request()
    conn.send(b"hello\r\n\r\n")
    await conn.stall()


async def repeats_the_length(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy")
    await conn.stall()


async def floods_the_head(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000)
    await conn.stall()


AFTER_SENDING: list[tuple[Script, int, str, str]] = [
    (never_answers, 504, "sH", "response_timeout"),
    (stalls_in_the_head, 504, "sH", "response_timeout"),
    (resets_before_the_head, 502, "SH", "reset"),
    (closes_before_the_head, 502, "SH", "reset"),
    (resets_in_the_head, 502, "SH", "reset"),
    (closes_in_the_head, 502, "SH", "reset"),
    (closes_in_the_status_line, 502, "SH", "reset"),
    (speaks_nonsense, 502, "PH", "bad_response"),
    (repeats_the_length, 502, "PH", "bad_response"),
    (floods_the_head, 502, "PH", "bad_response"),
]


UNKNOWN = "http://nowhere.onion"


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"


AT_ONCE = {"failures": 1, "open": "300s", "max_ejected": 1.0}
"""A breaker that opens at the first failure."""
