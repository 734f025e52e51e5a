from __future__ import annotations

import pytest

from fedproxy.decide.outages import Outages

A, B, C, SIX, OTHER_SIX = "10.0.0.1", "10.0.0.2", "10.0.0.3", "::1", "::2"


def chance() -> int:
    return 0


def ranked(outages: Outages, *addresses: str, now: float = 0.0, **loads: int) -> list[str]:
    names = {"a": A, "b": B, "c": C}
    return outages.rank(addresses, {names[key]: load for key, load in loads.items()}, chance, now)


def failing(address: str, times: int = 1) -> tuple[Outages, float]:
    """What is known of an address that fails as soon as it may be tried, and when it failed last."""
    outages, now = Outages(), 0.0
    for number in range(times):
        assert outages.failed(address, now, now) is (number == 0)
        now += 2.0**number
    return outages, now - 2.0 ** (times - 1)


def test_address_with_the_fewest_connections_is_first() -> None:
    assert ranked(Outages(), A, B, C, a=2, c=1) == [B, C, A]


def test_chance_decides_among_equals() -> None:
    numbers = iter([3, 1, 2])
    assert Outages().rank([A, B, C], {}, lambda: next(numbers), 0.0) == [B, C, A]


def test_family_of_the_first_address_is_preferred_and_the_families_take_turns() -> None:
    assert ranked(Outages(), SIX, A, B, OTHER_SIX, b=1) == [SIX, A, OTHER_SIX, B]
    assert ranked(Outages(), A, SIX, b=1) == [A, SIX]
    assert ranked(Outages(), SIX, A, B) == [SIX, A, B]


def test_address_that_failed_is_last_until_its_time_is_over() -> None:
    outages, _ = failing(A)
    assert ranked(outages, A, B, C, b=5, c=6, now=0.9) == [B, C, A]
    assert outages.aside(A)
    assert outages.failures(A) == 1
    assert repr(outages) == f"<Outages {A}>"


def test_one_connection_at_a_time_tries_it_again_and_it_stays_aside_until_that_worked() -> None:
    outages, _ = failing(A)
    assert ranked(outages, A, B, now=1.0) == [A, B]
    assert ranked(outages, A, B, now=1.0) == [B, A]
    assert outages.aside(A)
    outages.works(A, 1.5)
    assert not outages.aside(A)
    assert ranked(outages, A, B, b=1, now=1.5) == [A, B]
    assert ranked(outages, A, B, b=1, now=1.5) == [A, B]


def test_address_that_failed_lately_does_not_get_all_connections_at_once() -> None:
    outages, _ = failing(A)
    outages.works(A, 1.0)
    numbers = iter([1, 0, 0, 0, 1, 0])
    assert outages.rank([A, B, C], {B: 7, C: 9}, lambda: next(numbers), 1.0) == [B, A, C]
    assert outages.rank([A, B, C], {B: 7, C: 9}, lambda: next(numbers), 1.0) == [A, B, C]
    assert ranked(outages, A, B, C, a=8, b=7, c=9, now=1.0) == [B, A, C]
    outages.roll(11.0)
    assert ranked(outages, A, B, C, b=7, c=9, now=11.0) == [A, B, C]


def test_trial_of_which_nobody_hears_is_made_again() -> None:
    outages, _ = failing(A)
    assert ranked(outages, A, B, now=1.0)[0] == A
    assert ranked(outages, A, B, now=2.0)[0] == A


def test_address_that_is_not_tried_first_is_no_trial() -> None:
    outages, _ = failing(A)
    assert ranked(outages, A, B, a=1, now=1.0) == [B, A]
    assert ranked(outages, A, B, now=1.0) == [A, B]


@pytest.mark.parametrize(("times", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60)])
def test_each_failure_in_a_row_doubles_the_time_up_to_a_minute(times: int, seconds: int) -> None:
    outages, at = failing(A, times)
    assert ranked(outages, A, B, now=at + seconds - 0.5) == [B, A]
    assert ranked(outages, A, B, now=at + seconds) == [A, B]


def test_failures_of_connections_that_began_before_the_first_are_the_same_failure() -> None:
    outages = Outages()
    assert outages.failed(A, 0.0, 0.5)
    for _ in range(100):
        assert not outages.failed(A, 0.4, 0.6)
    assert outages.failures(A) == 1


def test_all_that_are_aside_are_tried_and_first_the_one_whose_time_is_over_first() -> None:
    outages = Outages()
    outages.failed(B, 0.0, 0.0)
    outages.failed(SIX, 0.0, 0.1)
    outages.failed(A, 0.0, 0.2)
    assert ranked(outages, SIX, A, B, now=0.5) == [B, SIX, A]


def test_address_that_takes_connections_only_to_end_them_is_aside_for_longer_each_time() -> None:
    outages, now = failing(A)
    for number in range(1, 4):
        now += 2.0**number
        outages.works(A, now)
        assert outages.roll(now + 1.0) == []
        assert not outages.failed(A, now, now + 0.1)
        assert outages.failures(A) == number + 1
    assert outages.aside(A)


def test_address_that_worked_for_a_while_is_forgiven_once() -> None:
    outages, _ = failing(A, 3)
    outages.works(A, 10.0)
    outages.works(A, 19.0)
    assert outages.roll(19.9) == []
    assert outages.roll(20.0) == [A]
    assert outages.roll(21.0) == []
    assert (len(outages), outages.failures(A), outages.aside(A)) == (0, 0, False)
    assert outages.failed(A, 21.0, 21.0)


def test_address_that_has_not_failed_is_not_remembered() -> None:
    outages = Outages()
    outages.works(A, 0.0)
    assert len(outages) == 0


def test_addresses_that_the_name_has_no_more_are_forgotten() -> None:
    outages = Outages()
    for number in range(1000):
        outages.failed(f"10.1.{number // 250}.{number % 250}", 0.0, 0.0)
        outages.failed(A, 0.0, 0.0)
        outages.keep((A, B))
    assert len(outages) == 1
    assert outages.failures(A) > 0
