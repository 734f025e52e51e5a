"""From the config to the objects that the hot path uses."""

from __future__ import annotations

import hashlib
import random
import re
import ssl
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING

from fedproxy.config.address import member_address
from fedproxy.decide.affinity import cookie_value
from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.federation import Federation, FederationPolicy
from fedproxy.decide.launch import FailureTable
from fedproxy.decide.limit import Bans, Networks
from fedproxy.decide.member import Member
from fedproxy.decide.retry import RetryBudget
from fedproxy.decide.route import (
    SESSIONS,
    Action,
    Fixed,
    Local,
    Redirect,
    Route,
    Router,
    ToMember,
    ToMembers,
    ToPrime,
)
from fedproxy.errors import ConfigError, Fault
from fedproxy.proxy.policy import Endpoint, LaunchPolicy, Limits, ListenerOptions, Policy, Rate, Timeouts
from fedproxy.wire.h2.allowance import Allowance
from fedproxy.wire.pages import Pages

if TYPE_CHECKING:
    from pathlib import Path

    from fedproxy.config import model as config
    from fedproxy.control.messages import ErrorPages
    from fedproxy.proxy.edge import Edge


def assemble(
    edge: Edge,
    settings: config.Config,
    workers: int = 1,
    base_paths: Collection[str] = (),
    pages: ErrorPages | None = None,
) -> None:
    """Puts `settings` in force. Members that stay keep their state, and connections to them stay open.

    workers: how many share the limits that apply to all of them together. base_paths: where BinderHubs are,
    besides those in the settings. pages: of the edge's own answers; None for a plain one.

    Raises ConfigError, with nothing changed, for a `ca` that is not a certificate.
    """
    known = edge.federation.by_name
    active = {name: member for name, member in settings.members.items() if member.active}
    endpoints = find_endpoints(settings)
    members = [_member(name, settings, known.get(name)) for name in active]
    federation = Federation(
        members,
        FederationPolicy(
            balancer=settings.balancer,
            load_bound=settings.load_bound,
            max_ejected=settings.breaker.max_ejected,
            slow_start=settings.health.slow_start,
        ),
        rng=random.Random(),  # noqa: S311 -- spreads load, guards nothing
        waits=edge.waits,
    )
    edge.waits.knowledge.expects(replicated=settings.images == "replicated", delay=settings.images_delay)
    secret = settings.affinity.secret.get_secret_value() if settings.affinity.secret else None
    edge.apply(
        policy=_policy(settings, pages),
        federation=federation,
        endpoints=endpoints,
        cookie_values={name: cookie_value(name, secret) for name in active},
        router=router_of(settings, base_paths),
        budget=RetryBudget(settings.retry.budget, settings.retry.floor / workers, settings.retry.per_client),
    )


def router_of(settings: config.Config, base_paths: Collection[str]) -> Router:
    """The routes. base_paths: where members say that their BinderHubs are.

    What they say is left out if it would take sessions away from others: BinderHub is no part of a session,
    and below its path there is none.
    """
    sessions = [route.path for route in settings.routes if route.sessions] or SESSIONS
    starts = [path.partition("*")[0] for path in sessions]
    said = [
        path
        for path in base_paths
        if path == "/"
        or not ("/user/" in path or "/hub/" in path or any(start.startswith(path) for start in starts))
    ]
    return Router(
        [_route(route, settings) for route in settings.routes], {*settings.launch.base_paths, *said}
    )


def options_of(listener: config.ListenerSettings) -> ListenerOptions:
    """The settings of a listener for its visitors."""
    tls = listener.tls
    return ListenerOptions(
        secure=tls is not None,
        unix=bool(listener.address.path),
        proxy_protocol=listener.proxy_protocol,
        redirect_to_https=listener.redirect_to_https,
        hsts=round(tls.hsts) if tls is not None else 0,
        http2=listener.speaks_http2,
    )


def _member(name: str, settings: config.Config, known: Member | None) -> Member:
    wanted = settings.members[name]
    breaker = settings.breaker
    policy = BreakerPolicy(
        failures=breaker.failures,
        ratio=breaker.ratio,
        window=breaker.window,
        minimum=breaker.minimum,
        open=breaker.open,
        open_max=breaker.open_max,
        trials=breaker.trials,
        witnesses=breaker.witnesses,
    )
    member = known or Member(name=name, url=wanted.url, breaker=Breaker(policy))
    member.breaker.policy = policy
    member.url = wanted.url
    # With `auto`, whoever tells the probes' word tells the weight as well, before anybody is chosen by it.
    member.weight = wanted.start_weight
    member.prime = wanted.prime
    member.hosts = tuple(wanted.hosts)
    member.max_requests = wanted.max_requests or settings.limits.member_requests
    member.max_launches = wanted.max_launches
    return member


