"""Metrics by OTLP over HTTP: the families of `/metrics` as OpenTelemetry's data points.

They have the names of OpenMetrics, without `_total`, and units by their suffix, from which Prometheus's OTLP
receiver makes the names that `/metrics` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fedproxy import __version__
from fedproxy.observe.metrics import Family, Histograms, View, collect
from fedproxy.observe.otlp import TIMEOUT, Complaints, resource, yield_to_loop

_CUMULATIVE: Final = sdk.AggregationTemporality.CUMULATIVE
_UNITS: Final = {"seconds": "s", "bytes": "By"}

Point = tuple[Family, sdk.NumberDataPoint | sdk.HistogramDataPoint]


def points(view: View, since: int, now: int) -> Iterator[Point]:
    """Every data point with its family, family by family; exemplars are left out, as they name no span.

    since: when counting began; now: the time of the view; in nanoseconds since the epoch.
    """
    for family in collect(view):
        if isinstance(family, Histograms):
            for member, histogram in family.by_member.items():
                counts = list(histogram.counts)
                yield (
                    family,
                    sdk.HistogramDataPoint(
                        attributes={"member": member},
                        start_time_unix_nano=since,
                        time_unix_nano=now,
                        count=sum(counts),
                        sum=histogram.total,
                        bucket_counts=counts,
                        explicit_bounds=histogram.bounds,
                        # Optional in the protocol, and not known.
                        min=None,  # type: ignore[arg-type]
                        max=None,  # type: ignore[arg-type]
                    ),
                )
        else:
            for values, number in family.rows:
                # An empty label is none, as in Prometheus.
                said = {
                    label: value for label, value in zip(family.labels, values, strict=True) if value != ""
                }
                yield family, sdk.NumberDataPoint(said, since, now, number)


class MetricsSender:
    """Sends metrics to a collector.

    report: called, in any thread, with a sentence when the collector takes none, at most once a minute.
    """

    def __init__(self, endpoint: str, service_name: str, report: Callable[[str], None]) -> None:
        yield_to_loop()
        self._complaints = Complaints("metrics", endpoint, report, OTLPMetricExporter.__module__)
        self._exporter = OTLPMetricExporter(endpoint=endpoint, timeout=TIMEOUT)
        self._resource = resource(service_name)
        self._scope = InstrumentationScope("fedproxy", __version__)

    def send(self, found: Iterable[Point]) -> None:
        """Sends points as they come from `points`; blocks for 5 s at most, besides name resolution."""
        metrics = [
            _metric(family, [point for _, point in same]) for family, same in groupby(found, itemgetter(0))
        ]
        of_scope = sdk.ScopeMetrics(self._scope, metrics, "")
        self._exporter.export(sdk.MetricsData([sdk.ResourceMetrics(self._resource, [of_scope], "")]))

    def close(self) -> None:
        """Ends a `send` in another thread soon; nothing is sent or reported any more."""
        self._complaints.close()
        self._exporter.shutdown()


def _metric(family: Family, found: list[sdk.NumberDataPoint | sdk.HistogramDataPoint]) -> sdk.Metric:
    data: sdk.DataT
    if family.kind == "histogram":
        histograms = [each for each in found if isinstance(each, sdk.HistogramDataPoint)]
        data = sdk.Histogram(histograms, _CUMULATIVE)
    else:
        numbers = [each for each in found if isinstance(each, sdk.NumberDataPoint)]
        data = sdk.Sum(numbers, _CUMULATIVE, True) if family.kind == "counter" else sdk.Gauge(numbers)
    unit = _UNITS.get(family.name.rpartition("_")[2], "")
    return sdk.Metric(family.name, family.text, unit, data)
