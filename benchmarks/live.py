"""`python -m benchmarks.live`: the cost of open live pages, and how soon a member's failure is visible.

The cost is the edge's processor time per request without, with one and with a hundred open live pages, in
turns; one worker, so that everything runs in the visitors' loop. The second table is of an edge with two
workers and toy members. One begins to answer 503, under twenty requests per second for a repository each; the
time is taken until its breaker shows on an open live page, on the visitors' page and in the metrics.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import wrk
from benchmarks.peers import BenchmarkError, Process, names_of, require_free
from benchmarks.scrape import edge, leave, two_cores
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.toy import Mode, ToyBinderHub

SIZES = (3, 300)
PAGES = (0, 1, 100)
_PATIENCE = 15.0  # seconds
_TROUBLE = 20.0  # requests a second while a member breaks


@dataclass
class Cost:
    """The cost with this many members and open pages: µs per request, one per round; bytes per second."""

    members: int
    pages: int
    cpu_us: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)


class Readers:
    """Open live pages, as far as the edge can tell: their streams are read and thrown away."""

    def __init__(self, port: int, count: int) -> None:
        head = b"GET /events HTTP/1.1\r\nHost: edge\r\nAccept-Encoding: gzip\r\n\r\n"
        self.received = 0
        self._over = threading.Event()
        self._streams = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        for stream in self._streams:
            stream.sendall(head)
            stream.settimeout(_PATIENCE)
            if not stream.recv(65536).startswith(b"HTTP/1.1 200 "):
                raise BenchmarkError("the edge refused a live page")
            stream.setblocking(False)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.wait(0.05):
            for stream in self._streams:
                with suppress(BlockingIOError):
                    while data := stream.recv(1 << 18):
                        self.received += len(data)

    def close(self) -> None:
        """The pages are closed."""
        self._over.set()
        self._thread.join()
        for stream in self._streams:
            stream.close()


@contextmanager
def looking(port: int, count: int) -> Iterator[Readers]:
    """So many open pages."""
    readers = Readers(port, count)
    try:
        yield readers
    finally:
        readers.close()


def costs(members: int, port: int, seconds: int, rounds: int) -> list[Cost]:
    """The cost of an edge with this many members. Raises `BenchmarkError`."""
    cores = two_cores()
    found = [Cost(members, pages) for pages in PAGES]
    with edge(members, 1, port, cores) as (process, public, admin):
        os.sched_setaffinity(0, {cores[1]})
        try:
            for _ in range(rounds):
                for cost in found:
                    with looking(admin, cost.pages) as readers:
                        before, received = process.cpu(), readers.received
                        url = f"http://127.0.0.1:{public}/1k"
                        result = wrk.run(
                            url,
                            "warm",
                            names_of(range(members)),
                            seconds=seconds,
                            connections=64,
                            core=cores[1],
                        )
                        used = process.cpu().since(before)
                        cost.cpu_us.append((used.user + used.kernel) / result.requests)
                        cost.sent.append((readers.received - received) / result.seconds)
        finally:
            os.sched_setaffinity(0, set(cores))
    return found


# From a failure to where it is seen


@dataclass
class Delays:
    """Seconds from a member's failure until it shows, one for each time."""

    page: list[float] = field(default_factory=list)
    visitors: list[float] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)


@asynccontextmanager
async def trouble(port: int) -> AsyncIterator[tuple[ToyBinderHub, str, str]]:
    """A running edge with two workers, and visitors: a member of it, and the two URLs."""
    async with DemoFederation(3) as federation:
        config = federation.config_dict(port, port + 1) | {"workers": 2, "access_log": "off"}
        config["admin"]["state"] = "off"
        config["breaker"] |= {"open": "1h", "open_max": "1h"}
        config["members"][federation.hubs[0].name]["weight"] = 30
        with tempfile.TemporaryDirectory(prefix="fedproxy-live-") as folder:
            file = Path(folder) / "edge.yaml"
            file.write_text(yaml.safe_dump(config))
            command = [sys.executable, "-m", "fedproxy", "serve", "--config", str(file)]
            process = Process("fedproxy", command, core=two_cores(), folder=Path(folder))
            try:
                await asyncio.to_thread(process.wait_ready, port, "/federation")
                yield federation.hubs[-1], f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
            finally:
                await asyncio.to_thread(process.stop)


