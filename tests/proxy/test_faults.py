"""What the edge makes of each fault: the status, whom the log blames and who is charged.

The rig asserts after every test that no request, connection or task is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from fedproxy.decide.member import Intent
from tests.rig import Conn, Edge, Message, Script, Scripted, answer, blackhole, edge, guard, refusing, until
from tests.rig.faults import (
    AFTER_SENDING,
    GET,
    HALF,
    HOST,
    PATIENT,
    PIN,
    POST,
    SHORT,
    UNKNOWN,
    from_member,
    never_answers,
    resets_before_the_head,
)


@asynccontextmanager
async def pair(first: Script | Scripted | str, **overrides: Any) -> AsyncIterator[Edge]:
    """Member `a`, where the visitors' cookie leads, and member `b`, which is well."""
    async with edge({"a": first, "b": from_member(b"from b")}, **{**PATIENT, **overrides}) as running:
        yield running


# What a member may do instead of answering, after it was sent the request.


# script: status, termination, reason
after_sending = pytest.mark.parametrize(
    ("script", "status", "termination", "reason"),
    AFTER_SENDING,
    ids=[row[0].__name__ for row in AFTER_SENDING],
)


@after_sending
@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_fault_of_the_only_member_is_answered_and_charged(
    request_: bytes, script: Script, status: int, termination: str, reason: str
) -> None:
    async with edge(script, timeouts=SHORT) as running:
        assert (await running.ask(request_)).status == status
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (status, termination, "a")
        assert running.errors("a") == {reason: 1}
        await until(lambda: not running.member.open, "the member's connection closed")


@after_sending
async def test_get_goes_to_another_member(script: Script, status: int, termination: str, reason: str) -> None:
    async with pair(script, timeouts=SHORT) as running:
        response = await running.ask(GET)
        assert (response.status, response.body) == (200, b"from b")
        (line,) = await running.logged()
        assert (line["termination"], line["member"], line["attempts"]) == ("--", "b", 2)
        assert line["affinity"] == "moved"
        assert running.errors("a") == {reason: 1}
        assert running.errors("b") == {}


@after_sending
@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"PROPPATCH"])
async def test_request_that_is_not_idempotent_is_never_sent_twice(
    method: bytes, script: Script, status: int, termination: str, reason: str
) -> None:
    async with pair(script, timeouts=SHORT) as running:
        assert (await running.ask(POST.replace(b"POST", method))).status == status
        assert len(running.members["a"].connections) == 1
        assert running.members["b"].received == b""
        (line,) = await running.logged()
        assert (line["termination"], line["attempts"]) == (termination, 1)


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"OPTIONS"])
async def test_idempotent_request_with_a_small_body_is_sent_again_whole(method: bytes) -> None:
    async with pair(resets_before_the_head) as running:
        assert (await running.ask(POST.replace(b"POST", method))).status == 200
        (request,) = running.members["b"].requests
        assert (request.method, request.body) == (method, b"hello")


async def test_body_that_was_not_kept_is_not_sent_again() -> None:
    async with pair(resets_before_the_head, limits={"replay": "1KiB"}) as running:
        body = b"x" * 5000
        request = b"PUT / HTTP/1.1\r\n" + HOST + PIN + b"Content-Length: 5000\r\n\r\n" + body
        assert (await running.ask(request)).status == 502
        assert running.members["b"].received == b""


