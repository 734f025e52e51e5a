"""Bytes in pieces."""

from __future__ import annotations

from itertools import pairwise


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places, which may be anywhere."""
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]
