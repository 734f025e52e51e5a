"""The control channel between the control process and a worker: messages both ways, over a pair of sockets.

Neither side waits for the other. What is only good while it is fresh is dropped when the other side does not
read; the rest waits. When the channel is cut, a worker goes on with what it last knew.

Each end first sends a preamble that says which fedproxy it is. After an upgrade in place, a control process
that still runs starts workers of the new code, and their classes may differ from its own. So nothing is
unpickled before the other end has said that it is the same.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeGuard, TypeVar, cast

from fedproxy import __version__
from fedproxy.control.messages import FromWorker, ToWorker, is_from_worker, is_to_worker
from fedproxy.errors import ChannelError

#: To be raised when messages change, or classes in them (the config, a survey), and the release does not.
PROTOCOL: Final = 7

_LENGTH: Final = struct.Struct(">I")
_FRESH_ONLY: Final = 1 << 18  # bytes that wait to be read by the other side
#: What `pickle.loads` raises for bytes that are no pickle, or are one of classes that are not here.
_UNREADABLE: Final = (
    *(pickle.UnpicklingError, EOFError, ImportError, AttributeError),
    *(LookupError, TypeError, ValueError),
)

_CONTROL: Final = "the control process"
_WORKER: Final = "the worker"
_ADVICE: Final = "fedproxy was changed while it ran; restart it"

Sent = TypeVar("Sent")
Received = TypeVar("Received")


@dataclass(frozen=True)
class Preamble:
    """What an end says first: the protocol, and the release that it is of.

    Both have to be the same at both ends. A message carries the whole config and all counters, so there is
    hardly a release that changes none of its classes, and a field that is missing shows long after the pickle
    was read. The protocol tells apart what one release number cannot: copies from between two releases.

    Its bytes never change, in no version: `fedproxy`, the protocol (2 bytes, big-endian), the length of the
    release (1 byte), the release (UTF-8).
    """

    protocol: int
    release: str

    def __str__(self) -> str:
        return f"fedproxy {self.release} (protocol {self.protocol})"

    def pack(self) -> bytes:
        """Its bytes."""
        release = self.release.encode()[:255]
        return _PREAMBLE.pack(_MAGIC, self.protocol, len(release)) + release

    @staticmethod
    def read(data: bytes) -> tuple[Preamble, bytes] | None:
        """The preamble at the start, and what follows it; None if it is not whole.

        Raises ValueError if there is none.
        """
        if not data.startswith(_MAGIC[: len(data)]):
            raise ValueError("no preamble")
        if len(data) < _PREAMBLE.size:
            return None
        _, protocol, length = _PREAMBLE.unpack_from(data)
        end = _PREAMBLE.size + length
        if len(data) < end:
            return None
        return Preamble(protocol, data[_PREAMBLE.size : end].decode(errors="replace")), data[end:]


_MAGIC: Final = b"fedproxy"
_PREAMBLE: Final = struct.Struct(">8sHB")
OURS: Final = Preamble(PROTOCOL, __version__)


class ControlChannel(asyncio.Protocol, Generic[Sent, Received]):
    """One end.

    here, peer: who is at this end and at the other, in words. is_known: whether a message is one that `peer`
    may send. on_message: called with each message. on_refused: called once if the other end is not
    understood; what comes from there is ignored from then on, but messages can still be sent. on_lost: called
    once, when the other end is gone.
    """

    def __init__(
        self,
        here: str,
        peer: str,
        is_known: Callable[[object], TypeGuard[Received]],
        on_message: Callable[[Received], None],
        on_refused: Callable[[ChannelError], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._here = here
        self._peer = peer
        self._is_known = is_known
        self._on_message = on_message
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._held = b""
        self._met = False  # the other end has said that it is the same
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(OURS.pack())

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
        self._held += data
        try:
            if not self._met:
                self._meet()
            if self._met:
                self._read_messages()
        except ChannelError as error:
            self._refused = True
            self._held = b""
            self._on_refused(error)

    def _meet(self) -> None:
        """Reads the preamble, if all of it is there."""
        try:
            found = Preamble.read(self._held)
        except ValueError:
            raise ChannelError(
                f"{self._peer} does not say which fedproxy it is, {self._here} is {OURS}: {_ADVICE}"
            ) from None
        if found is None:
            return
        theirs, self._held = found
        if theirs != OURS:
            raise ChannelError(f"{self._peer} is {theirs}, {self._here} is {OURS}: {_ADVICE}")
        self._met = True

    def _read_messages(self) -> None:
        data, at = self._held, 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            message = self._read(data[at + _LENGTH.size : end])
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
            _CONTROL, _WORKER, is_from_worker, on_message, on_refused, on_lost
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
            _WORKER, _CONTROL, is_to_worker, on_message, on_refused, on_lost
        ),
    )


async def _open(
    sock: socket.socket, create: Callable[[], ControlChannel[Sent, Received]]
) -> ControlChannel[Sent, Received]:
    sock.setblocking(False)
    _, channel = await asyncio.get_running_loop().create_unix_connection(create, sock=sock)
    return channel
