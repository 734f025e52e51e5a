"""Edges of one fleet, each with its own way to a store in memory that a test may cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fedproxy.control.fleet import Fleet
from fedproxy.control.hints import Hint, pack, pack_report
from fedproxy.control.messages import BreakerOpened, BuildBegun, LaunchMoved, LaunchRequested
from fedproxy.control.overrides import Override
from fedproxy.control.prober import Report
from fedproxy.control.state import MemberOverride, State
from fedproxy.control.store import Topic
from fedproxy.errors import StoreError
from tests.rig import until
from tests.rig.stores import MemoryStore, Shared

TICKETS = b"t" * 32


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many beats in a second."""
    for name, value in {
        "_BEAT": 0.02,
        "_GATHER": 0.001,
        "_BACK_OFF": 0.005,
        "_BACK_OFF_MAX": 0.02,
        "_RECORDS": 2,
        "_CHECK": 3,
        "_VALUES": 3,
        "_ALL_SLOTS": 3,
        "_GRACE": 5.0,
    }.items():
        monkeypatch.setattr(f"fedproxy.control.fleet.{name}", value)


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []
        self.limits: Mapping[str, int] = {}
        self.overrides = 0
        self.reports: list[Report] = []
        self.roles: list[bool] = []
        self.tickets: list[bytes] = []
        self.there: list[bool] = []
        self.trouble: list[str] = []
        self.said: dict[str, Any] = {"load": 1}

    def on_hint(self, hint: Hint) -> None:
        self.hints.append(hint)

    def on_slots(self, limits: Mapping[str, int]) -> None:
        self.limits = limits

    def on_overrides(self) -> None:
        self.overrides += 1

    def on_report(self, report: Report) -> None:
        self.reports.append(report)

    def on_role(self, probes: bool) -> None:
        self.roles.append(probes)

    def on_tickets(self, secret: bytes) -> None:
        self.tickets.append(secret)

    def on_store(self, there: bool, why: str) -> None:
        self.there.append(there)

    def on_trouble(self, line: str) -> None:
        self.trouble.append(line)

    def describe(self) -> Mapping[str, Any]:
        return self.said

    def answer(self) -> Mapping[str, Any]:
        return {"members": {"a": {"launches": 1}}}


class Edge:
    """One edge of the fleet."""

    def __init__(self, shared: Shared, name: str, **options: Any) -> None:
        self.store = MemoryStore(shared)
        self.heard = Listener()
        self.fleet = Fleet(self.store, name, self.heard, **options)

    @property
    def trouble(self) -> list[str]:
        return self.heard.trouble


class Edges:
    def __init__(self) -> None:
        self.shared = Shared()
        self.all: list[Edge] = []

    async def start(self, name: str, *, most: Mapping[str, int] | None = None, **options: Any) -> Edge:
        edge = Edge(self.shared, name, **options)
        self.all.append(edge)
        edge.fleet.apply(most or {}, options.pop("rate", None))
        await edge.fleet.start()
        return edge

    async def count(self, number: int) -> None:
        """Waits until each edge knows of so many."""
        there = [edge for edge in self.all if edge.fleet.there]
        await until(lambda: all(edge.fleet.count == number for edge in there), f"{number} edges")


@asynccontextmanager
async def made() -> AsyncIterator[Edges]:
    edges = Edges()
    try:
        async with asyncio.timeout(30):
            yield edges
    finally:
        for edge in edges.all:
            await edge.fleet.close()


def override(intent: str = "drain", who: str = "kim", edge: str = "one") -> Override:
    return Override(MemberOverride(intent=intent), who, edge, 1.0)  # type: ignore[arg-type]


# Overrides


async def test_override_at_one_edge_is_known_to_all() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        assert await one.fleet.set_override("a", override()) is True
        await until(lambda: two.heard.overrides == 1, "the override")
        assert two.fleet.overrides.state().intents == {"a": "drain"}
        late = await edges.start("late")
        assert late.fleet.overrides.state().intents == {"a": "drain"}


async def test_override_that_was_not_told_is_seen_by_the_next_beat() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.refused.add("tell")
        assert await one.fleet.set_override("a", override()) is True
        await until(lambda: two.heard.overrides == 1, "the override")


async def test_who_sets_something_meanwhile_is_asked_to_look_again() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.refused.add("overrides")
        assert await one.fleet.set_override("a", override()) is True
        assert await two.fleet.set_override("a", override("maint")) is None
        assert two.fleet.overrides.get("a") == override()
        assert await two.fleet.set_override("a", override("maint")) is True


