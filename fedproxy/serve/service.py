"""The running edge: the control plane, and those who serve the visitors.

It owns the config, the operators' intent, the probes and the admin listener, and tells those who serve what
holds. They are a data plane in this process (`workers: 1`) or worker processes.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedproxy.config.address import Address
from fedproxy.config.check import collisions, path_of
from fedproxy.config.model import Config, MemberSettings
from fedproxy.config.report import Difference, changed_secrets, compare, fault_lines, masked
from fedproxy.config.units import Weight, weight_text
from fedproxy.control import state as operators
from fedproxy.control.knowledge import KnowledgeFile, knowledge_path
from fedproxy.control.logos import Logos
from fedproxy.control.messages import (
    ApplyConfig,
    BuildBegun,
    ErrorPages,
    LaunchSeen,
    LaunchSlots,
    MemberHealth,
    RenewCertificates,
    ReopenLog,
    SessionsKnown,
    TicketSecret,
)
from fedproxy.control.overrides import Override
from fedproxy.control.prober import Prober, Report
from fedproxy.control.ramps import Ramps, RampSeen
from fedproxy.control.sessions import SessionFile, SessionStore, sessions_path
from fedproxy.control.sources import CONFIG, OPERATOR
from fedproxy.control.state import State, StateFile, state_path
from fedproxy.control.weights import AutoWeights
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import MemberCounts
from fedproxy.decide.member import Intent
from fedproxy.decide.ramp import FIRST
from fedproxy.decide.sessions import KnownSession, SessionRecord
from fedproxy.decide.snapshot import QUOTA_ALONE, Snapshot, Survey, add_up, merge
from fedproxy.errors import ConfigError, Fault
from fedproxy.event import Event, EventName
from fedproxy.observe.fleet import FleetSeen, MembersAcross, StoreSeen
from fedproxy.observe.history import History
from fedproxy.observe.metrics import View
from fedproxy.observe.processes import Processes, Running
from fedproxy.proxy.explaining import Question
from fedproxy.serve import descriptors, orphans, reaper
from fedproxy.serve.discovering import Discovery
from fedproxy.serve.disk import DiskThread
from fedproxy.serve.edges import ask_members, is_usable, members_alone, see_alone, see_fleet
from fedproxy.serve.fleet import FleetLink, config_digest
from fedproxy.serve.log import check_log
from fedproxy.serve.otlp_metrics import MetricsExport
from fedproxy.serve.plane import SETTLED, Shape, shape
from fedproxy.serve.planes import Common, Inside, Planes, Stuck, Workers
from fedproxy.serve.probes import find_targets, probe_policy
from fedproxy.serve.sockets import Sockets, listen_on
from fedproxy.serve.starting import Starter, StartError
from fedproxy.serve.systemd import Notifier
from fedproxy.serve.tls import Certificates
from fedproxy.tasks import Tasks, cancel
from fedproxy.web.admin import create_admin_app
from fedproxy.web.error_pages import error_pages
from fedproxy.web.guard import Guarded

if TYPE_CHECKING:
    from fedproxy.control.hints import Hint
    from fedproxy.decide.federation import Federation
    from fedproxy.decide.knowledge import Learned
    from fedproxy.decide.ramp import RampMove
    from fedproxy.observe.events import Events
    from fedproxy.proxy.edge import Edge

_LOOK = 0.4  # seconds between two looks at the config's file
_LOOK_AT_CERTIFICATES = 12  # every so many of them
_LOOK_AT_EDGES = 30  # and every so many of them, about every 12 seconds
_ROTATE_TICKETS = 12 * 3600.0  # seconds
_AT_ONCE = 0.1  # seconds between two looks at the members at least: what goes wrong does so in crowds
_KEEP_SESSIONS = 0.25  # seconds between two writes of what was learned of sessions
_KEEP_KNOWLEDGE = 60.0  # seconds between two times that what launches taught is kept
_KEEP_AGAIN = 30.0  # seconds until that is tried again after it failed
_SESSIONS_AT_A_TIME = 1000
_AT_START = ("store", "store_prefix", "edge_name")  # of the config, what is only read then
_ATTEMPTS = 5  # to set something that others set at the same time
_LAST_SAVE = 5.0  # seconds that the last write may take
_EXPIRE = 60.0  # seconds between two looks for sessions that are over
_SAME = 60.0  # seconds in which what several workers tell is one event, ...
_NO_FILE = Fault("", "was not read from a file, so it cannot be read again")
_AGAIN = {EventName.MEMBER_TOKEN: 3600.0}  # ... where it is not longer
_MOST_HEARD = 50  # events that workers tell in that time; more are passed over
_GLANCE = 0.5  # seconds that a health check waits for workers: its own limit may be one second
_OFTEN = 1.0  # seconds between two looks at the members while somebody watches them ...
_SELDOM = 5  # ... and so many times as long while nobody does
_INTENTS = {
    Intent.READY: (EventName.OPERATOR_READY, "ready: it takes visitors"),
    Intent.DRAIN: (EventName.OPERATOR_DRAIN, "drain: no new visitors, current ones stay"),
    Intent.MAINT: (EventName.OPERATOR_MAINT, "maintenance: no visitors"),
}


class Service:
    """The edge for one config, in this loop.

    log: takes each line of the access log of a data plane in this process; without it they go to standard
    output. reread: reads the config again for a reload, and raises ConfigError. warnings: lines about the
    config that was read last, which are new. file: where the config is; what operators set is kept beside it.
    files: all that the config is read from, and folders where there may be more; they are watched, and by
    default they are `file`. probe: whether members are asked how they are, and logos fetched. events: the log
    of what happens; without it that is only in the history. inherited: listening sockets that were given to
    this process.
    """

    def __init__(
        self,
        config: Config,
        *,
        log: Callable[[str], None] | None = None,
        reread: Callable[[], Config] | None = None,
        files: Callable[[], Sequence[Path]] | None = None,
        warnings: Callable[[], Sequence[str]] = list,
        file: Path | None = None,
        probe: bool = True,
        events: Events | None = None,
        inherited: Sequence[socket.socket] = (),
        notifier: Notifier | None = None,
    ) -> None:
        self.config = config
        self._own = config  # what the file and the sources say, without what operators set
        self._log = log
        self._reread = reread
        self._files = files or (lambda: [] if file is None else [file])
        self._warnings = warnings
        self._file = file
        self._probe = probe
        self._events = events
        self.history = History(events.emit if events is not None else lambda event: None)
        self._notifier = notifier or Notifier({})
        self._sockets = Sockets(inherited)
        self._starter = Starter(self.note)
        self._common = Common()
        self._urls: dict[str, str] = {}  # of the members that launches teach of
        self._weights = AutoWeights(self._common.learning.knowledge)
        self._ramps = Ramps()
        self._common.learning.on_seen = self._ramps.note
        self._common.on_trip = self._hear_news
        self._common.on_event = self._on_event
        self._sharing = self._common.sharing
        self._session_store: SessionStore = SessionFile(None)
        self._disk = DiskThread("sessions")
        self._keeper: asyncio.Task[None] | None = None
        self._heard: dict[tuple[EventName, str], float] = {}
        self._has_news = asyncio.Event()
        self._leaving: dict[Planes, asyncio.Task[None]] = {}
        self._certificates: dict[Shape, Certificates] = {}
        self._reports: dict[str, Report] = {}
        self._prober: Prober | None = None
        self._logos: Logos | None = None
        self._chores = Tasks()
        self._admin: Guarded | None = None
        self._changing = asyncio.Lock()
        self._read: tuple[object, ...] = ()  # the signature of what was read last
        self._state = State()
        self._state_file = StateFile(None)
        self._keeps = True  # the state's file could be written, the last time
        self._digest: tuple[Config | None, str] = None, ""  # of what the file says
        self.link: FleetLink | None = None
        self._slots: LaunchSlots | None = None
        self._early: list[Hint] = []  # what was heard before there was somebody to tell
        self._inapplicable: frozenset[str] = frozenset()
        self._tickets = secrets.token_bytes(32)
        self.admin_address: tuple[str, int] = ("", 0)
        self.reloads = {"success": 0, "failure": 0}
        self.reloaded_at: float | None = None
        self.started_at = time.time()
        self._serving = False
        self._workers = 0
        self._glance: asyncio.Task[Survey] | None = None
        self._processes = Processes()
        self._metrics = MetricsExport(self.view, partial(self.note, EventName.METRICS_UNSENT))
        self._orphans = orphans.Orphans()
        self._reaper: asyncio.Task[None] | None = None
        self._moved_at = -SETTLED  # when listeners last changed
        self._discovery = Discovery(self._on_event, self._take_found)

    _planes: Planes
    _pages: ErrorPages
    _next_look: asyncio.Future[None]
    _watched = False

    @property
    def edge(self) -> Edge:
        """The data plane of this process. Raises RuntimeError if others serve."""
        if isinstance(self._planes, Inside):
            return self._planes.plane.edge
        raise RuntimeError("worker processes serve the visitors")

    @property
    def federation(self) -> Federation:
        """The members with their state in the data plane of this process."""
        return self.edge.federation

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where visitors are accepted: host and port of each listener that has them."""
        return self._sockets.bound(self.config.listen)

    @property
    def listening(self) -> bool:
        """Whether visitors are accepted."""
        return self._serving and self._planes.alive > 0

    # Start and stop

    async def start(self) -> None:
        """Starts to serve; nothing is left open if it cannot.

        Raises OSError for an address it cannot listen on, ConfigError for files that cannot be used,
        StartError for a worker that does not start.
        """
        self._read = self._signature()
        self._next_look = asyncio.get_running_loop().create_future()
        if reaper.is_init():
            self._reaper = asyncio.get_running_loop().create_task(reaper.keep_reaping(self._starter.children))
        async with self._changing:
            await self._start()
        self._do(self._keep_house())
        self._do(self._look())
        self._keeper = asyncio.get_running_loop().create_task(self._keep_sessions())
        self._do(self._keep_knowledge())
        self._notifier.ready()

    def _do(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """What is ended by `stop`, wherever it is."""
        return self._chores.start(work)

    async def _start(self) -> None:
        self._own = await self._discovery.start(self._own)
        self._state_file = StateFile(state_path(self._own, self._file, os.environ))
        self._state, complaints = self._state_file.load()
        self._keeps = is_usable(self._state_file.path)
        for line in complaints:
            self.note(EventName.STATE_UNUSABLE, line)
        if self._own.shared_store is not None:
            await self._join_fleet()
        self._state, dropped = operators.reconcile(self._own, self._state)
        self._inapplicable = frozenset(dropped)
        for line in dropped:
            self.note(EventName.STATE_DROPPED, line)
        self.config = operators.overlay(self._own, self._state)
        for line in self._warnings():
            self.note(EventName.CONFIG_WARNING, line)
        await self._load_sessions()
        await self._load_knowledge()
        self._ramps.apply(self.config.active_members, self._state, time.monotonic())
        self._weigh_ramps()
        try:
            find_targets(self.config)
            check_log(self.config)
            self._pages = error_pages(self.config)
            self._certificates = self._open_certificates(self.config)
            workers = self._workers = count_workers(self.config)
            self._orphans = await asyncio.to_thread(orphans.find, self.config.listen)
            self._sockets.inherit(self._orphans.sockets)
            self._sockets.open(self.config.listen, workers)
            self._admin = await self._listen_admin(self.config)
            self._refuse_collisions(self.config)
            self._planes = self._planes_of(workers)
            await self._planes.start(self._to_apply(), self._known_health(), self._tickets)
            if self._slots is not None:
                self._planes.tell(self._slots)
            early, self._early = self._early, []
            for hint in early:
                self.hear_hint(hint)
        except BaseException:
            await self.stop()
            raise
        relieved = self._orphans.relieve()
        self._sockets.relieve()
        if relieved:
            text = f"took over from {relieved} workers whose control process is gone; they drain"
            self.note(EventName.EDGE_TAKEOVER, text)
        self.reloaded_at = time.time()
        if self._probe:
            self._prober = Prober(self._on_own_report, room=descriptors.probe_room())
            self._apply_probes()
            self._logos = Logos(lambda logo: self._planes.tell(logo), self._on_event)
            self._logos.apply(self.config.logos)
        self._metrics.put(self.config.otlp_metrics)
        self._serving = True
        # What others set since it joined; and what it knows of the fleet is kept, for a start without.
        self.take_overrides()

    # The fleet

    async def _join_fleet(self) -> None:
        """Knows what operators set at any edge, if the store can be reached; else what was kept of it."""
        path = state_path(self._own, self._file, os.environ)
        link = self.link = FleetLink(
            self,
            self._own,
            state=path,
            tickets=self._tickets,
            do=self._do,
            started_at=self.started_at,
        )
        for line in await self._disk.run(link.load):
            self.note(EventName.STATE_UNUSABLE, line)
        self._common.on_fact = link.on_fact
        self._common.on_running = link.fleet.launches
        link.apply(
            operators.overlay(self._own, operators.reconcile(self._own, link.overrides.state())[0]), self._own
        )
        await link.fleet.start()
        if not link.overrides.order and not link.overrides.pending:
            # The first edge with a store, and it was alone before: what was set then holds for all.
            for name in {
                *self._state.intents,
                *self._state.weights,
                *self._state.members,
                *self._state.ramps,
            }:
                content = operators.override_of(self._state, name)
                await link.fleet.set_override(
                    name, Override(content, content.by or "", link.fleet.name, time.time())
                )
        self._state = link.overrides.state()

    @property
    def reports(self) -> Mapping[str, Report]:
        """What the probes found last, by member."""
        return self._reports

    def _known_health(self) -> list[MemberHealth]:
        return [
            self._health(each) for each in self._reports.values() if each.name in self.config.active_members
        ]

    def _apply_probes(self) -> None:
        if self._prober is None:
            return
        if self.link is not None:
            self.link.probe(self._prober, self._reports)
        else:
            self._prober.apply(probe_policy(self.config), find_targets(self.config))

    def _on_own_report(self, report: Report) -> None:
        if self.link is not None:
            self.link.on_own_report(report)
        else:
            self.take_report(report)

    def hear_hint(self, hint: Hint) -> None:
        """As `FleetHost` says."""
        if not hasattr(self, "_planes"):
            self._early.append(hint)
            return
        match hint:
            case SessionsKnown():
                self._sharing.tell(self, hint)
            case BuildBegun() | LaunchSeen():
                self._common.learning.tell(self, hint)
            case _:
                for planes in self._all_planes():
                    planes.hear(hint)

    def tell_slots(self, slots: LaunchSlots) -> None:
        """As `FleetHost` says."""
        self._slots = slots
        for planes in self._all_planes():
            planes.tell(slots)

    def take_tickets(self, secret: bytes) -> None:
        """As `FleetHost` says."""
        self._tickets = secret
        if hasattr(self, "_planes"):
            self._planes.tell(TicketSecret(secret))

    def take_overrides(self) -> None:
        """As `FleetHost` says."""
        if self._serving and self.link is not None:
            self._do(self._take_overrides())

    async def _take_overrides(self) -> None:
        async with self._changing:
            if self.link is None:
                return
            before = self._state
            state = self._applicable()
            if state != before:
                try:
                    self._put_in_force(state)
                except ConfigError as error:
                    self.note(
                        EventName.STORE_REFUSED,
                        f"what operators set at another edge cannot be used here: {error}",
                    )
                    return
                self._note_overrides(before, state)
        await self._save_overrides()

    def _note_overrides(self, before: State, after: State, but: str = "") -> None:
        """Tells what operators set at other edges, of all members but one."""
        for name in sorted({*before.by, *after.by, *before.intents, *before.ramps, *after.ramps} - {but}):
            was, now = operators.override_of(before, name), operators.override_of(after, name)
            set_by = self.link.overrides.get(name) if self.link is not None else None
            who = f"{set_by.who} at {set_by.edge}" if set_by and set_by.who and set_by.edge else now.by
            # One that has left is not said to be ready.
            if was.intent != now.intent and (was.change == now.change or name in self.config.active_members):
                event, meaning = _INTENTS[after.intent(name)]
                self.note(event, f"{name} was set to {meaning}", name, who)
            if was.weight != now.weight:
                value = weight_text(now.weight.value) if now.weight is not None else "what the config says"
                self.note(EventName.OPERATOR_WEIGHT, f"the weight of {name} was set to {value}", name, who)
            if now.ramp is not None and was.ramp != now.ramp:
                self._note_ramp(name, FIRST if was.ramp is None else was.ramp, "")
            if was.change != now.change:
                there = name in self.config.active_members
                event = EventName.OPERATOR_JOIN if there else EventName.OPERATOR_LEAVE
                text = "was added, or its settings were replaced" if there else "left the federation"
                self.note(event, f"{name} {text}", name, who)

    async def _save_overrides(self) -> None:
        save = self.link.unsaved() if self.link is not None else None
        if save is not None:
            try:
                await self._disk.run(save)
            except OSError as error:
                self.note(EventName.STATE_UNUSABLE, error.strerror or str(error))

    def _applicable(self) -> State:
        """What operators have set, as far as it fits the config."""
        if self.link is None:
            return self._state
        state, dropped = operators.reconcile(self._own, self.link.overrides.state())
        for line in dropped:
            if line not in self._inapplicable:
                self.note(EventName.STATE_DROPPED, line)
        self._inapplicable = frozenset(dropped)
        return state

    def fleet(self) -> FleetSeen:
        """The edges that share a store with this one, or this one alone."""
        if self.link is not None:
            return see_fleet(self.link)
        own = self._own
        if self._digest[0] is not own:
            self._digest = own, config_digest(own)
        return see_alone(own, self._digest[1], self.known(), self.started_at, self._file_seen())

    def _file_seen(self) -> StoreSeen:
        path = self._state_file.path
        return StoreSeen(None if path is None else str(path), up=self._keeps)

    def is_pending(self, name: str) -> bool:
        """Whether the other edges do not know yet what operators set of a member, as the store is away."""
        return self.link is not None and name in self.link.overrides.pending

    async def fleet_members(self) -> MembersAcross:
        """The members as all edges see them. Raises StoreError."""
        if self.link is not None:
            return await ask_members(self.link)
        return members_alone(self.fleet().edges[0].name, await self.survey())

    # Sessions

    @property
    def sessions_known(self) -> int:
        """Of how many sessions it is known where they run."""
        return len(self._sharing.sessions)

    async def _load_sessions(self) -> None:
        path = sessions_path(state_path(self._own, self._file, os.environ))
        self._session_store = SessionFile(path)
        sessions = self._sharing.sessions
        sessions.most = self.config.limits.sessions
        known, complaints = await self._disk.run(self._session_store.load)
        now = time.time()
        for told in known:
            sessions.take(told[0], KnownSession.from_record(told), now)
        for line in complaints:
            self.note(EventName.SESSIONS_UNUSABLE, line)

    def _expect_images(self, config: Config) -> None:
        replicated = config.images == "replicated"
        self._common.learning.knowledge.expects(replicated=replicated, delay=config.images_delay)

    async def _load_knowledge(self) -> None:
        self._knowledge_store = KnowledgeFile(knowledge_path(state_path(self._own, self._file, os.environ)))
        load = partial(self._knowledge_store.load, self._common.learning.knowledge)
        for line in await self._disk.run(load):
            self.note(EventName.KNOWLEDGE_UNUSABLE, line)
        self._expect_images(self.config)
        self._forget_launches()

    def _forget_launches(self) -> None:
        """Forgets what launches taught of members that have left, or that are at another URL now."""
        learning, before = self._common.learning, self._urls
        self._urls = {name: settings.url for name, settings in self.config.active_members.items()}
        for name in {**learning.knowledge.members, **before}:
            if name not in self._urls or before.get(name, self._urls[name]) != self._urls[name]:
                learning.knowledge.forget(name)
                learning.changed = True

    async def _save_knowledge(self) -> None:
        """Raises OSError; it is tried again."""
        learning = self._common.learning
        if learning.changed:
            learning.changed = False
            try:
                await self._disk.run(partial(self._knowledge_store.save, learning.knowledge.dump()))
            except BaseException:
                learning.changed = True
                raise

    async def _keep_sessions(self) -> None:
        expired = time.monotonic()

        async def save() -> None:
            nonlocal expired
            if time.monotonic() - expired >= _EXPIRE:
                expired = time.monotonic()
                self._sharing.sessions.expire(time.time())
            await self._save_sessions()

        what = "sessions are found by cookies after a restart"
        await self._keep(save, _KEEP_SESSIONS, EventName.SESSIONS_UNUSABLE, what)

    async def _keep_knowledge(self) -> None:
        what = "launches have to teach the edge again after a restart"
        await self._keep(self._save_knowledge, _KEEP_KNOWLEDGE, EventName.KNOWLEDGE_UNUSABLE, what)

    async def _keep(
        self, save: Callable[[], Awaitable[None]], every: float, event: EventName, what: str
    ) -> None:
        """Saves again and again; a failure is told once, with what it means."""
        failing = False
        while True:
            await asyncio.sleep(max(every, _KEEP_AGAIN) if failing else every)
            try:
                await save()
                failing = False
            except OSError as error:
                if not failing:
                    self.note(event, f"{error.strerror}; {what}")
                failing = True

    async def _save_sessions(self) -> None:
        """Raises OSError; what could not be kept is tried again."""
        sharing = self._sharing
        if not sharing.changed:
            return
        changed, sharing.changed = sharing.changed, {}
        sessions = sharing.sessions
        told = [known.record(key) for key in changed if (known := sessions.look(key)) is not None]
        store = self._session_store
        try:
            if not await self._disk.run(partial(store.save, told, len(sessions))):
                everything: list[SessionRecord] = []
                for key, known in sessions.items():
                    everything.append(known.record(key))
                    if len(everything) % _SESSIONS_AT_A_TIME == 0:
                        # Visitors may be served in this loop.
                        await asyncio.sleep(0)
                await self._disk.run(partial(store.save_all, everything))
        except BaseException:
            sharing.changed.update(changed)
            raise

    def _on_event(self, event: Event) -> None:
        """What the data planes tell; several may notice the same, which is one event."""
        now = time.monotonic()
        said = event.name, event.message if event.key is None else event.key
        self._heard = {each: at for each, at in self._heard.items() if now - at < _AGAIN.get(each[0], _SAME)}
        lately = sum(now - at < _SAME for at in self._heard.values())
        if said not in self._heard and lately < _MOST_HEARD:
            self._heard[said] = now
            self.note(event.name, event.message, event.member, event.who)

    def _planes_of(self, workers: int) -> Planes:
        if workers == 1:
            return Inside(
                lambda: self._sockets.of(self.config.listen, 0, 1), self._left_over, self._common, self._log
            )
        return Workers(workers, self._sockets, self._common, self.note, self._starter)

    def _left_over(self) -> list[tuple[int, int, socket.socket]]:
        listeners = self.config.listen
        slots = self._sockets.left_over(listeners, 1)
        return [(slot, at, sock) for slot in slots for at, sock in self._sockets.own(listeners, slot)]

    def _to_apply(self) -> ApplyConfig:
        intents = {name: self._state.intent(name) for name in self.config.active_members}
        return ApplyConfig(self.config, intents, self._workers, self._pages)

    async def _listen_admin(self, config: Config) -> Guarded:
        """Opens the admin listener of a config. Raises OSError."""
        sock = listen_on(config.admin.address)
        address = sock.getsockname()
        room = descriptors.admin_room()
        admin = Guarded(create_admin_app(self, streams=room // 2), room)
        await admin.listen(sock)
        if not config.admin.address.path:
            self.admin_address = address[:2]
        return admin

    def _refuse_collisions(self, config: Config) -> None:
        """Raises ConfigError if names of opened addresses turn out to stand for the same."""
        bound = iter(self._sockets.bound(config.listen))
        resolved = [
            each.address if each.address.path else Address(next(bound)[0], each.address.port)
            for each in config.listen
        ]
        admin = config.admin.address
        resolved.append(admin if admin.path else Address(self.admin_address[0], admin.port))
        faults = [Fault(path_of(finding.where), finding.text) for finding in collisions(config, resolved)]
        if faults:
            raise ConfigError(faults)

    async def stop(self, drain: float = 0.0) -> None:
        """Stops accepting, gives what is under way `drain` seconds to end, cuts what is left."""
        self._serving = False
        self._notifier.stopping(drain + 10.0)
        await cancel(self._chores)
        await self._discovery.close()
        if self.link is not None:
            self.link.retire()
        if self._prober is not None:
            await self._prober.close()
            self._prober = None
        if self._logos is not None:
            await self._logos.close()
            self._logos = None
        everybody = self._all_planes()
        if drain > 0:
            self._sockets.silence()
        draining = [asyncio.ensure_future(planes.drain(drain)) for planes in everybody] if drain > 0 else []
        self._orphans.close()
        # Those who serve have their own copies. No visitor may wait in a queue that nobody reads.
        self._sockets.close()
        try:
            await asyncio.gather(*draining)
        finally:
            for planes in everybody:
                await planes.close()
            await self._starter.close()
            self._common.on_fact = self._common.on_running = None
            if self.link is not None:
                await self.link.fleet.close()
            if self._keeper is not None:
                await cancel([self._keeper])
                self._keeper = None
            await self._metrics.close()
            # A disk that hangs keeps nobody.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LAST_SAVE):
                    await self._save_sessions()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LAST_SAVE):
                    await self._save_knowledge()
            self._disk.end()
            await asyncio.gather(*self._leaving.values(), return_exceptions=True)
            if self._admin is not None:
                await self._admin.close()
                self._admin = None
            self._notifier.close()
            if self._reaper is not None:
                await cancel([self._reaper])
                self._reaper = None

    def _all_planes(self) -> list[Planes]:
        """Those who serve, if they are there yet, and those who drain."""
        return [*([self._planes] if hasattr(self, "_planes") else []), *self._leaving]

    # What operators ask for

    def stuck(self) -> list[Stuck]:
        """The workers that should serve and do not turn."""
        return self._planes.stuck() if self._serving else []

    async def glance(self) -> Survey:
        """As `survey`, but waits for half a second at most. Callers at the same time share one survey."""
        if self._serving:
            if self._glance is None or self._glance.done():
                self._glance = self._do(self.survey())
            await asyncio.wait({self._glance}, timeout=_GLANCE)
        return self.known()

    async def survey(self) -> Survey:
        """The members and counts of all who serve, and of those who did; they are asked for them."""
        await asyncio.gather(*(planes.ask() for planes in self._all_planes()))
        return self.known()

    def known(self) -> Survey:
        """The same as they told it last, of their own accord once a second. Counts may be the live ones."""
        # Before those who serve are there, the other edges of the fleet are told of this one already.
        alive = self._planes.alive if hasattr(self, "_planes") else 0
        # All at one moment, or a worker that ends meanwhile is counted twice.
        surveys = [survey for planes in self._all_planes() for survey in planes.surveys()]
        parts: dict[str, list[Snapshot]] = {name: [] for name in self.config.active_members}
        for survey in surveys:
            for member in survey.members:
                if member.name in parts:
                    parts[member.name].append(member)
        members = [self._merged(name, found) for name, found in parts.items()]
        edge = add_up([self._common.edge, *(survey.edge for survey in surveys)])
        edge.lines_dropped["events"] += self._events.dropped if self._events is not None else 0
        return Survey(members, edge, alive)

    def _merged(self, name: str, parts: Sequence[Snapshot]) -> Snapshot:
        member = merge(parts or [self._unseen(name)], self._common.members.get(name))
        report = self._reports.get(name)
        if report is None:
            return member
        return replace(
            member, checks=report.checks, pods=report.pods, quota=report.quota, details=report.details
        )

    def _unseen(self, name: str) -> Snapshot:
        """A member of which nobody who serves has told yet."""
        settings = self.config.members[name]
        report = self._reports.get(name)
        return Snapshot(
            name=name,
            url=settings.url,
            weight=self._weight_of(name, settings),
            share=0.0,
            prime=settings.prime,
            intent=self._state.intent(name),
            healthy=report.healthy if report else True,
            reasons=report.reasons if report else (),
            breaker=BreakerState.CLOSED,
            admits=True,
            available=False,
            in_flight=0,
            max_requests=settings.max_requests or self.config.limits.member_requests,
            launches=0,
            max_launches=settings.max_launches,
            counts=MemberCounts(),
        )

    def next_look(self) -> asyncio.Future[None]:
        """Done when the history has seen the next survey, which comes soon when somebody waits for it."""
        self._watched = True
        return self._next_look

    def certificates(self) -> Mapping[str, float]:
        """When each certificate expires, in seconds since the epoch, by its name."""
        ends: dict[str, float] = {}
        for each in self._certificates.values():
            for name, end in each.expiries().items():
                ends[name] = min(end, ends.get(name, end))
        return ends

    def view(self) -> View:
        """What the metrics are made of, as it is now. Counts may be the live ones."""
        return View(
            survey=self.known(),
            reloads=dict(self.reloads),
            reloaded_at=self.reloaded_at,
            certificates=self.certificates(),
            sessions=self.sessions_known,
            processes=self._processes.look(self._running()),
            fleet=see_fleet(self.link) if self.link is not None else FleetSeen(self._file_seen()),
            ramps={
                name: seen.progress
                for name in self.config.active_members
                if (seen := self.ramp(name)) is not None
            },
            contacts=self.config.alert_contacts,
        )

    def _running(self) -> Iterator[Running]:
        """The edge's processes, this one first."""
        yield Running("control", os.getpid(), lag=self._prober.lost() if self._prober is not None else None)
        if self._starter.forker is not None:
            yield Running("forker", self._starter.forker)
        for planes in self._all_planes():
            yield from planes.processes()

    def config_masked(self, *, own: bool = False) -> dict[str, Any]:
        """The config in force, without its secrets; own: as its file has it."""
        return masked(self._discovery.own if own else self.config)

    def origin(self, name: str) -> str:
        """Where a member comes from: `config`, `directory: FILE`, `dns: NAME` or `operator`."""
        change = self._state.members.get(name)
        return OPERATOR if change is not None else self._discovery.origin(name)

    async def change(self, name: str, intent: Intent | None, weight: Weight | None, who: str) -> None:
        """The operator's intent for a member, in force when this returns, and kept. who: whose it is.

        Raises KeyError for a name that is no member's; OSError, with nothing changed, if it cannot be kept.
        """
        async with self._changing:
            if name not in self.config.active_members:
                raise KeyError(name)
            before = self.config.members[name].weight
            later = await self._set_override(name, lambda: self._intended(name, intent, weight), who)
            if intent is not None:
                event, meaning = _INTENTS[intent]
                self.note(event, f"{name} was set to {meaning}{later}", name, who)
            if weight is not None:
                text = f"the weight of {name} was set to {weight_text(weight)}, from {weight_text(before)}"
                self.note(EventName.OPERATOR_WEIGHT, text + later, name, who)

    def _intended(self, name: str, intent: Intent | None, weight: Weight | None) -> State:
        if name not in self.config.active_members:
            raise KeyError(name)
        state = self._state
        if intent is not None:
            state = operators.set_intent(state, name, intent)
        if weight is not None:
            state = operators.set_weight(self._own, state, name, weight)
        return state

    async def join(self, name: str, settings: object, who: str) -> None:
        """A member joins, or takes the place of the one of that name. Raises ConfigError and OSError."""
        async with self._changing:
            known = name in self.config.active_members
            later = await self._set_override(
                name, lambda: operators.join(self._own, self._state, name, settings), who
            )
            if name not in self.config.active_members:
                self.note(EventName.OPERATOR_LEAVE, f"{name} is now a past member{later}", name, who)
                return
            text = f"the settings of {name} were replaced" if known else f"{name} joined the federation"
            self.note(EventName.OPERATOR_JOIN, f"{text}{later}", name, who)

    async def leave(self, name: str, who: str) -> None:
        """A member leaves. Raises KeyError, ConfigError if there must be one, and OSError."""
        async with self._changing:
            later = await self._set_override(name, lambda: operators.leave(self._own, self._state, name), who)
            self.note(EventName.OPERATOR_LEAVE, f"{name} left the federation{later}", name, who)

    # The same without doing it

    async def preview_change(
        self, name: str, intent: Intent | None, weight: Weight | None
    ) -> list[Difference]:
        """What `change` would change. Raises as it does."""
        async with self._changing:
            return self._differences(self._own, self._intended(name, intent, weight))

    async def preview_join(self, name: str, settings: object) -> list[Difference]:
        """What `join` would change. Raises as it does."""
        async with self._changing:
            return self._differences(self._own, operators.join(self._own, self._state, name, settings))

    async def preview_leave(self, name: str) -> list[Difference]:
        """What `leave` would change. Raises as it does."""
        async with self._changing:
            return self._differences(self._own, operators.leave(self._own, self._state, name))

    async def preview_reload(self) -> list[Difference]:
        """What `reload` would change. Raises ConfigError, as far as it can be told without doing it."""
        async with self._changing:
            if self._reread is None:
                raise ConfigError([_NO_FILE])
            prepared = await self._discovery.prepare(self._reread())
            await self._discovery.drop(prepared)
            own = prepared.config
            state, _ = operators.reconcile(own, self._state)
            self._open_files(operators.overlay(own, state))
            return self._differences(own, state)

    def _differences(self, own: Config, state: State) -> list[Difference]:
        """What would differ with this config and state. Raises ConfigError."""
        config = operators.overlay(own, state)
        find_targets(config)
        before, after = self._state, state
        intents = [
            Difference(f"members.{name}.state", before.intent(name).value, after.intent(name).value)
            for name in dict.fromkeys([*before.intents, *after.intents])
            if name in config.members and before.intent(name) != after.intent(name)
        ]
        secrets = changed_secrets(self.config, config)
        return [*compare(masked(self.config), masked(config)), *secrets, *intents]

    def learned(self, name: str) -> Learned:
        """What launches have taught of a member."""
        return self._common.learning.knowledge.about(name)

    def set_by(self, name: str) -> str | None:
        """Who set last what an operator set of a member; None if nobody did, or it is not known."""
        return self._state.by.get(name)

    async def explain(self, question: Question) -> str | None:
        """Why a request would go where it goes: see `Planes`."""
        return await self._planes.explain(question)

    def note_refusal(self, client: str) -> None:
        """An admin request had a wrong token, or one with too few rights."""
        self.history.count(EventName.OPERATOR_REFUSED, {"": 1}, time.time(), _refusals, who=client)

    async def _set_override(self, name: str, change: Callable[[], State], who: str | None) -> str:
        """Puts what an operator sets of a member in force, here and at all edges of the fleet.

        who: None for the edge itself. Returns what is to be added to the event's text. Raises what `change`
        raises, ConfigError and OSError.
        """

        def signed() -> State:
            return change() if who is None else operators.sign(change(), name, who)

        if self.link is None:
            state = signed()
            find_targets(operators.overlay(self._own, state))
            # On a slow disk this takes its time, and visitors are not to wait.
            await self._disk.run(partial(self._save_state, state))
            self._put_in_force(state)
            return ""
        for _ in range(_ATTEMPTS):
            state = signed()
            find_targets(operators.overlay(self._own, state))
            content = operators.override_of(state, name)
            override = Override(content, who or "", self.link.fleet.name, time.time())
            taken = await self.link.fleet.set_override(name, override)
            before = self._state
            self._put_in_force(self._applicable())
            # Others may have set something too; the caller tells of its own.
            self._note_overrides(before, self._state, but=name if taken is not None else "")
            if taken is not None:
                await self._save_overrides()
                return "" if taken else "; the store is away, so the other edges hear of it later"
        raise OSError(errno.EBUSY, f"others are changing {name} at the same time")

    def _save_state(self, state: State) -> None:
        """Blocks. Raises OSError."""
        self._keeps = False
        self._state_file.save(state)
        self._keeps = is_usable(self._state_file.path)

    def _put_in_force(self, state: State) -> None:
        """Raises ConfigError, with nothing changed."""
        config = operators.overlay(self._own, state)
        find_targets(config)
        self._state = state
        self.config = config
        self._ramps.apply(config.active_members, state, time.monotonic())
        self._weigh_ramps()
        self._tell_weights()
        self._planes.apply(self._to_apply())
        self._probe_again()
        self._hear_news()

    def _probe_again(self) -> None:
        self._common.forget(self.config.active_members)
        self._weights.forget(self.config.active_members)
        self._forget_launches()
        self._reports = {
            name: report for name, report in self._reports.items() if name in self.config.active_members
        }
        if self.link is not None:
            self.link.apply(self.config, self._own)
        self._apply_probes()
        if self._logos is not None:
            self._logos.apply(self.config.logos)

    def take_report(self, report: Report) -> None:
        """What the probes found of a member, here or at another edge."""
        before = self._reports.get(report.name)
        self._reports[report.name] = report
        settings = self.config.active_members.get(report.name)
        if settings is not None:
            self._weights.observe(report, settings, time.monotonic())
        if not hasattr(self, "_planes"):
            # It is told them at its start.
            return
        self._planes.tell(self._health(report))
        now, earlier = _probed(report), EventName.MEMBER_HEALTHY if before is None else _probed(before)
        if now is not earlier:
            name, why = report.name, "; ".join(report.details or report.reasons)
            if now is EventName.MEMBER_FULL:
                self.note(now, f"{name} is full: {why}", name)
            elif now is EventName.MEMBER_UNHEALTHY:
                self.note(now, f"{name} is unhealthy: {why}", name)
            elif earlier is EventName.MEMBER_FULL:
                self.note(EventName.MEMBER_ROOM, f"{name} has room again", name)
            else:
                self.note(now, f"{name} is healthy again", name)
            self._hear_news()

    def _health(self, report: Report) -> MemberHealth:
        """What is told of a member, with its weight if it has `auto`."""
        settings = self.config.members.get(report.name)
        weight: float | None = None
        if settings is not None and settings.is_ramping:
            weight = self._ramps.known(report.name)
        elif settings is not None and settings.weight == "auto":
            weight = self._weights.tell(report.name)
        return MemberHealth(
            report.name,
            report.healthy,
            report.reasons,
            report.pods,
            report.quota,
            report.base_path,
            weight,
            report.checks,
            report.within,
        )

    def _weight_of(self, name: str, settings: MemberSettings) -> float:
        """The weight that a member has now."""
        if settings.is_ramping:
            return self._ramps.known(name)
        return self._weights.known(name) if settings.weight == "auto" else settings.weight

    def _weigh(self) -> None:
        """Works the weights out anew, and tells of those that have changed."""
        changed = self._weights.step(self.config.active_members, time.monotonic(), time.time())
        for name in [*changed, *self._weigh_ramps()]:
            if name in self._reports:
                self._planes.tell(self._health(self._reports[name]))

    # Ramps

    def ramp(self, name: str) -> RampSeen | None:
        """How far a member's ramp has come; None if it has none."""
        return self._ramps.seen(name, self.config.active_members)

    def _weigh_ramps(self) -> list[str]:
        """Works the weights of ramps out anew; returns the members that are to be told of."""
        members = self.config.active_members
        weights = {
            name: self._weight_of(name, settings)
            for name, settings in members.items()
            if self._state.intent(name) is Intent.READY
        }
        return self._ramps.step(members, weights)

    def _look_at_ramps(self, survey: Survey) -> None:
        if self._changing.locked():
            # A move would wait for what is under way, and so would one of each further look.
            return
        members = {member.name: member for member in survey.members}
        for name, before, move in [*self._ramps.look(members, time.monotonic())]:
            if move.progress == before:
                self.note(EventName.RAMP_HELD, f"{name} gets no more visitors yet: {move.reason}", name)
            else:
                self._do(self._move_ramp(name, before, move))

    async def _move_ramp(self, name: str, before: float, move: RampMove) -> None:
        """Changes how far a member's ramp has come, at all edges, unless another edge was faster."""

        def moved() -> State:
            seen = self._ramps.seen(name, self.config.active_members)
            if seen is None or seen.progress != before:
                raise KeyError(name)
            return operators.set_ramp(self._state, name, move.progress)

        async with self._changing:
            try:
                await self._set_override(name, moved, None)
            except KeyError:
                return
            except (ConfigError, OSError) as error:
                if move.progress > before or self.link is not None:
                    self._ramps.wait(name, time.monotonic())
                    self.note(EventName.RAMP_HELD, f"{name} gets no more visitors yet: {error}", name)
                    return
                # One that fails gets fewer visitors, whether that can be kept or not.
                self._put_in_force(operators.set_ramp(self._state, name, move.progress))
                text = f"how far the ramp of {name} has come is not kept: {error}"
                self.note(EventName.STATE_UNUSABLE, text)
        self._note_ramp(name, before, move.reason)

    def _note_ramp(self, name: str, before: float, reason: str) -> None:
        seen = self.ramp(name)
        if seen is None or seen.progress == before:
            return
        event = EventName.RAMP_ROSE if seen.progress > before else EventName.RAMP_FELL
        part = f"{seen.share * seen.progress:.1%} of new visitors"
        if seen.progress >= 1.0:
            text = f"{name} has come to its share, {part}"
        else:
            text = f"{name} gets {part}, on its way to {seen.share:.0%}"
        self.note(event, f"{text}: {reason}" if reason else text, name)

    def _tell_weights(self) -> None:
        """Before a config is put in force, so that no member has another weight in it for a moment."""
        for name, report in self._reports.items():
            settings = self.config.active_members.get(name)
            if settings is not None and settings.weight == "auto":
                self._planes.tell(self._health(report))

    def note(self, name: EventName, message: str, member: str | None = None, who: str | None = None) -> None:
        """Tells of an event, in the log and to whoever looks at what happened. member, who: as of `Event`."""
        self.history.note(Event(name, message, member, who, time.time()))

    def reopen_log(self) -> None:
        """Opens the access log's file anew, everywhere, as whoever moved it away expects.

        If it cannot be opened, all go on with the one that they have, and it is said once.
        """
        everybody = self._all_planes()
        try:
            check_log(self.config)
            for planes in everybody:
                planes.tell(ReopenLog())
            if self.config.access_log != "off" and self.config.access_log_file != "stdout":
                text = f"{self.config.access_log_file} was reopened"
                self.note(EventName.LOG_REOPENED, text, who="signal")
        except ConfigError as error:
            for line in fault_lines(str(self._file or "config"), error.faults):
                self.note(EventName.LOG_UNUSABLE, f"{line}; the one in use is kept", who="signal")

    # Reload

    async def reload(self, who: str = "signal") -> list[Fault]:
        """Reads the config again and puts it in force, or changes nothing and says what is wrong with it.

        who: asked for it. All but new listeners and another number of workers is taken over in place. For
        those, new workers take over while the old ones drain.
        """
        return await asyncio.shield(self._do(self._reload_in_turn(who)))

    async def _reload_in_turn(self, who: str) -> list[Fault]:
        async with self._changing:
            self._notifier.reloading()
            faults = await self._reload(who)
            self._notifier.ready()
        for line in fault_lines(str(self._file or "reload"), faults):
            self.note(EventName.CONFIG_REFUSED, line, who=who)
        if faults:
            self.reloads["failure"] += 1
            self.note(EventName.CONFIG_REFUSED, "the config in force is kept", who=who)
        else:
            self.reloads["success"] += 1
            self.reloaded_at = time.time()
            for line in self._warnings():
                self.note(EventName.CONFIG_WARNING, line, who=who)
            self.note(EventName.CONFIG_RELOAD, f"reloaded {self._file or 'the config'}", who=who)
        return faults

    async def _reload(self, who: str) -> list[Fault]:
        reread = self._reread
        if reread is None:
            return [_NO_FILE]
        return await self._adopt(lambda: self._read_again(reread), who)

    async def _take_found(self) -> list[Fault]:
        """Puts in force what the sources of members have found, as a reload would."""
        async with self._changing:
            return await self._adopt(lambda: self._discovery.own, "source")

    async def _adopt(self, read: Callable[[], Config], who: str) -> list[Fault]:
        """Puts a config in force, with what its sources have; or changes nothing and says what is wrong."""
        before, own_before = self.config, self._own
        prepared = None
        try:
            prepared = await self._discovery.prepare(read())
            own = prepared.config
            state, dropped = operators.reconcile(
                own, self._state if self.link is None else self.link.overrides.state()
            )
            await self._take_over(operators.overlay(own, state), own, state)
            await self._discovery.commit(prepared)
            prepared = None
        except ConfigError as error:
            return error.faults
        except OSError as error:
            return [Fault("", error.strerror or str(error))]
        except StartError as error:
            return [Fault("", str(error))]
        finally:
            if prepared is not None:
                await self._discovery.drop(prepared)
        for line in dropped:
            if line not in self._inapplicable:
                self.note(EventName.STATE_DROPPED, line, who=who)
        self._compare(before, self.config, who)
        for key in _AT_START:
            if getattr(own, key) != getattr(own_before, key):
                text = f"{key} has changed, which takes effect after a restart: the old value still applies"
                self.note(EventName.CONFIG_WARNING, text, who=who)
        if self.link is not None:
            self._inapplicable = frozenset(dropped)
        elif dropped:
            with suppress(OSError):
                await self._disk.run(partial(self._save_state, state))
        return []

    def _read_again(self, reread: Callable[[], Config]) -> Config:
        """Raises ConfigError."""
        # Before it is read: what changes meanwhile is read once more. The files may be others then.
        before, files = self._signature(), self._files()
        try:
            return reread()
        finally:
            self._read = before if self._files() == files else self._signature()

    def _signature(self) -> tuple[object, ...]:
        """What changes when a file of the config does, or a link on the way to it."""
        return tuple(_signature(file) for file in self._files())

    def _compare(self, before: Config, after: Config, who: str) -> None:
        """Tells what a reload has changed of the members."""
        old, new = before.active_members, after.active_members
        for name in old:
            if name not in new:
                self.note(EventName.MEMBER_LEFT, f"{name} left the federation", name, who)
        for name, settings in new.items():
            if name not in old:
                self.note(
                    EventName.MEMBER_JOINED, f"{name} joined the federation{self._from(name)}", name, who
                )
            elif (weight := old[name].weight) != settings.weight:
                now = weight_text(settings.weight)
                text = f"the weight of {name} changed from {weight_text(weight)} to {now}"
                self.note(EventName.MEMBER_WEIGHT, text, name, who)

    def _from(self, name: str) -> str:
        origin = self.origin(name)
        return "" if origin == CONFIG else f", from {origin}"

    async def _take_over(self, config: Config, own: Config, state: State) -> None:
        """Raises ConfigError, OSError or StartError, with nothing changed."""
        certificates, pages = self._open_files(config)
        workers = count_workers(config)
        old, old_workers = self.config, self._workers
        before = self.config, self._own, self._state, self._workers, self.admin_address, self._pages
        moved = workers != old_workers or [*map(shape, config.listen)] != [*map(shape, old.listen)]
        admin: Guarded | None = None
        if moved:
            # An address that was just given up still accepts for a moment, and cannot be opened again yet.
            await asyncio.sleep(self._moved_at + SETTLED - time.monotonic())
        try:
            with ExitStack() as undo:
                if moved:
                    undo.callback(self._sockets.open(config.listen, max(workers, old_workers)))
                if config.admin.address != old.admin.address:
                    admin = await self._listen_admin(config)
                self._refuse_collisions(config)
                self.config, self._own, self._state, self._workers = config, own, state, workers
                self._pages = pages
                await self._tell_planes(workers, moved)
                undo.pop_all()
        except BaseException:
            self.config, self._own, self._state, self._workers, self.admin_address, self._pages = before
            if admin is not None:
                await admin.close()
            # The new workers may have begun to accept before they failed, and visitors may wait there.
            await self._planes.look_after()
            raise
        if moved:
            self._sockets.close_others(config.listen, workers)
            self._moved_at = time.monotonic()
        if admin is not None:
            self._admin, gone = admin, self._admin
            self._do(_close_admin(gone))
        self._certificates = certificates
        self._metrics.put(config.otlp_metrics)
        if self._events is not None:
            self._events.form = config.log
        self._sharing.sessions.shrink(config.limits.sessions)
        self._expect_images(config)
        self._probe_again()

    async def _tell_planes(self, workers: int, moved: bool) -> None:
        planes = self._planes
        self._ramps.apply(self.config.active_members, self._state, time.monotonic())
        self._weigh_ramps()
        self._tell_weights()
        if not moved:
            planes.apply(self._to_apply())
        elif workers == 1 and isinstance(planes, Inside):
            await planes.move(self._to_apply())
        else:
            await self._replace_planes(workers)

    async def _replace_planes(self, workers: int) -> None:
        planes = self._planes_of(workers)
        health = [self._health(each) for each in self._reports.values()]
        try:
            await planes.start(self._to_apply(), health, self._tickets)
        except BaseException:
            # Some of them may have visitors already.
            self._leave(planes)
            await self._let_go_of_forker()
            raise
        old, self._planes = self._planes, planes
        # What was probed meanwhile was told to those before.
        for each in self._reports.values():
            planes.tell(self._health(each))
        for logo in self._logos.known if self._logos is not None else ():
            planes.tell(logo)
        self._leave(old)
        await self._let_go_of_forker()

    async def _let_go_of_forker(self) -> None:
        """Frees its memory if this process serves alone."""
        if isinstance(self._planes, Inside):
            await self._starter.close()

    def _leave(self, planes: Planes) -> None:
        self._leaving[planes] = asyncio.get_running_loop().create_task(self._see_off(planes))

    async def _see_off(self, planes: Planes) -> None:
        try:
            await planes.drain(self.config.timeouts.drain)
        finally:
            await planes.close()
            self._leaving.pop(planes, None)

    def _open_files(self, config: Config) -> tuple[dict[Shape, Certificates], ErrorPages]:
        """What the files that a config names are for it. Raises ConfigError for one that cannot be used."""
        find_targets(config)
        check_log(config)
        return self._open_certificates(config), error_pages(config)

    def _open_certificates(self, config: Config) -> dict[Shape, Certificates]:
        """Those of each listener that has them. Raises ConfigError with every fault."""
        found: dict[Shape, Certificates] = {}
        faults: list[Fault] = []
        for at, listener in enumerate(config.listen):
            if listener.tls is not None:
                try:
                    found[shape(listener)] = Certificates(listener.tls, f"listen.{at}.tls")
                except ConfigError as error:
                    faults += error.faults
        if faults:
            raise ConfigError(faults)
        return found

    # Chores

    async def _look(self) -> None:
        """Shows the history what there is: often while somebody looks on, else now and then, and on news."""
        await self.survey()
        while not any(planes.surveys() for planes in self._all_planes()):
            # Nobody has told how the members are, which is not that none is available.
            await asyncio.sleep(_AT_ONCE)
            await self.survey()
        while True:
            # Who serves is only asked when something happened: they tell what they counted anyway.
            news, self._has_news = self._has_news.is_set(), asyncio.Event()
            survey = await self.survey() if news else self.known()
            # Visitors may be served in this loop, so not all at once.
            await asyncio.sleep(0)
            self.history.see(survey, time.monotonic(), time.time())
            self._look_at_ramps(survey)
            self._watched = False
            done, self._next_look = self._next_look, asyncio.get_running_loop().create_future()
            done.set_result(None)
            await asyncio.sleep(_AT_ONCE)
            for _ in range(_SELDOM):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_OFTEN - _AT_ONCE):
                        await self._has_news.wait()
                self._weigh()
                if self._watched or self._has_news.is_set():
                    break

    def _hear_news(self) -> None:
        self._has_news.set()

    async def _keep_house(self) -> None:
        looks = 0
        rotate_at = time.monotonic() + _ROTATE_TICKETS
        seen = self._read
        pause = min(_LOOK, self._notifier.watchdog or _LOOK)
        while True:
            await asyncio.sleep(pause)
            self._notifier.alive()
            looks += 1
            if looks % _LOOK_AT_CERTIFICATES == 0:
                self._renew_certificates()
            if looks % _LOOK_AT_EDGES == 0 and self.link is not None and self.link.fleet.there:
                self.link.look()
            if time.monotonic() >= rotate_at:
                rotate_at += _ROTATE_TICKETS
                secret = secrets.token_bytes(32)
                if self.link is None or self.link.fleet.rotate_tickets(secret):
                    self.take_tickets(secret)
            if self._reread is not None:
                now = self._signature()
                # Twice the same: whoever writes them has finished.
                if now != self._read and now == seen and not self._changing.locked():
                    self._read = now
                    self._do(self._reload_in_turn("file"))
                seen = now

    def _renew_certificates(self) -> None:
        found = [each.refresh() for each in self._certificates.values()]
        if any(refreshed.renewed for refreshed in found):
            self._planes.tell(RenewCertificates())
        for refreshed in found:
            for line in fault_lines(str(self._file or "config"), refreshed.faults):
                text = f"{line}; the one in force is kept"
                self.note(EventName.CERTIFICATE_REFUSED, text, who="file")
            for path in refreshed.renewed:
                self.note(EventName.CERTIFICATE_RENEWED, f"{path}: renewed", who="file")


def _probed(report: Report) -> EventName:
    """How the probes find a member; full is everyday, and not unhealthy."""
    if report.healthy:
        return EventName.MEMBER_HEALTHY
    return EventName.MEMBER_FULL if report.reasons == QUOTA_ALONE else EventName.MEMBER_UNHEALTHY


def _refusals(counts: Mapping[str, int]) -> str:
    count = sum(counts.values())
    requests = "an admin request was" if count == 1 else f"{count} admin requests were"
    return f"{requests} refused: a wrong token, or one with too few rights"


async def _close_admin(admin: Guarded | None) -> None:
    """In its own time: who asked for the reload over it is still to be answered."""
    if admin is not None:
        await admin.close()


def count_workers(config: Config) -> int:
    """How many workers a config asks for; `auto` is one for each processor that this process may use."""
    return _processors() if config.workers == "auto" else config.workers


def _processors() -> int:
    """How many there are, or how many of them a container's limit comes to."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def _signature(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
