"""One of each message that control process and workers send."""

from __future__ import annotations

from fedproxy.config.load import parse
from fedproxy.control.messages import (
    Account,
    AccountPart,
    ApplyConfig,
    BreakerInDoubt,
    BreakerOpened,
    BuildBegun,
    ConfigRefused,
    Drain,
    Explain,
    Explained,
    Fact,
    FromWorker,
    GetAccount,
    Happened,
    LaunchesInFlight,
    LaunchesTaught,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    LaunchSlots,
    LaunchSlotWanted,
    Logo,
    MemberHealth,
    MemberServes,
    Ready,
    RenewCertificates,
    ReopenLog,
    SessionsKnown,
    Start,
    Stopping,
    Sync,
    SyncDone,
    TicketSecret,
    ToWorker,
)
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Survey
from fedproxy.errors import Fault
from fedproxy.event import Event, EventName

_UPDATE = ApplyConfig(parse("members: {a: {url: 'https://a'}}", {}), {"a": Intent.DRAIN}, 2)
_HEALTH = MemberHealth("a", False, ("x" * 300,))

FACTS: list[Fact] = [
    BreakerOpened("a", frozenset((b"c",))),
    BreakerInDoubt("a"),
    MemberServes("a", frozenset((b"c",))),
    LaunchMoved(b"k", "a"),
    LaunchRequested(b"c"),
    LaunchesInFlight({"a": 3}),
    LaunchSlotWanted("a"),
    BuildBegun(b"12345678", "a"),
    LaunchSeen(Seen(b"12345678", "a", False, 60.0, 5.0, End.READY)),
    SessionsKnown(((b"/user/x", 2, "https://a.test", "a", 1.0, 2.0, b"/v2/gh/a/b/HEAD"),)),
    Happened(Event(EventName.MEMBER_UNRESOLVED, "a.test does not resolve any more", who="x")),
]
TO_WORKER: list[ToWorker] = [
    Start(_UPDATE, (_HEALTH,), b"x" * 32, ((3, 4),), (False,)),
    _UPDATE,
    _HEALTH,
    Logo("https://a/logo", "key", "image/png", b"\x89PNG"),
    LaunchSlots({"a": 7}),
    RenewCertificates(),
    ReopenLog(),
    TicketSecret(b"y" * 32),
    GetAccount(1),
    Explain(2, "/x", "a.test", None, "*/*", "192.0.2.1"),
    LaunchesTaught(b"{}"),
    Drain(0.5),
    Sync(1),
    SyncDone(2),
    *FACTS,
]
FROM_WORKER: list[FromWorker] = [
    Ready(),
    AccountPart(0, []),
    Account(1, Survey([], EdgeCounts())),
    Explained(2, "{}"),
    ConfigRefused((Fault("access_log", "is a folder"),)),
    Stopping(),
    Sync(1),
    SyncDone(2),
    *FACTS,
]
