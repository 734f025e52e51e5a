"""`python -m benchmarks`: fedproxy beside other proxies, within the same minutes on the same machine.

`run` (the default) measures, `quick` compares with the last release, `load` is for a deployed edge.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import bench, quick, report
from benchmarks.bench import Record, Settings
from benchmarks.load import load as load_command
from benchmarks.peers import PEERS, BenchmarkError
from benchmarks.scenarios import FAST, SCENARIOS


class _Default(click.Group):
    """Runs `run` if no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Default, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure fedproxy beside other proxies, or load a deployed edge. Without a command: run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    # A shell makes background jobs ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # Raises an exception, so that everything that was started is ended on exit.
    raise SystemExit(128 + number)


_PORT = click.option(
    "--port", type=click.IntRange(1024, 65000), default=18100, show_default=True, help="First of 400 ports."
)


@main.command()
@click.argument("chosen", metavar="[SCENARIO]...", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--seconds", type=click.IntRange(1), default=None, help="Length of one run.  [default: 2]")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Runs of each proxy.  [default: 3]")
@click.option("--connections", type=click.IntRange(1, 900), default=64, show_default=True)
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Only these proxies.")
@click.option(
    "--tools",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of configurable-http-proxy; npm installs it there if it is missing.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=report.LOCAL,
    help="Folder of the results.  [default: benchmarks/results/local]",
)
@click.option("--name", help="Name of the results' files.  [default: the time]")
@_PORT
def run(
    chosen: Sequence[str],
    seconds: int | None,
    rounds: int | None,
    connections: int,
    peers: Sequence[str],
    tools: Path | None,
    output: Path,
    name: str | None,
    port: int,
) -> None:
    """Measure the processor time of a request, and more. All scenarios if none is named.

    QUICK=1 in the environment makes it one round of one second, with the slow proxies in the first scenario
    only: this checks that it runs, and is not a measurement.
    """
    in_brief = os.environ.get("QUICK", "") not in ("", "0")
    try:
        if tools:
            bench.with_tools(tools)
        proxy_core, load_core = bench.cores()
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    settings = Settings(
        peers=peers or tuple(PEERS),
        seconds=seconds or (1 if in_brief else 2),
        rounds=rounds or (1 if in_brief else 3),
        connections=connections,
        port=port,
        proxy_core=proxy_core,
        load_core=load_core,
        quick=in_brief,
    )
    console = Console()
    record, found, ended = _measure(settings, chosen or tuple(SCENARIOS), console)
    if record.samples:
        report.show(found["summary"], console)
        report.show_verdicts(report.verdicts(record.samples), console)
    _say(record, console)
    if record.samples:
        for path in report.save(found, output, name or time.strftime("%Y%m%d-%H%M%S")):
            console.print(os.path.relpath(path), soft_wrap=True)
    raise SystemExit(ended)


@main.command("quick")
@click.option("--record", "keep", is_flag=True, help="Save it as benchmarks/results/VERSION.json.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@_PORT
def quick_run(keep: bool, rounds: int, port: int) -> None:
    """Compare the ratios to nginx and HAProxy with those of the last release. Two minutes.

    Exit status 1 if a ratio has grown by more than a quarter.
    """
    try:
        proxy_core, load_core = bench.cores()
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    names = [name for name in PEERS if name in FAST]
    settings = Settings(names, 1, rounds, 64, port, proxy_core, load_core)
    console = Console()
    record, found, ended = _measure(settings, quick.SCENARIOS, console)
    _say(record, console)
    if ended:
        raise SystemExit(ended)
    ratios = quick.ratios(found["summary"])
    before = quick.last(report.RESULTS, found["versions"]["fedproxy"])
    worse = quick.show(ratios, before, console)
    if keep:
        path = quick.save(report.RESULTS, found, ratios)
        console.print(f"Kept: {os.path.relpath(path)}", soft_wrap=True)
    raise SystemExit(bool(worse))


def _measure(
    settings: Settings, chosen: Sequence[str], console: Console
) -> tuple[Record, dict[str, Any], int]:
    """The results, also of an interrupted run; the last is the exit status."""
    before, record, ended = os.getloadavg(), Record(), 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as progress:
        try:
            bench.measure(settings, [SCENARIOS[name] for name in chosen], record, progress)
        except BenchmarkError as error:
            record.note(f"Cut short: {error}")
            ended = 1
        except (KeyboardInterrupt, SystemExit) as error:
            record.note("Cut short: interrupted")
            ended = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
    if record.rate:
        record.note(f"The open loop had {record.rate:,.0f} requests a second.")
    versions = {peer: PEERS[peer].describe() for peer in settings.peers if PEERS[peer].installed()}
    found = report.result(record.samples, versions, vars(settings), record.notes, before, record.memos)
    return record, found, ended


def _say(record: Record, console: Console) -> None:
    for note in record.notes:
        console.print(note, soft_wrap=True, markup=False)


main.add_command(load_command)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
