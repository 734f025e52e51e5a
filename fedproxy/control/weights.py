"""`weight: auto`: each member's weight, from the probes' reports and from what launches have taught."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Final

from fedproxy.decide.capacity import START, DampedWeight, target_weight

if TYPE_CHECKING:
    from fedproxy.config.model import MemberSettings
    from fedproxy.control.prober import Report
    from fedproxy.decide.knowledge import Knowledge

_CHANGED: Final = 0.02  # the part by which a weight differs that is worth telling


class AutoWeights:
    """The weights of all members, also of those that have a number, so that `auto` has one at once.

    knowledge: what launches have taught all who serve. Times are of a clock that never goes back.
    """

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._pods: dict[str, tuple[int | None, int | None]] = {}  # total and quota, as they were said last
        self._weights: dict[str, DampedWeight] = {}
        self._told: dict[str, float] = {}

    def observe(self, report: Report, settings: MemberSettings, now: float) -> None:
        """What the probes say. The first that is said of pods counts at once, as there is nothing to damp."""
        name = report.name
        # A member that gave no answer has said nothing of its pods: what it said before is the best guess.
        if report.pods or report.quota is not None or (report.healthy and not report.details):
            first = name not in self._pods
            self._pods[name] = report.pods.get("total"), report.quota
            if first:
                self._weights[name] = DampedWeight(self._target(name, settings), now)

    def step(self, members: Mapping[str, MemberSettings], now: float, wall: float) -> list[str]:
        """Moves all weights, about once a second; returns the members with `auto` that are to be told of.

        wall: the same time in seconds since the epoch.
        """
        self._knowledge.refresh(wall)
        due = []
        for name, settings in members.items():
            damped = self._weights.get(name)
            if damped is not None:
                weight = damped.follow(self._target(name, settings), now)
                told = self._told.get(name, START)
                is_used = settings.weight == "auto" and not settings.is_ramping
                if is_used and abs(weight - told) > _CHANGED * told:
                    due.append(name)
        return due

    def known(self, name: str) -> float:
        """What was told last."""
        return self._told.get(name, START)

    def tell(self, name: str) -> float:
        """A member's weight now, to be told to all who serve. The digits after the third mean nothing."""
        damped = self._weights.get(name)
        weight = self._told[name] = float(f"{damped.value:.3g}") if damped is not None else START
        return weight

    def forget(self, members: Container[str]) -> None:
        """All but these have left."""
        for name in [name for name in {**self._pods, **self._told} if name not in members]:
            self._pods.pop(name, None)
            self._weights.pop(name, None)
            self._told.pop(name, None)

    def _target(self, name: str, settings: MemberSettings) -> float:
        total, quota = self._pods[name]
        # Not `of`, which would make room for a member that no launch has taught anything of.
        taught = self._knowledge.members.get(name)
        success = 1.0 / (1.0 + taught.risk) if taught is not None else 1.0
        return target_weight(total, quota, settings.reserve, success)
