"""Where the hosts of a fleet are: network namespaces of this run's own, or addresses of loopback.

In namespaces each host has a cable to one switch. A cable is pulled out by taking its end at the switch down;
two hosts are cut off from each other by a wrong hardware address of each at the other. Either way packets
are lost without a word, as on a broken network. Needs root, and removes all that it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

from benchmarks.peers import BenchmarkError

# Of those that are set aside for benchmarks (RFC 2544), and nobody's.
_NET: Final = "198.18.0"
_NOBODY: Final = "02:00:00:00:00:01"
_DIRECTORY: Final = Path("/run/netns")
_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET, see setns(2)
_PATIENCE: Final = 20.0


class Site(Protocol):
    """Where the hosts are. parted: whether two of them can be cut off from each other."""

    parted: bool

    def address(self, host: str) -> str:
        """Of a host."""

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """The command that runs another one on a host."""

    async def pull(self, host: str) -> None:
        """Cuts a host off from all others."""

    async def plug(self, host: str) -> None:
        """Undoes `pull`."""

    async def part(self, one: str, other: str) -> None:
        """Cuts two hosts off from each other."""

    async def join(self, one: str, other: str) -> None:
        """Undoes `part`."""


class NamespaceSite:
    """See the module. The calling thread lives on the host `here` until the stack ends."""

    parted = True

    def __init__(self, stack: ExitStack, hosts: Sequence[str], here: str) -> None:
        self._prefix = f"fedproxy-{os.getpid()}-"
        self._hosts = list(hosts)
        switch = self._space("switch")
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        stack.callback(os.close, home)
        for name in ("switch", *hosts):
            stack.callback(_try, "ip", "netns", "del", self._space(name))
            _run("ip", "netns", "add", self._space(name))
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        for host in hosts:
            space, end = self._space(host), ("peer", "name", "eth0", "netns")
            _run("ip", "-n", switch, "link", "add", host, "type", "veth", *end, space)
            _run("ip", "-n", switch, "link", "set", host, "master", "switch", "up")
            _run("ip", "-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
        with (_DIRECTORY / self._space(here)).open("rb") as space_of_this:
            _move_into(space_of_this.fileno())
        stack.callback(_move_into, home)

    def _space(self, host: str) -> str:
        return self._prefix + host

    def address(self, host: str) -> str:
        """As of `Site`."""
        return f"{_NET}.{self._hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """As of `Site`."""
        return ["ip", "netns", "exec", self._space(host), *command]

    async def _do(self, host: str, *command: str) -> None:
        await asyncio.to_thread(_run, "ip", "-n", self._space(host), *command)

    async def pull(self, host: str) -> None:
        """As of `Site`."""
        await self._do("switch", "link", "set", host, "down")

    async def plug(self, host: str) -> None:
        """As of `Site`."""
        await self._do("switch", "link", "set", host, "up")

    async def part(self, one: str, other: str) -> None:
        """As of `Site`."""
        for host, peer in ((one, other), (other, one)):
            wrong = ("lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
            await self._do(host, "neigh", "replace", self.address(peer), *wrong)

    async def join(self, one: str, other: str) -> None:
        """As of `Site`."""
        for host, peer in ((one, other), (other, one)):
            await self._do(host, "neigh", "del", self.address(peer), "dev", "eth0")


class LoopbackSite:
    """All hosts are this one, by addresses of loopback: no cable can be pulled out."""

    parted = False

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = list(hosts)

    def address(self, host: str) -> str:
        """As of `Site`."""
        return f"127.78.0.{self._hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """As of `Site`."""
        return list(command)

    async def pull(self, host: str) -> None:
        """As of `Site`; raises BenchmarkError."""
        raise BenchmarkError(f"{host} cannot be cut off on loopback")

    async def plug(self, host: str) -> None:
        """As of `Site`; raises BenchmarkError."""
        raise BenchmarkError(f"{host} cannot be cut off on loopback")

    async def part(self, one: str, other: str) -> None:
        """As of `Site`; raises BenchmarkError."""
        raise BenchmarkError(f"{one} and {other} cannot be cut off on loopback")

    async def join(self, one: str, other: str) -> None:
        """As of `Site`; raises BenchmarkError."""
        raise BenchmarkError(f"{one} and {other} cannot be cut off on loopback")


def find_site(stack: ExitStack, hosts: Sequence[str], here: str) -> tuple[Site, str]:
    """The best that this machine allows, and a line that says what it is."""
    try:
        # What was made before it failed is to be removed at once.
        with ExitStack() as attempt:
            found = NamespaceSite(attempt, hosts, here)
            stack.push(attempt.pop_all())
            return found, "each host is in a network namespace of its own"
    except (BenchmarkError, OSError) as error:
        return LoopbackSite(hosts), (
            f"no network namespaces ({error}): hosts are addresses of loopback, Redis is stopped instead of "
            "cut off, and no edge is cut off from a member"
        )


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def _try(*command: str) -> None:
    with contextlib.suppress(BenchmarkError):
        _run(*command)


def _move_into(namespace: int) -> None:
    """Moves the calling thread, and those that it starts. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace, _NEW_NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
