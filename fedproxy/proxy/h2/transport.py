"""A stream of an HTTP/2 connection as the end of a tunnel: what asyncio calls a transport (RFC 8441)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from fedproxy.wire.h2.frame import Code

if TYPE_CHECKING:
    from fedproxy.proxy.h2.writing import Sender


class StreamTransport(asyncio.Transport):
    """The visitor's end of a tunnel within a stream. ended: the visitor has sent everything."""

    def __init__(self, stream: Sender, ended: bool) -> None:
        super().__init__()
        self._stream = stream
        self._protocol: asyncio.Protocol | None = None
        # The stream may be gone before it becomes a tunnel.
        self._closing = not stream.is_open
        self._ended = False  # nothing more is written
        self._over = False  # the protocol knows that it is closed
        self._paused: list[bytes] = []
        self._reading = True
        self._eof = ended
        # The protocol was told to pause, or the tunnel begins with that.
        self._told = stream.full

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who receives what the visitor sends."""
        self._protocol = cast(asyncio.Protocol, protocol)
        if self._closing:
            self._soon()
        elif self._eof:
            asyncio.get_running_loop().call_soon(self._end)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who receives what the visitor sends."""
        return cast(asyncio.BaseProtocol, self._protocol)

    # From the visitor

    def received(self, data: bytes, done: bool) -> None:
        """The visitor has sent this; with `done` nothing follows."""
        if self._closing or self._protocol is None:
            return
        self._eof = self._eof or done
        if not self._reading:
            self._paused.append(data)
            return
        if data:
            self._protocol.data_received(data)
        if done:
            self._end()

    def _end(self) -> None:
        if self._protocol is not None and not self._closing and not self._protocol.eof_received():
            self.close()

    def pause_reading(self) -> None:
        """Delivers nothing more, and lets the visitor send no more, until `resume_reading`."""
        self._reading = False
        self._stream.pause()

    def resume_reading(self) -> None:
        """Delivers what has come."""
        if self._reading or self._closing:
            return
        self._reading = True
        waiting, self._paused = self._paused, []
        for data in waiting:
            if data and self._protocol is not None:
                self._protocol.data_received(data)
        self._stream.resume()
        if self._eof and waiting:
            self._end()

    def is_reading(self) -> bool:
        """Whether what arrives is delivered."""
        return self._reading

    # To the visitor

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Sends this, or keeps it until the visitor takes more."""
        if self._closing or self._ended or not data:
            return
        self._send(bytes(data), False)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Sends all of these."""
        self.write(b"".join(list_of_data))

    def _send(self, data: bytes, done: bool) -> None:
        stream, connection = self._stream, self._stream.connection
        connection.send_parts(connection.machine.body(stream, data, done))
        connection.flush()
        if stream.waiting:
            connection.full.add(stream)
            if not self._told and not done and self._protocol is not None:
                self._told = True
                self._protocol.pause_writing()

    def drained(self) -> None:
        """Nothing waits any more."""
        if self._closing:
            self._finish()
        elif self._told and self._protocol is not None:
            self._told = False
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        """Always True: each side ends by itself."""
        return True

    def write_eof(self) -> None:
        """Ends this direction."""
        if not self._ended and not self._closing:
            self._ended = True
            self._send(b"", True)

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the visitor."""
        return self._stream.backlog

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is the visitor's window."""

    # The end

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing

    def close(self) -> None:
        """Ends both directions, once everything is sent."""
        if self._closing:
            return
        self.write_eof()
        self._closing = True
        if not self._stream.waiting:
            self._finish()

    def abort(self) -> None:
        """Ends both directions at once."""
        self._closing = True
        # RFC 8441 section 5: what a reset is to a TCP connection.
        self._stream.end(Code.CANCEL)
        self._soon()

    def lost(self) -> None:
        """The visitor has reset the stream, or its connection is gone."""
        self._closing = True
        self._soon()

    def _finish(self) -> None:
        self._stream.end(Code.NO_ERROR)
        self._soon()

    def _soon(self) -> None:
        if not self._over:
            self._over = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(None)
        connection = self._stream.connection
        connection.tunnels.discard(self._stream)
        connection.stream_over(connection.context.clock())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is no socket of its own, and nothing else to tell."""
        return default
