"""The commands by which members join and leave, at a running edge or in its config."""

from __future__ import annotations

import codecs
import difflib
import io
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedproxy.cli.asking import ADMIN, Failed, ask, ask_config, complete, path_of
from fedproxy.cli.base import FILE_ARGUMENT, Syntax, main, say, say_changes, say_if_it_waits
from fedproxy.config.address import BASE_PATH, CONTACT, MEMBER_NAME, ORIGIN
from fedproxy.config.units import FILE, SECONDS, SECONDS_OR_NONE, TARGET, format_duration
from fedproxy.decide.ramp import FIRST

if TYPE_CHECKING:
    from fedproxy.control.candidate import Examination

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LOOK = 1.0  # seconds between two looks at a member that drains
_ABOUT = ("contact", "run_by", "funded_by", "reserve", "control")


def _settings(command: _Command) -> _Command:
    """The options that say what a new member is like."""
    for option in reversed(
        (
            click.option(
                "--share",
                type=Syntax(TARGET),
                required=True,
                metavar="PERCENT",
                help="The share of new visitors that it is to have in the end, such as 20%.",
            ),
            click.option(
                "--over",
                type=Syntax(SECONDS),
                default="7d",
                show_default=True,
                metavar="DURATION",
                help="How long it takes to get there if its launches succeed.",
            ),
            click.option(
                "--contact", type=Syntax(CONTACT), help="Whom to contact: a URL, or mailto: with an address."
            ),
            click.option("--run-by", metavar="NAME", help="Who runs it."),
            click.option("--funded-by", metavar="NAME", help="Who pays for it."),
            click.option(
                "--reserve", type=click.IntRange(0), help="Pods that it keeps for its own community."
            ),
            click.option(
                "--control",
                type=click.Choice(["full", "own"]),
                help="Who can repair it: the federation's team (full) or only its own people.",
            ),
        )
    ):
        command = option(command)
    return command


