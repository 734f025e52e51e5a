"""Traces: OpenTelemetry spans, built from the record of a request once it has ended.

It is imported if tracing is configured, as OpenTelemetry is only there with `fedproxy[otel]`. A thread of the
SDK sends the spans: its queue is bounded, and spans over the bound are dropped.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from fedproxy import __version__
from fedproxy.observe.access_log import mask_target
from fedproxy.observe.otlp import TIMEOUT, Complaints, resource, yield_to_loop
from fedproxy.record import AttemptRecord, Record

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# As the conventions spell them.
_VERSIONS: Final = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2"}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_LONGEST_VALUE: Final = 2048  # characters

Value = str | bool | int | float


class Sampler:
    """Which requests are traced: a random share of them, and those that belong to a sampled trace.

    follow: whose sampled flag decides: that of trusted proxies, of anyone, of nobody. limit: the most per
    second, whatever visitors send. The share is random and not derived from the trace id, because a visitor
    can choose that.
    """

    def __init__(
        self,
        share: float,
        follow: Literal["trusted", "anyone", "nobody"],
        limit: int,
        *,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._trusted = follow != "nobody"
        self._anyone = follow == "anyone"
        self._limit = limit
        self._chance = chance
        self._clock = clock
        self._second = -1.0
        self._count = 0
        self._skip = self._draw()

    def samples(self, traceparent: bytes | None, trusted: bool) -> bool:
        """Whether a request is traced."""
        if traceparent is not None and (self._anyone or (trusted and self._trusted)):
            return int(traceparent[-2:], 16) & 1 == 1 and self._within_limit()
        if self._skip >= 1:
            self._skip -= 1
            return False
        self._skip = self._draw()
        return self._within_limit()

    def _draw(self) -> float:
        """How many requests to skip until the next one is traced: one draw instead of one per request."""
        if self._share <= 0:
            return math.inf
        if self._share >= 1:
            return 0
        return math.floor(math.log(1 - self._chance()) / math.log(1 - self._share))

    def _within_limit(self) -> bool:
        second = math.floor(self._clock())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= self._limit


class _Ids(IdGenerator):
    """The ids for the next span: they were already sent to the member."""

    span_id = trace_id = 0

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class Tracing:
    """Builds spans and sends them to a collector by OTLP over HTTP; `samples` selects the requests.

    report: called, in any thread, with a sentence when the collector takes none, at most once a minute.
    """

    def __init__(
        self, endpoint: str, service_name: str, sampler: Sampler, report: Callable[[str], None]
    ) -> None:
        self.samples = sampler.samples
        yield_to_loop()
        self._complaints = Complaints("spans", endpoint, report, "opentelemetry")
        self._ids = _Ids()
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=resource(service_name),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=_LONGEST_VALUE),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._spans = self._provider.get_tracer("fedproxy", __version__)

    def take(self, record: Record) -> None:
        """Builds the spans of a finished request, and hands them to the thread that sends them.

        A request without a trace has none.
        """
        trace = record.trace
        if trace is None:
            return
        offset = time.time_ns() - round(trace.ended * 1e9)
        trace_id, span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        context = Context()
        if trace.parent_id is not None:
            context = _inside(trace_id, int(trace.parent_id, 16), is_remote=True)
        method = record.method if record.method in _METHODS else "HTTP"
        self._span(
            method,
            context,
            SpanKind.SERVER,
            (trace_id, span_id),
            (offset + round(trace.started * 1e9), offset + round(trace.ended * 1e9)),
            _of_request(record),
            failed=record.error is not None or record.status >= 500,
        )
        context = _inside(trace_id, span_id)
        for number, attempt in enumerate(trace.attempts):
            ended = trace.ended if attempt.ended is None else attempt.ended
            self._span(
                method,
                context,
                SpanKind.CLIENT,
                (trace_id, int(attempt.span_id, 16)),
                (offset + round(attempt.started * 1e9), offset + round(ended * 1e9)),
                _of_attempt(record, attempt, number),
                failed=attempt.error is not None or attempt.status >= 400,
            )

    def _span(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        ids: tuple[int, int],
        times: tuple[int, int],
        attributes: dict[str, Value],
        *,
        failed: bool,
    ) -> None:
        self._ids.trace_id, self._ids.span_id = ids
        span = self._spans.start_span(name, context, kind, attributes, start_time=times[0])
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(times[1])

    async def close(self, within: float) -> None:
        """Sends what waits, for at most `within` seconds."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(done.set)

        # A daemon, so that the process can end before it.
        threading.Thread(target=shut_down, name="fedproxy-last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(within):
                await done.wait()
        except TimeoutError:
            # Stops the exporter's retries.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
        finally:
            self._complaints.close()


def _inside(trace_id: int, span_id: int, *, is_remote: bool = False) -> Context:
    """The context of a child of that span."""
    return set_span_in_context(
        NonRecordingSpan(SpanContext(trace_id, span_id, is_remote, _SAMPLED)), Context()
    )


def _of_request(record: Record) -> dict[str, Value]:
    """The attributes of the semantic conventions for HTTP servers, and fedproxy's own."""
    path, _, query = mask_target(record.target).partition("?")
    found: dict[str, Value | None] = {
        **_method(record),
        "url.scheme": "https" if record.secure else "http",
        "url.path": path,
        "url.query": query or None,
        **_server(f"//{record.host}"),
        "client.address": record.client,
        "network.protocol.version": _VERSIONS.get(record.protocol, "1.1"),
        "user_agent.original": mask_target(record.user_agent) or None,
        "http.response.status_code": record.status or None,
        "http.request.body.size": record.bytes_in or None,
        "http.response.body.size": record.bytes_out,
        "error.type": record.error or (str(record.status) if record.status >= 500 else None),
        "fedproxy.request_id": record.request_id,
        "fedproxy.member": record.member,
        "fedproxy.affinity": record.affinity,
        "fedproxy.attempts": record.attempts,
        "fedproxy.termination": record.termination,
        "fedproxy.launch": record.launch,
        "fedproxy.ttfb": record.ttfb,
    }
    return {name: value for name, value in found.items() if value is not None}


def _of_attempt(record: Record, attempt: AttemptRecord, number: int) -> dict[str, Value]:
    """The same for HTTP clients."""
    found: dict[str, Value | None] = {
        **_method(record),
        "url.full": attempt.url.rstrip("/") + mask_target(record.target),
        **_server(attempt.url),
        "network.protocol.version": "1.1",
        "http.response.status_code": attempt.status or None,
        "http.request.resend_count": number or None,
        "error.type": attempt.error or (str(attempt.status) if attempt.status >= 400 else None),
        "fedproxy.member": attempt.member,
        "fedproxy.connection.reused": attempt.reused if attempt.sent is not None else None,
        "fedproxy.connection.wait": None if attempt.sent is None else attempt.sent - attempt.started,
        "fedproxy.launch": attempt.launch,
    }
    return {name: value for name, value in found.items() if value is not None}


def _method(record: Record) -> dict[str, Value | None]:
    if record.method in _METHODS:
        return {"http.request.method": record.method}
    return {"http.request.method": "_OTHER", "http.request.method_original": record.method}


def _server(url: str) -> dict[str, Value | None]:
    """Its address and port, as far as the URL has them; for a unix socket the path is the address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # A Host field may have an impossible port.
        return {"server.address": url.removeprefix("//")}
    return {"server.address": parts.hostname or parts.path or None, "server.port": port}
