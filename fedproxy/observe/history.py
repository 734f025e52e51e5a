"""The last hour of the edge and its members, kept in memory: charts of rates and times, and events.

`History.see` is given a survey regularly, and works out what changed since the previous one. Everything it
keeps is bounded: an hour of steps for each member in force, and the last few hundred events.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS, EdgeCounts, MemberCounts
from fedproxy.decide.launch import End
from fedproxy.decide.snapshot import Snapshot, Survey, shares
from fedproxy.event import Event, EventName

STEP: Final = 10.0
"""Seconds between two points of a chart."""

KEPT: Final = 360
"""Points of a chart: an hour."""

LINES: Final = {"requests": 100, "errors": 100, "first_byte": 100_000, "in_flight": 1}
"""The charted lines of each member with their scale: per second, per second, 95th percentile in s, count.

A point is stored and sent as an integer, the value times this scale: an hour of hundreds of members is many
points, and integers are fast to serialise.
"""

EDGE_LINES: Final = {
    "requests": 100,
    "answered": 100,
    "failed": 100,
    "refused": 100,
    "in_flight": 1,
    "connections": 1,
}
"""The same of the edge as a whole: four rates per second, and two counts.

requests: those that it took, its own pages too. answered, failed: those that a member answered below 500, and
the others. refused: by the edge itself, connections too.
"""

NOTHING: Final = -1
"""A point where nothing was measured: no response whose time could be taken, or no survey in that step."""

_MINUTE: Final = 6  # steps
_HOUR: Final = KEPT * STEP
_CLEARLY: Final = 1.25  # times its share is what a member has to get to be over it, ...
_DEVIATIONS: Final = 3.0  # ... and so many standard deviations more than it
_EXACT: Final = 1000  # parts of a visitor are counted as integers, so that sums stay exact
_EVENTS: Final = 500
_LONGEST: Final = 400  # characters of a message
_BULK: Final = 60.0  # seconds between two events of what is told in bulk
_REASONS: Final = 8  # that such an event names
_NEW: Final = (Source.KEY, Source.RANDOM)
_SPOILT: Final = (End.FAILED, End.LOST)


@dataclass
class _Bulk:
    """What is told in bulk: the first at once, and then what came until `until`, by reason."""

    until: float
    say: Callable[[Mapping[str, int]], str]
    member: str | None
    who: str | None = None
    counts: Counter[str] = field(default_factory=Counter)


class Quantile(NamedTuple):
    """A quantile of times, in seconds: about `value`, and for certain over `lower` and at most `upper`.

    upper: None for what is over the last bound, which is then the `value` too.
    """

    value: float
    lower: float
    upper: float | None


@dataclass(frozen=True)
class Figures:
    """A member's recent figures.

    requests, errors, last_resort: per second, in the last 10 to 20 seconds. first_byte: the 50th, 95th and
    99th percentile of the time to the response's head in the last minute; None without responses. sources:
    requests of the last minute by what chose this member.

    new: its share of all new visitors in the last hour, from 0 to 1; None if there were none. due: the share
    that its weight stood for at that time, None as well. is_over: it got clearly more, as `_is_over` has it.
    """

    requests: float = 0.0
    errors: float = 0.0
    last_resort: float = 0.0
    first_byte: tuple[Quantile | None, Quantile | None, Quantile | None] = (None, None, None)
    sources: Mapping[str, int] = field(default_factory=dict)
    new: float | None = None
    due: float | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Refusals:
    """What the edge refuses for one reason: per second in the last 10 to 20 seconds, and in the last hour."""

    reason: str
    rate: float
    count: int


@dataclass(frozen=True)
class EdgeFigures:
    """The edge's own recent figures: requests that it took and refusals per second, in 10 to 20 seconds.

    refusals: by reason, the most frequent first. since: the seconds that their hour has had so far.
    """

    requests: float = 0.0
    refused: float = 0.0
    refusals: Sequence[Refusals] = ()
    since: float = 0.0


class _Hour:
    """Counts of the steps of the last hour, and their `total`."""

    __slots__ = ("_values", "total")

    def __init__(self) -> None:
        self._values = deque[int]()
        self.total = 0

    def add(self, value: int) -> None:
        self._values.append(value)
        self.total += value

    def keep(self, steps: int) -> None:
        while len(self._values) > steps:
            self.total -= self._values.popleft()


@dataclass(frozen=True)
class _Totals:
    """A member's counters at one moment, `at` in seconds of a monotonic clock. errors: by kind."""

    at: float
    requests: int
    failed: int
    new: int
    last_resort: int
    sources: Mapping[str, int]
    first_byte: tuple[int, ...]
    errors: Mapping[str, int]
    transitions: Mapping[str, int]
    failovers: Mapping[str, int]

    @classmethod
    def of(cls, counts: MemberCounts, at: float) -> _Totals:
        """The counters are live: they are copied."""
        wrong = dict(counts.errors)
        # A response that was discarded for a retry is counted as a retry with its status as the reason. The
        # edge's own 502 and 504 are already among the errors.
        for reason, count in counts.retries.items():
            if reason.isdecimal():
                wrong[f"answered {reason}"] = count
        failed = 0
        for code, count in counts.codes.items():
            if code < 500:
                continue
            failed += count
            if code not in (502, 504):
                wrong[f"answered {code}"] = wrong.get(f"answered {code}", 0) + count
        for end in _SPOILT:
            if end in counts.launches:
                wrong[f"launch {end}"] = counts.launches[end]
        return cls(
            at=at,
            requests=sum(counts.codes.values()),
            failed=failed,
            last_resort=counts.last_resort,
            sources=dict(counts.affinity),
            new=sum(counts.affinity.get(source, 0) for source in _NEW),
            first_byte=tuple(counts.first_bytes().counts),
            errors=wrong,
            transitions=dict(counts.transitions),
            failovers=dict(counts.failovers),
        )


