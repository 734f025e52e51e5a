"""A request whose trace is sampled: notes of what each of its attempts did, and when.

An exchange has none where its trace is not sampled, which costs it a few looks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from fedproxy.decide.counts import Exemplar
from fedproxy.errors import EdgeError, MemberError, StaleConnection

if TYPE_CHECKING:
    from fedproxy.decide.counts import Histogram
    from fedproxy.decide.member import Member
    from fedproxy.proxy.downstream import Downstream
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.wire.request import HeaderBlock, RequestLine


@dataclass(slots=True)
class Attempt:
    """One attempt. sent: when there was a connection for it. error: as in the metrics, if the member failed.

    launch: how a launch ended on this member.
    """

    span_id: bytes
    member: str
    url: str
    started: float
    sent: float | None = None
    ended: float | None = None
    reused: bool = False
    status: int = 0
    error: str | None = None
    launch: str | None = None


@dataclass(slots=True)
class Trace:
    """One request of a sampled trace, once it is over. Times in seconds by the edge's clock.

    parent_id: the visitor's span, if there is one. error: as in the metrics, if a member or the edge failed.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None
    started: float
    ended: float
    request_id: str
    client: str
    secure: bool
    method: str
    host: str
    target: str
    version: str
    user_agent: str
    first_byte_at: float | None = None
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    member: str | None = None
    affinity: str | None = None
    termination: str = "--"
    launch: str | None = None
    error: str | None = None
    attempts: list[Attempt] = field(default_factory=list)


class Tracer(Protocol):
    """Whoever makes spans of traces."""

    def samples(self, traceparent: bytes | None, trusted: bool) -> bool:
        """Whether a request is traced; its traceparent, if it has one, was passed on by somebody trusted."""

    def take(self, trace: Trace) -> None:
        """Takes a request that is over."""


def is_flagged(traceparent: bytes) -> bool:
    """Whether it says that its trace is sampled (W3C Trace Context section 3.2.2.5)."""
    return traceparent[-1] in b"13579bdf"


def follow(exchange: Exchange) -> None:
    """Has notes taken of a request, if it is of a sampled trace."""
    edge, given = exchange.edge, exchange.block.traceparent
    if edge.tracer is not None:
        sampled = edge.tracer.samples(given, cast("Downstream", exchange.visitor).trusted)
    else:
        # Others follow the trace, and the metrics may point to it.
        sampled = given is not None and is_flagged(given)
    if sampled:
        exchange.notes = Notes(exchange)


def take_answer(
    edge: Edge,
    visitor: Downstream,
    line: RequestLine,
    block: HeaderBlock,
    status: int,
    member: str | None,
    affinity: str | None,
    termination: str,
) -> None:
    """A request that was answered without an exchange, which takes no time that could be measured."""
    tracer = edge.tracer
    if tracer is not None and tracer.samples(block.traceparent, visitor.trusted):
        trace = _begin_trace(edge, visitor, line, block, edge.clock())
        trace.status = status
        trace.member = member
        trace.affinity = affinity
        trace.termination = termination
        tracer.take(trace)


def _begin_trace(edge: Edge, visitor: Downstream, line: RequestLine, block: HeaderBlock, now: float) -> Trace:
    given = block.traceparent
    return Trace(
        trace_id=visitor.trace[3:35],
        span_id=_new_id(edge),
        parent_id=given[36:52] if given is not None else None,
        started=now,
        ended=now,
        request_id=visitor.request_id.decode("ascii"),
        client=visitor.client.decode("latin-1"),
        secure=visitor.secure,
        method=line.method.decode("latin-1"),
        host=(line.authority or block.host or b"").decode("latin-1"),
        target=line.target.decode("latin-1"),
        version="1.0" if line.http10 else "1.1",
        user_agent=block.value(b"user-agent").decode("latin-1"),
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
        self.visitor = cast("Downstream", exchange.visitor)
        self.trace_id = self.visitor.trace[3:35]
        self.attempts: list[Attempt] = []

    def begin(self, member: Member) -> None:
        """Another attempt begins, and with that the one before is over."""
        now = self.edge.clock()
        self.end(now)
        self.attempts.append(Attempt(_new_id(self.edge), member.name, member.url, now))

    def send(self, reused: bool) -> None:
        """There is a connection for the attempt, and the request is to be sent."""
        attempt = self.attempts[-1]
        attempt.sent = self.edge.clock()
        attempt.reused = reused
        if self.tracer is not None:
            # What the member does is a part of this attempt.
            self.visitor.trace = b"00-" + self.trace_id + b"-" + attempt.span_id + b"-01"

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

    def record(self, now: float) -> None:
        """The exchange is over, and was counted."""
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
        if self.tracer is not None:
            self.tracer.take(self._trace(now, error))

    def _trace(self, now: float, error: str | None) -> Trace:
        exchange = self.exchange
        trace = _begin_trace(self.edge, self.visitor, exchange.ask.line, exchange.block, exchange.started)
        trace.ended = now
        trace.first_byte_at = exchange.first_byte_at
        trace.status = exchange.status
        trace.bytes_in = exchange.bytes_in
        trace.bytes_out = exchange.bytes_out
        trace.member = exchange.pool.member.name if exchange.attempts else None
        trace.affinity = exchange.source.value if exchange.source is not None else None
        trace.termination = exchange.termination
        trace.launch = exchange.outcome
        trace.error = error
        trace.attempts = self.attempts
        return trace
