"""The port to what the edges of a fleet share: who asks what of a store, whatever stands behind it.

No request waits for it. Every value has an owner and an expiry, so an edge that dies leaves nothing behind,
except operators' overrides, which stay until the next one. The store gives them their order, so no edge's
clock matters.

Whatever a store returns may have been written by another release, or by a stranger: bytes are only bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from fedproxy.decide.slots import Claim, Grant

#: Seconds for which an edge is taken to be alive after it was last heard of.
PRESENCE: Final = 5.0


class Topic(StrEnum):
    """What edges tell each other immediately. What is lost on the way is read later.

    HINT: facts of workers (`control.hints`). OVERRIDE: an operator's, of a member. SLOTS: somebody lacks
    slots for launches at the members named. REPORT: of a probe. QUESTION: how is everybody? LEASE: it is
    free. TICKETS: the secret of TLS session tickets has changed.
    """

    HINT = "hint"
    OVERRIDE = "override"
    SLOTS = "slots"
    REPORT = "report"
    QUESTION = "question"
    LEASE = "lease"
    TICKETS = "tickets"


class Beat(NamedTuple):
    """The answer to a sign of life.

    order: of the newest override. edges: how many are alive. prober: the one that probes the members
    for all; None if nobody does. knows_all: every edge can be assumed to have told what it holds.
    """

    order: int
    edges: int
    prober: str | None
    knows_all: bool


class Stored(NamedTuple):
    """An override as it is stored. order: the greater, the newer; each is given once."""

    order: int
    content: bytes


class OldHint(NamedTuple):
    """A hint that was told before. at: its place; age: in seconds, by the store's clock; edge: told it."""

    at: str
    age: float
    edge: str
    content: bytes


@dataclass(frozen=True)
class Conflict:
    """An override was not taken, as another was set meanwhile."""

    by: Stored


#: Takes what another edge tells: the topic, and the content. That of a hint begins with its place, which is
#: empty if it is not kept, and a zero byte; hints come in the order of their places.
OnTold = Callable[[Topic, bytes], None]


class Store(Protocol):
    """What the edges of one fleet share. Each method raises `StoreError`, within some seconds, if it fails.

    place: where it is, for people, without secrets.
    """

    place: str

    @property
    def commands(self) -> Mapping[str, int]:
        """How many were sent so far, by their outcome."""

    async def open(self, edge: str, told: OnTold, lost: Callable[[], None]) -> None:
        """Connects, for the edge of that name, which is this run's alone; closed before, or never opened.

        lost: called when what others tell does not arrive any more. Everything is to be read again then.
        """

    async def close(self) -> None:
        """Ends the connections. Raises nothing."""

    async def beat(self, record: bytes, known: int, wants_lease: bool) -> Beat:
        """A sign of life, with what others should know of this edge.

        known: how many edges this one has known of. wants_lease: it would probe the members for all; it keeps
        the lease until it no longer wants it, or has been silent for `PRESENCE` seconds.
        """

    async def leave(self) -> None:
        """The edge ends: all that it holds is free at once."""

    async def records(self) -> Mapping[str, bytes]:
        """What each edge that is alive told with its last beat."""

    async def overrides(self) -> Mapping[str, Stored]:
        """Overrides by member."""

    async def set_override(self, member: str, content: bytes, base: int | None, known: int) -> int | Conflict:
        """Stores an operator's override of a member; returns its order.

        base: the order of the override that it was set over; if that is no longer the newest, it is
        refused. None: it is taken in any case. known: the greatest order that this edge has seen.
        """

    async def restore(self, overrides: Mapping[str, Stored]) -> None:
        """Stores overrides that it may have lost. Newer ones that it has stay."""

    async def slots(self, claims: Mapping[str, Claim]) -> Mapping[str, Grant]:
        """Asks for slots for launches, by member; returns what was granted."""

    async def rate(self, launches: Mapping[bytes, int], each: float, per: float) -> Mapping[bytes, float]:
        """Counts launches of clients, by key; returns in how many seconds each has paid for all of its own.

        each, per: as of `decide.limit.LaunchRate`.
        """

    async def tell(self, topic: Topic, content: bytes) -> None:
        """Tells all other edges that are listening."""

    async def hint(self, content: bytes) -> None:
        """Tells others a hint, and keeps it for those who come later."""

    async def hints(self, after: str | None) -> Sequence[OldHint]:
        """The hints after that place, or all that are kept, the oldest first; some of them at a time."""

    async def put(self, key: str, content: bytes, seconds: float, *, new: bool = False) -> bool:
        """Keeps a value for so long. With `new`, only if there is none yet; False if there is."""

    async def get(self, key: str) -> bytes | None:
        """A value that is kept."""

    async def report(self, reports: Mapping[str, bytes], seconds: float) -> None:
        """Keeps what the probes found, by member, for so long after the last call."""

    async def reports(self) -> Mapping[str, bytes]:
        """What the probes found."""

    async def answer(self, question: str, content: bytes) -> None:
        """Stores this edge's answer to a question."""

    async def answers(self, question: str, after: int = 0) -> Sequence[bytes]:
        """The answers to a question so far, without the first `after` of them."""
