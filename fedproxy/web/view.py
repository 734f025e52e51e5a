"""The members in the form that pages and programs are shown."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from fedproxy.decide.snapshot import Status, shares

if TYPE_CHECKING:
    from fedproxy.config.model import Config, MemberSettings, Organisation
    from fedproxy.control.ramps import RampSeen
    from fedproxy.decide.snapshot import Snapshot

Tone = Literal["good", "full", "paused", "bad"]


class CardState(NamedTuple):
    """A member's state for visitors: one word, its tone, and what it means for them, if that is said."""

    word: str
    tone: Tone
    meaning: str = ""


_STATES: Final[Mapping[Status, CardState]] = {
    Status.AVAILABLE: CardState("Available", "good", "Takes new visitors."),
    Status.SLOW_STARTING: CardState(
        "Slow-starting", "good", "Just came back; takes a few visitors at first."
    ),
    Status.FULL: CardState("Full", "full", "Has no room for more at the moment; sessions go on."),
    Status.UNHEALTHY: CardState("Unhealthy", "bad", "Its checks fail; visitors go to other members."),
    Status.EJECTED: CardState("Ejected", "bad", "Too much failed there; it is tried again soon."),
    Status.DRAINING: CardState("Draining", "paused", "Takes no new visitors; sessions go on."),
    Status.MAINTENANCE: CardState(
        "Maintenance", "paused", "Its team is working on it; nobody is sent there."
    ),
}
_NO_SHARE: Final = CardState("Available", "paused", "Takes no new visitors; those who are there stay.")

#: A host name with a dot, and with letters at its end: no address and no name of a local network.
_PUBLIC_HOST: Final = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z][a-z0-9-]*").fullmatch
#: Top-level names that mean nothing elsewhere (RFC 2606, RFC 6762, RFC 8375, ICANN's `internal`).
_NOT_PUBLIC: Final = ("arpa", "internal", "invalid", "local", "localhost", "test")


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


def has_auto(settings: MemberSettings | None) -> bool:
    """Whether the edge works a member's weight out."""
    return settings is not None and settings.weight == "auto"


def ramp_shown(seen: RampSeen | None) -> dict[str, Any] | None:
    """How far a member's ramp has come, for the admin API."""
    return None if seen is None else {**seen._asdict(), "progress": round(seen.progress, 3)}


def probed(member: Snapshot, settings: MemberSettings | None) -> dict[str, str]:
    """The full URLs of a member's health and versions."""
    base = "http://localhost" if member.url.startswith("unix:") else member.url
    health = settings.health if settings else "/health"
    versions = settings.versions if settings else "/versions"
    return {
        "health": base + health if health.startswith("/") else health,
        "versions": base + versions if versions.startswith("/") else versions,
    }


def dashboard(settings: MemberSettings | None) -> str | None:
    """Where a member's operators see how it is; None if nobody said it."""
    return settings.dashboard if settings is not None else None


def describe(member: Snapshot, share: float) -> dict[str, Any]:
    """A member for the admin API; `share` as in `shares`."""
    counts = member.counts
    return {
        "name": member.name,
        "url": member.url,
        "weight": _plain(member.weight),
        "share": round(share, 4),
        "price": round(member.price, 3),
        "prime": member.prime,
        "state": member.intent.value,
        "status": member.status.value,
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
        "last_resort": counts.last_resort,
        "errors": {str(reason): count for reason, count in counts.errors.items()},
        "retries": {str(reason): count for reason, count in counts.retries.items()},
        "outcomes": {str(outcome): count for outcome, count in counts.launches.items()},
        "failovers": dict(counts.failovers),
        "connections": {"idle": member.idle, "active": member.busy},
        "addresses": [each._asdict() for each in member.addresses],
        "bytes_in": counts.bytes_in,
        "bytes_out": counts.bytes_out,
    }


def _plain(number: float) -> float:
    """50 rather than 50.0, as it was written."""
    return int(number) if float(number).is_integer() else number


@dataclass(frozen=True)
class Contact:
    """How to reach the team of a member.

    shown: the address of mail, or the host if others can reach it; None if the URL says nothing to a visitor.
    """

    member: str
    url: str
    shown: str | None


