"""The members in words and numbers, as pages and programs are shown them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent

if TYPE_CHECKING:
    from fedproxy.config.model import Config, Organisation
    from fedproxy.config.model import Member as Settings
    from fedproxy.decide.snapshot import Snapshot


def shares(members: Iterable[Snapshot]) -> dict[str, float]:
    """For each member the part of the new visitors that it gets, from 0 to 1."""
    parts = {member.name: member.share if member.takes_visitors else 0.0 for member in members}
    whole = sum(parts.values()) or 1.0
    return {name: part / whole for name, part in parts.items()}


def active_hosts(config: Config, members: Iterable[Snapshot]) -> dict[str, Any]:
    """The members that new visitors can be sent to, in the form of federation-redirect."""
    return {
        member.name: {
            "url": member.url,
            "weight": _plain(member.weight),
            "prime": member.prime,
            **probed(member, config.members.get(member.name)),
        }
        for member in members
        if member.takes_visitors
    }


def probed(member: Snapshot, settings: Settings | None) -> dict[str, str]:
    """The whole URLs where a member's health and versions are asked."""
    base = "http://localhost" if member.url.startswith("unix:") else member.url
    health = settings.health if settings else "/health"
    versions = settings.versions if settings else "/versions"
    return {
        "health": base + health if health.startswith("/") else health,
        "versions": base + versions if versions.startswith("/") else versions,
    }


def describe(member: Snapshot, share: float) -> dict[str, Any]:
    """A member for the admin API; `share` as in `shares`."""
    counts = member.counts
    return {
        "name": member.name,
        "url": member.url,
        "weight": _plain(member.weight),
        "share": round(share, 4),
        "prime": member.prime,
        "state": member.intent.value,
        "healthy": member.healthy,
        "reasons": list(member.reasons),
        "details": list(member.details),
        "checks": dict(member.checks),
        "pods": dict(member.pods),
        "quota": member.quota,
        "breaker": member.breaker.value,
        "available": member.available,
        "in_flight": member.in_flight,
        "max_requests": member.max_requests,
        "launches": member.launches,
        "max_launches": member.max_launches,
        "requests": sum(counts.codes.values()),
        "errors": {str(reason): count for reason, count in counts.errors.items()},
        "retries": {str(reason): count for reason, count in counts.retries.items()},
        "outcomes": {str(outcome): count for outcome, count in counts.launches.items()},
        "failovers": dict(counts.failovers),
        "connections": {"idle": member.idle, "active": member.busy},
        "bytes_in": counts.bytes_in,
        "bytes_out": counts.bytes_out,
    }


def condition(member: Snapshot) -> str:
    """A member in a word: whether it serves, and if not, what keeps it from that."""
    if member.intent is not Intent.READY:
        return member.intent.value
    if not member.healthy:
        return "ill"
    if member.breaker is BreakerState.OPEN:
        return "out"
    if not member.available:
        return "full"
    return "trial" if member.breaker is BreakerState.HALF_OPEN else "ready"


def _plain(number: float) -> float:
    """50 rather than 50.0, as it was written."""
    return int(number) if float(number).is_integer() else number


@dataclass(frozen=True)
class Card:
    """A member as visitors see it. `open`: takes new visitors. `share`: in percent, None for a past one.

    pods: that it runs now, of its `quota`; None for what is not known. logo: where this edge serves the image
    of who funds it, or else of who runs it.
    """

    name: str
    url: str | None
    run_by: Organisation | None
    funded_by: Organisation | None
    contact: str | None
    status: str
    open: bool
    share: int | None
    pods: int | None = None
    quota: int | None = None
    logo: str | None = None

    @property
    def initials(self) -> str:
        """In place of a logo."""
        words = [word for word in re.split(r"[^0-9A-Za-z]+", self.name) if word] or ["?"]
        return "".join(word[0] for word in words[:2]).upper()


def past_cards(config: Config, logos: Mapping[str, str] | None = None) -> list[Card]:
    """The members that were. logos: as for `live_cards`."""
    return [
        replace(_card(name, settings, "Past member", False, None), logo=_logo(settings, logos or {}))
        for name, settings in config.members.items()
        if not settings.active
    ]


def configured_cards(config: Config) -> list[Card]:
    """The members as the config has them: nothing is known of how they are."""
    active = config.active_members
    whole = sum(settings.weight for settings in active.values()) or 1.0
    return [
        _card(
            name,
            settings,
            "Takes new visitors" if settings.weight else "Takes no new visitors",
            settings.weight > 0,
            round(100 * settings.weight / whole),
        )
        for name, settings in active.items()
    ]


def live_cards(config: Config, members: Iterable[Snapshot], logos: Mapping[str, str]) -> list[Card]:
    """The members as they are now. logos: where this edge serves them, by the URLs in the config."""
    members = list(members)
    parts = shares(members)
    settings: Mapping[str, Settings] = config.members
    return [
        replace(
            _card(
                member.name,
                settings.get(member.name),
                _status(member),
                member.takes_visitors,
                round(100 * parts[member.name]),
            ),
            pods=member.pods.get("total"),
            quota=member.quota,
            logo=_logo(settings.get(member.name), logos),
        )
        for member in members
    ]


def join_contact(config: Config) -> str | None:
    """Where those ask who want to join: the prime member's contact, or else the first that there is."""
    active = config.active_members
    prime = active[config.prime].contact if config.prime in active else None
    return prime or next((settings.contact for settings in active.values() if settings.contact), None)


def _logo(settings: Settings | None, logos: Mapping[str, str]) -> str | None:
    shown = (settings.funded_by, settings.run_by) if settings is not None else ()
    found = (logos.get(each.logo or "") for each in shown if each is not None)
    return next((logo for logo in found if logo is not None), None)


def _card(name: str, settings: Settings | None, status: str, is_open: bool, share: int | None) -> Card:
    if settings is None:
        return Card(name, None, None, None, None, status, is_open, share)
    # A unix socket is nothing that a visitor could follow.
    url = settings.url if settings.url.startswith("http") else None
    return Card(name, url, settings.run_by, settings.funded_by, settings.contact, status, is_open, share)


def _status(member: Snapshot) -> str:
    if member.intent is Intent.MAINT:
        return "In maintenance"
    if not member.healthy:
        return "Not well at the moment"
    if not member.admits:
        return "Recovering"
    if member.intent is Intent.DRAIN or member.share <= 0:
        return "Takes no new visitors"
    return "Takes new visitors" if member.available else "Full at the moment"
