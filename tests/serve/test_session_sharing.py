"""What one worker learns of a session all know before the visitor does, and the next process too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedproxy.control.messages import SessionsKnown, Sync, SyncDone
from fedproxy.decide.sessions import KnownSession, SessionRecord
from fedproxy.serve.sharing import Sharing, SharingPeer
from tests.rig import Conn, Message, Scripted, per_request
from tests.rig.homes import cookie, get
from tests.rig.launches import HEAD, LAST, ask, chunk, event
from tests.rig.running import PAUSE, TOKEN, Hub, Running, patience, serving, until, write

EVENTS = b"Accept: text/event-stream"

# In one process


@dataclass
class Plane:
    """A data plane that keeps what it is sent."""

    turns: bool = True

    def __post_init__(self) -> None:
        self.heard: list[SessionsKnown | Sync | SyncDone] = []

    def join(self, sharing: Sharing) -> Plane:
        sharing.join(self, SharingPeer(self.heard.append, lambda: self.turns))
        return self

    def __hash__(self) -> int:
        return id(self)


def told(number: int) -> SessionRecord:
    return b"/user/%d" % number, 2, "https://a.test", "a", 1.0, 2.0, b""


@pytest.fixture
def sharing() -> Sharing:
    return Sharing(lambda: 3.0)


def test_what_one_tells_the_others_hear_and_the_store_is_to_keep(sharing: Sharing) -> None:
    one, two, three = (Plane().join(sharing) for _ in range(3))
    known = SessionsKnown((told(1),))
    sharing.tell(one, known)
    assert (one.heard, two.heard, three.heard) == ([], [known], [known])
    assert list(sharing.changed) == [b"/user/1"]
    assert isinstance(sharing.sessions.look(b"/user/1"), KnownSession)


def test_who_joins_is_told_everything_in_parts(sharing: Sharing) -> None:
    sharing.tell(None, SessionsKnown(tuple(told(number) for number in range(2500))))
    late = Plane().join(sharing)
    heard = [each for known in late.heard if isinstance(known, SessionsKnown) for each in known.records]
    assert (len(late.heard), heard) == (3, [told(number) for number in range(2500)])


def test_question_is_answered_when_all_others_have_answered(sharing: Sharing) -> None:
    one, two, three = (Plane().join(sharing) for _ in range(3))
    sharing.ask(one, Sync(7))
    (asked,) = two.heard
    assert (isinstance(asked, Sync), three.heard, one.heard) == (True, [asked], [])
    assert isinstance(asked, Sync)
    sharing.answered(two, SyncDone(asked.number))
    sharing.answered(two, SyncDone(asked.number))
    assert one.heard == []
    sharing.answered(three, SyncDone(asked.number))
    sharing.answered(three, SyncDone(99))
    assert one.heard == [SyncDone(7)]


def test_nobody_waits_for_who_is_gone_or_does_not_turn(sharing: Sharing) -> None:
    one, two, three = (Plane().join(sharing) for _ in range(3))
    three.turns = False
    sharing.ask(one, Sync(1))
    assert three.heard == []
    sharing.leave(two)
    assert one.heard == [SyncDone(1)]
    sharing.ask(one, Sync(2))
    assert one.heard[-1] == SyncDone(2)
    two.join(sharing)
    sharing.ask(one, Sync(3))
    sharing.leave(one)
    sharing.leave(two)
    assert one.heard[-1] == SyncDone(2)


def test_one_in_the_same_process_answers_at_once(sharing: Sharing) -> None:
    one, two = (Plane().join(sharing) for _ in range(2))
    inside = object()

    def answer(message: SessionsKnown | Sync | SyncDone) -> None:
        assert isinstance(message, Sync)
        sharing.answered(inside, SyncDone(message.number))

    sharing.join(inside, SharingPeer(answer, lambda: True))
    sharing.ask(one, Sync(5))
    (asked,) = two.heard
    assert isinstance(asked, Sync)
    sharing.answered(two, SyncDone(asked.number))
    assert one.heard == [SyncDone(5)]


def test_what_a_store_does_not_take_is_bounded(sharing: Sharing) -> None:
    sharing.sessions.shrink(10)
    for number in range(5000):
        sharing.tell(None, SessionsKnown((told(number),)))
    assert len(sharing.changed) <= 1020


# Processes


def member(name: str, hub: Hub) -> Scripted:
    """A BinderHub whose launches are ready at once, each with a session of its own, and its sessions."""
    sessions = iter(range(1_000_000))

    async def serve(conn: Conn, request: Message) -> None:
        if EVENTS in request.head:
            if request.value("x-wait"):
                conn.send(HEAD, chunk(event("building")))
                await hub.go_on.wait()
            url = f"https://hub.test/user/{name}-{next(sessions)}/"
            head = b"" if request.value("x-wait") else HEAD
            conn.send(head, chunk(event("ready", url=url, token="t")), LAST)
        else:
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name.encode()))

    return Scripted(per_request(serve))


@asynccontextmanager
async def two_members(folder: Path, **config: Any) -> AsyncIterator[tuple[Path, Hub]]:
    hub = Hub()
    members = {name: member(name, hub) for name in "bc"}
    for each in (hub.member, *members.values()):
        await each.start()
    try:
        urls = {name: {"url": each.url} for name, each in members.items()}
        write(folder / "edge.yaml", hub, **{"members": urls, **config})
        yield folder / "edge.yaml", hub
    finally:
        for each in (hub.member, *members.values()):
            await each.stop()


async def asked(edge: Running, name: str, *lines: bytes) -> bytes:
    return (await edge.ask(get(f"/user/{name}/api".encode(), b"Connection: close", *lines))).body


@pytest.mark.no_cover
async def test_every_worker_knows_a_session_before_its_visitor_does(tmp_path: Path) -> None:
    async with two_members(tmp_path, workers=3) as (file, hub), serving(file, hub) as edge, patience():
        for number in range(15):
            for name in (b"b", b"c"):
                response = await edge.ask(ask(EVENTS, cookie(name), b"Connection: close"))
                assert b'"ready"' in response.body
                # Connections are spread over the workers.
                found = [await asked(edge, f"{name.decode()}-{number}") for _ in range(6)]
                assert found == [name] * 6
        assert await edge.metric("fedproxy_sessions_known") == 30


@pytest.mark.no_cover
async def test_sessions_are_known_after_anything_that_happens_to_the_edge(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (file, hub):
        async with serving(file, hub) as edge, patience():
            for name in (b"b", b"c"):
                await edge.ask(ask(EVENTS, cookie(name), b"Connection: close"))

            async def known() -> None:
                for name in ("b", "c"):
                    other = b"c" if name == "b" else b"b"
                    answers = [await asked(edge, f"{name}-0", cookie(other)) for _ in range(6)]
                    assert answers == [name.encode()] * 6

            await known()
            old = edge.program.workers()
            for pid in old:
                # One after the other, so that somebody serves.
                before = edge.program.workers()
                os.kill(pid, signal.SIGKILL)
                await edge.replaced([pid], [other for other in before if other != pid])
            await known()
            edge.program.signal(signal.SIGHUP)
            await edge.program.line("reloaded")
            await known()
            write(file, hub, members=await settings(edge), workers=1)
            await until(lambda: not edge.program.workers(), "one process")
            await known()
        kept = (tmp_path / "edge.sessions.jsonl").read_bytes()
        assert kept.count(b'"/user/b-0"') >= 1
        async with serving(file, hub) as edge, patience():
            await known()


async def settings(edge: Running) -> dict[str, dict[str, str]]:
    return {name: {"url": str(each["url"])} for name, each in (await edge.members()).items()}


@pytest.mark.no_cover
async def test_member_that_has_another_name_after_a_restart_keeps_its_sessions(tmp_path: Path) -> None:
    async with two_members(tmp_path, workers=1) as (file, hub):
        async with serving(file, hub) as edge, patience():
            await edge.ask(ask(EVENTS, cookie(b"b"), b"Connection: close"))
            members = await settings(edge)
            # At once: it is kept at the end at the latest.
            edge.program.signal(signal.SIGTERM)
            assert await edge.program.ended() == 0
        write(file, hub, members={"new": members["b"], "c": members["c"]}, workers=1)
        async with serving(file, hub) as edge, patience():
            assert await asked(edge, "b-0", cookie(b"c")) == b"b"


@pytest.mark.no_cover
async def test_only_some_of_many_made_up_names_are_told_to_others(tmp_path: Path) -> None:
    async with two_members(tmp_path, workers=2) as (file, hub), serving(file, hub) as edge, patience():
        client = await edge.client()
        for number in range(300):
            await client.ask(get(f"/user/made-up-{number}/".encode(), cookie(b"b")))
        # What is launched meanwhile is told at once.
        await edge.ask(ask(EVENTS, cookie(b"c"), b"Connection: close"))
        assert [await asked(edge, "c-0") for _ in range(6)] == [b"c"] * 6
        assert 1 <= await edge.metric("fedproxy_sessions_known") <= 301


@pytest.mark.no_cover
async def test_file_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    admin = {"address": "127.0.0.1:0", "token": TOKEN, "state": str(tmp_path / "state.json")}
    (tmp_path / "sessions.jsonl").mkdir()
    members = two_members(tmp_path, workers=1, admin=admin)
    async with members as (file, hub), serving(file, hub) as edge, patience():
        await edge.ask(ask(EVENTS, cookie(b"b"), b"Connection: close"))
        rest = "Is a directory; sessions are found by cookies"
        await edge.program.line(f"sessions.jsonl cannot be written: {rest} after a restart")
        assert f"sessions.jsonl cannot be read: {rest}" in edge.program.output
        assert await asked(edge, "b-0", cookie(b"c")) == b"b"
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0


@pytest.mark.no_cover
async def test_launch_that_ends_while_a_worker_starts_is_known_to_it(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (file, hub), serving(file, hub) as edge, patience():
        for turn in range(3):
            old = edge.program.workers()
            os.kill(old[0], signal.SIGKILL)
            await until(lambda old=old: set(edge.program.workers()) - set(old), "another process")  # type: ignore[misc]
            for number in range(3):
                response = await edge.ask(ask(EVENTS, cookie(b"b"), b"Connection: close"))
                assert b'"ready"' in response.body
                found = [await asked(edge, f"b-{3 * turn + number}", cookie(b"c")) for _ in range(4)]
                assert found == [b"b"] * 4
            await edge.replaced([old[0]], [old[1]])
        for number in range(9):
            assert [await asked(edge, f"b-{number}") for _ in range(6)] == [b"b"] * 6
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0


@pytest.mark.no_cover
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
async def test_member_that_is_renamed_as_workers_are_replaced_keeps_its_sessions(
    tmp_path: Path, before: int, after: int
) -> None:
    async with two_members(tmp_path, workers=before) as (file, hub), serving(file, hub) as edge, patience():
        await edge.ask(ask(EVENTS, cookie(b"b"), b"Connection: close"))
        members = await settings(edge)
        write(file, hub, members={"new": members["b"], "c": members["c"]}, workers=after)
        edge.program.signal(signal.SIGHUP)
        await edge.program.line("reloaded")
        assert [await asked(edge, "b-0", cookie(b"c")) for _ in range(8)] == [b"b"] * 8


@pytest.mark.no_cover
async def test_launch_that_ends_in_a_worker_of_before_is_found_under_names_of_now(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (file, hub), serving(file, hub) as edge, patience():
        members = await settings(edge)
        held = await edge.client()
        await held.send(ask(EVENTS, b"X-Wait: 1", cookie(b"b"), b"Connection: close"))
        assert (await held.head()).status == 200
        # Their names are swapped, and other workers take over; the launch goes on where it is.
        write(file, hub, members={"b": members["c"], "c": members["b"]}, workers=3)
        edge.program.signal(signal.SIGHUP)
        await edge.program.line("reloaded")
        hub.go_on.set()
        await held.until_end()
        assert [await asked(edge, "b-0") for _ in range(8)] == [b"b"] * 8


@pytest.mark.no_cover
async def test_member_that_operators_join_again_under_another_name_has_its_sessions(tmp_path: Path) -> None:
    async with two_members(tmp_path) as (file, hub), serving(file, hub) as edge, patience():
        await edge.ask(ask(EVENTS, cookie(b"b"), b"Connection: close"))
        url = (await settings(edge))["b"]["url"]
        assert (await edge.admin_ask("DELETE", "/members/b"))[0] == 204
        assert (await edge.admin_ask("PUT", "/members/new", {"url": url}))[0] == 201
        # Workers hear of it a moment later.
        while [await asked(edge, "b-0", cookie(b"c")) for _ in range(8)] != [b"b"] * 8:
            await asyncio.sleep(PAUSE)
