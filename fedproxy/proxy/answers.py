"""The edge's own answers, as neutral responses: errors, redirects, fixed statuses and preflights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.decide.route import Fixed, Redirect
from fedproxy.errors import AllFull, EdgeError, ExchangeError, NoMember, SessionGone, TooManyLaunches
from fedproxy.http.response import PHRASES, Field, Response
from fedproxy.wire.answer import PASSING, render, wants_page
from fedproxy.wire.pages import AUTO, LINK, NONE, Pages

if TYPE_CHECKING:
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.routing import RoutedRequest

_AFTER: Final = 30  # seconds, after which it may be worth trying again
# HEAD has what GET would have.
_REPEATED: Final = (b"GET", b"HEAD")
_FIXED: Final = {404: "There is nothing here."}
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_NOT_STORED: Final = (b"Cache-Control", b"no-store")
# What pages of other sites may read: a launch that they embed, which BinderHub lets them read as well.
_ANY_ORIGIN: Final = (b"Access-Control-Allow-Origin", b"*")
_PREFLIGHT: Final = (
    (b"Allow", _METHODS),
    _ANY_ORIGIN,
    (b"Access-Control-Allow-Methods", _METHODS),
    # The asterisk does not stand for Authorization (Fetch standard, section 4.9).
    (b"Access-Control-Allow-Headers", b"*, Authorization"),
    (b"Access-Control-Max-Age", b"7200"),
)


class AnsweredRequest:
    """A request that is answered without an exchange. trusted: a trusted proxy sent it."""

    __slots__ = ("block", "line", "origin", "request_id", "traceparent", "trusted")

    def __init__(
        self,
        line: RoutedRequest,
        block: HeaderBlock,
        origin: Origin,
        request_id: bytes,
        traceparent: bytes,
        trusted: bool,
    ) -> None:
        self.line = line
        self.block = block
        self.origin = origin
        self.request_id = request_id
        self.traceparent = traceparent
        self.trusted = trusted


class Asked:
    """What an error's form depends on. pages: those that people get; None for a plain one."""

    __slots__ = ("block", "line", "pages", "request_id")

    def __init__(
        self, line: RoutedRequest, block: HeaderBlock, request_id: bytes, pages: Pages | None
    ) -> None:
        self.line = line
        self.block = block
        self.request_id = request_id
        self.pages = pages


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that the edge gives by itself, and what the log says of it besides."""

    response: Response
    status: int  # for the log: a launch that fails is answered 200
    termination: str = "--"
    member: str | None = None
    source: Source | None = None


def refused(why: Refusal | EdgeError) -> EdgeError:
    """What a visitor is told if there is no lease."""
    if isinstance(why, EdgeError):
        return why
    return AllFull() if why is Refusal.FULL else NoMember()


def common(request_id: bytes, hsts: int) -> tuple[Field, ...]:
    """What every response to a request says. hsts: seconds; 0 says nothing."""
    named = (b"X-Request-ID", request_id)
    if not hsts:
        return (named,)
    # RFC 6797 section 6.1: on every response.
    return ((b"Strict-Transport-Security", b"max-age=%d" % hsts), named)


def unread(status: int, detail: str, common: tuple[Field, ...], *, build: bool = False) -> Response:
    """An error as one line of text: nothing that the request says can be trusted.

    common: what every response on this connection has. build: it is for `/build/`.
    """
    answer = render(status, detail, "", None, build)
    return Response(answer.status, answer.content_type, answer.body, _fields(status, common, build, _AFTER))


def error(
    status: int,
    detail: str,
    common: tuple[Field, ...],
    request: Asked,
    *,
    situation: str = "error",
    after: int = _AFTER,
    start: str | None = None,
) -> Response:
    """An error, in the form that the request asks for.

    detail: one line for the visitor. situation: which page people get. after: seconds, for Retry-After.
    start: the target of a page that starts what is not there any more.
    """
    line = request.line
    build = line.build
    accept = request.block.accept()
    request_id = request.request_id.decode("ascii")
    fields: tuple[Field, ...] = (*_fields(status, common, build, after), (b"Vary", b"Accept"))
    pages = request.pages
    if pages is None or not wants_page(accept, build):
        answer = render(status, detail, request_id, accept, build, start)
        return Response(answer.status, answer.content_type, answer.body, fields)
    # Under a session's path is nothing that launches, whatever it looks like.
    launch = line.renews and not line.stays
    choice = pages.find(situation, launch, _retry(status, line, situation))
    page = choice.find(b",".join(request.block.values(b"accept-language")))
    body = page.fill(
        {
            "status": str(status),
            "phrase": PHRASES.get(status, "Error"),
            "detail": detail,
            "request_id": request_id,
            "retry_after": str(after),
            "start": start or "/",
        }
    )
    if choice.several:
        fields = (*fields[:-1], (b"Vary", b"Accept, Accept-Language"))
    fields += ((b"Content-Language", page.language), (b"Content-Security-Policy", pages.policy))
    return Response(status, b"text/html; charset=utf-8", body, fields)


def _fields(status: int, common: tuple[Field, ...], build: bool, after: int) -> tuple[Field, ...]:
    fields: tuple[Field, ...] = (_NOT_STORED, *common)
    if build:
        fields += (_ANY_ORIGIN,)
    if status in (429, 503):
        fields += ((b"Retry-After", b"%d" % after),)
    elif status == 405:
        # RFC 9110 section 15.5.6; what else a member allows is its own to say.
        fields += ((b"Allow", _METHODS),)
    return fields


def _retry(status: int, line: RoutedRequest, situation: str) -> str:
    """Whether a page offers to ask again, or does so by itself."""
    if status not in PASSING or line.method not in _REPEATED:
        return NONE
    # A launch costs a member much, a limit is for people to wait for, and a fixed answer stays as it is.
    return LINK if status == 429 or line.build or situation == "error" else AUTO


def of_error(
    fault: ExchangeError,
    line: RoutedRequest,
    block: HeaderBlock | None,
    common: tuple[Field, ...],
    request_id: bytes,
    pages: Pages | None,
) -> Response:
    """What a request whose line was read is answered; `block` is None if nothing it says may be trusted."""
    if block is None:
        return unread(fault.status, fault.detail, common, build=line.build)
    return error(
        fault.status,
        fault.detail,
        common,
        Asked(line, block, request_id, pages),
        situation=fault.situation,
        after=math.ceil(fault.after) if isinstance(fault, TooManyLaunches) else _AFTER,
        start=(fault.launch.decode("ascii") or "/") if isinstance(fault, SessionGone) else None,
    )


def of_route(context: Context, request: AnsweredRequest, common: tuple[Field, ...]) -> Answer:
    """The answer to a request that its route answers here: not passed on, and no page of the edge's own."""
    line = request.line
    action = line.action
    if isinstance(action, Fixed):
        status = action.status
        if status < 400:
            return Answer(Response(status, fields=common), status)
        detail = _FIXED.get(status) or PHRASES.get(status, "This path is not served here.")
        asked = Asked(line, request.block, request.request_id, context.runtime.policy.pages)
        response = error(status, detail, common, asked)
        return Answer(response, status)
    if isinstance(action, Redirect):
        location = (b"Location", action.location.encode("latin-1"))
        return Answer(Response(action.status, fields=(*common, location)), action.status)
    if line.build and line.method == b"OPTIONS":
        return Answer(Response(204, fields=(*common, *_PREFLIGHT)), 204)
    return _to_member(context, request, common)


