from __future__ import annotations

import asyncio

import pytest

from fedproxy.tasks import Tasks, cancel


async def _fail() -> None:
    raise ValueError("x")


async def test_task_is_held_until_it_ends() -> None:
    tasks = Tasks()
    go_on = asyncio.Event()
    task = tasks.start(go_on.wait(), "a name")
    assert (list(tasks), len(tasks), task.get_name()) == ([task], 1, "a name")
    go_on.set()
    assert await task is True
    assert not tasks


async def test_wait_ends_with_the_last_task_or_in_time() -> None:
    tasks = Tasks()
    await tasks.wait()
    go_on = asyncio.Event()
    tasks.start(go_on.wait())
    await tasks.wait(0.001)
    assert len(tasks) == 1
    go_on.set()
    await tasks.wait()
    assert not tasks


async def test_failure_of_a_task_is_for_who_began_it() -> None:
    tasks = Tasks()
    task = tasks.start(_fail())
    await tasks.wait()
    with pytest.raises(ValueError, match="x"):
        await task


async def test_cancelled_tasks_have_ended() -> None:
    tasks = Tasks()
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("ended")

    tasks.start(hang())
    failing = tasks.start(_fail())
    await asyncio.sleep(0)
    await cancel([*tasks, failing])
    assert (ended, len(tasks)) == (["ended"], 0)
