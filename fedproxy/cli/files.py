"""The commands about a config's file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import uvloop

from fedproxy.cli.base import FILE_ARGUMENT, JSON, count_members, load_config, main, say, wrong
from fedproxy.config.report import fault_lines
from fedproxy.errors import ConfigError

if TYPE_CHECKING:
    from fedproxy.serve.verify import CheckedFile


@main.command()
@click.argument("file", type=FILE_ARGUMENT)
@JSON
@click.option(
    "--live",
    is_flag=True,
    help="Also try the addresses to listen on, look up names, and ask the members how they are.",
)
def check(file: Path, as_json: bool, live: bool) -> None:
    """Validate a config: exit 0 if `serve` would take it, else 2 after listing every fault.

    Warnings are about what is valid but unwise; `silence: [NAME]` in the config silences one.
    """
    from fedproxy.serve.verify import verify_all

    checked = verify_all(file, os.environ)
    if live and not checked.faults:
        from fedproxy.serve.live import look

        checked = uvloop.run(look(checked))
    if as_json:
        from fedproxy.config import report

        click.echo(json.dumps(report.as_json(str(file), checked.faults, checked.warnings), indent=2))
    else:
        _print_checked(file, checked)
    if checked.faults:
        raise SystemExit(2)


def _print_checked(file: Path, checked: CheckedFile) -> None:
    from rich.cells import cell_len

    from fedproxy.config.report import warning_lines

    # Whatever parses this wants one line for each; people also want to see which line that is.
    places = checked.reading.document.places if checked.reading is not None and _is_terminal() else None
    faults = zip(fault_lines(str(file), checked.faults), checked.faults, strict=True)
    concerns = [each.what for each in checked.warnings]
    for line, fault in (*faults, *zip(warning_lines(str(file), checked.warnings), concerns, strict=True)):
        say(line)
        shown = places.shown(fault.place) if places is not None and fault.place is not None else None
        if shown is not None:
            say(f"    {shown.text}\n    {' ' * cell_len(shown.before)}^")
    if not checked.faults:
        click.echo(f"{file}: valid, {count_members(checked.config)}")


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        # There is none, or it is closed.
        return False


@main.command()
@click.argument("what", type=click.Choice(["config", "federation"]), default="config")
def schema(what: str) -> None:
    """Print a JSON Schema: the config's, for editors, or that of /federation.json."""
    if what == "config":
        from fedproxy.config.schema import render
    else:
        from fedproxy.web.document import render_schema as render

    click.echo(render(), nl=False)


@main.command("import")
@click.argument("file", type=FILE_ARGUMENT)
def import_(file: Path) -> None:
    """Print another program's file as a fedproxy config.

    FILE is a config.json of federation-redirect, or the federation.yml of mybinder.org's documentation, which
    lists members for its pages; the content tells which. What cannot be kept of a federation.yml is
    reported on stderr.
    """
    from fedproxy.config.load import convert, read_text
    from fedproxy.config.report import note_lines

    try:
        imported = convert(read_text(file))
    except ConfigError as error:
        raise wrong(file, error) from None
    for line in note_lines(str(file), imported.notes):
        say(line)
    click.echo(imported.text, nl=False)


@main.command()
@click.option("--config", "file", required=True, type=FILE_ARGUMENT, help="The config, YAML or JSON.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "markdown", "myst", "json"]),
    default="html",
    show_default=True,
    help="A page, or cards to include in one (MyST, with sphinx-design), or what /federation.json has.",
)
@click.option("--past", is_flag=True, help="Print past members only.")
def page(file: Path, form: str, past: bool) -> None:
    """Print the federation's members from the config, without their current state."""
    from fedproxy.web.page import render_page

    click.echo(render_page(load_config(file), form, past=past), nl=False)


@main.command()
@click.argument("logs", metavar="[LOG]...", nargs=-1, type=click.File("rb"))
def record(logs: tuple[BinaryIO, ...]) -> None:
    """Print the launches of access logs in a form that names nobody, for `benchmarks.simulate --record`.

    Reads standard input if no LOG is given. Each launch is a line of JSON, in the order in which they were
    asked for. Visitors, repositories and images are digests with a secret that is not kept.
    """
    import secrets
    from itertools import chain

    from fedproxy.observe.recording import Recorder

    recorder = Recorder(secrets.token_bytes(32))
    count = 0
    for launch in recorder.read(chain.from_iterable(logs or (sys.stdin.buffer,))):
        click.echo(json.dumps(launch))
        count += 1
    say(f"{count} launches; {recorder.skipped} lines were not understood")
    if not count:
        raise SystemExit(1)
