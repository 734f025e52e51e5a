"""A listener with certificates in this loop, and visitors who shake hands with it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import trustme

from fedproxy.config.model import Certificate, TlsSettings
from fedproxy.serve.tls import Certificates
from tests.rig import guard

END = datetime(2090, 1, 2, 3, 4, 5, tzinfo=UTC)


def pair(folder: Path, issued: trustme.LeafCert) -> Certificate:
    """Writes a certificate and its key into a folder, in place of what was there."""
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
    return Certificate(certificate=folder / "tls.crt", private_key=folder / "tls.key")


def section(first: Certificate, *more: Certificate, min_version: str = "1.2") -> TlsSettings:
    return TlsSettings(
        certificate=first.certificate,
        private_key=first.private_key,
        certificates=more,
        min_version=min_version,  # type: ignore[arg-type]
    )


def trusting(authority: trustme.CA, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A visitor's context, which speaks that version only."""
    context = ssl.create_default_context()
    context.check_hostname = False
    authority.configure_trust(context)
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
    return context


class Echo(asyncio.Protocol):
    def __init__(self, open_ones: set[asyncio.Transport]) -> None:
        self._open = open_ones

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._open.add(self.transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@asynccontextmanager
async def listening(certificates: Certificates) -> AsyncIterator[int]:
    """Serves with the certificates' context while the block runs, and yields the port."""
    open_ones: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Echo(open_ones), "127.0.0.1", 0, ssl=certificates.context, ssl_handshake_timeout=5
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for transport in open_ones:
            transport.abort()
        server.close()
        await server.wait_closed()


@dataclass(frozen=True)
class Visit:
    """What a visitor saw. `names`: of the certificate that was shown."""

    names: list[str]
    version: str | None
    cipher: str
    protocol: str | None
    resumed: bool
    session: ssl.SSLSession


class Visitor:
    """A connection that stays up until it is closed. Blocks: its methods run in a thread."""

    def __init__(
        self, port: int, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            self._sock = context.wrap_socket(plain, server_hostname=name, session=session)
        except BaseException:
            plain.close()
            raise

    def say(self, data: bytes) -> bytes:
        self._sock.sendall(data)
        return self._sock.recv(len(data))

    def close(self) -> None:
        self._sock.close()

    def visit(self) -> Visit:
        # In TLS 1.3 the ticket comes after the handshake, with what is read next.
        assert self.say(b"hello") == b"hello"
        sock = self._sock
        shown, cipher, session = sock.getpeercert(), sock.cipher(), sock.session
        assert shown and cipher and session
        names = [str(name) for _, name in cast("tuple[tuple[str, str], ...]", shown["subjectAltName"])]
        reused = bool(sock.session_reused)
        return Visit(names, sock.version(), cipher[0], sock.selected_alpn_protocol(), reused, session)


async def visit(
    port: int, context: ssl.SSLContext, name: str | None = None, session: ssl.SSLSession | None = None
) -> Visit:
    """One handshake and a few bytes there and back."""

    def go() -> Visit:
        visitor = Visitor(port, context, name, session)
        try:
            return visitor.visit()
        finally:
            visitor.close()

    async with guard():
        return await asyncio.to_thread(go)
