"""`python -m benchmarks.memory`: how much the edge's memory grows for bodies, streams, sockets and sessions.

The edge runs alone in its process, the members in another; this one is the visitors. Growth is the peak
resident memory (VmRSS) under load, minus the value before, after a warm-up of the same kind. For a further
worker it is what that process shares with no other, of the one that has most. Exit status 1 if a limit is
exceeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import uvloop
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.peers import BenchmarkError, fetch, is_worker, require_free
from fedproxy.decide.sessions import Place, Sessions
from fedproxy.wire.h2 import frame as h2
from fedproxy.wire.h2.hpack import literal

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = bytes(256 * KIB)
EVENT = b'data: {"phase": "building", "message": "' + b"." * 54 + b'"}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)

_STALL = 1.0  # seconds in which nobody reads: a thousand times what it takes to fill every buffer
_PATIENCE = 120.0  # seconds for one measurement


@dataclass(frozen=True)
class Ports:
    """Of the edge, its admin listener and the two members, upward from one port."""

    edge: int

    @property
    def admin(self) -> int:
        """The edge's admin listener."""
        return self.edge + 1

    @property
    def http(self) -> int:
        """The member of bodies and event streams."""
        return self.edge + 2

    @property
    def sockets(self) -> int:
        """The member of WebSockets."""
        return self.edge + 3


# The members


class Member:
    """A member that sends and takes as much as it is asked to, and stalls until it is released."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._streams: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection until it ends."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
                await writer.drain()
        writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        what, _, number = head.split(b" ")[1].decode().strip("/").partition("/")
        if what == "download":
            await _send(
                writer, b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % number.encode(), int(number)
            )
            return
        if what == "upload":
            await self._released.wait()
            self._released.clear()
            await _take(reader, int(number))
        elif what == "events":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                + CHUNK
            )
            self._streams.append(writer)
            return
        elif what == "event":
            for stream in self._streams:
                stream.write(CHUNK)
        elif what == "end":
            for stream in self._streams:
                stream.write(b"0\r\n\r\n")
            self._streams.clear()
        elif what == "release":
            self._released.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def _send(writer: asyncio.StreamWriter, head: bytes, size: int) -> None:
    writer.write(head)
    for left in range(size, 0, -len(BLOCK)):
        writer.write(BLOCK[:left])
        await writer.drain()


async def _take(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        data = await reader.read(min(size, MIB))
        if not data:
            raise ConnectionResetError
        size -= len(data)


async def _echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def _run_members(ports: Ports) -> None:
    async with (
        await asyncio.start_server(Member().handle, "127.0.0.1", ports.http, backlog=2048) as server,
        serve(_echo, "127.0.0.1", ports.sockets, backlog=2048, compression=None, ping_interval=None),
    ):
        await server.serve_forever()


# The visitors


def _resident(pid: int) -> int:
    """A process's resident memory, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * KIB


