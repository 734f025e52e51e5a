"""What operators are shown of the fleet: by an edge that shares a store, and by one that is alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedproxy import __version__
from fedproxy.observe.fleet import EdgeSeen, FleetSeen, MemberAcross, MembersAcross, StoreSeen
from fedproxy.serve.fleet import add_up_members, answer_of

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.decide.snapshot import Survey
    from fedproxy.serve.fleet import FleetLink

_LONGEST: Final = 200  # characters of what another edge says
_MOST: Final = 1 << 53


def see_store(link: FleetLink) -> StoreSeen:
    """The store that this edge shares with others."""
    fleet = link.fleet
    return StoreSeen(
        place=fleet.store.place,
        shared=True,
        up=fleet.there,
        since=link.store_since,
        commands=dict(fleet.store.commands),
        dropped=fleet.dropped,
        pending=sorted(link.overrides.pending),
    )


def see_fleet(link: FleetLink) -> FleetSeen:
    """The fleet as the edge of that link knows it."""
    edges = [read_edge(said) for said in link.edges()]
    return FleetSeen(see_store(link), edges, link.fleet.count, link.fleet.slots.limits())


def see_alone(own: Config, digest: str, survey: Survey, started_at: float, store: StoreSeen) -> FleetSeen:
    """An edge that shares no store. own: the config without what operators set; digest: of that."""
    edge = EdgeSeen(
        name=own.name,
        here=True,
        version=__version__,
        config=digest,
        workers=survey.workers,
        connections=survey.edge.connections,
        requests=survey.edge.requests,
        in_flight=sum(member.in_flight for member in survey.members),
        launches=sum(member.launches for member in survey.members),
        started_at=round(started_at, 1),
        probes=True,
        id=f"{os.getpid()}",
    )
    return FleetSeen(store, [edge])


def read_edge(said: Mapping[str, Any]) -> EdgeSeen:
    """An edge as `FleetLink.edges` has it. What another one says may be anything."""
    return EdgeSeen(
        name=_text(said.get("name")) or "?",
        here=said.get("here") is True,
        version=_text(said.get("version")),
        config=_text(said.get("config")),
        workers=_count(said.get("workers")),
        connections=_count(said.get("connections")),
        requests=_count(said.get("requests")),
        in_flight=_count(said.get("in_flight")),
        launches=_count(said.get("launches")),
        started_at=_time(said.get("started_at")),
        probes=said.get("probes") is True,
        disagrees=[str(each)[:_LONGEST] for each in said.get("disagrees", ())],
        id=_text(said.get("id")) or "",
    )


def _text(said: object) -> str | None:
    return said[:_LONGEST] if isinstance(said, str) else None


def _count(said: object) -> int | None:
    return said if type(said) is int and 0 <= said < _MOST else None


def _time(said: object) -> float | None:
    # NaN fails every comparison.
    return float(said) if isinstance(said, int | float) and 0 <= said < _MOST else None


async def ask_members(link: FleetLink) -> MembersAcross:
    """The members as all edges see them. Raises StoreError."""
    answers = await link.ask_members()
    answered = {_text(answer.get("id")) for answer in answers}
    missing = sorted(other.name for other in link.fleet.others if other.id not in answered)
    return MembersAcross(_members(add_up_members(answers)), len(answers), missing)


def members_alone(name: str, survey: Survey) -> MembersAcross:
    """The members as the one edge of that name sees them."""
    return MembersAcross(_members(add_up_members([{"edge": name, **answer_of(survey)}])))


def _members(found: Mapping[str, Mapping[str, Any]]) -> list[MemberAcross]:
    return [MemberAcross(name=name, **said) for name, said in found.items()]


def is_usable(path: Path | None) -> bool:
    """Whether the file of what operators set could be written, or there is none to write. Blocks."""
    return path is None or os.access(path.parent, os.W_OK)
