"""One end of a raw connection: what a scripted member and a raw client have in common."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from tests.rig.message import Message, fields_of, parse_head

GUARD = 10.0
LIMIT = 1 << 20


def guard() -> asyncio.Timeout:
    """Nothing that a test waits for takes this long, unless it never comes."""
    return asyncio.timeout(GUARD)


async def until(
    condition: Callable[[], object],
    what: str | Callable[[], object],
    within: float = GUARD,
    pause: float = 0.002,
) -> None:
    """Waits for a condition that nobody announces; `what` says which, or what is there instead."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"never came true: {what() if callable(what) else what}") from None


class Ended(Exception):
    """The peer ended the connection where more was awaited. `how`: eof or reset."""

    def __init__(self, how: str, partial: bytes) -> None:
        super().__init__(f"{how} after {partial[:200]!r}")
        self.how = how
        self.partial = partial


class Recorder(asyncio.StreamReader):
    """A reader that keeps what it was fed, and gives out what came before a reset."""

    def __init__(self) -> None:
        super().__init__(limit=LIMIT)
        self.received = bytearray()
        self.was_reset = False

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        self.received += data
        super().feed_data(data)

    def set_exception(self, exc: BaseException) -> None:
        self.was_reset = True
        self.feed_eof()


class Wire:
    """Sends what it is told and reads what comes, by the framing that the peer declared."""

    def __init__(self, reader: Recorder, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def received(self) -> bytes:
        """All that came on this connection so far, read or not."""
        return bytes(self.reader.received)

    def write(self, data: bytes) -> None:
        """Sends; a peer that left takes everything."""
        # uvloop raises RuntimeError for a transport that is closed, also if it was the peer who closed it.
        if not self.writer.is_closing():
            self.writer.write(data)

    async def flush(self) -> None:
        """Waits until the peer takes more; a peer that left takes everything."""
        with suppress(ConnectionError):
            await self.writer.drain()

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Closes with RST and not FIN."""
        if self.writer.is_closing():
            return
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def _ended(self, partial: bytes) -> Ended:
        return Ended("reset" if self.reader.was_reset else "eof", partial)

    async def until_end(self) -> tuple[str, bytes]:
        """Reads on until the peer ends the connection: how it did, and what came before."""
        rest = await self.reader.read(-1)
        return ("reset" if self.reader.was_reset else "eof"), rest

    async def exactly(self, count: int) -> bytes:
        try:
            return await self.reader.readexactly(count)
        except asyncio.IncompleteReadError as error:
            raise self._ended(error.partial) from None

    async def line(self) -> bytes:
        """A line, without its CRLF."""
        try:
            return (await self.reader.readuntil(b"\r\n"))[:-2]
        except asyncio.IncompleteReadError as error:
            raise self._ended(error.partial) from None

    async def head(self) -> Message:
        """The head of the next message, and nothing of its body."""
        try:
            return parse_head(await self.reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as error:
            raise self._ended(error.partial) from None

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its last chunk, whose trailers are still to be read."""
        size = int(await self.line(), 16)
        if not size:
            return b""
        data = await self.exactly(size)
        assert await self.exactly(2) == b"\r\n"
        return data

    async def body_of(self, message: Message) -> None:
        """Reads the body that the head of `message` declares, if it declares one, into `message`."""
        coding, length = message.value("transfer-encoding"), message.value("content-length")
        assert coding is None or length is None, message.head
        if coding is not None:
            assert coding.lower() == b"chunked"
            message.framing = "chunked"
            pieces = []
            while data := await self.chunk():
                pieces.append(data)
            message.body = b"".join(pieces)
            lines = []
            while line := await self.line():
                lines.append(line)
            message.trailers = fields_of(lines)
        elif length is not None:
            message.framing = "length"
            message.body = await self.exactly(int(length))
