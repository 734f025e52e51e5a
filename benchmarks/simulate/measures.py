"""What is measured of a policy. Each measure is one function here, and its docstring is its definition.

Only launches that are asked for after the warm-up count.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, fsum
from typing import Final


class Fate(StrEnum):
    """How a launch ended, which each does once.

    READY: the visitor has a pod. REFUSED: each member that was asked could not serve it, or none was
    available. FAILED: the pod did not start. FULL: there was no room any more when the image was built. LOST:
    the member crashed meanwhile. REPOSITORY: the repository cannot be built.
    """

    READY = "ready"
    REFUSED = "refused"
    FAILED = "failed"
    FULL = "full"
    LOST = "lost"
    REPOSITORY = "repository"

    __hash__ = str.__hash__


_BACK: Final = 0.8
_EXPECTED: Final = 20
_MOST_CHOICES: Final = 1000


class Return:
    """A member that is back, until it has its share again. `after`: how long that took, once it is known."""

    def __init__(self, now: float, share: float) -> None:
        self._began = now
        self._needed = max(1, min(_MOST_CHOICES, ceil(_EXPECTED / max(share, 1e-6))))
        self._wanted = _BACK * share
        self._choices: list[tuple[float, bool]] = []
        self._first = 0
        self._hits = 0
        self.after: float | None = None

    def note(self, now: float, hit: bool) -> bool:
        """A launch was sent somewhere, `hit` if to this member; True if it has its share again."""
        self._choices.append((now, hit))
        self._hits += hit
        if len(self._choices) - self._first > self._needed:
            self._hits -= self._choices[self._first][1]
            self._first += 1
        if len(self._choices) - self._first == self._needed and self._hits >= self._wanted * self._needed:
            self.after = self._choices[self._first][0] - self._began
            return True
        return False

    def give_up(self, now: float) -> None:
        """It fails again, or nobody comes any more."""
        self.after = now - self._began


@dataclass
class Tally:
    """What was counted with one policy.

    servable: launches that some member could have served when they were asked for; ready: those of them that
    ended so. waits: seconds from asked to ready of all that were. choices: by the set of members that were
    available (a bit for each), how often each was the first choice. moved: launches at another member than
    the same visitor's launch before. over: see `overload`. returns: of members that were away.
    """

    weights: Sequence[float]
    fates: dict[Fate, int] = field(default_factory=lambda: dict.fromkeys(Fate, 0))
    asked: int = 0
    servable: int = 0
    ready: int = 0
    waits: array[float] = field(default_factory=lambda: array("d"))
    builds: int = 0
    choices: dict[int, list[int]] = field(default_factory=dict)
    visitors: int = 0
    moved: int = 0
    over: float = 0.0
    returns: list[Return] = field(default_factory=list)


def ready_share(tally: Tally) -> float | None:
    """The part of the launches that ended with a pod, of those that some member could have served: when they
    were asked for, a member with a weight could be reached and had room, and the repository can be built.
    """
    return tally.ready / tally.servable if tally.servable else None


def wait_median(tally: Tally) -> float | None:
    """Seconds from asked to ready, of launches that ended with a pod: half of them waited for less."""
    return _quantile(tally.waits, 0.5)


def wait_p99(tally: Tally) -> float | None:
    """The same: 99 of 100 waited for less."""
    return _quantile(tally.waits, 0.99)


def wait_mean(tally: Tally) -> float | None:
    """The same: the mean."""
    return fsum(tally.waits) / len(tally.waits) if tally.waits else None


def builds(tally: Tally) -> int:
    """Builds that were begun for launches, those of repositories that cannot be built included."""
    return tally.builds


def share_error(tally: Tally) -> float | None:
    """The largest difference between a member's share of the choices and its weight's, in points (0 to 100).

    A choice is the member that a launch is sent to first. Only choices made while the edge held a member to
    be available count for it, and its weight's share is that among all members available then.
    """
    errors = []
    for number, weight in enumerate(tally.weights):
        if not weight:
            continue
        made = actual = 0
        expected = []
        for available, chosen in tally.choices.items():
            if available >> number & 1:
                count = sum(chosen)
                made += count
                actual += chosen[number]
                whole = fsum(each for at, each in enumerate(tally.weights) if available >> at & 1)
                expected.append(count * weight / whole)
        if made:
            errors.append(100 * abs(actual - fsum(expected)) / made)
    return max(errors, default=None)


def moves(tally: Tally) -> float | None:
    """How often a visitor's launch was at another member than the visitor's launch before, per visitor."""
    return tally.moved / tally.visitors if tally.visitors else None


def overload(tally: Tally) -> float:
    """The most pods that a member had beyond its fair part, as a part of its slots (0 to 1). Its fair part of
    the pods of all visitors is its weight's share among the members that can be reached at that time.
    """
    return tally.over


def recovery(tally: Tally) -> float | None:
    """Seconds from when a member can be reached again after a crash until it has its share back, the longest.

    It has it back with the first of as many choices as should bring it 20 launches (1,000 choices at most),
    of which it got 80 % of the share that it had until then while it was available. If it crashes again
    before, the time until then counts.
    """
    return max((each.after for each in tally.returns if each.after is not None), default=None)


def usual_share(tally: Tally, number: int) -> float:
    """The share of the choices that a member had while it was available. Its weight's, if they were few."""
    made = actual = 0
    for available, chosen in tally.choices.items():
        if available >> number & 1:
            made += sum(chosen)
            actual += chosen[number]
    return actual / made if actual > _EXPECTED else tally.weights[number] / fsum(tally.weights)


def _quantile(waits: array[float], part: float) -> float | None:
    if not waits:
        return None
    ordered = sorted(waits)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


MEASURES: Final[Mapping[str, Callable[[Tally], float | int | None]]] = {
    each.__name__: each
    for each in (
        ready_share,
        wait_median,
        wait_mean,
        wait_p99,
        builds,
        share_error,
        moves,
        overload,
        recovery,
    )
}