@dataclass
class Meter:
    """The edge's resident memory, in bytes: what it was at first, and the most it was since."""

    pid: int
    before: int = 0
    most: int = 0

    def read(self) -> int:
        """Looks, and keeps the highest."""
        now = _resident(self.pid)
        self.most = max(self.most, now)
        return now

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Looks twenty times a second while the block runs."""
        self.most = 0
        self.before = self.read()
        watch = asyncio.create_task(self._watch())
        try:
            yield
            self.read()
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            self.read()
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Figure:
    """What was measured. `limit` and `growth` in bytes, both per one of `count`."""

    what: str
    before: int
    most: int
    count: int
    limit: int
    seconds: float

    @property
    def growth(self) -> float:
        """Above what it was, per one."""
        return (self.most - self.before) / self.count

    @property
    def held(self) -> bool:
        """Whether it stayed within its limit."""
        return self.growth <= self.limit


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock, limit=64 * KIB)


def _request(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: hub.test", *fields, "", ""]).encode()


async def _head(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchmarkError(f"the edge answered {head[:60]!r}")


async def _tell(port: int, path: str) -> None:
    status, _ = await asyncio.to_thread(fetch, port, path)
    if status != 200:
        raise BenchmarkError(f"the member answered {status} to {path}")


async def download(ports: Ports, size: int) -> None:
    """A visitor who asks, reads nothing for a while, and then reads it all."""
    reader, writer = await _open(ports.edge)
    writer.write(_request("GET", f"/download/{size}"))
    await asyncio.sleep(_STALL)
    await _head(reader)
    await _take(reader, size)
    writer.close()
    await writer.wait_closed()


async def upload(ports: Ports, size: int) -> None:
    """A visitor who sends to a member that reads nothing for a while, and then reads it all."""
    reader, writer = await _open(ports.edge)
    head = _request("PUT", f"/upload/{size}", f"Content-Length: {size}")
    sending = asyncio.create_task(_send(writer, head, size))
    await asyncio.sleep(_STALL)
    await _tell(ports.http, "/release")
    await sending
    await _head(reader)
    writer.close()
    await writer.wait_closed()


async def streams(ports: Ports, count: int) -> None:
    """That many open event streams, each with three events."""
    opened = [await _open(ports.edge) for _ in range(count)]
    for _, writer in opened:
        writer.write(_request("GET", "/events", "Accept: text/event-stream", "Accept-Encoding: identity"))
    for reader, _ in opened:
        await _head(reader)
        await reader.readexactly(len(CHUNK))
    for _ in range(2):
        await _tell(ports.http, "/event")
        for reader, _ in opened:
            await reader.readexactly(len(CHUNK))
    await asyncio.sleep(_STALL)
    await _tell(ports.http, "/end")
    for reader, writer in opened:
        await reader.readexactly(len(b"0\r\n\r\n"))
        writer.close()
        await writer.wait_closed()


async def sockets(ports: Ports, count: int) -> None:
    """That many open WebSockets, each with three messages there and back."""
    url = f"ws://127.0.0.1:{ports.edge}/sockets"
    message = bytes(4 * KIB)
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(connect(url, proxy=None, compression=None, ping_interval=None))
            for _ in range(count)
        ]
        for _ in range(3):
            for websocket in opened:
                await websocket.send(message)
            for websocket in opened:
                if await websocket.recv() != message:
                    raise BenchmarkError("a WebSocket brought another's message")
        await asyncio.sleep(_STALL)


# The same over HTTP/2


class H2Visitor:
    """One connection, whose windows are as large as can be, or as said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heads = 0
        self.received = 0
        self._next = 1

    @classmethod
    async def open(cls, port: int, window: int = h2.LARGEST_WINDOW) -> H2Visitor:
        """Connects."""
        visitor = cls(*await _open(port))
        visitor.writer.write(
            h2.PREFACE
            + h2.settings({h2.INITIAL_WINDOW_SIZE: window})
            + h2.window_update(0, h2.LARGEST_WINDOW - h2.DEFAULT_WINDOW)
        )
        return visitor

    def ask(self, path: str) -> None:
        """Begins a stream."""
        fields = {
            b":method": b"GET",
            b":scheme": b"http",
            b":authority": b"hub.test",
            b":path": path.encode(),
            b"accept": b"text/event-stream",
        }
        block = b"".join([literal(*field) for field in fields.items()])
        self.writer.write(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, self._next, block))
        self._next += 2

    async def read(self, heads: int, received: int) -> None:
        """Reads until so many heads and so many bytes of bodies have come in all."""
        while self.heads < heads or self.received < received:
            high, low, kind, flags, _ = h2.read_header(await self.reader.readexactly(h2.HEADER_SIZE), 0)
            size = high << 8 | low
            await self.reader.readexactly(size)
            if kind == h2.HEADERS:
                self.heads += 1
            elif kind == h2.DATA:
                self.received += size
            elif kind == h2.SETTINGS and not flags & h2.ACK:
                self.writer.write(h2.SETTINGS_ACK)

    async def leave(self) -> None:
        """Closes the connection."""
        self.writer.close()
        await self.writer.wait_closed()


