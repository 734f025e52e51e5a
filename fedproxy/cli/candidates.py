"""The command that looks at a candidate."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import uvloop

from fedproxy.cli.base import FILE_ARGUMENT, Syntax, load_config, main, say, table
from fedproxy.config.address import BASE_PATH, LOCATION, MEMBER_NAME, ORIGIN
from fedproxy.config.units import FILE, Kind

if TYPE_CHECKING:
    from fedproxy.control.candidate import Candidate, Check, Examination

_LAUNCH = Kind(
    "PROVIDER/SPEC",
    "what follows /build/ in a launch, such as gh/binder-examples/requirements/HEAD",
    lambda value: value if LOCATION.parse(f"/{value}") and "/" in str(value)[1:-1] else None,
)
_MOST_LAUNCHES: Final = 3
_CLEAR: Final = "\r\x1b[K"  # the line of the terminal


@main.command()
@click.argument("url", type=Syntax(ORIGIN))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="What to print; markdown is a report for an issue of the federation.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds per check; an abandoned launch may take six times that.",
)
@click.option(
    "--repository",
    type=Syntax(_LAUNCH),
    default="gh/binder-examples/requirements/HEAD",
    show_default=True,
    help="The repository to launch.",
)
@click.option(
    "--launches",
    type=click.IntRange(0, _MOST_LAUNCHES),
    help="Launches to follow to their end, one after the other, and then to stop; 0 for none. "
    "By default there is one, which is abandoned once its stream delivers events.",
)
@click.option(
    "--launch-timeout",
    type=click.FloatRange(0, 7200, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds for each launch that is followed to its end.",
)
@click.option(
    "--reference",
    type=Syntax(ORIGIN),
    help="The prime member's URL: versions must match, and its build tokens must be accepted.",
)
@click.option(
    "--config",
    "file",
    type=FILE_ARGUMENT,
    help="The federation's config, to see whether it already has the URL or the name.",
)
@click.option("--name", type=Syntax(MEMBER_NAME), help="The name that the member would have.")
@click.option(
    "--from-edge",
    is_flag=True,
    help="This machine is one of the federation's edges, so what it says about visitors' addresses must be "
    "believed.",
)
@click.option(
    "--origin",
    type=Syntax(ORIGIN),
    default="https://mybinder.org",
    show_default=True,
    help="The federation's public URL.",
)
@click.option(
    "--base-path",
    type=Syntax(BASE_PATH),
    default="/",
    show_default=True,
    help="Where URL and the reference have their BinderHub, such as /services/binder/.",
)
@click.option("--ca", type=Syntax(FILE), help="PEM file of trusted CAs, instead of the system's.")
def probe(
    url: str,
    form: str,
    as_json: bool,
    timeout: float,
    repository: str,
    launches: int | None,
    launch_timeout: float,
    reference: str | None,
    file: Path | None,
    name: str | None,
    from_edge: bool,
    origin: str,
    base_path: str,
    ca: Path | None,
) -> None:
    """Check whether the BinderHub at URL is fit to join: exit 0 if no check failed, else 1.

    \b
    Follow three launches to their end, and print a report for an issue of the federation:
        fedproxy probe URL --reference PRIME --launches 3 --format markdown
    """
    from fedproxy.control.candidate import Candidate

    members = {} if file is None else _members(file)
    candidate = Candidate(
        url,
        repository,
        reference,
        origin,
        timeout,
        ca,
        base_path,
        launches,
        launch_timeout,
        members,
        name or "",
        from_edge,
    )
    report = _examined(candidate)
    _print(candidate, report, "json" if as_json else form)
    if not report.fit:
        raise SystemExit(1)


def _members(file: Path) -> dict[str, str]:
    config = load_config(file)
    return {name: member.url for name, member in config.active_members.items()}


def _examined(candidate: Candidate) -> Examination:
    from fedproxy.control.candidate import examine

    progress = _StatusLine()
    try:
        try:
            return uvloop.run(examine(candidate, progress.told, progress.busy))
        finally:
            progress.clear()
    except OSError as error:
        raise click.BadParameter(
            f"{candidate.authorities} cannot be used: {error.strerror or error}", param_hint="--ca"
        ) from None
    except KeyboardInterrupt:
        say("interrupted: there is no report")
        raise SystemExit(1) from None


class _StatusLine:
    """What is done and what takes long, in one line of the terminal on stderr, if it is one."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._done = 0

    def told(self, check: Check) -> None:
        self._done += 1
        self.busy(f"{check.name}: {check.outcome}")

    def busy(self, what: str) -> None:
        if not self._shown:
            return
        # Phases are the candidate's words.
        line = "".join(letter for letter in what if letter.isprintable())
        width = shutil.get_terminal_size().columns
        self._write(f"{_CLEAR}{f'{self._done} done; {line}'[: max(width - 1, 10)]}")

    def clear(self) -> None:
        if self._shown:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            # Nobody looks any more.
            self._shown = False


def _print(candidate: Candidate, report: Examination, form: str) -> None:
    from fedproxy.control.candidate.report import to_markdown, to_plain

    if form == "json":
        click.echo(json.dumps(to_plain(candidate, report), indent=2))
    elif form == "markdown":
        click.echo(to_markdown(candidate, report), nl=False)
    else:
        _print_text(report)


def _print_text(report: Examination) -> None:
    from fedproxy.control.candidate import CheckOutcome
    from fedproxy.control.candidate.check import show_time
    from fedproxy.control.candidate.report import count

    headings = ("check", "verdict", "seen")
    table(headings, ((check.name, check.outcome, check.seen) for check in report.checks), "seen")
    for check in report.checks:
        if check.fix:
            click.echo(
                f"\n{check.name}: {check.outcome}\n  expected: {check.expected}\n  to fix: {check.fix}"
            )
    for number, trial in enumerate(report.trials, 1):
        phases = ", ".join(f"{name} {show_time(seconds)}" for name, seconds in trial.phases.items())
        why = f" ({trial.kind}: {trial.message})" if trial.kind else ""
        said = f"launch {number}: {trial.end}{why} after {show_time(trial.seconds)}"
        said += f": {phases}" if phases else ""
        if trial.stopped is not None:
            said += "; its server was told to stop" if trial.stopped else "; its server could not be stopped"
        click.echo(f"\n{said}")
    if report.fit:
        click.echo(f"\n{report.url} is fit to join")
    else:
        failed = count(report, CheckOutcome.FAILED)
        click.echo(f"\n{report.url} is not fit to join: {failed} check{'s' if failed != 1 else ''} failed")
