"""How a connection ends whose peer reads slowly, on every kind of listener, and what the log says of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from fedproxy.proxy.local import LocalPool
from fedproxy.wire.h1.body import Chunked
from tests.rig import Conn, Edge, Ended, Script, edge, guard, until

BIG = bytes(range(256)) * 12_000
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(BIG) * 3)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
HOST = b"Host: localhost\r\n"
KEPT = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
REQUESTS = {
    "kept": KEPT,
    "close": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    "1.0": b"GET / HTTP/1.0\r\n" + HOST + b"\r\n",
}
UPGRADE = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
PAGE = b"GET /federation HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pair(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tls") / "tls.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


class Reader:
    """A visitor who reads only when told, and of whom the system holds little."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""

    async def some(self, size: int = 65_536) -> bytes:
        async with guard():
            data = await asyncio.to_thread(self.sock.recv, size)
        self.got += data
        return data

    async def rest(self) -> bytes:
        """All that comes until the connection ends as it should: over TLS with a goodbye."""
        while await self.some():
            pass
        return self.got

    def payload(self, *, chunked: bool) -> tuple[bytes, bytes]:
        """The first response's body, and what came after it."""
        body = self.got.partition(b"\r\n\r\n")[2]
        if not chunked:
            return body, b""
        chunks = Chunked(framed=False)
        payload = chunks.feed(body)
        assert chunks.done
        return payload, chunks.rest

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class Doors:
    """A kind of listener, and how one comes in there."""

    def __init__(self, kind: str, authority: trustme.CA, pair: Path) -> None:
        self.kind = kind
        self.listener: dict[str, Any] = {"address": "127.0.0.1:0"}
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        if kind != "plain":
            self.listener["tls"] = {"certificate": str(pair), "private_key": str(pair)}
        if kind == "proxied":
            self.listener["proxy_protocol"] = True

    @asynccontextmanager
    async def running(self, script: Script, **config: Any) -> AsyncIterator[Edge]:
        async with edge(script, listen=[self.listener], **config) as running:
            yield running

    async def visit(self, running: Edge, member: Filling, request: bytes) -> Reader:
        member.edge = running

        def enter() -> Reader:
            sock = socket.socket()
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            sock.connect(running.address)
            if self.kind == "proxied":
                sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
            if self.kind != "plain":
                sock = self.context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
            sock.sendall(request)
            return Reader(sock)

        return await asyncio.to_thread(enter)


@pytest.fixture(params=["plain", "tls", "proxied"])
def doors(request: pytest.FixtureRequest, authority: trustme.CA, pair: Path) -> Doors:
    return Doors(request.param, authority, pair)


class Filling:
    """A member that sends until its visitor takes no more, and then ends."""

    def __init__(self) -> None:
        self.sent = b""
        self.edge: Edge | None = None

    async def __call__(self, conn: Conn) -> None:
        while True:
            request = await conn.request()
            if self.sent:
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            elif request.value("upgrade") is not None:
                return await self._fill(conn, SWITCHING, tunnel=True)
            else:
                await self._fill(conn, HEAD, tunnel=False)

    async def _fill(self, conn: Conn, head: bytes, *, tunnel: bool) -> None:
        conn.send(head)
        while not await stuck(lambda: waiting(self.edge)):
            self._send(conn, BIG[: 32 * 1024], tunnel)
            await conn.flush()
            await asyncio.sleep(0.002)
        self._send(conn, b"the end", tunnel)
        conn.send(b"" if tunnel else b"0\r\n\r\n")
        await conn.flush()

    def _send(self, conn: Conn, data: bytes, tunnel: bool) -> None:
        conn.send(data if tunnel else b"%x\r\n%b\r\n" % (len(data), data))
        self.sent += data


async def stuck(unsent: Callable[[], int]) -> bool:
    """Whether something waits that the system does not take, with no acknowledgement on its way."""
    while seen := unsent():
        for _ in range(20):
            await asyncio.sleep(0.01)
            if unsent() != seen:
                break
        else:
            return True
    return False


def waiting(running: Edge | None) -> int:
    """Bytes that the edge holds for visitors."""
    assert running is not None
    visitors = [*running.connections, *(each.visitor for each in running.tunnels)]
    return sum(each.unsent() for each in visitors)


async def over(running: Edge) -> None:
    """Returns when the member's part of the request is over, and the visitor's is not."""
    service = running.service.edge
    (member,) = service.federation.members
    # Nothing is under way before the request has come either, and a handshake may wait to be sent.
    await until(lambda: service.counts.requests and not member.in_flight, "the end of the member's part")
    assert waiting(running)
    assert running.log == []