async def test_word_waits_while_the_store_is_away() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.cut()
        await until(lambda: not one.fleet.there, "the loss")
        assert await one.fleet.set_override("a", override()) is False
        assert await one.fleet.set_override("a", override("maint")) is False
        assert one.fleet.overrides.state().intents == {"a": "maint"}
        edges.shared.cut(down=False)
        await until(lambda: two.fleet.overrides.state().intents == {"a": "maint"}, "the override")
        assert one.heard.there == [True, False, True]
        assert not one.fleet.overrides.pending


async def test_override_that_the_store_refuses_waits_too() -> None:
    async with made() as edges:
        one = await edges.start("one")
        edges.shared.refused.add("set_override")
        assert await one.fleet.set_override("a", override()) is False
        assert one.trouble == ["the store does not take what operators set: no permission for set_override"]
        edges.shared.refused.clear()
        await until(lambda: not one.fleet.overrides.pending, "the override")
        assert edges.shared.order == 1


async def test_override_that_the_store_took_without_an_answer_does_not_undo_the_next_one() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.late.add("set_override")
        assert await one.fleet.set_override("a", override("drain")) is False
        assert await one.fleet.set_override("a", override("maint")) is False
        edges.shared.late.clear()
        await until(lambda: not one.fleet.overrides.pending, "the override")
        await until(lambda: two.fleet.overrides.state().intents == {"a": "maint"}, "the newest override")
        assert one.fleet.overrides.state().intents == {"a": "maint"}
        assert [line for line in one.trouble if "is not in force" in line] == []


async def test_override_that_is_set_while_the_one_before_is_told_is_told_too() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.cut()
        await until(lambda: not one.fleet.there, "the loss")
        assert await one.fleet.set_override("a", override("drain")) is False
        answer = one.store.holds["set_override"] = asyncio.Event()
        edges.shared.cut(down=False)
        await until(lambda: edges.shared.order == 1, "the first override")
        assert await one.fleet.set_override("a", override("maint")) is False
        answer.set()
        await until(lambda: two.fleet.overrides.state().intents == {"a": "maint"}, "the newest override")
        assert not one.fleet.overrides.pending


async def test_what_was_set_at_one_that_was_cut_off_does_not_undo_what_was_set_meanwhile() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        one.store.cut()
        await until(lambda: not one.fleet.there, "the loss")
        assert await one.fleet.set_override("a", override("drain")) is False
        assert await two.fleet.set_override("a", override("maint", "sam", "two")) is True
        one.store.cut(down=False)
        await until(lambda: one.fleet.overrides.state().intents == {"a": "maint"}, "the other override")
        assert one.trouble == [
            "what kim set for a here while the store was away is not in force: something else was set "
            "meanwhile by sam at two"
        ]
        assert one.heard.overrides >= 1


async def test_ramp_that_another_edge_moved_meanwhile_does_not_undo_what_was_set() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        assert await two.fleet.set_override("a", Override(MemberOverride(ramp=0.1), "", "two", 1.0)) is True
        await until(lambda: one.fleet.overrides.state().ramps == {"a": 0.1}, "the ramp")
        one.store.cut()
        await until(lambda: not one.fleet.there, "the loss")
        drained = Override(MemberOverride(intent="drain", ramp=0.1), "kim", "one", 1.0)
        assert await one.fleet.set_override("a", drained) is False
        assert await two.fleet.set_override("a", Override(MemberOverride(ramp=0.15), "", "two", 1.0)) is True
        one.store.cut(down=False)
        wanted = State(intents={"a": "drain"}, ramps={"a": 0.15})
        await until(lambda: two.fleet.overrides.state() == wanted, lambda: two.fleet.overrides.state())
        assert one.fleet.overrides.state() == wanted
        assert one.trouble == []


async def test_store_that_lost_everything_is_told_again() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        assert await one.fleet.set_override("a", override()) is True
        assert await two.fleet.set_override("b", override()) is True
        edges.shared.cut()
        edges.shared.empty()
        edges.shared.cut(down=False)
        await until(lambda: edges.shared.overrides.keys() == {"a", "b"}, "the overrides")
        assert await two.fleet.set_override("a", override("ready")) is True
        await until(lambda: one.fleet.overrides.state().intents == {"b": "drain"}, "the newest")


