"""The operators' live page: what is on it, and the streams that keep open pages up to date.

A stream is sent the page's changing part as HTML, as the templates have it, so that a page that was just
loaded and one that is open show the same. What a reader is too slow for is skipped, and one that reads
nothing is dropped.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import web

from fedproxy.observe.history import LINES, STEP, Event, Figures, History
from fedproxy.web.answers import RefusedError
from fedproxy.web.view import describe, shares

if TYPE_CHECKING:
    from jinja2 import Template

    from fedproxy.decide.snapshot import Survey

_MOST_STREAMS: Final = 200
_PATIENCE: Final = 10.0  # seconds that a reader may take for what it was sent
_REST: Final = 9.0  # times as long as it took to make a page, none is made
_ABOUT_ONE: Final = 4  # events that are shown beside a member
_SHOWN: Final = 40  # events that the page lists
_HEAD: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveState(Protocol):
    """What the live page asks for."""

    @property
    def history(self) -> History:
        """What there was, and the last survey."""

    @property
    def listening(self) -> bool:
        """Whether visitors are accepted."""

    def next_look(self) -> asyncio.Future[None]:
        """Done when the history has seen the next survey. Shared: not to be cancelled."""


@dataclass(frozen=True)
class _Made:
    """What was made of the look or the step of that `number`; the next is not made before `rest_until`."""

    number: int = -1
    content: bytes = b""
    rest_until: float = 0.0


class Live:
    """The page's content, and its streams. `template` is that of the part that changes."""

    def __init__(self, state: LiveState, template: Template) -> None:
        self._state = state
        self._template = template
        self._streams = 0
        self._closing: asyncio.Future[None] | None = None
        self._made = _Made()
        self._charted = _Made()
        self._making = asyncio.Lock()

    def context(self, survey: Survey) -> dict[str, Any]:
        """What the template shows."""
        history = self._state.history
        parts, figures = shares(survey.members), history.figures()
        members = [
            {
                **describe(member, parts[member.name]),
                "lately": figures.get(member.name, Figures()),
                "events": [told(event) for event in history.about(member.name, _ABOUT_ONE)],
            }
            for member in survey.members
        ]
        return {
            "ready": self._state.listening and any(member.available for member in survey.members),
            "edge": survey.edge,
            "workers": survey.workers,
            "members": members,
            "requests": sum(member["lately"].requests for member in members),
            "errors": sum(member["lately"].errors for member in members),
            "events": [told(event) for event in history.events[: -_SHOWN - 1 : -1]],
        }

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """What changes, as server-sent events, until the reader leaves or the listener closes."""
        if self._streams >= _MOST_STREAMS:
            raise RefusedError(503, "As many live pages are open as may be.", {"Retry-After": "30"})
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
        response = web.StreamResponse(headers=_HEAD)
        await response.prepare(request)
        shown = drawn = -1
        try:
            while not closing.done():
                looked = self._state.next_look()
                charts, page = await self._chart(drawn), await self._page()
                new = (charts.content if charts.number != drawn else b"") + (
                    page.content if page.number != shown else b""
                )
                drawn, shown = charts.number, page.number
                # A reader who is far behind keeps this waiting, and is then sent what holds by then.
                async with asyncio.timeout(_PATIENCE):
                    await response.write(new)
                await asyncio.wait({looked, closing}, return_when=asyncio.FIRST_COMPLETED)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _page(self) -> _Made:
        """The page, made once for all streams, and again after a look if that takes no more than its part."""
        history, made = self._state.history, self._made
        async with self._making:
            if history.survey is None or made is not self._made or made.number == history.looks:
                return self._made
            began = time.monotonic()
            if began < made.rest_until:
                return made
            number, context = history.looks, self.context(history.survey)
            # In a thread: with many members it takes its time, and this may be the visitors' loop.
            page = await asyncio.to_thread(self._template.render, context)
            now = time.monotonic()
            self._made = _Made(number, _event("page", page), now + _REST * (now - began))
        return self._made

    async def _chart(self, drawn: int) -> _Made:
        """What a page lacks whose charts go up to the step `drawn`, and the step up to which they go then."""
        history = self._state.history
        if drawn == history.steps - 1 and drawn >= 0:
            return _Made(history.steps, _event("point", {"members": history.newest()}))
        if drawn != history.steps:
            async with self._making:
                if self._charted.number != history.steps:
                    number = history.steps
                    charts = {"lines": LINES, "seconds": STEP, "members": history.charts()}
                    self._charted = _Made(number, await asyncio.to_thread(_event, "charts", charts))
            return self._charted
        return _Made(drawn)


def log(events: Iterable[Event]) -> dict[str, Any]:
    """The events for programs."""
    return {"events": [told(event) for event in events]}


def told(event: Event) -> dict[str, Any]:
    """An event in plain words and values."""
    return {
        "time": datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds"),
        "level": event.level.value,
        "member": event.member,
        "text": event.text,
    }


def _event(name: str, data: str | Mapping[str, Any]) -> bytes:
    # As JSON it has no line ends.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n".encode("utf-8", "replace")
