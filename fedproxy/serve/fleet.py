"""Who serves the visitors: a data plane in this process, or worker processes that are kept alive."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from fedproxy.control.line import (
    Ask,
    Drain,
    Fact,
    Health,
    Launched,
    Launches,
    Leaving,
    Line,
    Moved,
    Put,
    Ready,
    Refused,
    Renew,
    Start,
    Tickets,
    Told,
    Tripped,
)
from fedproxy.decide.counts import EdgeCounts, MemberCounts
from fedproxy.decide.snapshot import Survey
from fedproxy.serve.plane import Plane
from fedproxy.serve.sockets import Sockets

_log = logging.getLogger("fedproxy")

_TO_START = 30.0  # seconds that a worker may take until it accepts
_TO_ANSWER = 1.0  # seconds that a worker may take to answer a question
_LONG_LIVED = 10.0  # seconds after which an end is no sign of a worker that cannot live
_BACK_OFF, _BACK_OFF_MAX = 0.5, 30.0  # seconds before a worker that keeps dying is started again


class StartError(Exception):
    """A worker could not be started."""


class Totals:
    """What was counted by those who are gone: counters do not fall when a worker ends."""

    def __init__(self) -> None:
        self.members: dict[str, MemberCounts] = {}
        self.edge = EdgeCounts()

    def add(self, survey: Survey) -> None:
        """Keeps what a worker counted; what it had open is gone."""
        for member in survey.members:
            self.members.setdefault(member.name, MemberCounts()).add(member.counts)
        self.edge.add(survey.edge)
        self.edge.connections -= survey.edge.connections


class Fleet(Protocol):
    """Those who serve now, or who did and are draining."""

    @property
    def alive(self) -> int:
        """How many accept visitors."""

    async def start(self, start: Put, health: Sequence[Health], tickets: bytes) -> None:
        """Returns when visitors are accepted. Raises StartError or ConfigError, with nothing left behind."""

    def put(self, put: Put) -> None:
        """A config without new listeners. Raises ConfigError if that is known at once."""

    def tell(self, message: Health | Renew | Tickets) -> None:
        """To everybody."""

    async def surveys(self) -> list[Survey]:
        """What each of them sees."""

    async def drain(self, seconds: float) -> None:
        """Accepts nobody any more; returns when all has ended, or after so many seconds."""

    async def close(self) -> None:
        """Cuts what is left."""


class Inside:
    """One data plane in this process."""

    def __init__(
        self, listeners: Callable[[], list[socket.socket]], totals: Totals, log: Callable[[str], None] | None
    ) -> None:
        self.plane = Plane(log)
        self.alive = 0
        self._sockets = listeners
        self._totals = totals
        self._counted = True  # there is nothing yet that the totals lack

    async def start(self, start: Put, health: Sequence[Health], tickets: bytes) -> None:
        """As `Fleet` says."""
        self.plane.set_tickets(tickets)
        await self.plane.start(start, self._sockets(), health)
        self.alive = 1
        self._counted = False

    def put(self, put: Put) -> None:
        """As `Fleet` says."""
        self.plane.put(put)

    async def listen(self) -> None:
        """Takes over new listeners, and leaves old ones."""
        await self.plane.listen(self._sockets())

    def tell(self, message: Health | Renew | Tickets) -> None:
        """As `Fleet` says."""
        if isinstance(message, Health):
            self.plane.health(message)
        elif isinstance(message, Tickets):
            self.plane.set_tickets(message.secret)
        else:
            self.plane.renew()

    async def surveys(self) -> list[Survey]:
        """As `Fleet` says."""
        return [self.plane.survey()]

    async def drain(self, seconds: float) -> None:
        """As `Fleet` says."""
        self.alive = 0
        await self.plane.drain(seconds)

    async def close(self) -> None:
        """As `Fleet` says."""
        self.alive = 0
        await self.plane.close()
        if not self._counted:
            self._counted = True
            self._totals.add(self.plane.survey())


class _Process:
    """A worker process, from the control process's side."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.ready = asyncio.Event()
        self.cut = asyncio.Event()  # everything it said was read
        self.gone = asyncio.Event()  # the process has ended too
        self.leaving = asyncio.Event()  # it wants to be replaced, or has ended
        self.draining = False
        self.last: Survey | None = None
        self.running: dict[str, int] = {}
        self.started = time.monotonic()
        self.answers: dict[int, asyncio.Future[Survey]] = {}
        self.pid = 0

    process: asyncio.subprocess.Process
    line: Line

    def __repr__(self) -> str:
        return f"<worker {self.slot} pid={self.pid}>"


