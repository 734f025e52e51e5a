"""What many edges cost their store: so many `Fleet`s in this process, with one Redis.

They do all that edges do with the store: signs of life, slots for launches, hints, reports of the one that
probes; but they serve nobody. Each member's report changes with every round of probes, as pods come and go.
The processor time of an edge is this process's, divided by the edges, and is none of a visitor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.peers import BenchmarkError, Process, require_free
from fedproxy.config.store import StoreAddress
from fedproxy.control.fleet import Fleet
from fedproxy.control.hints import Hint
from fedproxy.control.messages import BuildBegun, LaunchRequested, LaunchSeen, SessionsKnown
from fedproxy.control.overrides import Override
from fedproxy.control.prober import Report
from fedproxy.control.redis_store import RedisStore
from fedproxy.control.state import MemberOverride
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.decide.sessions import Ground
from fedproxy.errors import StoreError

SIZES: Final = ((3, 3), (3, 100), (10, 10), (10, 100), (50, 50), (100, 100), (50, 1000), (100, 1000))
"""Edges and members."""
MOST: Final = 20
"""`max_launches` of each member."""
ROUND: Final = 15.0
"""Seconds between two probes of a member."""
_LASTS: Final = 10.0  # seconds of a launch
_WORDS: Final = 7  # that are timed
_PATIENCE: Final = 30.0  # seconds until a change is given up, and for all edges to be there
_REST: Final = 5.0  # seconds between two looks whether the beginning is over
_BEGINNING: Final = 40.0  # seconds that it may take


class QuietEdge:
    """As `FleetListener` says; it does nothing, and counts. heard: when operators' changes came last."""

    def __init__(self, members: Sequence[str]) -> None:
        self.limits: Mapping[str, int] = {}
        self.heard = 0.0
        self.hints = 0
        self.reports = 0
        self.troubles: list[str] = []
        self._members = members
        self._started_at = round(time.time(), 1)

    def on_hint(self, hint: Hint) -> None:
        """As of `FleetListener`."""
        self.hints += 1

    def on_slots(self, limits: Mapping[str, int]) -> None:
        """As of `FleetListener`."""
        self.limits = limits

    def on_overrides(self) -> None:
        """As of `FleetListener`."""
        self.heard = time.monotonic()

    def on_report(self, report: Report) -> None:
        """As of `FleetListener`."""
        self.reports += 1

    def on_role(self, probes: bool) -> None:
        """As of `FleetListener`."""

    def on_tickets(self, secret: bytes) -> None:
        """As of `FleetListener`."""

    def on_store(self, there: bool, why: str) -> None:
        """As of `FleetListener`."""
        if not there:
            self.troubles.append(why)

    def on_trouble(self, line: str) -> None:
        """As of `FleetListener`."""
        self.troubles.append(line)

    def describe(self) -> Mapping[str, Any]:
        """As of `FleetListener`: as large as an edge's."""
        return {
            "version": "0.1.0",
            "config": "0123456789ab",
            "members": "0123456789ab",
            "started_at": self._started_at,
            "workers": 2,
            "connections": 1000,
            "requests": 1_000_000,
            "in_flight": 100,
            "launches": 10,
            "order": 1,
            "probes": False,
            "pid": os.getpid(),
        }

    def answer(self) -> Mapping[str, Any]:
        """As of `FleetListener`: as large as an edge's."""
        one = {"status": "available", "state": "ready", "weight": 10, "share": 0.01}
        counts = {"in_flight": 10, "launches": 1, "requests": 100_000}
        return {"members": {name: {**one, **counts} for name in self._members}}


@dataclass(frozen=True)
class StoreUse:
    """What so many edges used of their store, a second; `launches`: with so many a second, of all edges.

    calls: some of the commands, by name. executed: all commands; both with those in scripts. received, sent:
    bytes, of Redis. redis_cpu: of one processor, from 0 to 1; edge_cpu: the same of one edge. memory: bytes.
    begin: seconds until all edges were there. change: seconds from an operator's change until all had it, the
    median and the most; None if it came too late. asked: seconds until all had said how their members are,
    and how many edges were in time. refused: launches for want of a slot though the member had one.
    """

    edges: int
    members: int
    launches: float
    calls: Mapping[str, float]
    executed: float
    received: float
    sent: float
    redis_cpu: float
    edge_cpu: float
    memory: int
    begin: float
    change: tuple[float, float] | None
    asked: tuple[float, int] | None
    refused: float
    troubles: int

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return vars(self) | {"calls": dict(self.calls)}


def probes_a_minute(edges: int, interval: float, one_prober: bool) -> float:
    """Rounds of probes that a member gets. interval: seconds from one to the next, of one edge."""
    return 60 / interval * (1 if one_prober else edges)


