"""`python -m benchmarks load URL`: visitors of a deployed edge, at a rate that it cannot slow down.

An open loop: every visit has a time at which it is due, and its delay is counted from then, so that a stall
counts for all visits due during it. A closed loop sends less when answers are slow, and hides the stall.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import math
import os
import random
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import uvloop
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from yarl import URL

from benchmarks import chart, report
from benchmarks.histogram import Histogram
from benchmarks.peers import BenchmarkError

KINDS: Final = ("page", "asset", "launch", "socket")
_SHARES: Final = (0.5, 0.9, 0.99, 0.999)
_BUSY: Final = 0.7  # of a processor: beyond this the generator measures itself
_LATE_US: Final = 10_000.0
_RETURNING = 0.7
_REMEMBERED = 1000
_PING_EVERY = 1.0
_PATIENCE = 30.0


@dataclass(frozen=True)
class Plan:
    """What to do. `rate` is in visits a second; the seconds of `ramp` come before those of `duration`."""

    url: URL
    rate: float
    duration: float
    ramp: float
    mix: Mapping[str, float]
    pages: Sequence[str]
    assets: Sequence[str]
    launches: Sequence[str]
    sockets: Sequence[str]
    hold: float
    patience: float
    most_open: int
    insecure: bool
    seed: int

    @property
    def visits(self) -> int:
        """How many in all."""
        return int(self.rate * (self.ramp / 2 + self.duration))

    def due(self, number: int) -> float:
        """Seconds from the start at which a visit is due: the rate grows evenly over the ramp, then stays."""
        in_ramp = self.rate * self.ramp / 2
        if number < in_ramp:
            return math.sqrt(2 * number * self.ramp / self.rate)
        return self.ramp + (number - in_ramp) / self.rate


class Tally:
    """The outcomes of one kind of visit."""

    def __init__(self) -> None:
        self.delays = Histogram()
        self.started = 0
        self.outcomes: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """Visits that failed."""
        return sum(
            count for outcome, count in self.outcomes.items() if outcome not in ("ok", "left at the end")
        )


class Run:
    """A load under way: what the report and the live view read."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tallies = {kind: Tally() for kind in (*KINDS, "launch ready", "socket ping")}
        self.lag = Histogram()
        self.seconds: list[Histogram] = []
        self.open = 0
        self.shed = 0
        self.arrived = 0
        self._rng = random.Random(plan.seed)
        self._cookies: deque[str] = deque(maxlen=_REMEMBERED)
        self._started = time.perf_counter()
        self._cpu = time.process_time()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def busy(self) -> float:
        """The share of one processor that this program itself used."""
        return (time.process_time() - self._cpu) / max(self.elapsed, 1e-6)

    def warnings(self) -> list[str]:
        """Why the figures may be the generator's and not the edge's."""
        found = []
        if self.busy > _BUSY:
            found.append(
                f"The generator used {self.busy:.0%} of a processor: use more machines or a lower rate."
            )
        if self.lag.percentile(0.99) > _LATE_US:
            late = self.lag.percentile(0.99) / 1000
            found.append(
                f"One visit in a hundred was started {late:.0f} ms late or more; its delay includes that."
            )
        if self.shed:
            found.append(f"{self.shed} visits were not made: more than {self.plan.most_open} were open.")
        return found

    # Visits

    async def drive(self, session: aiohttp.ClientSession) -> None:
        """Makes every visit when it is due, and waits for those that are open."""
        self._started, self._cpu = time.perf_counter(), time.process_time()
        kinds, weights = zip(*self.plan.mix.items(), strict=True)
        visit = {"page": self._page, "asset": self._asset, "launch": self._launch, "socket": self._socket}
        async with asyncio.TaskGroup() as group:
            for number in range(self.plan.visits):
                due = self._started + self.plan.due(number)
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                self.lag.add((time.perf_counter() - due) * 1e6)
                self.arrived += 1
                if self.open >= self.plan.most_open:
                    self.shed += 1
                    continue
                kind = self._rng.choices(kinds, weights)[0]
                group.create_task(self._visit(kind, visit[kind], session, due))

    async def _visit(
        self,
        kind: str,
        make: Callable[[aiohttp.ClientSession, float], Awaitable[str]],
        session: aiohttp.ClientSession,
        due: float,
    ) -> None:
        tally = self.tallies[kind]
        tally.started += 1
        self.open += 1
        outcome = "left at the end"
        try:
            outcome = await make(session, due)
        except TimeoutError:
            outcome = "timed out"
        except (aiohttp.ClientError, OSError) as error:
            outcome = type(error).__name__
        finally:
            self.open -= 1
            tally.outcomes[outcome] += 1

    def _felt(self, kind: str, due: float) -> None:
        delay = (time.perf_counter() - due) * 1e6
        self.tallies[kind].delays.add(delay)
        if kind in ("page", "asset"):
            second = int(self.elapsed)
            while len(self.seconds) <= second:
                self.seconds.append(Histogram())
            self.seconds[second].add(delay)

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept, "User-Agent": "fedproxy-benchmarks"}
        if self._cookies and self._rng.random() < _RETURNING:
            headers["Cookie"] = self._rng.choice(self._cookies)
        return headers

    async def _get(self, session: aiohttp.ClientSession, path: str, kind: str, due: float) -> str:
        async with asyncio.timeout(_PATIENCE):
            async with session.get(
                _at(self.plan.url, path), headers=self._headers("text/html,*/*"), allow_redirects=False
            ) as answer:
                async for _ in answer.content.iter_any():
                    pass
                for cookie in answer.cookies.values():
                    self._cookies.append(f"{cookie.key}={cookie.value}")
        self._felt(kind, due)
        return "ok" if answer.status < 400 else f"status {answer.status}"

    async def _page(self, session: aiohttp.ClientSession, due: float) -> str:
        return await self._get(session, self._rng.choice(self.plan.pages), "page", due)

    async def _asset(self, session: aiohttp.ClientSession, due: float) -> str:
        return await self._get(session, self._rng.choice(self.plan.assets), "asset", due)

    async def _launch(self, session: aiohttp.ClientSession, due: float) -> str:
        url = _at(self.plan.url, f"/build/{self._rng.choice(self.plan.launches)}")
        first = True
        async with asyncio.timeout(self.plan.patience):
            async with session.get(
                url, headers=self._headers("text/event-stream"), allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    return f"status {answer.status}"
                async for line in answer.content:
                    if not line.startswith(b"data:"):
                        continue
                    if first:
                        self._felt("launch", due)
                        first = False
                    phase = _phase(line)
                    if phase == "ready":
                        self._felt("launch ready", due)
                        return "ok"
                    if phase == "failed":
                        return "launch failed"
        return "ended without ready or failed"

    async def _socket(self, session: aiohttp.ClientSession, due: float) -> str:
        url = _at(self.plan.url, self._rng.choice(self.plan.sockets))
        async with asyncio.timeout(self.plan.hold + _PATIENCE):
            async with session.ws_connect(
                url, headers=self._headers("*/*"), autoping=False, max_msg_size=0
            ) as websocket:
                self._felt("socket", due)
                end = time.perf_counter() + self.plan.hold
                while (now := time.perf_counter()) < end:
                    await websocket.ping()
                    while (message := await websocket.receive()).type != aiohttp.WSMsgType.PONG:
                        if message.type == aiohttp.WSMsgType.PING:
                            await websocket.pong(message.data)
                        elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                            return "closed by the other side"
                    self._felt("socket ping", now)
                    await asyncio.sleep(_PING_EVERY)
        return "ok"


def _at(url: URL, path: str) -> URL:
    return URL(str(url.origin()) + path, encoded=True)


def _phase(line: bytes) -> str:
    with contextlib.suppress(ValueError):
        event = json.loads(line[5:])
        if isinstance(event, dict):
            return str(event.get("phase", ""))
    return ""


def require_allowed(url: URL, allowed: str | None) -> None:
    """Raise `BenchmarkError` unless every address of the host is loopback, or `allowed` names the host."""
    host = url.host
    if url.scheme not in ("http", "https") or not host:
        raise BenchmarkError(f"{url} is not an http or https URL with a host")
    if allowed == host:
        return
    try:
        found = socket.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchmarkError(f"{host} has no address: {error}") from error
    addresses = {str(address[0]) for *_, address in found}
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise BenchmarkError(
            f"{host} is not this machine. If you run it, or its operators have agreed: --i-may-load {host}"
        )


def read_mix(text: str) -> dict[str, float]:
    """`page=6,asset=3` as weights. Raises `BenchmarkError`."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        kind, _, weight = part.strip().partition("=")
        try:
            mix[kind] = float(weight)
        except ValueError:
            raise BenchmarkError(f"{part!r}: expected KIND=WEIGHT") from None
        if kind not in KINDS or not mix[kind] >= 0:
            raise BenchmarkError(f"{part!r}: expected a kind of {', '.join(KINDS)} and a weight from 0")
    if not any(mix.values()):
        raise BenchmarkError("every weight of the mix is 0")
    return {kind: weight for kind, weight in mix.items() if weight}


async def carry_out(plan: Plan, run: Run, look: Callable[[], None], every: float = 0.5) -> None:
    """The whole load; `look` is called now and then. SIGINT and SIGTERM end it early, with results so far."""
    connector = aiohttp.TCPConnector(limit=0, ssl=not plan.insecure)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        driving = asyncio.create_task(run.drive(session))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, driving.cancel)
        while not driving.done():
            await asyncio.wait([driving], timeout=every)
            look()
        if not driving.cancelled():
            driving.result()


# Output


def view(run: Run) -> Table:
    """The load so far."""
    plan = run.plan
    total = plan.ramp + plan.duration
    table = Table(
        title=f"{plan.url}: {min(run.elapsed, total):.0f} of {total:.0f} s,"
        f" {run.arrived} of {plan.visits} visits, {run.open} open, generator {run.busy:.0%} of a processor",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("delay, ms", no_wrap=True)
    for name in ("visits", "failed", *(f"p{share * 100:g}" for share in _SHARES), "most"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, tally in run.tallies.items():
        if tally.started or tally.delays.count:
            failed = f"[red]{tally.failed}[/red]" if tally.failed else "0"
            table.add_row(
                kind,
                str(tally.started or tally.delays.count),
                failed,
                *(f"{tally.delays.percentile(share) / 1000:.1f}" for share in _SHARES),
                f"{tally.delays.most / 1000:.1f}",
            )
    return table


def result(run: Run) -> dict[str, Any]:
    """The whole as plain values."""
    plan = asdict(run.plan) | {"url": str(run.plan.url), "mix": dict(run.plan.mix)}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": report.machine(),
        "plan": plan,
        "seconds": run.elapsed,
        "visits": run.arrived,
        "not_made": run.shed,
        "generator": {"cpu": run.busy, "lag_p99_us": run.lag.percentile(0.99), "lag_most_us": run.lag.most},
        "warnings": run.warnings(),
        "kinds": {
            kind: {
                "visits": tally.started or tally.delays.count,
                "outcomes": dict(tally.outcomes),
                "delay_us": {f"p{share * 100:g}": tally.delays.percentile(share) for share in _SHARES}
                | {"most": tally.delays.most},
            }
            for kind, tally in run.tallies.items()
            if tally.started or tally.delays.count
        },
        "over_time": [
            {"done": each.count, "p50_us": each.percentile(0.5), "p99_us": each.percentile(0.99)}
            for each in run.seconds
        ],
    }


def save(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write JSON, a page and a chart; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("load-%Y%m%d-%H%M%S")
    over_time = found["over_time"]
    drawing = chart.lines(
        f"Pages and assets of {found['plan']['url']}",
        "ms from when it was due",
        [
            chart.Line(share, [second[f"{share}_us"] / 1000 for second in over_time])
            for share in ("p50", "p99")
        ],
    )
    texts = {".json": json.dumps(found, indent=1) + "\n", ".md": markdown(found, name), ".svg": drawing}
    for suffix, text in texts.items():
        (folder / f"{name}{suffix}").write_text(text)
    return [folder / f"{name}{suffix}" for suffix in texts]


def markdown(found: Mapping[str, Any], name: str) -> str:
    """The same as a page."""
    plan, generator = found["plan"], found["generator"]
    shares = [f"p{share * 100:g}" for share in _SHARES]
    rows = [
        f"| {kind} | {each['visits']} | "
        + ", ".join(f"{outcome}: {count}" for outcome, count in each["outcomes"].items())
        + " | "
        + " | ".join(f"{each['delay_us'][share] / 1000:.1f}" for share in (*shares, "most"))
        + " |"
        for kind, each in found["kinds"].items()
    ]
    return "\n".join(
        [
            f"# Load of {plan['url']}, {found['time']}",
            "",
            f"{plan['rate']:g} visits/s for {plan['duration']:g} s after a ramp of {plan['ramp']:g} s:"
            f" {found['visits']} visits in {found['seconds']:.0f} s.",
            "",
            f"The generator used {generator['cpu']:.0%} of a processor; 99 % of the visits were started"
            f" within {generator['lag_p99_us'] / 1000:.1f} ms of their due time. Delays in ms.",
            "",
            *(f"- {warning}" for warning in found["warnings"]),
            "",
            f"| kind | visits | outcomes | {' | '.join(shares)} | most |",
            "| --- | ---: | --- |" + " ---: |" * (len(shares) + 1),
            *rows,
            "",
            f"![delays over time]({name}.svg)",
            "",
        ]
    )


# The command


@click.command()
@click.argument("url")
@click.option(
    "--rate", type=click.FloatRange(0.01), default=10.0, show_default=True, help="Visits per second."
)
@click.option(
    "--duration", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds at the rate."
)
@click.option(
    "--ramp", type=click.FloatRange(0), default=5.0, show_default=True, help="Seconds from 0 to the rate."
)
@click.option(
    "--mix", default=None, help="Weights of kinds.  [default: page=6,asset=3 and what is named below]"
)
@click.option(
    "--page",
    "pages",
    multiple=True,
    default=("/", "/v2/gh/binder-examples/requirements/HEAD"),
    show_default=True,
)
@click.option(
    "--asset",
    "assets",
    multiple=True,
    default=("/api/repoproviders", "/static/dist/styles.css"),
    show_default=True,
)
@click.option(
    "--launch", "launches", multiple=True, help="gh/ORG/REPO/REF: a real launch, which takes a pod."
)
@click.option("--websocket", "sockets", multiple=True, help="Path of a WebSocket to hold open and ping.")
@click.option(
    "--hold", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds a WebSocket is held."
)
@click.option(
    "--patience", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds for a launch."
)
@click.option(
    "--most-open", type=click.IntRange(1), default=5000, show_default=True, help="Visits open at once."
)
@click.option("--insecure", is_flag=True, help="Do not verify the certificate.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=report.LOCAL,
    help="Folder of the report.  [default: benchmarks/results/local]",
)
@click.option(
    "--i-may-load",
    "allowed",
    metavar="HOST",
    help="The host's name: its operators agree to this load.",
)
def load(url: str, mix: str | None, output: Path, allowed: str | None, **given: Any) -> None:
    """Load the edge at URL, at a set rate, as visitors do.

    URL must be of this machine unless --i-may-load names its host. Launches and WebSockets are made only with
    --launch and --websocket. Exit status 1 if a visit failed.
    """
    console = Console()
    try:
        target = URL(url)
        require_allowed(target, allowed)
        plan = Plan(url=target, mix=_mix(mix, given["launches"], given["sockets"]), **given)
    except (BenchmarkError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    run = Run(plan)
    with Live(view(run), console=console, auto_refresh=False, transient=True) as live:
        uvloop.run(carry_out(plan, run, lambda: live.update(view(run), refresh=True)))
    console.print(view(run))
    for kind, tally in run.tallies.items():
        for outcome, count in tally.outcomes.items():
            if outcome != "ok":
                console.print(f"{kind}: {outcome}: {count}", markup=False)
    for warning in run.warnings():
        console.print(warning, markup=False)
    for path in save(result(run), output):
        console.print(os.path.relpath(path), soft_wrap=True)
    raise SystemExit(any(tally.failed for tally in run.tallies.values()) or bool(run.shed))


def _mix(mix: str | None, launches: Sequence[str], sockets: Sequence[str]) -> dict[str, float]:
    named = {"launch": launches, "socket": sockets}
    if mix is None:
        return {"page": 6.0, "asset": 3.0} | {kind: 0.5 for kind, some in named.items() if some}
    weights = read_mix(mix)
    for kind, some in named.items():
        if kind in weights and not some:
            raise BenchmarkError(
                f"a mix with {kind} needs {'--launch' if kind == 'launch' else '--websocket'}"
            )
    return weights
