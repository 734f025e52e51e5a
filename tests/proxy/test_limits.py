"""What visitors may take: connections, and time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from fedproxy.proxy.local import LocalPool
from tests.rig import Conn, Edge, RawClient, answer, edge, guard, until

HEAD = b"Host: hub.test\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
PAGE = b"GET /active_hosts HTTP/1.1\r\n" + HEAD
UPGRADE = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HEAD
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SHORT: dict[str, Any] = {"timeouts": {"request_head": "200ms", "request_idle": "200ms"}}


def rejected(running: Edge) -> dict[str, int]:
    return dict(running.service.edge.counts.rejected)


def count(running: Edge) -> int:
    return running.service.edge.counts.connections


async def tunnel(conn: Conn) -> None:
    await conn.request()
    conn.send(SWITCHING)
    await conn.stall()


# -- connections


async def test_connection_beyond_the_limit_is_closed_and_one_that_ends_makes_room() -> None:
    async with edge(answer(), limits={"connections": 2}) as running:
        first, second = [await running.client() for _ in range(2)]
        assert [(await each.ask(GET)).status for each in (first, second)] == [200, 200]
        await (await running.client()).closed()
        assert rejected(running) == {"connections": 1}
        await first.leave()
        await until(lambda: count(running) == 1, "the first is gone")
        assert (await running.ask(GET)).status == 200


async def test_tunnels_are_connections_too() -> None:
    async with edge(tunnel, limits={"connections": 1}) as running:
        client = await running.client()
        assert (await client.ask(UPGRADE)).status == 101
        assert count(running) == 1
        await (await running.client()).closed()
        await client.leave()
        await until(lambda: count(running) == 0, "the tunnel is gone")
        again = await running.client()
        assert (await again.ask(UPGRADE)).status == 101


def local(running: Edge) -> LocalPool:
    pool = running.service.edge.local
    assert pool is not None
    return pool


async def test_own_pages_are_connections_too() -> None:
    async with edge(answer(), limits={"connections": 1}) as running:
        pages, local(running).serve = local(running).serve, Hanging
        client = await running.client()
        await client.send(PAGE)
        await until(lambda: local(running).connections, "the page's server has it")
        await (await running.client()).closed()
        assert rejected(running) == {"connections": 1}
        client.reset()
        await until(lambda: count(running) == 0, "the page is gone")
        local(running).serve = pages
        assert (await running.ask(PAGE)).status == 200
        await until(lambda: count(running) == 0, "the page is gone")


async def test_files_that_the_process_may_open_are_a_limit_too() -> None:
    async with edge(answer()) as running:
        running.service.edge.admission.room = 1
        client = await running.client()
        assert (await client.ask(GET)).status == 200
        await (await running.client()).closed()
        assert rejected(running) == {"connections": 1}


async def test_one_address_has_only_so_many_connections() -> None:
    async with edge(tunnel, limits={"connections_per_address": 2}) as running:
        first, second = [await running.client() for _ in range(2)]
        assert (await first.ask(UPGRADE)).status == 101
        await second.send(GET)
        await until(lambda: running.member.has(requests=2), "both are served")
        for number in (1, 2):
            await (await running.client()).closed()
            assert rejected(running) == {"address": number}
        await first.leave()
        await until(lambda: count(running) == 1, "the tunnel is gone")
        third = await running.client()
        await third.send(GET)
        await until(lambda: running.member.has(requests=3), "there is room again")
        await second.leave()
        await third.leave()
        await until(lambda: not running.service.edge.admission.addresses, "nobody is counted any more")


async def test_own_page_counts_for_its_address_until_it_is_over() -> None:
    async with edge(answer(), limits={"connections_per_address": 1}) as running:
        for _ in range(3):
            assert (await running.ask(PAGE)).status == 200
            await until(lambda: count(running) == 0, "the page is over")
        assert running.service.edge.admission.addresses == {}


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
async def test_handshakes_count_for_their_address(tmp_path: Path, trusted: list[str]) -> None:
    file = str(tmp_path / "both.pem")
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    listen = [{"address": "127.0.0.1:0", "tls": {"certificate": file, "private_key": file}}]
    async with edge(
        answer(), listen=listen, limits={"connections_per_address": 2}, trusted_proxies=trusted
    ) as running:
        counts = running.service.edge.counts
        clients = [await running.client() for _ in range(3)]
        for client in clients:
            await client.send(b"\x16")
        if trusted:
            await until(lambda: counts.connections == 3, "all are there")
        else:
            await clients[2].closed()
            assert counts.connections == 2
        assert counts.rejected == ({} if trusted else {"address": 1})
        for client in clients:
            await client.leave()
        await until(lambda: counts.connections == 0, "all are gone")
        assert running.service.edge.admission.addresses == {}


async def test_connections_of_a_trusted_proxy_are_not_counted_by_address() -> None:
    async with edge(
        answer(), limits={"connections_per_address": 1}, trusted_proxies=["127.0.0.1"]
    ) as running:
        clients = [await running.client() for _ in range(3)]
        assert [(await each.ask(GET)).status for each in clients] == [200] * 3
        assert running.service.edge.admission.addresses == {}


# -- time


@pytest.mark.parametrize("line", [b"X-Padding: " + b"a" * 64 + b"\r\n", b"a" * 64])
async def test_endless_head_ends_at_its_size(line: bytes) -> None:
    async with edge(answer(), limits={"request_head": "4KiB"}) as running:
        client = await running.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: hub.test\r\n")
        sending = asyncio.ensure_future(trickle(client, line))
        assert (await client.response()).status == 431
        sending.cancel()
        assert rejected(running) == {"head_too_large": 1}


async def trickle(client: RawClient, data: bytes) -> None:
    while True:
        await client.send(data)
        await asyncio.sleep(0)


async def test_endless_head_ends_at_its_time_however_much_moves() -> None:
    async with edge(answer(), **SHORT) as running:
        client = await running.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: hub.test\r\n")

        async def drip() -> None:
            while True:
                await client.send(b"X: y\r\n")
                await asyncio.sleep(0.02)

        sending = asyncio.ensure_future(drip())
        assert (await client.response()).status == 408
        sending.cancel()


@pytest.mark.parametrize(
    ("request_", "body"),
    [(b"Content-Length: 1000\r\n", b"a"), (b"Transfer-Encoding: chunked\r\n", b"3e8\r\na")],
)
async def test_body_that_stops_is_408(request_: bytes, body: bytes) -> None:
    async with edge(answer(), **SHORT) as running:
        client = await running.client()
        await client.send(b"POST / HTTP/1.1\r\n" + request_ + HEAD + body)
        assert (await client.response()).status == 408
        assert rejected(running) == {"body_timeout": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 1000\r\n" + HEAD + b"a",
        b"Content-Length: 1000\r\nExpect: 100-continue\r\n" + HEAD,
        b"Transfer-Encoding: chunked\r\n" + HEAD + b"ff\r\n",
    ],
)
async def test_own_page_does_not_wait_for_a_body(body: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        response = await client.ask(b"POST /active_hosts HTTP/1.1\r\n" + body)
        assert (response.status, response.interim) == (405, [])
        async with guard():
            await client.until_end()


class Hanging(asyncio.Protocol):
    """A page's server that never answers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.calls.append(f"data {data.count(HEAD[:4])}")

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return False

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")


