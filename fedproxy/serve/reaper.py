"""As the first process of a container: whoever loses its parent there becomes a child of this process.

A health check that was killed, or what is left of `kubectl exec`, stays as a zombie until somebody waits for
it. That is an init's work, and this little of it is all that is missing: so the image needs no other program.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Container

_LOOK = 1.0  # seconds between two looks
_AT_ONCE = 1000  # zombies


def is_init() -> bool:
    """Whether this is the first process of its namespace."""
    return os.getpid() == 1


async def keep_reaping(own: Callable[[], Container[int] | None]) -> None:
    """Waits for adopted children as they end, until it is cancelled.

    own: the children whose status somebody else wants; None while that is not known.
    """
    while True:
        await asyncio.sleep(_LOOK)
        known = own()
        if known is not None:
            reap(known)


def reap(own: Container[int]) -> int:
    """Waits for children that have ended, up to the first one of `own`; how many there were."""
    for count in range(_AT_ONCE):
        try:
            # Look first, and leave it where it is.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if found is None or found.si_pid in own:
            return count
        os.waitpid(found.si_pid, os.WNOHANG)
    return _AT_ONCE
