"""Prometheus: what the hot path counted, read when somebody scrapes.

Every scrape builds its series from the members that are in force, so a member that left, or a reason that
is over, leaves nothing behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from fedproxy import __version__
from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS, Histogram
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot, Survey
from fedproxy.errors import EdgeError, VisitorError, VisitorGone, reasons_of

_REASONS: Final = reasons_of(VisitorError, EdgeError) - {VisitorGone.reason} | {"connections", "address"}

BREAKER_STATES: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

#: What federation-redirect called a reason, where it is another name here.
_OLD_REASONS: Final = {"quota": "Pod quota"}

_PLAIN: Final = ("text/plain", "text/*", "*/*")
_QUALITY: Final = re.compile(r";\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE).search

_EDGES: Final = (*map(str, BOUNDS), "+Inf")

Row = tuple[Sequence[str], float]


@dataclass(frozen=True)
class View:
    """What is in force and what was counted so far, at one moment.

    reloads: by result (`success`, `failure`). reloaded_at: when a config was last put in force. certificates:
    when each expires, by its name. Both in seconds since the epoch.
    """

    survey: Survey
    reloads: Mapping[str, int] = field(default_factory=dict)
    reloaded_at: float | None = None
    certificates: Mapping[str, float] = field(default_factory=dict)


def collect(view: View) -> Iterator[Metric]:
    """Every metric, each with all of its series."""
    members = view.survey.members
    yield from _requests(members)
    yield from _state(members)
    yield from _probed(members)
    yield from _edge(view)
    yield from _of_federation_redirect(members)


class FederationCollector(Collector):
    """Reads a new `View` for each scrape."""

    def __init__(self, read: Callable[[], View]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Called by the registry for each scrape."""
        return collect(self._read())

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would collect to learn the names, and there may be nothing to read yet."""
        return ()


def create_registry(read: Callable[[], View]) -> CollectorRegistry:
    """A registry of the federation's metrics and this process's."""
    registry = CollectorRegistry()
    registry.register(FederationCollector(read))
    registry.register(_ThisProcess())
    return registry


class _ThisProcess(Collector):
    """The usual metrics of a process, which say of which one they are."""

    def __init__(self) -> None:
        self._usual = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        for metric in self._usual.collect():
            metric.documentation += " Of the control process; with one worker there is no other."
            yield metric


def expose(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The body and its Content-Type, in the form that the Accept field asks for.

    Only OpenMetrics has exemplars.
    """
    encode, content_type = choose_encoder(_preferred(accept))
    return encode(registry), content_type


def _preferred(accept: str) -> str:
    """The media ranges of an Accept field that are wanted before plain text, the most wanted first.

    RFC 9110 section 12.5.1. `choose_encoder` takes the first that it knows, whatever else is wanted more.
    """
    ranges = [each for each in accept.split(",") if _quality(each) > 0]
    ranges.sort(key=_quality, reverse=True)
    return ",".join(takewhile(lambda each: each.split(";")[0].strip().lower() not in _PLAIN, ranges))


def _quality(media_range: str) -> float:
    found = _QUALITY(media_range)
    return float(found[1]) if found is not None else 1.0


def _requests(members: Sequence[Snapshot]) -> Iterator[Metric]:
    """What was counted on the way."""
    yield _counter(
        "fedproxy_requests",
        "Requests, by the status that the visitor was sent, or told in the event of a failed launch.",
        ("member", "code"),
        (((m.name, str(code)), n) for m in members for code, n in sorted(m.counts.codes.items())),
    )
    yield _histogram(
        "fedproxy_request_duration_seconds",
        "From a request's head to the end of its response.",
        {m.name: m.counts.duration for m in members},
    )
    yield _histogram(
        "fedproxy_time_to_first_byte_seconds",
        "From a request's head to the head of its response.",
        {m.name: m.counts.first_byte for m in members},
    )
    yield _counter(
        "fedproxy_bytes",
        "Bytes of bodies and tunnels: in came from visitors, out went to them.",
        ("member", "direction"),
        (
            ((m.name, direction), n)
            for m in members
            for direction, n in (("in", m.counts.bytes_in), ("out", m.counts.bytes_out))
        ),
    )
    yield _counter(
        "fedproxy_upstream_errors",
        "Attempts that a member failed.",
        ("member", "reason"),
        (((m.name, reason), n) for m in members for reason, n in sorted(m.counts.errors.items())),
    )
    yield _counter(
        "fedproxy_retries",
        "Attempts that were made again after this member failed.",
        ("member", "reason"),
        (((m.name, reason), n) for m in members for reason, n in sorted(m.counts.retries.items())),
    )
    yield _counter(
        "fedproxy_affinity",
        "Requests, by what chose the member.",
        ("member", "source"),
        (((m.name, source.value), m.counts.affinity.get(source, 0)) for m in members for source in Source),
    )
    yield _counter(
        "fedproxy_launches",
        "Launches that a member was given, by how they ended there.",
        ("member", "outcome"),
        (((m.name, end.value), m.counts.launches.get(end.value, 0)) for m in members for end in End),
    )
    yield _histogram(
        "fedproxy_launch_duration_seconds",
        "From when a launch was sent to a member to its ready event.",
        {m.name: m.counts.launch_duration for m in members},
    )
    yield _counter(
        "fedproxy_launch_phase_seconds",
        "Time that launches spent in each phase.",
        ("member", "phase"),
        (((m.name, phase), n) for m in members for phase, n in sorted(m.counts.launch_phases.items())),
    )
    yield _counter(
        "fedproxy_launch_failovers",
        "Launches that moved from a member that could not serve them.",
        ("from", "to"),
        (((m.name, to), n) for m in members for to, n in sorted(m.counts.failovers.items())),
    )


