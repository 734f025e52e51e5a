"""`python -m benchmarks.handover`: reloads, replaced workers and shutdown, under load; is anybody cut off?

The real program runs with two workers in front of members in this process. Visitors with keep-alive
connections repeat requests, others hold event streams and WebSockets. Meanwhile the config is reloaded ten
times, every third time with another number of workers; then every worker gets SIGTERM, one after the other;
then the program itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
import uvloop
import yaml

from benchmarks.peers import BenchmarkError, is_worker

_TOKEN = "benchmark"
_THINK = 0.05, 1.2  # seconds between two requests of a visitor: at least, and at most
_RELOADS = 10
_BEAT = 0.25  # seconds between two events of a stream, and two messages of a WebSocket
_AFTER = 3.0  # seconds that streams go on after something was told to end
_WHOLE = 90.0  # seconds after which all of it is given up
_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + bytes(1024)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b"6\r\n:tick\n\r\n"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AA==\r\n"
)


@dataclass
class Tally:
    """What the visitors saw."""

    requests: int = 0
    failed: int = 0
    retired: int = 0  # connections that the edge closed between two requests
    streams: int = 0
    broken_streams: int = 0
    tunnels: int = 0
    broken_tunnels: int = 0
    first: str = ""  # what the first failure was

    def fail(self, what: str, error: object) -> None:
        """Counts a failure of that kind."""
        setattr(self, what, getattr(self, what) + 1)
        self.first = self.first or f"{what}: {error!r}"


class _Stage:
    """When the parts of a run are over: `ending`, nobody is accepted any more; `over`, streams end."""

    def __init__(self) -> None:
        self.ending = False
        self.over = asyncio.Event()


class _Load:
    """The members, and the visitors of the edge at an address."""

    def __init__(self, stage: _Stage, tally: Tally) -> None:
        self.stage = stage
        self.tally = tally
        self.address: tuple[str, int] = ("", 0)

    # A member

    async def member(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection of the edge's."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /stream"):
                    await self._tick(writer)
                elif head.startswith(b"GET /socket"):
                    writer.write(_SWITCH)
                    while data := await reader.read(4096):
                        writer.write(data)
                    break
                else:
                    writer.write(_BODY)
        writer.close()

    async def _tick(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_STREAM)
        while not self.stage.over.is_set():
            writer.write(_EVENT)
            await asyncio.sleep(_BEAT)
        writer.write(b"0\r\n\r\n")

    # Visitors

    async def visit(self) -> None:
        """Asks again and again on a connection that is kept for as long as the edge keeps it."""
        while not self.stage.ending:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError as error:
                if not self.stage.ending:
                    self.tally.fail("failed", error)
                return
            with contextlib.closing(writer):
                await self._ask_on(reader, writer)

    async def _ask_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.stage.over.is_set():
            self.tally.requests += 1
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(1024)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.tally.fail("failed", error)
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.tally.fail("failed", head)
            if b"\r\nConnection: close\r\n" in head:
                return
            # A client looks whether the connection is still there before it asks again.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), random.uniform(*_THINK))
                self.tally.retired += 1
                return

    async def stream(self) -> None:
        """Reads events until the member ends them."""
        self.tally.streams += 1
        try:
            reader, writer = await asyncio.open_connection(*self.address)
            with contextlib.closing(writer):
                writer.write(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                while (await reader.readuntil(b"\r\n")) != b"0\r\n":
                    pass
        except (OSError, asyncio.IncompleteReadError) as error:
            self.tally.fail("broken_streams", error)

    async def tunnel(self) -> None:
        """Says something again and again, and hears it."""
        self.tally.tunnels += 1
        try:
            reader, writer = await asyncio.open_connection(*self.address)
            with contextlib.closing(writer):
                writer.write(b"GET /socket HTTP/1.1\r\nHost: h\r\n" + _UPGRADE + b"\r\n")
                await reader.readuntil(b"\r\n\r\n")
                while not self.stage.over.is_set():
                    writer.write(b"hello")
                    await reader.readexactly(5)
                    await asyncio.sleep(_BEAT)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.tally.fail("broken_tunnels", error)


class _Edge:
    """The program, its config and its admin listener."""

    def __init__(self, folder: Path, members: dict[str, str], port: int) -> None:
        self.file = folder / "edge.yaml"
        self._members = members
        self._admin = f"http://127.0.0.1:{port + 1}"
        self._port = port
        self.write(workers=2, weight=1)

    process: asyncio.subprocess.Process

    def write(self, *, workers: int, weight: int) -> None:
        """Writes the config."""
        config = {
            "listen": [{"address": f"127.0.0.1:{self._port}"}],
            "admin": {"address": f"127.0.0.1:{self._port + 1}", "token": _TOKEN},
            "workers": workers,
            "access_log": "off",
            "health": {"interval": "1h"},
            "members": {name: {"url": url, "weight": weight} for name, url in self._members.items()},
        }
        new = self.file.with_suffix(".new")
        new.write_text(yaml.safe_dump(config))
        new.replace(self.file)

    async def start(self) -> None:
        """Returns when it serves. Raises `BenchmarkError` if it ends instead."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fedproxy", "serve", "--config", self.file, stderr=asyncio.subprocess.PIPE
        )
        await self._read_until("admin on ")

    async def _read_until(self, part: str) -> None:
        if self.process.stderr is None:
            raise BenchmarkError("the program has no output")
        said = []
        while line := (await self.process.stderr.readline()).decode():
            said.append(line)
            if part in line:
                return
        raise BenchmarkError(f"the program ended: {''.join(said)}")

    async def reload(self) -> None:
        """Reads the config again; it is in force when this returns."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._admin}/reload", headers={"Authorization": f"Bearer {_TOKEN}"}) as response,
        ):
            if response.status != 200:
                raise BenchmarkError(f"a reload was refused: {await response.text()}")

    def workers(self) -> list[int]:
        """The processes that serve, those that drain too; the oldest first."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(filter(is_worker, map(int, path.read_text().split())), key=_started)

    async def replace_workers(self, count: int) -> None:
        """Tells each of the `count` workers that accept to end; the next one when its successor is there."""
        for worker in self.workers()[-count:]:
            before = set(self.workers())
            os.kill(worker, signal.SIGTERM)
            while not set(self.workers()) - before:
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Kills what is left."""
        if self.process.returncode is None:
            left = self.workers()
            self.process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self.process.communicate()


def _started(pid: int) -> int:
    """When a process was started, in ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@contextlib.asynccontextmanager
