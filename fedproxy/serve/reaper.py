"""As the first process of a container (PID 1), this process adopts every process that loses its parent.

A killed health check, or the rest of a `kubectl exec`, stays a zombie until its parent waits for it. That is
the only part of an init's work that the image needs, so it has no separate init.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Container

_LOOK = 1.0  # seconds between two checks
_AT_ONCE = 1000  # zombies


def is_init() -> bool:
    """Whether this is the first process of its namespace."""
    return os.getpid() == 1


async def keep_reaping(own: Callable[[], Container[int] | None]) -> None:
    """Reaps adopted children as they end, until it is cancelled.

    own: the children that others wait for; None while these are unknown.
    """
    while True:
        await asyncio.sleep(_LOOK)
        known = own()
        if known is not None:
            reap(known)


def reap(own: Container[int]) -> int:
    """Reaps children that have ended, up to the first one of `own`; returns how many."""
    for count in range(_AT_ONCE):
        try:
            # WNOWAIT: only look, and leave the status for its owner.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if found is None or found.si_pid in own:
            return count
        os.waitpid(found.si_pid, os.WNOHANG)
    return _AT_ONCE
