"""Who may come in, and whom to believe about addresses: connections, bans, rates, uploads, https.

Every protocol asks here. Nothing waits, and time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from fedproxy.bounded import Memo
from fedproxy.decide.limit import LaunchRate, known_client
from fedproxy.errors import BadRequest, Banned, BannedAddress, TooManyLaunches, TooManyUploads, UploadsFull
from fedproxy.event import Event, EventName
from fedproxy.http.request import Origin, host_name
from fedproxy.wire.events import asked_for
from fedproxy.wire.visitor import find_visitor

if TYPE_CHECKING:
    from fedproxy.decide.counts import EdgeCounts
    from fedproxy.decide.member import Member
    from fedproxy.http.request import HeaderBlock
    from fedproxy.proxy.policy import Policy, Rate
    from fedproxy.proxy.routing import RoutedRequest

_UNREAD: Final = 64  # warnings about proxies that name no address, one for each proxy and field
_Key = TypeVar("_Key")
_UNREADABLE: Final = b"-"  # stands for a client whose address is not known


class Admission:
    """What one worker lets in.

    room: visitors' connections that this process has files for, whatever the policy says. careful: requests
    have to be looked at, as `check` does. addresses: connections of each client. uploads: those under way of
    each client at each member; under_way: of all clients. on_launched: called with the client's key for each
    launch that counts against its rate, so that other workers can be told. report: takes what operators
    should know.
    """

    def __init__(self, counts: EdgeCounts, report: Callable[[Event], None] = lambda event: None) -> None:
        self.counts = counts
        self._report = report
        self.room = 1 << 30
        self.careful = False
        self.addresses: dict[bytes, int] = {}
        self.uploads: dict[tuple[Member, bytes], int] = {}
        self.under_way: dict[Member, int] = {}
        self.rate: LaunchRate | None = None
        self.on_launched: Callable[[bytes], None] | None = None
        self._rate_policy: Rate | None = None
        self._unread: set[tuple[bytes, bytes]] = set()

    def apply(self, policy: Policy, host_members: Mapping[bytes, Member]) -> None:
        """Puts a policy in force. What is counted goes on."""
        bans = policy.bans
        self._limits = policy.limits
        self._bans = bans
        self._banned = Memo(bans.networks.__contains__, longest=64)
        self._trusts = Memo(policy.trusted.__contains__, longest=64)
        self._trusted = bool(policy.trusted)
        self._host_members = host_members
        # The host that visitors type, and its port if it has one, where it speaks https.
        public = policy.origin.encode("ascii") if policy.origin else b""
        self._public = public.removeprefix(b"https://") if public.startswith(b"https://") else b""
        if policy.rate != self._rate_policy:
            self._rate_policy = policy.rate
            self.rate = LaunchRate(policy.rate.launches, policy.rate.per) if policy.rate is not None else None
        self.careful = bool(bans) or self.rate is not None
        self._unread.clear()

    # Connections

    def enter(self) -> bool:
        """Counts a visitor's new connection; False if it is one too many. `leave` in any case."""
        counts = self.counts
        counts.connections += 1
        if counts.connections <= min(self._limits.connections, self.room):
            return True
        counts.rejected["connections"] += 1
        return False

    def leave(self) -> None:
        """A connection is gone."""
        self.counts.connections -= 1

    @property
    def counts_addresses(self) -> bool:
        """Whether the connections of one client address are limited."""
        return bool(self._limits.connections_per_address)

    def enter_address(self, address: bytes, *, is_there: bool = False) -> bytes | None:
        """Counts a connection of a client address, and returns what `leave_address` is to be given.

        None if the address has as many as it may. `is_there`: the connection is open already, and is counted
        in any case.
        """
        key = known_client(address)
        count = self.addresses.get(key, 0)
        if not is_there and count >= self._limits.connections_per_address:
            self.counts.rejected["address"] += 1
            return None
        self.addresses[key] = count + 1
        return key

    def leave_address(self, key: bytes) -> None:
        """The connection is gone."""
        _give_back(self.addresses, key)

    # Whom to believe

    def believes(self, peer: bytes) -> bool:
        """Whether a peer is a trusted proxy."""
        return self._trusted and self._trusts[peer]

    def may_introduce(self, proxy: bytes) -> bool:
        """Whether a peer may name the visitor in a PROXY header. Without `trusted_proxies` every peer may."""
        return not self._trusted or self._trusts[proxy]

    def origin(self, block: HeaderBlock, peer: bytes, secure: bool) -> Origin:
        """Where a request of a trusted peer comes from. secure: the peer came by https."""
        visitor = find_visitor(block.forwarded, peer, self._trusts.__getitem__)
        client = visitor.client
        if visitor.unread is not None:
            # Not a word: readers of the log might take one for a host name and look it up.
            client = _UNREADABLE
            self.note_unread(peer, *visitor.unread)
        if visitor.secure is not None:
            secure = visitor.secure
        return Origin(client, secure, visitor.client, visitor.addresses)

    def note_unread(self, peer: bytes, field: bytes, address: bytes) -> None:
        """Warns that a trusted proxy named a visitor by something other than an address."""
        if len(self._unread) < _UNREAD and (peer, field) not in self._unread:
            self._unread.add((peer, field))
            named = ascii(address[:64].decode("latin-1"))
            where = f"trusted proxy {peer.decode('ascii')}: {field.decode('ascii')}"
            message = (
                f"{where} names a visitor as {named}, "
                'which is not an IP address; such clients are unknown, "-" in the access log '
                "(not repeated for this proxy and header)"
            )
            self._report(Event(EventName.PROXY_ADDRESS, message, key=where))

    # Requests

    def check(
        self, line: RoutedRequest, block: HeaderBlock, client: bytes, now: float, *, to_https: bool
    ) -> RoutedRequest:
        """What the operator allows: the same request, or its redirect.

        to_https: it has to be sent again by https. Raises `Banned`, `BadRequest` and `TooManyLaunches`.
        """
        if self._bans.networks and self._banned[client]:
            raise BannedAddress
        if line.banned or block.banned:
            raise Banned
        if to_https:
            return self._to_https(line, block)
        if self.rate is not None and line.launch and asked_for(block.raw):
            key = known_client(client)
            wait = self.rate.ask(key, now)
            if wait:
                raise TooManyLaunches(wait)
            if self.on_launched is not None:
                self.on_launched(key)
        return line

    def _to_https(self, line: RoutedRequest, block: HeaderBlock) -> RoutedRequest:
        """The same request, answered with where it should have been sent."""
        authority = line.authority or block.host
        if not authority:
            raise BadRequest
        host = host_name(authority)
        public = self._public
        # If the public URL is known, a host that only the request names is no target. The port of plain http
        # is not that of https, which only the public URL tells.
        if public and (host == host_name(public) or host not in self._host_members):
            host = public
        target = line.target if line.target != b"*" else b""
        location = (b"https://" + host + target).decode("latin-1")
        # RFC 9110 section 15.4.2: after a 301 a POST may become a GET.
        status = 301 if line.method in (b"GET", b"HEAD") else 308
        return line.redirected(location, status)

    def note_launched(self, key: bytes, now: float) -> None:
        """Counts a launch that another worker let through; `key` is what its `on_launched` was given."""
        if self.rate is not None:
            self.rate.note(key, now)

    # Uploads

    def enter_upload(self, client: bytes | None, member: Member) -> tuple[Member, bytes] | None:
        """Counts an upload to a member, and returns the key for `leave_upload`; None if nobody is counted.

        client: None if a trusted proxy names nobody. Raises `TooManyUploads` or `UploadsFull`.
        """
        limit = self._limits.uploads_per_address
        if not limit:
            return None
        # However little a member takes, nobody holds more than a part of it, nor do all uploads together.
        under_way = self.under_way.get(member, 0)
        if under_way >= max(1, member.max_requests * 3 // 4):
            raise UploadsFull
        key = member, known_client(client) if client is not None else b""
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
        _give_back(self.under_way, member)
        if client:
            _give_back(self.uploads, key)


def _give_back(counted: dict[_Key, int], key: _Key) -> None:
    """One less; what is not there any more is not kept."""
    count = counted[key] - 1
    if count:
        counted[key] = count
    else:
        del counted[key]
