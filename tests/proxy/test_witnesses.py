"""What one visitor sees fail opens no breaker while others are served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedproxy.decide.member import Member
from tests.rig import Conn, Edge, RawClient, Script, edge, guard
from tests.rig.homes import cookie, get, named
from tests.rig.launches import CRASH, EVENTS, TARGET, says

BEHIND: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8"], "retry": {"budget": 1, "floor": 100}}
PIN = cookie(b"a")
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
FAILURES = {
    "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "broken off": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "nothing": b"",
    "nonsense": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
}


def visitor(address: bytes) -> bytes:
    return b"X-Forwarded-For: " + address


X, Y, Z = visitor(b"203.0.113.1"), visitor(b"203.0.113.2"), visitor(b"203.0.113.3")


def picky(reply: bytes) -> Script:
    """A member that fails what has `Upgrade` or is no GET, as one visitor can make it at will."""

    async def script(conn: Conn) -> None:
        while True:
            request = await conn.request()
            if request.method == b"GET" and request.value("upgrade") is None:
                conn.send(OK)
                continue
            conn.send(reply)
            if b" 503 " not in reply:
                return

    return script


def its(running: Edge) -> Member:
    return running.service.edge.federation.by_name["a"]


async def failing(client: RawClient, *lines: bytes, **asked: Any) -> None:
    """Asks on a connection of its own, whose answer may be cut."""
    await client.send(get(b"/health", PIN, *lines, **asked))
    await client.until_end()


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("asked", [{"lines": WEBSOCKET}, {"method": b"DELETE"}], ids=["upgrade", "method"])
async def test_path_that_a_visitor_can_make_fail_at_will_opens_no_breaker(
    how: str, asked: dict[str, Any]
) -> None:
    lines, method = asked.get("lines", ()), asked.get("method", b"GET")
    async with edge({"a": picky(FAILURES[how]), "b": named("b")}, **BEHIND) as running:
        for _ in range(25):
            assert (await running.ask(get(b"/", PIN, Y))).body == b"a"
            client = await running.client()
            await failing(client, X, b"Connection: close", *lines, method=method)
        assert its(running).breaker.closed
        assert not [request for request in running.members["b"].requests if request.target == b"/"]


async def test_failures_before_anybody_else_failed_count_once_a_second_client_sees_one() -> None:
    async with edge({"a": picky(FAILURES["503"]), "b": named("b")}, **BEHIND) as running:
        await running.ask(get(b"/", PIN, Z))
        for _ in range(6):
            await running.ask(get(b"/", PIN, X, method=b"POST"))
        assert its(running).breaker.closed
        await running.ask(get(b"/", PIN, Y, method=b"POST"))
        assert not its(running).breaker.closed


async def test_visitor_who_is_alone_opens_it_as_before() -> None:
    async with edge({"a": picky(FAILURES["503"]), "b": named("b")}, **BEHIND) as running:
        for _ in range(30):
            await running.ask(get(b"/", PIN, X))
        for _ in range(5):
            assert its(running).breaker.closed
            await running.ask(get(b"/", PIN, X, method=b"POST"))
        assert not its(running).breaker.closed


@pytest.mark.parametrize("witnesses", [1, 3])
async def test_number_of_witnesses_is_the_operator_s(witnesses: int) -> None:
    breaker = {"failures": 1, "witnesses": witnesses}
    async with edge({"a": picky(FAILURES["503"]), "b": named("b")}, breaker=breaker, **BEHIND) as running:
        for number in range(4):
            await running.ask(get(b"/", PIN, visitor(b"198.51.100.%d" % number)))
        for number in range(witnesses):
            assert its(running).breaker.closed
            await running.ask(get(b"/", PIN, visitor(b"203.0.113.%d" % number), method=b"POST"))
        assert not its(running).breaker.closed


async def test_launches_of_one_client_open_no_breaker_while_others_are_served() -> None:
    async def script(conn: Conn) -> None:
        while True:
            request = await conn.head()
            conn.member.requests.append(request)
            if request.target == TARGET:
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + CRASH)
                return
            conn.send(OK)

    async with edge({"a": script, "b": says(CRASH)}, launch={"failover": False}, **BEHIND) as running:
        for _ in range(10):
            assert (await running.ask(get(b"/", PIN, Y))).body == b"a"
            await running.ask(get(TARGET, PIN, X, EVENTS))
        assert its(running).breaker.closed
        await running.ask(get(TARGET, PIN, Z, EVENTS))
        assert not its(running).breaker.closed


async def test_trial_that_one_client_fails_is_not_the_next_one_too() -> None:
    async with edge({"a": picky(FAILURES["503"]), "b": named("b")}, **BEHIND) as running:
        edge_ = running.service.edge
        now = edge_.clock()
        edge_.clock = lambda: now
        for number in range(6):
            await running.ask(get(b"/", PIN, (X, Y)[number % 2], method=b"POST"))
        breaker = its(running).breaker
        now += breaker.open_for + 0.001
        await running.ask(get(b"/", PIN, X, method=b"POST"))
        assert not breaker.closed
        now += breaker.open_for + 0.001
        # Whose trial failed is served by the other member, and leaves the next trial to somebody else.
        assert (await running.ask(get(b"/", PIN, X, method=b"POST"))).body == b"b"
        assert (await running.ask(get(b"/", PIN, Y))).body == b"a"
        assert breaker.closed


async def test_one_client_leaves_retries_to_others() -> None:
    async with edge(
        {"a": picky(b""), "b": picky(b"")},
        trusted_proxies=["127.0.0.0/8"],
        retry={"budget": 0, "floor": 1, "per_client": 0.5},
        breaker={"failures": 10**6, "minimum": 10**6},
    ) as running:
        edge_ = running.service.edge
        now = edge_.clock()
        edge_.clock = lambda: now
        for _ in range(20):
            await running.ask(get(b"/", PIN, X, method=b"PUT"))
        lines = await running.logged(20)
        assert sum(line["attempts"] - 1 for line in lines) == 5
        await running.ask(get(b"/", PIN, Y, method=b"PUT"))
        assert (await running.logged(21))[-1]["attempts"] == 2


async def test_who_is_served_in_a_session_is_somebody_who_is_served() -> None:
    async with edge({"a": picky(FAILURES["503"]), "b": named("b")}, **BEHIND) as running:
        for _ in range(25):
            assert (await running.ask(get(b"/user/alive/x", PIN, Y))).body == b"a"
            await running.ask(get(b"/health", PIN, X, method=b"DELETE"))
        assert its(running).breaker.closed


async def test_upload_that_never_ends_is_not_everybody_s_trial() -> None:
    down = [True]

    async def script(conn: Conn) -> None:
        while True:
            request = await conn.head()
            if request.method == b"POST" and not down:
                await conn.stall()
            await conn.body_of(request)
            conn.send(FAILURES["503"] if down else OK)

    breaker = {"failures": 2, "open": "200ms", "max_ejected": 1.0}
    async with edge({"a": script, "b": named("b")}, breaker=breaker, **BEHIND) as running:
        for who in (X, Y):
            await running.ask(get(b"/x", PIN, who, method=b"POST"))
        assert not its(running).breaker.closed
        down.clear()
        hog = await running.client()
        upload = get(b"/x", PIN, X, b"Content-Length: 9", method=b"POST") + b"x"
        await hog.send(upload)
        async with guard():
            while not its(running).breaker.trials:
                # Others had it until the trial's time came.
                await hog.leave()
                hog = await running.client()
                await hog.send(upload)
                await asyncio.sleep(0.05)
            while (await running.ask(get(b"/", PIN, Z))).body != b"a":
                await asyncio.sleep(0.02)
        assert its(running).breaker.closed
