"""`python -m benchmarks.drills`: a member fails under load and is mended; what do the visitors notice?

The real program serves, in a process of its own, before three members and their visitors in this one. Each
visitor holds the cookie of one member and asks again and again on a connection that is kept open. The edge's
own figures are those of its `/metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import shlex
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import click
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import COOKIE, MEMBERS, BenchmarkError, Process, require_free

VICTIM: Final = MEMBERS[0]
_NAME: Final = "m0.drill.test"
_LATENCY = 0.05
_GUARD = 20.0
_POLL = 0.02
_BODY = b"x" * 1024
_WELL = b'{"ok": true, "checks": []}'
_OPEN, _OPEN_MAX, _JITTER = 1.0, 8.0, 1.1
_BUDGET, _FLOOR, _BUCKET = 0.2, 1.0, 210
_WARM = 1.0
_TIMEOUT = 1.0


class Fault(enum.StrEnum):
    """What becomes of the member."""

    KILLED = "killed"
    """Every connection is cut, and new ones are refused."""
    BLACKHOLE = "blackhole"
    """Every connection is cut, and no SYN is answered."""
    HANG = "hang"
    """Takes requests and never answers."""
    RESET = "reset"
    """Resets instead of answering."""
    TRUNCATED = "truncated"
    """Resets after the head and half of the body, which nobody can hide."""
    NONSENSE = "nonsense"
    """Answers what is not HTTP."""
    ANSWERS_503 = "answers-503"
    """Answers 503 to everything."""
    DNS = "dns"
    """Loses its name and its address; it comes back with the same name and another address."""
    NO_NAME = "no-name"
    """Has no name yet when the edge starts."""

    @property
    def lasting(self) -> bool:
        """Whether it cannot be reached at all."""
        return self in (Fault.KILLED, Fault.BLACKHOLE, Fault.DNS)


class Member:
    """A member that answers 1 KiB after a while, or what its `fault` says instead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fault: Fault | None = None
        self.address = ("127.0.0.1", 0)
        self.connections: set[_Connection] = set()
        self._stack = contextlib.AsyncExitStack()

    async def listen(self, host: str = "127.0.0.1") -> None:
        """Serves from now on, on the port that it had before."""
        loop = asyncio.get_running_loop()
        sock = _bound(host, self.address[1])
        self.address = sock.getsockname()
        server = await loop.create_server(lambda: _Connection(self), sock=sock, backlog=1024)
        self._stack.callback(server.close)

    async def leave(self) -> None:
        """Cuts every connection and listens no more."""
        await self._stack.aclose()
        for connection in list(self.connections):
            connection.reset()

    async def break_down(self, fault: Fault) -> None:
        """Behaves so from now on."""
        self.fault = fault
        if fault.lasting:
            await self.leave()
        if fault is Fault.BLACKHOLE:
            # The queue of a listener that accepts nobody is full after a few, and then no SYN is answered.
            listener = self._stack.enter_context(_bound(*self.address))
            listener.listen(0)
            for _ in range(4):
                filler = self._stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(self.address)

    async def mend(self) -> None:
        """As a restart: what hung is cut, and all is well."""
        fault, self.fault = self.fault, None
        if fault in (Fault.HANG, *(each for each in Fault if each.lasting)):
            await self.leave()
            await self.listen("127.0.0.2" if fault is Fault.DNS else "127.0.0.1")


