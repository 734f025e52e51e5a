"""The choice of a member for a visitor without a cookie: three balancers, all weighted.

A balancer takes (key, members, shares, rng) and picks one of those members; `shares` are theirs, in the same
order and all above 0, and there is at least one. The next in rank is its pick among the others.
`bounded` picks so that no member carries much more than its share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from math import log
from operator import truediv
from typing import Final, Protocol

from fedproxy.bounded import Generations
from fedproxy.decide.member import Member


class Chance(Protocol):
    """A source of randomness, such as a `random.Random`."""

    def random(self) -> float:
        """A number in [0, 1)."""


Balancer = Callable[[bytes | None, Sequence[Member], Sequence[float], Chance], Member]

_HASHES: Final = 2**64 - 1
_LEAST: Final = 2.0**-64
# The keys of real repositories are shorter; a visitor can invent any number of longer ones at no cost.
_LONGEST_KEPT: Final = 256


def cost(hash64: int) -> float:
    """-ln of a hash scaled to (0, 1); always above 0. A member's score is its weight divided by it."""
    return -log((hash64 or 1) / _HASHES) or _LEAST


def _cost_of(key: bytes, name: str) -> float:
    """By federation-redirect's hash, so that both programs rank alike."""
    return cost(int.from_bytes(blake2b(key + b"-" + name.encode(), digest_size=8).digest(), "big"))


class CostCache:
    """The costs of keys for members' names, so that a repeated key costs no hashing.

    At most about `size` costs are kept. Costs of long keys are not kept.
    """

    def __init__(self, size: int = 100_000) -> None:
        self._size = size
        self._known: Generations[bytes, dict[str, float]] = Generations()
        self._held = 0  # costs in the young generation

    def __len__(self) -> int:
        return len(self._known)

    def costs(self, key: bytes, members: Sequence[Member]) -> list[float]:
        """Those of these members, in their order."""
        if len(key) > _LONGEST_KEPT:
            return [_cost_of(key, member.name) for member in members]
        known = self._known.young.get(key)
        if known is None:
            known = self._known.take(key) or {}
            self._keep(len(known))
            self._known.put(key, known)
        try:
            return [known[member.name] for member in members]
        except KeyError:
            for member in members:
                name = member.name
                if name not in known:
                    known[name] = _cost_of(key, name)
                    self._held += 1
            return [known[member.name] for member in members]

    def _keep(self, count: int) -> None:
        if self._held + count > self._size // 2:
            self._known.turn()
            self._held = 0
        self._held += count


_CACHE: Final = CostCache()


def rendezvous(key: bytes | None, members: Sequence[Member], shares: Sequence[float], rng: Chance) -> Member:
    """Weighted rendezvous hashing: the same member for a key everywhere; with no key, weighted random."""
    if key is None:
        return random(key, members, shares, rng)
    scores = list(map(truediv, shares, _CACHE.costs(key, members)))
    return members[scores.index(max(scores))]


def random(key: bytes | None, members: Sequence[Member], shares: Sequence[float], rng: Chance) -> Member:
    """Weighted random: each member in proportion to its share."""
    sums = list(accumulate(shares))
    return members[bisect_right(sums, rng.random() * sums[-1], hi=len(sums) - 1)]


def least_requests(
    key: bytes | None, members: Sequence[Member], shares: Sequence[float], rng: Chance
) -> Member:
    """The fewest requests in flight for its share; chance decides between equals."""
    loads = [(member.in_flight + 1) / share for member, share in zip(members, shares, strict=True)]
    least = min(loads)
    equals = [member for member, load in zip(members, loads, strict=True) if load == least]
    return equals[int(rng.random() * len(equals))]


EXPECTED_WAIT: Final = "expected-wait"
"""The name of the balancer of `waits`: of launches; what is no launch is ranked by rendezvous hashing."""

BALANCERS: Final[Mapping[str, Balancer]] = {
    "rendezvous": rendezvous,
    EXPECTED_WAIT: rendezvous,
    "random": random,
    "least-requests": least_requests,
}
"""By their names in a config."""


def scores(
    balancer: str, key: bytes | None, members: Sequence[Member], shares: Sequence[float]
) -> list[float]:
    """What a balancer compares these members by, for people; the highest wins.

    rendezvous: the share by the cost of the key. random, and rendezvous without a key: the chance.
    least-requests: the share by what would be in flight.
    """
    if balancer == "least-requests":
        return [share / (member.in_flight + 1) for member, share in zip(members, shares, strict=True)]
    if balancer == "rendezvous" and key is not None:
        return list(map(truediv, shares, _CACHE.costs(key, members)))
    whole = sum(shares)
    return [share / whole for share in shares]


def capacities(bound: float, members: Sequence[Member], shares: Sequence[float]) -> list[float]:
    """What each of these members must be below to get one more request from `bounded`."""
    each = bound * (1 + sum(member.in_flight for member in members)) / sum(shares)
    return [max(1.0, each * share) for share in shares]


def bounded(
    pick: Balancer,
    bound: float,
    key: bytes | None,
    members: Sequence[Member],
    shares: Sequence[float],
    rng: Chance,
) -> Member:
    """What `pick` picks among the members below their capacity, or among all if none is.

    A member's capacity is `bound` times its fair share of all that these members have in flight, this request
    included, and at least 1.
    """
    chosen = pick(key, members, shares, rng)
    if not chosen.in_flight:
        return chosen
    load = 1
    for member in members:
        load += member.in_flight
    each = bound * load / sum(shares)
    if chosen.in_flight < each * shares[members.index(chosen)]:
        return chosen
    below: list[Member] = []
    theirs: list[float] = []
    for member, share in zip(members, shares, strict=True):
        if not member.in_flight or member.in_flight < each * share:
            below.append(member)
            theirs.append(share)
    return pick(key, below, theirs, rng) if below else chosen
