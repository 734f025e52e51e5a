"""`python -m benchmarks.launches`: the cost and the benefit of reading launches as they pass.

Four measurements, each with edges of its own: the processor time of an event, compared with nginx without
buffering; the memory of an open launch; how many launches become ready on three members of which one has
no room, one fails one launch in five and one is slow, with failover and without; and what each balancer makes
of three members that keep images, and of repositories of which a few are asked for most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from types import FrameType
from typing import Any, NoReturn
from urllib.request import urlopen

import click
import uvloop
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import BenchmarkError, Process, fetch, nginx_command, require_free
from fedproxy.decide.balancer import BALANCERS
from fedproxy.wire.h1.body import Chunked

KIB = 1 << 10
SEED = 20
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST = b"0\r\n\r\n"

_STREAMS = 40  # open at once while events are measured
_TICK = 0.004  # seconds between two events of a stream, so that each is read and written alone
_OPEN = 500  # launches open at once while memory is measured
_LAUNCHES = 300
_RATE = 30.0  # launches a second
_WEIGHTS = {"large": 5, "medium": 3, "small": 1}
_CHOICES = 2000
_CHOICE_RATE = 60.0
_REPOSITORIES = 300  # of which the n-th is asked for 1/n as often as the first
_BUILDS = 1.0  # seconds
_STARTS = 0.1
_LONGEST = 1 << 20
_PATIENCE = 60.0


def event(phase: str, message: str, **more: Any) -> bytes:
    """One event, as a chunk of its own."""
    data = b"data: %b\n\n" % json.dumps({"phase": phase, "message": message, **more}).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


KEEPALIVE = b"c\r\n:keepalive\n\n\r\n"
FIRST = event("waiting", "Waiting for build to start...\n")
BUILT = event("built", "Found built image, launching...\n", imageName="registry.example.org/image")
LAUNCHING = event("launching", "Launching server...\n")
READY = event("ready", "server running\n", url="https://hub.example.org/user/somebody/", token="t" * 22)
FULL = event("failed", "Too many users on this BinderHub! Try again soon.\n")
BROKEN = event("failed", "Internal Server Error\n", status_code=500)


def build() -> list[bytes]:
    """What follows on `FIRST` in a full build: 735 events, median 98 bytes, one of 22,581."""
    lines = [event("building", "x" * (58 if number % 10 else 130)) for number in range(733)]
    lines.insert(400, event("building", "x" * 22_540))
    return [*lines, READY]


# The members


class Builder:
    """A member that keeps what it has built. Who asks for an image that is being built waits for it too."""

    def __init__(self) -> None:
        self.builds = 0
        self._images: dict[str, asyncio.Task[None]] = {}

    async def launch(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Serves a launch."""
        build = self._images.get(path)
        if build is None:
            self.builds += 1
            build = self._images[path] = asyncio.create_task(asyncio.sleep(_BUILDS))
        if build.done():
            writer.write(HEAD)
        else:
            writer.write(HEAD + FIRST)
            await writer.drain()
            await asyncio.shield(build)
        writer.write(BUILT)
        await writer.drain()
        await asyncio.sleep(_STARTS)
        writer.write(LAUNCHING + READY + LAST)


