"""The members together: whom a request goes to, and what its outcome means.

`acquire` gives a `Lease`, or says why not; a lease is settled exactly once. The caller's loop is the lock:
each decision is one plain call. A federation is replaced whole on a reload; its `Member` objects live on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from fedproxy.decide.affinity import Source
from fedproxy.decide.balancer import BALANCERS, EXPECTED_WAIT, Chance, bounded, capacities, scores
from fedproxy.decide.breaker import JUDGED, UNCOUNTED, Outcome
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.limit import known_client
from fedproxy.decide.member import Intent, Member
from fedproxy.decide.waits import Cost, ExpectedWait

# Looking a member of an enumeration up by its class is slow, and these are on the fast path.
_COOKIE: Final = Source.COOKIE
_SUCCESS: Final = Outcome.SUCCESS
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED
_READY: Final = Intent.READY
_MAINT: Final = Intent.MAINT


class Refusal(Enum):
    """Why there is no lease.

    FULL: there is a member, but it has as much in flight as it may. AWAY: only one member will do, and it is
    in maintenance.
    """

    NO_MEMBER = "no_member"
    FULL = "full"
    AWAY = "away"


class Lease:
    """The right to send one request (or launch) to `member`; to be settled exactly once."""

    __slots__ = ("generation", "launch", "member", "settled", "source")

    # Set by `_lease`: without an `__init__`, making one costs half.
    member: Member
    generation: int
    source: Source
    launch: bool
    settled: bool

    def __repr__(self) -> str:
        return f"<Lease {self.member.name} {self.source}{' settled' if self.settled else ''}>"


@dataclass(frozen=True)
class FederationPolicy:
    """How members are chosen.

    balancer: a name in `BALANCERS`. load_bound: for rendezvous, how many times its fair share of what is in
    flight a member may carry. max_ejected: the part of the members whose breakers may be out of closed
    at a time. slow_start: seconds from a member's recovery to its whole share.
    """

    balancer: str
    load_bound: float = 1.5
    max_ejected: float = 0.67
    slow_start: float = 30.0


class Ranked(NamedTuple):
    """A member as the balancer sees it. share: its weight for new visitors now. score: the highest wins.

    out: why it gets no new visitor, None if it does; then there may be no score. cost: of `expected-wait`.
    """

    member: Member
    share: float
    score: float | None
    out: str | None
    cost: Cost | None = None


class Federation:
    """The members that are in force: `members` in their order, `by_name`, and `prime`, the last resort.

    waits: what launches have taught; it learns on, whichever balancer chooses.
    """

    def __init__(
        self,
        members: Sequence[Member],
        policy: FederationPolicy,
        rng: Chance,
        waits: ExpectedWait | None = None,
    ) -> None:
        self.members = tuple(members)
        self.by_name = {member.name: member for member in self.members}
        self.prime = next((member for member in self.members if member.prime), None)
        self.policy = policy
        self._rng = rng
        self._balancer = BALANCERS[policy.balancer]
        self._keyed = policy.balancer in ("rendezvous", EXPECTED_WAIT)
        self.waits = waits
        self._chooser = waits if policy.balancer == EXPECTED_WAIT else None
        for member in self.members:
            member.slow_start = policy.slow_start

    def __repr__(self) -> str:
        return f"<Federation {' '.join(map(repr, self.members))}>"

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
        """A lease for a request that any member may serve.

        The pinned member comes first (one that drains, or has weight 0, keeps its visitors), then the
        balancer's choice for `key` among those that take new visitors, then prime as the last resort,
        unhealthy or not. Members in `tried` are out. `launch`: it counts against `max_launches` too.
        `client`: the visitor's address. `image`: the digest of what it launches, or will.
        """
        if pinned is not None:
            # What `available` says of nearly all, and what `_lease` does then, without the calls.
            if pinned.open and pinned.in_flight < pinned.max_requests and not (launch or tried):
                pinned.in_flight += 1
                lease = Lease()
                lease.member = pinned
                lease.generation = pinned.breaker.generation
                lease.source = _COOKIE
                lease.launch = lease.settled = False
                return lease
            if pinned.available(now, launch, client) and pinned not in tried:
                return _lease(pinned, _COOKIE, now, launch, client)
        member = self.choose(key, tried, now, launch, client, image)
        if member is None:
            prime = self.prime
            if prime is None or prime.intent is _MAINT or prime in tried or prime.full(launch):
                return self._refusal(pinned, tried, now, launch)
            member = prime
            prime.counts.last_resort += 1
        if pinned is not None:
            source = _COOKIE if member is pinned else Source.MOVED
        else:
            source = Source.KEY if key is not None and self._keyed else Source.RANDOM
        return _lease(member, source, now, launch, client)

    def choose(
        self,
        key: bytes | None,
        tried: Collection[Member],
        now: float,
        launch: bool = False,
        client: bytes = b"",
        image: bytes | None = None,
    ) -> Member | None:
        """The balancer's choice among the members that take new visitors, or None if nobody does."""
        takers: list[Member] = []
        shares: list[float] = []
        for member in self.members:
            if member.available(now, launch, client) and member not in tried:
                share = member.share(now)
                if share:
                    takers.append(member)
                    shares.append(share)
        if not takers:
            return None
        if image is not None and self._chooser is not None:
            return self._chooser.choose(image, key, takers, shares, now, self._rng)
        if self._keyed:
            return bounded(self._balancer, self.policy.load_bound, key, takers, shares, self._rng)
        return self._balancer(key, takers, shares, self._rng)

    def rank(
        self,
        key: bytes | None,
        now: float,
        launch: bool = False,
        client: bytes = b"",
        image: bytes | None = None,
    ) -> list[Ranked]:
        """All members, as `choose` compares them, the first choice first. For people: nothing is taken."""
        takers: list[Member] = []
        shares: list[float] = []
        others: list[Ranked] = []
        for member in self.members:
            share = member.share(now)
            out = _reason_out(member, share, now, launch, client)
            if out is None:
                takers.append(member)
                shares.append(share)
            else:
                others.append(Ranked(member, share, None, out))
        if not takers:
            return others
        if image is not None and self._chooser is not None:
            by_wait = [
                Ranked(member, share, -cost.whole, None, cost)
                for member, share, cost in self._chooser.rank(image, key, takers, shares, now)
            ]
            return [*by_wait, *others]
        rooms = (
            capacities(self.policy.load_bound, takers, shares)
            if self._keyed
            else [float("inf")] * len(takers)
        )
        found: list[Ranked] = []
        full: list[Ranked] = []
        for member, share, score, room in zip(
            takers, shares, scores(self.policy.balancer, key, takers, shares), rooms, strict=True
        ):
            if member.in_flight < room:
                found.append(Ranked(member, share, score, None))
            else:
                out = f"is at its bound of the load: {member.in_flight} in flight, its share is {room:.1f}"
                full.append(Ranked(member, share, score, out))
        if not found:
            # If all are, the bound counts for nobody.
            found, full = [each._replace(out=None) for each in full], []
        best = sorted(found, key=_by_score)
        return [*best, *sorted(full, key=_by_score), *others]

    def acquire_member(
        self,
        member: Member,
        source: Source,
        tried: Collection[Member],
        now: float,
        launch: bool = False,
        client: bytes = b"",
    ) -> Lease | Refusal:
        """A lease for a request that only `member` may serve.

        It has nowhere else to go, so the probes' verdict does not keep it back: only maintenance, an open
        breaker and too much in flight do.
        """
        if member.intent is _MAINT or member in tried or not member.breaker.admits(now, client):
            return Refusal.NO_MEMBER
        if member.full(launch):
            return Refusal.FULL
        return _lease(member, source, now, launch, client)

    def acquire_session(self, member: Member, source: Source, launch: bool = False) -> Lease | Refusal:
        """A lease for a request about a session, which runs at `member` and nowhere else.

        Only maintenance keeps it back, and `max_launches` a launch whose path some read as a session's. The
        answer says nothing about the member, so the lease's outcome is not counted. Call `unreached` if the
        member could not be reached.
        """
        if member.intent is _MAINT:
            return Refusal.AWAY
        if launch:
            if member.full(launch):
                return Refusal.FULL
            member.count_launch(1)
        member.in_flight += 1
        lease = Lease()
        lease.member = member
        lease.generation = UNCOUNTED
        lease.source = source
        lease.launch = launch
        lease.settled = False
        return lease

    def spare(self, lease: Lease, now: float, client: bytes = b"") -> None:
        """The lease's outcome will not count for its member. If it was a trial, another may have it."""
        breaker = lease.member.breaker
        generation, lease.generation = lease.generation, UNCOUNTED
        if not breaker.closed:
            breaker.settle(generation, _IGNORED, now, 0.0, None, client)

    def unreached(self, member: Member, now: float, client: bytes) -> None:
        """Counts that a request could not even be sent, although its outcome is not counted otherwise."""
        breaker = member.breaker
        if breaker.closed:
            breaker.settle(breaker.generation, _FAILURE, now, self._rng.random(), self._may_eject, client)

    def answered(self, lease: Lease, now: float, client: bytes = b"") -> None:
        """The member answered, and the response goes on.

        A trial must not keep others waiting for the end of a stream of an hour: its success is noted now, and
        what comes later is not. For any other lease nothing happens. It is still to be settled.
        """
        breaker = lease.member.breaker
        if not breaker.closed and lease.generation == breaker.generation:
            generation, lease.generation = lease.generation, UNCOUNTED
            breaker.settle(generation, _SUCCESS, now, 0.0, None, client)

    def judge(self, lease: Lease, outcome: Outcome, now: float, client: bytes = b"") -> None:
        """A launch's outcome is known, though its stream may go on. It is still to be settled.

        The outcome is noted now, and not when the lease is settled. A member that fails its launches serves
        its pages fine, which would hide it from the breaker; so launches are counted apart too, and as many
        failures in a row as open a breaker open it, however many pages came between. They need as many
        witnesses as other failures do; a client whose page succeeds counts as one who had success.
        """
        member = lease.member
        breaker = member.breaker
        generation, lease.generation = lease.generation, JUDGED
        if generation != breaker.generation:
            return
        breaker.settle(generation, outcome, now, self._rng.random(), self._may_eject, client)
        if outcome is _SUCCESS:
            member.failed_launches = 0
            member.launch_witnesses.clear()
        elif outcome is _FAILURE:
            member.failed_launches += 1
            witnesses = member.launch_witnesses
            if len(witnesses) < breaker.policy.witnesses:
                witnesses.add(known_client(client))
            if (
                breaker.closed
                and member.failed_launches >= breaker.policy.failures
                and breaker.convinced(witnesses, now)
                and self._may_eject()
            ):
                breaker.trip(now, self._rng.random(), witnesses)

    def settle(self, lease: Lease, outcome: Outcome, now: float, client: bytes = b"") -> None:
        """Gives a lease back; `client` is the address of the visitor who saw how it ended.

        Raises ValueError if it was given back before.
        """
        if lease.settled:
            raise ValueError(f"{lease} was settled before")
        lease.settled = True
        member = lease.member
        member.in_flight -= 1
        if lease.launch:
            member.count_launch(-1)
        if outcome is _SUCCESS:
            member.breaker.succeed(lease.generation, now, client)
        elif outcome is _FAILURE:
            chance = self._rng.random()
            member.breaker.settle(lease.generation, outcome, now, chance, self._may_eject, client)
        else:
            member.breaker.settle(lease.generation, outcome, now, 0.0, None, client)

    def trip(self, member: Member, now: float, witnesses: Collection[bytes] = ()) -> None:
        """Another worker's breaker opened, for failures that `witnesses` (their keys) saw there.

        It opens here too, and nobody is told again; unless other clients have success here, and both workers
        together have too few witnesses: a client that was alone there need not be alone here.
        """
        breaker = member.breaker
        if breaker.closed and breaker.convinced_with(witnesses, now) and self._may_eject():
            told, member.on_trip = member.on_trip, None
            breaker.trip(now, self._rng.random(), witnesses)
            member.on_trip = told

    def build_begun(self, image: bytes, name: str, now: float) -> None:
        """The member of that name builds an image, as the events of a launch say."""
        if self.waits is not None:
            self.waits.begun(image, name, now)

    def learn(self, seen: Seen, now: float) -> None:
        """Takes what a launch told that has ended."""
        if self.waits is not None:
            self.waits.learn(seen, now)

    def roll(self, now: float) -> None:
        """What passes with time; to be called about once a second."""
        if self.waits is not None:
            self.waits.refresh(now)
        for member in self.members:
            member.roll(now)
            # Other workers were asked, and no failure may follow that would look at their answers.
            if member.breaker.is_due(now) and self._may_eject():
                member.breaker.trip(now, self._rng.random())

    def is_short(self) -> bool:
        """Whether other edges hold slots for launches, some of which this one may have in a moment."""
        for member in self.members:
            most, slots = member.max_launches, member.launch_slots
            if member.open and most is not None and slots is not None and slots < most:
                return True
        return False

    def _may_eject(self) -> bool:
        """Whether one more breaker may open."""
        ejected = sum(not member.breaker.closed for member in self.members)
        return ejected + 1 <= self.policy.max_ejected * len(self.members)

    def _refusal(self, pinned: Member | None, tried: Collection[Member], now: float, launch: bool) -> Refusal:
        for member in self.members:
            if member in tried or not member.full(launch):
                continue
            fits = member is pinned or (member.intent is _READY and member.share(now) > 0)
            serves = member.serving and member.breaker.admits(now)
            if (fits and serves) or (member is self.prime and member.intent is not _MAINT):
                return Refusal.FULL
        return Refusal.NO_MEMBER


