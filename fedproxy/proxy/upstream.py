"""A member's side: its connections, the idle ones, and how a new one is made.

A connection serves one exchange at a time. Between two it waits in its pool, last in, first out, so that the
warmest is used and the rest grow old. What a member sends is read here as far as its framing goes; what
that means for the request is the exchange's business.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import aiohappyeyeballs

from fedproxy.bounded import Memo
from fedproxy.errors import (
    BadResponse,
    BodyLost,
    ConnectFailed,
    ConnectTimeout,
    MemberError,
    NoWay,
    OutOfFiles,
    ResponseLost,
    StaleConnection,
    TLSFailed,
    own_fault,
)
from fedproxy.proxy.flow import Flow, look_at
from fedproxy.proxy.resolver import plain
from fedproxy.proxy.secure import connect, read_rest, wire_of
from fedproxy.wire import response
from fedproxy.wire.body import BodyError, Chunked

if TYPE_CHECKING:
    from fedproxy.decide.member import Member
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.policy import Endpoint
    from fedproxy.proxy.resolver import AddressInfo

# A firewall or a limit of this machine. A refusal from elsewhere has other numbers.
_FORBIDDEN = (errno.EACCES, errno.EPERM)
# From this machine, or from a router on the way.
_NO_WAY = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)
_SLEPT = 0.25  # seconds of lost time that cast no doubt on a failure
_AGAIN = 3  # further attempts to connect, each because this process slept during the one before
_AWAITING_HEAD = -1
_UNTIL_CLOSE = 1 << 62
_LONGEST_HEAD = 64 * 1024
_MOST_INTERIMS = 32
_NEVER = float("inf")
_AT_ONCE = float("-inf")
# The greatest age of each connection is cut by up to this share, so that they do not all end at once.
_SPREAD = 0.2
_heads = Memo(response.read, entries=2048, longest=4096)
_known_head = _heads.get


class Upstream(Flow):
    """One connection to a member."""

    __slots__ = (
        "address",
        "born",
        "chunks",
        "ended",
        "ends_at",
        "exchange",
        "held",
        "idle_since",
        "keep",
        "left",
        "look",
        "pool",
        "reused",
        "share",
        "spent",
        "writable",
        "write",
    )

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.address = ""  # of the peer; empty for a unix socket
        self.born = 0.0
        self.share = 1.0  # the part of `connection_age` that this connection gets
        self.ends_at = _NEVER  # from then on it takes no further request
        self.exchange: Exchange | None = None
        self.reused = False
        self.writable = True
        self.left = _AWAITING_HEAD
        self.chunks: Chunked | None = None
        self.held = b""
        self.keep = True
        self.ended = False  # the member said that there is no more
        self.spent = False  # not to be used again, whatever comes of this exchange
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "idle" if self.exchange is None else "waiting" if self.left == _AWAITING_HEAD else "relaying"
        return f"<Upstream {self.pool.member.name} {state}{' reused' if self.reused else ''}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.wire = wire_of(self.transport)
        self.write = self.transport.write
        self.look = look_at(transport)
        self.pool.connections.add(self)

    def request_head(self, exchange: Exchange) -> bytes:
        """The request's head as this member is sent it."""
        block = exchange.block
        line = exchange.routed.line
        host_line = self.pool.host_line
        if block.upgrade is not None and not line.http10 and not exchange.is_launch:
            host_line += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % block.upgrade
            # Whatever the member answers, its connection is not used again.
            self.spent = True
        return b"".join(
            (
                line.start,
                host_line,
                block.forward,
                exchange.origin.forward,
                exchange.request_id,
                b"\r\ntraceparent: ",
                exchange.traceparent,
                b"\r\n\r\n",
            )
        )

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # Nobody asked. Bytes beyond a response never become a second one.
            self.abort()
        elif self.left == _AWAITING_HEAD:
            # A member's heads are often of one length, and what is known as a head ends where it ends.
            end = self.pool.head_length
            head = _known_head(data[:end])
            if head is None or self.held or head.whole != len(data) - end or exchange.is_head:
                self._read_head(exchange, data)
                return
            # A known head with all of its body, as it mostly is.
            self.left = 0
            self.keep = not head.close
            exchange.on_head(head, data[end:], True)
        elif self.chunks is not None:
            self._read_chunks(exchange, self.chunks, data)
        else:
            left = self.left = self.left - len(data)
            if left < 0:
                data = data[:left]
                self.keep = False
                self.left = 0
            exchange.on_body(data, self.left == 0)

    def _read_head(self, exchange: Exchange, data: bytes) -> None:
        known = 0
        if self.held:
            known = len(self.held) - len(self.held.rpartition(b"\r\n")[2])
            data, self.held = self.held + data, b""
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if not 4 <= end <= _LONGEST_HEAD:
                self._hold_head(exchange, data, known)
                return
            try:
                head = _heads[data[:end]]
            except BadResponse as error:
                self._fail(exchange, error)
                return
            known = 0
            if head.status >= 200:
                self.pool.head_length = end
                self._start_body(exchange, head, data, end)
                return
            data = data[end:]
            if head.status == 101 or exchange.interims >= _MOST_INTERIMS:
                # RFC 9110 section 15.2.2: a 101 only if asked.
                if head.status != 101 or not exchange.on_upgrade(head, data):
                    self._fail(exchange, BadResponse())
                return
            exchange.on_interim(head)
            if not data or self.exchange is not exchange:
                return

    def _hold_head(self, exchange: Exchange, data: bytes, known: int) -> None:
        """A head that is not whole yet; `known` bytes of it are whole lines that were looked at before."""
        if len(data) > _LONGEST_HEAD:
            self._fail(exchange, BadResponse())
            return
        try:
            response.check_begun(data, known)
        except BadResponse as error:
            # The rest of it is not worth waiting for.
            self._fail(exchange, error)
        else:
            self.held = data

    def _start_body(self, exchange: Exchange, head: response.ResponseHead, data: bytes, end: int) -> None:
        length = len(data) - end
        if head.bodiless or exchange.is_head:
            self.left = 0
            # A 204 that announces a body may still send it, and the next request must not get that.
            announced = head.status == 204 and (head.chunked or head.length)
            self.keep = not (head.close or length or announced)
            exchange.on_head(head, b"", True)
        elif head.length is not None:
            self.keep = not head.close
            left = self.left = head.length - length
            if left < 0:
                self.left = 0
                self.keep = False
                exchange.on_head(head, data[end : end + head.length], True)
            else:
                exchange.on_head(head, data[end:], left == 0)
        elif head.chunked:
            self.left = 0
            self.keep = not head.close
            self.chunks = Chunked(framed=exchange.framed)
            exchange.on_head(head, b"", False)
            if length and self.exchange is exchange and self.chunks is not None:
                self._read_chunks(exchange, self.chunks, data[end:])
        else:
            self.left = _UNTIL_CLOSE
            self.keep = False
            exchange.on_head(head, data[end:], False)

    def _read_chunks(self, exchange: Exchange, chunks: Chunked, data: bytes) -> None:
        try:
            out = chunks.feed(data)
        except BodyError:
            self._fail(exchange, BodyLost())
            return
        if chunks.done:
            self.chunks = None
            if chunks.rest:
                self.keep = False
            exchange.on_body(out, True)
        elif out:
            exchange.on_body(out, False)
        if chunks.behind and self.chunks is chunks:
            # The rest in another turn of the loop, so that others are served in between.
            self.pause()
            asyncio.get_running_loop().call_soon(self._catch_up, chunks)

    def _catch_up(self, chunks: Chunked) -> None:
        exchange = self.exchange
        if exchange is None or self.chunks is not chunks or exchange.full:
            return
        if chunks.behind:
            self._read_chunks(exchange, chunks, b"")
        if not chunks.behind and not exchange.full:
            self.resume()

    def resume(self) -> None:
        """Reads on, once everything that was read is passed on."""
        if self.chunks is not None and self.chunks.behind:
            asyncio.get_running_loop().call_soon(self._catch_up, self.chunks)
        else:
            super().resume()

    def _fail(self, exchange: Exchange, error: MemberError) -> None:
        self.exchange = None
        self.abort()
        exchange.on_failure(error)

    def eof_received(self) -> None:
        # Returning nothing closes the transport; connection_lost says what that means. Over TLS only a
        # close_notify gets here (RFC 8446 section 6.1): without one, anybody on the way may have ended it.
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        # The rest may complete the response, but this connection must not go back to the pool.
        self.spent = True
        if self.wire is not self.transport and self.exchange is not None:
            # While reading was paused, the member may have sent everything and left.
            rest, ended = read_rest(self.transport)
            self.ended = self.ended or ended
            if rest:
                self.data_received(rest)
        while self.exchange is not None and self.chunks is not None and self.chunks.behind:
            self._read_chunks(self.exchange, self.chunks, b"")
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self.left == _AWAITING_HEAD:
            stale = self.reused and not self.held and not exchange.interims
            exchange.on_failure(StaleConnection() if stale else ResponseLost())
        elif self.left >= _UNTIL_CLOSE >> 1 and exc is None and self.ended and self.chunks is None:
            exchange.on_body(b"", True)
        else:
            exchange.on_failure(BodyLost())

    def release(self, now: float) -> None:
        """The exchange is over: back to the pool, unless that has enough, or closed."""
        self.exchange = None
        pool = self.pool
        rests = pool.idle
        if now >= self.ends_at:
            rests = pool.aside
            if not pool.holds(self):
                self.keep = False
        if not self.keep or self.spent or len(rests) >= pool.room:
            self.transport.close()
            return
        if not self.reading:
            if self.wire is not self.transport:
                # TLS may hold back bytes that nobody can see.
                self.transport.close()
                return
            self.resume()
        self.reused = True
        self.left = _AWAITING_HEAD
        self.idle_since = now
        rests.append(self)

    def abort(self) -> None:
        """Drops the connection at once, with whatever is under way on it."""
        self.exchange = None
        self.transport.abort()

    def pause_writing(self) -> None:
        self.writable = False
        if self.exchange is not None:
            self.exchange.on_upstream_full()

    def resume_writing(self) -> None:
        self.writable = True
        if self.exchange is not None:
            self.exchange.on_upstream_drained()


