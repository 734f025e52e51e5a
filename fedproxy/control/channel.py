"""The control channel between the control process and a worker: messages both ways, over a pair of sockets.

Neither side waits for the other. What is only good while it is fresh is dropped when the other side does not
read; the rest waits. When the channel is cut, a worker goes on with what it last knew.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import cast

_LENGTH = struct.Struct(">I")
_FRESH_ONLY = 1 << 18  # bytes that wait to be read by the other side


class ControlChannel(asyncio.Protocol):
    """One end. `on_message` is called with each message, `on_lost` when the other end is gone."""

    def __init__(self, on_message: Callable[[object], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._held = b""

    @classmethod
    async def open(
        cls, sock: socket.socket, on_message: Callable[[object], None], on_lost: Callable[[], None]
    ) -> ControlChannel:
        """The channel over `sock`, one of a pair of stream sockets, which it owns from now on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_message, on_lost), sock=sock)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there."""
        return not self._transport.is_closing()

    def send(self, message: object) -> None:
        """Sends a message, which waits for as long as the other side does not read."""
        if self.is_open:
            data = pickle.dumps(message)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    @property
    def is_read(self) -> bool:
        """Whether the other end is there and reads, so that few messages wait."""
        return self.is_open and self._transport.get_write_buffer_size() < _FRESH_ONLY

    def send_fresh(self, message: object) -> None:
        """Sends a message, unless many wait: the next one will say more."""
        if self.is_read:
            self.send(message)

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        data = self._held + data
        at = 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            # Only the other end of a pair that this program made itself writes here.
            message = pickle.loads(data[at + _LENGTH.size : end])  # noqa: S301
            at = end
            self._on_message(message)
        self._held = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._on_lost()

    def close(self) -> None:
        """Sends what waits, and ends the channel."""
        self._transport.close()
