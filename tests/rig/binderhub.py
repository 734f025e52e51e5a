"""A stand-in for BinderHub beside a real JupyterHub: its pages, its events and its checks, without images.

It has a thread and a loop of its own, so it serves whatever the test's loop does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

PROVIDERS = ("gh",)
VERSIONS = {"builder_info": {"build_image": "quay.io/jupyterhub/repo2docker:2026.01.0"}, "binderhub": "1.0.0"}
TOO_MANY = "Too many users on this BinderHub! Try again soon."
_QUOTA = 300
_LINGER = 60.0  # seconds that the stream of a build stays open at most, so that no browser asks again
_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "cache-control"}


class Failed(Exception):
    """A launch that fails; as BinderHub says it, with a status only if it is an HTTP error there."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.event: dict[str, object] = {"phase": "failed", "message": message + "\n"}
        if status is not None:
            self.event["status_code"] = status


class BinderHub:
    """One member's. What it is told to be is set from any thread, and holds from the next request on.

    `full`: no room for another server. `sick`: its registry does not answer. `signed_in`: who its visitors
    are, where they have to log in: their servers have names then. `secret` signs build tokens, and is one for
    all members. `hub` is the root of its JupyterHub's URLs, `public` of those of visitors; `key` is its token
    there.
    """

    def __init__(self, hub: str, public: str, key: str, secret: bytes) -> None:
        self.full = False
        self.sick = False
        self.signed_in: str | None = None
        self.origins: list[str] = []  # of tokens that were minted and checked
        self._hub = hub
        self.public = public
        self._key = key
        self._secret = secret
        self._built: set[str] = set()
        self._session: aiohttp.ClientSession

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[None]:
        """Serves on that port of loopback until the block ends."""
        started, failed = threading.Event(), list[BaseException]()
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            app = web.Application()
            app.add_routes(
                [
                    web.get("/health", self._health),
                    web.get("/versions", self._versions),
                    web.get("/v2/{provider}/{spec:.+}", self._launch_page),
                    web.get("/build/{provider}/{spec:.+}", self._build),
                    web.route("*", "/{any:.*}", self._page),
                ]
            )
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
            async with aiohttp.ClientSession(
                headers={"Authorization": f"token {self._key}"}
            ) as self._session:
                await runner.setup()
                try:
                    await web.TCPSite(runner, "127.0.0.1", port).start()
                    started.set()
                    await stop.wait()
                finally:
                    await runner.cleanup()

        def run() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: loop) as runner:
                    runner.run(serve())
            except BaseException as error:  # noqa: BLE001 - told to whoever waits for the start
                failed.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run, name="binderhub", daemon=True)
        thread.start()
        started.wait()
        try:
            if failed:
                raise failed[0]
            yield
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(stop.set)
            thread.join()
        if failed:
            raise failed[0]

    async def _health(self, request: web.Request) -> web.Response:
        checks: list[dict[str, object]] = [
            {"service": "Docker registry", "ok": not self.sick},
            {"service": "JupyterHub API", "ok": await self._hub_answers()},
        ]
        ok = all(check["ok"] for check in checks)
        pods = _QUOTA + 1 if self.full else 1
        counted = {"total_pods": pods, "build_pods": 0, "user_pods": pods, "quota": _QUOTA}
        # A quota that is reached is no ill health.
        checks.append({"service": "Pod quota", **counted, "ok": not self.full, "_ignore_failure": True})
        return web.json_response({"ok": ok, "checks": checks}, status=200 if ok else 503)

    async def _hub_answers(self) -> bool:
        try:
            async with self._session.get(f"{self._hub}/hub/api/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def _versions(self, request: web.Request) -> web.Response:
        return web.json_response(VERSIONS)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>Binder</title>", content_type="text/html")

    async def _launch_page(self, request: web.Request) -> web.Response:
        origin = _origin(request)
        self.origins.append(origin)
        said = {"aud": _target(request, "/v2/"), "origin": origin}
        body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
        token = f"{body}.{self._signature(body)}"
        config = json.dumps({"buildToken": token})
        page = f"<!doctype html><title>Binder</title><script>window.pageConfig = {config}</script>"
        return web.Response(text=page, content_type="text/html")

    async def _build(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **_CORS}
        )
        response.enable_chunked_encoding()

        async def emit(event: dict[str, object]) -> None:
            await response.write(b"data: %b\n\n" % json.dumps(event).encode())

        await response.prepare(request)
        try:
            if await self._launch(request, emit):
                await asyncio.sleep(_LINGER)
        except Failed as error:
            await emit(error.event)
        return response

    async def _launch(
        self, request: web.Request, emit: Callable[[dict[str, object]], Awaitable[None]]
    ) -> bool:
        """Whether an image had to be built."""
        spec = _target(request, "/build/")
        accepted = {part.strip().lower() for part in request.headers.get("Accept", "").split(";")}
        if "text/event-stream" not in accepted:
            raise Failed("Missing Accept header: text/event-stream", 400)
        token = request.query.get("build_token")
        if token:
            self.origins.append(_origin(request))
            self._check(token, spec, _origin(request))
        provider, _, repository = spec.partition("/")
        if provider not in PROVIDERS:
            raise Failed(f"No provider found for prefix {provider}")
        cached = spec in self._built
        if cached:
            await emit({"phase": "built", "imageName": "x", "message": "Found built image, launching...\n"})
        self._check_quota()
        if not cached:
            await emit({"phase": "waiting", "message": "Waiting for build to start...\n"})
            await emit({"phase": "building", "message": "Step 1/1 : FROM scratch\n"})
            self._built.add(spec)
            await emit({"phase": "built", "imageName": "x", "message": "Built image, launching...\n"})
            self._check_quota()
        await emit({"phase": "launching", "message": "Launching server...\n"})
        ready: dict[str, object] = {"phase": "ready"}
        async for event in self._server(repository):
            if "phase" in event:
                ready = event
            else:
                await emit({"phase": "launching", "message": f"{event['message']}\n"})
        await emit({**ready, "binder_launch_host": f"http://{request.host}/", "binder_request": f"v2/{spec}"})
        return not cached

    async def _server(self, repository: str) -> AsyncIterator[dict[str, object]]:
        """Starts a server at the hub: what the hub says meanwhile, and at last the event of phase `ready`."""
        # A name of a server has at most 30 characters since JupyterHub 6; BinderHub takes up to 41 for both.
        prefix = "-".join(repository.split("/")[:2]).lower()[: 20 if self.signed_in else 32].strip("-")
        name = f"{prefix}-{secrets.token_hex(4)}"
        user, server = (self.signed_in, name) if self.signed_in else (name, "")
        api = f"{self._hub}/hub/api/users/{user}"
        token = secrets.token_urlsafe(16)
        # Who has signed in is known to the hub, which says so.
        await self._ask("POST", api, 201, *((409,) if self.signed_in else ()))
        await self._ask("POST", f"{api}/servers/{server}", 201, 202, options={"image": "x", "token": token})
        progress = f"{api}/servers/{server}/progress" if server else f"{api}/server/progress"
        async with self._session.get(progress, headers={"Accept": "text/event-stream"}) as response:
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line[5:])
                if event.get("failed"):
                    raise Failed(str(event.get("message", "unknown error")), 500)
                yield event
                if event.get("ready"):
                    break
            else:
                raise Failed(f"Image x for user {user} failed to launch", 500)
        url = f"{self.public}/user/{user}/" + (f"{server}/" if server else "")
        yield {
            "phase": "ready",
            "message": f"server running at {url}\n",
            "url": url,
            "token": token,
            "image": "x",
        }

    async def _ask(self, method: str, url: str, *good: int, options: object = None) -> None:
        try:
            async with self._session.request(method, url, json=options or {}) as response:
                if response.status not in good:
                    raise Failed("Failed to launch image x", 500)
        except aiohttp.ClientError:
            raise Failed("Failed to launch image x", 500) from None

    def _check_quota(self) -> None:
        if self.full:
            raise Failed(TOO_MANY)

    def _signature(self, body: str) -> str:
        return hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()

    def _check(self, token: str, spec: str, origin: str) -> None:
        body, _, signature = token.partition(".")
        good = hmac.compare_digest(signature, self._signature(body))
        if not good or json.loads(base64.urlsafe_b64decode(body)) != {"aud": spec, "origin": origin}:
            raise Failed("Invalid build token", 403)


def _origin(request: web.Request) -> str:
    """What BinderHub binds a token to."""
    origin = request.headers.get("Origin")
    return request.headers.get("Host", "") if origin is None else urlsplit(origin).netloc


def _target(request: web.Request, prefix: str) -> str:
    """PROVIDER/SPEC, raw."""
    return request.raw_path.partition("?")[0].removeprefix(prefix)
