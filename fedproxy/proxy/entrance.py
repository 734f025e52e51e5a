"""Where a connection comes in, and what it has to say before it is known what speaks on it.

    PROXY header ──► handshake ──► `Negotiated`, by ALPN ────────► `Downstream` or `H2Downstream`
         └──────────────┴────────► `Sniffed`, by its first bytes ──────┘

Each step only where the listener has it. A PROXY header stands before the TLS handshake, so such a listener
is a plain one for the loop, and the TLS is begun here.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from fedproxy.errors import BadProxyHeader
from fedproxy.event import Event, EventName
from fedproxy.proxy.flow import LOCAL, Flow, address_of
from fedproxy.proxy.h1.downstream import Downstream
from fedproxy.proxy.h2.connection import H2Downstream
from fedproxy.proxy.secure import TLSTransport
from fedproxy.wire import proxy_protocol
from fedproxy.wire.h2.frame import PREFACE

if TYPE_CHECKING:
    from fedproxy.errors import ExchangeError
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.policy import ListenerOptions


def enter(
    context: Context,
    options: ListenerOptions,
    tls: ssl.SSLContext | None = None,
    waiter: asyncio.Future[None] | None = None,
) -> asyncio.BaseProtocol:
    """The protocol of a connection that a listener accepted, which speaks TLS if `tls` is given.

    `waiter` is done after the handshake, if there is one to wait for.
    """
    if options.proxy_protocol:
        return Entrance(context, options, tls)
    if tls is not None:
        secure = TLSTransport(tls, Negotiated(context, options, waiter), _time_for_handshake(context))
        return cast(asyncio.BaseProtocol, secure)
    downstream = Downstream(context, options)
    return Sniffed(downstream) if options.http2 else downstream


def negotiated(
    context: Context, options: ListenerOptions, transport: asyncio.BaseTransport
) -> Downstream | H2Downstream:
    """What serves an encrypted connection, by what its handshake has agreed on (RFC 7301)."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is not None and tls.selected_alpn_protocol() == "h2":
        return H2Downstream(context, options)
    return Downstream(context, options)