class _Connection(asyncio.Protocol):
    """One connection that the edge made to a member."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._member.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._member.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._read.endswith(b"\r\n\r\n"):
            head, self._read = self._read, b""
            if head.startswith((b"GET /health ", b"GET /versions ")):
                self._respond(b"200 OK", _WELL)
            else:
                asyncio.get_running_loop().call_later(_LATENCY, self._answer)

    def reset(self) -> None:
        """Closes with RST and not FIN."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _answer(self) -> None:
        if self._transport.is_closing():
            return
        match self._member.fault:
            case Fault.HANG:
                return
            case Fault.RESET:
                self.reset()
            case Fault.TRUNCATED:
                self._respond(b"200 OK", _BODY, cut=len(_BODY) // 2)
                asyncio.get_running_loop().call_later(_LATENCY, self.reset)
            case Fault.NONSENSE:
                self._transport.write(b"all is well\r\n\r\n")
            case Fault.ANSWERS_503:
                self._respond(b"503 Service Unavailable", b"sorry")
            case _:
                self._respond(b"200 OK", _BODY)

    def _respond(self, status: bytes, body: bytes, cut: int | None = None) -> None:
        name = self._member.name.encode()
        head = b"HTTP/1.1 %b\r\nX-Member: %b\r\nContent-Length: %d\r\n\r\n" % (status, name, len(body))
        self._transport.write(head + body[:cut])


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


class NameServer(asyncio.DatagramProtocol):
    """Says where `_NAME` is, for one second at a time; with no `address` there is no such name."""

    address: str | None = "127.0.0.1"
    port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Notes where it listens."""
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answers one question."""
        # RFC 1035 section 4.1: an id, flags, four counts; then the question, which the answer repeats.
        end = data.index(b"\0", 12) + 5
        question = data[12:end]
        known = self.address is not None and question.lower().startswith(b"\x02m0\x05drill\x04test\0")
        records = b""
        if known and question[-4:-2] == b"\0\1":
            records = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(cast(str, self.address))
        flags = 0x8180 if known else 0x8183
        header = data[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0)
        self._transport.sendto(header + question + records, addr)

    def close(self) -> None:
        """Answers no more."""
        self._transport.close()


@dataclass
class Visitor:
    """One visitor, with the cookie of `home`, and what came of the requests."""

    home: str
    after: float
    seen: Counter[str] = field(default_factory=Counter)
    served_by: str = ""

    async def visit(self, port: int) -> None:
        """Comes `after` so many seconds, and asks again and again until cancelled."""
        await asyncio.sleep(self.after)
        request = f"GET /drill HTTP/1.1\r\nHost: hub.test\r\nCookie: {COOKIE}={self.home}\r\n\r\n".encode()
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while await self._ask(reader, writer, request):
                    pass
            finally:
                writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
        """One request; False if the connection is of no more use."""
        self.seen["requests"] += 1
        writer.write(request)
        outcome = "failed"
        try:
            async with asyncio.timeout(_GUARD):
                head = await reader.readuntil(b"\r\n\r\n")
                outcome = "cut"
                fields = _fields(head)
                await reader.readexactly(int(fields.get(b"content-length", b"0")))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            self.seen[outcome] += 1
            return False
        if head.startswith(b"HTTP/1.1 200 "):
            self.seen["ok"] += 1
            self.served_by = fields.get(b"x-member", b"").decode()
        else:
            self.seen["failed"] += 1
            self.seen[head[9:12].decode()] += 1
        return fields.get(b"connection") != b"close"


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in lines}


@dataclass(frozen=True)
class Figures:
    """What the edge's `/metrics` says at one moment. All but the first two are of the victim."""

    retries: int
    exhausted: int
    errors: dict[str, int]
    answered_503: int
    opened: int

    @property
    def failures(self) -> int:
        """What the breaker is told of: a stale connection is nobody's fault, an answer 503 is one."""
        return sum(self.errors.values()) - self.errors.get("stale", 0) + self.answered_503


async def scrape(client: aiohttp.ClientSession, port: int) -> Figures:
    """Reads `/metrics` once."""
    async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}

    def victims(name: str, label: str = "member") -> dict[str, int]:
        samples = families[name]
        mine = [s for s in samples if s.labels["member"] == VICTIM and not s.name.endswith("_created")]
        return {sample.labels[label]: int(sample.value) for sample in mine}

    return Figures(
        retries=sum(int(sample.value) for sample in families["fedproxy_retries"]),
        exhausted=int(families["fedproxy_retry_budget_exhausted"][0].value),
        errors=victims("fedproxy_upstream_errors", "reason"),
        # Passed on, or passed over for another member's.
        answered_503=sum(
            victims(name, label).get("503", 0)
            for name, label in (("fedproxy_requests", "code"), ("fedproxy_retries", "reason"))
        ),
        opened=victims("fedproxy_breaker_transitions", "to").get("open", 0),
    )


