"""What a scenario may say: every key with its default and meaning, and what a scenario cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from fedproxy.config import units
from fedproxy.config.address import MEMBER_NAME
from fedproxy.config.check import config_error, model_from, one_of, show
from fedproxy.config.document import Document, read
from fedproxy.config.load import read_text
from fedproxy.config.model import Section
from fedproxy.config.places import Finding
from fedproxy.config.units import Kind, count, duration, number, within
from fedproxy.decide.breaker import BreakerPolicy
from fedproxy.decide.federation import FederationPolicy

SHIPPED: Final = Path(__file__).parent.parent
DEFAULT: Final = "federation.yaml"
MOST_MEMBERS: Final = 100
MOST_EDGES: Final = 100
MOST_LAUNCHES: Final = 1_000_000_000
_HOURS: Final = 24
_DAYS: Final = 7

_POSITIVE = Kind("number", "a number from 0.001 to a billion", within(number, 0.001, 1e9))
_AMOUNT = Kind("number", "a number from 0 to a billion", within(number, 0, 1e9))
_SECONDS = Kind(
    "duration", "a duration of at least 1ms, such as 90s or 15m", within(duration, 0.001, 3650 * 86400.0)
)
_LASTING = Kind(
    "duration", "a duration of at least 1s, such as 90s or 15m", within(duration, 1, 3650 * 86400.0)
)
_FEW = Kind("whole number", "a whole number from 1 to 1000", within(count, 1, 1000))
_MANY = Kind("whole number", "a whole number from 1 to a million", within(count, 1, 1_000_000))
_EXPONENT = Kind("number", "a number from 0 to 5", within(number, 0, 5))
_EDGES = Kind("whole number", f"a whole number from 1 to {MOST_EDGES}", within(count, 1, MOST_EDGES))
_LAUNCHES = Kind("whole number", "a whole number from 1 to a billion", within(count, 1, MOST_LAUNCHES))

Number = Annotated[float, _AMOUNT]
Positive = Annotated[float, _POSITIVE]
Part = Annotated[float, units.SHARE]
Flag = Annotated[bool, units.FLAG]
Period = Annotated[float, _SECONDS]
Lasting = Annotated[float, _LASTING]
PeriodOrNone = Annotated[float, units.SECONDS_OR_NONE]
Few = Annotated[int, _FEW]
Many = Annotated[int, _MANY]
ManyOrNone = Annotated[
    int, Kind("whole number", "a whole number from 0 to a million", within(count, 0, 1_000_000))
]

_FEDERATION: Final = FederationPolicy(balancer="random")
_BREAKER: Final = BreakerPolicy()


class Spread(Section):
    """A time that varies, lognormally."""

    median: Period = Field(description="Half of them are shorter.")
    p95: Period = Field(description="95 of 100 are shorter.")

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.p95 < self.median:
            shown = units.format_duration(self.p95), units.format_duration(self.median)
            yield "p95", f"is {shown[0]}, expected at least `median`, which is {shown[1]}"


def _spread(median: float, p95: float) -> Spread:
    return Spread(median=median, p95=p95)


class CrowdSettings(Section):
    """Many people who launch one repository at once, as in a tutorial."""

    at: PeriodOrNone = Field(description="When it begins.")
    lasts: Lasting = Field(default=60.0, description="How long they keep coming.")
    launches: Many = Field(description="How many come, each once.")
    every: Lasting | None = Field(default=None, description="It comes again after so long, and so on.")
    rank: Many | None = Field(
        default=None,
        description="The repository: 1 is the most popular one. Without it, one that nobody launched before.",
    )

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _recurs(self.lasts, self.every)


def _recurs(lasts: float, every: float | None) -> Iterator[tuple[str, str]]:
    if every is not None and every <= lasts:
        shown = units.format_duration(every), units.format_duration(lasts)
        yield "every", f"is {shown[0]}, expected more than `lasts`, which is {shown[1]}"


class VisitorSettings(Section):
    """Who launches, and when."""

    launches_per_hour: Positive = Field(default=625.0, description="On average over a week, without crowds.")
    hours: tuple[Number, ...] = Field(
        default=(1.0,) * _HOURS,
        description="24 numbers, one for each hour of the day: how busy it is, relative to the others.",
    )
    days: tuple[Number, ...] = Field(
        default=(1.0,) * _DAYS,
        description="The same for the days of the week, from Monday. Time 0 is a Monday.",
    )
    most_launches: Few = Field(default=4, description="The most launches of one visitor.")
    again: Part = Field(
        default=0.35, description="After each launch, the chance that the visitor makes another."
    )
    gap: Spread = Field(
        default=_spread(600.0, 3 * 3600.0), description="Between two launches of one visitor."
    )
    same_repository: Part = Field(
        default=0.8, description="Share of the further launches that are of the same repository."
    )
    cookie: Part = Field(
        default=0.9, description="Share of the visitors whose browser keeps the cookie that names the member."
    )
    embeds: Part = Field(
        default=0.1,
        description="Share of the visitors, without bots, who launch from another site's page; those have no "
        "cookie.",
    )
    session: Spread = Field(default=_spread(900.0, 4500.0), description="How long a visitor has a pod.")
    bots: Part = Field(
        default=0.12,
        description="Share of the visitors who are bots: they launch once, keep no cookie, and take any "
        "repository as likely as any other.",
    )
    bot_session: Spread = Field(
        default=_spread(600.0, 660.0), description="How long a bot has a pod: until it is culled."
    )
    crowds: tuple[CrowdSettings, ...] = Field(default=(), description="Flash crowds.")

    def _faults(self) -> Iterator[tuple[str, str]]:
        for key, values, wanted in (("hours", self.hours, _HOURS), ("days", self.days, _DAYS)):
            if len(values) != wanted:
                yield key, f"has {len(values)} numbers, expected {wanted}"
            elif not any(values):
                yield key, "has only zeros, so nobody would ever come"


class RepositorySettings(Section):
    """What they launch."""

    count: Many = Field(default=8000, description="How many there are at a time.")
    exponent: Annotated[float, _EXPONENT] = Field(
        default=1.0,
        description="How unequal they are (Zipf): the repository of rank r is launched 1/r^exponent times as "
        "often as the first.",
    )
    new_per_day: Number = Field(
        default=100.0, description="New repositories, each of which takes the rank of another one."
    )
    commit_every: PeriodOrNone = Field(
        default=30 * 86400.0,
        description="Between two commits of a repository on average; each needs a new image. 0 for never.",
    )
    build: Spread = Field(
        default=_spread(240.0, 900.0),
        description="How long a build takes. A repository always takes the same.",
    )
    failing: Part = Field(default=0.04, description="Share of the repositories of which every build fails.")


class NodeSettings(Section):
    """The machines of a member that pods run on; each keeps images of its own."""

    count: Few = Field(default=4, description="How many there are. The slots are shared evenly.")
    images: Many = Field(
        default=60, description="Images that one keeps; the one that was not launched for the longest goes."
    )


class HubSettings(Section):
    """One BinderHub."""

    weight: Number = Field(default=1.0, description="Its share of new visitors, relative to the others.")
    slots: ManyOrNone = Field(description="Its quota of pods.")
    own_pods: ManyOrNone = Field(
        default=0,
        description="Pods of its own community in the busiest hour; in others fewer, as of the visitors.",
    )
    launch: Spread = Field(
        default=_spread(8.0, 25.0), description="How long a launch takes if its node has the image."
    )
    pull: Spread = Field(
        default=_spread(30.0, 120.0),
        description="How much longer if the node has to fetch it from the registry.",
    )
    nodes: NodeSettings = Field(default_factory=NodeSettings, description="Its machines.")
    registry: Many | None = Field(
        default=None,
        description="Images that its registry keeps; the one that was not launched for the longest goes. "
        "Without it, all.",
    )
    build_slots: Few = Field(default=8, description="Builds at a time; others wait for their turn.")
    build_speed: Positive = Field(default=1.0, description="2 builds in half of the time.")
    prime: Flag = Field(default=False, description="The last resort when no member is available.")
    max_launches: Many | None = Field(
        default=None, description="Launches under way at a time through one edge; without it, any number."
    )


class EdgeSettings(Section):
    """The edges in front of the members; the keys have the meaning and the defaults of fedproxy's config."""

    count: Annotated[int, _EDGES] = Field(
        default=1,
        description="How many edges; each decides by what it knows itself. A launch comes to any of them.",
    )
    shared: Flag = Field(
        default=False,
        description="They share a store: what a launch teaches one edge, all know at once.",
    )
    attempts: Few = Field(
        default=3, description="Members that a launch is sent to at most (`retry.attempts`)."
    )
    load_bound: Annotated[float, units.FACTOR] = Field(
        default=_FEDERATION.load_bound, description="Of the policy `rendezvous-bounded`."
    )
    slow_start: PeriodOrNone = Field(
        default=_FEDERATION.slow_start, description="How long the share of a member that comes back grows."
    )
    interval: Lasting = Field(default=15.0, description="Between two probes of a healthy member.")
    unhealthy_interval: Lasting = Field(
        default=90.0, description="Between two probes of an unhealthy member."
    )
    rise: Few = Field(default=1, description="Successful probes in a row that make a member healthy.")
    fall: Few = Field(default=3, description="Failed probes in a row that make it unhealthy.")
    headroom: ManyOrNone = Field(
        default=10, description="A member is full when its pods plus this number reach its slots."
    )
    answer: Period = Field(default=1.0, description="Until a member says that it cannot serve a launch.")
    breaker_failures: Few = Field(
        default=_BREAKER.failures, description="Failures in a row that open a member's breaker."
    )
    breaker_open: Period = Field(
        default=_BREAKER.open,
        description="How long it stays open the first time; then twice as long each time.",
    )
    witnesses: Few = Field(
        default=_BREAKER.witnesses,
        description="How many visitors must have seen failures before it opens, while others have success.",
    )