@pytest.mark.parametrize("name", REQUESTS)
async def test_end_waits_for_a_slow_reader_and_so_does_the_line_in_the_log(doors: Doors, name: str) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, REQUESTS[name])
        await over(running)
        assert running.service.edge.idle() == 1
        # And nobody is impatient while somebody reads.
        now = running.service.edge.clock()
        for minutes in range(1, 6):
            running.service.edge.sweep(now + minutes * 60)
        assert running.log == []
        if name == "kept":
            # What is asked meanwhile is answered after it.
            reader.sock.sendall(REQUESTS["close"])
        got = await reader.rest()
        body, rest = reader.payload(chunked=name != "1.0")
        assert len(body) == len(member.sent)
        assert body == member.sent
        lines = await running.logged(2 if name == "kept" else 1)
        assert (lines[0]["status"], lines[0]["termination"]) == (200, "--")
        _, _, wire = got.partition(b"\r\n\r\n")
        assert lines[0]["bytes_out"] == len(wire) - len(rest)
        if name == "kept":
            assert rest.endswith(b"\r\n\r\nok")
        reader.sock.close()


@pytest.mark.parametrize("name", REQUESTS)
async def test_visitor_who_leaves_before_the_end_is_sent_has_not_got_it(doors: Doors, name: str) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, REQUESTS[name])
        await over(running)
        held = waiting(running)
        reader.reset()
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (200, "CD")
        assert 0 < line["bytes_out"] <= len(member.sent) * 1.001 + 1000 - held
        assert running.errors("a") == {}


@pytest.mark.parametrize("name", REQUESTS)
async def test_visitor_who_stops_reading_the_end_is_cut_when_nothing_moved_for_long(
    doors: Doors, name: str
) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, REQUESTS[name])
        await over(running)
        held = waiting(running)
        service = running.service.edge
        now = service.clock()
        service.sweep(now)
        service.sweep(now + 590)
        assert running.log == []
        service.sweep(now + 1200)
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (200, "cD")
        assert 0 < line["bytes_out"] <= len(member.sent) * 1.001 + 1000 - held
        await until(lambda: not service.connections, "the visitor's end")
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await reader.rest()
        reader.sock.close()


async def test_line_that_waits_for_a_slow_reader_names_its_visitor_also_after_a_reload(
    authority: trustme.CA, pair: Path
) -> None:
    doors = Doors("plain", authority, pair)
    async with doors.running(member := Filling(), trusted_proxies=["127.0.0.0/8"]) as running:
        request = KEPT.replace(HOST, HOST + b"X-Forwarded-For: 192.0.2.66\r\nConnection: close\r\n")
        reader = await doors.visit(running, member, request)
        await over(running)
        running.service.edge.refresh()
        await reader.rest()
        (line,) = await running.logged()
        assert (line["client"], line["termination"]) == ("192.0.2.66", "--")
        reader.sock.close()


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1000 + len(BIG))


@pytest.mark.parametrize("name", ["close", "tunnel"])
async def test_what_is_written_to_a_connection_that_is_lost_already_is_not_counted(
    doors: Doors, name: str
) -> None:
    asked = asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(SWITCHING if name == "tunnel" else LENGTH, BIG[:1000])
        await conn.flush()
        conns.append(conn)
        asked.set()
        await conn.stall()

    conns: list[Conn] = []
    async with doors.running(script) as running:
        reader = await doors.visit(running, Filling(), UPGRADE if name == "tunnel" else REQUESTS[name])
        async with guard():
            await asked.wait()
        while BIG[:1000] not in reader.got:
            await reader.some()
        # In one turn of the loop that serves both: the visitor is reset, and more comes of the member.
        wire = socket.socket(fileno=socket.dup(conns[0].writer.get_extra_info("socket").fileno()))
        with wire:
            reader.reset()
            more = wire.send(BIG)
            assert more > 100_000
            wire.shutdown(socket.SHUT_WR)
        (line,) = await running.logged()
        assert line["termination"] == ("CT" if name == "tunnel" else "CD")
        assert line["bytes_out"] == 1000


async def test_drain_waits_for_a_slow_reader(doors: Doors) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, KEPT)
        await over(running)
        stopping = asyncio.create_task(running.service.stop(60))
        await until(lambda: running.service.edge.draining, "the drain")
        await reader.rest()
        assert reader.payload(chunked=True)[0] == member.sent
        reader.sock.close()
        await stopping
        (line,) = await running.logged()
        assert line["termination"] == "--"


async def test_drain_whose_time_runs_out_says_what_was_sent(doors: Doors) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, KEPT)
        await over(running)
        held = waiting(running)
        await running.service.stop(0)
        (line,) = await running.logged()
        assert line["termination"] == "DD"
        assert line["bytes_out"] <= len(member.sent) * 1.001 + 1000 - held
        reader.sock.close()


async def ended(running: Edge) -> Any:
    """A tunnel whose member has left, and whose visitor has not got everything."""
    await until(lambda: running.tunnels, "the tunnel")
    (tunnel,) = running.tunnels
    # Where both speak plain TCP, only one direction of it has ended.
    await until(lambda: tunnel.ended, "the member's end")
    assert tunnel.visitor.unsent()
    return tunnel


