"""The bench: proxies side by side, loaded in turn, so that a disturbance of the machine affects all of them.

A stage starts its members and its proxies; every round of a scenario loads each proxy once. Each proxy is
alone on one core; members and load have the other.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import trustme
from rich.progress import Progress, TaskID

from benchmarks import memos, scenarios
from benchmarks.peers import (
    MEMBERS,
    PEERS,
    PLAIN,
    BenchmarkError,
    Certificate,
    Peer,
    Process,
    fetch,
    members_command,
    require_free,
)
from benchmarks.scenarios import (
    DIRECT,
    FIRST,
    STAGES,
    Contender,
    Sample,
    Scenario,
    Stage,
    Turn,
    Variant,
    by_h2load,
)

_STREAMING = 305  # the ports of `members.py`, above those of up to 300 members
_PROXIES = 310
_PORTS_EACH = 5
_STREAMS = Path(__file__).with_name("members.py")
_MEMOS = Path(__file__).with_name("memos.py")
_COUNTED = 395  # the port of the edge whose memos count, above those of all proxies


@dataclass(frozen=True)
class Settings:
    """How to measure: `seconds` per run, `rounds` of every proxy in turn, ports from `port` upward."""

    peers: Sequence[str]
    seconds: int
    rounds: int
    connections: int
    port: int
    proxy_core: int
    load_core: int
    quick: bool = False


@dataclass
class Record:
    """The results so far, also of an interrupted run."""

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memos: dict[str, memos.Counts] = field(default_factory=dict)
    rate: float = 0.0

    def note(self, text: str) -> None:
        """Say it once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass
class _Display:
    progress: Progress
    task: TaskID

    def on(self, text: str) -> None:
        self.progress.update(self.task, description=text)

    def done(self, steps: int = 1) -> None:
        self.progress.advance(self.task, steps)


