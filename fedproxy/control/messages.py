"""What the control process and its workers tell each other, over a control channel (`control/channel.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

from fedproxy.decide.sessions import Ground

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.decide.knowledge import Seen
    from fedproxy.decide.member import Intent
    from fedproxy.decide.sessions import SessionRecord
    from fedproxy.decide.snapshot import Snapshot, Survey
    from fedproxy.errors import Fault
    from fedproxy.event import Event

# From the control process


@dataclass(frozen=True)
class MemberHealth:
    """The probes' word on a member. pods, quota, checks: as far as it told them, for what visitors are shown.
    base_path: where its BinderHub is, as its own page says. weight: as it was worked out, for `weight: auto`.
    within: as in the prober's `Report`."""

    name: str
    healthy: bool
    reasons: tuple[str, ...] = ()
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None
    base_path: str | None = None
    weight: float | None = None
    checks: Mapping[str, bool] = field(default_factory=dict)
    within: float | None = None


@dataclass(frozen=True)
class ErrorPages:
    """The finished pages of the edge's own answers, as `fedproxy.wire.pages.Pages` takes them.

    Workers are handed them, so that one that starts later has the same, whatever the files say by then.
    """

    policy: str
    pages: Mapping[str, tuple[tuple[str, bytes], ...]] = field(repr=False)


@dataclass(frozen=True)
class ApplyConfig:
    """Put a config in force, and the operators' intent, by member. workers: how many share the work. pages:
    of the edge's own answers; without them people get a plain one."""

    config: Config
    intents: Mapping[str, Intent]
    workers: int
    pages: ErrorPages | None = None


@dataclass(frozen=True)
class Start:
    """The first message. sockets: for each listener of the config, the numbers of its descriptors.

    given: for each listener, whether its socket was given to the control process and outlives it.
    """

    apply: ApplyConfig
    health: tuple[MemberHealth, ...]
    tickets: bytes
    sockets: tuple[tuple[int, ...], ...]
    given: tuple[bool, ...] = ()


@dataclass(frozen=True)
class RenewCertificates:
    """The certificates have changed."""


@dataclass(frozen=True)
class ReopenLog:
    """The access log's file was moved away: another is to be opened in its place."""


@dataclass(frozen=True)
class TicketSecret:
    """The secret of TLS session tickets has changed."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Logo:
    """An image for the visitors' page, as it was found at `url`. key: names the content. kind: media type."""

    url: str
    key: str
    kind: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class LaunchSlots:
    """Of `max_launches`, so many launches may run through this edge, by member; the rest through others."""

    limits: Mapping[str, int]


@dataclass(frozen=True)
class GetAccount:
    """To be answered with `Account`, which then says that all that was sent before is in force."""

    number: int


@dataclass(frozen=True)
class Explain:
    """Why would a request go where it goes? To be answered with `Explained`. The rest: as of a `Question`."""

    number: int
    target: str
    host: str
    cookie: str | None
    accept: str
    client: str


@dataclass(frozen=True)
class LaunchesTaught:
    """What launches have taught so far, as `Knowledge.dump` returns it."""

    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Drain:
    """Stop accepting, give what is under way so many seconds, and end."""

    seconds: float


# From a worker


@dataclass(frozen=True)
class Ready:
    """Visitors are accepted."""


@dataclass(frozen=True)
class AccountPart:
    """Some members of an account, told one part after the other: with hundreds, visitors would have to wait.

    at: so many members of this account were told of before. `Account` ends it.
    """

    at: int
    members: Sequence[Snapshot]


@dataclass(frozen=True)
class Account:
    """What was counted so far; with the number of the question, if there was one.

    after: so many members were told of before, in `AccountPart`s.
    """

    number: int | None
    survey: Survey
    after: int = 0


@dataclass(frozen=True)
class Explained:
    """The answer to an `Explain` of that number, as JSON; None for a request that no visitor could make."""

    number: int
    text: str | None


@dataclass(frozen=True)
class ConfigRefused:
    """A config, or its access log, cannot be used; the one before stays in use."""

    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Stopping:
    """This worker is about to end, as a signal told it to; it accepts until its successor does."""


# What one worker learns and the others should know: passed on by the control process


@dataclass(frozen=True)
class BreakerOpened:
    """A member's breaker opened. witnesses: keys of the clients whose failures opened it."""

    name: str
    witnesses: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class BreakerInDoubt:
    """A breaker would open for what one client saw. Where the member serves others, the answer is
    `MemberServes`."""

    name: str


@dataclass(frozen=True)
class MemberServes:
    """A member serves clients well; `clients` are some of their keys."""

    name: str
    clients: frozenset[bytes]


@dataclass(frozen=True)
class LaunchMoved:
    """Launches of a key run on another member than the one that the key chooses."""

    key: bytes
    name: str


@dataclass(frozen=True)
class BuildBegun:
    """A member builds an image. image: its digest."""

    image: bytes
    name: str


@dataclass(frozen=True)
class LaunchSeen:
    """What a launch told that has ended."""

    seen: Seen


@dataclass(frozen=True)
class SessionsKnown:
    """Where sessions run."""

    records: tuple[SessionRecord, ...]

    @property
    def announced(self) -> bool:
        """Whether a launch that has just ended says so."""
        return any(ground == Ground.ANNOUNCED for _, ground, *_ in self.records)


@dataclass(frozen=True)
class Happened:
    """Something that operators should know, and that other workers may notice too."""

    event: Event


@dataclass(frozen=True)
class LaunchRequested:
    """A client, or its network, asked for a launch."""

    client: bytes


@dataclass(frozen=True)
class LaunchesInFlight:
    """How many launches are in flight, by member: the sender's own, or those of all others."""

    running: Mapping[str, int]


@dataclass(frozen=True)
class LaunchSlotWanted:
    """A launch did not go to a member, as other edges hold the slots for launches there."""

    name: str


@dataclass(frozen=True)
class Sync:
    """A question, to be answered with `SyncDone` once everything that came before is taken: of a worker,
    whether all others have; of the control process, whether this one has."""

    number: int


@dataclass(frozen=True)
class SyncDone:
    """The answer to a `Sync` of that number."""

    number: int


#: What a worker tells the others.
Fact = (
    BreakerOpened
    | BreakerInDoubt
    | MemberServes
    | LaunchMoved
    | LaunchRequested
    | LaunchesInFlight
    | LaunchSlotWanted
    | BuildBegun
    | LaunchSeen
    | SessionsKnown
    | Happened
)

#: What every worker is told, besides configs.
Notice = MemberHealth | LaunchSlots | Logo | RenewCertificates | ReopenLog | TicketSecret

#: Everything that the control process sends.
ToWorker = (
    Start | ApplyConfig | Notice | GetAccount | Explain | LaunchesTaught | Drain | Sync | SyncDone | Fact
)

#: Everything that a worker sends.
FromWorker = Ready | AccountPart | Account | Explained | ConfigRefused | Stopping | Sync | SyncDone | Fact


def is_to_worker(message: object) -> TypeGuard[ToWorker]:
    """Whether this is a message of the control process."""
    return isinstance(message, ToWorker)


def is_from_worker(message: object) -> TypeGuard[FromWorker]:
    """Whether this is a message of a worker."""
    return isinstance(message, FromWorker)
