"""The scenarios, what each needs from a proxy, and one run of one of them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks import h2load, visitors, wrk
from benchmarks.members import EVENTS, STEPS
from benchmarks.peers import (
    H2_OFFSET,
    MEMBERS,
    SIZES,
    TLS_OFFSET,
    BenchmarkError,
    Cpu,
    Process,
)
from benchmarks.visitors import Person, Seen, percentile

FIRST = frozenset({"nginx", "haproxy", "fedproxy"})
FAST = FIRST | {"compiled"}
DIRECT = "no proxy"

_IDLE = 2_500
_PACED_MOST = 6_000  # requests a second: what one Python process sends and still keeps its times


@dataclass(frozen=True)
class Variant:
    """How the proxies of a stage are set up; `suffix` tells its rows from the others of the same proxy."""

    suffix: str = ""
    members: int = len(MEMBERS)
    log: bool = False
    workers: int = 1
    tls: bool = False
    http2: bool = False
    traced: float = 0.0
    peers: frozenset[str] | None = None


@dataclass(frozen=True)
class Stage:
    """Proxies that run side by side. `broken` members refuse; `streaming` members are `members.py`."""

    variants: tuple[Variant, ...] = (Variant(),)
    broken: int = 0
    streaming: bool = False
    fresh: bool = False
    """Every run has a proxy of its own, which has done nothing yet."""


_FEDPROXY = frozenset({"fedproxy"})

STAGES = {
    "plain": Stage((Variant(tls=True),)),
    "streams": Stage(streaming=True),
    "http2": Stage((Variant(tls=True, http2=True),)),
    "http2 streams": Stage((Variant(http2=True),), streaming=True),
    "log": Stage((Variant(log=True),)),
    "broken": Stage(broken=1),
    "many": Stage((Variant(members=300), Variant(" 3 members", peers=FAST))),
    "observed": Stage(
        (
            Variant(peers=_FEDPROXY),
            Variant(" log", log=True, peers=_FEDPROXY),
            Variant(" 1 % traced", traced=0.01, peers=_FEDPROXY),
        )
    ),
    "workers": Stage((Variant(), Variant(" 2 workers", workers=2, peers=FAST))),
    "fresh": Stage((Variant(tls=True),), fresh=True),
}


@dataclass(frozen=True)
class Contender:
    """A proxy that answers, and what its visitors must know; `ready` is the seconds that it took to start."""

    label: str
    process: Process
    port: int
    cookies: Sequence[str]
    ready: float = 0.0


@dataclass(frozen=True)
class Turn:
    """How long, how many and from where; `rate` is that of the open loop, in requests a second."""

    seconds: int
    connections: int
    core: int
    quick: bool = False
    rate: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One run. `figure` is what is compared, in the scenario's measure; times are microseconds of one unit.

    `memory` is what the proxy's processes held at the end, in bytes; `seconds` is wall-clock.
    """

    scenario: str
    peer: str
    round: int
    count: int
    seconds: float
    figure: float
    user_us: float = 0.0
    kernel_us: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    memory: int = 0
    not_ok: int = 0
    broken: int = 0

    @property
    def cpu_us(self) -> float:
        """Processor time per unit."""
        return self.user_us + self.kernel_us

    @property
    def errors(self) -> int:
        """Answers that were an error, and connections that broke or timed out."""
        return self.not_ok + self.broken


@dataclass(frozen=True)
class Measured:
    """What a run gave. `figure` is the processor time per unit where it is None."""

    count: int
    seconds: float
    used: Cpu = field(default=Cpu(0.0, 0.0))
    p50_us: float = 0.0
    p99_us: float = 0.0
    not_ok: int = 0
    broken: int = 0
    figure: float | None = None


Drive = Callable[[Contender, Turn], Measured]


@dataclass(frozen=True)
class Scenario:
    """What visitors do. `needs` of a proxy are named as in `Peer.can`; `about` is one line for the table."""

    name: str
    about: str
    drive: Drive
    stage: str = "plain"
    needs: frozenset[str] = frozenset()
    measure: str = "CPU µs per request"
    direct: bool = False
    """The members are measured without a proxy too: what the proxy adds is above that."""


