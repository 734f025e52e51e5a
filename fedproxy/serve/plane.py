"""One data plane: an edge, its listeners, its own pages. With `workers: 1` it is in the one process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, assert_never

from aiohttp import web

from fedproxy.control.messages import (
    ApplyConfig,
    BreakerInDoubt,
    BreakerOpened,
    BuildBegun,
    Fact,
    Happened,
    LaunchesInFlight,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    LaunchSlotWanted,
    Logo,
    MemberHealth,
    MemberServes,
    SessionsKnown,
)
from fedproxy.decide.sessions import Ground, KnownSession, SessionRecord
from fedproxy.decide.snapshot import Snapshot, Survey, snapshot
from fedproxy.errors import VisitorError
from fedproxy.proxy.edge import Edge
from fedproxy.proxy.entrance import enter
from fedproxy.proxy.explaining import Question, answer
from fedproxy.serve import descriptors
from fedproxy.serve.admin import ask_admin
from fedproxy.serve.assemble import assemble, options_of, router_of
from fedproxy.serve.log import Log
from fedproxy.serve.sockets import BACKLOG
from fedproxy.serve.tls import Certificates
from fedproxy.serve.traces import Traces
from fedproxy.tasks import Tasks, cancel
from fedproxy.web.public import create_public_app

if TYPE_CHECKING:
    from fedproxy.config.address import Address
    from fedproxy.config.model import Config, ListenerSettings

#: Of a listener, what cannot change while it listens: its address, whether it speaks TLS, PROXY protocol.
Shape = tuple["Address", bool, bool]

_TURN = 0.05  # seconds between two looks at what is left
_LAST = 0.5  # seconds for TCP handshakes that were under way when the listener was silenced
SETTLED = 1.0  # seconds until sockets that were given up are closed, even on a busy machine
_GRACE = 1.0  # seconds in which a request may come on a connection that is to be closed
_TELL_LEARNED = 0.1  # seconds until others are told of sessions that no launch announced ...
_LEARNED = 100  # ... and so many of them at most
_TO_ANSWER = 10.0  # seconds that the control process may take for the metrics
_HEAD = 1 << 24  # bytes
# Bytes that the system may take for a visitor beyond what is on its way: with less a fast reader waits, and
# without a limit each slow one costs megabytes that no process shows.
_UNSENT = 256 * 1024


def shape(listener: ListenerSettings) -> Shape:
    """What cannot change while it listens."""
    return listener.address, listener.tls is not None, listener.proxy_protocol


class _Open:
    """A listener that is open. What of it can change, its visitors look up here."""

    def __init__(self, listener: ListenerSettings, certificates: Certificates | None) -> None:
        self.shape = shape(listener)
        self.door = options_of(listener)
        self.certificates = certificates
        self.servers: list[asyncio.Server] = []
        self.sockets: list[socket.socket] = []
        # Sockets of workers that cannot accept at the moment, by a key of the lender's.
        self.borrowed: dict[int, tuple[asyncio.Server, socket.socket]] = {}

    def give_back(self, key: int) -> None:
        """The owner accepts there again."""
        if key in self.borrowed:
            server, sock = self.borrowed.pop(key)
            server.close()
            sock.close()

    def stop(self) -> list[socket.socket]:
        """Stops accepting. Returns the sockets, still open, as visitors may wait there unaccepted."""
        for server in (*self.servers, *(server for server, _ in self.borrowed.values())):
            server.close()
        sockets = [*self.sockets, *(sock for _, sock in self.borrowed.values())]
        self.sockets.clear()
        self.borrowed.clear()
        return sockets


class Plane:
    """One worker's data plane.

    `log` takes the lines of the access log; without it they go to standard output. `tell` takes what other
    workers should know.
    """

    def __init__(
        self, log: Callable[[str], None] | None = None, tell: Callable[[Fact], None] | None = None
    ) -> None:
        self._log = Log(log)
        self._tell = tell
        self._open: list[_Open] = []
        self._tickets: bytes | None = None
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._telling = False
        self._elsewhere: Mapping[str, int] = {}
        self._health: dict[str, MemberHealth] = {}
        self._slots: Mapping[str, int] | None = None
        self._short: set[str] = set()
        self._logos: dict[str, Logo] = {}
        self._drained_by = float("inf")
        self._base_paths: frozenset[str] = frozenset()
        self._learned: list[SessionRecord] = []
        self._teller: asyncio.TimerHandle | None = None
        self._entering = Tasks()
        self._retiring: dict[_Open, asyncio.TimerHandle] = {}
        self.edge = Edge(local=self._page)
        self._traces = Traces(self.edge)
        self.edge.admission.room = descriptors.room()
        if tell is not None:
            self.edge.admission.on_launched = lambda client: tell(LaunchRequested(client))
            self.edge.on_moved = lambda key, name: tell(LaunchMoved(key, name))
            self.edge.on_build = lambda image, name: tell(BuildBegun(image, name))
            self.edge.on_seen = lambda seen: tell(LaunchSeen(seen))
            self.edge.on_event = lambda event: tell(Happened(event))
            self.edge.sessions.on_change = self._on_session

    config: Config

    async def start(
        self,
        update: ApplyConfig,
        sockets: Sequence[Sequence[socket.socket]],
        health: Sequence[MemberHealth] = (),
    ) -> None:
        """Starts to serve on the sockets of each listener; they stay the caller's.

        Raises ConfigError; `close` is to be called then as well.
        """
        self._health = {each.name: each for each in health}
        self.apply(update)
        app = create_public_app(self)
        # The edge has bounded the head already; a page is not to refuse what a member would have taken.
        self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, max_line_size=_HEAD, max_field_size=_HEAD
        )
        await self._runner.setup()
        await self.listen(sockets)
        self._sweeper = asyncio.get_running_loop().create_task(self.edge.run())

    # The public pages ask for these

    def members(self) -> list[Snapshot]:
        """The members as this worker sees them, and what the probes said of them."""
        return [
            replace(
                member,
                pods=health.pods,
                quota=health.quota,
                checks=health.checks,
                answered=health.within is not None,
                within=health.within,
            )
            if (health := self._health.get(member.name)) is not None
            else member
            for member in self._members()
        ]

    def _members(self) -> list[Snapshot]:
        edge = self.edge
        now = edge.clock()
        return [
            snapshot(member, now, idle=pool.waiting, busy=pool.busy, addresses=pool.addresses())
            for member in edge.federation.members
            for pool in (edge.pools[member.name],)
        ]

    def logos(self) -> Mapping[str, Logo]:
        """The images that the page can show, by the URL in the config."""
        return self._logos

    async def metrics(self, accept: str) -> tuple[str, bytes]:
        """As `PublicState` says: the control process adds up what the workers count, and is asked for it."""
        found = await ask_admin(self.config.admin, "/metrics", _TO_ANSWER, {"Accept": accept or "*/*"})
        if found.status != 200:
            raise OSError(f"answered {found.status}")
        return found.headers["Content-Type"], found.body

    def cookie_member(self, value: str) -> str | None:
        """The name of the member that an affinity cookie's value stands for."""
        pin = self.edge.runtime.pins.find(value.encode("latin-1", "replace"))
        return pin.member.name if pin is not None else None

    def cookie_for(self, name: str, secure: bool) -> str | None:
        """The value of the Set-Cookie field that keeps a visitor with a member; None for no member's name."""
        member = self.edge.federation.by_name.get(name)
        cookie = self.edge.runtime.pins.set_cookie(member, secure) if member is not None else None
        return cookie.decode("ascii") if cookie is not None else None

    def survey(self) -> Survey:
        """The members, and what was counted."""
        self.edge.counts.lines_dropped["access"] = self._log.dropped
        return Survey(self._members(), self.edge.counts, lag=self.edge.lost())

    def explain(self, question: Question) -> str | None:
        """Why a request would go where it goes, as JSON; None for one that no visitor could make."""
        try:
            return json.dumps(answer(self.edge, question))
        except VisitorError:
            return None

    # What is told

    def apply(self, update: ApplyConfig) -> None:
        """Puts a config in force, all but new listeners. Raises ConfigError, with nothing changed."""
        edge = self.edge
        before = {member.name: member.url for member in edge.federation.members}
        with self._log.prepare(update.config) as log:
            self._renew_options(update.config)
            self._base_paths = self._said_base_paths(update.config.active_members)
            assemble(edge, update.config, update.workers, self._base_paths, update.pages)
        edge.log = log()
        self._traces.put(update.config.tracing)
        self.config = update.config
        # Who leaves and comes back begins anew, and so does another one of the same name.
        for name, url in before.items():
            member = edge.federation.by_name.get(name)
            if member is None or member.url != url:
                edge.waits.knowledge.forget(name)
        self._health = {name: word for name, word in self._health.items() if name in edge.federation.by_name}
        wanted = update.config.logos
        self._logos = {url: logo for url, logo in self._logos.items() if url in wanted}
        if self._slots is not None:
            self.set_slots(self._slots)
        for name, member in edge.federation.by_name.items():
            member.set_intent(update.intents.get(name, member.intent))
            if name in self._health:
                self.health(self._health[name])
            member.launches_elsewhere = self._elsewhere.get(name, 0)
            if self._tell is not None:
                member.on_short = self._on_short
                member.on_trip = self._on_trip
                member.breaker.on_doubt = (
                    partial(self._tell, BreakerInDoubt(name)) if update.workers > 1 else None
                )
                member.on_launches = self._on_launches

    def set_slots(self, limits: Mapping[str, int]) -> None:
        """So many launches may run through this edge, by member; others of its fleet may run the rest."""
        self._slots = limits
        for member in self.edge.federation.members:
            member.launch_slots = limits.get(member.name)

    def set_logo(self, logo: Logo) -> None:
        """An image for the visitors' page. It may come late, when nobody wants it any more."""
        if logo.url in self.config.logos:
            self._logos[logo.url] = logo

    def health(self, health: MemberHealth) -> None:
        """The probes' verdict on a member."""
        self._health[health.name] = health
        member = self.edge.federation.by_name.get(health.name)
        if member is not None:
            member.set_health(health.healthy, self.edge.clock(), health.reasons)
            # While listeners move, the config is ahead of the members.
            settings = self.config.members.get(health.name)
            if health.weight is not None and settings is not None and settings.weight == "auto":
                member.weight = health.weight
            pods, quota = health.pods.get("total"), health.quota
            reserve = settings.reserve if settings is not None else 0
            member.room = None if pods is None or quota is None else max(0, quota - pods - reserve)
            base_paths = self._said_base_paths(self.config.active_members)
            if base_paths != self._base_paths:
                self._base_paths = base_paths
                self.edge.reroute(router_of(self.config, base_paths))

    def _said_base_paths(self, members: Container[str]) -> frozenset[str]:
        """Where members say that their BinderHubs are."""
        said = [health.base_path for health in self._health.values() if health.name in members]
        return frozenset(path for path in said if path is not None)

    def hear(self, fact: Fact) -> None:
        """What another worker told."""
        edge = self.edge
        now = edge.clock()
        match fact:
            case BreakerOpened(name, witnesses):
                member = edge.federation.by_name.get(name)
                if member is not None:
                    edge.federation.trip(member, now, witnesses)
            case BreakerInDoubt(name):
                member = edge.federation.by_name.get(name)
                clients = member.breaker.served(now) if member is not None else None
                if clients and self._tell is not None:
                    self._tell(MemberServes(name, clients))
            case MemberServes(name, clients):
                member = edge.federation.by_name.get(name)
                if member is not None:
                    member.breaker.serve_elsewhere(clients, now)
            case LaunchMoved(key, name):
                edge.moved.note(key, name, now)
            case LaunchRequested(client):
                edge.admission.note_launched(client, now)
            case LaunchesInFlight(running):
                for member in edge.federation.members:
                    member.launches_elsewhere = running.get(member.name, 0)
                self._elsewhere = running
            case BuildBegun(image, name):
                edge.waits.begun(image, name, now)
            case LaunchSeen(seen):
                edge.waits.learn(seen, now)
            case SessionsKnown(records):
                for each in records:
                    edge.sessions.take(each[0], KnownSession.from_record(each), edge.wall())
            case LaunchSlotWanted() | Happened():
                pass  # for the control process
            case _:
                assert_never(fact)

    def taught(self, content: bytes) -> None:
        """What launches have taught before, and others; it takes the place of all that this plane learned."""
        self.edge.waits.knowledge.load(content)

    def _on_trip(self, name: str) -> None:
        member = self.edge.federation.by_name.get(name)
        if self._tell is not None and member is not None:
            self._tell(BreakerOpened(name, member.breaker.opened_by))

    def _on_session(self, key: bytes, known: KnownSession) -> None:
        if self._tell is None:
            return
        if known.ground is Ground.ANNOUNCED:
            self._tell(SessionsKnown((known.record(key),)))
        elif len(self._learned) < _LEARNED:
            # Anybody can make up names that a member answers for: of these only some are told at a time.
            self._learned.append(known.record(key))
            if self._teller is None:
                self._teller = asyncio.get_running_loop().call_later(_TELL_LEARNED, self._tell_learned)

    def _tell_learned(self) -> None:
        learned, self._learned, self._teller = self._learned, [], None
        if self._tell is not None:
            self._tell(SessionsKnown(tuple(learned)))

    def _on_short(self, name: str) -> None:
        if not self._short:
            asyncio.get_running_loop().call_soon(self._tell_short)
        self._short.add(name)

    def _tell_short(self) -> None:
        short, self._short = self._short, set()
        for name in sorted(short):
            if self._tell is not None:
                self._tell(LaunchSlotWanted(name))

    def _on_launches(self) -> None:
        if not self._telling:
            self._telling = True
            # At once: what others do not know of, they may give a member too much of.
            asyncio.get_running_loop().call_soon(self._tell_launches)

    def _tell_launches(self) -> None:
        self._telling = False
        if self._tell is not None:
            members = self.edge.federation.members
            self._tell(
                LaunchesInFlight({member.name: member.launches for member in members if member.launches})
            )

    # Listeners

    async def listen(self, sockets: Sequence[Sequence[socket.socket]]) -> None:
        """Accepts on the sockets of each listener of the config; goes on where it does already.

        Raises ConfigError and OSError, and then accepts where it did before.
        """
        before, now = list(self._open), list[_Open]()
        new: list[_Open] = []
        try:
            for at, (listener, own) in enumerate(zip(self.config.listen, sockets, strict=True)):
                kept = next((each for each in before if each.shape == shape(listener)), None)
                if kept is not None:
                    before.remove(kept)
                    now.append(kept)
                else:
                    opened = self._prepare(at, listener)
                    new.append(opened)
                    now.append(opened)
                    for sock in own:
                        await self._accept(opened, listener, sock)
        except BaseException:
            for opened in new:
                _close(opened.stop())
            raise
        self._open = now
        loop = asyncio.get_running_loop()
        for gone in before:
            # The owner of its sockets silences them.
            self._retiring[gone] = loop.call_later(_LAST, self._retire, gone)

    def _retire(self, gone: _Open) -> None:
        del self._retiring[gone]
        self._accept_last(gone)

    def _prepare(self, at: int, listener: ListenerSettings) -> _Open:
        certificates = None
        if listener.tls is not None:
            certificates = Certificates(listener.tls, f"listen.{at}.tls", http2=listener.speaks_http2)
            if self._tickets is not None:
                certificates.set_ticket_key(self._tickets)
        return _Open(listener, certificates)

    async def _accept(self, opened: _Open, listener: ListenerSettings, sock: socket.socket) -> None:
        opened.servers.append(await self._serve_on(opened, listener, sock))
        opened.sockets.append(sock.dup())

    async def borrow(self, key: int, at: int, sock: socket.socket) -> None:
        """Also accepts on a socket whose owner cannot, until it is given back.

        at: the listener's number. The socket belongs to the plane from now on.
        """
        opened = self._open[at]
        try:
            server = await self._serve_on(opened, self.config.listen[at], sock)
        except OSError:
            # Out of file descriptors.
            sock.close()
            return
        opened.give_back(key)
        opened.borrowed[key] = server, sock

    def give_back(self, key: int) -> None:
        """The owner, or its successor, accepts again."""
        for opened in self._open:
            opened.give_back(key)

    async def _serve_on(
        self, opened: _Open, listener: ListenerSettings, sock: socket.socket
    ) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        # Copies share this flag with it.
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # Who is accepted has what the listener has.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        # A copy: closing the server closes what it was given.
        return await create(self._visitors(opened), sock=sock.dup(), backlog=BACKLOG)

    def _visitors(
        self, opened: _Open, waiter: asyncio.Future[None] | None = None
    ) -> Callable[[], asyncio.BaseProtocol]:
        context = opened.certificates.context if opened.certificates is not None else None
        return lambda: enter(self.edge, opened.door, context, waiter)

    def _accept_last(self, opened: _Open) -> None:
        """Accepts those who wait already, and nobody after them."""
        sockets = opened.stop()
        for visitor in [visitor for sock in sockets for visitor in _waiting(sock)]:
            self._entering.start(self._enter(opened, visitor))
        _close(sockets)

    async def _enter(self, opened: _Open, visitor: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        # A visitor who has left by now, or fails the handshake, is nobody's fault here.
        with suppress(OSError):
            await loop.connect_accepted_socket(self._visitors(opened, waiter), visitor)
            if opened.certificates is not None and not opened.door.proxy_protocol:
                await waiter

    def _renew_options(self, config: Config) -> None:
        by_shape = {each.shape: each for each in self._open}
        for at, listener in enumerate(config.listen):
            opened = by_shape.get(shape(listener))
            if opened is not None and opened.certificates is not None and listener.tls is not None:
                opened.certificates.replace(listener.tls, f"listen.{at}.tls", http2=listener.speaks_http2)
            if opened is not None:
                opened.door.renew(options_of(listener))

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

    def reopen_log(self) -> None:
        """Opens the log's file anew. Raises ConfigError, with the one in use kept."""
        self._log.reopen()

    def _page(self) -> asyncio.Protocol:
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("a request came before the start")
        return self._runner.server()

    # The end

    def listening(self) -> list[list[socket.socket]]:
        """For each listener of the config, in order, the sockets that it accepts on."""
        return [[*each.sockets, *(sock for _, sock in each.borrowed.values())] for each in self._open]

    async def drain(self, seconds: float) -> None:
        """Stops accepting, and gives what is under way so many seconds to end.

        The sockets are to be silenced already, unless others go on with them.
        """
        edge = self.edge
        edge.draining = True
        self.hurry(seconds)
        began = edge.clock()
        accepting = True
        # Handshakes that the loop's servers are still busy with are not visible.
        at_least = _GRACE if any(each.certificates for each in self._open) else _TURN
        lost = edge.lost()
        while edge.clock() < self._drained_by:
            # First of all, so that connections accepted in this turn are counted.
            await asyncio.sleep(_TURN)
            # Time in which this process did not run does not count.
            self._drained_by += edge.lost() - lost
            lost = edge.lost()
            passed = edge.clock() - began
            if accepting:
                if passed >= _LAST:
                    accepting = False
                    for each in self._open:
                        self._accept_last(each)
                continue
            if passed >= at_least and not (edge.connections or edge.tunnels or self._entering):
                break
            # Who is not told yet that the connection ends may just be sending the next request.
            if passed >= _GRACE:
                edge.close_idle(edge.clock() - _GRACE)

    def hurry(self, seconds: float) -> None:
        """What is under way has so many seconds left, or what it had before if that is less."""
        self._drained_by = min(self._drained_by, self.edge.clock() + seconds)

    async def close(self) -> None:
        """Cuts what is left."""
        for timer in self._retiring.values():
            timer.cancel()
        if self._teller is not None:
            self._teller.cancel()
            self._tell_learned()
        for each in (*self._open, *self._retiring):
            _close(each.stop())
        await cancel(self._entering)
        if self._sweeper is not None:
            await cancel([self._sweeper])
            self._sweeper = None
        await self.edge.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for server in [server for each in (*self._open, *self._retiring) for server in each.servers]:
            await server.wait_closed()
        self._open.clear()
        self._retiring.clear()
        await self._traces.close()
        await self._log.finish()


def _waiting(sock: socket.socket) -> Iterator[socket.socket]:
    """Accepts the visitors in a listening socket's queue."""
    while True:
        try:
            visitor, _ = sock.accept()
        except OSError:
            # The queue is empty, or there are no file descriptors for more.
            return
        visitor.setblocking(False)
        yield visitor


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