class Pool:
    """The connections to one member, and the way to make more."""

    def __init__(self, edge: Edge, member: Member, endpoint: Endpoint, cookie_value: bytes) -> None:
        self.edge = edge
        self.member = member
        self.endpoint = endpoint
        self.cookie_value = cookie_value
        self.host_line = b"Host: " + endpoint.authority + b"\r\n"
        self.idle: list[Upstream] = []
        self.aside: list[Upstream] = []  # idle, but the name does not have their address at the moment
        self.connections: set[Upstream] = set()
        self.head_length = 0  # of the response before
        self.room = 0  # for so many idle connections; none in one that is closed
        # None for an address or a unix socket.
        self.name = (
            edge.resolver.follow(endpoint.host, endpoint.port, self.sort) if not endpoint.path else None
        )

    @property
    def waiting(self) -> int:
        """Connections that serve nothing at the moment."""
        return len(self.idle) + len(self.aside)

    @property
    def busy(self) -> int:
        """Connections that serve an exchange or a tunnel."""
        return len(self.connections) - self.waiting

    def forget(self, upstream: Upstream) -> None:
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

    def _close(self, upstream: Upstream) -> None:
        (self.idle if upstream in self.idle else self.aside).remove(upstream)
        upstream.transport.close()

    def close(self) -> None:
        """Closes what is idle, and the rest as it is released."""
        self.room = 0
        if self.name is not None:
            self.edge.resolver.leave(self.name, self.sort)
            self.name = None
        self.expire(_NEVER)

    def sort(self) -> None:
        """Sorts the connections again: an address may have come or gone, or the greatest age changed."""
        for upstream in self.connections:
            self._date(upstream)
        idle = sorted(self.idle + self.aside, key=_idle_since)
        self.idle.clear()
        self.aside.clear()
        now = self.edge.clock()
        for upstream in idle:
            if now < upstream.ends_at:
                self.idle.append(upstream)
            elif self.holds(upstream):
                self.aside.append(upstream)
            else:
                upstream.transport.close()

    def holds(self, upstream: Upstream) -> bool:
        """Whether the name lost a connection's address so recently that it may come back."""
        return self.name is not None and upstream.address in self.name.addresses.held

    def _date(self, upstream: Upstream) -> None:
        """Sets until when a connection takes requests."""
        age = self.edge.policy.timeouts.connection_age
        if self.name is not None and upstream.address not in self.name.addresses.current:
            upstream.ends_at = _AT_ONCE
        else:
            upstream.ends_at = upstream.born + age * upstream.share if age else _NEVER

    async def connect(self) -> Upstream:
        """A new connection.

        Raises `ConnectFailed` or one of its kinds within `timeouts.connect`, and a kind of `EdgeFailed` if it
        is not the member that is to blame: `OutOfFiles` when none is left, not even of idle connections.
        """
        try:
            return await self._connect_awake()
        except OutOfFiles:
            if not self.edge.close_idle_upstreams():
                raise
        # They are closed by the turn after the next.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await self._connect_awake()

    async def _connect_awake(self) -> Upstream:
        """Tries again if it failed while this process slept: the member may have been in time."""
        edge = self.edge
        for _ in range(_AGAIN):
            lost = edge.lost()
            try:
                return await self._connect()
            except ConnectFailed:
                if edge.lost() - lost < max(_SLEPT, edge.policy.timeouts.connect / 4):
                    raise
        return await self._connect()

    async def _connect(self) -> Upstream:
        upstream = Upstream(self)
        made = False
        try:
            async with asyncio.timeout(self.edge.policy.timeouts.connect):
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
        upstream.born = self.edge.clock()
        upstream.share = 1 - _SPREAD * self.edge.random_bits(16) / (1 << 16)
        self._date(upstream)
        return upstream

    async def _open(self, upstream: Upstream) -> None:
        endpoint = self.endpoint
        loop = asyncio.get_running_loop()
        if endpoint.path is not None:
            await loop.create_unix_connection(lambda: upstream, endpoint.path)
            return
        addresses = await self.edge.resolver.resolve(endpoint.host, endpoint.port)
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
            await connect(upstream, endpoint.tls, endpoint.host, sock, self.edge.policy.timeouts.connect)
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


def _idle_since(upstream: Upstream) -> float:
    return upstream.idle_since
