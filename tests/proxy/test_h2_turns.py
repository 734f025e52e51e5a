"""Streams of one connection share it: fairly, or as their visitor says (RFC 9218)."""

from __future__ import annotations

import asyncio
import struct

from tests.proxy.test_h2 import h2_edge, visit
from tests.rig import Conn, Message, per_request, until
from tests.rig.h2 import DATA, PRIORITY_UPDATE, WINDOW_UPDATE, H2Client, frame, request

MOST = struct.pack(">L", 2**31 - 1 - 65_535)
SIZE = 2_000_000
WIDE = struct.pack(">HL", 4, 2**31 - 1)


async def large(conn: Conn, asked: Message) -> None:
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE, bytes(SIZE))
    await conn.flush()


async def begin(client: H2Client, *fields: tuple[tuple[bytes, bytes], ...]) -> list[int]:
    """Asks for as many large answers, none of which can be sent before all have begun."""
    streams = [client.head(request(b"/%d" % number, *more)) for number, more in enumerate(fields)]
    await client.until(lambda: all(client.streams[stream].heads for stream in streams))
    return streams


def shares(client: H2Client, first: int) -> list[int]:
    """The streams of the DATA frames from there on."""
    return [each.stream for each in client.frames[first:] if each.kind == DATA]


async def test_streams_take_turns() -> None:
    async with h2_edge(per_request(large)) as running:
        client = await visit(running, windows=False, settings=WIDE)
        streams = await begin(client, (), (), ())
        (connection,) = running.connections
        await until(lambda: all(stream.waiting for stream in connection.machine.streams.values()), "held")
        at = len(client.frames)
        client.write(frame(WINDOW_UPDATE, 0, 0, MOST))
        for stream in streams:
            assert len((await client.response(stream)).body) == SIZE
        turns = shares(client, at)
        # However each is read, the first frames are of all of them.
        assert set(turns[:4]) == set(streams)


async def test_what_is_urgent_goes_first() -> None:
    async with h2_edge(per_request(large)) as running:
        client = await visit(running, windows=False, settings=WIDE)
        later, first = await begin(client, ((b"priority", b"u=6"),), ((b"priority", b"u=1"),))
        (connection,) = running.connections
        await until(lambda: all(stream.waiting for stream in connection.machine.streams.values()), "held")
        at = len(client.frames)
        # What waits of the urgent one comes before any of the other.
        client.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 60_000)))
        await client.until(
            lambda: sum(len(each.payload) for each in client.frames[at:] if each.kind == DATA) == 60_000
        )
        assert set(shares(client, at)) == {first}
        client.write(frame(PRIORITY_UPDATE, 0, 0, struct.pack(">L", later) + b"u=0"))
        at = len(client.frames)
        client.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 40_000)))
        await client.until(
            lambda: sum(len(each.payload) for each in client.frames[at:] if each.kind == DATA) == 40_000
        )
        assert set(shares(client, at)) == {later}
        client.write(frame(WINDOW_UPDATE, 0, 0, MOST[:1] + b"\0\0\0"))
        for stream in (first, later):
            assert len((await client.response(stream)).body) == SIZE


async def test_events_do_not_wait_behind_a_download() -> None:
    tell = asyncio.Event()

    async def handle(conn: Conn, asked: Message) -> None:
        if asked.target != b"/events":
            await large(conn, asked)
            return
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await tell.wait()
        conn.send(b"9\r\ndata: x\n\n\r\n")
        await conn.stall()

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running, windows=False, settings=WIDE)
        events = client.head(request(b"/events"))
        await client.until(lambda: client.streams[events].heads)
        streams = await begin(client, (), (), ())
        (connection,) = running.connections
        held = connection.machine.streams
        await until(lambda: all(held[stream].waiting for stream in streams), "held")
        tell.set()
        await until(lambda: held[events].waiting, "told")
        at = len(client.frames)
        client.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 1_000_000)))
        await client.until(lambda: client.streams[events].body)
        assert shares(client, at)[0] == events
        assert client.streams[events].body == b"data: x\n\n"
        await client.leave()


async def test_events_pass_a_download_that_its_visitor_reads_slowly() -> None:
    """The system takes no more, so everything has to wait; the event is the first that goes."""
    tell = asyncio.Event()
    told: list[bytes] = []
    size = 30_000_000

    async def handle(conn: Conn, asked: Message) -> None:
        if asked.target != b"/events":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))
            await conn.flush()
            return
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while await tell.wait():
            tell.clear()
            told.append(b"data: x\n\n")
            conn.send(b"9\r\ndata: x\n\n\r\n")

    async with h2_edge(per_request(handle)) as running:
        raw = await running.client(receive_buffer=16_384)
        client = await H2Client(raw, windows=False).begin(WIDE)
        client.write(frame(WINDOW_UPDATE, 0, 0, MOST))
        events = client.head(request(b"/events"))
        await client.until(lambda: client.streams[events].heads)
        download = client.head(request(b"/download"))
        (connection,) = running.connections
        await client.until(lambda: client.streams[download].received)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]

        def waits() -> bool:
            """The system may take a little more; then the event goes, and another one is told."""
            waiting = bool(connection.machine.streams[events].waiting)
            if not (connection.writable or waiting):
                tell.set()
            return waiting

        await until(waits, "an event that waits")
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        before = len(client.streams[download].received)
        await client.until(lambda: len(client.streams[events].body) == len(b"".join(told)))
        # What the system and the loop had taken before, and no more.
        assert len(client.streams[download].received) - before < 3_000_000
        await client.leave()