class StoreServer:
    """A Redis of this run's own, on loopback."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        require_free([port])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedproxy-fleet-")))
        bind = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no")
        cores = sorted(os.sched_getaffinity(0))
        process = Process("redis", ("redis-server", *bind), core=cores, folder=folder)
        stack.callback(process.stop)
        self.address = StoreAddress("server", (("127.0.0.1", port),))
        self.client = Redis(host="127.0.0.1", port=port)

    async def wait(self) -> None:
        """Returns when it answers. Raises TimeoutError."""
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError, ConnectionError):
                    await self.client.ping()
                    return
                await asyncio.sleep(0.05)

    async def counts(self) -> StoreCounts:
        """What it has counted so far."""
        info = await self.client.info("everything")
        calls = {
            name.removeprefix("cmdstat_"): each["calls"]
            for name, each in info.items()
            if name.startswith("cmdstat_")
        }
        return StoreCounts(
            time.monotonic(),
            time.process_time(),
            calls,
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            info["used_cpu_sys"] + info["used_cpu_user"],
            info["used_memory"],
        )


@dataclass(frozen=True)
class StoreCounts:
    """Counters at a moment. own: processor seconds of this process; cpu: of Redis."""

    at: float
    own: float
    calls: Mapping[str, int]
    received: int
    sent: int
    cpu: float
    memory: int


class FleetOfMany:
    """So many edges, with members that all of them have."""

    def __init__(self, server: StoreServer, edges: int, members: int) -> None:
        self.members = [f"member-{number}" for number in range(members)]
        self.listeners = [QuietEdge(self.members) for _ in range(edges)]
        self.refused = 0
        self.launched = 0
        self._chance = random.Random(1)
        self._running = [Counter[str]() for _ in range(edges)]
        # Each run has keys of its own.
        prefix = f"scale-{secrets.token_hex(3)}"
        self.fleets = [
            Fleet(RedisStore(server.address, prefix), f"edge-{number}", listener)
            for number, listener in enumerate(self.listeners)
        ]
        for fleet in self.fleets:
            fleet.apply(dict.fromkeys(self.members, MOST), None)

    async def start(self) -> float:
        """The seconds until all are there."""
        began = time.monotonic()
        await asyncio.gather(*(fleet.start() for fleet in self.fleets))
        async with asyncio.timeout(_PATIENCE):
            while not all(fleet.there and fleet.count == len(self.fleets) for fleet in self.fleets):
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def close(self) -> None:
        """All leave. Raises BenchmarkError if they do not within some seconds."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.gather(*(fleet.close() for fleet in self.fleets))
        except TimeoutError as error:
            raise BenchmarkError(f"edges did not leave within {_PATIENCE:.0f} s") from error

    async def probe(self) -> None:
        """Whoever probes for all finds something new of each member in every round."""
        pods = 0
        while True:
            for name in self.members:
                pods += 1
                report = Report(
                    name,
                    True,
                    pods={"user": pods % 200, "build": pods % 10, "total": pods % 210},
                    quota=300,
                    checks={"Docker registry": True, "JupyterHub API": True, "Pod quota": True},
                    base_path="/",
                )
                for fleet in self.fleets:
                    if fleet.prober == fleet.id:
                        fleet.report(report)
                await asyncio.sleep(ROUND / len(self.members))

    async def launch(self, rate: float) -> None:
        """Launches at random edges and members; what they teach is told as an edge tells it."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._chance.expovariate(rate))
            edge, name = self._chance.randrange(len(self.fleets)), self._chance.choice(self.members)
            fleet, running = self.fleets[edge], self._running[edge]
            self.launched += 1
            fleet.tell(LaunchRequested(secrets.token_bytes(4)))
            if running[name] >= self.listeners[edge].limits.get(name, 0):
                self.refused += sum(each[name] for each in self._running) < MOST
                fleet.want(name)
                continue
            image = secrets.token_bytes(8)
            fleet.tell(BuildBegun(image, name))
            running[name] += 1
            fleet.launches(running)
            loop.call_later(_LASTS, self._end, edge, name, image)

    def _end(self, edge: int, name: str, image: bytes) -> None:
        fleet, running = self.fleets[edge], self._running[edge]
        running[name] -= 1
        fleet.launches(+running)
        fleet.tell(LaunchSeen(Seen(image, name, False, 8.0, 2.0, End.READY, False)))
        url, now = f"https://{name}.example.org", time.time()
        path = b"/user/someone-" + image.hex().encode() + b"/"
        fleet.tell(SessionsKnown(((path, Ground.ANNOUNCED, url, name, now, now, b""),)))

    async def time_changes(self) -> tuple[float, float] | None:
        """Seconds from an operator's change to the last edge that has it, the median and the most."""
        found = []
        for number in range(_WORDS):
            began = time.monotonic()
            edge = self._chance.randrange(len(self.fleets))
            name = self._chance.choice(self.members)
            said = MemberOverride.model_validate({"weight": {"value": 1 + number, "over": 10}})
            if not await self.fleets[edge].set_override(name, Override(said, "bench", "here", time.time())):
                return None
            others = [each for at, each in enumerate(self.listeners) if at != edge]
            deadline = began + _PATIENCE
            while any(each.heard < began for each in others):
                if time.monotonic() > deadline:
                    return None
                await asyncio.sleep(0.005)
            found.append(max((each.heard for each in others), default=began) - began)
            await asyncio.sleep(0.3)
        return median(found), max(found)

    async def time_question(self) -> tuple[float, int] | None:
        """Seconds until every edge had said how its members are, and how many were in time."""
        began = time.monotonic()
        try:
            answers = await self.fleets[0].ask()
        except StoreError:
            return None
        return time.monotonic() - began, len(answers)


