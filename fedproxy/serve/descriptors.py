"""How many files this process may open, and how many visitors that is enough for.

A visitor takes up to two: their own connection and the one to a member. Whoever comes when there is no room
is closed at once, so the files never run out where they would be missed: for a member, a probe, the admin
listener. Should they run out all the same, libuv gives up a spare one to accept and close who is waiting, so
that accepting neither spins nor stops, and idle connections to members are closed to make room.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

# Listeners, logs, name resolution, probes, and connections that are closing. The admin listener's are extra.
_RESERVE: Final = 48
_ADMIN: Final = 16, 256  # files for the admin listener, at least and at most; between them ...
_ADMIN_SHARE: Final = 64  # ... one file in so many


def raise_limit() -> None:
    """Raises this process's limit as far as it may, also for the workers that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where that is not allowed, what is in force is enough for fewer.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """How many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def room() -> int:
    """How many visitors' connections there are files for."""
    return max(1, (limit() - _RESERVE - admin_room()) // 2)


def admin_room() -> int:
    """How many connections to the admin listener there are files for, beside those for visitors."""
    least, most = _ADMIN
    return max(least, min(most, limit() // _ADMIN_SHARE))


def shortage(connections: int) -> str | None:
    """What to tell an operator who wants so many visitors' connections in one process; None if they fit."""
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
