"""Candidates whose answers are scripted, and what is said of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fedproxy.control.candidate import Candidate, Check, CheckOutcome, Examination, examine
from fedproxy.control.candidate.check import EXPECTED
from tests.rig.member import Conn, Script, Scripted, per_request
from tests.rig.message import Message, chunked

OK, WARNING, FAILED, SKIPPED = CheckOutcome
EVERY = [*EXPECTED]
#: What is so with every candidate on loopback, without TLS, a reference or a trial launch.
USUAL = {
    "address": WARNING,
    **dict.fromkeys(
        ["membership", "name", "ipv6", "tls", "http2", "certificate", "clock", "build token"], SKIPPED
    ),
    **dict.fromkeys(["forwarded addresses", "trial launches", "session", "websocket"], SKIPPED),
}
PATIENT = 30.0
VERSIONS = {"binderhub": "1.0", "builder": "b"}
HEALTH = {"ok": True, "checks": [{"service": "Pod quota", "total_pods": 3, "quota": 100, "ok": True}]}
EVENT_STREAM = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"
CORS = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: cache-control\r\n"
PAGE = (
    b'<a href="/a.js.html"></a><script src="/static/x.js"></script><script src="/static/bundle.js?v=1&amp;w">'
)


async def probe(url: str, **settings: Any) -> Examination:
    settings.setdefault("timeout", PATIENT)
    return await examine(Candidate(url, **settings))


def of(report: Examination) -> dict[str, Check]:
    assert [check.name for check in report.checks if check.name not in EVERY] == [
        check.name for check in report.checks if check.name.startswith("health: ")
    ]
    checks = {check.name: check for check in report.checks}
    assert len(checks) == len(report.checks)
    assert set(checks) >= set(EVERY)
    json.dumps([dict(check.values) for check in report.checks])
    for check in report.checks:
        assert check.seen
        assert check.expected
        assert bool(check.fix) == (check.outcome in (WARNING, FAILED)), check
        assert (check.seen + check.fix).isprintable()
        assert len(check.seen) <= 200
    return checks


def not_ok(report: Examination) -> dict[str, CheckOutcome]:
    """What is not well, but for what is usual."""
    return {
        name: check.outcome
        for name, check in of(report).items()
        if check.outcome is not OK and USUAL.get(name) is not check.outcome
    }


# A BinderHub whose answers are scripted

Answers = dict[bytes, bytes | Callable[[Conn], Awaitable[None]]]


def whole(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def event(**event: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(event).encode()


def head(fields: bytes = EVENT_STREAM + CORS, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, fields)


async def stream(conn: Conn) -> None:
    """Events with time between them, until nobody listens."""
    conn.send(head())
    while not conn.reader.at_eof():
        conn.send(chunked(event(phase="building", message="step"))[:-5])
        await asyncio.sleep(0.02)


BUILD = b"/build/gh/binder-examples/requirements/HEAD"
NO_LAUNCH = b"/build/fedproxy-probe/none/HEAD"
PREFLIGHT = b"OPTIONS " + BUILD
WELL: Answers = {
    b"/versions": whole(json.dumps(VERSIONS).encode()),
    b"/health": whole(json.dumps(HEALTH).encode()),
    b"/": whole(PAGE),
    b"/static/bundle.js?v=1&w": whole(b"x" * 500_000),
    b"/v2/gh/binder-examples/requirements/HEAD": whole(PAGE),
    BUILD: stream,
    NO_LAUNCH: head() + chunked(event(phase="failed", message="No provider found for prefix fedproxy-probe")),
    PREFLIGHT: whole(b"", b"204 No Content", CORS),
}


def hub(answers: Answers) -> Script:
    async def handle(conn: Conn, request: Message) -> None:
        verb = b"" if request.method == b"GET" else request.method + b" "
        what = answers[verb + request.target]
        if isinstance(what, bytes):
            conn.send(what)
        else:
            await what(conn)
            conn.close()

    return per_request(handle)


@asynccontextmanager
async def member(script: Script, **settings: Any) -> AsyncIterator[Scripted]:
    scripted = Scripted(script, **settings)
    await scripted.start()
    try:
        yield scripted
    finally:
        await scripted.stop()


async def probed(changes: Answers | None = None, **settings: Any) -> Examination:
    async with member(hub({**WELL, **(changes or {})})) as candidate:
        return await probe(candidate.url, **settings)


def piece(*events: bytes) -> bytes:
    return chunked(b"".join(events))[:-5]
