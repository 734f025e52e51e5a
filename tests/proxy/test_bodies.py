"""Bodies in both directions: how they are framed, how they end, and what happens when they do not."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.rig import (
    Conn,
    Edge,
    Ended,
    Message,
    RawClient,
    Script,
    Scripted,
    answer,
    chunked,
    edge,
    guard,
    per_request,
    until,
)

HOST = b"Host: hub.test\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
OLD_GET = b"GET / HTTP/1.0\r\n" + HOST + b"\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BIG = random.Random(1).randbytes(8 << 20)


def ok(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", body))


def in_chunks(*pieces: bytes, trailers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*pieces, trailers=trailers)


def post(body: bytes, *lines: bytes, target: bytes = b"/") -> bytes:
    return (
        b"POST %b HTTP/1.1\r\n" % target + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body
    )


async def echo(conn: Conn, request: Message) -> None:
    """Answers with the request's body, framed as the request was."""
    chunks = [request.body] if request.body else []
    conn.send(in_chunks(*chunks) if request.framing == "chunked" else ok(request.body))
    await conn.flush()


# Framing


@pytest.mark.parametrize("size", [0, 1, 100, 70_000, len(BIG)])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_body_arrives_and_comes_back_as_it_was_sent(size: int, framing: str) -> None:
    body = BIG[:size]
    pieces = [body[at : at + 30_000] for at in range(0, size, 30_000)]
    async with edge(per_request(echo)) as running:
        client = await running.client()
        if framing == "length":
            client.write(post(body, b"Content-Length: %d" % size))
        else:
            client.write(post(chunked(*pieces), b"Transfer-Encoding: chunked"))
        response = await client.response()
        assert response.body == body
        assert response.framing == framing
        (request,) = running.member.requests
        assert request.body == body
        assert request.framing == framing


RESPONSES = {
    "a length": ok(b"hello"),
    "one chunk": in_chunks(b"hello"),
    "many chunks": in_chunks(b"h", b"e", b"l", b"l", b"o"),
    "chunk extensions": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0;z\r\n\r\n",
    "chunked in another case": b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n" + chunked(b"hello"),
    "its connection's end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "its connection's end, said so": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
    "version 1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "version 1.0 and a length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no reason phrase": b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello",
    "not even a space for the reason phrase": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
}


