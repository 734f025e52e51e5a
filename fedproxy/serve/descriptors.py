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

# Listeners, logs, name resolution, probes under way, and connections that are closing. Those of the admin
# listener and those that probes keep are extra.
_RESERVE: Final = 48
_ADMIN: Final = 16, 256  # descriptors for the admin listener, at least and at most; between them ...
_ADMIN_SHARE: Final = 64  # ... one in this many
_PROBES: Final = 0, 1024  # the same for connections that probes keep
_PROBES_SHARE: Final = 32


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
    return _room(limit())


def admin_room() -> int:
    """The number of connections to the admin listener that the limit allows, in addition to visitors'."""
    return _share(limit(), _ADMIN, _ADMIN_SHARE)


def probe_room() -> int:
    """The number of connections to members that probes may keep, in addition to visitors'."""
    return _share(limit(), _PROBES, _PROBES_SHARE)


def shortage(connections: int) -> str | None:
    """A warning for the operator if the limit allows fewer than `connections` in one process, else None."""
    fits = room()
    if connections <= fits:
        return None
    needed = 2 * connections + _RESERVE
    # More room for the others takes some of the visitors', but less and less.
    while _room(needed) < connections:
        needed += 2 * (connections - _room(needed))
    return (
        f"limits.connections is {connections}, but this process may open {limit()} files, which is enough "
        f"for {fits}; expected a limit of at least {needed} (LimitNOFILE, ulimit -n)"
    )


def _room(files: int) -> int:
    others = _share(files, _ADMIN, _ADMIN_SHARE) + _share(files, _PROBES, _PROBES_SHARE)
    return max(1, (files - _RESERVE - others) // 2)


def _share(files: int, bounds: tuple[int, int], share: int) -> int:
    least, most = bounds
    return max(least, min(most, files // share))