async def _members(load: _Load) -> AsyncIterator[dict[str, str]]:
    async with contextlib.AsyncExitStack() as stack:
        urls = {}
        for name in ("m0", "m1", "m2"):
            server = await asyncio.start_server(load.member, "127.0.0.1", 0, backlog=1024)
            stack.callback(server.close)
            urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield urls


async def _run(visitors: int, streams: int, sockets: int, port: int) -> Tally:
    stage, tally = _Stage(), Tally()
    load = _Load(stage, tally)
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.timeout(_WHOLE), _members(load) as members:
            edge = _Edge(Path(folder), members, port)
            await edge.start()
            load.address = ("127.0.0.1", port)
            crowd = [load.visit] * visitors + [load.stream] * streams + [load.tunnel] * sockets
            tasks = [asyncio.create_task(one()) for one in crowd]
            try:
                await _disturb(edge, stage)
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await edge.end()
                stage.over.set()
                await asyncio.sleep(2 * _BEAT)
    return tally


async def _disturb(edge: _Edge, stage: _Stage) -> None:
    await asyncio.sleep(1)
    began = time.monotonic()
    workers = 2
    for turn in range(1, _RELOADS + 1):
        workers = workers if turn % 3 else 5 - workers
        edge.write(workers=workers, weight=turn)
        await edge.reload()
    click.echo(f"reloads: {_RELOADS}, 3 of them with other workers, {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    await edge.replace_workers(workers)
    click.echo(f"workers told to end: {workers}, {time.monotonic() - began:.1f} s")
    await asyncio.sleep(_AFTER)
    stage.ending = True
    edge.process.terminate()
    await asyncio.sleep(_AFTER)
    if edge.process.returncode is not None:
        raise BenchmarkError("it did not wait for its streams")
    began = time.monotonic()
    stage.over.set()
    status = await edge.process.wait()
    click.echo(f"exit {status}, {time.monotonic() - began:.2f} s after the last stream")


@click.command()
@click.option("--visitors", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("--streams", type=click.IntRange(0, 1000), default=50, show_default=True)
@click.option("--sockets", type=click.IntRange(0, 1000), default=50, show_default=True)
@click.option(
    "--port",
    type=click.IntRange(1024, 65000),
    default=18300,
    show_default=True,
    help="The first of two ports.",
)
def main(visitors: int, streams: int, sockets: int, port: int) -> None:
    """Reload, replace and stop the program under load, and count who was cut off: exits with 1 if any was."""
    try:
        tally = uvloop.run(_run(visitors, streams, sockets, port))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    except TimeoutError:
        raise click.ClickException(f"it did not finish within {_WHOLE:g} s") from None
    click.echo(f"requests: {tally.requests}, failed: {tally.failed}")
    click.echo(f"keep-alive connections closed between two requests: {tally.retired}")
    click.echo(f"event streams: {tally.streams}, broken: {tally.broken_streams}")
    click.echo(f"WebSockets: {tally.tunnels}, broken: {tally.broken_tunnels}")
    if tally.first:
        click.echo(f"the first failure: {tally.first}")
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.handover")
