"""What an edge tells operators of its fleet, with a real Redis; and of itself, where it shares nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fedproxy import __version__
from fedproxy.decide.member import Intent
from fedproxy.errors import StoreError
from fedproxy.event import EventName
from fedproxy.observe.fleet import EdgeSeen
from fedproxy.serve import service as services
from fedproxy.serve.edges import read_edge
from fedproxy.serve.service import Service
from tests.rig import until
from tests.rig.redis import REDIS, RedisServer, redis
from tests.rig.service import config_of

MEMBER = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges look with every beat what the others are."""
    monkeypatch.setattr("fedproxy.control.fleet._RECORDS", 1)


@asynccontextmanager
async def edge(folder: Path, server: RedisServer | None, name: str, **config: Any) -> AsyncIterator[Service]:
    shared = {} if server is None else {"store": server.url}
    admin = {"address": "127.0.0.1:0", "state": str(folder / f"{name}.state.json")}
    members = {"a": {"url": MEMBER, "max_launches": 8}, "b": {"url": MEMBER}}
    made = config_of(MEMBER, **{"edge_name": name, "admin": admin, "members": members, **shared, **config})
    service = Service(made, log=lambda line: None, probe=False)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


def events(service: Service, name: EventName) -> list[str]:
    return [event.message for event in service.history.events if event.name is name]


async def knows(service: Service, *names: str) -> None:
    def all_are_known() -> bool:
        # What an edge says first, it says before it serves.
        return [each.name for each in service.fleet().edges if each.workers] == [*names]

    await until(all_are_known, f"{names} are known", within=30)


@REDIS
async def test_edges_see_each_other_and_their_members_together(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        redis() as server,
        edge(tmp_path, server, "one") as one,
        edge(tmp_path, server, "two") as two,
    ):
        await knows(one, "one", "two")
        fleet = one.fleet()
        assert [(each.here, each.version, each.workers, each.disagrees) for each in fleet.edges] == [
            (True, __version__, 1, []),
            (False, __version__, 1, []),
        ]
        assert fleet.edges[0].config == fleet.edges[1].config
        assert (fleet.store.place, fleet.store.up, fleet.alive) == (server.url, True, 2)
        assert fleet.store.commands["ok"] > 0 and not fleet.store.commands.get("failed")
        assert fleet.store.since is not None
        assert fleet.slots.keys() == {"a"}
        assert one.view().fleet.slots.keys() == {"a"}
        assert sum(each.probes for each in fleet.edges) <= 1
        await two.change("b", Intent.DRAIN, None, "kim")
        await until(lambda: one.federation.by_name["b"].intent is Intent.DRAIN, "the drain")
        across = await one.fleet_members()
        assert (across.edges, across.missing) == (2, [])
        assert {each.name: dict(each.status) for each in across.members} == {
            "a": {"available": ["one", "two"]},
            "b": {"draining": ["one", "two"]},
        }


@REDIS
async def test_what_is_set_while_the_store_is_away_waits_for_it(tmp_path: Path) -> None:
    async with asyncio.timeout(60), redis() as server, edge(tmp_path, server, "one") as one:
        assert not one.is_pending("a")
        await server.stop()
        await until(lambda: not one.fleet().store.up, "the store is away", within=30)
        await one.change("a", None, 3.0, "kim")
        assert one.is_pending("a") and not one.is_pending("b")
        store = one.fleet().store
        assert store.pending == ["a"]
        with pytest.raises(StoreError):
            await one.fleet_members()
        await server.start()
        await until(lambda: one.fleet().store.up and not one.is_pending("a"), "it is told", within=30)
        assert one.fleet().store.since != store.since


@REDIS
async def test_edge_with_another_config_is_an_event_while_the_store_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_LOOK_AT_EDGES", 1)
    async with asyncio.timeout(60), redis() as server, edge(tmp_path, server, "one") as one:
        async with edge(tmp_path, server, "two", load_bound=2.5):
            await knows(one, "one", "two")
            await until(lambda: events(one, EventName.EDGE_DISAGREES), "the event", within=30)
            assert events(one, EventName.EDGE_DISAGREES) == ["edge two has another config"]
            assert one.fleet().edges[1].disagrees == ["another config"]
        await knows(one, "one")


async def test_edge_without_a_shared_store_is_one_edge_with_its_file(tmp_path: Path) -> None:
    async with edge(tmp_path, None, "one") as one:
        fleet = one.fleet()
        (only,) = fleet.edges
        assert (only.name, only.here, only.version, only.probes) == ("one", True, __version__, True)
        assert fleet.store.place == str(tmp_path / "one.state.json")
        assert (fleet.store.shared, fleet.store.up, fleet.slots) == (False, True, {})
        across = await one.fleet_members()
        assert [(each.name, dict(each.status)) for each in across.members] == [
            ("a", {"available": ["one"]}),
            ("b", {"available": ["one"]}),
        ]
        assert one.view().fleet.alive == 1


async def test_file_that_could_not_be_written_is_a_store_that_is_not_up(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    async with edge(folder, None, "one") as one:
        await one.change("a", Intent.DRAIN, None, "kim")
        assert one.view().fleet.store.up
        (folder / "one.state.json").unlink()
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
        with pytest.raises(OSError):
            await one.change("a", Intent.READY, None, "kim")
        assert not one.view().fleet.store.up
        folder.mkdir()
        await one.change("a", Intent.READY, None, "kim")
        assert one.view().fleet.store.up


def test_what_another_edge_says_of_itself_may_be_anything() -> None:
    nonsense: dict[str, Any] = {
        "name": 7,
        "version": ["1"],
        "config": "x" * 1000,
        "workers": True,
        "connections": -1,
        "requests": 1 << 80,
        "in_flight": "3",
        "launches": 2,
        "started_at": float("nan"),
        "probes": "yes",
        "disagrees": ["y" * 1000],
    }
    assert read_edge(nonsense) == EdgeSeen(
        "?", here=False, config="x" * 200, launches=2, disagrees=["y" * 200]
    )
