"""Drills, made small: one of three members fails under visitors who ask on and on, and is fixed.

`python -m benchmarks.drills` does it with the program as it is run, with more visitors, and with figures.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.drills import VICTIM, Fault, Visitor
from benchmarks.drills import Member as Toy
from benchmarks.peers import MEMBERS
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Member
from tests.rig import Edge, edge, until

VISITORS = 30
BUDGET, FLOOR, SAVED = 0.2, 1.0, 210
HIDDEN = [Fault.KILLED, Fault.BLACKHOLE, Fault.HANG, Fault.RESET, Fault.NONSENSE]


class Scene:
    """An edge, its members by name, and who visits."""

    def __init__(self, running: Edge, toys: dict[str, Toy], visitors: list[Visitor]) -> None:
        self.running = running
        self.toys = toys
        self.visitors = visitors

    @property
    def seen(self) -> Counter[str]:
        """What the visitors saw so far."""
        return sum((visitor.seen for visitor in self.visitors), Counter[str]())

    @property
    def victim(self) -> Member:
        return self.running.service.edge.federation.by_name[VICTIM]

    def failures(self) -> int:
        """What the victim was charged with; a stale connection is nobody's fault."""
        return sum(count for reason, count in self.victim.counts.errors.items() if reason != "stale")

    async def all_at_home(self) -> None:
        for visitor in self.visitors:
            visitor.served_by = ""
        await until(lambda: not self.away(), self.away)

    def away(self) -> list[Visitor]:
        return [visitor for visitor in self.visitors if visitor.served_by != visitor.home]

    async def opened(self) -> None:
        await until(lambda: self.victim.counts.transitions["open"], "the breaker opened")


@asynccontextmanager
async def scene(visitors: int = VISITORS, homes: tuple[str, ...] = MEMBERS) -> AsyncIterator[Scene]:
    """Visitors, each with the cookie of one of `homes`, who ask until the end."""
    toys = {name: Toy(name) for name in MEMBERS}
    for toy in toys.values():
        await toy.listen()
    try:
        urls = {name: "http://{}:{}".format(*toy.address) for name, toy in toys.items()}
        async with edge(
            urls,
            timeouts={"connect": "400ms", "response_head": "400ms"},
            breaker={"open": "200ms", "open_max": "400ms"},
            retry={"attempts": 3, "budget": BUDGET, "floor": FLOOR},
        ) as running:
            crowd = [Visitor(homes[at % len(homes)], after=0.0) for at in range(visitors)]
            port = running.address[1]
            tasks = [asyncio.ensure_future(visitor.visit(port)) for visitor in crowd]
            try:
                there = Scene(running, toys, crowd)
                await there.all_at_home()
                yield there
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for toy in toys.values():
            await toy.leave()


@pytest.mark.parametrize("fault", HIDDEN)
async def test_visitors_notice_nothing_of_a_member_that_fails_and_are_back_when_it_is_mended(
    fault: Fault,
) -> None:
    async with scene() as there:
        await there.toys[VICTIM].break_down(fault)
        await there.opened()
        await there.toys[VICTIM].fix()
        await there.all_at_home()
        assert there.victim.breaker.state is BreakerState.CLOSED
        seen = there.seen
        assert (seen["failed"], seen["cut"]) == (0, 0), seen
        retries = sum(sum(m.counts.retries.values()) for m in there.running.service.edge.federation.members)
        assert 0 < retries <= BUDGET * seen["requests"] + SAVED


async def test_response_that_began_is_cut_and_all_others_are_whole() -> None:
    async with scene() as there:
        await there.toys[VICTIM].break_down(Fault.TRUNCATED)
        await there.opened()
        await there.toys[VICTIM].fix()
        await there.all_at_home()
        seen = there.seen
        assert seen["failed"] == 0
        # A reset may overtake the head on its way to a visitor, whose client then asks again by itself.
        assert 0 < seen["cut"] <= there.failures()


@pytest.mark.parametrize("fault", [Fault.KILLED, Fault.RESET, Fault.NONSENSE, Fault.HANG])
async def test_breaker_opens_at_the_configured_failure_and_not_before(fault: Fault) -> None:
    async with scene(visitors=1, homes=(VICTIM,)) as there:
        breaker = there.victim.breaker
        at: list[int] = []
        told = breaker.on_transition
        assert told is not None

        def note(state: BreakerState, now: float) -> None:
            # It is settled first and counted then.
            at.append(there.failures() + 1)
            told(state, now)

        breaker.on_transition = note
        await there.toys[VICTIM].break_down(fault)
        await there.opened()
        assert at[0] == breaker.policy.failures == 5
        assert there.seen["failed"] == 0


async def test_nobody_sees_the_503_of_a_member_and_the_breaker_opens() -> None:
    async with scene() as there:
        await there.toys[VICTIM].break_down(Fault.ANSWERS_503)
        await there.opened()
        await there.toys[VICTIM].fix()
        await there.all_at_home()
        seen = there.seen
        assert (seen["failed"], seen["cut"]) == (0, 0)
