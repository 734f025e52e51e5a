"""Upgraded connections: WebSocket through the edge, and tunnels byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.rig import Conn, Edge, answer, edge, guard, until

UPGRADE = (
    b"GET /api/kernels/1/channels HTTP/1.1\r\nHost: hub.test\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Member: a\r\n\r\n"
)
GET = b"GET /plain HTTP/1.1\r\nHost: hub.test\r\n\r\n"


# With a real client and a real server


async def echo(websocket: ServerConnection) -> None:
    try:
        async for message in websocket:
            if message == "close":
                await websocket.close(4001, "as you wish")
            else:
                await websocket.send(message)
    except ConnectionClosed:
        pass


@asynccontextmanager
async def echoing(*subprotocols: Subprotocol) -> AsyncIterator[Edge]:
    async with serve(echo, "127.0.0.1", 0, max_size=None, subprotocols=subprotocols or None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        async with edge({"a": f"http://{host}:{port}"}) as running:
            yield running


def visit(running: Edge, **options: Any) -> connect:
    host, port = running.address
    return connect(
        f"ws://{host}:{port}/api/kernels/1/channels?session=x", proxy=None, max_size=None, **options
    )


async def said(websocket: ClientConnection, message: str | bytes) -> str | bytes:
    async with guard():
        await websocket.send(message)
        return await websocket.recv()


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_messages_go_through_and_come_back(compression: str | None) -> None:
    async with echoing() as running, visit(running, compression=compression) as websocket:
        for message in ("hello", b"\x00\xff", "", "\u00e4" * 1000):
            assert await said(websocket, message) == message


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 8 << 20])
async def test_message_of_any_size_arrives_whole(size: int) -> None:
    async with echoing() as running, visit(running, compression=None) as websocket:
        message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await said(websocket, message) == message


async def test_ping_is_answered_by_the_member() -> None:
    async with echoing() as running, visit(running) as websocket, guard():
        await (await websocket.ping())


async def test_subprotocol_is_negotiated_with_the_member() -> None:
    name = Subprotocol("v1.kernel.websocket.jupyter.org")
    async with echoing(name) as running, visit(running, subprotocols=[name]) as websocket:
        assert websocket.subprotocol == name


async def test_close_by_the_member_reaches_the_visitor_with_its_code() -> None:
    async with echoing() as running, visit(running) as websocket:
        with pytest.raises(ConnectionClosed):
            await said(websocket, "close")
        assert (websocket.close_code, websocket.close_reason) == (4001, "as you wish")
        (line,) = await running.logged()
        assert line["status"] == 101
        assert line["termination"] in ("ST", "CT")


async def test_many_tunnels_at_once_do_not_mix() -> None:
    async with echoing() as running:

        async def talk(number: int) -> None:
            async with visit(running) as websocket:
                for turn in range(10):
                    assert await said(websocket, f"{number}/{turn}") == f"{number}/{turn}"

        await asyncio.gather(*(talk(number) for number in range(30)))
        lines = await running.logged(30)
        assert {line["status"] for line in lines} == {101}


@pytest.mark.parametrize("status", [200, 403, 404, 500])
async def test_refused_upgrade_is_an_ordinary_response(status: int) -> None:
    response = b"HTTP/1.1 %d Whatever\r\nContent-Length: 2\r\n\r\nno" % status
    async with edge(answer(response)) as running:
        with pytest.raises(InvalidStatus) as caught:
            async with visit(running):
                pass
        assert (caught.value.response.status_code, caught.value.response.body) == (status, b"no")


# Byte by byte


async def tunnelled(conn: Conn) -> None:
    """Switches, and sends back what comes until the visitor's end of it."""
    await conn.request()
    conn.send(SWITCHING)
    while data := await conn.reader.read(65_536):
        conn.send(data)
        await conn.flush()


async def test_upgrade_request_and_101_pass_with_their_fields() -> None:
    async with edge(tunnelled) as running:
        client = await running.client()
        response = await client.ask(UPGRADE)
        assert response.status == 101
        assert (response.value("upgrade"), response.value("x-member")) == (b"websocket", b"a")
        assert (response.value("connection") or b"").lower() == b"upgrade"
        (request,) = running.member.requests
        assert request.value("upgrade") == b"websocket"
        assert (request.value("connection") or b"").lower() == b"upgrade"
        assert request.value("sec-websocket-key") == b"dGhlIHNhbXBsZSBub25jZQ=="
        await client.send(b"ping")
        async with guard():
            assert await client.exactly(4) == b"ping"


