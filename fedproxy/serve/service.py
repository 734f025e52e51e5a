"""The running edge: one data plane, its listeners, the admin listener, and how they start and stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from fedproxy.config import masked
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot, Survey, snapshot
from fedproxy.errors import ConfigError, Fault
from fedproxy.observe.access_log import AccessLog, Output
from fedproxy.proxy.downstream import Downstream
from fedproxy.proxy.edge import Edge
from fedproxy.serve.assemble import assemble
from fedproxy.serve.own_pages import page_logger
from fedproxy.web.admin import create_admin_app
from fedproxy.web.public import create_public_app

if TYPE_CHECKING:
    from fedproxy.config import Config, Listener
    from fedproxy.decide.federation import Federation

_BACKLOG = 2048


class Service:
    """The edge for one config, in this process and this loop.

    `log` takes each line of the access log; without it they go to standard output. `reread` reads the config
    again for a reload, and raises ConfigError.
    """

    def __init__(
        self,
        config: Config,
        log: Callable[[str], None] | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self.config = config
        self._log = log
        self._reread = reread
        self._servers: list[asyncio.Server] = []
        self._runners: list[web.AppRunner] = []
        self._sweeper: asyncio.Task[None] | None = None
        self.addresses: list[tuple[str, int]] = []
        self.admin_address: tuple[str, int] = ("", 0)
        self.reloads = {"success": 0, "failure": 0}
        self.reloaded_at: float | None = None
        self.listening = False

    @property
    def federation(self) -> Federation:
        """The members with their state."""
        return self.edge.federation

    async def start(self) -> None:
        """Starts to serve. Raises OSError for an address it cannot listen on; nothing is left open then."""
        loop = asyncio.get_running_loop()
        form = self.config.access_log
        log = AccessLog(self._writer(), form, loop.call_soon) if form != "off" else None
        self.edge = Edge(log=log)
        assemble(self.edge, self.config)
        self.reloaded_at = time.time()
        try:
            local = web.AppRunner(create_public_app(self), handle_signals=False, **_page_log(log))
            await local.setup()
            self._runners.append(local)
            self.edge.local = local.server
            for listener in self.config.listen:
                await self._listen(listener)
            await self._listen_admin()
        except BaseException:
            await self.stop()
            raise
        self._sweeper = loop.create_task(self.edge.run())
        self.listening = True

    def _writer(self) -> Callable[[str], None]:
        log = self._log
        if log is None:
            loop = asyncio.get_running_loop()
            return Output(later=partial(loop.call_later, 0.1))

        def write(text: str) -> None:
            for line in text.splitlines():
                log(line)

        return write

    async def _listen(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        tls = _tls(listener) if listener.tls is not None else None
        factory = partial(Downstream, self.edge, secure=tls is not None)
        address = listener.address
        if address.path:
            try:
                server: Any = await loop.create_unix_server(factory, address.path, backlog=_BACKLOG, ssl=tls)
            except OSError as error:
                raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
        else:
            server = await loop.create_server(
                factory,
                sock=_socket(address.host, address.port),
                backlog=_BACKLOG,
                ssl=tls,
            )
            self.addresses.append(server.sockets[0].getsockname()[:2])
        self._servers.append(server)

    async def _listen_admin(self) -> None:
        address = self.config.admin.address
        runner = web.AppRunner(create_admin_app(self), access_log=None, handle_signals=False)
        await runner.setup()
        self._runners.append(runner)
        if address.path:
            await web.UnixSite(runner, address.path).start()
        else:
            sock = _socket(address.host, address.port)
            self.admin_address = sock.getsockname()[:2]
            await web.SockSite(runner, sock).start()

    async def stop(self, drain: float = 0.0) -> None:
        """Stops accepting, gives what is under way `drain` seconds to end, cuts what is left."""
        self.listening = False
        for server in self._servers:
            server.close()
        if drain > 0:
            await self._drain(drain)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        await self.edge.close()
        for runner in self._runners:
            await runner.cleanup()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        self._runners.clear()

    async def _drain(self, seconds: float) -> None:
        edge = self.edge
        edge.draining = True
        deadline = edge.clock() + seconds
        while (edge.connections or edge.tunnels) and edge.clock() < deadline:
            edge.close_idle()
            await asyncio.sleep(0.05)

    # What the web rooms ask for

    def members(self) -> list[Snapshot]:
        """The members as they are now."""
        now = self.edge.clock()
        return [
            snapshot(
                member,
                now,
                idle=len(self.edge.pools[member.name].idle),
                busy=self.edge.pools[member.name].busy,
            )
            for member in self.federation.members
        ]

    async def survey(self) -> Survey:
        """The members and what the edge counted."""
        return Survey(self.members(), self.edge.counts)

    def certificates(self) -> dict[str, float]:
        """When each certificate expires, in seconds since the epoch, by its name."""
        return {}

    async def reload(self) -> list[Fault]:
        """Reads the config again and puts it in force, or changes nothing and says what is wrong with it.

        Members, weights, routes, time-outs and limits are taken over in place; connections stay.
        """
        if self._reread is None:
            return self._not_reloaded(
                [Fault("", "was not read from a file, so there is nothing to read again")]
            )
        try:
            config = self._reread()
        except ConfigError as error:
            return self._not_reloaded(error.faults)
        fixed = ("listen", "admin", "access_log", "workers")
        changed = [key for key in fixed if getattr(config, key) != getattr(self.config, key)]
        if changed:
            return self._not_reloaded([Fault(key, "has changed, which takes a restart") for key in changed])
        try:
            assemble(self.edge, config)
        except ConfigError as error:
            return self._not_reloaded(error.faults)
        self.config = config
        self.reloads["success"] += 1
        self.reloaded_at = time.time()
        return []

    def _not_reloaded(self, faults: list[Fault]) -> list[Fault]:
        self.reloads["failure"] += 1
        return faults

    def cookie_member(self, value: str) -> str | None:
        """The name of the member that an affinity cookie's value stands for."""
        member = self.edge.pins.get(value.encode("latin-1", "replace"))
        return member.name if member is not None else None

    def config_masked(self) -> dict[str, Any]:
        """The config in force, without its secrets."""
        return masked(self.config)

    async def change(self, name: str, intent: Intent | None, weight: float | None) -> None:
        """The operator's word on a member. Raises KeyError for a name that is no member's."""
        member = self.federation.by_name[name]
        if intent is not None:
            member.set_intent(intent)
        if weight is not None:
            member.weight = weight


def _page_log(log: AccessLog | None) -> dict[str, Any]:
    if log is None:
        return {"access_log": None}
    return {"access_log_class": page_logger(log), "access_log": logging.getLogger("fedproxy.pages")}


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        shown = f"[{host}]" if ":" in host else host
        raise OSError(error.errno, f"cannot listen on {shown}:{port}: {error.strerror}") from error
    return sock


def _tls(listener: Listener) -> ssl.SSLContext:
    assert listener.tls is not None  # noqa: S101 -- asked for by those who checked
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if listener.tls.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    try:
        context.load_cert_chain(listener.tls.certificate, listener.tls.private_key)
    except ssl.SSLError as error:
        message = (
            f"{listener.tls.certificate} and {listener.tls.private_key} do not go together "
            f"({error.reason or 'not PEM'}), expected a PEM chain and its key"
        )
        raise ConfigError([Fault("listen.tls", message)]) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
