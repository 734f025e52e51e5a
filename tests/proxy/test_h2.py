"""Requests over HTTP/2: everything that one by HTTP/1.1 can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.rig import Conn, Edge, Message, Scripted, answer, edge, per_request, until
from tests.rig.edge import Member
from tests.rig.h2 import DATA, END_STREAM, H2Client, frame, request


@asynccontextmanager
async def h2_edge(members: Member | dict[str, Member], **overrides: Any) -> AsyncIterator[Edge]:
    listen = [{"address": "127.0.0.1:0", "http2": True, **overrides.pop("listener", {})}]
    async with edge(members, listen=listen, **overrides) as running:
        yield running


async def visit(running: Edge, *, windows: bool = True, settings: bytes = b"") -> H2Client:
    return await H2Client(await running.client(), windows=windows).begin(settings)


async def test_a_get_and_its_answer() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case: Kept\r\nServer: a\r\n\r\nok"
    async with h2_edge(answer(ok)) as running:
        client = await visit(running)
        response = await client.ask(request(b"/x?y=1", (b"user-agent", b"test"), (b"cookie", b"a=1")))
        assert (response.status, response.body, response.reset) == (200, b"ok", None)
        assert response.value("x-case") == b"Kept" and response.value("content-length") == b"2"
        assert len(response.value("x-request-id") or b"") == 32
        assert (response.value("set-cookie") or b"").startswith(b"fedproxy_member=a")
        (asked,) = running.member.requests
        assert asked.start == b"GET /x?y=1 HTTP/1.1"
        assert asked.value("host") == running.member.authority.encode()
        assert asked.value("x-forwarded-host") == b"hub.test" and asked.value("cookie") == b"a=1"
        assert asked.value("via") == b"1.1 fedproxy" and asked.framing == "none"
        (line,) = await running.logged()
        assert (line["protocol"], line["status"], line["bytes_out"]) == ("HTTP/2.0", 200, 2)
        assert (line["host"], line["target"], line["user_agent"]) == ("hub.test", "/x?y=1", "test")


async def test_http1_is_spoken_beside_it() -> None:
    async with h2_edge(answer()) as running:
        for first in (b"G", b"GET / HTTP/1.1\r\n", b"P"):
            rest = (
                b"POST" if first == b"P" else b"GET"
            ) + b" / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            client = await running.client()
            await client.send(first)
            await asyncio.sleep(0)
            assert (await client.ask(rest[len(first) :])).body == b"ok"


async def test_cookies_in_crumbs_are_one_field() -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        await client.ask(
            request(
                b"/",
                (b"cookie", b"a=1"),
                (b"x", b"y"),
                (b"cookie", b"fedproxy_member=a"),
                (b"cookie", b"c=3"),
            )
        )
        assert running.member.requests[0].value("cookie") == b"a=1; c=3"
        assert (await running.logged())[0]["affinity"] == "cookie"


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 3_000_000])
async def test_an_upload_arrives_whole(size: int, length: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with h2_edge(answer()) as running:
        client = await visit(running)
        more = ((b"content-length", b"%d" % size),) if length else ()
        stream = client.head(request(b"/up", *more, method=b"POST"), end=False)
        sent = 0
        credit, connection = client.settings[4], 16 * 1024 * 1024
        while sent < size:
            part = body[sent : sent + min(16_384, credit, connection)]
            if not part:
                before = len(client.frames)
                await client.frame()
                for got in client.frames[before:]:
                    if got.kind == 8 and got.stream == stream:
                        credit += int.from_bytes(got.payload, "big")
                continue
            client.data(stream, part)
            sent += len(part)
            credit -= len(part)
        client.data(stream, b"", end=True)
        assert (await client.response(stream)).body == b"ok"
        (asked,) = running.member.requests
        assert asked.body == body
        assert asked.framing == ("length" if length else "chunked")


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 65_536, 2_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_download_arrives_whole(size: int, framing: str) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def script(conn: Conn) -> None:
        await conn.request()
        if framing == "length":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, body)
        elif framing == "chunked":
            conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, size, 70_000):
                part = body[at : at + 70_000]
                conn.send(b"%x\r\n%b\r\n" % (len(part), part))
            conn.send(b"0\r\nX-Sum: 7\r\nContent-Type: evil\r\n\r\n")
        else:
            conn.send(b"HTTP/1.1 200 OK\r\n\r\n", body)
        await conn.flush()

    async with h2_edge(script) as running:
        response = await (await visit(running)).ask(request())
        assert response.body == body and response.ended
        assert response.value("transfer-encoding") is None
        assert response.trailers == ([(b"x-sum", b"7")] if framing == "chunked" else [])
        (line,) = await running.logged()
        assert (line["bytes_out"], line["termination"]) == (size, "--")


async def test_many_streams_at_once_each_get_their_own() -> None:
    async def handle(conn: Conn, asked: Message) -> None:
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(asked.target), asked.target))

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running)
        streams = {client.head(request(b"/%d" % number)): b"/%d" % number for number in range(100)}
        for stream, path in streams.items():
            assert (await client.response(stream)).body == path


async def test_head_has_no_body_and_keeps_its_length() -> None:
    async with h2_edge(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")) as running:
        response = await (await visit(running)).ask(request(method=b"HEAD"))
        assert (response.status, response.body, response.value("content-length")) == (200, b"", b"99")


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body(status: int) -> None:
    async with h2_edge(answer(b"HTTP/1.1 %d X\r\n\r\n" % status)) as running:
        response = await (await visit(running)).ask(request())
        assert (response.status, response.ended) == (status, True)


async def test_interim_responses_pass_on() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    async with h2_edge(answer(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as running:
        response = await (await visit(running)).ask(request())
        assert response.statuses == [103, 200]
        assert dict(response.heads[0])[b"link"] == b"</a.css>"


async def test_expect_is_answered_by_the_member() -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        assert head.value("expect") == b"100-continue"
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await conn.body_of(head)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head.body), head.body))
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        stream = client.head(
            request(b"/", (b"expect", b"100-continue"), (b"content-length", b"5"), method=b"POST"), end=False
        )
        await client.until(lambda: client.streams[stream].heads)
        assert client.streams[stream].status == 100
        client.data(stream, b"hello", end=True)
        assert (await client.response(stream)).body == b"hello"


async def test_an_early_answer_ends_the_upload() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        stream = client.head(request(b"/", method=b"POST"), end=False)
        client.data(stream, b"x" * 1000)
        response = await client.response(stream)
        assert (response.status, response.body, response.ended) == (413, b"no", True)
        await client.until(lambda: client.streams[stream].reset)
        assert response.reset == "no_error"
        # What is still on its way is no fault.
        client.data(stream, b"x" * 1000, end=True)
        assert (await client.ask(request())).status == 413


async def test_request_trailers_end_here() -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        stream = client.head(request(method=b"POST"), end=False)
        client.data(stream, b"abc")
        client.head([(b"x-trailer", b"1")], stream=stream)
        assert (await client.response(stream)).body == b"ok"
        (asked,) = running.member.requests
        assert (asked.body, asked.trailers) == (b"abc", [])


async def test_a_response_that_breaks_off_is_reset_and_others_go_on() -> None:
    async def handle(conn: Conn, asked: Message) -> None:
        if asked.target == b"/broken":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            conn.close()
        else:
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running)
        broken = client.head(request(b"/broken"))
        other = client.head(request(b"/other"))
        response = await client.response(broken)
        assert (response.body, response.ended, response.reset) == (b"half", False, "internal_error")
        assert (await client.response(other)).body == b"ok"
        assert (await client.ask(request(b"/other"))).body == b"ok"
        lines = {line["target"]: line["termination"] for line in await running.logged(3)}
        assert lines == {"/broken": "SD", "/other": "--"}


async def test_a_cancelled_request_leaves_its_member() -> None:
    left = asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        await conn.stall()
        left.set()

    async with h2_edge(script) as running:
        client = await visit(running)
        stream = client.head(request())
        await until(lambda: running.member.has(1), "asked")
        client.write(frame(3, 0, stream, b"\0\0\0\x08"))
        await left.wait()
        (line,) = await running.logged()
        assert line["termination"] == "CH"


async def test_a_visitor_who_leaves_ends_all() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        for number in range(3):
            client.head(request(b"/%d" % number))
        await until(lambda: running.member.has(3), "asked")
        await client.leave()
        assert {line["termination"] for line in await running.logged(3)} == {"CH"}


async def test_errors_of_the_edges_own() -> None:
    async with h2_edge({"a": "http://127.0.0.1:1"}) as running:
        client = await visit(running)
        response = await client.ask(request(b"/", (b"accept", b"application/json")))
        assert response.status == 502 and b"request_id" in response.body and response.ended
        response = await client.ask(request(b"/", method=b"TRACE"))
        assert response.status == 405 and response.value("allow")
        response = await client.ask(request(b"/active_hosts"))
        assert response.status == 200 and b"active_hosts" in response.body


async def test_a_stalled_stream_stops_its_member_and_nobody_else() -> None:
    async def handle(conn: Conn, asked: Message) -> None:
        size = 5_000_000 if asked.target == b"/big" else 2
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        conn.send(b"x" * size)
        await conn.flush()

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running, windows=False)
        big = client.head(request(b"/big"))
        await client.until(lambda: len(client.streams[big].received) == 65_535)
        client.write(frame(8, 0, 0, b"\0\1\0\0"))
        assert (await client.ask(request(b"/small"))).body == b"xx"
        (connection,) = running.connections
        await until(lambda: not all(each.reading for each in running.upstreams), "the member is not read")
        held = connection.machine.held_up
        assert 0 < held <= 512 * 1024
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection.machine.held_up == held
        client.write(frame(8, 0, 0, b"\x02\0\0\0") + frame(8, 0, big, b"\x02\0\0\0"))
        response = await client.response(big)
        assert len(response.received) == 5_000_000 and response.ended


async def test_an_upload_that_its_member_does_not_read_is_held_back() -> None:
    go = asyncio.Event()

    async def script(conn: Conn) -> None:
        head = await conn.head()
        await go.wait()
        await conn.body_of(head)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await conn.stall()

    async with h2_edge({"a": Scripted(script, receive_buffer=4096)}) as running:
        client = await visit(running)
        stream = client.head(
            request(b"/", (b"content-length", b"%d" % (32 << 20)), method=b"POST"), end=False
        )
        credit = client.settings[4]
        sent = 0

        async def send_all(stop: int) -> None:
            nonlocal credit, sent
            while sent < stop:
                if credit >= 16_384:
                    client.data(stream, b"x" * 16_384)
                    sent += 16_384
                    credit -= 16_384
                    continue
                got = await client.frame()
                if got.kind == 8 and got.stream == stream:
                    credit += int.from_bytes(got.payload, "big")

        sending = asyncio.ensure_future(send_all(32 << 20))
        (connection,) = running.connections
        await until(lambda: stream in connection.machine.streams, "begun")
        await until(lambda: credit < 16_384 and connection.machine.streams[stream].held, "held")
        assert sent < 24 << 20
        go.set()
        await sending
        client.write(frame(DATA, END_STREAM, stream))
        assert (await client.response(stream)).body == b"ok"
