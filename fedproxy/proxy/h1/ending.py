"""How a visitor's connection ends: what it is still owed, how long it lingers, and its deadlines.

A connection outlives its last response for a while, so that no reset overtakes that (RFC 9112 section 9.6).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fedproxy.errors import HeadTimeout
from fedproxy.proxy.flow import all_arrived, has_left, has_unread
from fedproxy.proxy.visiting import Visiting
from fedproxy.wire.h1.server import Server, ServerState

if TYPE_CHECKING:
    from fedproxy.errors import ExchangeError, VisitorError
    from fedproxy.http.request import Origin
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.ports import Owed
    from fedproxy.proxy.routing import RoutedRequest

_LINGER: Final = 5.0  # seconds for which a closing connection reads on
_LINGERING: Final = ServerState.LINGERING


class Ending(Visiting):
    """The deadlines and the end of a connection.

    exchange: the request under way. owed: one that is over, except that the end of its response is not sent
    yet. head_since: when a head began that is not whole.
    """

    __slots__ = ("exchange", "head_since", "linger_until", "machine", "owed")

    def __init__(self, context: Context, options: ListenerOptions) -> None:
        super().__init__(context, options)
        self.machine: Server[RoutedRequest] = Server()
        self.exchange: Exchange | None = None
        self.owed: Owed | None = None
        self.head_since: float | None = None
        self.linger_until = float("inf")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.context.connections.add(self)
        super().connection_made(transport)

    def awaits_head(self) -> None:
        """The first bytes have come, and are kept elsewhere until it is clear what they are."""
        if self.head_since is None:
            self.head_since = self.context.clock()

    @property
    def lingers(self) -> bool:
        """Whether the last response was written, and what comes in is thrown away."""
        return self.machine.state is _LINGERING

    def refuse(self, error: VisitorError, origin: Origin) -> None:
        """Answers a request that was not read, and ends."""
        raise NotImplementedError

    def leave(self) -> None:
        self.machine.keep = False
        if self.exchange is None and not self.lingers:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.context.connections.discard(self)
        self.gone()
        lost = self.lost()
        self.give_up_owed(lost)
        self._visitor_gone(lost)

    def eof_received(self) -> None:
        # A visitor who closes half is taken for gone, as browsers only ever close whole.
        if self.exchange is not None:
            self._visitor_gone(self.lost())

    def cut_off(self) -> None:
        self.eof_received()

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once. What was sent does not look complete."""
        lost = self.lost()
        self._visitor_gone(lost, error)
        self.give_up_owed(lost, error.termination[0])
        self.transport.abort()

    def _visitor_gone(self, lost: int, error: ExchangeError | None = None) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_visitor_gone(error, lost)

    def owe(self, exchange: Owed, last: int) -> None:
        """The end of a complete response is not sent yet: the exchange is told later."""
        self.owed = exchange
        if self.wire.is_closing():
            # The last write is discarded, also if it came with the head.
            self.thrown_away = max(self.thrown_away, last)
            self.waiting = self.unsent() or (0 if self.writable else self.waiting)
            self.writable = False
            self.machine.block_reading()
        else:
            self.waiting = self.unsent()
            # So that `resume_writing` is called once all is sent. Until then nothing else is written.
            self.wire.set_write_buffer_limits(0)

    def give_up_owed(self, lost: int, who: str = "C") -> None:
        """The connection ends: the owed response is recorded, with `lost` bytes that were not sent."""
        owed, self.owed = self.owed, None
        if owed is not None:
            owed.undelivered(lost, who)

    def end_here(self) -> None:
        """Closes once the answer is out; what still comes in is thrown away for a while."""
        if self.transport.is_closing():
            return
        # First, because nothing that is read from here on is a request.
        self._linger()
        self.resume()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable = False
        self.machine.block_reading()
        self.waiting = self.unsent()
        if self.exchange is not None:
            self.exchange.on_visitor_full()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that has been idle since then, unless a request has arrived unread.

        One that has lingered since then is dropped once its answer has arrived: a drain does not wait for the
        peer to close.
        """
        if self.lingers:
            if self.linger_until - _LINGER <= since and not self.unsent() and all_arrived(self.wire):
                self.transport.abort()
        elif self.exchange is None and not self.machine.held and self.idle_since <= since:
            sock = self.transport.get_extra_info("socket")
            if sock is None or not has_unread(sock):
                self.close()

    def close(self) -> None:
        """Closes without an answer. What is still unsent has as long as a slow reader gets."""
        self._linger()
        self.transport.close()

    # Time

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self.idle_since = min(now, self.idle_since + lost)
        if self.head_since is not None:
            self.head_since = min(now, self.head_since + lost)
        if self.lingers:
            self.linger_until = min(now + self._may_linger(), self.linger_until + lost)
        if self.exchange is not None:
            self.exchange.grant(lost, now)

    def _linger(self) -> None:
        self.machine.linger()
        if not self.wire.is_closing():
            # A lost transport no longer knows what is unsent.
            self.waiting = self.unsent()
        self.linger_until = self.context.clock() + self._may_linger()

    def _may_linger(self) -> float:
        """Seconds to linger: as long as a slow reader gets, if something is still unsent."""
        return self.context.runtime.policy.timeouts.response_idle if self.waiting else _LINGER

    def sweep(self, now: float) -> None:
        """Looks at the one deadline that counts now."""
        timeouts = self.context.runtime.policy.timeouts
        if not self.writable and not self.lingers:
            self._look_at_waiting(now)
        if self.exchange is not None:
            if not self.reading and has_left(self.transport):
                # The loop does not report a disconnect while reading is paused.
                self.transport.abort()
            else:
                self.exchange.sweep(now)
        elif self.lingers:
            self._sweep_lingering(now)
        elif self.head_since is not None:
            if now - self.head_since > timeouts.request_head:
                self.refuse(HeadTimeout(), self.origin)
        elif self.owed is not None:
            if now - self.idle_since > timeouts.response_idle:
                self.give_up_owed(self.lost(), "c")
                self.reset()
        elif now - self.idle_since > timeouts.keepalive:
            self.close()

    def _look_at_waiting(self, now: float) -> None:
        waiting = self.unsent()
        if waiting and waiting < self.waiting:
            self.waiting = waiting
            if self.owed is not None:
                # A slow reader gets the full time for each part.
                self.idle_since = now

    def _sweep_lingering(self, now: float) -> None:
        waiting = self.unsent()
        if waiting != self.waiting:
            # The end of the answer goes out slowly.
            self.waiting = waiting
            self.linger_until = now + self._may_linger()
        elif now > self.linger_until:
            self.give_up_owed(self.lost(), "c")
            if waiting:
                self.reset()
            else:
                self.transport.abort()
