from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from fedproxy.web import turns
from fedproxy.web.turns import in_turns


async def test_text_is_made_in_order_and_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(turns, "_TURN", 2)
    monkeypatch.setattr(turns, "perf_counter", lambda: next(clock))
    seen: list[str] = []
    made: list[str] = []

    async def other() -> None:
        while True:
            seen.append("".join(made))
            await asyncio.sleep(0)

    def pieces() -> Iterator[str]:
        for piece in "abcdef":
            made.append(piece)
            yield piece

    beside = asyncio.create_task(other())
    text = await in_turns(pieces())
    beside.cancel()
    assert text == "abcdef"
    assert seen == ["ab", "abcd", "abcdef"]
