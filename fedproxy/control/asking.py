"""Asks a member with GET, over connections that are kept for a while.

Only a new connection can fail a member. What comes of a kept one counts if it is a 200 in good time. Anything
else says as much about the connection as about the member: the peer may have closed it meanwhile, a firewall
forgotten it, a balancer behind it moved on. Then it is closed, and a new one is asked at once, with the whole
time limit. If the name has several addresses, a new one is to the first that takes it: what visitors do, too.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

from fedproxy import __version__
from fedproxy.control.fetch import FAULTS, Fetched, TooLarge, fetch, open_session
from fedproxy.errors import EdgeFailed, NameFailed, own_fault
from fedproxy.proxy.dialing import PATIENCE, Dial, race
from fedproxy.proxy.flow import look_at
from fedproxy.proxy.resolver import Resolver, plain
from fedproxy.tasks import Tasks, cancel

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

_LONGEST_WORDS: Final = 200
_MOST_REDIRECTS: Final = 3
# The share of the time limit that a kept connection gets. Members that take longer are asked on new ones.
_PART: Final = 0.25
_HEADERS: Final = {
    "User-Agent": f"fedproxy/{__version__}",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}
# X509_V_ERR_..., in OpenSSL's x509_vfy.h
_CERTIFICATE_FAULTS: Final = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate is signed by an unknown authority",
    20: "the certificate is signed by an unknown authority",
    21: "the certificate is signed by an unknown authority",
    62: "the certificate is for another name",
    64: "the certificate is for another address",
}


@dataclass(frozen=True)
class Failure:
    """No valid response: why, as a label and as a sentence. connected: whether there was a connection."""

    reason: str
    detail: str
    connected: bool = False


class OwnFault(Exception):
    """This process lacks something that a request needs."""


class _NotConnected(Exception):
    """An address takes no connection."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Asker:
    """Asks one member, one request after the other. Create it in a running loop, and close it.

    path: of the Unix socket that all requests go to, if the member has one. clock: seconds, for the age of
    connections. relied: in this round a response came on a connection of an earlier one.
    """

    def __init__(self, names: Resolver, path: str | None, clock: Callable[[], float]) -> None:
        self._names = names
        self._clock = clock
        self._several = path is None
        self._tries = Tasks()
        self._open: dict[asyncio.Transport, _Opened] = {}
        # No limit, so that requests to members that hang do not delay others; no time limit of its own,
        # because `_is_fit` decides.
        if path is not None:
            connector: aiohttp.BaseConnector = _UnixConnector(
                self._opened, path=path, limit=0, keepalive_timeout=None
            )
        else:
            # Names are resolved as for visitors, so that the verdict is about the same addresses.
            connector = _TCPConnector(
                self._opened,
                limit=0,
                keepalive_timeout=None,
                resolver=_EdgeNames(names),
                use_dns_cache=False,
            )
        self._session = open_session(_HEADERS, connector, middlewares=(_sent_once,))
        self.relied = False
        self._began = clock()

    def __repr__(self) -> str:
        return f"<Asker {len(self._open)} open>"

    def begin_round(self) -> None:
        """What is asked from now on belongs to another round."""
        self.relied = False
        self._began = self._clock()

    async def ask(
        self, address: str, *, timeout: float, tls: ssl.SSLContext | None = None, age: float = 0.0
    ) -> Fetched | Failure:
        """The whole response to a GET, or why there is none. Raises `OwnFault`.

        address: a URL. timeout: seconds for a new connection and the response; a quarter of it more if a kept
        connection hangs. tls: for https; None trusts the system's authorities. age: seconds that a connection
        is kept; 0 keeps none, and uses none.
        """
        try:
            url = URL(address, encoded=True)
        except ValueError as error:
            return Failure(*_described(error))
        part = timeout * _PART
        if await self._has_fit(url, tls, age):
            found = await self._try(url, tls, part)
            if isinstance(found, Fetched) and found.status == 200:
                self.relied = self.relied or any(each.since < self._began for each in self._open.values())
                return found
            self.drop()
        found = await self._try_new(url, tls, timeout)
        if isinstance(found, Failure) or found.status != 200 or found.seconds >= part or not age:
            self.drop()
        return found

    async def page(
        self, address: str, *, timeout: float, tls: ssl.SSLContext | None = None
    ) -> Fetched | None:
        """What is at `address` for people, after redirects; None if nothing is. Keeps no connection."""
        _PROGRESS.set(_Progress())
        try:
            with suppress(*FAULTS, EdgeFailed):
                return await fetch(
                    self._session,
                    URL(address, encoded=True),
                    timeout=timeout,
                    redirects=_MOST_REDIRECTS,
                    headers={"Accept": "text/html"},
                    tls=tls,
                )
        finally:
            self.drop()
        return None

    def drop(self) -> None:
        """Closes all connections at once: over TLS the client would wait for the peer's close_notify."""
        while self._open:
            transport, _ = self._open.popitem()
            transport.abort()

    async def close(self) -> None:
        """Ends everything. May be called again."""
        await cancel(self._tries)
        self.drop()
        await self._session.close()

    async def _has_fit(self, url: URL, tls: ssl.SSLContext | None, age: float) -> bool:
        """Whether an open connection can be used for `url`. Closes those that can not be used any more."""
        fit = False
        for transport, opened in list(self._open.items()):
            if not await self._is_fit(transport, opened, tls, age):
                self._open.pop(transport, None)
                transport.abort()
            elif opened.origin == _origin(url):
                fit = True
        return fit

    async def _is_fit(
        self, transport: asyncio.Transport, opened: _Opened, tls: ssl.SSLContext | None, age: float
    ) -> bool:
        if opened.tls is not tls or self._clock() >= opened.since + age:
            return False
        if opened.address:
            _, host, port = opened.origin
            try:
                found = await self._names.resolve(host, port)
            except (NameFailed, EdgeFailed):
                return False
            if opened.address not in [info[4][0] for info in found]:
                return False
        # What has arrived since the last answer is an end, or bytes that would be taken for the next answer.
        return not (transport.is_closing() or opened.spoiled() or opened.look(0))

    async def _try_new(self, url: URL, tls: ssl.SSLContext | None, timeout: float) -> Fetched | Failure:
        """One GET on a new connection. Of several addresses, that is to the one that has it first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        addresses: list[str] = []
        if self._several and _is_name(url.raw_host or ""):
            try:
                async with asyncio.timeout_at(deadline):
                    _, host, port = _origin(url)
                    addresses = [info[4][0] for info in await self._names.resolve(host, port)]
            except TimeoutError:
                return Failure("dns", f"{_Phase.NAME.value} within {timeout:g} s")
            except (NameFailed, EdgeFailed):
                # The resolver says it again to the client, whose error tells what it means.
                pass
        if len(addresses) < 2:
            return await self._try(url, tls, timeout, left=deadline - loop.time())
        own: list[Exception] = []

        def failed(_: Dial[str], error: Exception) -> None:
            if isinstance(error, OwnFault):
                own.append(error)

        async def begin(dial: Dial[str]) -> asyncio.Task[Fetched | Failure]:
            """The request, once it has a connection."""
            progress = _Progress(tls, dial.key)
            task = self._tries.start(
                self._try(url, tls, timeout, left=deadline - loop.time(), progress=progress)
            )
            task.add_done_callback(lambda _: progress.settled.set())
            try:
                await progress.settled.wait()
            except asyncio.CancelledError:
                task.cancel()
                raise
            if task.done() and isinstance(found := task.result(), Failure) and not found.connected:
                dial.heard = found.reason == "tls"
                raise _NotConnected(found)
            return task

        # All begin in the first half, so that the last one can answer in the other.
        pause = min(PATIENCE, timeout / 2 / len(addresses))
        try:
            task = await race(addresses, begin, deadline, failed=failed, spare=_cancel, pause=pause)
        except TimeoutError:
            return Failure("timeout", f"{_Phase.CONNECT.value} within {timeout:g} s")
        except _NotConnected as error:
            if own:
                raise OwnFault from own[0]
            return error.failure
        return await task

    async def _try(
        self,
        url: URL,
        tls: ssl.SSLContext | None,
        timeout: float,
        *,
        left: float | None = None,
        progress: _Progress | None = None,
    ) -> Fetched | Failure:
        """One GET and its whole body, or the failure. left: seconds of the timeout, if it has begun."""
        if progress is None:
            progress = _Progress(tls)
        _PROGRESS.set(progress)
        try:
            return await fetch(self._session, url, timeout=timeout if left is None else left, tls=tls)
        except TimeoutError:
            reason = "dns" if progress.phase is _Phase.NAME else "timeout"
            detail, limit = progress.phase.value, f" within {timeout:g} s"
        except EdgeFailed as error:
            raise OwnFault from error
        except FAULTS as error:
            if _is_own_fault(error, progress.phase):
                raise OwnFault from error
            (reason, detail), limit = _described(error), ""
        if progress.phase is _Phase.ANSWER:
            return Failure(reason, f"{detail} to {url.raw_path}{limit}", connected=True)
        return Failure(reason, f"{detail}{limit}")

    def _opened(self, url: URL, connection: Connection) -> None:
        """A request has a connection, whether it is a new one or not."""
        progress = _PROGRESS.get()
        progress.phase = _Phase.ANSWER
        progress.settled.set()
        transport, protocol = connection.transport, connection.protocol
        # One that is lost already has no transport.
        if transport is not None and protocol is not None and transport not in self._open:
            self._open[transport] = _Opened(url, progress.tls, self._clock(), transport, protocol)


class _Phase(Enum):
    """How far a request got; the value describes a timeout in this phase."""

    CONNECT = "no connection"
    NAME = "the name did not resolve"
    ANSWER = "no complete response"


class _Progress:
    """How far one request got. address: the one that it goes to; None for any that the name has. settled:
    there is a connection, or there will be none."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: str | None = None) -> None:
        self.phase = _Phase.CONNECT
        self.tls = tls
        self.address = address
        self.settled = asyncio.Event()


