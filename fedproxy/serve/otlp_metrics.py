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
            report = partial(self._report_soon, asyncio.get_running_loop())
            self._exporting = _Exporting(settings, self._view, self._since, report)

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
    """Sends at once, then at every interval.

    since: when counting began, in nanoseconds since the epoch. report: called in any thread.
    """

    def __init__(
        self,
        settings: OtlpMetricsSettings,
        view: Callable[[], View],
        since: int,
        report: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._view = view
        self._since = since
        self._report = report
        self._sender: MetricsSender | None = None
        # A name server or a collector may hold it up, and nothing is to wait for that.
        self._thread = DiskThread("fedproxy-metrics")
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._send()
            await asyncio.sleep(self._settings.interval)

    async def _send(self) -> None:
        sender = await self._thread.run(self._make)
        from fedproxy.observe.otlp_metrics import points  # it is loaded by now

        found = await gather(points(self._view(), self._since, time.time_ns()))
        await self._thread.run(partial(sender.send, found))

    def _make(self) -> MetricsSender:
        """Called in the thread, as the import takes half a second. The extra brings what is imported."""
        if self._sender is None:
            from fedproxy.observe.otlp_metrics import MetricsSender

            self._sender = MetricsSender(self._settings.endpoint, self._settings.service_name, self._report)
        return self._sender

    async def close(self, within: float) -> None:
        """Sends once more, for at most `within` seconds, and ends."""
        await cancel([self._task])
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._send()
        if self._sender is not None:
            self._sender.close()
        self._thread.end()
