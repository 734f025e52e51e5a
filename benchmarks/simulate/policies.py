"""What is compared: each balancer of `fedproxy.decide`, with failover and without, and one that knows
everything.

An edge is a `Federation` with `Member`s of its own. `expected-wait` also learns from how launches went.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.simulate.hub import NEVER, Hub
from benchmarks.simulate.scenario import Scenario
from fedproxy.decide.affinity import Source
from fedproxy.decide.balancer import BALANCERS, EXPECTED_WAIT
from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.federation import Federation, FederationPolicy, Lease, Refusal
from fedproxy.decide.knowledge import Knowledge
from fedproxy.decide.member import Member
from fedproxy.decide.waits import ExpectedWait

ORACLE: Final = "oracle"
BOUNDED: Final = "rendezvous-bounded"
WITHOUT: Final = "+no-failover"
COOKIES: Final = "+cookies"
_NO_BOUND: Final = 1e9
_EPOCH: Final = 1.7e9  # seconds since the epoch at the begin: what is learned has times of a wall clock


@dataclass(frozen=True)
class Chosen:
    """A policy to simulate. balancer: empty for the oracle."""

    name: str
    balancer: str
    bounded: bool = False
    failover: bool = True


def offered() -> dict[str, Chosen]:
    """All policies by name: those without failover follow those with it."""
    found = [Chosen(name, name) for name in BALANCERS]
    at = [each.name for each in found].index("rendezvous") + 1
    found.insert(at, Chosen(BOUNDED, "rendezvous", bounded=True))
    found += [Chosen(each.name + WITHOUT, each.balancer, each.bounded, failover=False) for each in found]
    found += [Chosen(ORACLE, ""), Chosen(ORACLE + COOKIES, "")]
    return {each.name: each for each in found}


#: How long until the launch that is asked for now would be ready at each hub, and the hub's room for more.
Truth = Callable[[float], Sequence[tuple[float, int]]]


class Oracle:
    """Sends each launch where it is ready first, which it knows, while members keep to their weights.

    For each launch that a member is ahead of its share, of the choices made while it could serve them, it
    counts as `price` seconds slower. Room is kept for launches whose image is being built, as long as another
    member has some. `able`: who could serve the last launch, a bit for each. cookies: visitors with a cookie
    stay with their member while it can serve them, as they do with the edge.
    """

    def __init__(self, federation: Federation, truth: Truth, price: float, *, cookies: bool = False) -> None:
        self._cookies = cookies
        self._federation = federation
        self._truth = truth
        self._price = price
        self._ahead = [0.0] * len(federation.members)
        self.able = 0

    def acquire(
        self,
        key: bytes | None,
        pinned: Member | None,
        tried: Collection[Member],
        now: float,
        launch: bool = False,
        client: bytes = b"",
        image: bytes | None = None,
    ) -> Lease | Refusal:
        """A lease for the member of the shortest wait. What an edge knows besides does not matter."""
        truth = self._truth(now)
        ahead, members = self._ahead, self._federation.members
        able = [
            at
            for at, member in enumerate(members)
            if truth[at][0] < NEVER and member.weight and member not in tried and not member.full(launch)
        ]
        able = [at for at in able if truth[at][1] > 0] or able
        self.able = sum(1 << at for at in able)
        if not able:
            return Refusal.FULL
        if self._cookies and pinned is not None:
            at = members.index(pinned)
            if at in able:
                return self._federation.acquire_session(pinned, Source.COOKIE, launch)
        price = self._price
        best = min(able, key=lambda at: truth[at][0] + price * ahead[at])
        whole = sum(members[at].weight for at in able)
        for at in able:
            ahead[at] -= members[at].weight / whole
        ahead[best] += 1
        return self._federation.acquire_session(members[best], Source.RANDOM, launch)


class Edge:
    """One edge: what it knows of the members, when it rolled last, and when it was told of pods.

    acquire: `Federation.acquire`, or the oracle's. learns: it is told how launches went.
    """

    __slots__ = ("acquire", "federation", "learns", "members", "oracle", "rolled", "told")

    def __init__(self, federation: Federation, *, learns: bool = False, oracle: Oracle | None = None) -> None:
        self.federation = federation
        self.members = federation.members
        self.learns = learns
        self.oracle = oracle
        self.acquire = federation.acquire if oracle is None else oracle.acquire
        self.rolled = 0.0
        self.told = 0.0


def edge(chosen: Chosen, scenario: Scenario, hubs: Sequence[Hub], rng: random.Random, truth: Truth) -> Edge:
    """An edge with that policy in front of the hubs."""
    settings = scenario.edge
    members = [
        Member(
            hub.name,
            f"https://{hub.name}.example.org",
            Breaker(
                BreakerPolicy(
                    failures=settings.breaker_failures,
                    open=settings.breaker_open,
                    open_max=max(BreakerPolicy().open_max, settings.breaker_open),
                    witnesses=settings.witnesses,
                )
            ),
            weight=hub.weight,
            prime=hub.settings.prime,
            # Only launches count here; their number is not limited by the requests that a member may have.
            max_requests=1_000_000,
            max_launches=hub.settings.max_launches,
        )
        for hub in hubs
    ]
    policy = FederationPolicy(
        balancer=chosen.balancer or "random",
        load_bound=settings.load_bound if chosen.bounded else _NO_BOUND,
        slow_start=settings.slow_start,
    )
    if not chosen.balancer:
        federation = Federation(members, policy, rng)
        cookies = chosen.name.endswith(COOKIES)
        oracle = Oracle(federation, truth, scenario.oracle.price, cookies=cookies)
        return Edge(federation, oracle=oracle)
    if chosen.balancer != EXPECTED_WAIT:
        return Edge(Federation(members, policy, rng))
    knowledge = Knowledge()
    knowledge.expects(replicated=scenario.images == "replicated", delay=None)
    waits = ExpectedWait(knowledge)
    waits.set_clock(0.0, _EPOCH)
    return Edge(Federation(members, policy, rng, waits), learns=True)