def by_h2load(scenario: Scenario) -> bool:
    """Whether h2load is needed for it."""
    return scenario.stage == "http2"


def run(scenario: Scenario, contender: Contender, turn: Turn, number: int) -> Sample:
    """One run. Raises `BenchmarkError` if the proxy ended or what it gave is no measurement."""
    contender.process.require_alive()
    measured = scenario.drive(contender, turn)
    contender.process.require_alive()
    if measured.count <= 0:
        raise BenchmarkError(f"{contender.label} answered nothing in {scenario.name}")
    if contender.label == DIRECT:
        # The members' own cost is no proxy's.
        return Sample(
            scenario.name,
            DIRECT,
            number,
            measured.count,
            measured.seconds,
            figure=0.0,
            p50_us=measured.p50_us,
            p99_us=measured.p99_us,
            broken=measured.broken,
        )
    user, kernel = measured.used.user / measured.count, measured.used.kernel / measured.count
    return Sample(
        scenario=scenario.name,
        peer=contender.label,
        round=number,
        count=measured.count,
        seconds=measured.seconds,
        figure=user + kernel if measured.figure is None else measured.figure,
        user_us=user,
        kernel_us=kernel,
        p50_us=measured.p50_us,
        p99_us=measured.p99_us,
        memory=contender.process.memory(),
        not_ok=measured.not_ok,
        broken=measured.broken,
    )


def _wrk(mode: str, path: str, size: int, *, tls: bool = False, connections: int | None = None) -> Drive:
    """Load by wrk. `size`: the least bytes of an answer; `connections`: where they must be fewer."""

    def drive(contender: Contender, turn: Turn) -> Measured:
        port = contender.port + (TLS_OFFSET if tls else 0)
        url = f"{'https://localhost' if tls else 'http://127.0.0.1'}:{port}{path}"
        before = contender.process.cpu()
        result = wrk.run(
            url,
            mode,
            contender.cookies,
            seconds=turn.seconds,
            connections=min(connections or turn.connections, turn.connections),
            core=turn.core,
        )
        used = contender.process.cpu().since(before)
        # wrk counts only 4xx and 5xx as errors: anything else that is not the file shows in the bytes.
        if not result.not_ok and result.received < result.requests * size:
            raise BenchmarkError(f"{contender.label} answered less than the whole body")
        return Measured(
            result.requests,
            result.seconds,
            used,
            result.p50_us,
            result.p99_us,
            result.not_ok,
            result.broken,
        )

    return drive


