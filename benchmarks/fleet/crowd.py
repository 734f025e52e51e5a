"""The visitors of a fleet: each has its cookie, and comes to some edge as a balancer in front would send it.

A connection is kept for some visits; then another one is made, to any edge. An edge that refuses it is passed
over. What breaks on a kept connection before any byte of an answer is sent again, as browsers do
(RFC 9112 section 9.3.1). Everything else that an edge accepted and that fails, has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from benchmarks.fleet.record import Errand, Faced, LostVisit, MovedVisit
from fedproxy.tasks import cancel

SEED: Final = 1
PORT: Final = 8080
COOKIE: Final = "fedproxy_member"
_KEPT: Final = 0.15  # chance that a visitor comes by another connection the next time
_BUILDS: Final = 0.3  # part of the launches whose image is to be built first
_SESSION: Final = 6  # visits to a session after a launch
_CONNECT: Final = 3.0  # seconds
_PATIENCE: Final = 20.0  # seconds that a visitor waits for the head of an answer, or for a body
_LAUNCH: Final = 120.0  # seconds that one waits for a launch
_PAGES: Final = ("/", "/v2/gh/binder-examples/requirements/HEAD", "/badge.svg", "/api/repoproviders")
_USER: Final = re.compile(r"/user/[^/]+/")
_NO_ROOM: Final = (429, 503)


class Reply(NamedTuple):
    """The head of an answer. member: who served; cookie: its value as it was set, or nothing."""

    status: int
    fields: dict[str, str]
    cookie: str

    @property
    def member(self) -> str:
        """Who served, as toy members say."""
        return self.fields.get("x-toy-member", "")


class LostConnection(Exception):
    """A connection broke. began: after some of the answer."""

    def __init__(self, why: str, began: bool) -> None:
        super().__init__(why)
        self.began = began


def read_head(head: bytes) -> Reply:
    """Raises ValueError for what is no head of an answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields, cookie = {}, ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name.lower() == "set-cookie" and value.startswith(f"{COOKIE}="):
            cookie = value.removeprefix(f"{COOKIE}=").partition(";")[0]
        else:
            fields[name.lower()] = value
    return Reply(int(first.split(" ")[1]), fields, cookie)


