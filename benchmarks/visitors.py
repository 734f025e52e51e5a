"""Visitors that wrk cannot play: event streams, WebSockets, idle connections, an open loop."""

from __future__ import annotations

import asyncio
import itertools
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar, cast

from benchmarks.members import REPLIES, STEPS, frame, frame_length
from benchmarks.peers import COOKIE, BenchmarkError
from fedproxy.wire.h2 import frame as h2
from fedproxy.wire.h2.hpack import literal

_STAMP: Final = re.compile(rb'"at": "(\d{20})"')
_PATIENCE = 30.0
_BROWSER: Final = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\nReferer: https://mybinder.org/\r\n"
)
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)").search
# Each person has a million numbers that nobody had in the last hours.
_serials: Final = itertools.count(int(time.time()) % 100_000 * 100_000_000, 1_000_000)
_POLLED: Final = (
    "kernels?",
    "sessions?",
    "terminals?",
    "kernels?",
    "contents?content=1&",
    "me?",
    "sessions?",
)
_NOTEBOOK: Final = b'{"cell_type": "code", "source": "import numpy"} ' * 400
# A file is uploaded in three pieces of 128 KiB, once in so many rounds.
_PIECE: Final = b"x" * (128 << 10)
_UPLOADS_EVERY: Final = 16
_EXECUTION: Final = frame(800, masked=True)
_ASSETS: Final = (
    "/static/dist/styles.css",
    "/static/dist/bundle.js",
    "/static/logo.svg",
    "/static/fonts/icons.woff2",
)
_HELD: Final = "If-Modified-Since: Mon, 03 Aug 2099 10:00:00 GMT\r\n"


@dataclass
class Seen:
    """The visitors' results of a run. `delays` in microseconds, unordered."""

    count: int = 0
    seconds: float = 0.0
    delays: list[float] = field(default_factory=list)
    broken: int = 0


def percentile(delays: Sequence[float], share: float) -> float:
    """The smallest that `share` of them does not exceed; 0 of none."""
    if not delays:
        return 0.0
    ordered = sorted(delays)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(path: str, port: int, cookie: str, *more: str) -> bytes:
    """The head of a browser's GET."""
    fields = "".join(f"{line}\r\n" for line in more)
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{_BROWSER}{fields}"
        f"Cookie: {COOKIE}={cookie}\r\n\r\n"
    ).encode()


