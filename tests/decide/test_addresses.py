from __future__ import annotations

import pytest

from fedproxy.decide.addresses import HOLD, Addresses


def of(*current: str) -> Addresses:
    addresses = Addresses()
    assert addresses.learn(current, (), 0.0)
    return addresses


def now_at(addresses: Addresses) -> list[str]:
    return list(addresses.current)


def unsure(addresses: Addresses) -> bool:
    return addresses.unsure


def test_first_answer_counts_in_its_order_without_repeats() -> None:
    addresses = of("10.0.0.2", "::2", "10.0.0.1", "10.0.0.2")
    assert now_at(addresses) == ["10.0.0.2", "::2", "10.0.0.1"]
    assert addresses.held == {}
    assert unsure(addresses) is False


def test_address_that_an_answer_leaves_out_is_not_current_and_held_for_a_while() -> None:
    addresses = of("10.0.0.1", "10.0.0.2")
    assert addresses.learn(["10.0.0.2", "10.0.0.3"], (), 1.0)
    assert now_at(addresses) == ["10.0.0.2", "10.0.0.3"]
    assert addresses.held == {"10.0.0.1": 1.0 + HOLD}
    assert repr(addresses) == "<Addresses 10.0.0.2 10.0.0.3 held: 10.0.0.1>"
    assert not addresses.roll(HOLD)
    assert addresses.roll(1.0 + HOLD)
    assert addresses.held == {}
    assert repr(addresses) == "<Addresses 10.0.0.2 10.0.0.3>"


def test_address_that_comes_back_is_held_no_more() -> None:
    addresses = of("10.0.0.1")
    addresses.learn(["10.0.0.2"], (), 1.0)
    assert addresses.learn(["10.0.0.1"], (), 2.0)
    assert now_at(addresses) == ["10.0.0.1"]
    assert addresses.held == {"10.0.0.2": 2.0 + HOLD}


def test_same_addresses_in_another_order_are_no_change() -> None:
    addresses = of("10.0.0.1", "10.0.0.2")
    assert not addresses.learn(["10.0.0.2", "10.0.0.1"], (), 1.0)
    assert now_at(addresses) == ["10.0.0.2", "10.0.0.1"]


def test_empty_answer_changes_nothing_however_often_it_comes() -> None:
    addresses = of("10.0.0.1", "::1")
    for now in range(10):
        assert not addresses.learn([], (), now)
    assert now_at(addresses) == ["10.0.0.1", "::1"]


@pytest.mark.parametrize(("left", "missing", "family"), [("10.0.0.1", "::1", 6), ("::1", "10.0.0.1", 4)])
def test_family_that_could_not_be_asked_for_stays(left: str, missing: str, family: int) -> None:
    addresses = of("10.0.0.1", "::1")
    assert addresses.absent([left]) == {family}
    for now in range(10):
        assert not addresses.learn([left], {family}, now)
        assert now_at(addresses) == [left, missing]
    assert unsure(addresses) is False


def test_family_that_answers_leave_out_stays_until_three_in_a_row_agree() -> None:
    addresses = of("10.0.0.1", "::1")
    assert not addresses.learn(["10.0.0.1"], (), 1.0)
    assert unsure(addresses) is True
    assert not addresses.learn(["10.0.0.1"], (), 2.0)
    assert not addresses.learn(["10.0.0.1", "::1"], (), 3.0)
    assert unsure(addresses) is False
    assert not addresses.learn(["10.0.0.1"], (), 4.0)
    assert not addresses.learn(["10.0.0.1"], (), 5.0)
    assert now_at(addresses) == ["10.0.0.1", "::1"]
    assert addresses.learn(["10.0.0.1"], (), 6.0)
    assert now_at(addresses) == ["10.0.0.1"]
    assert addresses.held == {"::1": 6.0 + HOLD}
    assert unsure(addresses) is False


def test_failure_in_between_is_no_answer_that_agrees() -> None:
    addresses = of("10.0.0.1", "::1")
    for now, failed in enumerate(((), {6}, (), {6}, {6})):
        assert not addresses.learn(["10.0.0.1"], failed, now)
    assert addresses.learn(["10.0.0.1"], (), 6.0)


def test_name_that_moves_to_the_other_family_leaves_the_first_one_soon() -> None:
    addresses = of("10.0.0.1")
    assert addresses.learn(["::1"], (), 1.0)
    assert now_at(addresses) == ["::1", "10.0.0.1"]
    assert not addresses.learn(["::1"], (), 2.0)
    assert addresses.learn(["::1"], (), 3.0)
    assert now_at(addresses) == ["::1"]
