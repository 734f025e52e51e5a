"""A response's head: its meaning, and the bytes to send to the visitor (RFC 9112 sections 4 and 6)."""

from __future__ import annotations

import re

from fedproxy.bounded import Memo
from fedproxy.errors import BadResponse
from fedproxy.http.response import PHRASES, Response, ResponseHead
from fedproxy.wire.grammar import FIELD, IS_TOKEN, LENGTH, VALUE_BYTES, tokens

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?").fullmatch
_ANY_STATUS = b"HTTP/1.1 200"
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))
_SPECIAL = _HOP_BY_HOP | frozenset(
    b"content-length content-type content-encoding cache-control x-request-id".split()
)


def _read_field(line: bytes) -> tuple[bytes, bytes] | None:
    """The name in lower case and the value, or None for a line that is only forwarded."""
    match = FIELD.fullmatch(line)
    if match is None:
        raise BadResponse
    name = match[1].lower()
    return (name, match[2]) if name in _SPECIAL or name.startswith(b"proxy-") else None


_fields = Memo(_read_field, entries=4096, longest=512)


def read(raw: bytes) -> ResponseHead:
    """Reads a head from its status line up to and including its empty line. Raises `BadResponse`."""
    first, *rest = raw[:-4].split(b"\r\n")
    match = _STATUS(first)
    if match is None:
        raise BadResponse
    http10 = match[1] == b"0"
    head = ResponseHead(int(match[2]), match[3] or b"")
    head.start = b"HTTP/1.1 %b %b\r\n" % (match[2], head.reason)
    lines: list[bytes] = []
    named: tuple[bytes, ...] = ()
    for line in rest:
        special = _read_field(line) if line[:11].lower() == b"set-cookie:" else _fields[line]
        if special is None:
            lines.append(line)
            continue
        name, value = special
        if name == b"content-length":
            if head.length is not None or LENGTH(value) is None:
                raise BadResponse
            head.length = int(value)
        elif name == b"transfer-encoding":
            if head.chunked or http10 or value.lower() != b"chunked":
                raise BadResponse
            head.chunked = True
        elif name == b"connection":
            named += tokens(value)
        elif name == b"upgrade":
            head.upgrade = value if head.upgrade is None else head.upgrade + b", " + value
        elif name == b"content-type":
            head.event_stream = value.lower().startswith(b"text/event-stream")
            lines.append(line)
        elif name == b"cache-control":
            head.public = head.public or b"public" in tokens(value)
            lines.append(line)
        elif name == b"content-encoding":
            head.encoded = value.lower() != b"identity"
            lines.append(line)
    if head.chunked and head.length is not None:
        raise BadResponse
    _finish(head, lines, named, http10=http10)
    return head


def check_begun(begun: bytes, known: int = 0) -> None:
    """Raises `BadResponse` if no valid head can begin like this.

    `begun` has no empty line yet. Its first `known` bytes are whole lines that were checked before.
    """
    *lines, last = begun[known:].split(b"\r\n")
    if last.endswith(b"\r"):
        # Half of a CRLF, so this line is whole too, or is the empty one.
        lines.append(last[:-1])
        last = b""
    if not known:
        if not lines:
            lines, last = [last + _ANY_STATUS[len(last) :]], b""
        if _STATUS(lines.pop(0)) is None:
            raise BadResponse
    for line in lines:
        if line:
            _read_field(line)
    if last and (last.translate(None, VALUE_BYTES) or IS_TOKEN(last.partition(b":")[0]) is None):
        raise BadResponse


def _finish(head: ResponseHead, lines: list[bytes], named: tuple[bytes, ...], *, http10: bool) -> None:
    head.close = b"close" in named or (http10 and b"keep-alive" not in named)
    gone = set(named) - _SPECIAL
    if gone:
        lines[:] = [line for line in lines if line.partition(b":")[0].lower() not in gone]
    # RFC 9110 section 8.6: a 1xx or 204 has no Content-Length, even if the member sends one.
    if head.length is not None and head.status != 204 and head.status >= 200:
        lines.append(b"Content-Length: %d" % head.length)
    if head.length is not None and not head.bodiless:
        head.whole = head.length
    lines.append(b"")
    head.lines = b"\r\n".join(lines)


def start(head: ResponseHead) -> bytes:
    """A status line with its CRLF."""
    return b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)


def render(response: Response, connection: bytes | None, *, is_head: bool) -> bytes:
    """A whole response, as bytes. connection: what `Connection` is to say. is_head: it answers a HEAD."""
    status = response.status
    lines = [b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, "").encode("ascii"))]
    if response.content_type:
        lines.append(b"Content-Type: " + response.content_type)
    if status != 204:
        # RFC 9110 section 8.6: a 204 has no length.
        lines.append(b"Content-Length: %d" % len(response.body))
    lines += [b"%b: %b" % field for field in response.fields]
    if connection is not None:
        lines.append(b"Connection: " + connection)
    return b"\r\n".join((*lines, b"", b"" if is_head else response.body))
