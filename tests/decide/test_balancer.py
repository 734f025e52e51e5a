from __future__ import annotations

import random
from collections import Counter

import pytest

from fedproxy.decide.balancer import BALANCERS, CostCache, bounded, cost, least_requests, rendezvous
from fedproxy.decide.balancer import random as weighted_random
from fedproxy.decide.member import Intent, Member
from tests.decide.build import member


def pair(first: float, second: float) -> list[Member]:
    return [member("a", weight=first), member("b", weight=second)]


def firsts(members: list[Member], keys: int = 100) -> Counter[str]:
    rng = random.Random(1)
    return Counter(rendezvous(b"key-%d" % i, members, 0.0, rng)[0].name for i in range(keys))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1, 1), {"a": 52, "b": 48}), ((0.8, 0.2), {"a": 75, "b": 25}), ((1, 0), {"a": 100})],
)
def test_rendezvous_gives_what_federation_redirect_published(
    weights: tuple[float, float], expected: dict[str, int]
) -> None:
    assert firsts(pair(*weights)) == expected


def test_rendezvous_moves_only_the_keys_of_a_member_that_left() -> None:
    members = [member(name) for name in "abc"]
    rng = random.Random(1)
    for i in range(50):
        key = b"repo-%d" % i
        ranking = rendezvous(key, members, 0.0, rng)
        assert rendezvous(key, [m for m in members if m is not ranking[0]], 0.0, rng) == ranking[1:]


def test_rendezvous_without_a_key_is_weighted_random() -> None:
    members = pair(1, 1)
    with_key = [rendezvous(None, members, 0.0, random.Random(3)) for _ in range(5)]
    assert with_key == [weighted_random(None, members, 0.0, random.Random(3)) for _ in range(5)]


def test_random_follows_the_weights() -> None:
    members = pair(3, 1)
    rng = random.Random(5)
    chosen = Counter(weighted_random(b"key", members, 0.0, rng)[0].name for _ in range(4000))
    assert 2850 < chosen["a"] < 3150


def test_random_survives_a_chance_of_exactly_zero() -> None:
    class Zero:
        def random(self) -> float:
            return 0.0

    assert len(weighted_random(None, pair(1, 1), 0.0, Zero())) == 2


def test_least_requests_weighs_what_is_in_flight() -> None:
    a, b = pair(1, 3)
    a.in_flight, b.in_flight = 1, 4
    assert least_requests(None, [a, b], 0.0, random.Random(1)) == [b, a]
    b.in_flight = 6
    assert least_requests(None, [a, b], 0.0, random.Random(1)) == [a, b]


def test_least_requests_leaves_equals_to_chance() -> None:
    members = pair(1, 1)
    rng = random.Random(1)
    assert {least_requests(None, members, 0.0, rng)[0].name for _ in range(40)} == {"a", "b"}


@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_leaves_out_members_without_a_share(name: str) -> None:
    a, b = pair(1, 0)
    drained = member("c")
    drained.set_intent(Intent.DRAIN)
    assert BALANCERS[name](b"key", [a, b, drained], 0.0, random.Random(1)) == [a]
    assert BALANCERS[name](b"key", [], 0.0, random.Random(1)) == []


@pytest.mark.parametrize("hash64", [0, 1, 2**63, 2**64 - 2, 2**64 - 1])
def test_cost_is_above_zero_and_finite_for_every_hash(hash64: int) -> None:
    assert 0 < cost(hash64) < 50


def test_bounded_load_passes_over_a_member_above_its_share() -> None:
    a, b = pair(1, 1)
    a.in_flight = 4
    # Five in flight with this one, 1.5 times the half of them: 4.
    assert bounded([a, b], 1.5, 0.0) is b
    b.in_flight = 2
    assert bounded([a, b], 1.5, 0.0) is a


def test_bounded_load_keeps_the_rank_when_all_are_at_capacity() -> None:
    a, b = pair(1, 1)
    a.in_flight = b.in_flight = 1
    assert bounded([a, b], 0.1, 0.0) is a


def test_bounded_load_leaves_an_idle_first_member_first() -> None:
    a, b = pair(0.001, 1)
    b.in_flight = 100
    assert bounded([a, b], 1.5, 0.0) is a


def test_cache_holds_no_more_than_its_size_and_keeps_what_is_used() -> None:
    cache = CostCache(size=8)
    members = pair(1, 1)
    used = dict(cache.costs(b"used", members))
    for i in range(100):
        cache.costs(b"other-%d" % i, members)
        assert cache.costs(b"used", members) == used
        assert len(cache) <= 6
    assert cache.costs(b"other-1", [*members, member("c")]).keys() == {"a", "b", "c"}
