"""`python -m benchmarks.slow`: how a thousand slow visitors affect a normal one until their time-outs.

The real program runs with one worker and time-outs of a few seconds, in front of members on loopback. A
visitor sends requests in an open loop, before the slow ones come, while they stay, and afterwards; each kind
of slow visitor gets a new edge. Most kinds come from twenty addresses, fifty connections each; the last from
one, which may have a hundred. Then slowhttptest, if it is installed, in its four modes. Exit status 1 if the
visitor's median is more than twice the one without them (before and after together, as other load varies), a
slow visitor is still connected long after its time-out, or slowhttptest finds the service unavailable.
"""

from __future__ import annotations

import csv
import os
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import MEMBERS, SIZES, BenchmarkError, Process, members_command, require_free
from benchmarks.visitors import Seen, paced, percentile
from fedproxy.wire.h2 import frame as h2
from fedproxy.wire.h2.hpack import literal

_TIMEOUT = 3.0  # seconds, for every time-out of the edge that ends a slow visitor
_OPENING = 1.0  # seconds in which the slow ones come
_WATCHED = 3.0  # seconds from the first of them, in which the visitor is watched
_SETTLED = 2.0  # seconds after the first of them, when all are there and none is gone
_CALM = 1.5  # seconds that the visitor is watched before, and after
_DRIP = 0.5  # seconds between two drops of one connection
_DRIPS = 5  # drops of one that then falls silent
_SWEEP = 1.0  # seconds that a time-out of the edge may be late
_LATE = 2.0  # seconds more that may pass on a busy machine
_RATE = 200.0  # requests of the visitor a second
_PER_ADDRESS = 100
_HEAD = b"Host: h\r\nUser-Agent: slow\r\n"
_LINE = b"X-Padding: " + b"x" * 8179 + b"\r\n"
_MIB, _KIB = 1 << 20, 1 << 10


@dataclass(frozen=True)
class Kind:
    """A way to be slow: what is sent at once, and then every half second.

    drips: how often, before it falls silent. due: seconds from its connection to its time-out.
    """

    name: str
    first: bytes = b""
    drop: bytes = b""
    drips: int = 0
    due: float = _TIMEOUT
    reads: bool = False  # a drop is read, not sent
    tls: bool = False
    one_address: bool = False


