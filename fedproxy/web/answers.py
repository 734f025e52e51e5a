"""What both applications have in common: error answers, and the fields of every response."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from fedproxy.errors import FedproxyError
from fedproxy.wire.answer import PAGE_STYLE, names, render

_ID: Final = web.RequestKey("request_id", str)
_IS_ID: Final = re.compile(r"[!-~]{1,128}").fullmatch
_DETAILS: Final = {
    404: "There is nothing here.",
    405: "This method is not allowed here.",
    413: "The request's body is too large.",
}
_POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
# The page of an error has its style within.
_STYLE: Final = b64encode(hashlib.sha256(PAGE_STYLE.encode()).digest()).decode("ascii")
_PAGE_POLICY: Final = _POLICY.replace("'self'", f"'sha256-{_STYLE}'")


class RefusedError(FedproxyError):
    """Raised by a handler to refuse a request with this answer. `detail` is one line of plain text."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def request_id(request: web.Request) -> str:
    """The id in the request's X-Request-ID, or a new one."""
    if _ID not in request:
        given = request.headers.get("X-Request-ID", "")
        request[_ID] = given if _IS_ID(given) else secrets.token_hex(16)
    return request[_ID]


def answer_errors(accept: bytes | None = None) -> Middleware:
    """A middleware that renders errors as the edge does, in the form that `accept` or the request prefers."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as error:
            status, detail, headers = error.status, error.detail, error.headers
        except web.HTTPError as error:
            status = error.status
            detail = _DETAILS.get(status, error.reason)
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        wanted = accept
        if wanted is None:
            wanted = ",".join(request.headers.getall("Accept", ())).encode("latin-1", "replace")
        answer = render(status, detail, request_id(request), wanted, build=False)
        headers["Content-Type"] = answer.content_type.decode("ascii")
        if answer.content_type.startswith(b"text/html"):
            headers["Content-Security-Policy"] = _PAGE_POLICY
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    return middleware


def _signer(policy: str) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Adds the header fields of every response; for `on_response_prepare`."""

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        # aiohttp would name the versions of itself and of Python.
        headers["Server"] = "fedproxy"
        headers["X-Request-ID"] = request_id(request)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        headers.setdefault("Content-Security-Policy", f"{_POLICY}; {policy}")
        headers.setdefault("Cache-Control", "no-store")
        if request.version < HttpVersion11:
            # aiohttp tells an HTTP/1.0 client that its connection is kept, but not that it is closed.
            headers.setdefault("Connection", "close")

    return sign


class _WithoutTracebacks(logging.Filter):
    """A malformed request is the client's fault: one line is enough, without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.msg = f"{record.msg}: {type(record.exc_info[1]).__name__}"
            record.exc_info = None
        return True


_FILTER: Final = _WithoutTracebacks()


def create_app(middleware: Middleware, policy: str) -> web.Application:
    """An application that signs its responses and logs no traceback for a client's mistake.

    policy: Content-Security-Policy directives for its pages, in addition to loading their style.
    """
    logging.getLogger("aiohttp.server").addFilter(_FILTER)
    app = web.Application(middlewares=[middleware], client_max_size=64 * 1024)
    app.on_response_prepare.append(_signer(policy))
    return app


def takes_gzip(request: web.BaseRequest) -> bool:
    """Whether the Accept-Encoding fields admit gzip (RFC 9110 section 12.5.3)."""
    accepted = ",".join(request.headers.getall("Accept-Encoding", ())).encode("latin-1", "replace")
    return names(accepted, b"gzip") or names(accepted, b"x-gzip")
