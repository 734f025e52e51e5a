"""A new member's way to its share: through what launches teach, restarts, operators and several edges."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from fedproxy.control import state as operators
from fedproxy.control.messages import LaunchSeen
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.event import EventName
from fedproxy.serve.service import Service
from tests.rig import until
from tests.rig.redis import REDIS, redis
from tests.rig.service import config_of
from tests.serve.test_auto_weight import config, hubs, serving, weights
from tests.serve.test_fleet import edges

RAMP: dict[str, Any] = {"weight": "auto", "ramp": {"share": "50%", "over": "1s"}}
SLOW: dict[str, Any] = {"weight": "auto", "ramp": {"share": "50%", "over": "7d"}}
WHO = "kim 127.0.0.1"


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.serve.service._OFTEN", 0.15)


def launches(service: Service, name: str, ready: int = 0, failed: int = 0) -> None:
    for number in range(ready + failed):
        good = number < ready
        end = End.READY if good else End.FAILED
        seen = Seen(b"%08d" % number, name, True, None, 1.0 if good else None, end, failed=not good)
        service._common.learning.tell("a test", LaunchSeen(seen))


def progress(service: Service, name: str = "b") -> float:
    ramp = service.ramp(name)
    return ramp.progress if ramp is not None else -1.0


def told(service: Service, event: EventName) -> list[str]:
    return [each.message for each in service.history.events if each.name is event]


async def test_member_comes_to_its_share_as_its_launches_succeed() -> None:
    async with (
        hubs(a=(0, 60), b=(0, 60)) as members,
        serving(config(members, a={"weight": 95}, b=RAMP)) as service,
    ):
        await until(lambda: weights(service)[0].get("b") == 2.44, lambda: weights(service))
        assert told(service, EventName.RAMP_ROSE) == []
        for _ in range(400):
            launches(service, "b", ready=3)
            if progress(service) == 1.0:
                break
            await asyncio.sleep(0.02)
        await until(lambda: weights(service)[0]["b"] == 95, lambda: weights(service))
        rose = told(service, EventName.RAMP_ROSE)
        assert len(rose) == 19
        assert rose[0].startswith("b gets 5.0% of new visitors, on its way to 50%: ")
        assert rose[-1].startswith("b has come to its share, 50.0% of new visitors: ")
        # What others get counts: the share stays.
        await service.change("a", None, 9, WHO)
        await until(lambda: weights(service)[0]["b"] == 9, lambda: weights(service))


async def test_member_that_fails_launches_falls_and_says_why_and_a_restart_keeps_it(tmp_path: Path) -> None:
    async with hubs(a=(0, 60), b=(0, 60)) as members:
        keys: dict[str, Any] = {"a": {"weight": 50}, "b": SLOW}
        kept = config(members, admin={"address": "127.0.0.1:0", "state": str(tmp_path / "state")}, **keys)
        async with serving(kept) as service:
            await until(lambda: "b" in service._reports, "a probe")
            async with service._changing:
                await service._set_override("b", lambda: operators.set_ramp(service._state, "b", 0.8), None)
            assert progress(service) == 0.8
            launches(service, "b", ready=2, failed=3)
            await until(lambda: progress(service) == 0.4, "the fall")
            assert told(service, EventName.RAMP_FELL) == [
                "b gets 20.0% of new visitors, on its way to 50%: 3 of 5 launches failed"
            ]
            assert service.ramp("b") == (0.5, 0.4, "3 of 5 launches failed")
            assert service.view().ramps == {"b": 0.4}
            assert service.set_by("b") is None
        async with serving(kept) as service:
            assert progress(service) == 0.4
            await until(lambda: weights(service)[0].get("b") == 12.5, lambda: weights(service))


async def test_operators_stop_a_ramp_by_a_weight_and_by_draining() -> None:
    async with (
        hubs(a=(0, 60), b=(0, 60)) as members,
        serving(config(members, a={"weight": 95}, b=SLOW)) as service,
    ):
        await until(lambda: weights(service)[0].get("b") == 2.44, lambda: weights(service))
        await service.change("b", None, 30, WHO)
        assert service.ramp("b") is None
        assert weights(service) == [{"a": 95, "b": 30}]
        # What is in force is a valid config.
        assert service.config.members["b"].ramp is None
        await service.change("b", None, "auto", WHO)
        assert progress(service) == 0.05
        assert weights(service) == [{"a": 95, "b": 2.44}]
        await service.change("b", Intent.DRAIN, None, WHO)
        launches(service, "b", failed=9)
        await until(lambda: service._ramps._ramps["b"].failed == 0, "a look")
        assert (told(service, EventName.RAMP_FELL), told(service, EventName.RAMP_HELD)) == ([], [])
        # Another one of the name begins anew.
        await service.leave("b", WHO)
        assert service.ramp("b") is None


async def test_full_disk_holds_a_ramp_and_keeps_nobody_from_falling(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: operators.State) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with (
        hubs(a=(0, 60), b=(0, 60)) as members,
        serving(config(members, a={"weight": 95}, b=SLOW)) as service,
    ):
        await until(lambda: "b" in service._reports, "a probe")
        async with service._changing:
            await service._set_override("b", lambda: operators.set_ramp(service._state, "b", 0.8), None)
        monkeypatch.setattr(service, "_save_state", full)
        launches(service, "b", ready=9)
        service._ramps._ramps["b"]._since -= 86_400.0
        await until(lambda: told(service, EventName.RAMP_HELD), "the rise that failed")
        for _ in range(5):
            service._look_at_ramps(service.known())
            async with service._changing:
                pass
        assert told(service, EventName.RAMP_HELD) == [
            "b gets no more visitors yet: [Errno 28] No space left on device"
        ]
        launches(service, "b", failed=9)
        await until(lambda: progress(service) == 0.4, "the fall")
        assert told(service, EventName.STATE_UNUSABLE) == [
            "how far the ramp of b has come is not kept: [Errno 28] No space left on device"
        ]
        assert len(told(service, EventName.RAMP_FELL)) == 1


async def test_two_workers_have_the_weight_of_the_ramp_and_a_reload_keeps_it() -> None:
    async with hubs(a=(0, 60), b=(0, 60)) as members:
        now = config(members, workers=2, a={"weight": 95}, b=RAMP)
        async with serving(now, lambda: now) as service:
            wanted = {"a": 95, "b": 2.44}
            await until(lambda: weights(service) == [wanted] * 2, lambda: weights(service))
            now = config(members, workers=2, balancer="random", a={"weight": 95}, b=RAMP)
            assert await service.reload() == []
            await service.survey()
            assert weights(service) == [wanted] * 2


@REDIS
async def test_edges_of_a_fleet_move_a_member_once_and_together() -> None:
    async with redis() as server, hubs(a=(0, 60), b=(0, 60)) as members:
        over = {"a": {"weight": 95}, "b": SLOW}
        settings = {name: {"url": hub.url, "weight": "auto", **over[name]} for name, hub in members.items()}
        common: dict[str, Any] = {"members": settings, "store": server.url, "access_log": "off"}
        one, two = (config_of("", edge_name=name, **common) for name in ("one", "two"))
        async with edges(one, two) as (first, second):
            await until(lambda: progress(first) == progress(second) == 0.05, "the ramp")
            launches(first, "b", ready=30)
            # Time passes: the next step is due at both.
            for each in (first, second):
                each._ramps._ramps["b"]._since -= 86_400.0
            launches(second, "b", ready=30)
            await until(lambda: progress(first) == progress(second) == 0.1, "the rise")
            await until(lambda: told(first, EventName.RAMP_ROSE), "the first one's word")
            await until(lambda: told(second, EventName.RAMP_ROSE), "the second one's")
            assert progress(first) == progress(second) == 0.1
            await first.change("b", Intent.DRAIN, None, WHO)
            await until(lambda: told(second, EventName.OPERATOR_DRAIN), "the drain")
            await first.join("b", {"url": settings["b"]["url"], "active": False}, WHO)
            await until(lambda: told(second, EventName.OPERATOR_LEAVE), "the end")
            assert told(second, EventName.OPERATOR_READY) == []
