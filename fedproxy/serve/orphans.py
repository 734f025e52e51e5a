"""Workers whose control process was killed, and how a new one takes over their sockets.

Each worker has a bell: an abstract Unix socket that only processes of the same user may ring. If its own
control process is gone, the worker passes its listening sockets to the process that rings. That one reports
when its own workers accept on them, and then the old worker drains. So a restarted control process takes over
the sockets with the visitors in their queues: no visitor is refused, and no old config stays in force.

Abstract sockets have no permissions, so each side checks which user the other runs as. Messages are JSON, as
the two may be of different versions.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedproxy.control import hand
from fedproxy.serve.sockets import Left, is_at

if TYPE_CHECKING:
    from fedproxy.config.model import ListenerSettings

_RELIEVED = "relieved"
_RINGING = 4  # processes that may ring at once
_TO_ANSWER = 2.0  # seconds for one bell
_ALL_TO_ANSWER = 5.0  # seconds for all of them
_CREDENTIALS = struct.Struct("3i")


class Bell:
    """A worker's bell. left: its sockets, or None while it has a control process. on_relieved: called when
    others accept there."""

    def __init__(self, left: Callable[[], Sequence[Left] | None], on_relieved: Callable[[], None]) -> None:
        self._left = left
        self._on_relieved = on_relieved
        self._ringing: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.bind(f"{_prefix()}{secrets.token_hex(16)}")
        self._socket.listen(_RINGING)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._on_ring)

    @property
    def is_rung(self) -> bool:
        """Whether another process has the sockets too."""
        return bool(self._ringing)

    def close(self) -> None:
        """Stops answering."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for ringing in list(self._ringing):
            self._drop(ringing)

    def _on_ring(self) -> None:
        try:
            ringing, _ = self._socket.accept()
        except OSError:
            # Gone already, or no file descriptor is left.
            return
        ringing.setblocking(False)
        left = self._left() if _is_ours(ringing) else None
        sent = left is not None and all(hand.give(ringing, {"given": given}, [sock]) for sock, given in left)
        if not (hand.give(ringing, {"sockets": len(left or ())}) and sent):
            ringing.close()
            return
        self._ringing.append(ringing)
        if len(self._ringing) > _RINGING:
            self._drop(self._ringing[0])
        self._loop.add_reader(ringing, self._on_word, ringing)

    def _on_word(self, ringing: socket.socket) -> None:
        try:
            said = hand.take(ringing)
        except BlockingIOError:
            return
        self._drop(ringing)
        if said is not None and said[0] == _RELIEVED and self._left() is not None:
            self._on_relieved()

    def _drop(self, ringing: socket.socket) -> None:
        self._ringing.remove(ringing)
        self._loop.remove_reader(ringing)
        ringing.close()


class Orphans:
    """The workers without a control process that accept at our addresses. `sockets`: each of theirs once."""

    def __init__(self) -> None:
        self.sockets: list[Left] = []
        self._bells: list[socket.socket] = []

    def add(self, bell: socket.socket, sockets: Iterable[Left]) -> None:
        """Adds one of them. Sockets that are known already are closed."""
        self._bells.append(bell)
        known = {os.fstat(sock.fileno()).st_ino for sock, _ in self.sockets}
        for sock, given in sockets:
            inode = os.fstat(sock.fileno()).st_ino
            if inode in known:
                sock.close()
            else:
                known.add(inode)
                self.sockets.append((sock, given))

    def relieve(self) -> int:
        """Informs them that others accept on their sockets now. Returns how many were informed."""
        heard = sum(hand.give(bell, _RELIEVED) for bell in self._bells)
        self.close()
        return heard

    def close(self) -> None:
        """Releases them unchanged."""
        for bell in self._bells:
            bell.close()
        self._bells.clear()


def find(listeners: Sequence[ListenerSettings]) -> Orphans:
    """The workers that accept at one of these addresses. Blocks for a few seconds if one does not answer."""
    orphans = Orphans()
    until = time.monotonic() + _ALL_TO_ANSWER
    for name in _bells():
        if time.monotonic() >= until:
            break
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bell.settimeout(_TO_ANSWER)
        left = _ring(bell, name)
        if any(is_at(sock, listener.address) for sock, _ in left for listener in listeners):
            orphans.add(bell, left)
        else:
            bell.close()
            for sock, _ in left:
                sock.close()
    return orphans


def _ring(bell: socket.socket, name: str) -> list[Left]:
    left: list[Left] = []
    with suppress(OSError):
        bell.connect(name)
        while _is_ours(bell) and (said := hand.take(bell)) is not None:
            note, sockets = said
            if not sockets:
                # The last message: these are all, or the worker has a control process.
                return left
            given = not isinstance(note, dict) or bool(note.get("given"))
            left += [(sock, given) for sock in sockets]
    for sock, _ in left:
        sock.close()
    return []


def _prefix() -> str:
    return f"\0fedproxy/{os.geteuid()}/"


def _bells() -> list[str]:
    """The bells of this user's workers, in this network namespace."""
    shown = _prefix().replace("\0", "@")
    found = []
    with suppress(OSError):
        for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
            name = line.rpartition(" ")[2]
            # The list has one more entry for each connection.
            if name.startswith(shown) and "\0" + name[1:] not in found:
                found.append("\0" + name[1:])
    return found


def _is_ours(peer: socket.socket) -> bool:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
