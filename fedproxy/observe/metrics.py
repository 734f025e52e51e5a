"""Prometheus metrics: the hot path's counters, read on each scrape.

Every scrape builds its series from the members in force, so a member that left, or a reason that no longer
applies, leaves no stale series. With hundreds of members there are tens of thousands of lines: they are
generated as text directly, without an object per sample, in pieces so that the loop can run in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client import exposition as plain
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from fedproxy import __version__, is_compiled
from fedproxy.decide.affinity import COUNTED
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import Histogram
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot, Status, Survey
from fedproxy.decide.waits import Reason
from fedproxy.errors import EdgeError, VisitorError, VisitorGone, reasons_of
from fedproxy.observe.fleet import FleetSeen
from fedproxy.observe.processes import ProcessUse
from fedproxy.wire.h2.allowance import KINDS
from fedproxy.wire.h2.frame import Code

#: Why the edge refuses: the values of `reason`.
REASONS: Final = (
    reasons_of(VisitorError, EdgeError) - {VisitorGone.reason}
    | {"connections", "address", "http2_head"}
    | {f"http2_{kind}" for kind in KINDS}
)
_CODES: Final = [code.name.lower() for code in Code]

BREAKER_STATES: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

#: federation-redirect's names of reasons that have another name here.
_OLD_REASONS: Final = {"quota": "Pod quota"}

# The values of enumerations: attribute access on their members is slow.
_SOURCES: Final = [source.value for source in COUNTED]
_ENDS: Final = [end.value for end in End]
_INTENTS: Final = [(intent, intent.value) for intent in Intent]
_STATUSES: Final = tuple(Status)
_BREAKERS: Final = [state.value for state in BreakerState]

Row = tuple[Sequence[str], float]


@dataclass(frozen=True)
class View:
    """The state and the counters at one moment.

    reloads: by result (`success`, `failure`). reloaded_at: the time of the last successful load of a config.
    certificates: when each expires, by name. sessions: of how many it is known where they run. processes: the
    edge's own. fleet: the store, and the edges that share it. ramps: how far those of members have come.
    contacts: whom alerts are to name, by member. Times are in seconds since the epoch.
    """

    survey: Survey
    reloads: Mapping[str, int] = field(default_factory=dict)
    reloaded_at: float | None = None
    certificates: Mapping[str, float] = field(default_factory=dict)
    sessions: int = 0
    processes: Sequence[ProcessUse] = ()
    fleet: FleetSeen = field(default_factory=FleetSeen)
    ramps: Mapping[str, float] = field(default_factory=dict)
    contacts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """A counter or gauge. A row: the values of at most two labels, and the number."""

    name: str
    kind: str
    text: str
    labels: Sequence[str]
    rows: Iterable[Row]

    def lines(self, examples: bool) -> Iterator[str]:
        """The series, one line each. They have no exemplars."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        if not self.labels:
            for _, number in self.rows:
                yield f"{name} {number}\n"
        elif len(self.labels) == 1:
            first = f'{name}{{{self.labels[0]}="'
            for (value,), number in self.rows:
                yield f'{first}{_escaped(value)}"}} {number}\n'
        else:
            first, second = f'{name}{{{self.labels[0]}="', f'",{self.labels[1]}="'
            for (value, other), number in self.rows:
                yield f'{first}{_escaped(value)}{second}{_escaped(other)}"}} {number}\n'


@dataclass(frozen=True)
class Histograms:
    """A metric with one histogram per member."""

    name: str
    text: str
    by_member: Mapping[str, Histogram]
    kind: str = "histogram"

    def lines(self, examples: bool) -> Iterator[str]:
        """The series, member by member. examples: with the exemplars of the buckets that have one."""
        for member, histogram in self.by_member.items():
            label = f'member="{_escaped(member)}"'
            start = f'{self.name}_bucket{{{label},le="'
            counts = list(accumulate(histogram.counts))
            edges = _edges(histogram.bounds)
            buckets = [f'{start}{edge}"}} {count}\n' for edge, count in zip(edges, counts, strict=True)]
            if examples:
                for at, found in histogram.exemplars.items():
                    example = f'# {{trace_id="{_escaped(found.trace_id)}"}} {found.value} {found.time}'
                    buckets[at] = f"{buckets[at][:-1]} {example}\n"
            yield (
                f"{''.join(buckets)}{self.name}_count{{{label}}} {counts[-1]}\n"
                f"{self.name}_sum{{{label}}} {histogram.total}\n"
            )