@dataclass
class _MemberState:
    """A member's state between surveys. `marks`: its totals at the end of each step of the last minute."""

    snapshot: Snapshot
    totals: _Totals
    marks: deque[_Totals] = field(default_factory=lambda: deque(maxlen=_MINUTE + 1))
    lines: dict[str, array[int]] = field(default_factory=lambda: _lines(LINES))
    new: _Hour = field(default_factory=_Hour)
    # Of the steps in which some member took visitors: those that it got, what was due to it by weight (in
    # parts of a visitor), and the variance of that if each visitor was sent by chance.
    got: _Hour = field(default_factory=_Hour)
    due: _Hour = field(default_factory=_Hour)
    variance: _Hour = field(default_factory=_Hour)
    part: float | None = None  # its share by weight at the end of the last step

    @property
    def newly(self) -> int:
        """New visitors since the last step."""
        return max(0, self.totals.new - self.marks[-1].new)

    def close_step(self, all_newly: int, part: float | None) -> tuple[float, float]:
        """A point for each chart; returns what it answered and what failed, per second.

        all_newly: new visitors of all members in the step. part: its share by weight, None if no member
        takes any.
        """
        totals, before = self.totals, self.marks[-1]
        found = quantile(_between(totals, before), 0.95)
        requests = _rate(totals, before, totals.requests - before.requests)
        failed = _rate(totals, before, totals.failed - before.failed)
        for line, value in (
            ("requests", requests),
            ("errors", _rate(totals, before, sum(_more(totals.errors, before.errors).values()))),
            ("in_flight", float(self.snapshot.in_flight)),
        ):
            self.lines[line].append(round(value * LINES[line]))
        self.lines["first_byte"].append(NOTHING if found is None else _point(found))
        newly = self.newly
        self.new.add(newly)
        # Who was in for half of a step got about half of it.
        share = 0.0 if part is None else part if self.part is None else (self.part + part) / 2
        self.got.add(0 if part is None else newly)
        self.due.add(round(all_newly * share * _EXACT))
        self.variance.add(round(all_newly * share * (1 - share) * _EXACT))
        self.part = part or 0.0
        self.marks.append(totals)
        return max(0.0, requests - failed), failed

    def miss_step(self) -> None:
        """A step without a survey."""
        for values in self.lines.values():
            values.append(NOTHING)
        for each in (self.new, self.got, self.due, self.variance):
            each.add(0)

    def keep(self, steps: int) -> None:
        """Forgets what is older than so many steps."""
        for values in self.lines.values():
            _keep(values, steps)
        for each in (self.new, self.got, self.due, self.variance):
            each.keep(steps)

    def figures(self, all_new: int, all_got: int) -> Figures:
        """all_new, all_got: of all members together, in the last hour."""
        totals, first = self.totals, self.marks[0]
        minute = _between(totals, first)
        lately = self.marks[-2] if len(self.marks) > 1 else first
        due = self.due.total / _EXACT
        return Figures(
            requests=_rate(totals, lately, totals.requests - lately.requests),
            errors=_rate(totals, lately, sum(_more(totals.errors, lately.errors).values())),
            last_resort=_rate(totals, lately, totals.last_resort - lately.last_resort),
            first_byte=(quantile(minute, 0.5), quantile(minute, 0.95), quantile(minute, 0.99)),
            sources=_more(totals.sources, first.sources),
            new=(self.new.total + self.newly) / all_new if all_new else None,
            due=due / all_got if all_got else None,
            is_over=_is_over(self.got.total, due, self.variance.total / _EXACT),
        )

    def why(self) -> str:
        """Recent errors, most frequent first."""
        lately = self.marks[-2] if len(self.marks) > 1 else self.marks[-1]
        wrong = sorted(_more(self.totals.errors, lately.errors).items(), key=lambda item: -item[1])
        return ", ".join(f"{reason.replace('_', ' ')} {_times(count)}" for reason, count in wrong[:4])


