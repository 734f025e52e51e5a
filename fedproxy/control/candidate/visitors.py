"""Whether a candidate believes what is said of visitors' addresses, as far as that can be seen.

BinderHub counts launches without a build token per address, and its answer says how many are left for the
address that it believes: `X-RateLimit-Remaining`. It also counts a launch of a provider that it does not
have, which starts nothing. Two of those show whether an address that a request names counts as the visitor's:
one without such an address, and one with an address that nobody has.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedproxy.control.candidate.check import Candidate, Check, CheckOutcome, make
from fedproxy.control.candidate.client import CandidateClient, Heard, Silence

#: How the message of a launch begins that is one too many.
RATE_LIMIT: Final = "Rate limit exceeded"
# Documentation's networks (RFC 5737): nobody's addresses.
_NOBODY: Final = tuple(map(ipaddress.IPv4Network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))
_BY_HAND: Final = "check by hand: launch through an edge, and look for your own address in BinderHub's log"


@dataclass(frozen=True)
class Left:
    """What is left of a rate limit: launches, and until when, in seconds since the epoch."""

    launches: int
    reset: int


def left_of(heard: Heard | Silence | None) -> Left | None:
    """What a refused launch says of the rate limit; None if nothing."""
    if heard is None or isinstance(heard, Silence):
        return None
    try:
        return Left(
            int(heard.headers.get("X-RateLimit-Remaining", "")),
            int(heard.headers.get("X-RateLimit-Reset", "")),
        )
    except ValueError:
        return None


def _is_used_up(heard: Heard | Silence) -> bool:
    """Whether the next refused launch would not be counted any more."""
    left = left_of(heard)
    if left is not None:
        return left.launches < 1
    failure = None if isinstance(heard, Silence) else heard.failure
    return failure is not None and str(failure.get("message", "")).startswith(RATE_LIMIT)


async def ask_forwarded(
    candidate: Candidate, client: CandidateClient, own: Heard | Silence, launch_host: str
) -> Check:
    """The check of forwarded addresses. `own`: a refused launch without one. `launch_host`: see `Heard`.

    Sends one more of those, and if that one seems to be believed, two to make sure: none of them counts for
    this machine's address then.
    """
    if _is_used_up(own):
        seen = "the rate limit of this machine's address is used up: probe again in an hour"
        return make("forwarded addresses", CheckOutcome.SKIPPED, seen, believed=None)
    before = left_of(own)
    named: list[Left | None] = []
    if before is not None:
        network = _NOBODY[secrets.randbelow(len(_NOBODY))]
        first = secrets.randbelow(network.num_addresses - 1)
        one, other = str(network[first]), str(network[first + 1])
        named.append(left_of(await client.refuse(one)))
        if named[0] is not None and named[0].launches != before.launches - 1:
            named += [left_of(await client.refuse(one)), left_of(await client.refuse(other))]
    return judge_scheme(candidate, judge_forwarded(candidate, before, named), launch_host)


def judge_scheme(candidate: Candidate, check: Check, launch_host: str) -> Check:
    """The check of addresses, and whether the scheme reached BinderHub, by the URL that it gives itself."""
    wrong = candidate.address.tls and launch_host.startswith("http:")
    if not wrong or check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNING):
        return check
    fix = "Send X-Forwarded-Proto to BinderHub: it believes that visitors use http, and makes such links."
    seen = f"it calls itself {launch_host}; addresses: {check.seen}"
    return make(check.name, CheckOutcome.WARNING, seen, fix, **check.values, launch_host=launch_host)


def judge_forwarded(candidate: Candidate, own: Left | None, named: Sequence[Left | None]) -> Check:
    """The check: what was left for this machine's address, and for others that were named.

    `named`: for one address, for that again, and for another one.
    """
    name = "forwarded addresses"
    if own is None:
        seen = f"it says nothing about a rate limit; {_BY_HAND}"
        return make(name, CheckOutcome.SKIPPED, seen, believed=None)
    left = [each.launches for each in named if each is not None]
    believed: bool | None = None
    if left == [own.launches - 1]:
        believed = False
    # What several replicas count, each for itself, may look like the beginning of this, but hardly all of it.
    elif len(left) == 3 and left[0] == left[2] == left[1] + 1:
        believed = True
    values: dict[str, Any] = {"believed": believed, "from_edge": candidate.from_edge}
    if believed is None:
        seen = f"its rate limit is not counted in one place (several replicas?); {_BY_HAND}"
        return make(name, CheckOutcome.SKIPPED, seen, **values)
    if candidate.from_edge:
        if believed:
            return make(name, CheckOutcome.OK, "believed from this machine, an edge", **values)
        fix = (
            "Trust the edges' addresses at what stands in front of BinderHub, for X-Forwarded-For and "
            "X-Real-IP: otherwise all visitors share one rate limit, and a ban of one is a ban of all."
        )
        return make(name, CheckOutcome.FAILED, "not believed from this machine, an edge", fix, **values)
    if believed:
        fix = (
            "Trust X-Forwarded-For and X-Real-IP from the edges' addresses only: otherwise anybody can "
            "invent one and escape rate limits and bans. If this machine is an edge, probe with --from-edge."
        )
        return make(
            name, CheckOutcome.WARNING, "believed from this machine, which is not an edge", fix, **values
        )
    seen = "not believed from this machine, which is not an edge; also probe from one, with --from-edge"
    return make(name, CheckOutcome.OK, seen, **values)
