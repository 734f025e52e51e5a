"""`fedproxy demo`: toy BinderHubs and the real edge in front, in one process, on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import yaml

from fedproxy.config import parse
from fedproxy.demo.federation import DemoFederation
from fedproxy.serve.service import Service

_TOKEN = "demo"  # noqa: S105 -- the demo listens on loopback alone


async def run(port: int, members: int) -> None:
    """Runs until SIGINT or SIGTERM. Raises OSError if a port is taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with DemoFederation(members) as federation:
        wanted = federation.config_dict(port, port + 1 if port else 0, token=_TOKEN)
        service = Service(parse(yaml.safe_dump(wanted), os.environ), log=lambda line: None)
        await service.start()
        try:
            _tell(federation, service)
            await stop.wait()
            click.echo("\nStopping.")
        finally:
            await service.stop()


def _tell(federation: DemoFederation, service: Service) -> None:
    edge = "http://{}:{}".format(*service.addresses[0])
    admin = "http://{}:{}".format(*service.admin_address)
    name = federation.hubs[0].name
    program = sys.argv[0]
    # `python -m` leaves the path of a file that is no command.
    command = f"{sys.executable} -m fedproxy" if program.endswith("__main__.py") else program
    click.echo("A federation of toy BinderHubs, with the edge in front:\n")
    for label, url in (
        ("the edge", f"{edge}/"),
        ("a launch to watch", f"{edge}/v2/gh/binder-examples/requirements/HEAD"),
        ("who serves me?", f"{edge}/federation"),
        ("the federation", f"{edge}/active_hosts"),
        ("for operators", f"{admin}/"),
        ("for Prometheus", f"{admin}/metrics"),
    ):
        click.echo(f"  {label:<18} {url}")
    click.echo("\nThe members themselves:\n")
    for hub in federation.hubs:
        click.echo(f"  {hub.name:<18} {hub.url}/")
    click.echo(
        "\nThe same launch as a program sees it:\n\n"
        f"  curl -N -H 'Accept: text/event-stream' {edge}/build/gh/binder-examples/requirements/HEAD\n"
        "\nBreak a member, and look at the page for operators:\n\n"
        f"  curl -X POST {federation.control_url}/{name}/failing\n"
        "  (or slow, sick, resetting, hanging, full, flapping, kill)\n"
        f"  curl -X POST {federation.control_url}/{name}/well\n"
        "\nTake a member out of rotation, and back:\n\n"
        f"  export FEDPROXY_ADMIN={admin} FEDPROXY_ADMIN_TOKEN={_TOKEN}\n"
        f"  {command} drain {name}; {command} members; {command} ready {name}\n"
        "\nCtrl-C ends all of it."
    )
