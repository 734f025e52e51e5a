"""A connection to one of several addresses, whichever is there first (RFC 8305).

Unlike `aiohappyeyeballs`, which this uses for one address, a TLS handshake is part of it: a peer that takes
a connection and says nothing is passed over too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from fedproxy.errors import EdgeError, own_fault

PAUSE: Final = 0.25  # seconds until the next address is tried (RFC 8305 section 5), ...
PATIENCE: Final = 1.0  # ... or so many if the peer is there, and only the handshake is not over

Key = TypeVar("Key")
Made = TypeVar("Made")


class Dial(Generic[Key]):
    """A connection to one address that is being made.

    began: by the loop's clock. share: seconds after which the next one begins at the latest. heard: the peer
    is there, though the connection cannot be used yet; whoever makes it sets that.
    """

    def __init__(self, key: Key, began: float, share: float) -> None:
        self.key = key
        self.began = began
        self.share = share
        self.heard = False

    def next_at(self, pause: float) -> float:
        """When the next one begins, unless this one fails before."""
        return self.began + min(self.share, max(pause, PATIENCE) if self.heard else pause)


async def race(
    keys: Sequence[Key],
    make: Callable[[Dial[Key]], Coroutine[Any, Any, Made]],
    deadline: float,
    *,
    failed: Callable[[Dial[Key], Exception], None],
    spare: Callable[[Made], None],
    pause: float = PAUSE,
) -> Made:
    """What `make` makes first, for one of `keys`; it gets them in their order, one after the other.

    The next one begins when one fails, or after a pause. All begin by the deadline, which is by the loop's
    clock. failed: told of each that failed, and of each that was overtaken by one that began later or was not
    ready by the deadline, with a TimeoutError. spare: gets what is not needed.

    Raises TimeoutError at the deadline, and if all fail what one of them raised: rather what puts the blame
    on the peer than what does not, then rather what came of a peer that was there.
    """
    loop = asyncio.get_running_loop()
    left = list(keys)
    under_way: dict[asyncio.Task[Made], Dial[Key]] = {}
    worst: tuple[int, Exception] | None = None
    newest: Dial[Key] | None = None
    try:
        while left or under_way:
            now = loop.time()
            if now >= deadline:
                for dial in under_way.values():
                    failed(dial, TimeoutError())
                raise TimeoutError
            if left and (newest is None or now >= newest.next_at(pause)):
                newest = Dial(left.pop(0), now, (deadline - now) / (len(left) + 1))
                under_way[loop.create_task(make(newest))] = newest
            until = deadline if newest is None or not left else min(deadline, newest.next_at(pause))
            await asyncio.wait(under_way, timeout=until - now, return_when=asyncio.FIRST_COMPLETED)
            for task in [each for each in under_way if each.done()]:
                dial = under_way.pop(task)
                if task.cancelled():
                    raise asyncio.CancelledError
                error = task.exception()
                if error is None:
                    for other in under_way.values():
                        if other.began < dial.began:
                            failed(other, TimeoutError())
                    return task.result()
                if not isinstance(error, Exception):
                    raise error
                failed(dial, error)
                grade = _blames(error) * 2 + dial.heard
                if worst is None or grade > worst[0]:
                    worst = grade, error
                if dial is newest:
                    newest = None
    finally:
        # Nothing is awaited here: it would be lost, compiled, which exception there was.
        for task in under_way:
            task.cancel()
            task.add_done_callback(partial(_end, spare))
    if worst is None:
        raise ValueError("there is no address")
    raise worst[1]


def _end(spare: Callable[[Made], None], task: asyncio.Task[Made]) -> None:
    """Who was given up has ended, perhaps with a connection all the same."""
    if not task.cancelled() and task.exception() is None:
        spare(task.result())


def _blames(error: Exception) -> bool:
    """Whether it is the peer's fault."""
    return not (isinstance(error, EdgeError) or (isinstance(error, OSError) and own_fault(error) is not None))
