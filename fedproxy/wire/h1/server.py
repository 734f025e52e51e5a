"""A visitor's connection, as a machine: what its bytes mean, and which bytes answer (RFC 9112).

    IDLE ──► HEAD ──► BODY ──► WHOLE ──► IDLE         a kept connection goes round
      └───────┴────────┴─────────┴─────► LINGERING    the last response is out

It knows no loop, no clock and no policy. Its owner passes on to it what was read, and writes what it returns.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Generic

from fedproxy.errors import BadRequest, BodyTooLarge, VisitorError
from fedproxy.http.request import Line
from fedproxy.wire.h1.body import Body, BodyError, Chunked, Counted, as_chunks
from fedproxy.wire.h1.request import find_end, with_host
from fedproxy.wire.h1.response import render, start

if TYPE_CHECKING:
    from fedproxy.bounded import Memo
    from fedproxy.http.request import HeaderBlock
    from fedproxy.http.response import Response, ResponseHead


class ServerState(Enum):
    """Where a connection is."""

    IDLE = "idle"  # nothing of a request is here
    HEAD = "head"  # a part of a head is held, or reading is blocked
    BODY = "body"  # a request was handed out, and its body is still being read
    WHOLE = "whole"  # all of the request is read: what comes now waits for its turn
    LINGERING = "lingering"  # the last response is out: what comes now is thrown away


class ServerEvent(Enum):
    """What was read."""

    NOTHING = "nothing"  # that could be handed out
    PLAIN = "plain request"  # `line` and `block`, which say nothing of a body or of the connection
    REQUEST = "request"  # any other; if it has a body, `more` gives what came of it
    BODY = "body"  # `data`, and with `done` nothing follows


_IDLE: Final = ServerState.IDLE
_HEAD: Final = ServerState.HEAD
_BODY: Final = ServerState.BODY
_WHOLE: Final = ServerState.WHOLE
_LINGERING: Final = ServerState.LINGERING
_NOTHING: Final = ServerEvent.NOTHING
_PLAIN: Final = ServerEvent.PLAIN
_REQUEST: Final = ServerEvent.REQUEST
_PART: Final = ServerEvent.BODY
_NO_BODY: Final = Body()


class Server(Generic[Line]):
    """One visitor's connection.

    keep: it stays open after the response under way; may be set to False at any time. held: what was read too
    early. raw: the fields of a head that was refused, if they could be told apart; else empty.
    """

    __slots__ = (
        "_blocked",
        "_body",
        "_makes_chunks",
        "block",
        "blocks",
        "body_limit",
        "data",
        "done",
        "head_limit",
        "held",
        "keep",
        "line",
        "lines",
        "longest",
        "raw",
        "state",
    )

    line: Line
    block: HeaderBlock
    lines: Memo[Line]
    blocks: Memo[HeaderBlock]

    def __init__(self) -> None:
        self.state = _IDLE
        self.keep = True
        self._blocked = False
        self.held = b""
        self.raw = b""
        self.data = b""
        self.done = False
        self.head_limit = self.body_limit = self.longest = 0
        self._body: Body = _NO_BODY
        self._makes_chunks = False

    def __repr__(self) -> str:
        return f"<Server {self.state.value}>"

    def configure(
        self,
        lines: Memo[Line],
        blocks: Memo[HeaderBlock],
        head_limit: int,
        body_limit: int,
        longest: int,
    ) -> None:
        """Sets what reads lines and blocks, and limits in bytes. longest: of a head that is remembered."""
        self.lines = lines
        self.blocks = blocks
        self.head_limit = head_limit
        self.body_limit = body_limit
        self.longest = longest

    # What comes in

    def receive(self, data: bytes) -> ServerEvent:
        """Reads more bytes. Raises `VisitorError`; the answer to that is the last on the connection."""
        size = len(data)
        if self.state is _IDLE and size <= self.longest:
            # What is known as a block ends where a head ends, so it is one whole head and nothing else.
            first, _, raw = data.partition(b"\r\n")
            line = self.lines.get(first)
            # Where a body is to be expected nothing is looked up: to hash a body costs more than to read it.
            if line is None or line.plain:
                block = None if line is None else self.blocks.get(raw)
                if block is None:
                    if data.find(b"\r\n\r\n") + 4 != size:
                        return self._receive(data)
                    try:
                        line = self.lines[first]
                        block = self.blocks[raw]
                    except VisitorError:
                        return self._receive(data)
                if block.plain and line is not None and line.plain:
                    self.line = line
                    self.block = block
                    self.state = _WHOLE
                    return _PLAIN
        return self._receive(data)

    def more(self) -> ServerEvent:
        """Reads on in what is held. Raises `VisitorError`."""
        data, self.held = self.held, b""
        return self._receive(data)

    def block_reading(self) -> None:
        """Reads no further request until the response before is sent."""
        self._blocked = True
        if self.state is _IDLE:
            self.state = _HEAD

    def unblock_reading(self) -> None:
        """The response before is sent; `more` may have the next request."""
        self._blocked = False
        if self.state is _HEAD and not self.held:
            self.state = _IDLE

    def _receive(self, data: bytes) -> ServerEvent:
        state = self.state
        if state is _BODY:
            return self._read_body(data)
        if state is _LINGERING:
            return _NOTHING
        if self.held:
            data, self.held = self.held + data, b""
        if state is _WHOLE or self._blocked:
            self.held = data
            return _NOTHING
        return self._read_head(data) if data else _NOTHING

    @property
    def begun(self) -> bool:
        """Whether a head has begun that is not whole."""
        return self.state is _HEAD and self.held not in (b"", b"\r") and not self._blocked

    def _read_head(self, data: bytes) -> ServerEvent:
        limit = self.head_limit
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > limit or data[0] in b"\r\n":
            # What is refused here has no fields that could be read.
            self.raw = b""
            data, end = find_end(data, limit)
            if not end:
                self.held = data
                self.state = _HEAD if data else _IDLE
                return _NOTHING
        first, _, self.raw = data[:end].partition(b"\r\n")
        self._take_head(self.lines[first], self.blocks[self.raw])
        self.raw = b""
        rest = data[end:]
        if self.block.has_body:
            self.state = _BODY
            self._body = Chunked(request=True) if self.block.chunked else Counted(self.block.length or 0)
        else:
            self.state = _WHOLE
        self.held = rest
        return _REQUEST

    def _take_head(self, line: Line, block: HeaderBlock) -> None:
        """Checks what depends on both. Raises `BadRequest` and `BodyTooLarge`."""
        if line.authority is not None and block.host is not None:
            block = self.blocks[with_host(block.raw, line.authority)]
        if line.http10:
            # RFC 9112 section 6.1: a 1.0 message has no transfer codings.
            if block.chunked:
                raise BadRequest
            self.keep = block.keep_alive
        elif block.host is None:
            raise BadRequest
        else:
            # What follows an upgrade request may be meant for the new protocol.
            self.keep = not block.close and block.upgrade is None
        if block.length is not None and block.length > self.body_limit:
            raise BodyTooLarge
        self.line = line
        self.block = block

    def _read_body(self, data: bytes) -> ServerEvent:
        body = self._body
        try:
            self.data = body.feed(data)
        except BodyError:
            self.keep = False
            raise BadRequest from None
        if body.size > self.body_limit and self.block.chunked:
            # A length was compared when the head was read, and stays allowed if a reload lowers the limit.
            self.keep = False
            raise BodyTooLarge
        self.done = body.done
        if body.done:
            self.state = _WHOLE
            self.held += body.rest
            self._body = _NO_BODY
        return _PART

    # What goes out

    def interim(self, head: ResponseHead) -> bytes:
        """A 1xx; empty for a 1.0 visitor (RFC 9110 section 15.2)."""
        return b"" if self.line.http10 else (head.start or start(head)) + head.lines + b"\r\n"

    def head(
        self,
        head: ResponseHead,
        named: bytes,
        value: bytes,
        cookie: bytes | None,
        body: bytes,
        done: bool,
    ) -> bytes:
        """The head of the final response, and the body that came with it; with `done` that is all of it.

        named, value: the name of one more field, with its colon, and its value. cookie: for Set-Cookie. If
        the head says that the body is chunked, it has to be given as chunks; to a 1.0 visitor, as payload.
        """
        self._makes_chunks = False
        more = b"\r\n\r\n"
        if head.length is None or not self.keep or self.state is _BODY or self.line.http10:
            more = self._connection(head)
            body = self.body(body, done)
        elif done:
            self.state = _HEAD if self.held or self._blocked else _IDLE
        if cookie is not None:
            more = b"\r\nSet-Cookie: " + cookie + more
        return b"".join((head.start or start(head), head.lines, named, value, more, body))

    def _connection(self, head: ResponseHead) -> bytes:
        """The end of a head whose length or connection is not as usual, from the CRLF before it."""
        if head.status == 101:
            return b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (head.upgrade or b"")
        http10 = self.line.http10
        lines = b""
        if head.length is None and not (head.bodiless or self.line.is_head):
            if http10:
                # Only the end of the connection tells a 1.0 visitor where it ends.
                self.keep = False
            else:
                # RFC 9112 section 6.3: chunks let the visitor see where it ends, and that nothing is missing.
                lines = b"\r\nTransfer-Encoding: chunked"
                self._makes_chunks = not head.chunked
        if self.state is _BODY:
            self.keep = False
        if not self.keep:
            lines += b"\r\nConnection: close"
        elif http10:
            # RFC 9112 section 9.3: without it a 1.0 client takes the connection for closed.
            lines += b"\r\nConnection: keep-alive"
        return lines + b"\r\n\r\n"

    def body(self, data: bytes, done: bool) -> bytes:
        """(A part of) the response's body, as it is sent; with `done` it is the last."""
        if done:
            self._over()
        return as_chunks(data, done) if self._makes_chunks else data

    def answer(self, response: Response, *, unread: bool = False) -> bytes:
        """A whole response. unread: the request's head was refused."""
        if unread or self.state is _BODY:
            self.keep = False
        connection = None
        if not self.keep:
            connection = b"close"
        elif self.line.http10:
            connection = b"keep-alive"
        self._over()
        return render(response, connection, is_head=not unread and self.line.is_head)

    def _over(self) -> None:
        """The response is whole. If the connection goes on, `more` may have the next request."""
        self._body = _NO_BODY
        if self.keep:
            self.state = _HEAD if self.held or self._blocked else _IDLE
        else:
            self.linger()

    def linger(self) -> None:
        """Nothing more is read."""
        self.state = _LINGERING
        self.held = b""