async def test_override_that_cannot_be_read_is_reported_and_the_rest_is_taken() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        await one.store.set_override("a", b"?", None, 0)
        assert await one.fleet.set_override("b", override()) is True
        await until(lambda: two.fleet.overrides.state().intents == {"b": "drain"}, "the other")
        assert two.trouble == ["what operators set for 'a' is not what an edge writes"]


# Slots


async def test_limits_follow_who_is_there() -> None:
    async with made() as edges:
        one = await edges.start("one", most={"a": 10})
        assert one.heard.limits == {"a": 10}
        two = await edges.start("two", most={"a": 10})
        await until(lambda: two.heard.limits["a"] >= 4, "its part")
        assert one.heard.limits["a"] + two.heard.limits["a"] <= 10
        await one.fleet.close()
        edges.all.remove(one)
        await until(lambda: two.heard.limits == {"a": 10}, "all of it")


async def test_who_needs_slots_gets_them_from_who_does_not() -> None:
    async with made() as edges:
        one, two = [await edges.start(name, most={"a": 10}) for name in ("one", "two")]
        await until(lambda: two.heard.limits["a"] >= 4, "its part")
        for used in range(1, 10):
            await until(lambda used=used: one.heard.limits["a"] >= used, f"slot {used}")  # type: ignore[misc]
            one.fleet.launches({"a": used})
            assert one.heard.limits["a"] + two.heard.limits["a"] <= 10


async def test_launches_that_begin_while_slots_are_given_back_do_not_exceed_the_limit() -> None:
    async with made() as edges:
        one = await edges.start("one", most={"a": 10})
        assert one.heard.limits == {"a": 10}
        answer = one.store.holds["slots"] = asyncio.Event()
        two = await edges.start("two", most={"a": 10})
        await until(lambda: two.store.calls["slots"] >= 3, "its questions")
        # It has no answer yet.
        one.fleet.launches({"a": 10})
        answer.set()
        await until(lambda: edges.shared.held["a"][one.fleet.id].used == 10, "the launches")
        assert two.heard.limits == {"a": 0}


async def test_edge_that_comes_later_gets_its_part_before_it_has_to_refuse_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._ALL_SLOTS", 10_000)
    async with made() as edges:
        one, two = [await edges.start(name, most={"a": 10}) for name in ("one", "two")]
        await until(lambda: (one.heard.limits, two.heard.limits) == ({"a": 5}, {"a": 5}), "its part")
        before, beats = one.store.calls["slots"] + two.store.calls["slots"], one.store.calls["beat"]
        await until(lambda: one.store.calls["beat"] > beats + 5, "some beats")
        assert one.store.calls["slots"] + two.store.calls["slots"] == before


async def test_last_slot_goes_to_who_had_to_refuse_a_launch() -> None:
    async with made() as edges:
        one = await edges.start("one", most={"a": 1})
        two = await edges.start("two", most={"a": 1})
        await edges.count(2)
        assert (one.heard.limits, two.heard.limits) == ({"a": 1}, {"a": 0})
        two.fleet.want("a")
        await until(lambda: two.heard.limits == {"a": 1}, "the slot")
        assert one.heard.limits == {"a": 0}


async def test_edge_that_is_cut_off_keeps_its_part_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._CUT_OFF", 0.1)
    async with made() as edges:
        one = await edges.start("one", most={"a": 9})
        _, _ = await edges.start("two"), await edges.start("three")
        one.fleet.launches({"a": 6})
        await edges.count(3)
        await until(lambda: one.heard.limits["a"] >= 6, "what it needs")
        edges.shared.cut()
        await until(lambda: one.heard.limits == {"a": 3}, "its part")
        edges.shared.cut(down=False)
        await until(lambda: one.heard.limits["a"] >= 6, "what it needs")


async def test_slots_are_kept_by_who_has_them_when_the_store_forgets_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._ALL_SLOTS", 10_000)
    async with made() as edges:
        one, two = [await edges.start(name, most={"a": 4}) for name in ("one", "two")]
        await edges.count(2)
        one.fleet.launches({"a": 1})
        for used in range(2, 5):
            one.fleet.want("a")
            await until(lambda used=used: one.heard.limits["a"] >= used, f"slot {used}")  # type: ignore[misc]
            one.fleet.launches({"a": used})
        await until(lambda: two.heard.limits == {"a": 0}, "all are in use")
        edges.shared.empty()
        for _ in range(100):
            two.fleet.want("a")
            await asyncio.sleep(0.002)
            assert two.heard.limits == {"a": 0}
        edges.shared.now += 2
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert two.heard.limits == {"a": 0}
        one.fleet.launches({"a": 1})
        await until(lambda: two.heard.limits["a"] >= 1, "what is free")


