"""Whom the operator does not serve, and who launches too often."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from fedproxy.config.load import parse
from tests.rig import Edge, answer, edge, until

STREAM = b"Accept: text/event-stream"
LAUNCH = b"/build/gh/user/repo/HEAD"
TRUSTED: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8"]}


def get(target: bytes = b"/", *lines: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", b"Host: hub.test", *lines, b"", b""))


def of(client: bytes) -> bytes:
    return b"X-Forwarded-For: " + client


def rejected(running: Edge) -> dict[str, int]:
    return dict(running.service.edge.counts.rejected)


def event(body: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(body.removeprefix(b"data: "))
    return found


# -- bans


async def test_banned_network_is_told_once_and_closed() -> None:
    async with edge(answer(), ban={"networks": ["127.0.0.0/8", "2001:db8::/32"]}) as running:
        client = await running.client()
        response = await client.ask(get(b"/", b"Accept: text/html"))
        assert (response.status, response.value("content-type")) == (403, b"text/html; charset=utf-8")
        assert response.value("connection") == b"close"
        assert await client.closed() == "eof"
        assert running.member.requests == []
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["target"]) == (403, "PR", "/")
        assert rejected(running) == {"banned": 1}


async def test_banned_network_behind_a_trusted_proxy_is_told_and_the_proxy_goes_on() -> None:
    async with edge(answer(), ban={"networks": ["203.0.113.0/24", "2001:db8::/32"]}, **TRUSTED) as running:
        assert (await running.ask(get(b"/", of(b"198.51.100.1")))).status == 200
        for client in (b"203.0.113.7", b"2001:db8::7", b"::ffff:203.0.113.7"):
            assert (await running.ask(get(b"/", of(client)))).status == 403
        assert (await running.ask(get())).status == 200
        assert len(running.member.requests) == 2


async def test_banned_user_agent_is_told_and_the_connection_is_kept() -> None:
    async with edge(answer(), ban={"user_agents": ["(?i)badbot", "^$"]}) as running:
        client = await running.client()
        for agent in (b"User-Agent: BadBot/2", b"user-agent: a badbot", b"X: no user agent"):
            response = await client.ask(get(b"/", agent))
            assert response.status == 403
            assert json.loads(response.body)["error"] == "Forbidden"
        assert (await client.ask(get(b"/", b"User-Agent: Mozilla/5.0"))).status == 200
        assert len(running.member.requests) == 1


@pytest.mark.parametrize(
    "target",
    [
        b"/build/gh/Miner/coins/HEAD?x=y",
        b"/v2/gh/miner%2Fcoins/HEAD",
        b"/build/gh/%6Diner/coins/HEAD",
        b"http://hub.test/v2/gh/miner/coins/main",
    ],
)
async def test_banned_repository_is_told(target: bytes) -> None:
    async with edge(answer(), ban={"repositories": ["^gh/miner/coins(/|$)"]}) as running:
        client = await running.client()
        assert (await client.ask(get(target))).status == 403
        assert (await client.ask(get(b"/v2/gh/miner/coinstack/HEAD"))).status == 200
        assert len(running.member.requests) == 1


async def test_ban_of_a_launch_is_an_event() -> None:
    async with edge(answer(), ban={"repositories": ["user/repo"]}) as running:
        response = await running.ask(get(LAUNCH, STREAM))
        assert response.status == 200
        assert (event(response.body)["phase"], event(response.body)["status_code"]) == ("failed", 403)
        (line,) = await running.logged()
        assert line["status"] == 403


async def test_body_of_a_banned_request_is_no_request() -> None:
    async with edge(answer(), ban={"user_agents": ["bot"]}) as running:
        client = await running.client()
        smuggled = get(b"/smuggled")
        lines = (b"User-Agent: bot", b"Content-Length: %d" % len(smuggled))
        assert (await client.ask(get(b"/", *lines, method=b"POST") + smuggled)).status == 403
        assert await client.closed() == "eof"
        assert running.member.requests == []


async def test_ban_holds_for_connections_that_are_there_when_it_comes() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        assert (await client.ask(get())).status == 200
        service = running.service
        config: dict[str, Any] = {
            "listen": [{"address": "127.0.0.1:0"}],
            "admin": {"address": "127.0.0.1:0"},
            "workers": 1,
            "health": {"interval": "1h"},
            "members": {"a": {"url": running.member.url}},
        }
        banning = {**config, "ban": {"networks": ["127.0.0.1"]}}
        service._reread = lambda: parse(yaml.safe_dump(banning), {})
        assert await service.reload() == []
        assert (await client.ask(get())).status == 403
        service._reread = lambda: parse(yaml.safe_dump(config), {})
        assert await service.reload() == []
        assert (await running.ask(get())).status == 200


# -- the launch rate


async def test_launches_beyond_the_rate_are_answered_with_an_event_until_time_has_passed() -> None:
    now = 1000.0
    async with edge(answer(), rate={"launches": 2, "per": "80s"}) as running:
        running.service.edge.clock = lambda: now
        client = await running.client()
        for _ in range(2):
            assert (await client.ask(get(LAUNCH, STREAM))).body == b"ok"
        response = await client.ask(get(LAUNCH, STREAM))
        assert (response.status, response.value("retry-after")) == (200, b"40")
        assert event(response.body)["status_code"] == 429
        assert rejected(running) == {"rate": 1}
        now += 40.0
        assert (await client.ask(get(LAUNCH, STREAM))).body == b"ok"
        assert len(running.member.requests) == 3
        lines = await running.logged(4)
        assert [line["status"] for line in lines] == [200, 200, 429, 200]


@pytest.mark.parametrize(
    "request_",
    [
        get(LAUNCH),
        get(LAUNCH, b"Accept: text/html, text/event-stream"),
        get(LAUNCH, STREAM, method=b"OPTIONS"),
        get(b"/v2/gh/user/repo/HEAD", STREAM),
        get(b"/", STREAM),
    ],
)
async def test_only_launches_count(request_: bytes) -> None:
    async with edge(answer(), rate={"launches": 1, "per": "1h"}) as running:
        client = await running.client()
        for _ in range(3):
            assert (await client.ask(request_)).body == b"ok"
        assert rejected(running) == {}


async def test_addresses_of_one_ipv6_network_launch_together_and_others_apart() -> None:
    async with edge(answer(), rate={"launches": 1, "per": "1h"}, **TRUSTED) as running:
        client = await running.client()
        for address, ok in (
            (b"2001:db8:1:2::7", True),
            (b"2001:db8:1:2:ffff::8", False),
            (b"2001:db8:1:3::7", True),
            (b"203.0.113.7", True),
            (b"::ffff:203.0.113.7", False),
            (b"203.0.113.8", True),
        ):
            response = await client.ask(get(LAUNCH, STREAM, of(address)))
            assert (response.body == b"ok") is ok, address


async def test_launch_in_another_worker_counts_and_one_here_is_told() -> None:
    async with edge(answer(), rate={"launches": 2, "per": "1h"}) as running:
        told: list[bytes] = []
        running.service.edge.admission.on_launched = told.append
        client = await running.client()
        assert (await client.ask(get(LAUNCH, STREAM))).body == b"ok"
        (key,) = told
        running.service.edge.admission.note_launched(key, running.service.edge.clock())
        assert event((await client.ask(get(LAUNCH, STREAM))).body)["status_code"] == 429
        assert told == [key]


async def test_launch_elsewhere_means_nothing_without_a_rate() -> None:
    async with edge(answer()) as running:
        running.service.edge.admission.note_launched(b"x", 0.0)
        assert (await running.ask(get(LAUNCH, STREAM))).body == b"ok"


async def test_rate_survives_a_reload() -> None:
    async with edge(answer(), rate={"launches": 1, "per": "1h"}) as running:
        client = await running.client()
        assert (await client.ask(get(LAUNCH, STREAM))).body == b"ok"
        service = running.service
        service._reread = lambda: service.config
        assert await service.reload() == []
        assert event((await client.ask(get(LAUNCH, STREAM))).body)["status_code"] == 429


async def test_redirected_launches_count_too() -> None:
    routes = [{"path": "/build/*", "to": "members", "mode": "redirect"}]
    async with edge(answer(), rate={"launches": 1, "per": "60s"}, routes=routes) as running:
        client = await running.client()
        assert (await client.ask(get(LAUNCH, STREAM))).status == 307
        assert (await client.ask(get(LAUNCH, STREAM))).status == 200


# -- who is there when nothing is limited


async def test_nothing_is_looked_at_twice_when_nothing_is_limited() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(get())
        await until(lambda: running.connections, "the connection")
        assert all(connection.ordinary for connection in visitors(running))


def visitors(running: Edge) -> list[Any]:
    return list(running.connections)
