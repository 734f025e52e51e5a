"""A worker process: a data plane, and the control channel to the control process.

It is started with the descriptors of the control channel and of the hand that sockets come from. It never
waits for the control process. When that is gone, it serves on with what it last knew, until a signal ends it,
another control process takes its sockets over (`serve/orphans.py`), or a minute has passed.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # Until `freeze`: hardly anything that imports make is garbage, and the search takes an eighth of them.
    gc.disable()

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, assert_never

import uvloop

from fedproxy.control import hand
from fedproxy.control.channel import ControlChannel, open_to_control
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
    LaunchesTaught,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    LaunchSlots,
    LaunchSlotWanted,
    Logo,
    MemberHealth,
    MemberServes,
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
from fedproxy.errors import ChannelError, ConfigError
from fedproxy.event import Event, EventName
from fedproxy.observe.events import Events, Form, take_over
from fedproxy.proxy.explaining import Question
from fedproxy.serve.orphans import Bell
from fedproxy.serve.plane import Plane
from fedproxy.serve.sockets import Left, silence
from fedproxy.serve.tls import ignore_unreadable_names
from fedproxy.tasks import Tasks, cancel
from fedproxy.web.public import create_public_app

if TYPE_CHECKING:
    from fedproxy.decide.snapshot import Survey

_TELL = 1.0  # seconds between two accounts of what was counted
_AT_A_TIME = 30  # members that are told of in one turn, which takes less than a millisecond
_HANDOVER = 10.0  # seconds that a successor may take to start
_BODIES = 4 * 1024 * 1024
_ALONE = 60.0  # seconds that it serves on without a control process, so that one can be started again
_MOST_WAITING = 1000  # launches that wait until other workers know of them
_LAST_WORDS = 2.0  # seconds that the control process may take to read them


class Worker:
    """What a worker process does, from the first message to the end.

    numbers: of descriptors here, by those that the control process has for them, where they differ. parent:
    the control process, if another process stands in its place at first.
    """

    def __init__(
        self, events: Events, numbers: Mapping[int, int] | None = None, parent: int | None = None
    ) -> None:
        self.plane = Plane(tell=self._tell)
        self.plane.edge.synchronize = self._synchronize
        self._numbers = count()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._events = events
        self._started: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._serving = False
        self._telling = asyncio.Lock()
        self._answers = Tasks()
        self._numbers_here = numbers or {}
        self._parent = os.getppid() if parent is None else parent
        self._given: tuple[bool, ...] = ()
        self._handed: asyncio.Queue[tuple[object, list[socket.socket]]] = asyncio.Queue()
        self._bell: Bell | None = None
        self._alone: asyncio.TimerHandle | None = None
        self._unread: list[ToWorker] | None = []  # what came before there was a channel
        self._early: list[ToWorker] = []  # what was told before there was somebody to tell

    channel: ControlChannel[FromWorker, ToWorker]
    _hand: socket.socket

    async def run(self, descriptor: int, hand_descriptor: int) -> None:
        """Serves until told to end.

        Raises ChannelError if the control process is of another release, ConfigError and OSError if it cannot
        serve, CancelledError if there is nothing to serve.
        """
        self._hand = socket.socket(fileno=hand_descriptor)
        self.channel = await open_to_control(
            socket.socket(fileno=descriptor), self._receive, self._on_refused, self._on_lost
        )
        unread, self._unread = self._unread, None
        for message in unread or ():
            self._on_message(message)
        self._listen_to_signals()
        try:
            await self._serve(await self._started)
        finally:
            self.channel.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._lost.wait()

    async def _serve(self, start: Start) -> None:
        self._given = start.given
        plane = self.plane
        plane.set_tickets(start.tickets)
        sockets = {
            number: socket.socket(fileno=self._numbers_here.get(number, number))
            for each in start.sockets
            for number in each
        }
        try:
            of_each = [[sockets[number] for number in each] for each in start.sockets]
            await plane.start(start.apply, of_each, start.health)
        finally:
            for sock in sockets.values():
                sock.close()
        freeze()
        self._serving = True
        for message in self._early:
            self._on_message(message)
        self._early.clear()
        self.channel.send(Ready())
        loop = asyncio.get_running_loop()
        accounts = loop.create_task(self._give_accounts())
        borrowing = loop.create_task(self._borrow())
        loop.add_reader(self._hand, self._on_handed)
        bell = self._bell = Bell(self._left, self._relieved)
        try:
            seconds = await self._told
            borrowing.cancel()
            await plane.drain(seconds)
        finally:
            bell.close()
            loop.remove_reader(self._hand)
            await cancel([accounts, borrowing])
            await self._answers.wait()
            while not self._handed.empty():
                for sock in self._handed.get_nowait()[1]:
                    sock.close()
            await plane.close()
            self.channel.send(Account(None, self._survey()))

    def _receive(self, message: ToWorker) -> None:
        """A message may come while the channel is being opened, and ask for an answer."""
        if self._unread is not None:
            self._unread.append(message)
        else:
            self._on_message(message)

    def _on_message(self, message: ToWorker) -> None:
        if not (self._serving or isinstance(message, Start | Drain | SessionsKnown | Sync)):
            self._early.append(message)
            return
        match message:
            case Start():
                self._start(message)
            case ApplyConfig():
                self._apply(message)
            case MemberHealth():
                self.plane.health(message)
            case LaunchSlots(limits):
                self.plane.set_slots(limits)
            case Logo():
                self.plane.set_logo(message)
            case RenewCertificates():
                self.plane.renew()
            case ReopenLog():
                self._reopen_log()
            case TicketSecret(secret):
                self.plane.set_tickets(secret)
            case GetAccount(number):
                self._answer(number)
            case Explain(number):
                question = Question(
                    message.target, message.host, message.cookie, message.accept, message.client
                )
                self.channel.send(Explained(number, self.plane.explain(question)))
            case LaunchesTaught(content):
                self.plane.taught(content)
            case Drain(seconds):
                self._end(seconds)
            case Sync(number):
                self.channel.send(SyncDone(number))
            case SyncDone(number):
                self._synchronized(number)
            case (
                BreakerOpened()
                | BreakerInDoubt()
                | MemberServes()
                | LaunchMoved()
                | LaunchRequested()
                | LaunchesInFlight()
                | LaunchSlotWanted()
                | BuildBegun()
                | LaunchSeen()
                | SessionsKnown()
                | Happened()
            ):
                self.plane.hear(message)
            case _:
                assert_never(message)

    def _emit(self, message: str) -> None:
        """Something is wrong between this process and the one that would usually tell of it."""
        self._events.emit(Event(EventName.WORKER_REPLACED, message))

    def _start(self, start: Start) -> None:
        if not self._started.done():
            self._started.set_result(start)

    def _on_refused(self, error: ChannelError) -> None:
        """What the control process says is not understood: it is asked for another worker."""
        if not self._started.done():
            self._started.set_exception(error)
        else:
            self._emit(f"worker {os.getpid()} is to be replaced: {error}")
            self._leave()

    def _on_lost(self) -> None:
        self._lost.set()
        for number in list(self._waiting):
            self._synchronized(number)
        if not self._started.done():
            # Nobody is there who could tell what to serve.
            self._started.cancel()
        elif not self._told.done():
            self._alone = asyncio.get_running_loop().call_later(_ALONE, self._give_up)

    # Sockets of others

    def _on_handed(self) -> None:
        for handed in hand.take_all(self._hand):
            self._handed.put_nowait(handed)
        if self._lost.is_set():
            asyncio.get_running_loop().remove_reader(self._hand)

    async def _borrow(self) -> None:
        """Takes over sockets in the order in which they were handed."""
        while True:
            note, sockets = await self._handed.get()
            match note:
                case [int(slot), int(at)]:
                    for sock in sockets:
                        await self.plane.borrow(slot, at, sock)
                case [int(slot), None]:
                    self.plane.give_back(slot)
                case _:
                    for sock in sockets:
                        sock.close()
                    self._emit(f"worker {os.getpid()} cannot read a note: {note!r}")

    # Without a control process

    def _left(self) -> list[Left] | None:
        """What another control process can take over; None while its own is there."""
        if self.channel.is_open and os.getppid() == self._parent:
            return None
        found = zip(self.plane.listening(), self._given, strict=True)
        return [(sock, given) for sockets, given in found for sock in sockets]

    def _relieved(self) -> None:
        """Another control process has taken the sockets over, and its workers accept."""
        self._end(None)

    def _give_up(self) -> None:
        """No control process has come in time, or a signal has."""
        for sock, given in self._left() or ():
            if not (given or (self._bell is not None and self._bell.is_rung)):
                silence(sock)
        self._end(None)

    def _apply(self, update: ApplyConfig) -> None:
        try:
            self.plane.apply(update)
            self._events.form = update.config.log
        except ConfigError as error:
            self.channel.send(ConfigRefused(tuple(error.faults)))

    def _reopen_log(self) -> None:
        try:
            self.plane.reopen_log()
        except ConfigError as error:
            self.channel.send(ConfigRefused(tuple(error.faults)))

    def _tell(self, fact: Fact) -> None:
        if isinstance(fact, SessionsKnown) and fact.announced:
            # Nobody else says it, and it is not said again soon.
            self.channel.send(fact)
        else:
            self.channel.send_fresh(fact)

    def _synchronize(self, then: Callable[[], None]) -> None:
        """Calls back once all other workers have taken what they were told."""
        if not self.channel.is_open:
            then()
            return
        if len(self._waiting) >= _MOST_WAITING:
            # The control process does not turn; those before had their time.
            self._synchronized(next(iter(self._waiting)))
        number = next(self._numbers)
        self._waiting[number] = then
        self.channel.send(Sync(number))

    def _synchronized(self, number: int) -> None:
        then = self._waiting.pop(number, None)
        if then is not None:
            then()

    def _answer(self, number: int) -> None:
        self._answers.start(self._give_account(number))

    async def _give_accounts(self) -> None:
        while True:
            await asyncio.sleep(_TELL)
            # One that began is told whole.
            if self.channel.is_read:
                await self._give_account(None)

    def _survey(self) -> Survey:
        self.plane.edge.counts.lines_dropped["events"] = self._events.dropped
        return self.plane.survey()

    async def _give_account(self, number: int | None) -> None:
        """Tells of all members, of some at a time: visitors have their turn in between."""
        async with self._telling:
            survey = self._survey()
            members, last = survey.members, max(0, len(survey.members) - 1) // _AT_A_TIME * _AT_A_TIME
            for at in range(0, last, _AT_A_TIME):
                self.channel.send(AccountPart(at, members[at : at + _AT_A_TIME]))
                await asyncio.sleep(0)
            self.channel.send(Account(number, replace(survey, members=members[last:]), last))

    # The end

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        # A terminal sends these to the whole group; the control process says what they mean for a worker.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGINT, lambda: None if self.channel.is_open else self._leave())
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        # Of somebody who sends it to the whole service.
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_log)

    def _leave(self) -> None:
        """Told to by a signal, or by itself: visitors are accepted until the successor does."""
        if not self._started.done():
            self._started.cancel()
        elif self.channel.is_open:
            self.channel.send(Stopping())
            asyncio.get_running_loop().call_later(_HANDOVER, self._end, None)
        else:
            self._give_up()

    def _end(self, seconds: float | None) -> None:
        if self._alone is not None:
            self._alone.cancel()
        if not self._told.done():
            self._told.set_result(self.plane.config.timeouts.drain if seconds is None else seconds)
        elif seconds is not None:
            self.plane.hurry(seconds)


def freeze() -> None:
    """What was made until now stays; what requests make is freed by its reference count."""
    # Having seen a piece of this size come and go, glibc keeps twice as much at hand (mallopt(3), dynamic
    # M_MMAP_THRESHOLD): what a body gave back to the system, the next one would ask for again, page by page.
    bytes(_BODIES)
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


def prepare() -> None:
    """Does what every worker does in the same way, before they are forked: whatever it leaves is shared."""
    # The config comes pickled.
    import fedproxy.config.model  # noqa: F401

    ignore_unreadable_names()
    # Nothing of it is needed, but what it imports, reads and remembers on the way is.
    create_public_app(Plane())


def _failed(events: Events, *reasons: str) -> SystemExit:
    for reason in reasons:
        events.emit(Event(EventName.WORKER_FAILED, f"worker {os.getpid()}: {reason}"))
    return SystemExit(1)


def serve(
    channel: int,
    hand_descriptor: int,
    log: Form,
    numbers: Mapping[int, int] | None = None,
    parent: int | None = None,
) -> None:
    """Runs a worker with these descriptors of the control channel and of the hand.

    log: the form of its own log. The rest is as `Worker` says. Raises SystemExit if it cannot serve.
    """
    events = take_over(log, f"worker {os.getpid()}")
    ignore_unreadable_names()

    async def run() -> None:
        await Worker(events, numbers, parent).run(channel, hand_descriptor)

    try:
        uvloop.run(run())
    except asyncio.CancelledError:
        raise SystemExit(0) from None
    except ChannelError as error:
        raise _failed(events, str(error)) from None
    except ConfigError as error:
        raise _failed(events, *map(str, error.faults)) from None
    except OSError as error:
        raise _failed(events, error.strerror or str(error)) from None


def main() -> None:
    """Runs a worker.

    The arguments are the descriptors of the control channel and of the hand, and the form of the log.
    """
    serve(int(sys.argv[1]), int(sys.argv[2]), "json" if sys.argv[3:] == ["json"] else "text")


if __name__ == "__main__":
    main()
