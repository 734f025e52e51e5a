"""One record of each finished request, for the log and for spans."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fedproxy.errors import EdgeError, MemberError
from fedproxy.proxy.tracing import trace_of_answer
from fedproxy.record import Record

if TYPE_CHECKING:
    from fedproxy.errors import VisitorError
    from fedproxy.http.request import HeaderBlock, Origin, RequestLine
    from fedproxy.proxy.answers import Answer, AnsweredRequest
    from fedproxy.proxy.attempting import Attempting
    from fedproxy.proxy.context import Context


def record_exchange(exchange: Attempting, now: float) -> None:
    """Records an exchange that is over."""
    context, observer = exchange.context, exchange.observer
    trace = None if observer is None else observer.record(now)
    if context.log is None and trace is None:
        return
    first, started, error = exchange.first_byte_at, exchange.started, exchange.error
    record = _record(exchange.origin, exchange.request_id, exchange.line, exchange.block, exchange.status)
    record.bytes_in = exchange.bytes_in
    record.bytes_out = exchange.bytes_out
    record.duration = now - started
    record.ttfb = None if first is None else first - started
    if exchange.last is not None and exchange.pool.member is not context.own:
        record.member = exchange.pool.member.name
        record.attempts = len(exchange.attempts)
        record.affinity = exchange.source.value
    record.termination = exchange.termination
    record.launch = exchange.outcome
    record.error = error.reason if isinstance(error, MemberError | EdgeError) else None
    if context.log is not None:
        context.log(record)
    if observer is not None and trace is not None:
        record.trace = trace
        observer.take(record)


def record_answer(context: Context, request: AnsweredRequest, answer: Answer) -> None:
    """Records a request that was answered without an exchange, which takes no time worth measuring."""
    trace, tracer = None, context.tracer
    if tracer is not None:
        trace = trace_of_answer(context, tracer, request.trusted, request.block, request.traceparent)
    if context.log is None and trace is None:
        return
    record = _record(request.origin, request.request_id, request.line, request.block, answer.status)
    record.member = answer.member
    record.affinity = answer.source.value if answer.source is not None else None
    record.termination = answer.termination
    if context.log is not None:
        context.log(record)
    if trace is not None and tracer is not None:
        record.trace = trace
        tracer.take(record)


def record_refusal(
    context: Context, origin: Origin, request_id: bytes, error: VisitorError, protocol: str
) -> None:
    """Records a request whose head was refused."""
    if context.log is not None:
        record = _record(origin, request_id, None, None, error.status)
        record.protocol = protocol
        record.termination = error.termination
        context.log(record)


def _record(
    origin: Origin, request_id: bytes, line: RequestLine | None, block: HeaderBlock | None, status: int
) -> Record:
    method, target, protocol = line.words if line else ("", "", "HTTP/1.1")
    host, agent, referer = block.words() if block else ("", "", "")
    if line and line.authority:
        host = line.authority.decode("latin-1")
    return Record(
        time=time.time(),
        request_id=request_id.decode("ascii"),
        client=origin.client.decode("latin-1"),
        method=method,
        host=host,
        target=target,
        protocol=protocol,
        status=status,
        user_agent=agent,
        referer=referer,
        secure=origin.secure,
    )
