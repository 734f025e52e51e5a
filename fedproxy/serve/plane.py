"""One data plane: an edge, its listeners, its own pages. With `workers: 1` it is in the one process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from fedproxy.control.line import Fact, Health, Launched, Launches, Moved, Put, Tripped
from fedproxy.decide.snapshot import Snapshot, Survey, snapshot
from fedproxy.observe.access_log import AccessLog, Output
from fedproxy.proxy.edge import Edge
from fedproxy.proxy.entrance import enter
from fedproxy.serve.assemble import assemble, door_of
from fedproxy.serve.own_pages import page_logger
from fedproxy.serve.sockets import BACKLOG
from fedproxy.serve.tls import Certificates
from fedproxy.web.public import create_public_app

if TYPE_CHECKING:
    from fedproxy.config import Address, Config, Listener
    from fedproxy.proxy.edge import Entry

#: Of a listener, what cannot change while it listens: its address, whether it speaks TLS, PROXY protocol.
Shape = tuple["Address", bool, bool]

_SHUTDOWN = 5.0  # seconds that a visitor may take to answer TLS's goodbye


def shape(listener: Listener) -> Shape:
    """What cannot change while it listens."""
    return listener.address, listener.tls is not None, listener.proxy_protocol


class _Open:
    """A listener that is open. What of it can change, its visitors look up here."""

    def __init__(self, listener: Listener, certificates: Certificates | None) -> None:
        self.shape = shape(listener)
        self.door = door_of(listener)
        self.certificates = certificates
        self.server: asyncio.Server | None = None


class Plane:
    """One worker's data plane.

    `log` takes the lines of the access log; without it they go to standard output. `tell` takes what other
    workers should know.
    """

    def __init__(
        self, log: Callable[[str], None] | None = None, tell: Callable[[Fact], None] | None = None
    ) -> None:
        self._write = log
        self._tell = tell
        self._output: Output | None = None
        self._form: str = "off"
        self._open: list[_Open] = []
        self._tickets: bytes | None = None
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._launches: dict[str, int] = {}
        self._health: dict[str, Health] = {}
        self._drained_by = float("inf")
        self.edge = Edge(local=self._page)
        if tell is not None:
            self.edge.on_launched = lambda client: tell(Launched(client))
            self.edge.on_moved = lambda key, name: tell(Moved(key, name))

    config: Config

    async def start(self, put: Put, sockets: Sequence[socket.socket], health: Sequence[Health] = ()) -> None:
        """Starts to serve on one socket for each listener; they stay the caller's.

        Raises ConfigError; `close` is to be called then as well.
        """
        self._health = {each.name: each for each in health}
        self.put(put)
        app = create_public_app(self)
        self._runner = web.AppRunner(app, handle_signals=False, **self._page_log())
        await self._runner.setup()
        await self.listen(sockets)
        self._sweeper = asyncio.get_running_loop().create_task(self.edge.run())

    # The public pages ask for these

    def members(self) -> list[Snapshot]:
        """The members as this worker sees them."""
        edge = self.edge
        now = edge.clock()
        return [
            snapshot(member, now, idle=len(edge.pools[member.name].idle), busy=edge.pools[member.name].busy)
            for member in edge.federation.members
        ]

    def cookie_member(self, value: str) -> str | None:
        """The name of the member that an affinity cookie's value stands for."""
        member = self.edge.pins.get(value.encode("latin-1", "replace"))
        return member.name if member is not None else None

    def survey(self) -> Survey:
        """The members, and what was counted."""
        return Survey(self.members(), self.edge.counts)

    # What is told

    def put(self, put: Put) -> None:
        """Puts a config in force, all but new listeners. Raises ConfigError, with nothing changed."""
        edge = self.edge
        self._renew_doors(put.config)
        assemble(edge, put.config, put.workers)
        self.config = put.config
        self._log_as(put.config.access_log)
        for name, member in edge.federation.by_name.items():
            member.set_intent(put.intents.get(name, member.intent))
            if name in self._health:
                self.health(self._health[name])
            if self._tell is not None:
                member.on_trip = self._on_trip

    def health(self, health: Health) -> None:
        """The probes' word on a member."""
        self._health[health.name] = health
        member = self.edge.federation.by_name.get(health.name)
        if member is not None:
            member.set_health(health.healthy, self.edge.clock(), health.reasons)

    def hear(self, fact: Fact) -> None:
        """What another worker told."""
        edge = self.edge
        now = edge.clock()
        if isinstance(fact, Tripped):
            member = edge.federation.by_name.get(fact.name)
            if member is not None:
                edge.federation.trip(member, now)
        elif isinstance(fact, Moved):
            edge.note_moved(fact.key, fact.name, now)
        elif isinstance(fact, Launched):
            edge.note_launched(fact.client, now)
        else:
            for member in edge.federation.members:
                member.launches_elsewhere = fact.running.get(member.name, 0)

    def _on_trip(self, name: str) -> None:
        if self._tell is not None:
            self._tell(Tripped(name))

    def tell_launches(self) -> None:
        """Tells how many launches are in flight, if that has changed since the last time."""
        running = {member.name: member.launches for member in self.edge.federation.members if member.launches}
        if running != self._launches and self._tell is not None:
            self._launches = running
            self._tell(Launches(running))

    # Listeners

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accepts on one socket for each listener of the config; goes on where it does already."""
        before, self._open = self._open, []
        for at, (listener, sock) in enumerate(zip(self.config.listen, sockets, strict=True)):
            kept = next((each for each in before if each.shape == shape(listener)), None)
            if kept is not None:
                before.remove(kept)
                self._open.append(kept)
            else:
                await self._accept(at, listener, sock)
        for gone in before:
            if gone.server is not None:
                gone.server.close()

    async def _accept(self, at: int, listener: Listener, sock: socket.socket) -> None:
        certificates = None
        if listener.tls is not None:
            certificates = Certificates(listener.tls, f"listen.{at}.tls")
            if self._tickets is not None:
                certificates.set_ticket_key(self._tickets)
        opened = _Open(listener, certificates)
        self._open.append(opened)
        tls: dict[str, Any] = {}
        if certificates is not None and not listener.proxy_protocol:
            limit = max(1.0, self.config.timeouts.request_head)
            tls = {
                "ssl": certificates.context,
                "ssl_handshake_timeout": limit,
                "ssl_shutdown_timeout": _SHUTDOWN,
            }
        # With PROXY protocol the handshake begins once the header is read, and not by the loop's server.
        context = certificates.context if certificates is not None else None

        def factory() -> asyncio.Protocol:
            return enter(self.edge, opened.door, context)

        loop = asyncio.get_running_loop()
        # A copy: closing the server closes what it was given.
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        opened.server = await create(factory, sock=sock.dup(), backlog=BACKLOG, **tls)

    def _renew_doors(self, config: Config) -> None:
        by_shape = {each.shape: each for each in self._open}
        for at, listener in enumerate(config.listen):
            opened = by_shape.get(shape(listener))
            if opened is not None and opened.certificates is not None and listener.tls is not None:
                opened.certificates.replace(listener.tls, f"listen.{at}.tls")
            if opened is not None:
                opened.door = door_of(listener)

    def renew(self) -> None:
        """Reads the certificates again. What cannot be used is said by those who looked first."""
        for each in self._open:
            if each.certificates is not None:
                each.certificates.refresh()

    def set_tickets(self, secret: bytes) -> None:
        """The secret that the keys of TLS session tickets are made from."""
        self._tickets = secret
        for each in self._open:
            if each.certificates is not None:
                each.certificates.set_ticket_key(secret)

    # The access log

    def _log_as(self, form: Literal["json", "combined", "off"]) -> None:
        if form == self._form:
            return
        self._form = form
        loop = asyncio.get_running_loop()
        self.edge.log = AccessLog(self._writer(), form, loop.call_soon) if form != "off" else None

    def _writer(self) -> Callable[[str], None]:
        write = self._write
        if write is None:
            if self._output is None:
                loop = asyncio.get_running_loop()
                self._output = Output(later=partial(loop.call_later, 0.1))
            return self._output

        def write_lines(text: str) -> None:
            for line in text.splitlines():
                write(line)

        return write_lines

    def _record(self, entry: Entry) -> None:
        if self.edge.log is not None:
            self.edge.log(entry)

    def _page_log(self) -> dict[str, Any]:
        return {
            "access_log_class": page_logger(self._record),
            "access_log": logging.getLogger("fedproxy.pages"),
        }

    def _page(self) -> asyncio.Protocol:
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("a request came before the start")
        return self._runner.server()

    # The end

    async def drain(self, seconds: float) -> None:
        """Stops accepting, and gives what is under way so many seconds to end."""
        # Who connected before this moment is served: what waits in the queues is accepted first.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._stop_accepting()
        edge = self.edge
        edge.draining = True
        self.hurry(seconds)
        while (edge.connections or edge.tunnels) and edge.clock() < self._drained_by:
            edge.close_idle()
            await asyncio.sleep(0.05)

    def hurry(self, seconds: float) -> None:
        """What is under way has so many seconds left, or what it had before if that is less."""
        self._drained_by = min(self._drained_by, self.edge.clock() + seconds)

    def _stop_accepting(self) -> None:
        for each in self._open:
            if each.server is not None:
                each.server.close()

    async def close(self) -> None:
        """Cuts what is left."""
        self._stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        await self.edge.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for each in self._open:
            if each.server is not None:
                await each.server.wait_closed()
        self._open.clear()
        if self._output is not None:
            self._output.close()
            self._output = None
