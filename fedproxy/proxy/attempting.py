"""How a request gets its answer: the member that is chosen, the attempts, and when there is another.

Every step is a plain `def`, so no step is interrupted; the one thing waited for is a new connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease
from fedproxy.decide.limit import known_client
from fedproxy.decide.retry import may_retry
from fedproxy.errors import (
    BodyLost,
    EdgeError,
    ExchangeError,
    MemberError,
    ResponseLost,
    StaleConnection,
)
from fedproxy.proxy.answers import refused
from fedproxy.proxy.attempt import Attempt
from fedproxy.proxy.phase import Phase
from fedproxy.proxy.ports import Receiver
from fedproxy.proxy.routing import RoutedRequest

if TYPE_CHECKING:
    from fedproxy.decide.federation import Refusal
    from fedproxy.decide.member import Member
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.extras import Extras
    from fedproxy.proxy.ports import Filter, MemberPool, MemberStream, Observer, VisitorStream
    from fedproxy.proxy.upload import Upload


# Looking up what an enumeration holds is slow, and these are asked for by each request.
_COOKIE: Final = Source.COOKIE
_HOST: Final = Source.HOST
_MOVED: Final = Source.MOVED
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED
_CHOOSING: Final = Phase.CHOOSING
_ASKING: Final = Phase.ASKING
_OVER: Final = Phase.OVER
# A member that says so is no worse than one that says nothing. A 500 is about the request as likely as not.
_PASSED_OVER: Final = frozenset((502, 503, 504))


class Attempting(Receiver[RoutedRequest]):
    """One request, as far as members are concerned. What the visitor gets of it is `Exchange`'s business.

    attempt: the one under way. pool: of the member that the record names. source: what chose that member.
    Neither is set before the first attempt. sets_cookie: the response sets the affinity cookie. tried:
    members that are not asked again. progress: how much had moved at the last sweep, and since when.
    """

    __slots__ = (
        "attempt",
        "attempts",
        "bytes_in",
        "bytes_out",
        "context",
        "error",
        "extras",
        "first_byte_at",
        "interims",
        "is_launch",
        "phase",
        "pool",
        "progress",
        "sets_cookie",
        "source",
        "started",
        "status",
        "termination",
        "tried",
        "upload",
        "visitor",
    )

    pool: MemberPool
    source: Source

    def open(
        self,
        context: Context,
        visitor: VisitorStream,
        line: RoutedRequest,
        block: HeaderBlock,
        origin: Origin,
        request_id: bytes,
        traceparent: bytes,
    ) -> None:
        """Sets everything: as an `__init__`, which the interpreter calls the long way, it would cost more."""
        self.context = context
        self.visitor = visitor
        self.line = line
        self.block = block
        self.origin = origin
        self.request_id = request_id
        self.traceparent = traceparent
        self.framed = True
        clock = context.clock
        self.started = clock()
        self.phase = _CHOOSING
        self.attempt: Attempt | None = None
        self.attempts: tuple[Attempt, ...] = ()
        self.tried: tuple[Member, ...] = ()
        self.upload: Upload | None = None
        self.extras: Extras | None = None
        self.is_launch = False
        self.full = False
        self.interims = 0
        self.sets_cookie = False
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte_at: float | None = None
        self.error: ExchangeError | None = None
        self.termination = "--"
        self.progress: tuple[int, float] | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.phase.value} {self.attempts}>"

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The filters; none for most requests."""
        return () if self.extras is None else self.extras.filters

    @property
    def observer(self) -> Observer | None:
        """The observer; None for most requests."""
        return None if self.extras is None else self.extras.observer

    @property
    def outcome(self) -> str | None:
        """How a launch ended; None if it has not ended, or the request is no launch."""
        return None if self.extras is None else self.extras.outcome

    # Choose and attempt

    def begin(self) -> None:
        """Chooses a member and sends it the request."""
        if self.extras is not None and self.answered_before():
            return
        lease = self.context.runtime.choose(
            self.line, self.block, self.origin.client, self.started, self.is_launch
        )
        if isinstance(lease, Lease):
            self.ask(lease)
        else:
            self.refuse(refused(lease))

    def answered_before(self) -> bool:
        """Asks each filter for an answer. True if one has given it, so that no member is chosen."""
        return any(each.before() for each in self.filters)

    def ask(self, lease: Lease, fresh: bool = False) -> None:
        """Makes an attempt. fresh: at the same member as before, on a new connection."""
        if not fresh:
            source = self.source = lease.source if not self.tried else _MOVED
            if source is not _COOKIE or self.line.renews:
                self.sets_cookie = source is not _HOST
        pool = self.pool = self.context.runtime.pools[lease.member.name]
        attempt = self.attempt = Attempt()
        attempt.lease = lease
        attempt.pool = pool
        self.attempts += (attempt,)
        self.phase = _ASKING
        if self.extras is not None:
            self._announce(lease, fresh)
        stream = None if fresh else pool.take()
        attempt.stream = stream
        if stream is None:
            self.context.start(self._connect(attempt))
        elif self.upload is None and self.extras is None:
            stream.send(self, None)
        else:
            self.send(attempt, stream)

    def _announce(self, lease: Lease, fresh: bool) -> None:
        """Tells the filters and the observer that an attempt begins."""
        if not fresh:
            for each in self.filters:
                each.begin(lease)
        if self.observer is not None:
            self.observer.begin(lease.member)

    async def _connect(self, attempt: Attempt) -> None:
        try:
            stream = await attempt.pool.connect()
        except MemberError as error:
            self.on_failure(error)
            return
        except EdgeError as error:
            if self.phase is not _OVER:
                self._on_own_fault(attempt, error)
            return
        if self.phase is _OVER:
            stream.release(self.context.clock())
        elif stream.transport.is_closing():
            stream.abort()
            self.on_failure(StaleConnection())
        else:
            self.send(attempt, stream)

    def upgrade(self) -> bytes | None:
        """The protocols that the member is asked to switch to; None for none."""
        return None if self.is_launch or self.line.http10 else self.block.upgrade

    # When an attempt fails

    def on_failure(self, error: MemberError) -> None:
        """The attempt failed; another may follow if nothing reached the visitor."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.stream = None
        attempt.error = error
        context = self.context
        federation = context.runtime.federation
        now = context.clock()
        blamed = self.blames(error, now)
        for each in self.filters:
            each.fail(error, blamed)
        if self.observer is not None:
            self.observer.fail(error)
        self.attempt = None
        lease, member, client = attempt.lease, attempt.member, self.origin.client
        federation.settle(lease, _FAILURE if blamed else _IGNORED, now, client)
        if self.line.stays and not error.delivered:
            # What a session's server answers says nothing about the member; that it cannot be reached does.
            federation.unreached(member, now, client)
        member.counts.errors[error.reason] += 1
        if self.first_byte_at is not None:
            self.break_off(error, now)
            return
        if self.may_retry(error.delivered):
            if isinstance(error, StaleConnection) and context.runtime.pools.get(member.name) is attempt.pool:
                # A member may close an idle connection: the same one again, on a new connection.
                again = self._same(member, lease.source, now)
                if isinstance(again, Lease):
                    member.counts.retries[error.reason] += 1
                    self.ask(again, True)
                    return
            # That member has failed, or is not available any more.
            after = self.next_lease(member, error.reason, now, error.delivered)
            if after is not None:
                self.ask(after)
                return
        self.give_up(member, error)

    def _on_own_fault(self, attempt: Attempt, error: EdgeError) -> None:
        """There is no connection, and the member is not to blame."""
        for each in self.filters:
            each.fail(error, False)
        if error.elsewhere and self.may_retry(delivered=False):
            now = self.context.clock()
            self.context.runtime.federation.settle(attempt.lease, _IGNORED, now)
            self.attempt = None
            attempt.error = error
            after = self.next_lease(attempt.member, error.reason, now, delivered=False)
            if after is not None:
                self.ask(after)
                return
        self.cut(error)

    def blames(self, error: ExchangeError, now: float) -> bool:
        """Whether the member is to blame."""
        if isinstance(error, ResponseLost | BodyLost):
            # Not for a kept connection that was closed, nor if this process slept and the member gave up.
            return not isinstance(error, StaleConnection) and not self.context.slept(self.started, now)
        return isinstance(error, MemberError)

    def _same(self, member: Member, source: Source, now: float) -> Lease | Refusal:
        """Another lease of the same member."""
        federation = self.context.runtime.federation
        if self.line.stays:
            return federation.acquire_session(member, source, self.is_launch)
        return federation.acquire_member(member, source, self.tried, now, self.is_launch, self.origin.client)

    def may_retry(self, delivered: bool, idempotent: bool = False) -> bool:
        """Whether there may be another attempt. delivered: the member may have seen the request."""
        upload = self.upload
        return may_retry(
            idempotent=idempotent or self.line.idempotent,
            delivered=delivered,
            committed=self.first_byte_at is not None or self.interims > 0,
            replayable=upload is None or upload.pieces is not None or not self.bytes_in,
            attempts=len(self.attempts),
            max_attempts=self.context.runtime.policy.attempts,
        )

    def next_lease(self, member: Member, reason: str, now: float, delivered: bool = True) -> Lease | None:
        """A lease of the next in rank after `member`; None if there is none, or the budget is used up.

        A session's request goes to another member only if nothing said where the session is and `member`
        could not be reached.
        """
        context, client, line = self.context, self.origin.client, self.line
        runtime = context.runtime
        self.tried += (member,)
        if line.stays:
            if delivered or self.source is _COOKIE or self.source is _HOST:
                return None
        elif not runtime.may_move(line, self.block):
            return None
        federation = runtime.federation
        lease = federation.acquire(runtime.key(line, client), None, self.tried, now, self.is_launch, client)
        if not isinstance(lease, Lease):
            return None
        if line.stays:
            federation.spare(lease, now, client)
        if not runtime.budget.withdraw(now, context.counts.requests, known_client(client)):
            context.counts.budget_exhausted += 1
            federation.settle(lease, _IGNORED, now)
            return None
        member.counts.retries[reason] += 1
        return lease

    def passed_over(self, status: int, done: bool) -> bool:
        """Whether another member is asked, and a failing answer not passed on."""
        attempt = self.attempt
        if status not in _PASSED_OVER or attempt is None:
            return False
        if self.line.stays or not self.may_retry(delivered=True):
            return False
        now = self.context.clock()
        after = self.next_lease(attempt.member, str(status), now)
        if after is None:
            return False
        self.leave(attempt, _FAILURE, done, now)
        self.ask(after)
        return True

    def leave(self, attempt: Attempt, outcome: Outcome, done: bool, now: float) -> None:
        """Ends the attempt under way, for another. done: the member's answer is whole."""
        self.context.runtime.federation.settle(attempt.lease, outcome, now, self.origin.client)
        self.attempt = None
        self.let_go(attempt, done, now)

    def let_go(self, attempt: Attempt, done: bool, now: float) -> None:
        """Keeps a connection for others, if the request and its answer are whole."""
        stream, attempt.stream = attempt.stream, None
        if stream is None:
            return
        if done and self.body_done and not (self.bytes_in and stream.unsent()):
            stream.release(now)
        else:
            # An early answer: the member has not read the whole request, so no other may follow on it.
            stream.abort()

    # What `Sending` and `Exchange` add

    @property
    def body_done(self) -> bool:
        """Whether all of the request has come."""
        return self.upload is None or self.upload.done

    def send(self, attempt: Attempt, stream: MemberStream) -> None:
        """Sends the request, as far as it has come."""
        raise NotImplementedError

    def refuse(self, error: ExchangeError) -> None:
        """No member is asked, and the visitor is told why."""
        raise NotImplementedError

    def give_up(self, member: Member, error: MemberError) -> None:
        """The last attempt failed, and the visitor is told so."""
        raise NotImplementedError

    def cut(self, error: ExchangeError) -> None:
        """Ends the request from the edge."""
        raise NotImplementedError

    def break_off(self, error: ExchangeError, now: float, termination: str | None = None) -> None:
        """The response cannot be completed."""
        raise NotImplementedError
