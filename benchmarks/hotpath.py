"""`python -m benchmarks.hotpath`: the cost of a request in the edge, without event loop and kernel.

Both protocols, with all defaults, between transports that do nothing. Processor time in microseconds: the
best of several rounds, because a disturbance only ever makes a round longer. In addition the same with the
hot path compiled, if `make compiled` has built it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from time import process_time
from typing import Any, Final, cast

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import COMPILED, WITH_COMPILED
from fedproxy.config.load import parse
from fedproxy.proxy.edge import Edge
from fedproxy.proxy.h1.downstream import Downstream
from fedproxy.proxy.h1.upstream import Upstream
from fedproxy.proxy.h2.connection import H2Downstream
from fedproxy.proxy.policy import ListenerOptions
from fedproxy.serve.assemble import assemble
from fedproxy.wire.h2 import frame as h2

_REQUESTS: Final = 10_000
_NAMES: Final = ("a", "b", "c")
_HEAD: Final = (
    b"GET %b HTTP/1.1\r\nHost: mybinder.org\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: %b\r\nAccept-Language: en-GB,en;q=0.7,de;q=0.3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Referer: https://mybinder.org/\r\nUpgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\n"
    b"Sec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\nPriority: u=0, i\r\n%b\r\n"
)
_PAGE: Final = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
_RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\nServer: TornadoServer/6.5\r\nContent-Type: text/html; charset=UTF-8\r\n"
    b'Etag: "5d1f8d6c0a"\r\nContent-Length: 1024\r\nDate: Mon, 03 Aug 2026 10:00:00 GMT\r\n\r\n'
) + b"x" * 1024
_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENT: Final = b'data: {"phase": "building", "message": "Step %6d/52 : RUN apt-get install"}\n\n'


class _Transport:
    """Accepts everything, and sends nothing."""

    def __init__(self) -> None:
        self.write = deque[bytes](maxlen=1).append
        self.writelines = deque[Iterable[bytes]](maxlen=1).append

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 40000) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise AssertionError("nothing ends a connection here")

    abort = close


class HotPath:
    """One visitor's connection, and one idle connection to each member."""

    def __init__(self) -> None:
        members = {name: {"url": f"http://{name}.example.org", "prime": name == "a"} for name in _NAMES}
        # A launch that waits needs a loop.
        settings = parse(json.dumps({"members": members, "launch": {"hold": 0}}), {})
        self._edge = edge = Edge(local=asyncio.Protocol)
        assemble(edge, settings)
        self._visitor = self._visit(edge)
        self._visitor.connection_made(cast("Any", _Transport()))
        self._members: list[Upstream] = []
        for pool in edge.pools.values():
            upstream = Upstream(pool)
            upstream.connection_made(cast("Any", _Transport()))
            upstream.release(edge.clock())
            self._members.append(upstream)
        self._streaming: Upstream | None = None
        edge.sessions.announce(b"/user/x", edge.pools["a"].place, edge.wall())

    def _visit(self, edge: Edge) -> Downstream | H2Downstream:
        return Downstream(edge, ListenerOptions())

    def request(self, head: bytes) -> None:
        """Serves one request, from its head to the line that would be logged."""
        self._visitor.data_received(head)
        self._answer()

    def _answer(self) -> None:
        for upstream in self._members:
            if upstream.receiver is not None:
                upstream.data_received(_RESPONSE)
                return
        raise AssertionError("no member was asked")

    def event(self, chunk: bytes) -> None:
        """Passes one event of a launch on; the launch is begun by the first."""
        if self._streaming is None:
            self._visitor.data_received(_HEAD % (b"/build/gh/org/repo/HEAD", b"text/event-stream", b""))
            self._streaming = next(each for each in self._members if each.receiver is not None)
            self._streaming.data_received(_STREAM)
        self._streaming.data_received(chunk)


_FIELDS: Final = (
    (b":authority", b"mybinder.org"),
    *[
        (name.lower(), value)
        for name, value in (
            line.split(b": ", 1) for line in (_HEAD % (b"/", _PAGE, b"")).split(b"\r\n")[2:-2]
        )
    ],
    *[(b"cookie", b"fedproxy_member=%c" % letter) for letter in b"abc"],
)
"""What a browser keeps in the table that its connection has for heads (RFC 7541 section 2.3.2)."""


class H2Path(HotPath):
    """The same for a visitor who speaks HTTP/2: a request is its head, as `compressed` gives it."""

    def __init__(self) -> None:
        # It is only told what to do at the end of a turn, which is done here.
        self._loop = asyncio.new_event_loop()
        asyncio.events._set_running_loop(self._loop)
        super().__init__()
        asyncio.events._set_running_loop(None)
        cast("Any", self._visitor).soon = _later
        self._next = 1
        self._visitor.data_received(h2.PREFACE + h2.settings({}))
        self.request(b"\x82\x87\x84" + b"".join([_kept(name, value) for name, value in _FIELDS]))

    def _visit(self, edge: Edge) -> H2Downstream:
        return H2Downstream(edge, ListenerOptions())

    def request(self, head: bytes) -> None:
        """Serves one request in a stream of its own; now and then the visitor has read what it got."""
        number, self._next = self._next, self._next + 2
        flags = h2.END_HEADERS | h2.END_STREAM
        self._visitor.data_received(h2.frame(h2.HEADERS, flags, number, head))
        self._answer()
        cast(H2Downstream, self._visitor).write_gathered()
        if number % 32 == 1:
            self._visitor.data_received(h2.window_update(0, 16 * 1024))


