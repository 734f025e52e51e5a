"""Calls that a disk may hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from fedproxy.serve.disk import DiskThread
from tests.rig import guard


def fails() -> None:
    raise OSError("full")


async def test_calls_are_made_one_after_the_other_and_their_errors_are_the_caller_s() -> None:
    thread, order = DiskThread("disk"), list[int]()

    def add(number: int) -> Callable[[], None]:
        return lambda: order.append(number)

    async with guard():
        await asyncio.gather(*(thread.run(add(number)) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match="full"):
            await thread.run(fails)
        thread.end()
        thread.end()
        assert await thread.run(lambda: 3) == 3
    thread.end()


async def test_nobody_has_to_wait_for_a_call_that_hangs() -> None:
    thread, going_on = DiskThread("disk"), threading.Event()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(thread.run(going_on.wait), 0.01)
    thread.end()
    going_on.set()
