"""The limit of file descriptors of this process, and how many visitors it is enough for.

A visitor takes up to two: their own connection and the one to a member. A connection without room is closed
at once, so descriptors do not run out where they are needed: for a member, a probe, the admin listener. If
they run out all the same, libuv uses a spare one to accept and close waiting connections, so that accepting
neither spins nor stops, and idle connections to members are closed to make room.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

# Listeners, logs, name resolution, probes, and connections that are closing. The admin listener's are extra.
_RESERVE: Final = 48
_ADMIN: Final = 16, 256  # descriptors for the admin listener, at least and at most; between them ...
_ADMIN_SHARE: Final = 64  # ... one in this many


def raise_limit() -> None:
    """Raises this process's limit as far as allowed, also for the workers that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # If that is not allowed, the current limit is enough for fewer visitors.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """The limit of file descriptors of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def room() -> int:
    """The number of visitors' connections that the limit allows."""
    return max(1, (limit() - _RESERVE - admin_room()) // 2)


def admin_room() -> int:
    """The number of connections to the admin listener that the limit allows, in addition to visitors'."""
    least, most = _ADMIN
    return max(least, min(most, limit() // _ADMIN_SHARE))


def shortage(connections: int) -> str | None:
    """A warning for the operator if the limit allows fewer than `connections` in one process, else None."""
    fits = room()
    if connections <= fits:
        return None
    least, most = _ADMIN
    needed = 2 * connections + _RESERVE
    needed += max(least, min(most, needed // (_ADMIN_SHARE - 1)))
    return (
        f"limits.connections is {connections}, but this process may open {limit()} files, which is enough "
        f"for {fits}; expected a limit of at least {needed} (LimitNOFILE, ulimit -n)"
    )
