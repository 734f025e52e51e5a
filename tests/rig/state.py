"""A federation of three and what the two applications ask of the edge, with no edge behind it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from fedproxy.config.load import parse
from fedproxy.config.model import Config
from fedproxy.config.report import Difference, compare, masked
from fedproxy.config.units import Weight
from fedproxy.control import state as operators
from fedproxy.control.messages import Logo
from fedproxy.control.ramps import RampSeen
from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.federation import Federation
from fedproxy.decide.knowledge import Learned
from fedproxy.decide.member import Intent, Member
from fedproxy.decide.snapshot import AddressState, Snapshot, Survey, merge, snapshot
from fedproxy.errors import ConfigError, Fault
from fedproxy.observe.fleet import EdgeSeen, FleetSeen, MemberAcross, MembersAcross, StoreSeen
from fedproxy.observe.history import History
from fedproxy.observe.metrics import View
from fedproxy.proxy.explaining import Question
from fedproxy.serve.planes import Stuck
from tests.rig.build import federation

Client = TestClient[web.Request, web.Application]

CONFIG = """
public_url: https://mybinder.org
admin: {token: "s3cret"}
members:
  gesis:
    url: https://gesis.mybinder.org
    weight: 50
    prime: true
    run_by: {name: "GESIS & <friends>", url: https://www.gesis.org}
    funded_by: {name: GESIS, logo: https://www.gesis.org/logo.svg}
    contact: mailto:help@gesis.org
  ovh:
    url: https://ovh.mybinder.org
    weight: 150
    health: /deep/health
    versions: https://status.example.org/versions
  shed: {url: "unix:/run/shed.sock", weight: 0}
  gke:
    url: https://gke.mybinder.org
    active: false
    funded_by: {name: Google, url: https://cloud.google.com}
"""


class State:
    """Does what it is told, or raises `error`; `asked` is what it was asked for, in that order.

    signed: who changed which member. refused: the clients of requests that were refused.
    shared: the fleet, where there is one; across: its members, or why it cannot be asked.
    `look` shows the history how the members are, `waiting` is how many wait for that.
    """

    def __init__(self, text: str = CONFIG) -> None:
        self.config: Config = parse(text, {})
        self.federation = _members(self.config)
        self.counts = EdgeCounts()
        self.images: list[Logo] = []
        self.listening = True
        self.not_turning: list[Stuck] = []
        self.reloads = {"success": 0, "failure": 0}
        self.reloaded_at: float | None = None
        self.started_at = 1_800_000_000.0
        self.expiries = {"mybinder.org": 1_800_000_000.0}
        self.faults: list[Fault] = []
        self.questions: list[Question] = []
        self.owned: list[bool] = []
        self.answer: str | None = "{}"
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.signed: dict[str, str] = {}
        self.ramps: dict[str, RampSeen] = {}
        self.refused: list[str] = []
        self.shared: FleetSeen | None = None
        self.across: MembersAcross | Exception = MembersAcross([])
        self.history = History()
        self.now = 0.0
        self.waiting = 0
        self._next_look: asyncio.Future[None] | None = None

    def look(self, seconds: float = 1.0) -> None:
        self.now += seconds
        parts = [merge([member]) for member in self.members()]
        self.history.see(Survey(parts, self.counts), self.now, 1_800_000_000.0 + self.now)
        self.waiting = 0
        if self._next_look is not None:
            self._next_look.set_result(None)
            self._next_look = None

    def next_look(self) -> asyncio.Future[None]:
        self.waiting += 1
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_future()
        return self._next_look

    def members(self) -> list[Snapshot]:
        return [
            snapshot(member, 1000.0, idle=1, busy=2, addresses=(AddressState("192.0.2.1", 3, 2, True),))
            if member.name == "gesis"
            else snapshot(member, 1000.0)
            for member in self.federation.members
        ]

    def stuck(self) -> list[Stuck]:
        return self.not_turning

    async def glance(self) -> Survey:
        self.asked.append("glance")
        return Survey(self.members(), self.counts)

    async def survey(self) -> Survey:
        self.asked.append("survey")
        return Survey(self.members(), self.counts)

    def known(self) -> Survey:
        return Survey(self.members(), self.counts)

    def certificates(self) -> dict[str, float]:
        return self.expiries

    def view(self) -> View:
        return View(
            self.known(),
            self.reloads,
            self.reloaded_at,
            certificates=self.expiries,
            sessions=7,
            fleet=self.fleet(),
        )

    def fleet(self) -> FleetSeen:
        return self.shared or FleetSeen(
            StoreSeen("/var/state.json"), [EdgeSeen("alone", here=True, probes=True)]
        )

    def is_pending(self, name: str) -> bool:
        return name in self.fleet().store.pending

    async def fleet_members(self) -> MembersAcross:
        if isinstance(self.across, Exception):
            raise self.across
        return self.across

    def logos(self) -> dict[str, Logo]:
        return {logo.url: logo for logo in self.images}

    async def metrics(self, accept: str) -> tuple[str, bytes]:
        if self.error is not None:
            raise self.error
        return "text/plain; version=0.0.4", f"# for {accept}\n".encode()

    def cookie_member(self, value: str) -> str | None:
        return value if value in self.federation.by_name else None

    def cookie_for(self, name: str, secure: bool) -> str | None:
        if name not in self.federation.by_name:
            return None
        return f"{self.config.affinity.cookie}={name}; Path=/{'; Secure' if secure else ''}"

    def config_masked(self, *, own: bool = False) -> dict[str, Any]:
        self.owned.append(own)
        return masked(self.config)

    async def explain(self, question: Question) -> str | None:
        self.questions.append(question)
        if self.answer == "nobody":
            raise TimeoutError
        return self.answer

    async def preview_change(
        self, name: str, intent: Intent | None, weight: Weight | None
    ) -> list[Difference]:
        self._asked(f"preview {name}")
        return [Difference(f"members.{name}.weight", 50.0, weight)]

    async def preview_join(self, name: str, settings: object) -> list[Difference]:
        self._asked(f"preview {name}")
        after = operators.overlay(self.config, operators.join(self.config, operators.State(), name, settings))
        return compare(masked(self.config), masked(after))

    async def preview_leave(self, name: str) -> list[Difference]:
        self._asked(f"preview {name}")
        after = operators.overlay(self.config, operators.leave(self.config, operators.State(), name))
        return compare(masked(self.config), masked(after))

    async def preview_reload(self) -> list[Difference]:
        self._asked("preview reload")
        if self.faults:
            raise ConfigError(self.faults)
        return [Difference("workers", "auto", 3)]

    def ramp(self, name: str) -> RampSeen | None:
        return self.ramps.get(name)

    def learned(self, name: str) -> Learned:
        return Learned(12.5, None, 3) if name == "gesis" else Learned(None, None, 0)

    def origin(self, name: str) -> str:
        return "dns: _https._tcp.example.org" if name == "ovh" else "config"

    def set_by(self, name: str) -> str | None:
        return self.signed.get(name)

    def note_refusal(self, client: str) -> None:
        self.refused.append(client)

    async def change(self, name: str, intent: Intent | None, weight: Weight | None, who: str) -> None:
        self._asked(f"change {name}")
        self.signed[name] = who
        member = self.federation.by_name[name]
        if intent is not None:
            member.set_intent(intent)
        if weight is not None:
            state = operators.set_weight(self.config, operators.State(), name, weight)
            self.config = operators.overlay(self.config, state)
            member.weight = self.config.members[name].start_weight

    async def join(self, name: str, settings: object, who: str) -> None:
        self._asked(f"join {name}")
        self._set(operators.join(self.config, operators.State(), name, settings))

    async def leave(self, name: str, who: str) -> None:
        self._asked(f"leave {name}")
        self._set(operators.leave(self.config, operators.State(), name))

    async def reload(self, who: str) -> list[Fault]:
        self.asked.append("reload")
        return self.faults

    def _asked(self, what: str) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def _set(self, state: operators.State) -> None:
        self.config = operators.overlay(self.config, state)
        self.federation = _members(self.config)


def fleet_of_three(*, up: bool = True, pending: tuple[str, ...] = ()) -> FleetSeen:
    """This edge, one that agrees and one that does not; the store is there since 2027, or away."""
    store = StoreSeen(
        "redis://store.test:6379/0", True, up, 1_800_000_000.0, {"ok": 70, "failed": 3}, 2, pending
    )
    return FleetSeen(
        store,
        [
            EdgeSeen("here", True, "1.0", "abc", 2, 30, 4000, 5, 6, 1_799_990_000.0, probes=True),
            EdgeSeen("like", False, "1.0", "abc", 2, 31, 4001, 6, 7, 1_799_990_001.0),
            EdgeSeen("other", False, "0.9", "def", disagrees=["version 0.9", "another config"]),
        ],
        alive=3,
        slots={"gesis": 7},
    )


def members_of_three() -> MembersAcross:
    """As the first two of the three see them: of one member they say the same, of the other they do not."""
    both = ["here", "like"]
    return MembersAcross(
        [
            MemberAcross("gesis", 5, 2, 100, {"available": both}, {"50": both}),
            MemberAcross(
                "ovh", 3, 0, 7, {"ejected": ["here"], "available": ["like"]}, {"150": ["here"], "1": ["like"]}
            ),
        ],
        edges=2,
        missing=["other"],
    )


def _members(config: Config) -> Federation:
    return federation(
        *(
            Member(name, each.url, Breaker(BreakerPolicy()), weight=each.start_weight, prime=each.prime)
            for name, each in config.active_members.items()
        )
    )
