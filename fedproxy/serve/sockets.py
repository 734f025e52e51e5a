"""The listening sockets of the visitors' side, held by the process that outlives the workers.

Each worker has a socket of its own for each TCP address, in one group (SO_REUSEPORT), so that the kernel
spreads the visitors. The process that starts the workers keeps all of them open: whoever waits in the
queue of a worker that died, or was replaced, is served by the next one. A socket joins the group when a
worker listens on it, and not before, as nobody else would look at its queue.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedproxy.config import Address

if TYPE_CHECKING:
    from fedproxy.config import Listener

BACKLOG = 2048


class Sockets:
    """The sockets by address. `inherited`: those that were given to this process as it started."""

    def __init__(self, inherited: Sequence[socket.socket] = ()) -> None:
        self._open: dict[tuple[Address, int], _Group] = {}
        self._inherited = list(inherited)

    def open(self, listeners: Sequence[Listener], slots: int) -> Callable[[], None]:
        """Opens what is not open yet, and returns what closes that again.

        Raises OSError, with nothing new left open, for what cannot be.
        """
        before = {key: len(group) for key, group in self._open.items()}

        def undo() -> None:
            for key in [key for key in self._open if key not in before]:
                self._open.pop(key).close()
            for key, size in before.items():
                self._open[key].cut(size)

        try:
            for key in _keys(listeners):
                if key not in self._open:
                    self._open[key] = _Group(key[0], self._take_inherited(key[0]))
                self._open[key].grow(slots)
        except OSError:
            undo()
            raise
        return undo

    def close_others(self, listeners: Sequence[Listener], slots: int) -> None:
        """Closes what these listeners in so many slots do not need, but nothing where visitors may wait."""
        wanted = set(_keys(listeners))
        for key in [key for key in self._open if key not in wanted]:
            self._open.pop(key).close()
        for group in self._open.values():
            group.shrink(slots)

    def of(self, listeners: Sequence[Listener], slot: int, slots: int) -> list[list[socket.socket]]:
        """For each listener what one slot of so many accepts on. Raises OSError."""
        return [self._open[key].of(slot, slots) for key in _keys(listeners)]

    def rest(self, slot: int) -> None:
        """Nobody will accept in this slot for a while: the kernel is to send visitors to the others."""
        for group in self._open.values():
            group.rest(slot)

    def bound(self, listeners: Sequence[Listener]) -> list[tuple[str, int]]:
        """Host and port of each listener that has them, with the port that was found for 0."""
        return [self._open[key].bound() for key in _keys(listeners) if not key[0].path]

    def close(self) -> None:
        """Closes all of them."""
        for group in self._open.values():
            group.close()
        self._open.clear()
        for sock in self._inherited:
            sock.close()
        self._inherited.clear()

    def _take_inherited(self, address: Address) -> socket.socket | None:
        for at, sock in enumerate(self._inherited):
            if _is_at(sock, address):
                return self._inherited.pop(at)
        return None


def listen_on(address: Address) -> socket.socket:
    """One listening socket, in no group. Raises OSError that names the address."""
    if address.path:
        return _unix(address)
    sock = _tcp(address, address.port, in_group=False)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(address, error) from error
    return sock


def _keys(listeners: Sequence[Listener]) -> list[tuple[Address, int]]:
    """An address, and which of its mentions: several listeners may each take any free port."""
    seen: dict[Address, int] = {}
    keys = []
    for listener in listeners:
        count = seen[listener.address] = seen.get(listener.address, -1) + 1
        keys.append((listener.address, count))
    return keys


def _is_at(sock: socket.socket, address: Address) -> bool:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return bool(address.path == name)
    return not address.path and (name[0], name[1]) == (address.host, address.port)


class _Group:
    """The sockets of one address: one for each slot, or one for all where the kernel knows no groups."""

    def __init__(self, address: Address, inherited: socket.socket | None) -> None:
        self._address = address
        self._sockets: list[socket.socket | None] = []
        self._shared = inherited
        self._file: Path | None = None
        self._found = (address.host, address.port)
        if inherited is not None:
            inherited.setblocking(False)
        elif address.path:
            self._file = Path(address.path)
            self._shared = _unix(address)
        else:
            _check_free(address)

    def grow(self, slots: int) -> None:
        if self._shared is None:
            while len(self._sockets) < slots:
                self._sockets.append(self._another())

    def __len__(self) -> int:
        return len(self._sockets)

    def cut(self, size: int) -> None:
        """Closes all but the first ones: nobody will look at the queues of the others."""
        for sock in self._sockets[size:]:
            if sock is not None:
                sock.close()
        del self._sockets[size:]

    def shrink(self, slots: int) -> None:
        extra = self._sockets[slots:]
        del self._sockets[slots:]
        for sock in extra:
            if sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                # It is in the group, and closing it would reset who comes just now.
                self._sockets.append(sock)
            elif sock is not None:
                sock.close()

    def of(self, slot: int, slots: int) -> list[socket.socket]:
        """The slot's own, and those that are left over from a time with more slots: everybody looks there."""
        if self._shared is not None:
            return [self._shared]
        own = self._sockets[slot]
        if own is None:
            own = self._sockets[slot] = self._another()
        return [own, *(sock for sock in self._sockets[slots:] if sock is not None)]

    def bound(self) -> tuple[str, int]:
        """Host and port, with the port that was found for 0."""
        if self._shared is not None:
            host, port = self._shared.getsockname()[:2]
            return host, port
        return self._found

    def rest(self, slot: int) -> None:
        if self._shared is None and len(self._sockets) > 1:
            sock, self._sockets[slot] = self._sockets[slot], None
            if sock is not None:
                sock.close()

    def close(self) -> None:
        self.cut(0)
        if self._shared is not None:
            self._shared.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _another(self) -> socket.socket:
        sock = _tcp(self._address, self._found[1], in_group=True)
        self._found = sock.getsockname()[:2]
        return sock


def _check_free(address: Address) -> None:
    """Members of a group do not disturb each other, so only a socket without it finds a port in use."""
    if address.port:
        _tcp(address, address.port, in_group=False).close()


def _tcp(address: Address, port: int, *, in_group: bool) -> socket.socket:
    host = address.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if in_group:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _cannot(address, error) from error
    return sock


def _unix(address: Address) -> socket.socket:
    path = address.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.setblocking(False)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(address, error) from error
    return sock


def _remove_stale(path: str) -> None:
    """Removes the socket that a program left behind. Raises OSError if somebody listens on it."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file of that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _cannot(address: Address, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot listen on {address}: {error.strerror}")
