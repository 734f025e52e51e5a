"""The connections to a member: the idle ones, how a new one is made, and when one is too old.

Between two requests a connection waits in its pool, last in, first out, so that the warmest is used and the
rest grow old.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiohappyeyeballs

from fedproxy.decide.outages import Outages
from fedproxy.decide.sessions import Place
from fedproxy.decide.snapshot import AddressState
from fedproxy.errors import ConnectFailed, ConnectTimeout, EdgeError, NoWay, OutOfFiles, TLSFailed, own_fault
from fedproxy.event import Event, EventName
from fedproxy.proxy.dialing import Dial, race
from fedproxy.proxy.flow import Flow
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
_MOST_LISTED = 100  # addresses; a name server can say thousands
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
        self.outages = Outages()  # of its addresses, if the name has several
        self._dialed: list[str] = []  # of these, those to which the next connections are being made
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

    def addresses(self) -> tuple[AddressState, ...]:
        """The first addresses in use; none for a unix socket."""
        if self.endpoint.path is not None:
            return ()
        if self.name is None:
            return (AddressState(self.endpoint.host, len(self.connections)),)
        loads, outages = self._loads(), self.outages
        return tuple(
            [
                AddressState(each, loads.get(each, 0), outages.failures(each), outages.aside(each))
                for each in self.name.addresses.current[:_MOST_LISTED]
            ]
        )

    def _loads(self) -> dict[str, int]:
        """Connections by address, without those that are being made."""
        loads: dict[str, int] = {}
        for each in self.connections:
            if each.born:
                loads[each.address] = loads.get(each.address, 0) + 1
        return loads

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
        if self.outages:
            for address in self.outages.roll(now):
                message = f"{self.member.name}: connections to {address} work again"
                self._report(EventName.ADDRESS_USABLE, address, message)

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
        if self.outages and self.name is not None:
            # Those on hold too: where answers rotate, they come back, and as they were.
            known = [*self.name.addresses.current, *self.name.addresses.held]
            self.outages.keep(known if len(known) > 1 else ())
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
        try:
            upstream = await self._open()
        except TimeoutError as error:
            raise ConnectTimeout from error
        except ssl.SSLError as error:
            raise TLSFailed from error
        except OSError as error:
            raise own_fault(error) or ConnectFailed() from error
        except ValueError as error:
            # A name that no resolver accepts.
            raise ConnectFailed from error
        upstream.born = self.context.clock()
        upstream.share = 1 - _SPREAD * self.context.random_bits(16) / (1 << 16)
        self._date(upstream)
        return upstream

    async def _open(self) -> Connection:
        endpoint = self.endpoint
        deadline = asyncio.get_running_loop().time() + self.context.runtime.policy.timeouts.connect
        async with asyncio.timeout_at(deadline):
            if endpoint.path is not None:
                return await self._dial(None)
            addresses = await self.context.resolver.resolve(endpoint.host, endpoint.port)
            if len(addresses) == 1:
                return await self._dial(Dial(addresses[0], 0.0, 0.0))
        return await self._open_one_of(addresses, deadline)

    async def _open_one_of(self, addresses: Sequence[AddressInfo], deadline: float) -> Connection:
        """A connection to one of several addresses.

        Raises as connecting does, once none is left to try. One that does not work while another does is no
        failure of the member.
        """
        context, outages = self.context, self.outages
        began, lost = context.clock(), context.lost()
        infos = {info[4][0]: info for info in addresses}
        loads = self._loads()
        for address in self._dialed:
            loads[address] = loads.get(address, 0) + 1
        order = outages.rank(list(infos), loads, lambda: context.random_bits(16), began)

        def failed(dial: Dial[AddressInfo], error: Exception) -> None:
            if isinstance(error, EdgeError) or (isinstance(error, OSError) and own_fault(error) is not None):
                return
            if isinstance(error, TimeoutError) and context.lost() - lost >= _SLEPT:
                # This process slept, so others may look late that were not.
                return
            self._set_aside(dial.key[4][0], began, _why(error))

        # At once: others may look before the first of these tasks runs.
        self._dialed.append(order[0])
        try:
            upstream = await race(
                [infos[address] for address in order],
                self._dial_one_of,
                deadline,
                failed=failed,
                spare=_abort,
            )
        finally:
            self._dialed.remove(order[0])
        if not upstream.transport.is_closing():
            outages.works(upstream.address, context.clock())
        return upstream

    async def _dial_one_of(self, dial: Dial[AddressInfo]) -> Connection:
        upstream = await self._dial(dial)
        if upstream.transport.is_closing():
            # Some balancers take connections for which they have nobody, and drop them.
            upstream.abort()
            raise ConnectionResetError
        return upstream

    async def _dial(self, dial: Dial[AddressInfo] | None) -> Connection:
        """A connection to an address, or to the unix socket."""
        upstream = self.make(self)
        made = False
        try:
            if dial is None:
                loop = asyncio.get_running_loop()
                await loop.create_unix_connection(lambda: upstream, self.endpoint.path)
            else:
                upstream.address = dial.key[4][0]
                await self._reach(upstream, dial)
            made = True
        finally:
            if not made:
                # uvloop tells a protocol nothing of a connection that is given up just as it is made.
                self.forget(upstream)
        return upstream

    async def _reach(self, upstream: Connection, dial: Dial[AddressInfo]) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock = await aiohappyeyeballs.start_connection([dial.key], loop=loop)
        except OSError as error:
            if error.errno in _FORBIDDEN or (error.errno in _NO_WAY and _is_cut_off(dial.key)):
                raise NoWay from error
            raise
        dial.heard = True
        if self.endpoint.tls is None:
            await loop.create_connection(lambda: upstream, sock=sock)
        else:
            await connect(upstream, self.endpoint.tls, self.endpoint.host, sock)

    def died(self, upstream: Connection) -> None:
        """A connection is lost, and the answer for which it was used has not begun."""
        address = upstream.address
        if not upstream.reused:
            # If this process slept, the peer may have given up on it.
            if not self.context.slept(upstream.born, self.context.clock()):
                self._set_aside(address, upstream.born, "a connection ended before its first answer")
        elif self.outages.aside(address):
            # An idle connection may end at any time. But new ones to this address fail too, so whoever was
            # there is gone, and each of the others that are idle would cost a request.
            for idle in [each for each in (*self.idle, *self.aside) if each.address == address]:
                self._close(idle)

    def _set_aside(self, address: str, began: float, why: str) -> None:
        name = self.name
        if name is None or len(name.addresses.current) < 2 or address not in name.addresses.current:
            return
        if self.outages.failed(address, began, self.context.clock()):
            message = f"{self.member.name}: {address}, one of its addresses, is tried last: {why}"
            self._report(EventName.ADDRESS_ASIDE, address, message)

    def _report(self, name: EventName, address: str, message: str) -> None:
        member = self.member.name
        self.context.report(Event(name, message, member, key=f"{member} {address}"))


def _abort(upstream: PooledConnection) -> None:
    upstream.abort()


def _why(error: Exception) -> str:
    """Why there is no connection, in words of the system's or of OpenSSL's."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed ({error.reason})"
    errno_ = error.errno if isinstance(error, OSError) else None
    return f"no connection ({os.strerror(errno_)})" if errno_ else "no connection"


def _is_cut_off(info: AddressInfo) -> bool:
    """Whether this machine has no route to an address. Connecting a datagram socket asks nobody else."""
    family, _, _, _, address = info
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
    except OSError:
        return True
    return False


def _idle_since(upstream: PooledConnection) -> float:
    return upstream.idle_since
