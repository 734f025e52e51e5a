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
    from fedproxy.wire.request import HeaderBlock
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
    first_byte_at: float | None
    request_id: str
    client: str
    secure: bool
    method: str
    host: str
    target: str
    version: str
    user_agent: str
    status: int
    bytes_in: int
    bytes_out: int
    member: str | None
    affinity: str | None
    termination: str
    launch: str | None
    error: str | None
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


class SampledExchange(Exchange):
    """One request of a sampled trace."""

    # Without __slots__, as a class that two kinds of exchange inherit.

    tracer: Tracer | None
    visitor: Downstream

    def open(self, edge: Edge, visitor: Visitor, ask: Ask, block: HeaderBlock, now: float) -> None:
        super().open(edge, visitor, ask, block, now)
        self.tracer = edge.tracer
        self.trace_id = self.visitor.trace[3:35]
        self.noted: list[Attempt] = []

    def _new_id(self) -> bytes:
        return b"%016x" % (self.edge.random_bits(64) or 1)

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
        self.noted.append(Attempt(self._new_id(), member.name, member.url, now))

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
        visitor, block, line = self.visitor, self.block, self.ask.line
        given = block.traceparent
        return Trace(
            trace_id=self.trace_id,
            span_id=self._new_id(),
            parent_id=given[36:52] if given is not None else None,
            started=self.started,
            ended=now,
            first_byte_at=self.first_byte_at,
            request_id=visitor.request_id.decode("ascii"),
            client=visitor.client.decode("latin-1"),
            secure=visitor.secure,
            method=line.method.decode("latin-1"),
            host=(line.authority or block.host or b"").decode("latin-1"),
            target=line.target.decode("latin-1"),
            version="1.0" if line.http10 else "1.1",
            user_agent=block.value(b"user-agent").decode("latin-1"),
            status=self.status,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            member=self.pool.member.name if self.attempts else None,
            affinity=self.source.value if self.source is not None else None,
            termination=self.termination,
            launch=self.outcome,
            error=error,
            attempts=self.noted,
        )


class SampledLaunch(SampledExchange, LaunchExchange):
    """One launch of a sampled trace."""

    def _conclude(self, end: End) -> None:
        launch = self.launch
        super()._conclude(end)
        if launch is not None and launch.ready_after is not None:
            self.pool.member.counts.launch_duration.exemplify(self._exemplar(launch.ready_after))
