"""`python -m benchmarks.drills`: something fails under load; what do the visitors notice?

The real program runs in its own processes, between three members and their visitors in this one. Each visitor
has the cookie of one member and repeats its request on a keep-alive connection. The edge's own figures are
those of its `/metrics`. In a drill of a `Fault` a member fails and is fixed. In a drill of a `Mishap`
something happens to the edge itself, or one client misbehaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import os
import select
import shlex
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import click
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import COOKIE, MEMBERS, BenchmarkError, Process, is_worker, require_free

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

# The drills of the edge itself and of its clients.
_CROWD = 20
_WORKERS = 2
_WITHIN = 30.0  # seconds for one of them
_WORST = 1.0  # seconds that a request may take, of which the member needs `_LATENCY`
_REPLACED = 10.0  # seconds until a killed worker is replaced
_LIMIT, _STOPPED = 1.5, 4.0  # seconds of every time limit, and of the stop
_ASKED, _PAUSE = 20, 0.2  # requests of the stale tab in a row, and seconds between
_RESETS, _BATCH = 1000, 100
_FORGED: Final = b"198.51.100.66"
_TAB: Final = "127.0.0.9"
_HELD: Final = b"/held"
_HALVED: Final = b"/halved"
_LONG: Final = "/" + "x" * 3000  # its line in the log is shorter than what a pipe takes in one piece


class Fault(enum.StrEnum):
    """How the member fails."""

    KILLED = "killed"
    """Every connection is cut, and new ones are refused."""
    BLACKHOLE = "blackhole"
    """Every connection is cut, and no SYN is answered."""
    HANG = "hang"
    """Takes requests and never answers."""
    RESET = "reset"
    """Resets instead of answering."""
    TRUNCATED = "truncated"
    """Resets after the head and half of the body, which cannot be hidden from the visitor."""
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


class Mishap(enum.StrEnum):
    """What happens to the edge itself, or what one client does."""

    LOG_SOCKET = "log-socket"
    """Standard output is a stream socket that nobody reads."""
    LOG_PIPE = "log-pipe"
    """Standard output is a pipe that nobody reads."""
    STDERR_FULL = "stderr-full"
    """Standard output and error are on a full disk; a worker is killed, and then comes SIGTERM."""
    STDERR_GONE = "stderr-gone"
    """The same with a pipe whose reader has left."""
    STALE_TAB = "stale-tab"
    """One client keeps requesting its own dead server: answered 503, or broken off."""
    STOPPED = "stopped"
    """All processes are stopped for longer than any time limit, and continued."""
    RESET_EARLY = "reset-early"
    """Clients send a request with a forged address and reset before they are accepted."""


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
        """Behaves like this from now on."""
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

    def take(self, connection: _Connection, head: bytes) -> None:
        """Answers one request after a while."""
        asyncio.get_running_loop().call_later(_LATENCY, lambda: connection.answer(self.fault))

    async def fix(self) -> None:
        """Like a restart: hanging connections are cut, and it serves normally."""
        fault, self.fault = self.fault, None
        if fault in (Fault.HANG, *(each for each in Fault if each.lasting)):
            await self.leave()
            await self.listen("127.0.0.2" if fault is Fault.DNS else "127.0.0.1")


class Hub(Member):
    """A member with a dead server at `/user/mine/`, and with responses that wait for `go_on`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.forged = 0
        self._waiting: list[tuple[_Connection, bool]] = []
        self._asked = 0

    def take(self, connection: _Connection, head: bytes) -> None:
        """Answers one request after a while, or when it is told to."""
        path = head.split(b" ", 2)[1]
        self.forged += _FORGED in head
        if path.startswith(b"/user/mine/"):
            # Many in a row, faster than others are served; and then a pause.
            rounds, at = divmod(self._asked, _ASKED)
            self._asked += 1
            answer = connection.break_off if rounds % 2 else lambda: connection.answer(Fault.ANSWERS_503)
            asyncio.get_running_loop().call_later(0.0 if at else _PAUSE, answer)
        elif path in (_HELD, _HALVED):
            if path == _HALVED:
                connection.begin()
            self._waiting.append((connection, path == _HALVED))
        else:
            super().take(connection, head)

    @property
    def waiting(self) -> int:
        """How many responses wait for `go_on`."""
        return len(self._waiting)

    def go_on(self) -> None:
        """Completes the responses that wait."""
        for connection, begun in self._waiting:
            if begun:
                connection.go_on()
            else:
                connection.answer(None)
        self._waiting.clear()


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
                self._member.take(self, head)

    def reset(self) -> None:
        """Closes with RST and not FIN."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def answer(self, fault: Fault | None) -> None:
        """Responds, or does what `fault` says instead."""
        if self._transport.is_closing():
            return
        match fault:
            case Fault.HANG:
                return
            case Fault.RESET:
                self.reset()
            case Fault.TRUNCATED:
                self._respond(b"200 OK", _BODY, cut=len(_BODY) // 2)
                asyncio.get_running_loop().call_later(_LATENCY, self.reset)
            case Fault.NONSENSE:
                self._transport.write(b"no HTTP here\r\n\r\n")
            case Fault.ANSWERS_503:
                self._respond(b"503 Service Unavailable", b"sorry")
            case _:
                self._respond(b"200 OK", _BODY)

    def begin(self) -> None:
        """Sends the head and half of the body; `go_on` sends the rest."""
        self._respond(b"200 OK", _BODY, cut=len(_BODY) // 2)

    def break_off(self) -> None:
        """Closes after half of the body."""
        self.begin()
        self._transport.close()

    def go_on(self) -> None:
        """Sends what `begin` left."""
        self._transport.write(_BODY[len(_BODY) // 2 :])

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
    """A name server for `_NAME`; answers are valid for 1 s. Without `address` there is no such name."""

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
    target: str = "/drill"
    address: str = "127.0.0.1"
    """Where it comes from."""
    worst: float = 0.0
    """Seconds that the slowest answer took."""
    leaving: bool = False
    """Set to have no more than the request under way."""

    async def visit(self, port: int) -> None:
        """Starts `after` this many seconds, and repeats requests until cancelled or `leaving`."""
        await asyncio.sleep(self.after)
        while not self.leaving:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(self.address, 0))
            try:
                while await self._ask(reader, writer, self.request) and not self.leaving:
                    pass
            finally:
                writer.transport.abort()

    async def visit_twice(self, port: int, split: int | None, go: asyncio.Event) -> None:
        """Asks once, then again on the same connection: the first `split` bytes now, the rest after `go`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(self.address, 0))
        try:
            first = self.request.replace(self.target.encode(), b"/drill", 1)
            if await self._ask(reader, writer, first):
                now, later = self.request[:split], self.request[split:] if split is not None else b""
                writer.write(now)
                self.seen["begun"] += 1
                await go.wait()
                await self._ask(reader, writer, later)
        finally:
            writer.transport.abort()

    @property
    def request(self) -> bytes:
        """What it sends."""
        cookie = f"Cookie: {COOKIE}={self.home}"
        return f"GET {self.target} HTTP/1.1\r\nHost: hub.test\r\n{cookie}\r\n\r\n".encode()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
        """One request; False if the connection is of no more use."""
        self.seen["requests"] += 1
        writer.write(request)
        outcome, start = "failed", time.monotonic()
        try:
            async with asyncio.timeout(_GUARD):
                head = await reader.readuntil(b"\r\n\r\n")
                outcome = "cut"
                fields = _fields(head)
                await reader.readexactly(int(fields.get(b"content-length", b"0")))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            self.seen[outcome] += 1
            return False
        self.worst = max(self.worst, time.monotonic() - start)
        cookie = fields.get(b"set-cookie", b"")
        self.seen["overwritten"] += bool(cookie) and not cookie.startswith(f"{COOKIE}={self.home};".encode())
        if head.startswith(b"HTTP/1.1 200 "):
            self.seen["ok"] += 1
            self.served_by = fields.get(b"x-member", b"").decode()
            self.seen["elsewhere"] += self.served_by != self.home
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