class _Meter:
    """Processor time between two calls."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.used = Cpu(0.0, 0.0)

    def begin(self) -> None:
        self._before = self._process.cpu()

    def end(self) -> None:
        self.used = self._process.cpu().since(self._before)


def _seen(seen: Seen, used: Cpu, figure: float | None = None) -> Measured:
    p50, p99 = (percentile(seen.delays, share) for share in (0.5, 0.99))
    return Measured(seen.count, seen.seconds, used, p50, p99, broken=seen.broken, figure=figure)


_Visit = Callable[[Contender, Turn, _Meter], Coroutine[Any, Any, Seen]]


def _visited(visit: _Visit) -> Drive:
    """Visitors in this process, in a loop of their own."""

    def drive(contender: Contender, turn: Turn) -> Measured:
        meter = _Meter(contender.process)
        seen = uvloop.run(visit(contender, turn, meter))
        return _seen(seen, meter.used)

    return drive


def _events(contender: Contender, turn: Turn, meter: _Meter) -> Coroutine[Any, Any, Seen]:
    streams = 100 if turn.quick else 500
    return visitors.events(contender.port, contender.cookies, streams, turn.seconds, meter.begin, meter.end)


def _h2load(path: str, size: int, *, tls: bool = False) -> Drive:
    """Load over HTTP/2: eight connections with eight streams each."""

    def drive(contender: Contender, turn: Turn) -> Measured:
        url = (
            f"https://localhost:{contender.port + TLS_OFFSET}{path}"
            if tls
            else f"http://127.0.0.1:{contender.port + H2_OFFSET}{path}"
        )
        before = contender.process.cpu()
        result = h2load.run(url, contender.cookies[0], seconds=turn.seconds, core=turn.core)
        used = contender.process.cpu().since(before)
        if not result.not_ok and result.received < result.requests * size:
            raise BenchmarkError(f"{contender.label} answered less than the whole body")
        return Measured(
            result.requests, result.seconds, used, result.p50_us, result.p99_us, result.not_ok, result.broken
        )

    return drive


def _h2_events(contender: Contender, turn: Turn, meter: _Meter) -> Coroutine[Any, Any, Seen]:
    streams = 100 if turn.quick else 500
    port = contender.port + (0 if contender.label == DIRECT else H2_OFFSET)
    return visitors.h2_events(port, contender.cookies, streams, turn.seconds, meter.begin, meter.end)


def _echo(size: int, connections: int) -> Drive:
    return _visited(
        lambda contender, turn, meter: visitors.echo(
            contender.port, contender.cookies, connections, size, turn.seconds, meter.begin, meter.end
        )
    )


def _people(what: Callable[[Person], Coroutine[None, None, None]]) -> Drive:
    return _visited(
        lambda contender, turn, meter: visitors.people(
            contender.port, contender.cookies, turn.connections, what, turn.seconds, meter.begin, meter.end
        )
    )


def _idle(*, tls: bool) -> Drive:
    def drive(contender: Contender, turn: Turn) -> Measured:
        held: list[int] = []
        connections = _IDLE // 5 if turn.quick else _IDLE

        def note() -> None:
            held.append(contender.process.memory())

        port, context = contender.port, None
        if tls:
            port += TLS_OFFSET
            context = ssl.create_default_context()
            # The certificate was made a moment ago, by nobody.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        seen = uvloop.run(visitors.idle(port, contender.cookies, connections, note, note, context))
        before, after = held
        return _seen(seen, Cpu(0.0, 0.0), figure=(after - before) / connections / 1024)

    return drive


def _paced(contender: Contender, turn: Turn) -> Measured:
    meter = _Meter(contender.process)
    meter.begin()
    seen = visitors.paced(
        contender.port, contender.cookies, turn.connections, turn.rate, turn.seconds, SIZES["1k"]
    )
    meter.end()
    return _seen(seen, meter.used, figure=percentile(seen.delays, 0.99))


def _start(contender: Contender, _turn: Turn) -> Measured:
    return Measured(1, contender.ready, figure=contender.ready * 1000)


def half_of_saturation(contender: Contender, turn: Turn) -> float:
    """The rate of the open loop: half of what this proxy served in a closed one, and not too much to pace."""
    return min(_PACED_MOST, _WARM(contender, turn).count / turn.seconds / 2)


_WARM = _wrk("warm", "/1k", SIZES["1k"])
_STICKY = frozenset({"sticky"})

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("warm-1k", "1 KiB, a browser's headers, the same few cookies", _WARM),
        Scenario(
            "cold-1k",
            "1 KiB, three browsers, another query, cookie and referer in every request",
            _wrk("cold", "/1k", SIZES["1k"]),
        ),
        Scenario(
            "mixed",
            "a page with assets, many visitors, one in four for the first time",
            _wrk("mixed", "/", 2_500),
        ),
        Scenario(
            "launch-page",
            f"a page whose assets the browser has, and the {STEPS} events of its build",
            _people(Person.launch),
            "streams",
            frozenset({"stream"}),
            "CPU µs per request or event",
        ),
        Scenario(
            "jupyter",
            "JupyterLab: it polls, saves 19 KiB, runs a cell by WebSocket, and rarely uploads 384 KiB",
            _people(Person.work),
            "streams",
            frozenset({"websocket"}),
            "CPU µs per request or message",
        ),
        Scenario(
            "nocookie-1k",
            "1 KiB, new visitors of repositories by Zipf's law",
            _wrk("none", "/", SIZES["1k"]),
            needs=_STICKY,
        ),
        Scenario("warm-64k", "64 KiB, the same few cookies", _wrk("warm", "/64k", SIZES["64k"])),
        Scenario("warm-10m", "10 MiB", _wrk("warm", "/10m", 0, connections=8)),
        Scenario("post-64k", "POST of 64 KiB", _wrk("post", "/upload", 0)),
        Scenario(
            "tls-1k",
            "1 KiB over keep-alive TLS connections",
            _wrk("warm", "/1k", SIZES["1k"], tls=True),
            needs=frozenset({"tls"}),
        ),
        Scenario(
            "tls-64k",
            "64 KiB over keep-alive TLS connections",
            _wrk("warm", "/64k", SIZES["64k"], tls=True),
            needs=frozenset({"tls"}),
        ),
        Scenario(
            "h2-1k",
            "1 KiB over HTTP/2 in clear, 8 connections with 8 streams",
            _h2load("/1k", SIZES["1k"]),
            "http2",
            frozenset({"http2"}),
        ),
        Scenario(
            "h2-tls-1k",
            "1 KiB over HTTP/2 and TLS, 8 connections with 8 streams",
            _h2load("/1k", SIZES["1k"], tls=True),
            "http2",
            frozenset({"http2", "tls"}),
        ),
        Scenario(
            "h2-64k",
            "64 KiB over HTTP/2 in clear, 8 connections with 8 streams",
            _h2load("/64k", SIZES["64k"]),
            "http2",
            frozenset({"http2"}),
        ),
        Scenario(
            "h2-tls-64k",
            "64 KiB over HTTP/2 and TLS, 8 connections with 8 streams",
            _h2load("/64k", SIZES["64k"], tls=True),
            "http2",
            frozenset({"http2", "tls"}),
        ),
        Scenario(
            "h2-events",
            f"event streams over HTTP/2, 100 on each connection, {EVENTS:,} events per second in total",
            _visited(_h2_events),
            "http2 streams",
            frozenset({"stream", "http2"}),
            "CPU µs per event",
        ),
        Scenario(
            "close-1k",
            "1 KiB, a connection for each request",
            _wrk("close", "/1k", SIZES["1k"]),
            measure="CPU µs per connection",
        ),
        Scenario(
            "handshakes",
            "1 KiB, a TLS connection with a full handshake for each request",
            _wrk("close", "/1k", SIZES["1k"], tls=True),
            needs=frozenset({"tls"}),
            measure="CPU µs per connection",
        ),
        Scenario(
            "paced-1k",
            "1 KiB in an open loop at half of nginx's saturation",
            _paced,
            measure="p99 µs",
        ),
        Scenario("log-1k", "1 KiB warm, JSON access log on", _WARM, "log", frozenset({"log"})),
        Scenario("traces-1k", "1 KiB warm: no log, with a log, one of a hundred traced", _WARM, "observed"),
        Scenario(
            "events",
            f"event streams of launches, {EVENTS:,} events per second in total",
            _visited(_events),
            "streams",
            frozenset({"stream"}),
            "CPU µs per event",
            direct=True,
        ),
        Scenario(
            "echo-64b",
            "WebSocket, 64 bytes there and back",
            _echo(64, 64),
            "streams",
            frozenset({"websocket"}),
            "CPU µs per message",
            direct=True,
        ),
        Scenario(
            "echo-64k",
            "WebSocket, 64 KiB there and back",
            _echo(65536, 16),
            "streams",
            frozenset({"websocket"}),
            "CPU µs per message",
            direct=True,
        ),
        Scenario(
            "broken-1k", "1 KiB warm, one member of three refuses", _WARM, "broken", frozenset({"failover"})
        ),
        Scenario("members-300", "1 KiB warm, 300 members", _WARM, "many", frozenset({"failover"})),
        Scenario("workers-2", "1 KiB warm, one worker and two", _WARM, "workers", frozenset({"failover"})),
        Scenario("idle", "kept connections, each used once", _idle(tls=False), "fresh", measure="KiB each"),
        Scenario(
            "idle-tls",
            "kept TLS connections, each used once",
            _idle(tls=True),
            "fresh",
            frozenset({"tls"}),
            measure="KiB each",
        ),
        Scenario("start", "from start to the first answer", _start, "fresh", measure="ms"),
    )
}
