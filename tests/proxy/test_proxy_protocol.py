"""Connections that begin with a PROXY protocol header, with TLS behind it and without."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fedproxy.event import EventName
from fedproxy.proxy.entrance import Shaking
from tests.rig import Conn, Edge, RawClient, answer, edge, guard, until

LINE = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BINARY = (
    SIGNATURE
    + b"\x21\x21"
    + struct.pack("!H", 36 + 6)
    + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 1, 443)
    + b"\x04\x00\x03abc"
)
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
GET = b"GET / HTTP/1.1\r\nHost: hub.test\r\n\r\n"


@asynccontextmanager
async def behind(
    listen: Sequence[dict[str, Any]] = ({"address": "127.0.0.1:0", "proxy_protocol": True},),
    **overrides: Any,
) -> AsyncIterator[Edge]:
    async with edge(answer(), listen=list(listen), **overrides) as running:
        yield running


def refused(running: Edge) -> int:
    count: int = running.service.edge.counts.rejected.get("proxy_protocol", 0)
    return count


# -- plain


@pytest.mark.parametrize(
    ("header", "client"), [(LINE, "203.0.113.7"), (BINARY, "2001:db8::7"), (LOCAL, "127.0.0.1")]
)
async def test_visitor_is_who_the_header_says(header: bytes, client: str) -> None:
    async with behind() as running:
        visitor = await running.client()
        assert (await visitor.ask(header + GET)).body == b"ok"
        assert (await visitor.ask(GET)).body == b"ok"
        assert [line["client"] for line in await running.logged(2)] == [client, client]
        for request in running.member.requests:
            assert request.value("x-forwarded-for") == request.value("x-real-ip") == client.encode()
            assert request.value("x-forwarded-proto") == b"http"


@pytest.mark.parametrize("header", [LINE, BINARY])
async def test_header_may_come_byte_by_byte(header: bytes) -> None:
    async with behind() as running:
        visitor = await running.client()
        for at in range(len(header)):
            await visitor.send(header[at : at + 1])
        await visitor.send(GET[:5])
        assert (await visitor.ask(GET[5:])).body == b"ok"


@pytest.mark.parametrize(
    "start",
    [GET, b"\x16\x03\x01\x02\x00", b"PROXY TCP4 nonsense\r\n", b"PROXY " + b"x" * 200, SIGNATURE + b"\x00"],
)
async def test_what_is_no_header_is_closed_unanswered_and_counted(start: bytes) -> None:
    async with behind() as running:
        for count in (1, 2):
            visitor = await running.client()
            await visitor.send(start)
            await visitor.closed()
            assert refused(running) == count
        assert running.member.requests == []
        assert running.service.edge.counts.connections == 0


async def test_operator_is_told_of_the_first_only() -> None:
    async with behind() as running:
        for _ in range(3):
            visitor = await running.client()
            await visitor.send(GET)
            await visitor.closed()
        events = running.service.history.events
        (event,) = [each for each in events if each.name is EventName.PROXY_HEADER]
        assert "127.0.0.1" in event.message


async def test_header_cut_short_is_counted_and_a_connection_without_a_word_is_not() -> None:
    async with behind() as running:
        silent = await running.client()
        silent.half_close()
        await silent.closed()
        assert refused(running) == 0
        visitor = await running.client()
        await visitor.send(LINE[:20])
        visitor.half_close()
        await visitor.closed()
        assert refused(running) == 1


@pytest.mark.parametrize("start", [b"", LINE[:20], SIGNATURE])
async def test_slow_header_is_dropped_at_the_time_for_heads(start: bytes) -> None:
    async with behind(timeouts={"request_head": "200ms"}) as running:
        visitor = await running.client()
        await visitor.send(start)
        await visitor.closed()
        assert refused(running) == 1


async def test_only_trusted_proxies_may_send_it() -> None:
    async with behind(trusted_proxies=["198.51.100.0/24"]) as running:
        visitor = await running.client()
        await visitor.closed()
        assert refused(running) == 1
    async with behind(trusted_proxies=["127.0.0.1"]) as running:
        visitor = await running.client()
        assert (await visitor.ask(LINE + GET)).body == b"ok"
        assert running.member.requests[0].value("x-real-ip") == b"203.0.113.7"


async def test_visitor_of_a_trusted_proxy_is_not_trusted_itself() -> None:
    said = b"GET / HTTP/1.1\r\nHost: hub.test\r\nX-Forwarded-For: 192.0.2.66\r\n\r\n"
    async with behind(trusted_proxies=["127.0.0.1", "203.0.113.0/24"]) as running:
        for header, client in ((BINARY, b"2001:db8::7"), (LINE, b"192.0.2.66"), (LOCAL, b"192.0.2.66")):
            visitor = await running.client()
            await visitor.ask(header + said)
            assert running.member.requests[-1].value("x-real-ip") == client


async def test_connections_without_a_header_are_within_the_limit() -> None:
    async with behind(limits={"connections": 2}) as running:
        waiting = [await running.client() for _ in range(2)]
        await until(lambda: len(running.connections) == 2, "both are there")
        third = await running.client()
        await third.closed()
        assert running.service.edge.counts.rejected == {"connections": 1}
        for visitor in waiting:
            assert (await visitor.ask(LINE + GET)).body == b"ok"


async def test_connections_of_one_address_are_those_of_the_header() -> None:
    async with behind(limits={"connections_per_address": 1}) as running:
        first = await running.client()
        assert (await first.ask(LINE + GET)).body == b"ok"
        second = await running.client()
        await second.send(LINE + GET)
        await second.closed()
        assert running.service.edge.counts.rejected == {"address": 1}
        other = await running.client()
        assert (await other.ask(BINARY + GET)).body == b"ok"


async def test_handshakes_count_for_the_address_of_the_header(listen: list[dict[str, Any]]) -> None:
    async with behind(listen, limits={"connections_per_address": 1}) as running:
        admission = running.service.edge.admission
        first = await running.client()
        await first.send(LINE)
        await until(lambda: admission.addresses, "it is counted")
        second = await running.client()
        await second.send(LINE)
        await second.closed()
        assert running.service.edge.counts.rejected == {"address": 1}
        await first.leave()
        await until(lambda: not admission.addresses, "it is counted no longer")
        assert running.service.edge.counts.connections == 0


async def test_unix_listener_with_a_header(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    listen: list[dict[str, Any]] = [
        {"address": "127.0.0.1:0"},
        {"address": f"unix:{path}", "proxy_protocol": True},
    ]
    async with behind(listen) as running:
        for header, client in ((LINE, b"203.0.113.7"), (LOCAL, b"127.0.0.1")):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(header + GET)
            async with guard():
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
            assert running.member.requests[-1].value("x-real-ip") == client
            writer.close()
            await writer.wait_closed()


async def test_connection_that_said_nothing_does_not_hold_up_a_drain() -> None:
    async with behind() as running:
        visitor = await running.client()
        await until(lambda: running.connections, "it is there")
        running.service.edge.close_idle(running.service.edge.clock())
        await visitor.closed()


async def test_what_has_not_begun_is_cut_with_the_rest() -> None:
    async with behind() as running:
        visitor = await running.client()
        await visitor.send(LINE[:20])
        await until(lambda: running.connections, "it is there")
        (entrance,) = running.connections
        assert repr(entrance) == "<Entrance 127.0.0.1>"
        running.service.edge.draining = True
        running.service.edge.close_idle(running.service.edge.clock())
        assert running.connections
        await running.service.stop()
        await visitor.closed()


# -- TLS behind it


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def listen(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    tls = {"certificate": str(chain), "private_key": str(key)}
    return [{"address": "127.0.0.1:0", "proxy_protocol": True, "tls": tls}]


class Hands:
    """A visitor's TLS by hand, so that a test decides which bytes go together."""

    def __init__(self, authority: trustme.CA) -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def hello(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    async def _more(self, visitor: RawClient) -> None:
        async with guard():
            data = await visitor.reader.read(65_536)
        assert data, "the edge closed"
        self._in.write(data)

    async def shake(self, visitor: RawClient) -> bytes:
        """Ends the handshake; what is to be sent with the first words."""
        while True:
            await self._more(visitor)
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                visitor.write(self._out.read())
            else:
                return self._out.read()

    def wrap(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._out.read()

    async def read(self, visitor: RawClient) -> bytes:
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                await self._more(visitor)


@pytest.mark.parametrize("header", [LINE, BINARY])
@pytest.mark.parametrize("together", [True, False])
async def test_handshake_follows_the_header_however_the_bytes_are_split(
    authority: trustme.CA, listen: list[dict[str, Any]], header: bytes, together: bool
) -> None:
    async with behind(listen) as running:
        visitor = await running.client()
        hands = Hands(authority)
        start = header + hands.hello()
        if together:
            await visitor.send(start)
        else:
            for at in range(0, len(start), 7):
                await visitor.send(start[at : at + 7])
        # The first request in one piece with the end of the handshake.
        await visitor.send(await hands.shake(visitor) + hands.wrap(GET))
        assert (await hands.read(visitor)).startswith(b"HTTP/1.1 200 ")
        await visitor.send(hands.wrap(GET))
        assert (await hands.read(visitor)).startswith(b"HTTP/1.1 200 ")
        for request in running.member.requests:
            assert request.value("x-forwarded-proto") == b"https"
            assert request.value("x-real-ip") in (b"203.0.113.7", b"2001:db8::7")
        (connection,) = running.connections
        assert running.service.edge.counts.connections == 1
        assert "Downstream" in repr(connection)


async def test_big_body_over_tls_behind_a_header_arrives(
    authority: trustme.CA, listen: list[dict[str, Any]]
) -> None:
    body = bytes(range(256)) * 4096
    async with edge(echo, listen=listen) as running:
        visitor = await running.client()
        hands = Hands(authority)
        await visitor.send(LINE + hands.hello())
        head = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        visitor.write(await hands.shake(visitor) + hands.wrap(head + body))
        read = b""
        while not read.endswith(body):
            read += await hands.read(visitor)
        assert read.startswith(b"HTTP/1.1 200 ")


async def echo(conn: Conn) -> None:
    request = await conn.request()
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body), request.body)
    await conn.flush()


