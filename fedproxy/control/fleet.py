"""This edge among the edges of its fleet: what it tells the others, and what it hears, through the store.

Everything here happens in the background. While the store is away the edge goes on with what it last knew,
and tries to reach it again; what it would have told waits, up to a bound.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fedproxy.control.foreign import read_json
from fedproxy.control.hints import WORTH, Hint, pack, pack_report, unpack, unpack_report
from fedproxy.control.messages import LaunchRequested
from fedproxy.control.overrides import Override, Overrides
from fedproxy.control.prober import Report
from fedproxy.control.store import PRESENCE, Conflict, Store, Stored, Topic
from fedproxy.decide.limit import LaunchRate
from fedproxy.decide.slots import Slots
from fedproxy.errors import StoreError
from fedproxy.tasks import Tasks, cancel

_BEAT: Final = 1.0  # seconds between two signs of life
_GATHER: Final = 0.02  # seconds in which what happens is told together
_CUT_OFF: Final = PRESENCE * 0.8  # seconds after which others may have taken what this edge holds
_RECORDS: Final = 5  # beats between two looks at what other edges are
_CHECK: Final = 15  # beats between two looks at what should have been told: hints and reports
_GIVEN_BACK: Final = (0.1, 0.3)  # seconds after which slots that others hold too much of are asked for again
_ALL_SLOTS: Final = 60  # beats between two times that all slots are asked anew
_BACK_OFF, _BACK_OFF_MAX = 0.2, 0.8  # seconds until the store is tried again
_MOST_WAITING: Final = 2000  # hints that wait to be told
_AT_ONCE: Final = 100  # hints in a message
_REPORTS_KEPT: Final = 60.0  # seconds after the last sign of those who probe
_GRACE: Final = 3.0  # seconds that the first attempt may take, before visitors are accepted
_TO_ANSWER: Final = 0.4  # seconds that other edges have to answer a question
_IS_PLACE: Final = re.compile(rb"[0-9]{1,18}(-[0-9]{1,18})?").fullmatch
_QUESTION: Final = 64
_CHORES: Final = 8  # answers to what others tell that are under way at once
_TO_END: Final = 3.0  # seconds that the end may take
_CLIENTS_AT_ONCE: Final = 500
_MOST_EDGES: Final = 1000
_MOST_RECORD: Final = 1 << 16
_MOST_REPORTS: Final = 10_000
_SAID_AGAIN: Final = 60.0  # seconds in which the same trouble is said once
_VALUES: Final = 60  # beats between two looks at the secret of TLS session tickets


@dataclass(frozen=True)
class OtherEdge:
    """An edge as it describes itself. id: of its run. said: the rest, as its `describe` gave it."""

    id: str
    name: str
    said: Mapping[str, Any] = field(default_factory=dict)


class FleetListener(Protocol):
    """What an edge does with what it hears. None of it waits."""

    def on_hint(self, hint: Hint) -> None:
        """Another edge knows something of a launch, a session or a breaker."""

    def on_slots(self, limits: Mapping[str, int]) -> None:
        """How many launches may run through this edge, by member."""

    def on_overrides(self) -> None:
        """Operators set something at another edge: `Fleet.overrides` has it."""

    def on_report(self, report: Report) -> None:
        """The edge that probes for all found this about a member."""

    def on_role(self, probes: bool) -> None:
        """Whether this edge is to probe the members itself."""

    def on_tickets(self, secret: bytes) -> None:
        """The secret of TLS session tickets of the fleet."""

    def on_store(self, there: bool, why: str) -> None:
        """The store is there, or away, and why."""

    def on_trouble(self, line: str) -> None:
        """A line for an operator."""

    def describe(self) -> Mapping[str, Any]:
        """What other edges should know about this one, in JSON's types. Small, as it is told each second."""

    def answer(self) -> Mapping[str, Any]:
        """This edge's members as they are, in JSON's types, for an edge that asks."""


