"""The process did not have its time: it was stopped, or its machine slept. That is nobody's time-out.

Here the loop is held up, which is the same for those who wait for it; `tests/serve/test_stopped.py` stops the
whole program.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from fedproxy.decide.member import Member
from tests.rig import Conn, Edge, answer, edge, until
from tests.rig.homes import cookie, get, named
from tests.rig.launches import EVENTS, HEAD, KEEPALIVE, PATIENT, QUOTA, READY, TARGET, chunk, says

PIN = cookie(b"a")
LIMIT = "500ms"
# Each of them passes while nobody looks.
SHORT: dict[str, Any] = {
    "timeouts": dict.fromkeys(
        ("connect", "request_head", "request_idle", "response_head", "response_idle", "keepalive"), LIMIT
    ),
    "breaker": {"failures": 1, "open": "300s", "max_ejected": 1.0},
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"


def sleep() -> None:
    """Nothing turns for three times as long as anything may take."""
    time.sleep(1.5)


def its(running: Edge) -> Member:
    return running.service.edge.federation.by_name["a"]


def unblamed(running: Edge) -> bool:
    return its(running).breaker.closed and not running.errors("a")


async def settled() -> None:
    """Lets the sweep come round after what is held up has begun."""
    await asyncio.sleep(0.15)


@pytest.mark.parametrize("half", [get()[:20], get(b"/", b"Content-Length: 8", method=b"POST") + b"half"])
async def test_visitor_who_was_in_time_is_not_cut(half: bytes) -> None:
    async with edge(answer(OK), **SHORT) as running:
        client = await running.client()
        await client.send(half)
        await settled()
        sleep()
        await settled()
        await client.send(get()[20:] if len(half) == 20 else b"rest")
        assert (await client.response()).status == 200


async def test_visitor_who_was_in_time_is_not_cut_when_a_sweep_is_held_up() -> None:
    async with edge(answer(OK), **SHORT) as running:
        client = await running.client()
        await client.send(get()[:20])
        core = running.service.edge
        await until(lambda: any(cast(Any, each).head_since for each in core.connections), "half a head")
        clock, sweeps = core.clock, 0

        def slow() -> float:
            nonlocal sweeps
            now = clock()
            sweeps += 1
            if sweeps == 1:
                sleep()
            return now

        core.clock = slow
        await until(lambda: sweeps == 2, "another sweep")
        await client.send(get()[20:])
        assert (await client.response()).status == 200


async def test_connection_that_is_kept_is_still_there() -> None:
    async with edge(answer(OK), **SHORT) as running:
        client = await running.client()
        await client.ask(get())
        await settled()
        sleep()
        await settled()
        assert (await client.ask(get())).status == 200


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"], ids=["head", "body"]
)
async def test_member_that_was_in_time_is_neither_cut_nor_charged(begun: bytes) -> None:
    go_on = asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(begun)
        await go_on.wait()
        conn.send(OK.removeprefix(begun))

    async with edge({"a": script, "b": named("b")}, **SHORT) as running:
        client = await running.client()
        await client.send(get(b"/", PIN))
        await until(lambda: running.members["a"].requests, "the request")
        await settled()
        sleep()
        await settled()
        go_on.set()
        assert (await client.response()).body == b"a"
        assert unblamed(running)


async def test_tunnel_in_which_something_moved_in_time_is_not_cut() -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        while True:
            conn.send(await conn.exactly(1))

    async with edge(script, **SHORT) as running:
        client = await running.client()
        await client.send(get(b"/", b"Connection: Upgrade", b"Upgrade: x"))
        assert (await client.head()).status == 101
        await settled()
        sleep()
        await settled()
        await client.send(b"x")
        assert await client.exactly(1) == b"x"


async def test_time_limit_runs_again_after_it() -> None:
    async def silent(conn: Conn) -> None:
        await conn.request()
        await conn.stall()

    async with edge({"a": silent, "b": named("b")}, **SHORT) as running:
        client = await running.client()
        await client.send(get(b"/", PIN))
        await until(lambda: running.members["a"].requests, "the request")
        sleep()
        assert (await client.response()).body == b"b"
        assert running.errors("a") == {"response_timeout": 1}
        assert not its(running).breaker.closed


@contextmanager
def thronged() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener that answers no SYN until its queue is emptied, and those who fill the queue."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield listener, fillers
        finally:
            for filler in fillers:
                filler.close()


async def test_connection_that_was_not_made_meanwhile_is_tried_anew() -> None:
    with thronged() as (listener, fillers):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with edge({"a": url, "b": named("b")}, **SHORT) as running:
            client = await running.client()
            await client.send(get(b"/", PIN))
            await until(lambda: running.service.edge.tasks, "the attempt")
            await settled()
            sleep()
            for filler in fillers:
                filler.close()
            listener.setblocking(False)
            listener.listen(16)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if await reader.read(65536):
                    writer.write(OK)
                writer.close()

            server = await asyncio.start_server(serve, sock=listener)
            assert (await client.response()).body == b"a"
            assert unblamed(running)
            server.close()


async def test_launch_that_waits_for_an_event_may_still_move() -> None:
    go_on = asyncio.Event()

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(KEEPALIVE))
        await go_on.wait()
        conn.send(chunk(QUOTA))
        await conn.stall()

    members = {"a": script, "b": says(READY)}
    async with edge(members, launch={"hold": LIMIT}, **PATIENT) as running:
        client = await running.client()
        await client.send(get(TARGET, PIN, EVENTS))
        await until(lambda: running.members["a"].requests, "the launch")
        await settled()
        sleep()
        await asyncio.sleep(0)
        go_on.set()
        assert b"ready" in (await client.response()).body


async def test_member_that_gave_up_on_an_edge_that_slept_is_not_charged() -> None:
    asked, lost = threading.Event(), threading.Event()

    def give_up(listener: socket.socket) -> None:
        conn, _ = listener.accept()
        conn.recv(65536)
        asked.set()
        lost.wait(10)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=give_up, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with edge({"a": url, "b": named("b")}, breaker=SHORT["breaker"]) as running:
            client = await running.client()
            await client.send(get(b"/", PIN))
            await until(asked.is_set, "the request")
            # The sweep comes round once a second here.
            lost.set()
            time.sleep(3.2)
            assert (await client.response()).body == b"b"
            assert its(running).breaker.closed
            assert running.errors("a") == {"reset": 1}
        thread.join()
