"""Ramps: a new member rises by its launches, and falls by them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.decide.ramp import FIRST, STEPS, Ramp, RampMove, ramp_weights

OVER = 2000.0
STEP = OVER / STEPS


def ramp(progress: float = 0.5) -> Ramp:
    return Ramp(progress, OVER, 0.0)


def seen(of: Ramp, ready: int = 0, failed: int = 0) -> Ramp:
    for _ in range(ready):
        of.note(failed=False)
    for _ in range(failed):
        of.note(failed=True)
    return of


def test_it_rises_by_a_twentieth_after_a_twentieth_of_the_time() -> None:
    found = seen(ramp(FIRST), ready=9, failed=1)
    assert found.look(STEP - 1, down=False) is None
    assert found.look(STEP, down=False) == RampMove(0.1, "9 of 10 launches became ready")


def test_a_rise_has_to_be_earned_anew_each_time() -> None:
    found = seen(ramp(FIRST), ready=50)
    found.change(0.1, STEP)
    assert (found.ready, found.failed) == (0, 0)
    assert found.look(2 * STEP, down=False) == RampMove(
        0.1, "no launch became ready so far, and 3 are needed"
    )
    # It is told once.
    seen(found, ready=2)
    assert found.look(3 * STEP, down=False) is None
    seen(found, ready=1)
    assert found.look(3 * STEP, down=False) == RampMove(0.15, "3 of 3 launches became ready")


@pytest.mark.parametrize("ready", [1, 2])
def test_few_launches_say_nothing(ready: int) -> None:
    move = seen(ramp(), ready=ready).look(STEP, down=False)
    assert move is not None
    assert (
        move.reason == f"{'1 launch' if ready == 1 else '2 launches'} became ready so far, and 3 are needed"
    )


def test_it_waits_another_time_if_more_than_a_tenth_failed() -> None:
    found = seen(ramp(), ready=8, failed=1)
    assert found.look(STEP, down=False) == RampMove(0.5, "8 of 9 launches became ready")
    assert found.look(STEP, down=False) is None
    seen(found, ready=3)
    assert found.look(2 * STEP - 1, down=False) is None
    assert found.look(2 * STEP, down=False) == RampMove(0.55, "3 of 3 launches became ready")


def test_it_falls_to_half_at_once_when_launches_fail() -> None:
    found = seen(ramp(), ready=12, failed=2)
    assert found.look(1.0, down=False) is None
    seen(found, failed=2)
    assert found.look(1.0, down=False) == RampMove(0.25, "4 of 16 launches failed")


def test_launches_from_before_a_fall_do_not_make_it_fall_again() -> None:
    found = seen(ramp(), failed=3)
    move = found.look(1.0, down=False)
    assert move is not None
    found.change(move.progress, 1.0)
    seen(found, failed=9)
    assert found.look(STEP, down=False) is None
    seen(found, failed=3)
    assert found.look(STEP + 1, down=False) == RampMove(0.125, "3 of 3 launches failed")


def test_it_never_falls_below_its_first_step() -> None:
    assert seen(ramp(FIRST), failed=3).look(1.0, down=False) == RampMove(FIRST, "3 of 3 launches failed")


def test_member_that_is_down_for_a_minute_falls_once() -> None:
    found = ramp()
    assert found.look(10.0, down=True) is None
    assert found.look(69.0, down=True) is None
    assert found.look(70.0, down=True) == RampMove(0.25, "it was down for a minute")
    found.change(0.25, 70.0)
    assert found.look(500.0, down=True) is None
    # Well again, and down again.
    assert found.look(510.0, down=False) == RampMove(0.25, "no launch became ready so far, and 3 are needed")
    assert found.look(520.0, down=True) is None
    assert found.look(580.0, down=True) == RampMove(0.125, "it was down for a minute")


def test_short_outage_and_a_pause_cost_nothing_but_time() -> None:
    found = seen(ramp(), ready=3)
    assert found.look(10.0, down=True) is None
    assert found.look(60.0, down=False) is None
    found.pause(STEP)
    assert found.look(STEP + 59.0, down=True) is None
    assert found.look(STEP + 60.0, down=False) is None
    seen(found, ready=3)
    assert found.look(2 * STEP, down=False) == RampMove(0.55, "3 of 3 launches became ready")


def test_whole_share_is_the_end() -> None:
    found = seen(ramp(0.95), ready=3)
    move = found.look(STEP, down=False)
    assert move == RampMove(1.0, "3 of 3 launches became ready")
    found.change(1.0, STEP)
    seen(found, failed=99)
    assert found.look(9 * STEP, down=True) is None
    assert repr(found) == "<Ramp 1.00 ready=0 failed=99>"


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans()),
        max_size=60,
    ),
    st.floats(0.001, 1e7),
)
def test_whatever_happens_progress_stays_within_its_bounds(
    steps: list[tuple[float, int, int, bool, bool]], over: float
) -> None:
    found, now = Ramp(FIRST, over, 0.0), 0.0
    for passed, ready, failed, down, pause in steps:
        now += passed
        if pause:
            found.pause(now)
        seen(found, ready, failed)
        before = found.progress
        move = found.look(now, down=down)
        if move is not None:
            assert FIRST <= move.progress <= min(1.0, before + FIRST + 1e-6)
            assert move.reason
            found.change(move.progress, now)


def test_outage_that_another_edge_has_counted_is_not_counted_again() -> None:
    found = ramp()
    assert found.look(1.0, down=True) is None
    # The other edge saw it a moment earlier.
    found.change(0.25, 60.9)
    assert found.look(61.0, down=True) is None
    assert found.look(500.0, down=True) is None
    # The next outage counts.
    assert found.look(501.0, down=False) is not None
    assert found.look(502.0, down=True) is None
    assert found.look(562.0, down=True) == RampMove(0.125, "it was down for a minute")


def test_weights_give_each_its_part_of_the_new_visitors() -> None:
    found = ramp_weights({"a": 0.1, "b": 0.3}, 60.0)
    whole = sum(found.values()) + 60.0
    assert {name: round(weight / whole, 9) for name, weight in found.items()} == {"a": 0.1, "b": 0.3}
    assert ramp_weights({"a": 0.1, "b": 0.3}, 0.0) == {"a": 0.1, "b": 0.3}
    assert ramp_weights({}, 60.0) == {}


def test_parts_that_are_more_than_there_is_leave_a_twentieth_to_the_others() -> None:
    found = ramp_weights({"a": 0.9, "b": 0.9}, 10.0)
    assert found["a"] == found["b"]
    assert math.isclose(10.0 / (sum(found.values()) + 10.0), 0.05)
