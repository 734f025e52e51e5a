"""What happens to an edge, as operators are told of it: in its log, and on the operators' page.

The names are all that there are, and are listed in `docs/reference/logs.md`; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How urgent an event is. WARNING: somebody should look. ERROR: something does not work."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_I, _W, _E = Level


class EventName(StrEnum):
    """The kinds of events, each with its level, and its meaning for the documentation."""

    level: Level
    meaning: str

    def __new__(cls, name: str, level: Level, meaning: str) -> EventName:
        """A kind with that name."""
        made = str.__new__(cls, name)
        made._value_ = name
        made.level = level
        made.meaning = meaning
        return made

    EDGE_START = "edge.start", _I, "the edge starts: its version and its config"
    EDGE_LISTENING = "edge.listening", _I, "an address on which visitors, or operators, are accepted"
    EDGE_LIMITED = "edge.limited", _W, "the limit of open files allows fewer visitors than the config"
    EDGE_TAKEOVER = "edge.takeover", _I, "the workers of a control process that is gone were replaced"
    EDGE_DRAIN = "edge.drain", _I, "the edge was told to stop, and drains"
    EDGE_FAILED = "edge.failed", _E, "the edge cannot start, and why"

    CONFIG_RELOAD = "config.reload", _I, "the config was reloaded and is in force"
    CONFIG_REFUSED = "config.refused", _E, "a fault of the config, which is not put in force"
    CONFIG_WARNING = "config.warning", _W, "something in the config is valid but unwise"

    SOURCE_UNUSABLE = "source.unusable", _W, "something in a source of members cannot be used, and why"
    SOURCE_USABLE = "source.usable", _I, "what could not be used in a source can be used again"
    SOURCE_REFUSED = "source.refused", _E, "the members that sources have cannot be put in force, and why"

    STATE_DROPPED = "state.dropped", _W, "something that operators had set no longer applies"
    STATE_UNUSABLE = "state.unusable", _W, "the file of what operators set cannot be read or written"
    KNOWLEDGE_UNUSABLE = (
        "knowledge.unusable",
        _W,
        "the file of what launches taught is unusable",
    )
    SESSIONS_UNUSABLE = "sessions.unusable", _W, "the file of known sessions cannot be read or written"

    STORE_AWAY = "store.away", _W, "the store of the fleet cannot be reached; the edge goes on by itself"
    STORE_BACK = "store.back", _I, "the store of the fleet can be reached"
    STORE_REFUSED = (
        "store.refused",
        _W,
        "the store refuses something, or what others wrote cannot be used; once a minute",
    )
    EDGE_DISAGREES = (
        "edge.disagrees",
        _W,
        "another edge of the fleet has another config or version, or the same name",
    )

    OPERATOR_READY = "operator.ready", _I, "a member was set to ready"
    OPERATOR_DRAIN = "operator.drain", _I, "a member was set to drain"
    OPERATOR_MAINT = "operator.maint", _I, "a member was set to maintenance"
    OPERATOR_WEIGHT = "operator.weight", _I, "a member's weight was set"
    OPERATOR_JOIN = "operator.join", _I, "a member was added, or its settings were replaced"
    OPERATOR_LEAVE = "operator.leave", _I, "a member was removed"
    RAMP_ROSE = "ramp.rose", _I, "a new member gets more visitors, as its launches succeed"
    RAMP_HELD = "ramp.held", _W, "a new member gets no more visitors yet, and why"
    RAMP_FELL = "ramp.fell", _W, "a new member gets half as many visitors, and why"
    OPERATOR_REFUSED = (
        "operator.refused",
        _W,
        "admin requests had a wrong token or too few rights; at most once a minute",
    )

    MEMBER_JOINED = "member.joined", _I, "a reloaded config or a source adds a member"
    MEMBER_LEFT = "member.left", _I, "a reloaded config or a source no longer has a member"
    MEMBER_WEIGHT = "member.weight", _I, "a reloaded config or a source changes a member's weight"
    MEMBER_FULL = "member.full", _I, "a member is full: it has reached its quota"
    MEMBER_ROOM = "member.room", _I, "a member that was full has room again"
    MEMBER_HEALTHY = "member.healthy", _I, "the probes find a member healthy again"
    MEMBER_UNHEALTHY = "member.unhealthy", _W, "the probes find a member unhealthy, and why"
    MEMBER_UNRESOLVED = "member.unresolved", _W, "a member's name does not resolve any more"
    MEMBER_TOKEN = "member.token", _W, "a member does not accept the build tokens of another"
    MEMBER_LOGO = "member.logo", _I, "a logo cannot be fetched"

    ADDRESS_ASIDE = (
        "address.aside",
        _W,
        "one of a member's addresses takes no connections, so it is tried last",
    )
    ADDRESS_USABLE = "address.usable", _I, "a member's address that was aside works again"

    BREAKER_OPEN = "breaker.open", _W, "a member was ejected: its breaker opened"
    BREAKER_HALF_OPEN = "breaker.half-open", _I, "a member gets trial requests"
    BREAKER_TRIAL = "breaker.trial", _W, "a member failed trials, and remains ejected; at most once a minute"
    BREAKER_CLOSED = "breaker.closed", _I, "a member is no longer ejected"

    FEDERATION_UNAVAILABLE = "federation.unavailable", _E, "no member is available"
    FEDERATION_AVAILABLE = "federation.available", _I, "a member is available again"

    LAUNCH_MOVED = "launch.moved", _I, "launches moved from one member to another; at most once a minute"
    RETRY_EXHAUSTED = "retry.exhausted", _W, "the retry budget was used up; at most once a minute"
    VISITOR_REFUSED = "visitor.refused", _I, "the edge refused visitors, by reason; at most once a minute"
    PROXY_HEADER = "proxy.header", _W, "a connection has no PROXY header, or may not send one; once"
    PROXY_ADDRESS = "proxy.address", _W, "a trusted proxy names a visitor by something other than an address"

    WORKER_START = "worker.start", _I, "a worker serves"
    WORKER_END = "worker.end", _W, "a worker ended unexpectedly"
    WORKER_KILLED = "worker.killed", _E, "a worker does not respond, and is killed"
    WORKER_RETRY = "worker.retry", _W, "a worker that ended will be started again, and when"
    WORKER_FAILED = "worker.failed", _E, "a worker cannot start, and why"
    WORKER_REPLACED = "worker.replaced", _W, "a worker and the control process do not understand each other"
    WORKER_REFUSED = "worker.refused", _E, "a worker cannot use a config that the others use"
    FORKER_END = "forker.end", _W, "the process that workers are forked from ended unexpectedly"

    CERTIFICATE_RENEWED = "certificate.renewed", _I, "a certificate's files changed, and are in use"
    CERTIFICATE_REFUSED = "certificate.refused", _E, "a certificate's files changed, but cannot be used"

    LOG_REOPENED = "log.reopened", _I, "the access log's file was reopened"
    LOG_UNUSABLE = "log.unusable", _E, "the access log's file cannot be reopened"
    LOG_DROPPED = "log.dropped", _W, "lines of a log were lost; at most once a minute"
    TRACE_UNSENT = "trace.unsent", _W, "spans cannot be sent to the collector; at most once a minute"
    METRICS_UNSENT = "metrics.unsent", _W, "metrics cannot be sent to the collector; at most once a minute"

    PYTHON_WARNING = "python.warning", _W, "a warning of Python or a library"
    PYTHON_ERROR = "python.error", _E, "an exception that nobody handled, or an error of a library"
    PYTHON_OUTPUT = "python.output", _I, "a line that something other than the log printed"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, once.

    message: a sentence for people, which may quote anybody. who: who did it: a token's name and the client's
    address, `signal`, `file`; None for nobody in particular. time: in seconds since the epoch; 0: the time at
    which it is logged. key: equal for events of a name that are the same one, which several workers noticed;
    None: the message.
    """

    name: EventName
    message: str
    member: str | None = None
    who: str | None = None
    time: float = 0.0
    key: str | None = None

    @property
    def level(self) -> Level:
        """As its name has it."""
        return self.name.level