def once(response: bytes) -> Scripted:
    """A member that answers one request on a connection, and closes it."""

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(response)

    return Scripted(script)


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
@pytest.mark.parametrize("request_", [GET, OLD_GET], ids=["1.1", "1.0"])
async def test_body_of_a_response_arrives_however_it_ends(response: bytes, request_: bytes) -> None:
    async with edge(once(response)) as running:
        client = await running.client()
        answered = await client.ask(request_)
        assert answered.status == 200
        assert answered.body == b"hello"
        assert answered.start.startswith(b"HTTP/1.1 200")
        assert b"x=y" not in client.received
        if request_ is OLD_GET:
            assert answered.value("transfer-encoding") is None
            assert await client.closed() == "eof"


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
async def test_response_that_comes_byte_by_byte_is_the_same_response(response: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        for byte in response:
            conn.send(bytes((byte,)))
            await conn.flush()

    async with edge(script) as running:
        assert (await running.ask(GET)).body == b"hello"


async def test_trailers_of_a_response_pass_and_are_not_merged() -> None:
    async with edge(answer(in_chunks(b"x", trailers=b"X-Sum: 1\r\nX-Sum: 2\r\n"))) as running:
        response = await running.ask(GET)
        assert response.trailers == [(b"X-Sum", b"1"), (b"X-Sum", b"2")]
        assert response.values("x-sum") == []


async def test_trailers_of_a_response_do_not_reach_a_1_0_visitor() -> None:
    async with edge(answer(in_chunks(b"x", trailers=b"X-Sum: 1\r\n"))) as running:
        response = await running.ask(OLD_GET)
        assert response.body == b"x"
        assert response.values("x-sum") == []


@pytest.mark.parametrize(
    "line",
    [b"GET: /slow-secret HTTP/1.1", b"X-Sum: 12345", b"Host: evil", b"Content-Length: 5", b"A:" + b"b" * 900],
)
@pytest.mark.parametrize("split", [1, 1000])
async def test_trailers_of_a_request_end_here(line: bytes, split: int) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        body = chunked(b"x" * 20, trailers=line + b"\r\n" + b"X-T: 1\r\n")
        request = post(body, b"Transfer-Encoding: chunked")
        for at in range(0, len(request), split):
            await client.send(request[at : at + split])
        assert (await client.response()).status == 200
        assert (await client.ask(GET)).status == 200
        first, second = running.member.requests
        assert (first.body, first.trailers) == (b"x" * 20, [])
        assert second.target == b"/"
        assert line not in running.member.received
        assert b"\r\n0\r\n\r\nGET / HTTP/1.1" in running.member.received


@pytest.mark.parametrize("trailers", [b"no colon\r\n", b" folded: x\r\n", b"A : b\r\n", b"A: b\r\n" * 2000])
async def test_trailers_of_a_request_that_are_malformed_or_too_large_are_refused(trailers: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(post(chunked(b"x", trailers=trailers), b"Transfer-Encoding: chunked"))
        assert (await client.response()).status == 400
        assert running.member.requests == []


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length",
        b"content-TYPE",
        b"Content_Length",
        b"Transfer-Encoding",
        b"Set-Cookie",
        b"Host",
        b"Cache-Control",
        b"Location",
        b"WWW-Authenticate",
        b"X-Request-ID",
        b"X_Request_ID",
        b"X-Forwarded-For",
        b"Proxy-Authenticate",
        b"Connection",
        b"Trailer",
        b"Vary",
        b"Age",
        b"Strict-Transport-Security",
        b"Access-Control-Allow-Origin",
        b"Via",
        b"GET",
    ],
)
async def test_trailer_of_a_response_that_is_not_safe_is_dropped(name: bytes) -> None:
    trailers = b"Server-Timing: db;dur=5\r\n" + name + b": 1\r\nETag: x\r\n"
    async with edge(answer(in_chunks(b"x", trailers=trailers))) as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(GET)
            assert response.trailers == [(b"Server-Timing", b"db;dur=5"), (b"ETag", b"x")]
            assert response.values("etag") == []


async def test_trailers_of_a_response_that_are_malformed_break_it_off() -> None:
    async with edge(answer(in_chunks(b"x", trailers=b"no colon\r\n"))) as running:
        client = await running.client()
        await client.send(GET)
        with pytest.raises(Ended):
            await client.response()
        assert running.errors("a") == {"truncated": 1}


TINY = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in (1, 2, 1, 3))


@pytest.mark.parametrize("tiny", [b"1\r\nx\r\n", TINY, b"01\r\nx\r\n"])
async def test_upload_in_tiny_chunks_is_refused_when_there_are_too_many(tiny: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(post(tiny * 100_000, b"Transfer-Encoding: chunked"))
        async with guard():
            assert (await client.response()).status == 400
        assert running.errors("a") == {}


@pytest.mark.parametrize("tiny", [b"1\r\nx\r\n", TINY, b"01\r\nx\r\n"])
@pytest.mark.parametrize("old", [True, False])
async def test_download_in_tiny_chunks_arrives_whole_and_others_are_served_meanwhile(
    tiny: bytes, old: bool
) -> None:
    count = 50_000

    async def handle(conn: Conn, request: Message) -> None:
        if request.target == b"/tiny":
            conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + tiny * count + b"0\r\n\r\n")
        else:
            conn.send(ok(b"ok"))
        await conn.flush()

    async with edge(per_request(handle)) as running:
        client = await running.client()
        await client.send((OLD_GET if old else GET).replace(b" / ", b" /tiny "))
        # Served in a turn between two parts of the other's.
        assert (await running.ask(GET)).body == b"ok"
        response = await client.response()
        assert response.body == b"x" * (tiny.count(b"x") * count)


async def test_download_in_tiny_chunks_to_a_slow_reader_arrives_whole() -> None:
    count = 400_000

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2\r\nxy\r\n" * count + b"0\r\n\r\n"
        )
        await conn.flush()

    async with edge(script) as running:
        client = await running.client(receive_buffer=4096)
        response = await client.ask(GET)
        assert response.body == b"xy" * count


