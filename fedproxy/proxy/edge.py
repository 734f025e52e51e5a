"""What all connections of one worker share: the policy in force, the federation, the pools, the counts.

A policy and a federation are replaced whole (`Edge.apply`); what was read under the old one goes with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedproxy.bounded import Memo
from fedproxy.decide.affinity import KEYS, Source
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.decide.launch import MovedKeys
from fedproxy.decide.limit import LaunchRate, client_key
from fedproxy.decide.pulse import Pulse
from fedproxy.decide.retry import RetryBudget
from fedproxy.decide.route import Action, Router, ToMember, ToMembers, ToPrime, is_session
from fedproxy.errors import Drained, TooManyUploads, UploadsFull
from fedproxy.proxy.resolver import Resolver
from fedproxy.proxy.traced import take_answer
from fedproxy.proxy.upstream import Pool
from fedproxy.wire.cookie import set_cookie
from fedproxy.wire.path import canonical, readings
from fedproxy.wire.request import BlockReader, HeaderBlock, RequestLine, host_name, read_line

if TYPE_CHECKING:
    from fedproxy.decide.federation import Federation
    from fedproxy.decide.member import Member
    from fedproxy.proxy.downstream import Downstream
    from fedproxy.proxy.entrance import Entrance
    from fedproxy.proxy.exchange import Exchange, Visitor
    from fedproxy.proxy.own_page import OwnPage
    from fedproxy.proxy.policy import Endpoint, Policy, Rate
    from fedproxy.proxy.traced import Tracer
    from fedproxy.proxy.tunnel import Tunnel

_log = logging.getLogger(__name__)
_UNREAD = 64  # warnings about proxies that name no address, one for each proxy and field
_BUILD = b"/build/"
_PAGES = b"/v2/"
_ASLEEP = 1.0  # after so many lost seconds members may have given up on this edge ...
_AWAKE = 10.0  # ... for so many seconds
_NUMBERS = [b"%02x" % number for number in range(256)]


def _between(start: bytes, end: bytes) -> list[bytes]:
    """Each of the numbers between these two. To join all and to split is faster than to add each."""
    return (start + (end + b" " + start).join(_NUMBERS) + end).split(b" ")


@dataclass(slots=True)
class Ask:
    """A request line, and what this edge makes of it: worked out once for each different line."""

    line: RequestLine
    action: Action
    key: bytes | None
    proxied: bool  # streamed through, not answered here
    balanced: bool  # any member may serve it: not to a certain one, and about no session
    ordinary: bool  # proxied, no launch, neither HTTP/1.0 nor in absolute-form
    renews: bool  # its response renews the cookie
    build: bool  # errors are events of a stream (BinderHub's client gives up on any other status)
    launch: bool  # a launch, if an event stream is asked for
    stays: bool = False  # about a session, which no other member has
    banned: bool = False  # asks for a repository that the operator does not serve


@dataclass(slots=True)
class Entry:
    """One line of the access log, in the contract's words. Times in seconds, sizes in bytes."""

    time: float
    request_id: str
    client: str
    method: str
    host: str
    target: str
    protocol: str
    status: int
    bytes_in: int
    bytes_out: int
    duration: float
    ttfb: float | None
    member: str | None
    attempts: int
    affinity: str | None
    termination: str
    launch: str | None
    user_agent: str
    referer: str