@dataclass(frozen=True)
class _EdgeTotals:
    """The edge's own counters at one moment."""

    at: float
    requests: int
    rejected: Mapping[str, int]

    @classmethod
    def of(cls, counts: EdgeCounts, at: float) -> _EdgeTotals:
        """The counters are live: they are copied."""
        return cls(at, counts.requests, dict(counts.rejected))


class _EdgeState:
    """The edge's own totals, lines, and refusals by reason. `marks`: totals at the ends of the last steps."""

    def __init__(self) -> None:
        self.lines = _lines(EDGE_LINES)
        self.marks = deque[_EdgeTotals](maxlen=2)
        self.refused: dict[str, int] = {}  # in the steps of the last hour
        self._by_step = deque[Mapping[str, int]]()

    totals: _EdgeTotals

    def see(self, totals: _EdgeTotals) -> None:
        """Takes the totals of a survey."""
        self.totals = totals
        if not self.marks:
            self.marks.append(totals)

    def close_step(self, answered: float, failed: float, in_flight: int, connections: int) -> None:
        """A point for each chart."""
        totals, before = self.totals, self.marks[-1]
        refused = _more(totals.rejected, before.rejected)
        for line, value in (
            ("requests", _rate(totals, before, totals.requests - before.requests)),
            ("answered", answered),
            ("failed", failed),
            ("refused", _rate(totals, before, sum(refused.values()))),
            ("in_flight", float(in_flight)),
            ("connections", float(connections)),
        ):
            self.lines[line].append(round(value * EDGE_LINES[line]))
        self._by_step.append(refused)
        for reason, count in refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        self.marks.append(totals)

    def miss_step(self) -> None:
        """A step without a survey."""
        self._by_step.append({})
        for values in self.lines.values():
            values.append(NOTHING)

    def keep(self, steps: int) -> None:
        """Forgets what is older than so many steps."""
        for values in self.lines.values():
            _keep(values, steps)
        while len(self._by_step) > steps:
            for reason, count in self._by_step.popleft().items():
                self.refused[reason] -= count
                if not self.refused[reason]:
                    del self.refused[reason]

    def figures(self, since: float) -> EdgeFigures:
        """since: the seconds since the first survey."""
        totals, lately = self.totals, self.marks[0]
        now = _more(totals.rejected, lately.rejected)
        counts = Counter(self.refused)
        counts.update(_more(totals.rejected, self.marks[-1].rejected))
        found = [Refusals(each, _rate(totals, lately, now.get(each, 0)), counts[each]) for each in counts]
        return EdgeFigures(
            requests=_rate(totals, lately, totals.requests - lately.requests),
            refused=_rate(totals, lately, sum(now.values())),
            refusals=sorted(found, key=lambda each: (-each.rate, -each.count, each.reason)),
            since=min(since, _HOUR),
        )


