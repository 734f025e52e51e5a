from __future__ import annotations

import pytest

from fedproxy.decide.retry import RetryBudget, may_retry


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"idempotent": False, "delivered": False}, True),
        ({"idempotent": False}, False),
        ({"committed": True}, False),
        ({"replayable": False}, False),
        ({"attempts": 3}, False),
    ],
)
def test_another_attempt_only_if_it_can_do_no_harm(change: dict[str, bool], allowed: bool) -> None:
    facts = {"idempotent": True, "delivered": True, "committed": False, "replayable": True} | change
    assert may_retry(**{"attempts": 1, "max_attempts": 3} | facts) is allowed  # type: ignore[arg-type]


def spent(budget: RetryBudget, now: float, requests: int) -> int:
    count = 0
    while budget.withdraw(now, requests):
        count += 1
    return count


def test_budget_starts_with_ten_seconds_of_its_floor() -> None:
    assert spent(RetryBudget(budget=0.0, floor=1.0), 1000.0, 0) == 10


def test_requests_and_seconds_fill_the_budget() -> None:
    budget = RetryBudget(budget=0.5, floor=1.0)
    spent(budget, 0.0, 0)
    assert spent(budget, 0.0, 10) == 5
    assert spent(budget, 3.0, 10) == 3


def test_quiet_time_and_many_requests_pay_for_a_bounded_storm() -> None:
    budget = RetryBudget(budget=0.2, floor=1.0)
    spent(budget, 0.0, 0)
    assert spent(budget, 1e6, 10**6) == 210


def test_retries_stay_within_budget_and_floor_when_everything_fails() -> None:
    budget = RetryBudget(budget=0.2, floor=1.0)
    retries = sum(budget.withdraw(i / 1000, i) for i in range(100_000))
    assert retries <= 0.2 * 100_000 + 100 + 10


def test_budget_that_takes_over_has_what_was_left() -> None:
    before = RetryBudget(budget=0.5, floor=1.0)
    spent(before, 100.0, 1000)
    budget = RetryBudget(budget=0.5, floor=1.0)
    budget.take_over(before)
    assert spent(budget, 102.0, 1010) == 7


def test_budget_of_nothing_allows_nothing() -> None:
    assert spent(RetryBudget(budget=0.0, floor=0.0), 0.0, 10**6) == 0


def test_small_floor_saves_up_for_one_retry() -> None:
    budget = RetryBudget(budget=0.0, floor=0.01)
    assert not budget.withdraw(0.0, 0)
    assert budget.withdraw(95.0, 0)


def test_clock_and_count_that_go_back_take_nothing_away() -> None:
    budget = RetryBudget(budget=0.5, floor=1.0)
    assert budget.withdraw(100.0, 100)
    assert spent(budget, 50.0, 0) == 59
    assert spent(budget, 51.0, 2) == 2


# One client among others


def taken(budget: RetryBudget, client: bytes, now: float, requests: int) -> int:
    count = 0
    while budget.withdraw(now, requests, client):
        count += 1
    return count


def test_one_client_takes_its_share_of_the_bucket_and_others_have_the_rest() -> None:
    budget = RetryBudget(budget=0.0, floor=1.0, per_client=0.5)
    assert taken(budget, b"x", 0.0, 0) == 5
    assert taken(budget, b"y", 0.0, 0) == 2
    assert taken(budget, b"z", 0.0, 0) == 1


def test_one_client_that_goes_on_takes_no_more_than_its_share_of_what_flows_in() -> None:
    budget = RetryBudget(budget=0.0, floor=1.0, per_client=0.5)
    greedy = sum(taken(budget, b"x", float(now), 0) for now in range(1000))
    assert 500 <= greedy <= 512
    # All that it was not given is there for others, as far as the bucket holds it.
    assert taken(budget, b"y", 1000.0, 0) == 5


def test_client_that_waits_has_its_share_again() -> None:
    budget = RetryBudget(budget=0.0, floor=1.0, per_client=0.5)
    assert taken(budget, b"x", 0.0, 0) == 5
    assert taken(budget, b"x", 100.0, 0) == 5


def test_client_may_have_the_only_token() -> None:
    budget = RetryBudget(budget=0.0, floor=0.1, per_client=0.5)
    assert taken(budget, b"x", 0.0, 0) == 1
    assert taken(budget, b"y", 0.0, 0) == 0


def test_share_of_one_is_no_limit() -> None:
    assert taken(RetryBudget(budget=0.0, floor=1.0, per_client=1.0), b"x", 0.0, 0) == 10


def test_what_clients_took_is_bounded_and_survives_a_reload() -> None:
    before = RetryBudget(budget=1.0, floor=1000.0, per_client=0.5)
    for number in range(5000):
        assert before.withdraw(0.0, 0, b"%d" % number)
    assert len(before._taken) == 1024
    before = RetryBudget(budget=0.0, floor=1.0, per_client=0.5)
    taken(before, b"x", 0.0, 0)
    budget = RetryBudget(budget=0.0, floor=1.0, per_client=0.5)
    budget.take_over(before)
    assert taken(budget, b"x", 0.0, 0) == 0