Family = Numbers | Histograms


@lru_cache
def _edges(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """The values of `le`."""
    return *map(str, bounds), "+Inf"


@lru_cache(maxsize=4096)
def _escaped(value: str) -> str:
    """A label's value, escaped. Cached, because names and reasons repeat on every line."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def collect(view: View) -> Iterator[Family]:
    """Every metric, each with all of its series."""
    members = view.survey.members
    yield from _requests(members)
    yield from _state(members)
    yield from _probed(members)
    yield from _people(view)
    yield from _edge(view)
    yield from _fleet(view.fleet)
    yield from _of_processes(view.processes)
    yield from _of_federation_redirect(members)


class _ThisProcess(Collector):
    """The usual `process_*` metrics, with a note which process they describe."""

    def __init__(self) -> None:
        self._usual = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        for metric in self._usual.collect():
            metric.documentation += " Of the control process; with one worker there is no other."
            yield metric


_PROCESS: Final = CollectorRegistry()
_PROCESS.register(_ThisProcess())


def is_openmetrics(accept: str) -> bool:
    """Whether an Accept field prefers OpenMetrics. Invalid elements are ignored."""
    best = {True: 0.0, False: 0.0}
    for each in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in each.split(";"))
        said = dict(part.split("=", 1) for part in parameters if "=" in part)
        if kind == "application/openmetrics-text":
            if said.get("version", "1.0.0").strip('"') not in ("1.0.0", "0.0.1"):
                continue
        elif kind not in ("text/plain", "text/*", "*/*"):
            continue
        try:
            wanted = float(said.get("q", "1"))
        except ValueError:
            continue
        if math.isfinite(wanted):
            mine = kind == "application/openmetrics-text"
            best[mine] = max(best[mine], wanted)
    return best[True] > 0 and best[True] >= best[False]


def content_type(accept: str) -> str:
    """The Content-Type of the text that `expose` generates for the same Accept field."""
    if is_openmetrics(accept):
        return "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return "text/plain; version=0.0.4; charset=utf-8"


def expose(view: View, accept: str) -> Iterator[str]:
    """The text in the format that the Accept field prefers, in pieces. Only OpenMetrics has exemplars."""
    modern = is_openmetrics(accept)
    for family in collect(view):
        # In the older format a counter has the name of its series.
        name = f"{family.name}_total" if family.kind == "counter" and not modern else family.name
        yield f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n"
        yield from family.lines(modern)
    # Last, because OpenMetrics ends with `# EOF`, which this adds.
    encode: Callable[[Collector], bytes] = openmetrics.generate_latest if modern else plain.generate_latest
    yield encode(_PROCESS).decode()


def _requests(members: Sequence[Snapshot]) -> Iterator[Family]:
    """Counters of requests, attempts and launches."""
    names = {m.name for m in members}
    yield _counter(
        "fedproxy_requests",
        "Requests by the status sent to the visitor, or reported in the event of a failed launch.",
        ("member", "code"),
        (((m.name, str(code)), n) for m in members for code, n in sorted(m.counts.codes.items())),
    )
    yield _histogram(
        "fedproxy_request_duration_seconds",
        "Time from a request's head to the end of its response.",
        {m.name: m.counts.durations() for m in members},
    )
    yield _histogram(
        "fedproxy_time_to_first_byte_seconds",
        "Time from a request's head to the head of its response.",
        {m.name: m.counts.first_bytes() for m in members},
    )
    yield _counter(
        "fedproxy_bytes",
        "Bytes of bodies and tunnels: in from visitors, out to visitors.",
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
        "Attempts that were retried after this member failed.",
        ("member", "reason"),
        (((m.name, reason), n) for m in members for reason, n in sorted(m.counts.retries.items())),
    )
    yield _counter(
        "fedproxy_affinity",
        "Requests, by what chose the member.",
        ("member", "source"),
        (((m.name, source), m.counts.affinity.get(source, 0)) for m in members for source in _SOURCES),
    )
    yield _counter(
        "fedproxy_last_resort",
        "Requests for which prime was chosen because no member was available.",
        ("member",),
        (((m.name,), m.counts.last_resort) for m in members),
    )
    yield _counter(
        "fedproxy_launches",
        "Launches sent to a member, by outcome.",
        ("member", "outcome"),
        (((m.name, end), m.counts.launches.get(end, 0)) for m in members for end in _ENDS),
    )
    yield _histogram(
        "fedproxy_launch_duration_seconds",
        "Time from sending a launch to a member until its ready event.",
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
        (
            ((m.name, to), n)
            for m in members
            for to, n in sorted(m.counts.failovers.items())
            # Otherwise members that left would remain here.
            if to in names
        ),
    )
    yield _counter(
        "fedproxy_choices",
        "Launches, and pages for them, by what made expected-wait choose the member.",
        ("member", "reason"),
        (((m.name, reason), m.counts.choices.get(reason, 0)) for m in members for reason in Reason),
    )


def _people(view: View) -> Iterator[Family]:
    """New members, and whom to call."""
    yield _gauge(
        "fedproxy_member_ramp",
        "How far the ramp of a new member has come: 1 is its whole share.",
        ("member",),
        (((name,), progress) for name, progress in view.ramps.items()),
    )
    yield _gauge(
        "fedproxy_member_contact",
        "Whom alerts about a member name; always 1.",
        ("member", "contact"),
        (((name, contact), 1) for name, contact in view.contacts.items()),
    )


def _state(members: Sequence[Snapshot]) -> Iterator[Family]:
    """The current state of the members."""
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
        "fedproxy_member_addresses",
        "A member's addresses: those in use, and those that take no connections and so are tried last.",
        ("member", "state"),
        (
            ((m.name, state), sum(each.aside is aside for each in m.addresses))
            for m in members
            if m.addresses
            for state, aside in (("usable", False), ("aside", True))
        ),
    )
    yield _gauge(
        "fedproxy_member_up",
        "1 if the last probes found the member healthy, 0 if unhealthy.",
        ("member",),
        (((m.name,), int(m.healthy)) for m in members),
    )
    yield _gauge(
        "fedproxy_member_weight",
        "A member's weight for new visitors: as it was set, or as it is worked out with `auto`.",
        ("member",),
        (((m.name,), m.weight) for m in members),
    )
    yield _gauge(
        "fedproxy_member_state",
        "1 for the state that the operator set for a member: ready, drain or maint.",
        ("member", "state"),
        (((m.name, state), int(m.intent is intent)) for m in members for intent, state in _INTENTS),
    )
    yield _gauge(
        "fedproxy_member_status",
        f"1 for how a member is: {', '.join(_STATUSES)}.",
        ("member", "status"),
        (
            ((m.name, status), int(now is status))
            for m in members
            for now in (m.status,)
            for status in _STATUSES
        ),
    )
    yield _gauge(
        "fedproxy_breaker_state",
        "A member's circuit breaker: 0 closed, 1 half-open, 2 open.",
        ("member",),
        (((m.name,), BREAKER_STATES[m.breaker]) for m in members),
    )
    yield _counter(
        "fedproxy_breaker_transitions",
        "How often a member's circuit breaker changed to this state.",
        ("member", "to"),
        (((m.name, state), m.counts.transitions.get(state, 0)) for m in members for state in _BREAKERS),
    )


def _probed(members: Sequence[Snapshot]) -> Iterator[Family]:
    """The results of the last probes."""
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


def _edge(view: View) -> Iterator[Family]:
    """Metrics of the edge itself."""
    edge = view.survey.edge
    yield _gauge(
        "fedproxy_downstream_connections",
        "Open connections of visitors.",
        (),
        [((), edge.connections)],
    )
    by_protocol = {
        "1.0": edge.requests_http10,
        "1.1": edge.requests - edge.requests_http10 - edge.requests_http2,
        "2": edge.requests_http2,
    }
    yield _counter(
        "fedproxy_downstream_requests",
        "Requests of visitors, by the version of HTTP.",
        ("protocol",),
        (((protocol,), count) for protocol, count in by_protocol.items()),
    )
    yield _counter(
        "fedproxy_http2_errors",
        "GOAWAY and RST_STREAM frames that the edge sent, by the name of their code.",
        ("code",),
        (((code,), edge.http2_errors.get(code, 0)) for code in _CODES),
    )
    yield _counter(
        "fedproxy_rejected",
        "Requests and connections that the edge refused.",
        ("reason",),
        # All reasons from the start: `increase()` misses the first value of a new series.
        (((reason,), edge.rejected.get(reason, 0)) for reason in sorted(REASONS | edge.rejected.keys())),
    )
    yield _counter(
        "fedproxy_retry_budget_exhausted",
        "Retries that were not made because the budget was used up.",
        (),
        [((), edge.budget_exhausted)],
    )
    yield _counter(
        "fedproxy_log_lines_dropped",
        "Log lines lost because the reader was slow or gone, or the disk was full.",
        ("log",),
        (((log,), edge.lines_dropped.get(log, 0)) for log in ("access", "events")),
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
            "Unix time of the last successful load of a config.",
            (),
            [((), view.reloaded_at)],
        )
    yield _gauge(
        "fedproxy_sessions_known",
        "Sessions of which it is known at which member they run.",
        (),
        [((), view.sessions)],
    )
    yield _gauge("fedproxy_workers", "Processes that serve visitors.", (), [((), view.survey.workers)])
    yield _gauge(
        "fedproxy_tls_certificate_expiry_timestamp_seconds",
        "Unix time at which a listener's certificate expires.",
        ("name",),
        (((name,), at) for name, at in view.certificates.items()),
    )
    yield _gauge(
        "fedproxy_build_info",
        "Always 1; `compiled` is whether the hot path is extension modules.",
        ("version", "compiled"),
        [((__version__, str(is_compiled()).lower()), 1)],
    )


def _fleet(fleet: FleetSeen) -> Iterator[Family]:
    """The store, and the other edges that share it."""
    store = fleet.store
    yield _gauge(
        "fedproxy_store_up",
        "1 if the store that edges share answers, or the file of what operators set can be written; else 0.",
        (),
        [((), int(store.up))],
    )
    yield _counter(
        "fedproxy_store_commands",
        "Commands to the store that edges share, by result.",
        ("result",),
        (((result,), store.commands.get(result, 0)) for result in ("ok", "failed")),
    )
    yield _counter(
        "fedproxy_store_hints_dropped",
        "What other edges should have known and were not told, as the store was away for too long.",
        (),
        [((), store.dropped)],
    )
    yield _gauge(
        "fedproxy_edges",
        "Edges that share a store, with this one; while the store is away as many as there were.",
        (),
        [((), fleet.alive)],
    )
    yield _gauge(
        "fedproxy_edges_disagreeing",
        "Other edges with another config or version than this one, or with its name.",
        (),
        [((), sum(bool(edge.disagrees) for edge in fleet.edges))],
    )
    yield _gauge(
        "fedproxy_launch_slots",
        "Of a member's max_launches, those that this edge holds; the rest is for other edges.",
        ("member",),
        (((member,), slots) for member, slots in fleet.slots.items()),
    )


def _of_processes(processes: Sequence[ProcessUse]) -> Iterator[Family]:
    """What each process of the edge uses. A worker is named by its slot, which its successor has too."""

    def rows(number: Callable[[ProcessUse], float | None]) -> Iterator[Row]:
        return (
            ((each.role, each.worker), value) for each in processes if (value := number(each)) is not None
        )

    labels = ("process", "worker")
    yield _counter(
        "fedproxy_process_cpu_seconds",
        "Processor time of a process of the edge and of those that it replaced, user and system.",
        labels,
        rows(lambda each: each.cpu),
    )
    yield _gauge(
        "fedproxy_process_resident_memory_bytes",
        "Resident memory of a process of the edge, pages that processes share included.",
        labels,
        rows(lambda each: each.memory),
    )
    yield _gauge(
        "fedproxy_process_open_fds",
        "File descriptors that a process of the edge has open.",
        labels,
        rows(lambda each: each.open_fds),
    )
    yield _gauge(
        "fedproxy_process_max_fds",
        "File descriptors that a process of the edge may have open.",
        labels,
        rows(lambda each: each.max_fds),
    )
    yield _gauge(
        "fedproxy_process_start_time_seconds",
        "Unix time at which a process of the edge started.",
        labels,
        rows(lambda each: each.started),
    )
    yield _counter(
        "fedproxy_process_loop_lag_seconds",
        "Time by which a process's event loop was late, where that was more than 50 ms at once.",
        labels,
        rows(lambda each: each.lag),
    )


def _of_federation_redirect(members: Sequence[Snapshot]) -> Iterator[Family]:
    """federation-redirect's names and types (a count is a gauge there); one health series per member."""
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
        (((m.name, source), m.counts.affinity.get(source, 0)) for m in members for source in _SOURCES),
    )


def _old_reason(member: Snapshot) -> str:
    if member.healthy:
        return ""
    reason = next(iter(member.reasons), "unknown")
    return _OLD_REASONS.get(reason, reason)


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Family:
    return Numbers(name, "counter", text, labels, rows)


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Family:
    return Numbers(name, "gauge", text, labels, rows)


def _histogram(name: str, text: str, by_member: Mapping[str, Histogram]) -> Family:
    return Histograms(name, text, by_member)
