"""What the answers to sessions' requests say: where sessions run, and that one is not there any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.sessions import Ground, redirected_to, sent_to_hub
from fedproxy.wire.answer import names
from fedproxy.wire.path import canonical

if TYPE_CHECKING:
    from fedproxy.errors import SessionGone
    from fedproxy.http.request import HeaderBlock
    from fedproxy.http.response import ResponseHead
    from fedproxy.proxy.ports import MemberPool
    from fedproxy.proxy.routing import RoutedRequest
    from fedproxy.proxy.runtime import Runtime

_COOKIE: Final = Source.COOKIE
_ANNOUNCED: Final = Ground.ANNOUNCED


def learn(
    runtime: Runtime,
    line: RoutedRequest,
    block: HeaderBlock,
    pool: MemberPool,
    source: Source,
    head: ResponseHead,
) -> None:
    """Notes what the answer to a session's request says about where sessions run."""
    session, status = line.session, head.status
    if 300 <= status < 400:
        location = _location(head)
        key = redirected_to(location, _hosts(line, block, pool), canonical) if location else None
        if key is not None:
            runtime.sessions.claim(key, pool.place, runtime.wall())
    elif (
        session is not None
        and session.own
        and source is _COOKIE
        and status < 300
        and line.method != b"OPTIONS"
    ):
        runtime.sessions.serve(session.keys[-1], pool.place, runtime.wall())


def find_gone(
    runtime: Runtime, line: RoutedRequest, block: HeaderBlock, pool: MemberPool, head: ResponseHead
) -> SessionGone | None:
    """The error for a person who opens a launched session whose server is not there any more; else None.

    The hub answers instead of the server then, and sends them to its own page about the user; or the
    member has nothing where the server was.
    """
    session, status = line.session, head.status
    if session is None or not session.own or line.method != b"GET" or status < 300:
        return None
    for key in session.keys:
        known = runtime.sessions.look(key)
        if known is None:
            continue
        over = status in (404, 410) and session.is_start(key)
        if 300 <= status < 400:
            over = sent_to_hub(_location(head), session, _hosts(line, block, pool))
        if over and known.ground is _ANNOUNCED and names(block.accept(), b"text/html"):
            return runtime.gone(known, block, left=False)
        return None
    return None


def _location(head: ResponseHead) -> bytes:
    """The first Location of a response; empty if there is none."""
    return next((value for name, value in head.fields() if name.lower() == b"location"), b"")


def _hosts(line: RoutedRequest, block: HeaderBlock, pool: MemberPool) -> tuple[bytes, ...]:
    """The names under which a visitor and the edge reach a member."""
    return block.visited or b"", line.authority or b"", pool.authority
