"""What the hot path is told about how to behave: plain values, replaced whole when the config changes."""

from __future__ import annotations

from dataclasses import dataclass
from ssl import SSLContext

from fedproxy.decide.launch import FailureTable
from fedproxy.decide.limit import Bans, Networks
from fedproxy.wire.h2.allowance import Allowance
from fedproxy.wire.pages import Pages


@dataclass
class ListenerOptions:
    """What a listener's connections have to know of it. They all hold the same object, which `renew` changes.

    unix: it is a unix socket. Only there may a peer have no address, and it is trusted, because only this
    machine's own proxy may open the socket. proxy_protocol: every connection begins with a PROXY protocol
    header. redirect_to_https: every request is sent to the same URL over https. hsts: for how many seconds
    browsers are to use nothing but https (RFC 6797); 0 says nothing. http2: it is spoken, where TLS does not
    say whether it is, with those who begin with it.
    """

    secure: bool = False
    unix: bool = False
    proxy_protocol: bool = False
    redirect_to_https: bool = False
    hsts: int = 0
    http2: bool = False

    def renew(self, other: ListenerOptions) -> None:
        """Takes over what a reload may change while connections are open: all but what they began with."""
        self.redirect_to_https = other.redirect_to_https
        self.hsts = other.hsts
        self.http2 = other.http2


@dataclass(frozen=True)
class Rate:
    """Launches of one client address: so many at once, and then so many in each `per` seconds."""

    launches: int
    per: float


@dataclass(frozen=True)
class LaunchPolicy:
    """What happens to a launch that its member fails before the visitor saw anything of it.

    failover: it moves to the next member. hold: for so many seconds from its response's head it is waited for
    an event that decides this; 0 passes everything on at once, so that only a lost connection moves a launch.
    """

    failover: bool
    hold: float
    failures: FailureTable


@dataclass(frozen=True)
class Timeouts:
    """In seconds. There is no limit on the whole of a request: builds stream for an hour."""

    connect: float
    request_head: float
    request_idle: float
    response_head: float
    response_idle: float
    keepalive: float
    connection_age: float  # 0 for no limit

    @property
    def shortest(self) -> float:
        """The shortest of those that the sweep looks at, so that it comes round in time."""
        return min(
            self.request_head, self.request_idle, self.response_head, self.response_idle, self.keepalive
        )


@dataclass(frozen=True)
class Limits:
    """Counts are for one worker, sizes in bytes; 0 connections or uploads per address is no limit."""

    connections: int
    connections_per_address: int
    uploads_per_address: int
    request_head: int
    request_body: int
    replay: int
    sessions: int
    idle_connections: int
    streams: int
    http2: Allowance


@dataclass(frozen=True)
class Endpoint:
    """Where a member is reached: a name or address and port, or the path of a unix socket.

    visitor_host: it is sent the Host that the visitor typed, and not `authority`.
    """

    host: str
    port: int
    authority: bytes
    path: str | None = None
    tls: SSLContext | None = None
    visitor_host: bool = False


@dataclass(frozen=True)
class Policy:
    """One config, as the hot path sees it. pages: what people get with its own answers; None: a plain one."""

    timeouts: Timeouts
    limits: Limits
    attempts: int
    cookie: str
    cookie_max_age: int
    secret: bool  # the cookie's values are no names
    key: str
    launch: LaunchPolicy
    origin: str | None
    trusted: Networks
    bans: Bans
    rate: Rate | None
    failing: frozenset[int]
    explainers: tuple[bytes, ...]  # SHA-256 of the tokens that may ask why a request goes where it goes
    pages: Pages | None = None
