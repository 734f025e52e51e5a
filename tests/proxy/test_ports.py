"""The ports are enough for another protocol: one without a byte of HTTP/1 that has many exchanges at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fedproxy.decide.affinity import KEYS
from fedproxy.decide.limit import Bans
from fedproxy.http.request import HeaderBlock, Origin, RequestLine
from fedproxy.http.response import Response, ResponseHead
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.routing import route
from fedproxy.wire.h1.body import Chunked
from tests.rig import Conn, Edge, edge, until

LARGE = 4 * 1024 * 1024


@dataclass
class Stream:
    """One of the streams of a connection: what a protocol with streams would send for it."""

    running: Edge
    trusted: bool = False
    peer: bytes = b"192.0.2.7"
    hsts: int = 0
    interims: list[int] = field(default_factory=list)
    head: ResponseHead | None = None
    cookie: bytes | None = None
    payload: bytes = b""
    done: bool = False
    answer: Response | None = None
    was_broken: bool = False
    reads: bool = True

    def ask(self, target: bytes, *, method: bytes = b"GET", body: bool = False) -> Exchange:
        """Begins an exchange of a request that came as a list of fields."""
        context = self.running.service.edge
        runtime = context.runtime
        line = route(
            RequestLine(method, target, None, "HTTP/2"), runtime.router, KEYS[runtime.policy.key], Bans()
        )
        block = HeaderBlock(b"accept: */*\r\n\r\n")
        block.host = b"hub.test"
        block.lines = b"accept: */*\r\nVia: 2 fedproxy\r\n"
        if body:
            block.chunked = True
            block.lines += b"Transfer-Encoding: chunked\r\n"
        exchange = Exchange()
        request_id, traceparent = (context.ids or context.draw_ids()).pop()
        origin = Origin(self.peer, True, self.peer, self.peer)
        exchange.open(context, self, line, block, origin, request_id, traceparent)
        exchange.framed = False
        if body:
            exchange.expect_body(payload=True)
        else:
            exchange.begin()
        return exchange

    def send_interim(self, head: ResponseHead) -> None:
        self.interims.append(head.status)

    def send_head(
        self,
        head: ResponseHead,
        request_id: bytes,
        cookie: bytes | None,
        body: bytes,
        done: bool,
        now: float,
    ) -> bool:
        self.head, self.cookie = head, cookie
        return self.send_body(body, done)

    def send_body(self, data: bytes, done: bool) -> bool:
        self.payload += data
        self.done = done
        return done

    def send_trailers(self, lines: bytes) -> None:
        self.trailers = lines

    def send_answer(self, response: Response) -> None:
        self.answer = response
        self.done = True

    def broken(self) -> int:
        self.was_broken = True
        return 0

    def pause(self) -> None:
        self.reads = False

    def resume(self) -> None:
        self.reads = True

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        raise AssertionError("nobody asked for a tunnel")

    def gone(self) -> None:
        raise AssertionError("there is no tunnel")


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))


async def member(conn: Conn) -> None:
    """Answers by the path; a slow one says so before."""
    while True:
        request = await conn.request()
        target = request.start.split(b" ")[1]
        if target == b"/chunks":
            conn.send(b"HTTP/1.1 103 Early Hints\r\n\r\n", head(b"Transfer-Encoding: chunked"))
            conn.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        elif target == b"/large":
            conn.send(head(b"Content-Length: %d" % LARGE), bytes(LARGE))
            await conn.flush()
        elif target == b"/never":
            conn.send(head(b"Content-Length: 5"), b"ab")
            await conn.stall()
        elif target == b"/echo":
            conn.send(head(b"Content-Length: %d" % len(request.body)), request.body)
        else:
            conn.send(head(b"Content-Length: 2"), b"ok")


async def test_one_connection_has_many_exchanges_at_once() -> None:
    async with edge(member) as running:
        streams = [Stream(running) for _ in range(20)]
        for number, stream in enumerate(streams):
            stream.ask(b"/chunks" if number % 2 else b"/%d" % number)
        await until(lambda: all(stream.done for stream in streams), "all are answered")
        for number, stream in enumerate(streams):
            assert stream.payload == (b"abcde" if number % 2 else b"ok")
            assert stream.interims == ([103] if number % 2 else [])
            assert stream.cookie is not None and stream.cookie.startswith(b"fedproxy_member=a!")
            assert stream.head is not None and stream.head.fields() in ((), ((b"Content-Length", b"2"),))
        lines = await running.logged(20)
        assert len({line["request_id"] for line in lines}) == 20
        assert {(line["protocol"], line["client"], line["status"]) for line in lines} == {
            ("HTTP/2", "192.0.2.7", 200)
        }
        assert all(request.value("via") == b"2 fedproxy" for request in running.member.requests)


async def test_each_has_its_own_back_pressure_and_its_own_end() -> None:
    async with edge(member) as running:
        slow, quick, gone = Stream(running), Stream(running), Stream(running)
        full = slow.ask(b"/large")
        full.on_visitor_full()
        left = gone.ask(b"/never")
        await until(lambda: gone.payload == b"ab", "the other has begun")
        for _ in range(3):
            quick.done = False
            quick.ask(b"/quick")
            await until(lambda: quick.done, "it is not held up by the slow one")
        assert not slow.done and len(slow.payload) < LARGE
        left.on_visitor_gone()
        full.on_visitor_drained()
        await until(lambda: slow.done, "the slow one reads on")
        assert slow.payload == bytes(LARGE)
        lines = await running.logged(5)
        assert sorted(line["termination"] for line in lines) == ["--", "--", "--", "--", "CD"]


async def test_body_of_a_request_goes_as_it_comes() -> None:
    async with edge(member) as running:
        stream = Stream(running)
        exchange = stream.ask(b"/echo", method=b"POST", body=True)
        # A member of HTTP/1.1 is sent chunks.
        exchange.send_body(b"hel", False)
        await until(lambda: running.member.connections, "a connection for it")
        exchange.send_body(b"lo", False)
        exchange.send_body(b"", True)
        await until(lambda: stream.done, "the answer")
        assert stream.payload == b"hello"
        (received,) = (each.received for each in running.member.connections)
        chunks = Chunked(framed=False)
        assert (chunks.feed(received.partition(b"\r\n\r\n")[2]), chunks.done) == (b"hello", True)


async def test_errors_are_neutral_answers() -> None:
    async with edge({"a": "http://127.0.0.1:9"}) as running:
        stream = Stream(running)
        stream.ask(b"/x")
        await until(lambda: stream.done, "the answer")
        assert stream.answer is not None and stream.answer.status == 502
        fields: dict[bytes, Any] = dict(stream.answer.fields)
        assert fields[b"Cache-Control"] == b"no-store"
        (line,) = await running.logged()
        assert line["request_id"].encode() == fields[b"X-Request-ID"]