async def h2_streams(ports: Ports, count: int) -> None:
    """As `streams`, with a hundred on each connection."""
    visitors = []
    for at in range(0, count, 100):
        visitor = await H2Visitor.open(ports.edge)
        for _ in range(min(100, count - at)):
            visitor.ask("/events")
        visitors.append((visitor, min(100, count - at)))
    for events in (1, 2, 3):
        for visitor, number in visitors:
            await visitor.read(number, number * events * len(EVENT))
        if events < 3:
            await _tell(ports.http, "/event")
    await asyncio.sleep(_STALL)
    await _tell(ports.http, "/end")
    for visitor, _ in visitors:
        await visitor.leave()


async def h2_idle(ports: Ports, count: int) -> None:
    """That many connections, each of which has asked once."""
    visitors = [await H2Visitor.open(ports.edge) for _ in range(count)]
    for visitor in visitors:
        visitor.ask("/download/1")
        await visitor.read(1, 1)
    await asyncio.sleep(_STALL)
    for visitor in visitors:
        await visitor.leave()


async def h2_stalled(ports: Ports, count: int) -> None:
    """That many streams on one connection, of whose large responses the visitor takes one byte each."""
    visitor = await H2Visitor.open(ports.edge, 1)
    for _ in range(count):
        visitor.ask(f"/download/{16 * MIB}")
    await asyncio.sleep(3 * _STALL)
    await visitor.leave()


@dataclass(frozen=True)
class Load:
    """One measurement. `amount` is what the load is called with, `warm` the same for the warm-up."""

    what: str
    run: Callable[[Ports, int], Awaitable[None]]
    amount: int
    warm: int
    count: int
    limit: int


LOADS = (
    Load("1 GiB, stalled visitor", download, GIB, MIB, 1, 32 * MIB),
    Load("1 GiB, stalled member", upload, GIB, MIB, 1, 32 * MIB),
    Load("500 event streams, each", streams, 500, 5, 500, 16 * KIB),
    Load("500 WebSockets, each", sockets, 500, 5, 500, 16 * KIB),
    Load("500 event streams by HTTP/2, each", h2_streams, 500, 5, 500, 16 * KIB),
    Load("2,000 idle HTTP/2 connections, each", h2_idle, 2000, 20, 2000, 16 * KIB),
    Load("128 stalled HTTP/2 streams", h2_stalled, 128, 8, 1, 32 * MIB),
)


async def _measure(load: Load, ports: Ports, pid: int) -> Figure:
    async with asyncio.timeout(_PATIENCE):
        await load.run(ports, load.warm)
        meter = Meter(pid)
        started = time.monotonic()
        async with meter.watching():
            await load.run(ports, load.amount)
        seconds = time.monotonic() - started
    return Figure(load.what, meter.before, meter.most, load.count, load.limit, seconds)


# Sessions


def _hold_sessions() -> tuple[int, int]:
    """Resident memory before and with as many known sessions as there are by default, in bytes."""
    chance = random.Random(1)
    before = _resident(os.getpid())
    known = Sessions()
    place = Place("https://2i2c.mybinder.org", "hetzner-2i2c")
    for number in range(known.most):
        name = b"/user/binder-examples-req-%08x" % chance.getrandbits(32)
        known.announce(name, place, 0.0, b"/v2/gh/org-%d/repo-%d/HEAD" % (number % 300, number % 900))
    return before, _resident(os.getpid())


def _sessions() -> Figure:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--sessions"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"sessions were not held: {done.stderr.strip()[-300:]}")
    before, most = json.loads(done.stdout)
    seconds = time.monotonic() - started
    return Figure("100,000 known sessions, each", before, most, 100_000, 512, seconds)


# Workers


def _private(pid: int) -> int:
    """A process's memory that it shares with no other, in bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = (
        line.split() for line in rollup.splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))
    )
    return sum(int(fields[1]) for fields in found) * KIB


def _most_private(edge: int) -> int:
    """Of the edge's worker that has most, in bytes."""
    children = Path(f"/proc/{edge}/task/{edge}/children").read_text().split()
    return max(_private(pid) for pid in map(int, children) if is_worker(pid))


