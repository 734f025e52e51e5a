"""A visitor's connection while aiohttp's server answers it with one of the edge's own pages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedproxy.proxy.flow import Flow
from fedproxy.wire.path import normal

if TYPE_CHECKING:
    from fedproxy.errors import ExchangeError
    from fedproxy.proxy.answers import AnsweredRequest
    from fedproxy.proxy.visiting import Visiting


ORIGINAL_TARGET = "X-Original-Target"
"""The target as the visitor sent it, for the server of the edge's own pages when its path is normalised."""
# What the edge itself tells the server of its own pages, or does not: no page takes a body.
_SAID_HERE = (
    b"connection:",
    b"x-request-id:",
    b"x-forwarded-",
    b"x-real-ip:",
    b"forwarded:",
    b"content-length:",
    b"transfer-encoding:",
    b"expect:",
    b"upgrade:",
    b"x-original-target:",
)
_GOODBYE = 5.0  # seconds


def page_request(request: AnsweredRequest) -> bytes:
    """The request's head as the server of the edge's own pages is sent it."""
    line = request.line
    path, target = normal(line.path), line.target
    lines = [
        each
        for each in request.block.raw[:-4].split(b"\r\n")
        if each and not each.lower().replace(b"_", b"-").startswith(_SAID_HERE)
    ]
    if path != line.path:
        # Its routes are compared literally, so it gets the normalised path; the log gets the original.
        target = quote(path).encode("ascii") + target[len(line.path) :]
        lines.append(ORIGINAL_TARGET.encode("ascii") + b": " + line.target)
    lines.insert(0, b"%b %b HTTP/1.%d" % (line.method, target, 0 if line.http10 else 1))
    # That server knows no other routes, so the connection ends with its answer.
    lines += [b"Connection: close", request.origin.forward + request.request_id, b"", b""]
    return b"\r\n".join(lines)


class OwnPage(Flow):
    """Lets `handler` answer one request, and keeps the connection within the edge's limits meanwhile.

    The connection ends with the page. The visitor has `timeouts.request_idle` for each part of it.
    """

    waiting = 0

    def __init__(self, downstream: Visiting, handler: asyncio.Protocol) -> None:
        super().__init__()
        self.downstream = downstream
        self.context = downstream.context
        self.transport = downstream.transport
        self.wire = downstream.wire
        self.handler = handler

    def __repr__(self) -> str:
        return f"<OwnPage {self.downstream.peer.decode('latin-1')}>"

    def begin(self, request: bytes) -> None:
        """Takes the connection over, with the request as the page's server is told it."""
        self.since = self.context.clock()
        self.context.connections.add(self)
        self.transport.set_protocol(self)
        self.handler.connection_made(self.transport)
        self.handler.data_received(request)

    def data_received(self, data: bytes) -> None:
        """What follows the request's head is thrown away, as a body is that nobody asked for."""

    def eof_received(self) -> bool | None:
        return self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.context.connections.discard(self)
        self.downstream.gone()
        self.handler.connection_lost(exc)

    def refresh(self) -> None:
        """There is no further request."""

    def close_if_idle(self, since: float) -> None:
        """It is never idle."""

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once."""
        self.transport.abort()

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self.since = min(now, self.since + lost)

    def sweep(self, now: float) -> None:
        """Cuts who sends or reads a page for too long."""
        waiting = self.unsent()
        # The whole page is sent, and only the peer's close is missing.
        over = not waiting and self.transport.is_closing()
        if waiting != self.waiting:
            self.waiting = waiting
            self.since = now
        elif now - self.since > (_GOODBYE if over else self.context.runtime.policy.timeouts.request_idle):
            self.transport.abort()
