"""The `config.json` of federation-redirect, fedproxy's predecessor, as a fedproxy config.

That program redirected `/build/` to a member with a 307 and badges to static.mybinder.org with a 301,
answered `/metrics` itself, and forwarded everything else to the prime member. A host that is null, or has no
weight, takes no part. `admin`, `trusted_proxies` and `silence` may be added to its keys, so that the same
file sets the address for Kubernetes and Prometheus, whom to trust about addresses, and what needs no warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict

from fedproxy.config import address as addr
from fedproxy.config import units
from fedproxy.config.advice import WARNING
from fedproxy.config.check import model_from
from fedproxy.config.model import (
    AdminSettings,
    Amount,
    Config,
    Count,
    CountOrNone,
    Flag,
    HealthSettings,
    Probed,
    Seconds,
    Section,
)
from fedproxy.config.places import Finding
from fedproxy.config.units import Kind, Network

_BADGES = {
    "/badge_logo.svg": "https://static.mybinder.org/badge_logo.svg",
    "/badge.svg": "https://static.mybinder.org/badge.svg",
    "/assets/images/badge.svg": "https://static.mybinder.org/badge.svg",
}
_HEALTH = HealthSettings()
_BESIDE = ("admin", "trusted_proxies", "silence")
_HOURS = Kind("number", "a number of hours above 0", units.within(units.number, 0, 87_600, above=True))


class _Lenient(Section):
    """Unknown keys come from the chart, which writes all of its values into the file."""

    model_config = ConfigDict(extra="ignore")


class _Check(_Lenient):
    period: Seconds = _HEALTH.interval
    jitter: Annotated[float, units.SHARE] = _HEALTH.jitter
    retries: Count = _HEALTH.fall
    timeout: Seconds = _HEALTH.timeout
    failed_period: Seconds = _HEALTH.unhealthy_interval


class _Host(_Lenient):
    url: Annotated[str, addr.MEMBER_URL]
    weight: Amount = 1.0
    prime: Flag = False
    health: Probed = "/health"
    versions: Probed = "/versions"


class _Legacy(_Lenient):
    hosts: Mapping[Annotated[str, addr.MEMBER_NAME], _Host]
    check: _Check = _Check()
    load_balancer: Literal["rendezvous", "random"] = "rendezvous"
    pod_headroom: CountOrNone = _HEALTH.pod_headroom
    host_cookie_age_hours: Annotated[float, _HOURS] | None = None
    admin: AdminSettings = AdminSettings()
    trusted_proxies: tuple[Annotated[Network, units.NETWORK], ...] = ()
    silence: tuple[Annotated[str, WARNING], ...] = ()


def is_legacy(data: object) -> bool:
    """Whether `data` is of the old format."""
    return isinstance(data, dict) and "hosts" in data and "members" not in data


def convert_data(data: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The old format as data of the new one, and its faults with key paths of the old one."""
    findings: list[Finding] = [
        Finding((key,), "is not a key of the old format, expected `members` instead of `hosts`", of_key=True)
        for key in Config.model_fields
        if key in data and key not in _BESIDE
    ]
    hosts = data["hosts"]
    if isinstance(hosts, dict):
        data = {**data, "hosts": {name: host for name, host in hosts.items() if host is not None}}
    legacy, faults = model_from(_Legacy, data)
    findings += faults
    if legacy is None:
        return {}, findings
    primes = [name for name, host in legacy.hosts.items() if host.prime]
    if not primes:
        findings.append(Finding(("hosts",), "has no host with `prime`, expected one"))
        return {}, findings
    beside = {key: data[key] for key in _BESIDE if data.get(key) is not None}
    return beside | _converted(legacy, primes[0]), findings


def _converted(legacy: _Legacy, prime: str) -> dict[str, Any]:
    check = legacy.check
    age = legacy.host_cookie_age_hours
    return {
        "affinity": {"key": "repository"} | ({"max_age": units.format_duration(age * 3600)} if age else {}),
        "balancer": legacy.load_balancer,
        # The old program did not count requests in flight: use a bound that is never reached.
        "load_bound": 1000,
        "health": {
            "interval": units.format_duration(check.period),
            "jitter": check.jitter,
            "timeout": units.format_duration(check.timeout),
            "fall": check.retries,
            "unhealthy_interval": units.format_duration(check.failed_period),
            "pod_headroom": legacy.pod_headroom,
            "slow_start": "0s",
        },
        # The prime member serves everything except launches, so it stays even without a weight.
        "members": {
            name: _member(host, prime=name == prime)
            for name, host in legacy.hosts.items()
            if host.weight or name == prime
        },
        "routes": [
            *({"path": path, "redirect": url, "status": 301} for path, url in _BADGES.items()),
            {"path": "/metrics", "page": "metrics"},
            {"path": "/build/*", "to": "members", "mode": "redirect"},
            {"path": "/*", "to": "prime"},
        ],
    }


def _member(host: _Host, *, prime: bool) -> dict[str, Any]:
    member: dict[str, Any] = {
        "url": host.url,
        "weight": int(host.weight) if host.weight.is_integer() else host.weight,
    }
    if prime:
        member["prime"] = True
    for key, default in ("health", "/health"), ("versions", "/versions"):
        probed = getattr(host, key)
        if probed not in (default, host.url + default):
            member[key] = probed
    return member
