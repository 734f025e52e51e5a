"""TLS between a connection and its protocol: the loop's own, with what lies below it in view.

The loop's TLS transport tells how much waits to be encrypted. What is encrypted waits in the transport below,
which is hidden, and is dropped silently if the TLS shutdown takes longer than the loop allows. So here the
transport below tells the protocol above when to pause and to resume, as without TLS, and the protocol decides
how long an end may take.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from fedproxy.proxy.flow import Flow

_UNBOUNDED = 1 << 30  # bytes
_FOREVER = 86_400.0  # seconds
_GOODBYE = 5.0  # seconds


class Secure(SSLProtocol):  # type: ignore[misc]
    """Encrypts for `protocol`. `transport` is what that one has, and `wire` the transport below."""

    __slots__ = ("_full", "_told", "wire")

    wire: asyncio.Transport

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        waiter: asyncio.Future[None] | None,
        *,
        handshake: float,
        goodbye: float = _FOREVER,
        server_hostname: str | None = None,
        server_side: bool = True,
        introduce: bool = True,
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            protocol,
            context,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=introduce,
            ssl_handshake_timeout=handshake,
            ssl_shutdown_timeout=goodbye,
        )
        self._full = False
        self._told = False

    @property
    def transport(self) -> asyncio.Transport:
        """Raises RuntimeError when the connection is lost."""
        # Not kept: in a reference cycle it would not be freed when the connection is gone.
        return cast(asyncio.Transport, self._get_app_transport())

    def connection_made(self, transport: Any) -> None:
        self.wire = transport
        self.transport.set_write_buffer_limits(_UNBOUNDED)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full = True
        if not self._told:
            self._told = True
            self._above().pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        # This writes what waited here, which may fill the transport below again.
        super().resume_writing()
        if not self._full and self._told:
            self._told = False
            self._above().resume_writing()

    def eof_received(self) -> None:
        above = self._above()
        super().eof_received()
        # The loop does not report this, and drops what is written from now on.
        above.cut_off()

    def _above(self) -> Flow:
        return cast(Flow, self.transport.get_protocol())


def serve(
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    handshake: float,
    waiter: asyncio.Future[None] | None = None,
    *,
    introduce: bool = True,
) -> Secure:
    """TLS for a visitor, who has `handshake` seconds. introduce: call `protocol.connection_made`."""
    return Secure(protocol, context, waiter, handshake=handshake, introduce=introduce)


async def connect(
    protocol: asyncio.Protocol, context: ssl.SSLContext, host: str, sock: Any, handshake: float
) -> None:
    """Encrypts a connection to a member. Raises `OSError`, of which `ssl.SSLError` is one."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    wire, _ = await loop.create_connection(
        lambda: Secure(
            protocol,
            context,
            waiter,
            handshake=handshake,
            goodbye=_GOODBYE,
            server_hostname=host,
            server_side=False,
        ),
        sock=sock,
    )
    try:
        await waiter
    except BaseException:
        wire.abort()
        raise
    if wire.is_closing():
        raise ConnectionResetError


def wire_of(transport: asyncio.Transport) -> asyncio.Transport:
    """What is next to the system: the transport itself, or the one below its TLS."""
    secure: Secure | None = transport.get_extra_info("uvloop.sslproto")
    return transport if secure is None else secure.wire


def read_rest(transport: asyncio.Transport) -> tuple[bytes, bool]:
    """What the loop left unread of a lost TLS connection, and whether the other side sent `close_notify`."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    parts: list[bytes] = []
    if tls is None:
        return b"", False
    try:
        while part := tls.read(1 << 18):
            parts.append(part)
    except ssl.SSLError:
        return b"".join(parts), False
    return b"".join(parts), True
