"""What is valid in a config but unwise. Each such thing has a name, by which it is silenced."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from fedproxy.config.address import member_address
from fedproxy.config.units import Kind, format_duration
from fedproxy.decide.ramp import MOST_PARTS
from fedproxy.decide.route import Route, Router, ToMembers

if TYPE_CHECKING:
    from pydantic import SecretStr

    from fedproxy.config.model import Config, MemberSettings, RouteSettings
    from fedproxy.config.places import Location

_FIRST_FLUSH = 25.0  # seconds that BinderHub may take for the first event of a build
_HEARTBEAT = 30.0  # seconds between two of the comments by which BinderHub keeps a stream open
_GRACE = 30.0  # seconds: Kubernetes' terminationGracePeriodSeconds, if a pod does not say its own
_GUESSED = 16  # characters; shorter secrets are guessed, or are words
_DAY = 86400.0  # seconds

#: Each name, and what it warns about.
NAMES: Mapping[str, str] = {
    "admin-reachable": "the admin listener can be reached from other machines, and reading there needs no "
    "token",
    "ban-everybody": "a ban that applies to everybody",
    "certificate-ends": "a certificate of a listener has expired or expires soon: within 14 days, or within "
    "the last third of its time if that is shorter",
    "drain-cut-off": "in Kubernetes: `timeouts.drain` is longer than a pod is given to end, unless its "
    "`terminationGracePeriodSeconds` says more than 30",
    "eject-all": "breakers may eject all members at once",
    "host-of-one": "one member has the host of `public_url` for itself",
    "key-readable": "every user can read the private key of a listener (not in Kubernetes, where a volume is "
    "the pod's own)",
    "loop": "a member's URL is `public_url`: the edge would ask itself",
    "member-plain": "a member is asked over the network without TLS",
    "member-unhealthy": "with `--live`: a member's name, certificate, health or versions are not as they "
    "should be",
    "no-limit": "a limit for a single client is off, and a listener can be reached from other machines",
    "no-prime": "versions are to be compared, and no member is prime, so they are not",
    "no-visitors": "no member takes new visitors",
    "probes-overlap": "a probe may take longer than the interval between two",
    "proxy-protocol-open": "any peer of a listener may name any client address by the PROXY protocol",
    "ramp-balancer": "with `balancer: least-requests` the small share of a new member's ramp gets visitors "
    "only while others are busy, so that it hardly rises",
    "ramp-shares": "the shares of all ramps together leave next to nothing to other members, so each is "
    "reduced",
    "reserve-unfit": "with `--live`: `reserve` and `health.pod_headroom` leave nothing of a member's quota, "
    "so it is always full",
    "response-head-short": "members get less time to answer than the 25 s that BinderHub may take for its "
    "first event",
    "response-idle-short": "streams are cut after less than the 30 s between two signs of life of BinderHub",
    "retries-multiply": "more than one retry per request: an overloaded federation gets more load",
    "route-unreachable": "a route that no path reaches: an earlier one, or a page of the edge's own, takes "
    "them all",
    "same-url": "two members at one URL",
    "secret-short": "a token or secret of less than 16 characters",
    "weight-scale": "a weight of 1 or less beside members with `weight: auto`, whose weights are numbers of "
    "pods: it gets next to nothing",
    "source-hidden": "a member of the config has the name of one in `sources.directory`, which is not used",
    "source-limit": "`sources.directory` has more files than `sources.limit`",
    "source-plain": "members that DNS names are asked over the network without TLS",
    "source-unusable": "`sources.directory` cannot be read, or with `--live`, a name in `sources.dns` has no "
    "members: it adds none as long as that is so",
    "store-plain": "a store outside the site is reached without TLS: others can read and change what passes",
    "store-unusable": "with `--live`: the store cannot be reached, or refuses what an edge does there",
    "trust-everybody": "`trusted_proxies` has everybody's address: any visitor may name any client address",
}
WARNING = Kind(
    "warning",
    "the name of a warning, as `fedproxy check` says it",
    lambda value: value if isinstance(value, str) and value in NAMES else None,
)


class Advice(NamedTuple):
    """A warning. name: one of `NAMES`. where, text: as those of a `Finding`."""

    name: str
    where: Location
    text: str


def advise(config: Config, env: Mapping[str, str]) -> list[Advice]:
    """What is unwise in a valid config, as far as it can be told from the config itself.

    env: the environment, which tells whether this is Kubernetes.
    """
    return [
        *_listeners(config),
        *_times(config, in_kubernetes=in_kubernetes(env)),
        *_visitors(config),
        *_members(config),
        *_routes(config.routes),
        *_store(config),
    ]


def in_kubernetes(env: Mapping[str, str]) -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in env


def reserve_unfit(name: str, settings: MemberSettings, headroom: int, quota: int | None) -> Iterator[Advice]:
    """Of a member that would be full without a pod. headroom, quota: numbers of pods; None for no quota."""
    if settings.reserve and quota is not None and settings.reserve + headroom >= quota:
        text = (
            f"is {settings.reserve}, which with `health.pod_headroom` ({headroom}) leaves nothing of the "
            f"quota of {quota}, expected less"
        )
        yield Advice("reserve-unfit", ("members", name, "reserve"), text)


def certificate_ends(where: Location, begins: float, ends: float, now: float) -> Iterator[Advice]:
    """Of a certificate that has expired or expires soon. Times are Unix times."""
    # The date and not the days: a warning that says the same is not repeated by each reload.
    date = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC"
    if ends <= now:
        yield Advice("certificate-ends", where, f"expired on {date}, expected one that is valid")
    elif ends - now < min(14 * _DAY, (ends - begins) / 3):
        yield Advice("certificate-ends", where, f"expires on {date}, expected it to be renewed by now")


def _is_own(host: str) -> bool:
    """Whether only this machine can reach an address with this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.removesuffix(".").rpartition(".")[2] == "localhost"


