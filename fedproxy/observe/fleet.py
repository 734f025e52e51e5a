"""The fleet as one of its edges knows it: the edges, the store that they share, and their members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StoreSeen:
    """Where what operators set is kept, and what edges share.

    place: a file, or the URL without secrets; None if nothing is kept. shared: other edges may use it too.
    up: it answers; or the file could be written the last time. since: when that began, in seconds since the
    epoch; None if nobody knows yet. commands: so many were sent to it, by result. dropped: what other edges
    should have known and were never told. pending: the members of which an override waits for it.
    """

    place: str | None = None
    shared: bool = False
    up: bool = True
    since: float | None = None
    commands: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    pending: Sequence[str] = ()


@dataclass(frozen=True)
class EdgeSeen:
    """An edge as it described itself last; None for what it did not say, as one of another release may.

    here: it is this one. config: a digest, equal for equal configs. started_at: in seconds since the epoch,
    by its own clock. probes: it probes the members itself; with `one_prober` that is one edge for all.
    disagrees: what it has not in common with this edge and should have, in words. id: of its run, as by
    mistake several may have one name.
    """

    name: str
    here: bool
    version: str | None = None
    config: str | None = None
    workers: int | None = None
    connections: int | None = None
    requests: int | None = None
    in_flight: int | None = None
    launches: int | None = None
    started_at: float | None = None
    probes: bool = False
    disagrees: Sequence[str] = ()
    id: str = ""


@dataclass(frozen=True)
class FleetSeen:
    """The edges, this one first, as far as this one knows; while the store is away, as it knew them last.

    alive: how many are counted by the store, which may know of one before it has described itself. slots: of
    `max_launches`, those that this edge holds, by member; empty without a shared store.
    """

    store: StoreSeen = field(default_factory=StoreSeen)
    edges: Sequence[EdgeSeen] = ()
    alive: int = 1
    slots: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MemberAcross:
    """A member as the edges see it: sums, and by status and by weight the names of the edges that say so."""

    name: str
    in_flight: int
    launches: int
    requests: int
    status: Mapping[str, Sequence[str]]
    weights: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class MembersAcross:
    """The members of a fleet. edges: how many answered. missing: the names of those that did not."""

    members: Sequence[MemberAcross]
    edges: int = 1
    missing: Sequence[str] = ()
