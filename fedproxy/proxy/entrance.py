"""Where a connection comes in, and what it has to say before it is known what speaks on it.

    PROXY header ──► handshake ──► `negotiated`, by ALPN ────────► `Downstream` or `H2Downstream`
         └──────────────┴────────► `Sniffed`, by its first bytes ──────┘

Each step only where the listener has it. For the loop every listener is a plain one: TLS is begun here,
behind the PROXY header if there is one.
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
        return cast(asyncio.BaseProtocol, Shaking(context, options, waiter).encrypt(tls))
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


class Shaking:
    """A connection until its handshake is over: a `Handshake` for its transport, a `Connection` for the edge.

    It has `timeouts.request_head` from the beginning of the connection. waiter: done when it is over. behind:
    what read a PROXY header before, and counted the connection.
    """

    __slots__ = (
        "_address_key",
        "_behind",
        "_waiter",
        "address",
        "context",
        "introducer",
        "options",
        "secure",
        "since",
        "standing",
        "transport",
    )

    secure: TLSTransport
    transport: asyncio.Transport  # next to the system

    def __init__(
        self,
        context: Context,
        options: ListenerOptions,
        waiter: asyncio.Future[None] | None = None,
        *,
        behind: Entrance | None = None,
    ) -> None:
        self.context = context
        self.options = options
        self.since = context.clock() if behind is None else behind.since
        self.address = LOCAL if behind is None else behind.address
        self.standing = None if behind is None else behind.standing
        self.introducer = None if behind is None else behind.peer
        self._behind = behind is not None
        self._waiter = waiter
        self._address_key: bytes | None = None

    def encrypt(self, tls: ssl.SSLContext) -> TLSTransport:
        """What encrypts the connection, and tells this how it goes."""
        self.secure = TLSTransport(tls, self)
        return self.secure

    def begins(self, wire: asyncio.Transport) -> bool:
        """Counts the connection. False if it is one too many."""
        self.transport = wire
        self.context.connections.add(self)
        admission = self.context.admission
        if not (self._behind or (admission.enter() and self._find_address())):
            return False
        trusted = admission.believes(self.address) if self.standing is None else self.standing
        if trusted or not admission.counts_addresses:
            return True
        self._address_key = admission.enter_address(self.address)
        return self._address_key is not None

    def _find_address(self) -> bool:
        if self.options.unix:
            self.standing = True
            return True
        address = address_of(self.transport)
        self.address = address or LOCAL
        # A TCP peer that has no address has reset the connection.
        return address is not None

    def ready(self, transport: TLSTransport) -> None:
        """The visitor is served from now on, by the protocol that was agreed on."""
        self._leave()
        context, options = self.context, self.options
        visiting = negotiated(context, options, transport)
        context.connections.add(visiting)
        transport.set_protocol(visiting)
        # It is counted for its address again in the same turn.
        visiting.begin(transport, self.address, self.standing, self.introducer)

    def failed(self, _: Exception | None) -> None:
        """The visitor has left, or cannot be understood."""
        self._leave()
        self.context.admission.leave()

    def _leave(self) -> None:
        self.context.connections.discard(self)
        key, self._address_key = self._address_key, None
        if key is not None:
            self.context.admission.leave_address(key)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def refresh(self) -> None:
        """Closes the connection of a proxy that may no longer send a PROXY header."""
        if self.introducer is not None and not self.context.admission.may_introduce(self.introducer):
            _refuse(self.context, self.introducer)
            self.transport.abort()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that has not said anything yet."""
        if not self.secure.heard and self.since <= since:
            self.transport.abort()

    def cut(self, error: ExchangeError) -> None:
        """Drops the connection at once."""
        self.transport.abort()

    def grant(self, lost: float, now: float) -> None:
        """Puts the deadline off by the `lost` seconds in which the process did not run."""
        self.since = min(now, self.since + lost)

    def sweep(self, now: float) -> None:
        """Drops who takes too long."""
        if now - self.since > self.context.runtime.policy.timeouts.request_head:
            self.transport.abort()


def _refuse(context: Context, peer: bytes | None) -> None:
    """Counts a connection without a PROXY header, or from a peer that may not send one. Reports the first."""
    rejected = context.counts.rejected
    if not rejected[BadProxyHeader.reason]:
        message = (
            f"a connection from {(peer or LOCAL).decode('latin-1')} does not begin with a PROXY protocol "
            "header, or may not send one; it is closed, and so are others, which are only counted"
        )
        context.report(Event(EventName.PROXY_HEADER, message, key=""))
    rejected[BadProxyHeader.reason] += 1


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


class Entrance(Flow):
    """A connection until its PROXY header is read. That, and the handshake that may follow, have
    `timeouts.request_head` together."""

    held = b""
    peer: bytes | None = None  # of a unix socket, none
    address = LOCAL  # the visitor's, as far as it is known
    standing: bool | None = None
    over = False  # the header is read, or the connection is gone

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
        if self.over:
            return
        try:
            header = proxy_protocol.read(self.held)
        except BadProxyHeader:
            self._refuse()
            return
        if header is None:
            return
        self.over = True
        self.context.connections.discard(self)
        data = self.held[header.size :]
        if header.client is not None:
            self.address = header.client
        elif header.own:
            self.standing = True if self.options.unix else None
        else:
            # A visitor whom the proxy did not name. Their own headers must not count as the proxy's.
            self.standing = False
        protocol = self._become_downstream() if self.tls is None else self._become_secure(self.tls)
        # What followed the header.
        if data and not self.transport.is_closing():
            protocol.data_received(data)

    def _become_secure(self, tls: ssl.SSLContext) -> asyncio.Protocol:
        secure = Shaking(self.context, self.options, behind=self).encrypt(tls)
        protocol = cast(asyncio.Protocol, secure)
        self.transport.set_protocol(protocol)
        secure.connection_made(self.transport)
        return protocol

    def _become_downstream(self) -> asyncio.Protocol:
        context, options = self.context, self.options
        visiting = Downstream(context, options)
        context.connections.add(visiting)
        protocol: asyncio.Protocol = Sniffed(visiting) if options.http2 else visiting
        self.transport.set_protocol(protocol)
        visiting.begin(self.transport, self.address, self.standing, self.peer)
        return protocol

    def eof_received(self) -> None:
        if self.held:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            self.over = True
            self.context.connections.discard(self)
            self.context.admission.leave()

    def _refuse(self) -> None:
        _refuse(self.context, self.peer)
        self.transport.abort()

    def refresh(self) -> None:
        """Closes the connection of a proxy that may not, or no longer, send a PROXY header."""
        if self.peer is not None and not self.context.admission.may_introduce(self.peer):
            self._refuse()

    def close_if_idle(self, since: float) -> None:
        """Closes a connection that has not said anything yet."""
        if not self.held and self.since <= since:
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
            self._refuse()