def _listeners(config: Config) -> Iterator[Advice]:
    admin = config.admin
    if admin.read == "open" and not admin.address.path and not _is_own(admin.address.host):
        shown = str(admin.address)
        text = (
            f"is {shown!r}, where everybody who can connect may read, expected a loopback address or "
            "`read: token`"
        )
        yield Advice("admin-reachable", ("admin", "address"), text)
    secrets: list[tuple[Location, SecretStr | None]] = [
        (("admin", "token"), admin.token),
        *((("admin", "tokens", name, "token"), each.token) for name, each in admin.tokens.items()),
        (("affinity", "secret"), config.affinity.secret),
    ]
    for where, secret in secrets:
        if secret is not None and len(secret.get_secret_value()) < _GUESSED:
            text = f"is shorter than {_GUESSED} characters, expected a longer, random one"
            yield Advice("secret-short", where, text)
    for at, listener in enumerate(config.listen):
        address = listener.address
        if listener.proxy_protocol and not (config.trusted_proxies or address.path or _is_own(address.host)):
            text = "is true for any peer, expected `trusted_proxies` with the balancers that send the headers"
            yield Advice("proxy-protocol-open", ("listen", at, "proxy_protocol"), text)
    if all(each.address.path or _is_own(each.address.host) for each in config.listen):
        return
    limits = config.limits
    for key, limit in (
        ("connections_per_address", limits.connections_per_address),
        ("uploads_per_address", limits.uploads_per_address),
    ):
        if limit == 0:
            text = "is 0, which lets one client take all that the edge has, expected a limit"
            yield Advice("no-limit", ("limits", key), text)


def _times(config: Config, *, in_kubernetes: bool) -> Iterator[Advice]:
    times, health = config.timeouts, config.health
    for key, value, least, name, why in (
        (
            "response_head",
            times.response_head,
            _FIRST_FLUSH,
            "response-head-short",
            "the first event of a build",
        ),
        (
            "response_idle",
            times.response_idle,
            _HEARTBEAT,
            "response-idle-short",
            "BinderHub's signs of life",
        ),
    ):
        if value < least:
            text = f"is {_shown(value)}, expected more than the {_shown(least)} that {why} can take"
            yield Advice(name, ("timeouts", key), text)
    if in_kubernetes and times.drain > _GRACE:
        text = (
            f"is {_shown(times.drain)}, and a pod is killed after {_shown(_GRACE)} if it does not say "
            "otherwise, expected a terminationGracePeriodSeconds above it"
        )
        yield Advice("drain-cut-off", ("timeouts", "drain"), text)
    if health.timeout > health.interval:
        text = f"is {_shown(health.timeout)}, expected at most `interval`, which is {_shown(health.interval)}"
        yield Advice("probes-overlap", ("health", "timeout"), text)
    if config.retry.budget > 1:
        text = f"is {config.retry.budget:g} retries per request, expected at most 1"
        yield Advice("retries-multiply", ("retry", "budget"), text)


def _shown(seconds: float) -> str:
    return str(format_duration(seconds))


def _visitors(config: Config) -> Iterator[Advice]:
    for where, networks, name, text in (
        (
            ("trusted_proxies",),
            config.trusted_proxies,
            "trust-everybody",
            "has every address, expected those of the proxies in front",
        ),
        (
            ("ban", "networks"),
            config.ban.networks,
            "ban-everybody",
            "has every address, expected those of a few",
        ),
    ):
        if _has_everybody(networks):
            yield Advice(name, where, text)
    for key, patterns in (
        ("repositories", config.ban.repositories),
        ("user_agents", config.ban.user_agents),
    ):
        for at, pattern in enumerate(patterns):
            if pattern.search(""):
                text = f"is {pattern.pattern[:60]!r}, which matches any text, expected something more"
                yield Advice("ban-everybody", ("ban", key, at), text)


