"""Where HTTP/2 comes in: over TLS, in clear, behind proxies, and what it is told there."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from fedproxy.proxy.h1.downstream import Downstream
from fedproxy.proxy.h2.connection import H2Downstream
from tests.proxy.test_h2 import h2_edge, visit
from tests.rig import answer, edge, until
from tests.rig.h2 import PREFACE, SETTINGS, H2Client, frame, request
from tests.rig.visitor import pair

INTRODUCTION = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 443\r\n"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    files = pair(tmp_path / "tls", authority.issue_cert("localhost"))
    return {"certificate": str(files.certificate), "private_key": str(files.private_key), "hsts": "1d"}


def trusting(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


async def test_it_is_spoken_over_tls_with_who_asks_for_it(authority: trustme.CA, tls: dict[str, Any]) -> None:
    async with edge(answer(), listen=[{"address": "127.0.0.1:0", "tls": tls}]) as running:
        client = await H2Client(await running.client(tls=trusting(authority, "h2"))).begin()
        responses = [client.head(request(b"/%d" % number)) for number in range(20)]
        for stream in responses:
            response = await client.response(stream)
            assert response.body == b"ok"
            assert response.value("strict-transport-security") == b"max-age=86400"
        cookie = client.streams[1].value("set-cookie") or b""
        assert cookie.endswith(b"; Secure")
        assert running.member.requests[0].value("x-forwarded-proto") == b"https"
        refused = await client.ask(request(b"/", method=b"TRACE"))
        assert refused.status == 405 and refused.value("strict-transport-security")


@pytest.mark.parametrize("protocols", [(), ("http/1.1",), ("http/1.1", "h3")])
async def test_others_get_http1_over_tls(
    authority: trustme.CA, tls: dict[str, Any], protocols: tuple[str, ...]
) -> None:
    async with edge(answer(), listen=[{"address": "127.0.0.1:0", "tls": tls}]) as running:
        client = await running.client(tls=trusting(authority, *protocols))
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).body == b"ok"
        other = await running.client(tls=trusting(authority, *protocols))
        assert (await other.ask(PREFACE)).status == 400


async def test_a_listener_may_not_speak_it(authority: trustme.CA, tls: dict[str, Any]) -> None:
    async with edge(answer(), listen=[{"address": "127.0.0.1:0", "tls": tls, "http2": False}]) as running:
        client = await running.client(tls=trusting(authority, "h2", "http/1.1"))
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).body == b"ok"


async def test_garbage_after_h2_was_agreed_on_ends_the_connection(
    authority: trustme.CA, tls: dict[str, Any]
) -> None:
    async with edge(answer(), listen=[{"address": "127.0.0.1:0", "tls": tls}]) as running:
        client = H2Client(await running.client(tls=trusting(authority, "h2")))
        client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [code for _, code in await client.end()] == ["protocol_error"]
        assert not running.member.requests


def has_begun(connection: Downstream | H2Downstream) -> bool:
    return isinstance(connection, H2Downstream) or connection.head_since is not None


@pytest.mark.parametrize("cut", range(25))
async def test_a_preface_may_come_in_pieces(cut: int) -> None:
    async with h2_edge(answer()) as running:
        raw = await running.client()
        if cut:
            await raw.send(PREFACE[:cut])
            await until(lambda: any(map(has_begun, running.connections)), "the first bytes are read")
        client = H2Client(raw)
        client.write(PREFACE[cut:] + frame(SETTINGS, 0, 0))
        assert (await client.ask(request())).body == b"ok"


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_proxy_header_comes_first(
    authority: trustme.CA, tls: dict[str, Any], encrypted: bool
) -> None:
    listener: dict[str, Any] = {"address": "127.0.0.1:0", "proxy_protocol": True}
    listener |= {"tls": tls} if encrypted else {"http2": True}
    async with edge(answer(), listen=[listener]) as running:
        raw = await running.client()
        raw.write(INTRODUCTION)
        if encrypted:
            loop = asyncio.get_running_loop()
            transport, protocol = raw.writer.transport, raw.writer.transport.get_protocol()
            secure = await loop.start_tls(
                transport, protocol, trusting(authority, "h2"), server_hostname="localhost"
            )
            assert secure is not None
            raw.writer._transport = secure  # type: ignore[attr-defined]
        client = await H2Client(raw).begin()
        assert (await client.ask(request())).body == b"ok"
        assert running.member.requests[0].value("x-forwarded-for") == b"203.0.113.9"
        (line,) = await running.logged()
        assert (line["client"], line["protocol"]) == ("203.0.113.9", "HTTP/2.0")


async def test_a_trusted_proxy_says_for_whom_each_stream_is() -> None:
    async with h2_edge(answer(), trusted_proxies=["127.0.0.0/8"]) as running:
        client = await visit(running)
        for client_address in (b"203.0.113.1", b"203.0.113.2"):
            await client.ask(
                request(b"/", (b"x-forwarded-for", client_address), (b"x-forwarded-proto", b"https"))
            )
        assert [line["client"] for line in await running.logged(2)] == ["203.0.113.1", "203.0.113.2"]
        assert [asked.value("x-forwarded-proto") for asked in running.member.requests] == [b"https"] * 2


async def test_a_redirect_to_https() -> None:
    async with h2_edge(answer(), listener={"redirect_to_https": True}) as running:
        response = await (await visit(running)).ask(request(b"/x?y"))
        assert (response.status, response.value("location")) == (301, b"https://hub.test/x?y")


async def test_bans_and_rates_are_of_streams_too() -> None:
    async with h2_edge(answer(), ban={"user_agents": ["evil"]}, rate={"launches": 1, "per": "1h"}) as running:
        client = await visit(running)
        assert (await client.ask(request(b"/", (b"user-agent", b"evil")))).status == 403
        launch = request(b"/build/gh/a/b/HEAD", (b"accept", b"text/event-stream"))
        assert (await client.ask(launch)).body == b"ok"
        response = await client.ask(launch)
        assert response.status == 200 and b'"status_code": 429' in response.body
        assert (await client.ask(request())).status == 200


async def test_a_banned_network_is_told_and_leaves() -> None:
    async with h2_edge(answer(), ban={"networks": ["127.0.0.0/8"]}) as running:
        client = await visit(running)
        assert (await client.ask(request())).status == 403
        assert [code for _, code in await client.end()] == ["no_error"]
