"""A request whose trace is sampled: notes of what each of its attempts did, and when.

An exchange has none where its trace is not sampled, which costs it a few looks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from fedproxy.decide.counts import Exemplar
from fedproxy.errors import EdgeError, MemberError, StaleConnection
from fedproxy.record import AttemptRecord, TraceRecord

if TYPE_CHECKING:
    from fedproxy.decide.counts import Histogram
    from fedproxy.decide.member import Member
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.record import Record
    from fedproxy.wire.request import HeaderBlock


class Tracer(Protocol):
    """Whoever makes spans of traces."""

    def samples(self, traceparent: bytes | None, trusted: bool) -> bool:
        """Whether a request is traced; its traceparent, if it has one, was passed on by somebody trusted."""

    def take(self, record: Record) -> None:
        """Takes a request that is over, and has a trace."""


def is_flagged(traceparent: bytes) -> bool:
    """Whether it says that its trace is sampled (W3C Trace Context section 3.2.2.5)."""
    return traceparent[-1] in b"13579bdf"


def follow(exchange: Exchange) -> None:
    """Has notes taken of a request, if it is of a sampled trace."""
    edge, given = exchange.edge, exchange.block.traceparent
    if edge.tracer is not None:
        sampled = edge.tracer.samples(given, exchange.visitor.trusted)
    else:
        # Others follow the trace, and the metrics may point to it.
        sampled = given is not None and is_flagged(given)
    if sampled:
        exchange.notes = Notes(exchange)


def trace_of_answer(
    edge: Edge, tracer: Tracer, trusted: bool, block: HeaderBlock, traceparent: bytes
) -> TraceRecord | None:
    """The trace of a request that was answered without an exchange; None if it is not sampled."""
    if not tracer.samples(block.traceparent, trusted):
        return None
    return _begin_trace(edge, block, traceparent, edge.clock())


def _begin_trace(edge: Edge, block: HeaderBlock, traceparent: bytes, now: float) -> TraceRecord:
    given = block.traceparent
    return TraceRecord(
        trace_id=traceparent[3:35],
        span_id=_new_id(edge),
        parent_id=given[36:52] if given is not None else None,
        started=now,
        ended=now,
    )


def _new_id(edge: Edge) -> bytes:
    return b"%016x" % (edge.random_bits(64) or 1)


class Notes:
    """What is noted of one exchange, which tells what happens."""

    def __init__(self, exchange: Exchange) -> None:
        edge = exchange.edge
        self.exchange = exchange
        self.edge = edge
        self.tracer = edge.tracer
        self.trace_id = exchange.traceparent[3:35]
        self.attempts: list[AttemptRecord] = []

    def begin(self, member: Member) -> None:
        """Another attempt begins, and with that the one before is over."""
        now = self.edge.clock()
        self.end(now)
        self.attempts.append(AttemptRecord(_new_id(self.edge), member.name, member.url, now))

    def send(self, reused: bool) -> None:
        """There is a connection for the attempt, and the request is to be sent."""
        attempt = self.attempts[-1]
        attempt.sent = self.edge.clock()
        attempt.reused = reused
        if self.tracer is not None:
            # What the member does is a part of this attempt.
            self.exchange.traceparent = b"00-" + self.trace_id + b"-" + attempt.span_id + b"-01"

    def answer(self, status: int) -> None:
        """The member answered."""
        self.attempts[-1].status = status

    def fail(self, error: MemberError) -> None:
        """The attempt failed."""
        if self.exchange.lease is not None and not self.exchange.settled:
            self.end(self.edge.clock(), error.reason)

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
        """The exchange is over, and was counted: its trace, if somebody makes spans of it."""
        exchange = self.exchange
        error = None
        if isinstance(exchange.error, MemberError | EdgeError):
            error = exchange.error.reason
        self.end(now, error)
        if exchange.attempts:
            begun, started = exchange.first_byte_at, exchange.started
            counts = exchange.pool.member.counts
            self.example(counts.duration, now - started)
            if begun is not None:
                self.example(counts.first_byte, begun - started)
        if self.tracer is None:
            return None
        trace = _begin_trace(self.edge, exchange.block, exchange.traceparent, exchange.started)
        trace.ended = now
        trace.attempts = self.attempts
        return trace
