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
from typing import Final, Generic, TypeGuard, TypeVar, cast

from fedproxy.control.messages import FromWorker, ToWorker, is_from_worker, is_to_worker
from fedproxy.errors import ChannelError

_LENGTH: Final = struct.Struct(">I")
_FRESH_ONLY: Final = 1 << 18  # bytes that wait to be read by the other side
#: What `pickle.loads` raises for bytes that are no pickle, or are one of classes that are not here.
_UNREADABLE: Final = (
    *(pickle.UnpicklingError, EOFError, ImportError, AttributeError),
    *(LookupError, TypeError, ValueError),
)

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class ControlChannel(asyncio.Protocol, Generic[Sent, Received]):
    """One end.

    peer: who is at the other end, in words. is_known: whether a message is one that `peer` may send.
    on_message: called with each message. on_refused: called once if the other end is not understood; what
    comes from there is ignored from then on, but messages can still be sent. on_lost: called once, when the
    other end is gone.
    """

    def __init__(
        self,
        peer: str,
        is_known: Callable[[object], TypeGuard[Received]],
        on_message: Callable[[Received], None],
        on_refused: Callable[[ChannelError], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._is_known = is_known
        self._on_message = on_message
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._held = b""
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there."""
        return not self._transport.is_closing()

    def send(self, message: Sent) -> None:
        """Sends a message, which waits for as long as the other side does not read."""
        if self.is_open:
            data = pickle.dumps(message)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    @property
    def is_read(self) -> bool:
        """Whether the other end is there and reads, so that few messages wait."""
        return self.is_open and self._transport.get_write_buffer_size() < _FRESH_ONLY

    def send_fresh(self, message: Sent) -> None:
        """Sends a message, unless many wait: the next one will say more."""
        if self.is_read:
            self.send(message)

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        if self._refused:
            # Read all the same, so that the end of it is seen.
            return
        data = self._held + data
        at = 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            try:
                message = self._read(data[at + _LENGTH.size : end])
            except ChannelError as error:
                self._refuse(error)
                return
            at = end
            self._on_message(message)
        self._held = data[at:]

    def _read(self, data: bytes) -> Received:
        try:
            # Only the other end of a pair that this program made itself writes here.
            message: object = pickle.loads(data)  # noqa: S301
        except _UNREADABLE as error:
            raise ChannelError(f"{self._peer} sent a message that cannot be read: {error!r}") from error
        if not self._is_known(message):
            kind = f"{type(message).__module__}.{type(message).__qualname__}"
            raise ChannelError(f"{self._peer} sent {kind}, which is not one of its messages")
        return message

    def _refuse(self, error: ChannelError) -> None:
        self._refused = True
        self._held = b""
        self._on_refused(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._on_lost()

    def close(self) -> None:
        """Sends what waits, and ends the channel."""
        self._transport.close()


async def open_to_worker(
    sock: socket.socket,
    on_message: Callable[[FromWorker], None],
    on_refused: Callable[[ChannelError], None],
    on_lost: Callable[[], None],
) -> ControlChannel[ToWorker, FromWorker]:
    """The control process's end over `sock`, one of a pair of stream sockets, which it owns from now on."""
    return await _open(
        sock,
        lambda: ControlChannel[ToWorker, FromWorker](
            "the worker", is_from_worker, on_message, on_refused, on_lost
        ),
    )


async def open_to_control(
    sock: socket.socket,
    on_message: Callable[[ToWorker], None],
    on_refused: Callable[[ChannelError], None],
    on_lost: Callable[[], None],
) -> ControlChannel[FromWorker, ToWorker]:
    """The worker's end over `sock`, one of a pair of stream sockets, which it owns from now on."""
    return await _open(
        sock,
        lambda: ControlChannel[FromWorker, ToWorker](
            "the control process", is_to_worker, on_message, on_refused, on_lost
        ),
    )


async def _open(
    sock: socket.socket, create: Callable[[], ControlChannel[Sent, Received]]
) -> ControlChannel[Sent, Received]:
    sock.setblocking(False)
    _, channel = await asyncio.get_running_loop().create_unix_connection(create, sock=sock)
    return channel
