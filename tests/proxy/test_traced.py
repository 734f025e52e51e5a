"""Spans of requests and of their attempts, what the member is told of them, and examples in the metrics."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from fedproxy.decide.counts import Exemplar
from fedproxy.decide.member import Intent, Member
from tests.rig import Conn, Edge, Ended, Script, answer, edge, refusing, until
from tests.rig.collector import Collector, collector
from tests.rig.h2 import H2Client
from tests.rig.h2 import request as h2_request
from tests.rig.launches import CACHED, LAUNCH, QUOTA, TARGET, says

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"traceparent: 00-{TRACE_ID}-00f067aa0ba902b7-01".encode()
NOT_SAMPLED = SAMPLED[:-1] + b"0"
PIN = b"Cookie: fedproxy_member=a"
PATIENT: dict[str, Any] = {"retry": {"attempts": 3, "budget": 1, "floor": 100}}


def get(target: bytes = b"/", *lines: bytes) -> bytes:
    return b"\r\n".join((b"GET %b HTTP/1.1" % target, b"Host: hub.test", *lines, b"", b""))


@asynccontextmanager
async def traced(
    members: Script | Mapping[str, Script | str],
    *,
    tracing: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> AsyncIterator[tuple[Edge, Collector]]:
    """An edge that traces every request; the spans are there once the edge has stopped."""
    with collector() as found:
        settings = {"endpoint": found.endpoint, "sample": 1, **(tracing or {})}
        async with edge(members, tracing=settings, **{**PATIENT, **overrides}) as running:
            yield running, found


def of(running: Edge, name: str) -> Member:
    return running.service.edge.federation.by_name[name]


async def test_request_has_a_span_and_its_attempt_one_below_that_the_member_is_told() -> None:
    async with traced({"a": answer()}) as (running, found):
        client = await running.client()
        agent = b"User-Agent: some browser"
        response = await client.ask(get(b"/v2/gh/a/b/HEAD?token=secret&x=1", agent, PIN))
        await client.ask(get(b"/user/x", PIN))
        told = [request.value("traceparent") or b"" for request in running.member.requests]
    request, second = found.requests
    (attempt,) = found.attempts(request)
    assert told[0] == f"00-{request.trace}-{attempt.id}-01".encode()
    assert (request.name, request.parent, request.failed) == ("GET", "", False)
    assert response.value("x-request-id") == request.trace.encode()
    assert second.trace != request.trace
    ttfb = request.attributes.pop("fedproxy.ttfb")
    assert 0 < ttfb * 1e9 <= request.ended - request.began + 1000
    assert request.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/v2/gh/a/b/HEAD",
        "url.query": "token=***&x=1",
        "server.address": "hub.test",
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "some browser",
        "http.response.status_code": 200,
        "http.response.body.size": 2,
        "fedproxy.request_id": request.trace,
        "fedproxy.member": "a",
        "fedproxy.affinity": "cookie",
        "fedproxy.attempts": 1,
        "fedproxy.termination": "--",
    }
    host, port = running.member.authority.split(":")
    wait = attempt.attributes.pop("fedproxy.connection.wait")
    assert 0 < wait * 1e9 < request.ended - request.began
    assert attempt.attributes == {
        "http.request.method": "GET",
        "url.full": f"http://{host}:{port}/v2/gh/a/b/HEAD?token=***&x=1",
        "server.address": host,
        "server.port": int(port),
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "fedproxy.member": "a",
        "fedproxy.connection.reused": False,
    }
    assert request.began <= attempt.began <= attempt.ended <= request.ended
    (again,) = found.attempts(second)
    assert again.attributes["fedproxy.connection.reused"] is True
    assert request.resource["service.name"] == "fedproxy"


async def test_attempts_that_failed_say_why_and_each_member_is_told_of_its_own() -> None:
    fails = answer(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    with refusing() as nobody:
        async with traced({"a": nobody, "b": fails, "c": answer()}) as (running, found):
            assert (await running.ask(get(b"/v2/gh/a/a/HEAD", PIN))).status == 200
            told = {name: scripted.requests[0] for name, scripted in running.members.items()}
    (request,) = found.requests
    attempts = found.attempts(request)
    assert [each.attributes["fedproxy.member"] for each in attempts] == ["a", "b", "c"]
    assert [each.attributes.get("error.type") for each in attempts] == ["connect", "503", None]
    assert [each.failed for each in attempts] == [True, True, False]
    assert [each.attributes.get("http.request.resend_count") for each in attempts] == [None, 1, 2]
    assert "fedproxy.connection.reused" not in attempts[0].attributes
    for each in attempts[1:]:
        traceparent = told[each.attributes["fedproxy.member"]].value("traceparent")
        assert traceparent == f"00-{request.trace}-{each.id}-01".encode()
    assert not request.failed
    assert request.attributes["fedproxy.attempts"] == 3


async def test_stale_connection_is_an_attempt_of_its_own() -> None:
    async def once(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if len(conn.member.connections) == 1:
            await conn.request()
            conn.reset()

    async with traced({"a": once}) as (running, found):
        client = await running.client()
        await client.ask(get())
        assert (await client.ask(get())).status == 200
    attempts = found.attempts(found.requests[1])
    assert [each.attributes.get("error.type") for each in attempts] == ["stale", None]
    assert [each.attributes["fedproxy.connection.reused"] for each in attempts] == [True, False]


async def test_request_that_nobody_can_serve_is_a_failed_span_with_its_code() -> None:
    with refusing() as nobody:
        async with traced({"a": nobody}) as (running, found):
            assert (await running.ask(get())).status == 502
    (request,) = found.requests
    assert request.failed
    assert request.attributes["error.type"] == "connect"
    assert request.attributes["fedproxy.termination"] == "SC"
    assert request.attributes["http.response.status_code"] == 502


async def test_response_that_broke_off_failed_though_its_status_was_good() -> None:
    async def breaks(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        await conn.flush()

    async with traced({"a": breaks}) as (running, found):
        client = await running.client()
        await client.send(get())
        with pytest.raises(Ended):
            await client.response()
    (request,) = found.requests
    (attempt,) = found.attempts(request)
    for span in (request, attempt):
        assert (span.failed, span.attributes["error.type"]) == (True, "truncated")
        assert span.attributes["http.response.status_code"] == 200


async def test_visitor_who_left_is_nobody_s_failure() -> None:
    async def waits(conn: Conn) -> None:
        await conn.request()
        await conn.stall()

    async with traced({"a": waits}) as (running, found):
        client = await running.client()
        await client.send(get())
        await until(lambda: running.member.has(1), "the request")
        await client.leave()
        await running.logged()
    (request,) = found.requests
    assert (request.failed, request.attributes["fedproxy.termination"]) == (False, "CH")
    assert [each.failed for each in found.attempts(request)] == [False]


async def test_launch_has_its_outcome_at_each_member() -> None:
    async with traced({"a": says(QUOTA), "b": says(*CACHED)}) as (running, found):
        await running.ask(LAUNCH)
        ready = of(running, "b").counts.launch_duration.exemplars
    (request,) = found.requests
    assert request.attributes["url.path"] == TARGET.decode()
    assert request.attributes["fedproxy.launch"] == "ready"
    assert [
        (each.attributes["fedproxy.member"], each.attributes["fedproxy.launch"])
        for each in found.attempts(request)
    ] == [
        ("a", "failed"),
        ("b", "ready"),
    ]
    assert [each.trace_id for each in ready.values()] == [request.trace]


async def test_tunnel_is_one_span_until_its_end() -> None:
    async def echo(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        conn.send(await conn.reader.readexactly(4))
        await conn.stall()

    async with traced({"a": echo}) as (running, found):
        client = await running.client()
        await client.send(get(b"/", b"Connection: Upgrade", b"Upgrade: websocket"))
        assert (await client.head()).status == 101
        await client.send(b"ping")
        assert await client.reader.readexactly(4) == b"ping"
        await client.leave()
        await running.logged()
    (request,) = found.requests
    assert request.attributes["http.response.status_code"] == 101
    assert request.attributes["fedproxy.termination"] == "CT"
    assert request.attributes["http.request.body.size"] == 4
    assert [each.attributes["http.response.status_code"] for each in found.attempts(request)] == [101]


async def test_answers_of_the_edge_s_own_have_spans_without_attempts() -> None:
    routes = [
        {"path": "/moved", "redirect": "https://other.test/"},
        {"path": "/metrics", "status": 404},
        {"path": "/v2/*", "to": "members", "mode": "redirect"},
    ]
    rate = {"launches": 1}
    async with traced({"a": says(*CACHED)}, routes=routes, rate=rate) as (running, found):
        for target in (b"/moved", b"/metrics?token=x", b"/v2/gh/a/b/HEAD"):
            await running.ask(get(target))
        await running.ask(LAUNCH)
        await running.ask(LAUNCH)
        await running.ask(b"GET / HTTP/1.1\r\nno head\r\n\r\n")
        federation = running.service.edge.federation
        federation.by_name["a"].set_intent(Intent.MAINT)
        await running.ask(get())
    assert [
        (each.attributes["url.path"], each.attributes["http.response.status_code"], len(found.attempts(each)))
        for each in found.requests
    ] == [
        ("/moved", 302, 0),
        ("/metrics", 404, 0),
        ("/v2/gh/a/b/HEAD", 307, 0),
        (TARGET.decode(), 200, 1),
        (TARGET.decode(), 429, 0),
        ("/", 503, 0),
    ]
    redirected = found.requests[2].attributes
    assert (redirected["fedproxy.member"], redirected["fedproxy.affinity"]) == ("a", "key")
    assert [each.failed for each in found.requests] == [False] * 5 + [True]


# Whose word counts


@pytest.mark.parametrize(
    ("follow", "proxies", "line", "sampled"),
    [
        ("trusted", ["127.0.0.1"], SAMPLED, True),
        ("trusted", ["127.0.0.1"], NOT_SAMPLED, False),
        ("trusted", [], SAMPLED, False),
        ("anyone", [], SAMPLED, True),
        ("nobody", ["127.0.0.1"], SAMPLED, False),
    ],
)
async def test_trace_of_somebody_trusted_is_followed_and_a_stranger_s_goes_by_chance(
    follow: str, proxies: list[str], line: bytes, sampled: bool
) -> None:
    tracing = {"follow": follow, "sample": 0}
    async with traced({"a": answer()}, tracing=tracing, trusted_proxies=proxies) as (running, found):
        await running.ask(get(b"/", line))
        (told,) = (request.value("traceparent") for request in running.member.requests)
        examples = of(running, "a").counts.duration.exemplars
        assert bool(examples) == sampled
    assert len(found.requests) == sampled
    if sampled:
        (request,) = found.requests
        (attempt,) = found.attempts(request)
        assert (request.trace, request.parent) == (TRACE_ID, "00f067aa0ba902b7")
        assert told == f"00-{TRACE_ID}-{attempt.id}-01".encode()
    else:
        assert told == line.partition(b": ")[2]


async def test_stranger_s_trace_that_is_chosen_goes_on_as_that_trace() -> None:
    async with traced({"a": answer()}) as (running, found):
        await running.ask(get(b"/", NOT_SAMPLED))
        (told,) = (request.value("traceparent") for request in running.member.requests)
    (request,) = found.requests
    assert (request.trace, request.parent) == (TRACE_ID, "00f067aa0ba902b7")
    assert told == f"00-{TRACE_ID}-{found.attempts(request)[0].id}-01".encode()


async def test_odd_requests_have_spans_that_say_so() -> None:
    async with traced({"a": answer()}, trusted_proxies=["127.0.0.1"]) as (running, found):
        await running.ask(
            b"PROPFIND /caf%C3%A9 HTTP/1.1\r\nHost: hub.test:99999\r\nX-Forwarded-Proto: https\r\n\r\n"
        )
        client = await running.client()
        await client.send(b"GET http://other.test:81/ HTTP/1.0\r\n\r\n")
        await client.response()
    odd, old = found.requests
    assert odd.name == "HTTP"
    assert odd.attributes["http.request.method"] == "_OTHER"
    assert odd.attributes["http.request.method_original"] == "PROPFIND"
    assert odd.attributes["server.address"] == "hub.test:99999"
    assert odd.attributes["url.scheme"] == "https"
    assert (old.attributes["server.address"], old.attributes["server.port"]) == ("other.test", 81)
    assert old.attributes["network.protocol.version"] == "1.0"


async def test_spans_of_requests_over_http2_say_so() -> None:
    listen = [{"address": "127.0.0.1:0", "http2": True}]
    async with traced({"a": answer()}, listen=listen) as (running, found):
        client = await H2Client(await running.client()).begin()
        assert (await client.ask(h2_request(b"/x"))).body == b"ok"
        assert (await client.ask(h2_request(b"/", method=b"TRACE"))).status == 405
        await client.leave()
    (span,) = found.requests
    (attempt,) = found.attempts(span)
    assert span.attributes["network.protocol.version"] == "2"
    assert attempt.attributes["network.protocol.version"] == "1.1"


# Without a collector


async def test_sampled_trace_of_a_visitor_is_an_example_in_the_metrics_without_any_tracing() -> None:
    async with edge({"a": answer()}) as running:
        client = await running.client()
        for line in (SAMPLED, NOT_SAMPLED, b"X: y"):
            await client.ask(get(b"/", line))
        counts = of(running, "a").counts
        assert sum(counts.durations().counts) == 3
        examples: list[Exemplar] = [
            example
            for histogram in (counts.duration, counts.first_byte)
            for example in histogram.exemplars.values()
        ]
        assert [each.trace_id for each in examples] == [TRACE_ID] * 2
        told = [request.value("traceparent") for request in running.member.requests]
        assert told[:2] == [SAMPLED.partition(b": ")[2], NOT_SAMPLED.partition(b": ")[2]]


async def test_ids_are_random_in_every_digit() -> None:
    async with edge(answer()) as running:
        drawn = [pair for _ in range(4) for pair in running.service.edge.draw_ids()]
    assert len(dict(drawn)) == len(drawn)
    for request_id, traceparent in drawn:
        assert re.fullmatch(rb"00-%b-(?!0{16})[0-9a-f]{16}-00" % request_id, traceparent)
    # A digit that always is the same, or counts, is one by which samplers sample in bursts.
    for digits in zip(*(request_id for request_id, _ in drawn), strict=True):
        assert len(set(digits)) == 16
        assert len({one - other for one, other in pairwise(digits)}) > 16
