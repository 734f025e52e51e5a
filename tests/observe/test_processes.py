from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedproxy.observe.processes import Processes, ProcessUse, Running, Usage, read_usage

CONTROL = Running("control", 1, lag=0.5)


@contextmanager
def idle() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its input, and has started to."""
    command = [sys.executable, "-S", "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


class Machine:
    """Processes that use what a test says, by their numbers."""

    def __init__(self) -> None:
        self.usages: dict[int, Usage] = {}
        self.processes = Processes(self.usages.get)

    def runs(
        self, pid: int, cpu: float, started: float, open_fds: int | None = 10, memory: int = 100
    ) -> None:
        self.usages[pid] = Usage(cpu, memory, open_fds, 1024, started)

    def slot(self, *pids: int, lag: float = 0.0) -> ProcessUse:
        (found,) = self.processes.look([Running("worker", pid, 0, lag) for pid in pids])
        return found


def test_own_process_uses_what_the_system_says() -> None:
    found = read_usage(os.getpid())
    assert found is not None
    assert found.cpu == pytest.approx(time.process_time(), abs=0.5)
    assert 1 << 20 < found.memory <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (1 << 20)
    assert found.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found.started == pytest.approx(time.time() - _age(), abs=2.0)


def _age() -> float:
    """Seconds since this process started, by the clock that counts from the start of the machine."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def test_descriptors_of_another_process_are_counted() -> None:
    with idle() as process:
        before = read_usage(process.pid)
        assert before is not None
        assert before.open_fds == 3


def test_process_that_has_ended_is_not_there() -> None:
    with idle() as process:
        process.kill()
        process.wait()
        assert read_usage(process.pid) is None


def test_counters_of_a_slot_do_not_fall_when_its_worker_is_replaced() -> None:
    machine = Machine()
    machine.runs(7, cpu=5.0, started=100.0)
    assert machine.slot(7, lag=0.25).cpu == 5.0
    machine.runs(8, cpu=0.5, started=200.0)
    both = machine.slot(7, 8, lag=0.25)
    assert (both.cpu, both.lag, both.memory, both.started) == (5.5, 0.5, 200, 200.0)
    after = machine.slot(8, lag=0.25)
    assert (after.cpu, after.lag, after.memory, after.started) == (5.5, 0.5, 100, 200.0)


def test_number_of_a_process_that_is_used_again_is_another_process() -> None:
    machine = Machine()
    machine.runs(7, cpu=5.0, started=100.0)
    machine.slot(7)
    machine.runs(7, cpu=0.5, started=200.0)
    assert machine.slot(7).cpu == 5.5


def test_process_that_cannot_be_read_is_as_it_was() -> None:
    machine = Machine()
    assert machine.processes.look([Running("worker", 7, 0, 0.0)]) == []
    machine.runs(7, cpu=5.0, started=100.0)
    before = machine.slot(7)
    del machine.usages[7]
    assert machine.slot(7) == before
    assert machine.processes.look([]) == []
    machine.runs(8, cpu=1.0, started=200.0)
    assert machine.slot(8).cpu == 6.0


def test_descriptors_are_of_the_process_that_has_most() -> None:
    machine = Machine()
    machine.runs(7, cpu=0.0, started=100.0, open_fds=900)
    machine.runs(8, cpu=0.0, started=200.0, open_fds=20)
    assert machine.slot(7, 8).open_fds == 900
    machine.runs(7, cpu=0.0, started=100.0, open_fds=None)
    machine.runs(8, cpu=0.0, started=200.0, open_fds=None)
    assert machine.slot(7, 8).open_fds is None


def test_every_role_and_slot_is_shown_by_itself() -> None:
    machine = Machine()
    for pid in (1, 2, 3, 4):
        machine.runs(pid, cpu=float(pid), started=100.0)
    found = machine.processes.look(
        [CONTROL, Running("forker", 2), Running("worker", 3, 0, 0.0), Running("worker", 4, 1, 0.0)]
    )
    assert [(each.role, each.worker, each.cpu, each.lag) for each in found] == [
        ("control", "", 1.0, 0.5),
        ("forker", "", 2.0, None),
        ("worker", "0", 3.0, 0.0),
        ("worker", "1", 4.0, 0.0),
    ]
