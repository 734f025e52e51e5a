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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import uvloop

from fedproxy import __version__
from fedproxy.config import Address, convert, fault_lines, load, not_in_force
from fedproxy.config.load import read_text
from fedproxy.errors import ConfigError
from fedproxy.web.page import render_page

if TYPE_CHECKING:
    from fedproxy.config import Config
    from fedproxy.serve.service import Service

_FILE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The edge for a federation of BinderHubs."""


def _wrong(file: Path, error: ConfigError) -> SystemExit:
    for line in fault_lines(str(file), error):
        click.echo(line, err=True)
    return SystemExit(2)


def _load(file: Path) -> Config:
    try:
        return load(file, os.environ)
    except ConfigError as error:
        raise _wrong(file, error) from None


@main.command()
@click.option("--config", "file", required=True, type=_FILE, help="The config, YAML or JSON.")
@click.option(
    "--workers", type=click.IntRange(1), help="How many processes serve; over what the config says."
)
def serve(file: Path, workers: int | None) -> None:
    """Run the edge until SIGTERM or SIGINT."""
    config = _load(file)
    if workers is not None:
        config = config.model_copy(update={"workers": workers})
    _say(f"fedproxy {__version__}: {_members(config)} from {file}")
    for key in not_in_force(config):
        _say(f"{file}: {key}: accepted, not in force yet")
    try:
        uvloop.run(_serve(file, config))
    except ConfigError as error:
        raise _wrong(file, error) from None
    except OSError as error:
        raise SystemExit(f"fedproxy: {error.strerror or error}") from None


async def _serve(file: Path, config: Config) -> None:
    from fedproxy.serve.service import Service

    def reread() -> Config:
        return load(file, os.environ).model_copy(update={"workers": config.workers})

    async def reload() -> None:
        faults = await service.reload()
        for line in fault_lines(str(file), ConfigError(faults)):
            _say(line)
        _say("the config in force is kept" if faults else f"reloaded {file}")

    service = Service(config, reread=reread)
    stop = _until_told_to_stop()
    await service.start()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    # What was made until now stays; what requests make is freed by its reference count.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    for line in _listening(config, service):
        _say(line)
    try:
        await stop.wait()
        stop.clear()
        _say(f"draining for at most {config.timeouts.drain:g} s; a second signal ends it at once")
        draining = asyncio.ensure_future(service.stop(config.timeouts.drain))
        again = asyncio.ensure_future(stop.wait())
        await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not draining.done():
            draining.cancel()
        await asyncio.gather(draining, again, return_exceptions=True)
    finally:
        await service.stop()


def _listening(config: Config, service: Service) -> list[str]:
    """Where it listens, with the ports that were found for 0; in the order of the config."""
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
    help="The edge's; the admin listener takes the next one. 0: any two that are free.",
    type=click.IntRange(0, 65534),
)
@click.option("--members", default=3, show_default=True, help="How many toys.", type=click.IntRange(1, 12))
def demo(port: int, members: int) -> None:
    """Run toy BinderHubs on loopback and the edge in front of them."""
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
def check(file: Path) -> None:
    """Validate a config: exit 0, or 2 with every fault."""
    config = _load(file)
    for key in not_in_force(config):
        click.echo(f"{file}: {key}: accepted, not in force yet")
    click.echo(f"{file}: valid, {_members(config)}")


@main.command("import")
@click.argument("file", type=_FILE)
def import_(file: Path) -> None:
    """Print a federation-redirect config.json as a fedproxy config."""
    try:
        click.echo(convert(read_text(file)), nl=False)
    except ConfigError as error:
        raise _wrong(file, error) from None


@main.command()
@click.option("--config", "file", required=True, type=_FILE, help="The config, YAML or JSON.")
@click.option("--format", "form", type=click.Choice(["html", "markdown"]), default="html", show_default=True)
def page(file: Path, form: str) -> None:
    """Print the federation's member page."""
    click.echo(render_page(_load(file), form), nl=False)


_ADMIN = click.option(
    "--admin",
    envvar="FEDPROXY_ADMIN",
    default="http://127.0.0.1:8081",
    show_default=True,
    help="The admin listener's URL (FEDPROXY_ADMIN).",
)


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _not_a_url(admin: str) -> SystemExit:
    return SystemExit(f"--admin is {admin!r}, expected an http:// or https:// URL")


def _ask(admin: str, path: str, change: dict[str, Any] | None = None) -> Any:
    """Asks the admin API; ends the program with a message that says what to do if that fails."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("FEDPROXY_ADMIN_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    body = None if change is None else json.dumps(change).encode()
    if not _is_url(admin):
        raise _not_a_url(admin)
    request = urllib.request.Request(  # noqa: S310 -- the scheme is checked above
        admin.rstrip("/") + path, data=body, headers=headers, method="GET" if change is None else "PATCH"
    )
    try:
        # The admin listener is this machine's or this cluster's own: no proxy of the environment is asked.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        try:
            detail = json.load(error).get("detail", "")
        except (ValueError, AttributeError):
            detail = ""
        hint = ""
        if error.code == 401:
            hint = f" FEDPROXY_ADMIN_TOKEN is {'another' if token else 'not set'}."
        raise SystemExit(f"{admin}: {error.code}: {detail or error.reason}{hint}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SystemExit(
            f"{admin}: {getattr(reason, 'strerror', None) or reason}; is the edge running there?"
        ) from None
    except http.client.InvalidURL:
        raise _not_a_url(admin) from None
    except (ValueError, http.client.HTTPException):
        raise SystemExit(f"{admin}: what answers there is not the edge's admin listener") from None


@main.command()
@_ADMIN
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def members(admin: str, as_json: bool) -> None:
    """Show the members."""
    found = _ask(admin, "/members")
    rows = found["members"] if isinstance(found, dict) else found
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    # Without lines it fits 80 columns, and every column can be read and cut by a script.
    words = ("name", "state", "health", "breaker", "weight", "share", "in flight", "launches")
    table = Table(*(Column(word, no_wrap=word != "health") for word in words), box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["name"] + (" (prime)" if row["prime"] else ""),
            row["state"],
            "well" if row["healthy"] else ", ".join(row["reasons"]) or "ill",
            row["breaker"],
            _number(row["weight"]),
            f"{row.get('share', 0):.0%}",
            str(row["in_flight"]),
            str(row["launches"]),
        )
    Console().print(table)


def _changes(state: str, words: str) -> None:
    @main.command(state, help=words)
    @_ADMIN
    @click.argument("name")
    def command(name: str, admin: str) -> None:
        _ask(admin, _path(name), {"state": state})
        click.echo(f"{name}: {state}")


_changes("ready", "Send a member visitors again.")
_changes("drain", "Send a member no new visitors; those it has stay.")
_changes("maint", "Send a member nobody.")


@main.command()
@_ADMIN
@click.argument("name")
@click.argument("number", type=click.FloatRange(min=0))
def weight(name: str, number: float, admin: str) -> None:
    """Set a member's weight."""
    _ask(admin, _path(name), {"weight": number})
    click.echo(f"{name}: weight {_number(number)}")


def _path(name: str) -> str:
    return f"/members/{urllib.parse.quote(name, safe='')}"


def _members(config: Config) -> str:
    count = len(config.members)
    return "1 member" if count == 1 else f"{count} members"


def _number(value: float) -> str:
    return f"{value:.12g}"


def _say(text: str) -> None:
    click.echo(text, file=sys.stderr)