async def test_nothing_is_sent_twice_once_the_visitor_saw_an_interim_response() -> None:
    async def hints_and_resets(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await conn.flush()
        await until(lambda: hinted, "the visitor has the hints")
        conn.reset()

    hinted: list[int] = []
    async with pair(hints_and_resets) as running:
        client = await running.client()
        await client.send(GET)
        async with guard():
            hinted.append((await client.head()).status)
        assert hinted == [103]
        assert (await client.response()).status == 502
        assert running.members["b"].received == b""


# Before anything is sent


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_refused_connection_goes_to_another_member(request_: bytes) -> None:
    with refusing() as url:
        async with pair(url) as running:
            assert (await running.ask(request_)).body == b"from b"
            (line,) = await running.logged()
            assert (line["termination"], line["member"], line["attempts"]) == ("--", "b", 2)
            assert running.errors("a") == {"connect": 1}


async def test_refused_connection_of_the_only_member_is_502() -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            assert (await running.ask(GET)).status == 502
            (line,) = await running.logged()
            assert line["termination"] == "SC"


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_connection_that_is_never_answered_goes_to_another_member(request_: bytes) -> None:
    with blackhole() as url:
        async with pair(url, timeouts=SHORT) as running:
            assert (await running.ask(request_)).body == b"from b"
            assert running.errors("a") == {"connect_timeout": 1}


async def test_connection_to_the_only_member_that_is_never_answered_is_504() -> None:
    with blackhole() as url:
        async with edge({"a": url}, timeouts=SHORT) as running:
            assert (await running.ask(GET)).status == 504
            (line,) = await running.logged()
            assert line["termination"] == "sC"


# Names that end in .onion are never asked for over DNS (RFC 7686 section 2): they fail at once and locally.


async def test_name_that_does_not_resolve_goes_to_another_member() -> None:
    async with pair(UNKNOWN) as running:
        assert (await running.ask(POST)).body == b"from b"
        assert running.errors("a") == {"dns": 1}


async def test_name_of_the_only_member_that_does_not_resolve_is_502() -> None:
    async with edge({"a": UNKNOWN}) as running:
        assert (await running.ask(GET)).status == 502
        (line,) = await running.logged()
        assert line["termination"] == "SC"


async def test_attempts_are_no_more_than_allowed() -> None:
    with refusing() as one, refusing() as two, refusing() as three:
        async with edge(
            {"a": one, "b": two, "c": three, "d": answer()}, retry={**PATIENT["retry"], "attempts": 2}
        ) as running:
            await running.ask(GET)
            (line,) = await running.logged()
            assert line["attempts"] <= 2


async def test_no_retry_without_budget() -> None:
    async with pair(resets_before_the_head, retry={"attempts": 3, "budget": 0, "floor": 0}) as running:
        assert (await running.ask(GET)).status == 502
        assert running.members["b"].received == b""


# Idle connections that the member closes


def once_more(second: Callable[[Conn], None]) -> Script:
    """A member that answers one request on its first connection and does `second` at the next one there."""

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
        if conn is conn.member.connections[0]:
            await conn.head()
            second(conn)
        else:
            await conn.stall()

    return script


STALE = {"closed": lambda conn: conn.close(), "reset": lambda conn: conn.reset()}


@pytest.mark.parametrize("second", STALE.values(), ids=STALE.keys())
async def test_get_on_a_stale_connection_is_sent_again_and_nobody_is_charged(
    second: Callable[[Conn], None],
) -> None:
    async with edge(once_more(second)) as running:
        client = await running.client()
        await client.ask(GET)
        assert (await client.ask(GET)).body == b"first"
        lines = await running.logged(2)
        assert (lines[1]["termination"], lines[1]["attempts"], lines[1]["member"]) == ("--", 2, "a")
        assert len(running.member.connections) == 2


@pytest.mark.parametrize("second", STALE.values(), ids=STALE.keys())
async def test_post_on_a_stale_connection_is_not_sent_again(second: Callable[[Conn], None]) -> None:
    async with edge(once_more(second)) as running:
        client = await running.client()
        await client.ask(GET)
        assert (await client.ask(POST)).status == 502
        assert len(running.member.connections) == 1


async def test_get_on_a_stale_connection_moves_if_its_member_is_no_more_to_be_asked() -> None:
    async with pair(once_more(lambda conn: leaves(conn))) as running:

        def leaves(conn: Conn) -> None:
            running.service.edge.federation.by_name["a"].set_intent(Intent.MAINT)
            conn.close()

        client = await running.client()
        await client.ask(GET)
        assert (await client.ask(GET)).body == b"from b"
        lines = await running.logged(2)
        assert (lines[1]["termination"], lines[1]["attempts"], lines[1]["member"]) == ("--", 2, "b")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_idle_connection_that_the_member_closed_is_not_used(how: str) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(GET)
        getattr(running.member.connections[0], how)()
        await until(lambda: not running.service.edge.idle(), "the edge noticed")
        assert (await client.ask(POST)).status == 200
        lines = await running.logged(2)
        assert lines[1]["attempts"] == 1


async def test_bytes_on_an_idle_connection_close_it() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(GET)
        running.member.connections[0].send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: not running.service.edge.idle(), "the edge dropped it")
        assert (await client.ask(POST)).status == 200
        assert running.errors("a") == {}