class Edge:
    """One worker's data plane, without its listeners.

    room: visitors' connections that this process has files for, whatever the policy says. on_launched: called
    with the client's key for each launch that counts against its rate, so that other workers can be told.
    on_moved: called with the key of a launch and the name of the member that it moved to, for the same.
    tracer: whoever makes spans of requests, if anybody does.
    """

    def __init__(
        self,
        *,
        log: Callable[[Entry], None] | None = None,
        local: Callable[[], asyncio.Protocol] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log = log
        self.local = local
        self.clock = clock
        self.room = 1 << 30
        self.on_launched: Callable[[bytes], None] | None = None
        self.on_moved: Callable[[bytes, str], None] | None = None
        self.tracer: Tracer | None = None
        self.rate: LaunchRate | None = None
        self._rate_policy: Rate | None = None
        # Ids are told apart by it, nothing is guarded.
        self.random_bits = random.Random().getrandbits  # noqa: S311
        self.ids: list[tuple[bytes, bytes]] = []
        self.counts = EdgeCounts()
        self.connections: set[Downstream | Entrance | OwnPage] = set()
        self.addresses: dict[bytes, int] = {}
        self.uploads: dict[tuple[Member, bytes], int] = {}
        self.under_way: dict[Member, int] = {}  # uploads, of all clients
        self.tunnels: set[Tunnel] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.pools: dict[str, Pool] = {}
        self.moved = MovedKeys()
        self.resolver = Resolver(clock)
        self._pulse = Pulse()
        self._woke = float("-inf")
        self._draining = False
        self._retired: list[Pool] = []
        self._unread: set[tuple[bytes, bytes]] = set()

    policy: Policy
    federation: Federation
    router: Router
    budget: RetryBudget

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
        public = policy.origin.encode("ascii") if policy.origin else b""
        # The host that visitors type, and its port if it has one, where it speaks https.
        self.public = public.removeprefix(b"https://") if public.startswith(b"https://") else b""
        self._key_of = KEYS.get(policy.key)
        # A known line and a known block, with the CRLF between them, are within the limit.
        half = policy.limits.request_head // 2 - 1
        self.asks: Memo[Ask] = Memo(self._read_ask, entries=4096, longest=min(2048, half))
        self.longest_block = min(4096, half)  # that is kept
        bans = policy.bans
        ban = bans.agent if bans.user_agents else None
        cookie, origin = policy.cookie, policy.origin
        reader = BlockReader(cookie, origin, trusted=False, ban=ban)
        self.blocks = Memo(reader.read, 2048, self.longest_block)
        reader = BlockReader(cookie, origin, trusted=True, ban=ban)
        self.trusted_blocks = Memo(reader.read, 2048, self.longest_block)
        self.trusts = Memo(policy.trusted.__contains__, longest=64)
        self.bans_address = Memo(bans.networks.__contains__, longest=64)
        if policy.rate != self._rate_policy:
            self._rate_policy = policy.rate
            self.rate = LaunchRate(policy.rate.launches, policy.rate.per) if policy.rate is not None else None
        self._unread.clear()
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
        self.careful = self._draining or bool(self.policy.bans) or self.rate is not None
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

    def enter(self, connection: Downstream | Entrance) -> bool:
        """Counts a visitor's new connection; False if it is one too many."""
        self.connections.add(connection)
        return self.count()

    def count(self) -> bool:
        """The same, for one that nobody looks after yet."""
        counts = self.counts
        counts.connections += 1
        if counts.connections <= min(self.policy.limits.connections, self.room):
            return True
        counts.rejected["connections"] += 1
        return False

    def believes(self, peer: bytes) -> bool:
        """Whether a peer is a trusted proxy."""
        return bool(self.policy.trusted) and self.trusts[peer]

    def may_introduce(self, proxy: bytes) -> bool:
        """Whether a peer may name the visitor in a PROXY header. Without `trusted_proxies` every peer may."""
        return not self.policy.trusted or self.trusts[proxy]

    def enter_address(self, address: bytes, *, is_there: bool = False) -> bytes | None:
        """Counts a connection of a client address, and returns what `leave_address` is to be given.

        None if the address has as many as it may. `is_there`: the connection is open already, and is counted
        in any case.
        """
        key = client_key(address)
        count = self.addresses.get(key, 0)
        if not is_there and count >= self.policy.limits.connections_per_address:
            self.counts.rejected["address"] += 1
            return None
        self.addresses[key] = count + 1
        return key

    def leave_address(self, key: bytes) -> None:
        """The connection is gone."""
        count = self.addresses[key] - 1
        if count:
            self.addresses[key] = count
        else:
            del self.addresses[key]

    def enter_upload(self, visitor: Visitor, member: Member) -> tuple[Member, bytes] | None:
        """Counts an upload to a member, and returns the key for `leave_upload`.

        None if nobody is counted. Raises `TooManyUploads` or `UploadsFull`.
        """
        limit = self.policy.limits.uploads_per_address
        if not limit:
            return None
        # However little a member takes, nobody holds more than a part of it, nor do all uploads together.
        under_way = self.under_way.get(member, 0)
        if under_way >= max(1, member.max_requests * 3 // 4):
            raise UploadsFull
        client = visitor.whose()
        key = member, client_key(client) if client is not None else b""
        if client is not None:
            count = self.uploads.get(key, 0)
            if count >= min(limit, max(1, member.max_requests // 4)):
                raise TooManyUploads
            self.uploads[key] = count + 1
        self.under_way[member] = under_way + 1
        return key

    def leave_upload(self, key: tuple[Member, bytes]) -> None:
        """The body has arrived, or will not."""
        member, client = key
        self.under_way[member] -= 1
        if not self.under_way[member]:
            del self.under_way[member]
        if client:
            count = self.uploads[key] - 1
            if count:
                self.uploads[key] = count
            else:
                del self.uploads[key]

    def ask_launch(self, client: bytes) -> float:
        """Counts a launch of a client address: 0, or in how many seconds it may ask again."""
        if self.rate is None:
            return 0.0
        key = client_key(client)
        wait = self.rate.ask(key, self.clock())
        if not wait and self.on_launched is not None:
            self.on_launched(key)
        return wait

    def note_launched(self, key: bytes, now: float) -> None:
        """Counts a launch that another worker let through; `key` is what its `on_launched` was given."""
        if self.rate is not None:
            self.rate.note(key, now)

    def note_unread(self, peer: bytes, field: bytes, address: bytes) -> None:
        """Warns that a trusted proxy named a visitor by something other than an address."""
        if len(self._unread) < _UNREAD and (peer, field) not in self._unread:
            self._unread.add((peer, field))
            _log.warning(
                "trusted proxy %s: %s names a visitor as %s, which is not an IP address; such clients are "
                'unknown, "-" in the log (not repeated for this proxy and header)',
                peer.decode("ascii"),
                field.decode("ascii"),
                ascii(address[:64].decode("latin-1")),
            )

    def _read_ask(self, raw: bytes) -> Ask:
        line = read_line(raw)
        path = line.path
        paths = readings(path)
        if len(paths) == 1:
            action = self.router.match(path)
            key = self._key_of(path) if self._key_of is not None else None
            build = path.startswith(_BUILD)
            launch = build and path.count(b"/") > 2
            renews = build or path.startswith(_PAGES)
            stays = is_session(path)
        else:
            action = self.router.judge(paths, path)
            key = self._key_of(canonical(path)) if self._key_of is not None else None
            # What one of the servers behind may take it for counts here too.
            build = any(path.startswith(_BUILD) for path in paths)
            launch = any(path.startswith(_BUILD) and path.count(b"/") > 2 for path in paths)
            renews = build or any(path.startswith(_PAGES) for path in paths)
            # What is a launch in the form that is compared is no session because others may read it as one.
            stays = is_session(paths[0]) or (not paths[0].startswith(_BUILD) and any(map(is_session, paths)))
        bans = self.policy.bans
        proxied = isinstance(action, ToMembers | ToPrime | ToMember) and not action.redirect
        launch = launch and line.method == b"GET"
        return Ask(
            line=line,
            action=action,
            key=key,
            proxied=proxied,
            balanced=isinstance(action, ToMembers) and not stays,
            ordinary=proxied and not launch and line.authority is None and not line.http10,
            renews=renews,
            build=build,
            launch=launch,
            stays=stays,
            banned=bool(bans.repositories) and bans.repository(*paths),
        )

    def only(self, ask: Ask, block: HeaderBlock) -> tuple[Member, Source] | None:
        """The one member that a request is for, if its host or its route says so."""
        if self.host_members:
            member = self.host_members.get(host_name(ask.line.authority or block.host or b""))
            if member is not None:
                return member, Source.HOST
        action = ask.action
        if isinstance(action, ToPrime) and self.federation.prime is not None:
            return self.federation.prime, Source.HOST
        if isinstance(action, ToMember):
            named = self.federation.by_name.get(action.name)
            return None if named is None else (named, Source.HOST)
        return None

    def choose(
        self, ask: Ask, block: HeaderBlock, client: bytes, now: float, launch: bool = False
    ) -> Lease | Refusal:
        """The member for a request that no attempt was made for yet."""
        if self.host_members or not ask.balanced:
            only = self.only(ask, block)
            if ask.stays:
                return self._choose_session(ask, block, only, client, now, launch)
            if only is not None:
                return self.federation.acquire_member(only[0], only[1], (), now, launch, client)
        pinned = self.pins.get(block.cookie)
        if pinned is None and block.cookie:
            pinned = self._pin_of(block.cookie, now, launch)
        key = ask.key if self._key_of is not None else client
        if launch and pinned is None and key is not None and self.moved:
            # Who has no cookie, as in a page that embeds a launch, comes back to where it was moved.
            moved = self.federation.by_name.get(self.moved.get(key, now) or "")
            if moved is not None and moved.share(now) > 0 and moved.available(now, launch, client):
                return self.federation.acquire_member(moved, Source.KEY, (), now, launch, client)
        return self.federation.acquire(key, pinned, (), now, launch, client)

    def _choose_session(
        self,
        ask: Ask,
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
            ask.key if self._key_of is not None else client, None, (), now, launch, client
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

    def log_exchange(self, exchange: Exchange, now: float) -> None:
        """Writes the line of an exchange that is over."""
        downstream: Downstream = exchange.visitor  # type: ignore[assignment]
        first = exchange.first_byte_at
        self.log_request(
            downstream,
            exchange.ask.line,
            exchange.block,
            status=exchange.status,
            bytes_in=exchange.bytes_in,
            bytes_out=exchange.bytes_out,
            duration=now - exchange.started,
            ttfb=None if first is None else first - exchange.started,
            member=exchange.pool.member.name if exchange.attempts else None,
            attempts=exchange.attempts,
            affinity=exchange.source.value if exchange.source is not None else None,
            termination=exchange.termination,
            launch=exchange.outcome,
            exchanged=True,
        )

    def log_request(
        self,
        downstream: Downstream,
        line: RequestLine | None,
        block: HeaderBlock | None,
        *,
        status: int,
        termination: str,
        bytes_in: int = 0,
        bytes_out: int = 0,
        duration: float = 0.0,
        ttfb: float | None = None,
        member: str | None = None,
        attempts: int = 0,
        affinity: str | None = None,
        launch: str | None = None,
        exchanged: bool = False,
    ) -> None:
        """Writes the line of a request; `line` and `block` are None if it was refused unread."""
        if self.tracer is not None and not exchanged and line is not None and block is not None:
            take_answer(self, downstream, line, block, status, member, affinity, termination)
        if self.log is None:
            return
        method, target, protocol = line.words if line else ("", "", "HTTP/1.1")
        host, agent, referer = block.words() if block else ("", "", "")
        if line and line.authority:
            host = line.authority.decode("latin-1")
        self.log(
            Entry(
                time=time.time(),
                request_id=downstream.request_id.decode("ascii"),
                client=downstream.client.decode("latin-1"),
                method=method,
                host=host,
                target=target,
                protocol=protocol,
                status=status,
                bytes_in=bytes_in,
                bytes_out=bytes_out,
                duration=duration,
                ttfb=ttfb,
                member=member,
                attempts=attempts,
                affinity=affinity,
                termination=termination,
                launch=launch,
                user_agent=agent,
                referer=referer,
            )
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
