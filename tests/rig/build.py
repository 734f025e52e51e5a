"""Members for the tests of decisions."""

from __future__ import annotations

import random
from typing import Any

from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.federation import Federation, FederationPolicy
from fedproxy.decide.member import Member


def member(name: str = "gesis", policy: BreakerPolicy | None = None, **settings: Any) -> Member:
    return Member(name, f"https://{name}.example.org", Breaker(policy or BreakerPolicy()), **settings)


def federation(*members: Member, **policy: Any) -> Federation:
    return Federation(members, FederationPolicy(**{"balancer": "rendezvous", **policy}), random.Random(7))
