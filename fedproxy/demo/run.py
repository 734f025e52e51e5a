"""`fedproxy demo`: toy BinderHubs and the real edge in front, in one process, on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import click
import yaml

from fedproxy.config.load import parse
from fedproxy.demo.federation import BREAKER_FAILURES, DemoFederation
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
        edge = "http://{}:{}".format(*service.addresses[0])
        admin = "http://{}:{}".format(*service.admin_address)
        federation.link(edge, admin)
        try:
            _tell(federation, edge, admin)
            await stop.wait()
            click.echo("\nStopping.")
        finally:
            await service.stop()


def _tell(federation: DemoFederation, edge: str, admin: str) -> None:
    launch = "gh/binder-examples/requirements/HEAD"
    toy = f"{federation.control_url}/{federation.hubs[0].name}"
    fedproxy, candidate = _command(), federation.candidate
    click.echo("A federation of toy BinderHubs, with the edge in front:\n")
    for label, url in (
        ("the edge", f"{edge}/"),
        ("a launch", f"{edge}/v2/{launch}"),
        ("who serves me?", f"{edge}/federation"),
        ("the federation", f"{edge}/active_hosts"),
        ("for operators", f"{admin}/"),
        ("for Prometheus", f"{admin}/metrics"),
        *((hub.name, f"{hub.url}/") for hub in federation.hubs),
        ("a candidate", f"{federation.candidate.url}/"),
        ("to break them", f"{federation.control_url}/"),
    ):
        click.echo(f"  {label:<14} {url}")
    click.echo(f"""
Break a member, reload the edge, look at the operators' page, and fix it:

  curl -X POST {toy}/failing
  curl -X POST {toy}/healthy

  failing, flapping  503: ejected after {BREAKER_FAILURES} failures, for 2 s, 4 s, 8 s ...
  kill, resetting    another member serves; ejected, then unhealthy
  hanging            another member serves after 5 s; then unhealthy: timeout
  sick, full         unhealthy (JupyterHub API) or full (quota) in 2 to 4 s
  slow               3 s late, but healthy: fedproxy_time_to_first_byte_seconds

A launch as a program sees it, and what an operator can change:

  curl -N -H 'Accept: text/event-stream' \\
    {edge}/build/{launch}
  export FEDPROXY_ADMIN={admin} FEDPROXY_ADMIN_TOKEN={_TOKEN}
  {fedproxy} drain {federation.hubs[0].name}
  {fedproxy} members
  {fedproxy} ready {federation.hubs[0].name}
  {fedproxy} join {candidate.name} {candidate.url} --share 20% --over 1m
  {fedproxy} leave {candidate.name}

Ctrl-C stops everything.""")


def _command() -> str:
    """What to type to run this program again."""
    program = sys.argv[0]
    # `python -m` leaves the path of a file that is no command.
    if program.endswith("__main__.py"):
        return f"{sys.executable} -m fedproxy"
    found = shutil.which("fedproxy")
    same = found is not None and Path(found).resolve() == Path(program).resolve()
    return "fedproxy" if same else program
