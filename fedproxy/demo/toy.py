"""A BinderHub on loopback that serves no notebooks: the same routes, sizes, streams and faults."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import json
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from fedproxy.demo import launches, pages
from fedproxy.web.origin import is_own

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TEN_YEARS = 315_360_000
_SLOW = 3.0
_FLAP = 10.0
_KEEPALIVE = 25.0
_SESSION = 300.0
_VERSIONS = {
    "builder_info": {"build_image": "quay.io/jupyterhub/repo2docker:2024.07.0"},
    "binderhub": "1.0.0-toy",
    "builder": "KubernetesBuildExecutor",
}
_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "cache-control"}


class Mode(enum.StrEnum):
    """How a toy member behaves."""

    HEALTHY = "healthy"
    SLOW = "slow"
    """Answers 3 seconds late, but its health checks in time: only visitors notice."""
    SICK = "sick"
    """Serves normally, but `/health` is 503: only probes notice."""
    FAILING = "failing"
    """503 to visitors while `/health` is fine: only a breaker notices."""
    RESETTING = "resetting"
    """Resets every connection once it has read a request head."""
    HANGING = "hanging"
    """Accepts, reads, and never answers until the mode changes."""
    FULL = "full"
    """All pods are taken: `/health` reports it, and launches fail."""
    FLAPPING = "flapping"
    """Failing for 10 seconds, healthy for 10 seconds, and so on."""
    KILL = "kill"
    """Cuts every connection and refuses new ones; another mode, set from outside, brings it back."""


class ToyBinderHub:
    """One member. `pace` scales every delay (0: none); `pods` are taken of `quota` (None: no limit).

    `linger`: seconds that a finished launch stream stays open, so that browsers do not reconnect.
    `clock` (seconds) times the flapping and the life of sessions.
    """

    def __init__(
        self,
        name: str,
        *,
        pace: float = 1.0,
        pods: int = 37,
        quota: int | None = 300,
        linger: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.pace = pace
        self.pods = pods
        self.quota = quota
        self.linger = linger
        self.mode = Mode.HEALTHY
        self.launches = 0
        self._clock = clock
        self._since = clock()
        self._sessions: deque[float] = deque()
        self._cached: set[str] = set()
        self._changed = asyncio.Event()
        self._address: tuple[str, int] | None = None
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None

    def __repr__(self) -> str:
        where = f"{self._address[0]}:{self._address[1]}" if self._address else "not started"
        return f"<ToyBinderHub {self.name} {self.mode} {where}>"

    @property
    def url(self) -> str:
        """Its URL, also while it is killed. Raises `RuntimeError` before the first start."""
        if self._address is None:
            raise RuntimeError(f"{self.name} has not been started")
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one. Raises `OSError` if the address is taken."""
        runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await runner.setup()
        try:
            await self._listen(runner, host, port)
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner

    async def stop(self) -> None:
        """Cut every connection and forget the listener. Harmless if it was not started."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await self._cut(runner)
            await runner.cleanup()

    async def set_mode(self, mode: Mode) -> None:
        """Behave like this from now on. Raises `OSError` if a killed member's port was taken meanwhile."""
        if mode is Mode.KILL and self._runner is not None:
            await self._cut(self._runner)
        elif self._site is None and self._runner is not None and self._address is not None:
            await self._listen(self._runner, *self._address)
        self.mode = mode
        self._since = self._clock()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _listen(self, runner: web.AppRunner, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        self._address = (host, listener.getsockname()[1])
        self._site = web.SockSite(runner, listener)
        await self._site.start()

    async def _cut(self, runner: web.AppRunner) -> None:
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        if runner.server is not None:
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    # State

    @property
    def total_pods(self) -> int:
        """Pods in use: those it was created with and the sessions that it launched recently."""
        if self.mode is Mode.FULL and self.quota is not None:
            return self.quota
        now = self._clock()
        while self._sessions and self._sessions[0] <= now:
            self._sessions.popleft()
        return self.pods + len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether there is no room for a launch."""
        return self.mode is Mode.FULL or (self.quota is not None and self.total_pods >= self.quota)

    def health(self) -> dict[str, Any]:
        """The report of `/health`; a full quota is reported but does not make the report as a whole false."""
        healthy = self.mode is not Mode.SICK
        total, building = self.total_pods, min(4, self.total_pods)
        return {
            "ok": healthy,
            "checks": [
                {"service": "Docker registry", "ok": True},
                {"service": "JupyterHub API", "ok": healthy},
                {
                    "service": "Pod quota",
                    "total_pods": total,
                    "build_pods": building,
                    "user_pods": total - building,
                    "quota": self.quota,
                    "ok": not self.full,
                    "_ignore_failure": True,
                },
            ],
        }

    # Routes

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._misbehave])
        application.on_response_prepare.append(self._sign)
        route = application.router.add_route
        route("*", "/_toy/{mode}", self._set_mode)
        route("GET", "/health", self._health)
        route("GET", "/versions", self._versions)
        route("GET", "/metrics", self._metrics)
        route("GET", "/build/{provider}/{spec:.+}", self._build)
        route("OPTIONS", "/build/{provider}/{spec:.+}", self._preflight)
        route("GET", "/api/repoproviders", self._repo_providers)
        route("GET", "/static/{path:.+}", self._static)
        route("GET", "/badge.svg", self._badge)
        route("GET", "/badge_logo.svg", self._badge)
        route("GET", "/repo/{repository:.+}", self._repo)
        route("*", "/echo", self._echo)
        route("GET", "/ws/echo", self._websocket)
        route("GET", "/user/{user}/api/kernels/{kernel}/channels", self._websocket)
        for method in ("PUT", "POST"):
            route(method, "/user/{user}/api/contents/{path:.+}", self._upload)
            route(method, "/upload", self._upload)
        route("GET", "/user/{user}/api/status", self._status)
        route("POST", "/user/{user}/api/kernels", self._kernel)
        route("DELETE", "/user/{user}/api/kernels/{kernel}", self._no_kernel)
        route("POST", "/user/{user}/api/shutdown", self._shutdown)
        route("GET", "/user/{user}/{path:.*}", self._session)
        route("GET", "/v2/{launch:.+}", self._launch)
        route("GET", "/{path:.*}", self._ui)
        return application

    async def _sign(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Toy-Member"] = self.name

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/_toy/"):
            return await handler(request)
        probe = request.path in ("/health", "/versions")
        match self.mode:
            case Mode.SLOW if not probe:
                await asyncio.sleep(_SLOW * self.pace)
            case Mode.HANGING:
                await self._changed.wait()
            case Mode.RESETTING:
                await self._reset(request)
            case Mode.FAILING if not probe:
                return web.Response(status=503, text=f"{self.name} is failing\n")
            case Mode.FLAPPING if not probe and (self._clock() - self._since) % (2 * _FLAP) < _FLAP:
                return web.Response(status=503, text=f"{self.name} is failing for a while\n")
        return await handler(request)

    async def _reset(self, request: web.Request) -> None:
        """Send RST instead of FIN; losing the connection then cancels the request's handler."""
        if request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        await asyncio.Event().wait()

    async def _set_mode(self, request: web.Request) -> web.StreamResponse:
        if not is_own(request, None):
            return web.json_response({"error": "this was sent by a page of another site"}, status=403)
        try:
            mode = Mode(request.match_info["mode"])
        except ValueError:
            return web.json_response({"error": "no such mode", "modes": [*Mode]}, status=404)
        response = web.json_response({"member": self.name, "mode": mode})
        if mode is Mode.KILL:
            # The answer must be sent before its own connection is cut.
            response.force_close()
            await response.prepare(request)
            await response.write_eof()
        await self.set_mode(mode)
        return response

    async def _health(self, _request: web.Request) -> web.Response:
        report = self.health()
        return web.json_response(report, status=200 if report["ok"] else 503)

    async def _versions(self, _request: web.Request) -> web.Response:
        return web.json_response(_VERSIONS)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            text="# TYPE binderhub_launch_count_total counter\n"
            f"binderhub_launch_count_total {self.launches}\n"
            f"# TYPE toy_pods gauge\ntoy_pods {self.total_pods}\n"
        )

    async def _ui(self, request: web.Request) -> web.Response:
        return _answer(request, _html(pages.ui_page(self.name)), max_age=None)

    async def _launch(self, request: web.Request) -> web.Response:
        return _answer(request, _html(pages.launch_page(self.name)), max_age=None)

    async def _session(self, request: web.Request) -> web.Response:
        return _answer(
            request, _html(pages.session_page(self.name, request.match_info["user"])), max_age=None
        )

    async def _repo_providers(self, request: web.Request) -> web.Response:
        return _answer(request, pages.make_asset(pages.repo_providers(), "application/json"), max_age=None)

    async def _badge(self, request: web.Request) -> web.Response:
        return _answer(request, pages.badge(), max_age=3600)

    async def _static(self, request: web.Request) -> web.Response:
        asset = pages.static_assets().get(request.match_info["path"])
        if asset is None:
            return web.Response(status=404, text="no such file\n")
        return _answer(request, asset, max_age=_TEN_YEARS)

    async def _repo(self, request: web.Request) -> web.Response:
        location = f"/v2/gh/{request.rel_url.raw_path.removeprefix('/repo/').rstrip('/')}/HEAD"
        return web.Response(status=302, headers={"Location": location})

    # Launches

    async def _preflight(self, _request: web.Request) -> web.Response:
        return web.Response(status=204, headers=_CORS)

    async def _build(self, request: web.Request) -> web.StreamResponse:
        accept = ",".join(request.headers.getall("Accept", ()))
        if "text/event-stream" not in {part.strip().lower() for part in accept.split(";")}:
            return web.Response(status=406, text="this address is an event stream\n", headers=_CORS)
        launch = self._describe(request)
        stream = web.StreamResponse(headers={"Cache-Control": "no-cache", **_CORS})
        stream.content_type = "text/event-stream"
        stream.enable_chunked_encoding()
        await stream.prepare(request)
        await stream.write(b":keepalive\n\n")
        async for event in self._events(launch, stream):
            await stream.write(b"data: %b\n\n" % json.dumps(event).encode())
        await self._rest(stream, self.linger)
        return stream

    def _describe(self, request: web.Request) -> launches.ToyLaunch:
        # The raw path: a spec is a token's audience, so what was escaped stays escaped.
        provider, _, spec = request.rel_url.raw_path.removeprefix("/build/").partition("/")
        user = f"{request.match_info['spec'].replace('/', '-')[:40]}-{secrets.token_hex(4)}".lower()
        user = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in user)
        return launches.ToyLaunch(
            provider, spec, self.url, f"{self.url}/user/{user}/", secrets.token_urlsafe(16)
        )

    async def _events(
        self, launch: launches.ToyLaunch, stream: web.StreamResponse
    ) -> AsyncIterator[launches.Event]:
        self.launches += 1
        cached = launch.image in self._cached or "cached" in launch.spec
        for step in launches.steps(launch, launches.outcome(launch, cached=cached, full=self.full)):
            await self._rest(stream, step.after * self.pace)
            if step.event.get("phase") == "built":
                self._cached.add(launch.image)
            elif step.event.get("phase") == "ready":
                self._sessions.append(self._clock() + _SESSION)
            yield step.event

    async def _rest(self, stream: web.StreamResponse, seconds: float) -> None:
        """Wait, with a comment every 25 seconds so that nobody on the way thinks the stream is dead."""
        while seconds > _KEEPALIVE:
            await asyncio.sleep(_KEEPALIVE)
            await stream.write(b":keepalive\n\n")
            seconds -= _KEEPALIVE
        if seconds > 0:
            await asyncio.sleep(seconds)

    # Sessions

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response({"kernels": 0}, headers=_CORS)

    async def _kernel(self, _request: web.Request) -> web.Response:
        return web.json_response({"id": secrets.token_hex(8), "name": "echo"}, status=201)

    async def _no_kernel(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _shutdown(self, _request: web.Request) -> web.Response:
        # Sessions are alike: the one that would have ended first goes.
        if self._sessions:
            self._sessions.popleft()
        return web.json_response({})

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        echo = web.WebSocketResponse(
            heartbeat=30, max_msg_size=0, protocols=("v1.kernel.websocket.jupyter.org",)
        )
        await echo.prepare(request)
        async for message in echo:
            if message.type is web.WSMsgType.TEXT:
                await echo.send_str(message.data)
            elif message.type is web.WSMsgType.BINARY:
                await echo.send_bytes(message.data)
        return echo

    async def _upload(self, request: web.Request) -> web.Response:
        digest, count = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            count += len(chunk)
        return web.json_response({"bytes": count, "sha256": digest.hexdigest()}, status=201)

    async def _echo(self, request: web.Request) -> web.Response:
        length = 0
        async for chunk in request.content.iter_any():
            length += len(chunk)
        return web.json_response(
            {
                "member": self.name,
                "method": request.method,
                "target": request.raw_path,
                "headers": [
                    [name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers
                ],
                "body_bytes": length,
            }
        )


def _html(text: str) -> pages.StaticFile:
    return pages.make_asset(text.encode(), "text/html")


def _answer(request: web.Request, asset: pages.StaticFile, *, max_age: int | None) -> web.Response:
    """The asset or a part of it, or 304 or 416 (RFC 9110 sections 13 and 14). `max_age` None: ask again."""
    headers = {
        "ETag": f'"{asset.etag}"',
        "Cache-Control": "no-cache" if max_age is None else f"max-age={max_age}",
        "Accept-Ranges": "bytes",
    }
    known = request.if_none_match or ()
    if any(tag.value in ("*", asset.etag) for tag in known):
        return web.Response(status=304, headers=headers)
    part = slice(None)
    if request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
        # RFC 9110 section 14.2: a Range that is not understood is ignored.
        with contextlib.suppress(ValueError):
            part = request.http_range
    if part.start is None:
        return web.Response(
            body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers
        )
    size = len(asset.body)
    start, stop, _ = part.indices(size)
    if start >= stop:
        return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return web.Response(
        status=206,
        body=asset.body[start:stop],
        content_type=asset.content_type,
        charset="utf-8",
        headers=headers,
    )
