"""A histogram of bounded size whose percentiles are accurate to one per cent at any scale."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

_BASE: Final = math.log(1.01)
_LONGEST: Final = 1e10  # microseconds: nearly three hours


class Histogram:
    """Counts of times in microseconds, from 1 µs upward: at most 2,315 buckets, each one per cent wide."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.most = 0.0

    def __repr__(self) -> str:
        return f"<Histogram count={self.count} p50={self.percentile(0.5):.0f} most={self.most:.0f}>"

    def add(self, value: float) -> None:
        """Count one; values below 1 µs count as 1 µs."""
        value = min(max(value, 1.0), _LONGEST)
        self._buckets[int(math.log(value) / _BASE)] += 1
        self.count += 1
        self.most = max(self.most, value)

    def percentile(self, share: float) -> float:
        """The value that `share` of the values do not exceed, in microseconds; 0 without values."""
        wanted, seen = math.ceil(share * self.count), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(math.exp((bucket + 1) * _BASE), self.most)
        return 0.0
