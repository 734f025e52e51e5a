from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from fedproxy.decide.balancer import Balancer, Chance, CostCache, bounded, cost, least_requests, rendezvous
from fedproxy.decide.balancer import random as weighted_random
from fedproxy.decide.member import Member
from tests.rig.build import member


def pair(first: float, second: float) -> list[Member]:
    return [member("a", weight=first), member("b", weight=second)]


def pick(balancer: Balancer, members: Sequence[Member], key: bytes | None, rng: Chance) -> Member:
    return balancer(key, members, [m.weight for m in members], rng)


def firsts(members: list[Member], keys: int = 100) -> Counter[str]:
    rng = random.Random(1)
    return Counter(pick(rendezvous, members, b"key-%d" % i, rng).name for i in range(keys))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1, 1), {"a": 52, "b": 48}), ((0.8, 0.2), {"a": 75, "b": 25})],
)
def test_rendezvous_gives_what_federation_redirect_published(
    weights: tuple[float, float], expected: dict[str, int]
) -> None:
    assert firsts(pair(*weights)) == expected


def test_rendezvous_moves_only_the_keys_of_a_member_that_left() -> None:
    members = [member(name) for name in "abc"]
    rng = random.Random(1)
    keys = [b"repo-%d" % i for i in range(50)]
    before = [pick(rendezvous, members, key, rng).name for key in keys]
    after = [pick(rendezvous, members[1:], key, rng).name for key in keys]
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {"a"}


def test_rendezvous_without_a_key_is_weighted_random() -> None:
    members = pair(1, 1)
    picked = [pick(rendezvous, members, None, random.Random(seed)) for seed in range(9)]
    assert picked == [pick(weighted_random, members, None, random.Random(seed)) for seed in range(9)]


def test_random_follows_the_weights() -> None:
    members = pair(3, 1)
    rng = random.Random(5)
    chosen = Counter(pick(weighted_random, members, b"key", rng).name for _ in range(4000))
    assert 2850 < chosen["a"] < 3150


@pytest.mark.parametrize(("chance", "name"), [(0.0, "a"), (0.4999, "a"), (0.5, "b"), (1 - 2**-53, "b")])
def test_every_chance_is_somebodys(chance: float, name: str) -> None:
    class Always:
        def random(self) -> float:
            return chance

    for balancer in (weighted_random, least_requests):
        assert pick(balancer, pair(1, 1), None, Always()).name == name


def test_least_requests_weighs_what_is_in_flight() -> None:
    a, b = pair(1, 3)
    a.in_flight, b.in_flight = 1, 4
    assert pick(least_requests, [a, b], None, random.Random(1)) is b
    b.in_flight = 6
    assert pick(least_requests, [a, b], None, random.Random(1)) is a


def test_least_requests_leaves_equals_to_chance() -> None:
    members = pair(1, 1)
    rng = random.Random(1)
    assert {pick(least_requests, members, None, rng).name for _ in range(40)} == {"a", "b"}


@pytest.mark.parametrize("hash64", [0, 1, 2**63, 2**64 - 2, 2**64 - 1])
def test_cost_is_above_zero_and_finite_for_every_hash(hash64: int) -> None:
    assert 0 < cost(hash64) < 50


def within(bound: float, *members: Member) -> Member:
    """The first of them is the one that is wanted."""
    shares = [m.weight for m in members]
    return bounded(lambda _key, left, _shares, _rng: left[0], bound, None, members, shares, random.Random(1))


def test_bounded_load_passes_over_a_member_above_its_share() -> None:
    a, b = pair(1, 1)
    a.in_flight = 4
    # Five in flight with this one, 1.5 times the half of them: 4.
    assert within(1.5, a, b) is b
    b.in_flight = 2
    assert within(1.5, a, b) is a


def test_bounded_load_keeps_the_rank_among_those_with_room() -> None:
    a, b, c = [*pair(1, 1), member("c")]
    a.in_flight, b.in_flight = 9, 1
    assert within(1.5, a, b, c) is b


def test_bounded_load_keeps_the_rank_when_all_are_at_capacity() -> None:
    a, b = pair(1, 1)
    a.in_flight = b.in_flight = 1
    assert within(0.1, a, b) is a


def test_bounded_load_leaves_an_idle_first_member_first() -> None:
    a, b = pair(0.001, 1)
    b.in_flight = 100
    assert within(1.5, a, b) is a


def test_cache_holds_no_more_than_its_size_and_keeps_what_is_used() -> None:
    cache = CostCache(size=8)
    members = pair(1, 1)
    used = cache.costs(b"used", members)
    for i in range(100):
        cache.costs(b"other-%d" % i, members)
        assert cache.costs(b"used", members) == used
        assert len(cache) <= 6
    a, b = members
    assert cache.costs(b"used", [b, member("c"), a])[::2] == used[::-1]


def test_keys_of_any_length_take_no_room_in_the_cache() -> None:
    cache = CostCache()
    members = pair(1, 1)
    long = b"/build/gh/" + b"x" * 10_000
    assert cache.costs(long, members) == cache.costs(long, members)
    assert cache.costs(long, members) != cache.costs(long + b"y", members)
    assert len(cache) == 0
