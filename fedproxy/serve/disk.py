"""A thread for calls that a disk may hold up for ever, which then keep nobody from ending the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class DiskThread:
    """Makes calls one after the other. The interpreter does not wait for it at its end, as it does for an
    executor's threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] | None = None

    async def run(self, call: Callable[[], Result]) -> Result:
        """The call's result, or its error. It goes on if nobody waits for it any more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(put: Callable[[Any], None], value: object) -> None:
            if not future.done():
                put(value)

        def work() -> None:
            put: Callable[[Any], None] = future.set_result
            value: object
            try:
                value = call()
            except Exception as error:  # noqa: BLE001 -- it is the caller's
                put, value = future.set_exception, error
            # The loop may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, put, value)

        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=_make, args=(self._calls,), name=self._name, daemon=True).start()
        self._calls.put(work)
        return await future

    def end(self) -> None:
        """The thread ends after the calls that it has; another call starts a new one."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _make(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
