"""The members at one moment, as plain values: what pages and metrics read, and what workers report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import EdgeCounts, MemberCounts
from fedproxy.decide.member import Intent, Member

QUOTA_ALONE: Final = ("quota",)
"""The reasons of a member that is full and otherwise healthy."""

_WORST_BREAKER_FIRST: Final = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)


class Status(StrEnum):
    """How a member is, in one word, which every page, command, metric and alert uses.

    AVAILABLE: it takes visitors, as many as its weight says. FULL: over its quota or at a limit, which is
    everyday. UNHEALTHY: its probes fail. EJECTED: its breaker is open. SLOW_STARTING: its share still grows.
    """

    AVAILABLE = "available"
    FULL = "full"
    UNHEALTHY = "unhealthy"
    EJECTED = "ejected"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    SLOW_STARTING = "slow-starting"


#: The states from the one that needs an operator most to the one that needs none.
WORST_FIRST: Final = (
    *(Status.UNHEALTHY, Status.EJECTED, Status.FULL, Status.DRAINING),
    *(Status.MAINTENANCE, Status.SLOW_STARTING, Status.AVAILABLE),
)


class AddressState(NamedTuple):
    """One of a member's addresses. failures: in a row, until it has worked for a while. aside: as in
    `decide.outages`."""

    address: str
    connections: int
    failures: int = 0
    aside: bool = False


@dataclass(frozen=True)
class Snapshot:
    """One member as seen by one worker, or by all workers together.

    share: its current weight for new visitors. admits: its breaker lets requests through. available: a
    request may be sent to it. last_resort: visitors for whom no other member is available are sent to it,
    healthy or not. idle, busy: connections to it. addresses: those of its name, or the one of its URL; none
    if it is a unix socket or its name was not resolved yet. checks, pods, quota, details: the results of its
    last probe, in the process that probes; a worker is told all but the details for its pages, and whether it
    answered, and within how many seconds (`decide.health.pace`); None if it was not probed yet. price: as of
    `decide.waits`.
    """

    name: str
    url: str
    weight: float
    share: float
    prime: bool
    intent: Intent
    healthy: bool
    reasons: tuple[str, ...]
    breaker: BreakerState
    admits: bool
    available: bool
    in_flight: int
    max_requests: int
    launches: int
    max_launches: int | None
    counts: MemberCounts
    idle: int = 0
    busy: int = 0
    addresses: tuple[AddressState, ...] = ()
    checks: Mapping[str, bool] = field(default_factory=dict)
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None
    details: tuple[str, ...] = ()
    last_resort: bool = False
    price: float = 0.0
    answered: bool | None = None
    within: float | None = None

    @property
    def status(self) -> Status:
        """The operator's intent first, then health, breaker, limits and slow start."""
        if self.intent is Intent.MAINT:
            return Status.MAINTENANCE
        if self.intent is Intent.DRAIN:
            return Status.DRAINING
        if not self.healthy:
            return Status.FULL if self.is_over_quota else Status.UNHEALTHY
        if self.breaker is BreakerState.OPEN or not self.admits:
            return Status.EJECTED
        if not self.available or (self.max_launches is not None and self.launches >= self.max_launches):
            return Status.FULL
        return Status.SLOW_STARTING if self.share < self.weight else Status.AVAILABLE

    @property
    def is_over_quota(self) -> bool:
        """Whether its quota alone keeps visitors away: otherwise it is healthy."""
        return not self.healthy and self.reasons == QUOTA_ALONE

    @property
    def takes_visitors(self) -> bool:
        """Whether new visitors can be sent to it."""
        return self.intent is Intent.READY and self.share > 0 and self.available

    @property
    def answers(self) -> bool:
        """Whether a visitor without a cookie may get an answer from it."""
        return self.takes_visitors or self.last_resort


@dataclass(frozen=True)
class Survey:
    """Everything at one moment: the members in the config's order, the edge's own counts, the workers.

    lag: the seconds by which the event loop of the one worker that tells this has been late so far.
    """

    members: Sequence[Snapshot]
    edge: EdgeCounts
    workers: int = 1
    lag: float = 0.0

    def named(self, name: str) -> Snapshot | None:
        """The member of that name."""
        return next((member for member in self.members if member.name == name), None)


def snapshot(
    member: Member, now: float, *, idle: int = 0, busy: int = 0, addresses: tuple[AddressState, ...] = ()
) -> Snapshot:
    """A member's current state. The counts are live: read or copy them at once.

    A breaker whose open time is over is shown as half-open: the next request will be its trial.
    """
    admits = member.breaker.admits(now)
    breaker = member.breaker.state
    return Snapshot(
        name=member.name,
        url=member.url,
        weight=member.weight,
        share=member.share(now),
        prime=member.prime,
        intent=member.intent,
        healthy=member.healthy,
        reasons=member.reasons,
        breaker=BreakerState.HALF_OPEN if admits and breaker is BreakerState.OPEN else breaker,
        admits=admits,
        available=member.available(now),
        in_flight=member.in_flight,
        max_requests=member.max_requests,
        launches=member.launches,
        max_launches=member.max_launches,
        counts=member.counts,
        idle=idle,
        busy=busy,
        addresses=addresses,
        last_resort=member.prime and member.intent is not Intent.MAINT and not member.full(),
        price=member.price,
    )


def merge(parts: Sequence[Snapshot], gone: MemberCounts | None = None) -> Snapshot:
    """One member as seen by several workers: counts are added up, and the worst breaker is shown.

    gone: the counts of workers that have ended. A single part is returned as it is, with its counts.

    Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    counts = [part.counts for part in parts]
    if gone is not None:
        counts.append(gone)
    if len(counts) == 1:
        return parts[0]
    together = MemberCounts()
    together.add(*counts)
    return replace(
        parts[0],
        # Alike, or a worker that was told of a weight a moment later would look like a slow start.
        weight=_mean([part.weight for part in parts]),
        share=_mean([part.share for part in parts]),
        breaker=min((part.breaker for part in parts), key=_WORST_BREAKER_FIRST.index),
        admits=any(part.admits for part in parts),
        available=any(part.available for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        launches=sum(part.launches for part in parts),
        counts=together,
        idle=sum(part.idle for part in parts),
        busy=sum(part.busy for part in parts),
        addresses=_addresses(parts),
        last_resort=any(part.last_resort for part in parts),
        price=sum(part.price for part in parts) / len(parts),
    )


def _addresses(parts: Sequence[Snapshot]) -> tuple[AddressState, ...]:
    """All that any worker knows: connections are added up, and the worst of the rest is shown."""
    known: dict[str, AddressState] = {}
    for part in parts:
        for each in part.addresses:
            before = known.get(each.address)
            known[each.address] = (
                each
                if before is None
                else AddressState(
                    each.address,
                    before.connections + each.connections,
                    max(before.failures, each.failures),
                    before.aside or each.aside,
                )
            )
    return tuple(known.values())


def shares(members: Iterable[Snapshot]) -> dict[str, float]:
    """Each member's share of the new visitors, from 0 to 1; all are 0 if no member takes any."""
    parts = {member.name: member.share if member.takes_visitors else 0.0 for member in members}
    whole = sum(parts.values()) or 1.0
    return {name: part / whole for name, part in parts.items()}


def _mean(values: Sequence[float]) -> float:
    """The mean; of equal values that value, which a sum of floats would miss."""
    return values[0] if min(values) == max(values) else sum(values) / len(values)


def add_up(counts: Iterable[EdgeCounts]) -> EdgeCounts:
    """The edge's own counts of several workers together."""
    together = EdgeCounts()
    together.add(*counts)
    return together
