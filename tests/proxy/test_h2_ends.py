"""How HTTP/2 connections end: drains, idle ones, silent peers, and the limits on time."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest
import yaml

from fedproxy.config.load import parse
from fedproxy.serve.assemble import assemble
from tests.proxy.test_h2 import h2_edge, visit
from tests.rig import Conn, Edge, Ended, Message, answer, edge, guard, per_request, until
from tests.rig.h2 import (
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    H2Client,
    frame,
    request,
)

LAST = 2**31 - 1


class Clock:
    """The edge's clock: real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


async def waiting(conn: Conn) -> None:
    await conn.request()
    await conn.stall()


async def test_a_drain_is_told_in_two_steps_and_loses_nothing() -> None:
    go = asyncio.Event()

    async def handle(conn: Conn, asked: Message) -> None:
        if asked.target == b"/slow":
            await go.wait()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running)
        slow = client.head(request(b"/slow"))
        await until(lambda: running.member.has(1), "asked")
        running.service.edge.draining = True
        await client.until(lambda: client.goaways)
        assert client.goaways == [(LAST, "no_error")]
        # What was under way when the edge said so is still served, as is what comes before the second.
        late = client.head(request(b"/late"))
        await client.until(lambda: len(client.goaways) == 2)
        last, code = client.goaways[1]
        assert code == "no_error" and last in (slow, late)
        assert (await client.response(late)).body == b"ok" if last == late else True
        go.set()
        assert (await client.response(slow)).body == b"ok"
        with pytest.raises(Ended) as end:
            await client.frame()
        assert end.value.how == "eof"


async def test_streams_after_the_last_goaway_are_not_served() -> None:
    async with h2_edge(waiting) as running:
        client = await visit(running)
        first = client.head(request(b"/first"))
        await until(lambda: running.member.has(1), "asked")
        running.service.edge.draining = True
        await client.until(lambda: len(client.goaways) == 2)
        assert client.goaways[1] == (first, "no_error")
        client.head(request(b"/second", (b"x-table", b"entry")))
        client.write(frame(PING, 0, 0, b"12345678"))
        await client.until(lambda: any(each.payload == b"12345678" for each in client.frames))
        assert len(running.member.connections) == 1
        running.service.edge.draining = False


async def test_an_idle_connection_is_asked_to_leave() -> None:
    clock = Clock()
    async with h2_edge(answer()) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        await client.ask(request())
        clock.ahead += 60
        running.service.edge.sweep(clock())
        assert not client.goaways
        clock.ahead += 16
        running.service.edge.sweep(clock())
        assert [code for _, code in await client.end()] == ["no_error", "no_error"]


async def test_a_peer_that_does_not_answer_is_told_the_last_stream_all_the_same() -> None:
    clock = Clock()
    async with h2_edge(answer()) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        clock.ahead += 76
        running.service.edge.sweep(clock())
        client.answers = False
        await client.until(client.pings)
        assert client.goaways == [(LAST, "no_error")]
        clock.ahead += 2
        running.service.edge.sweep(clock())
        (connection,) = running.connections
        clock.ahead += 6
        running.service.edge.sweep(clock())
        await until(lambda: connection not in running.connections, "closed")


async def test_a_silent_peer_with_a_stream_is_asked_whether_it_is_there() -> None:
    clock = Clock()
    async with h2_edge(waiting, timeouts={"response_head": "1h", "response_idle": "1h"}) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        client.head(request())
        await until(lambda: running.member.has(1), "asked")
        (connection,) = running.connections
        for count in range(3):
            running.service.edge.sweep(clock())
            clock.ahead += 80
            running.service.edge.sweep(clock())
            await client.until(lambda count=count: client.pings() == count + 1)
            await until(lambda: connection._asked_at is None, "answered")
        clock.ahead += 1
        running.service.edge.sweep(clock())
        clock.ahead += 80
        running.service.edge.sweep(clock())
        # This time nobody answers.
        clock.ahead += 21
        running.service.edge.sweep(clock())
        (line,) = await running.logged()
        assert line["termination"] == "CH"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (PREFACE, "settings_timeout"),
        (PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_STREAM, 1, b"\x82"), "enhance_your_calm"),
        (PREFACE + frame(SETTINGS, 0, 0) + b"\0\0\x08\x06\0", "enhance_your_calm"),
    ],
)
async def test_what_begins_has_to_end_in_time(sent: bytes, code: str) -> None:
    clock = Clock()
    async with h2_edge(answer()) as running:
        running.service.edge.clock = clock
        client = H2Client(await running.client())
        client.write(sent)
        await until(
            lambda: any(hasattr(each, "machine") and "H2" in repr(each) for each in running.connections),
            "there",
        )
        (connection,) = running.connections
        await until(lambda: connection.machine.partial or not connection.machine.begun, "read")
        running.service.edge.sweep(clock())
        clock.ahead += 4
        running.service.edge.sweep(clock())
        assert not connection.machine.errors and connection in running.connections
        clock.ahead += 7
        running.service.edge.sweep(clock())
        assert [said for _, said in await client.end()] == [code]
        (line,) = await running.logged()
        assert (line["status"], line["protocol"], line["termination"]) == (408, "HTTP/2.0", "cR")


