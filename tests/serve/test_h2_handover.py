"""HTTP/2 connections across reloads and workers that change: no request is lost, and no stream is cut."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rig import Ended
from tests.rig.h2 import H2Client, request
from tests.rig.running import Running, patience, paused, running, until

H2: dict[str, Any] = {"listen": [{"address": "127.0.0.1:0", "http2": True}]}
EVENTS = request(b"/build/gh/a/b/HEAD", (b"accept", b"text/event-stream"))


async def visit(edge: Running) -> H2Client:
    """A connection; another one if this process was so slow that an edge that drains closed the first."""
    while True:
        began = time.monotonic()
        client = await edge.client()
        was_late = paused(began)
        try:
            return await H2Client(client).begin()
        except Ended:
            if not was_late:
                raise


async def asking(edge: Running, begun: asyncio.Semaphore, enough: asyncio.Event) -> None:
    """Asks again and again, and begins a new connection once it is told to; every request is answered.

    begun: released after the first one.
    """
    client, asked = await visit(edge), 0
    while not enough.is_set():
        if client.goaways:
            await client.leave()
            client = await visit(edge)
        response = await client.ask(request(b"/x"))
        assert (response.status, response.body, response.reset) == (200, b"ok", None)
        asked += 1
        if asked == 1:
            begun.release()
    await client.leave()


@pytest.mark.parametrize(("workers", "then"), [(1, 2), (2, 3), (2, 1)])
async def test_workers_that_are_replaced_end_their_connections_in_two_steps(
    tmp_path: Path, workers: int, then: int
) -> None:
    async with running(tmp_path, workers=workers, **H2) as edge:
        old = edge.program.workers()
        clients = [await visit(edge) for _ in range(4)]
        streams = [client.head(EVENTS) for client in clients]
        for client, stream in zip(clients, streams, strict=True):
            await client.until(lambda client=client, stream=stream: client.streams[stream].body)
        begun, enough = asyncio.Semaphore(0), asyncio.Event()
        visitors = [asyncio.ensure_future(asking(edge, begun, enough)) for _ in range(3)]
        async with patience():
            for _ in visitors:
                await begun.acquire()
        edge.write(workers=then, **H2)
        edge.program.signal(signal.SIGHUP)
        await edge.program.line("reloaded ")
        for client in clients:
            await client.until(lambda client=client: len(client.goaways) == 2)
            assert client.goaways[0] == (2**31 - 1, "no_error")
        enough.set()
        await asyncio.gather(*visitors)
        await edge.hub.event()
        for client, stream in zip(clients, streams, strict=True):
            seen = client.streams[stream]
            async with patience():
                await client.until(lambda seen=seen: seen.body.count(b"building") > 1)
            assert not seen.over
        await edge.hub.end()
        for client, stream in zip(clients, streams, strict=True):
            assert (await client.response(stream)).ended
        await until(lambda: not set(edge.program.workers()) & set(old), "the end of the old workers")
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_requests_under_way_at_the_end_are_answered(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers=workers, **H2) as edge:
        client = await visit(edge)
        stream = client.head(EVENTS)
        await client.until(lambda: client.streams[stream].body)
        edge.program.signal(signal.SIGTERM)
        await client.until(lambda: len(client.goaways) == 2)
        await edge.hub.end()
        assert (await client.response(stream)).ended
        assert await edge.program.ended() == 0
