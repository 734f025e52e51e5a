"""Everything that an operator can configure, with default and meaning at each field.

Attributes are named like the keys of the file. The section `breaker` is a `BreakerSettings`, because a
`Breaker` is what the program makes of it. Durations are in seconds, sizes in bytes. A section is frozen, an
unknown key is an error, and a key without a value (`weight:` or a Helm chart's null) is ignored. Rules
between sections are checked in `check.py`, so use `load` or `parse` to make a `Config`.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedproxy.config import address as addr
from fedproxy.config import units
from fedproxy.config.address import Address, MemberAddress, member_address
from fedproxy.config.advice import WARNING
from fedproxy.config.store import EDGE_NAME, STORE, STORE_PREFIX, StoreAddress
from fedproxy.config.units import Network
from fedproxy.decide.breaker import BreakerPolicy
from fedproxy.decide.capacity import START
from fedproxy.decide.federation import FederationPolicy
from fedproxy.decide.member import MAX_REQUESTS
from fedproxy.decide.ramp import FIRST, ramp_weights
from fedproxy.wire.h2.allowance import Allowance

Seconds = Annotated[float, units.SECONDS]
SecondsOrNone = Annotated[float, units.SECONDS_OR_NONE]
Bytes = Annotated[int, units.BYTES]
BytesOrNone = Annotated[int, units.BYTES_OR_NONE]
Count = Annotated[int, units.COUNT]
CountOrNone = Annotated[int, units.COUNT_OR_NONE]
Amount = Annotated[float, units.AMOUNT]
Ratio = Annotated[float, units.RATIO]
Flag = Annotated[bool, units.FLAG]
Text = Annotated[str, units.TEXT]
Secret = Annotated[SecretStr, units.SECRET]
File = Annotated[Path, units.FILE]
Folder = Annotated[Path, units.FOLDER]
#: Of a list: a text alone is a list of one.
ONE_OR_MANY: Final = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Link = Annotated[str, addr.LINK]
Probed = Annotated[str, addr.PROBED]
ListenAddress = Annotated[Address, addr.ADDRESS]

# Decisions have defaults of their own; they are not written a second time.
_BREAKER: Final = BreakerPolicy()
_ALLOWANCE: Final = Allowance()
_ADMIN: Final = "admin"  # the name of `admin.token`
_FEDERATION: Final = FederationPolicy(balancer="rendezvous")


class Section(BaseModel):
    """A mapping with known keys."""

    # A worker is handed a config that is valid, so it need not build what would validate one.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = list(self._faults())
        if faults:
            raise PydanticCustomError("between", "keys do not agree", {"faults": faults})
        return self

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Faults between keys of this section, each as the key and the message."""
        yield from ()


class Certificate(Section):
    """A certificate and its key."""

    certificate: File = Field(
        description="PEM file with the certificate and its chain; reloaded when it changes."
    )
    private_key: File = Field(
        description="PEM file with the private key, without a passphrase; reloaded when it changes."
    )


class TlsSettings(Certificate):
    """A listener's TLS settings. Its own certificate is for visitors who ask for no known name."""

    certificates: tuple[Certificate, ...] = Field(
        default=(),
        description="More certificates, each for the names in it (`*.` stands for one label). "
        "Any other name, or none, gets the one above.",
    )
    min_version: Annotated[Literal["1.2", "1.3"], units.TLS_VERSION] = Field(
        default="1.2", description="The oldest accepted version of TLS."
    )
    hsts: SecondsOrNone = Field(
        default=0.0,
        description="How long browsers must use https only (`Strict-Transport-Security`); 0 for no header.",
    )


class ListenerSettings(Section):
    """An address on which visitors are accepted."""

    address: ListenAddress = Field(
        description="`HOST:PORT`, `[IPv6]:PORT` or `unix:/PATH`; port 0 takes a free one."
    )
    tls: TlsSettings | None = Field(default=None, description="Speak TLS here; without it, plain HTTP.")
    proxy_protocol: Flag = Field(
        default=False,
        description="Every connection must start with a PROXY protocol header, version 1 or 2, that names "
        "the client, also before TLS. Any peer is trusted, or only `trusted_proxies` if there are any.",
    )
    redirect_to_https: Flag = Field(
        default=False,
        description="Answer every request with a redirect to the same URL over https. With an https "
        "`public_url`, only members' `hosts` are kept, and any other name is sent to the public host; "
        "without one, the request's own host is kept.",
    )

    http2: Flag | None = Field(
        default=None,
        description="Speak HTTP/2 here: with TLS, with those who ask for it by ALPN (the default); without, "
        "with those whose first bytes are HTTP/2's (not the default), such as a balancer in front.",
    )

    @property
    def speaks_http2(self) -> bool:
        """Whether HTTP/2 is spoken here."""
        return self.tls is not None if self.http2 is None else self.http2

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.redirect_to_https and self.tls:
            yield "redirect_to_https", "is true on a listener that has tls, expected it on a plain one"


