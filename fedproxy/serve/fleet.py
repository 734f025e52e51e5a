"""What this edge does with what it hears from the other edges of its fleet, and what it says of itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from fedproxy import __version__
from fedproxy.control import hints
from fedproxy.control.fleet import Fleet
from fedproxy.control.messages import (
    BreakerOpened,
    BuildBegun,
    Fact,
    LaunchMoved,
    LaunchSeen,
    LaunchSlots,
    LaunchSlotWanted,
    SessionsKnown,
)
from fedproxy.control.overrides import Overrides, OverridesFile
from fedproxy.decide.snapshot import shares
from fedproxy.event import EventName
from fedproxy.serve.probes import find_targets, probe_policy

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.control.prober import Prober, Report
    from fedproxy.decide.snapshot import Survey

#: What keeps a probe from an answer may lie on the way from the edge that probed; the rest the member said.
_ON_THE_WAY: Final = frozenset(("dns", "connect", "tls", "timeout", "reset"))
_PER_EDGE: Final = ("edge_name", "admin", "listen", "workers", "access_log_file", "log", "access_log")
_CHECK_AGAIN: Final = 5.0  # seconds between two checks of a member whose breaker opened elsewhere
_DIGEST: Final = 12  # characters
_LONGEST: Final = 100  # characters of what another edge says of itself
_MOST: Final = 1 << 53


class FleetHost(Protocol):
    """The edge."""

    @property
    def config(self) -> Config:
        """The config in force."""

    def known(self) -> Survey:
        """The members and counts as they were told last."""

    @property
    def reports(self) -> Mapping[str, Report]:
        """What the probes found last, by member."""

    def hear_hint(self, hint: hints.Hint) -> None:
        """Another edge knows something; all who serve are told."""

    def tell_slots(self, slots: LaunchSlots) -> None:
        """How many launches may run through this edge; all who serve are told."""

    def take_overrides(self) -> None:
        """Operators set something at another edge."""

    def take_report(self, report: Report) -> None:
        """What the probes found of a member, to be put in force."""

    def take_tickets(self, secret: bytes) -> None:
        """The secret of TLS session tickets."""

    def note(self, name: EventName, message: str, member: str | None = None, who: str | None = None) -> None:
        """Tells of an event."""


def config_digest(config: Config) -> str:
    """Equal for edges that have the same config, apart from what may differ between edges of a fleet."""
    said = config.model_dump(mode="json", exclude=set(_PER_EDGE))
    return _digest(said)


def _digest(said: object) -> str:
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]


class FleetLink:
    """As `FleetListener` says. own: the config without what operators set, which edges compare.

    do: begins a task that ends with the edge.
    """

    def __init__(
        self,
        host: FleetHost,
        own: Config,
        *,
        state: Path | None,
        tickets: bytes,
        do: Callable[[Coroutine[Any, Any, Any]], object],
        started_at: float,
    ) -> None:
        # Only who has a store needs the package.
        from fedproxy.control.redis_store import RedisStore

        address = own.shared_store
        if address is None:
            raise ValueError("there is no store that is shared")
        self._host = host
        self._do = do
        self._started_at = started_at
        self._file = OverridesFile(state)
        self.overrides = Overrides()
        self.fleet = Fleet(
            RedisStore(address, own.store_prefix),
            own.name,
            self,
            overrides=self.overrides,
            shares_probes=own.health.one_prober,
            tickets=tickets,
        )
        self._prober: Prober | None = None
        self._doubted: set[str] = set()
        self._unheard: set[str] = set()
        self._checked: dict[str, float] = {}
        self._saved = b""
        self._disagrees: dict[str, str] = {}
        self.digest = config_digest(own)
        self.store_since: float | None = None  # when the store came or went

    # The file

    def load(self) -> list[str]:
        """What was set before, as far as it was kept here; lines for an operator. Blocks."""
        lines = self._file.load(self.overrides)
        self._saved = self.overrides.pack()
        return lines

    def unsaved(self) -> Callable[[], None] | None:
        """A call that keeps what was set, and blocks; None if there is nothing new. It raises OSError."""
        content = self.overrides.pack()
        if content == self._saved:
            return None

        def save() -> None:
            self._file.save(content)
            self._saved = content

        return save

    # The config

    def apply(self, config: Config, own: Config) -> None:
        """Puts a config in force."""
        most = {
            name: each.max_launches
            for name, each in config.active_members.items()
            if each.max_launches is not None
        }
        rate = (config.rate.launches, config.rate.per) if config.rate.launches else None
        self.digest = config_digest(own)
        self.fleet.shares_probes = config.health.one_prober
        self.fleet.apply(most, rate)
        self.fleet.forget(config.active_members)
        self._doubted &= set(config.active_members)
        for name in config.active_members:
            # One that joined later than it was told of.
            report = self.fleet.known_report(name)
            if report is not None and name not in self._host.reports and not self.fleet.probes:
                self.on_report(report)

    def retire(self) -> None:
        """The edge drains."""
        self._prober = None
        self.fleet.retire()

    # Probes

    def probe(self, prober: Prober, reports: Mapping[str, Report]) -> None:
        """Probes what this edge has to probe: all, or what the one that probes for all cannot reach."""
        self._prober = prober
        config = self._host.config
        targets = find_targets(config)
        if self.fleet.probes:
            prober.apply(probe_policy(config), targets, reports)
        else:
            # One failure is enough: another edge has seen more.
            policy = replace(probe_policy(config), fall=1)
            prober.apply(policy, [target for target in targets if target.name in self._doubted])

    def on_own_report(self, report: Report) -> None:
        """What this edge's own probes found."""
        if self.fleet.probes:
            self.fleet.report(report)
            self._host.take_report(report)
        elif report.name in self._doubted:
            self._host.take_report(report)

    def on_report(self, report: Report) -> None:
        """As `FleetListener` says."""
        if report.name not in self._host.config.active_members:
            return
        doubt = not report.healthy and bool(_ON_THE_WAY.intersection(report.reasons))
        if doubt and self._prober is not None:
            # Perhaps only the other edge cannot reach it.
            if report.name not in self._doubted:
                self._doubted.add(report.name)
                self._probe_again()
            return
        if report.name in self._doubted:
            self._doubted.discard(report.name)
            self._probe_again()
        self._host.take_report(report)

    def _probe_again(self) -> None:
        if self._prober is not None:
            self.probe(self._prober, {})

    def on_role(self, probes: bool) -> None:
        """As `FleetListener` says."""
        self._doubted.clear()
        if self._prober is not None:
            self.probe(self._prober, self._host.reports if probes else {})

    # What is told

    def on_fact(self, fact: Fact) -> None:
        """One of those who serve here has learned something."""
        if isinstance(fact, LaunchSlotWanted):
            self.fleet.want(fact.name)
        elif isinstance(fact, hints.Hint) and not (isinstance(fact, SessionsKnown) and not fact.announced):
            # Of sessions that no launch announced there are too many: anybody can make up names.
            self.fleet.tell(fact)

    def on_hint(self, hint: hints.Hint) -> None:
        """As `FleetListener` says."""
        if isinstance(hint, BreakerOpened):
            self._check(hint)
        elif _member_of(hint) in (None, *self._host.config.active_members):
            self._host.hear_hint(hint)

    def _check(self, opened: BreakerOpened) -> None:
        """A breaker opened at another edge: perhaps only that one cannot reach the member."""
        name, now = opened.name, asyncio.get_running_loop().time()
        if now - self._checked.get(name, float("-inf")) < _CHECK_AGAIN or self._prober is None:
            return
        target = next((each for each in find_targets(self._host.config) if each.name == name), None)
        if target is not None:
            self._checked[name] = now
            self._do(self._open_if_it_fails(self._prober, opened, target))

    async def _open_if_it_fails(self, prober: Prober, opened: BreakerOpened, target: Any) -> None:
        if not await prober.check(probe_policy(self._host.config), target):
            self._host.hear_hint(opened)

    def on_slots(self, limits: Mapping[str, int]) -> None:
        """As `FleetListener` says."""
        self._host.tell_slots(LaunchSlots(dict(limits)))

    def on_overrides(self) -> None:
        """As `FleetListener` says."""
        self._host.take_overrides()

    def on_tickets(self, secret: bytes) -> None:
        """As `FleetListener` says."""
        self._host.take_tickets(secret)

    def on_store(self, there: bool, why: str) -> None:
        """As `FleetListener` says."""
        self.store_since = time.time()
        place = self.fleet.store.place
        if there:
            self._host.note(EventName.STORE_BACK, f"the store at {place} can be reached")
        else:
            text = f"the store at {place} is away: {why}; this edge goes on with what it knows"
            self._host.note(EventName.STORE_AWAY, text)

    def on_trouble(self, line: str) -> None:
        """As `FleetListener` says."""
        self._host.note(EventName.STORE_REFUSED, line)

    # How this edge is

    def describe(self) -> Mapping[str, Any]:
        """As `FleetListener` says."""
        survey = self._host.known()
        in_force = {
            name: [each.url, each.weight, each.active] for name, each in self._host.config.members.items()
        }
        return {
            "version": __version__,
            "config": self.digest,
            "members": _digest(in_force),
            "started_at": round(self._started_at, 1),
            "workers": survey.workers,
            "connections": survey.edge.connections,
            "requests": survey.edge.requests,
            "in_flight": sum(member.in_flight for member in survey.members),
            "launches": sum(member.launches for member in survey.members),
            "order": self.overrides.order,
            "probes": self.fleet.probes,
            "draining": self.fleet.retired,
            "pid": os.getpid(),
        }

    def answer(self) -> Mapping[str, Any]:
        """As `FleetListener` says."""
        return answer_of(self._host.known())

    def edges(self) -> list[dict[str, Any]]:
        """Every edge of the fleet, this one first, with what it disagrees about with this one."""
        own = {"name": self.fleet.name, **self.describe()}
        found = [{**own, "id": self.fleet.id, "here": True, "disagrees": []}]
        for other in self.fleet.others:
            said = {key: value for key, value in other.said.items() if key in own}
            said["name"] = other.name[:_LONGEST]
            found.append({**said, "id": other.id, "here": False, "disagrees": disagreements(own, said)})
        return found

    def look(self) -> None:
        """To be called every some seconds.

        What the edge that probes for all does not tell of, as its config does not have it, is probed here.
        """
        self.note_disagreements()
        unheard: set[str] = set()
        if not self.fleet.probes and self.fleet.there:
            members = self._host.config.active_members
            unheard = {name for name in members if self.fleet.known_report(name) is None} - self._doubted
        again, self._unheard = unheard & self._unheard, unheard
        if again:
            self._doubted |= again
            self._probe_again()

    def note_disagreements(self) -> None:
        """Tells once of each edge that has another config or version for more than a moment."""
        now: dict[str, str] = {}
        for edge in self.edges()[1:]:
            if edge["disagrees"]:
                now[edge["id"]] = text = f"edge {edge['name']} has {' and '.join(edge['disagrees'])}"
                # Twice the same: whoever rolls a config out is not told of each step.
                if self._disagrees.get(edge["id"]) == text:
                    self._host.note(EventName.EDGE_DISAGREES, text)
                    now[edge["id"]] = ""
                elif self._disagrees.get(edge["id"]) == "":
                    now[edge["id"]] = ""
        self._disagrees = now

    async def ask_members(self) -> Sequence[Mapping[str, Any]]:
        """How every edge sees the members, this one first. Raises StoreError."""
        own = {"edge": self.fleet.name, "id": self.fleet.id, **self.answer()}
        return [own, *await self.fleet.ask()]


