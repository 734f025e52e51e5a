"""From what an operator wrote to what the hot path is handed."""

from __future__ import annotations

import ipaddress
import random
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fedproxy.decide.affinity import cookie_value
from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.federation import Federation, FederationPolicy
from fedproxy.decide.member import Member
from fedproxy.decide.retry import RetryBudget
from fedproxy.decide.route import Action, Fixed, Redirect, Route, Router, ToMember, ToMembers, ToPrime
from fedproxy.proxy.policy import Endpoint, Limits, Policy, Timeouts

if TYPE_CHECKING:
    from fedproxy.config import Config
    from fedproxy.proxy.edge import Edge


def assemble(edge: Edge, config: Config) -> None:
    """Puts `config` in force. Members that stay keep their state, and so do the connections to them."""
    known = edge.federation.by_name if edge.pools else {}
    active = {name: member for name, member in config.members.items() if member.active}
    members = [_member(name, config, known.get(name)) for name in active]
    federation = Federation(
        members,
        FederationPolicy(
            balancer=config.balancer,
            load_bound=config.load_bound,
            max_ejected=config.breaker.max_ejected,
            slow_start=config.health.slow_start,
        ),
        rng=random.Random(),  # noqa: S311 -- spreads load, guards nothing
    )
    secret = config.affinity.secret
    edge.apply(
        policy=_policy(config),
        federation=federation,
        endpoints={name: endpoint(member.url, member.ca) for name, member in active.items()},
        cookie_values={name: cookie_value(name, secret) for name in active},
        router=Router([Route(route.path, _action(route)) for route in config.routes]),
        budget=RetryBudget(config.retry.budget, config.retry.floor),
    )


def _member(name: str, config: Config, known: Member | None) -> Member:
    settings = config.members[name]
    breaker = config.breaker
    member = known or Member(
        name=name,
        url=settings.url,
        breaker=Breaker(
            BreakerPolicy(
                failures=breaker.failures,
                ratio=breaker.ratio,
                window=breaker.window,
                minimum=breaker.minimum,
                open=breaker.open,
                open_max=breaker.open_max,
                trials=breaker.trials,
            )
        ),
    )
    member.url = settings.url
    member.weight = settings.weight
    member.prime = settings.prime
    member.hosts = tuple(settings.hosts)
    member.max_requests = settings.member_requests or config.limits.member_requests
    member.max_launches = settings.max_launches
    return member


def _policy(config: Config) -> Policy:
    timeouts, limits, affinity = config.timeouts, config.limits, config.affinity
    return Policy(
        timeouts=Timeouts(
            connect=timeouts.connect,
            request_head=timeouts.request_head,
            request_idle=timeouts.request_idle,
            response_head=timeouts.response_head,
            response_idle=timeouts.response_idle,
            keepalive=timeouts.keepalive,
        ),
        limits=Limits(
            connections=limits.connections,
            request_head=limits.request_head,
            request_body=limits.request_body,
            replay=limits.replay,
            idle_connections=limits.idle_connections,
        ),
        attempts=config.retry.attempts,
        cookie=affinity.cookie,
        cookie_max_age=round(affinity.max_age),
        key=affinity.key,
        origin=config.public_url,
        trusted=tuple(ipaddress.ip_network(network) for network in config.trusted_proxies),
        failing=frozenset((500, 502, 503, 504)) if config.breaker.count_500 else frozenset((502, 503, 504)),
    )


def _action(route: object) -> Action:
    to = getattr(route, "to", None)
    redirect = getattr(route, "redirect", None)
    status = getattr(route, "status", None)
    if redirect is not None:
        return Redirect(redirect, status or 302)
    if status is not None:
        return Fixed(status)
    away = getattr(route, "mode", "proxy") == "redirect"
    if to == "prime":
        return ToPrime(away)
    if to in (None, "members"):
        return ToMembers(away)
    return ToMember(str(to), away)


def endpoint(url: str, ca: object = None) -> Endpoint:
    """Where a member's URL leads. An https member's certificate is verified, by `ca` if it is given."""
    if url.startswith("unix:"):
        return Endpoint(host="localhost", port=0, authority=b"localhost", path=url.removeprefix("unix:"))
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    tls = None
    if secure:
        tls = ssl.create_default_context(cafile=str(ca) if ca else None)
        tls.set_alpn_protocols(["http/1.1"])
    return Endpoint(
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        authority=parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii"),
        tls=tls,
    )
