"""Peers and moments that a careless edge would be hurt by."""

from __future__ import annotations

import asyncio

import yaml

from fedproxy.config.load import parse
from fedproxy.proxy.h1.downstream import Downstream
from tests.rig import Conn, answer, edge, until

HEAD = b"Host: hub.test\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LARGE = 3 * 1024 * 1024


async def test_own_answers_wait_for_a_visitor_who_reads_none() -> None:
    routes = [{"path": "/f", "redirect": "https://example.org/" + "x" * 4000, "status": 302}]
    async with edge(answer(OK), routes=routes) as running:
        client = await running.client(receive_buffer=4096)
        sending = asyncio.ensure_future(client.send((b"GET /f HTTP/1.1\r\n" + HEAD) * 5_000))
        await until(lambda: running.buffered() > 0, "the visitor's side is full")
        (connection,) = running.connections
        assert isinstance(connection, Downstream)
        await until(lambda: not connection.reading, "the edge reads no more")
        assert running.buffered() < 512 * 1024
        assert len(connection.machine.held) < 512 * 1024
        sending.cancel()
        client.reset()


async def test_slow_reader_of_a_last_response_gets_all_of_it() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE + bytes(LARGE)
    async with edge(answer(response), timeouts={"response_idle": "2s"}) as running:
        client = await running.client(receive_buffer=4096)
        await client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n" + HEAD)
        await until(lambda: not running.service.edge.busy(), "the member's part is over")
        assert len((await client.response()).body) == LARGE
        assert await client.closed() == "eof"


async def test_endless_interim_responses_are_nonsense() -> None:
    async with edge(answer(b"HTTP/1.1 103 \r\n\r\n" * 3000 + OK)) as running:
        assert (await running.ask(GET)).status == 502
        assert running.errors("a") == {"bad_response": 1}


async def test_connection_with_request_bytes_unsent_serves_nobody_else() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(OK)
        await conn.stall()

    async with edge(script) as running:
        client = await running.client()
        body = bytes(LARGE)
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % len(body) + HEAD + body[:1])
        assert (await client.response()).body == b"ok"
        await client.leave()
        assert (await running.ask(GET)).body == b"ok"


async def test_request_under_way_outlives_its_members_removal() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        asked.set()
        await go_on.wait()
        conn.send(OK)
        await conn.stall()

    async with edge({"a": script, "b": answer(OK)}, settings={"b": {"weight": 0}}) as running:
        client = await running.client()
        await client.send(GET)
        await asked.wait()
        service = running.service
        kept = {"listen": [{"address": "127.0.0.1:0"}], "admin": {"address": "127.0.0.1:0"}, "workers": 1}
        members = {"b": {"url": running.members["b"].url}}
        service._reread = lambda: parse(yaml.safe_dump({**kept, "members": members}), {})
        assert await service.reload() == []
        go_on.set()
        response = await client.response()
        assert (response.body, response.value("set-cookie")) == (b"ok", None)
        assert (await client.ask(GET)).value("set-cookie") is not None


async def test_own_page_does_not_believe_who_the_visitor_says_to_be() -> None:
    async with edge(answer(OK)) as running:
        await running.ask(
            b"GET /active_hosts HTTP/1.1\r\nX-Real-IP: 192.0.2.6\r\nX_Real_IP: 192.0.2.7\r\n" + HEAD
        )
        (line,) = await running.logged()
        assert line["client"] == "127.0.0.1"
