"""The edge's own pages in the same access log as the traffic that passes through."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractAccessLogger

from fedproxy.proxy.own_page import ORIGINAL_TARGET
from fedproxy.record import Record

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from aiohttp.web import BaseRequest, StreamResponse


def page_logger(log: Callable[[Record], None]) -> type[AbstractAccessLogger]:
    """A class that aiohttp's server makes for itself, and that hands what it is told to `log`."""

    class PageLogger(AbstractAccessLogger):
        def __init__(self, logger: logging.Logger, log_format: str) -> None:
            super().__init__(logger, log_format)

        def log(self, request: BaseRequest, response: StreamResponse, duration: float) -> None:
            headers = request.headers
            # As in the rest of the log, a client without a known address is "-".
            client = headers.get("X-Real-IP", "")
            log(
                Record(
                    time=time.time(),
                    request_id=headers.get("X-Request-ID", ""),
                    client=client if client != "unknown" else "-",
                    method=request.method,
                    # aiohttp would look up this machine's name for one that sent none.
                    host=headers.get("Host", ""),
                    target=headers.get(ORIGINAL_TARGET) or request.raw_path,
                    protocol=f"HTTP/{request.version.major}.{request.version.minor}",
                    status=response.status,
                    bytes_in=request.content_length or 0,
                    bytes_out=response.content_length or 0,
                    duration=duration,
                    user_agent=headers.get("User-Agent", ""),
                    referer=headers.get("Referer", ""),
                )
            )

    return PageLogger
