from __future__ import annotations

from array import array

import pytest

from benchmarks.simulate.measures import (
    MEASURES,
    Return,
    Tally,
    moves,
    ready_share,
    recovery,
    share_error,
    usual_share,
    wait_mean,
    wait_median,
    wait_p99,
)


def test_nothing_is_measured_of_nothing() -> None:
    tally = Tally([1.0])
    values = {name: measure(tally) for name, measure in MEASURES.items()}
    assert values.pop("builds") == 0
    assert values.pop("overload") == 0
    assert set(values.values()) == {None}


def test_ready_share_is_of_those_that_could_be_served() -> None:
    assert ready_share(Tally([1.0], asked=10, servable=8, ready=6)) == 0.75


def test_waits_are_those_of_all_that_were_ready() -> None:
    tally = Tally([1.0], waits=array("d", [float(number) for number in range(100, 0, -1)]))
    assert (wait_median(tally), wait_mean(tally), wait_p99(tally)) == (51.0, 50.5, 100.0)


def test_share_error_is_zero_if_choices_follow_the_weights() -> None:
    assert share_error(Tally([3.0, 1.0], choices={0b11: [300, 100]})) == 0


def test_share_error_is_the_largest_in_points() -> None:
    assert share_error(Tally([3.0, 1.0], choices={0b11: [280, 120]})) == pytest.approx(5)


def test_share_error_leaves_out_the_time_when_a_member_was_away() -> None:
    choices = {0b11: [300, 100], 0b01: [500, 0]}
    assert share_error(Tally([3.0, 1.0], choices=choices)) == 0


def test_share_error_leaves_out_members_without_a_weight() -> None:
    assert share_error(Tally([1.0, 0.0], choices={0b01: [10, 0]})) == 0


def test_moves_are_per_visitor() -> None:
    assert moves(Tally([1.0], visitors=50, moved=5)) == 0.1


def test_member_is_back_with_the_first_choices_of_which_it_has_its_share() -> None:
    back = Return(1000.0, 0.5)  # 40 choices, of which it should get 20, and 16 are enough
    for number in range(30):
        assert not back.note(1000.0 + number, hit=False)
    number = next(number for number in range(40) if back.note(1030.0 + number, hit=number % 2 == 0))
    assert number == 30
    assert back.after == 21.0
    assert recovery(Tally([1.0], returns=[back])) == 21.0


def test_share_of_a_member_is_what_it_had_while_it_was_available() -> None:
    assert usual_share(Tally([3.0, 1.0], choices={0b11: [60, 40], 0b01: [100, 0]}), 1) == 0.4
    assert usual_share(Tally([3.0, 1.0], choices={0b11: [6, 4]}), 1) == 0.25


def test_member_that_fails_again_was_not_back_until_then() -> None:
    back = Return(1000.0, 0.5)
    back.give_up(1500.0)
    assert back.after == 500.0


def test_every_measure_is_defined() -> None:
    assert all(measure.__doc__ for measure in MEASURES.values())
