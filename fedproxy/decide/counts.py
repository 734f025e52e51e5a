"""Counters: plain integers on objects that the hot path already holds, read on each scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple, Self

# Of no fixed length: mypyc keeps a tuple of 18 numbers unboxed, and makes 18 objects of it at each use.
#: Upper bounds in seconds: from a cached asset to a build of an hour.
BOUNDS: Final[tuple[float, ...]] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
#: The same for launches: dense where a server starts from an image that is there, or a small one is built.
LAUNCH_BOUNDS: Final[tuple[float, ...]] = (
    *(1.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0),
    *(120.0, 150.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0, 3600.0),
)


class Exemplar(NamedTuple):
    """One of the counted values, in seconds, its trace, and its time since the epoch."""

    value: float
    trace_id: str
    time: float


class Histogram:
    """`counts[i]` values were at most `bounds[i]` and over the bound before it; the last holds the rest.

    `total` is their sum in seconds. `exemplars`: the last value of a sampled trace, by its place in `counts`.
    Only histograms of the same bounds can be added.
    """

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def __reduce__(self) -> tuple[Callable[..., Histogram], tuple[object, ...]]:
        return _histogram, (self.bounds, self.counts, self.total, self.exemplars)

    def observe(self, value: float) -> None:
        """Counts one value, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def exemplify(self, exemplar: Exemplar) -> None:
        """Keeps a counted value as the exemplar of its bucket."""
        self.exemplars[bisect_left(self.bounds, exemplar.value)] = exemplar

    def add(self, *others: Histogram) -> None:
        """Adds the counts of others; each bucket keeps the newest exemplar."""
        self.total += sum([other.total for other in others])
        # Most are empty, and 0 is counted in the first bucket.
        if self.total or any(other.counts[0] for other in others):
            every = [self.counts, *[other.counts for other in others]]
            self.counts = list(map(sum, zip(*every, strict=True)))
        for other in others:
            for slot, exemplar in other.exemplars.items():
                mine = self.exemplars.get(slot)
                if mine is None or mine.time < exemplar.time:
                    self.exemplars[slot] = exemplar


def _histogram(
    bounds: tuple[float, ...], counts: list[int], total: float, exemplars: dict[int, Exemplar]
) -> Histogram:
    made = Histogram(bounds)
    made.counts, made.total, made.exemplars = counts, total, exemplars
    return made


def _sum(*histograms: Histogram) -> Histogram:
    together = Histogram()
    together.add(*histograms)
    return together


class _Counts:
    """Numbers, tables of numbers and histograms by their `names`: added up and sent one by one."""

    __slots__ = ()

    names: ClassVar[tuple[str, ...]] = ()

    def __reduce__(self) -> tuple[Callable[..., _Counts], tuple[object, ...]]:
        return _counts, (type(self), [getattr(self, name) for name in self.names])

    def add(self, *others: Self) -> None:
        """Adds the counts of others. All at once is faster than one after the other."""
        for name in self.names:
            mine, theirs = getattr(self, name), [getattr(other, name) for other in others]
            if isinstance(mine, Histogram):
                mine.add(*theirs)
            elif isinstance(mine, defaultdict):
                for table in theirs:
                    if not mine:
                        mine.update(table)
                        continue
                    for key, count in table.items():
                        mine[key] += count
            else:
                setattr(self, name, mine + sum(theirs))


def _counts(kind: type[_Counts], values: list[object]) -> _Counts:
    made = kind()
    for name, value in zip(kind.names, values, strict=True):
        setattr(made, name, value)
    return made


_OF_A_MEMBER: Final = (
    *("affinity", "at_once", "bytes_in", "bytes_out", "choices", "codes", "duration", "errors", "failovers"),
    "first_byte",
    *("last_resort", "launch_duration", "launch_phases", "launches", "retries", "transitions"),
)
_OF_THE_EDGE: Final = (
    *("budget_exhausted", "connections", "http2_errors", "lines_dropped", "rejected", "requests"),
    *("requests_http10", "requests_http2"),
)


class MemberCounts(_Counts):
    """One member's counters since the start of this worker. `bytes_in` flow to the member.

    at_once: times of requests whose response came in one piece, so that its first byte and its end have the
    same time. `duration` and `first_byte` have the rest; `durations` and `first_bytes` return all.
    last_resort: requests for which it was chosen because no member took them.
    """

    __slots__ = _OF_A_MEMBER
    names = _OF_A_MEMBER

    def __init__(self) -> None:
        self.codes: defaultdict[int, int] = defaultdict(int)
        self.at_once = Histogram()
        self.duration = Histogram()
        self.first_byte = Histogram()
        self.bytes_in = 0
        self.bytes_out = 0
        self.choices: defaultdict[str, int] = defaultdict(int)  # of `expected-wait`, by reason
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.retries: defaultdict[str, int] = defaultdict(int)
        self.affinity: defaultdict[str, int] = defaultdict(int)
        self.last_resort = 0
        self.transitions: defaultdict[str, int] = defaultdict(int)
        self.launches: defaultdict[str, int] = defaultdict(int)
        self.launch_duration = Histogram(LAUNCH_BOUNDS)  # to `ready`
        self.launch_phases: defaultdict[str, float] = defaultdict(float)  # seconds
        self.failovers: defaultdict[str, int] = defaultdict(int)  # by the member that a launch moved to

    def record(self, source: str, started: float, begun: float | None, now: float, bytes_out: int) -> None:
        """Counts a request that is finished `now`. begun: when its response began; None if it did not."""
        self.affinity[source] += 1
        self.bytes_out += bytes_out
        duration = now - started
        if begun == now:
            times = self.at_once
        else:
            times = self.duration
            if begun is not None:
                self.first_byte.observe(begun - started)
        times.counts[bisect_left(BOUNDS, duration)] += 1
        times.total += duration

    def durations(self) -> Histogram:
        """How long requests took, in seconds."""
        return _sum(self.duration, self.at_once)

    def first_bytes(self) -> Histogram:
        """How long requests waited for the first byte of their response, in seconds."""
        return _sum(self.first_byte, self.at_once)


class EdgeCounts(_Counts):
    """The edge's own counters; `connections` are visitors' connections open now.

    lines_dropped: lost lines, by log (`access`, `events`). requests_http10, requests_http2: those of
    `requests` that did not come by HTTP/1.1. http2_errors: GOAWAY and RST_STREAM that the edge sent, by the
    name of their code.
    """

    __slots__ = _OF_THE_EDGE
    names = _OF_THE_EDGE

    def __init__(self) -> None:
        self.connections = 0
        self.lines_dropped: defaultdict[str, int] = defaultdict(int)
        self.requests = 0
        self.requests_http10 = 0
        self.requests_http2 = 0
        self.http2_errors: defaultdict[str, int] = defaultdict(int)
        self.rejected: defaultdict[str, int] = defaultdict(int)
        self.budget_exhausted = 0
