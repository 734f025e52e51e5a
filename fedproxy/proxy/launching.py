"""A launch: an exchange whose outcome is in its events, and which may move before the visitor saw one.

    head ──► wait ──► COMMIT ──► relay, with an eye on the events ──► settle, record
     ▲        │
     └─ next ◄┘   this member cannot, another might

BinderHub answers every launch with 200. The head and what follows wait until an event decides whether the
launch goes on here (`decide.launch`); then they go on as they came. The events are read beside the relay:
nothing of it is changed, copied or delayed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.launch import Decision, End, Launch
from fedproxy.decide.pulse import TOLERANCE
from fedproxy.decide.retry import may_retry
from fedproxy.errors import StaleConnection
from fedproxy.proxy.exchange import Exchange
from fedproxy.wire.body import LAST_CHUNK, Chunked, chunk
from fedproxy.wire.events import EventReader

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.errors import EdgeError, ExchangeError, MemberError
    from fedproxy.proxy.pools import Pool
    from fedproxy.wire.response import ResponseHead

# More bytes than this do not wait, whatever they are.
_MOST_WAITING: Final = 64 * 1024
# Whether there is room is said right after an image was found: that event waits for so many seconds at most.
_FOUND: Final = 5.0
# How often a key that moved is noted again, in seconds: well within the time for which it is remembered.
_NOTE_AGAIN: Final = 60.0

_HOLD: Final = Decision.HOLD
_FAIL_OVER: Final = Decision.FAIL_OVER
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED


class Waiting:
    """A response of which the visitor has seen nothing: its head, and its body as far as it came."""

    __slots__ = ("body", "found", "head", "lost", "size", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, head: ResponseHead, lost: float) -> None:
        self.head = head
        self.lost = lost  # `Edge.lost` when the timer was set
        self.body: list[bytes] = []
        self.size = 0
        self.found = False


class LaunchExchange(Exchange):
    """One launch."""

    __slots__ = ("last_answer", "launch", "noted_at", "outcome", "reader", "tapped", "waiting", "watched")

    def __init__(self) -> None:
        self.watched = False
        self.outcome = None
        self.launch: Launch | None = None  # on the member of the attempt under way
        self.reader: EventReader | None = None
        self.tapped = False  # events are read of the chunks, not of what goes on
        self.waiting: Waiting | None = None
        # What the last member said that could not serve it, for the case that nobody else says anything.
        self.last_answer: tuple[Pool, ResponseHead, bytes] | None = None
        self.noted_at: float | None = None

    def _attempt(self, lease: Lease) -> None:
        if self.tried:
            self.tried[-1].counts.failovers[lease.member.name] += 1
        self.launch = Launch(self.edge.policy.launch.failures, self.edge.clock())
        self.watched = self.tapped = False
        super()._attempt(lease)

    # What the member says

    def on_head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        launch, upstream = self.launch, self.upstream
        if launch is None or upstream is None:
            return
        if self.notes is not None:
            # It may wait, or be left for another.
            self.notes.answer(head.status)
        policy = self.edge.policy.launch
        if head.status != 200 or not head.event_stream or head.encoded:
            launch.answered(head.status)
            if launch.decision is _FAIL_OVER and policy.failover and self._move(head, [body], done):
                return
            super().on_head(head, body, done)
            return
        self.watched = True
        self.reader = EventReader()
        if head.chunked:
            self.tapped = True
            upstream.chunks = Chunked(framed=self.framed, tap=self._read)
        else:
            self._read(body)
        if policy.failover and policy.hold and self.may_move():
            waiting = self.waiting = Waiting(head, self.edge.lost())
            waiting.timer = asyncio.get_running_loop().call_later(policy.hold, self._time_out, waiting)
            self._wait(waiting, launch, body, done)
        else:
            self._note()
            super().on_head(head, body, done)

    def on_body(self, data: bytes, done: bool) -> None:
        if self.watched and not self.tapped:
            self._read(data)
        if self.waiting is not None and self.launch is not None:
            self._wait(self.waiting, self.launch, data, done)
        else:
            super().on_body(data, done)

    def on_failure(self, error: MemberError) -> None:
        if self.lease is not None and not self.settled:
            self._stop_waiting()
            if not isinstance(error, StaleConnection):
                blamed = self._blames(error, self.edge.clock())
                self._conclude(End.LOST if blamed else End.ABANDONED)
        super().on_failure(error)

    def _on_own_fault(self, error: EdgeError) -> None:
        self._conclude(End.ABANDONED)
        super()._on_own_fault(error)

    def _read(self, data: bytes) -> None:
        """Looks at the events that end in this part of the payload."""
        launch, lease, reader = self.launch, self.lease, self.reader
        if launch is None or lease is None or reader is None or launch.end is not None:
            return
        for event in reader.feed(data):
            if launch.goes_on(event):
                continue
            now = self.edge.clock()
            if launch.event(event, now) and launch.blame is not None:
                self.edge.federation.judge(lease, launch.blame, now, self.origin.client)
        if not lease.member.breaker.closed and launch.building:
            # A build may take an hour, for which no other trial would be let through. But an image that
            # is there says nothing yet of a member whose servers do not start: that trial waits for the end.
            self.edge.federation.answered(lease, self.edge.clock(), self.origin.client)

    # Waiting

    def _wait(self, waiting: Waiting, launch: Launch, data: bytes, done: bool) -> None:
        """Takes (a part of) the body of a response that waits, and decides whether it goes on waiting."""
        if data:
            waiting.body.append(data)
            waiting.size += len(data)
        decision = launch.decision
        if decision is _FAIL_OVER or (decision is _HOLD and done):
            if self._move(waiting.head, waiting.body, done):
                return
        elif decision is _HOLD and waiting.size <= _MOST_WAITING:
            if launch.phase is not None and not waiting.found:
                self._hurry(waiting)
            return
        self._release(waiting, done)

    def _hurry(self, waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        waiting.found = True
        when = min(waiting.timer.when(), loop.time() + _FOUND)
        waiting.timer.cancel()
        waiting.timer = loop.call_at(when, self._time_out, waiting)

    def _time_out(self, waiting: Waiting) -> None:
        """It has waited for as long as it may, except for the time in which this process slept."""
        lost = self.edge.lost()
        more, waiting.lost = lost - waiting.lost, lost
        if more <= TOLERANCE:
            self._release(waiting)
        else:
            more = min(more, self.edge.policy.launch.hold)
            waiting.timer = asyncio.get_running_loop().call_later(more, self._time_out, waiting)

    def _release(self, waiting: Waiting, done: bool = False) -> None:
        """COMMIT: what waited goes on, and nothing waits any more."""
        self._stop_waiting()
        self._note()
        super().on_head(waiting.head, b"".join(waiting.body), done)

    def _stop_waiting(self) -> None:
        if self.waiting is not None:
            self.waiting.timer.cancel()
            self.waiting = None

    # Moving

    def _move(self, head: ResponseHead, body: list[bytes], done: bool) -> bool:
        """Leaves this member for the next in rank; False if there is none, or no attempt is left."""
        edge, lease, upstream = self.edge, self.lease, self.upstream
        if lease is None or upstream is None:
            return False
        if not may_retry(
            idempotent=True,
            delivered=True,
            committed=self.interims > 0,
            replayable=self.held is not None or not self.bytes_in,
            attempts=self.attempts,
            max_attempts=edge.policy.attempts,
        ):
            return False
        now = edge.clock()
        after = self._next(lease.member, "launch", now)
        if after is None:
            return False
        self._keep_answer(head, body, done)
        self._stop_waiting()
        self._conclude(End.LOST)
        self.lease = self.upstream = None
        edge.federation.settle(lease, _IGNORED, now)
        self._let_go(upstream, done, now)
        self._attempt(after)
        return True

    def _keep_answer(self, head: ResponseHead, body: list[bytes], done: bool) -> None:
        """Keeps what a member said of its failure, if it can be said as a whole."""
        failed = self.launch is not None and self.launch.end is End.FAILED
        if failed and (done or (self.watched and head.length is None)):
            data = b"".join(body)
            payload = _unframed(data) if head.chunked and self.framed else data
            self.last_answer = (self.pool, head, payload)

    def _give_up(self, member: Member, error: MemberError) -> None:
        self.outcome = End.FAILED.value
        if self.last_answer is None:
            super()._give_up(member, error)
            return
        # A member's own answer tells a person more than that yet another one could not be reached.
        self.pool, head, payload = self.last_answer
        framed = head.chunked and self.framed
        now = self.first_byte_at = self.edge.clock()
        self.settled = self.committed = True
        self.status = head.status
        self.bytes_out = len(payload)
        self.visitor.send_head(self, head, chunk(payload) if framed and payload else payload, False)
        self.visitor.send_body(LAST_CHUNK if framed else b"", True)
        if self.visitor.finished(self, now, len(payload)):
            self._record(now)

    def _refuse(self, error: ExchangeError) -> None:
        self.outcome = self.outcome or End.FAILED.value
        super()._refuse(error)

    def _note(self) -> None:
        """Where the launch went on, if that is not where its key would lead."""
        key, name = self.key(), self.pool.member.name
        failed = self.launch is not None and self.launch.verdict is not None
        if key is None or failed or not self.tried or self.pool.member in self.tried:
            return
        now = self.noted_at = self.edge.clock()
        self.edge.note_moved(key, name, now)
        if self.edge.on_moved is not None:
            self.edge.on_moved(key, name)

    # Time and the end

    def sweep(self, now: float) -> None:
        if self.waiting is not None:
            # It has a timer of its own, and no time-out of a response runs before its head went on.
            return
        super().sweep(now)
        if self.noted_at is not None and now - self.noted_at >= _NOTE_AGAIN and not self.settled:
            self._note()

    def _drop(self, outcome: Outcome, now: float) -> None:
        self._stop_waiting()
        self._conclude(End.LOST if outcome is _FAILURE else End.ABANDONED)
        super()._drop(outcome, now)

    def _finish(self, now: float, last: int) -> None:
        self._conclude(End.LOST)
        super()._finish(now, last)

    def _conclude(self, end: End) -> None:
        """The attempt is over, `end` says how if its events did not: counted, and the breaker told."""
        launch, self.launch = self.launch, None
        if launch is None:
            return
        now = self.edge.clock()
        self.outcome = launch.close(end, now).value
        if self.lease is not None and launch.blame is not None:
            self.edge.federation.judge(self.lease, launch.blame, now, self.origin.client)
        counts = self.pool.member.counts
        counts.launches[self.outcome] += 1
        for phase, seconds in launch.phases.items():
            counts.launch_phases[phase] += seconds
        if launch.ready_after is not None:
            counts.launch_duration.observe(launch.ready_after)
            if self.notes is not None:
                self.notes.example(counts.launch_duration, launch.ready_after)


def _unframed(data: bytes) -> bytes:
    chunks = Chunked(framed=False)
    payload = chunks.feed(data)
    while chunks.behind:
        payload += chunks.feed(b"")
    return payload
