"""Two typical proxies to compare with the edge: `proxies.py aiohttp|tornado PORT MEMBER_PORT...`.

Both keep a visitor with a member by a cookie, send the visitor's address to the member, and keep connections
to the members open. `aiohttp` streams, and forwards WebSockets. `tornado` reads each answer whole before it
sends it, as federation-redirect does.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Sequence
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

_COOKIE = "fedproxy_member"
_PER_HOP = frozenset(
    {
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_HANDSHAKE = "sec-websocket-"


class AiohttpProxy:
    """A streaming proxy of aiohttp's server and client."""

    def __init__(self, members: dict[str, str], session: aiohttp.ClientSession) -> None:
        self._members = members
        self._session = session

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Passes one request on."""
        name = request.cookies.get(_COOKIE, "")
        known = name in self._members
        if not known:
            name = random.choice(list(self._members))
        url = URL(self._members[name] + request.raw_path, encoded=True)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._tunnel(request, url)
        return await self._relay(request, url, None if known else name)

    async def _relay(self, request: web.BaseRequest, url: URL, cookie: str | None) -> web.StreamResponse:
        body = request.content if request.body_exists else None
        async with self._session.request(
            request.method, url, headers=_forwarded(request), data=body, allow_redirects=False
        ) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for field, value in answer.headers.items():
                if field.lower() not in _PER_HOP:
                    response.headers.add(field, value)
            if cookie:
                response.set_cookie(_COOKIE, cookie, path="/", httponly=True)
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    async def _tunnel(self, request: web.BaseRequest, url: URL) -> web.StreamResponse:
        headers = _forwarded(request)
        for field in [field for field in headers if field.lower().startswith(_HANDSHAKE)]:
            del headers[field]
        async with self._session.ws_connect(
            url, headers=headers, max_msg_size=0, autoping=False, autoclose=False
        ) as member:
            visitor = web.WebSocketResponse(max_msg_size=0, autoping=False, autoclose=False)
            await visitor.prepare(request)
            ways = [
                asyncio.create_task(_copy(visitor, member)),
                asyncio.create_task(_copy(member, visitor)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            return visitor


def _forwarded(request: web.BaseRequest) -> CIMultiDict[str]:
    headers = CIMultiDict(
        (field, value) for field, value in request.headers.items() if field.lower() not in _PER_HOP
    )
    before = headers.get("X-Forwarded-For")
    visitor = request.remote or ""
    headers["X-Forwarded-For"] = f"{before}, {visitor}" if before else visitor
    headers["X-Forwarded-Proto"] = request.scheme
    headers["X-Forwarded-Host"] = request.host
    return headers


async def _copy(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    send: dict[aiohttp.WSMsgType, Any] = {
        aiohttp.WSMsgType.TEXT: sink.send_str,
        aiohttp.WSMsgType.BINARY: sink.send_bytes,
        aiohttp.WSMsgType.PING: sink.ping,
        aiohttp.WSMsgType.PONG: sink.pong,
    }
    async for message in source:
        if message.type in send:
            passing: Awaitable[None] = send[message.type](message.data)
            await passing


async def run_aiohttp(port: int, members: Sequence[int]) -> None:
    """Serves until it is ended."""
    named = {f"m{number}": f"http://127.0.0.1:{at}" for number, at in enumerate(members)}
    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        server = web.Server(AiohttpProxy(named, session).handle, access_log=None, keepalive_timeout=600)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=4096)
        await listener.serve_forever()


def run_tornado(port: int, members: Sequence[int]) -> None:
    """Serves until it is ended."""
    from tornado.httpclient import AsyncHTTPClient, HTTPRequest
    from tornado.httpserver import HTTPServer
    from tornado.httputil import HTTPHeaders
    from tornado.ioloop import IOLoop
    from tornado.web import Application, RequestHandler

    named = {f"m{number}": f"http://127.0.0.1:{at}" for number, at in enumerate(members)}

    class Proxy(RequestHandler):  # type: ignore[misc, unused-ignore]
        async def proxy(self) -> None:
            name = self.get_cookie(_COOKIE) or ""
            if name not in named:
                name = random.choice(list(named))
                self.set_cookie(_COOKIE, name, path="/", httponly=True)
            headers = HTTPHeaders()
            for field, value in self.request.headers.get_all():
                if field.lower() not in _PER_HOP and field.lower() != "content-length":
                    headers.add(field, value)
            headers.add("X-Forwarded-For", self.request.remote_ip or "")
            headers["X-Forwarded-Proto"] = self.request.protocol
            headers["X-Forwarded-Host"] = self.request.host
            answer = await AsyncHTTPClient().fetch(
                HTTPRequest(
                    named[name] + (self.request.uri or "/"),
                    method=self.request.method or "GET",
                    headers=headers,
                    body=self.request.body or None,
                    allow_nonstandard_methods=True,
                    follow_redirects=False,
                    decompress_response=False,
                ),
                raise_error=False,
            )
            self.set_status(answer.code, answer.reason)
            for field, value in answer.headers.get_all():
                if field.lower() not in _PER_HOP and field.lower() not in ("content-length", "server"):
                    self.add_header(field, value)
            self.finish(answer.body)

        get = post = head = put = proxy

        def check_etag_header(self) -> bool:
            return False

        def compute_etag(self) -> None:
            return None

    async def serve() -> None:
        AsyncHTTPClient.configure(None, max_clients=1000)
        HTTPServer(Application([(r".*", Proxy)]), idle_connection_timeout=600).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    IOLoop.current().run_sync(serve)


if __name__ == "__main__":
    which, (listen, *behind) = sys.argv[1], [int(number) for number in sys.argv[2:]]
    if which == "tornado":
        run_tornado(listen, behind)
    else:
        uvloop.run(run_aiohttp(listen, behind))
