"""The commands as processes of their own: started on loopback, read line by line, ended with the test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

MARK = "TESTS_OF_FEDPROXY"
_PATIENCE = 60.0  # as several processes may have to start, on a machine that is busy


class Program:
    """`python -m fedproxy ...`; `lines` is what was read of its output and its errors so far."""

    def __init__(self, process: Process, mark: str) -> None:
        self.lines: list[str] = []
        self._process = process
        self._mark = mark

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def processes(self) -> list[int]:
        """All that were started by it and have not ended, itself too; they outlive it."""
        return marked(self._mark)

    def workers(self) -> list[int]:
        """The worker processes, those that drain too; the oldest first."""
        return self._named(b"fedproxy.serve.worker")

    def forkers(self) -> list[int]:
        """The process that workers are forked from, and for a moment what stands between it and one."""
        return self._named(b"fedproxy.serve.forker")

    def _named(self, name: bytes) -> list[int]:
        return sorted(pid for pid in self.processes() if name in _read(pid, "cmdline"))

    async def line(self, part: str) -> str:
        """Reads on until a line that contains `part`, and returns what follows `part` there."""
        async with asyncio.timeout(_PATIENCE):
            while await self._read():
                if part in self.lines[-1]:
                    return self.lines[-1].partition(part)[2]
        raise AssertionError(f"ended without {part!r}:\n{self.output}")

    async def address(self, part: str) -> tuple[str, int]:
        """The HOST:PORT that follows `part` in a line."""
        host, _, port = (await self.line(part)).rpartition(":")
        # In JSON the message ends the line, but for these.
        return host, int(port.rstrip('"}'))

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Reads to the end of the output: the exit status. It must come without a traceback."""
        async with asyncio.timeout(_PATIENCE):
            while await self._read():
                pass
            status = await self._process.wait()
        assert "Traceback" not in self.output, self.output
        return status

    async def _read(self) -> bool:
        if self._process.stdout is None:
            return False
        line = await self._process.stdout.readline()
        if line:
            self.lines.append(line.decode().rstrip("\n"))
        return bool(line)


def marked(mark: str) -> list[int]:
    """The processes in whose environment `MARK` is that, because they or who started them were given it."""
    line = f"{MARK}={mark}".encode()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if line in _read(pid, "environ").split(b"\0")]


def _read(pid: int, name: str) -> bytes:
    """Nothing if the process has ended, waited for or not, or is somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


@asynccontextmanager
async def fedproxy(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    before: Sequence[str] = ("-m", "fedproxy"),
    stdout: int = PIPE,
    stderr: int = STDOUT,
) -> AsyncIterator[Program]:
    """Runs a command until it ends, or until the block does, with all that it has started.

    `before` are Python's arguments before those of the command. Without a pipe as stdout it has no lines.
    """
    mark = uuid.uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDPROXY_")}
    # aiohttp reads the machine's authorities when it is imported, a tenth of what a process takes to start.
    inherited["SSL_CERT_FILE"] = os.devnull
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *before,
        *map(str, arguments),
        env={**inherited, **(env or {}), MARK: mark},
        pass_fds=pass_fds,
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    program = Program(process, mark)
    try:
        yield program
    finally:
        # Whoever could start another one goes first.
        if process.returncode is None:
            process.kill()
            await process.wait()
        while left := program.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        # The pipe is read to its end, or its transport outlives the test.
        rest, _ = await process.communicate()
        program.lines += (rest or b"").decode().splitlines()
