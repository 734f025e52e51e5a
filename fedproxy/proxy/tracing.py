"""A request whose trace is sampled: notes of what each of its attempts did, and when."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fedproxy.decide.counts import Exemplar
from fedproxy.errors import EdgeError, MemberError, StaleConnection
from fedproxy.record import AttemptRecord, TraceRecord

if TYPE_CHECKING:
    from fedproxy.decide.counts import Histogram
    from fedproxy.decide.member import Member
    from fedproxy.http.request import HeaderBlock
    from fedproxy.proxy.attempting import Attempting
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.ports import Tracer
    from fedproxy.record import Record


def is_flagged(traceparent: bytes) -> bool:
    """Whether it says that its trace is sampled (W3C Trace Context section 3.2.2.5)."""
    return traceparent[-1] in b"13579bdf"


def trace_of_answer(
    context: Context, tracer: Tracer, trusted: bool, block: HeaderBlock, traceparent: bytes
) -> TraceRecord | None:
    """The trace of a request that was answered without an exchange; None if it is not sampled."""
    if not tracer.samples(block.traceparent, trusted):
        return None
    return _begin_trace(context, block, traceparent, context.clock())


def _begin_trace(context: Context, block: HeaderBlock, traceparent: bytes, now: float) -> TraceRecord:
    given = block.traceparent
    return TraceRecord(
        trace_id=traceparent[3:35],
        span_id=_new_id(context),
        parent_id=given[36:52] if given is not None else None,
        started=now,
        ended=now,
    )


def _new_id(context: Context) -> bytes:
    return b"%016x" % (context.random_bits(64) or 1)


class Notes:
    """The `Observer` of one exchange whose trace is sampled."""

    def __init__(self, exchange: Attempting) -> None:
        self.exchange = exchange
        self.context = exchange.context
        self.tracer = exchange.context.tracer
        self.trace_id = exchange.traceparent[3:35]
        self.attempts: list[AttemptRecord] = []

    def begin(self, member: Member) -> None:
        """Another attempt begins, and with that the one before is over."""
        now = self.context.clock()
        self.end(now)
        self.attempts.append(AttemptRecord(_new_id(self.context), member.name, member.url, now))

    def send(self, reused: bool) -> None:
        """There is a connection for the attempt, and the request is to be sent."""
        attempt = self.attempts[-1]
        attempt.sent = self.context.clock()
        attempt.reused = reused
        if self.tracer is not None:
            # What the member does is a part of this attempt.
            self.exchange.traceparent = b"00-" + self.trace_id + b"-" + attempt.span_id + b"-01"

    def answer(self, status: int) -> None:
        """The member answered."""
        self.attempts[-1].status = status

    def fail(self, error: MemberError) -> None:
        """The attempt failed."""
        self.end(self.context.clock(), error.reason)

    def end(self, now: float, error: str | None = None) -> None:
        """The attempt is over, if there is one and it was not over yet."""
        attempt = self.attempts[-1] if self.attempts else None
        if attempt is None or attempt.ended is not None:
            return
        attempt.ended = now
        attempt.error = error
        if error != StaleConnection.reason:
            attempt.launch = self.exchange.outcome

    def example(self, histogram: Histogram, seconds: float) -> None:
        """A value that was counted is an example of its bucket."""
        histogram.exemplify(Exemplar(seconds, self.trace_id.decode("ascii"), time.time()))

    def record(self, now: float) -> TraceRecord | None:
        """The exchange is over, and was counted. Returns its trace, or None if no spans are made of it."""
        exchange = self.exchange
        error = None
        if isinstance(exchange.error, MemberError | EdgeError):
            error = exchange.error.reason
        self.end(now, error)
        if exchange.last is not None:
            begun, started = exchange.first_byte_at, exchange.started
            counts = exchange.pool.member.counts
            self.example(counts.duration, now - started)
            if begun is not None:
                self.example(counts.first_byte, begun - started)
        if self.tracer is None:
            return None
        trace = _begin_trace(self.context, exchange.block, exchange.traceparent, exchange.started)
        trace.ended = now
        trace.attempts = self.attempts
        return trace

    def take(self, record: Record) -> None:
        """Takes the record of the exchange, with the trace."""
        if self.tracer is not None:
            self.tracer.take(record)
