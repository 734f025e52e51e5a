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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import web

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import shares
from fedproxy.event import Event, EventName, Level
from fedproxy.observe.history import LINES, STEP, Figures, History
from fedproxy.web.answers import RefusedError, takes_gzip
from fedproxy.web.turns import in_turns
from fedproxy.web.view import describe

if TYPE_CHECKING:
    from jinja2 import Template

    from fedproxy.decide.snapshot import Snapshot, Survey

MOST_STREAMS: Final = 200
_PATIENCE: Final = 10.0  # seconds for a reader to take what it was sent
_REST: Final = 9.0  # pause between two pages, as a multiple of the time that rendering one takes
_ABOUT_ONE: Final = 4  # events shown with a member
_SHOWN: Final = 40  # events that the page lists
_GOOD: Final = (
    *(EventName.MEMBER_HEALTHY, EventName.MEMBER_JOINED, EventName.BREAKER_CLOSED),
    *(EventName.FEDERATION_AVAILABLE, EventName.OPERATOR_READY, EventName.OPERATOR_JOIN),
)
_GZIP: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952: a header without optional fields
_HEAD: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveState(Protocol):
    """What the live page needs to know."""

    @property
    def history(self) -> History:
        """The last hour, and the last survey."""

    @property
    def listening(self) -> bool:
        """Whether visitors are accepted."""

    def known(self) -> Survey:
        """The last known survey, without asking the workers."""

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
        self._closing: asyncio.Future[None] | None = None
        self._made = _Made()
        self._charted = _Made()
        self._pointed = _Made()
        self._making = asyncio.Lock()
        self._turn = asyncio.Lock()

    def context(self, survey: Survey) -> dict[str, Any]:
        """The template's context."""
        history = self._state.history
        parts, figures = shares(survey.members), history.figures()
        events: dict[str | None, list[Event]] = defaultdict(list)
        for event in reversed(history.events):
            if len(events[event.member]) < _ABOUT_ONE:
                events[event.member].append(event)
        members = [
            {
                **describe(member, parts[member.name]),
                "trouble": _trouble(member, events[member.name]),
                "lately": figures.get(member.name, Figures()),
                "events": [_shown(event) for event in events[member.name]],
            }
            for member in survey.members
        ]
        return {
            "ready": self._state.listening and any(member.available for member in survey.members),
            "edge": survey.edge,
            "workers": survey.workers,
            "members": members,
            "available": sum(member.available for member in survey.members),
            "time": _written(history.time) if history.time else None,
            "requests": sum(member["lately"].requests for member in members),
            "errors": sum(member["lately"].errors for member in members),
            "events": [_shown(event) for event in history.events[: -_SHOWN - 1 : -1]],
        }

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
        return await in_turns(self._template.generate(self.context(self._state.known())))

    async def _page(self) -> _Made:
        """The page event, rendered once for all streams; again after a look, unless it is too soon."""
        history, made = self._state.history, self._made
        async with self._making:
            if history.survey is None or made is not self._made or made.number == history.looks:
                return self._made
            began = time.monotonic()
            if began < made.rest_until:
                return made
            number, context = history.looks, self.context(history.survey)
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
                    self._pointed = await _make(history.steps, "point", {"members": history.newest()})
                return self._pointed
            if self._charted.number != history.steps:
                charts = {"lines": LINES, "seconds": STEP, "members": history.charts()}
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


def _trouble(member: Snapshot, events: Iterable[Event]) -> str | None:
    """What is wrong with a member, for an operator who was just woken; None if nothing is.

    events: those about it, newest first.
    """
    if not member.healthy:
        return "; ".join(member.details or member.reasons) or "unhealthy, for no known reason"
    if member.breaker is not BreakerState.CLOSED:
        bad = next((event for event in events if event.level is not Level.INFO), None)
        last = f"; {_written(bad.time)[11:19]} {bad.message}" if bad else ""
        return f"breaker {member.breaker.value}{last}"
    if member.intent is Intent.READY and not member.available:
        return f"full, with {member.in_flight} requests and {member.launches} launches in flight"
    return None


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