def _later(_callback: Callable[[], None]) -> None:
    """What is to be done at the end of a turn is done by whoever drives."""


def _kept(name: bytes, value: bytes) -> bytes:
    """A field that goes into the table."""
    return b"\x40%c%b%c%b" % (len(name), name, len(value), value)


def compressed(target: bytes, cookie: int, more: bytes = b"") -> bytes:
    """A browser's head over HTTP/2. Its target is not in the table; of the cookies there it sends one."""
    authority, *others = range(61 + len(_FIELDS), 61, -1)
    fields = [*others[:-3], others[cookie - 3]]
    path = b"\x84" if target == b"/" else b"\x04%c%b" % (len(target), target)
    return b"\x82\x87" + bytes((0x80 | authority,)) + path + bytes([0x80 | field for field in fields]) + more


def head(target: bytes, cookies: bytes = b"") -> bytes:
    """A browser's, as a read would give it."""
    return _HEAD % (target, _PAGE, b"Cookie: " + cookies + b"\r\n" if cookies else b"")


def never_seen(number: int) -> bytes:
    """A browser's, with a query, a cookie and a referer that are in no other."""
    asked = head(b"/user/x/api/contents?%013d" % number, b"fedproxy_member=a; _ga=GA1.1.%013d" % number)
    return asked.replace(b"https://mybinder.org/\r\n", b"https://mybinder.org/user/x/lab?%d\r\n" % number, 1)


def upload(size: int) -> bytes:
    """A request with a body of `size` bytes, as one read would give it."""
    posted = head(b"/user/x/api", b"fedproxy_member=a").replace(b"GET", b"POST", 1)
    return posted[:-2] + b"Content-Length: %d\r\n\r\n" % size + bytes(size)


def chunk(number: int) -> bytes:
    """One event."""
    event = _EVENT % (number % 1_000_000)
    return b"%x\r\n%b\r\n" % (len(event), event)


_numbers = count()
INPUTS: Final[dict[str, Callable[[], bytes]]] = {
    "request, repeated head": lambda: head(b"/", b"fedproxy_member=%c" % b"abc"[next(_numbers) % 3]),
    "request, another cookie": lambda: head(b"/", b"fedproxy_member=a; _ga=GA1.1.%013d" % next(_numbers)),
    "request, no cookie": lambda: head(b"/v2/gh/org/repo-%d/HEAD" % (next(_numbers) * 7919 % 1000)),
    "request, never seen": lambda: never_seen(next(_numbers)),
    "request, known session": lambda: head(b"/user/x/api/kernels", b"fedproxy_member=a"),
    "request, 64 KiB upload": lambda: upload(64 * 1024),
    "HTTP/2 request, repeated head": lambda: compressed(b"/", next(_numbers) % 3),
    "HTTP/2 request, another path": lambda: compressed(b"/api/x?%013d" % next(_numbers), 0),
    "HTTP/2 request, another cookie": lambda: compressed(
        b"/", 0, _kept(b"cookie", b"_ga=GA1.1.%013d" % next(_numbers)).replace(b"\x40", b"\x00", 1)
    ),
    "event of a launch": lambda: chunk(next(_numbers)),
}
"""What is passed on, by its name; each call gives another."""


def driver(name: str) -> Callable[[bytes], None]:
    """Passes one such input on, through connections of its own."""
    path = H2Path() if name.startswith("HTTP/2") else HotPath()
    return path.event if name.startswith("event") else path.request


def microseconds(name: str, *, requests: int, rounds: int) -> float:
    """Of one request or event."""
    drive, make = driver(name), INPUTS[name]
    best = float("inf")
    for _ in range(rounds + 1):
        inputs = [make() for _ in range(requests)]
        start = process_time()
        for each in inputs:
            drive(each)
        best = min(best, process_time() - start)
    return best / requests * 1e6


def _compiled(arguments: list[str]) -> dict[str, float] | None:
    if not COMPILED.is_dir():
        return None
    command = [*WITH_COMPILED, f"PYTHONPATH={COMPILED}{os.pathsep}{COMPILED.parent}", sys.executable]
    program = [*command, "-m", "benchmarks.hotpath", "--json", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"the compiled edge failed: {done.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 100), default=10, show_default=True)
@click.option("--quick", is_flag=True, help="A hundredth of the requests: checks that it runs.")
@click.option("--json", "as_json", is_flag=True, help="Only this one, for programs.")
def main(rounds: int, quick: bool, as_json: bool) -> None:
    """Measure the cost of requests and events without event loop and kernel."""
    from fedproxy.serve.worker import freeze  # and with it aiohttp, which under callgrind takes ten seconds

    freeze()
    requests = _REQUESTS // (100 if quick else 1)
    found = {name: microseconds(name, requests=requests, rounds=rounds) for name in INPUTS}
    if as_json:
        click.echo(json.dumps(found))
        return
    compiled = _compiled(["--rounds", str(rounds), *(["--quick"] if quick else [])])
    table = Table(title="µs of processor time", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("Python", "compiled"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, cost in found.items():
        table.add_row(name, f"{cost:.2f}", f"{compiled[name]:.2f}" if compiled else "-")
    Console().print(table)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.hotpath")
