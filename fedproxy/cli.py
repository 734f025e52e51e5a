"""The `fedproxy` command."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import logging
import os
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop
from click.shell_completion import CompletionItem

from fedproxy import __version__, is_compiled
from fedproxy.config.address import BASE_PATH, LINK, LOCATION, ORIGIN, Address
from fedproxy.config.report import fault_lines
from fedproxy.config.units import AMOUNT, FILE, Kind
from fedproxy.errors import ConfigError
from fedproxy.tasks import Tasks

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.control.candidate import Check
    from fedproxy.observe.events import Events
    from fedproxy.serve.service import Service
    from fedproxy.serve.verify import CheckedFile, Reader

# A command imports by itself what only it needs: those that ask a running edge, and the completion of their
# arguments, would else wait for aiohttp, pydantic and the templates, most of what a start takes.

_FILE = click.Path(path_type=Path)
# Where packages and images put it; the other is that of an image of federation-redirect, which this replaces.
_USUAL = (Path("/etc/fedproxy/config.yaml"), Path("/etc/federation-redirect/config.json"))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LONG_WORD = 30  # characters; a longer one may be folded within
_UNFOLDED = 10_000  # columns


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(f"{__version__} ({'compiled' if is_compiled() else 'not compiled'})")
def main() -> None:
    """The edge for a federation of BinderHubs."""


def _wrong(file: Path, error: ConfigError) -> SystemExit:
    for line in fault_lines(str(file), error.faults):
        _say(line)
    return SystemExit(2)


def _load(file: Path) -> Config:
    from fedproxy.config.load import load

    try:
        return load(file, os.environ)
    except ConfigError as error:
        raise _wrong(file, error) from None


@main.command()
@click.option(
    "--config",
    "file",
    type=_FILE,
    help=f"The config, YAML or JSON. Default: {' or '.join(map(str, _USUAL))}.",
)
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes; overrides the config.")
def serve(file: Path | None, workers: int | None) -> None:
    """Run the edge until SIGTERM or SIGINT."""
    file = file or next((usual for usual in _USUAL if usual.exists()), None)
    if file is None:
        raise click.UsageError(f"No --config was given, and neither {' nor '.join(map(str, _USUAL))} exists.")
    from fedproxy.observe.events import take_over

    # The form is known once the config is read.
    events = take_over()
    # A terminal may stop a background process that writes to it (stty tostop).
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        # Ignored until there are handlers, here and in the workers: a process that is just starting reads the
        # config and opens the log anyway.
        signal.signal(number, signal.SIG_IGN)
    if os.getpid() == 1:
        # PID 1 is not terminated by a signal that it does not handle.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    from fedproxy.event import Event, EventName
    from fedproxy.serve.verify import Reader

    reader = Reader(file, os.environ, lambda config: _with_workers(config, workers))
    try:
        config = reader.read()
        events.form = config.log
        uvloop.run(_serve(file, config, reader, events))
    except ConfigError as error:
        for line in fault_lines(str(file), error.faults):
            events.emit(Event(EventName.CONFIG_REFUSED, line))
        raise SystemExit(2) from None
    except OSError as error:
        events.emit(Event(EventName.EDGE_FAILED, error.strerror or str(error)))
        raise SystemExit(1) from None


def _with_workers(config: Config, workers: int | None) -> Config:
    return config if workers is None else config.model_copy(update={"workers": workers})


async def _serve(file: Path, config: Config, reader: Reader, events: Events) -> None:
    gc.disable()  # as a worker does, until `freeze`
    from fedproxy.event import EventName
    from fedproxy.serve import descriptors, systemd
    from fedproxy.serve.service import Service
    from fedproxy.serve.starting import StartError
    from fedproxy.serve.tls import ignore_unreadable_names
    from fedproxy.serve.worker import freeze

    ignore_unreadable_names()
    descriptors.raise_limit()
    service = Service(
        config,
        reread=reader.read,
        warnings=reader.warnings,
        file=file,
        events=events,
        inherited=systemd.inherited(os.environ),
        notifier=systemd.Notifier(os.environ),
    )
    service.note(EventName.EDGE_START, f"fedproxy {__version__}: {_members(config)} from {file}")
    stop = _until_told_to_stop()
    _reload_when_told(service)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, service.reopen_log)
    try:
        await service.start()
    except StartError as error:
        service.note(EventName.EDGE_FAILED, str(error))
        raise SystemExit(1) from None
    freeze()
    for line in _listening(service):
        service.note(EventName.EDGE_LISTENING, line)
    shortage = descriptors.shortage(config.limits.connections)
    if shortage is not None:
        service.note(EventName.EDGE_LIMITED, shortage)
    try:
        await stop.wait()
        stop.clear()
        drain = service.config.timeouts.drain
        text = f"draining for at most {drain:g} s; a second signal ends it at once"
        service.note(EventName.EDGE_DRAIN, text, who="signal")
        draining = asyncio.ensure_future(service.stop(drain))
        again = asyncio.ensure_future(stop.wait())
        await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not draining.done():
            draining.cancel()
        await asyncio.gather(draining, again, return_exceptions=True)
    finally:
        await service.stop()


def _reload_when_told(service: Service) -> None:
    reloads = Tasks()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: reloads.start(service.reload()))


def _listening(service: Service) -> list[str]:
    """The addresses in the order of the config; port 0 is replaced by the port that was assigned."""
    config = service.config
    bound = iter(service.addresses)
    public = [listener.address for listener in config.listen]
    lines = [f"listening on {address if address.path else Address(*next(bound))}" for address in public]
    admin = config.admin.address
    return [*lines, f"admin on {admin if admin.path else Address(*service.admin_address)}"]


def _until_told_to_stop() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@main.command()
@click.option(
    "--port",
    default=8000,
    show_default=True,
    help="The edge's port; the admin listener takes the next one. 0: any two free ports.",
    type=click.IntRange(0, 65534),
)
@click.option(
    "--members", default=3, show_default=True, help="Number of toy members.", type=click.IntRange(1, 12)
)
def demo(port: int, members: int) -> None:
    """Run toy BinderHubs on loopback, with the edge in front of them."""
    from fedproxy.demo.run import run

    logging.basicConfig(level=logging.WARNING)
    try:
        uvloop.run(run(port, members))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        raise SystemExit(f"fedproxy demo: {error.strerror or error}; another port: --port N") from None


@main.command()
@click.argument("file", type=_FILE)
@_JSON
@click.option(
    "--live",
    is_flag=True,
    help="Also try the addresses to listen on, look up names, and ask the members how they are.",
)
def check(file: Path, as_json: bool, live: bool) -> None:
    """Validate a config: exit 0 if `serve` would take it, else 2 after listing every fault.

    Warnings are about what is valid but unwise; `silence: [NAME]` in the config ends one.
    """
    from fedproxy.serve.verify import verify

    checked = verify(file, os.environ)
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
        _say(line)
        shown = places.shown(fault.place) if places is not None and fault.place is not None else None
        if shown is not None:
            _say(f"    {shown.text}\n    {' ' * cell_len(shown.before)}^")
    if not checked.faults:
        click.echo(f"{file}: valid, {_members(checked.config)}")


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        # There is none, or it is closed.
        return False


@main.command()
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    from fedproxy.config.schema import render

    click.echo(render(), nl=False)


@main.command("import")
@click.argument("file", type=_FILE)
def import_(file: Path) -> None:
    """Print a federation-redirect config.json as a fedproxy config."""
    from fedproxy.config.load import convert, read_text

    try:
        click.echo(convert(read_text(file)), nl=False)
    except ConfigError as error:
        raise _wrong(file, error) from None


@main.command()
@click.option("--config", "file", required=True, type=_FILE, help="The config, YAML or JSON.")
@click.option("--format", "form", type=click.Choice(["html", "markdown"]), default="html", show_default=True)
def page(file: Path, form: str) -> None:
    """Print the federation's member page."""
    from fedproxy.web.page import render_page

    click.echo(render_page(_load(file), form), nl=False)


