"""The program as the first process of a container."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedproxy.serve import reaper
from tests.rig.command import Program, fedproxy
from tests.rig.running import Hub, patience, until, write

IN_A_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
_START = f"""
import os, sys
os.execvp("unshare", [*{IN_A_NAMESPACE!r}, sys.executable, "-m", "fedproxy", *sys.argv[1:]])
"""
# Leaves a child behind that ends a moment after it.
_ABANDON = ("sh", "-c", "sleep 0.1 & :")


def can_have_a_namespace() -> bool:
    try:
        return subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


def children(pid: int) -> dict[int, str]:
    """State by number of the processes whose parent it is."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found[int(path.name)] = fields[0]
    return found


def first_process(program: Program) -> int:
    return next(iter(children(program.pid)))


async def test_first_process_waits_for_those_that_lost_their_parent_and_still_sees_its_workers_end(
    tmp_path: Path,
) -> None:
    if not can_have_a_namespace():
        pytest.skip("no process namespace may be made here (unshare --pid)")
    hub = Hub()
    await hub.member.start()
    write(tmp_path / "edge.yaml", hub)
    async with fedproxy("serve", "--config", tmp_path / "edge.yaml", before=("-c", _START)) as program:
        await program.address("admin on ")
        first = first_process(program)
        forker, *workers = sorted(children(first))
        assert len(workers) == 2
        for _ in range(5):
            entered = await asyncio.create_subprocess_exec("nsenter", "-t", str(first), "-p", *_ABANDON)
            assert await entered.wait() == 0
        await until(lambda: set(children(first)) == {forker, *workers}, "only these are left")
        # Numbers are others inside.
        os.kill(min(workers), signal.SIGKILL)
        await program.line("ended with signal 9")
        await until(
            lambda: len(children(first)) == 3 and "Z" not in children(first).values(), "another worker"
        )
        os.kill(first, signal.SIGTERM)
        assert await program.ended() == 0
    await hub.member.stop()


async def test_signal_before_it_listens_ends_the_first_process(tmp_path: Path) -> None:
    if not can_have_a_namespace():
        pytest.skip("no process namespace may be made here (unshare --pid)")
    pipe = tmp_path / "edge.yaml"
    os.mkfifo(pipe)
    async with fedproxy("serve", "--config", pipe, before=("-c", _START)) as program:
        # It reads the config until it ends, so it does not listen to signals yet.
        opened = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
        async with patience():
            os.kill(first_process(program), signal.SIGTERM)
            await program.ended()
        os.close(opened)


async def test_child_that_somebody_waits_for_is_left_to_them() -> None:
    mine = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    # Other tests may have left some behind.
    reaper.reap({mine.pid})
    assert reaper.reap({mine.pid}) == 0
    assert mine.wait() == 0


def test_nothing_to_wait_for_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", nobody)
    assert reaper.reap(()) == 0