#: What goes wrong, and the keys that only say how.
FAILURES: Final[Mapping[str, tuple[str, ...]]] = {
    "crash": (),
    "full": (),
    "quota": ("slots",),
    "slow": ("factor",),
    "failing": ("rate", "early", "after"),
    "flapping": ("period",),
}


class FailureSettings(Section):
    """Something goes wrong with a member for a while."""

    member: Annotated[str, MEMBER_NAME] = Field(description="Whose name it is.")
    kind: Literal["crash", "full", "quota", "slow", "failing", "flapping"] = Field(
        description="`crash`: connections are refused, and what is under way there is lost; pods stay. "
        "`full`: no room, and it says so. `quota`: it has less room than it says. `slow`: launches, pulls "
        "and builds take longer. `failing`: launches fail. `flapping`: it crashes again and again."
    )
    at: PeriodOrNone = Field(description="When it begins.")
    lasts: Lasting = Field(description="How long it lasts.")
    every: Lasting | None = Field(default=None, description="It happens again after so long, and so on.")
    factor: Positive | None = Field(default=None, description="`slow`: times as long; 5 by default.")
    rate: Part | None = Field(
        default=None, description="`failing`: share of the launches that fail; all by default."
    )
    early: Flag | None = Field(
        default=None,
        description="`failing`: before the visitor has seen an event, so that the launch may move.",
    )
    after: Period | None = Field(
        default=None,
        description="`failing`: how long a launch takes until it has failed, if not early; 1m by default.",
    )
    slots: ManyOrNone | None = Field(
        default=None, description="`quota`: the pods that it has room for; 0 by default."
    )
    period: Lasting | None = Field(
        default=None,
        description="`flapping`: from one crash to the next; it is away for half of that. 2m by default.",
    )

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _recurs(self.lasts, self.every)
        for kind, keys in FAILURES.items():
            for key in keys:
                if kind != self.kind and getattr(self, key) is not None:
                    yield key, f"is for failures of the kind {kind}, and this one is {self.kind}"


