"""Who is believed about whom, and for how long: nobody is for want of an address, or by an older config."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from fedproxy.event import EventName
from fedproxy.proxy.entrance import Shaking
from tests.rig import Conn, Edge, RawClient, answer, edge, guard, until

SAID = b"X-Forwarded-For: 198.51.100.66"
GET = b"GET /mine HTTP/1.1\r\nHost: hub.test\r\n" + SAID + b"\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: hub.test\r\n\r\n"
HEADER = b"PROXY TCP4 198.51.100.66 192.0.2.1 56324 443\r\n"


def binary(command: int, kind: int, rest: bytes = b"") -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes((command, kind)) + struct.pack("!H", len(rest)) + rest


def end_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_and_reset(address: tuple[str, int], data: bytes) -> None:
    """The loop has no turn meanwhile: the connection is reset before anybody accepts it."""
    sock = socket.create_connection(address)
    sock.sendall(data)
    end_with_reset(sock)


def certificate(folder: Path) -> tuple[dict[str, str], ssl.SSLContext]:
    """What a listener needs for TLS, and what a visitor does."""
    authority = trustme.CA()
    file = str(folder / "both.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(file)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return {"certificate": file, "private_key": file}, context


# -- who has no address


@pytest.mark.parametrize("trusted", [[], ["198.51.100.0/24"]])
@pytest.mark.parametrize(
    ("proxy_protocol", "data"),
    [
        (False, GET),
        (True, b"PROXY UNKNOWN\r\n" + GET),
        (True, binary(0x20, 0x00) + GET),
        (True, HEADER + GET),
    ],
)
async def test_visitor_who_resets_before_being_seen_is_nobody(
    proxy_protocol: bool, data: bytes, trusted: list[str]
) -> None:
    listen = [{"address": "127.0.0.1:0", "proxy_protocol": proxy_protocol}, {"address": "127.0.0.1:0"}]
    rate: dict[str, Any] = {"launches": 1, "per": "1h"}
    async with edge(answer(), listen=listen, trusted_proxies=trusted, rate=rate) as running:
        for _ in range(50):
            send_and_reset(running.address, data)
        # Who came later is accepted later.
        async with guard():
            reader, writer = await asyncio.open_connection(*running.address)
            writer.write(b"x")
            writer.close()
            await reader.read()
        await until(lambda: not running.connections, "all are gone")
        assert running.log == [] or running.log[0]["client"] == "127.0.0.1"
        assert running.member.requests == []
        assert running.service.edge.counts.connections == 0
        assert running.service.edge.admission.addresses == {}


async def test_visitor_who_resets_during_the_handshake_is_believed_no_more_than_others(
    tmp_path: Path,
) -> None:
    tls, context = certificate(tmp_path)
    loop = asyncio.get_running_loop()
    async with edge(answer(), listen=[{"address": "127.0.0.1:0", "tls": tls}]) as running:
        for _ in range(5):
            sock = socket.create_connection(running.address)
            sock.setblocking(False)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            hands = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            async with guard():
                while True:
                    try:
                        hands.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        await loop.sock_sendall(sock, outgoing.read())
                        incoming.write(await loop.sock_recv(sock, 65_536))
            hands.write(GET)
            sock.send(outgoing.read())
            end_with_reset(sock)
        visitor = await running.client(tls=context)
        assert (await visitor.ask(PLAIN)).body == b"ok"
        await until(lambda: len(running.connections) == 1, "the others are gone")
        assert {line["client"] for line in running.log} == {"127.0.0.1"}
        assert {request.value("x-real-ip") for request in running.member.requests} == {b"127.0.0.1"}


async def test_peer_of_a_unix_socket_is_trusted_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    listen = [{"address": "127.0.0.1:0"}, {"address": f"unix:{path}"}]
    async with edge(answer(), listen=listen) as running:
        assert (await running.ask(GET)).body == b"ok"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        async with guard():
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
        seen = [request.value("x-real-ip") for request in running.member.requests]
        assert seen == [b"127.0.0.1", b"198.51.100.66"]


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        binary(0x21, 0x00),
        binary(0x21, 0x12, bytes(12)),
        binary(0x21, 0x31, bytes(216)),
    ],
)
@pytest.mark.parametrize("unix", [False, True])
async def test_visitor_whom_the_proxy_does_not_name_is_not_the_proxy(
    header: bytes, unix: bool, tmp_path: Path
) -> None:
    path = tmp_path / "edge.sock"
    listen = [{"address": f"unix:{path}" if unix else "127.0.0.1:0", "proxy_protocol": True}]
    listen += [{"address": "127.0.0.1:0"}] * unix
    async with edge(answer(), listen=listen, trusted_proxies=["127.0.0.1"]) as running:
        if unix:
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            reader, writer = await asyncio.open_connection(*running.address)
        writer.write(header + GET)
        async with guard():
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
        (request,) = running.member.requests
        assert request.value("x-real-ip") == request.value("x-forwarded-for") == b"127.0.0.1"


# -- trust and the config in force

PROXY = "127.0.0.1/32"


async def reload(running: Edge, trusted: list[str]) -> None:
    service = running.service
    change = {"trusted_proxies": tuple(map(ip_network, trusted))}
    service._reread = lambda: service.config.model_copy(update=change)
    assert await service.reload() == []


def told(running: Edge) -> list[bytes | None]:
    """Whom the member was told of, request by request."""
    return [request.value("x-real-ip") for request in running.member.requests]


ME, OTHER = b"127.0.0.1", b"198.51.100.66"


async def test_peer_that_is_trusted_no_more_is_not_believed() -> None:
    async with edge(answer(), trusted_proxies=[PROXY]) as running:
        client = await running.client()
        await client.ask(GET)
        await reload(running, [])
        for request in (PLAIN, GET, PLAIN):
            await client.ask(request)
        assert told(running) == [OTHER, ME, ME, ME]
        assert [line["client"] for line in await running.logged(4)] == [OTHER.decode(), *3 * [ME.decode()]]


async def test_peer_that_is_trusted_now_is_believed() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(GET)
        await reload(running, [PROXY])
        await client.ask(GET)
        await client.ask(PLAIN)
        assert told(running) == [ME, OTHER, ME]


@pytest.mark.parametrize("before", [True, False])
async def test_request_under_way_keeps_its_client_and_the_next_one_has_its_own(before: bool) -> None:
    going = asyncio.Event()

    async def wait(conn: Conn) -> None:
        while True:
            await conn.request()
            await going.wait()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with edge(wait, trusted_proxies=[PROXY] if before else []) as running:
        client = await running.client()
        await client.send(GET + PLAIN + GET)
        await until(lambda: running.member.has(requests=1), "it is under way")
        await reload(running, [] if before else [PROXY])
        going.set()
        for _ in range(3):
            assert (await client.response()).body == b"ok"
        expected = [OTHER, ME, ME] if before else [ME, ME, OTHER]
        assert told(running) == expected
        assert [line["client"].encode() for line in await running.logged(3)] == expected


async def test_secure_is_forgotten_with_the_trust() -> None:
    secure = GET.replace(SAID, b"X-Forwarded-Proto: https")
    listen = [{"address": "127.0.0.1:0", "redirect_to_https": True}]
    async with edge(answer(), listen=listen, trusted_proxies=[PROXY]) as running:
        client = await running.client()
        assert (await client.ask(secure)).status == 200
        await reload(running, [])
        assert (await client.ask(secure)).status == 301


async def test_addresses_are_counted_by_who_is_trusted_now() -> None:
    async with edge(answer(), limits={"connections_per_address": 2}, trusted_proxies=[PROXY]) as running:
        addresses = running.service.edge.admission.addresses
        clients = [await running.client() for _ in range(3)]
        for client in clients:
            await client.ask(GET)
        assert list(addresses.values()) == []
        await reload(running, [])
        assert list(addresses.values()) == [3]
        refused = await running.client()
        await refused.closed()
        for client in clients:
            assert (await client.ask(GET)).status == 200
        await clients.pop().leave()
        await until(lambda: list(addresses.values()) == [2], "one is gone")
        await reload(running, [PROXY])
        assert list(addresses.values()) == []
        await clients.pop().leave()
        await reload(running, [])
        await until(lambda: list(addresses.values()) == [1], "one is left")
        await clients.pop().leave()
        await until(lambda: not addresses, "nobody is left")


BEHIND: dict[str, Any] = {"listen": [{"address": "127.0.0.1:0", "proxy_protocol": True}]}


async def test_proxy_that_is_trusted_no_more_has_introduced_nobody() -> None:
    async with edge(answer(), trusted_proxies=[PROXY], **BEHIND) as running:
        idle, half, silent = [await running.client() for _ in range(3)]
        assert (await idle.ask(HEADER + PLAIN)).status == 200
        await half.send(HEADER + PLAIN[:9])
        await until(lambda: running.service.edge.counts.connections == 3, "all are there")
        await until(
            lambda: any(getattr(each, "machine", each).held for each in visitors(running)),
            "the half head has come",
        )
        await reload(running, ["192.0.2.0/24"])
        for client in (idle, half, silent):
            await client.closed()
        assert told(running) == [OTHER]
        assert running.service.edge.counts.rejected == {"proxy_protocol": 1}


async def test_handshake_behind_such_a_proxy_ends(tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path)
    listen = [{"address": "127.0.0.1:0", "proxy_protocol": True, "tls": tls}]
    async with edge(answer(), trusted_proxies=[PROXY], listen=listen) as running:
        client = await running.client()
        await client.send(HEADER)
        await until(
            lambda: any(isinstance(each, Shaking) for each in running.service.edge.connections),
            "the handshake is waited for",
        )
        await reload(running, ["192.0.2.0/24"])
        async with guard():
            await client.until_end()
        await until(lambda: not running.connections, "it is forgotten")
        assert running.service.edge.counts.connections == 0
        # Whoever it came for has done nothing wrong.
        events = running.service.history.events
        (event,) = [each for each in events if each.name is EventName.PROXY_HEADER]
        assert ME.decode() in event.message
        assert OTHER.decode() not in event.message


async def test_request_of_whom_such_a_proxy_introduced_is_the_last() -> None:
    going = asyncio.Event()

    async def wait(conn: Conn) -> None:
        await conn.request()
        await going.wait()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with edge(wait, trusted_proxies=[PROXY], **BEHIND) as running:
        client = await running.client()
        await client.send(HEADER + PLAIN + PLAIN)
        await until(lambda: running.member.has(requests=1), "it is under way")
        await reload(running, ["192.0.2.0/24"])
        going.set()
        response = await client.response()
        assert (response.body, response.value("connection")) == (b"ok", b"close")
        await client.closed()
        assert told(running) == [OTHER]


async def test_whom_a_proxy_introduced_is_trusted_by_the_config_in_force() -> None:
    other = GET.replace(OTHER, b"203.0.113.9")
    async with edge(answer(), trusted_proxies=[PROXY, "198.51.100.0/24"], **BEHIND) as running:
        client = await running.client()
        await client.ask(HEADER + other)
        await reload(running, [PROXY])
        await client.ask(other)
        assert told(running) == [b"203.0.113.9", OTHER]


def visitors(running: Edge) -> list[Any]:
    return list(running.connections)


# -- whom the log names

NINE = b"X-Forwarded-For: 203.0.113.9"


async def refused(client: RawClient, data: bytes) -> int:
    response = await client.ask(data)
    assert await client.closed() == "eof"
    return response.status


@pytest.mark.parametrize(
    ("data", "status", "client"),
    [
        (b"GET / HTTP/1.1\r\nHost : h\r\n" + NINE + b"\r\n\r\n", 400, ME),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400, ME),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + NINE + b"\r\nX: " + b"x" * 40_000, 431, ME),
        (b"GET /" + b"x" * 40_000, 414, ME),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400, ME),
        # Of these the head can be read, or what of it says who it is.
        (b"GET  / HTTP/1.1\r\nHost: h\r\n" + NINE + b"\r\n\r\n", 400, b"203.0.113.9"),
        (b"TRACE / HTTP/1.1\r\nHost: h\r\n" + NINE + b"\r\n\r\n", 405, b"203.0.113.9"),
        (b"GET / HTTP/1.1\r\n" + NINE + b"\r\n\r\n", 400, b"203.0.113.9"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n" + NINE + b"\r\n\r\n",
            413,
            b"203.0.113.9",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + NINE + b"\r\n\r\nx\r\n",
            400,
            b"203.0.113.9",
        ),
    ],
)
@pytest.mark.parametrize(
    "before", [GET, GET.replace(SAID, b"X-Request-ID: 1\r\n" + SAID)], ids=["plain", "any"]
)
async def test_refused_request_is_never_logged_as_the_visitor_before_it(
    data: bytes, status: int, client: bytes, before: bytes
) -> None:
    async with edge(answer(), trusted_proxies=[PROXY]) as running:
        proxy = await running.client()
        await proxy.ask(before)
        assert await refused(proxy, data) == status
        first, second = await running.logged(2)
        assert (first["client"], first["status"]) == (OTHER.decode(), 200)
        assert (second["client"], second["status"]) == (client.decode(), status)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: h\n\n", b"GET /" + b"x" * 40_000])
async def test_head_that_cannot_be_read_is_not_logged_as_the_visitor_whose_upload_came_before(
    data: bytes,
) -> None:
    upload = GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx")
    async with edge(answer(), trusted_proxies=[PROXY]) as running:
        proxy = await running.client()
        await proxy.ask(upload)
        await refused(proxy, data)
        assert [line["client"] for line in await running.logged(2)] == [OTHER.decode(), ME.decode()]


async def test_head_that_never_ends_is_logged_as_the_proxy_s() -> None:
    async with edge(answer(), trusted_proxies=[PROXY], timeouts={"request_head": "100ms"}) as running:
        proxy = await running.client()
        await proxy.ask(GET)
        assert await refused(proxy, PLAIN[:20]) == 408
        assert [line["client"] for line in await running.logged(2)] == [OTHER.decode(), ME.decode()]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", b"GET /" + b"x" * 40_000])
async def test_first_request_behind_a_proxy_header_is_logged_as_its_visitor_s_if_it_is_refused(
    data: bytes,
) -> None:
    async with edge(answer(), trusted_proxies=[PROXY], **BEHIND) as running:
        proxy = await running.client()
        await refused(proxy, HEADER + data)
        assert [line["client"] for line in await running.logged()] == [OTHER.decode()]
