"""`python -m benchmarks.simulate`: policies of choosing a member, compared in a simulated federation."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.simulate import policies
from benchmarks.simulate.recorded import Recorded
from benchmarks.simulate.run import Interrupted, Run
from benchmarks.simulate.scenario import DEFAULT, MOST_LAUNCHES, Scenario, find, load
from benchmarks.simulate.show import Result
from benchmarks.simulate.visitors import Launches, Visitors
from fedproxy.config.report import fault_lines
from fedproxy.errors import ConfigError

_OPTION: Final = "--policy"
_WITH_FAILOVER: Final = [name for name in policies.offered() if policies.WITHOUT not in name]

T = TypeVar("T")


class _Command(click.Command):
    """Takes several policies after one `--policy`, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = policies.offered()
        taken: list[str] = []
        for number, each in enumerate(args):
            follows = number > 1 and each in known and args[number - 1] in known and _OPTION in taken
            taken += [_OPTION, each] if follows else [each]
        return super().parse_args(ctx, taken)


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", default=DEFAULT, metavar="[SCENARIO.yaml]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of all chance.")
@click.option(
    "--launches",
    type=click.IntRange(1, MOST_LAUNCHES),
    help="How many are measured.  [default: the scenario's]",
)
@click.option(
    _OPTION,
    "named",
    multiple=True,
    metavar="NAME ...",
    type=click.Choice(list(policies.offered())),
    help=f"Only these: {', '.join(_WITH_FAILOVER)}; all but the oracle also with {policies.WITHOUT}.  "
    "[default: all]",
)
@click.option(
    "--record",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Recorded launches instead of the scenario's visitors.",
)
@click.option(
    "--json",
    "output",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write the results there, too; - for standard output, without the table.",
)
@click.option(
    "--chart",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.svg",
    help="Draw the results of the policies with failover.",
)
def main(
    scenario: str,
    seed: int,
    launches: int | None,
    named: Sequence[str],
    record: Path | None,
    output: Path | None,
    chart: Path | None,
) -> None:
    """Compare policies of choosing a member in a simulated federation.

    SCENARIO is a file, or the name of one that is shipped: federation.yaml (the default), replicated.yaml,
    one-sick.yaml, flash-crowd.yaml.
    """
    if output is not None and str(output) != "-" and not output.parent.is_dir():
        raise click.BadParameter(f"the folder {str(output.parent)!r} does not exist", param_hint="--json")
    if chart is not None and not chart.parent.is_dir():
        raise click.BadParameter(f"the folder {str(chart.parent)!r} does not exist", param_hint="--chart")
    world = _valid(find(scenario), load)
    recorded = None if record is None else _valid(record, lambda path: Recorded(path, world, seed))
    if recorded is not None:
        launches = min(launches or MOST_LAUNCHES, len(recorded))
    wanted = list(dict.fromkeys(named)) or list(policies.offered())
    result, ended = _simulate(world, seed, launches or world.launches, wanted, recorded)
    if output is None or str(output) != "-":
        result.table(Console())
    if output is not None:
        text = json.dumps(result.as_json(), indent=2) + "\n"
        if str(output) == "-":
            sys.stdout.write(text)
        else:
            output.write_text(text)
    if chart is not None:
        chart.write_text(result.chart())
    raise SystemExit(ended)


def _valid(path: Path, read: Callable[[Path], T]) -> T:
    """What is in a file. Says what is wrong with it, and ends."""
    try:
        return read(path)
    except ConfigError as error:
        for line in fault_lines(str(path), error.faults):
            click.echo(line, err=True)
        raise SystemExit(2) from None


class _Signals:
    """SIGINT and SIGTERM end the simulation between two launches. `status`: the exit status, 0 if none
    came.
    """

    def __init__(self) -> None:
        self.status = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """A signal has come. The second one ends it at once."""
        if self.status:
            raise SystemExit(self.status)
        self.status = 128 + number

    def look(self) -> None:
        """Raises Interrupted if one has come."""
        if self.status:
            raise Interrupted


def _simulate(
    world: Scenario, seed: int, launches: int, wanted: Sequence[str], recorded: Launches | None
) -> tuple[Result, int]:
    """The results, also of an interrupted simulation, and the exit status."""
    result = Result(str(world.name), seed, launches, wanted, {})
    signals = _Signals()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # The oracle's builds are beside everybody's.
    order = list(dict.fromkeys([policies.ORACLE, *wanted]))
    console = Console(stderr=True)
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Progress(
            *columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal
        ) as progress:
            whole = progress.add_task("", total=launches * len(order))
            for number, name in enumerate(order):
                progress.update(whole, description=name)

                def step(made: int, done: int = number * launches) -> None:
                    progress.update(whole, completed=done + made)
                    signals.look()

                run = Run(world, recorded or Visitors(world, seed), policies.offered()[name], seed)
                try:
                    run.run(launches, step)
                finally:
                    if run.tally.asked:
                        result.tallies[name] = run.tally
    except Interrupted:
        result.partial = "Interrupted: these are the results so far."
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
    return result, signals.status


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.simulate")
