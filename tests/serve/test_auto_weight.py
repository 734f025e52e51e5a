"""`weight: auto` from the probes to the members of every worker, through reloads and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fedproxy.config.model import Config
from fedproxy.control.messages import LaunchSeen
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.demo.toy import ToyBinderHub
from fedproxy.serve.service import Service
from tests.rig import until
from tests.rig.service import config_of

PROBED = {"interval": 0.05, "unhealthy_interval": 0.05, "slow_start": 0}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second and not minutes."""
    monkeypatch.setattr("fedproxy.decide.capacity.TIME", 0.3)
    monkeypatch.setattr("fedproxy.serve.service._OFTEN", 0.2)


@asynccontextmanager
async def hubs(**pods: tuple[int, int | None]) -> AsyncIterator[dict[str, ToyBinderHub]]:
    """Toy members, each with its pods and quota."""
    found = {name: ToyBinderHub(name, pods=total, quota=quota) for name, (total, quota) in pods.items()}
    await asyncio.gather(*(hub.start() for hub in found.values()))
    try:
        yield found
    finally:
        await asyncio.gather(*(hub.stop() for hub in found.values()))


def config(members: dict[str, ToyBinderHub], workers: int = 1, **keys: Any) -> Config:
    """All of them with `auto`, unless `keys` say otherwise of one by name."""
    settings = {
        name: {"url": hub.url, "weight": "auto", **keys.pop(name, {})} for name, hub in members.items()
    }
    return config_of("", workers=workers, members=settings, health=PROBED, access_log="off", **keys)


@asynccontextmanager
async def serving(first: Config, reread: Callable[[], Config] | None = None) -> AsyncIterator[Service]:
    service = Service(first, log=lambda line: None, reread=reread)
    async with asyncio.timeout(60):
        await service.start()
        try:
            yield service
        finally:
            await service.stop()


def weights(service: Service) -> list[dict[str, float]]:
    """Those in force, by each of those who serve."""
    return [{each.name: each.weight for each in survey.members} for survey in service._planes.surveys()]


async def come_to(service: Service, **wanted: float) -> None:
    """Waits until every member was probed, and all who serve have these weights, to two hundredths."""

    def agree() -> bool:
        found = weights(service)
        probed = service._reports.keys() == service.config.active_members.keys()
        return (
            probed
            and bool(found)
            and all(
                abs(each[name] - weight) <= 0.02 * weight for each in found for name, weight in wanted.items()
            )
        )

    await until(agree, lambda: weights(service))


async def first_of(
    service: Service, workers: int, but: dict[str, float] | None = None
) -> list[dict[str, float]]:
    """The first weights that so many workers tell, and that are not those of before."""
    while len(found := weights(service)) != workers or but in found:
        await service.survey()
        await asyncio.sleep(0.01)
    return found


async def test_members_share_by_their_capacities() -> None:
    four = hubs(a=(30, 300), b=(20, 180), c=(5, 60), d=(5, None))
    async with four as members, serving(config(members)) as service:
        await come_to(service, a=300, b=180, c=60, d=100)
        gauges = {each.name: each.weight for each in service.view().survey.members}
        assert gauges == {"a": 300, "b": 180, "c": 60, "d": 100}


async def test_member_that_fills_up_gets_less_before_it_is_full_and_more_when_there_is_room_again() -> None:
    async with hubs(a=(30, 300)) as members, serving(config(members)) as service:
        await come_to(service, a=300)
        members["a"].pods = 270
        await come_to(service, a=300 * (0.02 + 0.98 * 0.4))
        assert service.federation.by_name["a"].healthy
        members["a"].pods = 30
        await come_to(service, a=300)


async def test_member_that_fails_its_launches_loses_its_share() -> None:
    async with hubs(a=(0, 300), b=(0, 300)) as members, serving(config(members)) as service:
        await come_to(service, a=300, b=300)
        for number in range(60):
            seen = Seen(b"%08d" % number, "a", True, None, None, End.FAILED, failed=True)
            service._common.learning.tell("a test", LaunchSeen(seen))
        await until(lambda: service.federation.by_name["a"].weight < 60, lambda: weights(service))
        assert service.federation.by_name["a"].breaker.closed
        assert service.federation.by_name["b"].weight == 300


async def test_reserve_makes_a_member_full_for_every_kind_of_weight() -> None:
    async with hubs(a=(11, 60), b=(11, 60), c=(11, 60)) as members:
        kept: dict[str, Any] = {"a": {"reserve": 40}, "b": {"reserve": 40, "weight": 5}}
        async with serving(config(members, **kept)) as service:
            await until(lambda: len(service._reports) == 3, "reports")
            reasons = {each.name: each.reasons for each in service.known().members}
            assert reasons == {"a": ("quota",), "b": ("quota",), "c": ()}
            assert service._reports["a"].details == (
                "11 pods, a headroom of 10 and a reserve of 40 reach the quota of 60",
            )


async def test_number_of_an_operator_holds_until_auto_is_set_again() -> None:
    async with hubs(a=(0, 60)) as members, serving(config(members)) as service:
        await come_to(service, a=60)
        member = service.federation.by_name["a"]
        await service.change("a", None, 7, "ann")
        assert member.weight == 7
        members["a"].pods = 10
        await until(lambda: service._reports["a"].pods["total"] == 10, "a probe")
        assert member.weight == 7
        await service.change("a", None, "auto", "ann")
        assert member.weight == 60
        said = [event.message for event in service.history.events if event.name == "operator.weight"]
        assert said == ["the weight of a was set to 7, from auto", "the weight of a was set to auto, from 7"]


async def test_config_that_is_put_in_force_finds_the_weight_there() -> None:
    async with hubs(a=(0, 60), b=(0, 180)) as members:
        now = config(members, b={"weight": 5})
        async with serving(now, lambda: now) as service:
            await come_to(service, a=60, b=5)
            now = config(members, balancer="random")
            assert await service.reload() == []
            assert weights(service) == [{"a": 60, "b": 180}]
            said = [event.message for event in service.history.events if event.name == "member.weight"]
            assert said == ["the weight of b changed from 5 to auto"]


async def test_all_workers_have_one_weight_and_one_that_starts_later_has_it_at_once() -> None:
    async with hubs(a=(0, 60), b=(0, 180)) as members:
        now = config(members, workers=2, b={"weight": 5})
        async with serving(now, lambda: now) as service:
            await come_to(service, a=60, b=5)
            before = await first_of(service, 2)
            await service.change("b", None, "auto", "ann")
            assert await first_of(service, 2, but=before[0]) == [{"a": 60, "b": 180}] * 2
            doomed = min(each.pid for each in service._planes.processes())
            os.kill(doomed, signal.SIGKILL)
            await until(
                lambda: doomed not in [each.pid for each in service._planes.processes()], "its end", within=30
            )
            assert await first_of(service, 2) == [{"a": 60, "b": 180}] * 2
            # Other workers, and a data plane in this process.
            for workers in 3, 1:
                now = config(members, workers=workers)
                assert await service.reload() == []
                assert await first_of(service, workers) == [{"a": 60, "b": 180}] * workers
            members["a"].pods = 54
            await come_to(service, a=60 * (0.02 + 0.98 * 0.4), b=180)