# Of the request that this task makes: the client tells its connector and its resolver nothing of it.
_PROGRESS: Final[ContextVar[_Progress]] = ContextVar("progress")


class _Opened:
    """What is known of an open connection. address: of the peer, if it was found by a name."""

    def __init__(
        self,
        url: URL,
        tls: ssl.SSLContext | None,
        since: float,
        transport: asyncio.Transport,
        protocol: ResponseHandler,
    ) -> None:
        self.origin = _origin(url)
        self.tls = tls
        self.since = since
        self.look = look_at(transport)
        self._protocol = protocol
        peer = transport.get_extra_info("peername")
        self.address = plain(peer[0]) if isinstance(peer, tuple) and _is_name(self.origin[1]) else ""

    def spoiled(self) -> bool:
        """Whether the client has read more than the answers, or would not use it again for another reason."""
        return self._protocol.should_close


def _cancel(task: asyncio.Task[Fetched | Failure]) -> None:
    task.cancel()


def _origin(url: URL) -> tuple[str, str, int]:
    return url.scheme, url.raw_host or "", url.port or 0


def _is_name(host: str) -> bool:
    try:
        plain(host)
    except ValueError:
        return True
    return False


class _EdgeNames(AbstractResolver):
    """Lets the client use the edge's resolver."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a name. Raises OSError, or `EdgeFailed` if nothing can be resolved here."""
        progress = _PROGRESS.get()
        progress.phase = _Phase.NAME
        try:
            found = await self._resolver.resolve(host, port)
        except NameFailed as error:
            raise OSError(None, str(error)) from error
        progress.phase = _Phase.CONNECT
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=own,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for own, _, proto, _, address in found
            if family in (socket.AF_UNSPEC, own) and progress.address in (None, address[0])
        ]

    async def close(self) -> None:
        """The resolver is closed by its owner."""