async def test_connection_that_is_lost_before_its_last_chunks_are_read_serves_nobody_else() -> None:
    count = 5000

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: b"a" in client.received, "the first chunk has come")
        (pool,) = running.service.edge.pools.values()
        (upstream,) = pool.connections
        # One turn of the loop reads this and the end, and not all of the chunks at once.
        upstream.data_received(b"1\r\nb\r\n" * count + b"0\r\n\r\n")
        upstream.connection_lost(None)
        assert (await client.response()).body == b"a" + b"b" * count
        assert (pool.idle, pool.waiting, pool.busy) == ([], 0, 0)


async def test_event_a_second_for_days_is_no_flood() -> None:
    """However many chunks of one byte come, as long as they come one by one."""
    count = 20_000

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(count // 10):
            for _ in range(10):
                conn.send(b"1\r\nx\r\n")
            await conn.flush()
            await asyncio.sleep(0)
        conn.send(b"0\r\n\r\n")

    async with edge(script) as running:
        assert (await running.ask(GET)).body == b"x" * count


async def test_events_arrive_one_by_one_as_they_are_sent() -> None:
    sent: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while event := await sent.get():
            conn.send(b"%x\r\n%b\r\n" % (len(event), event))
        conn.send(b"0\r\n\r\n")

    async with edge(script) as running:
        client = await running.client()
        await client.send(GET)
        async with guard():
            assert (await client.head()).status == 200
            for event in (b":keepalive\n\n", b'data: {"phase": "building"}\n\n', b"x" * 22_581):
                sent.put_nowait(event)
                assert await client.chunk() == event
            sent.put_nowait(b"")
            assert await client.chunk() == b""
            assert await client.line() == b""


# Responses without a body

NO_BODY = {
    "HEAD with a length": ("HEAD", ok(b"")[:-2].replace(b": 0", b": 5") + b"\r\n"),
    "HEAD that says chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "HEAD that says nothing": ("HEAD", b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    "304": ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "response"), NO_BODY.values(), ids=NO_BODY.keys())
async def test_response_without_a_body_leaves_both_connections_usable(method: str, response: bytes) -> None:
    async with edge(answer(response, ok(b"next"))) as running:
        client = await running.client()
        request = method.encode() + GET[3:]
        first = await client.ask(request, method)
        assert first.status == int(response.split()[1])
        assert (await client.ask(GET)).body == b"next"
        assert len(running.member.connections) == 1


async def test_head_keeps_the_length_that_the_body_would_have() -> None:
    async with edge(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")) as running:
        assert (await running.ask(b"HEAD" + GET[3:], "HEAD")).value("content-length") == b"12345"


async def test_204_has_no_length_whatever_the_member_says() -> None:
    async with edge(answer(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")) as running:
        assert (await running.ask(GET)).value("content-length") is None


# Interim responses


async def test_100_continue_works_end_to_end() -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        assert head.value("expect") == b"100-continue"
        assert conn.received.endswith(b"\r\n\r\n")
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await conn.body_of(head)
        conn.send(ok(head.body))
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(post(b"", b"Content-Length: 5", b"Expect: 100-continue"))
        async with guard():
            assert (await client.head()).status == 100
        assert (await client.ask(b"hello")).body == b"hello"


async def test_100_continue_comes_from_the_member_only() -> None:
    async with edge(answer(ok(b"x"))) as running:
        client = await running.client()
        response = await client.ask(post(b"hello", b"Content-Length: 5", b"Expect: 100-continue"))
        assert response.interim == []


async def test_final_answer_to_expect_closes_because_the_body_never_came() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        response = await client.ask(post(b"", b"Content-Length: 5", b"Expect: 100-continue"))
        assert response.status == 401
        assert response.value("connection") == b"close"
        assert await client.closed() == "eof"
        await until(lambda: not running.member.open, "the member's connection closed")


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


@pytest.mark.parametrize(
    "interim", [HINTS, HINTS * 3, b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 199 Odd\r\n\r\n"]
)
async def test_interim_responses_pass_in_order(interim: bytes) -> None:
    async with edge(answer(interim + ok(b"x"))) as running:
        response = await running.ask(GET)
        assert b"".join(message.head for message in response.interim) == interim
        assert response.body == b"x"


async def test_interim_response_passes_before_the_final_one_is_there() -> None:
    go_on = asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HINTS)
        await go_on.wait()
        conn.send(ok(b"x"))
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(GET)
        async with guard():
            assert (await client.head()).head == HINTS
        go_on.set()
        assert (await client.response()).body == b"x"


async def test_interim_responses_do_not_reach_a_1_0_visitor() -> None:
    async with edge(answer(HINTS + ok(b"x"))) as running:
        response = await running.ask(OLD_GET)
        assert (response.interim, response.body) == ([], b"x")


async def test_101_that_nobody_asked_for_is_nonsense() -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with edge(answer(switch)) as running:
        assert (await running.ask(GET)).status == 502


# Connections that are kept, and pipelining


async def test_connections_are_kept_on_both_sides() -> None:
    async with edge(answer(ok(b"x"))) as running:
        client = await running.client()
        for _ in range(10):
            response = await client.ask(GET)
            assert response.values("connection") == []
        assert len(running.member.connections) == 1
        assert len(running.member.requests) == 10


async def test_connections_to_a_member_are_shared_between_visitors() -> None:
    async with edge(answer()) as running:
        for _ in range(5):
            await running.ask(GET)
        assert len(running.member.connections) == 1


async def test_visitor_who_asks_for_close_is_closed_and_the_member_is_kept() -> None:
    async with edge(answer(ok(b"x"))) as running:
        for _ in range(2):
            client = await running.client()
            response = await client.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n"))
            assert response.value("connection") == b"close"
            assert await client.closed() == "eof"
        assert len(running.member.connections) == 1


async def test_member_that_closes_does_not_close_the_visitor() -> None:
    async with edge(once(ok(b"x", b"Connection: close"))) as running:
        client = await running.client()
        for _ in range(3):
            assert (await client.ask(GET)).values("connection") == []
        assert len(running.member.connections) == 3


async def test_1_0_visitor_who_asks_to_be_kept_is_kept_when_the_length_is_known() -> None:
    request = OLD_GET.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
    async with edge(answer(ok(b"x"), in_chunks(b"y"))) as running:
        client = await running.client()
        response = await client.ask(request)
        assert (response.body, response.value("connection")) == (b"x", b"keep-alive")
        response = await client.ask(request)
        assert (response.body, response.framing) == (b"y", "close")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def named(conn: Conn, request: Message) -> None:
        assert not conn.reader._buffer, "a second request came before the first was answered"  # type: ignore[attr-defined]
        conn.send(ok(request.target + request.body))

    names = [b"/%d" % n for n in range(20)]
    requests = [
        b"GET %b HTTP/1.1\r\n" % name + HOST + b"\r\n"
        if n % 2
        else post(b"abc", b"Content-Length: 3", target=name)
        for n, name in enumerate(names)
    ]
    async with edge(per_request(named)) as running:
        client = await running.client()
        await client.send(b"".join(requests))
        answers = [(await client.response()).body for _ in names]
        assert answers == [name if n % 2 else name + b"abc" for n, name in enumerate(names)]
        assert [request.target for request in running.member.requests] == names


async def test_pipelined_request_behind_a_chunked_one_is_the_next() -> None:
    async with edge(per_request(echo)) as running:
        client = await running.client()
        await client.send(
            post(chunked(b"first"), b"Transfer-Encoding: chunked") + post(b"second", b"Content-Length: 6")
        )
        assert (await client.response()).body == b"first"
        assert (await client.response()).body == b"second"


async def test_pipelined_requests_beyond_what_is_held_wait_in_the_socket() -> None:
    async with edge(answer(ok(b"x"))) as running:
        client = await running.client()
        client.write(GET * 5000)
        for _ in range(5000):
            assert (await client.response()).body == b"x"
        assert len(running.member.requests) == 5000


async def test_idle_visitor_is_closed_after_keepalive() -> None:
    async with edge(answer(), timeouts={"keepalive": "200ms"}) as running:
        client = await running.client()
        await client.ask(GET)
        assert await client.closed() == "eof"
        await until(lambda: not running.service.edge.idle(), "the idle connection to the member closed")


# Answers that come early


@pytest.mark.parametrize("framing", [b"Content-Length: 8388608", b"Transfer-Encoding: chunked"])
async def test_early_413_is_delivered_while_uploading(framing: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        client.write(post(b"", framing))
        client.write((b"10000\r\n%b\r\n" % BIG[:65536] if b"chunked" in framing else BIG[:65536]) * 16)
        response = await client.response()
        assert (response.status, response.body) == (413, b"much")
        assert response.value("connection") == b"close"
        assert await client.closed() == "eof"
        await until(lambda: not running.member.open, "the member's connection closed")


async def test_early_413_of_a_member_that_closes_at_once_is_delivered() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmuch")
        conn.half_close()
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        client.write(post(b"", b"Content-Length: 8388608") + BIG[:100_000])
        response = await client.response()
        assert (response.status, response.body) == (413, b"much")
        assert await client.closed() == "eof"


async def test_upload_after_an_early_answer_does_not_become_a_request() -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        conn.member.requests.append(head)
        conn.send(ok(b"early"))
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        assert (await client.ask(post(b"x", b"Content-Length: 100"))).body == b"early"
        await client.send(b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
        assert await client.closed() == "eof"
        assert (await running.ask(GET)).body == b"early"
        assert [request.target for request in running.member.requests] == [b"/", b"/"]


# Bytes beyond a response, and responses that make no sense

EXCESS = {
    "a length": ("GET", ok(b"x")),
    "a length of zero": ("GET", EMPTY),
    "chunks": ("GET", in_chunks(b"x")),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(("method", "response"), EXCESS.values(), ids=EXCESS.keys())
async def test_bytes_beyond_a_response_close_the_connection_and_leak_to_nobody(
    method: str, response: bytes, late: bool
) -> None:
    poison = ok(b"poison")
    delivered = asyncio.Event()

    async def script(conn: Conn) -> None:
        while (await conn.request()).target == b"/next":
            conn.send(ok(b"clean"))
        conn.send(response)
        if late:
            await conn.flush()
            await delivered.wait()
        conn.send(poison)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        first = await client.ask(method.encode() + GET[3:], method)
        assert b"poison" not in first.body
        delivered.set()
        await until(lambda: not running.member.open, "the poisoned connection closed")
        for visitor in (client, await running.client()):
            assert (await visitor.ask(GET.replace(b"/ ", b"/next "))).body == b"clean"
        assert b"poison" not in client.received


NONSENSE = {
    "no HTTP at all": b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
    "no HTTP, and no line's end": b"\x15\x03\x01\x00\x02\x02\x50" * 3,
    "empty head": b"\r\n\r\n",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\n",
    "version 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "version 0.9": b"hello\r\n\r\n",
    "status with two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status with four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "status with a sign": b"HTTP/1.1 +20 OK\r\n\r\n",
    "control byte in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "folded field": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "space before the first field": b"HTTP/1.1 200 OK\r\n X-A: b\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\r\nX-A: b\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
    "bare CR": b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX-A: b\0\r\nContent-Length: 0\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
    "two lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length list that differs": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
    "length with a plus": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "length with a minus": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "length with a space": b"HTTP/1.1 200 OK\r\nContent-Length: 1 0\r\n\r\nhello",
    "length beyond 64 bits": b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(b"x"),
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n" + chunked(b"x"),
    "gzip before chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b"x"),
    "chunked from 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"x"),
    "head of many fields": b"HTTP/1.1 200 OK\r\n" + b"X-A: bbbbbbbb\r\n" * 10_000 + b"\r\n",
    "head without end": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200_000,
}


@pytest.mark.parametrize("response", NONSENSE.values(), ids=NONSENSE.keys())
async def test_response_that_makes_no_sense_is_502_and_charged(response: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(response)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        answered = await client.ask(GET)
        assert answered.status == 502
        assert b"Set-Cookie: c" not in client.received
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (502, "PH")
        assert running.errors("a") == {"bad_response": 1}
        assert not running.service.edge.idle()


BEGINNINGS = {
    "bare LF as every line's end": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "bare LF after the status line": b"HTTP/1.1 200 OK\n",
    "bare LF after a field": b"HTTP/1.1 200 OK\r\nContent-Length: 2\n",
    "bare LF before a real end": b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\n",
    "bare CR": b"HTTP/1.1 200 OK\r\nX-A: b\rc",
    "two CRs": b"HTTP/1.1 200 OK\r\r",
    "NUL": b"HTTP/1.1 200 OK\r\nX-A: b\0",
    "status that is no number": b"HTTP/1.1 abc",
    "status with four digits": b"HTTP/1.1 2000",
    "another version": b"HTTP/2",
    "no HTTP": b"hello",
    "empty line first": b"\r\nHTTP",
    "no colon": b"HTTP/1.1 200 OK\r\nX-A: b\r\nnonsense\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX-A :",
    "folded field": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c",
    "bare LF after an interim head": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\n",
    "bare LF in an interim head": b"HTTP/1.1 103 Early Hints\nLink: </a>\n\n",
    "no HTTP after an interim head": b"HTTP/1.1 100 Continue\r\n\r\nok",
}


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize("begun", BEGINNINGS.values(), ids=BEGINNINGS.keys())
async def test_head_that_can_never_be_whole_is_502_while_its_member_still_sends(
    begun: bytes, size: int
) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        for at in range(0, len(begun), size):
            if conn.writer.is_closing():
                # The edge has read enough.
                return
            conn.send(begun[at : at + size])
            await conn.flush()
            await asyncio.sleep(0)
        await conn.stall()

    async with edge(script, timeouts={"response_head": "1h"}) as running:
        assert (await running.ask(GET)).status == 502
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (502, "PH")
        assert running.errors("a") == {"bad_response": 1}


async def test_head_that_can_never_be_whole_is_another_member_s_to_answer() -> None:
    members: dict[str, Script | Scripted] = {
        "a": once(BEGINNINGS["bare LF as every line's end"]),
        "b": answer(),
    }
    async with edge(members, timeouts={"response_head": "1h"}) as running:
        pinned = GET.replace(b"\r\n", b"\r\nCookie: fedproxy_member=a\r\n", 1)
        assert (await running.ask(pinned)).body == b"ok"


# Ends that come too early


async def half(conn: Conn, head: bytes, how: str) -> None:
    await conn.request()
    conn.send(head, b"half")
    await conn.flush()
    await until(lambda: conn.member.seen, "the visitor has seen half of it")  # type: ignore[attr-defined]
    if how == "reset":
        conn.reset()


class Breaking(Scripted):
    """A member that sends half of a response and ends the connection once the visitor has that half."""

    seen = False

    def __init__(self, head: bytes, how: str) -> None:
        super().__init__(lambda conn: half(conn, head, how))


CUT = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n",
    "a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n8\r\n",
}


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("head", CUT.values(), ids=CUT.keys())
@pytest.mark.parametrize("request_", [GET, OLD_GET], ids=["1.1", "1.0"])
async def test_truncated_response_is_never_a_clean_end(request_: bytes, head: bytes, how: str) -> None:
    member = Breaking(head, how)
    async with edge(member) as running:
        client = await running.client()
        await client.send(request_)
        async with guard():
            assert (await client.head()).status == 200
        await until(lambda: client.received.endswith(b"half"), "half of it")
        member.seen = True
        async with guard():
            end, _ = await client.until_end()
        assert end == "reset"
        assert client.received.endswith(b"half")
        (line,) = await running.logged()
        assert line["termination"] == "SD"
        assert running.errors("a") == {"truncated": 1}


@pytest.mark.parametrize("request_", [GET, OLD_GET], ids=["1.1", "1.0"])
async def test_reset_of_a_response_that_ends_with_its_connection_is_no_clean_end(request_: bytes) -> None:
    member = Breaking(b"HTTP/1.1 200 OK\r\n\r\n", "reset")
    async with edge(member) as running:
        client = await running.client()
        await client.send(request_)
        await until(lambda: b"half" in client.received, "half of it")
        member.seen = True
        async with guard():
            end, _ = await client.until_end()
        assert end == "reset"
        assert not client.received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "chunk", [b"zz\r\nhalf", b"4\r\nhalfhalf", b"FFFFFFFFFFFFFFFFFF\r\nhalf", b"4\nhalf\r\n0\r\n\r\n"]
)
async def test_malformed_chunk_of_a_response_is_no_clean_end(chunk: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        conn.send(chunk)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(GET)
        async with guard():
            end, _ = await client.until_end()
        assert end == "reset"
        assert not client.received.endswith(b"0\r\n\r\n")
        assert sum(running.errors("a").values()) == 1


async def test_visitor_who_breaks_off_an_upload_never_makes_a_whole_request() -> None:
    for framing in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
        async with edge(answer()) as running:
            client = await running.client()
            await client.send(post(b"32\r\nhalf", framing))
            await until(lambda: b"half" in running.member.received, "half of the upload")
            client.reset()
            await until(lambda: not running.member.open, "the member's connection closed")
            assert running.member.requests == []
            assert running.errors("a") == {}


# Back-pressure


async def round_trip(running: Edge) -> None:
    """A request of somebody else's, so that the edge has had its turn."""
    assert (await running.ask(b"nonsense\r\n\r\n")).status == 400


# What the edge may hold for one slow peer: a read or two above the mark at which it stops to read.
MOST_HELD = 1 << 20


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_upload_to_a_slow_member_is_held_back_and_arrives_whole(framing: str) -> None:
    held: list[int] = []
    arrived: list[bytes] = []
    blocked = asyncio.Event()

    async def script(conn: Conn) -> None:
        length = (await conn.head()).value("content-length")
        await blocked.wait()
        pieces = [b""]
        left = int(length or 0)
        while piece := await (conn.chunk() if length is None else conn.exactly(min(left, 65_536))):
            pieces.append(piece)
            left -= len(piece)
            held.append(running.buffered())
        arrived.append(b"".join(pieces))
        conn.send(EMPTY)
        await conn.stall()

    member = Scripted(script, receive_buffer=65_536)
    async with edge(member) as running:
        client = await running.client()
        if framing == "length":
            client.write(post(BIG, b"Content-Length: %d" % len(BIG)))
        else:
            pieces = [BIG[at : at + 65_536] for at in range(0, len(BIG), 65_536)]
            client.write(post(chunked(*pieces), b"Transfer-Encoding: chunked"))
        await until(lambda: running.buffered() > 0, "the edge cannot send on")
        await round_trip(running)
        held.append(running.buffered())
        blocked.set()
        assert (await client.response()).status == 200
        assert arrived == [BIG]
        assert max(held) < MOST_HELD


async def test_download_by_a_slow_visitor_is_held_back_and_arrives_whole() -> None:
    held: list[int] = []

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(ok(BIG))
        await conn.stall()

    async with edge(script) as running:
        client = await running.client(receive_buffer=65_536)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        await until(lambda: running.buffered() > 0, "the edge cannot send on")
        await round_trip(running)
        held.append(running.buffered())
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with guard():
            await client.head()
            left = len(BIG)
            whole = []
            while left:
                whole.append(await client.reader.read(50_000))
                left -= len(whole[-1])
                held.append(running.buffered())
        assert b"".join(whole) == BIG
        assert max(held) < MOST_HELD


async def test_eight_uploads_through_slow_members_do_not_disturb_each_other() -> None:
    async def slow(conn: Conn, request: Message) -> None:
        conn.send(ok(request.body[-8:]))
        await conn.flush()

    async def upload(client: RawClient, number: int) -> None:
        body = BIG[number : number + (1 << 20)]
        client.write(post(body, b"Content-Length: %d" % len(body)))
        assert (await client.response()).body == body[-8:]

    async with edge(Scripted(per_request(slow), receive_buffer=8192)) as running:
        clients = [await running.client() for _ in range(8)]
        await asyncio.gather(*(upload(client, number) for number, client in enumerate(clients)))


async def test_response_is_not_mixed_up_when_visitors_break_off() -> None:
    async with edge(per_request(echo)) as running:
        for number in range(30):
            leaver = await running.client()
            await leaver.send(post(b"", b"Content-Length: 100", target=b"/leaver"))
            (leaver.reset if number % 2 else leaver.close)()
            body = b"stays %d" % number
            assert (await running.ask(post(body, b"Content-Length: %d" % len(body)))).body == body


async def test_ended_is_raised_when_a_response_is_missing() -> None:
    async with edge(answer(), timeouts={"keepalive": "100ms"}) as running:
        client = await running.client()
        with pytest.raises(Ended):
            await client.response()
