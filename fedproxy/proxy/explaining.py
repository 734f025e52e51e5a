"""Why a request goes where it goes: what decides for it, in the order in which it does.

The answer comes from what serves requests: the member is chosen as for any request, and given back at once.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease, Ranked
from fedproxy.decide.route import Action, Fixed, Local, Redirect, ToMember, ToPrime
from fedproxy.event import Event, EventName
from fedproxy.proxy.answers import refused
from fedproxy.wire.events import asked_for

if TYPE_CHECKING:
    from fedproxy.decide.federation import Federation
    from fedproxy.decide.member import Member
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.http.response import Field
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.routing import RoutedRequest
    from fedproxy.proxy.runtime import Runtime

#: The field of a request that asks for an explanation, by an admin token, and that of the answer.
ASKED: Final = b"x-fedproxy-explain"
_ANSWERED: Final = b"X-Fedproxy-Decision"
_LONGEST: Final = 2048  # bytes of the field: nginx in front takes 4 KiB for a whole head by default
#: What a source is counted as.
COUNTED: Final = {Source.RENEWED: Source.COOKIE, Source.FOUND: Source.COOKIE}

Explanation = dict[str, object]


@dataclass(frozen=True)
class Question:
    """A request that nobody makes. cookie: the value of the affinity cookie; None for a new visitor.

    host: empty for none. client: the visitor's address. accept: the field's value.
    """

    target: str
    host: str = ""
    cookie: str | None = None
    accept: str = "*/*"
    client: str = "127.0.0.1"


def answer(context: Context, question: Question) -> Explanation:
    """What would become of a request. Raises `VisitorError` for one that no visitor could make."""
    runtime = context.runtime
    line = runtime.heads.lines[f"GET {question.target} HTTP/1.1".encode("latin-1", "replace")]
    fields = [f"Host: {question.host or 'localhost'}", f"Accept: {question.accept}"]
    if question.cookie is not None:
        fields.append(f"Cookie: {runtime.policy.cookie}={question.cookie}")
    block = runtime.heads.blocks["\r\n".join([*fields, "", ""]).encode("latin-1", "replace")]
    return explain(context, line, block, question.client.encode("ascii", "replace"))


def explain(context: Context, line: RoutedRequest, block: HeaderBlock, client: bytes) -> Explanation:
    """What becomes of a request, and why."""
    runtime, now = context.runtime, context.clock()
    launch = line.launch and asked_for(block.raw)
    kind = "launch" if launch else "session" if line.stays else "page"
    route = runtime.router.find(line.path)
    found: Explanation = {
        "kind": kind,
        "route": None if route is None else route.path,
        "action": describe(line.action),
    }
    if client in runtime.policy.bans.networks or line.banned or block.banned:
        found["refused"] = "banned"
        return found
    if not isinstance(line.action, (Fixed, Redirect, Local)):
        with _asking(runtime.federation):
            _explain_choice(found, runtime, line, block, client, now, launch)
    return found


@contextmanager
def _asking(federation: Federation) -> Iterator[None]:
    """A question is no traffic: nothing that is chosen for it counts, or changes what is chosen next."""
    waits, prime = federation.waits, federation.prime
    resorts = prime.counts.last_resort if prime is not None else 0
    told = [member.on_short for member in federation.members]
    for member in federation.members:
        member.on_short = None
    if waits is not None:
        waits.frozen = True
    try:
        yield
    finally:
        for member, on_short in zip(federation.members, told, strict=True):
            member.on_short = on_short
        if waits is not None:
            waits.frozen = False
        if prime is not None:
            prime.counts.last_resort = resorts


def describe(action: Action) -> str:
    """An action in words."""
    if isinstance(action, Local):
        return f"the edge's own page: {action.page}"
    if isinstance(action, Redirect):
        return f"redirect to {action.location} ({action.status})"
    if isinstance(action, Fixed):
        return f"status {action.status}"
    if isinstance(action, ToPrime):
        to = "the prime member"
    elif isinstance(action, ToMember):
        to = f"the member {action.name}"
    else:
        to = "any member"
    return f"redirect to {to}" if action.redirect else f"to {to}"


def _explain_choice(
    found: Explanation,
    runtime: Runtime,
    line: RoutedRequest,
    block: HeaderBlock,
    client: bytes,
    now: float,
    launch: bool,
) -> None:
    federation = runtime.federation
    key = runtime.key(line, client)
    found["balancer"] = federation.policy.balancer
    found["key"] = None if key is None else key.decode("latin-1")
    pin = runtime.pins.find(block.cookie)
    found["cookie"] = None if pin is None else pin.member.name
    session = line.session
    if session is not None:
        known = runtime.sessions.find(session.keys, runtime.wall())
        found["session"] = None if known is None else known.place.name
    lease = runtime.choose(line, block, client, now, launch)
    chosen = None
    if isinstance(lease, Lease):
        chosen = lease.member
        source = COUNTED.get(lease.source, lease.source)
        federation.spare(lease, now, client)
        federation.settle(lease, Outcome.IGNORED, now, client)
        found["member"], found["source"] = chosen.name, source.value
        found["last_resort"] = chosen is federation.prime and not chosen.available(now, launch, client)
    else:
        found["member"], found["refused"] = None, refused(lease).reason
    found["next"] = list(_next(runtime, line, block, chosen, key, client, now, launch))
    found["ranking"] = [_told(each) for each in federation.rank(key, now, launch, client, line.image)]


def _next(
    runtime: Runtime,
    line: RoutedRequest,
    block: HeaderBlock,
    chosen: Member | None,
    key: bytes | None,
    client: bytes,
    now: float,
    launch: bool,
) -> Iterator[str]:
    """Who would be asked if the members before fail, as far as attempts go."""
    if chosen is None or not runtime.may_move(line, block):
        return
    tried = [chosen]
    federation = runtime.federation
    while len(tried) < runtime.policy.attempts:
        lease = federation.acquire(key, None, tried, now, launch, client, line.image)
        if not isinstance(lease, Lease):
            return
        federation.spare(lease, now, client)
        federation.settle(lease, Outcome.IGNORED, now, client)
        tried.append(lease.member)
        yield lease.member.name


def _told(ranked: Ranked) -> Explanation:
    told: Explanation = {"member": ranked.member.name, "score": None, "share": ranked.share}
    if ranked.score is not None:
        told["score"] = round(ranked.score, 6)
    cost = ranked.cost
    if cost is not None:
        told |= {
            "wait": round(cost.wait, 1),
            "price": round(cost.price, 1),
            "image": "building" if cost.joins else round(cost.chance, 3),
        }
    told["in_flight"] = ranked.member.in_flight
    told["out"] = ranked.out
    return told


# On request, in a response


def may_ask(context: Context, block: HeaderBlock, client: bytes) -> bool:
    """Whether a request has an admin token that asks for an explanation. A wrong one is reported."""
    given = sha256(block.value(ASKED)).digest()
    # All are compared: the time tells nothing about any token.
    matches = [hmac.compare_digest(given, each) for each in context.runtime.policy.explainers]
    if any(matches):
        return True
    text = "a visitor's request for an explanation was refused: its token is wrong"
    who = client.decode("latin-1")
    context.report(Event(EventName.OPERATOR_REFUSED, text, who=who, key="explanation"))
    return False


def field(found: Explanation) -> Field:
    """An explanation as a field of a response; what is too long has no ranking."""
    value = json.dumps(found, separators=(",", ":")).encode("ascii")
    if len(value) > _LONGEST:
        shorter = {name: each for name, each in found.items() if name not in ("ranking", "next")}
        value = json.dumps(shorter, separators=(",", ":")).encode("ascii")[:_LONGEST]
    return (_ANSWERED, value)


def explained(context: Context, line: RoutedRequest, block: HeaderBlock, origin: Origin) -> tuple[Field, ...]:
    """What an answer without an exchange says besides: the explanation, if whoever asks may have it."""
    return (
        (field(explain(context, line, block, origin.client)),)
        if may_ask(context, block, origin.client)
        else ()
    )
