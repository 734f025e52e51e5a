"""A visitor's HTTP/2 connection, as a machine (RFC 9113).

    PREFACE ──► SETTINGS ──► OPEN ──► LEAVING ──► CLOSED       `ServerPhase`

It knows no loop, no clock and no policy. Its owner passes on to it what was read, takes what `out` holds, and
writes what the calls return. Of what a peer may do for nothing, it counts how much is left (`Allowance`); the
owner adds to that as time passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from fedproxy.errors import BadRequest, BodyTooLarge, ConnectionFault, VisitorError
from fedproxy.wire.h2 import frame, hpack, priority, request, stream
from fedproxy.wire.h2.allowance import (
    EMPTY,
    KINDS,
    PINGS,
    PRIORITIES,
    RESETS,
    SETTINGS,
    UNKNOWN,
    WINDOW_UPDATES,
    Allowance,
)
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.hpack import Decoder
from fedproxy.wire.h2.priority import Turns
from fedproxy.wire.h2.stream import H2Stream

if TYPE_CHECKING:
    from fedproxy.bounded import Memo
    from fedproxy.http.request import HeaderBlock

S = TypeVar("S", bound=H2Stream)


class ServerPhase(Enum):
    """Where a connection is."""

    PREFACE = "preface"  # the client has not said that it speaks HTTP/2
    SETTINGS = "settings"  # its first frame has to be SETTINGS
    OPEN = "open"
    LEAVING = "leaving"  # the edge has said that it goes; new streams are still served
    CLOSED = "closed"  # the last GOAWAY is said: new streams are not served, and those that there are go on


class FrameEvent(Enum):
    """What was read."""

    NOTHING = "nothing"  # that could be handed out
    REQUEST = "request"  # of `stream`: its line and its block; if it is `receiving`, a body follows
    BODY = "body"  # of `stream`: `data`, and with `done` nothing follows
    FAULT = "fault"  # of `stream`: `error` is to be answered, or the response broken off
    RESET = "reset"  # `stream` is gone: the visitor has reset it
    BROKEN = "broken"  # `stream` is gone: the visitor has broken its protocol, and was told
    GREW = "grew"  # windows: `pump` may have something to send
    PONG = "pong"  # the answer to a PING of the edge's own


_NOTHING: Final = FrameEvent.NOTHING
_REQUEST: Final = FrameEvent.REQUEST
_BODY: Final = FrameEvent.BODY
_FAULT: Final = FrameEvent.FAULT
_RESET: Final = FrameEvent.RESET
_BROKEN: Final = FrameEvent.BROKEN
_GREW: Final = FrameEvent.GREW
_PONG: Final = FrameEvent.PONG
_PREFACE: Final = ServerPhase.PREFACE
_SETTINGS: Final = ServerPhase.SETTINGS
_OPEN: Final = ServerPhase.OPEN
_LEAVING: Final = ServerPhase.LEAVING
_CLOSED: Final = ServerPhase.CLOSED

_PREFACE_SIZE: Final = len(frame.PREFACE)
# Of a request's body: what a stream may send at first, and at most if its member takes it as fast; what all
# streams of a connection may have above the first; and what all of them may send that no member has taken.
_CREDIT: Final = 512 * 1024
_MOST_CREDIT: Final = 8 * 1024 * 1024
_EXTRA_CREDIT: Final = 16 * 1024 * 1024
_CONNECTION_CREDIT: Final = 16 * 1024 * 1024
# Heads whose meaning is remembered for as long as the table stays the same.
_HEADS: Final = 16
_LONGEST_HEAD: Final = 256
# Streams that the edge has reset: frames of these may still be on their way.
_RECENT: Final = 512
_QUANTUM: Final = 64 * 1024  # bytes that one call of `pump` sends
_SMALL: Final = 16 * 1024
_MOST_CONTINUED: Final = 64  # CONTINUATION frames of one head
_PING: Final = b"fedproxy"


_PER_FRAME: Final = 4  # WINDOW_UPDATE frames for each DATA frame


class H2Server(Generic[S]):
    """One visitor's connection.

    make: makes a stream of its number, the window for its response, the credit for its request, and its
    state. out: frames that have to be written, soon, and with whatever else is. last: the stream that
    came last. window: bytes that all responses together may still have. blocked: nothing is sent but what
    is in `out`, because the system takes no more. cost: how much work the last head was, in heads of the
    usual size. held_up: bytes that wait in all streams. errors: the codes of the frames that have ended
    something since the owner last looked.
    """

    __slots__ = (
        "_allowed",
        "_at",
        "_buffer",
        "_continued",
        "_credit",
        "_ends",
        "_extra",
        "_first_head",
        "_fragments",
        "_heads",
        "_held",
        "_initial",
        "_leaves",
        "_left",
        "_make",
        "_most_frame",
        "_opening",
        "_recent",
        "_rest",
        "_sent",
        "_spent",
        "_warm",
        "blocked",
        "blocks",
        "body_limit",
        "cost",
        "data",
        "decoder",
        "done",
        "error",
        "errors",
        "head_limit",
        "held_up",
        "key",
        "last",
        "lines",
        "most_streams",
        "out",
        "phase",
        "served",
        "stream",
        "streams",
        "turns",
        "window",
    )

    stream: S
    error: VisitorError
    lines: Memo[Any]
    blocks: Memo[HeaderBlock]

    def __init__(self, make: Callable[[int, int, int, int], S], key: Callable[[], bytes]) -> None:
        self._make = make
        self.key = key
        self.cost = 1
        self.phase = _PREFACE
        self.streams: dict[int, S] = {}
        self.last = 0
        self.served = 0  # streams so far
        self.decoder = Decoder()
        self.out: list[bytes] = []
        self.window = frame.DEFAULT_WINDOW
        self.blocked = False
        self.held_up = 0
        self.turns = Turns()
        self.errors: list[int] = []
        self.data = b""
        self.done = False
        self.head_limit = self.body_limit = self.most_streams = 0
        self._buffer = b""
        self._at = 0
        self._rest = b""
        self._opening = 0  # the stream whose head is not whole yet
        self._ends = False
        self._fragments: list[bytes] = []
        self._continued = 0
        self._heads: dict[bytes, tuple[Any, HeaderBlock]] = {}
        self._initial = frame.DEFAULT_WINDOW
        self._most_frame = frame.DEFAULT_FRAME
        self._credit = _CONNECTION_CREDIT
        self._extra = _EXTRA_CREDIT
        self._held = 0  # bytes that have come for streams that are held
        self._warm = _CREDIT  # what the last body was granted at its end
        self._recent: dict[int, None] = {}  # the oldest first
        self._first_head = hpack.NO_TABLE
        self._allowed: tuple[int, ...] = ()
        self._left: list[int] = []
        self._spent = False
        self._sent = 0  # DATA frames since the last WINDOW_UPDATE
        self._leaves = False

    def __repr__(self) -> str:
        return f"<H2Server {self.phase.value} streams={len(self.streams)}>"

    def configure(
        self,
        lines: Memo[Any],
        blocks: Memo[HeaderBlock],
        head_limit: int,
        body_limit: int,
        most_streams: int,
        allowance: Allowance,
    ) -> None:
        """Sets what reads lines and blocks, limits in bytes, and what the peer may do."""
        self.lines = lines
        self.blocks = blocks
        self.head_limit = head_limit
        self.body_limit = body_limit
        self.most_streams = most_streams
        if allowance.counts != self._allowed:
            self._allowed = allowance.counts
            self._left = list(allowance.counts)
        # What they mean may have changed.
        self._heads.clear()

    def greet(self) -> bytes:
        """What the edge's side begins with (section 3.4)."""
        return frame.settings(
            {
                frame.MAX_CONCURRENT_STREAMS: self.most_streams,
                frame.INITIAL_WINDOW_SIZE: _CREDIT,
                frame.MAX_HEADER_LIST_SIZE: self.head_limit,
                frame.ENABLE_CONNECT_PROTOCOL: 1,
                frame.NO_RFC7540_PRIORITIES: 1,
            }
        ) + frame.window_update(0, _CONNECTION_CREDIT - frame.DEFAULT_WINDOW)

    # What a peer may do

    def _spend(self, kind: int) -> None:
        left = self._left
        self._spent = True
        left[kind] -= 1
        if left[kind] < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "http2_" + KINDS[kind])

    def refill(self, seconds: float) -> None:
        """Time has passed: a tenth of each allowance comes back each second."""
        left = self._left
        if self._spent:
            self._spent = False
            for kind, most in enumerate(self._allowed):
                self._spent = self._spent or left[kind] < most
                left[kind] = min(most, left[kind] + max(1, int(most * seconds / 10)))

    # What comes in

    def receive(self, data: bytes) -> FrameEvent:
        """Reads more bytes, up to the first event. Raises `ConnectionFault`."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._buffer:
            # What was not read yet.
            data = self._buffer[self._at :] + data
        self._buffer = data
        self._at = 0
        if self.phase is _PREFACE and not self._read_preface():
            return _NOTHING
        return self.more()

    @property
    def begun(self) -> bool:
        """Whether the peer has said all that a connection begins with."""
        return self.phase not in (_PREFACE, _SETTINGS)

    @property
    def partial(self) -> bool:
        """Whether a head, or a frame other than DATA, has begun that is not whole."""
        rest = self._rest
        return bool(self._opening or (rest and (len(rest) < frame.HEADER_SIZE or rest[3] != frame.DATA)))

    def _read_preface(self) -> bool:
        begun = self._buffer[:_PREFACE_SIZE]
        if not frame.PREFACE.startswith(begun):
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if len(begun) < _PREFACE_SIZE:
            self._rest, self._buffer = self._buffer, b""
            return False
        self._at = _PREFACE_SIZE
        self.phase = _SETTINGS
        return True

    def more(self) -> FrameEvent:
        """Reads on, up to the next event. Raises `ConnectionFault`."""
        data, at = self._buffer, self._at
        size = len(data)
        while size - at >= 9:
            high, low, kind, flags, number = frame.read_header(data, at)
            length = high << 8 | low
            if length > frame.DEFAULT_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR)
            at += 9
            end = at + length
            if end > size:
                at -= 9
                break
            self._at = end
            event = self._frame(kind, flags, number & 0x7FFFFFFF, data, at, end)
            if event is not _NOTHING:
                return event
            at = end
        self._rest = data[at:] if at else data
        self._buffer = b""
        self._at = 0
        return _NOTHING

    def _frame(self, kind: int, flags: int, number: int, data: bytes, at: int, end: int) -> FrameEvent:
        if self._opening and kind != frame.CONTINUATION:
            # Section 6.10: nothing may come between.
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if self.phase is _SETTINGS:
            if kind != frame.SETTINGS or flags & frame.ACK:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
            self.phase = _OPEN
            if self._leaves:
                self.out.append(self.leave())
        if kind == frame.HEADERS:
            if flags & (frame.PADDED | frame.WITH_PRIORITY):
                at, end = _unpadded(data, at, end, flags, flags & frame.WITH_PRIORITY)
            if not number:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
            ends = bool(flags & frame.END_STREAM)
            if flags & frame.END_HEADERS:
                return self._read_head(number, data[at:end], ends)
            self._opening = number
            self._ends = ends
            self._continued = 0
            self._fragments = [data[at:end]]
            return _NOTHING
        if kind == frame.DATA:
            return self._read_data(number, flags, data, at, end)
        payload = data[at:end]
        if kind == frame.WINDOW_UPDATE:
            return self._read_window(number, payload)
        if kind == frame.SETTINGS:
            return self._read_settings(number, flags, payload)
        if kind == frame.CONTINUATION:
            return self._read_continuation(number, flags, payload)
        if kind == frame.RST_STREAM:
            return self._read_reset(number, payload)
        if kind == frame.PING:
            return self._read_ping(number, flags, payload)
        if kind in (frame.PRIORITY, frame.PRIORITY_UPDATE):
            return self._read_priority(kind, number, payload)
        if kind == frame.GOAWAY:
            if number:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
            if len(payload) < 8:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        elif kind == frame.PUSH_PROMISE:
            # Section 8.4: a client cannot push.
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        # Section 4.1: what is not known is ignored.
        self._spend(UNKNOWN)
        return _NOTHING

    # Heads

    def _read_continuation(self, number: int, flags: int, payload: bytes) -> FrameEvent:
        if not number or number != self._opening:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        self._fragments.append(payload)
        self._continued += 1
        # CVE-2024-27316: a head without an end. A compressed head is no longer than what it says.
        if self._continued > _MOST_CONTINUED or sum(map(len, self._fragments)) > 2 * self.head_limit:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "http2_head")
        if not payload:
            self._spend(EMPTY)
        if not flags & frame.END_HEADERS:
            return _NOTHING
        fragment = b"".join(self._fragments)
        self._fragments = []
        self._opening = 0
        return self._read_head(number, fragment, self._ends)

    def _read_head(self, number: int, fragment: bytes, ends: bool) -> FrameEvent:
        known = self.streams.get(number)
        self.cost = 1
        if known is not None:
            return self._read_trailers(known, fragment, ends)
        if number <= self.last:
            if number not in self._recent:
                stream.step(stream.CLOSED, stream.HEADERS)
            self._decode(fragment)
            return _NOTHING
        if not number & 1:
            # Section 5.1.1.
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if self.phase is _CLOSED:
            # Section 6.8: ignored, except for what it does to the table.
            self._decode(fragment)
            return _NOTHING
        self.last = number
        if len(self.streams) >= self.most_streams:
            # Section 5.1.2.
            self._decode(fragment)
            self._send_reset(number, Code.REFUSED_STREAM)
            self._spend(RESETS)
            return _NOTHING
        state = stream.step(stream.IDLE, stream.HEADERS)
        if ends:
            state = stream.step(state, stream.END)
        opened = self.stream = self._make(number, self._initial, _CREDIT, state)
        head = self._heads.get(fragment) if ends else None
        if head is not None:
            opened.line, opened.block = head
        else:
            try:
                self._open(opened, fragment, ends)
            except VisitorError as error:
                self.streams[number] = opened
                # There may be no block that says when it is its turn.
                opened.placed = True
                return self._fault(opened, error)
        self.streams[number] = opened
        self.served += 1
        if self._is_taken_back(number):
            return _NOTHING
        if not ends and self._warm > _CREDIT and not opened.connects:
            self._widen(opened, self._warm - _CREDIT, 0)
        return _REQUEST

    def _is_taken_back(self, number: int) -> bool:
        """Whether the stream is reset by the next frame, which has come already: then nobody has to be asked
        (CVE-2023-44487)."""
        data, at = self._buffer, self._at
        if len(data) - at < frame.HEADER_SIZE + 4 or data[at + 3] != frame.RST_STREAM:
            return False
        high, low, _, _, of = frame.read_header(data, at)
        return bool(high << 8 | low == 4 and of & 0x7FFFFFFF == number)

    def _decode(self, fragment: bytes) -> list[hpack.HeaderField]:
        self.cost += len(fragment) >> 9
        fields = self.decoder.decode(fragment, self.head_limit)
        if self.decoder.changed:
            self._heads.clear()
        return fields

    def _open(self, opened: S, fragment: bytes, ends: bool) -> None:
        """Reads the head of a new stream. Raises `VisitorError`."""
        fields = self._decode(fragment)
        if self.decoder.size > self.head_limit:
            raise request.too_large(fields, self.head_limit)
        raw_line, raw, key = request.assemble(fields, ends, self.key)
        opened.line = self.lines[raw_line]
        block = opened.block = self.blocks[raw]
        if key:
            if block.upgrade is None:
                raise BadRequest
            opened.connects = True
            opened.key = key
            return
        length = block.length
        if length is not None:
            if ends and length:
                # Section 8.1.1.
                raise BadRequest
            if length > self.body_limit:
                raise BodyTooLarge
            opened.left = length
        if ends and not self.decoder.changed and len(fragment) <= _LONGEST_HEAD:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[fragment] = opened.line, block

    def _read_trailers(self, known: S, fragment: bytes, ends: bool) -> FrameEvent:
        fields = self._decode(fragment)
        if stream.step(known.state, stream.HEADERS) == stream.STREAM_FAULT:
            return self._break(known, Code.STREAM_CLOSED)
        if not ends or known.connects or not request.are_trailers(fields):
            # Section 8.1: only at the end.
            return self._fault(known, BadRequest())
        return self._end_body(known, b"")

    # Bodies

    def _read_data(self, number: int, flags: int, data: bytes, at: int, end: int) -> FrameEvent:
        size = end - at
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if flags & frame.PADDED:
            at, end = _unpadded(data, at, end, flags, 0)
        self._credit -= size
        if self._credit < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR)
        ends = bool(flags & frame.END_STREAM)
        if at == end and not ends:
            self._spend(EMPTY)
        known = self.streams.get(number)
        if known is None:
            if not self._is_ignored(number):
                stream.step(self._absent(number), stream.DATA)
            self._look_at_credit()
            return _NOTHING
        if stream.step(known.state, stream.DATA) == stream.STREAM_FAULT:
            return self._break(known, Code.STREAM_CLOSED)
        known.credit -= size
        if known.credit < 0:
            return self._break(known, Code.FLOW_CONTROL_ERROR)
        known.owed += size
        if known.held:
            self._held += size
        self._look_at_credit()
        taken = data[at:end]
        known.size += end - at
        if known.left >= 0:
            known.left -= end - at
            if known.left < 0:
                return self._fault(known, BadRequest())
        elif known.size > self.body_limit and not known.connects:
            return self._fault(known, BodyTooLarge())
        if ends:
            return self._end_body(known, taken)
        self.grant(known)
        self.stream = known
        self.data = taken
        self.done = False
        return _BODY if taken else _NOTHING

    def _end_body(self, known: S, data: bytes) -> FrameEvent:
        if known.left > 0:
            # Section 8.1.1.
            return self._fault(known, BadRequest())
        known.state = stream.step(known.state, stream.END)
        self._warm = _CREDIT if known.held else known.granted
        if known.state == stream.CLOSED:
            self._forget(known)
        self.stream = known
        self.data = data
        self.done = True
        return _BODY

    def _look_at_credit(self) -> None:
        """Lets the connection send more, for what has come and is not held."""
        used = _CONNECTION_CREDIT - self._credit - self._held
        if used > 0 and used >= (_CONNECTION_CREDIT - self._held) // 2:
            self.out.append(frame.window_update(0, used))
            self._credit += used

    def hold(self, known: S) -> None:
        """The member takes no more of a body for now."""
        if not known.held:
            known.held = True
            self._held += known.owed

    def release(self, known: S) -> None:
        """The member takes more of a body."""
        if known.held:
            known.held = False
            self._held -= known.owed
            self.grant(known)
            self._look_at_credit()

    def grant(self, known: S) -> None:
        """Lets the visitor send more of a body, unless it is held, once enough of it has come."""
        owed = known.owed
        if known.held or owed < known.granted // 2 or not known.receiving:
            return
        # Whoever is read as fast as they send gets a larger window, so that a long way is filled.
        self._widen(known, known.granted, owed)

    def _widen(self, known: S, more: int, owed: int) -> None:
        more = max(0, min(more, _MOST_CREDIT - known.granted, self._extra))
        self._extra -= more
        known.granted += more
        known.credit += owed + more
        known.owed = 0
        if owed + more:
            self.out.append(frame.window_update(known.id, owed + more))

    # What else comes in

    def _absent(self, number: int) -> int:
        """The state of a stream that is not known."""
        return stream.IDLE if number > self.last or not number & 1 else stream.CLOSED

    def _is_ignored(self, number: int) -> bool:
        """Whether frames of a stream that is not known may still come: the edge has reset it, or does not
        serve it (sections 5.1 and 6.8)."""
        return number in self._recent or (self.phase is _CLOSED and number > self.last)

    def _read_window(self, number: int, payload: bytes) -> FrameEvent:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        more = frame.number(payload)
        if self._sent:
            # Who reads much has to say so often.
            left = self._left
            left[WINDOW_UPDATES] = min(
                self._allowed[WINDOW_UPDATES], left[WINDOW_UPDATES] + _PER_FRAME * self._sent
            )
            self._sent = 0
        self._spend(WINDOW_UPDATES)
        if not number:
            if not more:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
            self.window += more
            if self.window > frame.LARGEST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR)
            return _GREW if self.turns.size else _NOTHING
        known = self.streams.get(number)
        if known is None:
            if not self._is_ignored(number):
                stream.step(self._absent(number), stream.WINDOW)
            return _NOTHING
        if not more:
            return self._break(known, Code.PROTOCOL_ERROR)
        known.window += more
        if known.window > frame.LARGEST_WINDOW:
            return self._break(known, Code.FLOW_CONTROL_ERROR)
        return self._grew(known)

    def _grew(self, known: S) -> FrameEvent:
        if known.waiting and known.window > 0:
            self._place(known)
            return _GREW
        return _NOTHING

    def _read_settings(self, number: int, flags: int, payload: bytes) -> FrameEvent:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if flags & frame.ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR)
            self._spend(SETTINGS)
            return _NOTHING
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        self._spend(SETTINGS)
        initial = self._initial
        for name, value in frame.read_settings(payload):
            if name == frame.INITIAL_WINDOW_SIZE:
                if value > frame.LARGEST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR)
                initial = value
            elif name == frame.MAX_FRAME_SIZE:
                if not frame.DEFAULT_FRAME <= value <= frame.LARGEST_FRAME:
                    raise ConnectionFault(Code.PROTOCOL_ERROR)
                # Larger ones would make the others wait.
                self._most_frame = min(value, _QUANTUM)
            elif name in (frame.ENABLE_PUSH, frame.NO_RFC7540_PRIORITIES) and value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
        if initial != self._initial:
            # Once for all that the frame says, or it would cost a peer little to have much done.
            self._resize(initial)
        self.out.append(frame.SETTINGS_ACK)
        return _GREW if self.turns.size else _NOTHING

    def _resize(self, initial: int) -> None:
        """Section 6.9.2: another initial window changes those that there are."""
        for known in self.streams.values():
            known.window += initial - self._initial
            if known.window > frame.LARGEST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR)
            if known.window <= 0:
                self.turns.discard(known)
            else:
                self._grew(known)
        self._initial = initial

    def _read_reset(self, number: int, payload: bytes) -> FrameEvent:
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        known = self.streams.get(number)
        # CVE-2023-44487: to ask and to cancel costs a peer nothing.
        self._spend(RESETS)
        if known is None:
            if not self._is_ignored(number):
                stream.step(self._absent(number), stream.RESET)
            return _NOTHING
        known.state = stream.step(known.state, stream.RESET)
        self._forget(known)
        self.stream = known
        return _RESET

    def _read_ping(self, number: int, flags: int, payload: bytes) -> FrameEvent:
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        self._spend(PINGS)
        if flags & frame.ACK:
            return _PONG if payload == _PING else _NOTHING
        self.out.append(frame.frame(frame.PING, frame.ACK, 0, payload))
        return _NOTHING

    def _read_priority(self, kind: int, number: int, payload: bytes) -> FrameEvent:
        self._spend(PRIORITIES)
        if kind == frame.PRIORITY:
            if not number:
                raise ConnectionFault(Code.PROTOCOL_ERROR)
            if len(payload) != 5:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR)
            # Section 5.3.2: the scheme that this is of is not used any more.
            return _NOTHING
        # RFC 9218 section 7.1.
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        if len(payload) < 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        named = frame.number(payload)
        if not named or not named & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR)
        known = self.streams.get(named)
        if known is not None and known.place != priority.URGENT:
            turn = known.in_turn
            self.turns.discard(known)
            known.place, known.incremental = priority.read(payload[4:])
            known.placed = True
            if turn:
                self.turns.add(known)
        return _NOTHING

    # The end of streams

    def _fault(self, known: S, error: VisitorError) -> FrameEvent:
        """Who sends what is refused pays for it as well as who is reset."""
        self._spend(RESETS)
        self.stream = known
        self.error = error
        return _FAULT

    def _break(self, known: S, code: Code) -> FrameEvent:
        """A stream error (section 5.4.2). CVE-2025-8671: who makes the edge reset streams pays for it."""
        self._spend(RESETS)
        self.reset(known, code)
        self.stream = known
        return _BROKEN

    def reset(self, known: S, code: int) -> None:
        """Ends a stream at once, whatever waits in it."""
        known.state = stream.step(known.state, stream.SENT_RESET)
        self._forget(known)
        self._send_reset(known.id, code)

    def _send_reset(self, number: int, code: int) -> None:
        self.out.append(frame.rst_stream(number, code))
        self.errors.append(code)
        # Section 5.1: the peer may not know it yet.
        self._recent[number] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]

    def _forget(self, known: S) -> None:
        del self.streams[known.id]
        self._extra += known.granted - _CREDIT
        if known.held:
            self._held -= known.owed
            known.held = False
            self._look_at_credit()
        if known.waiting is not None:
            self.turns.discard(known)
            self.held_up -= known.backlog
            known.waiting = None

    def _sent_end(self, known: S) -> None:
        known.state = stream.step(known.state, stream.SENT_END)
        if known.state == stream.CLOSED:
            self._forget(known)
        elif not known.connects:
            # Section 8.1: the response is complete, and the rest of the request is not wanted.
            self.reset(known, Code.NO_ERROR)

    # What goes out

    def interim(self, known: S, compressed: bytes) -> bytes:
        """A 1xx."""
        return self._headers(known, compressed, False)

    def head(self, known: S, fields: list[bytes], body: bytes, done: bool) -> bytes:
        """The head of the final response, and the body that came with it, as far as it may be sent now.

        fields: as HPACK has them, in parts. With `done` the body is whole.
        """
        size = len(body)
        if not size:
            block = self._headers(known, b"".join(fields), done)
            if done:
                self._sent_end(known)
            return block
        if size > _SMALL or not self._may_send(known, size):
            return self._headers(known, b"".join(fields), False) + b"".join(self.body(known, body, done))
        self._count(known, size)
        if self._first_head:
            fields.insert(0, self._take_first())
        length = sum(map(len, fields))
        number = known.id
        if length > self._most_frame:
            parts = [self._headers(known, b"".join(fields), False)]
        else:
            parts = [frame.header(length, frame.HEADERS, frame.END_HEADERS, number), *fields]
        parts.append(frame.header(size, frame.DATA, frame.END_STREAM if done else 0, number))
        parts.append(body)
        if done:
            self._sent_end(known)
        return b"".join(parts)

    def _take_first(self) -> bytes:
        first, self._first_head = self._first_head, b""
        return first

    def _headers(self, known: S, compressed: bytes, done: bool) -> bytes:
        """HEADERS, and CONTINUATION where that is not enough (section 6.10)."""
        block = self._take_first() + compressed
        flags = frame.END_STREAM if done else 0
        most = self._most_frame
        if len(block) <= most:
            return frame.frame(frame.HEADERS, flags | frame.END_HEADERS, known.id, block)
        parts = [frame.frame(frame.HEADERS, flags, known.id, block[:most])]
        for at in range(most, len(block), most):
            last = frame.END_HEADERS if at + most >= len(block) else 0
            parts.append(frame.frame(frame.CONTINUATION, last, known.id, block[at : at + most]))
        return b"".join(parts)

    def _may_send(self, known: S, size: int) -> bool:
        """Whether a part of a body can be sent at once, and before what waits in other streams."""
        return (
            size <= known.window
            and size <= self.window
            and not self.blocked
            and not known.waiting
            and (not self.turns.size or known.place == priority.URGENT)
            and size <= self._most_frame
        )

    def _count(self, known: S, size: int) -> None:
        """A DATA frame is sent."""
        known.window -= size
        self.window -= size
        self._sent += 1

    def part(self, known: S, data: bytes) -> bytes:
        """A part of the body, but not its end, if it can be sent at once; else empty: `body` takes it."""
        return self._data(known, data, False) if data and self._may_send(known, len(data)) else b""

    def body(self, known: S, data: bytes, done: bool) -> list[bytes | memoryview]:
        """(A part of) the body, as far as it may be sent now; the rest waits for `pump`."""
        size = len(data)
        if (not size and not known.waiting) or self._may_send(known, size):
            if known.trailers and done:
                done = False
                parts: list[bytes | memoryview] = [self._data(known, data, False)] if size else []
                parts.append(self._headers(known, known.trailers, True))
                self._sent_end(known)
                return parts
            if not size and not done:
                return []
            block = self._data(known, data, done)
            if done:
                self._sent_end(known)
            return [block]
        self._wait(known, data, done)
        return self.pump()

    def _data(self, known: S, data: bytes, done: bool) -> bytes:
        self._count(known, len(data))
        return frame.frame(frame.DATA, frame.END_STREAM if done else 0, known.id, data)

    def _wait(self, known: S, data: bytes, done: bool) -> None:
        if known.waiting is None:
            known.waiting = deque()
        if data:
            known.waiting.append(memoryview(data))
            known.backlog += len(data)
            self.held_up += len(data)
        known.ending = done
        if known.window > 0:
            self._place(known)

    def _place(self, known: S) -> None:
        if not known.placed:
            known.placed = True
            known.place, known.incremental = priority.read(known.block.value(b"priority"))
        self.turns.add(known)

    def pump(self) -> list[bytes | memoryview]:
        """What waits and may be sent now, in turn; not more than one call should write."""
        parts: list[bytes | memoryview] = []
        room = _QUANTUM
        while room > 0 and not self.blocked:
            known = self.turns.first()
            if known is None or known.waiting is None or self.window <= 0:
                break
            room -= self._send_waiting(cast(S, known), known.waiting, parts)
        return parts

    def _send_waiting(self, known: S, waiting: deque[memoryview], parts: list[bytes | memoryview]) -> int:
        """One frame of a stream whose turn it is. Returns its bytes."""
        part = waiting[0]
        size = min(self.window, known.window, self._most_frame)
        if len(part) > size:
            waiting[0] = part[size:]
            part = part[:size]
        else:
            size = len(part)
            waiting.popleft()
        known.backlog -= size
        self.held_up -= size
        self._count(known, size)
        over = not waiting
        done = over and known.ending
        ends = done and not known.trailers
        parts.append(frame.header(size, frame.DATA, frame.END_STREAM if ends else 0, known.id))
        parts.append(part)
        if over or known.window <= 0:
            self.turns.discard(known)
        else:
            self.turns.next(known)
        if over:
            known.waiting = None
        if done:
            if known.trailers:
                parts.append(self._headers(known, known.trailers, True))
            self._sent_end(known)
        return frame.HEADER_SIZE + size

    def urge(self, known: S) -> None:
        """What is sent on this stream must not wait for others: events, or what goes through a tunnel."""
        known.place = priority.URGENT
        known.incremental = known.placed = True

    # The end

    def ping(self) -> bytes:
        """Asks whether the peer is there, or has read everything up to here: a `PONG` says so."""
        return frame.frame(frame.PING, 0, 0, _PING)

    def leave(self) -> bytes:
        """The first of two steps (section 6.8): the peer is asked to begin no more streams."""
        if self.phase is not _OPEN:
            # Once the peer has begun.
            self._leaves = True
            return b""
        self.phase = _LEAVING
        self.errors.append(Code.NO_ERROR)
        return frame.goaway(frame.LAST_STREAM, Code.NO_ERROR) + self.ping()

    def go(self, code: int = Code.NO_ERROR) -> bytes:
        """The last GOAWAY: streams that begin after this are not served. A fault may still come after it."""
        if self.phase is _CLOSED and code == Code.NO_ERROR:
            return b""
        self.phase = _CLOSED
        self.errors.append(code)
        return frame.goaway(self.last, code)

    def let_go(self) -> None:
        """Forgets its owner and its streams, so that none of them waits for the garbage collector.

        Nothing may be received after this.
        """
        nobody: Any = None
        self._make = self.key = nobody
        self.stream = cast(S, H2Stream(0, 0, 0, stream.CLOSED))
        self.streams.clear()


def _unpadded(data: bytes, at: int, end: int, flags: int, with_priority: int) -> tuple[int, int]:
    """Where a payload begins and ends without its padding and its old priority (sections 6.1 and 6.2)."""
    if flags & frame.PADDED:
        if at >= end:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR)
        padding = data[at]
        at += 1
        end -= padding
    if with_priority:
        at += 5
    if at > end:
        raise ConnectionFault(Code.PROTOCOL_ERROR)
    return at, end
