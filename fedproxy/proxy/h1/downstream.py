"""A visitor's connection that speaks HTTP/1.1: it moves the bytes, `wire.h1.server` knows what they mean."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fedproxy.errors import (
    Banned,
    BannedAddress,
    TooManyLaunches,
    VisitorError,
)
from fedproxy.proxy import answers, recording
from fedproxy.proxy.composing import compose, follow
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.h1.ending import Ending
from fedproxy.wire.h1.server import ServerEvent, ServerState

if TYPE_CHECKING:
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.http.response import Response, ResponseHead
    from fedproxy.proxy.answers import AnsweredRequest
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.routing import RoutedRequest

_SMALL: Final = 16 * 1024
_ID: Final = b"X-Request-ID: "
_PLAIN: Final = ServerEvent.PLAIN
_REQUEST: Final = ServerEvent.REQUEST
_BODY: Final = ServerEvent.BODY
_IDLE: Final = ServerState.IDLE
_LINGERING: Final = ServerState.LINGERING


class Downstream(Ending):
    """One connection, and the stream of the one request that it serves at a time."""

    __slots__ = ("id_name",)

    def __init__(self, context: Context, options: ListenerOptions) -> None:
        super().__init__(context, options)
        self.id_name = _ID

    def __repr__(self) -> str:
        return f"<Downstream {self.peer.decode('latin-1')} {self.machine.state.value} {self.exchange or ''}>"

    # The connection

    def weigh(self) -> None:
        super().weigh()
        self.id_name = _id_name(self.options)
        heads, limits = self.context.runtime.heads, self.context.runtime.policy.limits
        self.machine.configure(
            heads.lines,
            heads.trusted_blocks if self.trusted else heads.blocks,
            limits.request_head,
            limits.request_body,
            heads.longest,
        )

    def refresh(self) -> None:
        super().refresh()
        if self.context.draining and self.exchange is not None and self.exchange.first_byte_at is None:
            # Its head will say so.
            self.machine.keep = False

    # The request

    def data_received(self, data: bytes) -> None:
        machine = self.machine
        try:
            event = machine.receive(data)
        except VisitorError as error:
            self._on_fault(error)
            return
        if event is _PLAIN:
            line = machine.line
            block = machine.block
            if not (line.ordinary and self.ordinary):
                self._take(line, block)
                return
            context = self.context
            context.counts.requests += 1
            request_id, traceparent = (context.ids or context.draw_ids()).pop()
            exchange = self.exchange = Exchange()
            exchange.open(context, self, line, block, self.origin, request_id, traceparent)
            if context.tracer is not None:
                follow(exchange)
            exchange.begin()
        else:
            self._tell(event)

    def _more(self) -> None:
        """Reads on in what the machine holds."""
        try:
            event = self.machine.more()
        except VisitorError as error:
            self._on_fault(error)
        else:
            self._tell(event)

    def _tell(self, event: ServerEvent) -> None:
        if event is _REQUEST:
            self._take(self.machine.line, self.machine.block)
        elif event is _BODY:
            self._pass_on()
        else:
            self._hold()

    def _hold(self) -> None:
        """What was read has to wait: the next request, or the first bytes of a tunnel."""
        machine = self.machine
        if not machine.begun:
            # What was held may have been no more than an empty line.
            self.head_since = None
        elif self.head_since is None:
            self.head_since = self.context.clock()
        if len(machine.held) > machine.head_limit:
            self.pause()
        else:
            self.resume()

    def _pass_on(self) -> None:
        machine, exchange = self.machine, self.exchange
        # The machine keeps its `data`, which may be 256 KiB: an idle connection must not.
        data, machine.data = machine.data, b""
        if machine.held:
            self._hold()
        if exchange is not None:
            exchange.send_body(data, machine.done)

    def _on_fault(self, error: VisitorError) -> None:
        if self.exchange is not None:
            # The fault is in its body.
            self.exchange.cut(error)
            return
        origin = self.origin
        if self.trusted and self.machine.raw:
            # The log should name the visitor of a refused request as well, if the headers can be read.
            with suppress(VisitorError):
                origin = self.origin_of(self.machine.blocks[self.machine.raw])
        self.refuse(error, origin)

    def _take(self, line: RoutedRequest, block: HeaderBlock) -> None:
        """Takes a request that is off the short path."""
        context = self.context
        self.head_since = None
        origin = self.origin_of(block)
        if context.draining:
            self.machine.keep = False
        try:
            line = self.check(line, block, origin)
        except (Banned, TooManyLaunches) as error:
            self._turn_away(line, block, origin, error)
            return
        except VisitorError as error:
            self.refuse(error, origin)
            return
        context.counts.requests += 1
        if line.http10:
            context.counts.requests_http10 += 1
        if not line.proxied:
            request, answer = self.answer_here(line, block, origin)
            self._answer(request, answer)
            return
        request_id, traceparent = self.identify(block)
        exchange = self.exchange = Exchange()
        exchange.open(context, self, line, block, origin, request_id, traceparent)
        exchange.framed = not line.http10
        compose(exchange)
        if not self.writable:
            exchange.full = True
        if not block.has_body:
            self._hold()
            exchange.begin()
            return
        exchange.expect_body()
        if self.machine.held:
            self._more()
        if block.expect or line.own:
            # The visitor waits for a 100 before it sends the body; the edge's own pages read none.
            exchange.begin_expected()

    # Answers of the edge's own

    def send_answer(self, response: Response) -> None:
        """Sends a response of the edge's own, and ends the exchange, if there is one."""
        machine = self.machine
        self.write(machine.answer(response))
        self.exchange = None
        if machine.state is _LINGERING:
            self.end_here()
        else:
            self._next()

    def refuse(self, error: VisitorError, origin: Origin) -> None:
        """Answers a head that is refused with one fixed line, and closes."""
        self.write(self.machine.answer(self.refusal(error, origin, "HTTP/1.1"), unread=True))
        self.end_here()

    def _turn_away(
        self, line: RoutedRequest, block: HeaderBlock, origin: Origin, error: Banned | TooManyLaunches
    ) -> None:
        """Answers a valid request that is not served, in the form that it asks for."""
        if isinstance(error, BannedAddress):
            self.machine.keep = False
        self._answer(*self.turn_away(line, block, origin, error))

    def _answer(self, request: AnsweredRequest, answer: answers.Answer) -> None:
        recording.record_answer(self.context, request, answer)
        self.send_answer(answer.response)

    # What an exchange asks for

    def send_interim(self, head: ResponseHead) -> None:
        """Passes a 1xx on."""
        self.write(self.machine.interim(head))

    def send_head(
        self,
        head: ResponseHead,
        request_id: bytes,
        cookie: bytes | None,
        body: bytes,
        done: bool,
        now: float,
    ) -> bool:
        """Passes the final head on, and what came with it of the body."""
        machine = self.machine
        if len(body) <= _SMALL:
            write = self.write
            write(machine.head(head, self.id_name, request_id, cookie, body, done))
        else:
            lines = machine.head(head, self.id_name, request_id, cookie, b"", False)
            self.transport.writelines((lines, machine.body(body, done)))
        wire = self.wire
        if not done or machine.state is not _IDLE or wire.get_write_buffer_size() or wire.is_closing():
            return done and self._finished(len(body))
        # The short form of `_finished`, which is enough for nearly all.
        self.exchange = None
        self.idle_since = now
        if not self.reading:
            self.resume()
        return True

    def send_trailers(self, lines: bytes) -> None:
        """HTTP/1.1 has them in the body's chunks, and HTTP/1.0 has none."""

    def send_body(self, data: bytes, done: bool) -> bool:
        """Passes (a part of) the body on."""
        size = len(data)
        data = self.machine.body(data, done)
        if data:
            if self.wire.is_closing():
                # The loop says so a turn later, and may read megabytes of the member before.
                self.thrown_away += len(data)
            self.write(data)
        return done and self._finished(size)

    def _finished(self, last: int) -> bool:
        """The response is complete. last: the size of its last write. Returns whether all of it is sent."""
        exchange, self.exchange = self.exchange, None
        self.idle_since = self.context.clock()
        wire, machine = self.wire, self.machine
        sent = not (wire.get_write_buffer_size() or wire.is_closing())
        if not sent and exchange is not None:
            self.owe(exchange, last)
        if machine.state is _LINGERING:
            self.end_here()
        elif machine.held or not self.reading:
            self._next()
        return sent

    def broken(self) -> int:
        """The response is not whole: the connection is reset, so that it cannot look complete."""
        self.exchange = None
        lost = self.lost()
        self.reset()
        return lost

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """The connection becomes a tunnel."""
        self.context.connections.discard(self)
        self.exchange = None
        self.resume()
        early, self.machine.held = self.machine.held, b""
        return self.transport, early

    # Between two requests

    def _next(self) -> None:
        """The response is out, and the connection is kept."""
        self.idle_since = self.context.clock()
        if self.machine.held:
            # Not at once: a thousand pipelined requests must not become a thousand nested calls.
            asyncio.get_running_loop().call_soon(self._read_held)
        self._hold()

    def _read_held(self) -> None:
        if self.exchange is not None or self.lingers or not self.writable:
            return
        if self.machine.held and not self.transport.is_closing():
            self._more()

    def resume_writing(self) -> None:
        self.writable = True
        self.machine.unblock_reading()
        owed, self.owed = self.owed, None
        if owed is not None:
            self.wire.set_write_buffer_limits()
            self.idle_since = self.context.clock()
            owed.delivered(self.idle_since)
        if self.exchange is not None:
            self.exchange.on_visitor_drained()
        else:
            self._read_held()


def _id_name(options: ListenerOptions) -> bytes:
    """The field name before a request's id in each response, with the fields that come first."""
    if not options.hsts:
        return _ID
    # RFC 6797 section 6.1: on every response, and where the header is made it costs nothing.
    return b"Strict-Transport-Security: max-age=%d\r\n%b" % (options.hsts, _ID)