def default_listen() -> tuple[ListenerSettings, ...]:
    """What is listened on without `listen`."""
    return (ListenerSettings(address=Address("0.0.0.0", 8080)),)


class TokenSettings(Section):
    """A token of the admin listener."""

    token: Secret = Field(description="The bearer token; no two may be the same.")
    rights: Literal["read", "write"] = Field(
        default="read",
        description="What it is for: `read`, or `write`, which includes reading.",
    )


class AdminSettings(Section):
    """The listener for operators, Prometheus and Kubernetes' probes."""

    address: ListenAddress = Field(
        default=Address("127.0.0.1", 8081),
        description="The address of the admin listener. Keep it from the public.",
    )
    token: Secret | None = Field(
        default=None,
        description="A bearer token for writes, of the name `admin`; without any such token every write is "
        "refused.",
    )
    tokens: Mapping[Annotated[str, addr.TOKEN_NAME], TokenSettings] = Field(
        default={},
        description="More tokens, each with its own name and rights. The name is in the log of what is done "
        "with it.",
    )
    read: Literal["open", "token"] = Field(
        default="open",
        description="Who may read: anybody who can reach the listener, or only who has a token. "
        "`/health/live` and `/health/ready` are always open.",
    )
    state: Annotated[Path | Literal["off"], units.FILE_OR_OFF] | None = Field(
        default=None,
        description="The file that keeps operators' changes at run time, or `off`. By default `state.json` "
        "in systemd's `$STATE_DIRECTORY`, or else next to the config: `edge.state.json` for `edge.yaml`.",
    )

    @property
    def named_tokens(self) -> dict[str, TokenSettings]:
        """All tokens, by name."""
        own = {} if self.token is None else {_ADMIN: TokenSettings(token=self.token, rights="write")}
        return {**own, **self.tokens}

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.token is not None and _ADMIN in self.tokens:
            yield "tokens", f"has {_ADMIN!r}, which is the name of admin.token, expected another name"
        owners = {} if self.token is None else {self.token.get_secret_value(): "admin.token"}
        for name, settings in self.tokens.items():
            owner = owners.setdefault(settings.token.get_secret_value(), f"admin.tokens.{name}")
            if owner != f"admin.tokens.{name}":
                yield "tokens", f"has the same token in {name} as {owner} is, expected another"
        if self.read == "token" and not owners:
            yield "read", "is 'token', and there is none, expected admin.token or admin.tokens"


class AffinitySettings(Section):
    """How a visitor stays with a member."""

    cookie: Annotated[str, addr.COOKIE_NAME] = Field(
        default="fedproxy_member", description="The cookie's name; the cookie is never sent to a member."
    )
    max_age: Seconds = Field(default=4 * 3600.0, description="How long a browser keeps the cookie.")
    secret: Secret | None = Field(
        default=None,
        description="With a secret, the cookie's value is an HMAC of the member's name, not the name itself. "
        "Every edge of a federation needs the same secret.",
    )
    key: Literal["repository", "path", "client"] = Field(
        default="repository",
        description="What chooses the member of a visitor without a cookie: the repository without its ref, "
        "the whole path, or the client's address.",
    )


class TimeoutSettings(Section):
    """How long the edge waits. There is no limit on a whole request: builds stream for an hour."""

    connect: Seconds = Field(
        default=5.0, description="For a connection to a member, including the TLS handshake."
    )
    request_head: Seconds = Field(
        default=10.0, description="For a request's whole head, from its first byte."
    )
    request_idle: Seconds = Field(default=60.0, description="Between two reads of a request's body.")
    response_head: Seconds = Field(
        default=75.0,
        description="For a member's response to begin. BinderHub's first event of a build can take 25 s.",
    )
    response_idle: Seconds = Field(
        default=600.0, description="Between two reads of a response's body or of a tunnel."
    )
    keepalive: Seconds = Field(default=75.0, description="How long an idle connection of a visitor is kept.")
    connection_age: SecondsOrNone = Field(
        default=600.0,
        description="The maximum age of a connection to a member. An older one takes no new request; the one "
        "under way on it goes on. Shortened at random by up to a fifth. 0 for no limit.",
    )
    drain: SecondsOrNone = Field(
        default=600.0,
        description="How long requests under way may go on after SIGTERM; then they are cut.",
    )


class Http2Limits(Section):
    """What one HTTP/2 connection may do at once beyond what its requests need; a tenth of it comes back each
    second. A connection that does more is closed with ENHANCE_YOUR_CALM."""

    resets: Count = Field(
        default=_ALLOWANCE.resets,
        description="Requests that the visitor cancels, that are refused as malformed or too large, or that "
        "it makes the edge reset.",
    )
    settings: Count = Field(default=_ALLOWANCE.settings, description="SETTINGS frames.")
    pings: Count = Field(default=_ALLOWANCE.pings, description="PING frames.")
    priorities: Count = Field(
        default=_ALLOWANCE.priorities, description="PRIORITY and PRIORITY_UPDATE frames."
    )
    empty_frames: Count = Field(
        default=_ALLOWANCE.empty_frames, description="DATA and CONTINUATION frames with nothing in them."
    )
    window_updates: Count = Field(
        default=_ALLOWANCE.window_updates,
        description="WINDOW_UPDATE frames, besides four for each DATA frame that the edge sends.",
    )
    unknown_frames: Count = Field(
        default=_ALLOWANCE.unknown_frames, description="Frames of kinds that the edge does not know."
    )


