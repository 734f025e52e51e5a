"""The run: three edges, Redis and three members, visitors, and one fault after the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import yaml

from benchmarks.fleet.crowd import PORT, GuestCrowd
from benchmarks.fleet.member import count_probes, read_streams
from benchmarks.fleet.place import find_site
from benchmarks.fleet.record import CutOff, Faced, FleetPhase, PhaseFigures, figures
from benchmarks.peers import BenchmarkError, Process

EDGES: Final = ("edge1", "edge2", "edge3")
MEMBERS: Final = ("m1", "m2", "m3")
REDIS: Final = "redis"
VISITORS: Final = "visitors"
MOST: Final = 9
"""`max_launches` of each member."""
AGREEMENT: Final = 1.0
"""Seconds within which what operators say is to be in force on all edges."""
PROBES_EVERY: Final = 2.0
"""Seconds from one round of probes to the next."""
_PROBED: Final = 20.0  # seconds in which probes are counted
_REDIS_PORT: Final = 6379
_TOKEN: Final = "benchmark"
_READY: Final = 20.0  # seconds that a program may take to be ready
_ASK: Final = 0.02  # seconds between two looks whether a change is in force
_AGREE: Final = 15.0  # seconds after which it is given up
_GRACE: Final = 0.5  # seconds that a program has at the end of the run
_ENDED: Final = 20.0  # seconds that an edge may take to end


@dataclass(frozen=True)
class Durations:
    """Seconds. warm: before anything is counted. settle: of a phase before its fault. pause: between two
    changes of operators; in the last phase they come four times as often. The others are those of the fault,
    or of what follows it."""

    warm: float = 12.0
    baseline: float = 30.0
    settle: float = 3.0
    dead: float = 10.0
    after_dead: float = 15.0
    redis: float = 30.0
    after_redis: float = 15.0
    empty: float = 20.0
    parted: float = 20.0
    after_parted: float = 15.0
    roll: float = 6.0
    changes: float = 25.0
    pause: float = 2.0


USUAL: Final = Durations()
QUICK: Final = Durations(
    warm=5,
    baseline=5,
    settle=1,
    dead=3,
    after_dead=3,
    redis=7,
    after_redis=5,
    empty=5,
    parted=6,
    after_parted=3,
    roll=1,
    changes=5,
    pause=1,
)


@dataclass(frozen=True)
class FleetResult:
    """What a run found. site: where the hosts were. settings: what it was run with."""

    site: str
    settings: Mapping[str, Any]
    phases: Sequence[PhaseFigures]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "site": self.site,
            "settings": dict(self.settings),
            "phases": [each.as_json() for each in self.phases],
            "notes": list(self.notes),
        }


class FleetRun:
    """See the module."""

    def __init__(
        self, stack: ExitStack, folder: Path, durations: Durations, say: Callable[[str], None]
    ) -> None:
        self.notes: list[str] = []
        self.one_prober = True
        self._stack = stack
        self._folder = folder
        self._for = durations
        self._say = say
        self.site, self.where = find_site(stack, (REDIS, VISITORS, *EDGES, *MEMBERS), VISITORS)
        self.addresses = {name: self.site.address(name) for name in (*EDGES, *MEMBERS, REDIS)}
        self._cores = sorted(os.sched_getaffinity(0))
        self._logs: dict[str, IO[str]] = {}
        self._programs: dict[str, Process] = {}
        self._alive: list[str] = []
        self._weights = dict.fromkeys(MEMBERS, 10)
        self._drained: str | None = None
        self._chance = random.Random(1)
        self._phases: list[FleetPhase] = []
        self._cuts: list[CutOff] = []
        self._clients: dict[str, aiohttp.ClientSession] = {}

    # Programs

    def _start(self, host: str, command: Sequence[str]) -> None:
        log = self._folder / f"{host}.stderr"
        with log.open("ab") as stderr:
            process = Process(
                host,
                self.site.command(host, command),
                core=self._cores,
                folder=self._folder,
                stderr=stderr.fileno(),
            )
        self._programs[host] = process
        # At the end nobody waits for what drains.
        self._stack.callback(process.stop, _GRACE)
        if host not in self._logs:
            self._logs[host] = self._stack.enter_context(log.open())

    def start_redis(self) -> None:
        """A new and empty one."""
        bind = ("--bind", self.addresses[REDIS], "--port", str(_REDIS_PORT), "--protected-mode", "no")
        self._start(REDIS, ("redis-server", *bind, "--save", "", "--appendonly", "no"))

    def start_member(self, name: str) -> None:
        """A toy BinderHub."""
        where = (self.addresses[name], str(PORT), str(self._notes(name)))
        self._start(name, (sys.executable, "-m", "benchmarks.fleet", "member", name, *where))

    def _notes(self, member: str) -> Path:
        return self._folder / f"{member}.notes"

    def _socket(self, edge: str) -> Path:
        return self._folder / f"{edge}.sock"

    async def start_edge(self, name: str) -> None:
        """Returns when it is ready."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        config = folder / "fedproxy.yaml"
        config.write_text(yaml.safe_dump(self._config(name)))
        self._start(name, (sys.executable, "-m", "fedproxy", "serve", "--config", str(config)))
        if name not in self._clients:
            connector = aiohttp.UnixConnector(str(self._socket(name)))
            self._clients[name] = aiohttp.ClientSession("http://localhost", connector=connector)
        async with asyncio.timeout(_READY):
            while not await self._is_ready(name):
                self._programs[name].require_alive()
                await asyncio.sleep(0.05)
        self._alive.append(name)

    async def _is_ready(self, edge: str) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with self._clients[edge].get("/health/ready") as answer:
                return answer.status == 200
        return False

    def _config(self, edge: str) -> dict[str, Any]:
        """Short times, so that a phase is short: a failing member is noticed within some seconds."""
        return {
            "listen": [{"address": f"{self.addresses[edge]}:{PORT}"}],
            "admin": {"address": f"unix:{self._socket(edge)}", "token": _TOKEN},
            "edge_name": edge,
            "store": f"redis://{self.addresses[REDIS]}:{_REDIS_PORT}",
            "workers": 1,
            "access_log": "off",
            "log": "json",
            "health": {
                "interval": PROBES_EVERY,
                "timeout": "1s",
                "fall": 2,
                "unhealthy_interval": "2s",
                "one_prober": self.one_prober,
            },
            "timeouts": {"connect": "1s", "response_head": "5s", "drain": "15s"},
            "members": {
                name: {
                    "url": f"http://{self.addresses[name]}:{PORT}",
                    "weight": 10,
                    "prime": name == MEMBERS[0],
                    "max_launches": MOST,
                }
                for name in MEMBERS
            },
        }

    def kill(self, name: str) -> None:
        """With SIGKILL, at once."""
        self._alive = [each for each in self._alive if each != name]
        os.kill(self._programs[name].pid, signal.SIGKILL)
        self._programs[name].stop()

    async def drain(self, edge: str) -> float:
        """Ends an edge as a rollout does; the seconds that it took."""
        self._alive.remove(edge)
        began = time.monotonic()
        process = self._programs[edge]
        process.terminate()
        async with asyncio.timeout(_ENDED):
            while process.ended() is None:
                await asyncio.sleep(0.05)
        if process.ended():
            self.notes.append(f"{edge} ended with {process.ended()} after SIGTERM")
        return time.monotonic() - began

    # Operators

    async def _changes(self, faced: Faced, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            await self.make_change(faced)

    def _next_change(self) -> tuple[str, dict[str, Any]]:
        if self._drained is not None:
            name, self._drained = self._drained, None
            return name, {"state": "ready"}
        name = self._chance.choice(MEMBERS)
        if self._chance.random() < 0.3:
            self._drained = name
            return name, {"state": "drain"}
        others = [weight for weight in range(5, 16) if weight != self._weights[name]]
        self._weights[name] = self._chance.choice(others)
        return name, {"weight": self._weights[name]}

    async def make_change(self, faced: Faced) -> None:
        """A change at any edge; how long until it is in force on all that live then."""
        edges = list(self._alive)
        if edges:
            name, change = self._next_change()
            began = time.monotonic()
            await self._patch(self._chance.choice(edges), name, change)
            faced.agreed.append(await self._in_force(edges, name, change) - began)

    async def _patch(self, edge: str, name: str, change: Mapping[str, Any]) -> None:
        token = {"Authorization": f"Bearer {_TOKEN}"}
        async with self._clients[edge].patch(f"/members/{name}", json=change, headers=token) as answer:
            if answer.status != 200:
                raise BenchmarkError(f"{edge} refused a change: {await answer.text()}")

    async def _in_force(self, edges: Sequence[str], name: str, change: Mapping[str, Any]) -> float:
        """When the last of these edges had it in force; those that end meanwhile do not matter."""
        return max(await asyncio.gather(*(self._in_force_on(edge, name, change) for edge in edges)))

    async def _in_force_on(self, edge: str, name: str, change: Mapping[str, Any]) -> float:
        deadline = time.monotonic() + _AGREE
        while (now := time.monotonic()) < deadline and edge in self._alive:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._clients[edge].get(f"/members/{name}") as answer:
                    said = await answer.json()
                if all(said.get(key) == value for key, value in change.items()):
                    return time.monotonic()
            await asyncio.sleep(_ASK)
        return now

    # Phases

    async def run(self, guests: int, rate: float, launches: float) -> list[PhaseFigures]:
        """All phases. Raises BenchmarkError if something does not start, or ends by itself."""
        await self._start_all()
        edges = {name: self.addresses[name] for name in EDGES}
        self._crowd = GuestCrowd(edges, guests, rate, launches)
        self._crowd.start()
        try:
            self._say(f"{guests} visitors come ...")
            await asyncio.sleep(self._for.warm)
            await self._faults()
            # What was sent in the last phase is still to be answered.
            await asyncio.sleep(self._for.settle)
        finally:
            await self._crowd.close()
            for client in self._clients.values():
                await client.close()
        by_address = {self.addresses[edge]: edge for edge in EDGES}
        streams = {name: read_streams(self._notes(name), by_address) for name in MEMBERS}
        return [figures(phase, self._cuts, streams, MOST) for phase in self._phases]

    async def _start_all(self) -> None:
        self.start_redis()
        for name in MEMBERS:
            self.start_member(name)
        await self._members_serve()
        await asyncio.gather(*map(self.start_edge, EDGES))

    async def count_probes(self) -> float:
        """Rounds of probes that a member gets in a minute from all edges, without any visitors."""
        try:
            await self._start_all()
            # Not before one has taken it over for all.
            await asyncio.sleep(3 * PROBES_EVERY)
            begin = time.monotonic()
            await asyncio.sleep(_PROBED)
            end = time.monotonic()
        finally:
            for client in self._clients.values():
                await client.close()
        rounds = sum(count_probes(self._notes(name), begin, end).total() for name in MEMBERS)
        return rounds / len(MEMBERS) * 60 / (end - begin)

    async def _members_serve(self) -> None:
        async with asyncio.timeout(_READY):
            for name in MEMBERS:
                while True:
                    self._programs[name].require_alive()
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection(self.addresses[name], PORT)
                        writer.close()
                        break
                    await asyncio.sleep(0.05)

    async def _faults(self) -> None:
        await self._phase("baseline", lambda _: asyncio.sleep(self._for.baseline))
        await self._phase("an edge is killed", self._kill_an_edge)
        await self._phase("Redis is cut off", self._cut_redis_off, changes=False)
        await self._phase("Redis restarts empty", self._empty_redis)
        if self.site.parted:
            await self._phase("an edge is cut off from a member", self._part_edge_and_member)
        await self._phase("all edges are rolled", self._roll)
        await self._phase("operators' changes", lambda _: asyncio.sleep(self._for.changes), often=True)

    async def _phase(
        self,
        name: str,
        work: Callable[[Faced], Awaitable[object]],
        *,
        changes: bool = True,
        often: bool = False,
    ) -> None:
        self._say(f"{name} ...")
        for log in self._logs.values():
            log.read()
        faced = self._crowd.faced = Faced()
        begin = time.monotonic()
        pause = self._for.pause / 4 if often else self._for.pause
        operator = asyncio.create_task(self._changes(faced, pause)) if changes else None
        try:
            await work(faced)
        finally:
            if operator is not None:
                operator.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await operator
        self._crowd.check()
        events = Counter(event for edge in EDGES for event in _events(self._logs[edge].read()))
        self._phases.append(FleetPhase(name, begin, time.monotonic(), faced, dict(events)))

    async def _kill_an_edge(self, _faced: Faced) -> None:
        await asyncio.sleep(self._for.settle)
        self.kill(EDGES[0])
        await asyncio.sleep(self._for.dead)
        await self.start_edge(EDGES[0])
        await asyncio.sleep(self._for.after_dead)

    async def _cut_redis_off(self, faced: Faced) -> None:
        await asyncio.sleep(self._for.settle)
        await self._hold_redis(True)
        await asyncio.sleep(self._for.redis / 2)
        # Two edges say something of two members while they cannot tell each other.
        said: list[tuple[str, dict[str, Any]]] = []
        for edge, name in zip(EDGES, MEMBERS[:2], strict=False):
            self._weights[name] = 21 + len(said)
            said.append((name, {"weight": self._weights[name]}))
            await self._patch(edge, *said[-1])
        await asyncio.sleep(self._for.redis / 2)
        await self._hold_redis(False)
        back = time.monotonic()
        for name, change in said:
            faced.late.append(await self._in_force(EDGES, name, change) - back)
        await asyncio.sleep(self._for.after_redis)

    async def _hold_redis(self, held: bool) -> None:
        if self.site.parted:
            await (self.site.pull if held else self.site.plug)(REDIS)
        else:
            os.kill(self._programs[REDIS].pid, signal.SIGSTOP if held else signal.SIGCONT)

    async def _empty_redis(self, _faced: Faced) -> None:
        await asyncio.sleep(self._for.settle)
        self.kill(REDIS)
        self.start_redis()
        await asyncio.sleep(self._for.empty)

    async def _part_edge_and_member(self, _faced: Faced) -> None:
        edge, member = EDGES[1], MEMBERS[1]
        await asyncio.sleep(self._for.settle)
        # While it lasts, nobody knows when it ends.
        self._cuts.append(CutOff(edge, member, time.monotonic(), float("inf")))
        await self.site.part(edge, member)
        await asyncio.sleep(self._for.parted)
        await self.site.join(edge, member)
        self._cuts[-1] = self._cuts[-1]._replace(end=time.monotonic())
        await asyncio.sleep(self._for.after_parted)

    async def _roll(self, _faced: Faced) -> None:
        for edge in EDGES:
            took = await self.drain(edge)
            self.notes.append(f"{edge} ended {took:.1f} s after SIGTERM")
            await self.start_edge(edge)
            await asyncio.sleep(self._for.roll)


def _events(text: str) -> Iterator[str]:
    """The names of the events of a log."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError):
            yield json.loads(line)["event"]


async def measure(
    durations: Durations, guests: int, rate: float, launches: float, say: Callable[[str], None]
) -> FleetResult:
    """One whole run. Everything that it made is gone when it returns, or raises BenchmarkError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-fleet-")))
        run = FleetRun(stack, folder, durations, say)
        say(run.where)
        try:
            found = await run.run(guests, rate, launches)
        except TimeoutError as error:
            raise BenchmarkError("something did not start or end in time") from error
        settings = {
            "visitors": guests,
            "requests_per_second": rate,
            "launches_per_second": launches,
            "max_launches": MOST,
            "edges": len(EDGES),
            "members": len(MEMBERS),
        }
        return FleetResult(run.where, settings, found, run.notes)


async def measure_probes(one_prober: bool) -> float:
    """Rounds of probes of a member in a minute. Raises BenchmarkError."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-fleet-")))
        run = FleetRun(stack, folder, USUAL, lambda _: None)
        run.one_prober = one_prober
        try:
            return await run.count_probes()
        except TimeoutError as error:
            raise BenchmarkError("something did not start in time") from error
