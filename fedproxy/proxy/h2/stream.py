"""One stream of a visitor's HTTP/2 connection: a request, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.errors import BadRequest, Drained, MemberError, VisitorGone
from fedproxy.proxy.h2.transport import StreamTransport
from fedproxy.proxy.h2.writing import Sender
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.hpack import encode_lines, encode_status, literal
from fedproxy.wire.h2.response import accepts, compress, compress_response

if TYPE_CHECKING:
    import asyncio

    from fedproxy.errors import ExchangeError
    from fedproxy.http.response import Response, ResponseHead
    from fedproxy.proxy.h2.writing import Writing
    from fedproxy.proxy.ports import Owed
    from fedproxy.proxy.routing import RoutedRequest

_ID_SIZE: Final = 32  # of the ids that are made here


class H2VisitorStream(Sender):
    """What an exchange sees of a visitor (`ports.VisitorStream`).

    owing: the exchange of a complete response, told when the end of that is sent. answered: the final head
    was sent. stood: how much of a whole
    response waited at the last look, and since when. tunnel: what the stream became after a 101; early: what
    came before that, and ended: that it was the end.
    """

    __slots__ = (
        "answered",
        "early",
        "ended",
        "owing",
        "peer",
        "stood",
        "trusted",
        "tunnel",
    )

    def __init__(
        self, connection: Writing[H2VisitorStream], number: int, window: int, credit: int, state: int
    ) -> None:
        super().__init__(connection, number, window, credit, state)
        self.trusted = connection.trusted
        self.peer = connection.peer
        self.owing: Owed | None = None
        self.tunnel: StreamTransport | None = None
        self.early = b""
        self.ended = False
        self.answered = False
        self.stood: tuple[int, float] | None = None

    @property
    def hsts(self) -> int:
        """Seconds for Strict-Transport-Security; 0 if it is not sent."""
        return self.connection.options.hsts

    # What an exchange asks for

    def send_interim(self, head: ResponseHead) -> None:
        """Passes a 1xx on."""
        connection = self.connection
        connection.send(connection.machine.interim(self, head.compressed or compress(head)))

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
        connection = self.connection
        machine = connection.machine
        self.answered = True
        compressed = self._answer_connect(head) if self.connects else head.compressed or compress(head)
        if not compressed:
            # The member has not answered the WebSocket's key: the tunnel begins closed.
            machine.reset(self, Code.INTERNAL_ERROR)
            connection.flush()
            return False
        if len(request_id) == _ID_SIZE:
            fields = [compressed, connection.id_name, request_id]
        else:
            fields = [compressed, connection.common, literal(b"x-request-id", request_id)]
        if cookie is not None:
            fields.append(literal(b"set-cookie", cookie))
        if head.event_stream:
            machine.urge(self)
        connection.send(machine.head(self, fields, body, done))
        if done:
            return self._finished(now)
        if self.waiting:
            self._fill()
        return False

    def _answer_connect(self, head: ResponseHead) -> bytes:
        if head.status == 101:
            self.connection.machine.urge(self)
            return accepts(head, self.key)
        # It is answered like any other request, but for a status that would say that the tunnel is there.
        self.connects = False
        if head.status >= 300 or self.exchange is None:
            return head.compressed or compress(head)
        self.exchange.status = 502
        return encode_status(502) + encode_lines(head.lines)

    def send_body(self, data: bytes, done: bool) -> bool:
        """Passes (a part of) the body on."""
        connection = self.connection
        if not done:
            # Most parts, such as events, can be sent at once.
            block = connection.machine.part(self, data)
            if block:
                connection.send(block)
                return False
        connection.send_parts(connection.machine.body(self, data, done))
        if done:
            return self._finished(connection.context.clock())
        if self.waiting and not self.full:
            self._fill()
        return False

    def send_trailers(self, lines: bytes) -> None:
        """Keeps the fields that follow the body, which ends with the next call."""
        self.trailers = encode_lines(lines)

    def _fill(self) -> None:
        """Nothing more is taken for now."""
        self.full = True
        self.connection.full.add(self)
        if self.exchange is not None:
            self.exchange.on_visitor_full()
        self.connection.look_at_backlog()

    def _finished(self, now: float) -> bool:
        """The response is complete. False: the exchange is told when all of it is sent."""
        exchange, self.exchange = self.exchange, None
        connection = self.connection
        if self.waiting:
            self.owing = exchange
            self.full = True
            connection.full.add(self)
        elif exchange is not None:
            connection.owe(exchange, now)
        connection.stream_over(now)
        return False

    def send_answer(self, response: Response) -> None:
        """Sends a response of the edge's own, and ends the exchange, if there is one."""
        error = None if self.exchange is None else self.exchange.error
        self.exchange = None
        line: RoutedRequest = self.line
        self.answer(response, line.is_head, malformed=isinstance(error, BadRequest))

    def answer(self, response: Response, is_head: bool, *, malformed: bool) -> None:
        """Sends a whole response. malformed: the request broke the protocol."""
        self.connects = False
        self.answered = True
        connection = self.connection
        machine = connection.machine
        body = b"" if is_head else response.body
        # RFC 9113 section 8.1.1: it may be answered, and is an error all the same.
        connection.send(machine.head(self, [compress_response(response)], body, not malformed))
        if malformed:
            machine.reset(self, Code.PROTOCOL_ERROR)
        elif self.waiting:
            connection.full.add(self)
        connection.flush()
        connection.stream_over(connection.context.clock())

    def broken(self) -> int:
        """The response is not whole: the stream is reset, so that it cannot look complete."""
        exchange, self.exchange = self.exchange, None
        connection = self.connection
        lost = self.backlog
        self.end(_code(None if exchange is None else exchange.error))
        connection.stream_over(connection.context.clock())
        return lost

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """The stream becomes a tunnel."""
        self.exchange = None
        # The head may have been the end of the visitor's side.
        self.ended = self.ended or not self.receiving
        self.tunnel = StreamTransport(self, self.ended)
        self.connection.tunnels.add(self)
        early, self.early = self.early, b""
        self.resume()
        return self.tunnel, early

    def gone(self) -> None:
        """The tunnel is closed."""
        self.tunnel = None

    # What its connection says

    def take_body(self, data: bytes, done: bool) -> None:
        """(A part of) the request's body, or of what goes through a tunnel, has come."""
        if self.tunnel is not None:
            self.tunnel.received(data, done)
        elif self.connects:
            # RFC 8441 section 5: the tunnel is there once the member has accepted it.
            self.early += data
            self.ended = self.ended or done
            self.pause()
        elif self.exchange is not None:
            self.exchange.send_body(data, done)

    def drained(self, now: float) -> None:
        """Nothing waits any more."""
        self.full = False
        owing, self.owing = self.owing, None
        if owing is not None:
            self.connection.owe(owing, now)
            self.connection.stream_over(now)
        elif self.tunnel is not None:
            self.tunnel.drained()
        elif self.exchange is not None:
            self.exchange.on_visitor_drained()
        else:
            self.connection.stream_over(now)

    def stands(self, now: float) -> float:
        """Seconds for which nothing was taken of a whole response that waits."""
        if self.stood is None or self.stood[0] != self.backlog:
            self.stood = self.backlog, now
        return now - self.stood[1]

    def lost(self, error: ExchangeError | None = None) -> None:
        """The visitor has reset it, or the connection is gone."""
        backlog, self.backlog = self.backlog, 0
        exchange, self.exchange = self.exchange, None
        owing, self.owing = self.owing, None
        if exchange is not None:
            exchange.on_visitor_gone(error, backlog)
        elif owing is not None:
            owing.undelivered(backlog, "C" if error is None else error.termination[0])
        elif self.tunnel is not None:
            self.tunnel.lost()


def _code(error: ExchangeError | None) -> Code:
    """What a visitor is told of a response that is broken off."""
    if isinstance(error, MemberError):
        return Code.INTERNAL_ERROR
    if isinstance(error, BadRequest):
        return Code.PROTOCOL_ERROR
    if isinstance(error, VisitorGone | Drained):
        return Code.CANCEL
    return Code.INTERNAL_ERROR