class LimitSettings(Section):
    """Limits on what visitors send and members get."""

    connections: Count = Field(default=20_000, description="Visitors' connections, per worker.")
    connections_per_address: CountOrNone = Field(
        default=2000,
        description="Connections from one client address (IPv6: one /64), per worker; 0 for no limit. "
        "Not for the addresses of `trusted_proxies`.",
    )
    uploads_per_address: CountOrNone = Field(
        default=100,
        description="Uploads under way from one client address (IPv6: one /64) to one member, per worker: "
        "requests whose bodies are not complete. Never more than a quarter of the member's limit of "
        "requests. More are answered 429. All clients together get at most three quarters of it; more "
        "are answered 503. 0 for no limit, per client or in total.",
    )
    request_head: Bytes = Field(
        default=32 << 10, description="Request line and headers; more is answered 431 or 414."
    )
    request_body: BytesOrNone = Field(
        default=512 << 20, description="A request's body; more is answered 413."
    )
    member_requests: Count = Field(
        default=MAX_REQUESTS,
        description="Requests in flight to one member, per worker. Overridden by a member's `max_requests`.",
    )
    sessions: CountOrNone = Field(
        default=100_000,
        description="Sessions whose member is remembered, in each worker and in the control process (about "
        "30 MB per 100,000). Those known from launches are forgotten last, and among equals the least "
        "recently used first. 0: only the visitor's cookie tells where a session runs.",
    )
    streams: Count = Field(default=128, description="Requests under way at once on one HTTP/2 connection.")
    http2: Http2Limits = Field(
        default_factory=Http2Limits, description="What one HTTP/2 connection may do besides its requests."
    )
    replay: BytesOrNone = Field(
        default=64 << 10,
        description="Request bodies up to this size are buffered, so that a retry can send them again.",
    )
    idle_connections: CountOrNone = Field(
        default=256, description="Idle connections kept open to one member, per worker."
    )


class RetrySettings(Section):
    """Retries of requests that can be repeated and of which the visitor has seen nothing."""

    attempts: Count = Field(
        default=3, description="Attempts per request, including the first; 1 means no retry."
    )
    budget: Amount = Field(default=0.2, description="Retries per request, over all requests.")
    floor: Amount = Field(
        default=1.0, description="Retries per second that are always allowed, however few requests there are."
    )
    per_client: Ratio = Field(
        default=0.5,
        description="Share of the available retries that one client address (IPv6: one /64) may take.",
    )


class BreakerSettings(Section):
    """When a member that fails live requests is ejected for a while."""

    failures: Count = Field(default=_BREAKER.failures, description="Failures in a row that open the breaker.")
    ratio: Ratio = Field(
        default=_BREAKER.ratio, description="Share of failed requests within `window` that opens it."
    )
    window: Seconds = Field(default=_BREAKER.window, description="The time over which `ratio` is measured.")
    minimum: Count = Field(
        default=_BREAKER.minimum, description="Requests within `window` below which `ratio` is ignored."
    )
    open: Seconds = Field(
        default=_BREAKER.open,
        description="How long it stays open the first time; doubled each time it opens again in a row.",
    )
    open_max: Seconds = Field(default=_BREAKER.open_max, description="The longest time that it stays open.")
    trials: Count = Field(
        default=_BREAKER.trials, description="Requests that a half-open breaker admits at once."
    )
    witnesses: Count = Field(
        default=_BREAKER.witnesses,
        description="How many client addresses (IPv6: /64 networks) must have seen failures within `window` "
        "before it opens, while requests of others succeed.",
    )
    max_ejected: Ratio = Field(
        default=_FEDERATION.max_ejected, description="Share of the members that may be ejected at once."
    )
    count_500: Flag = Field(
        default=False, description="A member's response 500 counts as a failure. 502, 503 and 504 always do."
    )

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.open_max < self.open:
            shown = units.format_duration(self.open_max), units.format_duration(self.open)
            yield "open_max", f"is {shown[0]}, expected at least `open`, which is {shown[1]}"


