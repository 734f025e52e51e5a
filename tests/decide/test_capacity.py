"""`weight: auto`: shares by capacity, less for who fills up or fails, and all of it slowly."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.decide.capacity import START, DampedWeight, room_factor, target_weight

QUOTAS = {"2i2c": 300, "gesis": 180, "bids": 60}


def test_members_share_by_capacity() -> None:
    weights = {name: target_weight(quota // 2, quota, 0, 1.0) for name, quota in QUOTAS.items()}
    whole = sum(weights.values())
    assert {name: weight / whole for name, weight in weights.items()} == {
        "2i2c": 300 / 540,
        "gesis": 180 / 540,
        "bids": 60 / 540,
    }


def test_reserve_is_no_part_of_the_capacity() -> None:
    assert target_weight(0, 180, 60, 1.0) == 120
    # A quarter of what it offers is free, not of what it has.
    assert target_weight(90, 180, 60, 1.0) == 120
    assert target_weight(91, 180, 60, 1.0) < 120


@pytest.mark.parametrize(
    ("pods", "part"), [(0, 1.0), (225, 1.0), (240, 0.804), (270, 0.412), (285, 0.216), (300, 0.02)]
)
def test_member_that_fills_up_gets_less_before_it_is_full(pods: int, part: float) -> None:
    assert target_weight(pods, 300, 0, 1.0) == pytest.approx(300 * part)


def test_member_whose_launches_fail_loses_that_part_and_more() -> None:
    half, tenth = target_weight(0, 300, 0, 0.5), target_weight(0, 300, 0, 0.9)
    assert [half, tenth] == pytest.approx([75, 243])
    assert [target_weight(0, 300, 0, success) for success in (0.2, 0.0, -1.0)] == [15, 15, 15]


@pytest.mark.parametrize("success", [1.0, 2.0, math.inf, math.nan])
def test_success_that_makes_no_sense_takes_nothing(success: float) -> None:
    assert target_weight(0, 300, 0, success) == 300


def test_member_without_a_quota_has_the_weight_to_start_with() -> None:
    assert target_weight(None, None, 0, 1.0) == target_weight(5000, None, 60, 1.0) == START
    assert target_weight(5, None, 0, 0.5) == START / 4


def test_member_that_tells_no_pods_has_room() -> None:
    assert target_weight(None, 300, 0, 1.0) == 300


@pytest.mark.parametrize(("quota", "reserve"), [(60, 60), (60, 300), (0, 0), (-5, 0)])
def test_without_capacity_there_is_little_weight_and_not_none(quota: int, reserve: int) -> None:
    assert target_weight(0, quota, reserve, 1.0) == 1
    assert target_weight(1, quota, reserve, 1.0) == 0.02


NUMBER = st.integers() | st.integers(-400, 400)


@given(st.none() | NUMBER, st.none() | NUMBER, NUMBER, st.floats())
def test_weight_is_bounded_whatever_a_member_says(
    total: int | None, quota: int | None, reserve: int, success: float
) -> None:
    # With a tolerance for what floats do.
    assert 0.00099 <= target_weight(total, quota, reserve, success) <= 1_000_000


@given(st.integers(0, 500), st.integers(1, 500), st.integers(0, 100), st.floats(0, 1))
def test_more_pods_or_failures_never_add_weight(total: int, quota: int, reserve: int, success: float) -> None:
    weight = target_weight(total, quota, reserve, success)
    assert target_weight(total + 1, quota, reserve, success) <= weight
    assert target_weight(total, quota, reserve, success / 2) <= weight
    assert target_weight(total, quota, reserve + 1, success) <= weight


def test_room_shrinks_without_a_jump() -> None:
    factors = [room_factor(free / 1000) for free in range(1001)]
    assert (factors[0], factors[-1]) == (0.02, 1.0)
    assert all(0 <= after - before < 0.004 for before, after in pairwise(factors))


# Slowly


def test_target_is_reached_in_a_few_minutes_however_often_it_is_asked_for() -> None:
    often, seldom = DampedWeight(100.0, 0.0), DampedWeight(100.0, 0.0)
    for second in range(1, 61):
        often.follow(300.0, float(second))
    for second in range(5, 61, 5):
        seldom.follow(300.0, float(second))
    assert often.value == pytest.approx(seldom.value) == pytest.approx(300 - 200 / math.e)
    for second in range(61, 361):
        often.follow(300.0, float(second))
    assert often.value == pytest.approx(300, rel=0.01)
    assert repr(often) == "<DampedWeight 299.5>"


def test_one_probe_that_differs_moves_little() -> None:
    weight = DampedWeight(300.0, 0.0)
    assert weight.follow(6.0, 2.0) == pytest.approx(290, abs=1)


def test_jump_of_a_clock_does_no_harm() -> None:
    weight = DampedWeight(100.0, 1000.0)
    assert weight.follow(300.0, -1e9) == 100.0
    assert weight.follow(300.0, -1e9) == 100.0
    assert weight.follow(300.0, 1e12) == pytest.approx(300 - 200 / math.e)
    assert weight.follow(300.0, math.inf) < 300
    assert weight.follow(300.0, math.inf) < 300


@given(st.lists(st.tuples(st.floats(0.001, 1e6), st.floats(-1e12, 1e12)), min_size=1))
def test_weight_stays_between_what_it_was_and_its_targets(steps: list[tuple[float, float]]) -> None:
    weight = DampedWeight(100.0, 0.0)
    seen = [100.0, *(target for target, _ in steps)]
    for target, now in steps:
        assert min(seen) * 0.999 <= weight.follow(target, now) <= max(seen) * 1.001


def test_members_that_fill_each_other_up_come_to_rest() -> None:
    """A federation in which visitors come by weight and stay for a while: shares settle and none is full."""
    rng = random.Random(7)
    pods = dict.fromkeys(QUOTAS, 0)
    weights = {name: DampedWeight(START, 0.0) for name in QUOTAS}
    for second in range(3600):
        for name in QUOTAS:
            # Half an hour per session.
            pods[name] -= sum(rng.random() < 1 / 1800 for _ in range(pods[name]))
            if second % 15 == 0:
                weights[name].follow(target_weight(pods[name], QUOTAS[name], 0, 1.0), float(second))
        (name,) = rng.choices([*weights], [weight.value for weight in weights.values()])
        # A visitor every 4 s: 450 sessions of 540.
        pods[name] += second % 4 == 0
    assert all(pods[name] < quota for name, quota in QUOTAS.items())
    parts = [pods[name] / quota for name, quota in QUOTAS.items()]
    assert max(parts) - min(parts) < 0.15
