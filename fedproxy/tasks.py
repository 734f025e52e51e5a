"""Tasks that somebody holds until they have ended, because the loop itself does not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Those of its tasks that have not ended. Usable in a running loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        """A copy: tasks may end meanwhile."""
        return iter(list(self._tasks))

    def start(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Begins a task, and holds it until it ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self, timeout: float | None = None) -> None:
        """Returns once all have ended in whatever way, or after so many seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)


def heed_cancel() -> None:
    """Raises CancelledError if this task was told to end and has not noticed.

    In Python 3.11 `asyncio.wait_for`, which libraries use, swallows a cancellation that comes in the turn in
    which what it waits for is done (cpython issue 86296).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks, and returns once they have ended in whatever way."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
