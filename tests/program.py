"""The commands as processes of their own: started on loopback, read line by line, ended with the test."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.rig import guard


class Program:
    """`python -m fedproxy ...`; `lines` is what was read of its output and its errors so far."""

    def __init__(self, process: Process) -> None:
        self.lines: list[str] = []
        self._process = process

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def line(self, part: str) -> str:
        """Reads on until a line that contains `part`, and returns what follows `part` there."""
        async with guard():
            while await self._read():
                if part in self.lines[-1]:
                    return self.lines[-1].partition(part)[2]
        raise AssertionError(f"ended without {part!r}:\n{self.output}")

    async def address(self, part: str) -> tuple[str, int]:
        """The HOST:PORT that follows `part` in a line."""
        host, _, port = (await self.line(part)).rpartition(":")
        return host, int(port)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Reads to the end of the output: the exit status. It must come without a traceback."""
        async with guard():
            while await self._read():
                pass
            status = await self._process.wait()
        assert "Traceback" not in self.output, self.output
        return status

    async def _read(self) -> bool:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            self.lines.append(line.decode().rstrip("\n"))
        return bool(line)


@asynccontextmanager
async def fedproxy(*arguments: object) -> AsyncIterator[Program]:
    """Runs a command until it ends, or until the block does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fedproxy",
        *map(str, arguments),
        env={name: value for name, value in os.environ.items() if not name.startswith("FEDPROXY_")},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        # The pipe is read to its end, or its transport outlives the test.
        await process.communicate()
