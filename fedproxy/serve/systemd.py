"""systemd's two protocols for services, without its library: sd_notify(3) and sd_listen_fds(3).

Both use environment variables that are meant for one process. They are removed when they are read, so that a
worker does not mistake the parent's watchdog or listeners for its own.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import ExitStack

_FIRST = 3  # SD_LISTEN_FDS_START
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


class Notifier:
    """Reports the service's state to systemd if `NOTIFY_SOCKET` names a socket; otherwise does nothing.

    It never raises and never blocks: each message returns whether it was sent. `watchdog` is the time in
    seconds between two calls of `alive()` (half of systemd's limit), None without a watchdog.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        name = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog = _watchdog(environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""))
        self._address: str | None = None
        # Others, such as "vsock:", are for virtual machines.
        if len(name) > 1 and name[0] in "/@":
            self._address = "\0" + name[1:] if name[0] == "@" else name
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def ready(self) -> bool:
        """The service is ready: after startup, and after a reload that `reloading` announced."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """The config is being reloaded; `ready` follows when it is in force, or was refused."""
        # By this clock Type=notify-reload distinguishes this reload from one before its signal.
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within: float) -> bool:
        """It stops within `within` seconds: systemd waits that long, even beyond `TimeoutStopSec`."""
        return self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within * 1e6)}")

    def status(self, text: str) -> bool:
        """The line that `systemctl status` shows."""
        return self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> bool:
        """The service is not stuck: for the watchdog."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Sends nothing from now on."""
        if self._address is not None:
            self._address = None
            self._socket.close()

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            # A full queue, or systemd in the middle of its own re-execution.
            return False
        return True


def _watchdog(limit: str, pid: str) -> float | None:
    if not _is_number(limit) or (pid and pid != str(os.getpid())):
        return None
    return int(limit) / 2e6 or None


def inherited(environ: MutableMapping[str, str], first: int = _FIRST) -> list[socket.socket]:
    """The listening sockets that systemd made for this process (socket activation), not blocking.

    None if `LISTEN_PID` is not this process. `first` is the number of the first of them. Raises OSError,
    with all of them closed, if one is not a listening stream socket of IPv4, IPv6 or a Unix path.
    """
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not _is_number(count):
        return []
    # The names are those of FileDescriptorName=, in the order of the sockets; there may be fewer.
    called = dict(enumerate(names.split(":")))
    with ExitStack() as opened:
        sockets = [
            opened.enter_context(_listener(first + index, called.get(index, "")))
            for index in range(int(count))
        ]
        opened.pop_all()
    return sockets


def _listener(number: int, name: str) -> socket.socket:
    shown = f"file descriptor {number} ({name})" if name else f"file descriptor {number}"
    try:
        sock = socket.socket(fileno=number)
    except OSError as error:
        fault = f"systemd passed {shown}, which is not a socket, expected a listening one"
        raise OSError(error.errno, fault) from error
    if not _listens(sock):
        sock.close()
        fault = f"systemd passed {shown}, which does not listen, expected ListenStream= sockets"
        raise OSError(errno.EINVAL, fault)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _listens(sock: socket.socket) -> bool:
    return (
        sock.family in _FAMILIES
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