_Told = Callable[[URL, Connection], None]


class _Telling(aiohttp.BaseConnector):
    """Also tells which connection a request gets."""

    def __init__(self, told: _Told, **settings: Any) -> None:
        super().__init__(**settings)
        self._told = told

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Called by the session, in the task of the request."""
        connection = await super().connect(req, traces, timeout)
        self._told(req.url, connection)
        return connection


class _TCPConnector(_Telling, aiohttp.TCPConnector):
    """To a host and a port."""


class _UnixConnector(_Telling, aiohttp.UnixConnector):
    """To a Unix socket."""


class _BrokenOff(aiohttp.ClientError):
    """A connection that was established and lost: an error after which the client sends no second GET."""


def _is_own_fault(error: Exception, phase: _Phase) -> bool:
    """Whether there was no connection because this process lacked something."""
    if isinstance(error, OSError) and own_fault(error) is not None:
        return True
    if phase is not _Phase.NAME:
        return False
    try:
        # The resolver reports a socket that it could not open as a server that does not answer.
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as refused:
        return own_fault(refused) is not None
    return False


def _described(error: Exception) -> tuple[str, str]:
    """A failed request as a label and as a sentence."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "dns", "the name does not resolve"
        case aiohttp.ClientConnectorCertificateError(
            certificate_error=ssl.SSLCertVerificationError() as fault
        ):
            return "tls", _CERTIFICATE_FAULTS.get(
                fault.verify_code, f"the certificate is not valid: {_words(fault.verify_message)}"
            )
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError(reason=reason)):
            return "tls", f"the TLS handshake failed: {_words(reason)}"
        case aiohttp.ClientConnectorError(os_error=fault):
            return "connect", f"no connection: {_words(os.strerror(fault.errno) if fault.errno else fault)}"
        case TooLarge():
            return "nonsense", str(error)
        case _BrokenOff() | OSError() | aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return "reset", "broke off its response"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return "nonsense", "sent no valid HTTP"
        case _:
            return "connect", f"the address cannot be asked: {_words(error)}"


def _words(what: object) -> str:
    """Another program's text, shortened to one line."""
    return "".join(filter(str.isprintable, str(what)))[:_LONGEST_WORDS]


async def _sent_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenOff from error