async def test_slots_that_cannot_be_asked_for_are_asked_for_again() -> None:
    async with made() as edges:
        one = await edges.start("one", most={"a": 9})
        edges.shared.refused.add("slots")
        one.fleet.launches({"a": 1})
        await until(lambda: "the store refuses slots: no permission for slots" in one.trouble, "the trouble")
        edges.shared.refused.clear()
        await until(lambda: edges.shared.held["a"][one.fleet.id].used == 1, "the slots")
        assert one.fleet.there


# Probes


async def test_one_probes_and_another_takes_over() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        assert (one.fleet.probes, two.fleet.probes) == (True, False)
        one.fleet.report(Report("a", False, ("connect",)))
        await until(lambda: two.heard.reports == [Report("a", False, ("connect",))], "the report")
        two.fleet.report(Report("a", True))
        late = await edges.start("late")
        assert late.heard.reports == [Report("a", False, ("connect",))]
        await one.fleet.close()
        edges.all.remove(one)
        await until(lambda: two.fleet.probes or late.fleet.probes, "another")
        assert two.fleet.probes != late.fleet.probes


async def test_edge_that_dies_is_followed_by_another() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        one.store.cut()
        edges.shared.now += 6
        await until(lambda: two.fleet.probes, "another")
        assert one.fleet.probes
        await until(lambda: two.fleet.count == 1, "it alone")


async def test_each_probes_itself_while_the_store_is_away_or_if_it_is_told_to() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        three = await edges.start("three", shares_probes=False)
        assert three.fleet.probes
        edges.shared.cut()
        await until(lambda: two.fleet.probes, "its own")
        edges.shared.cut(down=False)
        await until(
            lambda: two.fleet.there and one.fleet.there and two.fleet.probes != one.fleet.probes, "one"
        )
        assert two.heard.roles[:2] == [False, True]


async def test_reports_that_were_lost_are_read_later() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.refused.add("tell")
        one.fleet.report(Report("a", True))
        await until(lambda: two.heard.reports == [Report("a", True)], "the report")
        edges.shared.reports["b"] = b"?"
        two.fleet.forget({})
        await until(lambda: len(two.heard.reports) > 1, "another look")
        assert {report.name for report in two.heard.reports} == {"a"}


# Hints


async def test_hints_are_heard_by_all_and_by_who_comes_later() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        moved, opened = LaunchMoved(b"k", "a"), BreakerOpened("a")
        one.fleet.tell(moved)
        one.fleet.tell(opened)
        await until(lambda: len(two.heard.hints) == 2, "both")
        assert two.heard.hints == [moved, opened]
        assert one.heard.hints == []
        late = await edges.start("late")
        assert late.heard.hints == [moved]


async def test_old_hints_are_not_taken() -> None:
    async with made() as edges:
        one = await edges.start("one")
        one.fleet.tell(BuildBegun(b"\0" * 16, "a"))
        one.fleet.tell(LaunchMoved(b"k", "a"))
        await until(lambda: edges.shared.hints, "the hints")
        edges.shared.now += 60
        late = await edges.start("late")
        assert late.heard.hints == [LaunchMoved(b"k", "a")]


async def test_what_waits_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._MOST_WAITING", 3)
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        edges.shared.cut()
        await until(lambda: not one.fleet.there, "the loss")
        for number in range(5):
            one.fleet.tell(LaunchMoved(b"%d" % number, "a"))
        assert one.fleet.dropped == 2
        edges.shared.cut(down=False)
        await until(lambda: len(two.heard.hints) >= 3, "the rest")
        assert two.heard.hints[:3] == [LaunchMoved(b"%d" % number, "a") for number in (2, 3, 4)]


async def test_launches_of_a_client_count_everywhere() -> None:
    async with made() as edges:
        one, two = Edge(edges.shared, "one"), Edge(edges.shared, "two")
        edges.all += [one, two]
        for edge in edges.all:
            edge.fleet.apply({}, (5, 100.0))
        await one.fleet.start()
        one.fleet.tell(LaunchRequested(b"jo"))
        one.fleet.tell(LaunchRequested(b"jo"))
        await until(lambda: edges.shared.paid.get(b"jo") == edges.shared.now + 40, "both")
        # This one was not there to hear of them.
        await two.fleet.start()
        two.fleet.tell(LaunchRequested(b"jo"))
        await until(lambda: len(two.heard.hints) == 2, "those of before")
        assert two.heard.hints == [LaunchRequested(b"jo")] * 2
        await until(lambda: LaunchRequested(b"jo") in one.heard.hints, "the third")
        two.fleet.apply({}, None)
        two.fleet.tell(LaunchRequested(b"jo"))
        two.fleet.tell(LaunchMoved(b"k", "a"))
        await until(lambda: LaunchMoved(b"k", "a") in one.heard.hints, "the hint")
        assert edges.shared.paid[b"jo"] == edges.shared.now + 60


