"""What all connections of one worker share, besides what is in force."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from fedproxy.decide.breaker import Breaker, BreakerPolicy
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.knowledge import Knowledge
from fedproxy.decide.launch import MovedKeys
from fedproxy.decide.member import Member
from fedproxy.decide.pulse import Pulse
from fedproxy.decide.sessions import Sessions
from fedproxy.decide.waits import ExpectedWait
from fedproxy.proxy.admission import Admission
from fedproxy.proxy.resolver import Resolver
from fedproxy.proxy.runtime import empty
from fedproxy.tasks import Tasks

if TYPE_CHECKING:
    from fedproxy.decide.knowledge import Seen
    from fedproxy.event import Event
    from fedproxy.proxy.ports import Connection, OpenTunnel, Tracer
    from fedproxy.proxy.runtime import Runtime
    from fedproxy.record import Record

ASLEEP: Final = 1.0  # after so many lost seconds members may have given up on this edge ...
_AWAKE: Final = 10.0  # ... for so many seconds
_DRAWN: Final = 256  # ids at a time


class Context:
    """One worker's data plane, as its parts see it.

    runtime: what is in force. log: takes the record of each finished request. tracer: makes spans of
    requests, if tracing is on. on_moved: called with the key of a launch and the name of the member that it
    moved to, so that other workers can be told. on_build: called with the digest of an image and the name of
    the member that builds it; on_seen: with what a launch told that has ended. on_event: called with what
    operators should know. waits: what launches have taught, whichever balancer is in force.
    synchronize: calls back once all other workers have taken what they were told before; None without
    others. careful: every request has to be checked, because of the policy or because the edge drains.
    """

    def __init__(
        self,
        *,
        log: Callable[[Record], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log = log
        self.clock = clock
        self.on_moved: Callable[[bytes, str], None] | None = None
        self.on_build: Callable[[bytes, str], None] | None = None
        self.on_seen: Callable[[Seen], None] | None = None
        self.on_event: Callable[[Event], None] | None = None
        self.synchronize: Callable[[Callable[[], None]], None] | None = None
        self.tracer: Tracer | None = None
        # For ids, which have to differ and guard nothing, and for balancing.
        chance = random.Random()  # noqa: S311
        self.random_bits: Callable[[int], int] = chance.getrandbits
        self.ids: list[tuple[bytes, bytes]] = []
        self.counts = EdgeCounts()
        self.connections: set[Connection] = set()
        self.admission = Admission(self.counts, self.report)
        self.tunnels: set[OpenTunnel] = set()
        self.tasks = Tasks()
        self.moved = MovedKeys()
        self.waits = ExpectedWait(Knowledge())
        self.sessions = Sessions(most=sys.maxsize)  # until there is a config
        self.wall: Callable[[], float] = time.time
        # The edge's own pages, as the member that has them.
        self.own = Member("", "", Breaker(BreakerPolicy()))
        self.resolver = Resolver(clock, report=self.report)
        self.careful = False
        self.runtime: Runtime = empty(self.own, self.moved, self.sessions, chance, self.wall)
        self._pulse = Pulse()
        self._woke = float("-inf")
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the edge drains: every connection ends with the response under way."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self.refresh()

    def refresh(self) -> None:
        """Has every connection work out again what depends on the policy."""
        self.careful = self._draining or self.admission.careful
        for connection in list(self.connections):
            connection.refresh()

    def report(self, event: Event) -> None:
        """Tells the operators, if anybody wants to know."""
        if self.on_event is not None:
            self.on_event(event)

    def draw_ids(self) -> list[tuple[bytes, bytes]]:
        """Some more trace ids for `ids`, each with a traceparent that has it and is not sampled.

        All of an id is random: from a counter in it, anybody could tell how many requests there are, and
        samplers that go by a part of it would sample in bursts.
        """
        # A parent belongs to its trace, so all of these may have the same one, which must not be zero.
        rest = b"-%016x-00" % (self.random_bits(64) | 1)
        # To make one long line and to split it is faster than to make each.
        ids = self.random_bits(128 * _DRAWN).to_bytes(16 * _DRAWN, "big").hex(" ", 16).encode()
        traceparents = b"00-" + ids.replace(b" ", rest + b" 00-") + rest
        self.ids = list(zip(ids.split(b" "), traceparents.split(b" "), strict=True))
        return self.ids

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs something that has to wait, until the edge is closed."""
        return self.tasks.start(coroutine)

    def lost(self) -> float:
        """Seconds in which this process's loop did not run, all together. They count for no time-out."""
        return self._pulse.lost(time.monotonic())

    def slept(self, since: float, now: float) -> bool:
        """Whether this process has slept since then, so that a connection lost now may be its own fault."""
        return since <= self._woke >= now - _AWAKE or self._pulse.overdue(time.monotonic()) >= ASLEEP

    def close_idle_upstreams(self) -> bool:
        """Closes every idle connection to a member; False if there is none."""
        return sum(pool.close_idle() for pool in self.runtime.pools.values()) > 0
