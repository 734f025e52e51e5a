"""A request whose trace is sampled: an exchange that notes what each of its attempts did, and when.

All other requests are plain exchanges, which pay nothing for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fedproxy.decide.counts import Exemplar
from fedproxy.errors import EdgeError, MemberError, StaleConnection
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.launching import LaunchExchange

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.launch import End
    from fedproxy.decide.member import Member
    from fedproxy.proxy.downstream import Downstream
    from fedproxy.proxy.edge import Ask, Edge
    from fedproxy.proxy.exchange import Visitor
    from fedproxy.proxy.upstream import Upstream
    from fedproxy.wire.request import HeaderBlock, RequestLine
    from fedproxy.wire.response import ResponseHead


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


def kind_of(edge: Edge, visitor: Downstream, block: HeaderBlock, launch: bool) -> type[Exchange]:
    """The kind of exchange for a request that may be of a sampled trace."""
    given = block.traceparent
    if edge.tracer is not None:
        sampled = edge.tracer.samples(given, visitor.trusted)
    else:
        # Others follow the trace, and the metrics may point to it.
        sampled = given is not None and is_flagged(given)
    if launch:
        return SampledLaunch if sampled else LaunchExchange
    return SampledExchange if sampled else Exchange


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


class SampledExchange(Exchange):
    """One request of a sampled trace."""

    # Without __slots__, as a class that two kinds of exchange inherit.

    tracer: Tracer | None
    visitor: Downstream

    def open(self, edge: Edge, visitor: Visitor, ask: Ask, block: HeaderBlock) -> None:
        super().open(edge, visitor, ask, block)
        self.tracer = edge.tracer
        self.trace_id = self.visitor.trace[3:35]
        self.noted: list[Attempt] = []

    # Attempts

    def _attempt(self, lease: Lease) -> None:
        self._begin_attempt(lease.member)
        super()._attempt(lease)

    def _again(self, lease: Lease) -> None:
        self._begin_attempt(lease.member)
        super()._again(lease)

    def _begin_attempt(self, member: Member) -> None:
        now = self.edge.clock()
        self._end_attempt(now)
        self.noted.append(Attempt(_new_id(self.edge), member.name, member.url, now))

    def _send(self, upstream: Upstream) -> None:
        attempt = self.noted[-1]
        attempt.sent = self.edge.clock()
        attempt.reused = upstream.reused
        if self.tracer is not None:
            # What the member does is a part of this attempt.
            self.visitor.trace = b"00-%b-%b-01" % (self.trace_id, attempt.span_id)
        super()._send(upstream)

    def on_head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        self.noted[-1].status = head.status
        super().on_head(head, body, done)

    def on_upgrade(self, head: ResponseHead, rest: bytes) -> bool:
        self.noted[-1].status = head.status
        return super().on_upgrade(head, rest)

    def on_failure(self, error: MemberError) -> None:
        if self.lease is not None and not self.settled:
            self._end_attempt(self.edge.clock(), error.reason)
        super().on_failure(error)

    def _end_attempt(self, now: float, error: str | None = None) -> None:
        attempt = self.noted[-1] if self.noted else None
        if attempt is None or attempt.ended is not None:
            return
        attempt.ended = now
        attempt.error = error
        if error != StaleConnection.reason:
            attempt.launch = self.outcome

    # The end

    def _record(self, now: float) -> None:
        super()._record(now)
        failed = isinstance(self.error, MemberError | EdgeError)
        error = self.error.reason if failed and self.error is not None else None
        self._end_attempt(now, error)
        if self.attempts:
            begun, started = self.first_byte_at, self.started
            counts = self.pool.member.counts
            counts.duration.exemplify(self._exemplar(now - started))
            if begun is not None:
                counts.first_byte.exemplify(self._exemplar(begun - started))
        if self.tracer is not None:
            self.tracer.take(self._trace(now, error))

    def _exemplar(self, seconds: float) -> Exemplar:
        return Exemplar(seconds, self.trace_id.decode("ascii"), time.time())

    def _trace(self, now: float, error: str | None) -> Trace:
        trace = _begin_trace(self.edge, self.visitor, self.ask.line, self.block, self.started)
        trace.ended = now
        trace.first_byte_at = self.first_byte_at
        trace.status = self.status
        trace.bytes_in = self.bytes_in
        trace.bytes_out = self.bytes_out
        trace.member = self.pool.member.name if self.attempts else None
        trace.affinity = self.source.value if self.source is not None else None
        trace.termination = self.termination
        trace.launch = self.outcome
        trace.error = error
        trace.attempts = self.noted
        return trace


class SampledLaunch(SampledExchange, LaunchExchange):
    """One launch of a sampled trace."""

    def _conclude(self, end: End) -> None:
        launch = self.launch
        super()._conclude(end)
        if launch is not None and launch.ready_after is not None:
            self.pool.member.counts.launch_duration.exemplify(self._exemplar(launch.ready_after))
