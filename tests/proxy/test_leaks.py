"""Thousands of requests of every kind, a third of them broken off somewhere: nothing is left over.

The rig asserts it at the end: no request in flight, no connection in use, no task that was not there
at the start.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.h1.upstream import Upstream
from fedproxy.proxy.visiting import Visiting
from fedproxy.wire.h2.stream import H2Stream
from tests.proxy.test_h2_websocket import switch
from tests.rig import Conn, Edge, Ended, Message, RawClient, answer, chunked, edge, guard, until
from tests.rig.h2 import H2Client, request
from tests.rig.ways import in_clear, over_tls

HEAD = b"Host: hub.test\r\n"
VISITORS = 16
REQUESTS = 2_000
# Every answer is longer than this.
MOST_READ = 100
BODY = bytes(range(256)) * 512


async def member(conn: Conn) -> None:
    """Answers by path, and now and then does not."""
    while True:
        request = await conn.request()
        path = request.target
        if path == b"/reset":
            conn.reset()
            return
        if path == b"/truncated":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
            return
        if path == b"/excess":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc")
        elif path == b"/tunnel":
            await tunnel(conn)
            return
        else:
            await respond(conn, request)


async def respond(conn: Conn, request: Message) -> None:
    if request.method == b"HEAD":
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    elif request.target == b"/stream":
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            conn.send(b"5\r\n:\n\n\n\n\r\n")
            await conn.flush()
        conn.send(b"0\r\n\r\n")
    elif request.target == b"/hints":
        conn.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    else:
        body = BODY if request.target == b"/big" else request.body
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    await conn.flush()


async def tunnel(conn: Conn) -> None:
    conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while data := await conn.reader.read(65_536):
        conn.send(data)
        await conn.flush()


def get(path: bytes, *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return (
        method
        + b" "
        + path
        + b" HTTP/"
        + version
        + b"\r\n"
        + HEAD
        + b"".join(line + b"\r\n" for line in lines)
        + b"\r\n"
    )


KINDS: dict[str, bytes] = {
    "get": get(b"/"),
    "old": get(b"/stream", version=b"1.0"),
    "head": get(b"/", method=b"HEAD"),
    "big": get(b"/big"),
    "stream": get(b"/stream"),
    "hints": get(b"/hints"),
    "post": get(b"/", b"Content-Length: 5", method=b"POST") + b"hello",
    "upload": get(b"/", b"Content-Length: %d" % len(BODY), method=b"PUT") + BODY,
    "chunks": get(b"/", b"Transfer-Encoding: chunked", method=b"POST")
    + chunked(b"a", BODY, trailers=b"X: y\r\n"),
    "pipelined": get(b"/") + get(b"/big") + get(b"/stream"),
    "tunnel": get(b"/tunnel", b"Connection: Upgrade", b"Upgrade: websocket"),
    "malformed": get(b"/", b"A : b"),
    "reset": get(b"/reset"),
    "truncated": get(b"/truncated"),
    "excess": get(b"/excess"),
}


async def whole(client: RawClient, kind: str) -> None:
    """The request and all of its answers."""
    client.write(KINDS[kind])
    try:
        for _ in range(3 if kind == "pipelined" else 1):
            await client.response("HEAD" if kind == "head" else "GET")
        if kind == "tunnel":
            await client.send(b"words")
            async with guard():
                await client.exactly(5)
    except Ended:
        assert kind in ("truncated", "reset"), kind


async def broken_off(client: RawClient, kind: str, rng: random.Random) -> None:
    """A part of the request, or all of it and a part of the answer; then the visitor is gone."""
    request = KINDS[kind]
    if rng.random() < 0.5:
        client.write(request[: rng.randrange(len(request))])
    else:
        client.write(request)
        try:
            async with guard():
                await client.exactly(rng.randrange(MOST_READ))
        except Ended:
            pass
    leave: Callable[[], None] = rng.choice((client.close, client.reset))
    leave()


async def visit(running: Edge, rng: random.Random, requests: int) -> None:
    client = await running.client()
    for _ in range(requests):
        kind = rng.choice(list(KINDS))
        if rng.random() < 1 / 3:
            await broken_off(client, kind, rng)
        else:
            await whole(client, kind)
        if (
            rng.random() < 0.3
            or client.writer.is_closing()
            or client.reader.at_eof()
            or kind not in ("get", "head", "big")
        ):
            await client.leave()
            client = await running.client()
    await client.leave()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_is_left_over_after_thousands_of_requests_and_break_offs(seed: int) -> None:
    rng = random.Random(seed)
    members = {"a": member, "b": member, "c": member}
    # The members' faults must not lock them out: all of this is to reach them.
    breaker = {"failures": 1_000_000, "minimum": 1_000_000}
    async with edge(members, breaker=breaker) as running:
        async with asyncio.TaskGroup() as visitors:
            for _ in range(VISITORS):
                visitors.create_task(visit(running, random.Random(rng.random()), REQUESTS // VISITORS))
        await until(lambda: not running.busy(), running.busy)
        served = sum(len(scripted.requests) for scripted in running.members.values())
        assert served > REQUESTS // 2
        assert running.service.edge.idle() == sum(scripted.open for scripted in running.members.values())
        assert (await running.ask(get(b"/"))).status == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_over_after_a_request_broken_off_at_any_point(kind: str) -> None:
    request = KINDS[kind]
    points = {*range(0, min(len(request), 120), 7), len(request) // 2, len(request) - 1, len(request)}
    async with edge(member) as running:
        for number, point in enumerate(sorted(points)):
            client = await running.client()
            await client.send(request[:point])
            (client.close if number % 2 else client.reset)()
        await until(lambda: not running.busy(), running.busy)
        assert (await running.ask(get(b"/"))).status == 200


@pytest.mark.parametrize("end", ["answered", "half an answer", "a tunnel"])
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_connection_that_is_over_waits_for_no_garbage_collector(
    encrypted: bool, protocol: str, end: str, tmp_path: Path
) -> None:
    """Workers collect rarely: a circle of references would keep each connection for long."""

    async def script(conn: Conn) -> None:
        if end == "a tunnel":
            await switch(conn)
            conn.send(b"hi")
        else:
            await conn.head()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nhi" % (2 if end == "answered" else 9))
        await conn.until_end()

    way = over_tls(tmp_path) if encrypted else in_clear()
    async with edge(script, listen=way.listen) as running:
        gc.collect()
        gc.disable()
        try:
            if way.trust is not None:
                way.trust.set_alpn_protocols([protocol])
            visitor = await running.client(tls=way.trust)
            if protocol == "h2":
                client = await H2Client(visitor).begin()
                asked = request()
                if end == "a tunnel":
                    asked = [*request(method=b"CONNECT"), (b":protocol", b"websocket")]
                stream = client.head([*asked, (b"sec-websocket-version", b"13")], end=end != "a tunnel")
                await client.until(lambda: client.streams[stream].body == b"hi")
            else:
                key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
                await visitor.send(get(b"/", b"Connection: Upgrade", b"Upgrade: websocket", key))
                async with guard():
                    await visitor.reader.readuntil(b"\r\n\r\nhi")
            assert _alive()
            visitor.close()
            await until(lambda: not running.busy() and not _alive(), _alive)
        finally:
            gc.enable()


def _alive() -> list[Visiting | H2Stream | Exchange]:
    # What was made since the last collection, and not the hundreds of thousands of objects of before.
    return [each for each in gc.get_objects(0) if isinstance(each, Visiting | H2Stream | Exchange)]


async def test_connection_that_is_given_up_as_it_is_made_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Upstream.connection_made

    def late(upstream: Upstream, transport: asyncio.BaseTransport) -> None:
        made(upstream, transport)
        task.cancel()

    monkeypatch.setattr(Upstream, "connection_made", late)
    async with edge(answer()) as running:
        pool = running.service.edge.pools["a"]
        task = asyncio.ensure_future(pool.connect())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not pool.connections


async def test_idle_connection_keeps_nothing_of_what_it_carried() -> None:
    body = b"b" * 1_000_000

    async def echo(conn: Conn) -> None:
        while True:
            request = await conn.request()
            start = b"HTTP/1.1 200 OK\r\n"
            if request.target == b"/chunked":
                conn.send(start, b"Transfer-Encoding: chunked\r\n\r\n", chunked(request.body))
            else:
                conn.send(start, b"Content-Length: %d\r\n\r\n" % len(request.body), request.body)

    async with edge(echo) as running:
        client = await running.client()
        for target in (b"/", b"/chunked"):
            head = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (target, HEAD, len(body))
            assert (await client.ask(head + body)).body == body
            (visitor,) = running.connections
            (upstream,) = running.service.edge.pools["a"].idle
            kept = (visitor.machine.data, visitor.machine.held, upstream.machine.data, upstream.machine.held)
            assert kept == (b"",) * 4