async def test_tunnel_whose_member_leaves_ends_with_its_last_byte(doors: Doors) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, UPGRADE)
        await ended(running)
        now = running.service.edge.clock()
        for minutes in range(1, 6):
            running.service.edge.sweep(now + minutes * 60)
        assert (await reader.rest()).endswith(b"the end")
        reader.sock.close()
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (101, "ST")
        assert line["bytes_out"] == len(member.sent)


@pytest.mark.parametrize("how", ["leaves", "stops"])
async def test_tunnel_whose_visitor_does_not_take_the_end_is_logged_as_the_visitors(
    doors: Doors, how: str
) -> None:
    async with doors.running(member := Filling()) as running:
        reader = await doors.visit(running, member, UPGRADE)
        tunnel = await ended(running)
        held = tunnel.visitor.unsent()
        if how == "leaves":
            reader.reset()
        else:
            now = running.service.edge.clock()
            running.service.edge.sweep(now)
            running.service.edge.sweep(now + 601)
        (line,) = await running.logged()
        assert line["termination"] == ("CT" if how == "leaves" else "cT")
        assert 0 < line["bytes_out"] <= len(member.sent) + 1000 - held
        reader.sock.close()


def local(running: Edge) -> LocalPool:
    pool = running.service.edge.local
    assert pool is not None
    return pool


async def test_own_page_arrives_whole_at_a_slow_reader(doors: Doors) -> None:
    class Page(asyncio.Protocol):
        """As a page's server does: writes, and closes at once."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(WHOLE + BIG * 3)
            self.transport.close()

    async with doors.running(member := Filling()) as running:
        local(running).serve = Page
        reader = await doors.visit(running, member, PAGE)
        await until(lambda: waiting(running), "what the system does not take")
        now = running.service.edge.clock()
        for seconds in range(0, 50, 10):
            running.service.edge.sweep(now + seconds)
        await reader.rest()
        assert reader.payload(chunked=False) == (BIG * 3, b"")
        reader.sock.close()


# Members that speak TLS


@asynccontextmanager
async def before(
    authority: trustme.CA, pair: Path, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
) -> AsyncIterator[Edge]:
    """The edge before one member that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    authority.cert_pem.write_to_path(str(pair.with_name("ca.pem")))
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=context)
    host, port = server.sockets[0].getsockname()
    try:
        async with edge(
            {"a": f"https://{host}:{port}"}, settings={"a": {"ca": str(pair.with_name("ca.pem"))}}
        ) as running:
            yield running
    finally:
        server.close()
        await server.wait_closed()


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("goodbye", [True, False])
@pytest.mark.parametrize("size", [5, len(BIG)])
@pytest.mark.parametrize("slow", [True, False])
async def test_body_that_only_the_close_ends_is_whole_with_the_goodbye_of_tls_and_not_without(
    authority: trustme.CA, pair: Path, goodbye: bool, size: int, slow: bool
) -> None:
    body = BIG[:size]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(UNTIL_CLOSE + body)
        await writer.drain()
        if not goodbye:
            # TCP's end alone, as anybody on the way can send it.
            while writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
            sock = socket.socket(fileno=socket.dup(writer.get_extra_info("socket").fileno()))
            with sock:
                sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.05)
        writer.close()

    async with before(authority, pair, script) as running:
        client = await running.client(receive_buffer=16_384 if slow else 0)
        await client.send(KEPT)
        if goodbye:
            response = await client.response()
            assert response.body == body
            assert running.errors("a") == {}
        else:
            with pytest.raises(Ended):
                await client.response()
            (line,) = await running.logged()
            assert line["termination"] == "SD"
            assert running.errors("a") == {"truncated": 1}


async def test_last_bytes_of_a_member_that_left_while_nobody_read_from_it_arrive(
    authority: trustme.CA, pair: Path
) -> None:
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG)
        await writer.drain()
        writer.close()
        left.set()

    async with before(authority, pair, script) as running:
        client = await running.client(receive_buffer=16_384)
        await client.send(KEPT)
        async with guard():
            await left.wait()
        response = await client.response()
        assert response.body == BIG
        assert running.errors("a") == {}


async def test_answer_before_an_upload_to_a_tls_member_is_out_ends_its_connection(
    authority: trustme.CA, pair: Path
) -> None:
    sent, done = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        # Nothing of the body is read.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await sent.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await done.wait()
        writer.transport.abort()

    async with before(authority, pair, script) as running:
        (pool,) = running.service.edge.pools.values()

        def unsent() -> int:
            return sum(upstream.unsent() for upstream in pool.connections)

        client = await running.client()
        await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"%x\r\n%b\r\n" % (32 * 1024, BIG[: 32 * 1024])
        while not await stuck(unsent):
            await client.send(piece)
            await asyncio.sleep(0.002)
        await client.send(b"0\r\n\r\n")
        (visitor,) = cast(Any, running.connections)
        await until(lambda: visitor.exchange.body_done, "the whole request")
        sent.set()
        assert (await client.response()).status == 200
        assert running.service.edge.idle() == 0
        done.set()
        await until(lambda: not running.service.edge.busy(), "nothing under way")
