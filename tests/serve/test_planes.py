"""Workers that do not turn, seen by the control process, which is this one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from fedproxy.control.channel import OURS, Preamble
from fedproxy.control.messages import (
    AccountPart,
    ConfigRefused,
    FromWorker,
    LaunchesInFlight,
    Ready,
    Stopping,
)
from fedproxy.errors import ChannelError, Fault
from fedproxy.event import EventName
from fedproxy.proxy.explaining import Question
from fedproxy.serve.planes import Common, Stuck, Workers, _Process
from fedproxy.serve.service import Service
from fedproxy.serve.sockets import Sockets
from fedproxy.serve.starting import Starter
from tests.rig import RawClient
from tests.rig.channel import FROM_WORKER
from tests.rig.heard import Heard
from tests.rig.running import patience, until
from tests.rig.service import config_of


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.fixture
async def service(heard: Heard) -> AsyncIterator[Service]:
    config = config_of("http://127.0.0.1:1", workers=2, access_log="off")
    made = Service(config, probe=False, events=heard)
    await made.start()
    yield made
    await made.stop()


def processes(service: Service) -> dict[int, _Process]:
    assert isinstance(service._planes, Workers)
    return {each.pid: each for each in service._planes._processes}


def planes_of(note: Callable[[EventName, str], None], common: Common | None = None) -> Workers:
    """Two workers that were not started."""
    return Workers(2, Sockets(()), common or Common(), note, Starter(note))


async def silent(service: Service, pid: int, seconds: float) -> None:
    """As if a worker that is stopped had been for so long; what it said before that is read first."""
    worker = processes(service)[pid]
    await until(lambda: worker.silent >= 3.0, "its last words are read")
    assert [each.pid for each in service.stuck()] == [pid]
    worker.silent = seconds


@pytest.mark.parametrize(("stopped", "seconds"), [(True, 120), (False, 30)])
async def test_worker_that_has_not_turned_for_too_long_is_replaced(
    service: Service, heard: Heard, monkeypatch: pytest.MonkeyPatch, stopped: bool, seconds: int
) -> None:
    hung, kept = processes(service)
    os.kill(hung, signal.SIGSTOP)
    if not stopped:
        monkeypatch.setattr("fedproxy.serve.planes._is_stopped", lambda pid: False)
    await silent(service, hung, seconds - 0.1)
    await until(
        lambda: hung not in processes(service) and service._planes.alive == 2, "another one in its place"
    )
    assert kept in processes(service)
    assert f"worker {hung} has not turned for {seconds} s and is killed" in heard.said
    assert f"worker {hung} ended with signal 9" in heard.said
    assert service.stuck() == []


async def test_worker_that_somebody_stopped_may_be_let_go_on(service: Service) -> None:
    stopped, _ = before = list(processes(service))
    os.kill(stopped, signal.SIGSTOP)
    await silent(service, stopped, 60.0)
    await until(lambda: processes(service)[stopped].silent > 61.0, "a few more looks")
    os.kill(stopped, signal.SIGCONT)
    await until(lambda: not service.stuck(), "it turns again")
    assert list(processes(service)) == before


async def test_worker_that_is_let_go_on_has_time_to_report(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, _ = before = list(processes(service))
    os.kill(stopped, signal.SIGSTOP)
    await silent(service, stopped, 60.0)
    await until(lambda: processes(service)[stopped].silent > 60.5, "a look while it is stopped")
    # As if it went on, and had not come to its message yet.
    monkeypatch.setattr("fedproxy.serve.planes._is_stopped", lambda pid: False)
    await until(
        lambda: stopped not in processes(service) or processes(service)[stopped].silent > 62.0, "looks"
    )
    os.kill(stopped, signal.SIGCONT)
    await until(lambda: not service.stuck(), "it turns again")
    assert list(processes(service)) == before


async def test_machine_that_slept_charges_no_worker(
    service: Service, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(processes(service))
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return time.monotonic() + 1000 * asked

    monkeypatch.setattr("fedproxy.serve.planes.time", SimpleNamespace(monotonic=clock))
    await until(lambda: asked > 2, "two looks after the sleep")
    assert set(processes(service)) == before
    assert heard.said == []


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda message: type(message).__name__)
def test_every_message_of_a_worker_is_a_sign_of_life(message: FromWorker) -> None:
    planes = planes_of(lambda name, text: None)
    worker = _Process(0)
    worker.silent = 5.0
    planes._on_message(worker, message)
    assert worker.silent == 0.0


def test_what_a_worker_says_is_done() -> None:
    said: list[tuple[EventName, str]] = []
    common = Common()
    planes = planes_of(lambda name, text: said.append((name, text)), common)
    worker = _Process(0)
    planes._on_message(worker, LaunchesInFlight({"a": 3}))
    assert common.elsewhere("another") == LaunchesInFlight({"a": 3})
    planes._on_message(worker, ConfigRefused((Fault("access_log", "is a folder"),)))
    assert said == [(EventName.WORKER_REFUSED, "worker 0 keeps its config: access_log: is a folder")]
    planes._on_message(worker, AccountPart(0, []))
    assert not (worker.ready.is_set() or worker.leaving.is_set())
    planes._on_message(worker, Ready())
    assert worker.ready.is_set()
    assert said[1:] == [(EventName.WORKER_START, "worker 0 serves")]
    planes._on_message(worker, Stopping())
    assert worker.leaving.is_set()


async def test_worker_that_is_not_understood_is_replaced_and_not_killed(
    service: Service, heard: Heard
) -> None:
    broken, kept = processes(service)
    worker = processes(service)[broken]
    # As if it had sent that.
    worker.channel.data_received(b"\0\0\0\1x")
    await until(lambda: broken not in processes(service), "its end")
    assert worker.process.returncode == 0
    assert kept in processes(service)
    assert service._planes.alive == 2
    (line,) = heard.said
    assert line.startswith(
        f"worker {broken} has to end: the worker sent a message that cannot be read: UnpicklingError"
    )


async def test_worker_that_is_not_understood_is_neither_silent_nor_asked() -> None:
    said: list[tuple[EventName, str]] = []
    planes = planes_of(lambda name, text: said.append((name, text)))
    worker, other = _Process(0), _Process(1)
    for each in (worker, other):
        each.ready.set()
        planes._processes.add(each)
    worker.pid = 12
    planes._on_refused(worker, ChannelError("why"))
    assert worker.leaving.is_set()
    assert said == [(EventName.WORKER_REPLACED, "worker 12 has to end: why")]
    listening = asyncio.create_task(planes._listen())
    await until(lambda: other.silent > 0, "a look at who is silent")
    listening.cancel()
    assert worker.silent == 0
    planes._processes.remove(other)
    async with patience():
        await planes.ask()


# An upgrade in place: this process is of the release before, what it starts is of the next one

BEFORE = Preamble(OURS.protocol, "0.0.1")
ADVICE = "fedproxy was changed while it ran; restart it"


def cannot_serve(line: str) -> bool:
    """One that has left before it was sent its config could not be heard: it has said why by itself."""
    told = re.escape(f"the worker is {OURS}, the control process is {BEFORE}: {ADVICE}")
    return (
        re.fullmatch(rf"worker \d+ (cannot serve: {told}|ended with status 1 at its start)", line) is not None
    )


async def test_worker_of_another_release_is_tried_ever_more_seldom_while_the_others_serve(
    service: Service, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, kept = processes(service)
    with monkeypatch.context() as patch:
        patch.setattr("fedproxy.control.channel.OURS", BEFORE)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: "starting the worker again in 1 s" in heard.said, "two starts that failed")
        for _ in range(10):
            client = await RawClient.connect(service.addresses[0])
            assert (await client.ask(b"GET /active_hosts HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200
            await client.leave()
    ended, first, short, second, longer = heard.said[:5]
    assert ended == f"worker {killed} ended with signal 9"
    assert cannot_serve(first) and cannot_serve(second)
    assert (short, longer) == ("starting the worker again in 0.5 s", "starting the worker again in 1 s")
    await until(lambda: service._planes.alive == 2, "a worker that is understood")
    assert kept in processes(service)


def to_be_three(heard: Heard) -> Service:
    """An edge of two workers whose config says three when it is read again."""
    config = config_of("http://127.0.0.1:1", workers=2, access_log="off")
    return Service(config, reread=lambda: config.model_copy(update={"workers": 3}), probe=False, events=heard)


async def test_reload_that_needs_workers_of_another_release_changes_nothing(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = to_be_three(heard)
    await service.start()
    try:
        before = set(processes(service))
        monkeypatch.setattr("fedproxy.control.channel.OURS", BEFORE)
        (fault,) = await service.reload()
        assert cannot_serve(fault.message)
        assert set(processes(service)) == before
        assert service._planes.alive == 2
    finally:
        await service.stop()


async def test_new_worker_that_dies_at_its_start_leaves_the_old_ones_in_force(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = to_be_three(heard)
    await service.start()
    planes, before = service._planes, set(service._starter.children() or ())
    take = Workers._on_message

    doomed: list[_Process] = []

    def hold_back(self: Workers, worker: _Process, message: FromWorker) -> None:
        if isinstance(message, Ready) and worker.slot == 2:
            doomed.append(worker)
        else:
            take(self, worker, message)

    monkeypatch.setattr(Workers, "_on_message", hold_back)
    reloading = asyncio.ensure_future(service.reload())
    await until(lambda: doomed, "the third new worker starts")
    os.kill(doomed[0].pid, signal.SIGKILL)
    (fault,) = await reloading
    assert fault.message == f"worker {doomed[0].pid} ended with signal 9 at its start"
    await until(lambda: service._starter.children() == before, "the other new workers end")
    assert service._planes is planes
    assert planes.alive == 2
    await service.stop()


def test_worker_that_starts_or_drains_is_not_said_to_be_stuck() -> None:
    planes = planes_of(lambda name, text: None)
    starting, serving, well, draining = (_Process(slot) for slot in range(4))
    for pid, each in enumerate((starting, serving, well, draining)):
        each.pid, each.silent = pid, 0.5 if each is well else 50.0
        if each is not starting:
            each.ready.set()
        planes._processes.add(each)
    draining.draining = True
    assert planes.stuck() == [Stuck(1, 50.0)]


async def test_probes_at_one_time_are_one_question_to_the_workers(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    ask = service._planes.ask

    async def count() -> None:
        nonlocal asked
        asked += 1
        await ask()

    monkeypatch.setattr(service._planes, "ask", count)
    surveys = [service.glance() for _ in range(50)]
    for survey in [await each for each in [service._do(each) for each in surveys]]:
        assert survey.workers == 2
    assert asked == 1


async def test_worker_explains_a_request(service: Service) -> None:
    found = json.loads(await service.explain(Question("/v2/gh/a/b/HEAD", cookie="a")) or "")
    assert (found["member"], found["source"], found["key"]) == ("a", "cookie", "/build/gh/a/b")
    assert await service.explain(Question("no slash")) is None


async def test_explanation_comes_from_a_worker_that_turns(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedproxy.serve.planes._TO_ANSWER", 0.05)
    one, other = processes(service)
    for each in (one, other):
        os.kill(each, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            await service.explain(Question("/"))
        os.kill(other, signal.SIGCONT)
        monkeypatch.setattr("fedproxy.serve.planes._TO_ANSWER", 1.0)
        assert json.loads(await service.explain(Question("/")) or "")["member"] == "a"
    finally:
        os.kill(one, signal.SIGCONT)
        os.kill(other, signal.SIGCONT)


async def test_edge_that_drains_explains_nothing(heard: Heard) -> None:
    service = Service(config_of("http://127.0.0.1:1", access_log="off"), probe=False, events=heard)
    await service.start()
    assert await service.explain(Question("/")) is not None
    await service.stop()
    with pytest.raises(TimeoutError):
        await service.explain(Question("/"))
