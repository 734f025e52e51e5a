"""Visitors who take their time: what they hold, and that they are seen leaving."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from tests.rig import Conn, Edge, RawClient, answer, edge, until

HEAD = b"Host: hub.test\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
BIG = 8 * 1024 * 1024


def count(running: Edge) -> int:
    return running.service.edge.counts.connections


async def big(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
    conn.send(bytes(BIG))
    await conn.stall()


async def silent(conn: Conn) -> None:
    await conn.request()
    await conn.stall()


async def test_system_takes_little_for_a_visitor_who_reads_nothing() -> None:
    async with edge(big) as running:
        client = await running.client(receive_buffer=4096)
        await client.send(GET)
        await until(lambda: running.buffered() > 0, "nothing more is taken")
        (visitor,) = running.connections
        sock: socket.socket = visitor.transport.get_extra_info("socket")
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
        assert unsent < 1024 * 1024


@pytest.mark.parametrize("reset", [False, True])
async def test_visitor_who_leaves_behind_unread_requests_is_seen(reset: bool) -> None:
    async with edge(silent, limits={"request_head": "1KiB"}) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: running.member.has(requests=1), "the first is under way")
        await client.send(GET * 100)
        await until(lambda: not any(each.reading for each in running.connections), "no more is read")
        if reset:
            client.reset()
        else:
            await client.leave()
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (499, "CH")
        await until(lambda: not running.connections, "it is gone")


async def test_visitor_who_is_not_read_from_and_stays_is_served() -> None:
    async with edge(silent, limits={"request_head": "1KiB"}) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: running.member.has(requests=1), "the first is under way")
        await client.send(GET * 100)
        (visitor,) = running.connections
        await until(lambda: not visitor.reading, "no more is read")
        visitor.sweep(running.service.edge.clock())
        assert not visitor.transport.is_closing()


# -- handshakes


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def listen(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory: Path = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    chain, key = directory / "tls.crt", directory / "tls.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return [{"address": "127.0.0.1:0", "tls": {"certificate": str(chain), "private_key": str(key)}}]


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def begun(running: Edge, trusting: ssl.SSLContext) -> RawClient:
    """A connection whose handshake is begun and goes no further."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    client = await running.client()
    await client.send(out.read())
    return client


async def test_handshake_under_way_is_a_connection(
    listen: list[dict[str, Any]], trusting: ssl.SSLContext
) -> None:
    async with edge(answer(), listen=listen, limits={"connections": 1}) as running:
        first = await begun(running, trusting)
        await until(lambda: count(running) == 1, "it is counted")
        await (await running.client()).closed()
        assert dict(running.service.edge.counts.rejected) == {"connections": 1}
        await first.leave()
        await until(lambda: count(running) == 0, "there is room again")
        visitor = await running.client(tls=trusting)
        assert (await visitor.ask(GET)).status == 200
        assert count(running) == 1
        await visitor.leave()
        await until(lambda: count(running) == 0, "nobody is counted any more")


@pytest.mark.parametrize("nonsense", [GET, b"\x16\x03\x01\x00\x05hello"])
async def test_handshake_that_fails_is_counted_no_more(listen: list[dict[str, Any]], nonsense: bytes) -> None:
    async with edge(answer(), listen=listen) as running:
        client = await running.client()
        await until(lambda: count(running) == 1, "it is counted")
        await client.send(nonsense)
        await client.until_end()
        await until(lambda: count(running) == 0, "it is counted no more")


async def test_handshake_that_takes_too_long_is_counted_no_more(
    listen: list[dict[str, Any]], trusting: ssl.SSLContext
) -> None:
    async with edge(answer(), listen=listen, timeouts={"request_head": "200ms"}) as running:
        clients = [await begun(running, trusting) for _ in range(3)]
        await asyncio.gather(*(client.until_end() for client in clients))
        await until(lambda: count(running) == 0, "nobody is counted any more")


async def test_handshake_is_not_charged_for_time_in_which_the_process_did_not_run(
    listen: list[dict[str, Any]], trusting: ssl.SSLContext
) -> None:
    async with edge(answer(), listen=listen) as running:
        client = await begun(running, trusting)
        await until(lambda: count(running) == 1, "it is counted")
        core = running.service.edge
        now, limit = core.clock(), core.policy.timeouts.request_head
        core.grant(100.0, now + 100)
        core.sweep(now + 100 + limit / 2)
        assert [each.transport.is_closing() for each in core.connections] == [False]
        core.sweep(now + 100 + limit + 1)
        await client.until_end()
        await until(lambda: count(running) == 0, "it is counted no more")


async def test_who_said_nothing_does_not_hold_up_a_drain_and_who_shakes_hands_may_go_on(
    listen: list[dict[str, Any]], trusting: ssl.SSLContext
) -> None:
    async with edge(answer(), listen=listen) as running:
        silent = await running.client()
        shaking = await begun(running, trusting)
        core = running.service.edge
        await until(lambda: sum(cast(Any, each).secure.heard for each in core.connections) == 1, "one spoke")
        await until(lambda: count(running) == 2, "both are there")
        core.close_idle(core.clock())
        await silent.closed()
        await until(lambda: count(running) == 1, "the other one is left")
        await shaking.leave()
        await until(lambda: not core.connections, "nobody is left")
