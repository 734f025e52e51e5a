"""A response's head, as HPACK has it: made once for each different one (RFC 9113 section 8.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedproxy.wire.h2.hpack import encode_lines, encode_status, literal

if TYPE_CHECKING:
    from fedproxy.http.response import Response, ResponseHead

# What a member says about its WebSocket handshake, which HTTP/2 has not (RFC 8441 section 5).
_ACCEPT = b"sec-websocket-accept:"


def compress(head: ResponseHead) -> bytes:
    """The head of a member's answer, kept with it."""
    block = encode_status(head.status) + encode_lines(head.lines)
    head.compressed = block
    return block


def accepts(head: ResponseHead) -> bytes:
    """The answer to a request for a WebSocket, which its member has accepted with a 101."""
    lines = [
        line + b"\r\n" for line in head.lines.split(b"\r\n")[:-1] if line[: len(_ACCEPT)].lower() != _ACCEPT
    ]
    return encode_status(200) + encode_lines(b"".join(lines))


def compress_response(response: Response) -> bytes:
    """The head of a response that is made here."""
    parts = [encode_status(response.status)]
    if response.content_type:
        parts.append(literal(b"content-type", response.content_type))
    if response.status != 204:
        # RFC 9110 section 8.6: a 204 has no length.
        parts.append(literal(b"content-length", b"%d" % len(response.body)))
    parts += [literal(name.lower(), value) for name, value in response.fields]
    return b"".join(parts)
