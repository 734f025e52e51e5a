"""Tables that a random number is looked up in: faster than computing with it, and the same on any machine.

The logarithms of two machines may differ in the last bit, so what is computed with them is rounded here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import exp, log
from statistics import NormalDist
from typing import Final

#: The entries of a table of times. The longest is that of 1 in 4,096.
STEPS: Final = 2048
_Z95: Final = NormalDist().inv_cdf(0.95)


def stream(seed: int, concern: str) -> random.Random:
    """Chance for one concern, so that more draws in one do not change another."""
    return random.Random(f"{seed} {concern}")


@lru_cache(maxsize=256)
def times(median: float, p95: float) -> Sequence[float]:
    """Seconds of a lognormal distribution, ascending: `times(...)[int(chance * STEPS)]` draws one."""
    spread = log(p95 / median) / _Z95
    normal = NormalDist(log(median), spread) if spread else None
    if normal is None:
        return [round(median, 3)] * STEPS
    return [round(exp(normal.inv_cdf((step + 0.5) / STEPS)), 3) for step in range(STEPS)]


@lru_cache(maxsize=1)
def waits() -> Sequence[float]:
    """Times between events that come once per second on average, by chance, ascending."""
    return [round(-log(1 - (step + 0.5) / STEPS), 9) for step in range(STEPS)]


def zipf(count: int, exponent: float) -> list[float]:
    """Sums for `bisect_right`: the first of `count` ranks is the likeliest, rank r by 1 / r ** exponent."""
    return list(accumulate(round(rank**-exponent, 12) for rank in range(1, count + 1)))
