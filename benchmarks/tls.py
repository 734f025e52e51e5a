"""`python -m benchmarks.tls`: the cost of a TLS handshake in fedproxy and nginx, within the same minute.

Each visitor connects, requests 1 KiB and leaves, one after the other: over plain TCP, with a full handshake,
and with a resumed session. The processor time beyond plain TCP is the handshake's. Each proxy has its own
core; the members and the visitors share another. The key is ECDSA on P-256.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import trustme
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import MEMBERS, PEERS, SIZES, BenchmarkError, Process, members_command, require_free

KINDS = ("plain", "full", "resumed")
_REQUEST = b"GET /1k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True)
class Files:
    """A certificate and its key."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True)
class Running:
    """A peer that answers on both ports."""

    process: Process
    plain: int
    tls: int


@dataclass(frozen=True)
class Sample:
    """One run: how many connections, and the peer's processor time for them in microseconds."""

    peer: str
    kind: str
    connections: int
    cpu_us: float


# The peers, with a second listener


def _nginx(folder: Path, port: int, members: Sequence[int], files: Files) -> list[str]:
    command = PEERS["nginx"].command(folder, port, members)
    path = Path(command[-1])
    plain = f"listen 127.0.0.1:{port} backlog=4096;"
    config = path.read_text()
    if plain not in config:
        raise BenchmarkError(f"nginx's config has no {plain!r}")
    tls = f"""{plain}
        listen 127.0.0.1:{port + 2} ssl backlog=4096;
        ssl_certificate {files.certificate};
        ssl_certificate_key {files.private_key};
        ssl_protocols TLSv1.2 TLSv1.3;"""
    path.write_text(config.replace(plain, tls))
    return command


def _fedproxy(folder: Path, port: int, members: Sequence[int], files: Files) -> list[str]:
    command = PEERS["fedproxy"].command(folder, port, members)
    path = Path(command[-1])
    config = yaml.safe_load(path.read_text())
    tls = {"certificate": str(files.certificate), "private_key": str(files.private_key)}
    config["listen"].append({"address": f"127.0.0.1:{port + 2}", "tls": tls})
    path.write_text(yaml.safe_dump(config))
    return command


_COMMANDS: dict[str, Callable[[Path, int, Sequence[int], Files], list[str]]] = {
    "nginx": _nginx,
    "fedproxy": _fedproxy,
}


# The visitor


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    # Otherwise the request waits for the acknowledgement of what ended the handshake.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(sock: socket.socket) -> None:
    sock.sendall(_REQUEST)
    answer = bytearray()
    while data := sock.recv(65536):
        answer += data
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"x" * SIZES["1k"]):
        raise BenchmarkError(f"a peer answered {bytes(answer[:60])!r}")


class Visitor:
    """Connects again and again; `session` is the one it had before."""

    def __init__(self, running: Running, context: ssl.SSLContext) -> None:
        self._running = running
        self._context = context
        self._session = self._over_tls(None)

    def plain(self) -> None:
        """No TLS at all."""
        with _connect(self._running.plain) as sock:
            _ask(sock)

    def full(self) -> None:
        """As one who was never here."""
        self._over_tls(None)

    def resumed(self) -> None:
        """As one who was here before."""
        self._over_tls(self._session)

    def _over_tls(self, session: ssl.SSLSession | None) -> ssl.SSLSession:
        with (
            _connect(self._running.tls) as plain,
            self._context.wrap_socket(plain, server_hostname="localhost", session=session) as sock,
        ):
            if bool(sock.session_reused) != (session is not None):
                raise BenchmarkError(f"{self._running.process.name} did not resume as it was asked")
            _ask(sock)
            if sock.session is None:
                raise BenchmarkError(f"{self._running.process.name} gave no session")
            return sock.session


def _run(running: Running, visitor: Visitor, kind: str, seconds: float) -> Sample:
    visit: Callable[[], None] = getattr(visitor, kind)
    visit()
    before, connections, end = running.process.cpu(), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        visit()
        connections += 1
    used = running.process.cpu().since(before)
    return Sample(running.process.name, kind, connections, used.user + used.kernel)


# The whole