class OracleSettings(Section):
    """The policy that knows everything."""

    price: Number = Field(
        default=1.0,
        description="Seconds that a member counts as slower for each launch that it is ahead of its share, "
        "so that the oracle keeps to the weights. With 0 it does not.",
    )


class Scenario(Section):
    """The whole file."""

    name: Annotated[str, units.TEXT] | None = Field(
        default=None, description="What it is called; the file's name by default."
    )
    launches: Annotated[int, _LAUNCHES] = Field(default=30_000, description="How many launches are measured.")
    warm_up: PeriodOrNone = Field(
        default=0.0,
        description="Time before the first launch that is measured, in which images are built and pods "
        "started. Any other time is counted from its end.",
    )
    images: Literal["separate", "replicated"] = Field(
        default="separate",
        description="Whether a member's image comes to the other members' registries, too.",
    )
    images_delay: PeriodOrNone = Field(default=90.0, description="How long after its build, if `replicated`.")
    visitors: VisitorSettings = Field(default_factory=VisitorSettings, description="Who launches, and when.")
    repositories: RepositorySettings = Field(
        default_factory=RepositorySettings, description="What they launch."
    )
    members: Mapping[Annotated[str, MEMBER_NAME], HubSettings] = Field(description="The BinderHubs, by name.")
    edge: EdgeSettings = Field(default_factory=EdgeSettings, description="The edges in front of them.")
    failures: tuple[FailureSettings, ...] = Field(default=(), description="What goes wrong, and when.")
    oracle: OracleSettings = Field(
        default_factory=OracleSettings, description="The policy that knows everything."
    )


