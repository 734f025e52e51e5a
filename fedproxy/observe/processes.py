"""What the edge's processes use of the machine: read from /proc (proc(5)) when somebody scrapes.

So it costs nothing between scrapes, and a worker that does not respond is shown too.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

Role = Literal["control", "forker", "worker"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")  # per second
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes


@dataclass(frozen=True)
class Running:
    """A process of the edge. slot: a worker's; None for others.

    lag: the seconds by which its event loop has been late so far; None if nobody measures that.
    """

    role: Role
    pid: int
    slot: int | None = None
    lag: float | None = None


@dataclass(frozen=True)
class Usage:
    """What one process uses.

    cpu: seconds of processor time since its start. memory: resident bytes. open_fds, max_fds: its file
    descriptors and their limit; None if this process may not see them, or there is no limit. started: seconds
    since the epoch.
    """

    cpu: float
    memory: int
    open_fds: int | None
    max_fds: int | None
    started: float


@dataclass(frozen=True)
class ProcessUse:
    """What the process of a role and slot uses, and those that drain there.

    cpu and lag have the seconds of earlier processes as well, so they never decrease; lag is None if nobody
    measures it. memory is the sum. open_fds is of the process that has most, max_fds the lowest limit; None
    if unknown. started: when the newest of them started, in seconds since the epoch.
    """

    role: Role
    worker: str
    cpu: float
    lag: float | None
    memory: int
    open_fds: int | None
    max_fds: int | None
    started: float


@dataclass(frozen=True)
class _LastSeen:
    """A process as it was seen last."""

    usage: Usage
    lag: float | None


class Processes:
    """Adds up what processes use by role and slot. read: as `read_usage`."""

    def __init__(self, read: Callable[[int], Usage | None] | None = None) -> None:
        self._read = read or read_usage
        self._seen: dict[tuple[Role, int | None], dict[int, _LastSeen]] = {}
        # Seconds of those that have ended, as far as they were seen: processor time, lag.
        self._ended: dict[tuple[Role, int | None], tuple[float, float]] = {}

    def look(self, running: Iterable[Running]) -> list[ProcessUse]:
        """What the running processes use now, in the order in which roles and slots first come.

        A process that cannot be read is shown as it was before, or not at all.
        """
        now: dict[tuple[Role, int | None], dict[int, _LastSeen]] = {}
        for each in running:
            key = each.role, each.slot
            before = self._seen.get(key, {}).get(each.pid)
            usage = self._read(each.pid)
            if usage is not None:
                now.setdefault(key, {})[each.pid] = _LastSeen(usage, each.lag)
            elif before is not None:
                now.setdefault(key, {})[each.pid] = before
        for key, seen in self._seen.items():
            for pid, last in seen.items():
                here = now.get(key, {}).get(pid)
                # A number may be used again.
                if here is None or here.usage.started != last.usage.started:
                    cpu, lag = self._ended.get(key, (0.0, 0.0))
                    self._ended[key] = cpu + last.usage.cpu, lag + (last.lag or 0.0)
        self._seen = now
        return [self._together(key, list(seen.values())) for key, seen in now.items()]

    def _together(self, key: tuple[Role, int | None], seen: Sequence[_LastSeen]) -> ProcessUse:
        role, slot = key
        cpu, lag = self._ended.get(key, (0.0, 0.0))
        usages = [each.usage for each in seen]
        lags = [each.lag for each in seen if each.lag is not None]
        return ProcessUse(
            role=role,
            worker="" if slot is None else str(slot),
            cpu=cpu + sum(usage.cpu for usage in usages),
            lag=lag + sum(lags) if lags else None,
            memory=sum(usage.memory for usage in usages),
            open_fds=max((usage.open_fds for usage in usages if usage.open_fds is not None), default=None),
            max_fds=min((usage.max_fds for usage in usages if usage.max_fds is not None), default=None),
            started=max(usage.started for usage in usages),
        )


def read_usage(pid: int) -> Usage | None:
    """What a process uses; None if it has ended or cannot be read."""
    folder = Path(f"/proc/{pid}")
    try:
        # The name of its program may contain anything.
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        started = _booted() + int(fields[19]) / _TICKS
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        memory = int(fields[21]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None
    return Usage(cpu, memory, _open_fds(folder / "fd"), _max_fds(pid), started)


@lru_cache
def _booted() -> float:
    """When the machine started, in seconds since the epoch. Raises OSError and ValueError."""
    for line in Path("/proc/stat").read_bytes().splitlines():
        name, _, value = line.partition(b" ")
        if name == b"btime":
            return float(value)
    raise ValueError("no btime in /proc/stat")


def _open_fds(folder: Path) -> int | None:
    try:
        # The size is the number of entries since Linux 6.2, and 0 before. Listing takes 6 µs for each.
        return folder.stat().st_size or len(os.listdir(folder))  # noqa: PTH208 -- a Path for each is slow
    except OSError:
        return None


def _max_fds(pid: int) -> int | None:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except OSError:
        return None
    return None if soft == resource.RLIM_INFINITY else soft
