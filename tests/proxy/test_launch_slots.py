"""A launch for which only other edges of the fleet have slots waits a moment before it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedproxy.decide.member import Member
from tests.rig import Edge, edge, until
from tests.rig.launches import EVENTS, HEAD, LAST, ask, chunk, event
from tests.rig.member import Conn

LAUNCH = ask(EVENTS)


async def ready(conn: Conn) -> None:
    await conn.request()
    conn.send(HEAD + chunk(event("ready", url="/user/jo/", token="x")) + LAST)


@asynccontextmanager
async def short() -> AsyncIterator[tuple[Edge, Member, list[str]]]:
    """An edge without a slot at its only member, and the names of members that it asked for one."""
    wanted: list[str] = []
    async with edge(ready, settings={"a": {"max_launches": 2}}) as running:
        member = running.service.federation.by_name["a"]
        member.launch_slots = 0
        member.on_short = wanted.append
        yield running, member, wanted


async def test_it_goes_on_when_there_is_a_slot() -> None:
    async with short() as (running, member, wanted):
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: wanted, "that it is short")
        member.launch_slots = 1
        response = await client.response()
        assert b'"ready"' in response.body
        (line,) = await running.logged()
        assert (line["member"], line["attempts"], line["launch"]) == ("a", 1, "ready")


async def test_it_is_refused_when_there_is_none_in_time() -> None:
    async with short() as (running, _, wanted):
        response = await running.ask(LAUNCH)
        assert b'"failed"' in response.body
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (503, "PQ", None)
        assert len(wanted) > 1


async def test_visitor_who_leaves_meanwhile_is_asked_for_nowhere() -> None:
    async with short() as (running, member, wanted):
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: wanted, "that it is short")
        await client.leave()
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (499, "CQ", None)
        member.launch_slots = 1
        await until(lambda: not running.service.edge.tasks, "the end of the wait")
        assert running.member.requests == []


@pytest.mark.parametrize("slots", [None, 2])
async def test_where_this_edge_has_all_slots_it_is_refused_at_once(slots: int | None) -> None:
    async with short() as (running, member, wanted):
        member.launch_slots = slots
        member.launches_elsewhere = 2
        response = await running.ask(LAUNCH)
        assert b'"failed"' in response.body
        assert wanted == []
        assert not running.service.edge.tasks
        member.launches_elsewhere = 0
