"""What the commands have in common: the group, arguments, tables and messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedproxy import __version__, is_compiled
from fedproxy.config.report import Difference, fault_lines
from fedproxy.config.units import Kind
from fedproxy.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from fedproxy.config.model import Config

# A command imports by itself what only it needs: those that ask a running edge, and the completion of their
# arguments, would else wait for aiohttp, pydantic and the templates, most of what a start takes.

FILE_ARGUMENT = click.Path(path_type=Path)
_ENVIRONMENT = """\b
Environment:
  FEDPROXY_ADMIN        the admin listener's URL, http://127.0.0.1:8081 by default
  FEDPROXY_ADMIN_TOKEN  the admin token, for writes, and for reads where they need one
  NAME                  what ${NAME} in a config stands for

\b
Exit status: 0 done; 1 the edge refused, or is not there; 2 wrong usage, or a config that is not valid.
"""
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LONG_WORD = 30  # characters; a longer one may be folded within
_UNFOLDED = 10_000  # columns


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_ENVIRONMENT)
@click.version_option(f"{__version__} ({'compiled' if is_compiled() else 'not compiled'})")
def main() -> None:
    """The edge for a federation of BinderHubs."""


def wrong(file: Path, error: ConfigError) -> SystemExit:
    """Says every fault of a file; returns the end of the command, with exit 2."""
    for line in fault_lines(str(file), error.faults):
        say(line)
    return SystemExit(2)


def load_config(file: Path) -> Config:
    """The config in a file. Raises SystemExit with exit 2 once its faults are said."""
    from fedproxy.config.load import load

    try:
        return load(file, os.environ)
    except ConfigError as error:
        raise wrong(file, error) from None


class Syntax(click.ParamType[Any]):
    """A command-line parameter with the syntax of a config kind."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind.name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click says."""
        parsed = self._kind.parse(value)
        if parsed is None:
            self.fail(f"{value!r} is not {self._kind.expected}.", param, ctx)
        return parsed


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *wrapped: str) -> None:
    """Prints a table without rules, so that a script can split it.

    wrapped: the columns that are folded where a terminal is too narrow, between words if these are short.
    """
    from rich.console import Console
    from rich.table import Column, Table

    rows = [*rows]
    longest = [
        min(_LONG_WORD, max((len(word) for cell in column for word in cell.split()), default=0))
        for column in zip(headings, *rows, strict=True)
    ]
    columns = (
        Column(name, no_wrap=name not in wrapped, overflow="fold", min_width=width)
        for name, width in zip(headings, longest, strict=True)
    )
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # Text from members is not markup.
    console = Console(markup=False, emoji=False, highlight=False)
    fit(console)
    console.print(table)


def fit(console: Console) -> None:
    """Where the output is no terminal, lines are as long as they are: its reader wants one for each row."""
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNFOLDED


def count_members(config: Config) -> str:
    """The number of active members, in words."""
    count = len(config.active_members)
    return "1 member" if count == 1 else f"{count} members"


def number_text(value: float) -> str:
    """A number as short as it can be."""
    return f"{value:.12g}"


def say(text: str) -> None:
    """Writes to the terminal. If that fails, the command still ends as it would have."""
    try:
        click.echo(text, file=sys.stderr)
    except OSError:
        # The buffered text would fail again at exit, and Python would change the exit status.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def say_changes(answer: Any) -> None:
    """What a dry run would change."""
    changes = answer.get("changes") if isinstance(answer, dict) else None
    for each in changes if isinstance(changes, list) else ():
        click.echo(str(Difference(each.get("key", ""), each.get("before"), each.get("after"))))
    if not changes:
        click.echo("nothing would change")


def say_if_it_waits(name: str, answer: Any) -> None:
    """Says so if what was set of a member is not known to the other edges yet."""
    if isinstance(answer, dict) and answer.get("pending") is True:
        click.echo(f"{name}: the store is away, so the other edges hear of it once it is back")
