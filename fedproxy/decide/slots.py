"""How many launches each edge of a fleet may run at a member, so that all together keep its `max_launches`.

No launch waits for the store. So each edge holds slots of a member in advance: it launches while it has a
free one, and asks for others and gives back what it does not need in the background. The slots of all edges
never add up to more than `max_launches`, whatever each of them believes about the others. So what it gives
back is free for others only when it says that it does not launch there any more: while it waits for an answer
it does, and an answer may be lost.

Free slots are shared out evenly. What is left over when they are fewer than the edges goes to whoever asks
first, and is passed on to an edge that had to refuse a launch for want of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

_MOST_TRIES: Final = 3


class Holding(NamedTuple):
    """The slots of an edge at one member. used: launches in flight. wants: it refused a launch lately."""

    held: int
    used: int
    wants: bool = False


class Claim(NamedTuple):
    """What an edge asks for one member. most: `max_launches` by its config. The rest as of its `Holding`."""

    most: int
    held: int
    used: int
    wants: bool = False


class Grant(NamedTuple):
    """The answer. slots: so many launches it may run. short: others hold slots that it should have."""

    slots: int
    short: bool


def grant(claim: Claim, others: Sequence[Holding], edges: int, may_grow: bool = True) -> Grant:
    """The slots of one edge, given those of all others that are alive.

    edges: how many there are with this one, at least 1. may_grow: False while it is not known yet what others
    hold, as after a store lost everything.
    """
    used = claim.used
    for other in others:
        used += other.used
    free = max(0, claim.most - used)
    even = free // edges
    target = claim.used + even
    # No more than there is left over, or somebody lacks an even part for ever.
    given = sum(max(0, other.held - other.used - even) for other in others)
    starving = any(other.wants and other.held <= other.used for other in others)
    if claim.wants or (not starving and given < free % edges):
        target += 1
    room = claim.most - sum(other.held for other in others)
    slots = max(0, min(target, room, claim.most if may_grow else claim.held))
    # Others are only disturbed if they have something to give.
    lacks = claim.wants or (even > 0 and 2 * (slots - claim.used) <= even)
    return Grant(slots, may_grow and slots < target and lacks)


def kept(claim: Claim, slots: int) -> int:
    """The slots that others have to leave to an edge that claims this and is answered with so many."""
    return max(slots, claim.used, claim.held)


def alone(held: int | None, most: int, edges: int) -> int:
    """The slots of an edge that cannot reach the store, and may have lost its own to others.

    held: what it has by the last answer, None if there was none. edges: how many there were. Each may keep
    its even part, and at least one slot. So if the whole store is away nobody exceeds `max_launches` unless
    there are more edges than slots; and an edge that alone is cut off exceeds it by its part at most.
    """
    part = max(1, most // max(1, edges))
    return part if held is None else min(held, part)


class _Own:
    """What this edge has at one member. slots: by the last answer; None before the first."""

    __slots__ = ("held", "most", "slots", "told", "tries", "used", "wants")

    def __init__(self, most: int, used: int) -> None:
        self.most = most
        self.used = used
        self.held = 0
        self.wants = False
        self.told = False  # others know that it is short, and nothing has changed since
        self.tries = 0  # times that this was said in vain
        self.slots: int | None = None


class Slots:
    """The slots of one edge at all members that have a `max_launches`.

    edges: how many there are, as far as is known. cut_off: others may have taken what it holds, as it could
    not reach the store for too long.
    """

    def __init__(self) -> None:
        self.edges = 1
        self.cut_off = True
        self._retired = False
        self._own: dict[str, _Own] = {}
        self._used: dict[str, int] = {}
        self._dirty: dict[str, None] = {}

    def apply(self, most: Mapping[str, int]) -> None:
        """Puts the `max_launches` of members in force, by name. Of others nothing is held any more."""
        for name, limit in most.items():
            own = self._own.get(name)
            if own is None:
                self._own[name] = _Own(limit, self._used.get(name, 0))
            else:
                own.most = limit
            self._dirty[name] = None
        for name in [name for name in self._own if name not in most]:
            del self._own[name]
            self._dirty.pop(name, None)

    def use(self, running: Mapping[str, int]) -> None:
        """So many launches are in flight through this edge, by member."""
        self._used = dict(running)
        for name, own in self._own.items():
            used = running.get(name, 0)
            if used != own.used:
                own.used = used
                self._dirty[name] = None

    def want(self, name: str) -> None:
        """A launch was refused for want of a slot."""
        own = self._own.get(name)
        if own is not None and own.used >= (own.most if own.slots is None else own.slots) < own.most:
            own.wants = True
            own.told = False
            self._dirty[name] = None

    def retire(self) -> None:
        """No launch begins here any more."""
        self._retired = True
        self.touch_all()

    def touch(self, names: Iterable[str]) -> None:
        """Another edge lacks slots at these members: what is held there is to be looked at again."""
        for name in names:
            if name in self._own:
                self._dirty[name] = None

    def touch_all(self) -> None:
        """Everything is to be asked anew."""
        self.touch(list(self._own))

    def touch_wanted(self) -> None:
        """What was lacking and has not come is asked for again."""
        for name, own in self._own.items():
            if own.wants or (own.told and own.tries < _MOST_TRIES):
                own.told = False
                own.tries += 1
                self._dirty[name] = None

    def touch_short(self) -> None:
        """What others were told of to give back is asked for again."""
        self.touch([name for name, own in self._own.items() if own.told])

    @property
    def dirty(self) -> bool:
        """Whether there is something to ask."""
        return bool(self._dirty)

    def claims(self) -> dict[str, Claim]:
        """What is to be asked now. It is not asked again before something changes."""
        dirty, self._dirty = self._dirty, {}
        return {
            name: Claim(own.used if self._retired else own.most, own.held, own.used, own.wants)
            for name, own in [(name, self._own[name]) for name in dirty]
        }

    def granted(self, claims: Mapping[str, Claim], grants: Mapping[str, Grant]) -> list[str]:
        """Takes the answers; returns the members of which others hold slots that this edge should have."""
        short = []
        for name, answer in grants.items():
            own = self._own.get(name)
            if own is None:
                continue
            claim = claims[name]
            own.slots = answer.slots
            own.held = max(answer.slots, claim.used)
            if own.held < claim.held:
                # From now on it keeps to that, and what it had beyond is free when the store knows.
                self._dirty[name] = None
            if claim.wants and answer.slots > claim.used:
                own.wants = False
            # Once: who hears of it asks too, and would be told of again by all who are short.
            if answer.short and not own.told:
                short.append(name)
            own.told = answer.short
            if not answer.short:
                own.tries = 0
        return short

    def limits(self) -> dict[str, int]:
        """How many launches this edge may run, by member."""
        limits = {}
        for name, own in self._own.items():
            if self.cut_off or own.slots is None:
                limits[name] = alone(own.slots, own.most, self.edges)
            else:
                limits[name] = min(own.slots, own.most)
        return limits
