"""Whole edges with one Redis: what holds for all of them, and what each does without it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fedproxy.config.model import Config
from fedproxy.control.hints import pack
from fedproxy.control.messages import BreakerOpened, BuildBegun, LaunchSeen, SessionsKnown
from fedproxy.control.overrides import Override
from fedproxy.control.state import MemberOverride, State, StateFile, Weight
from fedproxy.control.store import Topic
from fedproxy.decide.knowledge import DIGEST, Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.event import EventName
from fedproxy.serve.fleet import add_up_members, config_digest, disagreements
from fedproxy.serve.service import Service
from tests.rig import until
from tests.rig.redis import REDIS, RedisServer, redis
from tests.rig.service import config_of

pytestmark = REDIS

WHO = "kim 127.0.0.1"


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.control.fleet._BEAT", 0.1)
    monkeypatch.setattr("fedproxy.control.fleet._BACK_OFF_MAX", 0.2)


class Member:
    """A BinderHub that counts. Launches last until `finish`."""

    def __init__(self) -> None:
        self.probes = 0
        self.running = self.most = self.launched = 0
        self.status = 200
        self.finish = asyncio.Event()
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/versions", self._versions)
        app.router.add_get("/build/{spec:.*}", self._build)
        app.router.add_get("/{rest:.*}", self._page)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def _health(self, _request: web.Request) -> web.Response:
        self.probes += 1
        return web.json_response({"ok": True, "checks": []}, status=self.status)

    async def _versions(self, _request: web.Request) -> web.Response:
        return web.json_response({"binderhub": "1"}, status=self.status)

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text="page")

    async def _build(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        self.launched += 1
        self.most = max(self.most, self.running)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"phase": "built", "message": ""}\n\n')
            await self.finish.wait()
            await response.write(b'data: {"phase": "ready", "url": "/user/jo/"}\n\n')
            return response
        finally:
            self.running -= 1


@asynccontextmanager
async def members(number: int = 1) -> AsyncIterator[list[Member]]:
    found = [Member() for _ in range(number)]
    for each in found:
        await each.server.start_server()
    try:
        yield found
    finally:
        for each in found:
            each.finish.set()
            await each.server.close()


def config(server: RedisServer, found: list[Member], name: str = "one", **keys: Any) -> Config:
    """Members a, b and so on; what `keys` says of one by its name is added."""
    settings = {
        letter: {"url": each.url, **keys.pop(letter, {})} for letter, each in zip("abc", found, strict=False)
    }
    base = {"health": {"interval": 0.1, "unhealthy_interval": 0.1}, "access_log": "off"}
    return config_of("", members=settings, store=server.url, edge_name=name, **{**base, **keys})


@asynccontextmanager
async def edge(first: Config, file: Path | None = None, **options: Any) -> AsyncIterator[Service]:
    service = Service(first, log=lambda line: None, file=file, **options)
    async with asyncio.timeout(60):
        await service.start()
        try:
            yield service
        finally:
            await service.stop()


@asynccontextmanager
async def edges(*configs: Config, **options: Any) -> AsyncIterator[list[Service]]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield [await stack.enter_async_context(edge(each, **options)) for each in configs]


def states(service: Service) -> dict[str, tuple[str, object]]:
    """Of each member, the intent and the weight that all who serve have."""
    found: dict[str, set[tuple[str, object]]] = {}
    for survey in service._planes.surveys():
        for member in survey.members:
            found.setdefault(member.name, set()).add((member.intent.value, member.weight))
    return {name: next(iter(each)) if len(each) == 1 else ("?", 0) for name, each in found.items()}


async def come_to(service: Service, wanted: Mapping[str, tuple[str, object]]) -> None:
    async def agree() -> bool:
        await service.survey()
        return states(service) == wanted

    while not await agree():
        await asyncio.sleep(0.01)


def events(service: Service) -> list[str]:
    return [event.message for event in service.history.events]


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_operators_set_at_one_edge_is_in_force_at_all(workers: int) -> None:
    async with redis() as server, members(2) as found:
        both = (config(server, found, name, workers=workers) for name in ("one", "two"))
        async with edges(*both) as (one, two):
            await one.change("a", Intent.DRAIN, 3.0, WHO)
            await two.change("b", None, 5.0, WHO)
            for each in (one, two):
                await come_to(each, {"a": ("drain", 3), "b": ("ready", 5)})
            assert "a was set to drain: no new visitors, current ones stay" in events(two)
            assert "the weight of b was set to 5" in events(one)
            await one.join("c", {"url": found[0].url, "weight": 2}, WHO)
            await come_to(two, {"a": ("drain", 3), "b": ("ready", 5), "c": ("ready", 2)})
            await two.leave("c", WHO)
            await two.change("a", Intent.READY, 1.0, WHO)
            await come_to(one, {"a": ("ready", 1), "b": ("ready", 5)})
            assert "c left the federation" in events(one)
            assert "the weight of a was set to what the config says" in events(one)
            assert one.set_by("b") == WHO


async def test_two_operators_at_two_edges_lose_nothing_that_the_other_set() -> None:
    async with redis() as server, members() as found:  # noqa: SIM117
        async with edges(config(server, found), config(server, found, "two")) as (one, two):
            await asyncio.gather(
                *(one.change("a", Intent.DRAIN, None, WHO), two.change("a", None, 7.0, WHO)),
            )
            for each in (one, two):
                await come_to(each, {"a": ("drain", 7)})


async def test_overrides_are_kept_while_the_store_is_away_and_over_a_restart(tmp_path: Path) -> None:
    async with redis() as server, members() as found:
        one, two = (config(server, found, name, admin={"address": "127.0.0.1:0"}) for name in ("one", "two"))
        file = tmp_path / "edge.yaml"
        async with edges(one) as (other,), edge(two, file) as service:
            await other.change("a", None, 4.0, WHO)
            await come_to(service, {"a": ("ready", 4)})
            await server.stop()
            await until(lambda: not service.link.fleet.there, "the loss")  # type: ignore[union-attr]
            await service.change("a", Intent.DRAIN, None, WHO)
            assert any(text.endswith("so the other edges hear of it later") for text in events(service))
            assert states(service) == {"a": ("drain", 4)}
        async with edge(two, file) as service:
            assert states(service) == {"a": ("drain", 4)}
            assert service.listening
            await server.start()
            await until(lambda: not service.link.overrides.pending, "the override")  # type: ignore[union-attr]
        async with edges(one) as (other,):
            assert states(other) == {"a": ("drain", 4)}


async def test_what_an_edge_finds_at_its_start_is_kept_for_a_start_without_a_store(tmp_path: Path) -> None:
    async with members() as found, redis() as server:
        async with edge(config(server, found)) as one:
            await one.change("a", Intent.DRAIN, None, WHO)
            file = tmp_path / "two.yaml"
            async with edge(config(server, found, "two"), file) as two:
                await until(lambda: two.link is not None and two.link.unsaved() is None, "what is kept")
        server.hang()
        async with edge(config(server, found, "two"), file) as two:
            assert states(two)["a"][0] == "drain"


async def test_what_is_set_while_an_edge_starts_is_in_force_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with members() as found, redis() as server, edge(config(server, found)) as one:
        load = Service._load_sessions

        async def slowly(service: Service) -> None:
            await one.change("a", Intent.DRAIN, None, WHO)
            assert service.link is not None
            words = service.link.overrides
            await until(lambda: words.state().intents == {"a": "drain"}, "the override")
            await load(service)

        monkeypatch.setattr(Service, "_load_sessions", slowly)
        async with edge(config(server, found, "two")) as two:
            await come_to(two, {"a": ("drain", 1)})


async def test_first_edge_with_a_store_brings_what_was_set_when_it_was_alone(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    StateFile(tmp_path / "edge.state.json").save(
        State(intents={"a": "maint"}, weights={"b": Weight(value=9.0, over=1.0)}, by={"a": "sam"})
    )
    async with redis() as server, members(2) as found:
        async with edge(config(server, found), file) as one, edges(config(server, found, "two")) as (two,):
            for each in (one, two):
                assert states(each) == {"a": ("maint", 1), "b": ("ready", 9)}
        # Whoever comes later with a file of its own does not undo what the fleet has said.
        async with edge(config(server, found), file) as one:
            await one.change("a", Intent.READY, None, WHO)
        async with edge(config(server, found), file) as one:
            assert states(one) == {"a": ("ready", 1), "b": ("ready", 9)}


async def test_weight_holds_where_the_config_has_the_one_that_it_was_set_over() -> None:
    async with redis() as server, members() as found:
        other = config(server, found, "two", a={"weight": 6})
        async with edges(config(server, found), other) as (one, two):
            await one.change("a", Intent.DRAIN, 3.0, WHO)
            await come_to(one, {"a": ("drain", 3)})
            await come_to(two, {"a": ("drain", 6)})
            dropped = [each for each in two.history.events if each.name is EventName.STATE_DROPPED]
            assert len(dropped) == 1
            config_now = two.link.fleet.overrides.state()  # type: ignore[union-attr]
            assert config_now.weights == {"a": Weight(value=3.0, over=1.0)}


async def test_what_does_not_fit_an_edge_is_said_there_and_holds_elsewhere() -> None:
    async with redis() as server, members(2) as found:
        strict = config(server, found, "two", b={"prime": True})
        async with edges(config(server, found), strict) as (one, two):
            await one.join("c", {"url": found[0].url, "prime": True}, WHO)
            await come_to(one, {"a": ("ready", 1), "b": ("ready", 1), "c": ("ready", 1)})
            dropped = lambda: [e for e in two.history.events if e.name is EventName.STATE_DROPPED]  # noqa: E731
            await until(dropped, "why not")
            assert states(two).keys() == {"a", "b"}


# Launches


async def launch(session: aiohttp.ClientSession, service: Service, spec: str) -> str:
    """The first event of a launch at one edge."""
    host, port = service.addresses[0]
    headers = {"Accept": "text/event-stream"}
    async with session.get(f"http://{host}:{port}/build/gh/o/{spec}/HEAD", headers=headers) as response:
        if response.status != 200:
            return str(response.status)
        line = await response.content.readline()
        phase: str = json.loads(line.removeprefix(b"data: "))["phase"]
        if phase == "built":
            await response.content.read()
        return phase


@pytest.mark.parametrize("workers", [1, 2])
async def test_launches_at_a_member_are_limited_over_all_edges(workers: int) -> None:
    async with redis() as server, members(2) as found:
        limited = {"max_launches": 6}
        settings = [
            config(server, found, name, a=limited, workers=workers, balancer="random", b={"weight": 0.01})
            for name in ("one", "two", "three")
        ]
        async with edges(*settings) as all_edges, aiohttp.ClientSession() as session:
            await until(
                lambda: all(each.link.fleet.count == 3 for each in all_edges if each.link), "each other"
            )
            await until(
                lambda: sum(each._slots.limits.get("a", 0) for each in all_edges if each._slots) == 6,
                "all slots",
            )
            started = []
            for number in range(30):
                started.append(asyncio.create_task(launch(session, all_edges[number % 3], f"r{number}")))
                if workers > 1:
                    # Two of them may take the last slot of their edge in the same moment.
                    await until(lambda: sum(each.running for each in found) == len(started), "it")
            await until(lambda: sum(each.running for each in found) == 30, "every launch")
            assert found[0].most <= 6
            assert found[0].most >= 4
            for each in found:
                each.finish.set()
            assert set(await asyncio.gather(*started)) == {"built"}


async def test_edge_without_a_slot_gets_one_while_the_launch_waits() -> None:
    async with redis() as server, members(2) as found:
        settings = [
            config(server, found, name, a={"max_launches": 1}, b={"weight": 0}) for name in ("one", "two")
        ]
        async with edges(*settings) as (one, two), aiohttp.ClientSession() as session:
            fleets = [each.link.fleet for each in (one, two) if each.link]
            await until(lambda: all(fleet.count == 2 for fleet in fleets), "each other")
            assert sum(fleet.slots.limits()["a"] for fleet in fleets) == 1
            at = next(
                each for each, fleet in zip((one, two), fleets, strict=True) if not fleet.slots.limits()["a"]
            )
            assert at.link is not None
            fleet = at.link.fleet
            task = asyncio.create_task(launch(session, at, "r1"))
            await until(lambda: found[0].running == 1, "the launch")
            assert fleet.slots.limits()["a"] == 1
            # There is none to be had, and that is said after a moment.
            assert await launch(session, at, "r2") == "failed"
            found[0].finish.set()
            assert await task == "built"


async def test_launch_rate_of_a_client_holds_over_all_edges() -> None:
    async with redis() as server, members() as found:
        found[0].finish.set()
        rate = {"launches": 2, "per": 600}
        both = (config(server, found, name, rate=rate) for name in ("one", "two"))
        async with edges(*both) as (one, two), aiohttp.ClientSession() as session:
            assert [await launch(session, one, f"r{n}") for n in range(2)] == ["built", "built"]

            async def refused() -> bool:
                return await launch(session, two, "r") == "failed"

            while not await refused():
                await asyncio.sleep(0.01)
            # One that comes later counts them too, after its first.
            async with edge(config(server, found, "late", rate=rate)) as late:
                while await launch(session, late, "r") != "failed":
                    await asyncio.sleep(0.01)
                assert found[0].launched <= 3 * 2


# Probes


async def test_one_edge_probes_for_all() -> None:
    async with redis() as server, members() as found:
        quiet = {"health": {"interval": 0.1, "unhealthy_interval": 0.1, "fall": 1}}
        async with edges(*(config(server, found, name, **quiet) for name in ("one", "two"))) as (one, two):
            assert one.link is not None
            assert two.link is not None
            await until(lambda: one.reports and two.reports, "the reports")
            assert (one.link.fleet.probes, two.link.fleet.probes) == (True, False)
            assert two._prober is not None
            assert two._prober.reports == {}
            found[0].status = 500
            await until(lambda: not two.reports["a"].healthy, "the verdict")
            found[0].status = 200
            await until(lambda: two.reports["a"].healthy, "that it is well again")
            await one.stop()
            await until(lambda: two.link is not None and two.link.fleet.probes, "the other")
            await until(lambda: two._prober is not None and "a" in two._prober.reports, "a round")


async def test_member_that_only_the_other_edge_cannot_reach_stays_healthy_here() -> None:
    async with redis() as server, members() as found:  # noqa: SIM117
        async with edges(*(config(server, found, name) for name in ("one", "two"))) as (one, two):
            assert one.link is not None
            assert two.link is not None
            await until(lambda: "a" in two.reports, "the report")
            bad = one.reports["a"]
            object.__setattr__(bad, "healthy", False)
            object.__setattr__(bad, "reasons", ("connect",))
            one.link.fleet.prober = one.link.fleet.id
            one.link.fleet.report(bad)
            await until(lambda: two.link is not None and two.link._doubted == {"a"}, "the doubt")
            await until(lambda: two._prober is not None and "a" in two._prober.reports, "its own round")
            assert two.reports["a"].healthy
            assert one.link.fleet.probes
            assert not two.link.fleet.probes
            # It is down for everybody.
            await found[0].server.close()
            await until(lambda: not two.reports["a"].healthy, "its own verdict")


async def test_member_that_only_this_edge_has_is_probed_here() -> None:
    async with redis() as server, members(2) as found:
        both = config(server, found[:1]), config(server, found, "two")
        async with edges(*both) as (one, two):
            assert one.link is not None
            assert two.link is not None
            link = two.link
            await until(lambda: "a" in two.reports, "the report of the other")
            assert not link.fleet.probes
            link.look()
            assert link._doubted == set()
            link.look()
            assert link._doubted == {"b"}
            await until(lambda: "b" in two.reports, "its own report")
            found[1].status = 500
            await until(lambda: not two.reports["b"].healthy, "the verdict")


async def test_breaker_that_opened_elsewhere_is_believed_only_if_the_member_fails_here() -> None:
    async with redis() as server, members(2) as found, edges(config(server, found)) as (one,):
        other = server.store()
        await other.open("x", lambda topic, content: None, lambda: None)
        opened = b"\0" + pack([BreakerOpened("a", frozenset((b"1", b"2"))), BreakerOpened("gone")], 0.0)
        member = one.federation.by_name["a"]
        await other.tell(Topic.HINT, opened)
        assert one.link is not None
        link = one.link
        await until(lambda: link._checked, "the check")
        await until(lambda: not one._chores or member.breaker.closed, "its end")
        assert member.breaker.closed
        await found[0].server.close()
        link._checked.clear()
        await other.tell(Topic.HINT, opened)
        await until(lambda: not member.breaker.closed, "the breaker")
        await other.close()


# Hints


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_launches_teach_one_edge_all_know(workers: int) -> None:
    image = b"i" * DIGEST
    async with redis() as server, members() as found:
        both = (config(server, found, name, workers=workers) for name in ("one", "two"))
        async with edges(*both) as (one, two):
            assert one.link is not None
            seen = Seen(image, "a", False, 20.0, 3.0, End.READY)
            session = (b"/user/jo", 2, found[0].url, "a", 1e9, 2e9, b"")
            for fact in (BuildBegun(image, "a"), LaunchSeen(seen), SessionsKnown((session,))):
                one._common.learned(fact)
            # Anybody can make these up.
            one._common.learned(SessionsKnown(((b"/user/x", 1, found[0].url, "a", 1e9, 2e9, b""),)))
            knowledge = two._common.learning.knowledge
            await until(lambda: knowledge.images.places(image), "the image")
            await until(lambda: len(two._sharing.sessions) == 1, "the session")


# The whole


async def test_edges_see_what_they_disagree_about() -> None:
    async with redis() as server, members() as found:
        settings = [
            config(server, found, name, affinity={"max_age": age}) for name, age in (("one", 60), ("two", 90))
        ]
        async with edges(*settings) as (one, _two):
            assert one.link is not None
            link = one.link
            await until(lambda: len(link.edges()) == 2, "both")
            here, there = link.edges()
            assert (here["here"], here["name"], here["disagrees"]) == (True, "one", [])
            assert (there["here"], there["name"], there["disagrees"]) == (False, "two", ["another config"])
            link.note_disagreements()
            assert not [each for each in one.history.events if each.name is EventName.EDGE_DISAGREES]
            for _ in range(3):
                link.note_disagreements()
            noted = [each for each in one.history.events if each.name is EventName.EDGE_DISAGREES]
            assert [each.message for each in noted] == ["edge two has another config"]
            asked = add_up_members(await link.ask_members())
            assert asked["a"]["status"] == {"available": ["one", "two"]}


def test_disagreements_in_words() -> None:
    own = {"name": "one", "version": "1", "config": "x", "members": "m"}
    assert disagreements(own, {**own, "name": "two"}) == []
    assert disagreements(own, {**own, "members": "n"}) == ["other members or weights", "the same name"]
    assert disagreements(own, {"name": "two"}) == ["version None", "another config"]
    assert disagreements(own, {"name": "two", "draining": True}) == []


def test_what_another_edge_says_of_itself_is_bounded() -> None:
    own = {"name": "one", "version": "1", "config": "x", "members": "m"}
    assert disagreements(own, {**own, "name": "two", "version": {"1": 1}}) == ["version None"]
    assert disagreements(own, {**own, "name": "two", "version": "9" * 999}) == ["version " + "9" * 100]
    found = add_up_members([{"id": [], "members": {"a": {"launches": 10**4000, "requests": -3}}}])
    assert (found["a"]["launches"], found["a"]["requests"]) == (1 << 53, 0)


def test_edges_may_differ_in_what_is_their_own() -> None:
    base = config_of("http://a.example")
    assert config_digest(base) == config_digest(config_of("http://a.example", edge_name="x", workers=2))
    assert config_digest(base) != config_digest(config_of("http://b.example"))


def test_members_of_all_edges_are_added_up_whatever_they_say() -> None:
    said: list[dict[str, Any]] = [
        {"edge": "one", "members": {"a": {"status": "full", "weight": 1, "launches": 2, "requests": 5}}},
        {"edge": "two", "members": {"a": {"status": "full", "weight": 2, "launches": "x"}, "b": 7}},
        {"edge": "three", "members": []},
    ]
    assert add_up_members(said) == {
        "a": {
            "in_flight": 0,
            "launches": 2,
            "requests": 5,
            "status": {"full": ["one", "two"]},
            "weights": {"1": ["one"], "2": ["two"]},
        }
    }


async def test_tickets_are_the_same_at_all_edges() -> None:
    async with redis() as server, members() as found:  # noqa: SIM117
        async with edges(config(server, found), config(server, found, "two")) as (one, two):
            assert one._tickets == two._tickets
            assert one.link is not None
            one.link.fleet.rotate_tickets(b"n" * 32)
            one.take_tickets(b"n" * 32)
            await until(lambda: two._tickets == b"n" * 32, "the new ones")


async def test_edge_that_ends_leaves_no_trace_of_itself() -> None:
    async with redis() as server, members() as found:
        async with edges(config(server, found, a={"max_launches": 4})):
            assert await server.client.zcard("fedproxy:edges") == 1
        assert await server.client.zcard("fedproxy:edges") == 0
        assert await server.client.get("fedproxy:lease") is None


async def test_reload_keeps_what_the_fleet_said(tmp_path: Path) -> None:
    async with redis() as server, members() as found:
        first = config(server, found)
        next_config: Callable[[], Config] = lambda: config(server, found, a={"weight": 2})  # noqa: E731
        async with edges(first, reread=next_config) as (one,):
            await one.change("a", Intent.DRAIN, 5.0, WHO)
            assert await one.reload() == []
            assert states(one) == {"a": ("drain", 2)}
            assert one.link is not None
            assert one.link.overrides.get("a") == Override(
                MemberOverride(intent="drain", weight=Weight(value=5.0, over=1.0), by=WHO),
                WHO,
                "one",
                one.link.overrides.get("a").at,  # type: ignore[union-attr]
            )


async def test_another_store_takes_a_restart_and_that_is_said(tmp_path: Path) -> None:
    async with members() as found, redis() as server:
        first = config(server, found)
        now = [first.model_copy(update={"edge_name": "two", "store_prefix": "other"})]
        async with edge(first, tmp_path / "edge.yaml", reread=lambda: now[0]) as one:
            assert await one.reload() == []
            for key in ("store_prefix", "edge_name"):
                text = f"{key} has changed, which takes effect after a restart: the old value still applies"
                assert events(one).count(text) == 1
            assert one.link is not None
            assert one.link.fleet.name == "one"
