"""The operators' live page: what is on it, and the streams that keep open pages up to date.

A stream carries the changing part of the page as HTML, rendered by the same template, so that an open page
and one that was just loaded show the same. A slow reader skips versions, and one that reads nothing is
dropped.

With one worker this is also the visitors' loop. So each event is rendered and compressed once for all
streams, as a piece of a deflate stream that refers to no earlier piece. It is rendered in small steps, and
each turn of the loop writes to one stream only.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import web

from fedproxy import __version__, is_compiled
from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS
from fedproxy.decide.snapshot import WORST_FIRST, Status, shares
from fedproxy.event import Event, EventName, Level
from fedproxy.observe.history import EDGE_LINES, LINES, STEP, EdgeFigures, Figures, History, Quantile
from fedproxy.web.answers import RefusedError, takes_gzip
from fedproxy.web.refusals import describe_refusal, is_grave
from fedproxy.web.turns import gather, in_turns
from fedproxy.web.view import dashboard, describe

if TYPE_CHECKING:
    from jinja2 import Template

    from fedproxy.config.model import Config
    from fedproxy.control.ramps import RampSeen
    from fedproxy.decide.snapshot import Snapshot, Survey
    from fedproxy.observe.fleet import EdgeSeen, FleetSeen

MOST_STREAMS: Final = 200
_PATIENCE: Final = 10.0  # seconds for a reader to take what it was sent
_REST: Final = 9.0  # pause between two pages, as a multiple of the time that rendering one takes
_ABOUT_ONE: Final = 4  # events shown with a member
_SHOWN: Final = 40  # events that the page lists
_GOOD: Final = (
    *(EventName.MEMBER_HEALTHY, EventName.MEMBER_ROOM, EventName.MEMBER_JOINED, EventName.BREAKER_CLOSED),
    *(EventName.FEDERATION_AVAILABLE, EventName.OPERATOR_READY, EventName.OPERATOR_JOIN),
)
#: The class of each state: what its colour and its sign are.
_TONES: Final = {
    Status.AVAILABLE: "open",
    Status.SLOW_STARTING: "open",
    Status.FULL: "busy",
    Status.DRAINING: "rest",
    Status.MAINTENANCE: "rest",
    Status.UNHEALTHY: "shut",
    Status.EJECTED: "shut",
}
_SEVERITY: Final = {status: place for place, status in enumerate(WORST_FIRST)}
_SOURCES: Final = {
    Source.COOKIE: "cookie",
    Source.KEY: "repository or path",
    Source.RANDOM: "chance",
    Source.HOST: "host or route",
    Source.MOVED: "moved from another member",
    Source.SESSION: "session",
}
_PERCENTILES: Final = ("50", "95", "99")
_SOON: Final = 14  # days before the end of a certificate at which operators are warned
_GZIP: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952: a header without optional fields
_HEAD: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveState(Protocol):
    """What the live page needs to know."""

    @property
    def config(self) -> Config:
        """The config in force."""

    @property
    def history(self) -> History:
        """The last hour, and the last survey."""

    @property
    def started_at(self) -> float:
        """When the edge started, in seconds since the epoch."""

    @property
    def reloaded_at(self) -> float | None:
        """When a config was last loaded, in seconds since the epoch; None if none was."""

    def certificates(self) -> Mapping[str, float]:
        """When each certificate expires, in seconds since the epoch, by its name."""

    @property
    def listening(self) -> bool:
        """Whether visitors are accepted."""

    def known(self) -> Survey:
        """The last known survey, without asking the workers."""

    def ramp(self, name: str) -> RampSeen | None:
        """How far a member's ramp has come; None if it has none."""

    def origin(self, name: str) -> str:
        """Where a member comes from, in a word or two; `config` if that is its file."""

    def fleet(self) -> FleetSeen:
        """The edges that share a store with this one, or this one alone."""

    def next_look(self) -> asyncio.Future[None]:
        """Done when the history has seen the next survey. Shared: do not cancel it."""