@pytest.mark.parametrize("after", [GET, b"\x16\x03\x01\x00\x02\x01\x00", b""])
async def test_handshake_that_fails_leaves_nothing_behind(listen: list[dict[str, Any]], after: bytes) -> None:
    async with behind(listen, timeouts={"request_head": "1s"}) as running:
        visitor = await running.client()
        await visitor.send(LINE + after)
        async with guard():
            await visitor.until_end()
        await until(lambda: not running.connections, "it is forgotten")
        assert running.service.edge.counts.connections == 0
        assert refused(running) == 0


async def test_visitor_who_leaves_during_the_handshake_leaves_nothing_behind(
    authority: trustme.CA, listen: list[dict[str, Any]]
) -> None:
    async with behind(listen) as running:
        for reset in (True, False):
            visitor = await running.client()
            await visitor.send(LINE + Hands(authority).hello())
            async with guard():
                await visitor.reader.read(1)
            visitor.reset() if reset else visitor.close()
            await until(lambda: not running.connections, "it is forgotten")
            assert running.service.edge.counts.connections == 0


async def test_stop_during_the_handshake_leaves_nothing_behind(listen: list[dict[str, Any]]) -> None:
    async with behind(listen) as running:
        visitor = await running.client()
        await visitor.send(LINE)
        await until(
            lambda: any(isinstance(each, Shaking) for each in running.service.edge.connections),
            "the handshake is waited for",
        )
        await running.service.stop()
        await visitor.closed()
        assert running.service.edge.counts.connections == 0
