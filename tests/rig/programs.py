"""Other people's programs: started on loopback, ended with all that they started."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

# Debian's nginx is where only an administrator's shell looks.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))

_CHANCE = random.SystemRandom()


def found(program: str) -> str:
    """Its path, or its bare name where it is not installed."""
    return shutil.which(program, path=_PATH) or program


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skips where a program is missing, and says which Debian package brings it."""
    missing = shutil.which(program, path=_PATH) is None
    return pytest.mark.skipif(missing, reason=f"{program} is not installed: apt-get install {package}")


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago.

    It is none of those that the kernel gives to connections, so it is not taken by the next one of these.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        # Not by the seed of somebody's test, or two processes would choose the same.
        port = _CHANCE.randrange(10_000, end)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    port: int,
    ready: str,
    status: int = 200,
    env: Mapping[str, str] | None = None,
    within: float = 30.0,
) -> Iterator[int]:
    """Runs a program in `folder` until the block ends; `ready` is a path that answers `status` when it is up.

    Yields its process number. `within`, in seconds, bounds the start and the end alike.
    """
    log = folder / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, port, ready, status, log, within)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


@contextlib.asynccontextmanager
async def started(
    name: str, *arguments: str, stdin: int = DEVNULL, stderr: int = PIPE, within: float = 30.0
) -> AsyncIterator[Process]:
    """A program at work, which is ended with the block; that may take so many seconds."""
    process = await asyncio.create_subprocess_exec(
        found(name), *arguments, stdin=stdin, stdout=PIPE, stderr=stderr
    )
    try:
        async with asyncio.timeout(within):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _wait_ready(
    process: subprocess.Popen[bytes], port: int, ready: str, status: int, log: Path, within: float
) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and process.poll() is None:
        if _status(port, ready) == status:
            return
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} is not up: {log.read_text(errors='replace')[-2000:]}")


def _status(port: int, path: str) -> int | None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
