"""The connections to a member: the idle ones, how a new one is made, and when one is too old.

Between two requests a connection waits in its pool, last in, first out, so that the warmest is used and the
rest grow old.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiohappyeyeballs

from fedproxy.decide.sessions import Place
from fedproxy.errors import ConnectFailed, ConnectTimeout, NoWay, OutOfFiles, TLSFailed, own_fault
from fedproxy.proxy.flow import Flow
from fedproxy.proxy.resolver import plain
from fedproxy.proxy.secure import connect

if TYPE_CHECKING:
    from fedproxy.decide.member import Member
    from fedproxy.http.request import Request
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.policy import Endpoint
    from fedproxy.proxy.resolver import AddressInfo

# A firewall or a limit of this machine. A refusal from elsewhere has other numbers.
_FORBIDDEN = (errno.EACCES, errno.EPERM)
# From this machine, or from a router on the way.
_NO_WAY = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)
_SLEPT = 0.25  # seconds of lost time that cast no doubt on a failure
_AGAIN = 3  # further attempts to connect, each because this process slept during the one before
_NEVER = float("inf")
_AT_ONCE = float("-inf")
# The greatest age of each connection is cut by up to this share, so that they do not all end at once.
_SPREAD = 0.2


class PooledConnection(Flow):
    """A connection to a member, as its pool sees it, whatever it speaks.

    address: of the peer; empty for a unix socket. share: the part of `connection_age` that it gets. ends_at:
    from then on it takes no further request. look: as `flow.look_at`.
    """

    __slots__ = ("address", "born", "ends_at", "idle_since", "look", "pool", "reused", "share")

    look: Callable[[float], Sequence[object]]

    def __init__(self, pool: Pool[Any]) -> None:
        super().__init__()
        self.pool = pool
        self.address = ""
        self.born = 0.0
        self.share = 1.0
        self.ends_at = _NEVER
        self.idle_since = 0.0
        self.reused = False

    def rest(self, now: float) -> None:
        """Joins the idle connections, or is closed if there are enough or it is too old."""
        pool = self.pool
        self.reused = True
        self.idle_since = now
        if now < self.ends_at and len(pool.idle) < pool.room:
            pool.idle.append(self)
        elif now >= self.ends_at and len(pool.aside) < pool.room and pool.holds(self):
            pool.aside.append(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Drops the connection at once, with whatever is under way on it."""
        self.transport.abort()


Connection = TypeVar("Connection", bound=PooledConnection)