class HealthSettings(Section):
    """The probes of `/health` and `/versions`."""

    interval: Seconds = Field(default=15.0, description="Between two probes of a healthy member.")
    jitter: Annotated[float, units.SHARE] = Field(
        default=0.1,
        description="Share of the interval by which probes are shifted at random, so that they spread out.",
    )
    timeout: Seconds = Field(
        default=5.0, description="For one request of a probe, with its connection if that is a new one."
    )
    rise: Count = Field(default=1, description="Successful probes in a row that make a member healthy.")
    fall: Count = Field(
        default=3,
        description="Failed probes in a row that make it unhealthy. Quota and versions take effect at once.",
    )
    unhealthy_interval: Seconds = Field(
        default=90.0, description="Between two probes of an unhealthy member."
    )
    pod_headroom: CountOrNone = Field(
        default=10,
        description="A member is full when its pods, this number and its `reserve` reach its quota.",
    )
    versions: Flag = Field(
        default=True, description="A member must run the versions that the prime member runs."
    )
    one_prober: Flag = Field(
        default=True,
        description="Of edges that share a store, one probes for all; what it cannot reach each of them "
        "tries itself.",
    )
    slow_start: SecondsOrNone = Field(
        default=_FEDERATION.slow_start,
        description="How long the share of a member that comes back grows to its full weight; 0 for at once.",
    )


class LaunchSettings(Section):
    """What happens to a launch that its member fails."""

    failover: Flag = Field(
        default=True,
        description="A launch that fails before the visitor saw an event moves to the next member.",
    )
    hold: SecondsOrNone = Field(
        default=30.0,
        description="How long after the response's head the edge waits for the first decisive event; 0 "
        "passes everything on at once.",
    )
    base_paths: tuple[Annotated[str, addr.BASE_PATH], ...] = Field(
        default=("/",),
        description="The paths below which the members' BinderHubs are, such as `/services/binder/`. What a "
        "member's own page says is added.",
    )
    elsewhere: tuple[Annotated[re.Pattern[str], units.PATTERN], ...] = Field(
        default=(),
        description="Regular expressions, searched in the message of a failed launch: failures that another "
        "member might not have. BinderHub's own messages (full, rate limits, errors) are known without them.",
    )
    repeats: tuple[Annotated[re.Pattern[str], units.PATTERN], ...] = Field(
        default=(),
        description="The same for failures that every member would repeat, such as that of a bad repository; "
        "these are searched first.",
    )


class TracingSettings(Section):
    """OpenTelemetry spans; needs `pip install 'fedproxy[otel]'`."""

    endpoint: Annotated[str, addr.LINK_OR_OFF] = Field(
        default="off",
        description="The URL of a collector's OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`, or "
        "`off`. Needs `pip install 'fedproxy[otel]'`.",
    )
    sample: Annotated[float, units.SHARE] = Field(
        default=0.01, description="Share of the requests that are traced, chosen at random."
    )
    follow: Literal["trusted", "anyone", "nobody"] = Field(
        default="trusted",
        description="Whose `traceparent` decides whether a request is traced, instead of chance: one from a "
        "proxy of `trusted_proxies`, anyone's, or nobody's.",
    )
    limit: Count = Field(default=100, description="The most requests traced per second, per worker.")
    service_name: Text = Field(default="fedproxy", description="The resource's `service.name`.")

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _without_opentelemetry(self.endpoint)


class OtlpMetricsSettings(Section):
    """The metrics by OTLP; needs `pip install 'fedproxy[otel]'`."""

    endpoint: Annotated[str, addr.LINK_OR_OFF] = Field(
        default="off",
        description="The URL of a collector's OTLP over HTTP, such as `http://127.0.0.1:4318/v1/metrics`, or "
        "`off`. Needs `pip install 'fedproxy[otel]'`.",
    )
    interval: Seconds = Field(default=60.0, description="Between two times at which they are sent.")
    service_name: Text = Field(default="fedproxy", description="The resource's `service.name`.")

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from _without_opentelemetry(self.endpoint)


def _without_opentelemetry(endpoint: str) -> Iterator[tuple[str, str]]:
    if endpoint != "off" and not _has_opentelemetry():
        message = f"is {endpoint!r} and OpenTelemetry is not installed, expected off"
        yield "endpoint", f"{message}, or pip install 'fedproxy[otel]'"


