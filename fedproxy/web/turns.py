"""Long work in pieces, without blocking the loop: with one worker, it also serves visitors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Final, TypeVar

Piece = TypeVar("Piece")

_TURN: Final = 0.001  # seconds


async def in_turns(pieces: Iterable[str]) -> str:
    """All pieces joined, as `gather` makes them."""
    return "".join(await gather(pieces))


async def gather(pieces: Iterable[Piece]) -> list[Piece]:
    """All pieces, in order; yields to the loop about every millisecond.

    Not in a thread: a thread would hold the GIL, and block the loop, for five milliseconds at once.
    """
    made = list[Piece]()
    turn = perf_counter() + _TURN
    for piece in pieces:
        made.append(piece)
        if perf_counter() >= turn:
            await asyncio.sleep(0)
            turn = perf_counter() + _TURN
    return made