async def test_nonsense_of_others_is_passed_over() -> None:
    async with made() as edges:
        one = await edges.start("one")
        other = MemoryStore(edges.shared)
        await other.open("x", lambda topic, content: None, lambda: None)
        for topic in Topic:
            await other.tell(topic, b"\xff{")
        await other.beat(b"[1]", 1, False)
        await other.tell(Topic.HINT, b"\0" + pack([LaunchMoved(b"k", "a")], 0.0))
        await until(lambda: one.heard.hints, "the hint")
        await until(lambda: edges.shared.records.keys() == {one.fleet.id, "x"}, "both")
        assert one.fleet.others == ()
        assert one.fleet.there
        assert one.trouble == []


# Tickets, questions, the end


async def test_tickets_are_those_of_the_first_and_of_who_rotates_them() -> None:
    async with made() as edges:
        one = await edges.start("one", tickets=TICKETS)
        two = await edges.start("two", tickets=b"2" * 32)
        assert two.heard.tickets == [TICKETS]
        assert not two.fleet.rotate_tickets(b"3" * 32)
        assert one.fleet.rotate_tickets(b"4" * 32)
        await until(lambda: two.heard.tickets[-1:] == [b"4" * 32], "the new ones")
        edges.shared.values["tickets"] = b"short"
        edges.shared.cut()
        await until(lambda: not two.fleet.there, "the loss")
        assert two.fleet.rotate_tickets(b"5" * 32)
        assert one.heard.tickets == []


async def test_edges_know_of_each_other() -> None:
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("one")
        await until(lambda: one.fleet.others and two.fleet.others, "the other")
        (other,) = one.fleet.others
        assert (other.name, other.id, other.said["load"]) == ("one", two.fleet.id, 1)
        answers = await one.fleet.ask()
        assert answers == [{"edge": "one", "id": two.fleet.id, "members": {"a": {"launches": 1}}}]


async def test_question_to_who_does_not_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._TO_ANSWER", 0.05)
    async with made() as edges:
        one, two = await edges.start("one"), await edges.start("two")
        await edges.count(2)
        two.store.cut()
        assert await one.fleet.ask() == []
        edges.shared.cut()
        with pytest.raises(StoreError):
            await one.fleet.ask()


async def test_edge_starts_without_a_store_and_goes_on_trying() -> None:
    async with made() as edges:
        edge = Edge(edges.shared, "one")
        edges.all.append(edge)
        edge.store.down = True
        edge.fleet.apply({"a": 4}, None)
        await edge.fleet.start()
        assert edge.heard.there == [False]
        assert edge.heard.limits == {"a": 4}
        assert edge.fleet.probes
        await until(lambda: edge.store.opened > 3, "some attempts")
        assert edge.heard.there == [False]
        edge.store.cut(down=False)
        await until(lambda: edge.fleet.there, "the store")


async def test_who_leaves_leaves_nothing() -> None:
    edges = Edges()
    one = await edges.start("one", most={"a": 3})
    two = await edges.start("two", most={"a": 3})
    one.fleet.tell(LaunchMoved(b"k", "a"))
    await one.fleet.close()
    assert edges.shared.records.keys() == {two.fleet.id}
    assert edges.shared.lease != one.fleet.id
    assert len(edges.shared.hints) == 1
    await two.fleet.close()
    assert edges.shared.records == {}


async def test_trouble_is_reported_once_a_while_and_not_without_end() -> None:
    edge = Edge(Shared(), "one")
    for number in range(100):
        edge.fleet.say_trouble(f"line {number}")
        edge.fleet.say_trouble(f"line {number}")
    assert len(edge.trouble) == 64


async def test_error_of_ours_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with made() as edges:
        edge = await edges.start("one")
        monkeypatch.setattr(edge.heard, "describe", lambda: 1 / 0)
        await until(lambda: told, "the error")
        assert isinstance(told[0]["exception"], ZeroDivisionError)