async def measure_size(
    server: StoreServer, edges: int, members: int, seconds: float, launches: float, found: list[StoreUse]
) -> None:
    """At rest, and with launches; each is added to `found`.

    Raises BenchmarkError if the edges do not find each other, or do not end.
    """
    many = FleetOfMany(server, edges, members)
    await server.client.flushall()
    tasks: list[asyncio.Task[None]] = []
    try:
        try:
            begin = await many.start()
        except TimeoutError as error:
            raise BenchmarkError(f"{edges} edges did not find each other in {_PATIENCE:.0f} s") from error
        tasks.append(asyncio.create_task(many.probe()))
        await _wait_for_rest(server)
        for rate in (0.0, launches):
            if rate:
                tasks.append(asyncio.create_task(many.launch(rate)))
                await asyncio.sleep(_LASTS)
            for each in many.listeners:
                each.troubles.clear()
            launched, refused = many.launched, many.refused
            before = await server.counts()
            await asyncio.sleep(seconds)
            after = await server.counts()
            refused, launched = many.refused - refused, many.launched - launched
            change = await many.time_changes()
            asked = await many.time_question()
            found.append(_use(many, rate, before, after, begin, change, asked, refused / max(1, launched)))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await many.close()


async def _wait_for_rest(server: StoreServer) -> None:
    """Returns when the edges have shared out the slots: when their calls become no fewer any more."""
    deadline = time.monotonic() + _BEGINNING
    before, least = await server.counts(), float("inf")
    while time.monotonic() < deadline:
        await asyncio.sleep(_REST)
        now = await server.counts()
        calls = now.calls.get("evalsha", 0) - before.calls.get("evalsha", 0)
        if calls > 0.9 * least:
            return
        before, least = now, min(least, calls)


def _use(
    many: FleetOfMany,
    rate: float,
    before: StoreCounts,
    after: StoreCounts,
    begin: float,
    change: tuple[float, float] | None,
    asked: tuple[float, int] | None,
    refused: float,
) -> StoreUse:
    seconds = after.at - before.at
    calls = {name: (count - before.calls.get(name, 0)) / seconds for name, count in after.calls.items()}
    edges = len(many.fleets)
    chosen = {
        name: calls[name] for name in ("evalsha", "publish", "hgetall", "xrange", "hset") if name in calls
    }
    return StoreUse(
        edges=edges,
        members=len(many.members),
        launches=rate,
        calls={name: round(count, 1) for name, count in chosen.items() if count >= 0.05},
        executed=sum(calls.values()),
        received=(after.received - before.received) / seconds,
        sent=(after.sent - before.sent) / seconds,
        redis_cpu=(after.cpu - before.cpu) / seconds,
        edge_cpu=(after.own - before.own) / seconds / edges,
        memory=after.memory,
        begin=begin,
        change=change,
        asked=asked,
        refused=refused,
        troubles=sum(len(each.troubles) for each in many.listeners),
    )


async def measure_scale(
    sizes: Sequence[tuple[int, int]],
    seconds: float,
    launches: float,
    port: int,
    say: Callable[[str], None],
) -> list[StoreUse]:
    """All sizes, one after the other. Raises BenchmarkError."""
    failed = Counter[str]()

    def note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failed[f"{context['message']}: {context.get('exception')!r}"] += 1

    # An edge would log it, once.
    asyncio.get_running_loop().set_exception_handler(note)
    with ExitStack() as stack:
        server = StoreServer(stack, port)
        await server.wait()
        found: list[StoreUse] = []
        for edges, members in sizes:
            say(f"{edges} edges, {members} members ...")
            try:
                await measure_size(server, edges, members, seconds, launches, found)
            except BenchmarkError as error:
                # What was measured before is worth having.
                say(f"failed: {error}")
                break
        with contextlib.suppress(OSError, RedisError):
            await server.client.aclose()
        for line, times in failed.items():
            say(f"{times} times: {line}")
        return found