class _Kind(click.ParamType[Any]):
    """A command-line parameter with the syntax of a config kind."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind.name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parsed = self._kind.parse(value)
        if parsed is None:
            self.fail(f"{value!r} is not {self._kind.expected}.", param, ctx)
        return parsed


_ADMIN = click.option(
    "--admin",
    envvar="FEDPROXY_ADMIN",
    default="http://127.0.0.1:8081",
    show_default=True,
    type=_Kind(LINK),
    help="The admin listener's URL (FEDPROXY_ADMIN).",
)


class _Failed(click.ClickException):
    """Ends the command with a line on stderr and exit 1."""

    def show(self, file: Any = None) -> None:
        _say(self.message)


class _Refused(_Failed):
    """The edge refused this one change; others may still succeed."""


def _ask(admin: str, path: str, change: dict[str, Any] | None = None, timeout: float = 10.0) -> Any:
    """Asks the admin API. Raises `_Failed` with a message that says what to do."""
    token = os.environ.get("FEDPROXY_ADMIN_TOKEN")
    # Reading may need it, too.
    body, headers = None, {"Authorization": f"Bearer {token}"} if token else {}
    if change is not None:
        body = json.dumps(change).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(  # noqa: S310 -- it is an http URL: `LINK`
        admin.rstrip("/") + path, data=body, headers=headers, method="GET" if change is None else "PATCH"
    )
    try:
        # The admin listener is on this machine or in this cluster: bypass proxies set in the environment.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(admin, error, token) from None
    except (OSError, http.client.RemoteDisconnected) as error:
        reason = getattr(error, "reason", error)
        raise _Failed(
            f"{admin}: {getattr(reason, 'strerror', None) or reason}; is the edge running there?"
        ) from None
    except (ValueError, RecursionError, http.client.HTTPException):
        raise _not_an_edge(admin) from None


def _refusal(admin: str, error: urllib.error.HTTPError, token: str | None) -> _Failed:
    try:
        detail = json.load(error).get("detail", "")
    except (ValueError, RecursionError, AttributeError, OSError, http.client.HTTPException):
        detail = ""
    hint = ""
    if error.code == 401:
        hint = f" FEDPROXY_ADMIN_TOKEN is {'a different one' if token else 'not set'}."
    kind = _Refused if error.code in (404, 422) else _Failed
    return kind(f"{admin}: {error.code}: {detail or error.reason}{hint}")


def _not_an_edge(admin: str) -> _Failed:
    return _Failed(f"{admin}: what answers there is not the edge's admin listener")


_SHOWN = {"name", "prime", "state", "healthy", "reasons", "breaker", "weight", "in_flight", "launches"}


def _ask_members(admin: str, timeout: float = 10.0) -> list[dict[str, Any]]:
    found = _ask(admin, "/members", timeout=timeout)
    rows = found.get("members") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _SHOWN for row in rows):
        raise _not_an_edge(admin)
    return rows


def _complete(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """The members' names, if the edge answers quickly."""
    admin = context.params.get("admin") or os.environ.get("FEDPROXY_ADMIN") or "http://127.0.0.1:8081"
    given = context.params.get(str(parameter.name)) or ()
    try:
        rows = _ask_members(admin, timeout=1.0) if LINK.parse(admin) else []
    except _Failed:
        return []
    names = [str(row["name"]) for row in rows]
    return [CompletionItem(name) for name in names if name.startswith(start) and name not in given]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *wrapped: str) -> None:
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
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # Whatever reads it has no width, and wants a line for each row.
        console.width = _UNFOLDED
    console.print(table)