def _say(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


class Members:
    """Three members in one process, told apart by their ports: how each serves a launch."""

    def __init__(self) -> None:
        self.open: list[asyncio.StreamWriter] = []
        self.roles: dict[str, Callable[[str, asyncio.StreamWriter], Awaitable[None]]] = {
            "steady": self.steady,
            "full": self.full,
            "flaky": self.flaky,
            "slow": self.slow,
        }

    def serve(self, role: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        """The handler of one member's connections."""
        builder = Builder() if role == "builder" else None
        launch = self.roles[role] if builder is None else builder.launch

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                    if path.startswith("/build/"):
                        await launch(path, writer)
                    elif path == "/builds" and builder is not None:
                        _say(writer, b"%d" % builder.builds)
                    else:
                        await self.tell(path, writer)
                    await writer.drain()
            writer.close()

        return handle

    async def tell(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Everything except launches: `/play` makes the open streams go through a build, `/end` ends them."""
        _say(writer, b'{"ok": true, "checks": []}' if path == "/health" else b"{}")
        streams, self.open = self.open, [] if path in ("/play", "/end") else self.open
        if path == "/play":
            for number, data in enumerate(build()):
                for stream in streams:
                    stream.write(data)
                await asyncio.sleep(_TICK if number else 0)
        if path in ("/play", "/end"):
            for stream in streams:
                stream.write(LAST)

    async def steady(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Begins a build, or says nothing yet, and waits for `tell`."""
        writer.write(HEAD + (KEEPALIVE if "held" in path else FIRST))
        self.open.append(writer)

    async def full(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Has no room, which it reports after `built` if it has the image."""
        writer.write(HEAD + (BUILT if _draw(path, "cached") < 0.7 else b"") + FULL + LAST)

    async def flaky(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Fails one launch in five, half of them at once and half while the server starts."""
        fails, late = _draw(path, "fails") < 0.2, _draw(path, "late") < 0.5
        if fails and not late:
            writer.write(HEAD + BROKEN + LAST)
        else:
            await self._launch(writer, 0.02, BROKEN if fails else READY)

    async def slow(self, path: str, writer: asyncio.StreamWriter) -> None:
        """Serves every launch, and takes its time."""
        await asyncio.sleep(0.3)
        await self._launch(writer, 0.3, READY)

    async def _launch(self, writer: asyncio.StreamWriter, pace: float, last: bytes) -> None:
        for data in (HEAD + BUILT, LAUNCHING, last + LAST):
            writer.write(data)
            await asyncio.sleep(pace)


def _draw(path: str, what: str) -> float:
    """A number in [0, 1), the same for the same launch in every run, on whichever member."""
    return random.Random(f"{SEED} {what} {path}").random()


async def _run_members(ports: Sequence[int], roles: Sequence[str]) -> None:
    members = Members()
    for port, role in zip(ports, roles, strict=True):
        await asyncio.start_server(members.serve(role), "127.0.0.1", port, backlog=2048, limit=64 * KIB)
    await asyncio.Event().wait()


# The visitors


async def _open(port: int, path: str, accept: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LONGEST)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: hub.test\r\nAccept: {accept}\r\n\r\n".encode())
    return reader, writer


async def _tell(port: int, path: str) -> None:
    status, _ = await asyncio.to_thread(fetch, port, path)
    if status != 200:
        raise BenchmarkError(f"the member answered {status} to {path}")


@dataclass(frozen=True)
class Launched:
    """How one launch went for its visitor. `seconds` to its end."""

    ready: bool
    member: str
    seconds: float


async def _launch(port: int, number: int) -> Launched:
    started = time.monotonic()
    reader, writer = await _open(port, f"/build/gh/org/repo-{number}/HEAD", "text/event-stream")
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    while b'"ready"' not in body and b'"failed"' not in body:
        data = await reader.read(64 * KIB)
        if not data:
            break
        body += data
    writer.close()
    member = head.partition(b"fedproxy_member=")[2].partition(b";")[0].decode()
    return Launched(b'"ready"' in body, member, time.monotonic() - started)


# The measurements


@dataclass(frozen=True)
class Cost:
    """Processor time of one event, in microseconds."""

    peer: str
    user: float
    kernel: float


async def _events(proxy: Process, port: int, member: int, accept: str) -> Cost:
    """Streams a build to everybody at once, event by event, and measures the proxy's cost."""
    opened = [await _open(port, f"/build/gh/org/repo-{number}/HEAD", accept) for number in range(_STREAMS)]
    for reader, _ in opened:
        await reader.readuntil(FIRST)
    before = proxy.cpu()
    playing = asyncio.create_task(_tell(member, "/play"))
    got = await asyncio.gather(*(reader.readuntil(LAST) for reader, _ in opened))
    used = proxy.cpu().since(before)
    await playing
    # nginx makes chunks of its own.
    expected = Chunked(framed=False).feed(b"".join(build()) + LAST)
    if any(Chunked(framed=False).feed(body) != expected for body in got):
        raise BenchmarkError(f"{proxy.name} changed a stream")
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
    events = _STREAMS * len(build())
    return Cost(proxy.name, used.user / events, used.kernel / events)


async def _memory(proxy: int, port: int, member: int, name: str, answered: bytes) -> float:
    """Growth of the edge for each open launch, in bytes; `answered`: what each visitor has got by then."""

    async def hold(count: int) -> int:
        opened = [
            await _open(port, f"/build/gh/org/{name}-{n}/HEAD", "text/event-stream") for n in range(count)
        ]
        if answered:
            for reader, _ in opened:
                await reader.readuntil(answered)
        await asyncio.sleep(1.0)
        resident = _resident(proxy)
        await _tell(member, "/end")
        for reader, writer in opened:
            await reader.readuntil(LAST)
            writer.close()
            await writer.wait_closed()
        return resident

    await hold(10)
    before = _resident(proxy)
    return (await hold(_OPEN) - before) / _OPEN


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * KIB


async def _outcomes(port: int) -> list[Launched]:
    # Visitors do not wait for each other, or a member that fails at once would be asked more than its share.
    arrivals = random.Random(SEED)
    visitors = []
    for number in range(_LAUNCHES):
        visitors.append(asyncio.create_task(_launch(port, number)))
        await asyncio.sleep(arrivals.expovariate(_RATE))
    return await asyncio.gather(*visitors)


@dataclass(frozen=True)
class Chosen:
    """What a balancer made of the launches. share_error: the largest difference between a member's part of
    them and its weight's, from 0 to 1. median: seconds to `ready`."""

    balancer: str
    builds: int
    median: float
    mean: float
    share_error: float


async def _choices(port: int) -> list[Launched]:
    chance = random.Random(SEED)
    ranks = range(1, _REPOSITORIES + 1)
    asked = chance.choices(ranks, [1 / rank for rank in ranks], k=_CHOICES)
    visitors = []
    for repository in asked:
        visitors.append(asyncio.create_task(_launch(port, repository)))
        await asyncio.sleep(chance.expovariate(_CHOICE_RATE))
    return await asyncio.gather(*visitors)


# The processes


def _config(
    folder: Path, name: str, port: int, members: dict[str, int], weights: Mapping[str, int], **more: Any
) -> Path:
    config = {
        "listen": [{"address": f"127.0.0.1:{port}"}],
        "admin": {"address": f"127.0.0.1:{port + 1}"},
        "workers": 1,
        "access_log": "off",
        "timeouts": {"drain": "1s"},
        "members": {
            member: {"url": f"http://127.0.0.1:{at}", "weight": weights.get(member, 1)}
            for member, at in members.items()
        },
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _nginx(folder: Path, port: int, member: int) -> list[str]:
    body = f"""
    upstream member {{ server 127.0.0.1:{member}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://member;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Connection "";
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
        }}
    }}"""
    return nginx_command(folder, "nginx", body)


class Machine:
    """Two cores: the proxies on one, members and visitors on the other; and ports upward from one."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.proxy_core, self.other_core = cores[0], cores[-1]
        os.sched_setaffinity(0, {self.other_core})
        self.stack = stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-launches-")))
        self._ports = iter(range(port, port + 40, 2))

    def port(self) -> int:
        """A port that is free, and the one after it too."""
        port = next(self._ports)
        require_free([port, port + 1])
        return port

    def start(self, name: str, command: Sequence[str], port: int, core: int) -> Process:
        """A process that answers at `port`, ended with the stack."""
        process = Process(name, command, core=core, folder=self.folder)
        self.stack.callback(process.stop)
        process.wait_ready(port, "/health")
        return process

    def edge(
        self, name: str, members: dict[str, int], weights: Mapping[str, int] | None = None, **more: Any
    ) -> tuple[Process, int]:
        """An edge before these members."""
        port = self.port()
        config = _config(self.folder, name, port, members, weights or {}, **more)
        command = [sys.executable, "-m", "fedproxy", "serve", "--config", str(config)]
        return self.start(name, command, port, self.proxy_core), port

    def members(self, *roles: str) -> list[int]:
        """Members with these roles, in one process."""
        ports = [self.port() for _ in roles]
        pairs = ",".join(f"{port}={role}" for port, role in zip(ports, roles, strict=True))
        command = [sys.executable, "-m", "benchmarks.launches", "--members", pairs]
        self.start(f"members-{ports[0]}", command, ports[0], self.other_core)
        return ports


def measure_events(machine: Machine, rounds: int) -> list[Cost]:
    """Every proxy in turn, so that a disturbance affects all of them; medians over the rounds."""
    (member,) = machine.members("steady")
    at = machine.port()
    nginx = machine.start("nginx", _nginx(machine.folder, at, member), at, machine.proxy_core)
    edge, port = machine.edge("fedproxy", {"a": member})
    peers = {
        "nginx, proxy_buffering off": (nginx, at, "text/event-stream"),
        "fedproxy, events not read": (edge, port, "text/event-stream, */*"),
        "fedproxy": (edge, port, "text/event-stream"),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, (process, to, accept) in peers.items():
            costs[name].append(uvloop.run(_limited(_events(process, to, member, accept))))
    return [
        Cost(name, median(cost.user for cost in runs), median(cost.kernel for cost in runs))
        for name, runs in costs.items()
    ]


def measure_memory(machine: Machine) -> dict[str, float]:
    """The memory of an open launch, in bytes: while it is relayed, and while it waits for its first event."""
    (member,) = machine.members("steady")
    edge, port = machine.edge("memory", {"a": member})
    return {
        name: uvloop.run(_limited(_memory(edge.pid, port, member, name, answered)))
        for name, answered in (("relayed", FIRST), ("held", b""))
    }


def measure_outcomes(machine: Machine) -> dict[str, list[Launched]]:
    """The same launches with failover and without."""
    found = {}
    # A real federation has a launch every few seconds, and then the budget's floor is never used up.
    retry = {"attempts": 3, "budget": 0.2, "floor": 100}
    for name, failover in (("without failover", False), ("with failover", True)):
        ports = machine.members("full", "flaky", "slow")
        members = dict(zip(("full", "flaky", "slow"), ports, strict=True))
        _, port = machine.edge(name.replace(" ", "-"), members, retry=retry, launch={"failover": failover})
        found[name] = uvloop.run(_limited(_outcomes(port)))
    return found


def measure_choices(machine: Machine) -> list[Chosen]:
    """The same launches with each balancer, on members that keep what they built."""
    found = []
    for balancer in BALANCERS:
        ports = dict(zip(_WEIGHTS, machine.members("builder", "builder", "builder"), strict=True))
        _, port = machine.edge(balancer, ports, _WEIGHTS, balancer=balancer)
        launches = uvloop.run(_limited(_choices(port)))
        if not all(launch.ready for launch in launches):
            raise BenchmarkError(f"a launch failed with {balancer}")
        builds = 0
        for at in ports.values():
            with urlopen(f"http://127.0.0.1:{at}/builds", timeout=_PATIENCE) as answer:
                builds += int(answer.read())
        counts = Counter(launch.member.partition("!")[0] for launch in launches)
        whole = sum(_WEIGHTS.values())
        errors = [abs(counts[name] / len(launches) - weight / whole) for name, weight in _WEIGHTS.items()]
        seconds = [launch.seconds for launch in launches]
        found.append(Chosen(balancer, builds, median(seconds), mean(seconds), max(errors)))
    return found


async def _limited(what: Awaitable[Any]) -> Any:
    async with asyncio.timeout(_PATIENCE):
        return await what


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


def _show_events(costs: Sequence[Cost], console: Console) -> None:
    table = _table("Processor time of an event, µs", "user", "kernel", "total")
    for cost in costs:
        table.add_row(cost.peer, f"{cost.user:.1f}", f"{cost.kernel:.1f}", f"{cost.user + cost.kernel:.1f}")
    console.print(table)


def _show_outcomes(found: dict[str, list[Launched]], console: Console) -> None:
    table = _table(f"{_LAUNCHES} launches, seed {SEED}", "ready", "share", "median s")
    for name, launches in found.items():
        ready = [launch for launch in launches if launch.ready]
        table.add_row(
            name,
            str(len(ready)),
            f"{len(ready) / len(launches):.0%}",
            f"{median(launch.seconds for launch in ready):.2f}",
        )
    console.print(table)


def _show_choices(found: Sequence[Chosen], console: Console) -> None:
    title = f"{_CHOICES} launches of {_REPOSITORIES} repositories, seed {SEED}"
    table = _table(title, "builds", "median s", "mean s", "share error")
    for each in found:
        table.add_row(
            each.balancer,
            str(each.builds),
            f"{each.median:.2f}",
            f"{each.mean:.2f}",
            f"{each.share_error:.1%}",
        )
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Runs of each peer.")
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18300, show_default=True, help="First port."
)
@click.option("--members", hidden=True)
def main(rounds: int, port: int, members: str | None) -> None:
    """Measure the cost of launches, and how many of them failover saves."""
    if members is not None:
        pairs = [pair.split("=") for pair in members.split(",")]
        uvloop.run(_run_members([int(at) for at, _ in pairs], [role for _, role in pairs]))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    # Every stream is two descriptors of the edge; the programs started from here inherit the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    console = Console()
    try:
        with ExitStack() as stack:
            _show_events(measure_events(Machine(stack, port), rounds), console)
        with ExitStack() as stack:
            for name, growth in measure_memory(Machine(stack, port)).items():
                console.print(f"An open launch that is {name}: {growth / KIB:.1f} KiB")
        with ExitStack() as stack:
            _show_outcomes(measure_outcomes(Machine(stack, port)), console)
        with ExitStack() as stack:
            _show_choices(measure_choices(Machine(stack, port)), console)
    except (BenchmarkError, TimeoutError) as error:
        raise click.ClickException(str(error) or f"not done within {_PATIENCE:.0f} s") from error


if __name__ == "__main__":
    main()