def find(name: str) -> Path:
    """The file of that name: as it is given, or else one of the shipped scenarios."""
    path = Path(name)
    shipped = SHIPPED / name
    return shipped if not path.exists() and path.name == name and shipped.exists() else path


def load(path: Path) -> Scenario:
    """The scenario in a file. Raises ConfigError with every fault."""
    scenario = parse(read_text(path))
    return scenario if scenario.name is not None else scenario.model_copy(update={"name": path.stem})


def parse(text: str) -> Scenario:
    """The scenario in `text`. Raises ConfigError with every fault."""
    document = read(text)
    if document.data is None and not document.findings:
        document.findings.append(Finding((), "is empty, expected at least `members`"))
    if document.data is None:
        raise config_error(document, [])
    scenario, findings = model_from(Scenario, document.data)
    findings += _between(document)
    if scenario is None or findings or document.findings:
        raise config_error(document, findings)
    return scenario


def _between(document: Document) -> Iterator[Finding]:
    """What no section can see by itself, among the parts that are valid."""
    source = document.data if isinstance(document.data, dict) else {}
    written = source.get("members")
    if not isinstance(written, dict):
        return
    if not written:
        yield Finding(("members",), "is empty, expected at least one member")
        return
    if len(written) > MOST_MEMBERS:
        yield Finding(("members",), f"has {len(written)} members, expected at most {MOST_MEMBERS}")
    members = {
        name: hub for name, each in written.items() if (hub := model_from(HubSettings, each)[0]) is not None
    }
    # What is not valid may be what would make it possible.
    if len(members) == len(written):
        yield from _impossible(members, source.get("edge"))
    primes = [name for name, hub in members.items() if hub.prime]
    for name in primes[1:]:
        yield Finding(("members", name, "prime"), f"is true, but {primes[0]} is prime already")
    failures = source.get("failures")
    for index, failure in enumerate(failures if isinstance(failures, list) else ()):
        of = failure.get("member") if isinstance(failure, dict) else None
        if isinstance(of, str) and MEMBER_NAME.parse(of) is not None and of not in written:
            text = f"is {show(of)}, expected {one_of(list(written))}"
            yield Finding(("failures", index, "member"), text)


def _impossible(members: Mapping[str, HubSettings], edge: object) -> Iterator[Finding]:
    if not any(hub.weight for hub in members.values()):
        yield Finding(("members",), "has no member with a weight above 0, so no launch would go anywhere")
        return
    takers = [hub for hub in members.values() if hub.weight]
    settings = model_from(EdgeSettings, {} if edge is None else edge)[0]
    if not any(hub.slots for hub in takers):
        yield Finding(("members",), "has no capacity: no member with a weight has slots")
    elif settings is not None and all(hub.slots <= settings.headroom for hub in takers):
        most = max(hub.slots for hub in takers)
        yield Finding(
            ("members",),
            f"has no capacity: no member with a weight has more than {most} slots, and with an "
            f"`edge.headroom` of {settings.headroom} each would always be full",
        )
