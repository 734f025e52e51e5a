"""After a 101 there is no HTTP any more: two pipes, with back-pressure and half-close each way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fedproxy.proxy.flow import Flow
from fedproxy.proxy.secure import wire_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedproxy.proxy.context import Context

_GOODBYE = 5.0  # seconds that a side may take to answer a close_notify


class Side(Flow):
    """One end of a tunnel. What it reads, its `peer` writes."""

    __deletable__ = ("peer",)
    peer: Side
    received = 0  # bytes
    ended = False  # nothing more will be read
    lost = 0  # bytes that were written but not sent before the connection was gone
    waiting = 0  # bytes that the system had not taken at the last look
    writable = True

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, who: str) -> None:
        super().__init__()
        self.tunnel = tunnel
        self.transport = transport
        self.wire = wire_of(transport)
        self.write = transport.write
        self.who = who

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        peer = self.peer
        if peer.wire.is_closing():
            # It is thrown away; the loop says that the connection is lost a turn later.
            peer.lost += len(data)
        peer.write(data)

    def eof_received(self) -> bool:
        peer = self.peer.transport
        self.tunnel.ended_by(self.who)
        self.ended = True
        if self.transport.can_write_eof() and peer.can_write_eof() and not peer.is_closing():
            self.peer.watch()
            peer.write_eof()
            # The other direction may go on; when it ends too, there is nothing left to wait for.
            return not self.tunnel.half_closed()
        return False

    def cut_off(self) -> None:
        self.tunnel.ended_by(self.who)

    def pause_writing(self) -> None:
        if not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()
        self.writable = False
        self.waiting = self.unsent()

    def resume_writing(self) -> None:
        if not (self.peer.ended or self.peer.transport.is_closing()):
            self.peer.transport.resume_reading()
        self.writable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.ended_by(self.who)
        self.lost += self.unsent() or (0 if self.writable else self.waiting)
        if not self.peer.transport.is_closing():
            self.peer.end()
        self.tunnel.gone()

    def end(self) -> None:
        """Closes once everything is written."""
        self.watch()
        self.transport.close()

    def watch(self) -> None:
        """Nothing more will be written: from now on `writable` means that all of it is sent."""
        if self.unsent():
            self.wire.set_write_buffer_limits(0)


class Tunnel:
    """The two sides of a tunnel, and who ended it.

    over: called once, with how it ended as the log says it, and the bytes that the visitor sent and got.
    """

    __deletable__ = ("visitor", "member")

    def __init__(
        self,
        context: Context,
        visitor: asyncio.Transport,
        member: asyncio.Transport,
        over: Callable[[str, int, int], None],
    ) -> None:
        self.context = context
        self.over = over
        self.visitor = Side(self, visitor, "C")
        self.member = Side(self, member, "S")
        self.visitor.peer, self.member.peer = self.member, self.visitor
        self.ended = ""
        self._cut = ""
        self._eofs = 0
        self._open = 2
        self._seen = (-1, 0)
        self._since = 0.0
        context.tunnels.add(self)

    def half_closed(self) -> bool:
        """Counts an end of one direction; True when both have ended."""
        self._eofs += 1
        return self._eofs == 2

    def ended_by(self, who: str) -> None:
        """The first to end it is who the log names."""
        self.ended = self.ended or who

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self._since = min(now, self._since + lost)

    def sweep(self, now: float) -> None:
        """Cuts a tunnel in which nothing moves."""
        for side in (self.visitor, self.member):
            side.waiting = side.unsent()
        waiting = self.visitor.waiting + self.member.waiting
        progress = (self.visitor.received + self.member.received, waiting)
        if progress != self._seen:
            self._seen, self._since = progress, now
        elif self._open == 1 and not waiting:
            if now - self._since > _GOODBYE:
                self.abort()
        elif now - self._since > self.context.runtime.policy.timeouts.response_idle:
            self.cut("c" if not self.visitor.writable else "s")

    def cut(self, who: str) -> None:
        """Drops both sides at once; `who` as in the log."""
        self.ended_by(who)
        self._cut = who
        self.abort()

    def abort(self) -> None:
        """Drops both sides."""
        self.visitor.transport.abort()
        self.member.transport.abort()

    def gone(self) -> None:
        """One side's connection is gone; with the second the tunnel is over."""
        self._open -= 1
        if self._open:
            return
        self.context.tunnels.discard(self)
        if self.visitor.lost and self.ended == "S":
            # The member ended it, and the visitor did not get all of it.
            self.ended = self._cut or "C"
        sent = max(0, self.member.received - self.visitor.lost)
        received = self.visitor.received
        # Nothing refers to itself any more, so none of it waits for the garbage collector.
        del self.visitor.peer, self.member.peer, self.visitor, self.member
        self.over(f"{self.ended}T", received, sent)


def join(
    context: Context,
    visitor: asyncio.Transport,
    member: asyncio.Transport,
    early: bytes,
    over: Callable[[str, int, int], None],
    *,
    full: bool,
) -> None:
    """Makes a tunnel of two connections.

    early: what the visitor sent before the member's 101. full: the visitor takes no more for now.
    """
    tunnel = Tunnel(context, visitor, member, over)
    tunnel.visitor.writable = not full
    visitor.set_protocol(tunnel.visitor)
    member.set_protocol(tunnel.member)
    if early:
        tunnel.visitor.data_received(early)