async def test_own_page_that_takes_too_long_is_dropped_whatever_the_visitor_sends() -> None:
    async with edge(answer(), timeouts={"response_head": "200ms"}) as running:
        handler = Hanging()
        local(running).serve = lambda: handler
        client = await running.client()
        await client.send(PAGE)
        sending = asyncio.ensure_future(trickle(client, b"more"))
        response = await client.response()
        sending.cancel()
        assert response.status == 504
        await until(lambda: "lost" in handler.calls, "it is dropped")
        assert handler.calls == ["made", "data 1", "lost"]


async def test_server_of_a_page_is_told_what_happens_to_its_connection() -> None:
    async with edge(answer()) as running:
        handler = Hanging()
        local(running).serve = lambda: handler
        client = await running.client(receive_buffer=4096)
        await client.send(PAGE)
        await until(lambda: "data 1" in handler.calls, "the page is asked for")
        size = 8 * 1024 * 1024
        handler.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 * size) + bytes(size))
        await until(lambda: "pause" in handler.calls, "the visitor reads nothing")
        handler.transport.write(bytes(size))
        response = await client.response()
        assert len(response.body) == 2 * size
        assert (await running.logged())[0]["bytes_out"] == 2 * size
        await until(lambda: "lost" in handler.calls, "it is over")
        assert handler.calls == ["made", "data 1", "pause", "resume", "eof", "lost"]


async def test_visitor_who_leaves_takes_the_page_with_them() -> None:
    async with edge(answer()) as running:
        handler = Hanging()
        local(running).serve = lambda: handler
        client = await running.client()
        await client.send(PAGE)
        await until(lambda: "data 1" in handler.calls, "the page is asked for")
        client.half_close()
        await until(lambda: "lost" in handler.calls, "it is gone")
        (line,) = await running.logged()
        assert (line["status"], line["member"], line["attempts"]) == (499, None, 0)


async def test_stop_cuts_a_page_that_is_under_way() -> None:
    async with edge(answer()) as running:
        edge_ = running.service.edge
        local(running).serve = Hanging
        client = await running.client()
        await client.send(PAGE)
        await until(lambda: local(running).connections, "the page's server has it")
        edge_.draining = True
        edge_.close_idle(edge_.clock())
        await running.service.stop()
        async with guard():
            await client.until_end()
        assert edge_.counts.connections == 0