@dataclass(frozen=True)
class Card:
    """A member as visitors see it. `open`: takes new visitors. `share`: in percent, None for a past member.

    pods: those running now, of its `quota`; None if unknown. logo: the URL of the logo of the organisation
    that funds it, or else of the one that runs it.
    """

    name: str
    url: str | None
    run_by: Organisation | None
    funded_by: Organisation | None
    contact: Contact | None
    state: CardState
    open: bool
    share: int | None
    pods: int | None = None
    quota: int | None = None
    logo: str | None = None

    @property
    def host(self) -> str | None:
        """The host of its URL, with a port only if that is said."""
        return None if self.url is None else urlsplit(self.url).netloc

    @property
    def initials(self) -> str:
        """Shown instead of a logo."""
        words = [word for word in re.split(r"[^0-9A-Za-z]+", self.name) if word] or ["?"]
        return "".join(word[0] for word in words[:2]).upper()


def past_cards(config: Config, logos: Mapping[str, str]) -> list[Card]:
    """The past members. logos: as for `live_cards`."""
    return [
        replace(
            _card(config, name, settings, CardState("Past member", "paused"), False, None),
            logo=_logo(settings, logos),
        )
        for name, settings in config.members.items()
        if not settings.active
    ]


def configured_cards(config: Config, logos: Mapping[str, str]) -> list[Card]:
    """The members according to the config, without their current state. logos: as for `live_cards`."""
    active = config.active_members
    weights = config.start_weights
    whole = sum(weights.values()) or 1.0
    return [
        replace(
            _card(
                config,
                name,
                settings,
                CardState("Takes new visitors", "good")
                if weights[name]
                else CardState("Takes no new visitors", "paused"),
                weights[name] > 0,
                round(100 * weights[name] / whole),
            ),
            logo=_logo(settings, logos),
        )
        for name, settings in active.items()
    ]


def live_cards(config: Config, members: Iterable[Snapshot], logos: Mapping[str, str]) -> list[Card]:
    """The members with their current state. logos: this edge's URL of each, by the URL in the config."""
    members = list(members)
    parts = shares(members)
    settings: Mapping[str, MemberSettings] = config.members
    return [
        replace(
            _card(
                config,
                member.name,
                settings.get(member.name),
                _state(member),
                member.takes_visitors,
                round(100 * parts[member.name]),
            ),
            pods=member.pods.get("total"),
            quota=member.quota,
            logo=_logo(settings.get(member.name), logos),
        )
        for member in members
    ]


def join_contact(config: Config) -> Contact | None:
    """The contact for those who want to join: the federation's, the prime member's, or else the first one."""
    if config.contact is not None:
        return _contact_at("the federation", config.contact)
    contacts = [_contact(name, settings) for name, settings in config.active_members.items()]
    known = [contact for contact in contacts if contact is not None]
    return next((contact for contact in known if contact.member == config.prime), known[0] if known else None)


def _contact(name: str, settings: MemberSettings) -> Contact | None:
    return _contact_at(name, settings.contact) if settings.contact is not None else None


def _contact_at(whose: str, url: str) -> Contact:
    address = url.removeprefix("mailto:")
    return Contact(whose, url, address if address != url else _public_host(url))


def _public_host(url: str) -> str | None:
    """The host of a URL, if it is one that visitors can make something of."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    public = _PUBLIC_HOST(host) is not None and host.rpartition(".")[2] not in _NOT_PUBLIC
    return host.removeprefix("www.") if public else None


def _is_public(url: str) -> bool:
    """Whether the host of a URL means the same to everybody."""
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_global
    except ValueError:
        return _public_host(url) is not None


def shown_url(config: Config, url: str) -> str | None:
    """A member's URL, if visitors can follow it; None for a unix socket, and for an address of a private
    network if the federation itself is at a public one.
    """
    if not url.startswith("http"):
        return None
    own = config.public_url
    return None if own is not None and _is_public(own) and not _is_public(url) else url


def _logo(settings: MemberSettings | None, logos: Mapping[str, str]) -> str | None:
    shown = (settings.funded_by, settings.run_by) if settings is not None else ()
    found = (logos.get(each.logo or "") for each in shown if each is not None)
    return next((logo for logo in found if logo is not None), None)


def _card(
    config: Config,
    name: str,
    settings: MemberSettings | None,
    state: CardState,
    is_open: bool,
    share: int | None,
) -> Card:
    if settings is None:
        return Card(name, None, None, None, None, state, is_open, share)
    url = shown_url(config, settings.url)
    contact = _contact(name, settings)
    return Card(name, url, settings.run_by, settings.funded_by, contact, state, is_open, share)


def _state(member: Snapshot) -> CardState:
    status = member.status
    return _NO_SHARE if status is Status.AVAILABLE and member.share <= 0 else _STATES[status]
