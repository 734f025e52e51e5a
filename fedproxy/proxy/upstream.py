"""A member's connection: HTTP/1.1 out, HTTP/1.1 in (RFC 9112).

It serves one exchange at a time. What a member sends is read here as far as its framing goes; what that means
for the request is the exchange's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from fedproxy.bounded import Memo
from fedproxy.errors import (
    BadResponse,
    BodyLost,
    MemberError,
    ResponseLost,
    StaleConnection,
)
from fedproxy.proxy.flow import Flow, look_at
from fedproxy.proxy.secure import read_rest, wire_of
from fedproxy.wire import response
from fedproxy.wire.body import BodyError, Chunked

if TYPE_CHECKING:
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.pools import Pool

_AWAITING_HEAD = -1
_UNTIL_CLOSE = 1 << 62
_LONGEST_HEAD = 64 * 1024
_MOST_INTERIMS = 32
_NEVER = float("inf")
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
