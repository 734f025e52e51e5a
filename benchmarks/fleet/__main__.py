"""`python -m benchmarks.fleet`: three edges, Redis and three members; parts of it fail under load.

Each host is in a network namespace of its own, which needs root; without, hosts are addresses of loopback.
Everything that is made is removed at the end.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click
import uvloop
from rich.console import Console

from benchmarks.fleet import member as members
from benchmarks.fleet.record import faults
from benchmarks.fleet.run import AGREEMENT, QUICK, USUAL, measure
from benchmarks.fleet.show import show
from benchmarks.peers import BenchmarkError

_WIDTH: Final = 120  # columns of a terminal that a table needs
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was made is removed on the way out.
    raise SystemExit(128 + number)


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
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    if context.invoked_subcommand is not None:
        return
    console = Console(width=max(Console().width, _WIDTH))
    durations = QUICK if quick else USUAL
    try:
        found = uvloop.run(measure(durations, visitors, rate, launches, console.print))
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    show(found, console)
    if output is not None:
        output.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    missed = faults(found.phases, AGREEMENT)
    for line in missed:
        console.print(f"missed: {line}")
    if missed:
        raise SystemExit(1)


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
