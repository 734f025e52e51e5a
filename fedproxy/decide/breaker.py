"""The circuit breaker of one member.

    CLOSED ──trip──► OPEN ──open time over, a trial admitted──► HALF_OPEN
      ▲                ▲                                          │ │
      └────────────────┼───────── every trial succeeded ──────────┘ │
                       └───────── a trial failed ───────────────────┘

Every transition starts a new generation; a result that belongs to an older one is dropped, so that what
was sent before a trip says nothing about the member after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

_BUCKETS = 10
_JITTER = 0.1


class BreakerState(StrEnum):
    """Closed: traffic flows. Open: none does. Half-open: trials only."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class Outcome(Enum):
    """How an attempt ended; IGNORED says nothing about the member (the visitor left)."""

    SUCCESS = 1
    FAILURE = 2
    IGNORED = 3


@dataclass(frozen=True)
class BreakerPolicy:
    """Trips after `failures` in a row, or when in the last `window` seconds at least `minimum` attempts
    were made and `ratio` of them failed. Stays open for `open` seconds, twice as long each time it trips
    again, at most `open_max`; then admits `trials` live requests at a time."""

    failures: int = 5
    ratio: float = 0.5
    window: float = 10.0
    minimum: int = 20
    open: float = 5.0
    open_max: float = 300.0
    trials: int = 1


class Breaker:
    """Times are of a clock that should not jump; if it does, no state lasts longer than `open_max`."""

    __slots__ = (
        "_consecutive",
        "_failures",
        "_old",
        "_opened",
        "_opened_for",
        "_rolled",
        "_since",
        "_successes",
        "_trials",
        "_trips",
        "closed",
        "generation",
        "policy",
        "state",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state = BreakerState.CLOSED
        self.closed = True
        self.generation = 0
        self._consecutive = 0
        self._successes = 0
        self._failures = 0
        self._old: list[tuple[int, int]] = []  # (successes, failures) of the buckets before this one
        self._rolled: float | None = None
        self._opened = 0.0
        self._opened_for = 0.0
        self._since = 0.0
        self._trials = 0
        self._trips = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state} generation={self.generation} trips={self._trips}>"

    def admits(self, now: float) -> bool:
        """Whether a request may be sent to the member now."""
        if self.closed:
            return True
        if self.state is BreakerState.OPEN:
            # A clock that went back must not keep the breaker open for longer than it was to be.
            return not 0 <= now - self._opened < self._opened_for
        return self._trials < self.policy.trials

    def acquire(self, now: float) -> int:
        """Takes what `admits` allowed, and gives the generation that its result belongs to."""
        if not self.closed:
            if self.state is BreakerState.OPEN:
                self._enter(BreakerState.HALF_OPEN, now)
            self._trials += 1
        return self.generation

    def settle(
        self, generation: int, outcome: Outcome, now: float, chance: float = 0.5, *, may_open: bool = True
    ) -> bool:
        """Takes the result of one attempt; True if the state changed. `chance` in [0, 1) is the jitter.

        Without `may_open` a closed breaker stays closed, whatever happened.
        """
        if generation != self.generation:
            return False
        if self.closed:
            if outcome is Outcome.SUCCESS:
                self._successes += 1
                self._consecutive = 0
            elif outcome is Outcome.FAILURE:
                self._failures += 1
                self._consecutive += 1
                if may_open and self._is_over(now):
                    self._open(now, chance)
                    return True
            return False
        if outcome is Outcome.IGNORED:
            self._trials -= 1
            return False
        if outcome is Outcome.FAILURE:
            self._open(now, chance)
        else:
            self._enter(BreakerState.CLOSED, now)
        return True

    def _is_over(self, now: float) -> bool:
        policy = self.policy
        if self._consecutive >= policy.failures:
            return True
        self.roll(now)
        successes = self._successes + sum(old[0] for old in self._old)
        failures = self._failures + sum(old[1] for old in self._old)
        attempts = successes + failures
        return attempts >= policy.minimum and failures >= policy.ratio * attempts

    def _open(self, now: float, chance: float) -> None:
        policy = self.policy
        self._trips += 1
        wait = min(policy.open * 2.0 ** min(self._trips - 1, 60), policy.open_max)
        self._opened = now
        self._opened_for = min(wait * (1 + _JITTER * (2 * chance - 1)), policy.open_max)
        self._enter(BreakerState.OPEN, now)

    def _enter(self, state: BreakerState, now: float) -> None:
        self.state = state
        self.closed = state is BreakerState.CLOSED
        self.generation += 1
        self._trials = 0
        self._consecutive = self._successes = self._failures = 0
        self._old.clear()
        self._since = now

    def roll(self, now: float) -> None:
        """Moves the window on, and forgets a trip for each healthy base interval. For once a second."""
        policy = self.policy
        if self._rolled is None or now < self._rolled:
            self._rolled = now
        passed = int((now - self._rolled) * _BUCKETS / policy.window)
        if passed > 0:
            self._rolled += passed * policy.window / _BUCKETS
            self._old.append((self._successes, self._failures))
            self._old += [(0, 0)] * min(passed - 1, _BUCKETS)
            del self._old[: 1 - _BUCKETS]
            self._successes = self._failures = 0
        if self.closed and self._trips:
            if now < self._since:
                self._since = now
            healthy = int((now - self._since) / policy.open)
            if healthy > 0:
                self._trips = max(0, self._trips - healthy)
                self._since = now
