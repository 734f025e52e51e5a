"""`python -m benchmarks`: fedproxy beside nginx and HAProxy, in the same minutes on the same machine.

Each proxy has one core for itself; the members (one nginx) and wrk share another. All proxies run
throughout, and each round loads them in turn, so that what disturbs the machine disturbs them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from benchmarks import load, report
from benchmarks.load import SCENARIOS, Sample, Scenario
from benchmarks.peers import MEMBERS, PEERS, BenchmarkError, Process, members_command, require_free

_PORTS_EACH = 10


@dataclass(frozen=True)
class Settings:
    """How to measure: `seconds` per run, `rounds` of every peer in turn, ports from `port` upward."""

    seconds: int
    rounds: int
    connections: int
    port: int
    proxy_core: int
    load_core: int


@dataclass(frozen=True)
class Running:
    """A peer that answers."""

    process: Process
    port: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--seconds", type=click.IntRange(1), default=None, help="Length of one run.  [default: 3]")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Runs of each peer.  [default: 3]")
@click.option("--connections", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Only these peers.")
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18100, show_default=True, help="First port."
)
def main(
    scenarios: tuple[str, ...],
    seconds: int | None,
    rounds: int | None,
    connections: int,
    peers: tuple[str, ...],
    port: int,
) -> None:
    """Measure the processor time of a request. SCENARIOS: all when none is named.

    QUICK=1 in the environment makes it one round of one second: proof that it runs, not a measurement.
    """
    quick = os.environ.get("QUICK", "") not in ("", "0")
    proxy_core, load_core = _cores()
    settings = Settings(
        seconds=seconds or (1 if quick else 3),
        rounds=rounds or (1 if quick else 3),
        connections=connections,
        port=port,
        proxy_core=proxy_core,
        load_core=load_core,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    console = Console()
    try:
        samples = _measure(
            settings, [SCENARIOS[name] for name in scenarios or SCENARIOS], peers or tuple(PEERS), console
        )
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    rows = report.summarise(samples)
    report.show(rows, console)
    versions = {name: PEERS[name].describe() for name in dict.fromkeys(sample.peer for sample in samples)}
    path = report.save(rows, samples, versions, vars(settings))
    console.print(f"Every run: {os.path.relpath(path)}", soft_wrap=True)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


def _cores() -> tuple[int, int]:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise click.ClickException(
            "two cores are needed: one for the proxy, one for its members and the load"
        )
    return allowed[0], allowed[1]


def _measure(
    settings: Settings, scenarios: Sequence[Scenario], names: Sequence[str], console: Console
) -> list[Sample]:
    for program in ("wrk", "nginx", "taskset"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed: the members or the load need it")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-bench-")))
        running = _start_all(settings, names, folder, stack, console)
        for peer in running:
            load.run(
                scenarios[0],
                peer.process,
                peer.port,
                turn=0,
                seconds=1,
                connections=settings.connections,
                core=settings.load_core,
            )
        return [
            sample
            for scenario in scenarios
            for sample in _measure_scenario(settings, scenario, running, console)
        ]


def _start_all(
    settings: Settings, names: Sequence[str], folder: Path, stack: ExitStack, console: Console
) -> list[Running]:
    members = [settings.port + at for at in range(len(MEMBERS))]
    first = {name: settings.port + _PORTS_EACH * at for at, name in enumerate(PEERS, start=1)}
    require_free(members + [port for name in names for port in (first[name], first[name] + 1)])
    process = Process("members", members_command(folder, members), core=settings.load_core, folder=folder)
    stack.callback(process.stop)
    for port in members:
        process.wait_ready(port, "/1k")
    running = []
    for name in names:
        peer = PEERS[name]
        if not peer.installed():
            console.print(f"Left out: {name} is not installed.")
            continue
        process = Process(
            name, peer.command(folder, first[name], members), core=settings.proxy_core, folder=folder
        )
        stack.callback(process.stop)
        try:
            process.wait_ready(first[name], "/1k")
        except BenchmarkError as error:
            console.print(f"Left out: {error}", soft_wrap=True, markup=False)
            continue
        running.append(Running(process, first[name]))
    if not running:
        raise BenchmarkError("no peer is left to measure")
    return running


def _measure_scenario(
    settings: Settings, scenario: Scenario, running: Sequence[Running], console: Console
) -> list[Sample]:
    samples = []
    for peer in running:
        load.check(scenario, peer.port, peer.process.name)
    for turn in range(1, settings.rounds + 1):
        with console.status(f"{scenario.name}: {scenario.about} (round {turn} of {settings.rounds})"):
            samples += [
                load.run(
                    scenario,
                    peer.process,
                    peer.port,
                    turn=turn,
                    seconds=settings.seconds,
                    connections=settings.connections,
                    core=settings.load_core,
                )
                for peer in running
            ]
    return samples


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
