"""What a trusted proxy says in Forwarded (RFC 7239), where it does not say it in X-Forwarded-For."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.test_affinity import cookie_of, get, named
from tests.rig import edge

TRUSTED: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8", "198.51.100.0/24"]}


@pytest.mark.parametrize(
    ("lines", "client", "addresses", "proto"),
    [
        ([b"Forwarded: for=203.0.113.9"], b"203.0.113.9", b"203.0.113.9, 127.0.0.1", b"http"),
        (
            [b'Forwarded: For="[2001:db8::1]:80";proto=https'],
            b"2001:db8::1",
            b"2001:db8::1, 127.0.0.1",
            b"https",
        ),
        (
            [b"Forwarded: for=6.6.6.6;proto=https, for=203.0.113.9;proto=http, for=198.51.100.1;proto=https"],
            b"203.0.113.9",
            b"6.6.6.6, 203.0.113.9, 198.51.100.1, 127.0.0.1",
            b"http",
        ),
        (
            [b"Forwarded: for=203.0.113.9;proto=https", b"Forwarded: for=198.51.100.1;proto=http"],
            b"203.0.113.9",
            b"203.0.113.9, 198.51.100.1, 127.0.0.1",
            b"https",
        ),
        (
            [b"Forwarded: for=203.0.113.9, for=unknown;proto=https"],
            b"127.0.0.1",
            b"203.0.113.9, unknown, 127.0.0.1",
            b"https",
        ),
        ([b"Forwarded: for=_hidden"], b"127.0.0.1", b"unknown, 127.0.0.1", b"http"),
        ([b"Forwarded: for=203.0.113.9:80"], b"127.0.0.1", b"127.0.0.1", b"http"),
        (
            [b"Forwarded: for=6.6.6.6;proto=https", b"X-Forwarded-For: 203.0.113.9"],
            b"203.0.113.9",
            b"203.0.113.9, 127.0.0.1",
            b"http",
        ),
        (
            [b"Forwarded: for=203.0.113.9;proto=http", b"X-Forwarded-Proto: https"],
            b"203.0.113.9",
            b"203.0.113.9, 127.0.0.1",
            b"https",
        ),
    ],
)
async def test_visitor_is_the_last_hop_that_is_no_trusted_proxy(
    lines: list[bytes], client: bytes, addresses: bytes, proto: bytes
) -> None:
    async with edge(named("a"), **TRUSTED) as running:
        response = await running.ask(get(b"/", *lines))
        (request,) = running.member.requests
        assert request.value("x-real-ip") == client
        assert request.value("x-forwarded-for") == addresses
        assert request.value("x-forwarded-proto") == proto
        assert request.value("forwarded") is None
        (line,) = await running.logged()
        assert line["client"] == client.decode()
        assert cookie_of(response) == (b"a", proto == b"https")


async def test_host_of_forwarded_is_what_the_member_is_told() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        await running.ask(get(b"/", b'Forwarded: for=203.0.113.9;host="public.test:8443"'))
        assert running.member.requests[0].value("x-forwarded-host") == b"public.test:8443"


async def test_forwarded_of_anybody_means_nothing() -> None:
    async with edge(named("a")) as running:
        await running.ask(get(b"/", b"Forwarded: for=6.6.6.6;proto=https;host=evil.test"))
        (request,) = running.member.requests
        assert request.value("x-real-ip") == request.value("x-forwarded-for") == b"127.0.0.1"
        assert request.value("x-forwarded-proto") == b"http"
        assert b"evil" not in request.head
