"""What traces and metrics have in common when they are sent by OTLP over HTTP.

Besides this file only `tracing.py` and `otlp_metrics.py` know OpenTelemetry, which is installed with
`fedproxy[otel]`. They are imported if the config asks for them.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

from opentelemetry.sdk.resources import Resource

from fedproxy import __version__

TIMEOUT: Final = 5.0
"""Seconds for one request to a collector, including retries."""

_SWITCH: Final = 0.0005  # seconds
_SELDOM: Final = 60.0  # seconds between two reports about a collector that does not accept something
_LONGEST: Final = 500  # characters of such a report
_NOWHERE: Final = logging.NullHandler()


def resource(service_name: str) -> Resource:
    """Describes this process."""
    return Resource.create(
        {
            "service.name": service_name,
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        }
    )


def yield_to_loop() -> None:
    """The loop must not wait for as long as Python lets another thread keep the GIL."""
    sys.setswitchinterval(_SWITCH)


class Complaints(logging.Handler):
    """The SDK's log records about a collector that does not accept something, reported now and then.

    what: is not accepted, as a plural noun. report: called, in any thread, with a sentence, at most once a
    minute. logger: whose records these are.
    """

    def __init__(self, what: str, endpoint: str, report: Callable[[str], None], logger: str) -> None:
        super().__init__(logging.WARNING)
        self._start = f"{what} cannot be sent to {endpoint}"
        self._report = report
        self._quiet_until = -math.inf
        self._logger = logging.getLogger(logger)
        self._logger.addHandler(self)
        # For records that are logged after this handler is removed: they are discarded.
        self._logger.addHandler(_NOWHERE)
        self._logger.propagate = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging before it locks the handler: the loop does not wait for the thread that sends."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _SELDOM
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for what is not filtered out."""
        said = record.getMessage().partition("\n")[0][:_LONGEST]
        self._report(f"{self._start}: {said}")

    def close(self) -> None:
        """As logging's; later records are discarded."""
        self._logger.removeHandler(self)
        super().close()
