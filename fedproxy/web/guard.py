"""Limits of the admin listener: connections, bytes, time.

aiohttp's server waits without limit for a head, and for the reader of an answer. Here both have a time limit,
and the number of connections is bounded. A connection over the limit replaces the one that was idle longest
or, if half of the connections have sent no request, the one of these that has waited longest. So a flood of
silent connections evicts itself, and an operator or a scrape is still served. Requests being answered are
never evicted; if they take all the room, a new connection is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

_HEAD_TIME: Final = 10.0  # seconds, for the whole head
_IDLE_TIME: Final = 75.0  # seconds between two requests
_READING_TIME: Final = 60.0  # seconds to read the rest of a complete answer
_STALLED_TIME: Final = 30.0  # seconds without progress while an answer is still being made
_HEAD_BYTES: Final = 512 * 1024  # including the part of a body that arrives before it is read
_BODY_BYTES: Final = 2 * 1024 * 1024  # aiohttp reads less for one request, but more requests may follow
_LOOK: Final = 1.0  # seconds between two sweeps over all connections
# The loop accepts the whole backlog at once. The backlog is a fraction of the room, so that each connection
# gets a turn to be read before others evict it. The kernel drops the SYNs of the rest, and they try again.
_AT_ONCE: Final = 4
_LEAST_AT_ONCE: Final = 8
_TO_END: Final = 2.0  # seconds for requests to end when the listener closes
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Guarded:
    """An application on a listening socket, which it owns. room: the most connections at once.

    clock: in seconds; default: the loop's.
    """

    def __init__(self, app: web.Application, room: int, clock: Callable[[], float] | None = None) -> None:
        self.room = room
        app.middlewares.insert(0, self._watch)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_TO_END)
        self._connections: dict[asyncio.BaseTransport, _Connection] = {}
        # In each, the connection that has waited longest comes first.
        self._new: dict[_Connection, None] = {}
        self._idle: dict[_Connection, None] = {}
        self._loop = asyncio.get_running_loop()
        self.now = clock or self._loop.time
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, sock: socket.socket) -> None:
        """Starts to accept. Raises OSError."""
        await self._runner.setup()
        unix = sock.family == socket.AF_UNIX
        create = self._loop.create_unix_server if unix else self._loop.create_server
        self._server = await create(
            self._accept, sock=sock, backlog=max(_LEAST_AT_ONCE, self.room // _AT_ONCE)
        )
        self._timer = self._loop.call_later(_LOOK, self._look_again)

    async def close(self) -> None:
        """Stops accepting, and gives requests a short time to end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for idle in (*self._new, *self._idle):
            # aiohttp would wait for a request that might still arrive.
            if not idle.transport.get_write_buffer_size():
                idle.transport.abort()
        await self._runner.cleanup()
        # A client that has not read the end of its answer by now does not get it.
        for left in list(self._connections):
            cast(asyncio.Transport, left).abort()

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("a connection came before the start")
        return _Connection(self, server())

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = self._connections.get(cast(asyncio.BaseTransport, request.transport))
        if connection is None:
            return await handler(request)
        self._new.pop(connection, None)
        self._idle.pop(connection, None)
        connection.begin()
        try:
            return await handler(request)
        finally:
            connection.end(self.now())
            if request.transport is not None:
                self._idle[connection] = None

    # Called by the connections

    def enter(self, connection: _Connection) -> None:
        """A connection was made."""
        self._connections[connection.transport] = connection
        self._new[connection] = None
        if len(self._connections) > self.room:
            # Otherwise idle connections would fill the room, and each new one would be evicted by the next.
            of_idle = bool(self._idle) and len(self._new) < max(2, self.room // 2)
            self._drop(next(iter(self._idle if of_idle else self._new)))

    def leave(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._connections.pop(connection.transport, None)
        self._new.pop(connection, None)
        self._idle.pop(connection, None)

    def _drop(self, connection: _Connection) -> None:
        # It no longer counts from here on; the loop calls `connection_lost` later.
        self.leave(connection)
        connection.transport.abort()

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(_LOOK, self._look_again)
        self.look()

    def look(self) -> None:
        """Drops connections that are over a time limit."""
        now = self.now()
        for connection in list(self._connections.values()):
            if connection.is_late(now):
                self.leave(connection)
                connection.give_up()


class _Connection(asyncio.Protocol):
    """Sits between the transport and aiohttp's protocol, which it passes everything to."""

    transport: asyncio.Transport

    def __init__(self, guard: Guarded, handler: asyncio.Protocol) -> None:
        self._guard = guard
        self._handler = handler
        self._busy = False
        self._asked = False  # for anything, ever
        self._received = 0  # bytes since a request began or ended
        self._head_since: float | None = None
        self._since = guard.now()
        self._unsent = 0
        self._moved = self._since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self.transport = cast(asyncio.Transport, transport)
        self._handler.connection_made(transport)
        self._guard.enter(self)

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        self._received += len(data)
        if self._received > (_BODY_BYTES if self._busy else _HEAD_BYTES):
            self.transport.abort()
            return
        if not self._busy and self._head_since is None:
            self._head_since = self._guard.now()
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        """As asyncio's."""
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        """As asyncio's."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """As asyncio's."""
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._guard.leave(self)
        self._handler.connection_lost(exc)

    def begin(self) -> None:
        """A request was read and is being answered."""
        self._busy = self._asked = True
        self._head_since = None
        self._received = 0
        self._moved = self._guard.now()

    def end(self, now: float) -> None:
        """The answer is made."""
        self._busy = False
        self._since = now
        # Further bytes may be the next request's head, or the rest of an unread body.
        self._head_since = now if self._received else None
        self._received = 0

    def is_late(self, now: float) -> bool:
        """Whether it is over a time limit."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._moved = unsent, now
        if self._busy:
            return now - self._moved > _STALLED_TIME
        if self._head_since is not None or not self._asked:
            return now - (self._head_since or self._since) > _HEAD_TIME
        return now - self._since > (_READING_TIME if unsent else _IDLE_TIME)

    def give_up(self) -> None:
        """Drops the connection; answers 408 if a head did not arrive in time."""
        if self._busy or self._head_since is None or self._unsent:
            self.transport.abort()
        else:
            self.transport.write(_TOO_SLOW)
            self.transport.close()
