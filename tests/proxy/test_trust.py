"""Who is believed about whom, and for how long: nobody is for want of an address, or by an older config."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.rig import answer, edge, guard, until

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
        await until(lambda: not running.service.edge.connections, "all are gone")
        assert running.log == [] or running.log[0]["client"] == "127.0.0.1"
        assert running.member.requests == []
        assert running.service.edge.counts.connections == 0
        assert running.service.edge.addresses == {}


async def test_visitor_who_resets_during_the_handshake_is_believed_no_more_than_others(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    tls = {"certificate": str(tmp_path / "both.pem"), "private_key": str(tmp_path / "both.pem")}
    context = ssl.create_default_context()
    authority.configure_trust(context)
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
        await until(lambda: len(running.service.edge.connections) == 1, "the others are gone")
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
