"""Whom a visitor without a cookie is sent to: three ways to rank members by weight.

A balancer takes (key, members, now, rng) and gives an order of those members whose share is above 0, the best
first. `bounded` then picks from a ranking so that no member carries much more than its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import ceil, log
from typing import Final, Protocol

from fedproxy.decide.member import Member


class Chance(Protocol):
    """Where randomness comes from; a `random.Random` is one."""

    def random(self) -> float:
        """A number in [0, 1)."""


Balancer = Callable[[bytes | None, Sequence[Member], float, Chance], list[Member]]

_HASHES: Final = 2**64 - 1
_LEAST: Final = 2.0**-64


def cost(hash64: int) -> float:
    """-ln of a hash as a part of one; always above 0. A member's score is its weight divided by it."""
    return -log((hash64 or 1) / _HASHES) or _LEAST


class CostCache:
    """The costs of keys for members' names, so that a key that comes again costs no hashing.

    Bounded: when about `size` costs are held, the young generation becomes the old one, and the old one goes.
    """

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._young: dict[bytes, dict[str, float]] = {}
        self._old: dict[bytes, dict[str, float]] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def costs(self, key: bytes, members: Sequence[Member]) -> Mapping[str, float]:
        """By name, for at least these members."""
        known = self._young.get(key)
        if known is None:
            known = self._old.pop(key, {})
            self._keep(len(known))
            self._young[key] = known
        for member in members:
            name = member.name
            if name not in known:
                # federation-redirect's hash, so that both programs rank alike.
                digest = blake2b(key + b"-" + name.encode(), digest_size=8).digest()
                known[name] = cost(int.from_bytes(digest, "big"))
                self._held += 1
        return known

    def _keep(self, count: int) -> None:
        if self._held + count > self._size // 2:
            self._old = self._young
            self._young = {}
            self._held = 0
        self._held += count


_CACHE: Final = CostCache()


def rendezvous(key: bytes | None, members: Sequence[Member], now: float, rng: Chance) -> list[Member]:
    """Weighted rendezvous hashing: the same order for a key everywhere; with no key, weighted random."""
    if key is None:
        return random(key, members, now, rng)
    costs = _CACHE.costs(key, members)
    return _by_score([(member.share(now) / costs[member.name], member) for member in members])


def random(key: bytes | None, members: Sequence[Member], now: float, rng: Chance) -> list[Member]:
    """Weighted random: each place in the order goes to one of those left, in proportion to their shares."""
    chance = rng.random
    return _by_score([(member.share(now) / (-log(1.0 - chance()) or _LEAST), member) for member in members])


def least_requests(key: bytes | None, members: Sequence[Member], now: float, rng: Chance) -> list[Member]:
    """The fewest requests in flight for their share first; chance decides between equals."""
    scored = [
        (-(member.in_flight + 1) / share, rng.random(), member)
        for member in members
        if (share := member.share(now)) > 0
    ]
    scored.sort(key=_first_two, reverse=True)
    return [member for _, _, member in scored]


BALANCERS: Final[Mapping[str, Balancer]] = {
    "rendezvous": rendezvous,
    "random": random,
    "least-requests": least_requests,
}
"""By their names in a config."""


def bounded(ranking: Sequence[Member], bound: float, now: float) -> Member:
    """The first in a ranking (not empty) that is below its capacity, or else the first.

    A member's capacity is `bound` times its fair share of all that these members have in flight, this request
    included, and at least 1.
    """
    first = ranking[0]
    if not first.in_flight:
        return first
    allowed = 1
    weights = 0.0
    for member in ranking:
        allowed += member.in_flight
        weights += member.share(now)
    for member in ranking:
        if member.in_flight < max(1, ceil(bound * allowed * member.share(now) / weights)):
            return member
    return first


def _by_score(scored: list[tuple[float, Member]]) -> list[Member]:
    scored.sort(key=_first, reverse=True)
    return [member for score, member in scored if score > 0]


def _first(scored: tuple[float, Member]) -> float:
    return scored[0]


def _first_two(scored: tuple[float, float, Member]) -> tuple[float, float]:
    return scored[:2]
