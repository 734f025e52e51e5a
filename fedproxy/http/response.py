"""A response, whatever protocol carries it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

Field = tuple[bytes, bytes]
"""A name and a value."""

PHRASES: Final[dict[int, str]] = {status.value: status.phrase for status in HTTPStatus}
"""The reason phrase of each registered status (RFC 9110 section 15)."""

# RFC 9110 sections 6.4.1 and 15.2: these never have a body.
_BODILESS: Final = frozenset((204, 304))
# Less than any part of a head lacks to a longer one.
_UNSAID: Final = -(1 << 32)


@dataclass(frozen=True, slots=True)
class Response:
    """A response that is made here. `content_type` is empty if it has no content.

    fields: in their order, without those that describe the content's type and length or the connection.
    """

    status: int
    content_type: bytes = b""
    body: bytes = b""
    fields: tuple[Field, ...] = ()


class ResponseHead:
    """The head of a member's answer, without what is about the connection to the member.

    lines: the field lines that are passed on (RFC 9110 section 5.2), each with its CRLF. length, chunked: how
    the end of the body is told; by neither, if it ends with the member's connection, or with its stream.
    whole: the size of a final response's body if the head has it, for any method; else far below 0.
    start: the status line as HTTP/1 has it; empty if the head was not read as HTTP/1. compressed: the head as
    HTTP/2 has it; empty until it is asked for.
    """

    __slots__ = (
        "bodiless",
        "chunked",
        "close",
        "compressed",
        "encoded",
        "event_stream",
        "length",
        "lines",
        "public",
        "reason",
        "start",
        "status",
        "upgrade",
        "whole",
    )

    def __init__(self, status: int, reason: bytes = b"") -> None:
        self.status = status
        self.reason = reason
        self.length: int | None = None
        self.chunked = False
        self.close = False
        self.upgrade: bytes | None = None
        self.event_stream = False
        self.encoded = False
        self.public = False
        self.bodiless = status < 200 or status in _BODILESS
        self.lines = b""
        self.start = b""
        self.compressed = b""
        self.whole = _UNSAID

    def fields(self) -> tuple[Field, ...]:
        """The fields that are passed on, in their order. Not for the hot path."""
        fields = []
        for line in self.lines.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b":")
            fields.append((name, value.strip(b" \t")))
        return tuple(fields)

    def unframed(self) -> ResponseHead:
        """The same answer, for the payload of a body that came in chunks."""
        head = ResponseHead(self.status, self.reason)
        head.length, head.whole = self.length, self.whole
        head.lines, head.start, head.compressed = self.lines, self.start, self.compressed
        head.event_stream, head.encoded, head.public = self.event_stream, self.encoded, self.public
        return head

    def with_more(self, field: Field) -> ResponseHead:
        """The same answer with one more field; the end of its body is told as before."""
        head = ResponseHead(self.status, self.reason)
        head.length, head.whole, head.chunked = self.length, self.whole, self.chunked
        head.close, head.upgrade, head.start = self.close, self.upgrade, self.start
        head.event_stream, head.encoded, head.public = self.event_stream, self.encoded, self.public
        head.lines = self.lines + b"%b: %b\r\n" % field
        return head

    def with_fields(self, fields: Iterable[Field], length: int | None = None) -> ResponseHead:
        """The same answer with other fields, for another body: of `length` bytes, if that is known.

        A Content-Length among the fields is dropped, and the right one set. `public` and `event_stream` stay
        as they are, whatever the fields say.
        """
        head = ResponseHead(self.status, self.reason)
        kept = [field for field in fields if field[0].lower() != b"content-length"]
        if length is not None:
            kept.append((b"Content-Length", b"%d" % length))
            head.length = length
            head.whole = _UNSAID if self.bodiless else length
        head.lines = b"".join([b"%b: %b\r\n" % field for field in kept])
        head.event_stream, head.public = self.event_stream, self.public
        head.encoded = any(
            name.lower() == b"content-encoding" and value.lower() != b"identity" for name, value in kept
        )
        head.start = self.start
        return head
