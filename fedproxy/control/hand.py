"""File descriptors that one process hands to another, each with a note.

They need their own socket pair, because the control channel's transport only carries bytes. Neither side
waits.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress

_LONGEST_NOTE = 4096  # bytes
_MOST = 8  # descriptors with one note


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries. Neither blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def give(end: socket.socket, note: object, sockets: Sequence[socket.socket] = ()) -> bool:
    """Sends copies of the sockets; False if the other end is gone, or does not read.

    note: anything that JSON can express.
    """
    try:
        socket.send_fds(end, [json.dumps(note).encode()], [sock.fileno() for sock in sockets])
    except OSError:
        return False
    return True


def take(end: socket.socket) -> tuple[object, list[socket.socket]] | None:
    """The next note with its sockets, which the caller now owns. None if the other end is gone.

    Raises BlockingIOError if there is nothing yet, TimeoutError if the socket has a time limit.
    """
    try:
        data, descriptors, _, _ = socket.recv_fds(end, _LONGEST_NOTE, _MOST, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, TimeoutError):
        raise
    except OSError:
        return None
    sockets = [socket.socket(fileno=number) for number in descriptors]
    try:
        return json.loads(data), sockets
    except ValueError:
        # At the end of the stream the data is empty, which is not JSON either.
        for sock in sockets:
            sock.close()
        return None


def take_all(end: socket.socket) -> Iterator[tuple[object, list[socket.socket]]]:
    """All that have arrived so far."""
    with suppress(BlockingIOError):
        while (taken := take(end)) is not None:
            yield taken
