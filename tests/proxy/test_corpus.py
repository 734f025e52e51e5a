"""The same bytes as recorded: a corpus of exchanges, each sent whole and in pieces.

What members were sent and what visitors were sent is in `corpus.json`. A change that is meant to alter bytes
records it anew, and its diff shows every exchange that is affected:

    RECORD=1 python -m pytest tests/proxy/test_corpus.py
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Edge, RawClient, chunked, edge
from tests.rig.member import Conn

FILE = Path(__file__).with_name("corpus.json")
RECORD = os.environ.get("RECORD") == "1"
QUIET = 10  # turns of the loop without a byte, after which an exchange is taken for over
PATIENCE = 500  # turns, as long as it is not what was recorded
SPLITS = {"whole": 1 << 20, "in sevens": 7}
NEVER = 1_000_000

HOST = b"Host: hub.test\r\n"
BROWSER = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Connection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\n"
)
LAUNCH = b"Accept: text/event-stream\r\n"


def request(start: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    return start + b" HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def old(start: bytes, *lines: bytes) -> bytes:
    return request(start, *lines).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


REQUESTS: dict[str, bytes] = {
    "GET": request(b"GET /"),
    "GET of a browser": request(b"GET /v2/gh/a/b/HEAD?urlpath=lab", BROWSER.removesuffix(b"\r\n")),
    "GET with our cookie": request(b"GET /x", b"Cookie: fedproxy_member=a"),
    "GET with cookies": request(b"GET /x", b"Cookie: _ga=1; fedproxy_member=a; token=2"),
    "GET with a cookie of nobody": request(b"GET /x", b"Cookie: fedproxy_member=gone"),
    "HEAD": request(b"HEAD /x"),
    "GET 1.0": old(b"GET /x"),
    "GET 1.0 kept": old(b"GET /x", b"Connection: keep-alive"),
    "GET and close": request(b"GET /x", b"Connection: close"),
    "POST with a length": request(b"POST /x", b"Content-Length: 5", body=b"hello"),
    "POST in chunks": request(b"POST /x", b"Transfer-Encoding: chunked", body=chunked(b"hello", b"you")),
    "two GETs": request(b"GET /1") + request(b"GET /2"),
    "launch": request(b"GET /build/gh/a/b/HEAD", LAUNCH.removesuffix(b"\r\n")),
    "WebSocket": request(
        b"GET /ws", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"
    ),
}

ONLY_REQUESTS: dict[str, bytes] = {
    "POST without a body": request(b"POST /x", b"Content-Length: 0"),
    "PUT": request(b"PUT /x", b"Content-Length: 3", body=b"abc"),
    "PATCH then GET": request(b"PATCH /x", b"Content-Length: 3", body=b"abc") + request(b"GET /2"),
    "POST with extensions": request(
        b"POST /x", b"Transfer-Encoding: chunked", body=b"5;a=b\r\nhello\r\n0;c\r\n\r\n"
    ),
    "POST with trailers": request(
        b"POST /x", b"Transfer-Encoding: chunked", body=chunked(b"hello", trailers=b"X-Sum: 1\r\n")
    ),
    "POST that expects": request(b"POST /x", b"Content-Length: 2", b"Expect: 100-continue", body=b"ok"),
    "OPTIONS of everything": request(b"OPTIONS *"),
    "absolute-form": request(b"GET http://other.test:81/x?y"),
    "absolute-form without a path": request(b"GET http://other.test"),
    "hop by hop": request(
        b"GET /x",
        b"Connection: x-mine, close",
        b"X-Mine: 1",
        b"Keep-Alive: 5",
        b"TE: trailers",
        b"Proxy-A: 1",
    ),
    "Connection that names what stays": request(b"GET /x", b"Connection: host, via, x-real-ip, cookie"),
    "imitated names": request(b"GET /x", b"X_Forwarded_For: 1.2.3.4", b"My_Own: 1"),
    "forwarded by a stranger": request(
        b"GET /x",
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Real-IP: 1.2.3.4",
        b"Forwarded: for=1.2.3.4",
        b"Via: 1.0 p",
    ),
    "ids": request(
        b"GET /x",
        b"X-Request-ID: mine-1",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
    "ids that are none": request(b"GET /x", b"X-Request-ID: a b", b"traceparent: 00-0-0-0"),
    "an origin": request(b"GET /x", b"Origin: https://thebe.test"),
    "odd case and order": request(b"GET /x", b"x-A: 1", b"X-a: 2", b"ACCEPT: */*", b"x-A: 3"),
    "values with spaces": request(b"GET /x", b"X:    y   ", b"Y:\tz\t", b"Z:"),
    "latin-1": request(b"GET /x", b"X-Name: caf\xe9"),
    "raw target": request(b"GET /build/gh/a%2Fb//c/%7E?x=%3A&y"),
    "blank lines before it": b"\r\n\r\n" + request(b"GET /x"),
    "cookie crumbs": request(b"GET /x", b"Cookie: a=1", b"Cookie: fedproxy_member=a", b"Cookie: b=2"),
    "quoted cookie": request(b"GET /x", b'Cookie: fedproxy_member="a"'),
    "three GETs": request(b"GET /1") + request(b"GET /2") + request(b"GET /3"),
    "active hosts": request(b"GET /active_hosts", b"Connection: close"),
    "refused route": request(b"GET /metrics"),
    "redirect": request(b"GET /badge.svg"),
    "preflight of a launch": request(b"OPTIONS /build/gh/a/b/HEAD", b"Origin: https://thebe.test"),
    "upgrade to h2c": request(
        b"GET /x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: A"
    ),
    "upgrade with a body": request(
        b"POST /x", b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 2", body=b"ok"
    ),
}

REFUSED: dict[str, bytes] = {
    "TRACE": request(b"TRACE /"),
    "CONNECT": request(b"CONNECT hub.test:443"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": request(b"GET /", b"Host: other.test"),
    "bad host": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "length and chunks": request(
        b"POST /", b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "two lengths": request(b"POST /", b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "signed length": request(b"POST /", b"Content-Length: +3", body=b"abc"),
    "other coding": request(b"POST /", b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "space before the colon": request(b"GET /", b"X : y"),
    "folded": request(b"GET /", b"X: y", b" z"),
    "bare LF": b"GET / HTTP/1.1\nHost: hub.test\n\n",
    "NUL": request(b"GET /", b"X: \0"),
    "fragment": request(b"GET /#x"),
    "version 2": request(b"GET /").replace(b"HTTP/1.1", b"HTTP/2.0"),
    "version 1.2": request(b"GET /").replace(b"HTTP/1.1", b"HTTP/1.2"),
    "lower-case version": request(b"GET /").replace(b"HTTP/1.1", b"http/1.1"),
    "no version": b"GET /\r\n\r\n",
    "bad chunk": request(b"POST /", b"Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
    "huge chunk": request(b"POST /", b"Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n"),
    "a head too long": request(b"GET /", *[b"X-%d: %b" % (n, b"y" * 1000) for n in range(40)]),
    "a target too long": request(b"GET /" + b"a" * 40_000),
}

EVENTS = (
    b'data: {"phase": "built", "message": "found"}\n\n',
    b'data: {"phase": "launching", "message": "..."}\n\n',
    b'data: {"phase": "ready", "url": "https://hub.test/", "token": "x"}\n\n',
)
FAILED = b'data: {"phase": "failed", "message": "nothing is there"}\n\n'
STREAM = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\n"


def response(status: bytes, *lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    return version + b" " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
# What the member sends, and whether it closes then.
RESPONSES: dict[str, tuple[bytes, bool]] = {
    "200": (response(b"200 OK", b"Content-Length: 2", body=b"ok"), False),
    "empty": (response(b"200 OK", b"Content-Length: 0"), False),
    "chunks": (response(b"200 OK", CHUNKED, body=chunked(b"some", b"more")), False),
    "chunks with extensions": (response(b"200 OK", CHUNKED, body=b"4;a=b\r\nsome\r\n0\r\n\r\n"), False),
    "trailers": (response(b"200 OK", CHUNKED, body=chunked(b"some", trailers=b"X-Sum: 1\r\n")), False),
    "until close": (response(b"200 OK", body=b"until the end"), True),
    "1.0": (response(b"200 OK", body=b"until the end", version=b"HTTP/1.0"), True),
    "1.0 kept": (
        response(b"200 OK", b"Connection: keep-alive", b"Content-Length: 2", body=b"ok", version=b"HTTP/1.0"),
        False,
    ),
    "close": (response(b"200 OK", b"Connection: close", b"Content-Length: 2", body=b"ok"), True),
    "204": (response(b"204 No Content"), False),
    "204 with a length": (response(b"204 No Content", b"Content-Length: 0"), False),
    "304": (response(b"304 Not Modified", b'ETag: "x"'), False),
    "304 with a length": (response(b"304 Not Modified", b"Content-Length: 9"), False),
    "302": (response(b"302 Found", b"Location: /v2/gh/a/b", b"Content-Length: 0"), False),
    "404": (response(b"404 Not Found", b"Content-Length: 2", body=b"no"), False),
    "500": (response(b"500 Oh", b"Content-Length: 2", body=b"no"), False),
    "503": (response(b"503 Busy", b"Retry-After: 3", b"Content-Length: 2", body=b"no"), False),
    "early hints": (
        response(b"103 Early Hints", b"Link: </a.css>")
        + response(b"200 OK", b"Content-Length: 2", body=b"ok"),
        False,
    ),
    "continue": (response(b"100 Continue") + response(b"200 OK", b"Content-Length: 2", body=b"ok"), False),
    "cookies and cache": (
        response(
            b"200 OK", b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Cache-Control: public", b"Content-Length: 0"
        ),
        False,
    ),
    "hop by hop": (
        response(
            b"200 OK",
            b"Connection: x-mine",
            b"X-Mine: 1",
            b"Keep-Alive: 5",
            b"Proxy-A: 1",
            b"Content-Length: 0",
        ),
        False,
    ),
    "its own id": (response(b"200 OK", b"X-Request-ID: theirs", b"Content-Length: 0"), False),
    "no reason": (response(b"200", b"Content-Length: 0"), False),
    "large": (response(b"200 OK", b"Content-Length: 100000", body=b"x" * 100_000), False),
    "more than it says": (response(b"200 OK", b"Content-Length: 2", body=b"ok, and more"), False),
    "less than it says": (response(b"200 OK", b"Content-Length: 9", body=b"ok"), True),
    "half a chunk": (response(b"200 OK", CHUNKED, body=b"9\r\nhalf"), True),
    "no last chunk": (response(b"200 OK", CHUNKED, body=b"4\r\nsome\r\n"), True),
    "no chunk": (response(b"200 OK", CHUNKED, body=b"zz\r\n"), True),
    "two lengths": (response(b"200 OK", b"Content-Length: 2", b"Content-Length: 3", body=b"ok."), True),
    "length and chunks": (response(b"200 OK", CHUNKED, b"Content-Length: 2", body=chunked(b"ok")), True),
    "other coding": (response(b"200 OK", b"Transfer-Encoding: gzip", body=b"ok"), True),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", True),
    "nothing": (b"", True),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", True),
    "switched": (response(b"101 Switching Protocols", b"Connection: Upgrade", b"Upgrade: websocket"), False),
    "events": (response(b"200 OK", STREAM[:-2], CHUNKED, body=chunked(*EVENTS)), False),
    "failed launch": (response(b"200 OK", STREAM[:-2], CHUNKED, body=chunked(FAILED)), False),
    "events until close": (response(b"200 OK", STREAM[:-2], body=b"".join(EVENTS)), True),
}


@dataclass(frozen=True)
class Case:
    name: str
    request: bytes
    response: bytes
    closes: bool
    size: int  # of a piece


GROUPS = (*REQUESTS, "requests", "refused")


def cases(group: str) -> Iterator[Case]:
    """One request with every response, or many requests with one."""
    requests = {"requests": ONLY_REQUESTS, "refused": REFUSED}.get(group)
    if requests is not None:
        pairs = [(name, sent, RESPONSES["200"]) for name, sent in requests.items()]
    else:
        pairs = [(name, REQUESTS[group], answered) for name, answered in RESPONSES.items()]
    for split, size in SPLITS.items():
        for name, sent, (answered, closes) in pairs:
            # What is long adds nothing in pieces of a few bytes.
            if size > 100 or len(sent) + len(answered) < 10_000:
                yield Case(f"{name} | {split}", sent, answered, closes, size)


class Member:
    """Answers each request as the case says. Its connections are closed between two cases."""

    def __init__(self) -> None:
        self.begin(Case("", b"", b"", False, 1))

    def begin(self, case: Case) -> None:
        self.case = case
        self.over = asyncio.Event()
        self.conns: list[Conn] = []

    async def script(self, conn: Conn) -> None:
        case, over = self.case, self.over
        self.conns.append(conn)
        ends = asyncio.ensure_future(over.wait())
        try:
            while not over.is_set():
                asked = asyncio.ensure_future(conn.request())
                await asyncio.wait({asked, ends}, return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    asked.cancel()
                    return
                await asked
                await in_pieces(conn, case.response, case.size)
                if case.closes:
                    return
        finally:
            ends.cancel()

    @property
    def received(self) -> list[bytes]:
        return [conn.received for conn in self.conns]


async def in_pieces(wire: Conn | RawClient, data: bytes, size: int) -> None:
    for at in range(0, len(data), size):
        if wire.writer.is_closing():
            return
        wire.write(data[at : at + size])
        await turns(3)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# What differs from run to run, or from release to release of a library.
VARYING = (
    (re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])|(?<=-)[0-9a-f]{16}(?=-0)"), b"ID"),
    (re.compile(rb"127\.0\.0\.1:[0-9]+"), b"127.0.0.1:PORT"),
    # What an error page looks like is not of interest here, and its script's hash goes with that.
    (
        re.compile(rb"Content-Length: [0-9]+(?=\r\n(?:[^\r]+\r\n)*\r\n<!doctype html>)"),
        b"Content-Length: SIZE",
    ),
    (re.compile(rb"<!doctype html>.*?</html>\n", re.DOTALL), b"<PAGE>"),
    (re.compile(rb"(?<=sha256-)[A-Za-z0-9+/=]+"), b"HASH"),
    # The time at which a cookie was set, and the home that goes with it.
    (re.compile(rb"(?<=Set-Cookie: fedproxy_member=\w)![^;]+"), b""),
    (re.compile(rb"(?<=\r\nDate: )[^\r]+|(?<=\r\nServer: )[^\r]+"), b"..."),
)


def plain(data: bytes) -> str:
    """The bytes as text, the same in every run; what is long is told by its length."""
    for pattern, same in VARYING:
        data = pattern.sub(same, data)
    return re.sub(r"(x|y|a)\1{99,}", lambda found: f"<{found[1]} x {len(found[0])}>", data.decode("latin-1"))


async def outcome(running: Edge, member: Member, case: Case, recorded: object) -> dict[str, object]:
    """What came of it. As long as that is not what was recorded, something may still be on its way."""
    member.begin(case)
    client = await running.client()
    sending = asyncio.ensure_future(in_pieces(client, case.request, case.size))
    reading = asyncio.ensure_future(client.until_end())

    def found() -> dict[str, object]:
        return {
            # A connection that the edge opened and then had no use for says nothing.
            "member": [plain(each) for each in member.received if each],
            "visitor": plain(client.received),
            "ended": reading.result()[0] if reading.done() else "kept",
        }

    quiet, seen = 0, (-1, -1)
    while quiet < QUIET or (quiet < PATIENCE and recorded not in (None, found())):
        await asyncio.sleep(0.001)
        now = len(client.received), sum(map(len, member.received))
        # Every exchange ends with something for the visitor.
        over = sending.done() and (client.received or reading.done())
        quiet = quiet + 1 if now == seen and over else 0
        seen = now
    await sending
    came = found()
    reading.cancel()
    await asyncio.wait({reading})
    member.over.set()
    await client.leave()
    for conn in member.conns:
        conn.close()
    await asyncio.sleep(0.001)
    return came


CONFIG: dict[str, Any] = {
    "public_url": "https://mybinder.test",
    "breaker": {"failures": NEVER, "minimum": NEVER},
    "retry": {"attempts": 1},
    "routes": [
        {"path": "/metrics", "status": 404},
        {"path": "/badge.svg", "redirect": "https://static.test/badge.svg", "status": 301},
    ],
}


def as_whole(found: dict[str, dict[str, object]]) -> dict[str, object]:
    """The same, said once where pieces make no difference."""
    short: dict[str, object] = {}
    for name, what in found.items():
        exchange, _, split = name.rpartition(" | ")
        whole = found.get(f"{exchange} | whole")
        short[name] = "as whole" if split != "whole" and what == whole else what
    return short


def of(name: str, recorded: dict[str, object]) -> object:
    """What was recorded of an exchange, or None."""
    what = recorded.get(name)
    return recorded.get(f"{name.rpartition(' | ')[0]} | whole") if what == "as whole" else what


def read() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("group", GROUPS)
async def test_bytes_are_those_that_were_recorded(group: str) -> None:
    member = Member()
    recorded = {} if RECORD else read()[group]
    async with edge(member.script, **CONFIG) as running:
        found = as_whole(
            {
                case.name: await outcome(running, member, case, of(case.name, recorded))
                for case in cases(group)
            }
        )
    if RECORD:
        every = {**(read() if FILE.exists() else {}), group: found}
        text = json.dumps({name: every[name] for name in GROUPS if name in every}, indent=1)
        FILE.write_text(text + "\n", encoding="utf-8")
        return
    assert found.keys() == recorded.keys()
    differ = [
        f"{name}\n  was {recorded[name]}\n  is  {what}"
        for name, what in found.items()
        if recorded[name] != what
    ]
    if differ:
        pytest.fail("\n\n".join(differ), pytrace=False)