async def _families(client: aiohttp.ClientSession, port: int) -> dict[str, list[Sample]]:
    async with client.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


async def scrape(client: aiohttp.ClientSession, port: int) -> Figures:
    """Reads `/metrics` once."""
    families = await _families(client, port)

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
        """The figures that are out of bounds."""
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
    """One fault, from a healthy member to recovery. `seconds`: how long the member fails."""

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
        """Runs it. Raises `BenchmarkError` if the edge does not start, or did not serve before the fault."""
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
        """Waits while the member fails; returns its errors when its breaker was first seen open."""
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
        """Fixes the member; returns the time until each of its visitors was served by it again."""
        for visitor in self._visitors:
            visitor.served_by = ""
        start = time.monotonic()
        self._names.address = "127.0.0.2" if self.fault is Fault.DNS else "127.0.0.1"
        await victim.fix()
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


@dataclass(frozen=True)
class Check:
    """A figure, and the bounds that it must keep."""

    what: str
    figure: float
    least: float = 0
    most: float = 0

    @property
    def holds(self) -> bool:
        """Whether it is within them."""
        return self.least <= self.figure <= self.most

    def __str__(self) -> str:
        bound = f"at least {self.least:,g}" if self.most == math.inf else f"at most {self.most:,g}"
        return f"{self.what} {round(self.figure, 2):,} ({bound})"


