"""A visitor that speaks HTTP/2, and can break every rule of it."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpack import Decoder, Encoder

from tests.rig.client import RawClient
from tests.rig.wire import Ended, guard

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
PRIORITY_UPDATE = 0x10
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
CODES = [
    *("no_error", "protocol_error", "internal_error", "flow_control_error", "settings_timeout"),
    *("stream_closed", "frame_size_error", "refused_stream", "cancel", "compression_error", "connect_error"),
    "enhance_your_calm",
]

Pairs = Iterable[tuple[bytes, bytes]]
GET = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"hub.test"), (b":path", b"/plain"))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">L", stream) + payload


def request(path: bytes = b"/plain", *more: tuple[bytes, bytes], method: bytes = b"GET") -> Pairs:
    """A valid head."""
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", b"hub.test"),
        (b":path", path),
        *more,
    ]


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> str:
        """What a RST_STREAM or a GOAWAY says."""
        at = 0 if self.kind == RST_STREAM else 4
        return CODES[int.from_bytes(self.payload[at : at + 4], "big")]


@dataclass
class Response:
    """What came on one stream. `reset`: the code, if it did not end well."""

    heads: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: str | None = None
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    @property
    def statuses(self) -> list[int]:
        return [int(dict(head)[b":status"]) for head in self.heads]

    @property
    def status(self) -> int:
        return self.statuses[-1]

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def value(self, name: str) -> bytes | None:
        return dict(self.heads[-1]).get(name.encode())


class H2Client:
    """One connection: everything that comes is kept by stream. `windows`: what it gives is given back."""

    def __init__(self, client: RawClient, *, windows: bool = True) -> None:
        self.client = client
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.windows = windows
        self.answers = True  # to PING
        self.streams: defaultdict[int, Response] = defaultdict(Response)
        self.settings: dict[int, int] = {}
        self.goaways: list[tuple[int, str]] = []
        self.frames: list[Frame] = []
        self.next = 1

    async def begin(self, settings: bytes = b"") -> H2Client:
        self.write(PREFACE + frame(SETTINGS, 0, 0, settings))
        await self.until(lambda: bool(self.settings))
        return self

    def write(self, data: bytes) -> None:
        self.client.write(data)

    def head(
        self, pairs: Pairs, *, end: bool = True, stream: int | None = None, flags: int = END_HEADERS
    ) -> int:
        """Begins a stream, or goes on with one."""
        if stream is None:
            stream, self.next = self.next, self.next + 2
        block = self.encoder.encode([*pairs], huffman=True)
        self.write(frame(HEADERS, flags | (END_STREAM if end else 0), stream, block))
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
        for part in parts:
            self.write(frame(DATA, END_STREAM if end and part is parts[-1] else 0, stream, part))

    async def frame(self) -> Frame:
        """The next frame. Raises `Ended`."""
        async with guard():
            head = await self.client.exactly(9)
            payload = await self.client.exactly(int.from_bytes(head[:3], "big"))
        got = Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
        self.frames.append(got)
        self._take(got)
        return got

    def _take(self, got: Frame) -> None:
        stream = self.streams[got.stream] if got.stream else Response()
        if got.kind == HEADERS:
            assert got.flags & END_HEADERS
            pairs = [
                (bytes(name), bytes(value)) for name, value in self.decoder.decode(got.payload, raw=True)
            ]
            if stream.heads and stream.status >= 200:
                stream.trailers = pairs
            else:
                stream.heads.append(pairs)
        elif got.kind == DATA:
            stream.received += got.payload
            if self.windows and got.payload:
                size = struct.pack(">L", len(got.payload))
                self.write(frame(WINDOW_UPDATE, 0, 0, size))
                if not got.flags & END_STREAM:
                    self.write(frame(WINDOW_UPDATE, 0, got.stream, size))
        elif got.kind == RST_STREAM:
            stream.reset = got.code
        elif got.kind == GOAWAY:
            self.goaways.append((int.from_bytes(got.payload[:4], "big"), got.code))
        elif got.kind == SETTINGS and not got.flags & ACK:
            self.settings = dict(struct.iter_unpack(">HL", got.payload))
            self.write(frame(SETTINGS, ACK, 0))
        elif got.kind == PING and not got.flags & ACK and self.answers:
            self.write(frame(PING, ACK, 0, got.payload))
        if got.kind in (HEADERS, DATA) and got.flags & END_STREAM:
            stream.ended = True

    async def until(self, condition: object) -> None:
        assert callable(condition)
        while not condition():
            await self.frame()

    def pings(self) -> int:
        """PING frames that have come, answers among them."""
        return len([each for each in self.frames if each.kind == PING])

    async def response(self, stream: int) -> Response:
        """All of a response. If it is reset, `reset` says how."""
        await self.until(lambda: self.streams[stream].over)
        return self.streams[stream]

    async def ask(self, pairs: Pairs, body: bytes | None = None) -> Response:
        stream = self.head(pairs, end=body is None)
        if body is not None:
            self.data(stream, body, end=True)
        return await self.response(stream)

    async def end(self) -> list[tuple[int, str]]:
        """Reads until the edge ends the connection: what its GOAWAY frames said."""
        try:
            while True:
                await self.frame()
        except Ended:
            return self.goaways

    async def leave(self) -> None:
        await self.client.leave()
