"""One request: what the visitor gets of the members' answers, deadlines, and the end.

It stands between a visitor's stream and members' streams (`ports`), and knows the bytes of neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.errors import (
    BodyStalled,
    BodyTimeout,
    MemberError,
    ResponseTimeout,
    SessionUnreachable,
    SlowReader,
    VisitorError,
    VisitorGone,
)
from fedproxy.proxy import answers, recording, sessions
from fedproxy.proxy.phase import Phase
from fedproxy.proxy.sending import Sending
from fedproxy.proxy.tunnel import join

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.errors import ExchangeError
    from fedproxy.http.response import ResponseHead

_SESSION: Final = Source.SESSION
# What chose a member that has a session; any other was only tried.
_KNOWN: Final = (Source.SESSION, Source.COOKIE, Source.HOST)
_SUCCESS: Final = Outcome.SUCCESS
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED
_RELAYING: Final = Phase.RELAYING
_TUNNEL: Final = Phase.TUNNEL
_OVER: Final = Phase.OVER


class Exchange(Sending):
    """One request and its response."""

    __slots__ = ()

    # What the member's stream says

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx, which goes on at once."""
        self.interims += 1
        self.visitor.send_interim(head)

    def on_head(self, head: ResponseHead, body: bytes, done: bool, passed: bool = False) -> None:
        """The final response's head, and what came with it of the body. passed: filters have seen it."""
        status = head.status
        if (status >= 500 or self.extras is not None) and not passed and self._kept(head, body, done):
            return
        attempt = self.attempt
        cookie = None
        if self.says_member:
            if self.line.stays:
                if self.source is _SESSION and not passed and self._is_gone(head, done):
                    return
                self._learn(head)
            cookie = self._cookie(head)
        # COMMIT: from here on the visitor has seen something, and there is no other attempt.
        self.status = status
        if not done:
            self.phase = _RELAYING
            if self.upload is not None:
                self.upload.pieces = None
        self.bytes_out = len(body)
        clock = self.context.clock
        now = self.first_byte_at = clock()
        if attempt is not None and not attempt.lease.member.breaker.closed:
            self._answered(attempt.lease, now)
        sent = self.visitor.send_head(head, self.request_id, cookie, body, done, now)
        if done:
            self._finish(now, sent)

    def _kept(self, head: ResponseHead, body: bytes, done: bool) -> bool:
        """Whether another member is asked, or filters decide what goes on."""
        if self.observer is not None:
            self.observer.answer(head.status)
        if head.status >= 500 and not self.is_launch and self.passed_over(head.status, done):
            return True
        if self.filters and self.extras is not None:
            self.extras.sink.head(head, body, done)
            return True
        return False

    def _is_gone(self, head: ResponseHead, done: bool) -> bool:
        """Whether a person is told that their session has ended, and not what the member says instead."""
        attempt = self.attempt
        if head.status < 300 or attempt is None:
            return False
        error = sessions.find_gone(self.context.runtime, self.line, self.block, attempt.pool, head)
        if error is None:
            return False
        self.leave(attempt, _IGNORED, done, self.context.clock())
        self.refuse(error)
        return True

    def on_body(self, data: bytes, done: bool, passed: bool = False) -> None:
        """(A part of) the response's body. passed: filters have seen it."""
        if self.extras is not None and not passed and self.extras.sink is not self:
            self.extras.sink.body(data, done)
            return
        self.bytes_out += len(data)
        sent = self.visitor.send_body(data, done)
        if done:
            self._finish(self.context.clock(), sent)

    def on_trailers(self, lines: bytes) -> None:
        """The fields after the body."""
        self.visitor.send_trailers(lines)

    def on_upgrade(self, head: ResponseHead, rest: bytes) -> None:
        """A 101: the connections become a tunnel."""
        if self.observer is not None:
            self.observer.answer(head.status)
        attempt, context = self.attempt, self.context
        if attempt is None or attempt.stream is None:
            return
        self.phase = _TUNNEL
        self.status = head.status
        self.bytes_out = len(rest)
        now = self.first_byte_at = context.clock()
        context.runtime.federation.answered(attempt.lease, now, self.origin.client)
        if self.line.stays:
            self._learn(head)
        self.visitor.send_head(head, self.request_id, self._cookie(head), rest, False, now)
        visitor, early = self.visitor.detach()
        member = attempt.stream.detach()
        join(context, visitor, member, early, self.end_tunnel, full=self.full)
        if not self.full:
            attempt.stream.resume()

    # What goes to the visitor

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        """COMMIT: what filters pass on goes to the visitor."""
        if head.chunked and not self.framed:
            # Payload was asked for, so the head must not announce chunks, whatever the filters did.
            head = head.unframed()
        self.on_head(head, body, done, True)

    def _answered(self, lease: Lease, now: float) -> None:
        # A trial need not wait for the end of a stream of an hour, unless a filter is the judge of it.
        judged = self.extras is not None and self.extras.judged
        if not judged and self.status not in self.context.runtime.policy.failing:
            self.context.runtime.federation.answered(lease, now, self.origin.client)

    def _learn(self, head: ResponseHead) -> None:
        """Notes what the answer says about where a session runs."""
        if self.says_member and self.source is not _SESSION:
            sessions.learn(self.context.runtime, self.line, self.block, self.pool, self.source, head)

    def _cookie(self, head: ResponseHead) -> bytes | None:
        """The value of the Set-Cookie that keeps the visitor at this member, if one is needed."""
        if not self.says_member:
            return None
        runtime, line, member = self.context.runtime, self.line, self.pool.member
        if not (line.stays or self.block.cookie or head.public):
            return runtime.pins.set_cookie(member, self.origin.secure)
        if head.public:
            return None
        return runtime.cookie(line, self.block, member, self.source, self.origin.secure)

    def body(self, data: bytes, done: bool) -> None:
        """What filters pass on of the body goes to the visitor."""
        self.on_body(data, done, True)

    def give_up(self, member: Member, error: MemberError) -> None:
        """The last attempt failed: the visitor gets an error, or what a filter has."""
        if self.line.stays and not error.delivered and self.source in _KNOWN:
            error = SessionUnreachable(member.name, error)
        if any(each.give_up(member, error) for each in self.filters):
            return
        member.counts.codes[error.status] += 1
        self._answer(error)

    def refuse(self, error: ExchangeError) -> None:
        """No member is asked, and the visitor is told why."""
        for each in self.filters:
            each.refuse()
        self.context.counts.rejected[error.reason] += 1
        self._answer(error)

    def _answer(self, error: ExchangeError) -> None:
        self.error = error
        self.termination = error.termination
        self.status = error.status
        self.phase = _OVER
        self._leave_upload()
        common = answers.common(self.request_id, self.visitor.hsts)
        if self.extras is not None:
            common += self.extras.fields
        # Nothing that a bad request says may be trusted.
        block = None if isinstance(error, VisitorError) else self.block
        pages = self.context.runtime.policy.pages
        self.visitor.send_answer(answers.of_error(error, self.line, block, common, self.request_id, pages))
        self._record(self.context.clock())

    # What the visitor's stream says

    def on_visitor_full(self) -> None:
        """The visitor reads slowly."""
        self.full = True
        if self.stream is not None:
            self.stream.pause()

    def on_visitor_drained(self) -> None:
        """The visitor reads on."""
        self.full = False
        if self.stream is not None:
            self.stream.resume()

    def on_visitor_gone(self, error: ExchangeError | None = None, unsent: int = 0) -> None:
        """The visitor left, or its connection was cut (`error`). No member is charged.

        unsent: bytes that were written but not sent.
        """
        if self.phase is _OVER:
            return
        self.bytes_out = max(0, self.bytes_out - unsent)
        now = self.context.clock()
        self.error = error or VisitorGone()
        if self.last is None:
            where = "Q" if self.is_launch else "R"
        elif self.first_byte_at is not None:
            where = "D"
        else:
            where = "C" if self.attempt is not None and self.attempt.stream is None else "H"
        self.termination = self.error.termination[0] + where
        self.status = self.status or self.error.status
        self._drop(_IGNORED, now)
        self._record(now)

    def cut(self, error: ExchangeError) -> None:
        """Ends the request from the edge: answered if nothing was sent yet, else aborted."""
        now = self.context.clock()
        if self.first_byte_at is not None:
            self.break_off(error, now)
            return
        self._drop(_IGNORED, now)
        self.refuse(error)

    # Time

    def sweep(self, now: float) -> None:
        """Ends the request if nothing has moved for too long."""
        if sum(each.sweep(now) for each in self.filters):
            return
        moved = self.bytes_in + self.bytes_out + len(self.attempts)
        stream = self.stream
        connecting = self.attempt is not None and stream is None
        if self.progress is None or self.progress[0] != moved or connecting:
            self.progress = (moved, now)
            return
        stood = now - self.progress[1]
        timeouts = self.context.runtime.policy.timeouts
        if stream is None:
            if self.last is None and stood > timeouts.request_idle:
                self.cut(BodyTimeout())
            return
        if self.full:
            # Nothing is read of the member meanwhile, so it cannot be the member that is late.
            if stood > timeouts.response_idle:
                self.break_off(SlowReader(), now)
            return
        waiting_for_100 = self.block.expect and not self.interims and not self.bytes_in
        if not self.body_done and stream.writable and not waiting_for_100:
            if stood > timeouts.request_idle:
                self.cut(BodyTimeout())
        elif self.first_byte_at is None:
            # A member that does not read an upload has as long as one that does not send.
            limit = timeouts.response_head if self.body_done or waiting_for_100 else timeouts.response_idle
            if stood > limit:
                stream.abort()
                self.on_failure(ResponseTimeout())
        elif stood > timeouts.response_idle:
            self.break_off(BodyStalled(), now)

    # The end, exactly once

    def _drop(self, outcome: Outcome, now: float) -> None:
        self._end_filters(outcome)
        self._leave_upload()
        self.phase = _OVER
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        self.context.runtime.federation.settle(attempt.lease, outcome, now, self.origin.client)
        if attempt.stream is not None:
            attempt.stream.abort()

    def _end_filters(self, outcome: Outcome) -> None:
        for each in self.filters:
            each.end(outcome)

    def break_off(self, error: ExchangeError, now: float) -> None:
        """The response cannot be completed, and must not look complete to the visitor."""
        if self.attempt is not None and isinstance(error, MemberError):
            self.attempt.member.counts.errors[error.reason] += 1
        self._drop(_FAILURE if self.blames(error, now) else _IGNORED, now)
        self.error = error
        self.termination = error.termination
        self.bytes_out = max(0, self.bytes_out - self.visitor.broken())
        self._record(now)

    def _finish(self, now: float, sent: bool) -> None:
        """The response is complete. sent: no byte of it waits to be sent."""
        if self.extras is not None:
            self._end_filters(_SUCCESS)
        attempt = self.attempt
        self.phase = _OVER
        if attempt is None:
            # A filter answered, perhaps with what an earlier attempt was told.
            self._leave_upload()
        else:
            self.attempt = None
            runtime = self.context.runtime
            outcome = _SUCCESS
            if self.status >= 500 and self.status in runtime.policy.failing:
                outcome = _FAILURE
            runtime.federation.settle(attempt.lease, outcome, now, self.origin.client)
            stream = attempt.stream
            if self.upload is not None or stream is None:
                self._leave_upload()
                self.let_go(attempt, True, now)
            else:
                stream.release(now)
        if sent:
            self._record(now)

    def delivered(self, now: float) -> None:
        """The end of the response is sent."""
        self._record(now)

    def undelivered(self, unsent: int, who: str) -> None:
        """`unsent` bytes of the response will never be sent. `who` ended it, as in the log."""
        self.bytes_out = max(0, self.bytes_out - unsent)
        self.error = VisitorGone()
        self.termination = who + "D"
        self._record(self.context.clock())

    def end_tunnel(self, termination: str, bytes_in: int, bytes_out: int) -> None:
        """The tunnel is closed; `termination` says by whom."""
        self.visitor.gone()
        now = self.context.clock()
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.termination = termination
        self._end_filters(_SUCCESS)
        self.phase = _OVER
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            if attempt.stream is not None:
                attempt.stream.gone()
            self.context.runtime.federation.settle(attempt.lease, _SUCCESS, now, self.origin.client)
        self._record(now)

    def _record(self, now: float) -> None:
        if self.last is not None:
            counts = self.pool.member.counts
            begun = self.first_byte_at
            if begun is not None or self.error is None:
                counts.codes[self.status] += 1
            counts.record(self.source, self.started, begun, now, self.bytes_out)
            if self.bytes_in:
                counts.bytes_in += self.bytes_in
        if self.extras is not None or self.context.log is not None:
            recording.record_exchange(self, now)