async def test_a_preface_cut_short_has_the_time_of_a_head() -> None:
    clock = Clock()
    async with h2_edge(answer()) as running:
        running.service.edge.clock = clock
        client = await running.client()
        await client.send(PREFACE[:10])
        await until(lambda: any(each.head_since is not None for each in running.connections), "read")
        clock.ahead += 11
        running.service.edge.sweep(clock())
        assert (await client.response()).status == 408


async def test_an_upload_that_stops_is_answered_and_others_go_on() -> None:
    clock = Clock()
    async with h2_edge(per_request(lambda conn, asked: asyncio.sleep(0))) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        stream = client.head(request(method=b"POST"), end=False)
        client.data(stream, b"x")
        await until(lambda: running.member.received.endswith(b"1\r\nx\r\n"), "asked")
        running.service.edge.sweep(clock())
        clock.ahead += 61
        running.service.edge.sweep(clock())
        assert (await client.response(stream)).status == 408
        assert not client.goaways


async def test_a_stream_that_its_visitor_does_not_read_is_cut_alone() -> None:
    clock = Clock()

    async def handle(conn: Conn, asked: Message) -> None:
        size = 5_000_000 if asked.target == b"/big" else 2
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))
        await conn.flush()

    async with h2_edge(per_request(handle)) as running:
        running.service.edge.clock = clock
        client = await visit(running, windows=False, settings=struct.pack(">HL", 4, 100))
        big = client.head(request(b"/big"))
        await client.until(lambda: len(client.streams[big].received) == 100)
        running.service.edge.sweep(clock())
        clock.ahead += 601
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(lambda: client.frames[-1].kind == PING)
        running.service.edge.sweep(clock())
        assert (await client.response(big)).reset == "cancel"
        assert (await client.ask(request(b"/small"))).body == bytes(2)
        lines = {line["target"]: line for line in await running.logged(2)}
        assert (lines["/big"]["termination"], lines["/big"]["bytes_out"]) == ("cD", 100)


async def test_what_is_left_at_the_end_of_a_drain_is_cut() -> None:
    async with h2_edge(waiting, timeouts={"drain": "0s"}) as running:
        client = await visit(running)
        stream = client.head(request())
        await until(lambda: running.member.has(1), "asked")
        stopping = asyncio.ensure_future(running.service.stop())
        goaways = await client.end()
        await stopping
        assert goaways and client.streams[stream].reset == "cancel"
        (line,) = await running.logged()
        assert line["termination"][0] == "D"


async def test_what_a_peer_may_do_comes_back_with_time() -> None:
    clock = Clock()
    async with h2_edge(answer(), limits={"http2": {"pings": 10}}) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        for _ in range(5):
            client.write(frame(PING, 0, 0, bytes(8)) * 9)
            count = client.pings() + 9
            await client.until(lambda count=count: client.pings() == count)
            clock.ahead += 10
            running.service.edge.sweep(clock())
        assert not client.goaways


async def test_a_reload_reaches_open_connections() -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        assert (await client.ask(request(b"/x"))).status == 200
        assert (await client.ask(request(b"/x"))).status == 200
        config = {
            "listen": [{"address": "127.0.0.1:0", "http2": True}],
            "admin": {"address": "127.0.0.1:0"},
            "workers": 1,
            "health": {"interval": "1h"},
            "members": {"a": {"url": running.member.url}},
            "routes": [{"path": "/x", "status": 410}],
        }
        assemble(running.service.edge, parse(yaml.safe_dump(config), {}))
        assert (await client.ask(request(b"/x"))).status == 410


async def test_the_half_that_a_peer_closes_ends_its_streams() -> None:
    async with h2_edge(waiting) as running:
        client = await visit(running)
        client.head(request())
        await until(lambda: running.member.has(1), "asked")
        client.client.half_close()
        (line,) = await running.logged()
        assert line["termination"] == "CH"
        await until(lambda: not running.connections, "closed")