class History:
    """The charts and events of the last hour, from the surveys given to `see` and the events given to `note`.

    on_event: called with each event, those that it found itself too. survey: the last one; time: when it was
    taken, in seconds since the epoch. looks, steps, changes: the number of surveys, of chart points and of
    events so far.
    """

    def __init__(self, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self._on_event = on_event
        self.survey: Survey | None = None
        self.time = 0.0
        self.looks = 0
        self.steps = 0
        self.changes = 0
        self._watches: dict[str, _MemberState] = {}
        self._edge = _EdgeState()
        self._ends = array("d")  # of the charts' steps, by a monotonic clock
        self._began = self._now = 0.0
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._bulk: dict[tuple[EventName, str], _Bulk] = {}
        self._step_began = 0.0
        self._available = True
        self._unretried = 0
        self._refused: Mapping[str, int] = {}
        self._dropped: Mapping[str, int] = {}

    @property
    def events(self) -> Sequence[Event]:
        """All events, newest last."""
        return tuple(self._events)

    def about(self, name: str, most: int) -> list[Event]:
        """The last events about a member, newest first."""
        return [event for event in reversed(self._events) if event.member == name][:most]

    def figures(self) -> dict[str, Figures]:
        """The recent figures of each member."""
        return dict(self.each_figures())

    def each_figures(self) -> Iterator[tuple[str, Figures]]:
        """The same one by one; surveys may come in between."""
        all_new = sum(watch.new.total + watch.newly for watch in self._watches.values())
        all_got = sum(watch.got.total for watch in self._watches.values())
        for name, watch in list(self._watches.items()):
            yield name, watch.figures(all_new, all_got)

    def edge_figures(self) -> EdgeFigures:
        """The recent figures of the edge as a whole."""
        if self.survey is None:
            return EdgeFigures()
        return self._edge.figures(self._now - self._began)

    def times(self) -> list[int]:
        """When each step of the charts ended, in seconds since the epoch.

        The clock was set meanwhile, perhaps: they are as far apart as the steps were, and end now.
        """
        return [round(self.time - self._now + end) for end in self._ends]

    def edge_charts(self) -> dict[str, list[int]]:
        """The edge's own lines, one point per step, newest last."""
        return {line: values.tolist() for line, values in self._edge.lines.items()}

    def charts(self) -> dict[str, dict[str, list[int]]]:
        """Each member's lines, one point per step, newest last; a member that joined later has fewer."""
        return {
            name: {line: values.tolist() for line, values in watch.lines.items()}
            for name, watch in self._watches.items()
        }

    def newest(self) -> dict[str, list[int]]:
        """The last point of each line in the order of `LINES`, for each member that has one."""
        return {
            name: [values[-1] for values in watch.lines.values()]
            for name, watch in self._watches.items()
            if watch.lines["requests"]
        }

    def newest_of_edge(self) -> list[int]:
        """The last point of each line in the order of `EDGE_LINES`; there has to be one."""
        return [values[-1] for values in self._edge.lines.values()]

    def note(self, event: Event) -> None:
        """Adds an event, and hands it on. It has to have its time."""
        self._on_event(event)
        if len(event.message) > _LONGEST:
            event = replace(event, message=f"{event.message[: _LONGEST - 1]}…")
        self._events.append(event)
        self.changes += 1

    def count(
        self,
        name: EventName,
        counts: Mapping[str, int],
        time: float,
        say: Callable[[Mapping[str, int]], str],
        member: str | None = None,
        who: str | None = None,
        key: str = "",
    ) -> None:
        """Adds what may come in floods: an event at once, and at most one a minute of all that follows.

        counts: how many, by reason. say: makes the message of the sums. who: the last one is named. key:
        tells floods of one name apart.
        """
        bulk = self._bulk.get((name, key))
        if bulk is None:
            self._bulk[name, key] = _Bulk(time + _BULK, say, member, who)
            self.note(Event(name, say(counts), member, who, time))
        else:
            bulk.counts.update(counts)
            bulk.say, bulk.who = say, who

    def flush(self, time: float) -> None:
        """Adds the events of what came in bulk and is due."""
        for (name, key), bulk in list(self._bulk.items()):
            # The wall clock may have been set back.
            if bulk.until - _BULK <= time < bulk.until:
                continue
            if bulk.counts:
                self.note(Event(name, bulk.say(bulk.counts), bulk.member, bulk.who, time))
                self._bulk[name, key] = _Bulk(time + _BULK, bulk.say, bulk.member, bulk.who)
            else:
                del self._bulk[name, key]

    def see(self, survey: Survey, now: float, time: float) -> None:
        """Takes a survey; `now` is monotonic time, `time` wall-clock time, both in seconds."""
        first = self.survey is None
        if first:
            self._step_began = self._began = now
            self._unretried = survey.edge.budget_exhausted
            self._refused = dict(survey.edge.rejected)
            self._dropped = dict(survey.edge.lines_dropped)
        self.flush(time)
        old, self._watches = self._watches, {}
        for snapshot in survey.members:
            totals = _Totals.of(snapshot.counts, now)
            watch = old.pop(snapshot.name, None)
            if watch is None:
                watch = _MemberState(snapshot, totals)
                watch.marks.append(totals)
            else:
                before, watch.snapshot = watch.snapshot, snapshot
                counted, watch.totals = watch.totals, totals
                self._compare(watch, before, counted, time)
            self._watches[snapshot.name] = watch
        self._compare_edge(survey, time)
        self._edge.see(_EdgeTotals.of(survey.edge, now))
        self.survey, self.time, self._now = survey, time, now
        self.looks += 1
        if now - self._step_began >= STEP:
            self._close_step(survey, now)

    def _close_step(self, survey: Survey, now: float) -> None:
        watches = self._watches
        missed = int((now - self._step_began) / STEP) - 1
        for number in range(max(0, missed - KEPT), missed):
            # The machine slept, or this process was stopped.
            self._ends.append(self._step_began + (number + 1) * STEP)
            self._edge.miss_step()
            for watch in watches.values():
                watch.miss_step()
        self._step_began = now
        self.steps += 1 + max(0, missed)
        self._ends.append(now)
        parts = shares(survey.members)
        weighed = any(parts.values())
        newly = sum(watch.newly for watch in watches.values())
        answered = failed = 0.0
        for name, watch in watches.items():
            more = watch.close_step(newly, parts[name] if weighed else None)
            answered += more[0]
            failed += more[1]
        in_flight = sum(member.in_flight for member in survey.members)
        self._edge.close_step(answered, failed, in_flight, survey.edge.connections)
        _keep(self._ends, KEPT)
        while self._ends[0] <= now - _HOUR:
            self._ends.pop(0)
        self._edge.keep(len(self._ends))
        for watch in watches.values():
            watch.keep(len(self._ends))

    # What changed

    def _compare(self, watch: _MemberState, before: Snapshot, counted: _Totals, time: float) -> None:
        name = watch.snapshot.name
        self._compare_breaker(watch, before.breaker, counted, time)
        for other, more in _more(watch.totals.failovers, counted.failovers).items():
            say = _went_on(name, other)
            self.count(EventName.LAUNCH_MOVED, {other: more}, time, say, name, key=f"{name} {other}")

    def _compare_breaker(
        self, watch: _MemberState, before: BreakerState, counted: _Totals, time: float
    ) -> None:
        after, name = watch.snapshot.breaker, watch.snapshot.name
        passed = _more(watch.totals.transitions, counted.transitions)
        why = watch.why()
        because = f" ({why})" if why else ""
        opened, tried = BreakerState.OPEN.value in passed, BreakerState.HALF_OPEN.value in passed
        if after is BreakerState.OPEN:
            if before is BreakerState.CLOSED:
                self._tell(
                    EventName.BREAKER_OPEN, f"{name} was ejected: its breaker opened{because}", time, name
                )
            elif opened and (tried or before is BreakerState.HALF_OPEN):
                say = _failed(name, because)
                self.count(EventName.BREAKER_TRIAL, {"": 1}, time, say, name, key=name)
        elif after is not before and after is BreakerState.HALF_OPEN:
            if before is BreakerState.CLOSED and opened:
                self._tell(
                    EventName.BREAKER_OPEN, f"{name} was ejected: its breaker opened{because}", time, name
                )
            text = f"{name} gets trial requests: its breaker is half-open"
            self._tell(EventName.BREAKER_HALF_OPEN, text, time, name)
        elif after is not before:
            self._tell(
                EventName.BREAKER_CLOSED, f"{name} is no longer ejected: its breaker closed", time, name
            )
        elif after is BreakerState.CLOSED and opened:
            text = f"{name} was ejected briefly: its breaker opened{because} and closed"
            self._tell(EventName.BREAKER_OPEN, text, time, name)

    def _tell(self, name: EventName, message: str, time: float, member: str | None = None) -> None:
        self.note(Event(name, message, member, time=time))

    def _compare_edge(self, survey: Survey, time: float) -> None:
        could, self._available = self._available, any(member.available for member in survey.members)
        if could and not self._available:
            self._tell(EventName.FEDERATION_UNAVAILABLE, "no member is available", time)
        elif self._available and not could:
            self._tell(EventName.FEDERATION_AVAILABLE, "a member is available again", time)
        edge = survey.edge
        more, self._unretried = edge.budget_exhausted - self._unretried, edge.budget_exhausted
        if more > 0:
            self.count(EventName.RETRY_EXHAUSTED, {"": more}, time, _used_up)
        for name, before, now, say in (
            (EventName.VISITOR_REFUSED, self._refused, edge.rejected, _refused),
            (EventName.LOG_DROPPED, self._dropped, edge.lines_dropped, _lost),
        ):
            grown = _more(now, before)
            if grown:
                self.count(name, grown, time, say)
        self._refused, self._dropped = dict(edge.rejected), dict(edge.lines_dropped)


def quantile(counts: Sequence[int], part: float) -> Quantile | None:
    """The quantile `part` (0 to 1) of a `Histogram`'s bucket counts; None without values.

    Values are interpolated linearly within a bucket, as in Prometheus; those over the last bound are shown as
    that bound.
    """
    whole = sum(counts)
    if not whole:
        return None
    rank, below = part * whole, 0
    for at, count in enumerate(counts[: len(BOUNDS)]):
        if count and below + count >= rank:
            lower = BOUNDS[at - 1] if at else 0.0
            value = lower + (BOUNDS[at] - lower) * (rank - below) / count
            return Quantile(value, lower, BOUNDS[at])
        below += count
    return Quantile(BOUNDS[-1], BOUNDS[-1], None)


def _point(found: Quantile) -> int:
    """A quantile as a point, from which its bucket can be told: no point is on the bucket's lower bound."""
    scale = LINES["first_byte"]
    if found.upper is None:
        return round(found.value * scale) + 1
    # What is just over the lower bound is not to be rounded down to it.
    return max(round(found.value * scale), round(found.lower * scale) + 1)


def _is_over(got: int, due: float, variance: float) -> bool:
    """Whether a member got clearly more new visitors than were due to it.

    If each had been sent by chance, with the weights as they were, it would be so once in 700 times; and a
    large federation, in which little is much by that measure, would not notice less than a quarter more.
    """
    return got > due * _CLEARLY and got - due > _DEVIATIONS * math.sqrt(max(1.0, variance))


def _lines(lines: Mapping[str, int]) -> dict[str, array[int]]:
    return {line: array("q") for line in lines}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _failed(name: str, because: str) -> Callable[[Mapping[str, int]], str]:
    def say(counts: Mapping[str, int]) -> str:
        count = sum(counts.values())
        return (
            f"{name} remains ejected: it failed {'its trial' if count == 1 else f'{count} trials'}{because}"
        )

    return say


def _went_on(name: str, other: str) -> Callable[[Mapping[str, int]], str]:
    def say(counts: Mapping[str, int]) -> str:
        count = sum(counts.values())
        return f"{count} launch{'es' * (count > 1)} that {name} could not serve moved to {other}"

    return say


def _used_up(counts: Mapping[str, int]) -> str:
    count = sum(counts.values())
    return f"the retry budget was used up: {count} {'retries were' if count > 1 else 'retry was'} not made"


def _refused(counts: Mapping[str, int]) -> str:
    found = sorted(counts.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{reason.replace('_', ' ')} {_times(count)}" for reason, count in found[:_REASONS])
    more = f", and {len(found) - _REASONS} more reasons" if len(found) > _REASONS else ""
    return f"visitors were refused: {reasons}{more}"


def _lost(counts: Mapping[str, int]) -> str:
    return "; ".join(
        f"{count} line{'s' * (count > 1)} of the log of {log} {'were' if count > 1 else 'was'} lost"
        for log, count in counts.items()
    )


def _between(now: _Totals, before: _Totals) -> list[int]:
    return [max(0, more - less) for more, less in zip(now.first_byte, before.first_byte, strict=True)]


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The counters that have grown, and by how much."""
    return {key: count - before.get(key, 0) for key, count in now.items() if count > before.get(key, 0)}


def _rate(now: _Totals | _EdgeTotals, before: _Totals | _EdgeTotals, count: float) -> float:
    """Per second. A counter falls when a new member gets the name of an earlier one."""
    passed = now.at - before.at
    return max(0.0, count) / passed if passed > 0 else 0.0


def _keep(values: array[int] | array[float], most: int) -> None:
    if len(values) > most:
        del values[: len(values) - most]
