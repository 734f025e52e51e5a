"""The command that looks at a candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop

from fedproxy.cli.base import JSON, Syntax, main, table
from fedproxy.config.address import BASE_PATH, LOCATION, ORIGIN
from fedproxy.config.units import FILE, Kind

if TYPE_CHECKING:
    from fedproxy.control.candidate import Check

_LAUNCH = Kind(
    "PROVIDER/SPEC",
    "what follows /build/ in a launch, such as gh/binder-examples/requirements/HEAD",
    lambda value: value if LOCATION.parse(f"/{value}") and "/" in str(value)[1:-1] else None,
)


@main.command()
@click.argument("url", type=Syntax(ORIGIN))
@JSON
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds per check; a launch may take six times that.",
)
@click.option(
    "--repository",
    type=Syntax(_LAUNCH),
    default="gh/binder-examples/requirements/HEAD",
    show_default=True,
    help="The repository to launch; the launch is abandoned once its stream delivers events.",
)
@click.option(
    "--reference",
    type=Syntax(ORIGIN),
    help="The prime member's URL; the versions must match, and its build tokens be accepted.",
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
    as_json: bool,
    timeout: float,
    repository: str,
    reference: str | None,
    origin: str,
    base_path: str,
    ca: Path | None,
) -> None:
    """Check whether the BinderHub at URL is fit to join: exit 0 if no check failed, else 1."""
    from fedproxy.control.candidate import Candidate, CheckOutcome, examine

    candidate = Candidate(url, repository, reference, origin, timeout, ca, base_path)
    try:
        report = uvloop.run(examine(candidate))
    except OSError as error:
        raise click.BadParameter(
            f"{ca} cannot be used: {error.strerror or error}", param_hint="--ca"
        ) from None
    if as_json:
        checks = [_plain_check(check) for check in report.checks]
        click.echo(json.dumps({"url": url, "fit": report.fit, "checks": checks}, indent=2))
    else:
        headings = ("check", "verdict", "seen")
        table(headings, ((check.name, check.outcome, check.seen) for check in report.checks), "seen")
        for check in report.checks:
            if check.fix:
                click.echo(
                    f"\n{check.name}: {check.outcome}\n  expected: {check.expected}\n  to fix: {check.fix}"
                )
        failed = sum(check.outcome is CheckOutcome.FAILED for check in report.checks)
        click.echo(
            f"\n{url} is fit to join" if report.fit else f"\n{url} is not fit to join: {failed} failed"
        )
    if not report.fit:
        raise SystemExit(1)


def _plain_check(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "verdict": check.outcome.value,
        "seen": check.seen,
        "expected": check.expected,
        "fix": check.fix,
        "values": dict(check.values),
    }
