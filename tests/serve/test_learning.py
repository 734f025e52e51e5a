"""What a launch teaches one worker all know, and the next process too."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fedproxy.control.messages import BuildBegun, LaunchesTaught, LaunchSeen
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End
from fedproxy.serve.learning import Learning
from tests.rig import Conn, Message, Scripted, per_request
from tests.rig.launches import BUILT, HEAD, LAST, LAUNCHING, READY, ask, chunk, event
from tests.rig.running import Hub, Running, patience, serving, until, write

IMAGE = b"12345678"
EVENTS = b"Accept: text/event-stream"
BUILD = (event("building"), BUILT, LAUNCHING, READY)


def seen(name: str = "a") -> LaunchSeen:
    return LaunchSeen(Seen(IMAGE, name, False, 60.0, 5.0, End.READY))


def test_what_one_tells_the_others_hear_and_who_joins_is_told_everything() -> None:
    learning = Learning(lambda: 1e9)
    heard: dict[str, list[BuildBegun | LaunchSeen | LaunchesTaught]] = {"one": [], "two": []}
    for name, list_ in heard.items():
        learning.join(name, list_.append, list_.append)
    learning.tell("one", BuildBegun(IMAGE, "a"))
    assert learning.knowledge.under_way(IMAGE, 1e9) is not None
    assert [learning.changed] == [False]
    learning.tell("two", seen())
    assert learning.changed
    assert heard == {"one": [seen()], "two": [BuildBegun(IMAGE, "a")]}
    late: list[Any] = []
    learning.join("late", print, late.append)
    (taught,) = late
    again = Knowledge()
    again.load(taught.content)
    assert again.images.places(IMAGE) == learning.knowledge.images.places(IMAGE)
    for name in heard:
        learning.leave(name)
    learning.tell("late", seen("b"))
    assert heard["one"] == [seen()]


# Processes


def binder() -> Scripted:
    async def serve(conn: Conn, request: Message) -> None:
        if EVENTS in request.head:
            conn.send(HEAD, *map(chunk, BUILD), LAST)
        else:
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    return Scripted(per_request(serve))


@asynccontextmanager
async def three_members(folder: Path, **config: Any) -> AsyncIterator[tuple[Path, Hub, dict[str, Scripted]]]:
    hub = Hub()
    members = {name: binder() for name in "bcd"}
    for each in (hub.member, *members.values()):
        await each.start()
    try:
        urls = {name: {"url": each.url} for name, each in members.items()}
        write(folder / "edge.yaml", hub, **{"members": urls, "balancer": "expected-wait", **config})
        yield folder / "edge.yaml", hub, members
    finally:
        for each in (hub.member, *members.values()):
            await each.stop()


def launch(number: int) -> bytes:
    return ask(EVENTS, b"Connection: close", target=b"/build/gh/org/repo-%d/HEAD" % number)


async def would_be(edge: Running, number: int) -> str:
    """Where a launch would go, and it must be because the image is there."""
    url = f"/build/gh/org/repo-{number}/HEAD"
    status, body = await edge.admin_ask("POST", "/explain", {"url": url, "accept": "text/event-stream"})
    assert status == 200, body
    best = json.loads(body)["ranking"][0]
    return str(best["member"]) if best["image"] > 0.5 else "nobody"


@pytest.mark.no_cover
async def test_every_worker_knows_what_one_has_seen_and_the_next_process_too(tmp_path: Path) -> None:
    async with three_members(tmp_path, workers=2) as (file, hub, members):
        where: dict[int, str] = {}
        async with serving(file, hub) as edge, patience():
            for number in range(6):
                before = {name: len(member.requests) for name, member in members.items()}
                assert READY in (await edge.ask(launch(number))).body
                (where[number],) = [
                    name
                    for name, member in members.items()
                    if any(EVENTS in request.head for request in member.requests[before[name] :])
                ]

            async def known() -> None:
                for number, name in where.items():
                    await until_there(edge, number, name)

            await known()
            for pid in edge.program.workers():
                before_ = edge.program.workers()
                os.kill(pid, signal.SIGKILL)
                await edge.replaced([pid], [other for other in before_ if other != pid])
                await known()
            edge.program.signal(signal.SIGTERM)
            assert await edge.program.ended() == 0
        assert (tmp_path / "edge.knowledge").is_file()
        async with serving(file, hub) as edge, patience():
            for number, name in where.items():
                await until_there(edge, number, name)


async def until_there(edge: Running, number: int, name: str) -> None:
    async with patience():
        while await would_be(edge, number) != name:
            pass


@pytest.mark.no_cover
async def test_file_that_cannot_be_used_is_said_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "edge.knowledge").write_bytes(b"of another program")
    async with three_members(tmp_path, workers=1) as (file, hub, _), serving(file, hub) as edge, patience():
        await until(lambda: "is not what launches have taught" in edge.program.output, "the line")
        assert READY in (await edge.ask(launch(1))).body
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0
