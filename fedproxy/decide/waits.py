"""The balancer `expected-wait`: a launch goes where it is expected to be ready first.

    cost of a member = launch + (1 - chance of the image) · build · 2 + failing + price

The build counts twice, as it also keeps a member from other work. The price keeps weights what operators
mean by them: it rises while a member gets more launches than its share and falls while it gets fewer, as in
dual ascent. (The prices are Lagrange multipliers of the constraint that each share is the weight's; S. Boyd
and L. Vandenberghe, Convex Optimization, section 5.) A member of whose launches a part fails is due that
much less. Members that cost nearly the same are told apart by rendezvous hashing, so that edges which know
the same mostly agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedproxy.decide.balancer import Chance, rendezvous, scores
from fedproxy.decide.knowledge import Build, ImagePlace, Knowledge, Seen, longest_build
from fedproxy.decide.member import Member


class Reason(StrEnum):
    """What made the choice, as metrics name it.

    IMAGE: it has the image. JOINED: it builds the image already. WAIT: the shortest wait, of other causes.
    TIE: rendezvous hashing, among several that cost the same. EXPLORE: its price, as it is below its share.
    """

    IMAGE = "image"
    JOINED = "joined"
    WAIT = "wait"
    TIE = "tie"
    EXPLORE = "explore"

    # As a key of counters.
    __hash__ = str.__hash__


# Looking a member of an enumeration up by its class is slow.
_IMAGE: Final = Reason.IMAGE
_JOINED: Final = Reason.JOINED
_WAIT: Final = Reason.WAIT
_TIE: Final = Reason.TIE
_EXPLORE: Final = Reason.EXPLORE
_LEAST_SHARE: Final = 1e-200  # of all together: with less, parts of it cannot be told


@dataclass(frozen=True)
class WaitPolicy:
    """The weights of a cost's parts.

    In builds that count twice: step: by how much one choice changes prices; most: how far they go up and
    down; band: members whose costs differ by no more than this are equal. rival: how often the work of a
    build counts while another member builds the same image, so that a crowd waits for one build. In builds:
    failure: what one failed launch costs; crowded: what is added for a member with no free pods.
    """

    step: float = 0.01
    most: float = 1.5
    band: float = 0.1
    rival: float = 10.0
    failure: float = 24.0
    crowded: float = 20.0


class Cost:
    """What a launch would cost at a member, in seconds. wait: the expected time to `ready`. whole: what
    members are compared by. chance: that the image is there. joins: it builds the image at the moment. due:
    its share, as far as its launches do not fail."""

    __slots__ = ("chance", "due", "joins", "price", "wait", "whole")

    # Set by `_costs`: without an `__init__`, making one costs half.
    chance: float
    due: float
    joins: bool
    price: float
    wait: float
    whole: float

    def __repr__(self) -> str:
        return f"<Cost {self.whole}>"


class ExpectedWait:
    """The balancer, with what it knows. `set_clock` is to be called before the first choice, and again later.

    A member's price is with the member, and so outlives a reload. It is in builds that count twice, and so
    fits whatever builds turn out to take. frozen: a choice changes nothing, as nobody follows it.
    """

    def __init__(self, knowledge: Knowledge, policy: WaitPolicy | None = None) -> None:
        self.knowledge = knowledge
        self.policy = policy if policy is not None else WaitPolicy()
        self.frozen = False
        self._ahead = 0.0  # of the clock of `now`, in seconds: what is known has times since the epoch

    def __repr__(self) -> str:
        return f"<ExpectedWait {self.knowledge!r}>"

    def set_clock(self, now: float, wall: float) -> None:
        """`now` is `wall` seconds since the epoch."""
        self._ahead = wall - now

    def choose(
        self,
        image: bytes,
        key: bytes | None,
        members: Sequence[Member],
        shares: Sequence[float],
        now: float,
        rng: Chance,
    ) -> Member:
        """One of these members, at least one, for a launch of an image; prices, counts and what is expected
        change by it.

        key: for rendezvous hashing. shares: all above 0.
        """
        knowledge = self.knowledge
        wall = now + self._ahead
        places = knowledge.images.places(image)
        running = knowledge.under_way(image, wall)
        costs = self._costs(members, shares, places, running, wall)
        near = self._near(costs)
        if len(near) == 1:
            at = near[0]
            chosen = members[at]
        else:
            chosen = rendezvous(
                image if key is None else key,
                [members[each] for each in near],
                [shares[each] for each in near],
                rng,
            )
            at = members.index(chosen)
        if self.frozen:
            return chosen
        chosen.counts.choices[_reason(costs, at, tie=len(near) > 1)] += 1
        if running is None and costs[at].chance < 0.5:
            knowledge.expect(image, chosen.name, wall)
        self._charge(members, costs, chosen)
        return chosen

    def rank(
        self,
        image: bytes,
        key: bytes | None,
        members: Sequence[Member],
        shares: Sequence[float],
        now: float,
    ) -> list[tuple[Member, float, Cost]]:
        """These members with their shares and costs, in the order in which they would be chosen. Nothing
        changes."""
        wall = now + self._ahead
        knowledge = self.knowledge
        running = knowledge.under_way(image, wall)
        costs = self._costs(members, shares, knowledge.images.places(image), running, wall)
        left = list(zip(members, shares, costs, strict=True))
        found: list[tuple[Member, float, Cost]] = []
        while left:
            near = self._near([cost for _, _, cost in left])
            equals = [left[at] for at in near]
            by_hash = scores(
                "rendezvous",
                image if key is None else key,
                [member for member, _, _ in equals],
                [share for _, share, _ in equals],
            )
            found.append(left.pop(near[by_hash.index(max(by_hash))]))
        return found

    def refresh(self, now: float) -> None:
        """Works the expectations out anew: to be called about once a second."""
        self.knowledge.refresh(now + self._ahead)

    def begun(self, image: bytes, name: str, now: float) -> None:
        """A member builds an image, as the events of a launch say."""
        self.knowledge.begun(image, name, now + self._ahead)

    def learn(self, seen: Seen, now: float) -> None:
        """Takes what a launch told that has ended."""
        self.knowledge.learn(seen, now + self._ahead)

    def _near(self, costs: Sequence[Cost]) -> list[int]:
        """Which of these are as good as the best."""
        least = costs[0].whole
        for cost in costs:
            # Not `min`: where this is compiled that is a call with two new objects.
            if cost.whole < least:
                least = cost.whole
        limit = least + self.policy.band * 2.0 * self.knowledge.usual_build
        return [at for at, cost in enumerate(costs) if cost.whole <= limit]

    def _costs(
        self,
        members: Sequence[Member],
        shares: Sequence[float],
        places: Sequence[ImagePlace],
        running: Build | None,
        wall: float,
    ) -> list[Cost]:
        knowledge = self.knowledge
        usual = knowledge.usual_build
        took = longest_build(places) or usual
        chances = knowledge.chances(places, wall)
        elsewhere = chances.pop(-1, None)
        experiences = knowledge.members
        work = 1.0 if running is None else self.policy.rival
        unit = 2.0 * usual
        failure = self.policy.failure * usual
        crowded = self.policy.crowded * usual
        found: list[Cost] = []
        builder = None if running is None else running.member
        since = wall if running is None else running.since
        for at, member in enumerate(members):
            known = experiences.get(member.name) or knowledge.of(member.name)
            chance = chances.get(known.slot)
            start = known.start
            if chance is None:
                chance = known.fresh if elsewhere is None else elsewhere
                start += chance * knowledge.pull
            joins = builder == member.name
            build = took * known.slowness
            if joins:
                # One that takes longer than expected is not about to end for that.
                wait = own = min(max(build - (wall - since), 0.1 * build), (1.0 - chance) * build)
            else:
                wait = (1.0 - chance) * build
                own = (1.0 + work) * wait
            cost = Cost()
            cost.chance = chance
            cost.joins = joins
            cost.wait = wait + start
            price = unit * member.price
            if price < 0:
                # That it is below its share is no reason to send visitors where launches fail.
                price /= known.doubt
            cost.price = price
            cost.whole = start + own + known.risk * failure + price
            if member.room is not None and member.launches + member.launches_elsewhere >= member.room:
                cost.whole += crowded
                # Its price would fall all the time, and bring a herd when it has room again.
                cost.due = 0.0
            else:
                # A member that fails launches has a smaller share, in place of a low price for it.
                cost.due = shares[at] / known.doubt
            found.append(cost)
        return found

    def _charge(self, members: Sequence[Member], costs: Sequence[Cost], chosen: Member) -> None:
        step, most = self.policy.step, self.policy.most
        whole = 0.0
        for cost in costs:
            whole += cost.due
        if whole < _LEAST_SHARE:
            return
        each = step / whole
        for at, member in enumerate(members):
            due = costs[at].due
            if not due:
                continue
            price = member.price - each * due
            if member is chosen:
                price += step
            if price > most:
                price = most
            elif price < -most:
                price = -most
            member.price = price


def _reason(costs: Sequence[Cost], at: int, *, tie: bool) -> Reason:
    chosen = costs[at]
    if chosen.joins:
        return _JOINED
    own = chosen.whole - chosen.price
    lacking = False
    for cost in costs:
        if cost.whole - cost.price < own and not tie:
            return _EXPLORE
        lacking = lacking or cost.chance < 0.5
    if chosen.chance >= 0.5 and lacking:
        return _IMAGE
    return _TIE if tie else _WAIT