def _at_least(what: str, figure: float, least: float) -> Check:
    return Check(what, figure, least, math.inf)


@dataclass(frozen=True)
class Report:
    """What a drill of a `Mishap` showed. `worst`: the slowest answer, in seconds.

    `unfinished`: what it waited for in vain; there are no more checks then.
    """

    mishap: Mishap
    seen: Counter[str]
    worst: float
    bound: float
    checks: Sequence[Check]
    unfinished: str

    def faults(self) -> list[str]:
        """The figures that are out of bounds."""
        slow = Check("seconds of the slowest answer", self.worst, most=self.bound)
        wrong = [f"out of bounds: {check}" for check in (*self.checks, slow) if not check.holds]
        return [*wrong, f"not finished: {self.unfinished}"] if self.unfinished else wrong


@dataclass(frozen=True)
class Totals:
    """What `/metrics` says of all members and of the edge at one moment."""

    charged: int
    transitions: int
    down: int
    dropped: Counter[str]
    workers: int

    @classmethod
    async def read(cls, client: aiohttp.ClientSession, port: int) -> Totals:
        """Reads `/metrics` once."""
        families = await _families(client, port)

        def total(name: str) -> Iterator[Sample]:
            return (each for each in families.get(name, ()) if not each.name.endswith("_created"))

        errors = total("fedproxy_upstream_errors")
        lost = {each.labels["log"]: int(each.value) for each in total("fedproxy_log_lines_dropped")}
        return cls(
            charged=sum(int(each.value) for each in errors if each.labels["reason"] != "stale"),
            transitions=sum(int(each.value) for each in total("fedproxy_breaker_transitions")),
            down=sum(not each.value for each in total("fedproxy_member_up")),
            dropped=Counter(lost),
            workers=sum(int(each.value) for each in total("fedproxy_workers")),
        )


class _InVain(Exception):
    """A wait took too long."""


