"""What is asked under a session's paths: it stays with its member, and its answers say nothing about it."""

from __future__ import annotations

import asyncio

import pytest

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent, Member
from tests.rig import Conn, Edge, Script, answer, edge, guard, refusing, until
from tests.rig.faults import SHORT
from tests.rig.homes import cookie, cookie_of, get, named

AT_ONCE = {"failures": 1, "open": "300s", "max_ejected": 1.0}
MINE, ALIVE = b"/user/mine/x", b"/user/alive/y"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"
TWICE = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
# What a dead server's requests are answered, and what becomes of the connection then.
DEAD = {
    "503": (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy", "keep"),
    "502": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbusy", "keep"),
    "reset": (b"", "reset"),
    "closed": (b"", "close"),
    "broken off": (HALF, "close"),
    "stalled": (HALF, "stall"),
    "silent": (b"", "stall"),
    "nonsense": (TWICE, "stall"),
}
QUICK = [how for how in DEAD if how not in ("silent", "stalled")]
SESSIONS = [MINE, b"/hub/api/user", b"/services/announcement/"]


def member(running: Edge, name: str = "a") -> Member:
    return running.service.edge.federation.by_name[name]


async def ends(running: Edge, request: bytes) -> None:
    """Asks, and reads whatever comes until the edge ends the connection or the answer is whole."""
    client = await running.client()
    await client.send(request)
    async with guard():
        head = await client.head()
        assert b"fedproxy_member" not in head.head
    await client.leave()


def dying(how: str, *targets: bytes) -> Script:
    """A member whose answers to these targets, or to all, are those of a dead server; others it serves."""

    async def script(conn: Conn) -> None:
        reply, then = DEAD[how]
        while True:
            request = await conn.request()
            if targets and request.target not in targets:
                conn.send(OK)
                continue
            conn.send(reply)
            await conn.flush()
            if then == "reset":
                conn.reset()
            elif then == "stall":
                await conn.stall()
            if then != "keep":
                return

    return script


@pytest.mark.parametrize("how", QUICK)
async def test_dead_server_of_one_visitor_opens_no_breaker_and_moves_nobody(how: str) -> None:
    members = {"a": dying(how, MINE), "b": named("b")}
    async with edge(members, timeouts=SHORT) as running:
        client = await running.client()
        for _ in range(25):
            await ends(running, get(MINE, cookie(b"a")))
            response = await client.ask(get(ALIVE, cookie(b"a")))
            assert (response.status, response.body, cookie_of(response)) == (200, b"a", None)
        assert member(running).breaker.state is BreakerState.CLOSED
        assert not running.members["b"].requests


@pytest.mark.parametrize("target", SESSIONS)
@pytest.mark.parametrize("how", DEAD)
async def test_what_a_session_answers_charges_no_member_and_goes_to_no_other(how: str, target: bytes) -> None:
    members = {"a": dying(how), "b": named("b")}
    async with edge(members, timeouts=SHORT, breaker=AT_ONCE) as running:
        await ends(running, get(target, cookie(b"a")))
        await running.logged()
        assert member(running).breaker.state is BreakerState.CLOSED
        assert not running.members["b"].requests


async def test_session_without_a_cookie_is_asked_of_one_member_which_the_cookie_then_names() -> None:
    members = {name: answer(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") for name in ("a", "b")}
    async with edge(members, breaker=AT_ONCE) as running:
        response = await running.ask(get(MINE))
        assert response.status == 503
        asked = [name for name, each in running.members.items() if each.requests]
        assert [(cookie_of(response) or (b"", False))[0].decode()] == asked
        assert member(running).breaker.closed and member(running, "b").breaker.closed


@pytest.mark.parametrize("why", ["ejected", "unhealthy", "full", "draining", "weightless"])
async def test_session_is_served_by_its_member_whatever_it_is_said_to_be(why: str) -> None:
    async with edge({"a": named("a"), "b": named("b")}) as running:
        its = member(running)
        now = running.service.edge.clock()
        match why:
            case "ejected":
                its.breaker.trip(now, 0.0)
            case "unhealthy":
                its.set_health(False, now)
            case "full":
                its.max_requests = 0
            case "draining":
                its.set_intent(Intent.DRAIN)
            case _:
                its.weight = 0.0
        for target in SESSIONS:
            response = await running.ask(get(target, cookie(b"a")))
            assert (response.status, response.body, cookie_of(response)) == (200, b"a", None)


async def test_session_of_a_member_in_maintenance_is_refused_in_words_and_keeps_its_cookie() -> None:
    async with edge({"a": named("a"), "b": named("b")}) as running:
        member(running).set_intent(Intent.MAINT)
        response = await running.ask(get(MINE, cookie(b"a"), b"Accept: text/html"))
        assert (response.status, cookie_of(response)) == (503, None)
        assert b"a, which your session runs on, is in maintenance" in response.body
        assert response.value("retry-after")
        assert not running.members["b"].requests
        upload = get(MINE, cookie(b"a"), b"Accept: text/html", b"Content-Length: 2", method=b"POST") + b"ok"
        response = await running.ask(upload)
        assert (response.status, cookie_of(response)) == (503, None)
        assert b"a, which your session runs on, is in maintenance" in response.body
        other = await running.ask(get(b"/", cookie(b"a")))
        assert (other.body, cookie_of(other)) == (b"b", (b"b", False))


async def test_upload_to_a_session_of_a_member_in_maintenance_is_refused_in_the_same_words() -> None:
    async with edge({"a": named("a"), "b": named("b")}) as running:
        member(running).set_intent(Intent.MAINT)
        response = await running.ask(
            get(MINE, cookie(b"a"), b"Content-Length: 1", method=b"PUT") + b"x", method="PUT"
        )
        assert (response.status, cookie_of(response)) == (503, None)
        assert b"a, which your session runs on, is in maintenance" in response.body
        assert not running.members["b"].requests


async def test_session_of_a_member_that_cannot_be_reached_is_refused_and_counts_against_it() -> None:
    with refusing() as url:
        async with edge({"a": url, "b": named("b")}, breaker=AT_ONCE) as running:
            response = await running.ask(get(MINE, cookie(b"a"), b"Accept: text/html"))
            assert (response.status, cookie_of(response)) == (503, None)
            assert b"a, which your session runs on, cannot be reached" in response.body
            assert response.value("retry-after")
            assert not member(running).breaker.closed
            assert not running.members["b"].requests
            again = await running.ask(get(MINE, cookie(b"a")))
            assert (again.status, cookie_of(again)) == (503, None)


async def test_session_of_nobody_s_goes_on_to_a_member_that_can_be_reached() -> None:
    with refusing() as url:
        async with edge({"a": url, "b": url, "c": named("c")}, retry={"attempts": 3}) as running:
            response = await running.ask(get(MINE))
            assert (response.status, response.body, cookie_of(response)) == (200, b"c", (b"c", False))


async def test_session_is_no_trial_of_a_half_open_breaker() -> None:
    async with edge({"a": dying("503"), "b": named("b")}, breaker={"open": "5s"}) as running:
        its = member(running)
        its.breaker.trip(running.service.edge.clock() - 6, 0.0)
        assert (await running.ask(get(MINE, cookie(b"a")))).status == 503
        assert its.breaker.state is BreakerState.OPEN
        # Without a cookie it may become one, and gives its place back.
        member(running, "b").set_intent(Intent.MAINT)
        assert (await running.ask(get(MINE))).status == 503
        assert (its.breaker.state, its.breaker.trials) == (BreakerState.HALF_OPEN, 0)


async def test_session_by_host_stays_with_the_host_s_member_though_it_is_ejected() -> None:
    settings = {"b": {"hosts": ["b.test"]}}
    async with edge({"a": named("a"), "b": named("b")}, settings=settings) as running:
        member(running, "b").breaker.trip(running.service.edge.clock(), 0.0)
        response = await running.ask(get(MINE, cookie(b"a"), host=b"b.test"))
        assert (response.status, response.body, cookie_of(response)) == (200, b"b", None)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", b""])
async def test_websocket_to_a_dead_kernel_opens_no_breaker(reply: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(reply)

    upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
    async with edge({"a": script, "b": named("b")}, breaker=AT_ONCE) as running:
        response = await running.ask(get(b"/user/mine/api/kernels/1/channels", cookie(b"a"), *upgrade))
        assert (response.status, cookie_of(response)) == (503 if reply else 502, None)
        assert member(running).breaker.closed
        assert not running.members["b"].requests


async def test_stale_connection_of_a_session_is_made_good_by_its_own_member_although_ejected() -> None:
    async def once(conn: Conn) -> None:
        await conn.request()
        conn.send(OK)
        await asyncio.sleep(0)
        if len(conn.member.connections) == 1:
            await conn.head()
            return
        await conn.stall()

    async with edge({"a": once, "b": named("b")}) as running:
        client = await running.client()
        await client.ask(get(MINE, cookie(b"a")))
        member(running).breaker.trip(running.service.edge.clock(), 0.0)
        response = await client.ask(get(MINE, cookie(b"a")))
        assert (response.status, response.body) == (200, b"a")
        await until(lambda: len(running.members["a"].connections) == 2, "a second connection")