def _hello() -> bytes:
    """How a TLS handshake begins."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


def _streams(count: int, target: bytes, flags: int, *, reset: bool = False) -> bytes:
    """The heads of that many requests over HTTP/2. reset: each is cancelled at once."""
    fields = {b":method": b"GET", b":scheme": b"http", b":authority": b"h", b":path": target}
    block = b"".join([literal(*field) for field in fields.items()])
    numbers = range(1, 2 * count, 2)
    return b"".join(
        [
            h2.frame(h2.HEADERS, flags, number, block)
            + (h2.rst_stream(number, h2.Code.CANCEL) if reset else b"")
            for number in numbers
        ]
    )


_SILENT_AFTER = _DRIPS * _DRIP + _TIMEOUT
_H2 = h2.PREFACE + h2.settings({})
_ALL = h2.END_HEADERS | h2.END_STREAM
# A connection that does not answer is told to leave in two steps, and closed some seconds later.
_LEAVING = 6.0
_GET = b"GET /1k HTTP/1.1\r\n" + _HEAD
KINDS = (
    Kind("slow heads", b"G", b"E", 100),
    Kind("endless headers", _GET, _LINE, 100),
    Kind(
        "slow bodies",
        b"POST /upload HTTP/1.1\r\nContent-Length: 100000\r\n" + _HEAD + b"\r\n",
        b"x",
        _DRIPS,
        _SILENT_AFTER,
    ),
    Kind("slow readers", b"GET /10m HTTP/1.1\r\n" + _HEAD + b"\r\n", b"", _DRIPS, _SILENT_AFTER, reads=True),
    Kind("silent"),
    Kind("handshakes begun", _hello(), tls=True),
    Kind("one address", b"G", b"E", 100, one_address=True),
    Kind("h2 silent", _H2, due=_TIMEOUT + _LEAVING),
    Kind(
        "h2 heads begun",
        _H2 + _streams(1, b"/1k", h2.END_STREAM),
        h2.frame(h2.CONTINUATION, 0, 1, literal(b"x", b"y")),
        100,
        due=_TIMEOUT + _LEAVING,
    ),
    Kind(
        "h2 pings",
        _H2,
        h2.frame(h2.PING, 0, 0, bytes(8)) * 10,
        _DRIPS,
        due=_TIMEOUT + _LEAVING,
    ),
    Kind(
        "h2 tiny windows",
        h2.PREFACE + h2.settings({h2.INITIAL_WINDOW_SIZE: 1}) + _streams(1, b"/10m", _ALL),
        h2.window_update(1, 1),
        _DRIPS,
        due=_SILENT_AFTER + _TIMEOUT + _LEAVING,
    ),
    Kind(
        "h2 rapid resets",
        _H2 + _streams(20, b"/1k", _ALL, reset=True),
        due=_TIMEOUT + _LEAVING,
    ),
    Kind(
        "h2 malformed",
        _H2 + b"".join([h2.frame(h2.HEADERS, _ALL, number, b"\x82") for number in range(1, 40, 2)]),
        due=_TIMEOUT + _LEAVING,
    ),
)


# The slow ones


@dataclass
class Crowd:
    """Connections of one kind. `gone` has how long each lasted, in seconds."""

    kind: Kind
    port: int
    size: int
    opened: dict[int, tuple[socket.socket, float]] = field(default_factory=dict)
    gone: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._poll = select.epoll()
        self._drips: deque[tuple[float, int, int]] = deque()
        self._began = time.monotonic()
        self._come = 0

    def run(self, until: float) -> bool:
        """Goes on until this many seconds after the first came; returns True early if all are gone."""
        while (now := time.monotonic() - self._began) < until:
            while self._come < self.size and now >= self._come * _OPENING / self.size:
                self._open()
            self._drip(now)
            for number, _ in self._poll.poll(0.005):
                self._lost(number)
            if self._come == self.size and not self.opened:
                return True
        return False

    def close(self) -> None:
        """Leaves with those who are still there."""
        for number in list(self.opened):
            self._lost(number)
        self._poll.close()

    def _open(self) -> None:
        sock = socket.socket()
        # As over a network: with loopback's segments the system keeps megabytes for each connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        if self.kind.reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.bind((f"127.0.1.{1 + (0 if self.kind.one_address else self._come % 20)}", 0))
        self._come += 1
        sock.connect(("127.0.0.1", self.port))
        sock.setblocking(False)
        now = time.monotonic() - self._began
        number = sock.fileno()
        self.opened[number] = sock, now
        # Errors and resets are always told.
        self._poll.register(number, select.EPOLLRDHUP)
        self._do(number, self.kind.first)
        if self.kind.drips:
            self._drips.append((now + _DRIP, number, 1))

    def _drip(self, now: float) -> None:
        while self._drips and self._drips[0][0] <= now:
            due, number, at = self._drips.popleft()
            if number in self.opened and self._do(number, self.kind.drop) and at < self.kind.drips:
                self._drips.append((due + _DRIP, number, at + 1))

    def _do(self, number: int, data: bytes) -> bool:
        """Sends `data`, or reads a little; False if the connection is gone."""
        sock, _ = self.opened[number]
        try:
            if data:
                sock.send(data)
            elif self.kind.reads:
                sock.recv(64)
        except BlockingIOError:
            return True
        except OSError:
            self._lost(number)
            return False
        return True

    def _lost(self, number: int) -> None:
        entry = self.opened.pop(number, None)
        if entry is not None:
            sock, since = entry
            self.gone.append(time.monotonic() - self._began - since)
            self._poll.unregister(number)
            sock.close()


# The edge


@dataclass(frozen=True)
class Ports:
    """Of the edge, its TLS and its admin listener, and the members, upward from one port."""

    edge: int

    @property
    def tls(self) -> int:
        """The edge's TLS listener."""
        return self.edge + 1

    @property
    def admin(self) -> int:
        """The edge's admin listener."""
        return self.edge + 2

    @property
    def members(self) -> list[int]:
        """The members."""
        return [self.edge + 3 + at for at in range(len(MEMBERS))]


def _config(folder: Path, ports: Ports, per_address: int) -> Path:
    timeout = f"{_TIMEOUT:g}s"
    tls = {"certificate": str(folder / "tls.crt"), "private_key": str(folder / "tls.key")}
    config = {
        "listen": [
            {"address": f"127.0.0.1:{ports.edge}", "http2": True},
            {"address": f"127.0.0.1:{ports.tls}", "tls": tls},
        ],
        "admin": {"address": f"127.0.0.1:{ports.admin}", "state": "off"},
        "workers": 1,
        "access_log": "off",
        "limits": {"connections_per_address": per_address},
        "timeouts": {
            "request_head": timeout,
            "request_idle": timeout,
            "response_idle": timeout,
            "keepalive": timeout,
            "drain": "1s",
        },
        "members": {
            name: {"url": f"http://127.0.0.1:{port}"}
            for name, port in zip(MEMBERS, ports.members, strict=True)
        },
    }
    path = folder / "edge.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def _edge(folder: Path, ports: Ports, core: int, per_address: int = _PER_ADDRESS) -> Iterator[Process]:
    command = [sys.executable, "-m", "fedproxy", "serve", "--config"]
    config = _config(folder, ports, per_address)
    process = Process("edge", [*command, str(config)], core=core, folder=folder)
    try:
        process.wait_ready(ports.edge, "/1k")
        yield process
        process.require_alive()
    finally:
        process.stop()