def _state(members: Sequence[Snapshot]) -> Iterator[Metric]:
    """How the members are now."""
    yield _gauge(
        "fedproxy_requests_in_flight",
        "Requests that a member is serving.",
        ("member",),
        (((m.name,), m.in_flight) for m in members),
    )
    yield _gauge(
        "fedproxy_launches_in_flight",
        "Launches that a member is serving.",
        ("member",),
        (((m.name,), m.launches) for m in members),
    )
    yield _gauge(
        "fedproxy_upstream_connections",
        "Open connections to a member.",
        ("member", "state"),
        (((m.name, state), n) for m in members for state, n in (("idle", m.idle), ("active", m.busy))),
    )
    yield _gauge(
        "fedproxy_member_up",
        "The last verdict of the probes: 1 well, 0 ill.",
        ("member",),
        (((m.name,), int(m.healthy)) for m in members),
    )
    yield _gauge(
        "fedproxy_member_weight",
        "The weight that the operator gave a member.",
        ("member",),
        (((m.name,), m.weight) for m in members),
    )
    yield _gauge(
        "fedproxy_member_state",
        "1 for what the operator said of a member: ready, drain or maint.",
        ("member", "state"),
        (((m.name, state.value), int(m.intent is state)) for m in members for state in Intent),
    )
    yield _gauge(
        "fedproxy_breaker_state",
        "A member's circuit breaker: 0 closed, 1 half-open, 2 open.",
        ("member",),
        (((m.name,), BREAKER_STATES[m.breaker]) for m in members),
    )
    yield _counter(
        "fedproxy_breaker_transitions",
        "How often a member's circuit breaker became this.",
        ("member", "to"),
        (
            ((m.name, state.value), m.counts.transitions.get(state, 0))
            for m in members
            for state in BreakerState
        ),
    )


def _probed(members: Sequence[Snapshot]) -> Iterator[Metric]:
    """What the last probes said."""
    yield _gauge(
        "fedproxy_member_pods",
        "Pods that a member runs.",
        ("member", "kind"),
        (((m.name, kind), n) for m in members for kind, n in m.pods.items()),
    )
    yield _gauge(
        "fedproxy_member_quota",
        "Pods that a member may run.",
        ("member",),
        (((m.name,), m.quota) for m in members if m.quota is not None),
    )


def _edge(view: View) -> Iterator[Metric]:
    """What belongs to no member."""
    edge = view.survey.edge
    yield _gauge(
        "fedproxy_downstream_connections",
        "Open connections of visitors.",
        (),
        [((), edge.connections)],
    )
    yield _counter(
        "fedproxy_rejected",
        "Requests and connections that the edge refused.",
        ("reason",),
        # All of them from the start: what is not there cannot be seen to grow.
        (((reason,), edge.rejected.get(reason, 0)) for reason in sorted(_REASONS | edge.rejected.keys())),
    )
    yield _counter(
        "fedproxy_retry_budget_exhausted",
        "Retries that were not made because the budget was used up.",
        (),
        [((), edge.budget_exhausted)],
    )
    yield _counter(
        "fedproxy_config_reloads",
        "Reloads of the config.",
        ("result",),
        (((result,), view.reloads.get(result, 0)) for result in ("success", "failure")),
    )
    if view.reloaded_at is not None:
        yield _gauge(
            "fedproxy_config_last_reload_success_timestamp_seconds",
            "When a config was last put in force.",
            (),
            [((), view.reloaded_at)],
        )
    yield _gauge("fedproxy_workers", "Processes that serve visitors.", (), [((), view.survey.workers)])
    yield _gauge(
        "fedproxy_tls_certificate_expiry_timestamp_seconds",
        "When a listener's certificate expires.",
        ("name",),
        (((name,), at) for name, at in view.certificates.items()),
    )
    yield _gauge("fedproxy_build_info", "Always 1.", ("version",), [((__version__,), 1)])


def _of_federation_redirect(members: Sequence[Snapshot]) -> Iterator[Metric]:
    """Names and types of the program before, which called a count a gauge; one health series a member."""
    yield _gauge(
        "federation_health",
        "1 healthy, 0 unhealthy; reason is empty or the first check that failed.",
        ("member", "reason"),
        (((m.name, _old_reason(m)), int(m.healthy)) for m in members),
    )
    yield _gauge(
        "federation_health_check",
        "1 if a check of a member's last probe passed, else 0; versions is one of them.",
        ("member", "check"),
        (((m.name, check), int(ok)) for m in members for check, ok in m.checks.items()),
    )
    yield _gauge(
        "federation_redirect_count",
        "Requests routed to each member; reason is what chose it, as in fedproxy_affinity_total.",
        ("member", "reason"),
        (((m.name, source.value), m.counts.affinity.get(source, 0)) for m in members for source in Source),
    )


def _old_reason(member: Snapshot) -> str:
    if member.healthy:
        return ""
    reason = next(iter(member.reasons), "unknown")
    return _OLD_REASONS.get(reason, reason)


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _histogram(name: str, text: str, by_member: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("member",))
    for member, histogram in by_member.items():
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for at, (edge, count) in enumerate(zip(_EDGES, accumulate(histogram.counts), strict=True)):
            found = histogram.exemplars.get(at)
            if found is None:
                buckets.append((edge, count))
            else:
                example = Exemplar({"trace_id": found.trace_id}, found.value, found.time)
                buckets.append((edge, count, example))
        family.add_metric((member,), buckets, histogram.total)
    return family
