"""From what an operator wrote to what the prober is handed. Only the control process probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.control.prober import ProbePolicy, Target
from fedproxy.serve.assemble import find_endpoints

if TYPE_CHECKING:
    from fedproxy.config.model import Config

# Seconds. Every few rounds a new connection tests what visitors meet who have none yet: the name, the way
# there, the certificate, and that the member accepts at all. Most servers also close what is idle for longer.
_LONGEST_KEPT: Final = 60.0


def find_targets(settings: Config) -> list[Target]:
    """Where each member is probed. Raises ConfigError as `find_endpoints` does."""
    targets = []
    for name, endpoint in find_endpoints(settings).items():
        member = settings.members[name]
        base = "http://localhost" if endpoint.path else member.url
        health, versions = (
            base.rstrip("/") + url if url.startswith("/") else url for url in (member.health, member.versions)
        )
        targets.append(
            Target(name, health, versions, member.prime, endpoint.path, endpoint.tls, member.reserve)
        )
    return targets


def probe_policy(settings: Config) -> ProbePolicy:
    """How members are probed."""
    health = settings.health
    return ProbePolicy(
        interval=health.interval,
        jitter=health.jitter,
        timeout=health.timeout,
        rise=health.rise,
        fall=health.fall,
        unhealthy_interval=health.unhealthy_interval,
        pod_headroom=health.pod_headroom,
        versions=health.versions,
        pages=True,
        connection_age=min(_LONGEST_KEPT, settings.timeouts.connection_age or _LONGEST_KEPT),
    )