@dataclass(frozen=True)
class _Made:
    """The event for look or step `number`; the next one is not rendered before `rest_until`.

    packed: the content as a piece of a deflate stream.
    """

    number: int = -1
    content: bytes = b""
    packed: bytes = b""
    rest_until: float = 0.0

    def sent(self, packs: bool) -> bytes:
        """The bytes for a stream."""
        return self.packed if packs else self.content


class Live:
    """The page's content and its streams, at most `most`. `template` renders the part that changes."""

    def __init__(self, state: LiveState, template: Template, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._state = state
        self._template = template
        self._streams = 0
        self._compiled = is_compiled()
        self._closing: asyncio.Future[None] | None = None
        self._made = _Made()
        self._charted = _Made()
        self._pointed = _Made()
        self._making = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def context(self, survey: Survey) -> dict[str, Any]:
        """The template's context."""
        history, edge = self._state.history, self._state.history.edge_figures()
        figures = dict(await gather(history.each_figures()))
        members = await gather(self._members(survey.members, figures))
        return {
            "about": self._about(),
            "ready": self._state.listening and any(member.answers for member in survey.members),
            "edge": survey.edge,
            "workers": survey.workers,
            "members": members,
            "available": sum(member.available for member in survey.members),
            "fleet": _fleet(self._state.fleet()),
            "time": _written(history.time) if history.time else None,
            "lately": edge,
            "refusals": [(describe_refusal(each.reason), each) for each in edge.refusals],
            "since": f"Last {'hour' if edge.since >= 3600 else _lasted(edge.since)}",
            "trouble": _edge_trouble(edge),
            "errors": sum(each.errors for each in figures.values()),
            "events": [_shown(event) for event in history.events[: -_SHOWN - 1 : -1]],
        }

    def _members(
        self, members: Sequence[Snapshot], figures: Mapping[str, Figures]
    ) -> Iterator[dict[str, Any]]:
        """The members as the template has them, the worst first."""
        history, settings, parts = self._state.history, self._state.config.members, shares(members)
        events: dict[str | None, list[Event]] = defaultdict(list)
        for event in reversed(history.events):
            if len(events[event.member]) < _ABOUT_ONE:
                events[event.member].append(event)
        # Sorting is stable: among members of one state the order is the config's.
        for member in sorted(members, key=lambda each: _SEVERITY[each.status]):
            name, lately = member.name, figures.get(member.name, Figures())
            yield {
                **describe(member, parts[name]),
                "tone": _TONES[member.status],
                "trouble": _trouble(member, lately, events[name]),
                "full": _full(member),
                "lately": lately,
                "first_byte": _spans(lately.first_byte),
                "chosen": _chosen(lately.sources),
                "choices": {str(reason): count for reason, count in member.counts.choices.items()},
                "dashboard": dashboard(settings.get(name)),
                "ramp": self._state.ramp(name),
                "source": self._state.origin(name),
                "events": [_shown(event) for event in events[name]],
            }

    def _about(self) -> dict[str, Any]:
        """Which edge this is."""
        now, state = time.time(), self._state
        loaded = state.reloaded_at
        about: dict[str, Any] = {
            "host": self._state.config.name,
            "version": f"{__version__}, {'compiled' if self._compiled else 'not compiled'}",
            "started": _written(state.started_at),
            "up": _lasted(now - state.started_at),
            "loaded": None if loaded is None else _written(loaded),
            "certificate": None,
        }
        certificates = state.certificates()
        if certificates:
            name, end = min(certificates.items(), key=lambda item: item[1])
            days = int((end - now) // 86400)
            about["certificate"] = {
                "name": name,
                "end": _written(end),
                "left": f"in {days} day{'s' * (days != 1)}" if end > now else "it has expired",
                "soon": days < _SOON,
            }
        return about

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Sends changes as server-sent events until the reader leaves or the listener closes."""
        if self._streams >= min(self._most, MOST_STREAMS):
            raise RefusedError(503, "Too many live pages are open.", {"Retry-After": "30"})
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        self._streams += 1
        try:
            return await self._serve(request, self._closing)
        finally:
            self._streams -= 1

    async def close(self, _app: web.Application) -> None:
        """Ends every stream; for `on_shutdown`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        if not self._closing.done():
            self._closing.set_result(None)

    async def _serve(self, request: web.Request, closing: asyncio.Future[None]) -> web.StreamResponse:
        packs = takes_gzip(request)
        response = web.StreamResponse(headers=_HEAD)
        response.headers["Vary"] = "Accept-Encoding"
        if packs:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        shown = drawn = -1
        begin = _GZIP if packs else b""
        try:
            while not closing.done():
                looked = self._state.next_look()
                charts, page = await self._chart(drawn), await self._page()
                new = (charts.sent(packs) if charts.number != drawn else b"") + (
                    page.sent(packs) if page.number != shown else b""
                )
                drawn, shown = charts.number, page.number
                async with self._turn:
                    await asyncio.sleep(0)
                # A reader that is far behind delays this, and then gets the current state.
                async with asyncio.timeout(_PATIENCE):
                    await response.write(begin + new)
                begin = b""
                await asyncio.wait({looked, closing}, return_when=asyncio.FIRST_COMPLETED)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        return response

    async def page(self) -> str:
        """The changing part of the page as it is now."""
        return await in_turns(self._template.generate(await self.context(self._state.known())))

    async def _page(self) -> _Made:
        """The page event, rendered once for all streams; again after a look, unless it is too soon."""
        history, made = self._state.history, self._made
        async with self._making:
            if history.survey is None or made is not self._made or made.number == history.looks:
                return self._made
            began = time.monotonic()
            if began < made.rest_until:
                return made
            number, context = history.looks, await self.context(history.survey)
            page = await in_turns(self._template.generate(context))
            now = time.monotonic()
            self._made = await _make(number, "page", page, now + _REST * (now - began))
        return self._made

    async def _chart(self, drawn: int) -> _Made:
        """The event for a page whose charts go up to step `drawn`: nothing, one point, or whole charts."""
        history = self._state.history
        if drawn == history.steps:
            return _Made(drawn)
        async with self._making:
            if drawn == history.steps - 1 and drawn >= 0:
                if self._pointed.number != history.steps:
                    point = {
                        "time": history.times()[-1],
                        "edge": history.newest_of_edge(),
                        "members": history.newest(),
                    }
                    self._pointed = await _make(history.steps, "point", point)
                return self._pointed
            if self._charted.number != history.steps:
                charts = {
                    "lines": LINES,
                    "edge_lines": EDGE_LINES,
                    "bounds": BOUNDS,
                    "seconds": STEP,
                    "times": history.times(),
                    "edge": history.edge_charts(),
                    "members": history.charts(),
                }
                self._charted = await _make(history.steps, "charts", charts)
            return self._charted


def log(events: Iterable[Event]) -> dict[str, Any]:
    """The events as data for programs."""
    return {"events": [told(event) for event in events]}


def told(event: Event) -> dict[str, Any]:
    """An event as plain data, with the keys of the log."""
    return {
        "time": _written(event.time),
        "level": event.level.value,
        "event": event.name.value,
        "member": event.member,
        "who": event.who,
        "message": event.message,
    }


def _shown(event: Event) -> dict[str, Any]:
    """An event for the page. tone: the class of its line."""
    tone = "bad" if event.level is not Level.INFO else "good" if event.name in _GOOD else "note"
    return {**told(event), "tone": tone}


def _written(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def _lasted(seconds: float) -> str:
    """A time, as exact as anybody wants it."""
    minutes = max(0, int(seconds // 60))
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days"


def _fleet(fleet: FleetSeen) -> dict[str, Any] | None:
    """The fleet as the template has it; None for an edge that shares no store."""
    store = fleet.store
    if not store.shared:
        return None
    # Sorting is stable: this one is the first of its kind.
    edges = sorted(fleet.edges, key=lambda edge: not edge.disagrees)
    return {
        "place": store.place,
        "up": store.up,
        "since": None if store.since is None else _written(store.since),
        "pending": store.pending,
        "edges": [_edge(edge) for edge in edges],
    }


def _edge(edge: EdgeSeen) -> dict[str, Any]:
    started = edge.started_at
    return {
        **asdict(edge),
        "key": edge.id or edge.name,
        "up": None if started is None else _lasted(time.time() - started),
    }


def _trouble(member: Snapshot, lately: Figures, events: Iterable[Event]) -> str | None:
    """What is wrong with a member, for an operator who was just woken; None if nothing is.

    events: those about it, newest first.
    """
    found = []
    if not member.healthy and not member.is_over_quota:
        found.append("; ".join(member.details or member.reasons) or "unhealthy, for no known reason")
    elif member.breaker is not BreakerState.CLOSED:
        bad = next((event for event in events if event.level is not Level.INFO), None)
        last = f"; {_written(bad.time)[11:19]} {bad.message}" if bad else ""
        found.append(f"breaker {member.breaker.value}{last}")
    if lately.last_resort:
        found.append(f"the last resort for {_rate(lately.last_resort)} requests/s that no other member takes")
    return "; ".join(found) or None


def _full(member: Snapshot) -> str | None:
    """Why a member is full, which is everyday; None if it is not."""
    if member.status is not Status.FULL:
        return None
    if member.is_over_quota:
        return "; ".join(member.details) or "over its quota"
    launches = "" if member.max_launches is None else f" of {member.max_launches}"
    return f"{member.in_flight} requests and {member.launches}{launches} launches in flight"


def _edge_trouble(lately: EdgeFigures) -> list[str]:
    """What visitors in good order are refused for at the moment."""
    return [
        f"{_rate(each.rate)}/s refused: {describe_refusal(each.reason)}"
        for each in lately.refusals
        if each.rate and is_grave(each.reason)
    ]


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{max(value, 0.01):.2g}"


def _spans(found: Sequence[Quantile | None]) -> str | None:
    """Percentiles as the buckets that they are in, all in one unit; None if there are none.

    What is between the bounds of a bucket is a guess, and a guess is not to be read as a measurement.
    """
    known = [(name, each) for name, each in zip(_PERCENTILES, found, strict=True) if each is not None]
    if not known:
        return None
    in_seconds = any(each.upper is None or each.upper > 1 for _, each in known)
    scale, unit = (1.0, "s") if in_seconds else (1000.0, "ms")
    texts = []
    for name, each in known:
        if each.upper is None:
            span = f"over {each.lower * scale:g}"
        elif not each.lower:
            span = f"up to {each.upper * scale:g}"
        else:
            span = f"{each.lower * scale:g} to {each.upper * scale:g}"
        texts.append(f"{name}\N{NO-BREAK SPACE}%: {span}")
    return f"{', '.join(texts)} {unit}"


def _chosen(sources: Mapping[str, int]) -> str | None:
    """What chose a member, the most frequent first; None if nothing did."""
    found = sorted(sources.items(), key=lambda item: -item[1])
    return ", ".join(f"{_SOURCES[Source(source)]} {count}" for source, count in found) or None


async def _make(number: int, name: str, data: str | Mapping[str, Any], rest_until: float = 0.0) -> _Made:
    """An event, plain and compressed."""
    # In a thread: zlib releases the GIL.
    content, packed = await asyncio.to_thread(_event, name, data)
    return _Made(number, content, packed, rest_until)


def _event(name: str, data: str | Mapping[str, Any]) -> tuple[bytes, bytes]:
    # JSON has no raw line ends, so one `data` line is enough.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    content = f"event: {name}\ndata: {text}\n\n".encode("utf-8", "replace")
    pack = zlib.compressobj(4, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A full flush ends on a byte boundary, and the next piece does not refer to this one.
    return content, pack.compress(content) + pack.flush(zlib.Z_FULL_FLUSH)