def _scrape(ports: Ports) -> tuple[int, dict[str, int]]:
    """The edge's visitors, and whom it has rejected, by reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports.admin}/metrics", timeout=5) as response:
        families = {
            family.name: family.samples for family in text_string_to_metric_families(response.read().decode())
        }
    return int(families["fedproxy_downstream_connections"][0].value), {
        sample.labels["reason"]: int(sample.value)
        for sample in families["fedproxy_rejected"]
        if sample.name.endswith("_total") and sample.value
    }


# One kind


@dataclass(frozen=True)
class Result:
    """What was seen of one kind. The visitor's times in microseconds, others in seconds, sizes in bytes."""

    kind: Kind
    before: Seen
    during: Seen
    after: Seen
    stayed: int  # who were there when all had come
    each: float  # what one of them takes
    left: int  # who had to be sent away by their own end
    lasted: float
    rejected: dict[str, int]

    @property
    def ratio(self) -> float:
        """The visitor's median while the slow ones were there, by what it is without them."""
        calm = percentile(self.before.delays + self.after.delays, 0.5)
        return percentile(self.during.delays, 0.5) / (calm or 1.0)

    @property
    def broken(self) -> int:
        """Requests of the visitor's that failed."""
        return self.before.broken + self.during.broken + self.after.broken

    @property
    def held(self) -> bool:
        """Whether it was as it should be."""
        gone = not self.left and self.lasted <= self.kind.due + _SWEEP + _LATE
        return self.ratio <= 2 and gone and not self.broken


class Visit:
    """The normal visitor, in a process of its own."""

    def __init__(self, pool: ProcessPoolExecutor, port: int) -> None:
        self._pool = pool
        self._port = port

    def begin(self, seconds: float) -> Future[Seen]:
        """Asks for so long; over eight kept connections."""
        return self._pool.submit(paced, self._port, ["none"], 8, _RATE, seconds, SIZES["1k"])

    def watch(self, seconds: float) -> Seen:
        """The same, to its end."""
        return self.begin(seconds).result(seconds + 30)


def _measure(kind: Kind, edge: Process, ports: Ports, visit: Visit, size: int) -> Result:
    visit.watch(0.5)
    before = visit.watch(_CALM)
    memory = edge.memory()
    under_way = visit.begin(_WATCHED)
    crowd = Crowd(kind, ports.tls if kind.tls else ports.edge, size)
    try:
        crowd.run(_SETTLED)
        stayed, most = len(crowd.opened), edge.memory()
        crowd.run(kind.due + _OPENING + _SWEEP + _LATE)
        left = len(crowd.opened)
    finally:
        crowd.close()
    during = under_way.result(60)
    after = visit.watch(_CALM)
    return Result(
        kind,
        before,
        during,
        after,
        stayed,
        max(0, most - memory) / max(1, stayed),
        left,
        max(crowd.gone),
        _scrape(ports)[1],
    )


# slowhttptest

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MODES = {
    "-H": ["/1k", "-i", "1", "-x", "24"],
    "-B": ["/upload", "-i", "1", "-x", "10", "-s", "100000"],
    "-R": ["/1k", "-a", "5", "-b", "2000"],
    "-X": ["/10m", "-w", "10", "-y", "20", "-n", "1", "-z", "32"],
}


@dataclass(frozen=True)
class Verdict:
    """What slowhttptest says of one mode: of how many seconds, and in how many the service was there."""

    mode: str
    seconds: int
    available: int
    most: int
    end: str


