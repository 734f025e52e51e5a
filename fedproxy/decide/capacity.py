"""`weight: auto`: a member's weight from what it can carry, as its probes and launches tell.

    capacity = quota - reserve                    pods that visitors of the federation may have
    free     = (capacity - pods) / capacity       the part of them that is free
    room     = 1 while free >= 1/4; from there down in a line to 0.02, when nothing is free
    weight   = capacity * room * success^2

The unit is pods, so members share visitors by their capacities: 60 of 540 for the one that has 60. Room takes
a member's share away before it is full, when visitors would meet a refusal. Success, the part of its launches
that do not fail, is squared: a launch that fails costs a visitor more than one that goes elsewhere. It takes
no more than nineteen twentieths, as a member without launches could not show that it is well again.
"""

from __future__ import annotations

import math
from typing import Final

#: The weight of a member whose quota is not known, or that has none, if its launches succeed.
START: Final = 100.0

TIME: Final = 60.0
"""Seconds in which a damped weight goes 63 % (1 - 1/e) of the way to its target."""

_MOST_PODS: Final = 1_000_000
_ENOUGH: Final = 0.25  # the part that is free and leaves the weight as it is
_NO_ROOM: Final = 0.02
_NO_SUCCESS: Final = 0.05


def target_weight(total: int | None, quota: int | None, reserve: int, success: float) -> float:
    """The weight that a member should have.

    total: its pods; None if it does not tell. quota: of its pods; None for none. reserve: pods that it keeps
    for its own community. success: the part of its launches that do not fail, from 0 to 1. Whatever these
    are, the weight is from 0.001 to 1,000,000. A reserve that is not below the quota leaves a capacity of 1.
    """
    # Written so that NaN is a success.
    if success < 0.0:
        success = 0.0
    elif not success < 1.0:
        success = 1.0
    part = max(_NO_SUCCESS, success * success)
    if quota is None:
        return START * part
    capacity = min(max(quota - reserve, 1), _MOST_PODS)
    taken = min(max(total, 0), capacity) if total is not None else 0
    return capacity * room_factor((capacity - taken) / capacity) * part


def room_factor(free: float) -> float:
    """The part of its weight that a member keeps. free: the part of its pods that is free, from 0 to 1."""
    return min(1.0, _NO_ROOM + (1.0 - _NO_ROOM) * free / _ENOUGH)


class DampedWeight:
    """A weight that follows its target slowly: what one probe says does not move visitors about.

    value: the weight at the time of the last call.
    """

    __slots__ = ("_since", "value")

    def __init__(self, value: float, now: float) -> None:
        self.value = value
        self._since = now

    def __repr__(self) -> str:
        return f"<DampedWeight {self.value:.4g}>"

    def follow(self, target: float, now: float) -> float:
        """The weight now, in seconds of any clock: `target` is what it should have been since the last call.

        A clock that is set back moves nothing; one that is set forward moves it as `TIME` would at most.
        """
        passed = now - self._since
        self._since = now
        if passed > 0.0:  # which NaN is not
            self.value += (target - self.value) * -math.expm1(-min(passed, TIME) / TIME)
        return self.value