async def test_bytes_behind_the_101_reach_the_visitor() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING + b"first words")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        async with guard():
            assert await client.exactly(11) == b"first words"


async def test_bytes_sent_before_the_101_wait_for_it() -> None:
    go_on = asyncio.Event()

    async def script(conn: Conn) -> None:
        request = await conn.request()
        if request.target == b"/plain":
            conn.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            await conn.stall()
            return
        await go_on.wait()
        assert conn.received == request.head
        conn.send(SWITCHING)
        conn.send(await conn.exactly(5 + len(GET)))
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(UPGRADE + b"early")
        await client.send(GET)
        await until(lambda: running.member.requests, "the request at the member")
        await running.ask(GET)
        go_on.set()
        assert (await client.response()).status == 101
        async with guard():
            assert await client.exactly(5 + len(GET)) == b"early" + GET
        assert len(running.member.requests) == 2


async def test_bytes_sent_before_a_refusal_are_no_part_of_the_tunnel_that_never_was() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    async with edge(answer(refusal)) as running:
        client = await running.client()
        await client.send(UPGRADE + b"\x81\x85\x00\x00\x00\x00hello\r\n\r\n")
        assert (await client.response()).status == 403
        async with guard():
            await client.until_end()
        assert len(running.member.requests) == 1
        assert b"hello" not in running.member.received


async def test_half_close_by_the_visitor_lets_the_member_finish() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING)
        how, data = await conn.until_end()
        conn.send(b"%b after %b" % (how.encode(), data))

    async with edge(script) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        await client.send(b"words")
        client.half_close()
        async with guard():
            assert await client.until_end() == ("eof", b"eof after words")
        (line,) = await running.logged()
        assert line["termination"] == "CT"


async def test_half_close_by_the_member_lets_the_visitor_finish() -> None:
    heard: list[tuple[str, bytes]] = []

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING + b"bye")
        conn.half_close()
        heard.append(await conn.until_end())

    async with edge(script) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        async with guard():
            assert await client.until_end() == ("eof", b"bye")
        await client.send(b"last words")
        client.half_close()
        await until(lambda: heard, "the member's end")
        assert heard == [("eof", b"last words")]
        (line,) = await running.logged()
        assert line["termination"] == "ST"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_visitor_who_leaves_ends_the_tunnel_on_the_other_side(how: str) -> None:
    async with edge(tunnelled) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        getattr(client, how)()
        await until(lambda: not running.member.open, "the member's end")
        (line,) = await running.logged()
        assert (line["termination"], line["member"]) == ("CT", "a")
        assert running.errors("a") == {}


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_member_that_leaves_ends_the_tunnel_on_the_other_side(how: str) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING)
        await conn.exactly(3)
        getattr(conn, how)()

    async with edge(script) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        await client.send(b"end")
        async with guard():
            await client.until_end()
        client.close()
        (line,) = await running.logged()
        assert line["termination"] == "ST"


async def test_bytes_of_a_tunnel_are_counted() -> None:
    async with edge(tunnelled) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        await client.send(b"x" * 1000)
        async with guard():
            await client.exactly(1000)
        client.close()
        (line,) = await running.logged()
        assert (line["bytes_in"], line["bytes_out"]) == (1000, 1000)


async def test_tunnel_in_which_nothing_moves_is_cut() -> None:
    async with edge(tunnelled, timeouts={"response_idle": "200ms"}) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        async with guard():
            await client.until_end()
        (line,) = await running.logged()
        assert line["termination"] == "sT"


async def test_tunnel_with_a_slow_reader_is_held_back_and_arrives_whole() -> None:
    data = bytes(range(256)) * (1 << 16)

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING + data)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client(receive_buffer=65_536)
        await client.ask(UPGRADE)
        await until(lambda: running.tunnels, "the tunnel")
        (tunnel,) = running.tunnels
        held = []
        async with guard():
            for at in range(0, len(data), 65_536):
                assert await client.exactly(65_536) == data[at : at + 65_536]
                held.append(tunnel.visitor.transport.get_write_buffer_size())
        assert 0 < max(held) < 1 << 20


async def test_request_inside_a_tunnel_is_not_read_as_one() -> None:
    async with edge(tunnelled) as running:
        client = await running.client()
        await client.ask(UPGRADE)
        await client.send(GET)
        async with guard():
            assert await client.exactly(len(GET)) == GET
        assert len(running.member.requests) == 1