async def test_idle_connection_that_ends_in_the_turn_of_a_post_is_not_used() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(GET)
        # Past the loop, so that it finds both at once, and in this order.
        for wire, data in ((running.member.connections[0], b"nonsense"), (client, POST)):
            os.write(wire.writer.get_extra_info("socket").fileno(), data)
        assert (await client.response()).status == 200
        lines = await running.logged(2)
        assert lines[1]["attempts"] == 1
        assert running.errors("a") == {}


# After the head


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_response_that_stalls_is_cut_and_charged(request_: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HALF)
        await conn.stall()

    async with pair(script, timeouts=SHORT) as running:
        client = await running.client()
        await client.send(request_)
        async with guard():
            _, rest = await client.until_end()
        assert rest.endswith(b"half")
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (200, "sD")
        assert running.errors("a") == {"stalled": 1}
        assert running.members["b"].received == b""


async def test_response_that_moves_now_and_then_is_not_cut() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.9
        while loop.time() < end:
            conn.send(b"1\r\n:\r\n")
            await asyncio.sleep(0.05)
        conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script, timeouts={"response_idle": "400ms"}) as running:
        assert set((await running.ask(GET)).body) == {ord(":")}


async def test_response_cut_short_never_goes_to_another_member() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HALF)

    async with pair(script) as running:
        client = await running.client()
        await client.send(GET)
        async with guard():
            await client.until_end()
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["attempts"]) == (200, "SD", 1)
        assert running.errors("a") == {"truncated": 1}
        assert running.members["b"].received == b""


# The visitor leaves


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_visitor_who_leaves_before_the_head_aborts_the_member(how: str) -> None:
    async with pair(never_answers) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: running.members["a"].requests, "the request at the member")
        getattr(client, how)()
        await until(lambda: not running.members["a"].open, "the member's connection ended")
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (499, "CH")
        assert running.errors("a") == {}
        assert running.members["b"].received == b""


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_visitor_who_leaves_during_the_response_aborts_the_member(how: str) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HALF)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: b"half" in client.received, "half of the response")
        getattr(client, how)()
        await until(lambda: not running.member.open, "the member's connection ended")
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (200, "CD")
        assert running.errors("a") == {}


async def test_visitor_who_leaves_while_connecting_leaves_nothing_behind() -> None:
    with blackhole() as url:
        async with edge({"a": url}, timeouts={"connect": "1s"}) as running:
            client = await running.client()
            await client.send(GET)
            await until(lambda: running.busy(), "the request is under way")
            client.reset()
            (line,) = await running.logged()
            assert (line["status"], line["termination"]) == (499, "CC")
            assert running.errors("a") == {}


async def test_visitor_who_does_not_read_is_cut_and_the_member_is_not_charged() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        piece = b"x" * 1_000_000
        while not conn.writer.is_closing():
            conn.send(piece)
            await conn.flush()

    async with edge(script, timeouts=SHORT) as running:
        client = await running.client(receive_buffer=16_384)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (200, "cD")
        assert running.errors("a") == {}
        client.reset()


# The visitor is slow


@pytest.mark.parametrize(
    "part", [b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + HOST]
)
async def test_slow_head_is_408(part: bytes) -> None:
    async with edge(answer(), timeouts={"request_head": "200ms"}) as running:
        client = await running.client()
        await client.send(part)
        response = await client.response()
        assert (response.status, response.value("connection")) == (408, b"close")
        assert await client.closed() == "eof"
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (408, "cR", None)
        assert running.member.received == b""


