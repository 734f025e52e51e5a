"""The last hour of the federation, kept in memory: charts of rates and times, and events.

`History.see` is given a survey regularly, and works out what changed since the previous one. Everything it
keeps is bounded: an hour of steps for each member in force, and the last few hundred events.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS, MemberCounts
from fedproxy.decide.launch import End
from fedproxy.decide.snapshot import Snapshot, Survey
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

_MINUTE: Final = 6  # steps
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


@dataclass(frozen=True)
class Figures:
    """A member's recent figures.

    requests, errors: per second, in the last 10 to 20 seconds. first_byte: the 50th, 95th and 99th percentile
    of the time to the response's head in the last minute, in seconds; None without responses. new: its share
    of all new visitors in the last hour, from 0 to 1; None if there were none.
    """

    requests: float = 0.0
    errors: float = 0.0
    first_byte: tuple[float | None, float | None, float | None] = (None, None, None)
    new: float | None = None


@dataclass(frozen=True)
class _Totals:
    """A member's counters at one moment, `at` in seconds of a monotonic clock. errors: by kind."""

    at: float
    requests: int
    new: int
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
        for code, count in counts.codes.items():
            if code >= 500 and code not in (502, 504):
                wrong[f"answered {code}"] = wrong.get(f"answered {code}", 0) + count
        for end in _SPOILT:
            if end in counts.launches:
                wrong[f"launch {end}"] = counts.launches[end]
        return cls(
            at=at,
            requests=sum(counts.codes.values()),
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
    lines: dict[str, array[int]] = field(default_factory=lambda: {line: array("L") for line in LINES})
    new: array[int] = field(default_factory=lambda: array("L"))

    def close_step(self) -> None:
        """A point for each chart."""
        totals, before = self.totals, self.marks[-1]
        for line, value in (
            ("requests", _rate(totals, before, totals.requests - before.requests)),
            ("errors", _rate(totals, before, sum(_more(totals.errors, before.errors).values()))),
            ("first_byte", quantile(_between(totals, before), 0.95) or 0.0),
            ("in_flight", float(self.snapshot.in_flight)),
        ):
            _keep(self.lines[line], round(value * LINES[line]))
        _keep(self.new, max(0, totals.new - before.new))
        self.marks.append(totals)

    def figures(self, all_new: int) -> Figures:
        """all_new: new visitors of all members in the last hour."""
        totals, minute = self.totals, _between(self.totals, self.marks[0])
        lately = self.marks[-2] if len(self.marks) > 1 else self.marks[-1]
        return Figures(
            requests=_rate(totals, lately, totals.requests - lately.requests),
            errors=_rate(totals, lately, sum(_more(totals.errors, lately.errors).values())),
            first_byte=(quantile(minute, 0.5), quantile(minute, 0.95), quantile(minute, 0.99)),
            new=self.newcomers() / all_new if all_new else None,
        )

    def newcomers(self) -> int:
        """New visitors in the last hour."""
        return sum(self.new) + max(0, self.totals.new - self.marks[-1].new)

    def why(self) -> str:
        """Recent errors, most frequent first."""
        lately = self.marks[-2] if len(self.marks) > 1 else self.marks[-1]
        wrong = sorted(_more(self.totals.errors, lately.errors).items(), key=lambda item: -item[1])
        return ", ".join(f"{reason.replace('_', ' ')} {_times(count)}" for reason, count in wrong[:4])


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
        all_new = sum(watch.newcomers() for watch in self._watches.values())
        return {name: watch.figures(all_new) for name, watch in self._watches.items()}

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
            self._step_began = now
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
        self.survey, self.time = survey, time
        self.looks += 1
        if now - self._step_began >= STEP:
            self._step_began = now
            self.steps += 1
            for watch in self._watches.values():
                watch.close_step()

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


def quantile(counts: Sequence[int], part: float) -> float | None:
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
            return lower + (BOUNDS[at] - lower) * (rank - below) / count
        below += count
    return BOUNDS[-1]


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


def _rate(now: _Totals, before: _Totals, count: float) -> float:
    """Per second. A counter falls when a new member gets the name of an earlier one."""
    passed = now.at - before.at
    return max(0.0, count) / passed if passed > 0 else 0.0


def _keep(values: array[int], value: int) -> None:
    values.append(value)
    if len(values) > KEPT:
        values.pop(0)
