"""The edge's own pages: a member within this process, which aiohttp serves.

A request for one of them is an exchange like any other, so it is kept alive, limited and logged as all are,
whatever protocol it came by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fedproxy.proxy.h1.upstream import Upstream
from fedproxy.proxy.pipe import connect
from fedproxy.proxy.policy import Endpoint
from fedproxy.proxy.pools import Pool
from fedproxy.wire.path import normal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fedproxy.proxy.context import Context
    from fedproxy.proxy.ports import Receiver

# Fields that the edge sets itself, or leaves out because no page takes a body.
_SAID_HERE: Final = (
    b"connection:",
    b"x-request-id:",
    b"x-forwarded-",
    b"x-real-ip:",
    b"forwarded:",
    b"content-length:",
    b"transfer-encoding:",
    b"expect:",
    b"upgrade:",
)


class LocalStream(Upstream):
    """One request to the server of the edge's own pages."""

    __slots__ = ()

    def send(self, receiver: Receiver[Any], body: list[bytes] | None) -> None:
        """Sends the request's head. A body is thrown away: no page takes one."""
        self.receiver = receiver
        # For what it awaits; the request itself is another one.
        self.machine.ask(receiver, b"", None)
        self.write(page_request(receiver))
        if receiver.full:
            self.pause()

    def send_body(self, data: bytes, done: bool) -> None:
        """Throws it away."""


class LocalPool(Pool[LocalStream]):
    """The way to the server of the edge's own pages. serve: makes what serves one connection."""

    def __init__(self, context: Context, serve: Callable[[], asyncio.Protocol]) -> None:
        super().__init__(context, context.own, Endpoint("", 0, b"", path="own pages"), LocalStream)
        self.serve = serve

    def take(self) -> LocalStream | None:
        stream = LocalStream(self)
        connect(stream, self.serve())
        return stream


def page_request(request: Receiver[Any]) -> bytes:
    """The request's head as the server of the edge's own pages is sent it."""
    line = request.line
    path, target = normal(line.path), line.target
    if path != line.path:
        # Its routes are compared literally, so it gets the normalised path; the log has the original.
        target = quote(path).encode("ascii") + target[len(line.path) :]
    fields = [
        each
        for each in request.block.raw[:-4].split(b"\r\n")
        if each and not each.lower().replace(b"_", b"-").startswith(_SAID_HERE)
    ]
    lines = [b"%b %b HTTP/1.1" % (line.method, target), *fields, b"Connection: close"]
    if request.block.host is None:
        # An HTTP/1.0 visitor need not send one (RFC 9112 section 3.2).
        lines.append(b"Host:")
    return b"\r\n".join((*lines, request.origin.forward + request.request_id, b"", b""))
