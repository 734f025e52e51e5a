"""What is in force: one frozen object, replaced by one assignment when the config changes.

It also decides what depends on nothing else: which member serves a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from fedproxy.decide.sessions import Ground, KnownSession, Place, Sessions
from fedproxy.errors import EdgeError, SessionAway, SessionGone
from fedproxy.http.request import HeaderBlock, host_name
from fedproxy.proxy.pins import Pins
from fedproxy.proxy.policy import LaunchPolicy, Limits, Policy, Timeouts
from fedproxy.proxy.ports import MemberPool
from fedproxy.proxy.routing import LineReader, RoutedRequest
from fedproxy.wire.cookie import read_stamp
from fedproxy.wire.h1.request import BlockReader, read_line
from fedproxy.wire.h2 import request as h2_request
from fedproxy.wire.h2.allowance import Allowance

if TYPE_CHECKING:
    from fedproxy.decide.balancer import Chance

_HOST: Final = Source.HOST
_COOKIE: Final = Source.COOKIE
_KEY: Final = Source.KEY
_SESSION: Final = Source.SESSION
_FOUND: Final = Source.FOUND
_RENEWED: Final = Source.RENEWED
_ANNOUNCED: Final = Ground.ANNOUNCED


@dataclass(frozen=True)
class Heads:
    """What is remembered of requests' heads: what a line asks for, and what a block of fields says.

    lines: as HTTP/1 has them; h2_lines: a method and a target. blocks: as strangers send them;
    trusted_blocks: as trusted proxies do. longest: bytes of a head that is remembered. read_by: what all of
    that depends on.
    """

    lines: Memo[RoutedRequest]
    h2_lines: Memo[RoutedRequest]
    blocks: Memo[HeaderBlock]
    trusted_blocks: Memo[HeaderBlock]
    longest: int
    read_by: tuple[object, ...]


@dataclass(frozen=True)
class Runtime:
    """One config in force.

    pools: by the member's name. pins: what affinity cookies say; fresh: of these, the members by values that
    need no closer look. by_url: the members by their URLs. host_members: by host name. keyed: the key is made
    of the path. own: the member that stands for the edge's own pages. moved: the keys of launches that went
    on elsewhere; sessions: where they run; wall: seconds since the epoch. Every runtime of a worker has the
    same of these three.
    """

    policy: Policy
    federation: Federation
    router: Router
    budget: RetryBudget
    pools: Mapping[str, MemberPool]
    pins: Pins
    fresh: Mapping[bytes | None, Member]
    by_url: Mapping[str, Member]
    host_members: Mapping[bytes, Member]
    heads: Heads
    keyed: bool
    own: Member
    moved: MovedKeys
    sessions: Sessions
    wall: Callable[[], float]

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

    def member_at(self, place: Place) -> Member | None:
        """The member that is at this URL, whatever its name is now; if none is, the one with this name, which
        has moved."""
        member = self.federation.by_name.get(place.name)
        if member is None or member.url != place.url:
            return self.by_url.get(place.url, member)
        return member

    def may_move(self, line: RoutedRequest, block: HeaderBlock) -> bool:
        """Whether any member may serve it."""
        return line.balanced and self.only(line, block) is None

    def key(self, line: RoutedRequest, client: bytes) -> bytes | None:
        """What ranks the members for a request."""
        return line.key if self.keyed else client

    def choose(
        self, line: RoutedRequest, block: HeaderBlock, client: bytes, now: float, launch: bool = False
    ) -> Lease | Refusal | EdgeError:
        """The member for a request that no attempt was made for yet, or why there is none."""
        federation = self.federation
        if self.host_members or not line.balanced:
            if line.own:
                return federation.acquire_session(self.own, _HOST)
            only = self.only(line, block) if self.host_members or not line.to_members else None
            if line.stays:
                return self._choose_session(line, block, only, client, now, launch)
            if only is not None:
                return federation.acquire_member(only[0], only[1], (), now, launch, client)
        cookie = block.cookie
        pinned = self.fresh.get(cookie)
        if pinned is None and cookie:
            pin = self.pins.find(cookie, lambda member: member.available(now, launch))
            if pin is not None:
                key = self.key(line, client)
                lease = federation.acquire(key, pin.member, (), now, launch, client, line.image)
                if pin.stale and isinstance(lease, Lease) and lease.source is _COOKIE:
                    lease.source = _RENEWED
                return lease
        key = line.key if self.keyed else client
        if launch and pinned is None and key is not None and self.moved:
            # A visitor without a cookie, as in a page that embeds a launch, comes back to where it moved.
            moved = federation.by_name.get(self.moved.get(key, now) or "")
            if moved is not None and moved.share(now) > 0 and moved.available(now, launch, client):
                return federation.acquire_member(moved, _KEY, (), now, launch, client)
        return federation.acquire(key, pinned, (), now, launch, client, line.image)

    def cookie(
        self,
        line: RoutedRequest,
        block: HeaderBlock,
        member: Member,
        source: Source,
        secure: bool,
    ) -> bytes | None:
        """The value of the Set-Cookie field of a response from `member`; None if it needs none.

        Under a session's path a cookie that names a member is renewed, but never changed: the visitor may
        have others there.
        """
        pins = self.pins
        fresh = self.fresh.get(block.cookie) is not None
        if source is _HOST or (fresh and (line.stays or (source is _COOKIE and not line.renews))):
            return None
        pin = pins.find(block.cookie)
        home = None
        if pin is not None:
            # Who moves may have something running where they were, or where they were before that.
            home = pin.home or pin.member
            if line.stays:
                if not pin.stale:
                    return None
                member = pin.member
        return pins.set_cookie(member, secure, home)

    def gone(self, known: KnownSession, block: HeaderBlock, *, left: bool) -> SessionGone:
        """What is said of a session that is not there; strangers are not told what was launched."""
        member = self.member_at(known.place)
        name = known.place.name if member is None else member.name
        values = (block.cookie or b"").split(b";")
        # Of a member that left only the bare name tells it, which with a secret is nobody's cookie.
        own = not self.policy.secret and any(
            name.encode() in (value, home) for value, _, home in map(read_stamp, values)
        )
        pin = self.pins.find(block.cookie)
        if pin is not None:
            own = own or name in (pin.member.name, "" if pin.home is None else pin.home.name)
        return SessionGone(name, known.launch if own else b"", left=left)

    def _choose_session(
        self,
        line: RoutedRequest,
        block: HeaderBlock,
        only: tuple[Member, Source] | None,
        client: bytes,
        now: float,
        launch: bool,
    ) -> Lease | Refusal | EdgeError:
        """The member that has the session, or any if nothing says which. The outcome is not counted."""
        federation = self.federation
        if only is not None:
            return _of_session(only[0], federation.acquire_session(*only, launch))
        session = line.session
        known = self.sessions.find(session.keys, self.wall()) if session is not None else None
        if known is None or known.ground is not _ANNOUNCED:
            pin = self.pins.find(block.cookie)
            if pin is not None:
                member = pin.session_member
                source = _FOUND if known is not None and known.place.url == member.url else _COOKIE
                return _of_session(member, federation.acquire_session(member, source, launch))
        if known is not None:
            named = self.member_at(known.place)
            if named is not None:
                lease = federation.acquire_session(named, _SESSION, launch)
                return lease if isinstance(lease, Lease) else _of_session(named, lease)
            if known.ground is _ANNOUNCED:
                # A person who logged in there can log in elsewhere; a launch has to be made again.
                return self.gone(known, block, left=True)
        lease = federation.acquire(self.key(line, client), None, (), now, launch, client)
        if isinstance(lease, Lease):
            federation.spare(lease, now, client)
        return lease


def _of_session(member: Member, lease: Lease | Refusal) -> Lease | Refusal | EdgeError:
    return SessionAway(member.name) if lease is Refusal.AWAY else lease


def empty(
    own: Member, moved: MovedKeys, sessions: Sessions, chance: Chance, wall: Callable[[], float]
) -> Runtime:
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
            sessions=0,
            idle_connections=0,
            streams=0,
            http2=Allowance(),
        ),
        attempts=0,
        cookie="",
        cookie_max_age=0,
        secret=False,
        key="",
        launch=LaunchPolicy(failover=False, hold=0.0, failures=FailureTable()),
        origin=None,
        trusted=Networks(()),
        bans=Bans(),
        rate=None,
        failing=frozenset(),
        explainers=(),
    )
    federation = Federation((), FederationPolicy("random"), chance)
    budget = RetryBudget(0.0, 0.0)
    return compose(policy, federation, {}, Router(), budget, {}, own, moved, sessions, wall, None)


def compose(
    policy: Policy,
    federation: Federation,
    cookie_values: Mapping[str, bytes],
    router: Router,
    budget: RetryBudget,
    pools: Mapping[str, MemberPool],
    own: Member,
    moved: MovedKeys,
    sessions: Sessions,
    wall: Callable[[], float],
    before: Runtime | None,
) -> Runtime:
    """Puts a runtime together. It keeps what `before` remembers of heads if that still means the same."""
    pins = Pins(policy.cookie, policy.cookie_max_age, cookie_values, federation.by_name, wall)
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
        pins=pins,
        fresh=pins.fresh,
        by_url={member.url: member for member in federation.members},
        host_members=host_members,
        heads=_heads(policy, router, None if before is None else before.heads),
        keyed=KEYS.get(policy.key) is not None,
        own=own,
        moved=moved,
        sessions=sessions,
        wall=wall,
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
        lines, h2_lines = before.lines, before.h2_lines
    else:
        key_of = KEYS.get(policy.key)
        longest = min(2048, half)
        reader = LineReader(read_line, b" HTTP/1.1", router, key_of, bans, longest)
        h2_reader = LineReader(h2_request.read_line, b"", router, key_of, bans, longest)
        lines, h2_lines = Memo(reader.read, 4096, longest), Memo(h2_reader.read, 4096, longest)
    if before is not None and before.read_by[1] == block_by:
        blocks, trusted = before.blocks, before.trusted_blocks
    else:
        ban = bans.agent if bans.user_agents else None
        longest = min(4096, half)
        blocks = Memo(BlockReader(cookie, origin, trusted=False, ban=ban).read, 2048, longest)
        trusted = Memo(BlockReader(cookie, origin, trusted=True, ban=ban).read, 2048, longest)
    return Heads(lines, h2_lines, blocks, trusted, min(4096, half), (routed_by, block_by))