class Trial:
    """One mishap; all members are healthy before and after. `seconds`: its duration, unless stated otherwise.

    Every visitor has its own address, because the edge limits what one client alone can cause.
    """

    def __init__(self, mishap: Mishap, folder: Path, *, port: int, seconds: float) -> None:
        self.mishap = mishap
        self._folder = folder
        self._port = port
        self._seconds = seconds
        self._hubs = {name: Hub(name) for name in MEMBERS}
        self._victim = self._hubs[VICTIM]
        self._visitors = [
            Visitor(MEMBERS[at % len(MEMBERS)], after=0.0, address=f"127.0.1.{at + 1}")
            for at in range(_CROWD)
        ]
        self._checks: list[Check] = []
        self._bound = _WORST

    async def run(self) -> Report:
        """Runs it. Raises `BenchmarkError` if the edge does not start."""
        drill = {
            Mishap.LOG_SOCKET: self._log_stalled,
            Mishap.LOG_PIPE: self._log_stalled,
            Mishap.STDERR_FULL: self._stderr_lost,
            Mishap.STDERR_GONE: self._stderr_lost,
            Mishap.STALE_TAB: self._stale_tab,
            Mishap.STOPPED: self._stopped,
            Mishap.RESET_EARLY: self._reset,
        }[self.mishap]
        unfinished = ""
        try:
            async with asyncio.timeout(_WITHIN), contextlib.AsyncExitStack() as stack:
                self._client = await stack.enter_async_context(aiohttp.ClientSession())
                for hub in self._hubs.values():
                    await hub.listen()
                    stack.push_async_callback(hub.leave)
                await drill(stack)
        except _InVain as error:
            unfinished = str(error)
        except TimeoutError:
            unfinished = f"not over in {_WITHIN:.0f} s"
        except (OSError, aiohttp.ClientError) as error:
            unfinished = f"{type(error).__name__}: {error}"
        seen = sum((visitor.seen for visitor in self._visitors), Counter[str]())
        worst = max(visitor.worst for visitor in self._visitors)
        return Report(self.mishap, seen, worst, self._bound, self._checks, unfinished)

    # The drills

    async def _log_stalled(self, stack: contextlib.AsyncExitStack) -> None:
        if self.mishap is Mishap.LOG_SOCKET:
            ours, theirs = (each.detach() for each in socket.socketpair())
        else:
            ours, theirs = os.pipe()
        stack.callback(os.close, ours)
        for visitor in self._visitors:
            visitor.target = _LONG
        try:
            await self._start(stack, access_log="json", stdout=theirs)
        finally:
            os.close(theirs)
        async with self._crowd():
            await self._until("a line is dropped", self._has_dropped)
            answered = self._seen("ok")
            for visitor in self._visitors:
                visitor.worst = 0.0
            await asyncio.sleep(self._seconds)
        read, dropped = await asyncio.to_thread(_whole_lines, ours), 0

        async def all_counted() -> bool:
            nonlocal dropped
            dropped = (await self._totals()).dropped["access"]
            return read + dropped == self._seen("requests")

        # A worker's report is up to a second old.
        with contextlib.suppress(_InVain):
            await self._until("all lines are counted", all_counted, within=5.0)
        self._checks += [
            _at_least("lines dropped", dropped, 1),
            _at_least("answered meanwhile", self._seen("ok") - answered, _CROWD),
            Check("requests failed", self._failed()),
            Check("lines neither read later nor counted", abs(self._seen("requests") - dropped - read)),
        ]

    async def _has_dropped(self) -> bool:
        return bool((await self._totals()).dropped["access"])

    async def _stderr_lost(self, stack: contextlib.AsyncExitStack) -> None:
        ours, theirs = os.pipe()
        if self.mishap is Mishap.STDERR_FULL:
            os.close(theirs)
            theirs = os.open("/dev/full", os.O_WRONLY)
        try:
            edge = await self._start(stack, access_log="json", stdout=theirs, stderr=theirs)
        finally:
            os.close(theirs)
            os.close(ours)
        async with self._crowd():
            before = edge.processes()
            killed = next(pid for pid in before if is_worker(pid))
            os.kill(killed, signal.SIGKILL)
            start = time.monotonic()

            async def replaced() -> bool:
                new = set(edge.processes()) - set(before)
                return bool(new) and (await self._totals()).workers == _WORKERS

            await self._until("the worker is replaced", replaced)
            seconds = time.monotonic() - start
            lost = self._failed()
            await asyncio.sleep(self._seconds)
        failed = self._failed() - lost
        dropped = (await self._totals()).dropped
        held = await self._drained(edge)
        ended = edge.ended()
        self._checks += [
            Check("seconds until the killed worker was replaced", seconds, most=_REPLACED),
            Check("requests lost with it", lost, most=_CROWD),
            Check("failed afterwards", failed),
            Check("cut by SIGTERM", sum(visitor.seen["ok"] != 2 for visitor in held)),
            Check("exit status", -1 if ended is None else ended, 0),
            Check("processes left", len(edge.processes())),
            _at_least("events dropped", dropped["events"], 1),
            _at_least("lines dropped", dropped["access"], 1),
        ]

    async def _drained(self, edge: Process) -> list[Visitor]:
        """SIGTERM while visitors wait. Returns them when the edge has ended, or should have."""
        held = self._many(_HELD, 10)
        async with _together(visitor.visit_twice(self._port, None, _set()) for visitor in held):
            await self._until("requests wait", lambda: self._victim.waiting == len(held))
            edge.terminate()
            await self._until("nobody is accepted", lambda: not _accepts(self._port))
            self._victim.go_on()
        with contextlib.suppress(_InVain):
            await self._until("it ended", lambda: edge.ended() is not None, within=5.0)
        return held

    async def _stale_tab(self, stack: contextlib.AsyncExitStack) -> None:
        for at, visitor in enumerate(self._visitors):
            visitor.home = VICTIM
            visitor.target = ("/user/alive/lab", "/v2/gh/someone/something/HEAD")[at % 2]
        await self._start(stack)
        tab = Visitor(VICTIM, after=0.0, target="/user/mine/x", address=_TAB)
        async with self._crowd():
            task = asyncio.ensure_future(tab.visit(self._port))
            await asyncio.sleep(self._seconds)
            await self._until("the tab has asked enough", lambda: tab.seen["requests"] > 2 * _ASKED)
            tab.leaving = True
            await task
        totals = await self._totals()
        self._checks += [
            _at_least("the tab was answered 503", tab.seen["503"], _ASKED),
            _at_least("broken off", tab.seen["cut"], _ASKED),
            Check("others' requests failed", self._failed()),
            Check("answered by another member", self._seen("elsewhere")),
            Check("cookies overwritten", self._seen("overwritten") + tab.seen["overwritten"]),
            Check("breaker transitions", totals.transitions),
        ]

    async def _stopped(self, stack: contextlib.AsyncExitStack) -> None:
        limits = ("connect", "request_head", "request_idle", "response_head", "response_idle", "keepalive")
        edge = await self._start(
            stack,
            timeouts={**dict.fromkeys(limits, _LIMIT), "drain": "1s"},
            breaker={"failures": 1, "open": "300s", "max_ejected": 1.0},
            health={"interval": "200ms", "timeout": _LIMIT, "fall": 1},
        )
        # Idle, or in the middle of something: half a head, no response yet, half a response.
        go = asyncio.Event()
        waiting = self._many(_HELD, 5) + self._many(_HALVED, 5)
        some: list[tuple[Visitor, int | None]] = [(each, None) for each in waiting]
        some += [(each, split) for split in (0, 20) for each in self._many(b"/late", 5)]
        self._bound = _STOPPED + _LIMIT
        begun = (visitor.visit_twice(self._port, split, go) for visitor, split in some)
        async with self._crowd(), _together(begun):
            await self._until(
                "all have begun",
                lambda: all(each.seen["begun"] for each, _ in some) and self._victim.waiting == len(waiting),
            )
            with _paused(edge.processes()):
                await asyncio.sleep(_STOPPED)
            self._victim.go_on()
            go.set()
            await asyncio.sleep(_WARM)
        totals = await self._totals()
        self._checks += [
            Check("visitors in the middle of a request cut", sum(each.seen["ok"] != 2 for each, _ in some)),
            Check("others' requests failed", self._failed()),
            Check("members charged", totals.charged),
            Check("breaker transitions", totals.transitions),
            Check("members unhealthy", totals.down),
        ]

    async def _reset(self, stack: contextlib.AsyncExitStack) -> None:
        log = self._folder / "access.log"
        edge = await self._start(stack, access_log="json", access_log_file=str(log))
        forged = b"GET /forged HTTP/1.1\r\nHost: hub.test\r\nX-Forwarded-For: %b\r\n\r\n" % _FORGED
        async with self._crowd():
            for at in range(_RESETS // _BATCH):
                # Half of them while nobody can accept them, the others whenever they come.
                with _paused(edge.processes() if at % 2 else []):
                    for _ in range(_BATCH):
                        _send_and_reset(self._port, forged)
                await asyncio.sleep(self._seconds * _BATCH / _RESETS)
        requests = self._seen("requests")
        lines: list[bytes] = []

        def written() -> bool:
            lines[:] = log.read_bytes().splitlines()
            return sum(b'"/drill"' in line for line in lines) >= requests

        with contextlib.suppress(_InVain):
            await self._until("the log is written", written, within=5.0)
        self._checks += [
            Check(
                f"log lines with the address that {_RESETS:,} forged", sum(_FORGED in each for each in lines)
            ),
            Check("requests at members with it", sum(hub.forged for hub in self._hubs.values())),
            Check("others' requests failed", self._failed()),
            Check("others' lines missing", requests - sum(b'"/drill"' in line for line in lines)),
        ]

    # What they have in common

    async def _start(
        self,
        stack: contextlib.AsyncExitStack,
        stdout: int | None = None,
        stderr: int | None = None,
        **config: Any,
    ) -> Process:
        file = self._folder / "drill.yaml"
        urls = {name: "http://{}:{}".format(*hub.address) for name, hub in self._hubs.items()}
        base = {
            "listen": [{"address": f"127.0.0.1:{self._port}"}],
            "admin": {"address": f"127.0.0.1:{self._port + 1}"},
            "workers": _WORKERS,
            "access_log": "off",
            "affinity": {"cookie": COOKIE},
            "timeouts": {"drain": "10s"},
            "members": {name: {"url": url, "prime": name == MEMBERS[-1]} for name, url in urls.items()},
        }
        file.write_text(yaml.safe_dump(base | config))
        command = [sys.executable, "-m", "fedproxy", "serve", "--config", str(file)]
        edge = Process(
            "fedproxy",
            command,
            core=sorted(os.sched_getaffinity(0)),
            folder=self._folder,
            stdout=stdout,
            stderr=stderr,
        )
        stack.push_async_callback(asyncio.to_thread, edge.stop)
        await asyncio.to_thread(edge.wait_ready, self._port + 1, "/health/ready")
        return edge

    @contextlib.asynccontextmanager
    async def _crowd(self) -> AsyncIterator[None]:
        """The visitors ask from when each was served until the end, and then complete what is under way."""
        async with _together(visitor.visit(self._port) for visitor in self._visitors):
            await self._until("all are served", lambda: all(each.seen["ok"] for each in self._visitors))
            yield
            for visitor in self._visitors:
                visitor.leaving = True

    def _many(self, target: bytes, number: int) -> list[Visitor]:
        return [Visitor(VICTIM, after=0.0, target=target.decode()) for _ in range(number)]

    def _seen(self, what: str) -> int:
        return sum(visitor.seen[what] for visitor in self._visitors)

    def _failed(self) -> int:
        return self._seen("failed") + self._seen("cut")

    async def _totals(self) -> Totals:
        return await Totals.read(self._client, self._port + 1)

    async def _until(
        self, what: str, true: Callable[[], bool | Awaitable[bool]], within: float = _GUARD
    ) -> None:
        end = time.monotonic() + within
        while True:
            found = true()
            if found if isinstance(found, bool) else await found:
                return
            if time.monotonic() > end:
                raise _InVain(f"waited {within:.0f} s without success until {what}")
            await asyncio.sleep(_POLL)


@contextlib.asynccontextmanager
async def _together(some: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs them meanwhile and waits for them at the end; cancels them after an error."""
    tasks = [asyncio.ensure_future(each) for each in some]
    try:
        yield
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@contextlib.contextmanager
def _paused(pids: Iterable[int]) -> Iterator[None]:
    """Stops these processes meanwhile."""
    stopped = []
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _send_and_reset(port: int, data: bytes) -> None:
    with socket.socket() as sock:
        sock.bind((_TAB, 0))
        sock.connect(("127.0.0.1", port))
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _whole_lines(fd: int) -> int:
    """Reads until no more comes; gives how many whole lines it was."""
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    read, quiet = b"", 500  # milliseconds
    while poll.poll(quiet) and (piece := os.read(fd, 1 << 20)):
        read += piece
    return sum(line[:1] == b"{" and line[-1:] == b"}" for line in read.splitlines())


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


def _show_reports(reports: list[Report], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True)
    table.add_column("edge or client", no_wrap=True)
    for name in ("requests", "failed", "worst\nms", "at most\nms", "figures\nin bounds"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        table.add_row(
            report.mishap,
            f"{report.seen['requests']:,}",
            str(report.seen["failed"] + report.seen["cut"]),
            f"{report.worst * 1000:.0f}",
            f"{report.bound * 1000:.0f}",
            f"{sum(check.holds for check in report.checks)} of {len(report.checks)}",
        )
    console.print(table)
    for report in reports:
        console.print(f"{report.mishap}: {', '.join(map(str, report.checks))}", highlight=False)
        for wrong in report.faults():
            console.print(f"  [red]{wrong}[/red]", highlight=False)


def _try(mishap: Mishap, *, port: int, seconds: float) -> Report:
    require_free([port, port + 1])
    with tempfile.TemporaryDirectory(prefix="fedproxy-drill-") as folder:
        return asyncio.run(Trial(mishap, Path(folder), port=port, seconds=seconds).run())


def _drill(fault: Fault, *, port: int, visitors: int, seconds: float) -> Result:
    if fault in (Fault.DNS, Fault.NO_NAME) and shutil.which("unshare") is None:
        raise BenchmarkError(
            "unshare is not installed: the drills of names need it (apt-get install util-linux)"
        )
    require_free([port, port + 1])
    with tempfile.TemporaryDirectory(prefix="fedproxy-drill-") as folder:
        return asyncio.run(Drill(fault, Path(folder), port=port, visitors=visitors, seconds=seconds).run())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("drills", nargs=-1, type=click.Choice([each.value for each in (*Fault, *Mishap)]))
@click.option(
    "--seconds", type=click.FloatRange(0.5, 60), default=3.0, show_default=True, help="How long it lasts."
)
@click.option(
    "--visitors",
    type=click.IntRange(3, 1000),
    default=100,
    show_default=True,
    help=f"In the drills of a member; the others have {_CROWD}.",
)
@click.option(
    "--port",
    type=click.IntRange(1024, 65000),
    default=18200,
    show_default=True,
    help="The first of two ports.",
)
def main(drills: tuple[str, ...], seconds: float, visitors: int, port: int) -> None:
    """Let a member, the edge itself or one client fail under load, and count. DRILLS: default all.

    Exits with 1 if a figure is out of bounds.
    """
    console = Console()
    results: list[Result] = []
    reports: list[Report] = []
    names = drills or (*Fault, *Mishap)
    try:
        for fault in (Fault(name) for name in names if name in set(Fault)):
            with console.status(f"{fault}: {visitors} visitors"):
                results.append(_drill(fault, port=port, visitors=visitors, seconds=seconds))
        for mishap in (Mishap(name) for name in names if name in set(Mishap)):
            with console.status(f"{mishap}: {_CROWD} visitors"):
                reports.append(_try(mishap, port=port, seconds=seconds))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if results:
            _show(results, console)
        if reports:
            _show_reports(reports, console)
    if any(result.faults() for result in results) or any(report.faults() for report in reports):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.drills")
