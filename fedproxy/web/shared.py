"""What pages of other origins may read: open to all, compressed, with an entity tag."""

from __future__ import annotations

import gzip
import hashlib
from typing import Final

from aiohttp import web

from fedproxy.web.answers import takes_gzip

_METHODS: Final = "GET, HEAD, OPTIONS"
#: For pages that are isolated (COEP) too; nothing here depends on who asks.
OPEN: Final = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}


class SharedBody:
    """A body that any page may read, with its entity tags; it is compressed once, when somebody takes that.

    cache: the Cache-Control of its answers.
    """

    def __init__(self, text: str, content_type: str, cache: str) -> None:
        self._plain = text.encode()
        self._packed: bytes | None = None
        self._tag = hashlib.sha256(self._plain).hexdigest()[:16]
        self._type = content_type
        self._cache = cache

    def answer(self, request: web.Request) -> web.Response:
        """200, or 304 to who has it already."""
        packed = takes_gzip(request)
        # Two representations have two tags (RFC 9110 section 8.8.3.3).
        tag = f"{self._tag}-gzip" if packed else self._tag
        headers = {**OPEN, "Cache-Control": self._cache, "Vary": "Accept-Encoding", "ETag": f'"{tag}"'}
        # A malformed field is no condition.
        known = request.if_none_match or ()
        if any(each.value in ("*", tag) for each in known):
            return web.Response(status=304, headers=headers)
        body = self._plain
        if packed:
            headers["Content-Encoding"] = "gzip"
            body = self._zipped()
        return web.Response(body=body, content_type=self._type, charset="utf-8", headers=headers)

    def _zipped(self) -> bytes:
        if self._packed is None:
            self._packed = gzip.compress(self._plain, mtime=0)
        return self._packed


async def preflight(request: web.Request) -> web.Response:
    """What a browser asks before a request that is not simple (Fetch standard)."""
    return web.Response(
        status=204,
        headers={
            **OPEN,
            "Allow": _METHODS,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": "*",
            "Access-Control-Max-Age": "86400",
        },
    )