def _member(url: str, share: float, over: float, about: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a new member."""
    settings: dict[str, Any] = {
        "url": url,
        "weight": "auto",
        "ramp": {"share": f"{share * 100:g}%", "over": _duration(over)},
    }
    for key in _ABOUT:
        value = about.get(key)
        if value is not None:
            settings[key] = {"name": value} if key in ("run_by", "funded_by") else value
    return settings


def _duration(seconds: float) -> str | float:
    return f"{seconds / 86400:.0f}d" if seconds % 86400 == 0 else format_duration(seconds)


@main.command()
@ADMIN
@click.argument("name", type=Syntax(MEMBER_NAME))
@click.argument("url", type=Syntax(ORIGIN))
@_settings
@click.option("--again", is_flag=True, help="NAME is a past member, which comes back.")
@click.option("--anyway", is_flag=True, help="Add it without a probe, even if it is not fit to join.")
@click.option("--ca", type=Syntax(FILE), help="PEM file of trusted CAs for the probe.")
@click.option(
    "--base-path",
    type=Syntax(BASE_PATH),
    default="/",
    show_default=True,
    help="Where the probe finds the BinderHub below URL, such as /services/binder/.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would change.")
def join(
    name: str,
    url: str,
    admin: str,
    share: float,
    over: float,
    again: bool,
    anyway: bool,
    ca: Path | None,
    base_path: str,
    dry: bool,
    **about: Any,
) -> None:
    """Let the BinderHub at URL join as NAME: probe it, then raise its share step by step.

    It gets a twentieth of its share at first, and more as long as its launches succeed. A member that fails
    launches falls back, and the edge's log says why.
    """
    found = ask_config(admin)
    before = _past(found, name, url, again=again)
    if not anyway:
        _refuse_unfit(found, url, ca, base_path)
        # That takes its time, in which somebody else may have added it.
        before = _past(ask_config(admin), name, url, again=again)
    kept = {key: value for key, value in before.items() if key != "active"}
    settings = {**kept, **_member(url, share, over, about)}
    if dry:
        say_changes(ask(admin, f"{path_of(name)}?dry_run=true", settings, method="PUT"))
        return
    answer = ask(admin, path_of(name), settings, method="PUT")
    click.echo(
        f"{name} has joined: it gets {share * 100 * FIRST:.2g}% of new visitors now, and {share * 100:g}% in "
        f"{_duration(over)} if its launches succeed"
    )
    say_if_it_waits(name, answer)
    state = answer.get("state") if isinstance(answer, dict) else None
    if state in ("drain", "maint"):
        # Set of an earlier member of that name.
        say(f"{name} is still set to {state}, so it gets nobody yet: `fedproxy ready {name}` ends that")
    if found.get("balancer") == "least-requests":
        say("with `balancer: least-requests` a small share gets visitors only while other members are busy")


def _past(config: Mapping[str, Any], name: str, url: str, *, again: bool) -> Mapping[str, Any]:
    """The entry of the past member that comes back; empty if there is none. Raises Failed."""
    members = config["members"]
    if url == config.get("public_url"):
        raise Failed(f"{url} is the federation's own address: give that of the BinderHub itself")
    for other, settings in members.items():
        if settings.get("active", True) and settings.get("url") == url and other != name:
            raise Failed(f"{url} is already a member: {other}")
    known = members.get(name)
    if known is None:
        if again:
            raise Failed(f"{name} is not a past member, so leave out --again")
        return {}
    if known.get("active", True):
        raise Failed(f"{name} is already a member, at {known.get('url')}: choose another name")
    if not again:
        raise Failed(f"{name} is a past member: choose another name, or add --again if it comes back")
    return dict(known)


def _refuse_unfit(config: Mapping[str, Any], url: str, ca: Path | None, base_path: str) -> None:
    """Probes a candidate. Raises Failed if it is not fit to join."""
    import uvloop

    from fedproxy.control.candidate import Candidate, CheckOutcome, examine

    prime = [each.get("url") for each in config["members"].values() if each.get("prime")]
    reference = next((each for each in prime if ORIGIN.parse(each)), None)
    origin = config.get("public_url") or "https://mybinder.org"
    say(f"probing {url} ...")
    candidate = Candidate(url, reference=reference, origin=origin, authorities=ca, base_path=base_path)
    try:
        report: Examination = uvloop.run(examine(candidate))
    except OSError as error:
        raise click.BadParameter(
            f"{ca} cannot be used: {error.strerror or error}", param_hint="--ca"
        ) from None
    for check in report.checks:
        if check.outcome in (CheckOutcome.FAILED, CheckOutcome.WARNING):
            say(f"{check.name}: {check.outcome}: {check.seen}\n  to fix: {check.fix}")
    if not report.fit:
        failed = sum(check.outcome is CheckOutcome.FAILED for check in report.checks)
        words = "a check failed" if failed == 1 else f"{failed} checks failed"
        raise Failed(
            f"{url} is not fit to join and was not added: {words}; `fedproxy probe` shows the "
            "whole report, and --anyway adds it without a probe"
        )


@main.command()
@ADMIN
@click.argument("name", shell_complete=complete)
@click.option(
    "--wait",
    type=Syntax(SECONDS_OR_NONE),
    default="6h",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for what is under way there.",
)
@click.option("--forget", is_flag=True, help="Do not list it among the past members.")
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would change.")
def leave(name: str, admin: str, wait: float, forget: bool, dry: bool) -> None:
    """Let a member leave: drain it, wait until nothing is under way, and list it among the past members.

    Ctrl-C leaves it draining; give the command again to go on.
    """
    past = _past_entry(admin, name)
    method = "DELETE" if forget else "PUT"
    # What the federation cannot do without is said before anything is done.
    preview = ask(admin, f"{path_of(name)}?dry_run=true", None if forget else past, method=method)
    if dry:
        say_changes(preview)
        return
    if _state(admin, name) == "maint":
        # Drained, it would get requests again.
        click.echo(f"{name} is in maintenance: it gets no requests")
    else:
        ask(admin, path_of(name), {"state": "drain"})
        click.echo(f"{name} is draining: it gets no new visitors")
    try:
        if wait:
            _wait_for_end(admin, name, wait)
    except KeyboardInterrupt:
        raise Failed(f"{name} is still draining; `fedproxy leave {name}` goes on from here") from None
    # Others may have changed it meanwhile.
    past = _past_entry(admin, name)
    answer = ask(admin, path_of(name), None if forget else past, method=method)
    thanked = [
        each["name"] for key in ("run_by", "funded_by") if (each := past.get(key)) and each.get("name")
    ]
    click.echo(f"{name} has left{'' if forget else ', and is listed among the past members'}.")
    click.echo(f"Thank you, {' and '.join(dict.fromkeys(thanked)) or name}!")
    say_if_it_waits(name, answer)
    if name in ask_config(admin, own=True)["members"]:
        say(f"{name} is still in the config: `fedproxy plan leave {name} --config FILE` prints the change")


def _past_entry(admin: str, name: str) -> dict[str, Any]:
    """The entry that a member has once it has left. Raises Failed if it cannot leave."""
    settings = ask_config(admin)["members"].get(name)
    if settings is None:
        raise Failed(f"{admin}: there is no member {name}; `fedproxy members` shows them all")
    if not settings.get("active", True):
        raise Failed(f"{name} is already a past member")
    if settings.get("prime"):
        raise Failed(
            f"{name} is the prime member, whose versions are the reference: make another one prime first"
        )
    kept = {key: value for key, value in settings.items() if key not in ("ramp", "weight", "prime")}
    return {**kept, "active": False}


def _state(admin: str, name: str) -> str:
    """What operators have set of a member. Raises Failed."""
    found = ask(admin, path_of(name))
    return str(found.get("state")) if isinstance(found, dict) else ""


def _is_back(admin: str, name: str) -> bool:
    """Whether somebody has set it ready again."""
    try:
        return _state(admin, name) == "ready"
    except Failed:
        return False


def _wait_for_end(admin: str, name: str, wait: float) -> None:
    """Raises Failed if something is still under way there then, or if it is not to leave any more."""
    end = time.monotonic() + wait
    said = ""
    while True:
        if _is_back(admin, name):
            raise Failed(f"{name} was set ready again meanwhile, so it stays")
        text = _under_way(admin, name)
        if not text:
            return
        if text != said:
            click.echo(f"{name}: {text}")
            said = text
        left = end - time.monotonic()
        if left <= 0:
            raise Failed(
                f"{name} is still draining, as {text}; `fedproxy leave {name}` goes on from here, and "
                "--wait 0s does not wait"
            )
        time.sleep(min(_LOOK, left))


def _under_way(admin: str, name: str) -> str:
    """What is under way at a member, over all edges; empty if nothing is."""
    try:
        found = ask(admin, "/members?fleet=true")
        rows = found["members"]
        row = next(each for each in rows if each["name"] == name)
        requests, launches = int(row["in_flight"]), int(row["launches"])
        missing = [str(each) for each in found.get("missing", ())]
    except StopIteration:
        return ""
    except Failed as error:
        # It may be restarted just now.
        return error.message
    except (KeyError, TypeError, ValueError):
        raise Failed(f"{admin}: what answers there does not say what is under way") from None
    most = max(requests, launches)
    if not most:
        return f"{', '.join(missing)} did not say what is under way there" if missing else ""
    kind = "launch" if launches == most else "request"
    plural = "es" if kind == "launch" else "s"
    words = f"1 {kind} is" if most == 1 else f"{most} {kind}{plural} are"
    more = f", {launches} of them launches" if 0 < launches < most else ""
    return f"{words} under way there{more}"


@main.group()
def plan() -> None:
    """Print the change to a config by which a member joins or leaves, for those who keep it in Git.

    The output is a unified diff, for `git apply`; nothing is written.
    """


_CONFIG = click.option(
    "--config", "file", type=FILE_ARGUMENT, required=True, help="The config, or a file that it includes."
)


@plan.command("join")
@click.argument("name", type=Syntax(MEMBER_NAME))
@click.argument("url", type=Syntax(ORIGIN))
@_settings
@_CONFIG
def plan_join(name: str, url: str, file: Path, share: float, over: float, **about: Any) -> None:
    """Print the change by which the BinderHub at URL joins as NAME, and comes to its share step by step."""
    from fedproxy.config.edit import add_member

    _print_change(file, lambda text: add_member(text, name, _member(url, share, over, about)))


@plan.command("leave")
@click.argument("name", type=Syntax(MEMBER_NAME))
@_CONFIG
def plan_leave(name: str, file: Path) -> None:
    """Print the change by which a member becomes a past one."""
    from fedproxy.config.edit import set_key

    _print_change(file, lambda text: set_key(text, name, "active", False))


def _print_change(file: Path, change: Callable[[str], str]) -> None:
    """Raises Failed if the config cannot be changed, or would not be valid then."""
    from fedproxy.cli.base import wrong
    from fedproxy.config.edit import CannotEdit
    from fedproxy.config.load import examine, read_text
    from fedproxy.errors import ConfigError

    try:
        before = read_text(file)
        after = change(before)
        # A file that is included need not be a config by itself.
        if examine(before, os.environ, file).error() is None:
            fault = examine(after, os.environ, file).error()
            if fault is not None:
                say(f"{file} would not be valid with that change:")
                raise wrong(file, fault)
    except ConfigError as error:
        raise wrong(file, error) from None
    except CannotEdit as error:
        raise Failed(f"{file}: {error}") from None
    # `git apply` follows no links, and takes names relative to where it is.
    real = file.resolve()
    shown = (real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else file).as_posix().lstrip("/")
    with suppress(OSError), file.open("rb") as raw:
        if raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            before, after = f"\ufeff{before}", f"\ufeff{after}"
    # Only what ends a line for a diff: YAML knows more that do.
    old, new = (list(io.StringIO(text, newline="\n")) for text in (before, after))
    lines = difflib.unified_diff(old, new, f"a/{shown}", f"b/{shown}")
    for line in lines:
        click.echo(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n", nl=False)
