"""One request of the control process and its whole body, bounded in time and size.

Whom it asks is somebody else's program, so every end but a whole response is an error of a known class.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

#: The most bytes of a body, unless told otherwise.
LARGEST: Final = 1 << 20

#: What a failed request raises. ValueError: an invalid URL or name. A TimeoutError is an OSError, too.
FAULTS: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


class TooLarge(aiohttp.ClientError):
    """The body is larger than allowed."""

    def __init__(self, most: int) -> None:
        super().__init__(f"answered more than {most >> 20} MiB")


@dataclass(frozen=True)
class Fetched:
    """A whole response to a request for `path` (the last one if it was redirected), and the seconds from the
    request to its last byte."""

    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def open_session(
    headers: Mapping[str, str],
    connector: aiohttp.BaseConnector | None = None,
    *,
    decompress: bool = False,
    middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
    trace: aiohttp.TraceConfig | None = None,
) -> aiohttp.ClientSession:
    """A client that ignores cookies and the environment, and has no time limits of its own."""
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=decompress,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        middlewares=middlewares,
        trace_configs=[trace] if trace is not None else None,
    )


async def fetch(
    session: aiohttp.ClientSession,
    url: URL,
    *,
    timeout: float,
    most: int = LARGEST,
    redirects: int = 0,
    headers: Mapping[str, str] | None = None,
    tls: SSLContext | None = None,
    method: str = "GET",
    content: object = None,
) -> Fetched:
    """One request and its whole body.

    timeout: seconds for all of it. most: bytes of the body. redirects: 0 makes a redirect a result; otherwise
    redirects are followed, and the last of so many is an error. tls: instead of the session's own. content:
    sent as JSON.

    Raises TimeoutError, TooLarge, and the rest of `FAULTS`.
    """
    start = time.monotonic()
    async with (
        asyncio.timeout(timeout),
        session.request(
            method,
            url,
            json=content,
            headers=headers,
            ssl=tls or True,
            allow_redirects=redirects > 0,
            max_redirects=redirects,
        ) as response,
    ):
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > most:
                raise TooLarge(most)
        return Fetched(
            response.url.raw_path, response.status, response.headers, bytes(body), time.monotonic() - start
        )