async def test_head_that_trickles_is_408_because_its_time_counts_from_the_first_byte() -> None:
    async with edge(answer(), timeouts={"request_head": "300ms"}) as running:
        client = await running.client()
        await client.send(b"GET / HTTP/1.1\r\n")
        while not client.received:
            await client.send(b"X: y\r\n")
            await asyncio.sleep(0.02)
        assert (await client.response()).status == 408


async def test_slow_head_of_a_second_request_is_408() -> None:
    async with edge(answer(), timeouts={"request_head": "200ms"}) as running:
        client = await running.client()
        await client.ask(GET)
        assert (await client.ask(GET[:20])).status == 408


async def test_empty_line_behind_a_body_is_no_slow_head() -> None:
    """Some clients end a body with a CRLF that belongs to nothing (RFC 9112 section 2.2)."""
    async with edge(answer()) as running:
        client = await running.client()
        assert (await client.ask(POST + b"\r\n")).status == 200
        inner = running.service.edge
        inner.sweep(inner.clock() + 11)  # longer than a head may take, but not than a connection may be idle
        assert (await client.ask(GET)).status == 200
        assert [line["status"] for line in await running.logged(2)] == [200, 200]


async def test_slow_body_is_408_and_the_member_is_not_charged() -> None:
    async with edge(answer(), timeouts={"request_idle": "200ms"}) as running:
        client = await running.client()
        response = await client.ask(POST[:-2])
        assert (response.status, response.value("connection")) == (408, b"close")
        assert await client.closed() == "eof"
        (line,) = await running.logged()
        assert (line["status"], line["termination"]) == (408, "cR")
        assert running.errors("a") == {}
        await until(lambda: not running.member.open, "the member's connection ended")
        assert running.member.requests == []


# Nobody is there, or everybody is full


EVERY_FAILURE = {"failures": 1, "open": "300s", "max_ejected": 1.0}


async def test_all_members_down_is_503() -> None:
    with refusing() as url:
        async with edge({"a": url}, breaker=EVERY_FAILURE) as running:
            assert (await running.ask(GET)).status == 502
            response = await running.ask(GET)
            assert response.status == 503
            assert int(response.value("retry-after") or 0) > 0
            lines = await running.logged(2)
            assert (lines[1]["termination"], lines[1]["member"], lines[1]["attempts"]) == ("PQ", None, 0)


async def test_all_members_down_leaves_prime_as_the_last_resort() -> None:
    scripts = {"a": resets_before_the_head, "b": resets_before_the_head}
    async with edge(scripts, settings={"a": {"prime": True}}, breaker=EVERY_FAILURE) as running:
        for name in (b"a", b"b", b"b"):
            await running.ask(
                b"POST / HTTP/1.1\r\n" + HOST + b"Cookie: fedproxy_member=" + name + b"\r\n\r\n"
            )
        before = len(running.members["a"].requests)
        counts = running.service.edge.federation.by_name["a"].counts
        counted = counts.last_resort
        assert (await running.ask(GET)).status == 502
        assert len(running.members["a"].requests) == before + 1
        assert counts.last_resort == counted + 1


async def test_member_with_weight_zero_takes_no_new_visitors() -> None:
    async with edge(answer(), settings={"a": {"weight": 0}}) as running:
        assert (await running.ask(GET.replace(PIN, b""))).status == 503
        assert running.member.received == b""


async def held_at(running: Edge, name: str) -> None:
    """A request that stays at a member."""
    client = await running.client()
    await client.send(GET)
    await until(lambda: running.members[name].requests, "the request at the member")


async def test_full_member_passes_visitors_to_the_next() -> None:
    async with pair(never_answers, limits={"member_requests": 1}) as running:
        await held_at(running, "a")
        assert (await running.ask(GET)).body == b"from b"
        assert running.errors("a") == {}


async def test_all_members_full_is_503() -> None:
    async with edge(never_answers, limits={"member_requests": 1}) as running:
        await held_at(running, "a")
        response = await running.ask(GET)
        assert response.status == 503
        assert int(response.value("retry-after") or 0) > 0
        (line,) = await running.logged()
        assert line["termination"] == "PQ"


