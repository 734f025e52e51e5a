"""The commands that run an edge."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from fedproxy import __version__
from fedproxy.cli.base import FILE_ARGUMENT, count_members, main
from fedproxy.config.address import Address
from fedproxy.config.report import fault_lines
from fedproxy.errors import ConfigError
from fedproxy.tasks import Tasks

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.observe.events import Events
    from fedproxy.serve.service import Service
    from fedproxy.serve.verify import Reader

# Where packages and images put it; the other is that of an image of federation-redirect, which this replaces.
_USUAL = (Path("/etc/fedproxy/config.yaml"), Path("/etc/federation-redirect/config.json"))


@main.command()
@click.option(
    "--config",
    "file",
    type=FILE_ARGUMENT,
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
        files=reader.files,
        warnings=reader.warnings,
        file=file,
        events=events,
        inherited=systemd.inherited(os.environ),
        notifier=systemd.Notifier(os.environ),
    )
    service.note(EventName.EDGE_START, f"fedproxy {__version__}: {count_members(config)} from {file}")
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
        raise SystemExit(
            f"fedproxy demo: {error.strerror or error}; choose another port with --port N"
        ) from None
