"""A visitor's connection that speaks HTTP/2: it moves the bytes, `wire.h2.server` knows what they mean."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Final

from fedproxy.errors import (
    Banned,
    BannedAddress,
    ConnectionFault,
    HeadTimeout,
    SlowReader,
    TooManyLaunches,
    VisitorError,
)
from fedproxy.proxy import answers, recording
from fedproxy.proxy.composing import compose, follow
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.flow import all_arrived
from fedproxy.proxy.h2.stream import H2VisitorStream
from fedproxy.proxy.h2.writing import Writing
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.hpack import literal, literal_name
from fedproxy.wire.h2.server import FrameEvent, H2Server, ServerPhase

if TYPE_CHECKING:
    from fedproxy.errors import ExchangeError
    from fedproxy.http.request import Origin
    from fedproxy.proxy.answers import AnsweredRequest
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.routing import RoutedRequest
    from fedproxy.proxy.visiting import Visiting

_NOTHING: Final = FrameEvent.NOTHING
_REQUEST: Final = FrameEvent.REQUEST
_BODY: Final = FrameEvent.BODY
_FAULT: Final = FrameEvent.FAULT
_GREW: Final = FrameEvent.GREW
_PONG: Final = FrameEvent.PONG
_CLOSED: Final = ServerPhase.CLOSED
_LINGER: Final = 5.0  # seconds for which a closing connection reads on
_ANSWER: Final = 1.0  # seconds in which a peer that is asked to leave may still begin streams
_ALIVE: Final = 20.0  # seconds in which a PING has to be answered
_AT_ONCE: Final = 48  # requests that are begun in one turn of the loop; a large head counts as many
_VALUE: Final = b"\x20"  # the length of an id that is made here


class H2Downstream(Writing[H2VisitorStream]):
    """One connection, with all its streams: what is read of it, and when it ends."""

    __slots__ = (
        "_asked_at",
        "_heard",
        "_heard_at",
        "_leaving_since",
        "_linger_until",
        "_moved_at",
        "_partial",
        "_sent",
        "_swept_at",
    )

    def __init__(self, context: Context, options: ListenerOptions) -> None:
        super().__init__(context, options)
        self.machine = H2Server(self._make, self._key)
        self._sent = 0
        self._heard = True
        self._heard_at = self._swept_at = self._moved_at = context.clock()
        self._asked_at: float | None = None
        self._leaving_since: float | None = None
        self._linger_until: float | None = None
        self._partial: tuple[int, float] | None = None

    def __repr__(self) -> str:
        return f"<H2Downstream {self.peer.decode('latin-1')} {self.machine.phase.value}>"

    def _make(self, number: int, window: int, credit: int, state: int) -> H2VisitorStream:
        return H2VisitorStream(self, number, window, credit, state)

    def _key(self) -> bytes:
        """A Sec-WebSocket-Key (RFC 6455 section 4.1)."""
        return base64.b64encode(self.context.random_bits(128).to_bytes(16, "big"))

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.context.connections.add(self)
        super().connection_made(transport)

    def begin(
        self,
        transport: asyncio.Transport,
        address: bytes,
        standing: bool | None = None,
        introducer: bytes | None = None,
    ) -> None:
        super().begin(transport, address, standing, introducer)
        self._greet()

    def succeed(self, other: Visiting) -> None:
        """Takes over a connection on which nothing was said but what HTTP/2 begins with."""
        self.context.connections.discard(other)
        self.context.connections.add(self)
        self.take_over(other)
        self.transport.set_protocol(self)
        self.weigh()
        self._greet()

    def _greet(self) -> None:
        """Sends what the edge's side begins with."""
        if not self.transport.is_closing():
            self.let_events_pass()
            self.send(self.machine.greet())
            if self.context.draining:
                self.leave()

    def weigh(self) -> None:
        super().weigh()
        hsts = self.options.hsts
        # RFC 6797 section 6.1: on every response.
        self.common = literal(b"strict-transport-security", b"max-age=%d" % hsts) if hsts else b""
        self.id_name = self.common + literal_name(b"x-request-id") + _VALUE
        heads, limits = self.context.runtime.heads, self.context.runtime.policy.limits
        self.machine.configure(
            heads.h2_lines,
            heads.trusted_blocks if self.trusted else heads.blocks,
            limits.request_head,
            limits.request_body,
            limits.streams,
            limits.http2,
        )

    def refresh(self) -> None:
        super().refresh()
        if self.context.draining:
            self.leave()

    # What is read

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._linger_until is None:
            self._read(data)

    def _read(self, data: bytes) -> None:
        machine = self.machine
        room = _AT_ONCE
        try:
            event = machine.receive(data)
            while event is not _NOTHING:
                if event is _REQUEST:
                    self._take(machine.stream)
                    room -= machine.cost
                elif event is _BODY:
                    body, machine.data = machine.data, b""
                    machine.stream.take_body(body, machine.done)
                else:
                    self._tell(event)
                    room -= machine.cost
                if room <= 0:
                    # The rest in another turn of the loop, so that others are served in between.
                    self.pause()
                    self.soon(self.read_on)
                    break
                event = machine.more()
        except ConnectionFault as fault:
            self._on_fault(fault)
        if machine.out:
            self.flush()

    def read_on(self) -> None:
        if self._linger_until is not None:
            self.resume()
        elif not self.stuffed and not self.transport.is_closing():
            self.resume()
            self._read(b"")

    def _tell(self, event: FrameEvent) -> None:
        machine = self.machine
        if event is _GREW:
            self.pump()
        elif event is _PONG:
            self._asked_at = None
            if self._leaving_since is not None:
                self.go()
        elif event is _FAULT:
            self._on_stream_fault(machine.stream, machine.error)
        else:
            self._lose_stream(machine.stream)

    def _on_fault(self, fault: ConnectionFault) -> None:
        """The connection ends: the peer is told why, and all its streams are gone."""
        if fault.reason is not None:
            self.context.counts.rejected[fault.reason] += 1
        self.send(self.machine.go(fault.code))
        self.flush()
        self._lose(self._streams())
        self.end_here()

    def _on_stream_fault(self, stream: H2VisitorStream, error: VisitorError) -> None:
        if stream.exchange is not None:
            stream.exchange.cut(error)
        elif stream.id not in self.machine.streams:
            return
        elif stream.answered:
            # Its response is complete but waits, or it is a tunnel: there cannot be another answer.
            self.machine.reset(stream, Code.PROTOCOL_ERROR)
            self._lose_stream(stream)
        else:
            self.refuse(stream, error)

    def _lose_stream(self, stream: H2VisitorStream) -> None:
        self.full.discard(stream)
        stream.lost()
        self.stream_over(self.context.clock())

    def _take(self, stream: H2VisitorStream) -> None:
        """Takes a request."""
        line: RoutedRequest = stream.line
        block, context = stream.block, self.context
        if not (block.plain and line.ordinary and self.ordinary) or stream.receiving:
            self._take_other(stream)
            return
        counts = context.counts
        counts.requests += 1
        counts.requests_http2 += 1
        request_id, traceparent = (context.ids or context.draw_ids()).pop()
        exchange = stream.exchange = Exchange()
        exchange.open(context, stream, line, block, self.origin, request_id, traceparent)
        exchange.framed = False
        if context.tracer is not None:
            follow(exchange)
        if self.crowded or not self.writable:
            self._hold(stream, exchange)
        exchange.begin()

    def _hold(self, stream: H2VisitorStream, exchange: Exchange) -> None:
        """Nothing is taken of a response yet."""
        exchange.full = stream.full = True
        self.full.add(stream)

    def _take_other(self, stream: H2VisitorStream) -> None:
        """Takes a request that is off the short path."""
        line: RoutedRequest = stream.line
        block, context = stream.block, self.context
        origin = self.origin_of(block)
        try:
            line = self.check(line, block, origin)
        except (Banned, TooManyLaunches) as error:
            self._turn_away(stream, origin, error)
            return
        except VisitorError as error:
            self.refuse(stream, error, origin)
            return
        counts = context.counts
        counts.requests += 1
        counts.requests_http2 += 1
        if not line.proxied:
            request, answer = self.answer_here(line, block, origin)
            self._answer(stream, request, answer)
            return
        request_id, traceparent = self.identify(block)
        exchange = stream.exchange = Exchange()
        exchange.open(context, stream, line, block, origin, request_id, traceparent)
        exchange.framed = False
        compose(exchange)
        if self.crowded or not self.writable:
            self._hold(stream, exchange)
        if stream.connects or not block.has_body:
            exchange.begin()
            return
        exchange.expect_body(payload=True)
        if block.expect or line.own:
            # The visitor waits for a 100 before it sends the body; the edge's own pages read none.
            exchange.begin_expected()

    # Answers of the edge's own

    def refuse(self, stream: H2VisitorStream, error: VisitorError, origin: Origin | None = None) -> None:
        """Answers a head that is refused with one fixed line."""
        response = self.refusal(error, origin or self.origin, "HTTP/2.0")
        stream.answer(response, False, malformed=error.status == 400)

    def _turn_away(self, stream: H2VisitorStream, origin: Origin, error: Banned | TooManyLaunches) -> None:
        """Answers a valid request that is not served, in the form that it asks for."""
        self._answer(stream, *self.turn_away(stream.line, stream.block, origin, error))
        if isinstance(error, BannedAddress):
            self.go()

    def _answer(self, stream: H2VisitorStream, request: AnsweredRequest, answer: answers.Answer) -> None:
        recording.record_answer(self.context, request, answer)
        stream.answer(answer.response, request.line.is_head, malformed=False)

    # The end

    def stream_over(self, now: float) -> None:
        """A stream is over."""
        machine = self.machine
        if not machine.streams:
            self.idle_since = now
            # What waits is of a stream, so nothing does.
            if machine.phase is _CLOSED:
                self.end_here()

    def leave(self) -> None:
        """Asks the peer to begin no more streams, and closes once those that there are have ended."""
        if self._leaving_since is None and self._linger_until is None:
            self._leaving_since = self.context.clock()
            self.send(self.machine.leave())
            self.flush()

    def go(self) -> None:
        """Serves no more streams than have begun."""
        self.send(self.machine.go())
        self.flush()
        self.stream_over(self.idle_since)

    def end_here(self) -> None:
        """Closes once everything is out; what still comes in is thrown away for a while."""
        if self._linger_until is not None or self.transport.is_closing():
            return
        self._linger_until = self.context.clock() + _LINGER
        self.write_gathered()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def eof_received(self) -> None:
        # A visitor who closes half is taken for gone, as browsers only ever close whole.
        self._lose(self._streams())

    def cut_off(self) -> None:
        self.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.context.connections.discard(self)
        self.gone()
        self._lose(self._streams())
        self.machine.let_go()

    def _streams(self) -> set[H2VisitorStream]:
        """All that are under way, also those whose response only has to be sent, and half a tunnel."""
        return {*self.machine.streams.values(), *self.full, *self.tunnels}

    def _lose(self, streams: set[H2VisitorStream], error: ExchangeError | None = None) -> None:
        self.write_gathered()
        lost = self.lost()
        self.machine.streams.clear()
        self.full.clear()
        owed, self.owed = self.owed, []
        for stream in streams:
            stream.lost(error)
        who = "C" if error is None else error.termination[0]
        sent = self.written - lost
        for end, _, exchange in owed:
            exchange.undelivered(max(0, end - sent), who)

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once. What was sent does not look complete."""
        streams = self._streams()
        for stream in list(self.machine.streams.values()):
            self.machine.reset(stream, Code.CANCEL)
        self.send(self.machine.go())
        self.flush()
        self._lose(streams, error)
        if self.unsent():
            self.transport.abort()
        else:
            self.transport.close()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that is asked to leave and has nothing under way."""
        if self._linger_until is not None:
            if self._linger_until - _LINGER <= since and not self.unsent() and all_arrived(self.wire):
                self.transport.abort()
        elif self._leaving_since is None:
            self.leave()
        elif self._leaving_since <= since:
            self.go()

    # Time

    def pause_writing(self) -> None:
        super().pause_writing()
        self._moved_at = self.context.clock()

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self.idle_since = min(now, self.idle_since + lost)
        self._heard_at = min(now, self._heard_at + lost)
        self._moved_at = min(now, self._moved_at + lost)
        if self._asked_at is not None:
            self._asked_at = min(now, self._asked_at + lost)
        if self._leaving_since is not None:
            self._leaving_since = min(now, self._leaving_since + lost)
        if self._linger_until is not None:
            self._linger_until = min(now + _LINGER, self._linger_until + lost)
        if self._partial is not None:
            self._partial = self._partial[0], min(now, self._partial[1] + lost)
        for stream in list(self.machine.streams.values()):
            if stream.exchange is not None:
                stream.exchange.grant(lost, now)

    def sweep(self, now: float) -> None:
        """Looks at every deadline."""
        if self._linger_until is not None:
            if now > self._linger_until:
                self.transport.abort()
            return
        machine, timeouts = self.machine, self.context.runtime.policy.timeouts
        machine.refill(now - self._swept_at)
        self._swept_at = now
        if self.owed:
            self._look_at_owed()
        if not self.writable and not self._moves(now):
            return
        for stream in list(machine.streams.values()):
            if stream.exchange is not None:
                stream.exchange.sweep(now)
        for stream in [each for each in self.full if each.exchange is None and each.tunnel is None]:
            if stream.stands(now) > timeouts.response_idle and stream.id in machine.streams:
                # The response is whole, and its visitor does not take it.
                machine.reset(stream, Code.CANCEL)
                self.full.discard(stream)
                stream.lost(SlowReader())
                self.stream_over(now)
        if self._is_late(now):
            return
        if self._leaving_since is not None:
            if now - self._leaving_since > _ANSWER:
                self.go()
        elif not machine.streams:
            if now - self.idle_since > timeouts.keepalive:
                self.leave()
        else:
            self._look_for_life(now, timeouts.keepalive)
        self.flush()

    def _moves(self, now: float) -> bool:
        """Whether a peer that takes no more has taken something lately; else it is dropped."""
        self.waiting = self.unsent()
        sent = self.passed - self.waiting
        if sent != self._sent:
            self._sent = sent
            self._moved_at = now
        elif now - self._moved_at > self.context.runtime.policy.timeouts.response_idle:
            self.reset()
            return False
        return True

    def _is_late(self, now: float) -> bool:
        """Whether a head, or the beginning of the connection, takes too long; then it ends."""
        machine = self.machine
        if not machine.partial and machine.begun:
            self._partial = None
            return False
        if self._partial is None or self._partial[0] != machine.served:
            self._partial = machine.served, now if machine.begun else self.idle_since
        if now - self._partial[1] <= self.context.runtime.policy.timeouts.request_head:
            return False
        self.refusal(HeadTimeout(), self.origin, "HTTP/2.0")
        self._on_fault(ConnectionFault(Code.ENHANCE_YOUR_CALM if machine.begun else Code.SETTINGS_TIMEOUT))
        return True

    def _look_for_life(self, now: float, keepalive: float) -> None:
        """A peer that is silent for long is asked whether it is still there."""
        if self._heard:
            self._heard = False
            self._heard_at = now
            self._asked_at = None
        elif self._asked_at is not None:
            if now - self._asked_at > min(keepalive, _ALIVE):
                self.transport.abort()
        elif now - self._heard_at > keepalive:
            self._asked_at = now
            self.send(self.machine.ping())
