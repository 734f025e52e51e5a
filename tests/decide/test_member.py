from __future__ import annotations

import pytest

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.member import Intent
from tests.rig.build import member


def test_new_member_is_available_with_its_whole_share() -> None:
    gesis = member(weight=50)
    assert gesis.available(0.0)
    assert gesis.share(0.0) == 50


def test_repr_tells_the_state() -> None:
    gesis = member()
    gesis.in_flight = 3
    gesis.breaker.trip(0.0, 0.0)
    gesis.breaker.acquire(5.0)
    assert repr(gesis) == "<Member gesis ready healthy half-open in_flight=3>"
    gesis.set_health(False, 0.0)
    assert "unhealthy" in repr(gesis)


@pytest.mark.parametrize(
    ("intent", "serving", "share"),
    [(Intent.READY, True, 1.0), (Intent.DRAIN, True, 0.0), (Intent.MAINT, False, 0.0)],
)
def test_intent_says_who_may_come(intent: Intent, serving: bool, share: float) -> None:
    gesis = member()
    gesis.set_intent(intent)
    assert gesis.serving is serving
    assert gesis.available(0.0) is serving
    assert gesis.share(0.0) == share


def test_unhealthy_member_is_not_available_until_it_recovers() -> None:
    gesis = member()
    gesis.set_health(False, 1.0, ("quota",))
    assert not gesis.available(1.0)
    assert list(gesis.reasons) == ["quota"]
    gesis.set_health(True, 2.0)
    assert gesis.available(2.0)
    assert not gesis.reasons


def test_health_does_not_end_maintenance() -> None:
    gesis = member()
    gesis.set_intent(Intent.MAINT)
    gesis.set_health(True, 0.0)
    assert not gesis.available(0.0)


def test_full_member_is_not_available() -> None:
    gesis = member(max_requests=1)
    gesis.in_flight = 1
    assert gesis.full()
    assert not gesis.available(0.0)


def test_member_full_of_launches_takes_other_requests_only() -> None:
    gesis = member(max_launches=1)
    gesis.launches = 1
    assert gesis.available(0.0)
    assert not gesis.available(0.0, launch=True)
    gesis.launches = 0
    assert gesis.available(0.0, launch=True)


def test_member_without_a_limit_of_launches_is_not_full_of_them() -> None:
    gesis = member()
    gesis.launches = 10_000
    assert not gesis.full(launch=True)


def test_open_breaker_makes_it_unavailable_and_a_trial_available() -> None:
    gesis = member()
    gesis.breaker.trip(0.0, 0.0)
    assert not gesis.available(4.9)
    assert gesis.available(5.0)


@pytest.mark.parametrize(("after", "part"), [(0.0, 0.1), (1.5, 0.1), (15.0, 0.5), (30.0, 1.0), (-5.0, 1.0)])
def test_share_grows_from_a_tenth_after_recovery(after: float, part: float) -> None:
    gesis = member(weight=50)
    gesis.slow_start = 30.0
    gesis.set_health(False, 90.0)
    gesis.set_health(True, 100.0)
    assert gesis.share(100.0 + after) == pytest.approx(50 * part)


def test_repeated_good_news_does_not_restart_the_slow_start() -> None:
    gesis = member()
    gesis.slow_start = 30.0
    gesis.set_health(False, 0.0)
    gesis.set_health(True, 0.0)
    gesis.set_health(True, 15.0)
    assert gesis.share(15.0) == 0.5


def test_breaker_that_closes_again_starts_the_slow_start_and_is_counted() -> None:
    gesis = member()
    gesis.slow_start = 30.0
    gesis.breaker.trip(0.0, 0.0)
    gesis.breaker.settle(gesis.breaker.acquire(5.0), Outcome.SUCCESS, 5.0, 0.0)
    assert gesis.share(5.0) == pytest.approx(0.1)
    assert gesis.counts.transitions == {"open": 1, "half-open": 1, "closed": 1}


def test_roll_ends_a_slow_start_that_is_over() -> None:
    gesis = member()
    gesis.slow_start = 30.0
    gesis.roll(0.0)
    gesis.recovered(0.0)
    gesis.roll(29.0)
    assert gesis.share(3.0) == 0.1
    gesis.roll(31.0)
    assert gesis.share(3.0) == 1.0


def test_launches_that_begin_and_end_are_told() -> None:
    gesis = member()
    told: list[int] = []
    gesis.count_launch(1)
    gesis.on_launches = lambda: told.append(gesis.launches)
    gesis.count_launch(1)
    gesis.count_launch(-1)
    assert told == [2, 1]
