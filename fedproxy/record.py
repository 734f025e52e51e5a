"""What is known of one request once it is over: for the log, the metrics, the pages and the spans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class AttemptRecord:
    """One attempt of a traced request. Times in seconds by the edge's clock.

    sent: when there was a connection for it. error: as in the metrics, if the member failed. launch: how a
    launch ended on this member.
    """

    span_id: bytes
    member: str
    url: str
    started: float
    sent: float | None = None
    ended: float | None = None
    reused: bool = False
    status: int = 0
    error: str | None = None
    launch: str | None = None


@dataclass(slots=True)
class TraceRecord:
    """The trace that a request is of, if that is sampled. Times in seconds by the edge's clock.

    parent_id: the visitor's span, if there is one.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None
    started: float
    ended: float
    attempts: list[AttemptRecord] = field(default_factory=list)


class Record:
    """One request. Times and durations in seconds, sizes in bytes; the names are those of the access log.

    time: when it was over, since the epoch. secure: the visitor came by https. error: as in the metrics, if
    a member or the edge failed.
    """

    # Written out, because a dataclass is made by code that is not compiled: it takes ten times as long.
    __slots__ = (
        "affinity",
        "attempts",
        "bytes_in",
        "bytes_out",
        "client",
        "duration",
        "error",
        "host",
        "launch",
        "member",
        "method",
        "protocol",
        "referer",
        "request_id",
        "secure",
        "status",
        "target",
        "termination",
        "time",
        "trace",
        "ttfb",
        "user_agent",
    )

    def __init__(
        self,
        *,
        time: float,
        request_id: str,
        client: str,
        method: str,
        host: str,
        target: str,
        protocol: str,
        status: int,
        bytes_in: int = 0,
        bytes_out: int = 0,
        duration: float = 0.0,
        ttfb: float | None = None,
        member: str | None = None,
        attempts: int = 0,
        affinity: str | None = None,
        termination: str = "--",
        launch: str | None = None,
        user_agent: str = "",
        referer: str = "",
        secure: bool = False,
        error: str | None = None,
        trace: TraceRecord | None = None,
    ) -> None:
        self.time = time
        self.request_id = request_id
        self.client = client
        self.method = method
        self.host = host
        self.target = target
        self.protocol = protocol
        self.status = status
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.duration = duration
        self.ttfb = ttfb
        self.member = member
        self.attempts = attempts
        self.affinity = affinity
        self.termination = termination
        self.launch = launch
        self.user_agent = user_agent
        self.referer = referer
        self.secure = secure
        self.error = error
        self.trace = trace