async def _measure_workers(ports: Ports, edge: int) -> list[Figure]:
    async with asyncio.timeout(_PATIENCE):
        started = time.monotonic()
        await asyncio.sleep(_STALL)
        idle = Figure(
            "a further worker, idle", 0, _most_private(edge), 1, 15 * MIB, time.monotonic() - started
        )
        started = time.monotonic()
        await streams(ports, 500)
        after = _most_private(edge)
    seconds = time.monotonic() - started
    return [idle, Figure("a further worker, after 500 streams", 0, after, 1, 15 * MIB, seconds)]


# The processes


def _config(folder: Path, ports: Ports, workers: int = 1) -> Path:
    config = {
        "listen": [{"address": f"127.0.0.1:{ports.edge}", "http2": True}],
        "admin": {"address": f"127.0.0.1:{ports.admin}"},
        "workers": workers,
        "access_log": "off",
        # All visitors come from one address.
        "limits": {"request_body": 2 * GIB, "connections_per_address": 0, "uploads_per_address": 0},
        "timeouts": {"drain": "1s"},
        "members": {
            "http": {"url": f"http://127.0.0.1:{ports.http}"},
            "sockets": {"url": f"http://127.0.0.1:{ports.sockets}"},
        },
        "routes": [{"path": "/sockets", "to": "sockets"}, {"path": "/*", "to": "http"}],
    }
    path = folder / "fedproxy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def _program(folder: Path, name: str, *arguments: str) -> Iterator[int]:
    """Runs a module of this Python while the block runs, and yields its process number."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process.pid
        if process.poll() is not None:
            raise BenchmarkError(f"{name} ended by itself: {log.read_text(errors='replace')[-500:]}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(port: int, within: float = 15.0) -> None:
    """Returns when the edge delivers a member's answer."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if fetch(port, "/")[0] == 200:
                return
        time.sleep(0.05)
    raise BenchmarkError(f"the edge delivered no answer of the member within {within:.0f} s")


def _show(figures: list[Figure], console: Console) -> None:
    table = Table(
        title="Resident memory of the edge under load",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in ("before\nMiB", "most\nMiB", "growth\nKiB", "limit\nKiB", "time\ns", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.what,
            f"{figure.before / MIB:.1f}",
            f"{figure.most / MIB:.1f}",
            f"{figure.growth / KIB:,.1f}",
            f"{figure.limit / KIB:,.0f}",
            f"{figure.seconds:.1f}",
            "ok" if figure.held else "[red]over[/red]",
        )
    console.print(table)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18200, show_default=True, help="First port."
)
@click.option("--members", is_flag=True, hidden=True)
@click.option("--sessions", is_flag=True, hidden=True)
def main(port: int, members: bool, sessions: bool) -> None:
    """Measure the edge's memory; exit status 1 if a limit is exceeded."""
    ports = Ports(port)
    if sessions:
        click.echo(json.dumps(_hold_sessions()))
        return
    if members:
        uvloop.run(_run_members(ports))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    # Every stream is two descriptors of the edge; the programs started from here inherit the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        require_free([ports.edge, ports.admin, ports.http, ports.sockets])
        figures = [*(_run(load, ports) for load in LOADS), *_workers(ports), _sessions()]
    except (BenchmarkError, TimeoutError) as error:
        raise click.ClickException(str(error) or f"not done within {_PATIENCE:.0f} s") from error
    _show(figures, Console())
    raise SystemExit(not all(figure.held for figure in figures))


def _run(load: Load, ports: Ports) -> Figure:
    """Measures on an edge of its own: what one load gave back to the allocator would be another's gain."""
    with _edge(ports) as edge:
        return uvloop.run(_measure(load, ports, edge))


def _workers(ports: Ports) -> list[Figure]:
    with _edge(ports, workers=3) as edge:
        return uvloop.run(_measure_workers(ports, edge))


@contextlib.contextmanager
def _edge(ports: Ports, workers: int = 1) -> Iterator[int]:
    """Runs an edge in front of the members while the block runs, and yields its process number."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-memory-")))
        config = _config(folder, ports, workers)
        stack.enter_context(
            _program(folder, "members", "benchmarks.memory", "--members", "--port", str(ports.edge))
        )
        edge = stack.enter_context(_program(folder, "edge", "fedproxy", "serve", "--config", str(config)))
        _wait_ready(ports.edge)
        yield edge


if __name__ == "__main__":
    main()
