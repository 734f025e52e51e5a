"""Chunked bodies as they pass (RFC 9112 section 7.1).

A body with a Content-Length, or one that ends with its connection, is only counted, and whoever relays it
does that. A chunked body has to be followed to know where it ends; its bytes are forwarded as they came.
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
# Fields that must never arrive after the body (RFC 9110 section 6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"content-length transfer-encoding host trailer connection authorization cookie set-cookie te upgrade"
    b" content-encoding content-type content-range".split()
)


class BodyError(ValueError):
    """The chunked framing is malformed or over a bound."""


class Chunked:
    """Follows one chunked body, whatever way its bytes are split.

    `feed` returns what to forward: with `framed` the same chunks without their extensions, else the
    payload alone; `tap` is called with every piece of the payload before. `size` counts payload bytes. When
    `done`, `rest` holds what came after the body.
    """

    __slots__ = (
        "_between",
        "_extensions",
        "_framed",
        "_held",
        "_left",
        "_step",
        "_tap",
        "_trailers",
        "done",
        "rest",
        "size",
    )

    def __init__(self, *, framed: bool = True, tap: Callable[[bytes], object] | None = None) -> None:
        self._framed = framed
        self._tap = tap
        self._between = True  # the next byte is a chunk's first
        self._held = b""
        self._left = 0
        self._step = self._read_size
        self._extensions = 0
        self._trailers = 0
        self.done = False
        self.rest = b""
        self.size = 0

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
        while at < end and not self.done:
            at = self._step(data, at, out)
        if self.done:
            self.rest = data[at:]
        self._between = not self._held and self._step == self._read_size
        return out[0] if len(out) == 1 else b"".join(out)

    def _line(self, data: bytes, at: int) -> int:
        """Where the line that starts at `at` ends; -1 if it is not whole yet, and then it is held."""
        end = data.find(b"\r\n", at)
        if end < 0:
            if len(data) - at > _LONGEST_LINE:
                raise BodyError("a line of the chunked framing is too long")
            if data.find(b"\n", at) >= 0 or data.find(b"\r", at, -1) >= 0:
                # Its end would be waited for in vain.
                raise BodyError("a line of the chunked framing ends in half a CRLF")
            self._held = data[at:]
        elif end - at > _LONGEST_LINE:
            raise BodyError("a line of the chunked framing is too long")
        return end

    def _read_size(self, data: bytes, at: int, out: list[bytes]) -> int:
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
            if match[1].lower() in _NOT_IN_TRAILERS:
                return end + 2
        if self._framed:
            out.append(data[at : end + 2])
        return end + 2


def chunk(data: bytes) -> bytes:
    """`data`, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
