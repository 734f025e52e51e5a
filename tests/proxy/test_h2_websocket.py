"""WebSockets over HTTP/2, to members that know only HTTP/1.1's Upgrade (RFC 8441)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from tests.proxy.test_h2 import h2_edge, visit
from tests.rig import Conn, Edge, Scripted, guard, until
from tests.rig.h2 import DATA, END_STREAM, RST_STREAM, WINDOW_UPDATE, H2Client, Pairs, frame, request


def connect(path: bytes = b"/user/x/api/kernels/1/channels", *more: tuple[bytes, bytes]) -> Pairs:
    return [
        *request(path, method=b"CONNECT"),
        (b":protocol", b"websocket"),
        (b"sec-websocket-version", b"13"),
        *more,
    ]


class Socket:
    """A WebSocket's client, whose frames are those of a stream."""

    def __init__(self, client: H2Client, stream: int) -> None:
        self.client = client
        self.stream = stream
        self.protocol = Protocol(CLIENT, state=OPEN, max_size=None)
        self._read = 0

    def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.client.data(self.stream, data)

    def send(self, text: str) -> None:
        self.protocol.send_text(text.encode())
        self.flush()

    async def receive(self) -> Frame:
        while True:
            body = self.client.streams[self.stream].body
            if len(body) > self._read:
                self.protocol.receive_data(body[self._read :])
                self._read = len(body)
                for event in self.protocol.events_received():
                    assert isinstance(event, Frame)
                    return event
            await self.client.frame()


async def echo(websocket: ServerConnection) -> None:
    try:
        async for message in websocket:
            await websocket.send(message)
    except ConnectionClosed:
        pass


@asynccontextmanager
async def echoing() -> AsyncIterator[Edge]:
    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        async with h2_edge({"a": f"http://{host}:{port}"}) as running:
            yield running


async def open_socket(running: Edge, client: H2Client) -> Socket:
    stream = client.head(connect(), end=False)
    await client.until(lambda: client.streams[stream].heads)
    response = client.streams[stream]
    assert response.status == 200, response
    assert response.value("sec-websocket-accept") is None and response.value("upgrade") is None
    assert not response.ended
    return Socket(client, stream)


async def test_the_edge_says_that_it_can() -> None:
    async with echoing() as running:
        assert (await visit(running)).settings[8] == 1


async def test_messages_go_through_and_come_back() -> None:
    async with echoing() as running:
        client = await visit(running)
        first, second = await open_socket(running, client), await open_socket(running, client)
        for text in ("hello", "", "x" * 100_000, "\u00e4" * 1000):
            first.send(text)
            second.send(text[::-1])
            assert (await first.receive()).data == text.encode()
            assert (await second.receive()).data == text[::-1].encode()
        assert client.streams[first.stream].reset is None
        first.protocol.send_close(1000)
        first.flush()
        assert (await first.receive()).opcode is Opcode.CLOSE
        client.data(first.stream, b"", end=True)
        await client.until(lambda: client.streams[first.stream].over)
        second.send("still there")
        assert (await second.receive()).data == b"still there"
        (line,) = await running.logged()
        assert (line["status"], line["method"], line["protocol"]) == (101, "GET", "HTTP/2.0")
        assert line["termination"] == "-T" or line["termination"][1] == "T"


