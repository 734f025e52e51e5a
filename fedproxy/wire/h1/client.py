"""A connection to a member, as a machine: which bytes ask, and what the answer's bytes mean (RFC 9112).

    IDLE ──► HEAD ──► BODY ──► IDLE     a kept connection goes round
              └────────────────► IDLE   the body came with the head, or there is none

It knows no loop, no clock and no policy. Its owner passes on to it what was read.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from fedproxy.bounded import Memo
from fedproxy.errors import BadResponse
from fedproxy.wire.grammar import tokens
from fedproxy.wire.h1 import response
from fedproxy.wire.h1.body import Body, Chunked, Counted, as_chunks
from fedproxy.wire.h1.request import start

if TYPE_CHECKING:
    from fedproxy.http.request import Request
    from fedproxy.http.response import ResponseHead

_LONGEST_HEAD: Final = 64 * 1024
_MOST_INTERIMS: Final = 32
_heads: Final = Memo(response.read, entries=2048, longest=4096)
_known_head: Final = _heads.get


class ClientState(Enum):
    """Where a connection is."""

    IDLE = "idle"  # no answer is awaited: whatever comes is wrong
    HEAD = "head"  # a head is awaited, or a part of it is held
    BODY = "body"  # the body is read


class ClientEvent(Enum):
    """What was read."""

    NOTHING = "nothing"  # that could be handed out
    INTERIM = "interim"  # `head` of a 1xx
    WHOLE = "whole response"  # the final `head`, and all of the body: `data`
    RESPONSE = "response"  # the final `head`, and in `data` what came of the body; `more` may have more of it
    BODY = "body"  # `data`, and with `done` nothing follows
    BEHIND = "behind"  # `data`, and there is more in what was read than one call reads: `more`, later
    SWITCHED = "switched"  # a 101: its `head`, and in `data` what follows it, which is no HTTP any more


_IDLE: Final = ClientState.IDLE
_HEAD: Final = ClientState.HEAD
_BODY: Final = ClientState.BODY
_NOTHING: Final = ClientEvent.NOTHING
_INTERIM: Final = ClientEvent.INTERIM
_WHOLE: Final = ClientEvent.WHOLE
_RESPONSE: Final = ClientEvent.RESPONSE
_PART: Final = ClientEvent.BODY
_BEHIND: Final = ClientEvent.BEHIND
_SWITCHED: Final = ClientEvent.SWITCHED


class Client:
    """One connection to a member.

    keep: it may be used again when the answer is whole. trailers: lines of fields after a body whose payload
    alone is handed out; set with the end of that, and to be emptied by the owner. expected: how long the head
    before was; what is known as a head ends where a head ends, so the next is first looked for there.
    """

    __slots__ = (
        "_body",
        "_framed",
        "_interims",
        "_is_head",
        "_known",
        "_makes_chunks",
        "_upgrade",
        "data",
        "done",
        "expected",
        "head",
        "held",
        "keep",
        "state",
        "trailers",
    )

    head: ResponseHead

    def __init__(self) -> None:
        self.state = _IDLE
        self.keep = True
        self.data = b""
        self.done = False
        self.expected = 0
        self.held = b""
        self.trailers = b""
        self._known = 0  # bytes of `held` that are whole lines and were looked at
        self._body: Body | None = None
        self._is_head = False
        self._framed = True
        self._upgrade: bytes | None = None
        self._interims = 0
        self._makes_chunks = False

    def __repr__(self) -> str:
        return f"<Client {self.state.value}>"

    def ask(
        self,
        request: Request[Any],
        host_line: bytes,
        upgrade: bytes | None,
    ) -> bytes:
        """The head of a request, whose answer is awaited from now on.

        host_line: with its CRLF. upgrade: what the connection is asked to become; None if nothing.
        """
        line = request.line
        self.state = _HEAD
        self._is_head = line.is_head
        self._framed = request.framed
        self._upgrade = upgrade
        if upgrade is not None:
            host_line += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % upgrade
        return b"".join(
            (
                line.start or start(line),
                host_line,
                request.block.lines,
                request.origin.forward,
                request.request_id,
                b"\r\ntraceparent: ",
                request.traceparent,
                b"\r\n\r\n",
            )
        )

    def begin_body(self, parts: list[bytes], done: bool, make_chunks: bool) -> list[bytes]:
        """The parts of a request's body that have come, as they are sent. Without it there is no body.

        make_chunks: these and all that follow are payload, and the request says that its body is chunked.
        """
        self._makes_chunks = make_chunks
        if not make_chunks:
            return parts
        return [as_chunks(b"".join(parts), done)]

    def body(self, data: bytes, done: bool) -> bytes:
        """Another part of a request's body, as it is sent."""
        return as_chunks(data, done) if self._makes_chunks else data

    @property
    def waiting(self) -> bool:
        """Whether the final head has not come yet."""
        return self.state is _HEAD

    @property
    def silent(self) -> bool:
        """Whether nothing of an answer has come."""
        return self.state is _HEAD and not self.held and not self._interims

    def receive(self, data: bytes) -> ClientEvent:
        """Reads more bytes. Raises `BadResponse`, and `BodyError` for what follows the head."""
        if self.state is _HEAD:
            end = self.expected
            head = _known_head(data[:end])
            if head is None or self.held or head.whole != len(data) - end or self._is_head:
                return self._read_head(data)
            # A known head with all of its body, as it mostly is.
            self.state = _IDLE
            self.keep = not head.close
            self.head = head
            self.data = data[end:]
            return _WHOLE
        body = self._body
        if body is not None:
            self.data = data = body.feed(data)
            done = self.done = body.done
            if not done:
                return _BEHIND if body.behind else _PART if data else _NOTHING
            return self._end_body(body)
        # Nobody asked. Bytes beyond an answer never become a second one.
        raise BadResponse

    def more(self) -> ClientEvent:
        """Reads on in what is held. Raises as `receive`."""
        if self.state is _BODY:
            data, self.held = self.held, b""
            return self.receive(data)
        return self._read_head(b"") if self.held else _NOTHING

    def _read_head(self, data: bytes) -> ClientEvent:
        known = 0
        if self.held:
            known = self._known
            data, self.held = self.held + data, b""
        end = data.find(b"\r\n\r\n") + 4
        if not 4 <= end <= _LONGEST_HEAD:
            self._hold(data, known)
            return _NOTHING
        head = self.head = _heads[data[:end]]
        if head.status >= 200:
            self._interims = 0
            self.expected = end
            return self._begin_body(head, data[end:])
        if head.status == 101:
            # RFC 9110 section 15.2.2: only if asked.
            if self._upgrade is None or not is_answered(self._upgrade, head.upgrade):
                raise BadResponse
            self.state = _IDLE
            self.keep = False
            self.data = data[end:]
            return _SWITCHED
        self._interims += 1
        if self._interims > _MOST_INTERIMS:
            raise BadResponse
        # The next head comes here too, where these are forgotten.
        self.expected = 0
        self.held = data[end:]
        self._known = 0
        return _INTERIM

    def _hold(self, data: bytes, known: int) -> None:
        """Keeps a head that is not whole yet, if the rest of it is worth waiting for."""
        if len(data) > _LONGEST_HEAD:
            raise BadResponse
        response.check_begun(data, known)
        self.held = data
        self._known = len(data) - len(data.rpartition(b"\r\n")[2])

    def _begin_body(self, head: ResponseHead, data: bytes) -> ClientEvent:
        self.keep = not head.close
        if head.bodiless or self._is_head:
            # A 204 that announces a body may still send it, and the next request must not get that.
            announced = head.status == 204 and (head.chunked or head.length)
            self.keep = not (head.close or data or announced)
            self.state = _IDLE
            self.data = b""
            return _WHOLE
        if head.length is not None and head.length <= len(data):
            if head.length < len(data):
                self.keep = False
            self.state = _IDLE
            self.data = data[: head.length]
            return _WHOLE
        self.state = _BODY
        if head.chunked:
            # Not read yet, because a `tap` may be asked for once the head is known.
            self._body = Chunked(framed=self._framed)
            self.data = b""
            self.held = data
            return _RESPONSE
        if head.length is not None:
            self._body = Counted(head.length)
        else:
            self._body = Body()
            self.keep = False
        self.data = self._body.feed(data)
        return _RESPONSE

    def tap(self, callback: Callable[[bytes], object]) -> bool:
        """Calls `callback` with each piece of the payload before that piece goes on.

        To be called right after the head. False if the body is not chunked, and so is the payload itself.
        """
        if self._body is None or not self.head.chunked:
            return False
        self._body = Chunked(framed=self._framed, tap=callback)
        return True

    def _end_body(self, body: Body) -> ClientEvent:
        self._body = None
        self.state = _IDLE
        self.trailers = body.trailers
        if body.rest:
            self.keep = False
        return _PART

    @property
    def behind(self) -> bool:
        """Whether there is more of the body in what was read than one call reads."""
        return self._body is not None and self._body.behind

    def ended(self, *, clean: bool) -> bool:
        """The connection is over. Whether that ends the answer. clean: the member closed it properly."""
        # A body that is neither counted nor chunked ends with its connection (RFC 9112 section 6.3).
        return self.state is _BODY and clean and self.head.length is None and not self.head.chunked


def is_answered(upgrade: bytes, by: bytes | None) -> bool:
    """Whether a 101 that says `by` switches to what an Upgrade field asked for (RFC 9110 section 7.8)."""
    named = tokens(by or b"")
    return bool(named) and set(named) <= set(tokens(upgrade))
