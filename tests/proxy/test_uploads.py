"""Visitors who send slowly: what they hold of a member, and who is served meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedproxy.serve.assemble import assemble
from tests.rig import (
    Conn,
    Edge,
    Message,
    RawClient,
    answer,
    chunked,
    edge,
    guard,
    per_request,
    refusing,
    until,
)
from tests.rig.launches import HEAD as EVENTS
from tests.rig.launches import LAUNCH, PATIENT, QUOTA, chunk

HEAD = b"Host: hub.test\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
POST = b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n" + HEAD
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEAD
EXPECT = b"POST / HTTP/1.1\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n" + HEAD
PROXY: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"]}


def rejected(running: Edge) -> dict[str, int]:
    return dict(running.service.edge.counts.rejected)


def in_flight(running: Edge) -> int:
    return sum(member.in_flight for member in running.service.edge.federation.members)


def uploads(running: Edge) -> int:
    return sum(running.service.edge.admission.uploads.values())


def by(client: str, request: bytes = POST) -> bytes:
    """The same request, passed on by a proxy for a client."""
    return request.replace(HEAD, b"X-Forwarded-For: %b\r\n" % client.encode() + HEAD)


async def begun(running: Edge, request: bytes = POST + b"a") -> RawClient:
    """An upload that has begun and goes no further."""
    before = uploads(running)
    client = await running.client()
    await client.send(request)
    await until(lambda: uploads(running) == before + 1, "it is on its way")
    return client


# -- nothing is asked before there is something to send


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (POST, b"b" * 1000),
        (CHUNKED, chunked(b"hello")),
        (POST.replace(b"1.1", b"1.0"), b"b" * 1000),
        (POST.replace(b"POST", b"GET"), b"b" * 1000),
        (
            POST.replace(b"POST / ", b"GET /build/gh/a/b/c ").replace(
                HEAD, b"Accept: text/event-stream\r\n" + HEAD
            ),
            b"b" * 1000,
        ),
    ],
    ids=["length", "chunked", "1.0", "GET", "launch"],
)
async def test_member_is_not_asked_before_the_first_of_a_body_has_come(head: bytes, body: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(head)
        await until(lambda: "Exchange" in repr(running.connections), "the head is read")
        assert (await running.ask(GET)).status == 200
        assert (in_flight(running), uploads(running), running.service.edge.busy()) == (0, 0, 0)
        assert len(running.member.requests) == 1
        await client.send(body[:3])
        await until(lambda: in_flight(running) == 1, "the member is asked")
        await client.send(body[3:])
        assert (await client.response()).status == 200
        assert uploads(running) == 0


async def test_empty_chunked_body_is_sent_on() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(CHUNKED)
        assert (await client.ask(b"0\r\n\r\n")).status == 200
        assert running.member.requests[0].framing == "chunked"


@pytest.mark.parametrize("head", [POST, CHUNKED])
async def test_body_that_never_begins_is_408_without_a_member(head: bytes) -> None:
    async with edge(answer(), timeouts={"request_idle": "200ms"}) as running:
        client = await running.client()
        await client.send(head)
        assert (await client.response()).status == 408
        assert await client.closed() == "eof"
        (line,) = await running.logged()
        assert (line["termination"], line["member"], line["attempts"]) == ("cR", None, 0)
        assert rejected(running) == {"body_timeout": 1}
        assert not running.member.connections


async def test_visitor_who_leaves_before_the_body_begins_is_told_by_the_log() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(POST)
        await until(lambda: "Exchange" in repr(running.connections), "the head is read")
        await client.leave()
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (499, "CR", None)


async def test_malformed_chunk_is_400_without_a_member() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(CHUNKED)
        assert (await client.ask(b"zz\r\n")).status == 400
        assert not running.member.connections


async def test_upload_goes_on_piece_by_piece() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await conn.chunk():
            conn.send(chunked(piece)[:-5])
        await conn.line()
        conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(CHUNKED)
        async with guard():
            for number in range(5):
                piece = b"piece %d" % number
                await client.send(chunked(piece)[:-5])
                if not number:
                    await client.head()
                assert await client.chunk() == piece
            await client.send(b"0\r\n\r\n")
            assert await client.chunk() == b""


async def test_member_is_asked_at_once_where_the_visitor_waits_for_its_word() -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await conn.body_of(head)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(EXPECT)
        async with guard():
            assert (await client.head()).status == 100
        assert uploads(running) == 1
        assert (await client.ask(b"a" * 1000)).status == 200
        assert uploads(running) == 0


# -- what one address may hold


@pytest.mark.parametrize(
    "request_", [POST + b"a", CHUNKED + b"3e8\r\na", EXPECT], ids=["length", "chunked", "expect"]
)
async def test_one_address_has_only_so_many_uploads_on_their_way(request_: bytes) -> None:
    async with edge(answer(), limits={"uploads_per_address": 2}) as running:
        slow = [await begun(running, request_) for _ in range(2)]
        for number in (1, 2):
            late = await running.client()
            response = await late.ask(request_)
            assert (response.status, response.value("retry-after")) == (429, b"30")
            assert await late.closed() == "eof"
            line = (await running.logged(number))[-1]
            assert (line["termination"], line["member"], line["status"]) == ("PR", None, 429)
        assert rejected(running) == {"uploads": 2}
        assert (await running.ask(GET)).status == 200
        assert (await running.ask(POST + b"a" * 1000)).status == 200
        assert in_flight(running) == 2
        slow[0].reset()
        await until(lambda: uploads(running) == 1, "there is room")
        await begun(running, request_)


async def test_refused_upload_is_answered_as_it_asks_for() -> None:
    async with edge(answer(), limits={"uploads_per_address": 1}) as running:
        await begun(running)
        late = await running.client()
        response = await late.ask(POST.replace(HEAD, b"Accept: application/json\r\n" + HEAD) + b"a")
        assert response.value("content-type") == b"application/json"


async def test_nobody_fills_a_member_with_uploads_however_many_they_begin() -> None:
    async with edge(answer(), limits={"member_requests": 8}) as running:
        for _ in range(2):
            await begun(running)
        clients = [await running.client() for _ in range(20)]
        for client in clients:
            await client.send(POST + b"a")
        assert [(await client.response()).status for client in clients] == [429] * 20
        assert (await running.ask(GET)).status == 200


async def test_uploads_of_many_clients_leave_a_part_of_the_member_to_others() -> None:
    async with edge(answer(), limits={"member_requests": 8}, **PROXY) as running:
        slow = [await begun(running, by(f"198.51.100.{number}") + b"a") for number in range(6)]
        for number in range(3):
            response = await (await running.client()).ask(by(f"203.0.113.{number}") + b"a")
            assert (response.status, response.value("retry-after")) == (503, b"30")
        # Nor does a proxy that says of nobody whom it is for.
        assert (await (await running.client()).ask(POST + b"a")).status == 503
        assert rejected(running) == {"uploads_full": 4}
        assert (await running.ask(by("203.0.113.9", GET))).status == 200
        assert (await running.ask(by("203.0.113.9") + b"a" * 1000)).status == 200
        slow[0].reset()
        await until(lambda: uploads(running) == 5, "there is room")
        assert sum(running.service.edge.admission.under_way.values()) == 5
        await begun(running, by("203.0.113.1") + b"a")
        for client in slow:
            client.reset()


async def test_limit_goes_by_the_member_that_is_asked() -> None:
    members = {"big": answer(), "small": answer()}
    settings = {"small": {"max_requests": 5}}
    routes = [{"path": "/small", "to": "small"}, {"path": "/*", "to": "big"}]
    async with edge(members, settings=settings, routes=routes) as running:
        for _ in range(5):
            await begun(running)
        small = POST.replace(b"/ ", b"/small ") + b"a"
        await begun(running, small)
        assert (await (await running.client()).ask(small)).status == 429
        await begun(running)


async def test_limit_of_zero_is_none() -> None:
    async with edge(answer(), limits={"uploads_per_address": 0, "member_requests": 4}) as running:
        for number in range(4):
            client = await running.client()
            await client.send(POST + b"a")
            await until(lambda: in_flight(running) == number + 1, "it is on its way")  # noqa: B023
        assert uploads(running) == 0


async def test_client_behind_a_trusted_proxy_is_counted_and_the_proxy_is_not() -> None:
    async with edge(answer(), limits={"uploads_per_address": 1}, **PROXY) as running:
        await begun(running, by("198.51.100.1") + b"a")
        assert (await (await running.client()).ask(by("198.51.100.1") + b"a")).status == 429
        await begun(running, by("198.51.100.2") + b"a")
        for number in range(3):
            client = await running.client()
            await client.send(POST + b"a")
            await until(lambda: in_flight(running) == number + 3, "it is on its way")  # noqa: B023


async def test_ipv6_clients_of_one_network_are_one() -> None:
    async with edge(answer(), limits={"uploads_per_address": 1}, **PROXY) as running:
        await begun(running, by("2001:db8::1") + b"a")
        assert (await (await running.client()).ask(by("2001:db8::2:1") + b"a")).status == 429
        await begun(running, by("2001:db8:0:1::1") + b"a")


# -- whoever is counted is counted no more at the end, however it ends


async def early(conn: Conn, request: Message | None = None) -> None:
    await conn.head()
    conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    await conn.stall()


async def resets(conn: Conn) -> None:
    await conn.head()
    conn.reset()


async def broken(conn: Conn) -> None:
    await conn.head()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await conn.flush()
    conn.close()


async def stalls(conn: Conn) -> None:
    await conn.head()
    await conn.stall()


@pytest.mark.parametrize("script", [early, resets, broken, stalls])
@pytest.mark.parametrize("request_", [POST + b"a", EXPECT], ids=["length", "expect"])
async def test_upload_that_its_member_ends_is_counted_no_more(script: Any, request_: bytes) -> None:
    async with edge(script, timeouts={"request_idle": "300ms", "response_head": "300ms"}) as running:
        client = await running.client()
        await client.send(request_)
        async with guard():
            await client.until_end()
        await running.logged()
        assert running.service.edge.admission.uploads == {}


async def test_upload_that_is_tried_again_counts_once() -> None:
    async def second(conn: Conn) -> None:
        await conn.head()
        await conn.stall()

    with refusing() as nobody:
        members: dict[str, Any] = {"a": nobody, "b": second}
        async with edge(members, settings={"a": {"weight": 1e9}}) as running:
            client = await begun(running)
            await until(lambda: running.members["b"].connections, "the other is asked")
            assert uploads(running) == 1
            client.reset()
            await until(lambda: not uploads(running), "it is counted no more")


async def test_launch_with_a_body_that_ends_with_a_word_that_was_kept_is_counted_no_more() -> None:
    """The last member cannot be reached, so the visitor gets what the one before said, at once."""
    launch = (
        b"GET /build/gh/a/b/HEAD HTTP/1.1\r\nAccept: text/event-stream\r\nContent-Length: 1000\r\n" + HEAD
    )

    async def full(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 503 Full\r\nContent-Length: 4\r\n\r\nfull")
        await conn.stall()

    with refusing() as nobody:
        members: dict[str, Any] = {"a": full, "b": nobody}
        async with edge(members, settings={"a": {"weight": 1e9}}) as running:
            client = await running.client()
            response = await client.ask(launch + b"a")
            assert (response.status, response.body) == (503, b"full")
            assert not uploads(running)
            assert not running.service.edge.admission.under_way


async def test_upload_under_way_is_not_judged_by_a_later_limit() -> None:
    """One with a length was let in by its head."""
    async with edge(answer()) as running:
        client = await begun(running)
        config = running.service.config
        limits = config.limits.model_copy(update={"request_body": 10})
        assemble(running.service.edge, config.model_copy(update={"limits": limits}))
        assert (await client.ask(b"b" * 999)).status == 200
        assert (await client.ask(POST)).status == 413


async def test_upload_that_no_member_takes_is_503_and_not_counted() -> None:
    async with edge(answer(), limits={"member_requests": 1}) as running:
        await begun(running)
        client = await running.client()
        assert (await client.ask(POST + b"a")).status == 503
        assert uploads(running) == 1


async def test_launch_with_a_body_that_no_member_takes_is_counted_no_more() -> None:
    async def full(conn: Conn) -> None:
        await conn.head()
        conn.send(EVENTS, chunk(QUOTA))
        await conn.stall()

    with refusing() as nobody:
        async with edge({"a": full, "b": nobody}, **PATIENT) as running:
            client = await running.client()
            # What the first said is the answer, given when the second cannot be reached.
            await client.send(LAUNCH.replace(b"\r\n\r\n", b"\r\nContent-Length: 10\r\n\r\na"))
            assert (await client.response()).body == QUOTA
            await running.logged()
            assert running.service.edge.admission.under_way == {}


async def test_stop_cuts_an_upload_that_did_not_begin() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(POST)
        await until(lambda: "Exchange" in repr(running.connections), "the head is read")
        await running.service.stop()
        async with guard():
            await client.until_end()
        (line,) = running.log
        assert (line["termination"], line["status"]) == ("DR", 503)


async def test_uploads_at_full_speed_are_not_refused() -> None:
    async def echo(conn: Conn, request: Message) -> None:
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def upload(client: RawClient) -> int:
        for _ in range(5):
            status = (await client.ask(POST.replace(b"1000", b"100000") + b"a" * 100_000)).status
        return status

    async with edge(per_request(echo)) as running:
        clients = [await running.client() for _ in range(20)]
        assert await asyncio.gather(*map(upload, clients)) == [200] * 20
        assert running.service.edge.admission.uploads == {}
