"""The listening sockets for visitors, held by the process that outlives the workers.

Each worker has its own socket for each TCP address, in one group (SO_REUSEPORT), so that the kernel
distributes the visitors. Closing a socket resets the connections in its queue, so one that is in the group is
not closed while the address is served: the process that starts the workers keeps all of them open, and lends
those of a worker that died to the others, until its successor takes its place. A socket joins the group only
when a worker listens on it, because nobody else would read its queue.

When an address is given up, its sockets are silenced first (`silence`) and closed a moment later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedproxy.config.address import Address

if TYPE_CHECKING:
    from fedproxy.config.model import ListenerSettings

BACKLOG = 2048

# A classic BPF program (socket filter) that drops segments with SYN and without ACK: byte 13 of TCP's header.
_NO_SYN = struct.pack("@" + "HBBI" * 5, *(
    *(0x30, 0, 0, 13),  # ldb [13]
    *(0x54, 0, 0, 0x12),  # and #SYN|ACK
    *(0x15, 0, 1, 0x02),  # jeq #SYN, drop, keep
    *(0x06, 0, 0, 0),  # ret #0
    *(0x06, 0, 0, 0xFFFFFFFF),  # ret #-1
))  # fmt: skip
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h

#: A listening socket of a process that is gone, and whether it came from systemd.
Left = tuple[socket.socket, bool]


class Sockets:
    """The sockets by address. `inherited`: those passed to this process at startup."""

    def __init__(self, inherited: Sequence[socket.socket] = ()) -> None:
        self._open: dict[tuple[Address, int], _Group] = {}
        self._inherited = list(inherited)
        self._left: list[Left] = []

    def inherit(self, left: Sequence[Left]) -> None:
        """Sockets of workers whose control process is gone. `open` takes them over."""
        self._left += left

    def relieve(self) -> None:
        """The workers that had these sockets will drain. Sockets that are not needed are closed."""
        for group in self._open.values():
            group.keep()
        for sock, given in self._left:
            if not given:
                silence(sock)
            sock.close()
        self._left.clear()

    def open(self, listeners: Sequence[ListenerSettings], slots: int) -> Callable[[], None]:
        """Opens the sockets that are not open yet, and returns a function that closes these again.

        Raises OSError, with nothing new left open, if one cannot be opened.
        """
        before = {key: len(group) for key, group in self._open.items()}

        def undo() -> None:
            for key in [key for key in self._open if key not in before]:
                self._open.pop(key).close()
            for key, size in before.items():
                self._open[key].shrink(size)

        try:
            for key in _keys(listeners):
                if key not in self._open:
                    inherited = self._take_inherited(key[0])
                    left = self._take_left(key[0]) if inherited is None else []
                    self._open[key] = _Group(key[0], inherited, left)
                self._open[key].grow(slots)
        except OSError:
            undo()
            raise
        return undo

    def close_others(self, listeners: Sequence[ListenerSettings], slots: int) -> None:
        """Closes sockets that these listeners do not need with `slots`, except those where visitors may wait.

        Workers have their own copies, and accept for a short time more at an address that is given up.
        """
        wanted = set(_keys(listeners))
        for key in [key for key in self._open if key not in wanted]:
            self._open[key].silence()
            self._open.pop(key).close()
        for group in self._open.values():
            group.shrink(slots)

    def of(self, listeners: Sequence[ListenerSettings], slot: int, slots: int) -> list[list[socket.socket]]:
        """For each listener the sockets that one of `slots` accepts on. Raises OSError."""
        return [self._open[key].of(slot, slots) for key in _keys(listeners)]

    def own(self, listeners: Sequence[ListenerSettings], slot: int) -> Iterator[tuple[int, socket.socket]]:
        """The sockets of only this slot where visitors may wait, each with its listener's number."""
        for at, key in enumerate(_keys(listeners)):
            sock = self._open[key].own(slot)
            if sock is not None:
                yield at, sock

    def left_over(self, listeners: Sequence[ListenerSettings], slots: int) -> range:
        """The slots from `slots` on that still have sockets."""
        return range(slots, max((len(self._open[key]) for key in _keys(listeners)), default=0))

    def are_given(self, listeners: Sequence[ListenerSettings]) -> list[bool]:
        """For each listener, whether its socket was given to this process and outlives it."""
        return [self._open[key].given for key in _keys(listeners)]

    def silence(self) -> None:
        """All addresses are about to be given up; see `silence`."""
        for group in self._open.values():
            group.silence()

    def bound(self, listeners: Sequence[ListenerSettings]) -> list[tuple[str, int]]:
        """Host and port of each TCP listener, with the port that was assigned for 0."""
        return [self._open[key].bound() for key in _keys(listeners) if not key[0].path]

    def close(self) -> None:
        """Closes all of them."""
        for group in self._open.values():
            group.close()
        self._open.clear()
        for sock in (*self._inherited, *(sock for sock, _ in self._left)):
            sock.close()
        self._inherited.clear()
        self._left.clear()

    def _take_left(self, address: Address) -> list[Left]:
        found = [left for left in self._left if is_at(left[0], address)]
        self._left = [left for left in self._left if left not in found]
        return found

    def _take_inherited(self, address: Address) -> socket.socket | None:
        for at, sock in enumerate(self._inherited):
            if is_at(sock, address):
                return self._inherited.pop(at)
        return None