@dataclass(frozen=True)
class Result:
    """What a drill showed. `back` is in seconds; `first`: failures when the breaker was first seen open."""

    fault: Fault
    seen: Counter[str]
    figures: Figures
    first: int | None
    seconds: float
    back: float | None

    @property
    def attempts(self) -> float:
        """Attempts per request."""
        return 1 + self.figures.retries / self.seen["requests"]

    @property
    def attempts_bound(self) -> float:
        """What the retry budget allows at most."""
        return 1 + _BUDGET + (_FLOOR * self.seconds + _BUCKET) / self.seen["requests"]

    @property
    def back_bound(self) -> float:
        """The longest open time that there can have been, and the second that a hanging trial may take."""
        longest = min(_OPEN * 2.0 ** max(self.figures.opened - 1, 0), _OPEN_MAX) * _JITTER
        return longest + _TIMEOUT + 2 * _LATENCY

    def faults(self) -> list[str]:
        """What is not as it should be."""
        wrong = []
        if self.seen["failed"]:
            statuses = {key: n for key, n in self.seen.items() if key.isdigit()}
            wrong.append(f"{self.seen['failed']} GETs failed, by status {statuses or 'none'}")
        if self.seen["cut"] and self.fault is not Fault.TRUNCATED:
            wrong.append(f"{self.seen['cut']} responses were cut short")
        if self.attempts > self.attempts_bound:
            wrong.append(f"more attempts than {self.attempts_bound:.2f} per request")
        if self.back is None or self.back > self.back_bound:
            wrong.append(f"not all visitors were back in {self.back_bound:.1f} s")
        if not self.figures.opened:
            wrong.append("the breaker never opened")
        return wrong


class Drill:
    """One fault, from well to well again. `seconds`: how long the member is ill."""

    def __init__(self, fault: Fault, folder: Path, *, port: int, visitors: int, seconds: float) -> None:
        self.fault = fault
        self._folder = folder
        self._port = port
        self._seconds = seconds
        self._members = {name: Member(name) for name in MEMBERS}
        self._visitors = [
            Visitor(MEMBERS[at % len(MEMBERS)], after=_WARM * at / visitors) for at in range(visitors)
        ]
        self._names = NameServer()

    async def run(self) -> Result:
        """Runs it. Raises `BenchmarkError` if the edge cannot be had, or was not well before."""
        victim = self._members[VICTIM]
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._world())
            client = await stack.enter_async_context(aiohttp.ClientSession())
            visits = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = [visits.create_task(visitor.visit(self._port)) for visitor in self._visitors]
            started = time.monotonic()
            first = None
            try:
                if self.fault is not Fault.NO_NAME:
                    await self._all_at_home()
                    await asyncio.sleep(_WARM)
                    self._names.address = None if self.fault is Fault.DNS else self._names.address
                    await victim.break_down(self.fault)
                first = await self._watch(client)
                back = await self._mended(victim)
                await asyncio.sleep(_WARM)
                figures = await scrape(client, self._port + 1)
            finally:
                for task in tasks:
                    task.cancel()
        seen = sum((visitor.seen for visitor in self._visitors), Counter[str]())
        return Result(self.fault, seen, figures, first, time.monotonic() - started, back)

    async def _watch(self, client: aiohttp.ClientSession) -> int | None:
        """Waits while the member is ill; gives its errors when its breaker was first seen open."""
        first = None
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            if first is None:
                figures = await scrape(client, self._port + 1)
                if figures.opened:
                    first = figures.failures
            await asyncio.sleep(_POLL)
        return first

    async def _mended(self, victim: Member) -> float | None:
        """Mends the member; gives the time until each of its visitors was served by it again."""
        for visitor in self._visitors:
            visitor.served_by = ""
        start = time.monotonic()
        self._names.address = "127.0.0.2" if self.fault is Fault.DNS else "127.0.0.1"
        await victim.mend()
        try:
            await self._all_at_home()
        except BenchmarkError:
            return None
        return time.monotonic() - start

    async def _all_at_home(self) -> None:
        end = time.monotonic() + _GUARD
        while any(visitor.served_by != visitor.home for visitor in self._visitors):
            if time.monotonic() > end:
                raise BenchmarkError("not every visitor was served by the member of their cookie")
            await asyncio.sleep(_POLL / 4)

    @contextlib.asynccontextmanager
    async def _world(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: self._names, local_addr=("127.0.0.1", 0))
            stack.callback(self._names.close)
            for member in self._members.values():
                await member.listen()
                stack.push_async_callback(member.leave)
            self._names.address = None if self.fault is Fault.NO_NAME else "127.0.0.1"
            core = max(os.sched_getaffinity(0))
            edge = Process("fedproxy", self._command(), core=core, folder=self._folder)
            stack.push_async_callback(asyncio.to_thread, edge.stop)
            await asyncio.to_thread(edge.wait_ready, self._port + 1, "/health/ready")
            yield

    def _command(self) -> list[str]:
        config = self._folder / "drill.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        command = [sys.executable, "-m", "fedproxy", "serve", "--config", str(config)]
        if self.fault not in (Fault.DNS, Fault.NO_NAME):
            return command
        # c-ares has no setting in the environment for its name server: the program is shown another
        # /etc/resolv.conf, which nobody else sees.
        names = self._folder / "resolv.conf"
        names.write_text(f"nameserver 127.0.0.1:{self._names.port}\n")
        shown = f"mount --bind {shlex.quote(str(names))} /etc/resolv.conf && exec {shlex.join(command)}"
        mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", *mapped, "--mount", "sh", "-c", shown]

    def _config(self) -> dict[str, Any]:
        hosts = {name: member.address[0] for name, member in self._members.items()}
        if self.fault in (Fault.DNS, Fault.NO_NAME):
            hosts[VICTIM] = _NAME
        return {
            "listen": [{"address": f"127.0.0.1:{self._port}"}],
            "admin": {"address": f"127.0.0.1:{self._port + 1}"},
            "workers": 1,
            "access_log": "off",
            "affinity": {"cookie": COOKIE},
            "timeouts": {"connect": _TIMEOUT, "response_head": _TIMEOUT, "drain": "1s"},
            "retry": {"attempts": 3, "budget": _BUDGET, "floor": _FLOOR},
            "breaker": {"failures": 5, "open": _OPEN, "open_max": _OPEN_MAX},
            # What is drilled is the breaker: the probes are not to be there before it.
            "health": {"interval": "1h"},
            "members": {
                name: {"url": f"http://{hosts[name]}:{member.address[1]}", "prime": name == MEMBERS[-1]}
                for name, member in self._members.items()
            },
        }


