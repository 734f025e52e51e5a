"""Members of event streams and WebSockets, in one process: `members.py PORT...`.

`/build/...` is an event stream; all open streams together get `EVENTS` events a second, each with the time
at which it was sent. `/build/short/...` has `STEPS` events of its own, `ready`, and ends. `/echo` is a
WebSocket that sends back what it gets; any other answers as a kernel does, each message by `REPLIES`. `/1k`
and the rest answer at once, with bodies of the size of BinderHub's; what a browser has of it still holds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import uvloop

EVENTS: Final = 3_000
STEPS: Final = 24
REPLIES: Final = (400, 700, 4_000, 900, 400)
"""Bytes of what a kernel says to one execution: busy, its input, some output, the reply, idle."""
_TICK = 0.002
_ACCEPT: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r ]+)")
_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_BODIES: Final = {
    b"/health": b'{"ok": true, "checks": []}',
    b"/1k": b"x" * 1024,
    b"/api/repoproviders": b"x" * 2_500,
}
_PAGE: Final = b"x" * 4_500
_NOTEBOOK: Final = b"x" * 19_000
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_READY: Final = (
    b'data: {"phase": "ready", "url": "http://127.0.0.1/user/org-repo-x/", "token": "x", "message": "up"}\n\n'
)


def event(stamp: int) -> bytes:
    """A line of a build as BinderHub sends it, about 100 bytes, with a time in nanoseconds; one chunk."""
    line = (
        b'data: {"phase": "building", "message": "Step 7/52 : RUN apt-get install", "at": "%020d"}\n\n'
        % stamp
    )
    return b"%x\r\n%b\r\n" % (len(line), line)


def frame_length(data: bytes) -> int:
    """Bytes of the frame that `data` begins with (RFC 6455, section 5.2); 0 if more is needed to tell."""
    if len(data) < 2:
        return 0
    masked, short = data[1] & 0x80, data[1] & 0x7F
    extended = {126: 2, 127: 8}.get(short, 0)
    if len(data) < 2 + extended:
        return 0
    payload = int.from_bytes(data[2 : 2 + extended], "big") if extended else short
    return 2 + extended + (4 if masked else 0) + payload


def frame(size: int, *, masked: bool) -> bytes:
    """A binary message of `size` bytes. The mask is zero, so the payload is the same with and without it."""
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([0x82, bit | size])
    elif size < 65536:
        head = bytes([0x82, bit | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x82, bit | 127]) + size.to_bytes(8, "big")
    return head + (b"\0\0\0\0" if masked else b"") + b"x" * size


class Connection(asyncio.Protocol):
    """One connection of a proxy."""

    streams: Final[deque[asyncio.Transport]] = deque()

    def __init__(self) -> None:
        self._buffer = b""
        self._socket: Callable[[bytes], bytes] | None = None
        self._body = 0  # bytes of a request's body that have not come yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        data = self._buffer + data if self._buffer else data
        if self._socket is not None:
            self._buffer = self._socket(data)
            return
        while True:
            skipped = min(self._body, len(data))
            self._body -= skipped
            data = data[skipped:]
            if skipped and not self._body:
                self._send(b"{}")
            end = data.find(b"\r\n\r\n")
            if self._body or end < 0:
                break
            head, data = data[: end + 2], data[end + 4 :]
            length = _LENGTH.search(head)
            if length is not None and int(length[1]):
                self._body = int(length[1])
            else:
                self._answer(head)
        self._buffer = data

    def connection_lost(self, _error: Exception | None) -> None:  # noqa: D102
        if self._transport in self.streams:
            self.streams.remove(self._transport)

    def _answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/build/short/"):
            self._transport.write(_STREAM)
            self._launch(STEPS)
        elif path.startswith(b"/build/"):
            self._transport.write(_STREAM + event(time.monotonic_ns()))
            self.streams.append(self._transport)
        elif key := _KEY.search(head):
            self._socket = self._echo if path == b"/echo" else self._execute
            accept = base64.b64encode(hashlib.sha1(key[1] + _ACCEPT).digest())
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
            )
        elif b"\r\nIf-Modified-Since: " in head or b"\r\nif-modified-since: " in head:
            self._transport.write(b"HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n")
        elif path.startswith(b"/v2/"):
            self._send(_PAGE)
        else:
            self._send(_NOTEBOOK if b"content=1" in path else _BODIES.get(path, b"{}"))

    def _send(self, body: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def _launch(self, left: int) -> None:
        """An event now, and the next in a moment."""
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(event(time.monotonic_ns()))
            asyncio.get_running_loop().call_later(_TICK, self._launch, left - 1)
        else:
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_READY), _READY))

    def _execute(self, data: bytes) -> bytes:
        while (length := frame_length(data)) and len(data) >= length:
            for size in REPLIES:
                self._transport.write(frame(size, masked=False))
            data = data[length:]
        return data

    def _echo(self, data: bytes) -> bytes:
        while (length := frame_length(data)) and len(data) >= length:
            head = 2 + {126: 2, 127: 8}.get(data[1] & 0x7F, 0)
            if data[0] & 0x0F == 8:
                self._transport.write(b"\x88\x00")
                self._transport.close()
                return b""
            payload = _unmasked(data[head : head + 4], data[head + 4 : length])
            self._transport.write(bytes([data[0], data[1] & 0x7F]) + data[2:head] + payload)
            data = data[length:]
        return data


def _unmasked(mask: bytes, payload: bytes) -> bytes:
    """A proxy that parses messages masks them anew."""
    if mask == b"\0\0\0\0":
        return payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    plain = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return plain.to_bytes(len(payload), "little")


async def tell() -> None:
    """Sends events to the open streams in turn, until it is cancelled."""
    due, last = 0.0, time.monotonic()
    while True:
        await asyncio.sleep(_TICK)
        now = time.monotonic()
        due, last = min(due + (now - last) * EVENTS, EVENTS * 0.1), now
        while due >= 1:
            due -= 1
            if Connection.streams:
                Connection.streams[0].write(event(time.monotonic_ns()))
                Connection.streams.rotate(-1)


async def run(ports: list[int]) -> None:
    """Serves until it is ended."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    await tell()


if __name__ == "__main__":
    uvloop.run(run([int(number) for number in sys.argv[1:]]))