async def test_the_member_is_asked_as_by_http1() -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        conn.member.requests.append(head)
        key = head.value("sec-websocket-key") or b""
        assert len(base64.b64decode(key)) == 16
        assert head.start == b"GET /socket?x=1 HTTP/1.1" and head.value("upgrade") == b"websocket"
        assert (head.value("connection") or b"").lower() == b"upgrade"
        assert head.value("origin") == b"https://hub.test" and head.value("sec-websocket-version") == b"13"
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        conn.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: v1\r\n\r\nhello" % accept
        )
        assert await conn.exactly(5) == b"early"
        conn.send(b"bye")
        conn.half_close()
        assert (await conn.until_end())[1] == b"late"

    async with h2_edge(script) as running:
        client = await visit(running)
        more = ((b"origin", b"https://hub.test"), (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="))
        stream = client.head(connect(b"/socket?x=1", *more), end=False)
        client.data(stream, b"early")
        response = client.streams[stream]
        await client.until(lambda: response.ended)
        assert (response.status, response.body) == (200, b"hellobye")
        assert response.value("sec-websocket-protocol") == b"v1"
        client.data(stream, b"late", end=True)
        (line,) = await running.logged()
        assert (line["bytes_in"], line["bytes_out"]) == (9, 8)


@pytest.mark.parametrize("status", [200, 403, 404])
async def test_a_member_that_refuses(status: int) -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        response = await client.response(client.head(connect(), end=False))
        # RFC 8441 section 4: a 2xx would say that the WebSocket is open.
        told = 502 if status == 200 else status
        assert (response.status, response.body, response.ended) == (told, b"no", True)
        assert (await running.logged())[0]["status"] == told


async def test_a_member_that_does_not_answer_the_key_is_no_websocket() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: c3RhbGU=\r\n\r\n"
        )
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        response = await client.response(client.head(connect(), end=False))
        assert response.reset == "internal_error" and not response.heads


async def switch(conn: Conn) -> None:
    head = await conn.head()
    accept = hashlib.sha1((head.value("sec-websocket-key") or b"") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
    conn.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(accept.digest())
    )


async def test_a_member_that_breaks_off_resets_the_stream_alone() -> None:
    async def script(conn: Conn) -> None:
        await switch(conn)
        await conn.exactly(1)
        conn.reset()

    async with h2_edge(script) as running:
        client = await visit(running)
        socket, other = await open_socket(running, client), await open_socket(running, client)
        client.data(socket.stream, b"x")
        await client.until(lambda: client.streams[socket.stream].over)
        assert not client.streams[other.stream].over and not client.goaways


async def test_a_visitor_who_resets_leaves_the_member() -> None:
    left = asyncio.Event()

    async def script(conn: Conn) -> None:
        await switch(conn)
        await conn.until_end()
        left.set()

    async with h2_edge(script) as running:
        client = await visit(running)
        socket = await open_socket(running, client)
        client.write(frame(RST_STREAM, 0, socket.stream, b"\0\0\0\x08"))
        async with guard():
            await left.wait()
        (line,) = await running.logged()
        assert line["termination"] == "CT"


async def test_a_visitor_who_ends_ends_one_direction() -> None:
    async def script(conn: Conn) -> None:
        await switch(conn)
        assert (await conn.until_end()) == ("eof", b"last")
        conn.send(b"after")

    async with h2_edge(script) as running:
        client = await visit(running)
        socket = await open_socket(running, client)
        client.write(frame(DATA, END_STREAM, socket.stream, b"last"))
        response = client.streams[socket.stream]
        await client.until(lambda: response.over)
        assert (response.body, response.ended) == (b"after", True)


async def test_neither_side_is_read_faster_than_the_other_takes() -> None:
    async def script(conn: Conn) -> None:
        await switch(conn)
        for _ in range(50):
            conn.send(bytes(100_000))
            await conn.flush()
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running, windows=False)
        socket = await open_socket(running, client)
        response = client.streams[socket.stream]
        await client.until(lambda: len(response.received) == 65_535)
        (connection,) = running.connections
        (tunnel,) = running.tunnels
        await until(lambda: not tunnel.member.transport.is_reading(), "the member is not read")
        assert 0 < connection.machine.held_up < 512 * 1024
        client.write(frame(8, 0, 0, b"\x02\0\0\0") + frame(8, 0, socket.stream, b"\x02\0\0\0"))
        await client.until(lambda: len(response.received) == 5_000_000)


async def test_a_member_that_does_not_read_holds_its_visitor_back_and_nobody_else() -> None:
    go = asyncio.Event()
    size = 8_000_000

    async def script(conn: Conn) -> None:
        await switch(conn)
        if conn.member.open > 1:
            conn.send(await conn.exactly(5))
            await conn.stall()
        await go.wait()
        conn.send(b"%d" % len(await conn.exactly(size)))
        assert await conn.until_end() == ("eof", b"end")

    async with h2_edge({"a": Scripted(script, receive_buffer=4096)}) as running:
        client = await visit(running)
        slow = await open_socket(running, client)
        quick = await open_socket(running, client)
        (connection,) = running.connections
        stream = connection.machine.streams[slow.stream]
        credit, sent = client.settings[4], 0
        while not stream.held and sent < size:
            if credit >= 16_000:
                client.data(slow.stream, bytes(16_000))
                credit, sent = credit - 16_000, sent + 16_000
            else:
                got = await client.frame()
                if got.kind == WINDOW_UPDATE and got.stream == slow.stream:
                    credit += int.from_bytes(got.payload, "big")
            await asyncio.sleep(0)
        assert stream.held
        client.data(quick.stream, b"quick")
        await client.until(lambda: client.streams[quick.stream].body == b"quick")
        go.set()
        while sent < size:
            if credit >= 16_000:
                client.data(slow.stream, bytes(16_000))
                credit, sent = credit - 16_000, sent + 16_000
                continue
            got = await client.frame()
            if got.kind == WINDOW_UPDATE and got.stream == slow.stream:
                credit += int.from_bytes(got.payload, "big")
        client.data(slow.stream, b"end", end=True)
        await client.until(lambda: client.streams[slow.stream].over)
        assert client.streams[slow.stream].body == b"%d" % size


@pytest.mark.parametrize("ends", [True, False])
async def test_a_tunnel_that_its_member_has_closed_ends_with_the_connection(ends: bool) -> None:
    """The stream may be over while half of the tunnel is not."""

    async def script(conn: Conn) -> None:
        await switch(conn)

    async with h2_edge(script) as running:
        client = await visit(running)
        stream = client.head(connect(), end=ends)
        await client.until(lambda: client.streams[stream].over)
        await client.leave()
        (line,) = await running.logged()
        assert line["status"] == 101
        await until(lambda: not running.tunnels, "over")
