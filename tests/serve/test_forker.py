"""The process that workers are forked from, and the workers that come from it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fedproxy.control import hand
from fedproxy.control.channel import OURS, Preamble
from fedproxy.serve import starting
from fedproxy.serve.planes import Workers
from fedproxy.serve.service import Service
from fedproxy.serve.starting import Child, Forked, Starter, StartError
from tests.rig.heard import Heard
from tests.rig.running import GET, Running, patience, running, until
from tests.rig.service import config_of

KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
TO_ALL = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
BEFORE = Preamble(OURS.protocol, "0.0.1")


# -- in front of visitors


def forker_of(edge: Running) -> int:
    return edge.program.forkers()[0]


def opened(pid: int) -> set[str]:
    """What a process has open that it may share with nobody."""
    links = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    common = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
    return {link for link in links - common if not link.startswith("anon_inode:")}


def of_status(pid: int, name: str) -> int:
    """The set of signals that the kernel shows by this name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1], 16)


def mask(*signals: signal.Signals) -> int:
    return sum(1 << (number - 1) for number in signals)


@pytest.mark.no_cover
async def test_killed_forker_takes_nobody_along_and_the_next_worker_comes_from_another(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as edge:
        first, second = workers = edge.program.workers()
        stream = await edge.stream()
        kept = await edge.client()
        assert (await kept.ask(GET)).body == b"ok"
        killed = forker_of(edge)
        os.kill(killed, KILL)
        await edge.program.line(f"process {killed}, which forks workers, ended with signal 9")
        assert edge.program.workers() == workers
        assert (await kept.ask(GET)).body == b"ok"
        for _ in range(10):
            assert (await edge.ask()).body == b"ok"
        await edge.hub.event()
        assert b"building" in await stream.chunk()
        await edge.hub.end()
        # It still hears of the end of those that the killed one forked, and takes its time for nobody.
        os.kill(first, signal.SIGTERM)
        new = set(await edge.replaced([first], kept=[second])) - {second}
        assert forker_of(edge) != killed
        os.kill(second, KILL)
        await edge.program.line(f"worker {second} ended with signal 9")
        await edge.replaced([second], kept=list(new))
        assert (await edge.ask()).body == b"ok"
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0
        assert edge.program.processes() == []


@pytest.mark.no_cover
async def test_worker_has_its_own_descriptors_signals_and_session_and_nobody_elses(tmp_path: Path) -> None:
    async with running(tmp_path, workers=3) as edge:
        first, *kept = edge.program.workers()
        os.kill(first, KILL)
        workers = await edge.replaced([first], kept=kept)
        forker = forker_of(edge)
        found = [opened(pid) for pid in (forker, *workers)]
        assert len(set[str]().union(*found)) == sum(map(len, found))
        assert found[0] == set()
        assert len(list(Path(f"/proc/{forker}/task").iterdir())) == 1
        for worker in workers:
            assert str(Path(f"/proc/{worker}/fd/0").readlink()) == os.devnull
            assert os.getsid(worker) == worker
            parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
            assert int(parent) == edge.program.pid
            assert of_status(worker, "SigBlk") == 0
            ignored = of_status(worker, "SigIgn")
            assert ignored & mask(*TO_ALL) == mask(signal.SIGHUP)
            assert ignored & mask(signal.SIGCHLD) == 0
            caught = mask(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            assert of_status(worker, "SigCgt") & caught == caught


@pytest.mark.no_cover
async def test_signals_for_the_whole_service_leave_the_forker_to_its_control_process(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        forker = forker_of(edge)
        for number in TO_ALL:
            os.kill(forker, number)
        first, second = edge.program.workers()
        os.kill(first, KILL)
        await edge.replaced([first], kept=[second])
        assert forker_of(edge) == forker
        edge.program.signal(KILL)
        await until(lambda: not edge.program.forkers(), "the end of the forker")
        assert (await edge.ask()).body == b"ok"


# -- by itself


@pytest.fixture
async def said() -> list[str]:
    return []


@pytest.fixture
async def starter(said: list[str]) -> AsyncIterator[Starter]:
    made = Starter(lambda name, text: said.append(f"{name}: {text}"))
    yield made
    await made.close()
    async with patience():
        while made.children() != set():
            await asyncio.sleep(0.01)


class Ends:
    """Both ends of what a worker is given."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.hand, self.their_hand = hand.pair()
        self.numbers = self.theirs.fileno(), self.their_hand.fileno()

    def cut(self) -> None:
        """Nobody has the control process's end any more."""
        for each in (self.ours, self.theirs, self.hand, self.their_hand):
            each.close()


@contextmanager
def ends() -> Iterator[Ends]:
    made = Ends()
    try:
        yield made
    finally:
        made.cut()


async def status_of(child: Child) -> int:
    async with patience():
        return await child.wait()


async def test_worker_that_ends_at_its_start_is_heard_of_with_its_status(starter: Starter) -> None:
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        assert isinstance(child, Forked)
        each.theirs.close()
        each.ours.sendall(BEFORE.pack())
        assert (await status_of(child), child.returncode) == (1, 1)
        with pytest.raises(ProcessLookupError):
            child.kill()
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        each.cut()
        assert await status_of(child) == 0
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        child.kill()
        assert await status_of(child) == -KILL
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        child.kill()
        # As if something else in this process waited for all children.
        os.waitpid(child.pid, 0)
        assert await status_of(child) == 255


async def test_worker_gets_more_descriptors_than_fit_into_a_message(starter: Starter) -> None:
    with ends() as each, socket.socket() as sock:
        copies = [sock.dup() for _ in range(300)]
        child = await starter.start(*each.numbers, [copy.fileno() for copy in copies], "text")
        link = Path(f"/proc/self/fd/{sock.fileno()}").readlink()

        def given() -> int:
            """How many of them it has; what it closes or opens meanwhile is none of them."""
            count = 0
            for each in Path(f"/proc/{child.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    count += each.readlink() == link
            return count

        await until(lambda: given() == 300, "all of them and no more")
        for copy in copies:
            copy.close()
        each.cut()
        assert await status_of(child) == 0


async def forker_for(starter: Starter) -> int:
    """The forker, once it has forked one worker."""
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        each.cut()
        await status_of(child)
    (forker,) = starter.children() or set()
    return forker


async def test_forker_without_room_for_descriptors_says_so_and_goes_on(
    starter: Starter, said: list[str]
) -> None:
    forker = await forker_for(starter)
    limits = resource.prlimit(forker, resource.RLIMIT_NOFILE)
    with ends() as each:
        resource.prlimit(forker, resource.RLIMIT_NOFILE, (4, limits[1]))
        with pytest.raises(OSError, match="no worker can be forked: Too many open files") as caught:
            await starter.start(*each.numbers, [], "text")
        assert caught.value.errno == errno.EMFILE
        resource.prlimit(forker, resource.RLIMIT_NOFILE, limits)
        child = await starter.start(*each.numbers, [], "text")
        each.cut()
        assert await status_of(child) == 0
    assert starter.children() == {forker}
    assert said == []


async def test_worker_that_nobody_waits_for_any_more_is_waited_for(starter: Starter) -> None:
    forker = await forker_for(starter)
    os.kill(forker, STOP)
    with ends() as each:
        start = asyncio.create_task(starter.start(*each.numbers, [], "text"))
        await until(lambda: starter._forker is not None and starter._forker.is_asked, "the question")
        start.cancel()
        await asyncio.wait([start])
        assert start.cancelled()
    assert starter.children() is None
    os.kill(forker, CONT)
    await until(lambda: starter.children() == {forker}, "the end of the worker, and that it was reaped")


async def test_start_that_is_cancelled_as_the_worker_is_there_ends(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

    async def begin() -> object:
        return SimpleNamespace(ask=lambda descriptors, log: answer)

    monkeypatch.setattr(starter, "_begin", begin)
    with ends() as each:
        start = asyncio.create_task(starter.start(*each.numbers, [], "text"))
        await asyncio.sleep(0)
        answer.set_result(cast(Child, None))
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start


async def test_forker_killed_before_it_answers_is_an_error_and_the_next_start_takes_another(
    starter: Starter, said: list[str]
) -> None:
    forker = await forker_for(starter)
    os.kill(forker, STOP)
    with ends() as each:
        start = asyncio.create_task(starter.start(*each.numbers, [], "text"))
        await until(lambda: starter._forker is not None and starter._forker.is_asked, "the question")
        os.kill(forker, KILL)
        with pytest.raises(StartError, match="the process that forks workers ended with signal 9"):
            await start
    assert said == [f"forker.end: process {forker}, which forks workers, ended with signal 9"]
    assert await forker_for(starter) != forker


async def test_forker_that_does_not_answer_is_ended(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    forker = await forker_for(starter)
    os.kill(forker, STOP)
    monkeypatch.setattr(starting, "_TO_FORK", 0.01)
    with ends() as each, pytest.raises(StartError, match="no worker was forked in"):
        await starter.start(*each.numbers, [], "text")
    await until(lambda: starter.children() == set(), "its end")


async def test_worker_that_starts_while_the_forker_is_ended_is_a_child_of_this_process(
    starter: Starter,
) -> None:
    await forker_for(starter)
    closing = asyncio.ensure_future(starter.close())
    await asyncio.sleep(0)
    with ends() as each:
        child = await starter.start(*each.numbers, [], "text")
        await closing
        child.kill()
        async with patience():
            assert await child.wait() == -signal.SIGKILL


async def test_stopped_forker_is_ended_with_the_starter(
    starter: Starter, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forker = await forker_for(starter)
    os.kill(forker, STOP)
    monkeypatch.setattr(starting, "_TO_END", 0.01)
    await starter.close()
    await until(lambda: starter.children() == set(), "its end")
    assert said == []


@pytest.mark.parametrize(("program", "error"), [("/nonexistent", OSError), ("/bin/false", StartError)])
async def test_forker_that_cannot_run_is_an_error(
    starter: Starter, monkeypatch: pytest.MonkeyPatch, program: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with ends() as each, pytest.raises(error):
        await starter.start(*each.numbers, [], "text")


async def test_workers_are_programs_where_they_cannot_be_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Heard()
    monkeypatch.delattr(os, "pidfd_open")
    config = config_of("http://127.0.0.1:1", workers=2, access_log="off")
    service = Service(config, probe=False, events=heard)
    await service.start()
    assert isinstance(service._planes, Workers)
    processes = {each.pid: each.process for each in service._planes._processes}
    assert service._starter.children() == set(processes)
    assert not any(isinstance(each, Forked) for each in processes.values())
    killed = min(processes)
    os.kill(killed, KILL)
    await until(lambda: f"worker {killed} ended with signal 9" in heard.said, "its end")
    await until(lambda: service._planes.alive == 2, "another one")
    await service.stop()
    assert service._starter.children() == set()


async def test_process_that_serves_alone_after_a_reload_keeps_no_forker() -> None:
    config = config_of("http://127.0.0.1:1", workers=2, access_log="off")
    service = Service(config, reread=lambda: config.model_copy(update={"workers": 1}), probe=False)
    await service.start()
    assert len(service._starter.children() or ()) == 3
    assert await service.reload() == []
    await until(lambda: service._starter.children() == set(), "the end of all others")
    await service.stop()
