"""`python -m benchmarks.delay`: HTTP/1.1 and HTTP/2 to an edge that is far away.

The edge and its member run in a network namespace of their own; curl and Chromium visit them from here, over
TLS. The way there is a pair of TUN interfaces and a process that passes every packet on, late: not every
kernel has netem. A time is the median of the rounds; `again` is the same once more on the connection that is
there already. Needs root, and removes all that it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import NoReturn

import click
import trustme
import uvloop
import yaml
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import BenchmarkError

NEEDED = {"ip": "iproute2", "curl": "curl", "chromium": "chromium"}
"""Programs, and Debian's packages of them."""
PROTOCOLS = ("HTTP/1.1", "HTTP/2")
SIZE = 10 << 20
ASSETS = 30
TABS = (
    4  # with a build in each: HTTP/1.1 has one connection left for the page's assets, and with one more none
)

# Of those that are set aside for benchmarks (RFC 2544), and nobody's.
_HERE, _THERE = "198.18.0.1", "198.18.0.2"
_PORTS = {"HTTP/1.1": 8441, "HTTP/2": 8442}
_PLAIN, _ADMIN, _MEMBER = 8080, 8081, 8082
_SET_INTERFACE, _TUN, _NO_HEADER = 0x400454CA, 0x1, 0x1000  # <linux/if_tun.h>
_PATIENCE = 120.0  # seconds for one visit
_NEXT_HOP = {"HTTP/1.1": "http/1.1", "HTTP/2": "h2"}
_LOADED = "() => performance.getEntriesByType('navigation')[0].loadEventEnd > 0"
_TIMING = """() => {
    const navigation = performance.getEntriesByType("navigation")[0];
    return [navigation.nextHopProtocol, navigation.loadEventEnd];
}"""


# The member


def _page() -> bytes:
    kinds = ('<link rel="stylesheet" href="/asset/%d.css">', '<script src="/asset/%d.js"></script>')
    head = "".join(kinds[number % 3] % number for number in range(ASSETS) if number % 3 < 2)
    images = "".join(f'<img src="/asset/{number}.svg" alt="">' for number in range(2, ASSETS, 3))
    stream = "<script>new EventSource('/build/gh/somebody/something/HEAD')</script>"
    return f"<!DOCTYPE html><html><head>{stream}{head}</head><body>{images}</body></html>".encode()


_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_BODIES = {
    "css": b"/*" + b"x" * 4000 + b"*/",
    "js": b"//" + b"x" * 4000,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><!--" + b"x" * 2000 + b"--></svg>",
}
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"phase": "building", "message": "' + b"." * 54 + b'"}\n\n'


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection until it ends."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
            left = int(fields.get("content-length", 0))
            while left:
                left -= len(await reader.read(min(left, 1 << 20)))
                if reader.at_eof():
                    raise ConnectionResetError
            await _answer(head.split(" ")[1], writer)
    writer.close()


async def _answer(path: str, writer: asyncio.StreamWriter) -> None:
    if path.startswith("/build/"):
        writer.write(_STREAM)
        while not writer.is_closing():
            writer.write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
            await asyncio.sleep(0.1)
        raise ConnectionResetError
    kind = path.rpartition(".")[2]
    body = _BODIES.get(kind, b"ok")
    if path == "/page":
        body = _page()
    elif path == "/download":
        body = bytes(SIZE)
    what = _TYPES.get(kind, "text/html")
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {what}\r\nCache-Control: no-store\r\nContent-Length: {len(body)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()


async def _run_member() -> None:
    async with await asyncio.start_server(_serve, "127.0.0.1", _MEMBER) as server:
        await server.serve_forever()


# The place far away


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _try(*command: str) -> None:
    with contextlib.suppress(BenchmarkError):
        _run(*command)


class Late:
    """What comes out of one TUN interface goes into the other one, so many seconds later."""

    def __init__(self, source: int, sink: int, delay: float) -> None:
        self._source = source
        self._sink = sink
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes]] = deque()
        os.set_blocking(source, False)
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        due = self._loop.time() + self._delay
        if not self._held:
            self._loop.call_at(due, self._give)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._held.append((due, os.read(self._source, 65536)))

    def _give(self) -> None:
        now = self._loop.time()
        while self._held and self._held[0][0] <= now:
            # An interface that is down takes none.
            with contextlib.suppress(OSError):
                os.write(self._sink, self._held.popleft()[1])
        if self._held:
            self._loop.call_at(self._held[0][0], self._give)