def turned_away(
    context: Context, fault: ExchangeError, request: AnsweredRequest, common: tuple[Field, ...]
) -> Answer:
    """The answer to a request that is in order but not served."""
    pages = context.runtime.policy.pages
    response = of_error(fault, request.line, request.block, common, request.request_id, pages)
    return Answer(response, fault.status, fault.termination)


def _to_member(context: Context, request: AnsweredRequest, common: tuple[Field, ...]) -> Answer:
    """307 to the member that would have served it, with the target as it came."""
    line, origin = request.line, request.origin
    now = context.clock()
    lease = context.runtime.choose(line, request.block, origin.client, now)
    if not isinstance(lease, Lease):
        fault = refused(lease)
        context.counts.rejected[fault.reason] += 1
        return turned_away(context, fault, request, common)
    context.runtime.federation.settle(lease, Outcome.IGNORED, now)
    member, source = lease.member, lease.source
    cookie = context.runtime.cookie(line, request.block, member, source, origin.secure)
    if source in (Source.RENEWED, Source.FOUND):
        source = Source.COOKIE
    member.counts.codes[307] += 1
    member.counts.affinity[source] += 1
    fields = (*common, (b"Location", member.url.rstrip("/").encode("ascii") + line.target))
    if line.build:
        fields += (_ANY_ORIGIN,)
    if cookie is not None:
        fields += ((b"Set-Cookie", cookie),)
    return Answer(Response(307, fields=fields), 307, member=member.name, source=source)
