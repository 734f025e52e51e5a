"""The access log in a file: moved away under load, opened anew, and kept when it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedproxy.config.load import parse
from fedproxy.errors import ConfigError
from fedproxy.serve.log import Log
from tests.rig.command import fedproxy
from tests.rig.running import Running, running, until

HUP, TERM, USR1 = signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1


def entries(folder: Path) -> list[dict[str, Any]]:
    """Of all logs together; a torn line is no JSON."""
    return [json.loads(line) for path in folder.glob("access.log*") for line in path.read_text().splitlines()]


def request(name: str) -> bytes:
    return b"GET /%b HTTP/1.1\r\nHost: h\r\nX-Request-ID: %b\r\n\r\n" % (b"x" * 300, name.encode())


async def visit(edge: Running, who: int, stop: asyncio.Event) -> list[str]:
    """Asks on one connection until told to stop: the ids of what was answered."""
    client = await edge.client()
    asked: list[str] = []
    while not stop.is_set():
        asked.append(f"{who}.{len(asked)}")
        assert (await client.ask(request(asked[-1]))).body == b"ok"
    return asked


async def rotated(edge: Running, folder: Path, number: int) -> None:
    """As logrotate does it; returns when another file is written to."""
    log = folder / "access.log"
    log.rename(folder / f"access.log.{number}")
    edge.program.signal(USR1)
    await until(lambda: log.exists() and log.stat().st_size, "another file is written to")


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_line_is_lost_or_torn_as_the_file_is_moved_away_under_load(
    tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "access.log"
    async with running(tmp_path, workers=workers, access_log="json", access_log_file=str(log)) as edge:
        stop = asyncio.Event()
        visitors = [asyncio.ensure_future(visit(edge, who, stop)) for who in range(8)]
        await until(lambda: log.stat().st_size, "it is written to")
        for number in range(4):
            await rotated(edge, tmp_path, number)
        stop.set()
        asked = [name for names in await asyncio.gather(*visitors) for name in names]
        await until(lambda: len(entries(tmp_path)) >= len(asked), "all lines are there")
        assert sorted(entry["request_id"] for entry in entries(tmp_path)) == sorted(asked)
        # Nobody writes to those that were moved away.
        held = [path.name for path in tmp_path.glob("access.log.*") if is_open(edge, path)]
        assert held == []


def is_open(edge: Running, path: Path) -> bool:
    found = [link for pid in edge.program.processes() for link in Path(f"/proc/{pid}/fd").iterdir()]
    return any(os.path.realpath(link) == str(path) for link in found)


@pytest.mark.parametrize("workers", [1, 2])
async def test_file_that_cannot_be_opened_anew_is_said_once_and_the_old_one_goes_on(
    tmp_path: Path, workers: int
) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    log = folder / "access.log"
    async with running(tmp_path, workers=workers, access_log="json", access_log_file=str(log)) as edge:
        folder.rename(moved)
        edge.program.signal(USR1)
        said = await edge.program.line("access_log_file: ")
        assert said == (
            f"{log} cannot be opened: No such file or directory, "
            "expected a file that can be written, or stdout; the one in use is kept"
        )
        await edge.ask(request("first"))
        await until(lambda: len(entries(moved)) == 1, "the old one has the line")
        folder.mkdir()
        edge.program.signal(USR1)
        await until(log.exists, "the new one is there")
        await edge.ask(request("second"))
        await until(lambda: len(entries(folder)) == 1, "the new one has the line")
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        assert edge.program.output.count("cannot be opened") == 1


async def test_signal_with_standard_output_changes_nothing_for_whomever_it_is_sent_to(tmp_path: Path) -> None:
    async with running(tmp_path, access_log="json") as edge:
        workers = edge.program.workers()
        edge.program.signal(USR1)
        for worker in workers:
            os.kill(worker, USR1)
        for _ in range(4):
            await edge.ask()
            await edge.program.line('"status":200')
        assert edge.program.workers() == workers
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0


async def test_signal_to_a_worker_opens_its_file_anew(tmp_path: Path) -> None:
    log, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    async with running(tmp_path, access_log="json", access_log_file=str(log)) as edge:
        log.rename(moved)
        for worker in edge.program.workers():
            os.kill(worker, USR1)
        await until(lambda: not is_open(edge, moved), "nobody has the old one open")
        await edge.ask()
        await until(lambda: log.stat().st_size, "the line is in the new one")
        assert moved.stat().st_size == 0


async def test_file_that_was_opened_for_a_config_that_is_refused_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    config = parse(f"{{access_log_file: {file}, members: {{a: {{url: 'http://a.example'}}}}}}", {})
    log = Log()
    with pytest.raises(ConfigError), log.prepare(config):
        raise ConfigError([])
    assert file.exists()
    assert str(file) not in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
    log.reopen()
    log.close()


async def test_file_that_cannot_be_written_is_a_fault_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tmp_path / "edge.yaml"
    log = tmp_path / "file" / "access.log"
    members = {"a": {"url": "http://127.0.0.1:9"}}
    config.write_text(yaml.safe_dump({"access_log_file": str(log), "members": members}))
    async with fedproxy("serve", "--config", config) as program:
        assert await program.ended() == 2
    expected = "expected the path of a file that can be written, or stdout"
    (line,) = program.lines
    assert f" config.refused {config}:1:18: access_log_file: is '/" in line
    assert line.endswith(expected)


@pytest.mark.parametrize("where", ["stdout", "file"])
async def test_reload_to_another_form_goes_on_where_it_was(tmp_path: Path, where: str) -> None:
    log = tmp_path / "access.log"
    given: dict[str, Any] = {} if where == "stdout" else {"access_log_file": str(log)}
    async with running(tmp_path, workers=1, access_log="json", **given) as edge:
        await edge.ask()
        edge.write(workers=1, access_log="combined", **given)
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        await edge.ask()
        if where == "stdout":
            await edge.program.line('"GET / HTTP/1.1" 200')
        else:
            await until(lambda: log.read_text().count("\n") == 2, "another line")
            assert '"GET / HTTP/1.1" 200' in log.read_text()
        assert await edge.metric("fedproxy_log_lines_dropped_total") == 0


async def test_reload_moves_the_log_and_one_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "access.log.first", tmp_path / "access.log.second"
    async with running(tmp_path, access_log="json", access_log_file=str(first)) as edge:
        edge.write(access_log="json", access_log_file=str(tmp_path / "nowhere" / "access.log"))
        edge.program.signal(HUP)
        await edge.program.line("access_log_file: is ")
        await edge.program.line("the config in force is kept")
        await edge.ask()
        await until(lambda: first.stat().st_size, "the line is where it was to be")
        edge.write(access_log="combined", access_log_file=str(second))
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        # Answered once the workers have it in force.
        await edge.members()
        await edge.ask()
        await until(lambda: second.stat().st_size, "the line is where it is to be now")
        assert '"GET / HTTP/1.1" 200' in second.read_text()
        assert len(first.read_text().splitlines()) == 1
