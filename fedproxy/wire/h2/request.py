"""A request's head: from fields to the line and the block that members are sent (RFC 9113 section 8).

What is made here reads as if it had come by HTTP/1, so that a head means the same whatever carried it: the
same readers judge it, and remember it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fedproxy.errors import BadRequest, HeadTooLarge, MethodRefused, ProtocolUnknown, TargetTooLong
from fedproxy.http.request import RequestLine
from fedproxy.wire.grammar import IS_TOKEN
from fedproxy.wire.h1.request import start
from fedproxy.wire.h2 import hpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedproxy.wire.h2.hpack import HeaderField

# Section 8.3.1: a path, or `*` for OPTIONS; never an absolute form, a fragment, or nothing.
_TARGET: Final = re.compile(rb"/[\x21\x22\x24-\x7e]*").fullmatch
_SCHEMES: Final = (b"http", b"https")
_PLAIN: Final = hpack.PLAIN
_PSEUDO: Final = hpack.PROTOCOL


def read_line(raw: bytes) -> RequestLine:
    """Reads `METHOD TARGET`. Raises `BadRequest` and `MethodRefused`."""
    method, _, target = raw.partition(b" ")
    if IS_TOKEN(method) is None:
        raise BadRequest
    if method in (b"TRACE", b"CONNECT"):
        raise MethodRefused
    if _TARGET(target) is None and not (target == b"*" and method == b"OPTIONS"):
        raise BadRequest
    line = RequestLine(method, target, None, "HTTP/2.0")
    line.start = start(line)
    return line


def assemble(
    fields: list[HeaderField], ends: bool, make_key: Callable[[], bytes]
) -> tuple[bytes, bytes, bytes]:
    """The method and the target of a head, its block as HTTP/1 has it, and the Sec-WebSocket-Key that was put
    there if it asks for a WebSocket; else that is empty.

    ends: nothing follows the head. Raises `VisitorError`.
    """
    pseudo: list[bytes | None] = [None, None, None, None, None]
    host: bytes | None = None
    cookies: list[bytes] = []
    lines: list[bytes] = [b"", b"\r\n"]
    regular = False
    keyed = False
    for field in fields:
        kind = field.kind
        if kind == _PLAIN:
            lines.append(field.line)
            regular = True
        elif kind <= _PSEUDO:
            # Section 8.3: each once, and before all others.
            if regular or pseudo[kind] is not None:
                raise BadRequest
            pseudo[kind] = field.value
        else:
            regular = True
            if kind == hpack.COOKIE:
                if field.value:
                    cookies.append(field.value)
            elif kind == hpack.HOST and host is None:
                host = field.value
            elif kind == hpack.KEY:
                keyed = True
                lines.append(field.line)
            else:
                raise BadRequest
    method, scheme, authority, path, protocol = pseudo
    if method is None:
        raise BadRequest
    connects = protocol is not None
    key = b""
    if method == b"CONNECT":
        if not connects:
            raise MethodRefused
        # RFC 8441 section 4, and RFC 9220 section 3 for what is not known.
        if protocol != b"websocket":
            raise ProtocolUnknown
        method = b"GET"
        key = make_key()
        if keyed:
            lines = [line for line in lines if not line.startswith(b"sec-websocket-key:")]
        lines.append(b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: %b\r\n" % key)
    elif connects:
        raise BadRequest
    if scheme not in _SCHEMES or path is None:
        raise BadRequest
    # Section 8.3.1: one authority, said once or twice.
    if authority is None:
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise BadRequest
    if not authority:
        raise BadRequest
    lines[0] = b"host: " + authority
    if not ends and not connects and not any(line.startswith(b"content-length:") for line in lines):
        lines.append(b"transfer-encoding: chunked\r\n")
    if cookies:
        # Section 8.2.3.
        lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
    lines.append(b"\r\n")
    return b"%b %b" % (method, path), b"".join(lines), key


def too_large(fields: list[HeaderField], most: int) -> HeadTooLarge | TargetTooLong:
    """The error for a head that is larger than it may be; `fields` are those that fitted."""
    seen = [field.kind for field in fields]
    return HeadTooLarge() if hpack.PATH in seen else TargetTooLong()


def are_trailers(fields: list[HeaderField]) -> bool:
    """Whether these may follow a body (section 8.1). They end here, as those of HTTP/1 do."""
    return all(field.kind > _PSEUDO and field.kind != hpack.MALFORMED for field in fields)
