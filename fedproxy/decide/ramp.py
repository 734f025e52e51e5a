"""How a new member comes to its share of new visitors: in steps that its launches have to earn.

    weight   = part / (1 - the parts of all ramps) · the weights of all others, where part = share · progress
    progress = 1/20 at first, and 1 in the end
    rise       1/20 after each twentieth of the time, if at least 3 launches became ready since the last
               change, and no more than a tenth of all failed
    fall       to half, at once, but not below 1/20: at least 3 launches failed, and more than a fifth of all,
               or the member was down for a minute

A launch counts as failed if its member failed it and another might have served it. A full member has not
failed. A member that falls starts over from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

STEPS: Final = 20
"""Rises from nothing to the whole share."""

FIRST: Final = 1 / STEPS
"""The progress of a ramp that begins."""

MOST_PARTS: Final = 0.95
"""The most that all ramps together get of the new visitors."""

_NEEDED: Final = 3  # launches that say something
_TOO_MANY: Final = 0.2  # the part of the launches that may fail before the member falls, ...
_SOME: Final = 0.1  # ... and before it does not rise
_DOWN: Final = 60.0  # seconds
_CALM: Final = 600.0  # seconds after a fall, in which launches from before it still fail


class RampMove(NamedTuple):
    """A rise or fall to this progress. If it is as before: why there was no rise, told once."""

    progress: float
    reason: str


def ramp_weights(parts: Mapping[str, float], others: float) -> dict[str, float]:
    """The weights of all members with a ramp.

    parts: of the new visitors, for each, as far as its ramp has come. others: the sum of the weights of all
    members without a ramp; if they have none, the parts are the weights. Parts that leave less than a
    twentieth to the others are all reduced alike.
    """
    whole = sum(parts.values())
    scale = min(1.0, MOST_PARTS / whole) if whole > 0 else 1.0
    unit = scale / (1.0 - whole * scale) * others if others > 0 else 1.0
    return {name: part * unit for name, part in parts.items()}


class Ramp:
    """What a member's launches have shown since its progress last changed. Times are seconds of any clock."""

    def __init__(self, progress: float, over: float, now: float) -> None:
        self.progress = progress
        self.over = over
        self.ready = 0
        self.failed = 0
        self._since = now
        self._down_since: float | None = None
        self._calm_until = now
        self._told = False

    def __repr__(self) -> str:
        return f"<Ramp {self.progress:.2f} ready={self.ready} failed={self.failed}>"

    def note(self, *, failed: bool) -> None:
        """A launch became ready, or failed."""
        if failed:
            self.failed += 1
        else:
            self.ready += 1

    def change(self, progress: float, now: float) -> None:
        """Its progress has changed: what was seen before no longer counts."""
        if progress < self.progress:
            self._calm(now)
            if self._down_since is not None:
                # Another edge was faster: one outage is one fall.
                self._down_since = float("inf")
        self.progress = progress
        self._restart(now)

    def pause(self, now: float) -> None:
        """Operators keep new visitors away, which says nothing about the member."""
        self._down_since = None
        self._restart(now)

    def look(self, now: float, *, down: bool) -> RampMove | None:
        """The move that follows from what was seen. down: the member is unhealthy or ejected.

        It is made by `change`.
        """
        fall = self._fall(now, down=down)
        if fall:
            self._calm(now)
            self._restart(now)
            return RampMove(max(FIRST, self.progress / 2), fall)
        if self.progress >= 1.0 or down or now - self._since < self.over / STEPS:
            return None
        whole = self.ready + self.failed
        if self.ready < _NEEDED:
            seen = _launches(self.ready) if self.ready else "no launch"
            return self._tell_once(f"{seen} became ready so far, and {_NEEDED} are needed")
        text = f"{self.ready} of {_launches(whole)} became ready"
        if self.failed > _SOME * whole:
            self._restart(now)
            return RampMove(self.progress, text)
        return RampMove(min(1.0, round(self.progress + FIRST, 6)), text)

    def _fall(self, now: float, *, down: bool) -> str:
        """Why it falls; empty if it does not."""
        if self.progress >= 1.0:
            return ""
        if not down:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        elif now - self._down_since >= _DOWN:
            # Once: until it is well again, it gets nobody who could make it worse.
            self._down_since = float("inf")
            return "it was down for a minute"
        whole = self.ready + self.failed
        if self.failed >= _NEEDED and self.failed > _TOO_MANY * whole:
            if now >= self._calm_until:
                return f"{self.failed} of {_launches(whole)} failed"
            self.ready = self.failed = 0
        return ""

    def _tell_once(self, text: str) -> RampMove | None:
        if self._told:
            return None
        self._told = True
        return RampMove(self.progress, text)

    def _calm(self, now: float) -> None:
        self._calm_until = now + min(_CALM, self.over / STEPS)

    def _restart(self, now: float) -> None:
        self._since = now
        self._told = False
        self.ready = self.failed = 0


def _launches(count: int) -> str:
    return "1 launch" if count == 1 else f"{count} launches"
