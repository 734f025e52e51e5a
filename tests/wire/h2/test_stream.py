"""The states of one stream (RFC 9113 section 5.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.errors import ConnectionFault
from fedproxy.wire.h2 import stream
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.stream import (
    CLOSED,
    DATA,
    END,
    HALF_CLOSED_LOCAL,
    HALF_CLOSED_REMOTE,
    HEADERS,
    IDLE,
    OPEN,
    PRIORITY,
    RESET,
    SENT_END,
    SENT_RESET,
    STATES,
    STREAM_FAULT,
    WINDOW,
    H2Stream,
    step,
)

STATE = range(5)
COMES = (HEADERS, DATA, END, RESET, WINDOW, PRIORITY)
LIVE = (OPEN, HALF_CLOSED_REMOTE, HALF_CLOSED_LOCAL)


def comes_to(state: int, event: int) -> int | str:
    try:
        return step(state, event)
    except ConnectionFault as fault:
        return Code(fault.code).name
    except AssertionError:
        return "own fault"


@pytest.mark.parametrize("event", [HEADERS, DATA])
def test_parts_of_a_request_come_until_its_end(event: int) -> None:
    expected = [
        OPEN if event == HEADERS else "PROTOCOL_ERROR",
        OPEN,
        STREAM_FAULT,
        HALF_CLOSED_LOCAL,
        "STREAM_CLOSED",
    ]
    assert [comes_to(state, event) for state in STATE] == expected


def test_each_side_ends_once() -> None:
    assert [comes_to(state, END) for state in STATE] == [
        "PROTOCOL_ERROR",
        HALF_CLOSED_REMOTE,
        STREAM_FAULT,
        CLOSED,
        "STREAM_CLOSED",
    ]
    assert [comes_to(state, SENT_END) for state in STATE] == [
        "own fault",
        HALF_CLOSED_LOCAL,
        CLOSED,
        "own fault",
        "own fault",
    ]


@pytest.mark.parametrize("state", STATE)
def test_resets_close_what_has_begun(state: int) -> None:
    assert comes_to(state, RESET) == ("PROTOCOL_ERROR" if state == IDLE else CLOSED)
    assert comes_to(state, SENT_RESET) == (CLOSED if state in LIVE else "own fault")


@pytest.mark.parametrize("state", STATE)
def test_windows_and_priorities_change_no_state(state: int) -> None:
    assert comes_to(state, WINDOW) == ("PROTOCOL_ERROR" if state == IDLE else state)
    assert comes_to(state, PRIORITY) == state


def test_fault_of_the_edge_is_named() -> None:
    with pytest.raises(AssertionError, match="event 6 in state half-closed"):
        step(HALF_CLOSED_LOCAL, SENT_END)


@given(st.lists(st.sampled_from((*COMES, SENT_END, SENT_RESET)), max_size=20))
def test_no_order_of_events_opens_what_was_closed(events: list[int]) -> None:
    state, ended, sent = IDLE, False, False
    for event in events:
        after = comes_to(state, event)
        if not isinstance(after, int) or after == STREAM_FAULT:
            continue
        ended = ended or event == END
        sent = sent or event == SENT_END
        if state == CLOSED:
            assert after == CLOSED
        state = after
        if state in LIVE:
            assert (ended, sent) == (state == HALF_CLOSED_REMOTE, state == HALF_CLOSED_LOCAL)


@pytest.mark.parametrize(
    ("state", "receiving"),
    [(OPEN, True), (HALF_CLOSED_LOCAL, True), (HALF_CLOSED_REMOTE, False), (CLOSED, False)],
)
def test_stream_begins_with_its_windows_and_nothing_to_send(state: int, receiving: bool) -> None:
    made = H2Stream(7, 10, 20, state)
    assert (made.id, made.window, made.credit, made.granted) == (7, 10, 20, 20)
    assert (made.waiting, made.backlog, made.in_turn, made.left) == (None, 0, False, -1)
    assert made.receiving is receiving
    assert repr(made) == f"<H2Stream 7 {STATES[state]}>"
    assert len(stream.STATES) == len(STATE)
