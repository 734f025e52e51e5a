"""What both sides share: to read, or to wait until the other side has room."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios

LOCAL = b"127.0.0.1"


def address_of(transport: asyncio.BaseTransport) -> bytes | None:
    """The peer's address; None on a unix socket."""
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return None
    # An IPv4 visitor of an IPv6 listener is an IPv4 visitor (RFC 4291 section 2.5.5.2).
    address: str = peer[0].partition("%")[0].removeprefix("::ffff:")
    return address.encode("ascii")


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


class Flow(asyncio.Protocol):
    """A connection whose reading can be paused; both calls may be made at any time and again."""

    __slots__ = ("reading", "transport")

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.reading = True

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