def _show(results: list[Result], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True)
    table.add_column("member", no_wrap=True)
    for name in (
        "requests",
        "failed\nGETs",
        "cut\nshort",
        "attempts\neach",
        "fails at\nopening",
        "fails\nin all",
        "times\nopen",
        "back\ns",
        "at most\ns",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        seen, figures = result.seen, result.figures
        table.add_row(
            result.fault,
            f"{seen['requests']:,}",
            str(seen["failed"]),
            str(seen["cut"]),
            f"{result.attempts:.3f}",
            "-" if result.first is None else str(result.first),
            str(figures.failures),
            str(figures.opened),
            "-" if result.back is None else f"{result.back:.2f}",
            f"{result.back_bound:.1f}",
        )
    console.print(table)
    for result in results:
        charged = {**result.figures.errors, "answers 503": result.figures.answered_503}
        errors = ", ".join(f"{n} {reason}" for reason, n in sorted(charged.items()) if n)
        console.print(f"{result.fault}: charged with {errors or 'nothing'}", highlight=False)
        for wrong in result.faults():
            console.print(f"  [red]{wrong}[/red]", highlight=False)


def _drill(fault: Fault, *, port: int, visitors: int, seconds: float) -> Result:
    if fault in (Fault.DNS, Fault.NO_NAME) and shutil.which("unshare") is None:
        raise BenchmarkError(
            "unshare is not installed: the drills of names need it (apt-get install util-linux)"
        )
    require_free([port, port + 1])
    with tempfile.TemporaryDirectory(prefix="fedproxy-drill-") as folder:
        return asyncio.run(Drill(fault, Path(folder), port=port, visitors=visitors, seconds=seconds).run())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("faults", nargs=-1, type=click.Choice([fault.value for fault in Fault]))
@click.option(
    "--seconds", type=click.FloatRange(0.5, 60), default=3.0, show_default=True, help="How long it is ill."
)
@click.option("--visitors", type=click.IntRange(3, 1000), default=100, show_default=True)
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18200, show_default=True, help="The first of two."
)
def main(faults: tuple[str, ...], seconds: float, visitors: int, port: int) -> None:
    """Let one member of three fail under load, mend it, and count. FAULTS: all when none is named.

    Exits with 1 if something is not as it should be.
    """
    console = Console()
    results = []
    try:
        for name in faults or Fault:
            with console.status(f"{name}: {visitors} visitors"):
                results.append(_drill(Fault(name), port=port, visitors=visitors, seconds=seconds))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if results:
            _show(results, console)
    if any(result.faults() for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.drills")
