"""A response's head, as HPACK has it: made once for each different one (RFC 9113 section 8.3.2)."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from fedproxy.wire.h2.hpack import encode_lines, encode_status, literal

if TYPE_CHECKING:
    from fedproxy.http.response import Response, ResponseHead

# What a member says about its WebSocket handshake, which HTTP/2 has not (RFC 8441 section 5).
_ACCEPT = b"sec-websocket-accept:"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def compress(head: ResponseHead) -> bytes:
    """The head of a member's answer, kept with it."""
    block = encode_status(head.status) + encode_lines(head.lines)
    head.compressed = block
    return block


def accepts(head: ResponseHead, key: bytes) -> bytes:
    """The answer to a request for a WebSocket, which its member has accepted with a 101.

    Empty if the member has not answered the `key`: it takes no WebSocket there, or it is somebody else's
    answer (RFC 6455 section 4.1).
    """
    wanted = _ACCEPT + b" " + base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324
    given = [line for line in head.lines.split(b"\r\n") if line[: len(_ACCEPT)].lower() == _ACCEPT]
    if [_ACCEPT + b" " + line[len(_ACCEPT) :].strip(b" \t") for line in given] != [wanted]:
        return b""
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
