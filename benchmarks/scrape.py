"""`python -m benchmarks.scrape`: how long a scrape takes, and whether it delays visitors.

Every member has had traffic through every worker. Requests come in an open loop, on time whatever the edge
does; seconds without a scrape alternate with seconds with several. Without one, the scraper (curl) requests a
member instead, because starting it, on the visitors' core, delays them most of all. The edge has one core,
with several workers both; its members, the visitors and the scraper share the other.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import wrk
from benchmarks.peers import (
    PEERS,
    SIZES,
    BenchmarkError,
    Process,
    Setting,
    fetch,
    members_command,
    names_of,
    require_free,
)
from benchmarks.visitors import paced, percentile

CASES = ((3, 1), (30, 1), (300, 1), (3, 8), (300, 8))
"""Members and workers."""

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
_RATE = 200.0  # requests a second
_CONNECTIONS = 32
_PAUSE = 0.2  # seconds between two scrapes


@dataclass(frozen=True)
class Scrape:
    """One answer: seconds until it was there whole, and its bytes."""

    seconds: float
    size: int


@dataclass
class Figures:
    """Of one case; delays in microseconds, a list for each round."""

    members: int
    workers: int
    scrapes: list[Scrape] = field(default_factory=list)
    alone: list[list[float]] = field(default_factory=list)
    scraped: list[list[float]] = field(default_factory=list)


def scrape(port: int, core: int, path: str = "/metrics") -> Scrape:
    """Asks as Prometheus does, in a process of its own. Raises `BenchmarkError`."""
    command = ["taskset", "-c", str(core), "curl", "-sf", "-o", os.devnull, "-H", f"Accept: {OPENMETRICS}"]
    done = subprocess.run(
        [*command, "-w", "%{time_total} %{size_download}", f"http://127.0.0.1:{port}{path}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"the edge did not answer a scrape: curl ended with {done.returncode}")
    seconds, size = done.stdout.split()
    return Scrape(float(seconds), int(size))


@contextmanager
def beside(work: Callable[[], object], pause: float) -> Iterator[None]:
    """While the block runs, the work is done again and again in a thread. Raises what it raised."""
    over, failed = threading.Event(), list[BenchmarkError]()

    def run() -> None:
        while not over.wait(pause):
            try:
                work()
            except BenchmarkError as error:
                failed.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def edge(members: int, workers: int, port: int, cores: Sequence[int]) -> Iterator[tuple[Process, int, int]]:
    """A running edge that has served visitors of every member: its process and its two ports."""
    own, public = [port + 10 + number for number in range(members)], port
    require_free([public, public + 1, *own])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-scrape-")))
        served = Process("members", members_command(folder, own), core=cores[1], folder=folder)
        stack.callback(served.stop)
        served.wait_ready(own[0], "/1k")
        command = PEERS["fedproxy"].command(folder, public, own, Setting(workers=workers))
        process = Process("fedproxy", command, core=cores[0] if workers == 1 else cores[:2], folder=folder)
        stack.callback(process.stop)
        process.wait_ready(public, "/1k")
        url = f"http://127.0.0.1:{public}/1k"
        # Many connections, so that every worker has some.
        result = wrk.run(
            url, "warm", names_of(own), seconds=2, connections=max(64, 16 * workers), core=cores[1]
        )
        if result.not_ok or result.broken:
            raise BenchmarkError(f"{result.not_ok + result.broken} of {result.requests} requests failed")
        yield process, public, public + 1


def two_cores() -> list[int]:
    """One for the edge, one for the rest. Raises `BenchmarkError`."""
    for program in ("nginx", "taskset", "wrk", "curl"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("two cores are needed: one for the edge, one for its members and the visitors")
    return cores


def measure(members: int, workers: int, port: int, seconds: float, rounds: int) -> Figures:
    """One case. Raises `BenchmarkError`."""
    cores = two_cores()
    figures = Figures(members, workers)
    with edge(members, workers, port, cores) as (_, public, admin):
        cookies = names_of(range(members))

        def visit() -> list[float]:
            seen = paced(public, cookies, _CONNECTIONS, _RATE, seconds, SIZES["1k"])
            if seen.broken:
                raise BenchmarkError(f"{seen.broken} requests were not answered")
            return seen.delays

        os.sched_setaffinity(0, {cores[1]})
        try:
            fetch(admin, "/metrics")
            for _ in range(rounds):
                with beside(lambda: scrape(port + 10, cores[1], "/1k"), _PAUSE):
                    figures.alone.append(visit())
                with beside(lambda: figures.scrapes.append(scrape(admin, cores[1])), _PAUSE):
                    figures.scraped.append(visit())
        finally:
            os.sched_setaffinity(0, set(cores))
    return figures


def _typical(rounds: Sequence[Sequence[float]], share: float) -> str:
    """In milliseconds: the median of the rounds, as the machine does something else now and then."""
    return f"{statistics.median(percentile(delays, share) for delays in rounds) / 1000:.1f}"


def _show(found: Sequence[Figures], console: Console) -> None:
    table = Table(
        title="A scrape, and the delay of requests without and with up to five scrapes per second (ms)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in (
        "members",
        "workers",
        "scrape",
        "slowest",
        "KiB",
        "99 %\nwithout",
        "with",
        "last\nwithout",
        "with",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for case in found:
        times = [each.seconds * 1000 for each in case.scrapes]
        table.add_row(
            str(case.members),
            str(case.workers),
            f"{statistics.median(times):.1f}",
            f"{max(times):.1f}",
            f"{case.scrapes[-1].size / 1024:,.0f}",
            _typical(case.alone, 0.99),
            _typical(case.scraped, 0.99),
            _typical(case.alone, 1.0),
            _typical(case.scraped, 1.0),
        )
    console.print(table)


def leave(number: int, _frame: FrameType | None) -> NoReturn:
    """For a signal: as an exception, so that everything that was started is ended on the way out."""
    raise SystemExit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(0.1), default=None, help="Length of one run.  [default: 3]")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Runs of each kind.  [default: 5]")
@click.option("--only", type=(int, int), default=None, help="One case: number of members, of workers.")
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18300, show_default=True, help="First port."
)
def main(seconds: float | None, rounds: int | None, only: tuple[int, int] | None, port: int) -> None:
    """Measure scrapes of edges with few and many members, and the delay of requests meanwhile.

    QUICK=1 in the environment makes it one short round of one case: it checks that it runs, no more.
    """
    quick = os.environ.get("QUICK", "") not in ("", "0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    cases = (only,) if only else CASES[:1] if quick else CASES
    try:
        found = [
            measure(members, workers, port, seconds or (0.5 if quick else 3.0), rounds or (1 if quick else 5))
            for members, workers in cases
        ]
    except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
        raise click.ClickException(str(error)) from error
    _show(found, Console())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.scrape")