def _has_everybody(networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether all of IPv4 or of IPv6 is in them, in one piece or in several."""
    networks = [*networks]
    four = [each for each in networks if isinstance(each, ipaddress.IPv4Network)]
    six = [each for each in networks if isinstance(each, ipaddress.IPv6Network)]
    return any(each.prefixlen == 0 for each in ipaddress.collapse_addresses(four)) or any(
        each.prefixlen == 0 for each in ipaddress.collapse_addresses(six)
    )


def _members(config: Config) -> Iterator[Advice]:
    active = config.active_members
    sources = config.sources
    if not sources.any and not any(member.start_weight or member.is_ramping for member in active.values()):
        text = "has no active member with a weight above 0, expected one that takes new visitors"
        yield Advice("no-visitors", ("members",), text)
    if any(member.weight == "auto" and not member.is_ramping for member in active.values()):
        for name, member in active.items():
            if 0 < member.start_weight <= 1:
                text = (
                    f"is {member.start_weight:g} beside weights in pods, expected a number of pods, or `auto`"
                )
                yield Advice("weight-scale", ("members", name, "weight"), text)
    yield from _ramps(config)
    if len(active) > 1:
        if config.health.versions and config.prime is None and sources.directory is None:
            text = "has no prime member, expected one whose versions the others must run"
            yield Advice("no-prime", ("members",), text)
        if config.breaker.max_ejected == 1:
            text = f"is 1, so that all {len(active)} members may be ejected at once, expected less"
            yield Advice("eject-all", ("breaker", "max_ejected"), text)
    for at, name in enumerate(sources.dns if sources.scheme == "http" else ()):
        if _is_public(name):
            text = f"is {name!r} with `scheme: http`, so others can read the traffic, expected https"
            yield Advice("source-plain", ("sources", "dns", at), text)
    public_host = member_address(config.public_url).host if config.public_url is not None else None
    owners: dict[str, str] = {}
    for name, member in active.items():
        if member.url in owners:
            text = f"is {member.url!r}, the same as that of {owners[member.url]}, expected one of its own"
            yield Advice("same-url", ("members", name, "url"), text)
        owners.setdefault(member.url, name)
        if member.url == config.public_url:
            text = f"is {member.url!r}, which is `public_url`, expected where the BinderHub is"
            yield Advice("loop", ("members", name, "url"), text)
        if _goes_plainly(member):
            text = f"is {member.url!r}, so others can read the traffic, expected an https:// URL"
            yield Advice("member-plain", ("members", name, "url"), text)
        if public_host is not None and public_host in member.hosts:
            text = f"is {public_host!r}, where all visitors come, expected a host that only this member has"
            yield Advice("host-of-one", ("members", name, "hosts", member.hosts.index(public_host)), text)


def _ramps(config: Config) -> Iterator[Advice]:
    ramps = {name: member.ramp.share for name, member in config.active_members.items() if member.ramp}
    if config.balancer == "least-requests":
        for name in ramps:
            text = "is set with `balancer: least-requests`, expected another balancer"
            yield Advice("ramp-balancer", ("members", name, "ramp"), text)
    whole = sum(ramps.values())
    if whole > MOST_PARTS:
        text = (
            f"makes {whole:.0%} of the visitors together with other ramps, expected {MOST_PARTS:.0%} at most"
        )
        yield Advice("ramp-shares", ("members", [*ramps][-1], "ramp", "share"), text)


def _store(config: Config) -> Iterator[Advice]:
    store = config.shared_store
    if store is not None and not store.tls and any(_is_away(host) for host, _ in store.servers):
        text = f"is {store.place!r}, so others can read the traffic, expected rediss://"
        yield Advice("store-plain", ("store",), text)


def _goes_plainly(member: MemberSettings) -> bool:
    """Whether requests leave the site without TLS."""
    address = member.address
    return not (address.tls or address.path) and _is_away(address.host)


def _is_away(host: str) -> bool:
    """Whether a host is not of the site: a public address, or a name of the public DNS."""
    if _is_own(host):
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return _is_public(host)


def _is_public(name: str) -> bool:
    """Whether a name is of the public DNS."""
    labels = name.removesuffix(".").split(".")
    # A name within a cluster or a site; RFC 6762, RFC 6761, and the names that are kept for this.
    return len(labels) > 1 and not (
        labels[-1] in ("local", "internal", "test", "lan", "intranet") or "svc" in labels[1:]
    )


def _routes(routes: Sequence[RouteSettings]) -> Iterator[Advice]:
    router = Router([Route(route.path, ToMembers()) for route in routes])
    for at, earlier in router.hidden():
        shown = f"is {routes[at].path!r}, and {earlier.path!r} takes all its paths"
        is_own = all(route.path != earlier.path for route in routes[:at])
        text = f"{shown}, a page of the edge's own" if is_own else f"{shown}, expected it before that one"
        yield Advice("route-unreachable", ("routes", at, "path"), text)