def _policy(settings: config.Config, pages: ErrorPages | None) -> Policy:
    timeouts, limits, affinity = settings.timeouts, settings.limits, settings.affinity
    return Policy(
        timeouts=Timeouts(
            connect=timeouts.connect,
            request_head=timeouts.request_head,
            request_idle=timeouts.request_idle,
            response_head=timeouts.response_head,
            response_idle=timeouts.response_idle,
            keepalive=timeouts.keepalive,
            connection_age=timeouts.connection_age,
        ),
        limits=Limits(
            connections=limits.connections,
            connections_per_address=limits.connections_per_address,
            uploads_per_address=limits.uploads_per_address,
            request_head=limits.request_head,
            request_body=limits.request_body,
            replay=limits.replay,
            sessions=limits.sessions,
            idle_connections=limits.idle_connections,
            streams=limits.streams,
            http2=Allowance(**vars(limits.http2)),
        ),
        attempts=settings.retry.attempts,
        cookie=affinity.cookie,
        cookie_max_age=round(affinity.max_age),
        secret=affinity.secret is not None,
        key=affinity.key,
        launch=LaunchPolicy(
            failover=settings.launch.failover,
            hold=settings.launch.hold,
            failures=FailureTable(settings.launch.repeats, settings.launch.elsewhere),
        ),
        origin=settings.public_url,
        trusted=Networks(settings.trusted_proxies),
        bans=Bans(
            networks=Networks(settings.ban.networks),
            # Most providers of repositories ignore case, so a ban must not be evaded by it.
            repositories=tuple(
                re.compile(pattern.pattern, pattern.flags | re.IGNORECASE)
                for pattern in settings.ban.repositories
            ),
            user_agents=settings.ban.user_agents,
        ),
        rate=Rate(settings.rate.launches, settings.rate.per) if settings.rate.launches else None,
        explainers=tuple(
            hashlib.sha256(each.token.get_secret_value().encode()).digest()
            for each in settings.admin.named_tokens.values()
        ),
        failing=frozenset((500, 502, 503, 504)) if settings.breaker.count_500 else frozenset((502, 503, 504)),
        pages=Pages(pages.policy.encode("ascii"), pages.pages) if pages is not None else None,
    )


def _route(route: config.RouteSettings, settings: config.Config) -> Route:
    host = None if route.host is None else route.host == "visitor"
    action = _action(route)
    if (isinstance(action, ToMember) and action.name not in settings.active_members) or (
        isinstance(action, ToPrime) and settings.prime is None
    ):
        # It is not found yet, or not any more. Nobody else can stand in for it.
        action = Fixed(503)
    return Route(route.path, action, sessions=route.sessions, visitor_host=host)


def _action(route: config.RouteSettings) -> Action:
    if route.page is not None:
        return Local(route.page)
    if route.redirect is not None:
        return Redirect(route.redirect, route.status or 302)
    if route.status is not None:
        return Fixed(route.status)
    away = route.mode == "redirect"
    if route.to == "prime":
        return ToPrime(away)
    if route.to is None or route.to == "members":
        return ToMembers(away)
    return ToMember(route.to, away)


def find_endpoints(settings: config.Config) -> dict[str, Endpoint]:
    """The endpoint of each member. Raises ConfigError for a `ca` that is not a certificate."""
    return {name: endpoint_of(name, member) for name, member in settings.members.items() if member.active}


def endpoint_of(name: str, member: config.MemberSettings) -> Endpoint:
    """The endpoint of a member's URL. An https member's certificate is verified, with its `ca` if set.

    Raises ConfigError for a `ca` that is not a certificate.
    """
    address = member_address(member.url)
    tls = None
    if address.tls:
        try:
            # The current content of the file, so that a different content makes a different context.
            content = member.ca.read_bytes() if member.ca is not None else b""
            tls = _client_context(member.ca, hashlib.blake2b(content).digest())
        except ssl.SSLError as error:
            message = f"{member.ca} cannot be used, expected certificates as PEM"
            raise ConfigError([Fault(f"members.{name}.ca", message)]) from error
        except OSError as error:
            message = f"{member.ca} cannot be read: {error.strerror}"
            raise ConfigError([Fault(f"members.{name}.ca", message)]) from error
    return Endpoint(
        address.host,
        address.port,
        address.authority.encode("ascii"),
        address.path or None,
        tls,
        visitor_host=member.host == "visitor",
    )


@lru_cache(maxsize=64)
def _client_context(authorities: Path | None, _digest: bytes) -> ssl.SSLContext:
    """The same context for the same authorities, so that a reload keeps connections. Raises ssl.SSLError."""
    context = ssl.create_default_context(cafile=authorities)
    # What was negotiated stays: writing never has to wait for reading.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context