def test_report_that_is_kept_is_what_others_read() -> None:
    assert pack_report(Report("a", True)).startswith(b'{"name":"a"')


# What goes wrong


async def test_hint_that_is_told_while_an_edge_arrives_does_not_hide_those_before() -> None:
    async with made() as edges:
        one = await edges.start("one")
        for number in range(3):
            one.fleet.tell(LaunchMoved(b"%d" % number, "a"))
        await until(lambda: edges.shared.hints, "the hints")
        two = Edge(edges.shared, "two")
        edges.all.append(two)
        answer = two.store.holds["overrides"] = asyncio.Event()
        starting = asyncio.ensure_future(two.fleet.start())
        await until(lambda: two.store.calls["overrides"], "the arrival")
        one.fleet.tell(LaunchMoved(b"3", "a"))
        await until(lambda: len(edges.shared.hints) >= 2, "the next hint")
        answer.set()
        await starting
        wanted = [LaunchMoved(b"%d" % number, "a") for number in range(4)]
        await until(lambda: two.heard.hints == wanted, lambda: two.heard.hints)


async def test_what_the_store_refuses_does_not_stop_the_rest() -> None:
    async with made() as edges:
        edges.shared.refused |= {"slots", "overrides", "hint", "rate"}
        one = await edges.start("one", most={"a": 2})
        one.fleet.apply({"a": 2}, (2, 60.0))
        assert one.fleet.there
        one.fleet.launches({"a": 1})
        one.fleet.tell(LaunchMoved(b"k", "a"))
        one.fleet.tell(LaunchRequested(b"jo"))
        await until(lambda: one.fleet.prober == one.fleet.id, "the lease")
        one.fleet.report(Report("a", True))
        await until(lambda: "a" in edges.shared.reports, "the report")
        assert {line.split(":")[0] for line in one.trouble} >= {
            f"the store refuses {command}" for command in ("slots", "overrides", "hint")
        }


async def test_report_that_the_store_refused_is_told_later() -> None:
    async with made() as edges:
        one = await edges.start("one")
        await until(lambda: one.fleet.prober == one.fleet.id, "the lease")
        edges.shared.refused.add("report")
        one.fleet.report(Report("a", True))
        await until(
            lambda: "the store refuses report: no permission for report" in one.trouble, "the trouble"
        )
        one.fleet._known_reports.clear()
        edges.shared.refused.clear()
        await until(lambda: "a" in edges.shared.reports, "the report")


async def test_rate_that_is_turned_off_while_launches_are_counted() -> None:
    async with made() as edges:
        one = await edges.start("one")
        one.fleet.apply({}, (2, 60.0))
        answer = one.store.holds["rate"] = asyncio.Event()
        one.fleet.tell(LaunchRequested(b"jo"))
        await until(lambda: b"jo" in edges.shared.paid, "the count")
        one.fleet.apply({}, None)
        answer.set()
        one.fleet.tell(LaunchMoved(b"k", "a"))
        await until(lambda: len(edges.shared.hints) == 1, "what is told next")
        assert not any(task.done() for task in one.fleet._tasks)


async def test_launches_are_not_gathered_while_the_store_is_away() -> None:
    async with made() as edges:
        one = await edges.start("one")
        one.fleet.apply({}, (2, 60.0))
        edges.shared.cut()
        await until(lambda: not one.fleet.there, "the loss")
        for number in range(100):
            one.fleet.tell(LaunchRequested(b"%d" % number))
        assert not one.fleet._launched


async def test_crowd_of_messages_is_answered_once() -> None:
    async with made() as edges:
        one = await edges.start("one")
        other = MemoryStore(edges.shared)
        await other.open("x", lambda topic, content: None, lambda: None)
        before = one.store.calls.copy()
        for number in range(1000):
            for topic in (Topic.OVERRIDE, Topic.TICKETS, Topic.LEASE):
                one.fleet._on_told(topic, b"a")
            one.fleet._on_told(Topic.QUESTION, b"%d" % number)
        assert len(one.fleet._chores) <= 110
        await until(lambda: not len(one.fleet._chores), "the answers")
        assert one.store.calls["overrides"] - before["overrides"] <= 3
        assert one.store.calls["answer"] <= 100


async def test_who_has_ended_does_nothing_more() -> None:
    async with made() as edges:
        one = await edges.start("one")
        await one.fleet.close()
        one.fleet.retire()
        one.fleet._on_told(Topic.LEASE, b"")
        await asyncio.sleep(0.05)
        assert one.trouble == []
        assert edges.shared.seen == {}