def _files(folder: Path, authority: trustme.CA) -> Files:
    issued = authority.issue_cert("localhost")
    files = Files(folder / "tls.crt", folder / "tls.key")
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    files.private_key.write_bytes(issued.private_key_pem.bytes())
    return files


def _trusting(authority: trustme.CA, version: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = _VERSIONS[version]
    authority.configure_trust(context)
    return context


def _measure(port: int, version: str, seconds: float, rounds: int) -> list[Sample]:
    for program in ("nginx", "taskset"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is not installed: the members or the load need it")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("two cores are needed: one for the proxy, one for its members and the visitors")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-tls-")))
        authority = trustme.CA()
        running = _start(stack, folder, _files(folder, authority), port, cores)
        os.sched_setaffinity(0, {cores[1]})
        stack.callback(os.sched_setaffinity, 0, set(cores))
        context = _trusting(authority, version)
        visitors = [(peer, Visitor(peer, context)) for peer in running]
        return [
            _run(peer, visitor, kind, seconds)
            for _ in range(rounds)
            for kind in KINDS
            for peer, visitor in visitors
        ]


def _start(stack: ExitStack, folder: Path, files: Files, port: int, cores: Sequence[int]) -> list[Running]:
    members = [port + at for at in range(len(MEMBERS))]
    first = {name: port + 10 * at for at, name in enumerate(_COMMANDS, start=1)}
    require_free(members + [at + offset for at in first.values() for offset in range(3)])
    process = Process("members", members_command(folder, members), core=cores[1], folder=folder)
    stack.callback(process.stop)
    for member in members:
        process.wait_ready(member, "/1k")
    running = []
    for name, command in _COMMANDS.items():
        at = first[name]
        process = Process(name, command(folder, at, members, files), core=cores[0], folder=folder)
        stack.callback(process.stop)
        process.wait_ready(at, "/1k")
        running.append(Running(process, at, at + 2))
    return running


def _show(samples: Sequence[Sample], version: str, console: Console) -> None:
    table = Table(
        title=f"TLS {version}: one connection with one request of 1 KiB, and its handshake alone",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("", "handshake"):
        table.add_column(name, no_wrap=True)
    for name in ("connections", "CPU µs\neach", "per CPU\nsecond", "handshake\nCPU µs", "per CPU\nsecond"):
        table.add_column(name, justify="right", no_wrap=True)
    for peer in _COMMANDS:
        plain = _each(samples, peer, "plain")
        for kind in KINDS:
            each = _each(samples, peer, kind)
            count = sum(sample.connections for sample in _of(samples, peer, kind))
            alone = each - plain
            handshake = ("", "") if kind == "plain" else (f"{alone:.0f}", f"{1e6 / alone:,.0f}")
            table.add_row(peer, kind, f"{count:,}", f"{each:.0f}", f"{1e6 / each:,.0f}", *handshake)
    console.print(table)


def _of(samples: Sequence[Sample], peer: str, kind: str) -> list[Sample]:
    return [sample for sample in samples if (sample.peer, sample.kind) == (peer, kind)]


def _each(samples: Sequence[Sample], peer: str, kind: str) -> float:
    """Processor time of a connection, in microseconds, over all rounds."""
    runs = _of(samples, peer, kind)
    return sum(sample.cpu_us for sample in runs) / sum(sample.connections for sample in runs)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that everything that was started is ended on the way out.
    raise SystemExit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tls", "version", type=click.Choice(list(_VERSIONS)), default="1.3", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=None, help="Length of one run.  [default: 1]")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Runs of each kind.  [default: 3]")
@click.option(
    "--port", type=click.IntRange(1024, 65000), default=18300, show_default=True, help="First port."
)
def main(version: str, seconds: float | None, rounds: int | None, port: int) -> None:
    """Measure the processor time of a handshake, full and resumed.

    QUICK=1 in the environment makes it one round of half a second: it checks that it runs, no more.
    """
    quick = os.environ.get("QUICK", "") not in ("", "0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        samples = _measure(port, version, seconds or (0.5 if quick else 1.0), rounds or (1 if quick else 3))
    except (BenchmarkError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _show(samples, version, Console())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.tls")
