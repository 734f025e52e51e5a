"""What was seen of a fleet, and what follows from it. Pure: no clock, no network.

Times are in seconds of one clock, which all processes of this machine share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.histogram import Histogram

#: Seconds after a cut in which an edge need not know yet that a member is there again; as many as the cut
#: lasted if those are more, since a breaker that fails again waits twice as long before it tries.
NOTICE: Final = 10.0
_EXAMPLES: Final = 100


class Errand(StrEnum):
    """What a visitor asks for: a page of the federation, something of its own session, or a launch."""

    PAGE = "page"
    SESSION = "session"
    LAUNCH = "launch"


class CutOff(NamedTuple):
    """A member could not be reached from an edge, from `begin` to `end`."""

    edge: str
    member: str
    begin: float
    end: float


class MovedVisit(NamedTuple):
    """A visitor whose member was `home` was served by another. sent, done: of the request, and the head."""

    sent: float
    done: float
    edge: str
    home: str
    to: str
    errand: Errand


class LostVisit(NamedTuple):
    """A request that an edge had accepted failed. home: the visitor's member, if it had one."""

    sent: float
    done: float
    edge: str
    home: str
    errand: Errand
    why: str


class StreamCount(NamedTuple):
    """A launch's stream began (1) or ended (-1) at a member, for an edge."""

    at: float
    edge: str
    change: int


def cut_off(visit: MovedVisit | LostVisit, cuts: Iterable[CutOff]) -> bool:
    """Whether its member could not be reached from that edge, or that may not be known to be over."""
    return any(
        cut.edge == visit.edge
        and cut.member == visit.home
        and visit.sent < cut.end + max(NOTICE, cut.end - cut.begin)
        and visit.done > cut.begin
        for cut in cuts
    )


def count_open(changes: Iterable[StreamCount], at: float) -> int:
    """Streams that were open at a moment."""
    return sum(each.change for each in changes if each.at <= at)


def peak(changes: Sequence[StreamCount], begin: float, end: float) -> int:
    """The most streams that were open at once between two moments."""
    now = most = count_open(changes, begin)
    # Of what happens at the same time, what ends is first.
    for each in sorted(changes, key=lambda change: (change.at, change.change)):
        if begin < each.at < end:
            now += each.change
            most = max(most, now)
    return most


@dataclass
class Faced:
    """What the visitors of a phase met with: what was sent in it, and what was moved or lost in it.

    again: sent again as a browser does, since a connection that was kept broke before any answer. elsewhere:
    connections that an edge refused, and another one took. full: when launches were told that there is no
    room.
    """

    requests: int = 0
    again: int = 0
    elsewhere: int = 0
    launches: int = 0
    ready: int = 0
    full: list[float] = field(default_factory=list)
    times: Histogram = field(default_factory=Histogram)
    moved: list[MovedVisit] = field(default_factory=list)
    lost: list[LostVisit] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class FleetPhase:
    """A phase: what it is, when, what visitors met with, and what the edges said happened.

    agreed: seconds from an operator's change to the moment when it was in force on all edges; late: the same
    of changes that were made while the store was away, from when it was there again. allowed: how much
    `max_launches` may be exceeded in it.
    """

    name: str
    begin: float
    end: float
    faced: Faced
    events: Mapping[str, int]
    allowed: int = 0


@dataclass(frozen=True)
class PhaseFigures:
    """The figures of a phase.

    failed: accepted by an edge, and failed; of those `cut_off` for sessions whose member could not be reached
    from that edge, which nobody else could have served. moves: visitors who were moved though their member
    was there. full: launches that were told that there is no room; unused: of those, the ones for which some
    member had room, counted at the members. launch_moves: launches that went to another member for want of a
    slot; roomy: of those, the ones whose member had room. peak: the most launches at once at a member;
    overshoot: by which it exceeded `max_launches`. p50, p99, longest: milliseconds to an answer's head.
    examples: the first of what should not have been.
    """

    name: str
    seconds: float
    requests: int
    failed: int
    cut_off: int
    again: int
    elsewhere: int
    p50: float
    p99: float
    longest: float
    moves: int
    launches: int
    ready: int
    full: int
    unused: int
    launch_moves: int
    roomy: int
    peak: int
    overshoot: int
    allowed: int
    changes: int
    agreed_median: float | None
    agreed_most: float | None
    late_most: float | None
    why: Mapping[str, int]
    events: Mapping[str, int]
    examples: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            name: round(value, 3) if isinstance(value, float) else value for name, value in vars(self).items()
        }


def figures(
    phase: FleetPhase, cuts: Sequence[CutOff], streams: Mapping[str, Sequence[StreamCount]], most: int
) -> PhaseFigures:
    """What follows from what was seen. streams: by member. most: `max_launches` of each."""
    faced = phase.faced
    excused = [each for each in faced.lost if each.errand is Errand.SESSION and cut_off(each, cuts)]
    failed = [each for each in faced.lost if each not in excused]
    moved = [each for each in faced.moved if each.errand is not Errand.LAUNCH and not cut_off(each, cuts)]
    launched = [each for each in faced.moved if each.errand is Errand.LAUNCH and not cut_off(each, cuts)]
    highest = max((peak(changes, phase.begin, phase.end) for changes in streams.values()), default=0)
    return PhaseFigures(
        name=phase.name,
        seconds=phase.end - phase.begin,
        requests=faced.requests,
        failed=len(failed),
        cut_off=len(excused),
        again=faced.again,
        elsewhere=faced.elsewhere,
        p50=faced.times.percentile(0.5) / 1000,
        p99=faced.times.percentile(0.99) / 1000,
        longest=faced.times.most / 1000,
        moves=len(moved),
        launches=faced.launches,
        ready=faced.ready,
        full=len(faced.full),
        unused=sum(any(count_open(each, at) < most for each in streams.values()) for at in faced.full),
        launch_moves=len(launched),
        roomy=sum(count_open(streams.get(each.home, ()), each.sent) < most for each in launched),
        peak=highest,
        overshoot=max(0, highest - most),
        allowed=phase.allowed,
        changes=len(faced.agreed) + len(faced.late),
        agreed_median=median(faced.agreed) if faced.agreed else None,
        agreed_most=max(faced.agreed, default=None),
        late_most=max(faced.late, default=None),
        why=dict(Counter(f"{each.errand}: {each.why}" for each in failed)),
        events=phase.events,
        examples=[*(_told(each, phase.begin) for each in failed[:_EXAMPLES])]
        + [_told(each, phase.begin) for each in moved[:_EXAMPLES]],
    )


def _told(visit: MovedVisit | LostVisit, begin: float) -> str:
    what = f"went to {visit.to}" if isinstance(visit, MovedVisit) else visit.why
    took = visit.done - visit.sent
    return (
        f"{visit.done - begin:.2f} s: {visit.errand} at {visit.edge} for {visit.home}: {what}, {took:.2f} s"
    )


def faults(found: Iterable[PhaseFigures], agreement: float) -> list[str]:
    """What missed its target, in words. agreement: seconds within which operators' changes are in force."""
    lines = []
    for each in found:
        if each.failed:
            lines.append(f"{each.name}: {each.failed} requests failed")
        if each.moves:
            lines.append(f"{each.name}: {each.moves} visitors were moved without need")
        if each.overshoot > each.allowed:
            lines.append(f"{each.name}: max_launches was exceeded by {each.overshoot}")
        if each.agreed_most is not None and each.agreed_most >= agreement:
            lines.append(f"{each.name}: an operator's change took {each.agreed_most:.2f} s")
    return lines
