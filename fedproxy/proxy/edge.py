"""One worker's data plane, put together: a config is put in force, and deadlines are looked at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from fedproxy.errors import Drained
from fedproxy.proxy.context import ASLEEP, Context
from fedproxy.proxy.h1.upstream import Upstream
from fedproxy.proxy.local import LocalPool
from fedproxy.proxy.pools import Pool
from fedproxy.proxy.runtime import compose
from fedproxy.tasks import cancel

if TYPE_CHECKING:
    from fedproxy.decide.federation import Federation
    from fedproxy.decide.retry import RetryBudget
    from fedproxy.decide.route import Router
    from fedproxy.proxy.policy import Endpoint, Policy
    from fedproxy.proxy.ports import MemberPool
    from fedproxy.record import Record


_EXPIRE: Final = 60.0  # seconds between two looks for sessions that are over


class Edge(Context):
    """One worker's data plane, without its listeners. local: makes what serves the edge's own pages."""

    pools: dict[str, Pool[Upstream]]

    def __init__(
        self,
        *,
        local: Callable[[], asyncio.Protocol],
        log: Callable[[Record], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(log=log, clock=clock)
        self.local = LocalPool(self, local)
        self.pools = {}
        self._retired: list[Pool[Upstream]] = []
        self._cookie_values: Mapping[str, bytes] = {}
        self._expired = 0.0  # when sessions were looked over last

    @property
    def federation(self) -> Federation:
        """The members in force."""
        return self.runtime.federation

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.runtime.policy

    def apply(
        self,
        policy: Policy,
        federation: Federation,
        endpoints: Mapping[str, Endpoint],
        cookie_values: Mapping[str, bytes],
        router: Router,
        budget: RetryBudget,
    ) -> None:
        """Puts a config in force. Connections to members that stay the same are kept."""
        before = self.runtime
        if before.federation.members:
            budget.take_over(before.budget)
        old = self.pools
        self.pools = {}
        for member in federation.members:
            name = member.name
            pool = old.get(name)
            if pool is not None and pool.endpoint == endpoints[name] and pool.member is member:
                del old[name]
            else:
                pool = Pool(self, member, endpoints[name], Upstream)
            pool.room = policy.limits.idle_connections
            self.pools[name] = pool
        self._cookie_values = cookie_values
        self.waits.set_clock(self.clock(), self.wall())
        self._compose(policy, federation, router, budget)
        self.sessions.shrink(policy.limits.sessions)
        for pool in self.pools.values():
            pool.sort()
        for pool in old.values():
            pool.close()
            self._retired.append(pool)
        self.admission.apply(policy, self.runtime.host_members)
        self.refresh()

    def reroute(self, router: Router) -> None:
        """Puts other routes in force; everything else stays."""
        runtime = self.runtime
        self._compose(runtime.policy, runtime.federation, router, runtime.budget)
        self.refresh()

    def _compose(self, policy: Policy, federation: Federation, router: Router, budget: RetryBudget) -> None:
        pools: dict[str, MemberPool] = {**self.pools, self.own.name: self.local}
        self.runtime = compose(
            policy,
            federation,
            self._cookie_values,
            router,
            budget,
            pools,
            self.own,
            self.moved,
            self.sessions,
            self.wall,
            self.runtime,
        )
        for pool in self.pools.values():
            pool.set_hosts(router.says_host)

    def idle(self) -> int:
        """Idle connections to members."""
        return sum(pool.waiting for pool in self.pools.values())

    def busy(self) -> int:
        """Connections to members that serve an exchange or a tunnel."""
        return sum(pool.busy for pool in self.pools.values())

    async def run(self) -> None:
        """The sweep: once a second, or as often as the shortest time-out needs."""
        while True:
            interval = min(1.0, self.policy.timeouts.shortest / 4, self.runtime.pins.quarter / 8)
            # A sweep may be held up too.
            lost = self._pulse.beat(time.monotonic(), interval)
            await asyncio.sleep(interval)
            lost += self._pulse.beat(time.monotonic(), interval)
            now = self.clock()
            if lost:
                self.grant(lost, now)
            self.sweep(now)

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        if lost >= ASLEEP:
            self._woke = now
        for downstream in self.connections:
            downstream.grant(lost, now)
        for tunnel in self.tunnels:
            tunnel.grant(lost, now)

    def sweep(self, now: float) -> None:
        """Looks at every deadline once."""
        for downstream in list(self.connections):
            downstream.sweep(now)
        for tunnel in list(self.tunnels):
            tunnel.sweep(now)
        before = now - self.policy.timeouts.keepalive
        for pool in self.pools.values():
            pool.expire(before, now)
        self.resolver.sweep(now)
        self.runtime.pins.sweep()
        if now - self._expired >= _EXPIRE:
            self._expired = now
            self.sessions.expire(self.wall())
        self._retired = [pool for pool in self._retired if pool.connections]
        self.waits.set_clock(now, self.wall())
        self.federation.roll(now)

    def close_idle(self, since: float) -> None:
        """Closes the connections that have served nobody since then."""
        for downstream in list(self.connections):
            downstream.close_if_idle(since)

    async def close(self) -> None:
        """Drops everything that is still open."""
        for downstream in list(self.connections):
            downstream.cut(Drained())
        for tunnel in list(self.tunnels):
            tunnel.cut("D")
        await cancel(self.tasks)
        for pool in (*self.pools.values(), *self._retired):
            pool.close()
            for upstream in list(pool.connections):
                upstream.abort()
        await self.resolver.close()
