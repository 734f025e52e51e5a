"""Fetches the logos of the pages, so that visitors' browsers load nothing from other hosts.

They are fetched one after the other; each must be complete and small. Their type is determined by their first
bytes, not by the other host's Content-Type.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from yarl import URL

from fedproxy import __version__
from fedproxy.control.fetch import FAULTS, fetch, open_session
from fedproxy.control.messages import Logo
from fedproxy.event import Event, EventName
from fedproxy.observe.access_log import mask_target
from fedproxy.tasks import cancel

_LARGEST: Final = 64 * 1024  # bytes
_TIME: Final = 10.0  # seconds for one of them
_AGAIN: Final = 24 * 3600.0  # seconds until one that was found is fetched again ...
_RETRY: Final = 600.0  # ... and one that was not
_REDIRECTS: Final = 3
_MARKS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


class Logos:
    """Fetches the logos last given to `apply`, until `close`. Create it in a running loop.

    tell: called with each logo that is new or has changed. report: takes an event for each URL without one.
    """

    def __init__(
        self, tell: Callable[[Logo], None], report: Callable[[Event], None] = lambda event: None
    ) -> None:
        self._tell = tell
        self._report = report
        self._due: dict[str, float] = {}  # by URL, in seconds of the loop's clock
        self._known: dict[str, Logo] = {}
        self._complained: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def known(self) -> list[Logo]:
        """The logos found so far."""
        return list(self._known.values())

    def apply(self, urls: Iterable[str]) -> None:
        """Sets the URLs. Logos of URLs that stay are kept."""
        wanted = set(urls)
        self._due = {url: self._due.get(url, 0.0) for url in sorted(wanted)}
        self._known = {url: logo for url, logo in self._known.items() if url in wanted}
        self._complained &= wanted
        self._wake.set()
        if wanted and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stops fetching."""
        if self._task is not None:
            await cancel([self._task])
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            for url in [url for url, at in self._due.items() if at <= loop.time()]:
                logo = await self._fetch(url)
                if url in self._due:
                    self._due[url] = loop.time() + (_AGAIN if logo is not None else _RETRY)
                    self._keep(url, logo)
            if not self._wake.is_set():
                soonest = min(self._due.values(), default=loop.time() + _AGAIN)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(soonest):
                        await self._wake.wait()

    def _keep(self, url: str, logo: Logo | None) -> None:
        if logo is not None and logo != self._known.get(url):
            self._known[url] = logo
            self._tell(logo)
        if logo is None and url not in self._known and url not in self._complained:
            self._complained.add(url)
            message = f"no logo at {mask_target(url)}: the pages show initials, or nothing, in its place"
            self._report(Event(EventName.MEMBER_LOGO, message))

    async def _fetch(self, url: str) -> Logo | None:
        """None if there is no image, or it is too large."""
        headers = {"User-Agent": f"fedproxy/{__version__}", "Accept": "image/*"}
        try:
            async with open_session(headers, decompress=True) as session:
                found = await fetch(session, URL(url), timeout=_TIME, most=_LARGEST, redirects=_REDIRECTS)
        except FAULTS:
            return None
        kind = image_type(found.body)
        if kind is None or found.status != 200:
            return None
        key = hashlib.sha256(kind.encode() + found.body).hexdigest()[:16]
        return Logo(url, key, kind, found.body)


def image_type(content: bytes) -> str | None:
    """The media type of an image that browsers show; None for anything else."""
    for mark, kind in _MARKS:
        if content.startswith(mark):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (
        start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start
    ):
        return "image/svg+xml"
    return None
