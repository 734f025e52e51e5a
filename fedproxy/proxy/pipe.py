"""Two transports within one process: what is written to one, the protocol of the other receives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, cast

_MOST: Final = 64 * 1024  # bytes that wait for a reader before the writer is told to pause


class PipeEnd(asyncio.Transport):
    """One end. Nothing is delivered in the turn of the loop in which it is written."""

    peer: PipeEnd

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._arrived: list[bytes] = []
        self._size = 0  # of what has arrived and is not delivered
        self._ended = False  # nothing more will arrive
        self._closing = False
        self._lost = False  # the protocol knows that it is over
        self._reading = True
        self._due = False  # a delivery is scheduled
        self._full = False  # the peer was told to pause

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Writes bytes, which are kept until the peer reads."""
        peer = self.peer
        if self._closing or not data:
            return
        peer._arrived.append(bytes(data))
        peer._size += len(data)
        peer._schedule()
        if peer._size > _MOST and not peer._full:
            peer._full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Writes all of these."""
        self.write(b"".join(list_of_data))

    def _schedule(self) -> None:
        if not self._due and not self._lost:
            self._due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if self._lost:
            return
        if self._reading and self._arrived and not self._closing:
            data = b"".join(self._arrived)
            self._arrived.clear()
            self._size = 0
            self._protocol.data_received(data)
            if self._full:
                self._full = False
                if not self.peer._closing:
                    self.peer._protocol.resume_writing()
        if self._ended and not self._arrived and not self._closing:
            self._protocol.eof_received()
            self.close()
        if self._closing and not self._lost:
            self._lost = True
            self._protocol.connection_lost(None)

    def close(self) -> None:
        """Ends both directions, once the peer has read what was written."""
        if not self._closing:
            self._closing = True
            self.peer._ended = True
            self.peer._schedule()
            self._schedule()

    def abort(self) -> None:
        """Ends both directions at once."""
        for end in (self, self.peer):
            end._closing = True
            end._schedule()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing

    def pause_reading(self) -> None:
        """Delivers nothing more until `resume_reading`."""
        self._reading = False

    def resume_reading(self) -> None:
        """Delivers what has arrived."""
        self._reading = True
        self._schedule()

    def is_reading(self) -> bool:
        """Whether what arrives is delivered."""
        return self._reading

    def can_write_eof(self) -> bool:
        """Always False: a pipe cannot be half closed."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not read."""
        return self.peer._size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is fixed."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is no socket, and nothing else to tell."""
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """What arrives from now on is for this one."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who receives what arrives."""
        return self._protocol


def connect(one: asyncio.Protocol, other: asyncio.Protocol) -> None:
    """Connects two protocols with each other."""
    loop = asyncio.get_running_loop()
    here, there = PipeEnd(loop, one), PipeEnd(loop, other)
    here.peer, there.peer = there, here
    one.connection_made(here)
    other.connection_made(there)
