"""Time that the loop did not have: the process was stopped, its machine slept, or something held it up.

A time limit is about others, and what nobody could look at meanwhile is not their delay. So the loop is asked
to turn at known times, and what it is late is time that was lost. Times are of one steady clock, in seconds.
"""

from __future__ import annotations

from typing import Final

TOLERANCE: Final = 0.05
"""A loop that is late by less has its usual work to do."""

_LONG: Final = 4


class Pulse:
    """How much time was lost. Until the first beat nothing is."""

    def __init__(self) -> None:
        self._due = 0.0
        self._interval = 0.0
        self._lost = 0.0

    def beat(self, now: float, interval: float) -> float:
        """The loop turns, and is to do so again in `interval`; gives the time lost since the beat before."""
        lost = self.overdue(now)
        self._lost += lost
        self._due = now + interval
        self._interval = interval
        return lost

    def lost(self, now: float) -> float:
        """All the time that was ever lost, with what is lost since the last beat. It never falls."""
        return self._lost + self.overdue(now)

    def overdue(self, now: float) -> float:
        """The time that is lost since the last beat."""
        late = now - self._due if self._interval else 0.0
        if late <= TOLERANCE:
            return 0.0
        # When within the interval it stopped, nobody knows. For a long stop that is given too.
        return late + self._interval if late >= _LONG * self._interval else late