async def _visit(session: aiohttp.ClientSession, url: str) -> None:
    number = 0
    while True:
        number += 1
        target, headers = f"{url}/v2/gh/some/number-{number}/HEAD", {"Connection": "close"}
        async with session.get(target, headers=headers) as response:
            await response.read()
        await asyncio.sleep(1 / _TROUBLE)


async def _polled(session: aiohttp.ClientSession, url: str, sign: re.Pattern[str]) -> None:
    while True:
        async with session.get(url) as response:
            if sign.search(await response.text()):
                return
        await asyncio.sleep(0.02)


async def _streamed(stream: aiohttp.ClientResponse, sign: str) -> None:
    async for line in stream.content:
        if sign in line.decode():
            return
    raise BenchmarkError("the live page's stream ended")


async def _after(began: float, seen: Awaitable[None]) -> float:
    async with asyncio.timeout(_PATIENCE):
        await seen
    return time.monotonic() - began


async def delays(port: int, rounds: int) -> Delays:
    """From when a member breaks, each time on a new edge. Raises `BenchmarkError`."""
    require_free([port, port + 1])
    found = Delays()
    for _ in range(rounds):
        async with (
            trouble(port) as (member, public, admin),
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=1 << 22) as session,
            session.get(f"{admin}/events", headers={"Accept-Encoding": "identity"}) as stream,
        ):
            visiting = asyncio.create_task(_visit(session, public))
            await asyncio.sleep(1.0)
            await member.set_mode(Mode.FAILING)
            began = time.monotonic()
            state = re.compile(rf'^fedproxy_breaker_state{{member="{member.name}"}} [12]$', re.MULTILINE)
            page, visitors, metric = await asyncio.gather(
                _after(began, _streamed(stream, f">{member.name}</a></strong>: breaker ")),
                _after(began, _polled(session, f"{public}/federation", re.compile("Ejected"))),
                _after(began, _polled(session, f"{admin}/metrics", state)),
            )
            found.page.append(page)
            found.visitors.append(visitors)
            found.metric.append(metric)
            visiting.cancel()
            await asyncio.gather(visiting, return_exceptions=True)
    return found


# The whole


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _show(costs: Sequence[Cost], delays: Delays, console: Console) -> None:
    table = _table(
        "Open live pages", "members", "pages", "CPU µs\nper request", "to none", "KiB/s sent\nper page"
    )
    for cost in costs:
        none = next(each for each in costs if each.members == cost.members and not each.pages)
        ratio = statistics.median(one / other for one, other in zip(cost.cpu_us, none.cpu_us, strict=True))
        sent = statistics.median(cost.sent) / 1024 / (cost.pages or 1)
        table.add_row(
            str(cost.members),
            str(cost.pages),
            f"{statistics.median(cost.cpu_us):.1f}",
            f"{ratio:.2f}",
            f"{sent:.1f}" if cost.pages else "",
        )
    console.print(table)
    table = _table("Seconds from a member's failure until it is visible", "where", "median", "longest")
    for where, times in (
        ("live page", delays.page),
        ("visitors' page", delays.visitors),
        ("metrics", delays.metric),
    ):
        table.add_row(where, f"{statistics.median(times):.2f}", f"{max(times):.2f}")
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.IntRange(1), default=None, help="Length of one run.  [default: 4]")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Runs of each kind.  [default: 5]")
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18300, show_default=True, help="First port."
)
def main(seconds: int | None, rounds: int | None, port: int) -> None:
    """Measure the cost of open live pages, and the time until a member's failure is visible.

    QUICK=1 in the environment makes it one short round: this checks that it runs, and is not a measurement.
    """
    quick = os.environ.get("QUICK", "") not in ("", "0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    seconds, rounds = seconds or (1 if quick else 4), rounds or (1 if quick else 5)
    try:
        found = [
            cost
            for members in (SIZES[:1] if quick else SIZES)
            for cost in costs(members, port, seconds, rounds)
        ]
        seen = asyncio.run(delays(port, rounds))
    except (BenchmarkError, OSError, TimeoutError, aiohttp.ClientError, subprocess.SubprocessError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
    _show(found, seen, Console())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.live")
