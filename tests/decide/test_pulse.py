from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedproxy.decide.pulse import TOLERANCE, Pulse


def test_nothing_is_lost_before_the_first_beat() -> None:
    pulse = Pulse()
    assert pulse.lost(1000.0) == 0.0
    assert pulse.beat(1000.0, 1.0) == 0.0


def test_nothing_is_lost_while_it_beats_in_time_or_nearly() -> None:
    pulse = Pulse()
    for second in range(10):
        assert pulse.beat(second * (1.0 + TOLERANCE / 2), 1.0) == 0.0
    assert pulse.lost(9.5) == 0.0


def test_what_it_is_late_is_lost_already_before_it_beats_again() -> None:
    pulse = Pulse()
    pulse.beat(0.0, 1.0)
    assert pulse.lost(3.0) == 2.0
    assert pulse.beat(3.0, 1.0) == 2.0
    assert pulse.lost(3.0) == pulse.lost(3.9) == 2.0


def test_long_stop_is_given_with_the_interval_in_which_it_began() -> None:
    pulse = Pulse()
    pulse.beat(0.0, 0.25)
    assert pulse.beat(90.0, 0.25) == 90.0
    pulse.beat(90.25, 0.25)
    assert pulse.lost(91.0) == 90.5


@given(st.lists(st.floats(0.0, 100.0)))
def test_lost_time_never_falls_and_is_never_more_than_passed(steps: list[float]) -> None:
    pulse, now, before = Pulse(), 0.0, 0.0
    pulse.beat(now, 0.5)
    for step in steps:
        now += step
        for lost in (pulse.lost(now), pulse._lost + pulse.beat(now, 0.5)):
            assert before <= lost <= now + 1e-6
            before = min(lost, pulse.lost(now))