class Pool(Generic[Connection]):
    """The connections to one member, and the way to make more. make: makes one that is not connected yet."""

    def __init__(
        self,
        context: Context,
        member: Member,
        endpoint: Endpoint,
        make: Callable[[Pool[Connection]], Connection],
    ) -> None:
        self.context = context
        self.make = make
        self.member = member
        self.endpoint = endpoint
        self.authority = endpoint.authority
        # A later config may call the member otherwise, or this name another one.
        self.place = Place(member.url, member.name)
        self._own_host_line = b"Host: " + endpoint.authority + b"\r\n"
        self.host_line = self._own_host_line
        self.idle: list[Connection] = []
        self.aside: list[Connection] = []  # idle, but the name does not have their address at the moment
        self.connections: set[Connection] = set()
        self.room = 0  # for so many idle connections; none in one that is closed
        # None for an address or a unix socket.
        self.name = (
            context.resolver.follow(endpoint.host, endpoint.port, self.sort) if not endpoint.path else None
        )

    def set_hosts(self, by_route: bool) -> None:
        """Whether routes may say whose Host the member is sent.

        If so, or if it is not its own, `host_line` is empty, and `host_line_of` has to be asked.
        """
        self.host_line = b"" if by_route or self.endpoint.visitor_host else self._own_host_line

    def host_line_of(self, request: Request[Any]) -> bytes:
        """The Host field for a request, with its CRLF."""
        said: bool | None = request.line.visitor_host
        visited = request.block.visited
        if visited and (self.endpoint.visitor_host if said is None else said):
            return b"Host: %b\r\n" % visited
        return self._own_host_line

    @property
    def waiting(self) -> int:
        """Connections that serve nothing at the moment."""
        return len(self.idle) + len(self.aside)

    @property
    def busy(self) -> int:
        """Connections that serve an exchange or a tunnel."""
        return len(self.connections) - self.waiting

    def forget(self, upstream: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(upstream)
        for rest in (self.idle, self.aside):
            if upstream in rest:
                rest.remove(upstream)

    def expire(self, before: float, now: float = _AT_ONCE) -> None:
        """Closes what has been idle since before `before`, or is too old at `now`."""
        gone = [each for each in self.idle if each.idle_since < before or each.ends_at <= now]
        gone += [each for each in self.aside if each.idle_since < before]
        for upstream in gone:
            self._close(upstream)

    def _close(self, upstream: Connection) -> None:
        (self.idle if upstream in self.idle else self.aside).remove(upstream)
        upstream.transport.close()

    def close_idle(self) -> bool:
        """Closes what is idle; False if nothing is."""
        idle = self.waiting > 0
        self.expire(_NEVER)
        return idle

    def close(self) -> None:
        """Closes what is idle, and the rest as it is released."""
        self.room = 0
        if self.name is not None:
            self.context.resolver.leave(self.name, self.sort)
            self.name = None
        self.close_idle()

    def sort(self) -> None:
        """Sorts the connections again: an address may have come or gone, or the greatest age changed."""
        for upstream in self.connections:
            self._date(upstream)
        idle = sorted(self.idle + self.aside, key=_idle_since)
        self.idle.clear()
        self.aside.clear()
        now = self.context.clock()
        for upstream in idle:
            if now < upstream.ends_at:
                self.idle.append(upstream)
            elif self.holds(upstream):
                self.aside.append(upstream)
            else:
                upstream.transport.close()

    def holds(self, upstream: Connection) -> bool:
        """Whether the name lost a connection's address so recently that it may come back."""
        return self.name is not None and upstream.address in self.name.addresses.held

    def _date(self, upstream: Connection) -> None:
        """Sets until when a connection takes requests."""
        age = self.context.runtime.policy.timeouts.connection_age
        if self.name is not None and upstream.address not in self.name.addresses.current:
            upstream.ends_at = _AT_ONCE
        else:
            upstream.ends_at = upstream.born + age * upstream.share if age else _NEVER

    def take(self) -> Connection | None:
        """The idle connection that was used last, unless something has arrived on it that nobody has read.

        That may be an end, which would lose a POST, or stray bytes, which would be taken for the answer. How
        long it was idle does not matter: the loop may serve a request before what arrived in the same turn.
        """
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.transport.is_closing():
                continue
            look = connection.look
            if not look(0):
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection.

        Raises `ConnectFailed` or one of its kinds within `timeouts.connect`, and a kind of `EdgeFailed` if it
        is not the member that is to blame: `OutOfFiles` when none is left, not even of idle connections.
        """
        try:
            return await self._connect_awake()
        except OutOfFiles:
            if not self.context.close_idle_upstreams():
                raise
        # They are closed by the turn after the next.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await self._connect_awake()

    async def _connect_awake(self) -> Connection:
        """Tries again if it failed while this process slept: the member may have been in time."""
        context = self.context
        for _ in range(_AGAIN):
            lost = context.lost()
            try:
                return await self._connect()
            except ConnectFailed:
                if context.lost() - lost < max(_SLEPT, context.runtime.policy.timeouts.connect / 4):
                    raise
        return await self._connect()

    async def _connect(self) -> Connection:
        upstream = self.make(self)
        made = False
        try:
            async with asyncio.timeout(self.context.runtime.policy.timeouts.connect):
                await self._open(upstream)
            made = True
        except TimeoutError as error:
            raise ConnectTimeout from error
        except ssl.SSLError as error:
            raise TLSFailed from error
        except OSError as error:
            raise own_fault(error) or ConnectFailed() from error
        except ValueError as error:
            # A name that no resolver accepts.
            raise ConnectFailed from error
        finally:
            if not made:
                # uvloop tells a protocol nothing of a connection that is given up just as it is made.
                self.forget(upstream)
        upstream.born = self.context.clock()
        upstream.share = 1 - _SPREAD * self.context.random_bits(16) / (1 << 16)
        self._date(upstream)
        return upstream

    async def _open(self, upstream: Connection) -> None:
        endpoint = self.endpoint
        loop = asyncio.get_running_loop()
        if endpoint.path is not None:
            await loop.create_unix_connection(lambda: upstream, endpoint.path)
            return
        addresses = await self.context.resolver.resolve(endpoint.host, endpoint.port)
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=0.25, interleave=1, loop=loop
            )
        except OSError as error:
            if error.errno in _FORBIDDEN or (error.errno in _NO_WAY and _is_cut_off(addresses)):
                raise NoWay from error
            raise
        if endpoint.tls is None:
            await loop.create_connection(lambda: upstream, sock=sock)
        else:
            await connect(upstream, endpoint.tls, endpoint.host, sock)
        peer = upstream.transport.get_extra_info("peername")
        # A connection that is already lost has no peer, and is not used.
        upstream.address = plain(peer[0]) if peer else ""


def _is_cut_off(addresses: Sequence[AddressInfo]) -> bool:
    """Whether this machine has no route to any of these. Connecting a datagram socket asks nobody else."""
    for family, _, _, _, address in addresses:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
        except OSError:
            continue
        return False
    return True


def _idle_since(upstream: PooledConnection) -> float:
    return upstream.idle_since
