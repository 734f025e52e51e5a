"""A connection to a member that speaks HTTP/1.1: it moves bytes, and `wire.h1.client` knows their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from fedproxy.errors import BadResponse, BodyLost, MemberError, ResponseLost, StaleConnection
from fedproxy.proxy.flow import look_at
from fedproxy.proxy.pools import PooledConnection
from fedproxy.proxy.secure import wire_of
from fedproxy.wire.h1.body import BodyError
from fedproxy.wire.h1.client import Client, ClientEvent

if TYPE_CHECKING:
    from fedproxy.proxy.pools import Pool
    from fedproxy.proxy.ports import Receiver

_WHOLE: Final = ClientEvent.WHOLE
_RESPONSE: Final = ClientEvent.RESPONSE
_BODY: Final = ClientEvent.BODY
_BEHIND: Final = ClientEvent.BEHIND
_NOTHING: Final = ClientEvent.NOTHING
_INTERIM: Final = ClientEvent.INTERIM


class Upstream(PooledConnection):
    """One connection, and the stream of the one request that it serves at a time."""

    __slots__ = ("ended", "machine", "receiver", "spent", "writable", "write")

    def __init__(self, pool: Pool[Any]) -> None:
        super().__init__(pool)
        self.machine = Client()
        self.receiver: Receiver[Any] | None = None
        self.writable = True
        self.ended = False  # the member has closed its side properly
        self.spent = False  # not to be used again, whatever comes of this request

    def __repr__(self) -> str:
        reused = " reused" if self.reused else ""
        return f"<Upstream {self.pool.member.name} {self.machine.state.value}{reused}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.wire = wire_of(self.transport)
        self.write = self.transport.write
        self.look = look_at(self.transport)
        self.pool.connections.add(self)

    # The request

    def send(self, receiver: Receiver[Any], body: list[bytes] | None) -> None:
        """Sends the request's head, with what there is of its body; None if it has none."""
        self.receiver = receiver
        upgrade = receiver.block.upgrade
        if upgrade is not None:
            upgrade = receiver.upgrade()
            # Whatever the member answers, its connection is not used again.
            self.spent = upgrade is not None
        host_line = self.pool.host_line or self.pool.host_line_of(receiver)
        head = self.machine.ask(receiver, host_line, upgrade)
        if body is None:
            write = self.write
            write(head)
        else:
            # Together, or a head alone would be a packet and a call of its own.
            make_chunks = receiver.block.chunked and receiver.gives_payload()
            parts = self.machine.begin_body(body, receiver.body_done, make_chunks)
            self.transport.writelines([head, *parts])
        if receiver.full:
            self.pause()

    def send_body(self, data: bytes, done: bool) -> None:
        """Sends (a part of) the body; with `done` nothing follows."""
        self.write(self.machine.body(data, done))

    # The answer

    def data_received(self, data: bytes) -> None:
        receiver, machine = self.receiver, self.machine
        if receiver is None:
            # Nobody asked. Bytes beyond a response never become a second one.
            self.abort()
            return
        try:
            event = machine.receive(data)
        except (BadResponse, BodyError) as error:
            self._fail(receiver, error)
            return
        # The machine keeps its `data`, which may be 256 KiB: an idle connection must not.
        if event is _WHOLE:
            receiver.on_head(machine.head, machine.data, True)
            machine.data = b""
        elif event is _BODY:
            if machine.trailers:
                self._tell_trailers(receiver)
            receiver.on_body(machine.data, machine.done)
            machine.data = b""
        else:
            self._tell(receiver, event)

    def _read_on(self, receiver: Receiver[Any]) -> None:
        """Tells the rest of what was read, if the same request is still served."""
        if self.receiver is receiver and self.machine.held:
            self._feed(receiver)

    def _tell(self, receiver: Receiver[Any], event: ClientEvent) -> None:
        machine = self.machine
        data, machine.data = machine.data, b""
        if event is _BODY:
            if machine.trailers:
                self._tell_trailers(receiver)
            receiver.on_body(data, machine.done)
        elif event is _BEHIND:
            if data:
                receiver.on_body(data, False)
            if self.receiver is receiver:
                # The rest in another turn of the loop, so that others are served in between.
                self.pause()
                asyncio.get_running_loop().call_soon(self._catch_up, receiver)
        elif event is _INTERIM:
            receiver.on_interim(machine.head)
            self._read_on(receiver)
        elif event is _RESPONSE or event is _WHOLE:
            receiver.on_head(machine.head, data, event is _WHOLE)
            self._read_on(receiver)
        elif event is not _NOTHING:
            receiver.on_upgrade(machine.head, data)

    def _tell_trailers(self, receiver: Receiver[Any]) -> None:
        machine = self.machine
        trailers, machine.trailers = machine.trailers, b""
        receiver.on_trailers(trailers)

    def _catch_up(self, receiver: Receiver[Any]) -> None:
        machine = self.machine
        if self.receiver is not receiver or receiver.full:
            return
        if machine.behind:
            self._feed(receiver)
        if not machine.behind and not receiver.full:
            self.resume()

    def _feed(self, receiver: Receiver[Any]) -> None:
        try:
            event = self.machine.more()
        except (BadResponse, BodyError) as error:
            self._fail(receiver, error)
        else:
            self._tell(receiver, event)

    def tap(self, callback: Callable[[bytes], object]) -> bool:
        """Calls `callback` with each piece of the response's payload before that piece goes on."""
        return self.machine.tap(callback)

    def resume(self) -> None:
        """Reads on, once everything that was read is passed on."""
        receiver = self.receiver
        if receiver is not None and self.machine.behind:
            asyncio.get_running_loop().call_soon(self._catch_up, receiver)
        else:
            super().resume()

    def _fail(self, receiver: Receiver[Any], error: BadResponse | BodyError) -> None:
        self.abort()
        receiver.on_failure(error if isinstance(error, MemberError) else BodyLost())

    # The end

    def eof_received(self) -> None:
        # Returning nothing closes the transport; connection_lost says what that means. Over TLS only a
        # close_notify gets here (RFC 8446 section 6.1): without one, anybody on the way may have ended it.
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        # The rest may complete the response, but this connection must not go back to the pool.
        self.spent = True
        machine = self.machine
        while self.receiver is not None and machine.behind:
            self._feed(self.receiver)
        receiver, self.receiver = self.receiver, None
        if receiver is None:
            return
        # With a close_notify all has come, whatever becomes of the connection (RFC 8446 section 6.1).
        if machine.ended(clean=self.ended and (exc is None or self.wire is not self.transport)):
            receiver.on_body(b"", True)
        elif machine.waiting:
            self.pool.died(self)
            receiver.on_failure(StaleConnection() if self.reused and machine.silent else ResponseLost())
        else:
            receiver.on_failure(BodyLost())

    def release(self, now: float) -> None:
        """The exchange is over: back to the pool, unless that has enough, or closed."""
        self.receiver = None
        pool = self.pool
        if self.spent or not self.machine.keep:
            self.transport.close()
        elif self.reading and now < self.ends_at and len(pool.idle) < pool.room:
            # The short form of `rest`, which is enough for nearly all.
            self.reused = True
            self.idle_since = now
            pool.idle.append(self)
        else:
            self.resume()
            self.rest(now)

    def abort(self) -> None:
        """Drops the connection at once, with whatever is under way on it."""
        self.receiver = None
        self.transport.abort()

    def detach(self) -> asyncio.Transport:
        """Gives up the connection, which becomes a tunnel."""
        self.receiver = None
        return self.transport

    def gone(self) -> None:
        """The tunnel is closed."""
        self.pool.forget(self)

    def pause_writing(self) -> None:
        self.writable = False
        if self.receiver is not None:
            self.receiver.on_upstream_full()

    def resume_writing(self) -> None:
        self.writable = True
        if self.receiver is not None:
            self.receiver.on_upstream_drained()