class _Visitor(asyncio.Protocol):
    """One connection; `opened` is done when the answer's head is there."""

    status = b"200"

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._head = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            self.more(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        if head.split(b" ", 2)[1] != self.status:
            self.opened.set_exception(BenchmarkError(f"a peer answered {head[:60]!r}"))
            return
        self.opened.set_result(None)
        if rest:
            self.more(rest)

    def connection_lost(self, _error: Exception | None) -> None:
        self._seen.broken += 1
        if not self.opened.done():
            self.opened.set_exception(BenchmarkError("a peer closed a connection before it answered"))

    def more(self, data: bytes) -> None:
        """What follows the head."""


class _Stream(_Visitor):
    def more(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for stamp in _STAMP.findall(data):
            self._seen.count += 1
            self._seen.delays.append((now - int(stamp)) / 1000)


class _Echo(_Visitor):
    """Sends the next message when the last is back."""

    status = b"101"

    def __init__(self, seen: Seen, message: bytes) -> None:
        super().__init__(seen)
        self._message = message
        self._buffer = b""

    def send(self) -> None:
        self._sent = time.monotonic_ns()
        self.transport.write(self._message)

    def more(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        length = frame_length(data)
        if not length or len(data) < length:
            return
        self._seen.count += 1
        self._seen.delays.append((time.monotonic_ns() - self._sent) / 1000)
        self._buffer = data[length:]
        self.send()


_V = TypeVar("_V", bound=_Visitor)


async def _open(
    port: int, heads: Sequence[bytes], make: Callable[[], _V], tls: ssl.SSLContext | None = None
) -> list[_V]:
    loop = asyncio.get_running_loop()
    name = "localhost" if tls is not None else None
    visitors: list[_V] = []
    async with asyncio.timeout(_PATIENCE):
        for head in heads:
            transport, visitor = await loop.create_connection(
                make, "127.0.0.1", port, ssl=tls, server_hostname=name
            )
            transport.write(head)
            visitors.append(visitor)
        for visitor in visitors:
            await visitor.opened
    return visitors


async def _watch(seen: Seen, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> Seen:
    """Discards previous results, and counts for `seconds`."""
    seen.count, seen.delays, seen.broken = 0, [], 0
    begin()
    started = time.monotonic()
    await asyncio.sleep(seconds)
    end()
    seen.seconds = time.monotonic() - started
    return Seen(seen.count, seen.seconds, list(seen.delays), seen.broken)


def _leave(visitors: Sequence[_Visitor]) -> None:
    for visitor in visitors:
        visitor.transport.abort()


async def events(
    port: int,
    cookies: Sequence[str],
    streams: int,
    seconds: float,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> Seen:
    """That many event streams of launches, for `seconds`; `begin` and `end` are called around the count."""
    seen = Seen()
    heads = [
        request(
            f"/build/gh/org/repo-{number}/HEAD",
            port,
            cookies[number % len(cookies)],
            "Accept: text/event-stream",
            "Cache-Control: no-cache",
        )
        for number in range(streams)
    ]
    visitors = await _open(port, heads, lambda: _Stream(seen))
    # Every stream has had its turn once, so that what happens at the start of one is over.
    await asyncio.sleep(0.5)
    result = await _watch(seen, seconds, begin, end)
    _leave(visitors)
    return result


class _H2Streams(_Stream):
    """One connection that has all these streams; its windows are as large as can be."""

    def __init__(self, seen: Seen, blocks: Sequence[bytes]) -> None:
        super().__init__(seen)
        self._blocks = blocks
        self._missing = len(blocks)
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        settings = h2.settings({h2.INITIAL_WINDOW_SIZE: h2.LARGEST_WINDOW})
        more = h2.window_update(0, h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW)
        flags = h2.END_HEADERS | h2.END_STREAM
        heads = [h2.frame(h2.HEADERS, flags, 2 * at + 1, block) for at, block in enumerate(self._blocks)]
        self.transport.write(b"".join([h2.PREFACE, settings, more, *heads]))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) - at >= h2.HEADER_SIZE:
            high, low, kind, flags, _ = h2.read_header(data, at)
            end = at + h2.HEADER_SIZE + (high << 8 | low)
            if end > len(data):
                break
            payload = data[at + h2.HEADER_SIZE : end]
            if kind == h2.DATA:
                self.more(payload)
            elif kind == h2.SETTINGS and not flags & h2.ACK:
                self.transport.write(h2.SETTINGS_ACK)
            elif kind == h2.HEADERS:
                self._missing -= 1
                if not self._missing and not self.opened.done():
                    self.opened.set_result(None)
            at = end
        self._rest = data[at:]


async def h2_events(
    port: int,
    cookies: Sequence[str],
    streams: int,
    seconds: float,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> Seen:
    """As `events`, with a hundred streams on each connection."""
    seen = Seen()
    blocks = [
        b"".join(
            [
                literal(b":method", b"GET"),
                literal(b":scheme", b"http"),
                literal(b":authority", b"127.0.0.1:%d" % port),
                literal(b":path", b"/build/gh/org/repo-%d/HEAD" % number),
                literal(b"accept", b"text/event-stream"),
                literal(b"cookie", f"{COOKIE}={cookies[number % len(cookies)]}".encode()),
            ]
        )
        for number in range(streams)
    ]
    loop = asyncio.get_running_loop()
    visitors: list[_H2Streams] = []
    async with asyncio.timeout(_PATIENCE):
        for at in range(0, streams, 100):
            make = partial(_H2Streams, seen, blocks[at : at + 100])
            _, visitor = await loop.create_connection(make, "127.0.0.1", port)
            visitors.append(visitor)
        for visitor in visitors:
            await visitor.opened
    await asyncio.sleep(0.5)
    result = await _watch(seen, seconds, begin, end)
    _leave(visitors)
    return result


async def echo(
    port: int,
    cookies: Sequence[str],
    connections: int,
    size: int,
    seconds: float,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> Seen:
    """WebSockets that each send a message of `size` bytes, wait until it is back, and send it again."""
    seen = Seen()
    heads = [
        request(
            "/echo",
            port,
            cookies[number % len(cookies)],
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        for number in range(connections)
    ]
    message = frame(size, masked=True)
    visitors = await _open(port, heads, lambda: _Echo(seen, message))
    for visitor in visitors:
        visitor.send()
    await asyncio.sleep(0.2)
    result = await _watch(seen, seconds, begin, end)
    _leave(visitors)
    return result


class Person:
    """A browser: one kept connection for requests, and one for a WebSocket if it has any."""

    def __init__(self, seen: Seen, port: int, cookie: str, number: int) -> None:
        self._seen = seen
        self._port = port
        self._cookie = cookie
        self._number = number
        self._serial = next(_serials)
        self._open: list[asyncio.StreamWriter] = []
        self._be(number)

    def _be(self, number: int) -> None:
        """Has cookies of its own by this number."""
        xsrf = f"2|8d3f1c6a|c0ffee{number}|1760000000"
        self._fields = (
            f"Host: 127.0.0.1:{self._port}\r\n{_BROWSER}Accept: */*\r\nContent-Type: application/json\r\n"
            f"X-XSRFToken: {xsrf}\r\nSec-Fetch-Site: same-origin\r\n"
            f"Cookie: {COOKIE}={self._cookie}; _ga=GA1.1.{number}; _xsrf={xsrf}\r\n"
        )

    async def connect(self) -> None:
        """Opens the connection for requests."""
        self.reader, self.writer = await self._connect()

    async def work(self) -> None:
        """JupyterLab for ever: it polls, saves, runs a cell, and now and then uploads a file."""
        server = f"/user/org-repo-{self._number}/api"
        kernel = await self._channels(f"{server}/kernels/{self._number}/channels")
        turn = self._number
        while True:
            for asked in _POLLED:
                await self._ask("GET", f"{server}/{asked}{self._next()}")
            await self._ask("PUT", f"{server}/contents/index.ipynb?{self._next()}", body=_NOTEBOOK)
            await self._run_cell(*kernel)
            if turn % _UPLOADS_EVERY == 0:
                for piece in ("1", "2", "-1"):
                    await self._ask("PUT", f"{server}/contents/data.csv?chunk={piece}", body=_PIECE)
            turn += 1

    async def launch(self) -> None:
        """Launches for ever, each time as somebody else who was here before: a page whose assets the browser
        has, and the stream of the build."""
        while True:
            self._be(self._next())
            page = f"gh/org/repo-{(self._next() + 7 * self._number) % 1000}/HEAD"
            await self._ask("GET", f"/v2/{page}")
            await self._ask("GET", "/api/repoproviders")
            for asset in _ASSETS:
                await self._ask("GET", asset, _HELD)
            self._send("GET", f"/build/short/{page}", "Accept: text/event-stream\r\n")
            await self._head()
            await self.reader.readuntil(b"0\r\n\r\n")
            self._seen.count += STEPS + 1

    def leave(self) -> None:
        """Drops all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        self._open.append(writer)
        return reader, writer

    def _next(self) -> int:
        """A number that was never sent before."""
        self._serial += 1
        return self._serial

    def _send(self, method: str, target: str, more: str = "", body: bytes = b"") -> None:
        if body:
            more += f"Content-Length: {len(body)}\r\n"
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{self._fields}{more}\r\n".encode() + body)

    async def _head(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] not in (b"200", b"304"):
            raise BenchmarkError(f"a peer answered {head[:60]!r}")
        return head

    async def _ask(self, method: str, target: str, more: str = "", body: bytes = b"") -> None:
        started = time.monotonic_ns()
        self._send(method, target, more, body)
        length = _LENGTH(await self._head())
        if length:
            await self.reader.readexactly(int(length[1]))
        self._seen.count += 1
        self._seen.delays.append((time.monotonic_ns() - started) / 1000)

    async def _channels(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._connect()
        writer.write(
            f"GET {target} HTTP/1.1\r\n{self._fields}Connection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise BenchmarkError(f"a peer answered {head[:60]!r}")
        return reader, writer

    async def _run_cell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_EXECUTION)
        for size in REPLIES:
            await reader.readexactly(len(frame(size, masked=False)))
        self._seen.count += 1 + len(REPLIES)


async def people(
    port: int,
    cookies: Sequence[str],
    number: int,
    what: Callable[[Person], Coroutine[None, None, None]],
    seconds: float,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[], None] = lambda: None,
) -> Seen:
    """So many people who do the same steps over and over, each step when the one before is done.

    A request, a message and an event count one each, so whatever the proxy, their shares are the same.
    """
    seen = Seen()
    persons = [Person(seen, port, cookies[at % len(cookies)], at + 1) for at in range(number)]
    doing: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(_PATIENCE):
            for person in persons:
                await person.connect()
        doing = [asyncio.create_task(what(person)) for person in persons]
        await asyncio.sleep(0.5)
        result = await _watch(seen, seconds, begin, end)
        ended = [task for task in doing if task.done()]
        for task in ended:
            if isinstance(error := task.exception(), BenchmarkError):
                raise error
        result.broken += len(ended)
        return result
    finally:
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        for person in persons:
            person.leave()


async def idle(
    port: int,
    cookies: Sequence[str],
    connections: int,
    begin: Callable[[], None],
    end: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> Seen:
    """Connections, each used once and kept: as many before `begin` as between it and `end`.

    The first half fills what memory the proxy had left over, so that the growth is that of a connection.
    """
    seen = Seen()
    heads = [request("/1k", port, cookies[number % len(cookies)]) for number in range(connections)]
    before = await _open(port, heads, lambda: _Visitor(seen), tls)
    await asyncio.sleep(0.5)
    started = time.monotonic()
    begin()
    visitors = await _open(port, heads, lambda: _Visitor(seen), tls)
    await asyncio.sleep(1.0)
    end()
    result = Seen(connections, time.monotonic() - started, [], seen.broken)
    _leave([*before, *visitors])
    return result


def paced(
    port: int, cookies: Sequence[str], connections: int, rate: float, seconds: float, size: int
) -> Seen:
    """GET /1k at `rate` a second in an open loop: a delay is counted from when the request was due.

    A plain loop over `select`, whose time-out is in microseconds where an event loop's is in milliseconds.
    `size` is the bytes of a body, to know when an answer is complete.
    """
    seen = Seen()
    heads = [request("/1k", port, cookie, "Connection: keep-alive") for cookie in cookies]
    free = deque(socket.create_connection(("127.0.0.1", port)) for _ in range(connections))
    everybody = list(free)
    for sock in everybody:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting: dict[socket.socket, tuple[float, bytes]] = {}
    started = time.perf_counter()
    sent, total = 0, int(rate * seconds)
    try:
        while sent < total or waiting:
            now = time.perf_counter()
            if now > started + seconds + _PATIENCE:
                break
            while free and sent < total and started + sent / rate <= now:
                sock = free.popleft()
                sock.sendall(heads[sent % len(heads)])
                waiting[sock] = (started + sent / rate, b"")
                sent += 1
            due = started + sent / rate - time.perf_counter() if sent < total and free else 1.0
            for sock in select.select(list(waiting), [], [], max(0.0, due))[0]:
                intended, answer = waiting.pop(sock)
                data = sock.recv(65536)
                if not data:
                    seen.broken += 1
                    continue
                answer += data
                if len(answer) - answer.find(b"\r\n\r\n") - 4 < size:
                    waiting[sock] = (intended, answer)
                    continue
                seen.count += 1
                seen.delays.append((time.perf_counter() - intended) * 1e6)
                free.append(sock)
            if not free and not waiting:
                raise BenchmarkError("a peer closed every connection")
    finally:
        for sock in everybody:
            sock.close()
    seen.broken += len(waiting)
    seen.seconds = time.perf_counter() - started
    return seen
