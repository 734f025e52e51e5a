"""What a trusted proxy says in Forwarded (RFC 7239), where it does not say it in X-Forwarded-For."""

from __future__ import annotations

from typing import Any

import pytest

from fedproxy.event import EventName
from tests.rig import answer, edge
from tests.rig.homes import cookie_of, get, named

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
            b"unknown",
            b"203.0.113.9, unknown, 127.0.0.1",
            b"https",
        ),
        ([b"Forwarded: for=_hidden"], b"unknown", b"unknown, 127.0.0.1", b"http"),
        ([b"Forwarded: proto=https"], b"unknown", b"unknown, 127.0.0.1", b"https"),
        ([b"Forwarded:"], b"unknown", b"unknown, 127.0.0.1", b"http"),
        (
            [b'Forwarded: for="6.6.6.6, for=203.0.113.9;proto=https'],
            b"203.0.113.9",
            b"unknown, 203.0.113.9, 127.0.0.1",
            b"https",
        ),
        (
            [b"Forwarded: for=203.0.113.9;proto=https", b'Forwarded: for="broken;proto=http'],
            b"unknown",
            b"203.0.113.9, unknown, 127.0.0.1",
            b"http",
        ),
        ([b"Forwarded: for=203.0.113.9:80"], b"203.0.113.9", b"unknown, 203.0.113.9, 127.0.0.1", b"http"),
        ([b'Forwarded: for="[::FFFF:203.0.113.9]"'], b"203.0.113.9", b"203.0.113.9, 127.0.0.1", b"http"),
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
        assert line["client"] == ("-" if client == b"unknown" else client.decode())
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


@pytest.mark.parametrize(
    ("spelt", "client"),
    [
        (b"203.0.113.5:51234", b"203.0.113.5"),
        (b"203.0.113.5:_hidden", b"203.0.113.5"),
        (b"[2001:db8::1]:443", b"2001:db8::1"),
        (b"[2001:db8::1]", b"2001:db8::1"),
        (b"2001:DB8:0:0::1", b"2001:db8::1"),
        (b"::ffff:203.0.113.5", b"203.0.113.5"),
        (b"::FFFF:cb00:7105", b"203.0.113.5"),
        (b"[::ffff:203.0.113.5]:80", b"203.0.113.5"),
        (b"fe80::1%eth0", b"fe80::1"),
        (b"[fe80::1%25eth0]:80", b"fe80::1"),
    ],
)
@pytest.mark.parametrize("field", [b"X-Forwarded-For", b"X-Real-IP"])
async def test_address_is_read_however_a_proxy_spells_it(field: bytes, spelt: bytes, client: bytes) -> None:
    async with edge(named("a"), **TRUSTED) as running:
        await running.ask(get(b"/", field + b": " + spelt))
        (request,) = running.member.requests
        assert request.value("x-real-ip") == client
        assert request.value("x-forwarded-for") == client + b", 127.0.0.1"
        assert [line["client"] for line in await running.logged()] == [client.decode()]


