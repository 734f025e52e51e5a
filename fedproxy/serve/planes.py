"""Who serves the visitors: a data plane in this process, or worker processes that are kept alive."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Protocol, assert_never

from fedproxy.control import hand
from fedproxy.control.channel import ControlChannel, open_to_worker
from fedproxy.control.messages import (
    Account,
    AccountPart,
    ApplyConfig,
    BreakerInDoubt,
    BreakerOpened,
    BuildBegun,
    ConfigRefused,
    Drain,
    Explain,
    Explained,
    Fact,
    FromWorker,
    GetAccount,
    Happened,
    LaunchesInFlight,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    LaunchSlots,
    LaunchSlotWanted,
    Logo,
    MemberHealth,
    MemberServes,
    Notice,
    Ready,
    RenewCertificates,
    ReopenLog,
    SessionsKnown,
    Start,
    Stopping,
    Sync,
    SyncDone,
    TicketSecret,
    ToWorker,
)
from fedproxy.decide.counts import EdgeCounts, MemberCounts
from fedproxy.decide.snapshot import Snapshot, Survey
from fedproxy.errors import ChannelError
from fedproxy.event import Event, EventName
from fedproxy.observe.processes import Running
from fedproxy.proxy.explaining import Question
from fedproxy.serve.learning import Learning
from fedproxy.serve.plane import Plane
from fedproxy.serve.sharing import Sharing, SharingPeer
from fedproxy.serve.sockets import Sockets
from fedproxy.serve.starting import Child, Starter, StartError, said
from fedproxy.tasks import Tasks, cancel

_TO_START = 30.0  # seconds that a worker may take until it accepts
_TO_END = 2.0  # seconds that it may take to end once its control channel is cut
_TO_ANSWER = 1.0  # seconds that a worker may take to answer a question
_LONG_LIVED = 10.0  # seconds after which an end is no sign of a worker that cannot live
_LISTEN = 0.25  # seconds between two looks at who was silent
_SILENT = 3.0  # seconds without a message, of which there is one each second: the worker does not turn
# Seconds after which it is killed, with all its visitors' connections: before an orchestrator kills the whole
# edge because of it. One that was stopped from outside (SIGSTOP, a debugger) has longer: it may be continued.
_GIVE_UP, _GIVE_UP_STOPPED = 30.0, 120.0
_BACK_OFF, _BACK_OFF_MAX = 0.5, 30.0  # seconds before a worker that keeps dying is started again


class Common:
    """What all who serve have in common, those who are draining too.

    on_fact: called with what other edges may want to know; on_running: with the launches in flight, by
    member.

    members, edge: what was counted by those who are gone, as counters do not fall when a worker ends.
    listeners: called when launches in flight have changed. sharing: what they tell each other of sessions;
    learning: and of launches.
    on_trip: called when a breaker has opened. on_event: called with what operators should know; others may
    notice the same.
    """

    on_trip: Callable[[], None] | None = None
    on_event: Callable[[Event], None] | None = None
    on_fact: Callable[[Fact], None] | None = None
    on_running: Callable[[Mapping[str, int]], None] | None = None

    def __init__(self) -> None:
        self.sharing = Sharing(time.time)
        self.learning = Learning(time.time)
        self.members: dict[str, MemberCounts] = {}
        self.edge = EdgeCounts()
        self.listeners: set[Callable[[], None]] = set()
        self._running: dict[Hashable, Mapping[str, int]] = {}

    def run(self, who: Hashable, running: Mapping[str, int]) -> None:
        """So many launches are in flight through `who`, by member."""
        self._running.pop(who, None)
        if running:
            self._running[who] = dict(running)
        for listener in list(self.listeners):
            listener()
        if self.on_running is not None:
            self.on_running(self.elsewhere(None).running)

    def learned(self, fact: Fact) -> None:
        """One of those who serve has learned this."""
        if self.on_fact is not None:
            self.on_fact(fact)

    def elsewhere(self, who: Hashable) -> LaunchesInFlight:
        """The launches in flight through all others."""
        launches = Counter[str]()
        for other, running in self._running.items():
            if other is not who:
                launches.update(running)
        return LaunchesInFlight(dict(launches))

    def tripped(self) -> None:
        """A breaker has opened, somewhere."""
        if self.on_trip is not None:
            self.on_trip()

    def happened(self, event: Event) -> None:
        """Something that operators should know."""
        if self.on_event is not None:
            self.on_event(event)

    def forget(self, known: Container[str]) -> None:
        """Drops what was counted of members that are not known any more."""
        self.members = {name: counts for name, counts in self.members.items() if name in known}

    def add(self, survey: Survey) -> None:
        """Keeps what a worker counted; what it had open is gone."""
        for member in survey.members:
            self.members.setdefault(member.name, MemberCounts()).add(member.counts)
        self.edge.add(survey.edge)
        self.edge.connections -= survey.edge.connections


@dataclass(frozen=True)
class Stuck:
    """A worker that should serve and does not turn: no message from it for so many seconds."""

    pid: int
    seconds: float


class Planes(Protocol):
    """Those who serve now, or who did and are draining."""

    @property
    def alive(self) -> int:
        """How many accept visitors."""

    async def start(self, update: ApplyConfig, health: Sequence[MemberHealth], tickets: bytes) -> None:
        """Returns when visitors are accepted. Raises StartError or ConfigError; close it then."""

    def apply(self, update: ApplyConfig) -> None:
        """A config without new listeners. Raises ConfigError if that is known at once."""

    def tell(self, message: Notice) -> None:
        """To everybody. Raises ConfigError if it is known at once that a log cannot be opened anew."""

    def hear(self, fact: Fact) -> None:
        """What another edge has learned, to everybody."""

    async def look_after(self) -> None:
        """Also accepts on the sockets that are left over, where nobody else does any more."""

    async def ask(self) -> None:
        """Asks each of them what it sees, and waits for the answers, but not long."""

    async def explain(self, question: Question) -> str | None:
        """Why a request would go where it goes, as JSON; None for one that no visitor could make.

        Raises TimeoutError if nobody is there who could say it.
        """

    def surveys(self) -> list[Survey]:
        """What each of them saw when it was asked last."""

    def stuck(self) -> list[Stuck]:
        """The workers that should serve and do not turn."""

    def processes(self) -> list[Running]:
        """The worker processes, those that start or drain too."""

    async def drain(self, seconds: float) -> None:
        """Accepts nobody any more; returns when all has ended, or after so many seconds."""

    async def close(self) -> None:
        """Cuts what is left."""


class Inside:
    """One data plane in this process."""

    def __init__(
        self,
        listeners: Callable[[], list[list[socket.socket]]],
        left_over: Callable[[], list[tuple[int, int, socket.socket]]],
        common: Common,
        log: Callable[[str], None] | None,
    ) -> None:
        self.plane = Plane(log, self._on_fact)
        self.alive = 0
        self._sockets = listeners
        self._left_over = left_over
        self._common = common
        self._counted = True  # there is nothing yet that the totals lack

    async def start(self, update: ApplyConfig, health: Sequence[MemberHealth], tickets: bytes) -> None:
        """As `Planes` says."""
        self.plane.set_tickets(tickets)
        self._common.sharing.join(self, SharingPeer(self._on_shared, lambda: True))
        self._common.learning.join(self, self.plane.hear, lambda taught: self.plane.taught(taught.content))
        await self.plane.start(update, self._sockets(), health)
        self.alive = 1
        self._counted = False
        self._common.listeners.add(self._share_launches)
        self._share_launches()

    def _on_fact(self, fact: Fact) -> None:
        self._common.learned(fact)
        match fact:
            case LaunchesInFlight(running):
                self._common.run(self, running)
            case BreakerOpened():
                self._common.tripped()
            case SessionsKnown():
                self._common.sharing.tell(self, fact)
            case BuildBegun() | LaunchSeen():
                self._common.learning.tell(self, fact)
            case Happened(event):
                self._common.happened(event)
            case BreakerInDoubt() | MemberServes() | LaunchMoved() | LaunchRequested() | LaunchSlotWanted():
                pass  # for other workers, and there are none
            case _:
                assert_never(fact)

    def _on_shared(self, message: SessionsKnown | Sync | SyncDone) -> None:
        match message:
            case SessionsKnown():
                self.plane.hear(message)
            case Sync(number):
                self._common.sharing.answered(self, SyncDone(number))
            case SyncDone():
                pass  # it does not ask
            case _:
                assert_never(message)

    def _share_launches(self) -> None:
        self.plane.hear(self._common.elsewhere(self))

    def apply(self, update: ApplyConfig) -> None:
        """As `Planes` says."""
        self.plane.apply(update)

    async def move(self, update: ApplyConfig) -> None:
        """A config with other listeners. Raises ConfigError or OSError, with nothing changed."""
        sockets = self._sockets()
        before, self.plane.config = self.plane.config, update.config
        try:
            await self.plane.listen(sockets)
        except BaseException:
            self.plane.config = before
            raise
        self.plane.apply(update)

    def tell(self, message: Notice) -> None:
        """As `Planes` says."""
        match message:
            case MemberHealth():
                self.plane.health(message)
            case LaunchSlots(limits):
                self.plane.set_slots(limits)
            case TicketSecret(secret):
                self.plane.set_tickets(secret)
            case Logo():
                self.plane.set_logo(message)
            case ReopenLog():
                self.plane.reopen_log()
            case RenewCertificates():
                self.plane.renew()
            case _:
                assert_never(message)

    def hear(self, fact: Fact) -> None:
        """As `Planes` says."""
        self.plane.hear(fact)

    async def look_after(self) -> None:
        """As `Planes` says."""
        for slot, at, sock in self._left_over():
            await self.plane.borrow(slot, at, sock.dup())

    async def ask(self) -> None:
        """As `Planes` says; it is always up to date."""

    async def explain(self, question: Question) -> str | None:
        """As `Planes` says."""
        if not self.alive:
            raise TimeoutError
        return self.plane.explain(question)

    def surveys(self) -> list[Survey]:
        """As `Planes` says."""
        return [] if self._counted else [self.plane.survey()]

    def stuck(self) -> list[Stuck]:
        """As `Planes` says. If this process did not turn, there would be no answer at all."""
        return []

    def processes(self) -> list[Running]:
        """As `Planes` says: none but this one serves."""
        return []

    async def drain(self, seconds: float) -> None:
        """As `Planes` says."""
        self.alive = 0
        await self.plane.drain(seconds)

    async def close(self) -> None:
        """As `Planes` says."""
        self.alive = 0
        self._common.sharing.leave(self)
        self._common.learning.leave(self)
        await self.plane.close()
        if not self._counted:
            self._counted = True
            self._common.listeners.discard(self._share_launches)
            self._common.run(self, {})
            self._common.add(self.plane.survey())


class _Process:
    """A worker process, from the control process's side."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.ready = asyncio.Event()
        self.cut = asyncio.Event()  # everything it said was read
        self.gone = asyncio.Event()  # the process has ended too
        self.refused = asyncio.Event()  # it is not understood; `error` says why
        self.error: ChannelError | None = None
        self.leaving = asyncio.Event()  # it wants to be replaced, or has ended
        self.draining = False
        self.last: Survey | None = None
        self.silent = 0.0  # seconds without a message, while this process listened ...
        self.excused = 0.0  # ... of which it was stopped for so many: once continued, it has time to report
        self.started = time.monotonic()
        self.parts: list[Snapshot] = []  # of the account that is being told
        self.answers: dict[int, asyncio.Future[None]] = {}
        self.explained: dict[int, asyncio.Future[str | None]] = {}
        self.pid = 0

    process: Child
    channel: ControlChannel[ToWorker, FromWorker]
    hand: socket.socket

    def __repr__(self) -> str:
        return f"<worker {self.slot} pid={self.pid}>"

    @property
    def turns(self) -> bool:
        """Whether it answers at the moment, as far as that is known."""
        # One that starts too: it accepts before this process hears of it.
        return self.channel.is_open and self.silent < _SILENT and not self.refused.is_set()


