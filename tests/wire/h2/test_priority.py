"""Which stream's turn it is (RFC 9218)."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.h2.priority import UNTOLD, URGENT, Turns, read
from fedproxy.wire.h2.stream import OPEN, H2Stream


@pytest.mark.parametrize(
    ("value", "urgency", "incremental"),
    [
        (b"u=0", 0, False),
        (b"u=7", 7, False),
        (b"i", 3, True),
        (b"i=?1", 3, True),
        (b"i=?0", 3, False),
        (b"u=1, i", 1, True),
        (b"i,u=1", 1, True),
        (b" \tu=5\t,\ti ", 5, True),
        (b"u=1;x=2, i;y", 1, True),
        (b"u=1, u=2", 2, False),
        (b"i, i=?0", 3, False),
        # What has another type or is out of range is ignored (section 4), and so is what is not known.
        (b"u=8", 3, False),
        (b"u=-1", 3, False),
        (b"u=10", 3, False),
        (b"u=1.0", 3, False),
        (b"u", 3, False),
        (b"u=?1", 3, False),
        (b"i=1", 3, False),
        (b"i=?2", 3, False),
        (b"U=1, I", 3, False),
        (b"xu=1, ui, a=i", 3, False),
        (b"x=9, u=2", 2, False),
        (b"nonsense", 3, False),
        (b"u=2" + b", x" * 100, 2, False),  # longer than what is remembered
    ],
)
def test_place_follows_from_what_is_said(value: bytes, urgency: int, incremental: bool) -> None:
    for _ in range(2):
        assert read(value) == (1 + urgency, incremental)


def test_stream_of_which_nothing_is_said_shares_its_place() -> None:
    """Section 4.1 sets the urgency; section 10 leaves it to the server how streams share."""
    assert read(b"") == UNTOLD == (4, True)
    assert read(b"u=0")[0] > URGENT


def stream(number: int, place: int = 4, incremental: bool = True) -> H2Stream:
    made = H2Stream(number, 0, 0, OPEN)
    made.place, made.incremental = place, incremental
    return made


def order(turns: Turns, count: int) -> list[int]:
    found = []
    for _ in range(count):
        first = turns.first()
        assert first is not None
        found.append(first.id)
        turns.next(first)
    return found


def test_incremental_streams_take_turns_and_others_go_on() -> None:
    turns = Turns()
    assert turns.first() is None
    for each in (1, 3, 5):
        turns.add(stream(each))
    assert order(turns, 4) == [1, 3, 5, 1]
    whole = Turns()
    for each in (1, 3):
        whole.add(stream(each, incremental=False))
    assert order(whole, 3) == [1, 1, 1]
    alone = Turns()
    alone.add(stream(1))
    assert order(alone, 2) == [1, 1]


def test_more_urgent_streams_go_first() -> None:
    turns = Turns()
    streams = [stream(each, place) for each, place in ((1, 8), (3, 1), (5, URGENT), (7, 4))]
    for each in streams:
        turns.add(each)
    found = []
    while (first := turns.first()) is not None:
        found.append(first.id)
        turns.discard(first)
    assert found == [5, 3, 7, 1]


def test_stream_without_a_turn_changes_nothing() -> None:
    turns = Turns()
    turns.next(stream(1))
    turns.discard(stream(1))
    assert (turns.first(), turns.size) == (None, 0)
    turns.add(stream(3))
    wrong = stream(5, 1)
    wrong.in_turn = True
    turns.discard(wrong)
    assert not wrong.in_turn
    assert order(turns, 1) == [3]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "next"]), st.integers(0, 5)),
        max_size=60,
    )
)
def test_turns_are_those_of_queues_by_place(steps: list[tuple[str, int]]) -> None:
    streams = [stream(number, number // 2, bool(number % 3)) for number in range(6)]
    queues: list[deque[H2Stream]] = [deque() for _ in range(3)]
    turns = Turns()
    for step, number in steps:
        each = streams[number]
        queue = queues[each.place]
        if step == "add":
            turns.add(each)
            if each not in queue:
                queue.append(each)
        elif step == "discard":
            turns.discard(each)
            if each in queue:
                queue.remove(each)
        elif (first := turns.first()) is not None:
            turns.next(first)
            if first.incremental:
                queues[first.place].rotate(-1)
        expected = next((queue[0] for queue in queues if queue), None)
        assert turns.first() is expected
        assert turns.size == sum(map(len, queues)) == sum(each.in_turn for each in streams)
