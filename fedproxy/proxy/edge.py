"""What all connections of one worker share: the policy in force, the federation, the pools, the counts.

A policy and a federation are replaced whole (`Edge.apply`); what was read under the old one goes with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedproxy.bounded import Memo
from fedproxy.decide.affinity import KEYS, Source
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.decide.launch import MovedKeys
from fedproxy.decide.pulse import Pulse
from fedproxy.decide.retry import RetryBudget
from fedproxy.decide.route import Router, ToMember, ToPrime
from fedproxy.errors import Drained, EdgeError, MemberError
from fedproxy.proxy.admission import Admission
from fedproxy.proxy.pools import Pool
from fedproxy.proxy.resolver import Resolver
from fedproxy.proxy.routing import RoutedRequest, route
from fedproxy.proxy.traced import trace_of_answer
from fedproxy.record import Record
from fedproxy.wire.cookie import set_cookie
from fedproxy.wire.request import BlockReader, HeaderBlock, RequestLine, host_name

if TYPE_CHECKING:
    from fedproxy.decide.federation import Federation
    from fedproxy.decide.member import Member
    from fedproxy.errors import VisitorError
    from fedproxy.proxy.admission import Origin
    from fedproxy.proxy.answers import Answer, AnsweredRequest
    from fedproxy.proxy.downstream import Downstream
    from fedproxy.proxy.entrance import Entrance
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.own_page import OwnPage
    from fedproxy.proxy.policy import Endpoint, Policy
    from fedproxy.proxy.traced import Tracer
    from fedproxy.proxy.tunnel import Tunnel

_ASLEEP = 1.0  # after so many lost seconds members may have given up on this edge ...
_AWAKE = 10.0  # ... for so many seconds
_NUMBERS = [b"%02x" % number for number in range(256)]


def _between(start: bytes, end: bytes) -> list[bytes]:
    """Each of the numbers between these two. To join all and to split is faster than to add each."""
    return (start + (end + b" " + start).join(_NUMBERS) + end).split(b" ")


class Edge:
    """One worker's data plane, without its listeners.

    on_moved: called with the key of a launch and the name of the member that it moved to, for the same.
    tracer: whoever makes spans of requests, if anybody does.
    """

    def __init__(
        self,
        *,
        log: Callable[[Record], None] | None = None,
        local: Callable[[], asyncio.Protocol] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log = log
        self.local = local
        self.clock = clock
        self.on_moved: Callable[[bytes, str], None] | None = None
        self.tracer: Tracer | None = None
        # Ids are told apart by it, nothing is guarded.
        self.random_bits = random.Random().getrandbits  # noqa: S311
        self.ids: list[tuple[bytes, bytes]] = []
        self.counts = EdgeCounts()
        self.connections: set[Downstream | Entrance | OwnPage] = set()
        self.admission = Admission(self.counts)
        self.tunnels: set[Tunnel] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.pools: dict[str, Pool] = {}
        self.moved = MovedKeys()
        self.resolver = Resolver(clock)
        self._pulse = Pulse()
        self._woke = float("-inf")
        self._draining = False
        self._retired: list[Pool] = []
        self._routed_by: object = None  # what the meaning of a request line depends on, ...
        self._read_by: object = None  # ... and of a block

    policy: Policy
    federation: Federation
    router: Router
    budget: RetryBudget
    routed: Memo[RoutedRequest]
    blocks: Memo[HeaderBlock]
    trusted_blocks: Memo[HeaderBlock]

    def apply(
        self,
        policy: Policy,
        federation: Federation,
        endpoints: dict[str, Endpoint],
        cookie_values: dict[str, bytes],
        router: Router,
        budget: RetryBudget,
    ) -> None:
        """Puts a config in force. Connections to members that stay the same are kept."""
        self.policy = policy
        self.federation = federation
        self.router = router
        if self.pools:
            budget.take_over(self.budget)
        self.budget = budget
        old, self.pools = self.pools, {}
        for member in federation.members:
            pool = old.get(member.name)
            if pool is not None and pool.endpoint == endpoints[member.name] and pool.member is member:
                pool.cookie_value = cookie_values[member.name]
                del old[member.name]
            else:
                pool = Pool(self, member, endpoints[member.name], cookie_values[member.name])
            pool.room = policy.limits.idle_connections
            pool.sort()
            self.pools[member.name] = pool
        for pool in old.values():
            pool.close()
            self._retired.append(pool)
        self.pins: dict[bytes | None, Member] = {
            pool.cookie_value: pool.member for pool in self.pools.values()
        }
        self.host_members = {
            host_name((f"[{host}]" if ":" in host else host).encode("ascii")): member
            for member in federation.members
            for host in member.hosts
        }
        self.cookies = {
            (name, secure): set_cookie(policy.cookie, pool.cookie_value, policy.cookie_max_age, secure=secure)
            for name, pool in self.pools.items()
            for secure in (False, True)
        }
        self.admission.apply(policy, self.host_members)
        self._key_of = KEYS.get(policy.key)
        # A known line and a known block, with the CRLF between them, are within the limit.
        half = policy.limits.request_head // 2 - 1
        bans, cookie, origin = policy.bans, policy.cookie, policy.origin
        # What is remembered of heads is kept if it means the same: a member or a weight changes nothing.
        routed_by = (router, policy.key, bans.repositories, half)
        if routed_by != self._routed_by:
            self._routed_by = routed_by
            self.routed = Memo(self._route, entries=4096, longest=min(2048, half))
        read_by = (cookie, origin, bans.user_agents, half)
        if read_by != self._read_by:
            self._read_by = read_by
            self.longest_block = min(4096, half)  # that is kept
            ban = bans.agent if bans.user_agents else None
            reader = BlockReader(cookie, origin, trusted=False, ban=ban)
            self.blocks = Memo(reader.read, 2048, self.longest_block)
            reader = BlockReader(cookie, origin, trusted=True, ban=ban)
            self.trusted_blocks = Memo(reader.read, 2048, self.longest_block)
        self._refresh()

    @property
    def draining(self) -> bool:
        """Whether the edge goes down: every connection ends with the response under way."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self._refresh()

    def _refresh(self) -> None:
        """Tells every connection to think again of what it knows of its peer and of the policy."""
        self.careful = self._draining or self.admission.careful
        for connection in list(self.connections):
            connection.refresh()

    def draw_ids(self) -> list[tuple[bytes, bytes]]:
        """Some more trace ids for `ids`, each with a traceparent that has it and is not sampled.

        Samplers look at the second half of an id, so its first digits are those that differ.
        """
        start = b"%016x" % self.random_bits(64)
        # No half of an id is zero, nor is a parent.
        end = b"%014x" % (self.random_bits(56) | 1)
        rest = b"%b-%016x-00" % (end, self.random_bits(64) | 1)
        ids = _between(start, end)
        self.ids = list(zip(ids, _between(b"00-" + start, rest), strict=True))
        return self.ids

    def _route(self, raw: bytes) -> RoutedRequest:
        return route(raw, self.router, self._key_of, self.policy.bans)

    def only(self, routed: RoutedRequest, block: HeaderBlock) -> tuple[Member, Source] | None:
        """The one member that a request is for, if its host or its route says so."""
        if self.host_members:
            member = self.host_members.get(host_name(routed.line.authority or block.host or b""))
            if member is not None:
                return member, Source.HOST
        action = routed.action
        if isinstance(action, ToPrime) and self.federation.prime is not None:
            return self.federation.prime, Source.HOST
        if isinstance(action, ToMember):
            named = self.federation.by_name.get(action.name)
            return None if named is None else (named, Source.HOST)
        return None

    def choose(
        self, routed: RoutedRequest, block: HeaderBlock, client: bytes, now: float, launch: bool = False
    ) -> Lease | Refusal:
        """The member for a request that no attempt was made for yet."""
        if self.host_members or not routed.balanced:
            only = self.only(routed, block)
            if routed.stays:
                return self._choose_session(routed, block, only, client, now, launch)
            if only is not None:
                return self.federation.acquire_member(only[0], only[1], (), now, launch, client)
        pinned = self.pins.get(block.cookie)
        if pinned is None and block.cookie:
            pinned = self._pin_of(block.cookie, now, launch)
        key = routed.key if self._key_of is not None else client
        if launch and pinned is None and key is not None and self.moved:
            # Who has no cookie, as in a page that embeds a launch, comes back to where it was moved.
            moved = self.federation.by_name.get(self.moved.get(key, now) or "")
            if moved is not None and moved.share(now) > 0 and moved.available(now, launch, client):
                return self.federation.acquire_member(moved, Source.KEY, (), now, launch, client)
        return self.federation.acquire(key, pinned, (), now, launch, client)

    def _choose_session(
        self,
        routed: RoutedRequest,
        block: HeaderBlock,
        only: tuple[Member, Source] | None,
        client: bytes,
        now: float,
        launch: bool,
    ) -> Lease | Refusal:
        """The member that has the session, or any if nothing says which. The outcome is not counted."""
        federation = self.federation
        if only is not None:
            return federation.acquire_session(*only, launch)
        pinned = self.pins.get(block.cookie)
        if pinned is None and block.cookie:
            pinned = self._pin_of(block.cookie, now, False)
        if pinned is not None:
            return federation.acquire_session(pinned, Source.COOKIE, launch)
        lease = federation.acquire(
            routed.key if self._key_of is not None else client, None, (), now, launch, client
        )
        if isinstance(lease, Lease):
            federation.spare(lease, now, client)
        return lease

    def _pin_of(self, cookie: bytes, now: float, launch: bool) -> Member | None:
        """The first value that names an available member, else the first that names any."""
        named = [member for value in cookie.split(b";") if (member := self.pins.get(value)) is not None]
        available = (member for member in named if member.available(now, launch))
        return next(available, named[0] if named else None)

    def note_moved(self, key: bytes, name: str, now: float) -> None:
        """Launches of this key are with the member of that name, as `on_moved` was told here or elsewhere."""
        self.moved.note(key, name, now)

    def idle(self) -> int:
        """Idle connections to members."""
        return sum(pool.waiting for pool in self.pools.values())

    def busy(self) -> int:
        """Connections to members that serve an exchange or a tunnel."""
        return sum(pool.busy for pool in self.pools.values())

    async def run(self) -> None:
        """The sweep: once a second, or as often as the shortest time-out needs."""
        while True:
            interval = min(1.0, self.policy.timeouts.shortest / 4)
            # A sweep may be held up too.
            lost = self._pulse.beat(time.monotonic(), interval)
            await asyncio.sleep(interval)
            lost += self._pulse.beat(time.monotonic(), interval)
            now = self.clock()
            if lost:
                self.grant(lost, now)
            self.sweep(now)

    def lost(self) -> float:
        """Seconds in which this process's loop did not run, all together. They count for no time-out."""
        return self._pulse.lost(time.monotonic())

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        if lost >= _ASLEEP:
            self._woke = now
        for downstream in self.connections:
            downstream.grant(lost, now)
        for tunnel in self.tunnels:
            tunnel.grant(lost, now)

    def slept(self, since: float, now: float) -> bool:
        """Whether this process has slept since then, so that a connection lost now may be its own fault."""
        return since <= self._woke >= now - _AWAKE or self._pulse.overdue(time.monotonic()) >= _ASLEEP

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
        self._retired = [pool for pool in self._retired if pool.connections]
        self.federation.roll(now)

    def close_idle(self, since: float) -> None:
        """Closes the connections that have served nobody since then."""
        for downstream in list(self.connections):
            downstream.close_if_idle(since)

    def close_idle_upstreams(self) -> bool:
        """Closes every idle connection to a member; False if there is none."""
        idle = self.idle()
        for pool in self.pools.values():
            pool.expire(float("inf"))
        return idle > 0

    def record_exchange(self, exchange: Exchange, now: float) -> None:
        """Tells of an exchange that is over whoever wants to know."""
        notes = exchange.notes
        trace = None if notes is None else notes.record(now)
        if self.log is None and trace is None:
            return
        first, started, error = exchange.first_byte_at, exchange.started, exchange.error
        record = self._record(
            exchange.origin, exchange.request_id, exchange.routed.line, exchange.block, exchange.status
        )
        record.bytes_in = exchange.bytes_in
        record.bytes_out = exchange.bytes_out
        record.duration = now - started
        record.ttfb = None if first is None else first - started
        record.member = exchange.pool.member.name if exchange.attempts else None
        record.attempts = exchange.attempts
        record.affinity = exchange.source.value if exchange.source is not None else None
        record.termination = exchange.termination
        record.launch = exchange.outcome
        record.error = error.reason if isinstance(error, MemberError | EdgeError) else None
        if self.log is not None:
            self.log(record)
        if notes is not None and notes.tracer is not None:
            record.trace = trace
            notes.tracer.take(record)

    def record_answer(self, request: AnsweredRequest, answer: Answer) -> None:
        """Tells of a request that was answered without an exchange, which takes no time worth measuring."""
        trace = None
        if self.tracer is not None:
            trace = trace_of_answer(self, self.tracer, request.trusted, request.block, request.traceparent)
        if self.log is None and trace is None:
            return
        line, block = request.routed.line, request.block
        record = self._record(request.origin, request.request_id, line, block, answer.status)
        record.member = answer.member
        record.affinity = answer.source.value if answer.source is not None else None
        record.termination = answer.termination
        if self.log is not None:
            self.log(record)
        if trace is not None and self.tracer is not None:
            record.trace = trace
            self.tracer.take(record)

    def record_refusal(self, origin: Origin, request_id: bytes, error: VisitorError) -> None:
        """Tells of a request that was refused unread."""
        if self.log is not None:
            record = self._record(origin, request_id, None, None, error.status)
            record.termination = error.termination
            self.log(record)

    def _record(
        self,
        origin: Origin,
        request_id: bytes,
        line: RequestLine | None,
        block: HeaderBlock | None,
        status: int,
    ) -> Record:
        method, target, protocol = line.words if line else ("", "", "HTTP/1.1")
        host, agent, referer = block.words() if block else ("", "", "")
        if line and line.authority:
            host = line.authority.decode("latin-1")
        return Record(
            time=time.time(),
            request_id=request_id.decode("ascii"),
            client=origin.client.decode("latin-1"),
            method=method,
            host=host,
            target=target,
            protocol=protocol,
            status=status,
            user_agent=agent,
            referer=referer,
            secure=origin.secure,
        )

    async def close(self) -> None:
        """Drops everything that is still open."""
        for downstream in list(self.connections):
            downstream.cut(Drained())
        for tunnel in list(self.tunnels):
            tunnel.cut("D")
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for pool in (*self.pools.values(), *self._retired):
            pool.close()
            for upstream in list(pool.connections):
                upstream.abort()
        await self.resolver.close()