def _member_of(hint: hints.Hint) -> str | None:
    """The member that a hint is about, if that is one."""
    match hint:
        case BreakerOpened(name) | BuildBegun(_, name) | LaunchMoved(_, name):
            return name
        case LaunchSeen(seen):
            return seen.member
        case _:
            return None


def answer_of(survey: Survey) -> Mapping[str, Any]:
    """How an edge sees its members, in JSON's types."""
    share = shares(survey.members)
    return {
        "members": {
            member.name: {
                "status": member.status.value,
                "state": member.intent.value,
                "weight": member.weight,
                "share": round(share[member.name], 4),
                "in_flight": member.in_flight,
                "launches": member.launches,
                "requests": sum(member.counts.codes.values()),
            }
            for member in survey.members
        }
    }


def disagreements(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two edges of one fleet should have in common and do not, in words."""
    found: list[str] = []
    if own.get("draining") or other.get("draining"):
        # One that is about to go.
        return found
    if (version := other.get("version")) != own["version"]:
        found.append(f"version {version[:_LONGEST] if isinstance(version, str) else None}")
    if other.get("config") != own["config"]:
        found.append("another config")
    elif other.get("members") != own["members"]:
        found.append("other members or weights")
    if other.get("name") == own["name"]:
        found.append("the same name")
    return found


def add_up_members(answers: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Members as all edges together see them: counts added up, and each status with the edges that say so."""
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        members = answer.get("members")
        for name, said in members.items() if isinstance(members, dict) else ():
            if not isinstance(said, dict):
                continue
            member = found.setdefault(
                str(name), {"in_flight": 0, "launches": 0, "requests": 0, "status": {}, "weights": {}}
            )
            for key in ("in_flight", "launches", "requests"):
                with suppress(TypeError, ValueError, OverflowError):
                    member[key] += max(0, min(int(said.get(key, 0)), _MOST))
            edge = str(answer.get("edge"))
            member["status"].setdefault(str(said.get("status")), []).append(edge)
            member["weights"].setdefault(str(said.get("weight")), []).append(edge)
    return found
