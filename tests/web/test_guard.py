"""What the admin listener gives those who connect to it, and when it takes it back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from aiohttp import web

from fedproxy.web.guard import Guarded
from tests.rig import Ended, RawClient, guard

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LONG = b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n"
PUT = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
LARGE = 8 * 1024 * 1024
ROOM = 4


class Listener:
    """An application behind a guard with a clock of its own; `/long` is answered when told."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.go_on = asyncio.Event()
        self.answering = 0
        app = web.Application()
        app.router.add_route("*", "/", self._short)
        app.router.add_get("/large", self._large)
        app.router.add_get("/made", self._made)
        app.router.add_get("/long", self._long)
        self.guard = Guarded(app, ROOM, lambda: self.time)
        self.clients: list[RawClient] = []

    async def _short(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="ok")

    async def _large(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE))

    async def _made(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(LARGE // 65536):
                await response.write(bytes(65536))
        return response

    async def _long(self, request: web.Request) -> web.Response:
        self.answering += 1
        await self.go_on.wait()
        return web.Response(text="ok")

    async def client(self, said: bytes = b"", receive_buffer: int = 0) -> RawClient:
        client = await RawClient.connect(self.address, receive_buffer=receive_buffer)
        self.clients.append(client)
        if said:
            await client.send(said)
        return client

    async def served(self) -> RawClient:
        client = await self.client()
        assert (await client.ask(GET)).body == b"ok"
        return client

    async def after(self, seconds: float) -> None:
        """So much later; what was sent until now has been read."""
        self.time += seconds
        self.guard.look()

    address: tuple[str, int]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    found = Listener()
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    found.address = sock.getsockname()
    await found.guard.listen(sock)
    async with guard():
        yield found
        found.go_on.set()
        for client in found.clients:
            await client.leave()
        await found.guard.close()


async def ends(client: RawClient) -> bool:
    with suppress(Ended, OSError):
        return not await client.reader.read(1)
    return True


async def test_one_too_many_takes_the_place_of_who_waited_longest_without_asking(listener: Listener) -> None:
    asked = await listener.served()
    waiting = [await listener.client() for _ in range(ROOM - 1)]
    for each in waiting:
        newcomer = await listener.served()
        assert await ends(each)
        # They are kept, and so idle: the next one takes the place of one that never asked.
        assert (await asked.ask(GET)).body == (await newcomer.ask(GET)).body == b"ok"


async def test_flood_leaves_room_for_who_asks(listener: Listener) -> None:
    scrape = await listener.served()
    for _ in range(50):
        flood = [await listener.client(said) for said in (b"", b"G", b"GET / HTTP/1.1\r\nX: ", b"")]
        assert (await (await listener.served()).ask(GET)).body == b"ok"
        for client in flood:
            await client.leave()
        assert (await scrape.ask(GET)).body == b"ok"


async def test_who_was_idle_longest_goes_when_all_have_asked(listener: Listener) -> None:
    first, *others = [await listener.served() for _ in range(ROOM)]
    await first.ask(GET)
    newcomer = await listener.served()
    assert await ends(others[0])
    for client in (first, *others[1:], newcomer):
        assert (await client.ask(GET)).body == b"ok"


async def test_who_comes_is_not_pushed_out_by_the_next_while_others_are_idle(listener: Listener) -> None:
    listener.guard.room = 8
    idle = [await listener.served() for _ in range(8)]
    waiting = [await listener.client() for _ in range(3)]
    for client in waiting:
        assert (await client.ask(GET)).body == b"ok"
    for client in idle[:3]:
        assert await ends(client)
    assert (await idle[3].ask(GET)).body == b"ok"


async def test_requests_that_are_being_answered_are_left_alone(listener: Listener) -> None:
    busy = [await listener.client(LONG) for _ in range(ROOM)]
    while listener.answering < ROOM:
        await asyncio.sleep(0)
    assert await ends(await listener.client(GET))
    await listener.after(3600)
    listener.go_on.set()
    for client in busy:
        assert (await client.response()).body == b"ok"


@pytest.mark.parametrize("head", [b"G", GET[:-2], GET[:-4] + b"\r\nX: y"])
async def test_head_that_does_not_end_is_answered_with_408(listener: Listener, head: bytes) -> None:
    for before in (b"", GET):
        client = await listener.client()
        if before:
            assert (await client.ask(before)).body == b"ok"
        await client.send(head)
        # Once this one is answered, that head was read.
        await listener.served()
        await listener.after(9.9)
        await client.send(b"E")
        await listener.served()
        await listener.after(0.2)
        assert (await client.response()).status == 408
        assert await client.closed() == "eof"


async def test_connection_that_says_nothing_is_closed_and_one_that_asked_is_kept_longer(
    listener: Listener,
) -> None:
    silent, asked = await listener.client(), await listener.served()
    await listener.after(10.1)
    assert await ends(silent)
    assert (await asked.ask(GET)).body == b"ok"
    await listener.after(74)
    assert (await asked.ask(GET)).body == b"ok"
    await listener.after(76)
    assert await ends(asked)


@pytest.mark.parametrize("target", [b"/large", b"/made"])
async def test_reader_who_takes_nothing_is_dropped(listener: Listener, target: bytes) -> None:
    reader = await listener.client(GET.replace(b"/ ", target + b" "), receive_buffer=4096)
    assert (await reader.head()).status == 200
    await listener.after(0)
    for _ in range(100):
        await listener.after(1)
        await asyncio.sleep(0)
    with pytest.raises((Ended, ConnectionError)):
        await reader.exactly(LARGE)


async def test_head_without_measure_is_dropped(listener: Listener) -> None:
    client = await listener.client(GET[:-2])
    with suppress(ConnectionError):
        while not client.writer.is_closing():
            await client.send(b"x" * 65536)
            await asyncio.sleep(0)


async def test_body_is_read_and_the_connection_serves_on(listener: Listener) -> None:
    client = await listener.client(PUT % 300_000 + bytes(300_000))
    assert (await client.response()).body == b"ok"
    assert (await client.ask(GET)).body == b"ok"


async def test_close_does_not_wait_for_who_has_not_asked(listener: Listener) -> None:
    client, asked = await listener.client(), await listener.served()
    await listener.guard.close()
    assert await ends(client)
    assert await ends(asked)
