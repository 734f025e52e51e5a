"""Bodies as they pass (RFC 9112 sections 6 and 7.1).

A body with a Content-Length is only counted, and one that ends with its connection not even that. A chunked
one must be followed to know where it ends; its bytes are forwarded as they came.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fedproxy.wire.grammar import FIELD

# 16 hex digits are 64 bits. What follows the size must be an extension, which is ignored.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?").fullmatch
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n").match
_LONGEST_LINE = 1024
_MOST_EXTENSIONS = 16 * 1024
_MOST_TRAILERS = 8 * 1024
# Chunks up to this size are read in runs: one by one they would cost far more than their payload.
_SMALL = 1024
_SIZES = {format(size, style).encode(): size for size in range(1, _SMALL + 1) for style in "xX"}
# Whole chunks of up to 15 bytes, as in a flood of tiny ones.
_TINY = re.compile(
    b"|".join(b"[%x%X]\r\n(.{%d})\r\n" % (size, size, size) for size in range(1, 16)), re.DOTALL
).finditer
_TINY_RUN = re.compile(
    b"(?:%b)*+" % b"|".join(b"[%x%X]\r\n.{%d}\r\n" % (size, size, size) for size in range(1, 16)), re.DOTALL
).match
_RUN = 12 * 1024  # bytes
_SLOW = 8  # the cost of a chunk read by itself, in chunks of a run
_AT_ONCE = 2048  # chunks that one call reads, or slightly more: less than a millisecond
# Chunks are tiny if they have fewer bytes than this on average. They add up, except for some in each call.
_FAIR = 16
_FREE = 16
_MOST_TINY = 16 * 1024
# Fields that would change the meaning of the head: framing, routing, control, authentication, content, and
# fields that the edge sets or reads itself (RFC 9110 section 6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"age allow alt-svc authentication-info authorization cache-control clear-site-data connection cookie"
    b" cookie2 date expect expires forwarded from host http2-settings keep-alive link location max-forwards"
    b" origin pragma range referer refresh retry-after server set-cookie set-cookie2 te traceparent"
    b" tracestate strict-transport-security trailer transfer-encoding upgrade user-agent vary"
    b" via warning www-authenticate"
    # A parser that has lost its place would take these for a request line.
    b" connect delete get head options patch post put trace".split()
)
_NOT_IN_TRAILERS_FROM = (
    b"accept",
    b"access-control-",
    b"content-",
    b"cross-origin-",
    b"if-",
    b"proxy-",
    b"sec-",
    b"x-accel-",
    b"x-forwarded",
    b"x-real-ip",
    b"x-request-id",
    b"x-scheme",
)


class BodyError(ValueError):
    """The chunked framing is malformed or over a bound."""


class Body:
    """Finds where a body ends, and what of it to forward; this one ends with its connection.

    size: bytes so far. When `done`, `rest` holds what came after the body, and `trailers` the lines of fields
    that may be passed on but are not in what was forwarded. While `behind`, there is more than
    one call reads, and `feed(b"")` reads on.
    """

    __slots__ = ("behind", "done", "rest", "size", "trailers")

    def __init__(self) -> None:
        self.behind = False
        self.done = False
        self.rest = b""
        self.size = 0
        self.trailers = b""

    def feed(self, data: bytes) -> bytes:
        """What to forward of `data`, in order; possibly empty. Raises `BodyError`."""
        self.size += len(data)
        return data


class Counted(Body):
    """A body of `length` bytes (RFC 9110 section 8.6)."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self.left = length  # bytes still to come
        self.done = not length

    def feed(self, data: bytes) -> bytes:
        """What to forward of `data`; possibly empty."""
        left = self.left = self.left - len(data)
        if left <= 0:
            self.done = True
            if left:
                self.left = 0
                self.rest = data[left:]
                data = data[:left]
        self.size += len(data)
        return data


