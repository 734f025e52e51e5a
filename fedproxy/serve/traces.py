"""The tracer of a data plane."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fedproxy.event import Event, EventName
from fedproxy.tasks import Tasks

if TYPE_CHECKING:
    from fedproxy.config.model import TracingSettings
    from fedproxy.observe.tracing import Tracing
    from fedproxy.proxy.edge import Edge

_LAST_SPANS = 1.0  # seconds for a collector to take the last ones


class Traces:
    """Creates the edge's tracer according to the config."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._settings: TracingSettings | None = None
        self._tracing: Tracing | None = None
        self._closing = Tasks()

    def put(self, settings: TracingSettings) -> None:
        """Puts the settings in force; spans of the previous tracer are still sent."""
        if settings == self._settings:
            return
        self._settings = settings
        self._end()
        if settings.endpoint != "off":
            # Only now, as it is only there with the extra, and takes its time.
            from fedproxy.observe.tracing import Sampler, Tracing

            sampler = Sampler(settings.sample, settings.follow, settings.limit)
            report = partial(self._report, asyncio.get_running_loop())
            self._tracing = Tracing(settings.endpoint, settings.service_name, sampler, report)
        self._edge.tracer = self._tracing

    def _report(self, loop: asyncio.AbstractEventLoop, message: str) -> None:
        """Called in the thread that sends spans."""
        event = Event(EventName.TRACE_UNSENT, message)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._edge.report, event)

    def _end(self) -> None:
        if self._tracing is not None:
            self._closing.start(self._tracing.close(_LAST_SPANS))
            self._tracing = None

    async def close(self) -> None:
        """Returns once the spans are sent, or after a time limit."""
        self._edge.tracer = None
        self._end()
        await self._closing.wait()
