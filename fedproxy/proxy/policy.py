"""What the hot path is told about how to behave: plain values, replaced whole when the config changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from ssl import SSLContext


@dataclass(frozen=True)
class Timeouts:
    """In seconds. There is no limit on the whole of a request: builds stream for an hour."""

    connect: float = 5.0
    request_head: float = 10.0
    request_idle: float = 60.0
    response_head: float = 75.0
    response_idle: float = 600.0
    keepalive: float = 75.0

    @property
    def shortest(self) -> float:
        """The shortest of those that the sweep looks at, so that it comes round in time."""
        return min(
            self.request_head, self.request_idle, self.response_head, self.response_idle, self.keepalive
        )


@dataclass(frozen=True)
class Limits:
    """Counts are for one worker, sizes in bytes."""

    connections: int = 20_000
    request_head: int = 32 * 1024
    request_body: int = 512 * 1024 * 1024
    replay: int = 64 * 1024
    idle_connections: int = 256


@dataclass(frozen=True)
class Endpoint:
    """Where a member is reached: a name or address and port, or the path of a unix socket."""

    host: str
    port: int
    authority: bytes
    path: str | None = None
    tls: SSLContext | None = None


@dataclass(frozen=True)
class Policy:
    """One config, as the hot path sees it."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    attempts: int = 3
    cookie: str = "fedproxy_member"
    cookie_max_age: int = 4 * 3600
    key: str = "repository"
    origin: str | None = None
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    failing: frozenset[int] = frozenset((502, 503, 504))
