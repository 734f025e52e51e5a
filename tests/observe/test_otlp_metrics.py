from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE as CUMULATIVE
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fedproxy import __version__
from fedproxy.observe.metrics import expose
from fedproxy.observe.otlp_metrics import MetricsSender, points
from tests.observe.test_metrics import busy_view
from tests.rig import refusing
from tests.rig.collector import Metrics, attributes, collector

SINCE, NOW = 1_763_900_000_000_000_000, 1_763_900_060_000_000_000

Key = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
def sent() -> Metrics:
    """What a collector gets of a busy edge."""
    with collector() as found:
        sender = MetricsSender(found.metrics_endpoint, "edge", print)
        sender.send(points(busy_view(), SINCE, NOW))
        sender.close()
    (metrics,) = found.metrics
    return metrics


def series(name: str, labels: dict[str, Any], **more: str) -> Key:
    return name, frozenset((label, value) for label, value in {**labels, **more}.items() if value != "")


def as_prometheus(metrics: Metrics) -> dict[Key, float]:
    """The series that Prometheus makes of it."""
    found: dict[Key, float] = {}
    for name, metric in metrics.by_name.items():
        if metric.HasField("histogram"):
            for point in metric.histogram.data_points:
                labels = attributes(point)
                found[series(f"{name}_sum", labels)] = point.sum
                found[series(f"{name}_count", labels)] = point.count
                edges = (*map(str, point.explicit_bounds), "+Inf")
                for edge, count in zip(edges, accumulate(point.bucket_counts), strict=True):
                    found[series(f"{name}_bucket", labels, le=edge)] = count
        else:
            suffix = "_total" if metric.HasField("sum") else ""
            for number in (metric.sum if suffix else metric.gauge).data_points:
                value = number.as_double if number.HasField("as_double") else number.as_int
                found[series(name + suffix, attributes(number))] = value
    return found


def test_collector_gets_the_series_that_a_scraper_gets(sent: Metrics) -> None:
    scraped = {
        series(sample.name, sample.labels): sample.value
        for family in parse_text("".join(expose(busy_view(), "")))
        for sample in family.samples
        if not sample.name.startswith("process_")
    }
    assert as_prometheus(sent) == scraped


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("fedproxy_request_duration_seconds", "s"),
        ("fedproxy_launch_phase_seconds", "s"),
        ("fedproxy_bytes", "By"),
        ("fedproxy_process_resident_memory_bytes", "By"),
        ("fedproxy_requests", ""),
        ("federation_redirect_count", ""),
    ],
)
def test_units_are_those_of_the_names(sent: Metrics, name: str, unit: str) -> None:
    assert sent.by_name[name].unit == unit
    assert sent.by_name[name].description.endswith(".")


def test_counters_and_histograms_count_since_the_start(sent: Metrics) -> None:
    requests = sent.by_name["fedproxy_requests"].sum
    durations = sent.by_name["fedproxy_request_duration_seconds"].histogram
    assert requests.is_monotonic
    assert requests.aggregation_temporality == durations.aggregation_temporality == CUMULATIVE
    for point in (*requests.data_points, *durations.data_points):
        assert (point.start_time_unix_nano, point.time_unix_nano) == (SINCE, NOW)
    for histogram in durations.data_points:
        assert not histogram.HasField("min")
        assert not histogram.HasField("max")


def test_resource_says_which_edge_it_is(sent: Metrics) -> None:
    assert sent.resource["service.name"] == "edge"
    assert sent.resource["service.version"] == __version__
    assert sent.resource["service.instance.id"]


def test_collector_that_is_gone_is_said_and_a_closed_sender_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []

    def report(message: str) -> None:
        said.append(message)
        sender.close()  # it would try again, and wait before that

    with refusing() as url:
        sender = MetricsSender(f"{url}/v1/metrics", "edge", report)
        sender.send(points(busy_view(), SINCE, NOW))
        sender.send(points(busy_view(), SINCE, NOW))
    assert len(said) == 1
    assert said[0].startswith(f"metrics cannot be sent to {url}/v1/metrics: ")
    assert "\n" not in said[0]
    assert capsys.readouterr().err == ""
