"""The ramps of new members: how far each has come, and the weight that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.decide.ramp import FIRST, Ramp, RampMove, ramp_weights
from fedproxy.decide.snapshot import Status

if TYPE_CHECKING:
    from fedproxy.config.model import MemberSettings
    from fedproxy.control.state import State
    from fedproxy.decide.knowledge import Seen
    from fedproxy.decide.snapshot import Snapshot

_CHANGED: Final = 0.02  # smaller changes of a weight are not worth telling, as a part of it
_DOWN: Final = (Status.UNHEALTHY, Status.EJECTED)


class RampSeen(NamedTuple):
    """How far a member's ramp has come. share: of new visitors, in the end. progress: the part of that share
    which it has now. reason: why that changed last, or did not; empty if the ramp has only begun."""

    share: float
    progress: float
    reason: str = ""


class Ramps:
    """The ramps of all members that have one. Times are of a clock that never goes back."""

    def __init__(self) -> None:
        self._ramps: dict[str, Ramp] = {}
        self._reasons: dict[str, str] = {}
        self._told: dict[str, float] = {}

    def note(self, seen: Seen) -> None:
        """A launch has ended, at this edge or at another one."""
        ramp = self._ramps.get(seen.member)
        if ramp is not None and (seen.failed or seen.end is End.READY):
            ramp.note(failed=seen.failed)

    def apply(self, members: Mapping[str, MemberSettings], state: State, now: float) -> None:
        """Puts members in force, with how far their ramps have come."""
        ramping = {name: each.ramp for name, each in members.items() if each.is_ramping and each.ramp}
        for table in (self._ramps, self._reasons, self._told):
            for name in [name for name in table if name not in ramping]:
                del table[name]
        for name, settings in ramping.items():
            progress = max(FIRST, state.ramps.get(name, FIRST))
            ramp = self._ramps.get(name)
            if ramp is None:
                self._ramps[name] = Ramp(progress, settings.over, now)
                continue
            ramp.over = settings.over
            if ramp.progress != progress:
                ramp.change(progress, now)

    def look(self, members: Mapping[str, Snapshot], now: float) -> Iterator[tuple[str, float, RampMove]]:
        """The move that each member should make, if any, and from which progress. Nothing is moved yet."""
        for name, ramp in self._ramps.items():
            seen = members.get(name)
            if seen is None:
                continue
            if seen.intent is not Intent.READY:
                ramp.pause(now)
                continue
            move = ramp.look(now, down=seen.status in _DOWN)
            if move is not None:
                self._reasons[name] = move.reason
                yield name, ramp.progress, move

    def wait(self, name: str, now: float) -> None:
        """Its move could not be made: it has to earn another one."""
        if name in self._ramps:
            self._ramps[name].pause(now)

    def seen(self, name: str, members: Mapping[str, MemberSettings]) -> RampSeen | None:
        """How far a member's ramp has come; None if it has none."""
        ramp, settings = self._ramps.get(name), members.get(name)
        if ramp is None or settings is None or settings.ramp is None:
            return None
        return RampSeen(settings.ramp.share, ramp.progress, self._reasons.get(name, ""))

    def step(self, members: Mapping[str, MemberSettings], weights: Mapping[str, float]) -> list[str]:
        """Works their weights out again; returns the members whose weight is to be told. weights: of all
        members that take new visitors."""
        parts = {
            name: settings.ramp.share * ramp.progress
            for name, ramp in self._ramps.items()
            if (settings := members.get(name)) is not None and settings.ramp is not None
        }
        others = sum(weight for name, weight in weights.items() if name not in self._ramps)
        there = {name: part for name, part in parts.items() if name in weights}
        due = []
        for name, part in parts.items():
            # One that operators keep visitors from takes nothing from the others.
            weight = float(f"{ramp_weights({**there, name: part}, others)[name]:.3g}")
            told = self._told.get(name, 0.0)
            if abs(weight - told) > _CHANGED * told:
                self._told[name] = weight
                due.append(name)
        return due

    def known(self, name: str) -> float:
        """The weight of a member with a ramp."""
        return self._told.get(name, 0.0)