class Link:
    """A connection to an edge."""

    def __init__(self, edge: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.edge = edge
        self.used = False
        self._reader = reader
        self._writer = writer

    @property
    def broken(self) -> bool:
        """Whether the edge has ended it."""
        return self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        """Ends it."""
        self._writer.close()

    async def ask(self, request: bytes) -> Reply:
        """The head of the answer. Raises LostConnection, and ValueError for nonsense."""
        try:
            async with asyncio.timeout(_PATIENCE):
                self._writer.write(request)
                return read_head(await self._reader.readuntil(b"\r\n\r\n"))
        except asyncio.IncompleteReadError as error:
            raise LostConnection("closed before the answer", bool(error.partial)) from error
        except ConnectionError as error:
            raise LostConnection("reset before the answer", False) from error
        except TimeoutError as error:
            raise LostConnection(f"no answer within {_PATIENCE:.0f} s", True) from error

    async def skip_body(self, reply: Reply) -> None:
        """Reads the body of a page. Raises LostConnection."""
        try:
            async with asyncio.timeout(_PATIENCE):
                async for _ in self._body(reply):
                    pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise LostConnection("broken in the body", True) from error

    async def outcome(self, reply: Reply) -> dict[str, object]:
        """The last event of a launch: `ready` or `failed`. Raises LostConnection."""
        rest = b""
        try:
            async with asyncio.timeout(_LAUNCH):
                async for part in self._body(reply):
                    *events, rest = (rest + part).split(b"\n\n")
                    for event in events:
                        if event.startswith(b"data: "):
                            said: dict[str, object] = json.loads(event[6:])
                            if said.get("phase") in ("ready", "failed"):
                                return said
        except (ConnectionError, asyncio.IncompleteReadError, ValueError) as error:
            raise LostConnection("broken in the stream", True) from error
        except TimeoutError as error:
            raise LostConnection(f"not launched within {_LAUNCH:.0f} s", True) from error
        raise LostConnection("ended without an outcome", True)

    async def _body(self, reply: Reply) -> AsyncIterator[bytes]:
        """Its parts, as they come (RFC 9112 section 6.3)."""
        if reply.fields.get("transfer-encoding") == "chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            await self._reader.readuntil(b"\r\n")
        elif "content-length" in reply.fields:
            yield await self._reader.readexactly(int(reply.fields["content-length"]))
        elif reply.status not in (204, 304):
            while part := await self._reader.read(1 << 16):
                yield part


@dataclass
class Guest:
    """One visitor. home: its member, which its cookie names. session: a path at `at`, for some visits."""

    cookie: str = ""
    home: str = ""
    session: str = ""
    at: str = ""
    left: int = 0
    link: Link | None = None

    def drop(self) -> None:
        """Ends its connection."""
        if self.link is not None:
            self.link.close()
            self.link = None


class GuestCrowd:
    """All visitors, in this loop. edges: addresses by name. rate, launches: visits and launches a second.

    faced: what they meet with is counted there; put another one in its place for another phase.
    """

    def __init__(self, edges: dict[str, str], guests: int, rate: float, launches: float) -> None:
        self.faced = Faced()
        self._edges = edges
        self._pause = guests / rate
        self._launches = launches / rate
        self._chance = random.Random(SEED)
        self._guests = [Guest() for _ in range(guests)]
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    def start(self) -> None:
        """The visitors come, evenly over the first pause of each."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._live(guest)) for guest in self._guests]

    async def close(self) -> None:
        """All leave."""
        await cancel(self._tasks)
        for guest in self._guests:
            guest.drop()

    @property
    def away(self) -> int:
        """Visitors that nobody has served yet."""
        return sum(not guest.home for guest in self._guests)

    def check(self) -> None:
        """Raises whatever ended a visitor."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _live(self, guest: Guest) -> None:
        await asyncio.sleep(self._chance.random() * self._pause)
        while True:
            if self._chance.random() < _KEPT:
                guest.drop()
            await self._visit(guest)
            await asyncio.sleep(self._chance.expovariate(1 / self._pause))

    async def _visit(self, guest: Guest) -> None:
        faced = self.faced
        if guest.home and self._chance.random() < self._launches:
            await self._launch(guest, faced)
        elif guest.left and self._chance.random() < 0.5:
            guest.left -= 1
            await self._view(guest, faced, guest.session, Errand.SESSION)
        else:
            await self._view(guest, faced, self._chance.choice(_PAGES), Errand.PAGE)

    async def _view(self, guest: Guest, faced: Faced, target: str, errand: Errand) -> None:
        sent = time.monotonic()
        try:
            reply, link = await self._ask(guest, faced, target, "text/html,*/*;q=0.8")
            await link.skip_body(reply)
        except (LostConnection, ValueError) as error:
            self._lose(guest, sent, errand, str(error))
            return
        if reply.status >= 500 or not reply.member:
            self._lose(guest, sent, errand, f"status {reply.status}", keep=True)
        self._meet(guest, sent, errand, reply)
        if reply.fields.get("connection") == "close":
            guest.drop()

    async def _launch(self, guest: Guest, faced: Faced) -> None:
        self._number += 1
        built = self._chance.random() < _BUILDS
        name = f"built-{self._number}" if built else f"cached-{self._number % 50}"
        sent = time.monotonic()
        faced.launches += 1
        try:
            reply, link = await self._ask(guest, faced, f"/build/gh/fleet/{name}/HEAD", "text/event-stream")
            self._meet(guest, sent, Errand.LAUNCH, reply)
            said = await link.outcome(reply)
        except (LostConnection, ValueError) as error:
            self._lose(guest, sent, Errand.LAUNCH, str(error))
            return
        # The page closes the stream, whatever follows.
        guest.drop()
        if said["phase"] == "ready":
            faced.ready += 1
            if match := _USER.search(str(said.get("url"))):
                guest.session, guest.at, guest.left = f"{match[0]}lab", reply.member, _SESSION
        elif said.get("status_code") in _NO_ROOM:
            faced.full.append(time.monotonic())
        else:
            self._lose(guest, sent, Errand.LAUNCH, f"failed: {said.get('message')}")

    async def _ask(self, guest: Guest, faced: Faced, target: str, accept: str) -> tuple[Reply, Link]:
        """Raises LostConnection and ValueError."""
        cookie = f"Cookie: {COOKIE}={guest.cookie}\r\n" if guest.cookie else ""
        request = (
            f"GET {target} HTTP/1.1\r\nHost: fleet.test\r\nAccept: {accept}\r\n"
            f"User-Agent: fedproxy-benchmark\r\n{cookie}\r\n"
        ).encode()
        faced.requests += 1
        began = time.monotonic()
        while True:
            link = await self._link(guest, faced)
            kept, link.used = link.used, True
            try:
                reply = await link.ask(request)
            except LostConnection as error:
                guest.drop()
                if not kept or error.began:
                    raise
                faced.again += 1
                continue
            faced.times.add((time.monotonic() - began) * 1e6)
            return reply, link

    async def _link(self, guest: Guest, faced: Faced) -> Link:
        """A connection to an edge that takes one. Raises LostConnection if none does."""
        if guest.link is not None and guest.link.broken:
            guest.drop()
        if guest.link is None:
            for edge in self._chance.sample(list(self._edges), len(self._edges)):
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_CONNECT):
                        streams = await asyncio.open_connection(self._edges[edge], PORT)
                    guest.link = Link(edge, *streams)
                    return guest.link
                faced.elsewhere += 1
            raise LostConnection("no edge takes a connection", False)
        return guest.link

    def _meet(self, guest: Guest, sent: float, errand: Errand, reply: Reply) -> None:
        home = guest.at if errand is Errand.SESSION else guest.home
        if home and reply.member and reply.member != home and guest.link is not None:
            visit = MovedVisit(sent, time.monotonic(), guest.link.edge, home, reply.member, errand)
            self.faced.moved.append(visit)
        if reply.cookie:
            guest.cookie = reply.cookie
            guest.home = reply.cookie.partition("!")[0]

    def _lose(self, guest: Guest, sent: float, errand: Errand, why: str, *, keep: bool = False) -> None:
        home = guest.at if errand is Errand.SESSION else guest.home
        edge = guest.link.edge if guest.link is not None else ""
        self.faced.lost.append(LostVisit(sent, time.monotonic(), edge, home, errand, why))
        if not keep:
            guest.drop()