async def test_place_at_a_full_member_is_free_again_when_its_visitor_leaves() -> None:
    async with edge(
        never_answers, limits={"member_requests": 1}, timeouts={"response_head": "300ms"}
    ) as running:
        for arrived in (1, 2, 3):
            client = await running.client()
            await client.send(GET)
            await until(partial(running.member.has, arrived), "the request at the member")
            client.reset()
            await until(lambda: not running.busy(), "the place is free")
        lines = await running.logged(3)
        assert {line["status"] for line in lines} == {499}


# The answers themselves


async def failed(*lines: bytes, target: bytes = b"/") -> Message:
    with refusing() as url:
        async with edge({"a": url}) as running:
            return await running.ask(
                b"GET "
                + target
                + b" HTTP/1.1\r\n"
                + HOST
                + b"".join(line + b"\r\n" for line in lines)
                + b"\r\n"
            )


async def test_error_for_a_program_is_json() -> None:
    response = await failed(b"Accept: application/json", b"X-Request-ID: abc-123")
    assert (response.value("content-type") or b"").startswith(b"application/json")
    body = json.loads(response.body)
    assert set(body) == {"error", "detail", "request_id"}
    assert body["request_id"] == "abc-123"


async def test_error_for_a_browser_is_html() -> None:
    response = await failed(b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
    assert (response.value("content-type") or b"").startswith(b"text/html")
    assert response.body.lstrip().lower().startswith(b"<!doctype html>")


async def test_error_of_a_launch_is_an_event_because_its_client_gives_up_on_any_other_status() -> None:
    response = await failed(b"Accept: text/event-stream", target=b"/build/gh/org/repo/HEAD")
    assert response.status == 200
    assert (response.value("content-type") or b"").startswith(b"text/event-stream")
    (line,) = response.body.decode().strip().splitlines()
    event = json.loads(line.removeprefix("data: "))
    assert event["phase"] == "failed"
    assert event["status_code"] == 502
    assert event["message"]
    assert response.body.endswith(b"\n\n")


async def test_error_of_a_stream_that_is_no_launch_is_a_status() -> None:
    assert (await failed(b"Accept: text/event-stream", target=b"/other")).status == 502


async def test_error_of_a_head_request_has_no_body() -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            client = await running.client()
            for _ in range(2):
                assert (await client.ask(b"HEAD" + GET[3:], "HEAD")).status == 502


async def test_connection_survives_an_error_that_is_not_the_visitors() -> None:
    with refusing() as url:
        async with edge({"a": url}, breaker={"failures": 100, "minimum": 100}) as running:
            client = await running.client()
            for request in (GET, POST, GET):
                assert (await client.ask(request)).status == 502


async def test_stop_cuts_what_is_under_way() -> None:
    async with edge(never_answers) as running:
        client = await running.client()
        await client.send(GET)
        await until(lambda: running.member.requests, "the request at the member")
        await running.service.stop()
        async with guard():
            await client.until_end()
        assert not running.busy()


# A connection of the pool on which something waits that the loop has not read yet


@pytest.mark.parametrize("waiting", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\r\n", None])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_idle_connection_with_something_unread_is_given_no_request(
    waiting: bytes | None, method: bytes
) -> None:
    """Bytes would be taken for the answer, and on one that has ended a POST would be lost."""
    async with edge(answer()) as running:
        client = await running.client()
        await client.ask(GET)
        (conn,) = running.member.connections
        (visitor,) = running.connections
        sock = socket.socket(fileno=os.dup(conn.writer.get_extra_info("socket").fileno()))
        with sock:
            # All in one turn of the loop.
            if waiting is None:
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.send(waiting)
            visitor.data_received(method + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
        response = await client.response()
        assert (response.status, response.body) == (200, b"ok")
        assert [len(each.received.split(b"HTTP/1.1\r\n")) - 1 for each in running.member.connections] == [
            1,
            1,
        ]
        assert running.errors("a") == {}
