"""What both sides share: to read, or to wait until the other side has room."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable, Sequence

from fedproxy.wire.address import read_address

LOCAL = b"127.0.0.1"


def address_of(transport: asyncio.BaseTransport) -> bytes | None:
    """The address of a TCP peer; None if it reset the connection before anybody looked."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return None
    text: bytes = peer[0].encode("ascii")
    return (read_address(text) or None) if b":" in text else text


def has_unread(sock: socket.socket) -> bool:
    """Whether something has arrived that was not read yet."""
    if sock.fileno() < 0:
        return False
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    return bool(count)


def all_arrived(transport: asyncio.Transport) -> bool:
    """Whether the other side's system has acknowledged everything that was written, the end included."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or transport.get_write_buffer_size():
        return False
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    return not count


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the other side has closed, also if what it sent before is not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def look_at(transport: asyncio.BaseTransport) -> Callable[[float], Sequence[object]]:
    """A function that tells, called with 0, whether bytes or an end have arrived and are not read yet."""
    poll = select.poll()
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    return poll.poll


class Flow(asyncio.Protocol):
    """A connection whose reading can be paused; both calls may be made at any time and again."""

    __slots__ = ("reading", "transport", "wire")

    transport: asyncio.Transport
    wire: asyncio.Transport  # next to the system: the same, or what is below its TLS

    def __init__(self) -> None:
        self.reading = True

    def cut_off(self) -> None:
        """The other side ended without `close_notify`: what is written from now on is lost."""

    def unsent(self) -> int:
        """Bytes that the system has not taken yet."""
        return self.wire.get_write_buffer_size()

    def pause(self) -> None:
        """Reads no more until `resume`."""
        if self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()
