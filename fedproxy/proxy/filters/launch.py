"""A launch: its outcome is in its events, and it may move before the visitor saw one.

    head ──► wait ──► passed on, with an eye on the events
     ▲        │
     └─ next ◄┘   this member cannot, another might

BinderHub answers every launch with 200. The head and what follows wait until an event decides whether the
launch goes on here (`decide.launch`); then they go on as they came. The events are read beside the relay:
nothing of it is changed. Only `ready` is held until every worker knows where the session runs: the visitor's
next request, which may have no cookie, may come to any of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.knowledge import seen_of
from fedproxy.decide.launch import Decision, End, Launch
from fedproxy.decide.pulse import TOLERANCE
from fedproxy.decide.sessions import announced_by
from fedproxy.errors import StaleConnection
from fedproxy.event import Event, EventName
from fedproxy.proxy.filters.passing import PassThrough
from fedproxy.wire.events import EventReader
from fedproxy.wire.path import canonical

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.errors import ExchangeError, MemberError
    from fedproxy.http.response import ResponseHead
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.extras import Extras
    from fedproxy.proxy.ports import MemberPool

# More bytes than this do not wait, whatever they are.
_MOST_WAITING: Final = 64 * 1024
# Whether there is room is said right after an image was found: that event waits for so many seconds at most.
_FOUND: Final = 5.0
# How often a key that moved is noted again, in seconds: well within the time for which it is remembered.
_NOTE_AGAIN: Final = 60.0
# How long `ready` waits for other workers, in seconds; it takes a millisecond as a rule.
_CONFIRM: Final = 1.0

_HOLD: Final = Decision.HOLD
_FAIL_OVER: Final = Decision.FAIL_OVER
_IGNORED: Final = Outcome.IGNORED


class Waiting:
    """A response of which the visitor has seen nothing: its head, and its body as far as it came.

    payload: of the body, if the body is chunked. lost: `Context.lost` when the timer was set.
    """

    __slots__ = ("body", "found", "head", "lost", "payload", "size", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, head: ResponseHead, lost: float) -> None:
        self.head = head
        self.lost = lost
        self.body: list[bytes] = []
        self.payload: list[bytes] = []
        self.size = 0
        self.found = False


class LaunchFilter(PassThrough):
    """One launch.

    launch: what is known of it at the member of the attempt under way. watched: its events are read. tapped:
    the member's stream gives the payload (`MemberStream.tap`), because the body is chunked. last_answer: what
    the last member said that could not serve it, in case that no other says anything. confirming: other
    workers are told where the session runs; held: what came of the body meanwhile. builds: the member
    has said that it builds the image.
    """

    __slots__ = (
        "_extras",
        "_passed_by",
        "builds",
        "confirming",
        "exchange",
        "held",
        "held_done",
        "held_size",
        "last_answer",
        "launch",
        "noted_at",
        "reader",
        "tapped",
        "waiting",
        "watched",
    )

    def __init__(self, exchange: Exchange, extras: Extras) -> None:
        self.exchange = exchange
        self._extras = extras
        self.launch: Launch | None = None
        self.reader: EventReader | None = None
        self.watched = False
        self.tapped = False
        self.waiting: Waiting | None = None
        self.last_answer: tuple[MemberPool, ResponseHead, bytes] | None = None
        self.noted_at: float | None = None
        self.confirming: asyncio.TimerHandle | None = None
        self.held: list[bytes] = []
        self.held_done = False
        self.held_size = 0
        self._passed_by = False
        self.builds = False

    def begin(self, lease: Lease) -> None:
        exchange = self.exchange
        if exchange.tried:
            exchange.tried[-1].counts.failovers[lease.member.name] += 1
        context = exchange.context
        failures = context.runtime.policy.launch.failures
        self.launch = Launch(failures, context.clock(), moved=bool(exchange.tried))
        self.watched = self.tapped = self._extras.judged = self.builds = False

    # What the member says

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        exchange, launch = self.exchange, self.launch
        attempt = exchange.attempt
        if launch is None or attempt is None or attempt.stream is None:
            return
        runtime = exchange.context.runtime
        policy = runtime.policy.launch
        if head.status != 200 or not head.event_stream or head.encoded:
            launch.answered(head.status, body)
            if launch.decision is _FAIL_OVER and policy.failover and self._move(head, [body], done):
                return
            self.sink.head(head, body, done)
            return
        self.watched = self._extras.judged = True
        self.reader = EventReader()
        self.tapped = attempt.stream.tap(self._read)
        if not self.tapped:
            self._read(body)
        if policy.failover and policy.hold and runtime.may_move(exchange.line, exchange.block):
            waiting = self.waiting = Waiting(head, exchange.context.lost())
            waiting.timer = asyncio.get_running_loop().call_later(policy.hold, self._time_out, waiting)
            self._wait(waiting, launch, body, done)
        elif self.confirming is not None:
            self._note()
            self.held, self.held_size, self.held_done = [body], len(body), done
            self.sink.head(head, b"", False)
        else:
            self._note()
            self._pass_on(head, body, done)

    def body(self, data: bytes, done: bool) -> None:
        if self.watched and not self.tapped:
            self._read(data)
        if self.waiting is not None and self.launch is not None:
            self._wait(self.waiting, self.launch, data, done)
        elif self.confirming is not None:
            self.held.append(data)
            self.held_size += len(data)
            self.held_done = done
            if self.held_size > _MOST_WAITING:
                self._confirmed()
        else:
            self.sink.body(data, done)

    def fail(self, error: ExchangeError, blamed: bool) -> None:
        self._stop_waiting()
        if not isinstance(error, StaleConnection):
            self._conclude(End.LOST if blamed else End.ABANDONED)

    def _read(self, data: bytes) -> None:
        """Looks at the events that end in this part of the payload."""
        if self.waiting is not None and self.tapped:
            self.waiting.payload.append(data)
        exchange, launch, reader = self.exchange, self.launch, self.reader
        attempt = exchange.attempt
        if launch is None or attempt is None or reader is None or launch.end is not None:
            return
        context, lease = exchange.context, attempt.lease
        federation, client = context.runtime.federation, exchange.origin.client
        for event in reader.feed(data):
            if launch.goes_on(event):
                continue
            now = context.clock()
            if launch.event(event, now):
                if launch.blame is not None:
                    federation.judge(lease, launch.blame, now, client)
                self._learn(launch)
            elif launch.building and not self.builds:
                self.builds = True
                self._tell_of_build(lease.member.name, now)
        if not lease.member.breaker.closed and launch.building:
            # A build may take an hour, for which no other trial would be let through. But an image that
            # is there says nothing yet of a member whose servers do not start: that trial waits for the end.
            federation.answered(lease, context.clock(), client)

    # What it teaches

    def _tell_of_build(self, name: str, now: float) -> None:
        image, context = self.exchange.line.image, self.exchange.context
        if image is not None:
            context.runtime.federation.build_begun(image, name, now)
            if context.on_build is not None:
                context.on_build(image, name)

    def _teach(self, launch: Launch, now: float) -> None:
        """The launch has ended."""
        image, context = self.exchange.line.image, self.exchange.context
        seen = None if image is None else seen_of(launch, image, self.exchange.pool.member.name)
        if seen is not None:
            context.runtime.federation.learn(seen, now)
            if context.on_seen is not None:
                context.on_seen(seen)

    # Where the session runs

    def _learn(self, launch: Launch) -> None:
        """Notes what the end of a launch says besides."""
        exchange = self.exchange
        session = announced_by(canonical(launch.session)) if launch.session else None
        if session is not None:
            self._announce(session)
        elif launch.foreign:
            self._tell_of_token(exchange.pool.member.name, exchange.tried[-1].name)

    def _tell_of_token(self, name: str, other: str) -> None:
        message = (
            f"{name} does not accept build tokens of {other}: launches cannot move between them until their "
            "BinderHubs have the same BINDERHUB_BUILD_TOKEN_SECRET"
        )
        self.exchange.context.report(Event(EventName.MEMBER_TOKEN, message, name, key=f"{name} {other}"))

    def _announce(self, session: bytes) -> None:
        exchange = self.exchange
        context = exchange.context
        context.sessions.announce(session, exchange.pool.place, context.wall(), exchange.line.again)
        if context.synchronize is None:
            return
        self._extras.holds = True
        self.confirming = asyncio.get_running_loop().call_later(_CONFIRM, self._confirmed)
        if self._passed_by:
            # The piece with `ready` has still to come by.
            self._passed_by = False
            self._extras.step_in(self)
        context.synchronize(self._confirmed)

    def _confirmed(self) -> None:
        """Every worker knows, or was given enough time."""
        if self.confirming is None:
            return
        self._stop_confirming()
        if self.waiting is not None:
            if self.launch is not None:
                self._wait(self.waiting, self.launch, b"", self.held_done)
        else:
            held, self.held, self.held_size = b"".join(self.held), [], 0
            if self.tapped:
                self._pass_by()
            if held or self.held_done:
                self.sink.body(held, self.held_done)
        failure, self._extras.failure = self._extras.failure, None
        if failure is not None:
            self.exchange.on_failure(failure)

    def _stop_confirming(self) -> None:
        self._extras.holds = False
        if self.confirming is not None:
            self.confirming.cancel()
            self.confirming = None

    # Waiting

    def _wait(self, waiting: Waiting, launch: Launch, data: bytes, done: bool) -> None:
        """Takes (a part of) the body of a response that waits, and decides whether it goes on waiting."""
        if data:
            waiting.body.append(data)
            waiting.size += len(data)
        if self.confirming is not None and waiting.size <= _MOST_WAITING:
            self.held_done = done
            return
        decision = launch.decision
        if decision is _FAIL_OVER or (decision is _HOLD and done):
            if self._move(waiting.head, waiting.payload if self.tapped else waiting.body, done):
                return
            if launch.foreign and self._fall_back(done):
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
        context = self.exchange.context
        lost = context.lost()
        more, waiting.lost = lost - waiting.lost, lost
        if self.confirming is not None:
            # What it waits for comes sooner.
            return
        if more <= TOLERANCE:
            self._release(waiting)
        else:
            more = min(more, context.runtime.policy.launch.hold)
            waiting.timer = asyncio.get_running_loop().call_later(more, self._time_out, waiting)

    def _release(self, waiting: Waiting, done: bool = False) -> None:
        """COMMIT: what waited goes on, and nothing waits any more."""
        self._stop_waiting()
        self._note()
        self._pass_on(waiting.head, b"".join(waiting.body), done)

    def _pass_on(self, head: ResponseHead, body: bytes, done: bool) -> None:
        if self.tapped:
            self._pass_by()
        self.sink.head(head, body, done)

    def _pass_by(self) -> None:
        """The stream gives the events, so the body need not pass here."""
        self._passed_by = True
        self._extras.pass_by(self)

    def _stop_waiting(self) -> None:
        if self.waiting is not None:
            self.waiting.timer.cancel()
            self.waiting = None

    # Moving

    def _move(self, head: ResponseHead, payload: list[bytes], done: bool) -> bool:
        """Leaves this member for the next in rank; False if there is none, or no attempt is left."""
        exchange = self.exchange
        attempt = exchange.attempt
        if attempt is None or not exchange.may_retry(delivered=True, idempotent=True):
            return False
        now = exchange.context.clock()
        after = exchange.next_lease(attempt.member, "launch", now)
        if after is None:
            return False
        self._keep_answer(head, payload, done)
        self._stop_waiting()
        self._conclude(End.LOST)
        exchange.leave(attempt, Outcome.IGNORED, done, now)
        exchange.ask(after)
        return True

    def _fall_back(self, done: bool) -> bool:
        """Passes on what the member before said: that tells a person more than a token does that is not
        theirs. False if there is nothing of that."""
        exchange = self.exchange
        attempt = exchange.attempt
        if attempt is None or self.last_answer is None:
            return False
        self._stop_waiting()
        self._conclude(End.LOST)
        exchange.leave(attempt, Outcome.IGNORED, done, exchange.context.clock())
        self._answer_again(self.last_answer)
        return True

    def _answer_again(self, answer: tuple[MemberPool, ResponseHead, bytes]) -> None:
        self.exchange.pool, head, payload = answer
        self.launch = None
        self.sink.head(head.unframed(), payload, True)

    def _keep_answer(self, head: ResponseHead, payload: list[bytes], done: bool) -> None:
        """Keeps what a member said of its failure, if it can be said as a whole."""
        launch = self.launch
        failed = launch is not None and launch.end is End.FAILED and not launch.foreign
        if failed and (done or (self.watched and head.length is None)):
            self.last_answer = (self.exchange.pool, head, b"".join(payload))

    def give_up(self, member: Member, error: MemberError) -> bool:
        self._extras.outcome = End.FAILED.value
        if self.last_answer is None:
            return False
        # A member's own answer tells a person more than that yet another one could not be reached.
        self._answer_again(self.last_answer)
        return True

    def refuse(self) -> None:
        self._extras.outcome = self._extras.outcome or End.FAILED.value

    def _note(self) -> None:
        """Notes where the launch went on, if its key would lead elsewhere."""
        exchange = self.exchange
        context, member = exchange.context, exchange.pool.member
        key = context.runtime.key(exchange.line, exchange.origin.client)
        failed = self.launch is not None and self.launch.verdict is not None
        if key is None or failed or not exchange.tried or member in exchange.tried:
            return
        now = self.noted_at = context.clock()
        context.moved.note(key, member.name, now)
        if context.on_moved is not None:
            context.on_moved(key, member.name)

    # Time and the end

    def sweep(self, now: float) -> bool:
        if self.waiting is not None:
            # It has a timer of its own, and no time-out of a response runs before its head went on.
            return True
        if self.noted_at is not None and now - self.noted_at >= _NOTE_AGAIN:
            self._note()
        return False

    def end(self, outcome: Outcome) -> None:
        self._stop_confirming()
        self._stop_waiting()
        self._conclude(End.ABANDONED if outcome is _IGNORED else End.LOST)

    def _conclude(self, end: End) -> None:
        """The attempt is over, `end` says how if its events did not: counted, and the breaker told."""
        launch, self.launch = self.launch, None
        if launch is None:
            return
        exchange = self.exchange
        context = exchange.context
        now = context.clock()
        outcome = self._extras.outcome = launch.close(end, now).value
        if exchange.attempt is not None and launch.blame is not None:
            context.runtime.federation.judge(
                exchange.attempt.lease, launch.blame, now, exchange.origin.client
            )
        self._teach(launch, now)
        counts = exchange.pool.member.counts
        counts.launches[outcome] += 1
        for phase, seconds in launch.phases.items():
            counts.launch_phases[phase] += seconds
        if launch.ready_after is not None:
            counts.launch_duration.observe(launch.ready_after)
            if exchange.observer is not None:
                exchange.observer.example(counts.launch_duration, launch.ready_after)