@pytest.mark.parametrize("whole", [False, True])
async def test_a_connection_whose_slow_stream_was_cut_ends_like_any_other(whole: bool) -> None:
    """The visitor took next to nothing, and then says nothing more."""
    clock = Clock()
    body = bytes(1000 if whole else 3_000_000)
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with h2_edge(answer(response)) as running:
        running.service.edge.clock = clock
        raw = await running.client()
        client = await H2Client(raw, windows=False).begin(struct.pack(">HL", 4, 1))
        client.answers = False
        stream = client.head(request())
        await client.until(lambda: client.streams[stream].body == b"\0")
        # Nothing moves for longer than a response may stand, which is longer than a connection may be idle.
        for seconds in (0, 601, 76, 2, 6):
            clock.ahead += seconds
            running.service.edge.sweep(clock())
        assert [code for _, code in await client.end()] == ["no_error", "no_error"]
        assert client.streams[stream].reset == "cancel"
        (line,) = await running.logged()
        assert line["termination"] == "cD"


async def test_a_connection_ends_whose_request_was_held_and_answered_by_the_edge() -> None:
    clock = Clock()
    async with h2_edge({"a": "http://127.0.0.1:1"}) as running:
        running.service.edge.clock = clock
        client = await visit(running)
        client.answers = False
        (connection,) = running.connections
        # As if other streams had more than the visitor takes.
        connection.crowded = True
        assert (await client.ask(request())).status == 502
        for seconds in (0, 76, 2, 6):
            clock.ahead += seconds
            running.service.edge.sweep(clock())
        assert [code for _, code in await client.end()] == ["no_error", "no_error"]


async def test_a_limit_on_connections_holds() -> None:
    async with h2_edge(answer(), limits={"connections": 1}) as running:
        client = await visit(running)
        second = await running.client()
        second.write(PREFACE + frame(SETTINGS, 0, 0))
        async with guard():
            how, rest = await second.until_end()
        assert how in ("eof", "reset") and not rest
        assert (await client.ask(request())).status == 200


LARGE = 3_000_000
large = answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE + bytes(LARGE))


async def held_by_the_system(running: Edge) -> H2Client:
    """A visitor whose windows are as wide as they can be, and whose system takes little at a time."""
    client = await H2Client(await running.client(receive_buffer=4096), windows=False).begin(
        struct.pack(">HL", 4, LAST)
    )
    client.write(frame(8, 0, 0, struct.pack(">L", LAST - 65_535)))
    return client


async def test_owed_ends_are_logged_once_they_are_sent() -> None:
    async with h2_edge(large) as running:
        client = await held_by_the_system(running)
        stream = client.head(request())
        await until(lambda: running.member.has(1), "asked")
        assert not running.log
        assert len((await client.response(stream)).body) == LARGE
        (line,) = await running.logged()
        assert (line["bytes_out"], line["termination"]) == (LARGE, "--")


async def test_a_visitor_who_leaves_before_the_end_is_sent_is_logged_so() -> None:
    async with h2_edge(large) as running:
        client = await held_by_the_system(running)
        client.head(request(b"/", (b"te", b"trailers")))
        await until(lambda: running.member.has(1), "asked")
        client.client.reset()
        (line,) = await running.logged()
        assert line["termination"] in ("CD", "CH") and line["bytes_out"] < LARGE


async def test_the_edge_without_http2_answers_the_preface_in_http1() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        client.write(PREFACE)
        assert (await client.response()).status == 400


async def test_a_fault_after_the_last_goaway_is_told_too() -> None:
    async with h2_edge(waiting) as running:
        client = await visit(running)
        client.head(request())
        await until(lambda: running.member.has(1), "asked")
        running.service.edge.draining = True
        await client.until(lambda: len(client.goaways) == 2)
        client.write(frame(PING, 0, 1, bytes(8)))
        assert [code for _, code in await client.end()] == ["no_error", "no_error", "protocol_error"]
        running.service.edge.draining = False


@pytest.mark.parametrize("target", [b"/whole", b"/federation", b"/nowhere"])
async def test_a_whole_response_that_is_not_taken_is_cut_in_time(target: bytes) -> None:
    clock = Clock()
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    routes = [{"path": "/nowhere", "status": 404}]
    async with h2_edge(answer(ok), routes=routes) as running:
        running.service.edge.clock = clock
        client = await visit(running, windows=False, settings=struct.pack(">HL", 4, 0))
        stream = client.head(request(target))
        await client.until(lambda: client.streams[stream].heads)
        (connection,) = running.connections
        await until(lambda: connection.full, "waits")
        running.service.edge.sweep(clock())
        clock.ahead += 601
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(client.pings)
        running.service.edge.sweep(clock())
        assert (await client.response(stream)).reset == "cancel"
        (line,) = await running.logged()
        if target == b"/whole":
            assert (line["bytes_out"], line["termination"]) == (0, "cD")
