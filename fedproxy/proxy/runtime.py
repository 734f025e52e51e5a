"""What is in force: one frozen object, replaced by one assignment when the config changes.

It also decides what depends on nothing else: which member serves a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedproxy.bounded import Memo
from fedproxy.decide.affinity import KEYS, Source
from fedproxy.decide.federation import Federation, FederationPolicy, Lease, Refusal
from fedproxy.decide.launch import FailureTable, MovedKeys
from fedproxy.decide.limit import Bans, Networks
from fedproxy.decide.member import Member
from fedproxy.decide.retry import RetryBudget
from fedproxy.decide.route import Router, ToMember, ToPrime
from fedproxy.http.request import HeaderBlock, host_name
from fedproxy.proxy.policy import LaunchPolicy, Limits, Policy, Timeouts
from fedproxy.proxy.ports import MemberPool
from fedproxy.proxy.routing import RoutedRequest, route
from fedproxy.wire.cookie import set_cookie
from fedproxy.wire.h1.request import BlockReader, read_line

if TYPE_CHECKING:
    from fedproxy.decide.balancer import Chance

_HOST: Final = Source.HOST
_COOKIE: Final = Source.COOKIE
_KEY: Final = Source.KEY


@dataclass(frozen=True)
class Heads:
    """What is remembered of requests' heads: what a line asks for, and what a block of fields says.

    blocks: as strangers send them; trusted_blocks: as trusted proxies do. longest: bytes of a head that is
    remembered. read_by: what all of that depends on.
    """

    lines: Memo[RoutedRequest]
    blocks: Memo[HeaderBlock]
    trusted_blocks: Memo[HeaderBlock]
    longest: int
    read_by: tuple[object, ...]


@dataclass(frozen=True)
class Runtime:
    """One config in force.

    pools: by the member's name. pins: the member that an affinity cookie's value names. host_members: by host
    name. cookies: the Set-Cookie that keeps a visitor at a member, by its name and whether they came by
    https. keyed: the key is made of the path. own: the member that stands for the edge's own pages. moved:
    the keys of launches that went on elsewhere; every runtime of a worker has the same.
    """

    policy: Policy
    federation: Federation
    router: Router
    budget: RetryBudget
    pools: Mapping[str, MemberPool]
    pins: Mapping[bytes | None, Member]
    host_members: Mapping[bytes, Member]
    cookies: Mapping[tuple[str, bool], bytes]
    heads: Heads
    keyed: bool
    own: Member
    moved: MovedKeys

    def only(self, line: RoutedRequest, block: HeaderBlock) -> tuple[Member, Source] | None:
        """The one member that a request is for, if its host or its route says so."""
        if self.host_members:
            member = self.host_members.get(host_name(line.authority or block.host or b""))
            if member is not None:
                return member, _HOST
        action, federation = line.action, self.federation
        if isinstance(action, ToPrime) and federation.prime is not None:
            return federation.prime, _HOST
        if isinstance(action, ToMember):
            named = federation.by_name.get(action.name)
            return None if named is None else (named, _HOST)
        return None

    def may_move(self, line: RoutedRequest, block: HeaderBlock) -> bool:
        """Whether any member may serve it."""
        return line.balanced and self.only(line, block) is None

    def key(self, line: RoutedRequest, client: bytes) -> bytes | None:
        """What ranks the members for a request."""
        return line.key if self.keyed else client

    def choose(
        self, line: RoutedRequest, block: HeaderBlock, client: bytes, now: float, launch: bool = False
    ) -> Lease | Refusal:
        """The member for a request that no attempt was made for yet."""
        federation = self.federation
        if self.host_members or not line.balanced:
            if line.own:
                return federation.acquire_session(self.own, _HOST)
            only = self.only(line, block)
            if line.stays:
                return self._choose_session(line, block, only, client, now, launch)
            if only is not None:
                return federation.acquire_member(only[0], only[1], (), now, launch, client)
        cookie = block.cookie
        pinned = self.pins.get(cookie)
        if pinned is None and cookie:
            pinned = self._pin_of(cookie, now, launch)
        key = line.key if self.keyed else client
        if launch and pinned is None and key is not None and self.moved:
            # A visitor without a cookie, as in a page that embeds a launch, comes back to where it moved.
            moved = federation.by_name.get(self.moved.get(key, now) or "")
            if moved is not None and moved.share(now) > 0 and moved.available(now, launch, client):
                return federation.acquire_member(moved, _KEY, (), now, launch, client)
        return federation.acquire(key, pinned, (), now, launch, client)

    def _choose_session(
        self,
        line: RoutedRequest,
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
            return federation.acquire_session(pinned, _COOKIE, launch)
        lease = federation.acquire(self.key(line, client), None, (), now, launch, client)
        if isinstance(lease, Lease):
            federation.spare(lease, now, client)
        return lease

    def _pin_of(self, cookie: bytes, now: float, launch: bool) -> Member | None:
        """The first value that names an available member, else the first that names any."""
        named = [member for value in cookie.split(b";") if (member := self.pins.get(value)) is not None]
        available = (member for member in named if member.available(now, launch))
        return next(available, named[0] if named else None)


def empty(own: Member, moved: MovedKeys, chance: Chance) -> Runtime:
    """What is in force before there is a config: no member, and nobody is let in."""
    policy = Policy(
        timeouts=Timeouts(
            connect=0.0,
            request_head=0.0,
            request_idle=0.0,
            response_head=0.0,
            response_idle=0.0,
            keepalive=0.0,
            connection_age=0.0,
        ),
        limits=Limits(
            connections=0,
            connections_per_address=0,
            uploads_per_address=0,
            request_head=0,
            request_body=0,
            replay=0,
            idle_connections=0,
        ),
        attempts=0,
        cookie="",
        cookie_max_age=0,
        key="",
        launch=LaunchPolicy(failover=False, hold=0.0, failures=FailureTable()),
        origin=None,
        trusted=Networks(()),
        bans=Bans(),
        rate=None,
        failing=frozenset(),
    )
    federation = Federation((), FederationPolicy("random"), chance)
    return compose(policy, federation, {}, Router(), RetryBudget(0.0, 0.0), {}, own, moved, None)


def compose(
    policy: Policy,
    federation: Federation,
    cookie_values: Mapping[str, bytes],
    router: Router,
    budget: RetryBudget,
    pools: Mapping[str, MemberPool],
    own: Member,
    moved: MovedKeys,
    before: Runtime | None,
) -> Runtime:
    """Puts a runtime together. It keeps what `before` remembers of heads if that still means the same."""
    cookies = {
        (name, secure): set_cookie(policy.cookie, value, policy.cookie_max_age, secure=secure)
        for name, value in cookie_values.items()
        for secure in (False, True)
    }
    host_members = {
        host_name((f"[{host}]" if ":" in host else host).encode("ascii")): member
        for member in federation.members
        for host in member.hosts
    }
    return Runtime(
        policy=policy,
        federation=federation,
        router=router,
        budget=budget,
        pools=pools,
        pins={value: federation.by_name[name] for name, value in cookie_values.items()},
        host_members=host_members,
        cookies=cookies,
        heads=_heads(policy, router, None if before is None else before.heads),
        keyed=KEYS.get(policy.key) is not None,
        own=own,
        moved=moved,
    )


def _heads(policy: Policy, router: Router, before: Heads | None) -> Heads:
    """What `before` remembers, as far as it still means the same; the rest is empty."""
    bans, cookie, origin = policy.bans, policy.cookie, policy.origin
    # A known line and a known block, with the CRLF between them, are within the limit.
    half = policy.limits.request_head // 2 - 1
    routed_by = (router, policy.key, bans.repositories, half)
    block_by = (cookie, origin, bans.user_agents, half)
    if before is not None and before.read_by == (routed_by, block_by):
        return before
    if before is not None and before.read_by[0] == routed_by:
        lines = before.lines
    else:
        key_of = KEYS.get(policy.key)
        lines = Memo(
            lambda raw: route(read_line(raw), router, key_of, bans), entries=4096, longest=min(2048, half)
        )
    if before is not None and before.read_by[1] == block_by:
        blocks, trusted = before.blocks, before.trusted_blocks
    else:
        ban = bans.agent if bans.user_agents else None
        longest = min(4096, half)
        blocks = Memo(BlockReader(cookie, origin, trusted=False, ban=ban).read, 2048, longest)
        trusted = Memo(BlockReader(cookie, origin, trusted=True, ban=ban).read, 2048, longest)
    return Heads(lines, blocks, trusted, min(4096, half), (routed_by, block_by))