async def test_connection_of_a_tunnel_is_never_used_again() -> None:
    async with edge(tunnelled) as running:
        for _ in range(3):
            client = await running.client()
            await client.ask(UPGRADE)
            client.half_close()
            async with guard():
                await client.until_end()
        assert len(running.member.connections) == 3
        assert not running.service.edge.idle()


async def test_upgrade_of_a_1_0_request_is_not_forwarded() -> None:
    async with edge(answer()) as running:
        assert (await running.ask(UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"))).status == 200
        assert running.member.requests[0].values("upgrade") == []


async def test_upgrade_without_connection_is_not_forwarded() -> None:
    async with edge(answer()) as running:
        assert (await running.ask(UPGRADE.replace(b"Connection: keep-alive, Upgrade\r\n", b""))).status == 200
        assert running.member.requests[0].values("upgrade") == []


# Where no tunnel comes of it

REFUSALS = {
    "200": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
    "426": b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nContent-Length: 0\r\n\r\n",
    "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
async def test_connection_on_which_an_upgrade_was_refused_serves_nobody_else(refusal: bytes) -> None:
    async with edge(answer(refusal)) as running:
        for _ in range(3):
            assert (await running.ask(UPGRADE)).status == int(refusal.split()[1])
            assert not running.service.edge.idle()
        assert len(running.member.connections) == 3


async def test_connection_on_which_an_upgrade_was_passed_over_serves_nobody_else() -> None:
    unwilling = answer(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
    async with edge({"a": unwilling, "b": unwilling}) as running:
        assert (await running.ask(UPGRADE)).status == 503
        assert [len(member.connections) for member in running.members.values()] == [1, 1]
        assert not running.service.edge.idle()


@pytest.mark.parametrize("early", [b"", GET, b"\x81\x85\x00\x00\x00\x00hello"])
@pytest.mark.parametrize("late", [b"", GET])
async def test_what_follows_a_refused_upgrade_is_not_read_as_a_request(early: bytes, late: bytes) -> None:
    async with edge(answer(REFUSALS["403"])) as running:
        client = await running.client()
        await client.send(UPGRADE + early)
        response = await client.response()
        assert (response.status, response.value("connection")) == (403, b"close")
        await client.send(late)
        assert await client.closed() == "eof"
        assert len(running.member.requests) == 1


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b"Upgrade: h2c\r\n",
        b"Upgrade: websocket, tls/1.0\r\n",
        b"Upgrade: other\r\n",
        b"Upgrade: websocket/2\r\n",
    ],
)
async def test_101_that_does_not_name_what_was_asked_for_is_no_answer(field: bytes) -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" + field + b"\r\n"
    async with edge(answer(switching)) as running:
        assert (await running.ask(UPGRADE)).status == 502
        assert not running.tunnels
        assert running.errors("a") == {"bad_response": 1}


async def test_101_that_nobody_asked_for_is_no_answer() -> None:
    async with edge(answer(SWITCHING)) as running:
        assert (await running.ask(GET)).status == 502
        assert not running.service.edge.idle()


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (b"WebSocket", b"websocket"),
        (b"foo/1.2, websocket", b"websocket"),
        (b"foo/1.2\r\nUpgrade: websocket", b"foo/1.2"),
    ],
)
async def test_101_may_choose_among_what_was_asked_for(asked: bytes, named: bytes) -> None:
    async with edge(answer(SWITCHING.replace(b"websocket", named))) as running:
        response = await running.ask(UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: " + asked))
        assert (response.status, response.value("upgrade")) == (101, named)


@pytest.mark.parametrize(
    "value",
    [b"web socket", b"websocket/", b"/1", b"a/b/c", b"websocket; x", b'"websocket"', b"\x80", b"a,,b c"],
)
@pytest.mark.parametrize("connection", [b"Connection: Upgrade\r\n", b""])
async def test_upgrade_that_names_no_protocol_is_refused(value: bytes, connection: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\n" + connection + b"Upgrade: " + value + b"\r\n\r\n"
    async with edge(answer()) as running:
        assert (await running.ask(request)).status == 400
        assert running.member.requests == []


@pytest.mark.parametrize(
    "lines", [b"Upgrade: websocket\r\nUpgrade: h2c", b"Upgrade: ", b"Upgrade: HTTP/2.0", b"Upgrade: ,"]
)
async def test_upgrade_to_what_the_edge_does_not_tunnel_is_left_out(lines: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(
                b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n" + lines + b"\r\n\r\n"
            )
            assert response.status == 200
        assert [request.values("upgrade") for request in running.member.requests] == [[], []]
        assert len(running.member.connections) == 1
