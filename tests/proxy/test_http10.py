"""Clients that speak HTTP/1.0: they are told whether their connection is kept, whatever they are answered.

A 1.0 client that asked for `keep-alive` and is told nothing waits for an end that never comes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.rig import Conn, answer, chunked, edge, refusing

KEEP = b"Connection: Keep-Alive"
STREAM = b"Accept: text/event-stream"
HTML = b"Accept: text/html"
LAUNCH = b"/build/gh/user/repo/HEAD"


def ask(target: bytes = b"/", *lines: bytes, method: bytes = b"GET", version: bytes = b"1.0") -> bytes:
    start = b"%b %b HTTP/%b" % (method, target, version)
    return b"\r\n".join((start, b"Host: hub.test", *lines, b"", b""))


ROUTES = [
    {"path": "/found", "redirect": "https://static.test/found"},
    {"path": "/gone", "status": 410},
    {"path": "/quiet", "status": 204},
    {"path": "/fine", "status": 200},
    {"path": "/away/*", "to": "members", "mode": "redirect"},
    {"path": "/build/*", "to": "members", "mode": "redirect"},
]
ROUTED: dict[str, Any] = {"routes": ROUTES}
PLAIN: dict[str, Any] = {"listen": [{"address": "127.0.0.1:0", "redirect_to_https": True}]}
# What is asked for, its status, and the config it takes.
OWN: dict[str, tuple[tuple[bytes, bytes, bytes], int, dict[str, Any]]] = {
    "302": ((b"GET", b"/found", HTML), 302, ROUTED),
    "302 to HEAD": ((b"HEAD", b"/found", HTML), 302, ROUTED),
    "410 as JSON": ((b"GET", b"/gone", b"Accept: */*"), 410, ROUTED),
    "410 as a page": ((b"GET", b"/gone", HTML), 410, ROUTED),
    "410 to HEAD": ((b"HEAD", b"/gone", HTML), 410, ROUTED),
    "204": ((b"GET", b"/quiet", HTML), 204, ROUTED),
    "200": ((b"GET", b"/fine", HTML), 200, ROUTED),
    "307": ((b"GET", b"/away/x", HTML), 307, ROUTED),
    "307 of a launch": ((b"GET", LAUNCH, STREAM), 307, ROUTED),
    "preflight": ((b"OPTIONS", LAUNCH, b"Origin: https://book.test"), 204, ROUTED),
    "403 of an agent": ((b"GET", b"/", b"User-Agent: bot"), 403, {"ban": {"user_agents": ["bot"]}}),
    "403 of a repository": ((b"GET", LAUNCH, HTML), 403, {"ban": {"repositories": ["user/repo"]}}),
    "403 as an event": ((b"GET", LAUNCH, STREAM), 200, {"ban": {"repositories": ["user/repo"]}}),
    "301 to https": ((b"GET", b"/x", HTML), 301, PLAIN),
    "308 to https": ((b"DELETE", b"/x", HTML), 308, PLAIN),
}


@pytest.mark.parametrize(("request_", "status", "config"), OWN.values(), ids=OWN.keys())
async def test_own_answer_says_whether_the_connection_is_kept(
    request_: tuple[bytes, bytes, bytes], status: int, config: dict[str, Any]
) -> None:
    method, target, line = request_
    async with edge(answer(), **config) as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(ask(target, line, KEEP, method=method), method.decode())
            assert (response.status, response.values("connection")) == (status, [b"keep-alive"])
        response = await client.ask(ask(target, line, method=method), method.decode())
        assert (response.status, response.values("connection")) == (status, [b"close"])
        assert await client.closed() == "eof"
        client = await running.client()
        response = await client.ask(ask(target, line, method=method, version=b"1.1"), method.decode())
        assert (response.status, response.values("connection")) == (status, [])
        assert running.member.requests == []


async def test_refused_launch_says_whether_the_connection_is_kept() -> None:
    async with edge(answer(), rate={"launches": 1, "per": "1h"}) as running:
        client = await running.client()
        assert (await client.ask(ask(LAUNCH, STREAM, KEEP))).body == b"ok"
        for _ in range(2):
            response = await client.ask(ask(LAUNCH, STREAM, KEEP))
            assert (response.value("retry-after"), response.values("connection")) == (
                b"3600",
                [b"keep-alive"],
            )


@pytest.mark.parametrize(
    ("weight", "status"), [(1, 502), (0, 503)], ids=["member is away", "no member is there"]
)
async def test_error_in_a_member_s_place_says_whether_the_connection_is_kept(
    weight: int, status: int
) -> None:
    with refusing() as url:
        async with edge({"a": url}, settings={"a": {"weight": weight}}) as running:
            client = await running.client()
            for _ in range(2):
                response = await client.ask(ask(b"/", KEEP))
                assert (response.status, response.values("connection")) == (status, [b"keep-alive"])
            response = await client.ask(ask(b"/"))
            assert (response.status, response.values("connection")) == (status, [b"close"])
            assert await client.closed() == "eof"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (ask(b"/a b", KEEP), 400),
        (ask(b"/", KEEP, method=b"TRACE"), 405),
        (ask(b"/", KEEP, b"Content-Length: 999999999999", method=b"POST"), 413),
        (ask(b"/found", KEEP, b"Content-Length: 5", method=b"POST") + b"hello", 302),
        (ask(b"/active_hosts"), 200),
    ],
)
async def test_answer_that_ends_the_connection_says_so(request_: bytes, status: int) -> None:
    async with edge(answer(), **ROUTED) as running:
        client = await running.client()
        response = await client.ask(request_)
        assert (response.status, response.values("connection")) == (status, [b"close"])
        assert await client.closed() == "eof"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (ask(b"/active_hosts", KEEP), 200),
        (ask(b"/federation", KEEP, HTML), 200),
        (ask(b"/federation/none", KEEP), 404),
        (ask(b"/federation/style.css", KEEP), 200),
    ],
)
async def test_own_pages_are_kept_alive_too(request_: bytes, status: int) -> None:
    async with edge(answer(), **ROUTED) as running:
        client = await running.client()
        for _ in range(3):
            response = await client.ask(request_)
            assert (response.status, response.values("connection")) == (status, [b"keep-alive"])
        for line in await running.logged(3):
            assert (line["status"], line["bytes_out"]) == (status, len(response.body))
            assert (line["member"], line["attempts"], line["termination"]) == (None, 0, "--")
            assert line["duration"] > 0


@pytest.mark.parametrize("path", [b"/active_hosts", b"/federation/move?member=a", b"/./federation"])
async def test_own_page_needs_no_host(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    method = b"POST" if b"move" in path else b"GET"
    async with edge(answer()) as running:
        response = await running.ask(b"%b %b HTTP/1.0\r\n\r\n" % (method, path))
        assert response.status == (303 if b"move" in path else 200)
    assert not caplog.records


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, tuple[bytes, bool]] = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", True),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello"), False),
    "until the end": (OK + b"Connection: close\r\n\r\nhello", False),
    "1.0 until the end": (b"HTTP/1.0 200 OK\r\n\r\nhello", False),
    "1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
    "1.0 that is kept": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
        True,
    ),
    "length and close": (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", True),
}


@pytest.mark.parametrize(("response", "kept"), ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_answer_of_a_member_says_whether_the_connection_is_kept(
    response: bytes, kept: bool, method: bytes
) -> None:
    sent = response if method == b"GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(sent)

    async with edge(script) as running:
        client = await running.client()
        if kept or method == b"HEAD":
            for _ in range(2):
                found = await client.ask(ask(b"/", KEEP, method=method), method.decode())
                assert found.values("connection") == [b"keep-alive"]
                assert found.value("transfer-encoding") is None
        found = await client.ask(ask(b"/", *(() if kept else (KEEP,)), method=method), method.decode())
        if not kept and method == b"HEAD":
            assert found.values("connection") == [b"keep-alive"]
            return
        assert found.values("connection") == [b"close"]
        assert found.value("transfer-encoding") is None
        assert await client.closed() == "eof"


async def test_connection_of_an_edge_that_drains_is_not_kept() -> None:
    async with edge(answer(), **ROUTED) as running:
        client = await running.client()
        running.service.edge.draining = True
        response = await client.ask(ask(b"/found", KEEP))
        assert (response.status, response.values("connection")) == (302, [b"close"])
        assert await client.closed() == "eof"