@main.command()
@_ADMIN
@_JSON
def members(admin: str, as_json: bool) -> None:
    """Show the members."""
    rows = _ask_members(admin)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = (
        (
            f"{row['name']} (prime)" if row["prime"] else row["name"],
            row.get("status", row["state"]),
            "healthy" if row["healthy"] else ", ".join(row["reasons"]) or "unhealthy",
            row["breaker"],
            _number(row["weight"]),
            f"{row.get('share', 0):.0%}",
            str(row["in_flight"]),
            str(row["launches"]),
        )
        for row in rows
    )
    headings = ("name", "state", "health", "breaker", "weight", "share", "in flight", "launches")
    _table(headings, cells, "name", "health")


def _changes(state: str, text: str) -> None:
    @main.command(state, help=text)
    @_ADMIN
    @click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=_complete)
    def command(names: tuple[str, ...], admin: str) -> None:
        refused = False
        for name in dict.fromkeys(names):
            try:
                _ask(admin, _path(name), {"state": state})
            except _Refused as error:
                _say(f"{name}: {error.message}" if len(names) > 1 else error.message)
                refused = True
            else:
                click.echo(f"{name}: {state}")
        if refused:
            raise SystemExit(1)


_changes("ready", "Send visitors to members again.")
_changes("drain", "Send no new visitors to members; current ones stay.")
_changes("maint", "Put members in maintenance: send nobody to them.")


@main.command()
@_ADMIN
@click.argument("name", shell_complete=_complete)
@click.argument("number", type=_Kind(AMOUNT))
def weight(name: str, number: float, admin: str) -> None:
    """Set a member's weight."""
    _ask(admin, _path(name), {"weight": number})
    click.echo(f"{name}: weight {_number(number)}")


_LAUNCH = Kind(
    "PROVIDER/SPEC",
    "what follows /build/ in a launch, such as gh/binder-examples/requirements/HEAD",
    lambda value: value if LOCATION.parse(f"/{value}") and "/" in str(value)[1:-1] else None,
)


@main.command()
@click.argument("url", type=_Kind(ORIGIN))
@_JSON
@click.option(
    "--timeout",
    type=click.FloatRange(0, 600, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds per check; a launch may take six times that.",
)
@click.option(
    "--repository",
    type=_Kind(_LAUNCH),
    default="gh/binder-examples/requirements/HEAD",
    show_default=True,
    help="The repository to launch; the launch is abandoned once its stream delivers events.",
)
@click.option(
    "--reference",
    type=_Kind(ORIGIN),
    help="The prime member's URL; the versions must match, and its build tokens be accepted.",
)
@click.option(
    "--origin",
    type=_Kind(ORIGIN),
    default="https://mybinder.org",
    show_default=True,
    help="The federation's public URL.",
)
@click.option(
    "--base-path",
    type=_Kind(BASE_PATH),
    default="/",
    show_default=True,
    help="Where URL and the reference have their BinderHub, such as /services/binder/.",
)
@click.option("--ca", type=_Kind(FILE), help="PEM file of trusted CAs, instead of the system's.")
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
        _table(headings, ((check.name, check.outcome, check.seen) for check in report.checks), "seen")
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


def _path(name: str) -> str:
    return f"/members/{urllib.parse.quote(name, safe='')}"


def _members(config: Config) -> str:
    count = len(config.active_members)
    return "1 member" if count == 1 else f"{count} members"


def _number(value: float) -> str:
    return f"{value:.12g}"


def _say(text: str) -> None:
    """Writes to the terminal. If that fails, the command still ends as it would have."""
    try:
        click.echo(text, file=sys.stderr)
    except OSError:
        # The buffered text would fail again at exit, and Python would change the exit status.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