@pytest.mark.parametrize(
    ("lines", "addresses"),
    [
        ([b"X-Forwarded-For: unknown"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: 6.6.6.6, unix:"], b"6.6.6.6, unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 203.0.113"], b"6.6.6.6, unknown, 127.0.0.1"),
        (
            [b"X-Forwarded-For: 6.6.6.6, x, 198.51.100.7:80"],
            b"6.6.6.6, unknown, 198.51.100.7, 127.0.0.1",
        ),
        ([b"X-Forwarded-For: 999.0.113.9:80"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: 203.0.113.005"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For:"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: , ,"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: x", b"X-Real-IP: 6.6.6.6"], b"unknown, 127.0.0.1"),
        ([b"X-Forwarded-For: x", b"Forwarded: for=6.6.6.6"], b"unknown, 127.0.0.1"),
        ([b"X-Real-IP: visitor.example"], b"unknown, 127.0.0.1"),
        ([b"X-Real-IP: 6.6.6.6, nobody"], b"unknown, 127.0.0.1"),
    ],
)
async def test_visitor_whose_address_cannot_be_read_is_unknown_and_nobody_else(
    lines: list[bytes], addresses: bytes
) -> None:
    banned = {"networks": ["6.6.6.6", "127.0.0.1"]}
    async with edge(named("a"), ban=banned, **TRUSTED) as running:
        response = await running.ask(get(b"/", *lines))
        assert response.status == 200
        (request,) = running.member.requests
        assert request.value("x-real-ip") == b"unknown"
        assert request.value("x-forwarded-for") == addresses
        assert [line["client"] for line in await running.logged()] == ["-"]


async def test_unknown_visitors_have_one_launch_rate_together() -> None:
    launch = get(b"/build/gh/user/repo/HEAD", b"Accept: text/event-stream", b"X-Forwarded-For: ?")
    async with edge(answer(), rate={"launches": 1, "per": "1h"}, **TRUSTED) as running:
        assert (await running.ask(launch)).body == b"ok"
        assert b"429" in (await running.ask(launch)).body
        assert (await running.ask(launch.replace(b"?", b"203.0.113.9"))).body == b"ok"


async def test_unknown_visitor_of_a_page_of_the_edge_is_logged_as_such() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        assert (await running.ask(get(b"/active_hosts", b"X-Forwarded-For: ?"))).status == 200
        assert [line["client"] for line in await running.logged()] == ["-"]


async def test_address_that_cannot_be_read_is_said_once() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        client = await running.client()
        for number in range(5):
            await client.ask(get(b"/", b"X-Forwarded-For: \xe9vil-%d" % number))
        await client.ask(get(b"/", b"X-Real-IP: " + b"x" * 1000))
    events = running.service.history.events
    first, second = (each.message for each in events if each.name is EventName.PROXY_ADDRESS)
    assert "127.0.0.1" in first and "X-Forwarded-For" in first and r"'\xe9vil-0'" in first
    assert "X-Real-IP" in second and "x" * 64 in second and "x" * 65 not in second


async def test_warnings_of_addresses_are_bounded() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        for number in range(1000):
            running.service.edge.admission.note_unread(b"192.0.2.%d" % number, b"X-Forwarded-For", b"?")
    assert 10 < len(running.service.history.events) < 100


@pytest.mark.parametrize(
    ("lines", "proto"),
    [
        ([b"X-Forwarded-Proto: https, http"], b"https"),
        ([b"X-Forwarded-Proto: https,https"], b"https"),
        ([b"X-Forwarded-Proto: HTTPS , http"], b"https"),
        ([b"X-Forwarded-Proto: http, https"], b"http"),
        ([b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http"], b"https"),
        ([b"X-Forwarded-Proto: , https"], b"https"),
        ([b"X-Forwarded-Proto: wss"], b"https"),
        ([b"X-Forwarded-Proto: ws"], b"http"),
        ([b"X-Forwarded-Proto: ftp"], b"http"),
        ([b"X-Forwarded-Proto:"], b"http"),
        ([b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-Proto: https, http"], b"https"),
        # As many as addresses: the visitor's is in the visitor's place, and what is before is made up.
        ([b"X-Forwarded-For: 203.0.113.9, 198.51.100.1", b"X-Forwarded-Proto: https, http"], b"https"),
        ([b"X-Forwarded-For: 6.6.6.6, 203.0.113.9", b"X-Forwarded-Proto: https, http"], b"http"),
        ([b"X-Forwarded-For: 6.6.6.6, 203.0.113.9", b"X-Forwarded-Proto: http, https"], b"https"),
        ([b"Forwarded: for=6.6.6.6, for=203.0.113.9", b"X-Forwarded-Proto: http, https"], b"https"),
        ([b"Forwarded: for=203.0.113.9;proto=https", b"X-Forwarded-Proto: ftp"], b"https"),
        ([b"Forwarded: for=203.0.113.9;proto=wss"], b"https"),
    ],
)
async def test_visitor_came_as_the_proxy_it_came_to_says(lines: list[bytes], proto: bytes) -> None:
    async with edge(named("a"), **TRUSTED) as running:
        response = await running.ask(get(b"/", *lines))
        assert running.member.requests[0].value("x-forwarded-proto") == proto
        assert cookie_of(response) == (b"a", proto == b"https")