def _by_score(ranked: Ranked) -> float:
    return -(ranked.score or 0.0)


def _reason_out(member: Member, share: float, now: float, launch: bool, client: bytes) -> str | None:
    """Why a member takes no new visitor; None if it does."""
    if member.intent is _MAINT:
        return "is in maintenance"
    if not member.healthy:
        reasons = ", ".join(member.reasons)
        return f"is unhealthy: {reasons}" if reasons else "is unhealthy"
    if not member.breaker.admits(now, client):
        return "is ejected: its breaker is " + str(member.breaker.state.value)
    if member.in_flight >= member.max_requests:
        return f"is full: {member.in_flight} requests in flight"
    if launch and member.full(launch=True):
        full = f"is full: {member.launches + member.launches_elsewhere} launches in flight"
        if member.launch_slots is None:
            return full
        return f"{full}, and of {member.max_launches} slots this edge has {member.launch_slots}"
    if not share:
        return "has weight 0" if member.intent is _READY else "is draining"
    return None


def _lease(member: Member, source: Source, now: float, launch: bool, client: bytes) -> Lease:
    breaker = member.breaker
    member.in_flight += 1
    if launch:
        member.count_launch(1)
    lease = Lease()
    lease.member = member
    lease.generation = breaker.generation if breaker.closed else breaker.acquire(now, client)
    lease.source = source
    lease.launch = launch
    lease.settled = False
    return lease
