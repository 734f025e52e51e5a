"""After a 101 there is no HTTP any more: two pipes, with back-pressure and half-close each way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.upstream import Upstream


class Side(asyncio.Protocol):
    """One end of a tunnel. What it reads, its `peer` writes."""

    peer: Side
    received = 0  # bytes
    writable = True

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, who: str) -> None:
        self.tunnel = tunnel
        self.transport = transport
        self.write = transport.write
        self.who = who

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.peer.write(data)

    def eof_received(self) -> bool:
        peer = self.peer.transport
        self.tunnel.ended_by(self.who)
        if self.transport.can_write_eof() and peer.can_write_eof() and not peer.is_closing():
            peer.write_eof()
            # The other direction may go on; when it ends too, there is nothing left to wait for.
            return not self.tunnel.half_closed()
        return False

    def pause_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()
        self.writable = False

    def resume_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()
        self.writable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.ended_by(self.who)
        if not self.peer.transport.is_closing():
            # What the peer is still owed is written first.
            self.peer.transport.close()
        self.tunnel.lost()


class Tunnel:
    """The two sides of a tunnel, and who ended it."""

    def __init__(self, edge: Edge, exchange: Exchange, visitor: asyncio.Transport, member: Upstream) -> None:
        self.edge = edge
        self.exchange = exchange
        self.upstream = member
        self.visitor = Side(self, visitor, "C")
        self.member = Side(self, member.transport, "S")
        self.visitor.peer, self.member.peer = self.member, self.visitor
        self.ended = ""
        self._eofs = 0
        self._open = 2
        self._seen = -1
        self._since = 0.0
        edge.tunnels.add(self)

    def half_closed(self) -> bool:
        """Counts an end of one direction; True when both have ended."""
        self._eofs += 1
        return self._eofs == 2

    def ended_by(self, who: str) -> None:
        """The first to end it is who the log names."""
        self.ended = self.ended or who

    def grant(self, lost: float, now: float) -> None:
        """So many seconds count for no deadline."""
        self._since = min(now, self._since + lost)

    def sweep(self, now: float) -> None:
        """Cuts a tunnel in which nothing moves."""
        progress = self.visitor.received + self.member.received
        if progress != self._seen:
            self._seen, self._since = progress, now
        elif now - self._since > self.edge.policy.timeouts.response_idle:
            self.ended_by("c" if not self.visitor.writable else "s")
            self.abort()

    def abort(self) -> None:
        """Drops both sides."""
        self.visitor.transport.abort()
        self.member.transport.abort()

    def lost(self) -> None:
        """One side's connection is gone; with the second the tunnel is over."""
        self._open -= 1
        if self._open:
            return
        self.edge.tunnels.discard(self)
        self.upstream.pool.forget(self.upstream)
        self.exchange.end_tunnel(f"{self.ended}T", self.visitor.received, self.member.received)


def join(exchange: Exchange, visitor: asyncio.Transport, upstream: Upstream, early: bytes) -> None:
    """Makes a tunnel of two connections. `early`: what the visitor sent before the member's 101."""
    tunnel = Tunnel(exchange.edge, exchange, visitor, upstream)
    visitor.set_protocol(tunnel.visitor)
    upstream.transport.set_protocol(tunnel.member)
    if early:
        tunnel.visitor.data_received(early)
    if not exchange.full:
        upstream.resume()