def cores() -> tuple[int, int]:
    """One for the proxy, one for the rest. Raises `BenchmarkError` if there are not two."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchmarkError("two cores are needed: one for the proxy, one for its members and the load")
    return allowed[0], allowed[1]


def with_tools(folder: Path) -> None:
    """Makes npm's programs available in `folder`; npm installs them if they are missing."""
    programs = folder / "node_modules" / ".bin"
    if not (programs / "configurable-http-proxy").exists():
        if shutil.which("npm") is None:
            raise BenchmarkError("npm is not installed: it is needed to install configurable-http-proxy")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--no-fund", "--no-audit"]
        done = subprocess.run(
            [*command, "configurable-http-proxy"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(
                f"npm could not install configurable-http-proxy: {done.stderr.strip()[-200:]}"
            )
    os.environ["PATH"] = f"{programs.resolve()}{os.pathsep}{os.environ['PATH']}"


def measure(settings: Settings, chosen: Sequence[Scenario], record: Record, progress: Progress) -> None:
    """Run everything, and keep the results in `record`. Raises `BenchmarkError`."""
    for program in ("wrk", "nginx", "taskset"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed: the members or the load need it")
    installed = [PEERS[name] for name in settings.peers if PEERS[name].installed()]
    for name in settings.peers:
        if PEERS[name] not in installed:
            hint = " With --tools FOLDER npm installs it there." if name == "chp" else ""
            record.note(f"Skipped: {name} ({PEERS[name].about}) is not installed.{hint}")
    if not installed:
        raise BenchmarkError("no proxy is left to measure")
    if shutil.which("h2load") is None and any(map(by_h2load, chosen)):
        chosen = [scenario for scenario in chosen if not by_h2load(scenario)]
        record.note("Skipped: what h2load asks for, which is not installed (Debian: nghttp2-client).")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plans = [
        (stage, [scenario for scenario in chosen if scenario.stage == name]) for name, stage in STAGES.items()
    ]
    steps = sum(
        settings.rounds * len(entrants(settings, stage, scenario, installed))
        for stage, planned in plans
        for scenario in planned
    )
    display = _Display(progress, progress.add_task("starting", total=steps))
    with ExitStack() as stack:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {settings.load_core})
        stack.callback(os.sched_setaffinity, 0, allowed)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-bench-")))
        certificate = _certificate(folder)
        for stage, planned in plans:
            if planned:
                _Staged(settings, stage, folder, certificate, record, display).measure(planned, installed)


def _certificate(folder: Path) -> Certificate:
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    files = Certificate(folder / "tls.crt", folder / "tls.key", folder / "tls.pem")
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    files.chain.write_bytes(chain)
    files.private_key.write_bytes(issued.private_key_pem.bytes())
    files.together.write_bytes(chain + issued.private_key_pem.bytes())
    return files


def entrants(
    settings: Settings, stage: Stage, scenario: Scenario, installed: Sequence[Peer]
) -> list[tuple[Peer, Variant]]:
    """The proxies to measure. A quick run has three, and the others in the first scenario only."""
    return [
        (peer, variant)
        for variant in stage.variants
        for peer in installed
        if scenario.needs <= peer.can
        and (variant.peers is None or peer.name in variant.peers)
        and not (settings.quick and _left_out(peer, variant, scenario))
    ]


def _left_out(peer: Peer, variant: Variant, scenario: Scenario) -> bool:
    """Of a quick run."""
    if peer.name not in FIRST:
        return scenario.name != "warm-1k"
    return bool(variant.suffix) and peer.name != "fedproxy"


class _Staged:
    """One stage: its members, its proxies, its scenarios."""

    def __init__(
        self,
        settings: Settings,
        stage: Stage,
        folder: Path,
        certificate: Certificate,
        record: Record,
        display: _Display,
    ) -> None:
        self._settings = settings
        self._stage = stage
        self._folder = folder
        self._certificate = certificate
        self._record = record
        self._display = display
        self._turn = Turn(settings.seconds, settings.connections, settings.load_core, settings.quick)
        self._members: Process | None = None
        self._running: dict[str, Contender] = {}

    def measure(self, planned: Sequence[Scenario], installed: Sequence[Peer]) -> None:
        """Start what is needed, run the scenarios, end it."""
        takes_part = {
            scenario.name: entrants(self._settings, self._stage, scenario, installed) for scenario in planned
        }
        with ExitStack() as stack:
            self._display.on("starting")
            self._start_members(stack)
            if not self._stage.fresh:
                for entrant in dict.fromkeys(entrant for some in takes_part.values() for entrant in some):
                    self._start(stack, *entrant)
                self._warm_up()
            for scenario in planned:
                self._measure_scenario(scenario, takes_part[scenario.name])
            for contender in self._running.values():
                contender.process.terminate()

    # Starting

    def _ports(self, count: int) -> list[int]:
        first = self._settings.port + (_STREAMING if self._stage.streaming else 0)
        return [first + number for number in range(count)]

    def _start_members(self, stack: ExitStack) -> None:
        most = max(variant.members for variant in self._stage.variants)
        ports = self._ports(most)
        require_free(ports)
        served = ports[: most - self._stage.broken]
        if self._stage.streaming:
            command = [sys.executable, "-P", str(_STREAMS), *map(str, served)]
        else:
            command = members_command(self._folder, served)
        process = Process("members", command, core=self._settings.load_core, folder=self._folder)
        stack.callback(process.stop)
        self._members = process
        for port in served:
            process.wait_ready(port, "/1k")

    def _start(self, stack: ExitStack, peer: Peer, variant: Variant) -> Contender | None:
        """Start one and keep it; one that does not come up is reported and skipped."""
        label = peer.name + variant.suffix
        port = self._settings.port + _PROXIES + _PORTS_EACH * len(self._running)
        require_free([port + offset for offset in range(4)])
        members = self._ports(variant.members)
        tls = self._certificate if variant.tls else None
        setting = replace(
            PLAIN,
            log=variant.log,
            workers=variant.workers,
            tls=tls,
            traced=variant.traced,
            http2=variant.http2,
        )
        begin = time.monotonic()
        process = Process(
            label,
            peer.command(self._folder, port, members, setting),
            core=[self._settings.proxy_core, self._settings.load_core][: variant.workers],
            folder=self._folder,
        )
        stack.callback(process.stop)
        try:
            process.wait_ready(port, "/1k", every=0.005)
        except BenchmarkError as error:
            self._record.note(f"Skipped: {error}")
            return None
        ready = time.monotonic() - begin
        contender = Contender(label, process, port, peer.cookies(members), ready)
        self._running[label] = contender
        return contender

    def _warm_up(self) -> None:
        for contender in self._running.values():
            for _ in range(20):
                fetch(contender.port, "/1k")

    # Measuring

    def _measure_scenario(self, scenario: Scenario, entrants: Sequence[tuple[Peer, Variant]]) -> None:
        if scenario.measure.startswith("p99") and not self._turn.rate:
            self._turn = replace(self._turn, rate=self._rate())
        for number in range(1, self._settings.rounds + 1):
            if scenario.direct:
                self._direct(scenario, number)
            for peer, variant in entrants:
                label = peer.name + variant.suffix
                self._display.on(f"{scenario.name}: {label}")
                if self._stage.fresh:
                    self._once(scenario, peer, variant, number)
                elif label in self._running:
                    self._run(scenario, self._running[label], number)
                self._display.done()
        for peer, variant in entrants:
            # Of a quick run one is enough to show that it works.
            if peer.name == "fedproxy" and (not self._settings.quick or scenario.name == "warm-1k"):
                self._display.on(f"{scenario.name}: memos")
                self._count_memos(scenario, peer, variant)
                break

    def _run(self, scenario: Scenario, contender: Contender, number: int) -> None:
        assert self._members is not None
        try:
            self._record.samples.append(scenarios.run(scenario, contender, self._turn, number))
            self._members.require_alive()
        except (BenchmarkError, OSError, TimeoutError) as error:
            self._members.require_alive()
            self._record.note(
                f"{scenario.name}: {contender.label} was not measured: {str(error) or 'no answer in time'}"
            )

    def _once(self, scenario: Scenario, peer: Peer, variant: Variant, number: int) -> None:
        self._running.clear()
        with ExitStack() as stack:
            contender = self._start(stack, peer, variant)
            if contender:
                self._run(scenario, contender, number)

    def _count_memos(self, scenario: Scenario, peer: Peer, variant: Variant) -> None:
        """Hits and misses of the edge's memos, in a run of its own that is warm when counting begins."""
        counted = Path(self._folder, f"memos-{scenario.name}")
        port = self._settings.port + _COUNTED
        tls = self._certificate if variant.tls else None
        setting = replace(PLAIN, log=variant.log, tls=tls, traced=variant.traced, http2=variant.http2)
        members = self._ports(variant.members)
        *_, serve, option, config = peer.command(self._folder, port, members, setting)
        require_free([port + offset for offset in range(4)])
        process = Process(
            "memos",
            [sys.executable, "-P", str(_MEMOS), str(counted), serve, option, config],
            core=self._settings.proxy_core,
            folder=self._folder,
        )
        try:
            process.wait_ready(port, "/1k")
            contender = Contender("memos", process, port, peer.cookies(members))
            found = [_noted(process, counted, scenario.drive, contender, self._turn) for _ in range(2)]
            self._record.memos[scenario.name] = memos.between(*found)
        except (BenchmarkError, OSError, TimeoutError) as error:
            self._record.note(f"{scenario.name}: memos were not counted: {str(error) or 'no answer in time'}")
        finally:
            process.stop()

    def _direct(self, scenario: Scenario, number: int) -> None:
        assert self._members is not None
        port = self._ports(1)[0]
        self._run(scenario, Contender(DIRECT, self._members, port, list(MEMBERS)), number)

    def _rate(self) -> float:
        reference = self._running.get("nginx") or next(iter(self._running.values()))
        self._record.rate = scenarios.half_of_saturation(reference, replace(self._turn, seconds=1))
        return self._record.rate


def _noted(
    process: Process, file: Path, drive: scenarios.Drive, contender: Contender, turn: Turn
) -> memos.Counts:
    """What was counted until the end of a run."""
    drive(contender, replace(turn, seconds=1))
    before = len(file.read_text().splitlines()) if file.exists() else 0
    os.kill(process.pid, signal.SIGUSR2)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        if len(lines) > before and lines[-1].endswith("\n"):
            return memos.read(lines)[-1]
        time.sleep(0.02)
    raise BenchmarkError("the edge did not say what its memos count")
