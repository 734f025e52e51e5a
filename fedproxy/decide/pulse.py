"""Time in which the loop did not run: the process was stopped, its machine slept, or something blocked it.

Time limits are about others, and such a pause is not their delay. So the loop must run at known times, and
when it is late, that time is lost. Times are of one monotonic clock, in seconds.
"""

from __future__ import annotations

from typing import Final

TOLERANCE: Final = 0.05
"""A loop that is late by less is merely busy."""

_LONG: Final = 4


class Pulse:
    """The lost time; none before the first beat."""

    def __init__(self) -> None:
        self._due = 0.0
        self._interval = 0.0
        self._lost = 0.0

    def beat(self, now: float, interval: float) -> float:
        """The loop runs, and should again in `interval`. Returns the time lost since the last beat."""
        lost = self.overdue(now)
        self._lost += lost
        self._due = now + interval
        self._interval = interval
        return lost

    def lost(self, now: float) -> float:
        """All time lost so far. It never decreases."""
        return self._lost + self.overdue(now)

    def overdue(self, now: float) -> float:
        """The time lost since the last beat."""
        late = now - self._due if self._interval else 0.0
        if late <= TOLERANCE:
            return 0.0
        # It is unknown when within the interval it stopped. After a long stop all of it counts as lost.
        return late + self._interval if late >= _LONG * self._interval else late