class Workers:
    """So many worker processes, one for each slot of the sockets."""

    def __init__(self, number: int, sockets: Sockets, totals: Totals) -> None:
        self.number = number
        self._sockets = sockets
        self._totals = totals
        self._processes: set[_Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._watchers: set[asyncio.Task[None]] = set()
        self._health: dict[str, Health] = {}
        self._numbers = count()

    _start: Put
    _tickets: bytes

    @property
    def alive(self) -> int:
        """As `Fleet` says."""
        return sum(each.ready.is_set() and not each.draining for each in self._processes)

    async def start(self, start: Put, health: Sequence[Health], tickets: bytes) -> None:
        """As `Fleet` says."""
        self._start, self._tickets = start, tickets
        self._health = {each.name: each for each in health}
        started = await asyncio.gather(
            *(self._spawn(slot) for slot in range(self.number)), return_exceptions=True
        )
        failed = [each for each in started if isinstance(each, BaseException)]
        if failed:
            await self.close()
            raise failed[0]
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(each)) for each in started if isinstance(each, _Process)]

    def put(self, put: Put) -> None:
        """As `Fleet` says."""
        self._start = put
        self._to_all(put)

    def tell(self, message: Health | Renew | Tickets) -> None:
        """As `Fleet` says."""
        if isinstance(message, Health):
            self._health[message.name] = message
        elif isinstance(message, Tickets):
            self._tickets = message.secret
        self._to_all(message)

    def _to_all(self, message: object) -> None:
        for each in self._processes:
            each.line.send(message)

    # Processes

    async def _spawn(self, slot: int) -> _Process:
        """A worker that accepts. Raises StartError."""
        ours, theirs = socket.socketpair()
        listeners = self._start.config.listen
        descriptors = [sock.fileno() for sock in self._sockets.of(listeners, slot)]
        worker = _Process(slot)
        with theirs:
            worker.line = await Line.open(
                ours, lambda message: self._on_message(worker, message), worker.cut.set
            )
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "fedproxy.serve.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno(), *descriptors],
                stdin=subprocess.DEVNULL,
            )
        worker.pid = worker.process.pid
        self._processes.add(worker)
        watcher = asyncio.get_running_loop().create_task(self._watch(worker))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        start = Start(self._start, tuple(self._health.values()), self._tickets, tuple(descriptors))
        worker.line.send(start)
        await self._wait_for(worker)
        return worker

    async def _wait_for(self, worker: _Process) -> None:
        gone = asyncio.ensure_future(worker.gone.wait())
        ready = asyncio.ensure_future(worker.ready.wait())
        try:
            await asyncio.wait({gone, ready}, timeout=_TO_START, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            ready.cancel()
        if worker.ready.is_set() and not worker.gone.is_set():
            return
        if not worker.gone.is_set():
            worker.process.kill()
            raise StartError(f"worker {worker.pid} did not start in {_TO_START:g} s")
        raise StartError(f"worker {worker.pid} ended with {_said(worker.process.returncode)} at its start")

    async def _watch(self, worker: _Process) -> None:
        """Until the process has ended, and what it said last was read."""
        await worker.process.wait()
        await worker.cut.wait()
        if worker.last is not None:
            self._totals.add(worker.last)
        self._processes.discard(worker)
        worker.leaving.set()
        worker.gone.set()
        for answer in worker.answers.values():
            answer.cancel()
        self._share_launches()

    async def _keep(self, worker: _Process) -> None:
        """Keeps one slot served, for as long as this fleet is not draining."""
        quick = 0
        while True:
            await worker.leaving.wait()
            old = worker
            if old.gone.is_set():
                quick = quick + 1 if time.monotonic() - old.started < _LONG_LIVED else 0
                _log.warning("worker %d ended with %s", old.pid, _said(old.process.returncode))
            worker = await self._successor(old.slot, quick)
            if not old.gone.is_set():
                old.draining = True
                old.line.send(Drain(self._start.config.timeouts.drain))

    async def _successor(self, slot: int, quick: int) -> _Process:
        while True:
            if quick:
                delay = min(_BACK_OFF * 2 ** (quick - 1), _BACK_OFF_MAX)
                _log.warning("starting the worker again in %g s", delay)
                self._sockets.rest(slot)
                await asyncio.sleep(delay)
            try:
                return await self._spawn(slot)
            except (StartError, OSError) as error:
                _log.warning("%s", error)
                quick += 1

    # Messages

    def _on_message(self, worker: _Process, message: object) -> None:
        if isinstance(message, Told):
            worker.last = message.survey
            answer = worker.answers.pop(message.number, None) if message.number is not None else None
            if answer is not None and not answer.done():
                answer.set_result(message.survey)
        elif isinstance(message, Launches):
            worker.running = dict(message.running)
            self._share_launches()
        elif isinstance(message, Tripped | Moved | Launched):
            self._pass_on(message, worker)
        elif isinstance(message, Ready):
            worker.ready.set()
            self._share_launches()
        elif isinstance(message, Leaving):
            worker.leaving.set()
        elif isinstance(message, Refused):
            for fault in message.faults:
                _log.warning("worker %d keeps its config: %s", worker.pid, fault)

    def _pass_on(self, fact: Fact, sender: _Process) -> None:
        for each in self._processes:
            if each is not sender:
                each.line.send_fresh(fact)

    def _share_launches(self) -> None:
        """Tells each worker what all others have in flight."""
        for each in self._processes:
            elsewhere: dict[str, int] = {}
            for other in self._processes:
                if other is not each:
                    for name, running in other.running.items():
                        elsewhere[name] = elsewhere.get(name, 0) + running
            each.line.send_fresh(Launches(elsewhere))

    async def surveys(self) -> list[Survey]:
        """As `Fleet` says. A worker that does not answer in time is shown as it was last."""
        asked = list(self._processes)
        loop = asyncio.get_running_loop()
        answers = []
        for each in asked:
            if each.ready.is_set() and each.line.is_open:
                number = next(self._numbers)
                answer = each.answers[number] = loop.create_future()
                answers.append(answer)
                each.line.send(Ask(number))
        if answers:
            await asyncio.wait(answers, timeout=_TO_ANSWER)
        return [each.last for each in asked if each.last is not None and not each.gone.is_set()]

    # The end

    async def drain(self, seconds: float) -> None:
        """As `Fleet` says."""
        await self._stop_keeping()
        for each in self._processes:
            each.draining = True
            each.line.send(Drain(seconds))
        if self._watchers:
            # A worker cuts what is left by itself; the rest is for one that does not.
            await asyncio.wait(self._watchers, timeout=seconds + 5.0)

    async def close(self) -> None:
        """As `Fleet` says."""
        await self._stop_keeping()
        for each in self._processes:
            each.draining = True
            each.line.send(Drain(0.0))
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=5.0)
        for each in list(self._processes):
            _log.warning("worker %d did not end and is killed", each.pid)
            each.process.kill()
        if self._watchers:
            await asyncio.wait(self._watchers)

    async def _stop_keeping(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()


def _said(status: int | None) -> str:
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"status {status}"