class Workers:
    """So many worker processes, one for each slot of the sockets. `note` takes what operators should know."""

    def __init__(
        self,
        number: int,
        sockets: Sockets,
        common: Common,
        note: Callable[[EventName, str], None],
        starter: Starter,
    ) -> None:
        self.number = number
        self._starter = starter
        self._sockets = sockets
        self._common = common
        self._note = note
        self._processes: set[_Process] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._watchers = Tasks()
        self._health: dict[str, MemberHealth] = {}
        self._slots: LaunchSlots | None = None
        self._logos: dict[str, Logo] = {}
        self._numbers = count()
        self._lent: set[int] = set()  # slots without a worker: the others accept there

    _update: ApplyConfig
    _tickets: bytes

    @property
    def alive(self) -> int:
        """As `Planes` says."""
        return len(self._serving())

    async def start(self, update: ApplyConfig, health: Sequence[MemberHealth], tickets: bytes) -> None:
        """As `Planes` says."""
        self._start, self._tickets = update, tickets
        self._health = {each.name: each for each in health}
        self._common.listeners.add(self._share_launches)
        started = await asyncio.gather(
            *(self._spawn(slot) for slot in range(self.number)), return_exceptions=True
        )
        failed = [each for each in started if isinstance(each, BaseException)]
        if failed:
            raise failed[0]
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(each)) for each in started if isinstance(each, _Process)]
        self._keepers.append(loop.create_task(self._listen()))

    def apply(self, update: ApplyConfig) -> None:
        """As `Planes` says."""
        self._start = update
        self._health = {
            name: word for name, word in self._health.items() if name in update.config.active_members
        }
        self._logos = {url: logo for url, logo in self._logos.items() if url in update.config.logos}
        self._to_all(update)

    def tell(self, message: Notice) -> None:
        """As `Planes` says."""
        match message:
            case MemberHealth(name):
                self._health[name] = message
            case LaunchSlots():
                self._slots = message
            case TicketSecret(secret):
                self._tickets = secret
            case Logo(url):
                self._logos[url] = message
            case RenewCertificates() | ReopenLog():
                pass  # a worker that is started later does that at its start
            case _:
                assert_never(message)
        self._to_all(message)

    def hear(self, fact: Fact) -> None:
        """As `Planes` says."""
        for each in self._processes:
            each.channel.send_fresh(fact)

    def _to_all(self, message: ToWorker) -> None:
        for each in self._processes:
            each.channel.send(message)

    # Processes

    async def _spawn(self, slot: int) -> _Process:
        """A worker that accepts. Raises StartError."""
        listeners = self._start.config.listen
        descriptors = tuple(
            tuple(sock.fileno() for sock in own) for own in self._sockets.of(listeners, slot, self.number)
        )
        worker = _Process(slot)
        ours, theirs = socket.socketpair()
        worker.hand, their_hand = hand.pair()
        given = tuple(self._sockets.are_given(listeners))
        with theirs, their_hand:
            worker.channel = await open_to_worker(
                ours,
                lambda message: self._on_message(worker, message),
                lambda error: self._on_refused(worker, error),
                worker.cut.set,
            )
            try:
                worker.process = await self._starter.start(
                    theirs.fileno(),
                    their_hand.fileno(),
                    [*chain.from_iterable(descriptors)],
                    self._start.config.log,
                )
            except BaseException:
                worker.channel.close()
                worker.hand.close()
                raise
        worker.pid = worker.process.pid
        self._processes.add(worker)
        self._watchers.start(self._watch(worker))
        # Before the first message, so that no visitor comes before what is known.
        self._common.sharing.join(worker, SharingPeer(worker.channel.send, lambda: worker.turns))
        start = Start(self._start, tuple(self._health.values()), self._tickets, descriptors, given)
        worker.channel.send(start)
        if self._slots is not None:
            worker.channel.send(self._slots)
        for logo in self._logos.values():
            worker.channel.send(logo)
        await self._wait_for(worker)
        return worker

    async def _wait_for(self, worker: _Process) -> None:
        events = (worker.gone, worker.ready, worker.refused, worker.cut)
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, timeout=_TO_START, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if worker.ready.is_set() and not worker.gone.is_set():
            return
        cut = worker.cut.is_set()
        if cut and not worker.gone.is_set():
            # It ends by itself as a rule, and says why.
            with suppress(TimeoutError):
                async with asyncio.timeout(_TO_END):
                    await worker.gone.wait()
        if not worker.gone.is_set():
            with suppress(ProcessLookupError):
                worker.process.kill()
        if worker.error is not None:
            raise StartError(f"worker {worker.pid} cannot serve: {worker.error}")
        if not worker.gone.is_set():
            how = "lost its control channel" if cut else f"did not start in {_TO_START:g} s"
            raise StartError(f"worker {worker.pid} {how}")
        raise StartError(f"worker {worker.pid} ended with {said(worker.process.returncode)} at its start")

    async def _watch(self, worker: _Process) -> None:
        """Until the process has ended, and what it said last was read."""
        await worker.process.wait()
        await worker.cut.wait()
        if worker.last is not None:
            self._common.add(worker.last)
        self._processes.discard(worker)
        worker.leaving.set()
        worker.gone.set()
        for answer in worker.answers.values():
            answer.cancel()
        for explained in worker.explained.values():
            explained.cancel()
        self._common.run(worker, {})
        self._common.sharing.leave(worker)
        self._common.learning.leave(worker)
        worker.hand.close()
        if not worker.draining:
            self._lend(worker.slot)

    def _lend(self, slot: int) -> None:
        """No worker accepts in this slot, so the others serve the visitors who wait there."""
        self._lent.add(slot)
        for each in self._serving():
            self._hand(each, slot)

    def _take_back(self, slot: int) -> None:
        """A worker accepts in this slot again."""
        if slot in self._lent:
            self._lent.discard(slot)
            for each in self._serving():
                # One that misses this goes on accepting there beside the owner, which does no harm.
                hand.give(each.hand, [slot, None])

    def _hand(self, worker: _Process, slot: int) -> None:
        for at, sock in self._sockets.own(self._start.config.listen, slot):
            hand.give(worker.hand, [slot, at], [sock])

    def _serving(self) -> list[_Process]:
        return [each for each in self._processes if each.ready.is_set() and not each.draining]

    async def look_after(self) -> None:
        """As `Planes` says."""
        for slot in self._sockets.left_over(self._start.config.listen, self.number):
            for each in self._serving():
                self._hand(each, slot)

    async def _keep(self, worker: _Process) -> None:
        """Keeps one slot served, for as long as these are not draining."""
        quick = 0
        while True:
            await worker.leaving.wait()
            old = worker
            quick = quick + 1 if old.gone.is_set() and time.monotonic() - old.started < _LONG_LIVED else 0
            if old.gone.is_set():
                text = f"worker {old.pid} ended with {said(old.process.returncode)}"
                self._note(EventName.WORKER_END, text)
            worker = await self._successor(old.slot, quick)
            if not old.gone.is_set():
                old.draining = True
                old.channel.send(Drain(self._start.config.timeouts.drain))

    async def _listen(self) -> None:
        """Notes which workers are silent, and kills those that are for too long; `_keep` replaces them."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(_LISTEN)
            # Silence says nothing about a time in which this process slept or was busy.
            now = time.monotonic()
            passed, before = min(now - before, 2 * _LISTEN), now
            for each in self._processes:
                # What is not read of a worker that is not understood is no silence.
                if each.ready.is_set() and not (each.gone.is_set() or each.refused.is_set()):
                    each.silent += passed
                    if each.silent >= _SILENT and _is_stopped(each.pid):
                        each.excused = each.silent
                    if each.silent - each.excused >= _GIVE_UP or each.silent >= _GIVE_UP_STOPPED:
                        seconds, each.silent, each.excused = each.silent, 0.0, 0.0
                        with suppress(ProcessLookupError):
                            each.process.kill()
                        text = f"worker {each.pid} has not turned for {seconds:.0f} s and is killed"
                        self._note(EventName.WORKER_KILLED, text)

    async def _successor(self, slot: int, quick: int) -> _Process:
        while True:
            if quick > 1:
                delay = min(_BACK_OFF * 2 ** min(quick - 2, 10), _BACK_OFF_MAX)
                self._note(EventName.WORKER_RETRY, f"starting the worker again in {delay:g} s")
                await asyncio.sleep(delay)
            try:
                return await self._spawn(slot)
            except (StartError, OSError) as error:
                self._note(EventName.WORKER_FAILED, str(error))
                quick += 1

    # Messages

    def _on_message(self, worker: _Process, message: FromWorker) -> None:
        worker.silent = worker.excused = 0.0
        if isinstance(message, Fact):
            self._common.learned(message)
        match message:
            case AccountPart(at, members):
                worker.parts[at:] = members
            case Account():
                self._on_account(worker, message)
            case Explained(number, text):
                explained = worker.explained.get(number)
                if explained is not None and not explained.done():
                    explained.set_result(text)
            case LaunchesInFlight(running):
                self._common.run(worker, running)
            case BreakerOpened():
                self._pass_on(message, worker)
                self._common.tripped()
            case BreakerInDoubt() | MemberServes() | LaunchMoved() | LaunchRequested():
                self._pass_on(message, worker)
            case LaunchSlotWanted():
                pass  # for the store of the fleet
            case SessionsKnown():
                self._common.sharing.tell(worker, message)
            case BuildBegun() | LaunchSeen():
                self._common.learning.tell(worker, message)
            case Sync():
                self._common.sharing.ask(worker, message)
            case SyncDone():
                self._common.sharing.answered(worker, message)
            case Happened(event):
                self._common.happened(event)
            case Ready():
                self._take_back(worker.slot)
                worker.ready.set()
                # Not before: while it starts it reads nothing, and this is much.
                self._common.learning.join(
                    worker,
                    lambda fact: worker.channel.send_fresh(fact),
                    lambda taught: worker.channel.send(taught),
                )
                self._note(EventName.WORKER_START, f"worker {worker.pid} serves")
                for slot in self._lent:
                    self._hand(worker, slot)
                self._share_launches()
            case Stopping():
                worker.leaving.set()
            case ConfigRefused(faults):
                for fault in faults:
                    text = f"worker {worker.pid} keeps its config: {fault}"
                    self._note(EventName.WORKER_REFUSED, text)
            case _:
                assert_never(message)

    def _on_account(self, worker: _Process, account: Account) -> None:
        before, worker.parts = worker.parts[: account.after], []
        worker.last = replace(account.survey, members=[*before, *account.survey.members])
        answer = worker.answers.pop(account.number, None) if account.number is not None else None
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _on_refused(self, worker: _Process, error: ChannelError) -> None:
        """What it says is not understood: another one takes its place, and it drains."""
        worker.error = error
        worker.refused.set()
        if worker.ready.is_set():
            self._note(EventName.WORKER_REPLACED, f"worker {worker.pid} has to end: {error}")
            worker.leaving.set()

    def _pass_on(self, fact: Fact, sender: _Process) -> None:
        for each in self._processes:
            if each is not sender:
                each.channel.send_fresh(fact)

    def _share_launches(self) -> None:
        """Tells each worker what all others have in flight."""
        for each in self._processes:
            each.channel.send_fresh(self._common.elsewhere(each))

    async def ask(self) -> None:
        """As `Planes` says."""
        number = next(self._numbers)
        asked = [
            each
            for each in self._processes
            if each.ready.is_set() and not each.refused.is_set() and each.channel.is_open
        ]
        answers = []
        for each in asked:
            answer = each.answers[number] = asyncio.get_running_loop().create_future()
            if each.silent < _SILENT:
                answers.append(answer)
            each.channel.send(GetAccount(number))
        if answers:
            await asyncio.wait(answers, timeout=_TO_ANSWER)
        for each in asked:
            each.answers.pop(number, None)

    async def explain(self, question: Question) -> str | None:
        """As `Planes` says. The first worker that answers does: all have the same config."""
        for each in self._serving():
            if not each.turns:
                continue
            number = next(self._numbers)
            asked: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            each.explained[number] = asked
            told = Explain(
                number, question.target, question.host, question.cookie, question.accept, question.client
            )
            each.channel.send(told)
            await asyncio.wait([asked], timeout=_TO_ANSWER)
            each.explained.pop(number, None)
            if asked.done() and not asked.cancelled():
                return asked.result()
        raise TimeoutError

    def surveys(self) -> list[Survey]:
        """As `Planes` says. A worker that did not answer in time is shown as it was before."""
        return [each.last for each in self._processes if each.last is not None]

    def stuck(self) -> list[Stuck]:
        """As `Planes` says. Workers that start or drain are not meant to serve."""
        return [
            Stuck(each.pid, each.silent)
            for each in sorted(self._processes, key=lambda each: each.pid)
            if each.ready.is_set() and not each.draining and each.silent >= _SILENT
        ]

    def processes(self) -> list[Running]:
        """As `Planes` says."""
        return [
            Running("worker", each.pid, each.slot, each.last.lag if each.last is not None else 0.0)
            for each in sorted(self._processes, key=lambda each: each.slot)
        ]

    # The end

    async def drain(self, seconds: float) -> None:
        """As `Planes` says."""
        await self._stop_keeping()
        for each in self._processes:
            each.draining = True
            each.channel.send(Drain(seconds))
        # A worker cuts what is left by itself; the rest is for one that does not.
        await self._watchers.wait(seconds + 5.0)

    async def close(self) -> None:
        """As `Planes` says."""
        await self._stop_keeping()
        for each in self._processes:
            each.draining = True
            each.channel.send(Drain(0.0))
        await self._watchers.wait(5.0)
        for each in list(self._processes):
            each.process.kill()
            self._note(EventName.WORKER_KILLED, f"worker {each.pid} did not end and is killed")
        # One that is blocked in a disk operation cannot even be killed.
        await self._watchers.wait(5.0)
        self._common.listeners.discard(self._share_launches)

    async def _stop_keeping(self) -> None:
        await cancel(self._keepers)
        self._keepers.clear()


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False