class Chunked(Body):
    """Follows one chunked body, however its bytes are split.

    `feed` returns what to forward: with `framed` chunks without extensions, tiny ones joined, else the
    payload alone; `tap` is called with every piece of the payload before. `size` counts payload bytes.

    The body of a `request` loses its trailers (RFC 9112 section 7.1.2), is never behind, and may not consist
    of tiny chunks, unless they come one by one.
    """

    __slots__ = (
        "_between",
        "_budget",
        "_extensions",
        "_framed",
        "_held",
        "_left",
        "_request",
        "_step",
        "_tap",
        "_tiny",
        "_trailers",
    )

    def __init__(
        self, *, framed: bool = True, request: bool = False, tap: Callable[[bytes], object] | None = None
    ) -> None:
        super().__init__()
        self._framed = framed
        self._request = request
        self._tap = tap
        self._between = True  # the next byte is a chunk's first
        self._held = b""
        self._left = 0
        self._step = self._read_size
        self._extensions = 0
        self._trailers = 0
        self._tiny = 0
        self._budget = 0

    def feed(self, data: bytes) -> bytes:
        """What to forward of `data`, in order; possibly empty. Raises `BodyError`."""
        if self._between:
            # The usual case: one chunk, such as an event, and nothing else.
            match = _PLAIN_SIZE(data)
            if match is not None:
                size, at = int(match[1], 16), match.end()
                if size and at + size + 2 == len(data) and data.endswith(b"\r\n"):
                    self.size += size
                    if self._tap is not None:
                        self._tap(data[at:-2])
                    return data if self._framed else data[at:-2]
        if self._held:
            data, self._held = self._held + data, b""
        out: list[bytes] = []
        at, end = 0, len(data)
        self._budget = _AT_ONCE
        self._tiny = max(0, self._tiny - _FREE)
        # A request is never behind: tiny chunks are refused long before.
        while at < end and not self.done and (self._budget > 0 or self._request):
            self._budget -= 1
            at = self._step(data, at, out)
        self.behind = False
        if self.done:
            self.rest = data[at:]
        elif at < end:
            self.behind = True
            self._held = data[at:]
        self._between = not self._held and self._step == self._read_size
        return out[0] if len(out) == 1 else b"".join(out)

    def _line(self, data: bytes, at: int) -> int:
        """The end of the line that starts at `at`; -1 if it is incomplete, and then it is held."""
        end = data.find(b"\r\n", at)
        if end < 0:
            if len(data) - at > _LONGEST_LINE:
                raise BodyError("a line of the chunked framing is too long")
            if data.find(b"\n", at) >= 0 or data.find(b"\r", at, -1) >= 0:
                # No end of this line can make it valid.
                raise BodyError("a line of the chunked framing ends with half a CRLF")
            self._held = data[at:]
        elif end - at > _LONGEST_LINE:
            raise BodyError("a line of the chunked framing is too long")
        return end

    def _read_small(self, data: bytes, start: int, out: list[bytes]) -> int:
        """Reads complete small chunks; tiny ones are joined. Returns where the next chunk begins."""
        at, most = start, len(data) - 2
        run = _TINY_RUN(data, at, at + _RUN)
        end = run.end() if run is not None else at
        pieces = [each[each.lastindex or 0] for each in _TINY(data, at, end)] if end > at else []
        at = end
        while len(pieces) < _AT_ONCE:
            line = data.find(b"\r\n", at, at + 5)
            size = _SIZES.get(data[at:line]) if line > 0 else None
            if size is None:
                break
            end = line + 2 + size
            if end > most:
                break
            if data[end : end + 2] != b"\r\n":
                raise BodyError("a chunk does not end where it should")
            pieces.append(data[line + 2 : end])
            at = end + 2
        if not pieces:
            return at
        payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.size += len(payload)
        self._budget -= len(pieces)
        self._count_tiny(len(pieces), len(payload))
        if self._tap is not None:
            self._tap(payload)
        if not self._framed:
            out.append(payload)
        elif len(pieces) > _FREE and len(payload) < len(pieces) * _FAIR:
            out.append(chunk(payload))
        else:
            out.append(data[start:at])
        return at

    def _count_tiny(self, chunks: int, size: int) -> None:
        self._tiny = max(0, self._tiny + chunks - size // _FAIR)
        if self._request and self._tiny > _MOST_TINY:
            raise BodyError("too many tiny chunks")

    def _read_size(self, data: bytes, at: int, out: list[bytes]) -> int:
        after = self._read_small(data, at, out)
        if after > at:
            return after
        end = self._line(data, at)
        if end < 0:
            return len(data)
        match = _SIZE(data, at, end)
        if match is None:
            raise BodyError("a chunk's size is malformed")
        self._extensions += end - match.end(1)
        if self._extensions > _MOST_EXTENSIONS:
            raise BodyError("the chunk extensions are too large")
        size = int(match[1], 16)
        if size == 0:
            self._step = self._read_trailer
            if self._framed:
                out.append(b"0\r\n")
            return end + 2
        self.size += size
        self._budget -= _SLOW
        self._count_tiny(_SLOW, size)
        after = end + 2 + size + 2
        if after <= len(data):
            return self._whole_chunk(data, at, match.end(1), after, out)
        self._left = size
        self._step = self._read_data
        if self._framed:
            out.append(match[1] + b"\r\n")
        return end + 2

    def _whole_chunk(self, data: bytes, at: int, digits: int, after: int, out: list[bytes]) -> int:
        # One slice where the size has no extension.
        if data[after - 2 : after] != b"\r\n":
            raise BodyError("a chunk does not end where it should")
        line = data.find(b"\r\n", digits)
        if self._tap is not None:
            self._tap(data[line + 2 : after - 2])
        if not self._framed:
            out.append(data[line + 2 : after - 2])
        elif line == digits:
            out.append(data[at:after])
        else:
            out.append(data[at:digits] + data[line:after])
        return after

    def _read_data(self, data: bytes, at: int, out: list[bytes]) -> int:
        piece = data[at : at + self._left]
        if self._tap is not None:
            self._tap(piece)
        out.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._step = self._read_data_end
        return at + len(piece)

    def _read_data_end(self, data: bytes, at: int, out: list[bytes]) -> int:
        ending = data[at : at + 2]
        if ending == b"\r":
            self._held = ending
            return at + 1
        if ending != b"\r\n":
            raise BodyError("a chunk does not end where it should")
        if self._framed:
            out.append(ending)
        self._step = self._read_size
        return at + 2

    def _read_trailer(self, data: bytes, at: int, out: list[bytes]) -> int:
        end = self._line(data, at)
        if end < 0:
            return len(data)
        line = data[at:end]
        if not line:
            self.done = True
        else:
            self._trailers += len(line) + 2
            match = FIELD.fullmatch(line)
            if match is None or self._trailers > _MOST_TRAILERS:
                raise BodyError("the trailers are malformed or too large")
            if self._request or not _may_trail(match[1]):
                return end + 2
            if not self._framed:
                self.trailers += line + b"\r\n"
        if self._framed:
            out.append(data[at : end + 2])
        return end + 2


def _may_trail(name: bytes) -> bool:
    """Whether a response's field may follow the body: a client may merge it into the head."""
    # Some servers take an underscore for a hyphen.
    name = name.lower().replace(b"_", b"-")
    return name not in _NOT_IN_TRAILERS and not name.startswith(_NOT_IN_TRAILERS_FROM)


def chunk(data: bytes) -> bytes:
    """`data`, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def as_chunks(data: bytes, done: bool) -> bytes:
    """A part of a payload, possibly empty, as it goes into a chunked body; with `done` it is the last."""
    return (chunk(data) if data else b"") + (LAST_CHUNK if done else b"")


LAST_CHUNK = b"0\r\n\r\n"
