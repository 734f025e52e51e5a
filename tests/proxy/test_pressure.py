"""A visitor or member who reads slowly holds up the other, and the edge stores next to nothing."""

from __future__ import annotations

import asyncio

from tests.rig import Conn, edge, refusing, until

HEAD = b"Host: hub.test\r\n\r\n"
SIZE = 8 * 1024 * 1024
MOST = 2 * 1024 * 1024


async def test_pipelined_responses_wait_for_a_visitor_who_does_not_read() -> None:
    async def script(conn: Conn) -> None:
        while True:
            await conn.request()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            for _ in range(SIZE // 65536):
                conn.send(bytes(65536))
                await conn.flush()

    async with edge(script) as running:
        client = await running.client(receive_buffer=4096)
        await client.send((b"GET / HTTP/1.1\r\n" + HEAD) * 2)
        await until(lambda: running.buffered() > 0, "the visitor's side is full")
        most = 0
        for _ in range(2):
            response = asyncio.ensure_future(client.response())
            while not response.done():
                most = max(most, running.buffered())
                await asyncio.sleep(0)
            assert len(response.result().body) == SIZE
        assert most < MOST


async def test_upload_that_waited_for_a_connection_moves_when_the_first_member_refuses() -> None:
    async def script(conn: Conn) -> None:
        request = await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert request.body == bytes(SIZE)
        await conn.stall()

    with refusing() as url:
        async with edge({"a": url, "b": script}) as running:
            client = await running.client()
            await client.send(
                b"POST / HTTP/1.1\r\nCookie: fedproxy_member=a\r\nContent-Length: %d\r\n" % SIZE + HEAD
            )
            await client.send(bytes(SIZE))
            assert (await client.response()).body == b"ok"
            assert running.errors("a") == {"connect": 1}