def _slowhttptest(mode: str, folder: Path, ports: Ports, size: int, seconds: int, core: int) -> Verdict:
    path, *more = _MODES[mode]
    output = folder / f"slowhttptest{mode}"
    url = f"http://127.0.0.1:{ports.edge}{path}"
    load = ["-c", str(size), "-r", str(size // 2), "-l", str(seconds), "-p", "3", "-u", url]
    run = subprocess.run(
        ["taskset", "-c", str(core), "slowhttptest", mode, *load, "-g", "-o", str(output), *more],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    with output.with_suffix(".csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    _, _, end = _COLOUR.sub("", run.stdout).partition("Exit status:")
    return Verdict(
        mode,
        len(rows),
        sum(row["Service Available"] != "0" for row in rows),
        max((int(row["Connected"]) for row in rows), default=0),
        end.strip().partition("\n")[0] or run.stderr.strip()[-80:],
    )


# What is shown


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    return table


def _show(results: Sequence[Result], size: int, console: Console) -> None:
    times = [f"{what}\n{when}" for when in ("before", "during", "after") for what in ("p50", "p99")]
    table = _table(
        f"A visitor's {_RATE:.0f} requests/s, in µs, and {size} slow connections; "
        f"every time-out {_TIMEOUT:g} s; load {os.getloadavg()[0]:.1f}",
        *("", *times, "p50\nratio", "there", "KiB\neach", "last gone\nafter s", "due\ns", ""),
    )
    for result in results:
        seen = (result.before, result.during, result.after)
        table.add_row(
            result.kind.name,
            *(f"{percentile(each.delays, share):,.0f}" for each in seen for share in (0.5, 0.99)),
            f"{result.ratio:.2f}",
            f"{result.stayed}",
            f"{result.each / _KIB:.1f}",
            f"{result.lasted:.1f}",
            f"{result.kind.due:.1f}",
            "ok" if result.held else "[red]not held[/red]",
        )
    console.print(table)
    for result in results:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(result.rejected.items()))
        faults = f"; {result.left} did not go" if result.left else ""
        faults += f"; {result.broken} requests of the visitor failed" if result.broken else ""
        console.print(f"{result.kind.name}: rejected: {reasons or 'none'}{faults}", highlight=False)


def _show_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    table = _table("slowhttptest", "mode", "seconds", "available", "most connections", "its end")
    for each in verdicts:
        table.add_row(each.mode, str(each.seconds), str(each.available), str(each.most), each.end)
    console.print(table)


# The whole


def _prepare(stack: ExitStack, ports: Ports, cores: Sequence[int]) -> Path:
    for program in ("nginx", "taskset"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed: the members or the load need it")
    require_free([ports.edge, ports.tls, ports.admin, *ports.members])
    # The programs started from here inherit the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-slow-")))
    issued = trustme.CA().issue_cert("localhost")
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
    command = members_command(folder, ports.members)
    config = Path(command[-1])
    # The members are other machines: what their systems would take for a response must not weigh on this one.
    config.write_text(config.read_text().replace("backlog=4096;", "backlog=4096 sndbuf=128k;"))
    members = Process("members", command, core=cores[-1], folder=folder)
    stack.callback(members.stop)
    for port in ports.members:
        members.wait_ready(port, "/1k")
    return folder


def _run(kinds: Sequence[Kind], size: int, seconds: int, ports: Ports, console: Console) -> bool:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = _prepare(stack, ports, cores)
        os.sched_setaffinity(0, {cores[-1]})
        stack.callback(os.sched_setaffinity, 0, set(cores))
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        results = []
        for kind in kinds:
            with _edge(folder, ports, cores[0]) as edge:
                results.append(_measure(kind, edge, ports, Visit(pool, ports.edge), size))
        _show(results, size, console)
        verdicts = []
        if seconds and shutil.which("slowhttptest") is not None:
            with _edge(folder, ports, cores[0], per_address=0):
                verdicts = [_slowhttptest(mode, folder, ports, size, seconds, cores[-1]) for mode in _MODES]
            _show_verdicts(verdicts, console)
        return all(each.held for each in results) and all(each.available == each.seconds for each in verdicts)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("kinds", nargs=-1, type=click.Choice([kind.name for kind in KINDS]))
@click.option("--size", type=click.IntRange(1, 5000), default=1000, show_default=True, help="Slow ones.")
@click.option(
    "--seconds",
    type=click.IntRange(0, 60),
    default=15,
    show_default=True,
    help="Of slowhttptest, in each mode; 0: not at all.",
)
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18600, show_default=True, help="First port."
)
def main(kinds: tuple[str, ...], size: int, seconds: int, port: int) -> None:
    """Measure how slow visitors affect a normal one, and when they are gone: all KINDS, or some."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    chosen = [kind for kind in KINDS if not kinds or kind.name in kinds]
    try:
        held = _run(chosen, size, seconds, Ports(port), Console(width=150))
    except (BenchmarkError, OSError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(not held)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.slow")
