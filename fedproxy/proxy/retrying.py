"""What happens when an attempt fails: who is charged, and whether there is another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease
from fedproxy.decide.limit import known_client
from fedproxy.decide.retry import may_retry
from fedproxy.errors import BodyLost, EdgeError, ExchangeError, MemberError, ResponseLost, StaleConnection
from fedproxy.proxy.attempting import Attempting

if TYPE_CHECKING:
    from fedproxy.decide.federation import Refusal
    from fedproxy.decide.member import Member
    from fedproxy.proxy.attempt import Attempt

_COOKIE: Final = Source.COOKIE
_HOST: Final = Source.HOST
_SESSION: Final = Source.SESSION
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED
# A member that says so is no worse than one that says nothing. A 500 is about the request as likely as not.
_PASSED_OVER: Final = frozenset((502, 503, 504))


class Retrying(Attempting):
    """One request, as far as its failures are concerned."""

    __slots__ = ()

    def on_failure(self, error: MemberError) -> None:
        """The attempt failed; another may follow if nothing reached the visitor."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.stream = None
        if self.extras is not None and self.extras.holds:
            self.extras.failure = error
            return
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

    def on_own_fault(self, attempt: Attempt, error: EdgeError) -> None:
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
            if delivered or self.source in (_COOKIE, _HOST, _SESSION):
                return None
        elif not runtime.may_move(line, self.block):
            return None
        federation = runtime.federation
        key = runtime.key(line, client)
        lease = federation.acquire(key, None, self.tried, now, self.is_launch, client, line.image)
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

    # What `Exchange` adds

    def give_up(self, member: Member, error: MemberError) -> None:
        """The last attempt failed, and the visitor is told so."""
        raise NotImplementedError

    def cut(self, error: ExchangeError) -> None:
        """Ends the request from the edge."""
        raise NotImplementedError

    def break_off(self, error: ExchangeError, now: float) -> None:
        """The response cannot be completed."""
        raise NotImplementedError
