"""`python -m benchmarks.fleet`: three edges, Redis and three members; parts of it fail under load.

Each host is in a network namespace of its own, which needs root; without, hosts are addresses of loopback.
Everything that is made is removed at the end.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import uvloop
from rich.console import Console

from benchmarks.fleet import member as members
from benchmarks.fleet.record import faults
from benchmarks.fleet.run import AGREEMENT, EDGES, PROBES_EVERY, QUICK, USUAL, measure, measure_probes
from benchmarks.fleet.scale import ROUND, SIZES, measure_scale, probes_a_minute
from benchmarks.fleet.show import delays, loads, show
from benchmarks.peers import BenchmarkError

T = TypeVar("T")

_WIDTH: Final = 120  # columns of a terminal that a table needs
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


async def _until_told(work: Coroutine[Any, Any, T]) -> T:
    """Runs it, or ends it in order when this process is told to end."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await task


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return uvloop.run(_until_told(work))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    except asyncio.CancelledError:
        raise click.ClickException("ended before it was done") from None


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="About a minute instead of five.")
@click.option("--visitors", type=click.IntRange(1, 10_000), default=2000, show_default=True)
@click.option(
    "--rate", type=click.FloatRange(1), default=400, show_default=True, help="Visits a second, of all."
)
@click.option(
    "--launches", type=click.FloatRange(0), default=4, show_default=True, help="Launches a second, of those."
)
@click.option("--json", "output", type=_FILE, metavar="FILE", help="Write the figures there, too.")
@click.pass_context
def main(
    context: click.Context, quick: bool, visitors: int, rate: float, launches: float, output: Path | None
) -> None:
    """Let parts of a fleet fail under load: exits with 1 if a figure misses its target."""
    if context.invoked_subcommand is not None:
        return
    console = Console(width=max(Console().width, _WIDTH))
    durations = QUICK if quick else USUAL
    found = _run(measure(durations, visitors, rate, launches, console.print))
    show(found, console)
    if output is not None:
        output.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    missed = faults(found.phases, AGREEMENT)
    for line in missed:
        console.print(f"missed: {line}")
    if missed:
        raise SystemExit(1)


@main.command("scale")
@click.option(
    "--edges", type=click.IntRange(1, 1000), help="Only so many, with --members.  [default: 3 to 100]"
)
@click.option("--members", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option(
    "--launches",
    type=click.FloatRange(0, min_open=True),
    default=20,
    show_default=True,
    help="Launches a second, of all edges.",
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=20, show_default=True, help="Of each measurement."
)
@click.option("--port", type=click.IntRange(1024, 65000), default=18300, show_default=True, help="Of Redis.")
@click.option("--no-probes", is_flag=True, help="Do not count the probes of real edges.")
@click.option("--json", "output", type=_FILE, metavar="FILE", help="Write the figures there, too.")
def scale_up(
    edges: int | None,
    members: int,
    launches: float,
    seconds: float,
    port: int,
    no_probes: bool,
    output: Path | None,
) -> None:
    """Measure what many edges cost one Redis, and count the probes of a few real ones."""
    console = Console(width=max(Console().width, _WIDTH))
    sizes = SIZES if edges is None else ((edges, members),)
    probes: dict[str, float] = {}
    uses = _run(measure_scale(sizes, seconds, launches, port, console.print))
    for one_prober in () if no_probes else (True, False):
        console.print(f"probes of {len(EDGES)} real edges, {'one' if one_prober else 'each'} probes ...")
        probes["one" if one_prober else "each"] = _run(measure_probes(one_prober))
    console.print(loads(uses))
    console.print(delays(uses))
    for who, counted in probes.items():
        expected = probes_a_minute(len(EDGES), PROBES_EVERY, who == "one")
        usual = probes_a_minute(len(EDGES), ROUND, who == "one")
        console.print(
            f"rounds of probes of a member in a minute, {who} of {len(EDGES)} edges probes it every "
            f"{PROBES_EVERY:g} s: {counted:.1f}, expected {expected:.1f}; every {ROUND:g} s {usual:.0f}"
        )
    if output is not None:
        found = {"uses": [each.as_json() for each in uses], "probes": probes}
        output.write_text(json.dumps(found, indent=2) + "\n")


@main.command("member", hidden=True)
@click.argument("name")
@click.argument("host")
@click.argument("port", type=int)
@click.argument("notes", type=_FILE)
def serve_member(name: str, host: str, port: int, notes: Path) -> None:
    """Be a member."""
    uvloop.run(members.serve(name, host, port, notes))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.fleet")
