"""Sends the metrics of all workers together by OTLP, from the control process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fedproxy.serve.disk import DiskThread
from fedproxy.tasks import Tasks, cancel
from fedproxy.web.turns import gather

if TYPE_CHECKING:
    from fedproxy.config.model import OtlpMetricsSettings
    from fedproxy.observe.metrics import View
    from fedproxy.observe.otlp_metrics import MetricsSender

_LAST = 1.0  # seconds for a collector to take the last ones


class MetricsExport:
    """Sends metrics according to the config, as they are when they are sent.

    report: called with a sentence when the collector takes none, at most once a minute.
    """

    def __init__(self, view: Callable[[], View], report: Callable[[str], None]) -> None:
        self._view = view
        self._report = report
        self._since = time.time_ns()
        self._settings: OtlpMetricsSettings | None = None
        self._exporting: _Exporting | None = None
        self._closing = Tasks()

    def put(self, settings: OtlpMetricsSettings) -> None:
        """Puts the settings in force; the collector before gets the last metrics."""
        if settings == self._settings:
            return
        self._settings = settings
        self._end()
        if settings.endpoint != "off":
            # Only now, as it is only there with the extra, and takes its time.
            from fedproxy.observe.otlp_metrics import MetricsSender

            report = partial(self._report_soon, asyncio.get_running_loop())
            sender = MetricsSender(settings.endpoint, settings.service_name, report)
            self._exporting = _Exporting(sender, self._view, self._since, settings.interval)

    def _report_soon(self, loop: asyncio.AbstractEventLoop, message: str) -> None:
        """Called in the thread that sends."""
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._report, message)

    def _end(self) -> None:
        if self._exporting is not None:
            self._closing.start(self._exporting.close(_LAST))
            self._exporting = None

    async def close(self) -> None:
        """Returns once the last metrics are sent, or after a time limit."""
        self._settings = None
        self._end()
        await self._closing.wait()


class _Exporting:
    """Sends at once, then every so many seconds. since: when counting began, in nanoseconds of the epoch."""

    def __init__(self, sender: MetricsSender, view: Callable[[], View], since: int, interval: float) -> None:
        self._sender = sender
        self._view = view
        self._since = since
        self._interval = interval
        # A name server or a collector may hold it up, and nothing is to wait for that.
        self._thread = DiskThread("fedproxy-metrics")
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._send()
            await asyncio.sleep(self._interval)

    async def _send(self) -> None:
        from fedproxy.observe.otlp_metrics import points

        found = await gather(points(self._view(), self._since, time.time_ns()))
        await self._thread.run(partial(self._sender.send, found))

    async def close(self, within: float) -> None:
        """Sends once more, for at most `within` seconds, and ends."""
        await cancel([self._task])
        with suppress(TimeoutError):
            await asyncio.wait_for(self._send(), within)
        self._sender.close()
        self._thread.end()
