"""What visitors' connections of any protocol have in common: a peer, and whether it is trusted."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from fedproxy.http.request import NOBODY, of_peer
from fedproxy.proxy.answers import Answer, AnsweredRequest, common, of_route, turned_away, unread
from fedproxy.proxy.explaining import explained
from fedproxy.proxy.flow import LOCAL, Flow, address_of
from fedproxy.proxy.recording import record_refusal
from fedproxy.proxy.secure import wire_of

if TYPE_CHECKING:
    from fedproxy.errors import VisitorError
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.http.response import Response
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.routing import RoutedRequest

_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time: a close that says RST, not FIN


class Visiting(Flow):
    """A visitor's connection.

    peer: the address that it comes from. origin: of a request that no trusted proxy forwarded. trusted: the
    peer is a trusted proxy. standing: `trusted`, fixed when the connection was made; None if the policy's
    networks decide. introducer: the address of the proxy whose PROXY header named the peer. ordinary:
    requests may take the short path.
    """

    __slots__ = (
        "address_key",
        "context",
        "idle_since",
        "introducer",
        "options",
        "ordinary",
        "origin",
        "peer",
        "standing",
        "thrown_away",
        "trusted",
        "waiting",
        "writable",
        "write",
    )

    def __init__(self, context: Context, options: ListenerOptions) -> None:
        super().__init__()
        self.context = context
        self.options = options
        self.writable = True
        self.waiting = 0  # bytes that the system had not taken at the last look
        self.thrown_away = 0  # bytes that were written after the connection was lost
        self.idle_since = 0.0
        self.peer = b""
        self.origin = NOBODY
        self.ordinary = False
        self.trusted = False
        self.standing: bool | None = None
        self.introducer: bytes | None = None
        self.address_key: bytes | None = None

    @property
    def hsts(self) -> int:
        """Seconds for Strict-Transport-Security; 0 if it is not sent."""
        return self.options.hsts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.wire = cast(asyncio.Transport, transport)
        unix = self.options.unix
        address = LOCAL if unix else address_of(transport)
        if not self.context.admission.enter() or address is None:
            # A TCP peer without an address has reset the connection: there is nobody to answer or to log.
            self.transport.abort()
        else:
            self.begin(self.transport, address, True if unix else None)

    def begin(
        self,
        transport: asyncio.Transport,
        address: bytes,
        standing: bool | None = None,
        introducer: bytes | None = None,
    ) -> None:
        """Serves a connection that `Admission.enter` has counted, unless its address has too many."""
        admission = self.context.admission
        self.idle_since = self.context.clock()
        self.transport = transport
        self.wire = wire_of(transport)
        self.write = transport.write
        self.peer = address
        self.origin = of_peer(address, self.options.secure)
        self.standing = standing
        self.introducer = introducer
        self.trusted = admission.believes(address) if standing is None else standing
        if admission.counts_addresses and not self.trusted:
            self.address_key = admission.enter_address(self.peer)
            if self.address_key is None:
                transport.abort()
        self.weigh()

    def take_over(self, other: Visiting) -> None:
        """Is from now on what `other` was until now."""
        self.idle_since = other.idle_since
        self.transport = other.transport
        self.wire = other.wire
        self.write = other.write
        self.peer = other.peer
        self.origin = other.origin
        self.standing = other.standing
        self.introducer = other.introducer
        self.trusted = other.trusted
        self.address_key = other.address_key

    def weigh(self) -> None:
        """Works out what depends on the policy."""
        self.ordinary = not (self.context.careful or self.options.redirect_to_https or self.trusted)

    def refresh(self) -> None:
        """The policy may have changed, or the edge has begun to drain."""
        admission = self.context.admission
        if self.standing is None:
            self.trusted = admission.believes(self.peer)
        self.weigh()
        self._count_address()
        if self.introducer is not None and not admission.may_introduce(self.introducer):
            # The peer's address came from a proxy that is no longer trusted, and nothing else is known.
            self.leave()

    def leave(self) -> None:
        """Closes the connection after the response under way."""
        raise NotImplementedError

    def _count_address(self) -> None:
        """A reload may change whether this connection counts for its address. It stays open in any case."""
        admission = self.context.admission
        if self.trusted or not admission.counts_addresses:
            if self.address_key is not None:
                admission.leave_address(self.address_key)
                self.address_key = None
        elif self.address_key is None:
            self.address_key = admission.enter_address(self.peer, is_there=True)

    def gone(self) -> None:
        """The connection, or the tunnel that it became, is closed: it counts no longer."""
        admission = self.context.admission
        admission.leave()
        if self.address_key is not None:
            admission.leave_address(self.address_key)

    def lost(self) -> int:
        """Bytes that were written and will not arrive. After an error the transport reports none: as of the
        last look then."""
        return self.thrown_away + (self.unsent() or (0 if self.writable else self.waiting))

    def origin_of(self, block: HeaderBlock) -> Origin:
        """Where a request comes from."""
        if not self.trusted:
            return self.origin
        return self.context.admission.origin(block, self.peer, self.options.secure)

    def check(self, line: RoutedRequest, block: HeaderBlock, origin: Origin) -> RoutedRequest:
        """The same request, or its redirect. Raises `VisitorError`."""
        context = self.context
        to_https = self.options.redirect_to_https and not origin.secure
        if not (context.careful or to_https):
            return line
        return context.admission.check(line, block, origin.client, context.clock(), to_https=to_https)

    def turn_away(
        self, line: RoutedRequest, block: HeaderBlock, origin: Origin, error: VisitorError
    ) -> tuple[AnsweredRequest, Answer]:
        """What a valid request is answered that is not served, in the form that it asks for."""
        self.context.counts.rejected[error.reason] += 1
        request = self.answered(line, block, origin)
        return request, turned_away(self.context, error, request, common(request.request_id, self.hsts))

    def answer_here(
        self, line: RoutedRequest, block: HeaderBlock, origin: Origin
    ) -> tuple[AnsweredRequest, Answer]:
        """What a request is answered that no member is asked for: its route says it."""
        request = self.answered(line, block, origin)
        fields = common(request.request_id, self.hsts)
        if block.explained:
            fields += explained(self.context, line, block, origin)
        return request, of_route(self.context, request, fields)

    def answered(self, line: RoutedRequest, block: HeaderBlock, origin: Origin) -> AnsweredRequest:
        """A request that is answered without an exchange."""
        return AnsweredRequest(line, block, origin, *self.identify(block), self.trusted)

    def refusal(self, error: VisitorError, origin: Origin, protocol: str) -> Response:
        """What a head is answered that is refused: one fixed line. It is counted, and in the log."""
        context = self.context
        request_id = b"%032x" % context.random_bits(128)
        context.counts.rejected[error.reason] += 1
        record_refusal(context, origin, request_id, error, protocol)
        return unread(error.status, error.detail, common(request_id, self.hsts))

    def identify(self, block: HeaderBlock) -> tuple[bytes, bytes]:
        """The request's id (the visitor's, the trace's, or a new one), and its traceparent."""
        given = block.traceparent
        if given is not None:
            return block.request_id or given[3:35], given
        context = self.context
        request_id, traceparent = (context.ids or context.draw_ids()).pop()
        return block.request_id or request_id, traceparent

    def reset(self) -> None:
        """Drops the connection so that what was sent cannot look complete."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