class Negotiated:
    """An encrypted connection until its handshake is over. It is counted from the beginning."""

    def __init__(
        self, context: Context, options: ListenerOptions, waiter: asyncio.Future[None] | None = None
    ) -> None:
        self.context = context
        self.options = options
        self.waiter = waiter
        self.counted = False
        self.address_key: bytes | None = None

    def begins(self, wire: asyncio.Transport) -> bool:
        self.counted = True
        admission = self.context.admission
        if not admission.enter():
            return False
        address = None if self.options.unix else address_of(wire)
        if address is None or not admission.counts_addresses or admission.believes(address):
            return True
        self.address_key = admission.enter_address(address)
        return self.address_key is not None

    def ready(self, transport: TLSTransport) -> None:
        self._leave()
        visiting = negotiated(self.context, self.options, transport)
        transport.set_protocol(visiting)
        visiting.connection_made(transport)

    def failed(self, _: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        if self.counted:
            self.counted = False
            self.context.admission.leave()
            key, self.address_key = self.address_key, None
            if key is not None:
                # `ready` counts it again in the same turn.
                self.context.admission.leave_address(key)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Sniffed(Flow):
    """A plain connection until its first bytes say which protocol it speaks (RFC 9113 section 3.3).

    Until then it is that of `downstream`, which speaks HTTP/1.1.
    """

    __slots__ = ("_begun", "_downstream")

    def __init__(self, downstream: Downstream) -> None:
        super().__init__()
        self._downstream = downstream
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._downstream.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        downstream = self._downstream
        begun = self._begun = self._begun + data
        size = len(PREFACE)
        if begun[:size] == PREFACE[: len(begun)]:
            if len(begun) < size:
                downstream.awaits_head()
                return
            visiting = H2Downstream(downstream.context, downstream.options)
            visiting.succeed(downstream)
            visiting.data_received(begun)
            return
        downstream.transport.set_protocol(downstream)
        downstream.data_received(begun)

    def eof_received(self) -> None:
        self._downstream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._downstream.connection_lost(exc)

    def pause_writing(self) -> None:
        self._downstream.pause_writing()

    def resume_writing(self) -> None:
        self._downstream.resume_writing()


class _Introduced:
    """The handshake behind a PROXY header."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    def begins(self, _wire: asyncio.Transport) -> bool:
        return True

    def ready(self, transport: TLSTransport) -> None:
        self._entrance.become_downstream(transport)

    def failed(self, error: Exception | None) -> None:
        self._entrance.leave()


def _time_for_handshake(context: Context) -> float:
    return max(1.0, context.runtime.policy.timeouts.request_head)


class Entrance(Flow):
    """A connection until it is known whose it is, and, with `tls`, until it is encrypted.

    All of that has `timeouts.request_head`.
    """

    held = b""
    peer: bytes | None = None  # of a unix socket, none
    address = LOCAL  # the visitor's, as far as it is known
    standing: bool | None = None
    arrived = False  # the header is read
    over = False
    address_key: bytes | None = None  # while it is encrypted

    def __init__(self, context: Context, options: ListenerOptions, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self.context = context
        self.options = options
        self.tls = tls

    def __repr__(self) -> str:
        return f"<Entrance {self.address.decode('latin-1')}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self.context
        self.transport = self.wire = cast(asyncio.Transport, transport)
        self.since = context.clock()
        unix = self.options.unix
        self.peer = None if unix else address_of(transport)
        self.address = self.peer or LOCAL
        context.connections.add(self)
        if not context.admission.enter() or not (unix or self.peer):
            # A TCP peer that has no address has reset the connection.
            self.transport.abort()
        else:
            self.refresh()

    def data_received(self, data: bytes) -> None:
        self.held += data
        if self.arrived or self.over:
            return
        try:
            header = proxy_protocol.read(self.held)
        except BadProxyHeader:
            self._refuse()
            return
        if header is None:
            return
        self.arrived = True
        self.held = self.held[header.size :]
        if header.client is not None:
            self.address = header.client
        elif header.own:
            self.standing = True if self.options.unix else None
        else:
            # A visitor whom the proxy did not name. Their own headers must not count as the proxy's.
            self.standing = False
        if self.tls is None:
            self.become_downstream(self.transport)
        else:
            self._encrypt(self.tls)

    def _encrypt(self, tls: ssl.SSLContext) -> None:
        admission = self.context.admission
        trusted = admission.believes(self.address) if self.standing is None else self.standing
        if admission.counts_addresses and not trusted:
            self.address_key = admission.enter_address(self.address)
            if self.address_key is None:
                self.transport.abort()
                return
        secure = TLSTransport(tls, _Introduced(self), _time_for_handshake(self.context))
        self.wire.set_protocol(cast(asyncio.Protocol, secure))
        # What followed the header belongs to the handshake.
        data, self.held = self.held, b""
        secure.connection_made(self.wire)
        if data:
            secure.data_received(data)

    def become_downstream(self, transport: asyncio.Transport) -> None:
        """What follows is HTTP, and no longer this protocol's."""
        self.over = True
        self._leave_address()
        context, options = self.context, self.options
        context.connections.discard(self)
        if self.tls is not None:
            visiting = negotiated(context, options, transport)
        else:
            visiting = Downstream(context, options)
        context.connections.add(visiting)
        protocol: asyncio.Protocol = visiting
        if self.tls is None and options.http2 and isinstance(visiting, Downstream):
            protocol = Sniffed(visiting)
        transport.set_protocol(protocol)
        visiting.begin(transport, self.address, self.standing, self.peer)
        if self.held and not transport.is_closing():
            protocol.data_received(self.held)

    def eof_received(self) -> None:
        if self.held and not self.arrived:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def _refuse(self) -> None:
        rejected = self.context.counts.rejected
        if not rejected[BadProxyHeader.reason]:
            peer = (self.peer or LOCAL).decode("latin-1")
            message = (
                f"a connection from {peer} does not begin with a PROXY protocol header, or may not send one; "
                "it is closed, and so are others, which are only counted"
            )
            self.context.report(Event(EventName.PROXY_HEADER, message, key=""))
        rejected[BadProxyHeader.reason] += 1
        self.transport.abort()

    def leave(self) -> None:
        """The connection is gone, and counts no longer."""
        if not self.over:
            self.over = True
            self.context.connections.discard(self)
            self.context.admission.leave()
            self._leave_address()

    def _leave_address(self) -> None:
        key, self.address_key = self.address_key, None
        if key is not None:
            self.context.admission.leave_address(key)

    def refresh(self) -> None:
        """Closes the connection of a proxy that may not, or no longer, send a PROXY header."""
        if self.peer is not None and not self.over and not self.context.admission.may_introduce(self.peer):
            self._refuse()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that has not said anything yet."""
        if not self.held and not self.arrived and self.since <= since:
            self.transport.abort()

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once."""
        self.transport.abort()

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        self.since = min(now, self.since + lost)

    def sweep(self, now: float) -> None:
        """Drops who takes too long."""
        if now - self.since > self.context.runtime.policy.timeouts.request_head:
            if self.arrived:
                self.transport.abort()
            else:
                self._refuse()
