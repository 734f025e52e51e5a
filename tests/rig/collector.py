"""A collector of traces and metrics: takes OTLP over HTTP in a thread of its own, and shows what came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

KINDS = {trace_pb2.Span.SPAN_KIND_SERVER: "server", trace_pb2.Span.SPAN_KIND_CLIENT: "client"}


@dataclass
class Span:
    """One span. Times in nanoseconds since the epoch; ids in hexadecimal, `parent` empty for a root."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Metrics:
    """The metrics of one request, by name."""

    resource: dict[str, Any]
    by_name: dict[str, metrics_pb2.Metric]

    def number(self, name: str, **labels: str) -> float:
        """The value of the one point of a counter or gauge that has these labels."""
        found = self.by_name[name]
        points = (found.sum if found.HasField("sum") else found.gauge).data_points
        (point,) = (point for point in points if labels.items() <= attributes(point).items())
        return float(point.as_double if point.HasField("as_double") else point.as_int)


def attributes(point: Any) -> dict[str, Any]:
    """The labels of a point."""
    return _plain(point.attributes)


@dataclass
class Collector:
    """A running collector."""

    endpoint: str
    metrics_endpoint: str
    spans: list[Span] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)

    @property
    def requests(self) -> list[Span]:
        """The spans of requests, the first that began first."""
        return sorted((each for each in self.spans if each.kind == "server"), key=lambda each: each.began)

    def attempts(self, request: Span) -> list[Span]:
        """The spans below it, the first that began first."""
        found = [each for each in self.spans if (each.trace, each.parent) == (request.trace, request.id)]
        return sorted(found, key=lambda each: each.began)

    def take(self, body: bytes) -> None:
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _plain(each.resource.attributes)
            for scope in each.scope_spans:
                self.spans += [_span(span, resource) for span in scope.spans]

    def take_metrics(self, body: bytes) -> None:
        for each in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            (scope,) = each.scope_metrics
            by_name = {metric.name: metric for metric in scope.metrics}
            assert len(by_name) == len(scope.metrics)
            self.metrics.append(Metrics(_plain(each.resource.attributes), by_name))


def _span(span: trace_pb2.Span, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=KINDS[span.kind],
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_plain(span.attributes),
        resource=resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@contextmanager
def collector() -> Iterator[Collector]:
    """Runs a collector on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            take = found.take_metrics if self.path == "/v1/metrics" else found.take
            take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    base = f"http://127.0.0.1:{server.server_port}/v1"
    found = Collector(f"{base}/traces", f"{base}/metrics")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
