"""An owner of the machine without a loop, and a peer that reads what is sent and holds it to its windows."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from hpack import Decoder
from hpack.hpack import encode_integer

from fedproxy.bounded import Memo
from fedproxy.errors import ConnectionFault
from fedproxy.wire.h1.request import BlockReader
from fedproxy.wire.h2 import request as heads
from fedproxy.wire.h2.allowance import Allowance
from fedproxy.wire.h2.server import FrameEvent, H2Server
from fedproxy.wire.h2.stream import H2Stream
from tests.rig.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY_UPDATE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Pairs,
    Response,
    frame,
)

HEAD_LIMIT = 2048
BODY_LIMIT = 4096
STREAMS = 4
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
LAVISH = Allowance(*[1 << 30] * 7)
INITIAL_WINDOW, MAX_FRAME = 4, 5
DEFAULT_WINDOW = 65_535
OK = b"\x88"  # :status: 200

Machine = H2Server[H2Stream]


def machine(
    head_limit: int = HEAD_LIMIT,
    body_limit: int = BODY_LIMIT,
    streams: int = STREAMS,
    allowance: Allowance = LAVISH,
    make: Callable[[int, int, int, int], H2Stream] = H2Stream,
) -> Machine:
    made: Machine = H2Server(make, lambda: KEY)
    blocks = Memo(BlockReader("member", None, trusted=False).read)
    made.configure(Memo(heads.read_line), blocks, head_limit, body_limit, streams, allowance)
    return made


def sized(text: bytes) -> bytes:
    """A string that is not compressed."""
    return bytes(encode_integer(len(text), 7)) + text


def plain(pairs: Pairs) -> bytes:
    """Fields that are written out, and that no table keeps."""
    return b"".join(b"\0" + sized(name) + sized(value) for name, value in pairs)


BEGIN = (b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"h"), (b":path", b"/")
POST = ((b":method", b"POST"), *BEGIN[1:])
CONNECT = (
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":authority", b"h"),
    (b":path", b"/ws"),
)


def head(stream: int, pairs: Pairs = BEGIN, flags: int = END_STREAM | END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, plain(pairs))


def post(stream: int, *more: tuple[bytes, bytes]) -> bytes:
    """The head of a request whose body follows."""
    return head(stream, (*POST, *more), END_HEADERS)


def number(value: int) -> bytes:
    return struct.pack(">L", value)


def window(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, number(size))


def settings(**values: int) -> bytes:
    """By the numbers of settings: `_4=0`."""
    said = b"".join(struct.pack(">HL", int(name[1:]), value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, said)


def rst(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, number(code))


def priority_update(stream: int, value: bytes) -> bytes:
    return frame(PRIORITY_UPDATE, 0, 0, number(stream) + value)


def frames(data: bytes) -> list[Frame]:
    """Whole frames."""
    found = []
    while data:
        assert len(data) >= 9
        size = int.from_bytes(data[:3], "big")
        found.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        assert len(found[-1].payload) == size
        data = data[9 + size :]
    return found


class Peer:
    """What a visitor sees of a connection: the responses, and whether all that is sent may be sent."""

    def __init__(self) -> None:
        self.initial = DEFAULT_WINDOW
        self.most_frame = 16_384
        self.given: defaultdict[int, int] = defaultdict(int)
        self.taken: defaultdict[int, int] = defaultdict(int)
        self.streams: defaultdict[int, Response] = defaultdict(Response)
        self.goaways: list[tuple[int, str]] = []
        self.pings: list[Frame] = []
        self.acknowledged = 0
        self.settings: dict[int, int] = {}
        self.grants: defaultdict[int, int] = defaultdict(int)
        self.decoder = Decoder()
        self._open: Frame | None = None
        self.largest_data = 0

    def window(self, stream: int) -> int:
        """Bytes that may still be sent on a stream, or with 0 on all of them."""
        first = self.initial if stream else DEFAULT_WINDOW
        return first + self.given[stream] - self.taken[stream]

    def say(self, data: bytes) -> bytes:
        """Notes what is granted with these frames, if they are whole and mean something."""
        for each in frames(data):
            if each.kind == WINDOW_UPDATE and len(each.payload) == 4:
                self.given[each.stream] += int.from_bytes(each.payload, "big") & 0x7FFFFFFF
            elif each.kind == SETTINGS and not each.flags & ACK and not len(each.payload) % 6:
                for name, value in struct.iter_unpack(">HL", each.payload):
                    if name == INITIAL_WINDOW and value < 1 << 31:
                        self.initial = value
                    elif name == MAX_FRAME and 16_384 <= value < 1 << 24:
                        self.most_frame = value
        return data

    def read(self, data: bytes) -> None:
        for each in frames(data):
            self._take(each)

    def _take(self, got: Frame) -> None:
        assert len(got.payload) <= self.most_frame
        if self._open is not None:
            # Nothing may come between.
            assert (got.kind, got.stream) == (CONTINUATION, self._open.stream)
            self._open.payload += got.payload
            if got.flags & END_HEADERS:
                whole, self._open = self._open, None
                self._head(whole)
        elif got.kind == HEADERS and not got.flags & END_HEADERS:
            self._open = got
        elif got.kind == HEADERS:
            self._head(got)
        elif got.kind == DATA:
            self._data(got)
        elif got.kind == RST_STREAM:
            assert self.streams[got.stream].reset is None
            self.streams[got.stream].reset = got.code
        elif got.kind == GOAWAY:
            self.goaways.append((int.from_bytes(got.payload[:4], "big"), got.code))
        elif got.kind == SETTINGS and got.flags & ACK:
            self.acknowledged += 1
        elif got.kind == SETTINGS:
            self.settings = dict(struct.iter_unpack(">HL", got.payload))
        elif got.kind == PING:
            self.pings.append(got)
        else:
            assert got.kind == WINDOW_UPDATE
            assert self.streams[got.stream].reset is None or not got.stream
            self.grants[got.stream] += int.from_bytes(got.payload, "big")

    def _head(self, got: Frame) -> None:
        response = self.streams[got.stream]
        assert not response.over
        pairs = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(got.payload, raw=True)]
        if response.heads and response.status >= 200:
            assert got.flags & END_STREAM
            response.trailers = pairs
        else:
            response.heads.append(pairs)
        response.ended = bool(got.flags & END_STREAM)

    def _data(self, got: Frame) -> None:
        response, size = self.streams[got.stream], len(got.payload)
        assert response.heads and response.status >= 200 and not response.over
        if size:
            assert size <= self.window(got.stream) and size <= self.window(0)
        self.taken[got.stream] += size
        self.taken[0] += size
        self.largest_data = max(self.largest_data, size)
        response.received += got.payload
        response.ended = bool(got.flags & END_STREAM)


@dataclass(frozen=True)
class Told:
    """An event, with all that goes with it."""

    event: FrameEvent
    stream: int = 0
    data: bytes = b""
    done: bool = False
    error: str = ""


class Owner:
    """Does with the machine what a connection does, but answers nothing by itself."""

    def __init__(self, made: Machine | None = None, said: bytes = b"", *, begun: bool = True) -> None:
        self.machine = machine() if made is None else made
        self.peer = Peer()
        self.fault: ConnectionFault | None = None
        self.written = b""  # and not taken by anybody
        self.sent(self.machine.greet())
        if begun:
            assert self.receive(PREFACE + frame(SETTINGS, 0, 0), said) == []

    def sent(self, data: bytes | list[bytes | memoryview]) -> None:
        """What the machine returned, and after that what it wants to be written beside."""
        out, self.machine.out = self.machine.out, []
        for part in (data if isinstance(data, bytes) else b"".join(data), b"".join(out)):
            self.peer.read(part)
            self.written += part

    def receive(self, *parts: bytes) -> list[Told]:
        """Passes on whole frames (and the preface), and takes all events."""
        told: list[Told] = []
        for part in parts:
            self.peer.say(part.removeprefix(PREFACE))
            told += self.read(part)
        return told

    def read(self, data: bytes) -> list[Told]:
        """Passes on what was read."""
        told: list[Told] = []
        made = self.machine
        assert self.fault is None
        try:
            event = made.receive(data)
            while event is not FrameEvent.NOTHING:
                told.append(self._told(event))
                event = made.more()
        except ConnectionFault as fault:
            self.fault = fault
        self.sent(b"")
        return told

    def _told(self, event: FrameEvent) -> Told:
        made = self.machine
        if event is FrameEvent.REQUEST:
            stream = made.stream
            return Told(
                event, stream.id, b"%b%b" % (stream.line.start, stream.block.raw), not stream.receiving
            )
        if event is FrameEvent.BODY:
            return Told(event, made.stream.id, made.data, made.done)
        if event is FrameEvent.FAULT:
            return Told(event, made.stream.id, error=type(made.error).__name__)
        if event in (FrameEvent.RESET, FrameEvent.BROKEN):
            return Told(event, made.stream.id)
        return Told(event)

    def ask(self, data: bytes) -> H2Stream:
        """Passes on a request, and nothing else."""
        told = self.receive(data)
        assert [each.event for each in told] == [FrameEvent.REQUEST]
        return self.machine.stream

    def answer(self, stream: H2Stream, body: bytes = b"", done: bool = True, block: bytes = OK) -> Response:
        self.sent(self.machine.head(stream, [block[:3], block[3:]], body, done))
        return self.peer.streams[stream.id]

    def body(self, stream: H2Stream, data: bytes, done: bool = False) -> None:
        part = b"" if done else self.machine.part(stream, data)
        self.sent(part or self.machine.body(stream, data, done))

    def pump(self) -> None:
        """Sends all that may be sent."""
        while parts := self.machine.pump():
            self.sent(parts)

    def check(self) -> None:
        """What is counted agrees with what it counts."""
        made = self.machine
        streams = made.streams
        assert made.held_up == sum(each.backlog for each in streams.values())
        assert made.turns.size == sum(each.in_turn for each in streams.values())
        first = made.turns.first()
        assert (first is None) == (not made.turns.size)
        assert first is None or streams[first.id] is first
        assert made.window == self.peer.window(0)
        for stream_id, each in streams.items():
            assert each.id == stream_id <= made.last
            assert each.backlog == sum(map(len, each.waiting or ()))
            assert (each.waiting is None) == (not each.backlog)
            assert each.in_turn == (bool(each.backlog) and each.window > 0)
            assert each.window == self.peer.window(stream_id)
            assert each.credit >= 0 and each.credit + each.owed == each.granted
            assert not self.peer.streams[stream_id].reset
