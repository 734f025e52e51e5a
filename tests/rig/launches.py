"""Launches as a visitor asks for them, and BinderHubs that say what they are told to."""

from __future__ import annotations

import json
from typing import Any

from tests.rig.member import Conn, Script

TARGET = b"/build/gh/org/repo/HEAD"


EVENTS = b"Accept: text/event-stream"


PIN = b"Cookie: fedproxy_member=a"


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


LAST = b"0\r\n\r\n"


PATIENT: dict[str, Any] = {"retry": {"attempts": 3, "budget": 1, "floor": 100}}


def ask(*lines: bytes, target: bytes = TARGET, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = (b"Host: hub.test", *(lines or (EVENTS, PIN)))
    return b"\r\n".join((b"%b %b HTTP/%b" % (method, target, version), *lines, b"", b""))


LAUNCH = ask()


def event(phase: str | None = None, **more: object) -> bytes:
    said: dict[str, object] = {} if phase is None else {"phase": phase}
    return b"data: %b\n\n" % json.dumps(said | more).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


KEEPALIVE = b":keepalive\n\n"


QUOTA = event("failed", message="Too many users on this BinderHub! Try again soon.\n")


CRASH = event("failed", status_code=500, message="Internal Server Error\n")


BUILT = event("built", message="Found built image, launching...\n", imageName="x")


LAUNCHING = event("launching", message="Launching server...\n")


READY = event("ready", message="server running\n", url="https://hub.test/user/x/", token="s3cret")


CACHED = (BUILT, LAUNCHING, READY)


def says(*events: bytes, head: bytes = HEAD, ends: bool = True) -> Script:
    """A member that says these for each request, each as a chunk; then its stream ends, or stays open."""

    async def script(conn: Conn) -> None:
        while True:
            await conn.request()
            conn.send(head, *map(chunk, events), LAST if ends else b"")
            if not ends:
                await conn.stall()

    return script
