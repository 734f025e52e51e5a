"""A visitor's connection: HTTP/1.1 in, HTTP/1.1 out (RFC 9112).

idle ──► head ──► exchange ──► idle        a kept connection goes round
           │          └──────► lingering   the response is out, what is still unread is thrown away
           └── refused ──────► lingering
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from fedproxy.decide.route import Local
from fedproxy.errors import (
    BadRequest,
    Banned,
    BannedAddress,
    BodyTooLarge,
    ExchangeError,
    HeadTimeout,
    TooManyLaunches,
    VisitorError,
)
from fedproxy.proxy import answers
from fedproxy.proxy.admission import NOBODY, of_peer
from fedproxy.proxy.answers import AnsweredRequest
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.flow import LOCAL, Flow, address_of, all_arrived, has_left, has_unread
from fedproxy.proxy.launching import LaunchExchange
from fedproxy.proxy.own_page import OwnPage, page_request
from fedproxy.proxy.secure import wire_of
from fedproxy.proxy.traced import follow
from fedproxy.wire.body import LAST_CHUNK, BodyError, Chunked, chunk
from fedproxy.wire.events import asked_for
from fedproxy.wire.request import find_end, with_host
from fedproxy.wire.response import render

if TYPE_CHECKING:
    from fedproxy.http.response import Field, Response
    from fedproxy.proxy.admission import Origin
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.routing import RoutedRequest
    from fedproxy.wire.request import HeaderBlock, RequestLine
    from fedproxy.wire.response import ResponseHead

_UNTIL_CLOSE = 2  # how the response's end is told: by its head, ...
_CHUNK = 1  # ... by chunks that are made here, ...
_AS_SENT = 0  # ... as the member sent it
# A closing connection reads on for so long, so that no reset overtakes the answer (RFC 9112 section 9.6).
_LINGER = 5.0
_SMALL = 16 * 1024
_RESET = struct.pack("ii", 1, 0)  # linger for no time: a close that says RST, not FIN
_ID = b"X-Request-ID: "


class Downstream(Flow):
    """One connection from a visitor."""

    __slots__ = (
        "address_key",
        "careful",
        "chunks",
        "edge",
        "exchange",
        "framing",
        "head_since",
        "held",
        "id_name",
        "idle_since",
        "introducer",
        "keep",
        "left",
        "linger_until",
        "options",
        "ordinary",
        "origin",
        "owed",
        "peer",
        "standing",
        "thrown_away",
        "trusted",
        "waiting",
        "writable",
        "write",
    )

    def __init__(self, edge: Edge, options: ListenerOptions) -> None:
        super().__init__()
        self.edge = edge
        self.options = options
        self.exchange: Exchange | None = None
        self.held = b""  # an unfinished head, or what came after the request under way
        self.left = 0  # bytes of the request's body still to come
        self.chunks: Chunked | None = None
        self.writable = True
        self.keep = True
        self.framing = _AS_SENT
        self.linger_until: float | None = None
        self.waiting = 0  # bytes that the system had not taken at the last look
        self.thrown_away = 0  # bytes of a body that were written after the connection was lost
        self.owed: Exchange | None = None  # over, except that the end of its response is not sent yet
        self.head_since: float | None = None
        self.idle_since = 0.0
        self.peer = b""
        self.origin = NOBODY  # of a request that no trusted proxy forwarded
        self.trusted = False
        self.standing: bool | None = None
        self.introducer: bytes | None = None
        self.address_key: bytes | None = None
        self.id_name = _id_name(options)

    def __repr__(self) -> str:
        state = "lingering" if self.linger_until is not None else "serving" if self.exchange else "idle"
        return f"<Downstream {self.peer.decode('latin-1')} {state} {self.exchange or ''}>"

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.wire = cast(asyncio.Transport, transport)
        unix = self.options.unix
        address = LOCAL if unix else address_of(transport)
        self.edge.connections.add(self)
        if not self.edge.admission.enter() or address is None:
            # A TCP peer without an address has reset the connection: there is nobody to answer or to log.
            self.transport.abort()
        else:
            self.begin(self.transport, address, True if unix else None)

    def begin(
        self,
        transport: asyncio.Transport,
        address: bytes,
        standing: bool | None = None,
        introducer: bytes | None = None,
    ) -> None:
        """Serves a connection that was counted already.

        standing: whether its peer is trusted; None if the policy's networks decide.
        introducer: the address of the proxy whose PROXY header named the peer.
        """
        edge = self.edge
        self.transport = transport
        self.wire = wire_of(transport)
        self.write = transport.write
        self.peer = address
        self.origin = of_peer(address, self.options.secure)
        self.standing = standing
        self.introducer = introducer
        self.trusted = edge.admission.believes(address) if standing is None else standing
        self.idle_since = edge.clock()
        if edge.admission.counts_addresses and not self.trusted:
            self.address_key = edge.admission.enter_address(self.peer)
            if self.address_key is None:
                transport.abort()
        self._weigh()

    def _weigh(self) -> None:
        """Works out whether requests may take the short path."""
        self.careful = self.edge.careful or self.options.redirect_to_https
        self.ordinary = not (self.careful or self.trusted)

    def refresh(self) -> None:
        """The policy may have changed, or the edge has begun to drain."""
        edge = self.edge
        if self.standing is None:
            self.trusted = edge.admission.believes(self.peer)
        self.id_name = _id_name(self.options)
        self._weigh()
        self._count_address()
        if self.introducer is not None and not edge.admission.may_introduce(self.introducer):
            # The peer's address came from a proxy that is no longer trusted, and nothing else is known.
            self.keep = False
            if self.exchange is None and self.linger_until is None:
                self._close()
        if self.edge.draining and self.exchange is not None and self.exchange.first_byte_at is None:
            # Its head will say so.
            self.keep = False

    def _count_address(self) -> None:
        """A reload may change whether this connection counts for its address. It stays open in any case."""
        admission = self.edge.admission
        if self.trusted or not admission.counts_addresses:
            if self.address_key is not None:
                admission.leave_address(self.address_key)
                self.address_key = None
        elif self.address_key is None:
            self.address_key = admission.enter_address(self.peer, is_there=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.connections.discard(self)
        self.gone()
        lost = self._lost()
        self._give_up_owed(lost)
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.on_visitor_gone(unsent=lost)

    def _lost(self) -> int:
        """Bytes that were written and will not arrive. After an error the transport reports none."""
        return self.thrown_away + (self.unsent() or (0 if self.writable else self.waiting))

    def gone(self) -> None:
        """The visitor's connection is gone, whatever it was last."""
        admission = self.edge.admission
        admission.leave()
        if self.address_key is not None:
            admission.leave_address(self.address_key)

    def eof_received(self) -> None:
        # A visitor who closes half is taken for gone, as browsers only ever close whole.
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_visitor_gone(unsent=self._lost())

    def cut_off(self) -> None:
        self.eof_received()

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once: whatever it was sent does not look complete."""
        lost = self._lost()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.on_visitor_gone(error, lost)
        self._give_up_owed(lost, error.termination[0])
        self.transport.abort()

    # The request

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self._read_on(self.exchange, data)
            return
        if self.held or not self.writable or self.linger_until is not None:
            self._read_more(data)
            return
        if data[-4:] != b"\r\n\r\n":
            self._read_any_head(data)
            return
        edge = self.edge
        line, _, raw = data.partition(b"\r\n")
        # What is known as a block ends where a head ends, so it is one whole head and nothing else.
        routed = edge.routed.get(line)
        block = edge.blocks.get(raw)
        if routed is None or block is None:
            # A long one may be over the limit, or would be read twice if it is not what most are.
            whole = data.find(b"\r\n\r\n") + 4 == len(data) <= edge.longest_block
            if not (whole and self.ordinary):
                self._read_any_head(data)
                return
            try:
                routed = edge.routed[line]
                block = edge.blocks[raw]
            except VisitorError:
                self._read_any_head(data)
                return
        if not (routed.ordinary and block.plain and self.ordinary):
            self._read_any_head(data)
            return
        self.keep = True
        self.head_since = None
        edge.counts.requests += 1
        request_id, traceparent = (edge.ids or edge.draw_ids()).pop()
        exchange = self.exchange = Exchange()
        exchange.open(edge, self, routed, block, self.origin, request_id, traceparent)
        if edge.tracer is not None:
            follow(exchange)
        exchange.begin()

    def _read_more(self, data: bytes) -> None:
        """More of a head that was not whole, or something that is not to be read now."""
        if self.linger_until is not None:
            return
        if self.held:
            data, self.held = self.held + data, b""
        if self.writable:
            self.data_received(data)
        else:
            self._hold(data)

    def _read_any_head(self, data: bytes) -> None:
        """A head that is not known, not whole, or not what most are."""
        edge = self.edge
        blocks = edge.trusted_blocks if self.trusted else edge.blocks
        limit = edge.policy.limits.request_head
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > limit or data[0] in b"\r\n":
            try:
                data, end = find_end(data, limit)
            except VisitorError as error:
                self._refuse(error)
                return
            if not end:
                if self.head_since is None and data not in (b"", b"\r"):
                    self.head_since = edge.clock()
                self.held = data
                return
        line, _, raw = data[:end].partition(b"\r\n")
        rest = data[end:]
        self.head_since = None
        origin, block = self.origin, None
        try:
            routed = edge.routed[line]
            block = blocks[raw]
            if routed.ordinary and block.plain and self.ordinary:
                self.keep = True
            else:
                if routed.line.authority is not None and block.host is not None:
                    block = blocks[with_host(block.raw, routed.line.authority)]
                if self.trusted:
                    origin = self._origin_of(block)
                routed = self._check(routed, block, origin)
        except (Banned, TooManyLaunches) as error:
            self._turn_away(routed, cast("HeaderBlock", block), origin, rest, error)
            return
        except VisitorError as error:
            if self.trusted and origin is self.origin:
                # The log should name the visitor of a refused request as well, if the headers can be read.
                with suppress(VisitorError):
                    origin = self._origin_of(blocks[raw])
            self._refuse(error, origin)
            return
        edge.counts.requests += 1
        request_id, traceparent = self._identify(block)
        if not routed.proxied:
            request = AnsweredRequest(routed, block, origin, request_id, traceparent, self.trusted)
            self._answer_here(request, line + b"\r\n" + raw, rest)
            return
        launch = routed.launch and asked_for(block.raw)
        exchange = self.exchange = LaunchExchange() if launch else Exchange()
        exchange.open(edge, self, routed, block, origin, request_id, traceparent, launch)
        if edge.tracer is not None or block.traceparent is not None:
            follow(exchange)
        if not self.writable:
            exchange.full = True
        if block.chunked or block.length:
            self._start_body(exchange, block, rest)
            return
        if rest:
            self._hold(rest)
        exchange.begin()

    def _origin_of(self, block: HeaderBlock) -> Origin:
        """Where a request of this trusted proxy comes from."""
        return self.edge.admission.origin(block, self.peer, self.options.secure)

    def _check(self, routed: RoutedRequest, block: HeaderBlock, origin: Origin) -> RoutedRequest:
        """What only line and block together can say, and what is then to be done. Raises `VisitorError`."""
        if block.plain and not routed.line.http10 and not self.careful:
            self.keep = True
            return routed
        line = routed.line
        if line.http10:
            # RFC 9112 section 6.1: a 1.0 message has no transfer codings.
            if block.chunked:
                raise BadRequest
            self.keep = block.keep_alive
        else:
            if block.host is None:
                raise BadRequest
            # What follows an upgrade request may be meant for the new protocol.
            self.keep = not block.close and block.upgrade is None
        if self.edge.draining:
            self.keep = False
        if block.length is not None and block.length > self.edge.policy.limits.request_body:
            raise BodyTooLarge
        if not self.careful:
            return routed
        to_https = self.options.redirect_to_https and not origin.secure
        return self.edge.admission.check(routed, block, origin.client, self.edge.clock(), to_https=to_https)

    def _identify(self, block: HeaderBlock) -> tuple[bytes, bytes]:
        """The request's id (the visitor's, the trace's, or a new one), and its traceparent."""
        given = block.traceparent
        if given is not None:
            return block.request_id or given[3:35], given
        edge = self.edge
        request_id, traceparent = (edge.ids or edge.draw_ids()).pop()
        return block.request_id or request_id, traceparent

    def _start_body(self, exchange: Exchange, block: HeaderBlock, data: bytes) -> None:
        exchange.expect_body()
        if block.chunked:
            self.chunks = Chunked(request=True)
        else:
            self.left = block.length or 0
        if data:
            self._read_body(exchange, data)
        if block.expect and not exchange.settled and not exchange.attempts:
            exchange.begin_upload()

    def _read_on(self, exchange: Exchange, data: bytes) -> None:
        if exchange.body_done:
            self._hold(data)
        else:
            self._read_body(exchange, data)

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        if self.chunks is None:
            left = self.left = self.left - len(data)
            if left < 0:
                self._hold(data[left:])
                data = data[:left]
                self.left = left = 0
            exchange.send_body(data, left == 0)
            return
        chunks = self.chunks
        try:
            out = chunks.feed(data)
        except BodyError:
            self.keep = False
            exchange.cut(BadRequest())
            return
        if chunks.size > self.edge.policy.limits.request_body:
            self.keep = False
            exchange.cut(BodyTooLarge())
            return
        if chunks.done:
            self.chunks = None
            if chunks.rest:
                self._hold(chunks.rest)
        exchange.send_body(out, chunks.done)

    def _hold(self, data: bytes) -> None:
        """The next request, or what belongs to a tunnel that is not there yet, has to wait."""
        self.held += data
        if len(self.held) > self.edge.policy.limits.request_head:
            self.pause()
        else:
            self.resume()

    # Answers of the edge's own

    def _common(self, request_id: bytes) -> tuple[Field, ...]:
        """What each response on this connection says."""
        named = (b"X-Request-ID", request_id)
        if not self.options.hsts:
            return (named,)
        # RFC 6797 section 6.1: on every response.
        return ((b"Strict-Transport-Security", b"max-age=%d" % self.options.hsts), named)

    def _respond(self, response: Response, line: RequestLine | None) -> None:
        """`line` is None if the head was not read."""
        connection = None
        if not self.keep:
            connection = b"close"
        elif line is not None and line.http10:
            # RFC 9112 section 9.3: without it a 1.0 client takes the connection for closed.
            connection = b"keep-alive"
        self.write(render(response, connection, is_head=line is not None and line.is_head))

    def _refuse(self, error: VisitorError, origin: Origin | None = None) -> None:
        """The head is not acceptable: answered with one fixed line, and closed."""
        edge = self.edge
        self.keep = False
        self.held = b""
        request_id = b"%032x" % edge.random_bits(128)
        edge.counts.rejected[error.reason] += 1
        common = self._common(request_id)
        self._respond(answers.error(error.status, error.detail, common, request_id, None), None)
        edge.record_refusal(origin or self.origin, request_id, error)
        self._end_here()

    def _turn_away(
        self,
        routed: RoutedRequest,
        block: HeaderBlock,
        origin: Origin,
        rest: bytes,
        error: Banned | TooManyLaunches,
    ) -> None:
        """The request is in order, but not wanted: answered in the form that it asks for."""
        edge = self.edge
        edge.counts.rejected[error.reason] += 1
        if block.chunked or block.length or isinstance(error, BannedAddress):
            self.keep = False
        request_id, traceparent = self._identify(block)
        request = AnsweredRequest(routed, block, origin, request_id, traceparent, self.trusted)
        self._answer(request, answers.turned_away(error, request, self._common(request_id)), rest)

    def _answer_here(self, request: AnsweredRequest, head: bytes, rest: bytes) -> None:
        if isinstance(request.routed.action, Local):
            self._hand_over(request, head)
            return
        if request.block.chunked or request.block.length:
            self.keep = False
        common = self._common(request.request_id)
        self._answer(request, answers.of_route(self.edge, request, common), rest)

    def _answer(self, request: AnsweredRequest, answer: answers.Answer, rest: bytes) -> None:
        self._respond(answer.response, request.routed.line)
        self.edge.record_answer(request, answer)
        self._next_or_end(rest)

    def _hand_over(self, request: AnsweredRequest, head: bytes) -> None:
        """One of the edge's own pages: the transport and the request's head go to aiohttp's server."""
        edge, origin = self.edge, request.origin
        if edge.local is None:
            self._refuse(BadRequest(), origin)
            return
        edge.connections.discard(self)
        head = page_request(head, request.routed.line, origin, request.request_id)
        OwnPage(self, edge.local()).begin(head)

    # What an exchange asks for

    def send_interim(self, head: ResponseHead) -> None:
        """Passes a 1xx on, not to a 1.0 visitor (RFC 9110 section 15.2)."""
        exchange = self.exchange
        if exchange is not None and not exchange.routed.line.http10:
            self.write(head.forward + b"\r\n")

    def send_head(self, exchange: Exchange, head: ResponseHead, body: bytes, done: bool) -> None:
        """Passes the final head on, with the cookie if it changed."""
        self.framing = _AS_SENT
        more = b"\r\n\r\n"
        if head.length is None or not self.keep or not exchange.body_done or not exchange.framed:
            more = self._lines_of_connection(exchange, head)
        if exchange.sets_cookie and not head.public:
            # None if a reload took the member away meanwhile.
            cookie = self.edge.cookies.get((exchange.pool.member.name, exchange.origin.secure))
            if cookie is not None:
                more = b"\r\nSet-Cookie: " + cookie + more
        if self.framing == _CHUNK:
            body = (chunk(body) if body else b"") + (LAST_CHUNK if done else b"")
        if len(body) <= _SMALL:
            write = self.write
            write(b"".join((head.forward, self.id_name, exchange.request_id, more, body)))
        else:
            lines = b"".join((head.forward, self.id_name, exchange.request_id, more))
            self.transport.writelines((lines, body))

    def _lines_of_connection(self, exchange: Exchange, head: ResponseHead) -> bytes:
        """The end of a head whose length or connection is not as usual, from the CRLF before it."""
        if head.status == 101:
            upgrade = head.upgrade or exchange.block.upgrade or b""
            return b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade
        lines = b""
        if head.length is None and not (head.bodiless or exchange.is_head):
            lines = self._frame(exchange, head)
        if not exchange.body_done:
            self.keep = False
        if not self.keep:
            lines += b"\r\nConnection: close"
        elif not exchange.framed:
            lines += b"\r\nConnection: keep-alive"
        return lines + b"\r\n\r\n"

    def _frame(self, exchange: Exchange, head: ResponseHead) -> bytes:
        if not exchange.framed:
            self.framing = _UNTIL_CLOSE
            self.keep = False
            return b""
        if not head.chunked:
            # RFC 9112 section 6.3: chunks let the visitor see where it ends, and that nothing is missing.
            self.framing = _CHUNK
        return b"\r\nTransfer-Encoding: chunked"

    def send_body(self, data: bytes, done: bool) -> None:
        """Passes (a part of) the body on."""
        if self.framing == _CHUNK:
            data = (chunk(data) if data else b"") + (LAST_CHUNK if done else b"")
        if data:
            if self.wire.is_closing():
                # The loop says so a turn later, and may read megabytes of the member before.
                self.thrown_away += len(data)
            self.write(data)

    def send_error(self, exchange: Exchange, error: ExchangeError) -> None:
        """Answers in the member's place."""
        routed = exchange.routed
        if not exchange.body_done:
            self.keep = False
        block = None if isinstance(error, VisitorError) else exchange.block
        common = self._common(exchange.request_id)
        self._respond(answers.of_error(error, routed, block, common, exchange.request_id), routed.line)
        self.exchange = None
        self._next_or_end(b"")

    def _owe(self, exchange: Exchange, last: int) -> None:
        """The end of a complete response is not sent yet: the exchange is told later."""
        self.owed = exchange
        if self.wire.is_closing():
            # The last write is discarded, also if it came with the head.
            self.thrown_away = max(self.thrown_away, last)
            self.waiting = self.unsent() or (0 if self.writable else self.waiting)
            self.writable = False
        else:
            self.waiting = self.unsent()
            # So that `resume_writing` is called once all is sent. Until then nothing else is written.
            self.wire.set_write_buffer_limits(0)

    def _give_up_owed(self, lost: int, who: str = "C") -> None:
        """The connection ends: the owed response is recorded, with `lost` bytes that were not sent."""
        owed, self.owed = self.owed, None
        if owed is not None:
            owed.undelivered(lost, who)

    def finished(self, exchange: Exchange, now: float, last: int) -> bool:
        """The response is complete. Returns whether all of it is sent."""
        self.exchange = None
        self.idle_since = now
        wire = self.wire
        sent = not (wire.get_write_buffer_size() or wire.is_closing())
        if not sent:
            self._owe(exchange, last)
        if not self.keep or self.held or not self.reading:
            self._next_or_end(b"")
        return sent

    def broken(self, exchange: Exchange) -> int:
        """The response is not whole: the connection is reset, so that it cannot look complete."""
        self.exchange = None
        lost = self._lost()
        self._reset()
        return lost

    def _reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def detach(self) -> bytes:
        """The connection becomes a tunnel; what was read too early is handed over."""
        self.edge.connections.discard(self)
        self.exchange = None
        self.resume()
        early, self.held = self.held, b""
        return early

    # Between two requests

    def _next_or_end(self, data: bytes) -> None:
        """The response is out: the next request, if the connection is kept."""
        if not self.keep:
            self._end_here()
            return
        self.idle_since = self.edge.clock()
        self.left = 0
        self.chunks = None
        self.held += data
        if self.held:
            # Not at once: a thousand pipelined requests must not become a thousand nested calls.
            asyncio.get_running_loop().call_soon(self._read_held)
        self._hold(b"")

    def _read_held(self) -> None:
        if self.exchange is not None or self.linger_until is not None or not self.writable:
            return
        if self.held and not self.transport.is_closing():
            data, self.held = self.held, b""
            self.data_received(data)

    def _end_here(self) -> None:
        """Closes once the answer is out; what still comes in is thrown away for a while."""
        if self.transport.is_closing():
            return
        self.held = b""
        # First of all: what is read from here on is no request.
        self._linger()
        self.resume()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        self.writable = False
        self.waiting = self.unsent()
        if self.exchange is not None:
            self.exchange.on_visitor_full()

    def resume_writing(self) -> None:
        self.writable = True
        owed, self.owed = self.owed, None
        if owed is not None:
            self.wire.set_write_buffer_limits()
            self.idle_since = self.edge.clock()
            owed.delivered(self.idle_since)
        if self.exchange is not None:
            self.exchange.on_visitor_drained()
        else:
            self._read_held()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that has been idle since then, unless a request has arrived unread.

        One that has lingered since then is dropped once its answer has arrived: a drain does not wait for the
        peer to close.
        """
        if self.linger_until is not None:
            if self.linger_until - _LINGER <= since and not self.unsent() and all_arrived(self.wire):
                self.transport.abort()
        elif self.exchange is None and not self.held and self.idle_since <= since:
            sock = self.transport.get_extra_info("socket")
            if sock is None or not has_unread(sock):
                self._close()

    def _close(self) -> None:
        """Closes with nothing to say; what is still to be sent has as long as a slow reader has."""
        self._linger()
        self.transport.close()

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self.idle_since = min(now, self.idle_since + lost)
        if self.head_since is not None:
            self.head_since = min(now, self.head_since + lost)
        if self.linger_until is not None:
            most = self.edge.policy.timeouts.response_idle if self.waiting else _LINGER
            self.linger_until = min(now + most, self.linger_until + lost)
        if self.exchange is not None:
            self.exchange.grant(lost, now)

    def _linger(self) -> None:
        if not self.wire.is_closing():
            # Of one that is lost the transport knows nothing any more.
            self.waiting = self.unsent()
        limit = self.edge.policy.timeouts.response_idle if self.waiting else _LINGER
        self.linger_until = self.edge.clock() + limit

    def sweep(self, now: float) -> None:
        """Looks at the one deadline that counts now."""
        if not self.writable and self.linger_until is None:
            self._look_at_waiting(now)
        if self.exchange is not None:
            if not self.reading and has_left(self.transport):
                # Of somebody who is not read from, the loop does not tell it.
                self.transport.abort()
            else:
                self.exchange.sweep(now)
        elif self.linger_until is not None:
            self._sweep_lingering(self.linger_until, now)
        elif self.head_since is not None:
            if now - self.head_since > self.edge.policy.timeouts.request_head:
                self._refuse(HeadTimeout())
        elif self.owed is not None:
            if now - self.idle_since > self.edge.policy.timeouts.response_idle:
                self._give_up_owed(self._lost(), "c")
                self._reset()
        elif now - self.idle_since > self.edge.policy.timeouts.keepalive:
            self._close()

    def _look_at_waiting(self, now: float) -> None:
        waiting = self.unsent()
        if waiting and waiting < self.waiting:
            self.waiting = waiting
            if self.owed is not None:
                # A slow reader gets the full time for each part.
                self.idle_since = now

    def _sweep_lingering(self, until: float, now: float) -> None:
        waiting = self.unsent()
        if waiting != self.waiting:
            # Somebody who reads slowly is still owed the end of the answer.
            self.waiting = waiting
            self.linger_until = now + (self.edge.policy.timeouts.response_idle if waiting else _LINGER)
        elif now > until:
            self._give_up_owed(self._lost(), "c")
            self._reset() if waiting else self.transport.abort()


def _id_name(options: ListenerOptions) -> bytes:
    """What stands before a request's id in each response."""
    if not options.hsts:
        return _ID
    # RFC 6797 section 6.1: on every response, and where the header is made it costs nothing.
    return b"Strict-Transport-Security: max-age=%d\r\n%b" % (options.hsts, _ID)
