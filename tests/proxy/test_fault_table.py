"""The fault table, row by row: what the visitor gets, what the log says, and whose breaker hears of it.

One failure opens a breaker here, so that what was charged can be seen. The rig asserts after every test that
the edge is as idle as it was at its start. How each fault comes about, and what is sent again, is tested in
`test_faults`; uploads that are answered early in `test_bodies`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent, Member
from tests.rig import Conn, Edge, Ended, RawClient, Script, answer, blackhole, edge, guard, refusing, until
from tests.rig.faults import (
    AFTER_SENDING,
    AT_ONCE,
    GET,
    HALF,
    PIN,
    POST,
    SHORT,
    UNKNOWN,
    closes_before_the_head,
    from_member,
    never_answers,
    resets_before_the_head,
)

LARGE = b"POST / HTTP/1.1\r\nHost: hub.test\r\n" + PIN + b"Content-Length: 5000000\r\n\r\na"


async def resets_in_the_body(conn: Conn) -> None:
    await conn.request()
    conn.send(HALF)
    await conn.flush()
    conn.reset()


async def closes_in_the_body(conn: Conn) -> None:
    await conn.request()
    conn.send(HALF)


async def stalls_in_the_body(conn: Conn) -> None:
    await conn.request()
    conn.send(HALF)
    await conn.stall()


async def refuses_an_upload(conn: Conn) -> None:
    await conn.head()
    conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch")
    await conn.stall()


def answers(status: int) -> Script:
    return answer(b"HTTP/1.1 %d Whatever\r\nContent-Length: 4\r\n\r\nword" % status)


Where = Callable[[], AbstractContextManager[Script | str]]


@dataclass(frozen=True)
class Row:
    """`where` gives a script or a URL; `errors`: what the member is charged with in the metrics."""

    name: str
    where: Where
    status: int
    termination: str
    errors: dict[str, int] = field(default_factory=dict)
    charged: bool = True
    request: bytes = GET
    breaker: dict[str, Any] = field(default_factory=dict)


def given(where: Script | str) -> Where:
    return lambda: nullcontext(where)


ROWS = [
    Row("refused", refusing, 502, "SC", {"connect": 1}),
    Row("SYN blackhole", blackhole, 504, "sC", {"connect_timeout": 1}),
    Row("DNS failure", given(UNKNOWN), 502, "SC", {"dns": 1}),
    *(
        Row(script.__name__, given(script), status, termination, {reason: 1})
        for script, status, termination, reason in AFTER_SENDING
    ),
    Row("reset mid-body", given(resets_in_the_body), 200, "SD", {"truncated": 1}),
    Row("truncated", given(closes_in_the_body), 200, "SD", {"truncated": 1}),
    Row("stall mid-body", given(stalls_in_the_body), 200, "sD", {"stalled": 1}),
    Row("early 413", given(refuses_an_upload), 413, "--", charged=False, request=LARGE),
    *(Row(f"answer {status}", given(answers(status)), status, "--") for status in (502, 503, 504)),
    *(
        Row(f"answer {status}", given(answers(status)), status, "--", charged=False)
        for status in (200, 302, 400, 401, 403, 404, 408, 429, 500, 501)
    ),
    Row("answer 500, counted", given(answers(500)), 500, "--", breaker={"count_500": True}),
]
table = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
before_the_head = pytest.mark.parametrize("row", [row for row in ROWS if row.errors and row.status >= 500])


def member(running: Edge, name: str = "a") -> Member:
    return running.service.edge.federation.by_name[name]


def visits(running: Edge, name: str) -> int:
    """Requests of visitors that arrived whole; the probes ask for other paths."""
    return sum(request.target == b"/" for request in running.members[name].requests)


def transitions(running: Edge, name: str = "a") -> dict[str, int]:
    return {to: count for to, count in member(running, name).counts.transitions.items() if count}


async def outcome(client: RawClient) -> int:
    """Reads to the end of the response, whole or not, and gives its status."""
    async with guard():
        response = await client.head()
        try:
            await client.body_of(response)
        except Ended as ended:
            assert ended.partial == b"half"
    return response.status


@table
async def test_only_member(row: Row) -> None:
    with row.where() as where:
        async with edge({"a": where}, timeouts=SHORT, breaker={**AT_ONCE, **row.breaker}) as running:
            client = await running.client()
            await client.send(row.request)
            assert await outcome(client) == row.status
            (line,) = await running.logged()
            assert (line["status"], line["termination"]) == (row.status, row.termination)
            assert (line["member"], line["attempts"]) == ("a", 1)
            assert running.errors("a") == row.errors
            assert transitions(running) == ({"open": 1} if row.charged else {})
            assert member(running).counts.codes == {row.status: 1}


@before_the_head
async def test_other_member_serves_and_the_cookie_moves(row: Row) -> None:
    with row.where() as where:
        async with edge(
            {"a": where, "b": from_member(b"from b")}, timeouts=SHORT, breaker=AT_ONCE
        ) as running:
            response = await running.ask(GET)
            assert (response.status, response.body) == (200, b"from b")
            assert (response.value("set-cookie") or b"").startswith(b"fedproxy_member=b!")
            (line,) = await running.logged()
            assert (line["status"], line["termination"], line["attempts"]) == (200, "--", 2)
            assert (line["member"], line["affinity"]) == ("b", "moved")
            assert (running.errors("a"), running.errors("b")) == (row.errors, {})
            assert (transitions(running, "a"), transitions(running, "b")) == ({"open": 1}, {})
            assert member(running, "a").counts.retries == row.errors


async def series(running: Edge) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    host, port = running.service.admin_address
    async with aiohttp.ClientSession() as client, client.get(f"http://{host}:{port}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


async def test_connect_failures_and_answers_are_told_apart_in_the_metrics() -> None:
    with refusing() as url:
        async with edge({"a": url, "b": answers(503)}) as running:
            assert (await running.ask(POST)).status == 503
            found = await series(running)
    errors, requests = "fedproxy_upstream_errors_total", "fedproxy_requests_total"
    assert found[errors, frozenset({("member", "a"), ("reason", "connect")})] == 1
    assert found[requests, frozenset({("member", "b"), ("code", "503")})] == 1
    assert not [name for name, labels in found if name == errors and ("member", "b") in labels]


# The visitor


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("script", "status", "termination"), [(never_answers, 499, "CH"), (stalls_in_the_body, 200, "CD")]
)
async def test_visitor_who_leaves_charges_nobody(
    how: str, script: Script, status: int, termination: str
) -> None:
    async with edge(script, breaker=AT_ONCE) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: visits(running, "a"), "the request at the member")
        if status == 200:
            await until(lambda: b"half" in client.received, "half of the response")
        getattr(client, how)()
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (status, termination)
        assert (running.errors("a"), transitions(running)) == ({}, {})


@pytest.mark.parametrize(
    ("part", "status", "attempts"), [(GET[:20], 408, 0), (POST[:-2], 408, 1)], ids=["head", "body"]
)
async def test_slow_visitor_charges_nobody(part: bytes, status: int, attempts: int) -> None:
    slow = {"request_head": "200ms", "request_idle": "200ms"}
    async with edge(answer(), timeouts=slow, breaker=AT_ONCE) as running:
        assert (await running.ask(part)).status == status
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["attempts"]) == (status, "cR", attempts)
        assert (running.errors("a"), transitions(running)) == ({}, {})


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("request_", "status"), [(GET, 200), (POST, 502)], ids=["GET", "POST"])
async def test_stale_connection_charges_no_breaker(how: str, request_: bytes, status: int) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await conn.head()
        if conn is conn.member.connections[0]:
            getattr(conn, how)()

    async with edge(script, breaker=AT_ONCE) as running:
        client = await running.client()
        await client.ask(GET)
        assert (await client.ask(request_)).status == status
        assert transitions(running) == {}


# Everybody


async def test_all_members_ill_leaves_prime_to_serve() -> None:
    scripts = {"a": from_member(b"from a"), "b": from_member(b"from b"), "c": from_member(b"from c")}
    async with edge(scripts, settings={"b": {"prime": True}}) as running:
        for each in running.service.edge.federation.members:
            each.set_health(False, running.service.edge.clock())
        response = await running.ask(GET)
        assert (response.status, response.body) == (200, b"from b")
        (line,) = await running.logged()
        assert (line["termination"], line["member"], line["affinity"]) == ("--", "b", "moved")


@pytest.mark.parametrize("why", ["ill", "maint"])
async def test_all_members_unavailable_and_no_prime_is_503(why: str) -> None:
    async with edge({"a": answer(), "b": answer()}) as running:
        for each in running.service.edge.federation.members:
            if why == "ill":
                each.set_health(False, running.service.edge.clock())
            else:
                each.set_intent(Intent.MAINT)
        response = await running.ask(GET)
        assert response.status == 503
        assert int(response.value("retry-after") or 0) > 0
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (503, "PQ", None)
        assert running.service.edge.counts.rejected["no_member"] == 1


async def test_storm_of_retries_stays_within_its_budget() -> None:
    requests, budget = 200, 0.2
    scripts = dict.fromkeys("abc", closes_before_the_head)
    async with edge(
        scripts,
        breaker={"failures": 1_000_000, "minimum": 1_000_000},
        retry={"attempts": 3, "budget": budget, "floor": 0},
    ) as running:
        clients = [await running.client() for _ in range(20)]
        for _ in range(requests // len(clients)):
            asked = [client.ask(GET.replace(PIN, b"")) for client in clients]
            assert {response.status for response in await asyncio.gather(*asked)} == {502}
        lines = await running.logged(requests)
        attempts = sum(line["attempts"] for line in lines)
        assert attempts == sum(visits(running, name) for name in running.members)
        assert requests * 1.1 < attempts <= requests * (1 + budget)
        assert running.service.edge.counts.budget_exhausted > 0


# Time


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def test_flapping_member_is_left_out_for_twice_as_long_each_time_up_to_the_maximum() -> None:
    ill = [True]

    async def flapping(conn: Conn) -> None:
        while True:
            await conn.request()
            status = b"503 Ill" if ill[0] else b"200 OK"
            conn.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    async with edge(
        {"a": flapping, "b": from_member(b"from b")},
        breaker={"failures": 1, "open": "5s", "open_max": "20s"},
    ) as running:
        clock = running.service.edge.clock = Clock(running.service.edge.clock())
        breaker = member(running).breaker
        client = await running.client()
        times = []
        for _ in range(5):
            await client.ask(POST)
            times.append(breaker.open_for)
            assert breaker.state is BreakerState.OPEN
            assert (await client.ask(POST)).body == b"from b"
            clock.now += breaker.open_for + 0.001
        assert times == [pytest.approx(nominal * 1.05, rel=0.05) for nominal in (5, 10, 20, 20, 20)]
        ill[0] = False
        assert (await client.ask(POST)).body == b""
        assert breaker.state is BreakerState.CLOSED
        clock.now += 3 * 5
        running.service.edge.federation.roll(clock.now)
        ill[0] = True
        await client.ask(POST)
        assert breaker.open_for == pytest.approx(5 * 1.05, rel=0.05)


@pytest.mark.parametrize("trials", [1, 3])
async def test_herd_before_a_half_open_member_sends_exactly_the_trials(trials: int) -> None:
    go_on = asyncio.Event()

    async def held(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfrom a")
        await conn.stall()

    async with edge(
        {"a": held, "b": from_member(b"from b")}, breaker={"open": "5s", "trials": trials}
    ) as running:
        clock = running.service.edge.clock = Clock(running.service.edge.clock())
        breaker = member(running).breaker
        breaker.trip(clock.now, 0.0)
        clock.now += 5
        clients = [await running.client() for _ in range(150)]
        asked = [asyncio.ensure_future(client.ask(GET)) for client in clients]
        await until(lambda: sum(each.done() for each in asked) == len(asked) - trials, "the others served")
        await until(lambda: visits(running, "a") == trials, "the trials at the member")
        assert breaker.trials == trials
        go_on.set()
        bodies = [response.body for response in await asyncio.gather(*asked)]
        assert bodies.count(b"from a") == trials == visits(running, "a")
        assert breaker.state is BreakerState.CLOSED


async def test_failed_trial_is_made_good_by_another_member() -> None:
    async with edge(
        {"a": resets_before_the_head, "b": from_member(b"from b")}, breaker={"open": "5s"}
    ) as running:
        clock = running.service.edge.clock = Clock(running.service.edge.clock())
        member(running).breaker.trip(clock.now, 0.0)
        clock.now += 5
        assert (await running.ask(GET)).body == b"from b"
        assert transitions(running) == {"open": 2, "half-open": 1}