def _has_opentelemetry() -> bool:
    try:
        return all(find_spec(f"opentelemetry.{name}") for name in ("sdk", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


class BanSettings(Section):
    """Who is answered 403."""

    networks: tuple[Annotated[Network, units.NETWORK], ...] = Field(
        default=(), description="Client networks."
    )
    repositories: tuple[Annotated[re.Pattern[str], units.PATTERN], ...] = Field(
        default=(),
        description="Regular expressions, searched in `PROVIDER/SPEC` of `/build/` and `/v2/`, regardless of "
        "case and of the spelling of the path.",
    )
    user_agents: tuple[Annotated[re.Pattern[str], units.PATTERN], ...] = Field(
        default=(), description="Regular expressions, searched in the User-Agent header."
    )


class RateSettings(Section):
    """How many launches one client address may start; more are answered 429."""

    launches: CountOrNone = Field(
        default=0,
        description="Launches within `per` of an IPv4 address or an IPv6 /64: this many at once, then one "
        "every `per`/`launches`. 0 for no limit.",
    )
    per: Seconds = Field(default=60.0, description="The time over which they are counted.")


class PageSettings(Section):
    """What people see when the edge itself answers: an error, or that nobody is available."""

    site: Text | None = Field(
        default=None, description="The site's name on these pages; by default the host of `public_url`."
    )
    logo: Link | None = Field(
        default=None,
        description="An image of up to 64 KiB. The edge fetches it and serves it itself.",
    )
    status_url: Link | None = Field(
        default=None, description="A page that tells of known problems, to which these pages link."
    )
    templates: Folder | None = Field(
        default=None,
        description="A folder with templates of your own: `error.html`, `down.html`, `error.de.html` and "
        "others, see [error-pages.md](error-pages.md). They are watched like the config.",
    )


class FoundSettings(Section):
    """The settings of members that DNS names, which says no more than host, port and weight."""

    host: Literal["member", "visitor"] = Field(
        default="member", description="Whose `Host` they are sent: see `members.NAME.host`."
    )
    health: Probed = Field(
        default="/health", description="Where their health is probed: a path, or a full URL."
    )
    versions: Probed = Field(
        default="/versions", description="Where their versions are probed: a path, or a full URL."
    )
    ca: File | None = Field(
        default=None,
        description="PEM file with the certificate authorities to trust for them, instead of the system's.",
    )
    max_requests: Count | None = Field(
        default=None,
        description="Requests in flight to each, per worker, instead of `limits.member_requests`.",
    )
    max_launches: Count | None = Field(default=None, description="Launches that may run on each at once.")


class SourceSettings(Section):
    """Where more members come from, found while the edge runs. A member of the config wins over one of the
    same name in the directory, and that over one in DNS."""

    directory: Annotated[Path, units.PATH] | None = Field(
        default=None,
        description="A folder with a file for each member: `NAME.yaml` has what `members.NAME` would have. "
        "The files are watched; other and hidden files are ignored.",
    )
    dns: Annotated[tuple[Annotated[str, addr.DNS_NAME], ...], ONE_OR_MANY] = Field(
        default=(),
        description="Whole names: `_SERVICE._PROTO.NAME` for its SRV records, each of which is a member; any "
        "other name is a member itself as long as it has an address.",
    )
    scheme: Literal["https", "http"] = Field(
        default="https", description="How members that DNS names are reached."
    )
    port: Annotated[int, addr.PORT] | None = Field(
        default=None,
        description="The port of members that are names of `dns` themselves; by default that of `scheme`. An "
        "SRV record has its own.",
    )
    interval: Seconds = Field(
        default=60.0,
        description="The longest time between two questions for a name, at most 60s; they are asked as often "
        "as the records' time to live says, at most once per second.",
    )
    keep: SecondsOrNone = Field(
        default=15.0,
        description="How long a member that a name's answers no longer have is kept: it may be back in the "
        "next one.",
    )
    limit: Count = Field(
        default=100,
        description="The most members from the directory, and from each name; more are left out and said by "
        "name.",
    )
    settings: FoundSettings = Field(
        default_factory=FoundSettings, description="The settings of members that DNS names."
    )

    @property
    def any(self) -> bool:
        """Whether there is a source."""
        return self.directory is not None or bool(self.dns)

    def _faults(self) -> Iterator[tuple[str, str]]:
        if not 1 <= self.interval <= 60:
            shown = units.format_duration(self.interval)
            yield "interval", f"is {shown}, expected a duration from 1s to 60s"
        if self.settings.ca is not None and self.scheme != "https":
            yield "settings", f"has a ca, and scheme is {self.scheme}, expected https with it"
        twice = [name for at, name in enumerate(self.dns) if name in self.dns[:at]]
        if twice:
            yield "dns", f"has {twice[0]!r} twice, expected each name once"


class Organisation(Section):
    """An organisation on the member page."""

    name: Text = Field(description="The name to show.")
    url: Link | None = Field(default=None, description="The link of the name.")
    logo: Link | None = Field(
        default=None,
        description="An image of up to 64 KiB. The edge fetches it and serves it itself for the member page.",
    )


class RampSettings(Section):
    """How a new member comes to its share of new visitors."""

    share: Annotated[float, units.TARGET] = Field(
        description="Its share of new visitors in the end: `20%`, or 0.2."
    )
    over: Seconds = Field(
        default=604_800.0,
        description="How long that takes if its launches succeed: a twentieth of the share at first, and "
        "another one after each twentieth of the time, see [joining.md](joining.md#the-ramp).",
    )


class MemberSettings(Section):
    """One BinderHub. Its key is its name: in the cookie, in the metrics and in commands."""

    url: Annotated[str, addr.MEMBER_URL] = Field(
        description="Its address: `https://HOST`, `http://HOST:PORT` or `unix:/PATH`."
    )
    weight: Annotated[units.Weight, units.WEIGHT] = Field(
        default=1.0,
        description="Its share of new visitors, relative to the others: a number, of which 0 takes no new "
        "visitors; or `auto`, by the pods that it can carry, see [operating.md](operating.md#weights).",
    )
    ramp: RampSettings | None = Field(
        default=None,
        description="A new member comes to its share in steps that its launches have to earn. The edge then "
        "works its weight out, so this needs `weight: auto`.",
    )
    reserve: CountOrNone = Field(
        default=0,
        description="Pods that it keeps free for its own community: it is full when its pods, "
        "`health.pod_headroom` and these together reach its quota.",
    )
    prime: Flag = Field(
        default=False,
        description="Its versions are the reference, and it is the last resort when no member is available.",
    )
    host: Literal["member", "visitor"] = Field(
        default="member",
        description="Whose `Host` it is sent: its own, or the one that the visitor typed. Jupyter compares "
        "that with the `Origin` of a page, so a member whose sessions are behind the edge needs `visitor`.",
    )
    hosts: tuple[Annotated[str, addr.HOSTNAME], ...] = Field(
        default=(),
        description="Requests for these hosts go to this member only, on any port, with or without a "
        "trailing dot.",
    )
    health: Probed = Field(
        default="/health", description="Where its health is probed: a path of `url`, or a full URL."
    )
    versions: Probed = Field(
        default="/versions", description="Where its versions are probed: a path of `url`, or a full URL."
    )
    ca: File | None = Field(
        default=None,
        description="PEM file with the certificate authorities to trust for it, instead of the system's.",
    )
    max_requests: Count | None = Field(
        default=None,
        description="Requests in flight to it, per worker, instead of `limits.member_requests`.",
    )
    max_launches: Count | None = Field(
        default=None,
        description="Launches that may run on it at once; more go to the next member in rank.",
    )
    run_by: Organisation | None = Field(default=None, description="Who runs it; shown on the member page.")
    funded_by: Organisation | None = Field(
        default=None, description="Who pays for it; shown on the member page."
    )
    contact: Annotated[str, addr.CONTACT] | None = Field(
        default=None,
        description="How to reach its operators: a URL or `mailto:`; shown on the member page.",
    )
    control: Literal["full", "own"] = Field(
        default="own",
        description="Who can repair it: `full`, the federation's team, so that alerts name its `contact`; "
        "`own`, only the member's own people, so that they name the member's.",
    )
    dashboard: Link | None = Field(
        default=None, description="Where its operators see how it is; a link on the operators' page."
    )
    active: Flag = Field(
        default=True, description="False for a past member, which only the member page shows."
    )

    @property
    def address(self) -> MemberAddress:
        """`url`, parsed."""
        return member_address(self.url)

    @property
    def start_weight(self) -> float:
        """Its weight as long as nothing is known of it: with `auto` that of `decide.capacity`.

        A member with a ramp gets no visitors until it is known how far it has come.
        """
        if self.weight != "auto":
            return self.weight
        return START if self.ramp is None else 0.0

    @property
    def is_ramping(self) -> bool:
        """Whether its weight is that of its ramp, which a weight that an operator sets is not."""
        return self.ramp is not None and self.weight == "auto"

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.prime and not self.active:
            yield "prime", "is true for a past member, expected an active one"
        if self.ramp is not None and self.weight != "auto":
            yield "ramp", f"is set beside weight {units.weight_text(self.weight)}, expected `weight: auto`"
        if self.ca and not self.url.startswith("https:"):
            yield "ca", f"is set for {self.url}, expected an https:// member"


class RouteSettings(Section):
    """What happens to requests whose path matches: a redirect, a fixed status, or a member."""

    path: Annotated[str, addr.ROUTE_PATH] = Field(
        description="The path to match, without the query; `*` stands for any characters. A request's "
        "path is compared percent-decoded, with slashes merged and dot segments resolved; it is forwarded "
        "unchanged."
    )
    redirect: Annotated[str, addr.LOCATION] | None = Field(
        default=None, description="Answer with a redirect to this URL. Not together with `to`."
    )
    status: Annotated[int, units.STATUS] | None = Field(
        default=None,
        description="With `redirect`, its status (default: 302); alone, the status of a fixed answer.",
    )
    to: Text | None = Field(
        default=None,
        description="`members` (the default, chosen with affinity), `prime`, or one member's name.",
    )
    page: Literal["metrics"] | None = Field(
        default=None,
        description="A page of the edge's own: `metrics` are those of the admin listener, for all who can "
        "come here. Not together with `to`, `redirect` or `status`.",
    )
    sessions: Flag = Field(
        default=False,
        description="What is under this path runs at one member only, which serves it while it can be "
        "reached. Without any route that says so, `/user/*`, `/hub/*` and `/services/*` are such paths.",
    )
    host: Literal["member", "visitor"] | None = Field(
        default=None, description="Whose `Host` members are sent, instead of what they say themselves."
    )
    mode: Literal["proxy", "redirect"] = Field(
        default="proxy", description="With `to`: forward the request, or answer 307 with the member's URL."
    )

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As a file may have it: without a mode where there must be none."""
        written: dict[str, Any] = serialize(self)
        if not self.to:
            written.pop("mode", None)
        return written

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("redirect") is not None:
            return {**data, "status": 302} if data.get("status") is None else data
        if all(data.get(key) is None for key in ("status", "to", "page")):
            return {**data, "to": "members"}
        return data

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.redirect and self.status not in (301, 302, 303, 307, 308):
            yield "status", f"is {self.status}, expected 301, 302, 303, 307 or 308 with `redirect`"
        if not self.redirect and self.status and 300 <= self.status < 400:
            yield "status", f"is {self.status}, expected `redirect` with it, or a status that is not 3xx"
        if self.to and (self.redirect or self.status):
            other = "redirect" if self.redirect else "status"
            yield "to", f"is {self.to!r} next to `{other}`, expected one of them"
        elif "mode" in self.model_fields_set and not self.to:
            yield "mode", f"is {self.mode!r}, expected only with `to`"
        if self.page and (self.to or self.redirect or self.status):
            yield "page", f"is {self.page!r}, expected without `to`, `redirect` and `status`"
        passed = self.to and self.mode == "proxy"
        if self.sessions and not passed:
            yield "sessions", "is true, expected only where requests are passed on (`to`, mode proxy)"
        if self.host and not passed:
            yield "host", f"is {self.host!r}, expected only where requests are passed on (`to`, mode proxy)"


class Config(Section):
    """The whole file."""

    public_url: Annotated[str, addr.ORIGIN] | None = Field(
        default=None, description="What visitors type, `https://mybinder.org`: the Origin that members see."
    )
    contact: Annotated[str, addr.CONTACT] | None = Field(
        default=None,
        description="How to reach the federation's team: a URL or `mailto:`. Alerts name it for the members "
        "that the team controls, and the member page for those who want to join.",
    )
    listen: tuple[ListenerSettings, ...] = Field(
        default_factory=default_listen,
        description="The addresses on which visitors are accepted.",
    )
    admin: AdminSettings = Field(
        default_factory=AdminSettings, description="The admin listener: live page, metrics, health, members."
    )
    workers: Annotated[int | Literal["auto"], units.WORKERS] = Field(
        default="auto", description="Worker processes: a number, or `auto` for one per processor."
    )
    log: Literal["text", "json"] = Field(
        default="text",
        description="The edge's own events on stderr, one per line: text for people, or JSON for programs.",
    )
    access_log: Annotated[Literal["json", "combined", "off"], units.ACCESS_LOG] = Field(
        default="json", description="One line per request: JSON, Apache's combined format, or none."
    )
    access_log_file: Annotated[Path | Literal["stdout"], units.LOG_FILE] = Field(
        default="stdout",
        description="Where the access log goes: `stdout`, or a file, which is reopened on SIGUSR1.",
    )
    tracing: TracingSettings = Field(
        default_factory=TracingSettings, description="OpenTelemetry spans for a share of the requests."
    )
    otlp_metrics: OtlpMetricsSettings = Field(
        default_factory=OtlpMetricsSettings,
        description="The metrics of `/metrics`, sent to a collector of OpenTelemetry.",
    )
    trusted_proxies: tuple[Annotated[Network, units.NETWORK], ...] = Field(
        default=(),
        description="Networks whose `X-Forwarded-*` and `Forwarded` headers are trusted. If there are any, "
        "only they may connect to listeners with `proxy_protocol`. Peers of a unix listener are always "
        "trusted.",
    )
    store: Annotated[Path | StoreAddress, STORE] | None = Field(
        default=None,
        description="Where what operators set at run time is kept: a file, instead of `admin.state`; or "
        "Redis, which several edges share, see [fleet.md](fleet.md): "
        "`redis://USER:PASSWORD@HOST:PORT/DATABASE`, "
        "`rediss://` with TLS, `redis+sentinel://HOST,HOST/SERVICE`, `redis+cluster://HOST,HOST`.",
    )
    store_prefix: Annotated[str, STORE_PREFIX] = Field(
        default="fedproxy",
        description="What the keys of this fleet begin with in Redis: another one for each fleet there.",
    )
    store_ca: File | None = Field(
        default=None,
        description="PEM file with the certificate authorities to trust for a `rediss://` store, instead of "
        "the system's.",
    )
    edge_name: Annotated[str, EDGE_NAME] | None = Field(
        default=None,
        description="What this edge is called among the edges of a fleet. By default, the host's name.",
    )
    affinity: AffinitySettings = Field(
        default_factory=AffinitySettings, description="How a visitor stays with a member."
    )
    balancer: Literal["rendezvous", "random", "least-requests", "expected-wait"] = Field(
        default="rendezvous", description="How new visitors are distributed; all of them respect the weights."
    )
    images: Literal["separate", "replicated"] = Field(
        default="separate",
        description="With expected-wait: whether members build for themselves, or get each other's images "
        "after a while.",
    )
    images_delay: Annotated[float, units.SECONDS] | None = Field(
        default=None,
        description="How long it takes until an image that one member built is at the others, if images are "
        "replicated; by default that is learned, from 90 s on.",
    )
    load_bound: Annotated[float, units.FACTOR] = Field(
        default=_FEDERATION.load_bound,
        description="With rendezvous: a member gets at most this many times its fair share in flight.",
    )
    timeouts: TimeoutSettings = Field(
        default_factory=TimeoutSettings, description="How long the edge waits, separately for each wait."
    )
    limits: LimitSettings = Field(
        default_factory=LimitSettings, description="Limits on what visitors send and members get."
    )
    retry: RetrySettings = Field(default_factory=RetrySettings, description="Retries.")
    breaker: BreakerSettings = Field(
        default_factory=BreakerSettings,
        description="When a member that fails requests is ejected for a while.",
    )
    health: HealthSettings = Field(default_factory=HealthSettings, description="The probes of the members.")
    launch: LaunchSettings = Field(
        default_factory=LaunchSettings, description="What happens to a launch that its member fails."
    )
    pages: PageSettings = Field(
        default_factory=PageSettings, description="What people see when the edge itself answers."
    )
    ban: BanSettings = Field(default_factory=BanSettings, description="Who is answered 403.")
    rate: RateSettings = Field(
        default_factory=RateSettings, description="How many launches one client address may start."
    )
    members: Mapping[Annotated[str, addr.MEMBER_NAME], MemberSettings] = Field(
        default={}, description="The BinderHubs, by name. Required without `sources`."
    )
    sources: SourceSettings = Field(
        default_factory=SourceSettings,
        description="Where more members come from: see [operating.md](operating.md#where-members-come-from).",
    )
    routes: tuple[RouteSettings, ...] = Field(
        default_factory=lambda: (RouteSettings(path="/metrics", status=404),),
        description="The first match wins; a path without a match goes to a member with affinity.",
    )
    include: tuple[Text, ...] = Field(
        default=(),
        description="Further files with keys of a config, relative to the folder of the file that names "
        "them; with `*` and `?` in the last part of a path, all that match. Mappings such as `members` are "
        "put together, and anything else may be given in one file only.",
    )
    silence: tuple[Annotated[str, WARNING], ...] = Field(
        default=(),
        description="Warnings that are not to be given, by name: see [Warnings](#warnings).",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_members(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("members"), dict):
            return data
        members = {name: member for name, member in data["members"].items() if member is not None}
        return {**data, "members": members}

    @property
    def active_members(self) -> dict[str, MemberSettings]:
        """The active members, in the order of the file."""
        return {name: member for name, member in self.members.items() if member.active}

    @property
    def start_weights(self) -> dict[str, float]:
        """The weights of the active members as long as nothing is known of them, with ramps that begin."""
        active = self.active_members
        parts = {
            name: each.ramp.share * FIRST for name, each in active.items() if each.is_ramping and each.ramp
        }
        others = sum(each.start_weight for name, each in active.items() if name not in parts)
        ramps = ramp_weights(parts, others)
        return {name: ramps.get(name, each.start_weight) for name, each in active.items()}

    @property
    def alert_contacts(self) -> dict[str, str]:
        """Whom alerts about an active member are to name, as far as that is known."""
        found = {
            name: (each.contact if each.control == "own" else self.contact) or each.contact or self.contact
            for name, each in self.active_members.items()
        }
        return {name: contact for name, contact in found.items() if contact is not None}

    @property
    def logos(self) -> frozenset[str]:
        """The URLs of the images that the edge's pages show."""
        members = (each for member in self.members.values() for each in (member.run_by, member.funded_by))
        shown = (*members, self.pages)
        return frozenset(each.logo for each in shown if each is not None and each.logo is not None)

    @property
    def _store_password(self) -> str | None:
        return self.store.password if isinstance(self.store, StoreAddress) else None

    @property
    def secrets(self) -> dict[str, SecretStr]:
        """Every secret in the config, by its key path."""
        found = {
            "admin.token": self.admin.token,
            **{f"admin.tokens.{name}.token": each.token for name, each in self.admin.tokens.items()},
            "affinity.secret": self.affinity.secret,
            "store": SecretStr(password) if (password := self._store_password) else None,
        }
        return {key: secret for key, secret in found.items() if secret is not None}

    def _faults(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.store, Path) and self.admin.state is not None:
            yield "store", "is a file, and `admin.state` is set, expected one of them"
        if isinstance(self.store, StoreAddress) and find_spec("redis") is None:
            yield "store", "is Redis, which needs a package: pip install 'fedproxy[redis]'"
        if self.store_ca and not (isinstance(self.store, StoreAddress) and self.store.tls):
            yield "store_ca", "is set, expected only with a rediss:// store"

    @property
    def name(self) -> str:
        """What this edge is called."""
        return self.edge_name or platform.node() or "edge"

    @property
    def shared_store(self) -> StoreAddress | None:
        """The store that the edges of a fleet share; None if this edge is alone."""
        return self.store.with_ca(self.store_ca) if isinstance(self.store, StoreAddress) else None

    @property
    def prime(self) -> str | None:
        """The prime member's name."""
        return next((name for name, member in self.members.items() if member.prime), None)