async def _run_wire(here: int, there: int, delay: float) -> None:
    for source, sink in ((here, there), (there, here)):
        Late(source, sink, delay)
    await asyncio.Event().wait()


def _tun(name: str) -> int:
    """A new interface, which lives as long as its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))
    return descriptor


@contextlib.contextmanager
def _namespace(delay: float) -> Iterator[str]:
    """A namespace with an address there and one here, and so many seconds between them in each direction."""
    name = f"fedproxy-{os.getpid()}"
    here, there = f"fp{os.getpid()}h", f"fp{os.getpid()}t"
    with ExitStack() as stack:
        stack.callback(_try, "ip", "netns", "del", name)
        _run("ip", "netns", "add", name)
        ends = [_tun(here), _tun(there)]
        command = [sys.executable, "-m", "benchmarks.delay", "--wire", *map(str, (*ends, delay))]
        wire = subprocess.Popen(command, pass_fds=ends, stdin=subprocess.DEVNULL, start_new_session=True)
        stack.callback(_stop, wire)
        for end in ends:
            os.close(end)
        _run("ip", "link", "set", there, "netns", name)
        inside = ("ip", "netns", "exec", name)
        for before, link, address in (((), here, _HERE), (inside, there, _THERE)):
            _run(*before, "ip", "address", "add", f"{address}/30", "dev", link)
            _run(*before, "ip", "link", "set", link, "txqueuelen", "100000", "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        yield name


@contextlib.contextmanager
def _program(namespace: str, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a module of this Python there while the block runs."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _config(folder: Path, authority: trustme.CA) -> Path:
    issued = authority.issue_cert(_THERE)
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
    tls = {"certificate": str(folder / "tls.crt"), "private_key": str(folder / "tls.key")}
    config = {
        "listen": [
            {"address": f"{_THERE}:{port}", "tls": tls, "http2": name == "HTTP/2"}
            for name, port in _PORTS.items()
        ],
        "admin": {"address": f"127.0.0.1:{_ADMIN}"},
        "workers": 1,
        "access_log": "off",
        "health": {"interval": "1h"},
        "timeouts": {"drain": "1s"},
        "members": {"a": {"url": f"http://127.0.0.1:{_MEMBER}"}},
    }
    path = folder / "fedproxy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _wait_ready(edge: subprocess.Popen[bytes], log: Path, ca: Path, within: float = 30.0) -> None:
    """Returns when the edge delivers the member's answer."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and edge.poll() is None:
        with contextlib.suppress(BenchmarkError):
            _curl(ca, "HTTP/1.1", "/", "--fail")
            return
        time.sleep(0.1)
    raise BenchmarkError(f"the edge delivered no answer of the member: {log.read_text()[-500:]}")


# The visitors


def _url(protocol: str, path: str) -> str:
    return f"https://{_THERE}:{_PORTS[protocol]}{path}"


def _curl(ca: Path, protocol: str, path: str, *options: str, times: int = 1) -> list[float]:
    """Seconds of the same transfer so many times, one after the other on one connection."""
    always = ("curl", "--disable", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(ca))
    told = ("--write-out", "%{http_version} %{http_code} %{time_total}\n")
    each = (*options, "--output", os.devnull, _url(protocol, path)) * times
    how = "--http2" if protocol == "HTTP/2" else "--http1.1"
    lines = [line.split() for line in _run(*always, how, *told, *each).splitlines()]
    if any(line[:2] != [protocol.removeprefix("HTTP/"), "200"] for line in lines):
        raise BenchmarkError(f"{path} by {protocol}: {lines}")
    return [float(line[2]) for line in lines]


def _load(context: BrowserContext, protocol: str) -> tuple[Page, float]:
    """The page in a new tab, and the seconds to its load event."""
    page = context.new_page()
    page.goto(_url(protocol, "/page"), wait_until="load")
    page.wait_for_function(_LOADED)
    spoken, milliseconds = page.evaluate(_TIMING)
    if spoken != _NEXT_HOP[protocol]:
        raise BenchmarkError(f"the browser spoke {spoken}, not {protocol}")
    return page, milliseconds / 1000


