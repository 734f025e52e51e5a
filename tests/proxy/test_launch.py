"""A launch that one member cannot serve is served by another, and what is made of how launches end.

The rig asserts after every test that no request, launch, connection or task is left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Member
from fedproxy.proxy.filters.launch import LaunchFilter
from tests.rig import Conn, Edge, Ended, Message, RawClient, Script, answer, edge, guard, refusing, until
from tests.rig.launches import (
    BUILT,
    CACHED,
    CRASH,
    EVENTS,
    HEAD,
    KEEPALIVE,
    LAST,
    LAUNCH,
    LAUNCHING,
    PATIENT,
    PIN,
    QUOTA,
    READY,
    ask,
    chunk,
    event,
    says,
)

KEY = b"/build/gh/org/repo"


EMBEDDED = ask(EVENTS)  # a page of somebody else's asks: no cookie ever comes
PAGE = ask(PIN, target=b"/v2/gh/org/repo/HEAD")


RATE = event("failed", status_code=429, message="Rate limit exceeded. Try again in 3600 seconds.\n")
NO_REF = event("failed", message="Could not resolve ref for gh:org/repo/HEAD. Double check your URL.\n")
WAITING = event("waiting", message="Waiting for build to start...\n")


def breaks_off(*events: bytes, reset: bool = False) -> Script:
    """A member whose connection is lost after these."""

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, *map(chunk, events))
        await conn.flush()
        if reset:
            await until(lambda: conn.member.has(1), "the request")
            conn.reset()

    return script


def streams(*events: bytes) -> bytes:
    """The body that a visitor is sent."""
    return b"".join(events)


@asynccontextmanager
async def launched(members: Mapping[str, Script | str], **overrides: Any) -> AsyncIterator[Edge]:
    async with edge(members, **{**PATIENT, **overrides}) as running:
        yield running


def of(running: Edge, name: str) -> Member:
    return running.service.edge.federation.by_name[name]


def ends(running: Edge) -> dict[str, dict[str, int]]:
    """How launches ended, by member."""
    members = running.service.edge.federation.members
    return {m.name: {str(k): n for k, n in m.counts.launches.items() if n} for m in members}


async def last(running: Edge, count: int = 1) -> dict[str, Any]:
    return (await running.logged(count))[-1]


def moves(running: Edge) -> dict[tuple[str, str], int]:
    members = running.service.edge.federation.members
    return {(m.name, to): n for m in members for to, n in m.counts.failovers.items()}


# Another member


async def closes_at_once(conn: Conn) -> None:
    await conn.request()


def status(line: bytes, body: bytes = b"<h1>no</h1>", **fields: str) -> Script:
    lines = [b"HTTP/1.1 " + line, b"Content-Type: text/html", b"Content-Length: %d" % len(body)]
    return answer(b"\r\n".join((*lines, b"", body)))


CANNOT = {
    "quota": says(QUOTA),
    "quota, and the stream stays open": says(QUOTA, ends=False),
    "quota after a comment": says(KEEPALIVE, QUOTA),
    "quota after the image was found": says(BUILT, QUOTA),
    "error of the member": says(CRASH),
    "status 503": status(b"503 Service Unavailable"),
    "status 500": status(b"500 Internal Server Error"),
    "status 429": status(b"429 Too Many Requests"),
    "status 502 of a stream": says(QUOTA, head=HEAD.replace(b"200 OK", b"502 Bad Gateway"), ends=False),
    "no head": closes_at_once,
    "reset before an event": breaks_off(KEEPALIVE, reset=True),
    "closed before an event": breaks_off(KEEPALIVE),
    "closed after the image was found": breaks_off(BUILT),
    "end without an event": says(),
    "end after a comment": says(KEEPALIVE),
}


@pytest.mark.parametrize("first", CANNOT.values(), ids=CANNOT)
async def test_launch_that_one_member_cannot_serve_is_served_by_another(first: Script) -> None:
    async with launched({"a": first, "b": says(*CACHED)}) as running:
        response = await running.ask(LAUNCH)
        assert (response.status, response.body) == (200, streams(*CACHED))
        assert (response.value("set-cookie") or b"").startswith(b"fedproxy_member=b!")
        line = await last(running)
        assert (line["member"], line["attempts"], line["affinity"]) == ("b", 2, "moved")
        assert (line["launch"], line["status"], line["termination"]) == ("ready", 200, "--")
        assert ends(running)["b"] == {"ready": 1}
        assert sum(ends(running)["a"].values()) == 1
        assert moves(running) == {("a", "b"): 1}
        assert any(of(running, "b").counts.launch_duration.counts)


async def test_launch_moves_as_often_as_attempts_allow() -> None:
    said: list[Sequence[bytes]] = [[QUOTA], [BUILT, CRASH], CACHED]

    async def in_turn(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, *map(chunk, said.pop(0)), LAST)

    async with launched({"a": in_turn, "b": in_turn, "c": in_turn}) as running:
        assert (await running.ask(LAUNCH)).body == streams(*CACHED)
        line = await last(running)
        assert (line["launch"], line["attempts"]) == ("ready", 3)
        (first, second), (third, fourth) = moves(running)
        assert (first, second, fourth) == ("a", third, line["member"])


async def test_no_more_attempts_than_are_allowed() -> None:
    quota = {name: says(QUOTA) for name in "abcd"}
    async with launched(quota, retry={"attempts": 2, "budget": 1, "floor": 100}) as running:
        assert (await running.ask(LAUNCH)).body == QUOTA
        assert (await last(running))["attempts"] == 2
        assert sum(len(member.requests) for member in running.members.values()) == 2


async def test_budget_of_retries_bounds_failovers() -> None:
    async with launched(
        {"a": says(QUOTA), "b": says(*CACHED)}, retry={"attempts": 3, "budget": 0, "floor": 0.1}
    ) as running:
        bodies = [(await running.ask(LAUNCH)).body for _ in range(3)]
        assert bodies == [streams(*CACHED), QUOTA, QUOTA]
        assert running.service.edge.counts.budget_exhausted == 2


REPEATS = {
    "no such ref": NO_REF,
    "rate limit of the visitor's address": RATE,
    "token": event("failed", status_code=403, message="Invalid build token\n"),
    "provider": event("failed", message="No provider found for prefix nope\n"),
    "banned": event("failed", message="Sorry, org/repo/HEAD is not allowed to launch. Please ask.\n"),
    "not understood": event("failed", status_code=400, message="Bad Request\n"),
}


@pytest.mark.parametrize("failure", REPEATS.values(), ids=REPEATS)
async def test_failure_that_would_repeat_is_passed_on_at_once(failure: bytes) -> None:
    async with launched({"a": says(KEEPALIVE, failure, ends=False), "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
            assert await client.chunk() + await client.chunk() == KEEPALIVE + failure
        await client.leave()
        line = await last(running)
        assert (line["member"], line["attempts"], line["launch"]) == ("a", 1, "failed")
        assert not running.members["b"].requests
        assert of(running, "a").failed_launches == 0


async def test_rate_limit_of_the_visitor_is_passed_on_as_a_page_too() -> None:
    limited = status(b"429 Too Many Requests", b"Rate limit exceeded. Try again in 3600 seconds.")
    async with launched({"a": limited, "b": says(*CACHED)}) as running:
        response = await running.ask(LAUNCH)
        assert (response.status, len(running.members["b"].requests)) == (429, 0)
        assert of(running, "a").counts.retries == {}


async def test_operators_patterns_decide_too() -> None:
    disk = event("failed", message="No space left\n")
    night = event("failed", status_code=503, message="Closed at night\n")
    patterns = {"elsewhere": ["[Nn]o space"], "repeats": ["at night$"]}
    async with launched({"a": says(disk), "b": says(*CACHED)}, launch=patterns) as running:
        assert (await running.ask(LAUNCH)).body == streams(*CACHED)
    async with launched({"a": says(night), "b": says(*CACHED)}, launch=patterns) as running:
        assert (await running.ask(LAUNCH)).body == night


@pytest.mark.parametrize("only", [QUOTA, CRASH])
async def test_word_of_the_last_member_is_passed_on_when_nobody_else_is_there(only: bytes) -> None:
    async with launched({"a": says(KEEPALIVE, only)}) as running:
        response = await running.ask(LAUNCH)
        assert response.body == KEEPALIVE + only
        line = await last(running)
        assert (line["member"], line["launch"], line["termination"]) == ("a", "failed", "--")


async def test_word_of_the_last_one_asked_is_passed_on_when_nobody_can() -> None:
    async with launched({"a": says(QUOTA), "b": says(CRASH)}) as running:
        assert (await running.ask(LAUNCH)).body == CRASH
        assert ends(running) == {"a": {"failed": 1}, "b": {"failed": 1}}


UNTIL_CLOSE = HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")


async def says_until_close(conn: Conn) -> None:
    await conn.request()
    conn.send(UNTIL_CLOSE, KEEPALIVE, QUOTA)


async def says_with_length(conn: Conn) -> None:
    await conn.request()
    conn.send(UNTIL_CLOSE[:-2] + b"Content-Length: %d\r\n\r\n" % len(QUOTA), QUOTA)
    await conn.stall()


WORDS = {
    "chunked": (says(QUOTA, ends=False), QUOTA, 200),
    "until close": (says_until_close, KEEPALIVE + QUOTA, 200),
    "with length": (says_with_length, QUOTA, 200),
    "no stream": (status(b"503 Service Unavailable"), b"<h1>no</h1>", 503),
}


@pytest.mark.parametrize(("first", "body", "code"), WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_word_of_a_member_is_kept_for_when_the_next_cannot_be_reached(
    first: Script, body: bytes, code: int, version: bytes
) -> None:
    with refusing() as nobody:
        async with launched({"a": first, "b": nobody}) as running:
            response = await running.ask(ask(EVENTS, PIN, version=version))
            assert (response.status, response.body) == (code, body)
            line = await last(running)
            assert (line["member"], line["attempts"], line["launch"]) == ("a", 2, "failed")
            assert (line["status"], line["termination"]) == (code, "--")


async def test_connection_is_kept_after_a_word_that_was_kept() -> None:
    with refusing() as nobody:
        async with launched({"a": says(QUOTA, ends=False), "b": nobody}) as running:
            client = await running.client()
            for _ in range(2):
                assert (await client.ask(LAUNCH)).body == QUOTA


async def test_edges_own_word_is_an_event_when_no_member_said_anything() -> None:
    with refusing() as nobody, refusing() as nor:
        async with launched({"a": nobody, "b": nor}) as running:
            response = await running.ask(LAUNCH)
            assert response.status == 200
            said = json.loads(response.body.removeprefix(b"data: "))
            assert (said["phase"], said["status_code"]) == ("failed", 502)
            assert "try again" in said["message"]
            assert (await last(running))["launch"] == "failed"


async def test_nobody_can_serve() -> None:
    async with launched({"a": says(*CACHED)}) as running:
        of(running, "a").set_health(False, 0.0)
        response = await running.ask(LAUNCH)
        said = json.loads(response.body.removeprefix(b"data: "))
        assert (response.status, said["phase"], said["status_code"]) == (200, "failed", 503)
        assert "try again in" in said["message"]
        line = await last(running)
        assert (line["launch"], line["member"], line["status"]) == ("failed", None, 503)


async def test_launch_for_one_member_only_is_not_held_and_not_moved() -> None:
    routes = [{"path": "/build/*", "to": "a"}]
    async with launched({"a": says(QUOTA), "b": says(*CACHED)}, routes=routes) as running:
        assert (await running.ask(LAUNCH)).body == QUOTA
        assert (await last(running))["launch"] == "failed"


async def test_connection_that_the_member_closed_meanwhile_is_replaced() -> None:
    async def once(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, *map(chunk, CACHED), LAST)
        # A second request finds the connection closed.
        await conn.request()
        conn.member.requests.pop()

    async with launched({"a": once, "b": says(QUOTA)}) as running:
        for _ in range(2):
            assert (await running.ask(LAUNCH)).body == streams(*CACHED)
        assert (await last(running, 2))["attempts"] == 2
        assert ends(running) == {"a": {"ready": 2}, "b": {}}
        assert moves(running) == {}


# Holding


def launch_of(running: Edge) -> LaunchFilter | None:
    """The launch under way."""
    for connection in running.connections:
        exchange = getattr(connection, "exchange", None)
        for found in (exchange and exchange.filters) or ():
            if isinstance(found, LaunchFilter):
                return found
    return None


def waits(running: Edge) -> bool:
    launch = launch_of(running)
    return launch is not None and launch.waiting is not None


async def test_nothing_is_passed_on_before_an_event_decides() -> None:
    go = asyncio.Event()

    async def slow(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(KEEPALIVE))
        await go.wait()
        conn.send(chunk(WAITING))
        await conn.stall()

    async with launched({"a": slow, "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: waits(running), "a response that waits")
        assert client.received == b""
        go.set()
        async with guard():
            assert (await client.head()).status == 200
            assert [await client.chunk(), await client.chunk()] == [KEEPALIVE, WAITING]
        await client.leave()
        assert (await last(running))["launch"] == "abandoned"


async def test_what_waits_goes_on_when_the_hold_runs_out() -> None:
    go = asyncio.Event()

    async def slow(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(KEEPALIVE))
        await go.wait()
        conn.send(chunk(QUOTA), LAST)

    async with launched({"a": slow, "b": says(*CACHED)}, launch={"hold": "50ms"}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            response = await client.head()
            assert await client.chunk() == KEEPALIVE
            go.set()
            await client.body_of(response)
        assert response.body == QUOTA
        assert (await last(running))["member"] == "a"


async def test_image_that_was_found_waits_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.proxy.filters.launch._FOUND", 0.05)
    async with launched({"a": says(BUILT, ends=False), "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
            assert await client.chunk() == BUILT


async def test_more_than_is_held_is_passed_on() -> None:
    comment = b":" + b"x" * 8_000 + b"\n\n"
    async with launched({"a": says(*[comment] * 10, ends=False), "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
            assert [await client.chunk() for _ in range(10)] == [comment] * 10


async def test_visitor_who_leaves_meanwhile_ends_the_attempt_and_blames_nobody() -> None:
    async with launched({"a": says(KEEPALIVE, ends=False), "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: waits(running), "a response that waits")
        await client.leave()
        await until(lambda: not running.members["a"].open, "the member's connection closed")
        line = await last(running)
        assert (line["launch"], line["termination"], line["member"]) == ("abandoned", "CH", "a")
        assert ends(running) == {"a": {"abandoned": 1}, "b": {}}
        assert not running.members["b"].requests and not running.errors("a")


async def test_time_out_of_a_response_does_not_run_while_it_waits() -> None:
    short = {"response_head": "100ms", "response_idle": "100ms"}
    async with launched({"a": says(KEEPALIVE, ends=False)}, timeouts=short) as running:
        client = await running.client()
        await client.send(LAUNCH)
        # With one member nobody could take it, but it is balanced, and waits all the same.
        await until(lambda: waits(running), "a response that waits")
        launch = launch_of(running)
        assert launch is not None
        launch.exchange.sweep(running.service.edge.clock() + 1000)
        assert waits(running)


@pytest.mark.parametrize("launch", [{"failover": False}, {"hold": 0}])
async def test_without_failover_or_hold_everything_is_passed_on_and_read_all_the_same(
    launch: dict[str, Any],
) -> None:
    async with launched({"a": says(KEEPALIVE, QUOTA), "b": says(*CACHED)}, launch=launch) as running:
        assert (await running.ask(LAUNCH)).body == KEEPALIVE + QUOTA
        assert (await last(running))["launch"] == "failed"
        assert ends(running) == {"a": {"failed": 1}, "b": {}}


async def test_without_failover_a_status_is_passed_on() -> None:
    bad = status(b"503 Service Unavailable")
    async with launched({"a": bad, "b": says(*CACHED)}, launch={"failover": False}) as running:
        assert (await running.ask(LAUNCH)).status == 503
        assert ends(running)["a"] == {"failed": 1}


# How launches end


async def test_stream_that_ends_without_an_outcome_is_lost() -> None:
    async with launched({"a": says(WAITING), "b": says(*CACHED)}) as running:
        assert (await running.ask(LAUNCH)).body == WAITING
        assert (await last(running))["launch"] == "lost"
        assert of(running, "a").failed_launches == 1


async def test_launch_that_asks_for_an_upgrade_is_a_launch_without_it() -> None:
    request = ask(EVENTS, PIN, b"Connection: Upgrade", b"Upgrade: other")
    async with launched({"a": says(*CACHED)}) as running:
        assert (await running.ask(request)).body == streams(*CACHED)
        assert ends(running) == {"a": {"ready": 1}}
        (sent,) = running.member.requests
        assert sent.value("upgrade") is None


async def test_stream_that_ends_with_its_connection_while_it_waits_is_passed_on_whole() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", BUILT)

    async with launched({"a": script}) as running:
        client = await running.client()
        response = await client.ask(LAUNCH)
        assert (response.framing, response.body) == ("chunked", BUILT)
        assert (await client.ask(LAUNCH)).body == BUILT


async def test_stream_that_is_cut_is_lost_and_does_not_look_complete() -> None:
    async with launched({"a": breaks_off(WAITING, event("building")[:9]), "b": says(*CACHED)}) as running:
        with pytest.raises(Ended):
            await running.ask(LAUNCH)
        line = await last(running)
        assert (line["launch"], line["termination"]) == ("lost", "SD")
        assert of(running, "a").failed_launches == 1


async def test_visitor_who_leaves_after_ready_was_served() -> None:
    async with launched({"a": says(*CACHED, ends=False)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
            while await client.chunk() != READY:
                pass
        await client.leave()
        line = await last(running)
        assert (line["launch"], line["termination"]) == ("ready", "CD")
        phases = of(running, "a").counts.launch_phases
        assert set(phases) == {"built", "launching"}


async def test_secrets_of_ready_are_in_no_log() -> None:
    async with launched({"a": says(*CACHED)}) as running:
        await running.ask(LAUNCH)
        assert "s3cret" not in json.dumps(await last(running))


async def test_stream_that_ends_with_its_connection_is_read_too() -> None:
    go = asyncio.Event()

    async def in_two(conn: Conn) -> None:
        await conn.request()
        conn.send(UNTIL_CLOSE, BUILT[:9])
        await go.wait()
        conn.send(BUILT[9:], LAUNCHING, READY)

    async with launched({"a": in_two, "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: waits(running), "a response that waits")
        go.set()
        response = await client.response()
        assert (response.framing, response.body) == ("chunked", streams(*CACHED))
        assert (await last(running))["launch"] == "ready"


async def test_encoded_stream_is_passed_on_unread() -> None:
    head = HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    async with launched({"a": says(QUOTA, head=head), "b": says(*CACHED)}) as running:
        assert (await running.ask(LAUNCH)).body == QUOTA
        assert (await last(running))["launch"] == "unknown"


async def test_response_that_is_no_stream_is_unknown_or_failed() -> None:
    async with launched({"a": answer(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")}) as running:
        assert (await running.ask(LAUNCH)).status == 302
        assert (await last(running))["launch"] == "unknown"
    async with launched({"a": status(b"404 Not Found"), "b": says(*CACHED)}) as running:
        assert (await running.ask(LAUNCH)).status == 404
        assert (await last(running))["launch"] == "failed"


@pytest.mark.parametrize(
    "request_",
    [
        ask(b"Accept: */*", PIN),
        ask(b"Accept: text/event-stream, */*", PIN),
        ask(b"X: y", PIN),
        ask(EVENTS, PIN, method=b"HEAD"),
        ask(EVENTS, PIN, target=b"/build/gh"),
        ask(EVENTS, PIN, target=b"/api/events"),
    ],
)
async def test_what_is_no_launch_is_neither_read_nor_counted(request_: bytes) -> None:
    async with launched({"a": says(QUOTA), "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(request_)
        response = await client.response("HEAD" if request_.startswith(b"HEAD") else "GET")
        assert response.body in (QUOTA, b"")
        assert (await last(running))["launch"] is None
        assert ends(running) == {"a": {}, "b": {}}


MEANINGLESS = {
    "no JSON": b"data: hello\n\n",
    "no object": b"data: []\n\n",
    "no phase": event(message="hello"),
    "a phase never seen": event("levitating"),
    "a failure that says nothing": event("failed"),
    "bytes that are no text": b"data: \xff\xfe\n\n",
}


@pytest.mark.parametrize("data", MEANINGLESS.values(), ids=MEANINGLESS)
async def test_event_that_means_nothing_is_passed_on_as_it_is(data: bytes) -> None:
    async with launched({"a": says(data), "b": says(*CACHED)}) as running:
        assert (await running.ask(LAUNCH)).body == data
        assert (await last(running))["launch"] == "unknown"


async def test_megabyte_without_a_line_end_is_passed_on() -> None:
    block = b"data: " + b"x" * (1 << 16)
    async with launched({"a": says(*[block] * 16), "b": says(*CACHED)}) as running:
        assert (await running.ask(LAUNCH)).body == block * 16
        assert (await last(running))["launch"] in ("lost", "unknown")


# The breaker


async def test_member_that_fails_its_launches_opens_although_every_status_was_200() -> None:
    async def broken(conn: Conn) -> None:
        while True:
            request = await conn.request()
            if request.target.startswith(b"/build/"):
                conn.send(HEAD, chunk(LAUNCHING), chunk(CRASH), LAST)
            else:
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with launched({"a": broken, "b": says(*CACHED), "c": says(*CACHED)}) as running:
        for _ in range(5):
            assert of(running, "a").breaker.closed
            assert (await running.ask(PAGE)).status == 200
            assert (await running.ask(LAUNCH)).body == LAUNCHING + CRASH
        assert of(running, "a").breaker.state is BreakerState.OPEN
        assert (await running.ask(LAUNCH)).body == streams(*CACHED)


@pytest.mark.parametrize("failure", [NO_REF, QUOTA, event("building") + event("failed", message="Error\n")])
async def test_failures_that_are_not_the_members_fault_do_not_open(failure: bytes) -> None:
    async with launched({"a": says(failure)}) as running:
        for _ in range(6):
            assert (await running.ask(LAUNCH)).body == failure
        assert of(running, "a").breaker.closed


async def test_launch_that_is_a_trial_is_not_passed_by_its_status() -> None:
    go = asyncio.Event()
    sent: list[bytes] = [LAUNCHING, READY]

    async def slow(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(sent[0]))
        await go.wait()
        conn.send(chunk(sent[1]))
        await conn.stall()

    breaker = {"open": "10ms", "open_max": "10ms"}
    async with launched({"a": slow, "b": says(*CACHED)}, breaker=breaker) as running:
        member = of(running, "a")
        for second, state in ((READY, BreakerState.CLOSED), (CRASH, BreakerState.OPEN)):
            sent[1] = second
            go.clear()
            member.breaker.trip(running.service.edge.clock(), 0.0)
            await until(lambda: member.breaker.admits(running.service.edge.clock()), "the open time over")
            client = await running.client()
            await client.send(LAUNCH)
            async with guard():
                await client.head()
                assert await client.chunk() == LAUNCHING
                assert member.breaker.state is BreakerState.HALF_OPEN
                go.set()
                assert await client.chunk() == second
            assert member.breaker.state is state
            await client.leave()


async def test_build_under_way_passes_a_trial() -> None:
    async with launched({"a": says(WAITING, ends=False)}, breaker={"open": "10ms"}) as running:
        member = of(running, "a")
        member.breaker.trip(running.service.edge.clock(), 0.0)
        await until(lambda: member.breaker.admits(running.service.edge.clock()), "the open time over")
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
        assert member.breaker.closed


# As many as a member may


async def test_launches_beyond_what_a_member_takes_go_to_the_next() -> None:
    settings = {"a": {"max_launches": 1}}
    async with launched({"a": says(WAITING, ends=False), "b": says(*CACHED)}, settings=settings) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
        assert of(running, "a").launches == 1
        assert (await running.ask(LAUNCH)).body == streams(*CACHED)
        await client.leave()
        await until(lambda: of(running, "a").launches == 0, "the launch over")


async def test_launches_beyond_what_all_take_are_told_so() -> None:
    async with launched({"a": says(WAITING, ends=False)}, settings={"a": {"max_launches": 1}}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
        response = await running.ask(LAUNCH)
        assert json.loads(response.body.removeprefix(b"data: "))["status_code"] == 503


# Joining a launch that moved


def repository(running: Edge, name: str) -> bytes:
    """The target of a launch whose key leads to that member."""
    federation = running.service.edge.federation
    for number in range(1000):
        target = b"/build/gh/org/repo-%d" % number
        chosen = federation.choose(target, (), 0.0, True)
        if chosen is not None and chosen.name == name:
            return target + b"/HEAD"
    raise AssertionError(name)


async def full_once(conn: Conn) -> None:
    while True:
        await conn.request()
        conn.send(HEAD, *map(chunk, [QUOTA] if len(conn.member.requests) == 1 else CACHED), LAST)


async def test_reconnect_without_a_cookie_reaches_the_member_that_took_it() -> None:
    async with launched({"a": full_once, "b": says(*CACHED)}) as running:
        target = repository(running, "a")
        told: list[tuple[bytes, str]] = []
        running.service.edge.on_moved = lambda key, name: told.append((key, name))
        for _ in range(3):
            await running.ask(ask(EVENTS, target=target))
        lines = await running.logged(3)
        assert [line["member"] for line in lines] == ["b", "b", "b"]
        assert [line["affinity"] for line in lines] == ["moved", "key", "key"]
        assert told == [(target.removesuffix(b"/HEAD"), "b")]
        assert len(running.members["a"].requests) == 1
        # Who has a cookie stays where it leads, and another repository where its key leads.
        await running.ask(ask(EVENTS, PIN, target=target))
        assert (await last(running, 4))["member"] == "a"


async def test_key_that_moved_leads_nowhere_when_that_member_takes_nobody() -> None:
    async with launched({"a": full_once, "b": says(*CACHED)}) as running:
        target = repository(running, "a")
        request = ask(EVENTS, target=target)
        await running.ask(request)
        of(running, "b").set_health(False, 0.0)
        await running.ask(request)
        assert (await last(running, 2))["member"] == "a"


async def test_what_another_worker_moved_is_known_here() -> None:
    async with launched({"a": says(*CACHED), "b": says(*CACHED)}) as running:
        target = repository(running, "a")
        here = running.service.edge
        here.moved.note(target.removesuffix(b"/HEAD"), "b", here.clock())
        await running.ask(ask(EVENTS, target=target))
        await running.ask(ask(b"Accept: */*", target=target))
        lines = await running.logged(2)
        assert [line["member"] for line in lines] == ["b", "a"]
        here.moved.note(target.removesuffix(b"/HEAD"), "gone", here.clock())
        await running.ask(ask(EVENTS, target=target))
        assert (await last(running, 3))["member"] == "a"


async def test_launch_that_moved_is_noted_again_while_it_runs() -> None:
    async with launched({"a": says(QUOTA), "b": says(WAITING, ends=False)}) as running:
        told: list[str] = []
        running.service.edge.on_moved = lambda _, name: told.append(name)
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
        launch = launch_of(running)
        assert launch is not None and told == ["b"]
        now = running.service.edge.clock()
        launch.exchange.sweep(now + 30)
        assert told == ["b"]
        launch.exchange.sweep(now + 90)
        assert told == ["b", "b"]


# The stream itself


def recorded() -> list[bytes]:
    """736 events, 118,442 bytes, lines to 22,581: as a full build was recorded."""
    sizes = [98 if number % 3 else 110 for number in range(735)] + [22_581]
    left = 118_442 - sum(size + 2 for size in sizes)
    sizes = [size + left // 735 + (number < left % 735) for number, size in enumerate(sizes[:-1])] + [22_581]
    phases = ["waiting"] + ["building"] * 720 + ["pushing"] * 8 + ["built"] + ["launching"] * 4 + ["ready"]
    phases.insert(400, "building")
    events = []
    for phase, size in zip(phases, [*sizes[:400], 22_581, *sizes[400:-1]], strict=True):
        bare = event(phase, message="")
        events.append(event(phase, message="x" * (size + 2 - len(bare))))
    return events


def test_recorded_stream_has_the_recorded_statistics() -> None:
    events = recorded()
    assert (len(events), sum(map(len, events))) == (736, 118_442)
    assert max(len(data) - 2 for data in events) == 22_581


@pytest.mark.parametrize("size", [1, 7, 97, 1000, 8192, 1 << 20])
async def test_recorded_stream_is_the_same_after_the_edge_however_it_is_split(size: int) -> None:
    body = b"".join(map(chunk, recorded())) + LAST

    async def in_pieces(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD)
        for at in range(0, len(body), size):
            conn.send(body[at : at + size])
            if size > 90 or at % 64 == 0:
                await conn.flush()
                await asyncio.sleep(0)
        await conn.stall()

    async with launched({"a": in_pieces, "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        await until(lambda: client.received.endswith(LAST), "the whole stream")
        head, _, rest = client.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream")
        assert rest == body
        line = await last(running)
        assert (line["launch"], line["bytes_out"]) == ("ready", len(body))


async def next_chunk(client: RawClient) -> bytes:
    async with guard():
        return await client.chunk()


async def test_every_event_leaves_before_the_next_arrives() -> None:
    events = recorded()[:60] + recorded()[-8:]
    seen = asyncio.Semaphore(0)

    async def in_step(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD)
        for data in events:
            conn.send(chunk(data))
            await seen.acquire()
        conn.send(LAST)
        await conn.stall()

    async with launched({"a": in_step, "b": says(*CACHED)}) as running:
        client = await running.client()
        await client.send(LAUNCH)
        response: Message | None = None
        for data in events:
            if response is None:
                async with guard():
                    response = await client.head()
            assert await next_chunk(client) == data
            seen.release()
        assert (await last(running))["launch"] == "ready"


async def test_stalled_visitor_costs_a_bounded_amount() -> None:
    block = event("building", message="x" * 60_000)

    async def flood(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD)
        for _ in range(500):
            conn.send(chunk(block))
            await conn.flush()
        conn.send(chunk(READY), LAST)
        await conn.stall()

    async with launched({"a": flood, "b": says(*CACHED)}) as running:
        client = await running.client(receive_buffer=4096)
        await client.send(LAUNCH)
        await until(lambda: (found := launch_of(running)) is not None and found.exchange.full, "no more room")
        assert running.buffered() < 2 << 20
        async with guard():
            response = await client.response()
        assert response.body == block * 500 + READY