def listen_on(address: Address) -> socket.socket:
    """One listening socket, outside any group. Raises OSError that names the address."""
    if address.path:
        return _unix(address)
    sock = _tcp(address, address.port, in_group=False)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(address, error) from error
    return sock


def silence(sock: socket.socket) -> None:
    """Keeps new connections away from a listening socket that accepts for a short time and is then closed.

    A visitor who arrives between the last `accept` and the close is reset, in particular one whose handshake
    was under way. So from now on a TCP socket takes no new connection. The visitor's SYN gets no answer; the
    next one, a second later, is refused or served, depending on who listens there by then. The file of a Unix
    socket is removed.
    """
    if sock.family == socket.AF_UNIX:
        Path(sock.getsockname()).unlink(missing_ok=True)
        return
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    # Without filters some are reset.
    with suppress(OSError):
        sock.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_NO_SYN) // 8, ctypes.addressof(program)),
        )


def _unsilence(sock: socket.socket) -> None:
    # There may have been no filter.
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _keys(listeners: Sequence[ListenerSettings]) -> list[tuple[Address, int]]:
    """An address, and which of its mentions: several listeners may each take any free port."""
    seen: dict[Address, int] = {}
    keys = []
    for listener in listeners:
        count = seen[listener.address] = seen.get(listener.address, -1) + 1
        keys.append((listener.address, count))
    return keys


def is_at(sock: socket.socket, address: Address) -> bool:
    """Whether a socket is bound to that address."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return bool(address.path == name)
    return not address.path and (name[0], name[1]) == (address.host, address.port)


class _Group:
    """The sockets of one address: one per slot, or one for all if there are no groups."""

    def __init__(self, address: Address, inherited: socket.socket | None, left: Sequence[Left] = ()) -> None:
        self._address = address
        self._sockets: list[socket.socket] = []
        self._shared = inherited
        self._file: Path | None = None
        self._found = (address.host, address.port)
        self._taken_over = bool(left)
        self.given = inherited is not None or any(given for _, given in left)
        if inherited is not None:
            inherited.setblocking(False)
        elif left:
            self._take_over([sock for sock, _ in left])
        elif address.path:
            self._file = Path(address.path)
            self._shared = _unix(address)
        else:
            _check_free(address)

    def _take_over(self, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            sock.setblocking(False)
            _unsilence(sock)
        if self.given or self._address.path:
            self._shared = sockets[0]
            for sock in sockets[1:]:
                sock.close()
        else:
            self._sockets += sockets
            self._found = sockets[0].getsockname()[:2]

    def keep(self) -> None:
        """From now on sockets that were taken over belong to this process alone."""
        if self._taken_over:
            for sock in (*self._sockets, *([self._shared] if self._shared is not None else [])):
                _unsilence(sock)
            if self._address.path and not self.given:
                self._file = Path(self._address.path)

    def grow(self, slots: int) -> None:
        if self._shared is None:
            while len(self._sockets) < slots:
                self._sockets.append(self._another())

    def __len__(self) -> int:
        return len(self._sockets)

    def shrink(self, slots: int) -> None:
        extra = self._sockets[slots:]
        del self._sockets[slots:]
        for sock in extra:
            if _listens(sock):
                # It is in the group, and closing it would reset a visitor who connects just now.
                self._sockets.append(sock)
            else:
                sock.close()

    def of(self, slot: int, slots: int) -> list[socket.socket]:
        """The slot's own, and surplus sockets from a time with more slots, on which all slots accept."""
        if self._shared is not None:
            return [self._shared]
        return [self._sockets[slot], *self._sockets[slots:]]

    def own(self, slot: int) -> socket.socket | None:
        """The slot's own socket, if anybody has ever listened on it."""
        if slot >= len(self._sockets) or not _listens(self._sockets[slot]):
            return None
        return self._sockets[slot]

    def bound(self) -> tuple[str, int]:
        """Host and port, with the port that was assigned for 0."""
        if self._shared is not None:
            host, port = self._shared.getsockname()[:2]
            return host, port
        return self._found

    def silence(self) -> None:
        if not self.given:
            for sock in self._sockets:
                silence(sock)
            if self._file is not None and self._shared is not None:
                silence(self._shared)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._shared is not None:
            self._shared.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _another(self) -> socket.socket:
        sock = _tcp(self._address, self._found[1], in_group=True)
        self._found = sock.getsockname()[:2]
        return sock


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _check_free(address: Address) -> None:
    """Sockets of a group do not conflict, so only one outside of it detects a port in use."""
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


def try_address(address: Address) -> Address:
    """The address that a name stands for. Raises OSError as `listen_on` would, and listens on nothing."""
    if not address.path:
        with _tcp(address, address.port, in_group=False) as sock:
            return Address(sock.getsockname()[0], address.port)
    try:
        _is_stale(address.path)
        _takes_files(Path(address.path).parent)
    except OSError as error:
        raise _cannot(address, error) from error
    return address


def _takes_files(folder: Path) -> None:
    number = errno.EACCES if folder.is_dir() else errno.ENOENT
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(number, os.strerror(number))


def _remove_stale(path: str) -> None:
    """Removes the socket that a program left behind. Raises OSError if somebody listens on it."""
    if _is_stale(path):
        Path(path).unlink(missing_ok=True)


def _is_stale(path: str) -> bool:
    """Whether a program left a socket behind. Raises OSError if somebody listens on it."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file with that name exists")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _cannot(address: Address, error: OSError) -> OSError:
    return OSError(error.errno, f"cannot listen on {address}: {error.strerror}")