@dataclass(frozen=True)
class Visitor:
    """Programs that visit from here; `file` is what they upload."""

    ca: Path
    file: Path
    browser: Browser

    def download(self, protocol: str) -> list[float]:
        """Twice on one connection."""
        return _curl(self.ca, protocol, "/download", times=2)

    def upload(self, protocol: str) -> list[float]:
        """Twice on one connection, without asking before."""
        options = ("--upload-file", str(self.file), "--header", "Expect:")
        return _curl(self.ca, protocol, "/upload", *options, times=2)

    def page(self, protocol: str) -> list[float]:
        """A page in a browser that was just started, and once more where it was."""
        with self._context() as context:
            page, first = _load(context, protocol)
            page.close()
            return [first, _load(context, protocol)[1]]

    def beside_builds(self, protocol: str) -> list[float]:
        """A page while other tabs of the same browser show builds."""
        with self._context() as context:
            for _ in range(TABS):
                _load(context, protocol)
            return [_load(context, protocol)[1]]

    @contextlib.contextmanager
    def _context(self) -> Iterator[BrowserContext]:
        context = self.browser.new_context(ignore_https_errors=True)
        context.set_default_timeout(_PATIENCE * 1000)
        try:
            yield context
        finally:
            context.close()


def _measure(delay: float, rounds: int, console: Console) -> dict[str, dict[str, list[float]]]:
    """Seconds, by what and by protocol."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-delay-")))
        namespace = stack.enter_context(_namespace(delay / 1000))
        authority = trustme.CA()
        ca, file = folder / "ca.pem", folder / "upload"
        authority.cert_pem.write_to_path(str(ca))
        file.write_bytes(bytes(SIZE))
        log = folder / "edge.log"
        stack.enter_context(_program(namespace, folder / "member.log", "benchmarks.delay", "--member"))
        arguments = ("fedproxy", "serve", "--config", str(_config(folder, authority)))
        edge = stack.enter_context(_program(namespace, log, *arguments))
        _wait_ready(edge, log, ca)
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        stack.callback(browser.close)
        visitor = Visitor(ca, file, browser)
        with console.status("Measuring ..."):
            return _rounds(visitor, rounds)


def _rounds(visitor: Visitor, rounds: int) -> dict[str, dict[str, list[float]]]:
    loads: dict[str, Callable[[str], list[float]]] = {
        "10 MiB to a visitor": visitor.download,
        "10 MiB from a visitor": visitor.upload,
        f"page with {ASSETS} assets and a build": visitor.page,
        f"the same beside {TABS} builds in tabs": visitor.beside_builds,
    }
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for what, load in loads.items():
            for protocol in PROTOCOLS:
                for which, seconds in zip((what, f"{what}, again"), load(protocol), strict=False):
                    found.setdefault(which, {}).setdefault(protocol, []).append(seconds)
    return found


def _show(found: dict[str, dict[str, list[float]]], delay: float, console: Console) -> None:
    table = Table(
        title=f"Seconds to an edge {delay:g} ms away in each direction",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in (*PROTOCOLS, "HTTP/2 / HTTP/1.1"):
        table.add_column(name, justify="right", no_wrap=True)
    for what, times in found.items():
        old, new = (median(times[protocol]) for protocol in PROTOCOLS)
        table.add_row(what, f"{old:.2f}", f"{new:.2f}", f"{new / old:.2f}")
    console.print(table)


def _require() -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed: apt-get install {package}")
    if os.geteuid():
        raise BenchmarkError("only root can make a network namespace")


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--delay",
    type=click.FloatRange(0),
    default=50,
    show_default=True,
    help="Milliseconds from here to the edge, and as many back.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Times of each.")
@click.option("--member", is_flag=True, hidden=True)
@click.option("--wire", type=(int, int, float), hidden=True)
def main(delay: float, rounds: int, member: bool, wire: tuple[int, int, float] | None) -> None:
    """Compare HTTP/1.1 and HTTP/2 to an edge that is far away."""
    if wire is not None:
        asyncio.run(_run_wire(*wire))
        return
    if member:
        uvloop.run(_run_member())
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    console = Console()
    try:
        _require()
        found = _measure(delay, rounds, console)
    except (BenchmarkError, Error, OSError, subprocess.TimeoutExpired) as error:
        raise click.ClickException(str(error)) from error
    _show(found, delay, console)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.delay")
