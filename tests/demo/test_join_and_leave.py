"""docs/join-and-leave.md: its commands run one after the other, and say what it shows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path

from tests.demo.test_tutorial import STREAM
from tests.rig.command import fedproxy

PAGE = (Path(__file__).parents[2] / "docs" / "join-and-leave.md").read_text()
_PAUSE = 0.25  # seconds until a command is tried again whose output is to come yet


def steps() -> Iterator[tuple[str, str]]:
    """Each command, and the pattern of its output: `...` stands for anything."""
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = each.partition("\n")
            yield command, "".join(map(_pattern, output.splitlines()))


def _pattern(line: str) -> str:
    """Of one line of output; columns may be wider."""
    if line == "...":
        return r"(?:.*\n)*"
    return re.sub(r"(\\ )+", r"\\s+", re.escape(line)).replace(r"\.\.\.", ".*") + r"\s*\n"


async def test_page_shows_what_happens(tmp_path: Path) -> None:
    async with fedproxy("demo", "--port", 0) as demo, asyncio.timeout(110):
        await demo.line("Ctrl-C stops everything.")
        ports = {
            "8000": r"the edge +http://127.0.0.1:(\d+)/",
            "8001": r"for operators +http://127.0.0.1:(\d+)/",
            "46519": r"a candidate +http://127.0.0.1:(\d+)/",
            "33459": r"to break them +http://127.0.0.1:(\d+)/",
        }
        found = {port: re.findall(pattern, demo.output)[0] for port, pattern in ports.items()}

        def here(text: str) -> str:
            return re.sub(r"\b(127(?:\\?\.)0(?:\\?\.)0(?:\\?\.)1:)(\d+)", lambda m: m[1] + found[m[2]], text)

        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FEDPROXY_ADMIN": f"http://127.0.0.1:{found['8001']}",
            "FEDPROXY_ADMIN_TOKEN": "demo",
        }

        async def run(command: str) -> str:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-uc", STREAM + command),
                cwd=tmp_path,
                env=environment,
                stdout=PIPE,
                stderr=STDOUT,
            )
            said, _ = await process.communicate()
            return said.decode()

        for command, pattern in steps():
            if command.startswith((". ", "export ")):
                continue
            command = here(command).replace("curl --no-buffer --max-time 15", "stream")
            said = await run(command)
            while "fedproxy log" in command and re.fullmatch(here(pattern), said) is None:
                await asyncio.sleep(_PAUSE)
                said = await run(command)
            assert re.fullmatch(here(pattern), said), (command, said, here(pattern))
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0
