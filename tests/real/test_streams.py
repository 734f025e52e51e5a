"""Streams of the size that members really send: builds, kernels, images."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.rig import Conn, Edge, Message, RawClient, Scripted, edge, guard, until

MIB = 1 << 20
BLOCK = bytes(range(256)) * 256  # 64 KiB
BLOCKS = 64 * MIB // len(BLOCK)
MOST_HELD = 2 * MIB


# A build, event by event


def recorded_build() -> list[bytes]:
    """Events with the count, the sum and the spread of sizes of a recorded build: 736 in 118,442 bytes,
    half of them under 98, one of 22,581."""
    rng = random.Random(736)
    sizes = [round(rng.triangular(62, 160, 98)) for _ in range(700)]
    left = 118_442 - 22_581 - sum(sizes)
    sizes += [left // 35] * 34
    sizes += [left - 34 * (left // 35), 22_581]
    rng.shuffle(sizes)
    return [_event(size) for size in sizes]


def _event(size: int) -> bytes:
    head, tail = b'data: {"phase": "building", "message": "', b'\\n"}\n\n'
    return head + b"." * (size - len(head) - len(tail)) + tail


async def test_every_event_of_a_build_arrives_before_the_next_is_sent() -> None:
    events = recorded_build()
    assert (len(events), sum(map(len, events))) == (736, 118_442)
    seen = asyncio.Semaphore(0)

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for event in events:
            conn.send(b"%x\r\n%b\r\n" % (len(event), event))
            await seen.acquire()
        conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        await client.send(
            b"GET /build/gh/binder-examples/r/HEAD HTTP/1.1\r\nHost: hub.test\r\n"
            b"Accept: text/event-stream\r\n\r\n"
        )
        async with guard():
            assert (await client.head()).status == 200
        for event in events:
            assert await next_bytes(client, len(event)) == event
            seen.release()
        async with guard():
            assert await client.chunk() == b""


async def next_bytes(client: RawClient, count: int) -> bytes:
    """The next bytes of a chunked body, which must end a chunk."""
    data = b""
    async with guard():
        while len(data) < count:
            data += await client.chunk()
    return data


# Kernels, all open at once


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


@asynccontextmanager
async def echoing() -> AsyncIterator[Edge]:
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        host, port = next(iter(server.sockets)).getsockname()
        async with edge({"a": f"http://{host}:{port}"}) as running:
            yield running


async def test_fifty_websockets_open_at_once_get_their_own_messages_back() -> None:
    count = 50
    async with echoing() as running:
        host, port = running.address
        everybody = asyncio.Barrier(count)

        async def talk(number: int) -> None:
            rng = random.Random(number)
            url = f"ws://{host}:{port}/user/{number}/api/kernels/1/channels"
            async with connect(url, proxy=None, max_size=None) as websocket:
                await everybody.wait()
                assert len(running.tunnels) == count
                for turn in range(5):
                    binary = rng.randbytes(rng.randrange(1, 100_000))
                    for message in (f"{number}/{turn}", binary):
                        await websocket.send(message)
                        assert await websocket.recv() == message
                await everybody.wait()

        async with asyncio.timeout(30):
            await asyncio.gather(*(talk(number) for number in range(count)))
        lines = await running.logged(count)
        assert {line["status"] for line in lines} == {101}


# Bodies that somebody does not read


class Held:
    """The most that the edge ever held for peers that do not read, in bytes."""

    def __init__(self) -> None:
        self.most = 0

    def look(self, running: Edge) -> int:
        now = running.buffered()
        self.most = max(self.most, now)
        return now


async def stuck(running: Edge, sender: Conn | RawClient, held: Held) -> None:
    """Waits until neither the edge nor the sender can send on."""
    transport = sender.writer.transport
    await until(lambda: held.look(running) and transport.get_write_buffer_size(), "back-pressure")


async def send_blocks(sender: Conn | RawClient) -> None:
    """64 MiB, never more in this process than its own transport's mark."""
    async with asyncio.timeout(30):
        for _ in range(BLOCKS):
            sender.write(BLOCK)
            await sender.flush()


async def take_blocks(receiver: Conn | RawClient, running: Edge, held: Held) -> None:
    """64 MiB, each block as it was sent."""
    async with asyncio.timeout(30):
        for _ in range(BLOCKS):
            assert await receiver.exactly(len(BLOCK)) == BLOCK
            receiver.reader.received.clear()
            held.look(running)


async def test_upload_of_64_mib_to_a_stalled_member_waits_outside_the_edge() -> None:
    held, go_on = Held(), asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.head()
        conn.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        conn.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await take_blocks(conn, running, held)
        conn.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await conn.stall()

    async with edge(Scripted(script, receive_buffer=65_536)) as running:
        client = await running.client()
        await client.send(b"PUT /f HTTP/1.1\r\nHost: hub.test\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        sending = asyncio.ensure_future(send_blocks(client))
        await stuck(running, client, held)
        assert not sending.done()
        go_on.set()
        await sending
        assert (await client.response()).status == 204
        assert 0 < held.most < MOST_HELD


async def test_download_of_64_mib_by_a_stalled_visitor_waits_outside_the_edge() -> None:
    held = Held()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        await send_blocks(conn)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client(receive_buffer=65_536)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(b"GET /f HTTP/1.1\r\nHost: hub.test\r\n\r\n")
        await until(lambda: running.member.connections, "the edge connects")
        await stuck(running, running.member.connections[0], held)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        response: Message = await client.head()
        assert response.status == 200
        await take_blocks(client, running, held)
        assert 0 < held.most < MOST_HELD