class Fleet:
    """See the module. name: of this edge, for people; two edges may have the same by mistake.

    shares_probes: whether one edge may probe for all. tickets: the secret that this edge would use.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        listener: FleetListener,
        *,
        overrides: Overrides | None = None,
        shares_probes: bool = True,
        tickets: bytes = b"",
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.store = store
        self.name = name
        self.id = f"{name}#{secrets.token_hex(4)}"
        self.overrides = overrides or Overrides()
        self.slots = Slots()
        self.there = False
        self.probes = True
        self.shares_probes = shares_probes
        self.others: tuple[OtherEdge, ...] = ()
        self.count = 1  # edges, with this one
        self.dropped = 0  # hints that were never told
        self.retired = False
        self.prober: str | None = None
        self._listener = listener
        self._chance = chance or (lambda: secrets.randbelow(1 << 20) / (1 << 20))
        self._tickets = tickets
        self._rate: LaunchRate | None = None
        self._each = self._per = 0.0
        self._outbox: deque[Hint] = deque()
        self._launched: dict[bytes, int] = {}
        self._reports: dict[str, bytes] = {}
        self._known_reports: dict[str, Report] = {}
        self._read: Mapping[str, bytes] = {}  # reports, when all were read last
        self._last_hint: str | None = None
        self._caught_up = False  # with the hints that were told before
        self._closed = False
        self._all_known = True  # by the store: what each edge holds
        self._due: set[str] = set()
        self._limits: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._broken = asyncio.Event()
        self._first = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._chores = Tasks()
        self._cutter: asyncio.TimerHandle | None = None
        self._said: dict[str, float] = {}
        self._taking = asyncio.Lock()
        self._few = asyncio.Semaphore(_CHORES)

    # Start and end

    async def start(self) -> None:
        """Returns once the store is reached, or after some seconds without it. Raises nothing."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._stay()), loop.create_task(self._send())]
        for task in self._tasks:
            task.add_done_callback(_tell_failure)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await self._first.wait()

    def retire(self) -> None:
        """Nobody new comes here: what is not in use is given back, and others probe the members."""
        self.shares_probes = False
        self.retired = True
        self.slots.retire()
        if self.there:
            self._chores.start(self._guarded(self._let_go))

    async def _let_go(self) -> None:
        await self._take_lease()
        await self.store.tell(Topic.LEASE, b"")
        for _ in range(2):
            # What it does not use, and then that it keeps to that.
            await self._ask_slots()
        await self.store.tell(Topic.SLOTS, "\n".join(self._limits).encode())

    async def close(self) -> None:
        """Gives back what it holds, and ends. Raises nothing."""
        self._closed = True
        await cancel(self._tasks)
        await cancel(self._chores)
        if self._cutter is not None:
            self._cutter.cancel()
        was_there, self.there = self.there, False
        if was_there:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_TO_END):
                    await self.store.leave()
                    await self.store.tell(Topic.LEASE, b"")
                    await self.store.tell(Topic.SLOTS, "\n".join(self._limits).encode())
                    await self._tell_hints()
                    await self._count_launches()
        await self.store.close()

    async def _stay(self) -> None:
        """Keeps in touch with the store, whatever happens to it."""
        delay = _BACK_OFF
        while True:
            try:
                self._broken.clear()
                self._caught_up = False
                await self.store.open(self.id, self._on_told, self._broken.set)
                await self._arrive()
                delay = _BACK_OFF
                self._first.set()
                beats = 0
                while True:
                    # Not all edges in the same moment.
                    pause = _BEAT * (0.9 + 0.2 * self._chance())
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._broken.wait()
                    if self._broken.is_set():
                        raise StoreError("broke off")  # noqa: TRY301 -- handled like any other way to lose it
                    beats += 1
                    await self._beat(beats)
            except StoreError as error:
                self._lose(str(error))
                self._first.set()
            await asyncio.sleep(delay * (0.5 + self._chance()))
            delay = min(_BACK_OFF_MAX, 2 * delay)

    async def _arrive(self) -> None:
        """Agrees with the others again."""
        sent = time.monotonic()
        beat = await self.store.beat(self._record(), self.count, self.shares_probes)
        # One that takes part may not stop here: others count on it, and it may be the one that probes.
        await self._guarded(self._read_overrides)
        await self._guarded(self._submit)
        self._on_presence(sent, beat.edges)
        self._know(beat.prober, beat.edges)
        if not self.there:
            self.there = True
            self._listener.on_store(True, "")
        self.slots.touch_all()
        await self._guarded(self._ask_slots)
        await self._guarded(self._read_records)
        await self._guarded(self._read_hints)
        await self._guarded(self._read_reports)
        await self._guarded(self._agree_on_tickets)
        self._wake.set()

    async def _beat(self, beats: int) -> None:
        sent = time.monotonic()
        beat = await self.store.beat(self._record(), self.count, self.shares_probes)
        self._on_presence(sent, beat.edges)
        self._know(beat.prober, beat.edges)
        if not (beat.knows_all and self._all_known):
            # What it holds is told again, and then it may get what it did not get meanwhile.
            self.slots.touch_all()
        self._all_known = beat.knows_all
        if beat.order != self.overrides.order or self.overrides.pending:
            await self._guarded(self._read_overrides)
            await self._guarded(self._submit)
        # Each reads what all have told: the more edges, the less often.
        if beats % max(_RECORDS, self.count // 10) == 0:
            await self._guarded(self._read_records)
        if beats % max(_CHECK, self.count // 2) == 0:
            await self._guarded(self._read_hints)
            if self.prober == self.id:
                await self._guarded(self._keep_reports)
            else:
                await self._guarded(self._read_reports)
        if beats % _VALUES == 0:
            await self._guarded(self._agree_on_tickets)
        self.slots.touch_wanted()
        if beats % _ALL_SLOTS == 0:
            self.slots.touch_all()
        if self.slots.dirty:
            self._wake.set()

    async def _guarded(self, work: Callable[[], Any]) -> bool:
        """Does what may fail without the rest: a key of a stranger, rights that are too narrow.

        A failure is reported, and the work tried again. Returns whether it succeeded.
        """
        try:
            await work()
        except StoreError as error:
            self.say_trouble(f"the store refuses {error.command or 'a command'}: {error}")
            return False
        return True

    def say_trouble(self, line: str) -> None:
        """Tells operators a line that they were not told lately."""
        now = time.monotonic()
        self._said = {each: at for each, at in self._said.items() if now - at < _SAID_AGAIN}
        if line not in self._said and len(self._said) < _QUESTION:
            self._said[line] = now
            self._listener.on_trouble(line)

    def _record(self) -> bytes:
        return json.dumps({"name": self.name, **self._listener.describe()}, separators=(",", ":")).encode()

    def _on_presence(self, sent: float, edges: int) -> None:
        """The others know that this edge is there, and for how long they will believe it."""
        if self._cutter is not None:
            self._cutter.cancel()
        loop = asyncio.get_running_loop()
        # From before it was asked: the store cannot have heard of it earlier.
        passed = time.monotonic() - sent
        self._cutter = loop.call_later(max(0.0, _CUT_OFF - passed), self._cut_off)
        self.slots.edges = self.count = edges
        if self.slots.cut_off:
            self.slots.cut_off = False
            self.slots.touch_all()

    def _cut_off(self) -> None:
        self.slots.cut_off = True
        self._tell_limits()

    def _know(self, prober: str | None, edges: int) -> None:
        self.prober = prober
        self._take_role(not self.shares_probes or prober is None or prober == self.id)

    def _take_role(self, probes: bool) -> None:
        if probes != self.probes:
            self.probes = probes
            self._listener.on_role(probes)
            if probes:
                for report in self._known_reports.values():
                    self._reports[report.name] = pack_report(report)

    def _lose(self, why: str) -> None:
        was_there, self.there = self.there, False
        self.prober = None
        if was_there or not self._first.is_set():
            self._listener.on_store(False, why)
        self._take_role(True)

    # What others tell

    def _on_told(self, topic: Topic, content: bytes) -> None:
        if self._closed:
            return
        match topic:
            case Topic.HINT:
                at, _, content = content.partition(b"\0")
                if not _IS_PLACE(at):
                    self._hear(content)
                elif self._caught_up:
                    self._last_hint = at.decode("ascii", "replace")
                    self._hear(content)
                # Else it is read after those before it.
            case Topic.OVERRIDE:
                self._soon("overrides", self._read_overrides)
            case Topic.SLOTS:
                self.slots.touch(content.decode("utf-8", "replace").split("\n"))
                if self.slots.dirty:
                    self._wake.set()
            case Topic.REPORT:
                self._hear_report(content)
            case Topic.QUESTION:
                if len(self._due) < _AT_ONCE:
                    self._soon(f"question {content[:_QUESTION]!r}", lambda: self._answer(content))
            case Topic.LEASE:
                # Whoever is first has it. At once: nobody probes at the moment.
                self._soon("lease", self._take_lease)
            case Topic.TICKETS:
                self._soon("tickets", self._agree_on_tickets)

    def _soon(self, what: str, work: Callable[[], Any]) -> None:
        """Does it in the background: once, however often others ask for it before it begins."""

        async def begin() -> None:
            self._due.discard(what)
            await self._guarded(work)

        if what not in self._due and not self._closed:
            self._due.add(what)
            self._chores.start(self._in_turn(begin))

    async def _in_turn(self, work: Callable[[], Any]) -> None:
        async with self._few:
            await work()

    async def _take_lease(self) -> None:
        sent = time.monotonic()
        beat = await self.store.beat(self._record(), self.count, self.shares_probes)
        self._on_presence(sent, beat.edges)
        self._know(beat.prober, beat.edges)

    def _hear(self, content: bytes, age: float = 0.0) -> None:
        for hint in unpack(content, time.time() - age):
            if age <= WORTH.get(type(hint), 5.0):
                if isinstance(hint, LaunchRequested) and self._rate is not None:
                    self._rate.note(hint.client, time.monotonic())
                self._listener.on_hint(hint)

    async def _read_hints(self) -> None:
        """Reads the hints that were told while nobody here listened, and those that were lost on the way."""
        try:
            while hints := await self.store.hints(self._last_hint):
                for hint in hints:
                    self._last_hint = hint.at
                    if hint.edge != self.id:
                        self._hear(hint.content, hint.age)
        finally:
            self._caught_up = True

    def _hear_report(self, content: bytes) -> None:
        report = unpack_report(content)
        room = len(self._known_reports) < _MOST_REPORTS
        known = self._known_reports.get(report.name) if report is not None else None
        if report is not None and not self.probes and report != known and (room or known is not None):
            self._known_reports[report.name] = report
            self._listener.on_report(report)

    async def _read_reports(self) -> None:
        if not self.probes:
            before, self._read = self._read, await self.store.reports()
            for name, content in self._read.items():
                if content != before.get(name):
                    self._hear_report(content)

    async def _read_records(self) -> None:
        records = await self.store.records()
        others = []
        for edge, record in list(records.items())[:_MOST_EDGES]:
            if edge != self.id and (said := _read_record(record)) is not None:
                name = said.get("name")
                others.append(OtherEdge(edge, name if isinstance(name, str) else edge, said))
        self.others = tuple(sorted(others, key=lambda other: (other.name, other.id)))

    # Overrides

    async def _read_overrides(self) -> None:
        async with self._taking:
            found = await self.store.overrides()
            lost = self.overrides.missing_from(found)
            if lost:
                await self.store.restore(lost)
            news = False
            for name, stored in found.items():
                news |= self._take(name, stored)
        if news:
            self._listener.on_overrides()

    def _take(self, name: str, stored: Stored) -> bool:
        try:
            return self.overrides.take(name, stored)
        except ValueError as error:
            self.say_trouble(str(error))
            return False

    async def set_override(self, name: str, override: Override) -> bool | None:
        """Sets an operator's override of a member, over the one that this edge knows.

        Returns True once the store has it; False if the store is away: it holds here, and waits. None if
        somebody set something else meanwhile, which is now known: `override` has to be made again.
        """
        if self.there and name not in self.overrides.pending:
            try:
                taken = await self._set_override(name, override, self.overrides.base(name))
            except StoreError as error:
                self.say_trouble(f"the store does not take what operators set: {error}")
            else:
                return True if taken else None
        self.overrides.hold(name, override)
        return False

    async def _set_override(self, name: str, override: Override, base: int) -> bool:
        """False if another override was set meanwhile, which was taken."""
        content = override.pack()
        self.overrides.sent(name, content)
        answer = await self.store.set_override(name, content, base, self.overrides.order)
        while isinstance(answer, Conflict) and self.overrides.is_own(name, answer.by.content):
            # The store took an earlier one that it did not answer in time: that is nobody else's.
            base = answer.by.order
            answer = await self.store.set_override(name, content, base, max(self.overrides.order, base))
        if isinstance(answer, Conflict):
            self._take(name, answer.by)
            self.overrides.acknowledged(name)
            return False
        self._take(name, Stored(answer, content))
        self.overrides.acknowledged(name)
        with suppress(StoreError):
            # If this is lost, the others see it by the next beat.
            await self.store.tell(Topic.OVERRIDE, name.encode())
        return True

    async def _submit(self) -> None:
        """Sends what was set while the store was away."""
        pending = list(self.overrides.pending.items())
        for name, (base, override) in pending:
            taken = await self._set_override(name, override, base)
            again = None if taken else self.overrides.rebased(name, override)
            self.overrides.done(name, override, taken)
            if again is not None:
                taken = await self._set_override(name, again, self.overrides.base(name))
            if not taken:
                by = self.overrides.get(name)
                who = f" by {by.who} at {by.edge}" if by is not None and by.who else ""
                self._listener.on_trouble(
                    f"what {override.who or 'somebody'} set for {name} here while the store was away is not "
                    f"in force: something else was set meanwhile{who}"
                )
        if pending:
            # What waits is in a file too, and is to be taken out of it.
            self._listener.on_overrides()

    # Launches

    def apply(self, most: Mapping[str, int], rate: tuple[int, float] | None) -> None:
        """Puts a config in force.

        most: `max_launches` by member. rate: how many launches a client may start in how many seconds.
        """
        self.slots.apply(most)
        if rate is None:
            self._rate, self._each, self._per = None, 0.0, 0.0
        elif (rate[1] / rate[0], rate[1]) != (self._each, self._per):
            self._rate, self._each, self._per = LaunchRate(*rate), rate[1] / rate[0], rate[1]
        self._tell_limits()
        self._wake.set()

    def launches(self, running: Mapping[str, int]) -> None:
        """Takes how many launches run through this edge, by member."""
        self.slots.use(running)
        if self.slots.dirty:
            self._wake.set()

    def want(self, name: str) -> None:
        """A launch was refused for want of a slot at this member."""
        self.slots.want(name)
        if self.slots.dirty:
            self._wake.set()

    def _tell_limits(self) -> None:
        limits = self.slots.limits()
        if limits != self._limits:
            self._limits = limits
            self._listener.on_slots(limits)

    async def _ask_slots(self) -> None:
        claims = self.slots.claims()
        if not claims:
            return
        try:
            grants = await self.store.slots(claims)
        except StoreError:
            self.slots.touch(claims)
            raise
        short = self.slots.granted(claims, grants)
        self._tell_limits()
        if self.slots.dirty:
            self._wake.set()
        if short:
            await self.store.tell(Topic.SLOTS, "\n".join(short).encode())
            # Others answer to that by giving back what they do not use.
            for seconds in _GIVEN_BACK:
                asyncio.get_running_loop().call_later(seconds, self._ask_short)

    def _ask_short(self) -> None:
        self.slots.touch_short()
        if self.slots.dirty:
            self._wake.set()

    # What this edge tells

    def tell(self, hint: Hint) -> None:
        """Tells other edges a hint. If too many are waiting already, the oldest is dropped."""
        if isinstance(hint, LaunchRequested) and self._rate is not None:
            self._rate.note(hint.client, time.monotonic())
            if self.there:
                self._launched[hint.client] = self._launched.get(hint.client, 0) + 1
        if len(self._outbox) >= _MOST_WAITING:
            self._outbox.popleft()
            self.dropped += 1
        self._outbox.append(hint)
        self._wake.set()

    def report(self, report: Report) -> None:
        """What this edge's own probes found; others are told if it probes for them."""
        self._known_reports[report.name] = report
        if self.prober == self.id:
            self._reports[report.name] = pack_report(report)
            self._wake.set()

    def known_report(self, name: str) -> Report | None:
        """What was last found about a member, here or elsewhere."""
        return self._known_reports.get(name)

    def forget(self, known: Mapping[str, object]) -> None:
        """Members have left; `known` are those that are there."""
        self._known_reports = {name: each for name, each in self._known_reports.items() if name in known}
        self._read = {name: each for name, each in self._read.items() if name in known}

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER)
            self._wake.clear()
            if self.there and not await self._flush():
                # If it is away the next beat finds out; else this is tried again with that.
                await asyncio.sleep(_BEAT)

    async def _flush(self) -> bool:
        """Tells what is to be told. Returns whether the store took all; a refusal does not stop the rest."""
        done = True
        for tell in (self._ask_slots, self._tell_hints, self._count_launches, self._tell_reports):
            if self.there:
                done &= await self._guarded(tell)
        return done

    async def _tell_hints(self) -> None:
        while self._outbox:
            some = [self._outbox.popleft() for _ in range(min(_AT_ONCE, len(self._outbox)))]
            kept = [each for each in some if type(each) in WORTH]
            passing = [each for each in some if type(each) not in WORTH]
            if kept:
                try:
                    await self.store.hint(pack(kept, time.time()))
                except StoreError:
                    self._outbox.extendleft(reversed(kept))
                    raise
            if passing:
                await self.store.tell(Topic.HINT, b"\0" + pack(passing, time.time()))

    async def _tell_reports(self) -> None:
        reports, self._reports = self._reports, {}
        # One that was silent for too long, as it hung, may have been followed by another.
        if reports and self.prober == self.id and not self.slots.cut_off:
            try:
                await self.store.report(reports, _REPORTS_KEPT)
                for content in reports.values():
                    await self.store.tell(Topic.REPORT, content)
            except StoreError:
                # They are only found anew when they change.
                self._reports = {**reports, **self._reports}
                self._wake.set()
                raise

    async def _count_launches(self) -> None:
        launched, self._launched = list(self._launched.items()), {}
        while launched:
            # Nobody else is served there while a script runs.
            some, launched = launched[:_CLIENTS_AT_ONCE], launched[_CLIENTS_AT_ONCE:]
            try:
                await self._count_some(dict(some))
            except StoreError:
                for client, count in (*some, *launched):
                    self._launched[client] = self._launched.get(client, 0) + count
                raise

    async def _count_some(self, launched: Mapping[bytes, int]) -> None:
        # Another config may be in force when the store answers.
        rate, each, per = self._rate, self._each, self._per
        if rate is None:
            return
        left = await self.store.rate(launched, each, per)
        now = time.monotonic()
        for client, seconds in left.items():
            # Those that other edges counted before this one was there to hear of them.
            missing = min(round(per / each), round((seconds - rate.owed(client, now)) / each))
            for _ in range(missing):
                rate.note(client, now)
                self._listener.on_hint(LaunchRequested(client))

    async def _keep_reports(self) -> None:
        reports = {name: pack_report(report) for name, report in self._known_reports.items()}
        await self.store.report(reports, _REPORTS_KEPT)

    # TLS session tickets

    async def _agree_on_tickets(self) -> None:
        if not self._tickets:
            return
        found = await self.store.get("tickets")
        if found is None and not await self.store.put("tickets", self._tickets, 2 * 86_400, new=True):
            found = await self.store.get("tickets")
        if found and len(found) == len(self._tickets) and found != self._tickets:
            self._tickets = found
            self._listener.on_tickets(found)

    def rotate_tickets(self, secret: bytes) -> bool:
        """Whether this edge is the one to do it; then the others are told."""
        if self.there and self.prober not in (None, self.id):
            return False
        self._tickets = secret
        if self.there:
            self._chores.start(self._guarded(self._tell_tickets))
        return True

    async def _tell_tickets(self) -> None:
        await self.store.put("tickets", self._tickets, 2 * 86_400)
        await self.store.tell(Topic.TICKETS, b"")

    # Questions

    async def ask(self) -> Sequence[Mapping[str, Any]]:
        """What every other edge that answers in time says of its members. Raises StoreError."""
        question = secrets.token_hex(8)
        await self.store.tell(Topic.QUESTION, question.encode())
        waited = 0.0
        found: list[bytes] = []
        while len(found) < self.count - 1 and waited < _TO_ANSWER:
            await asyncio.sleep(_TO_ANSWER / 8)
            waited += _TO_ANSWER / 8
            found += await self.store.answers(question, len(found))
        return [said for content in found if (said := _read_record(content, 1 << 22)) is not None]

    async def _answer(self, question: bytes) -> None:
        name = question[:_QUESTION].decode("ascii", "replace")
        if name.isalnum():
            content = {"edge": self.name, "id": self.id, **self._listener.answer()}
            await self.store.answer(name, json.dumps(content, separators=(",", ":")).encode())


def _tell_failure(task: asyncio.Task[None]) -> None:
    """Reports an error of ours, which would otherwise only show in that nothing happens any more."""
    error = task.exception() if not task.cancelled() else None
    if error is not None:
        message = "the edge is out of touch with its fleet until it is started again"
        task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})


def _read_record(content: bytes, most: int = _MOST_RECORD) -> dict[str, Any] | None:
    try:
        found = read_json(content, most)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
