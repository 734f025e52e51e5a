"""A federation of toy members, its config, and a page to make the members fail."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from fedproxy.demo.toy import Mode, ToyBinderHub

_TOWNS = ("oxford", "leuven", "bergen", "bologna", "krakow", "coimbra", "uppsala", "heidelberg")
_WEIGHTS = (50, 30, 20)
_QUOTAS = (300, 180, 60)

BREAKER_FAILURES = 5


class DemoFederation:
    """Toy members and their control page, in this process and on this loop, within `async with`.

    `members`: how many, at least 1; the first is prime. `pace`: as of `ToyBinderHub`.
    """

    def __init__(self, members: int = 3, *, pace: float = 1.0, host: str = "127.0.0.1") -> None:
        if members < 1:
            raise ValueError("a federation has at least one member")
        self._host = host
        self._stack = AsyncExitStack()
        self.hubs = tuple(
            ToyBinderHub(_name(at), pace=pace, quota=_QUOTAS[at % len(_QUOTAS)]) for at in range(members)
        )
        self._control = ToyControl(self.hubs)

    def __repr__(self) -> str:
        return f"<DemoFederation {' '.join(hub.name for hub in self.hubs)}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for hub in self.hubs:
                await hub.start(self._host)
                stack.push_async_callback(hub.stop)
            await self._control.start(self._host)
            stack.push_async_callback(self._control.stop)
            # Only a federation that started whole stays.
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def control_url(self) -> str:
        """The page with every member and every mode; `/NAME/MODE` under it sets one."""
        return self._control.url

    def config_dict(self, port: int, admin_port: int, *, token: str | None = None) -> dict[str, Any]:
        """A config for an edge in front of these members; it detects failures sooner than the defaults."""
        admin = {"address": f"127.0.0.1:{admin_port}"}
        # With port 0 the address is only known once the edge listens.
        public = {"public_url": f"http://127.0.0.1:{port}"} if port else {}
        return {
            **public,
            "listen": [{"address": f"127.0.0.1:{port}", "http2": True}],
            "admin": admin if token is None else {**admin, "token": token},
            "workers": 1,
            "health": {
                "interval": "2s",
                "timeout": "1s",
                "fall": 2,
                "unhealthy_interval": "2s",
                "slow_start": "10s",
            },
            "breaker": {"failures": BREAKER_FAILURES, "open": "2s", "open_max": "10s"},
            "timeouts": {"response_head": "5s", "drain": "2s"},
            "members": {hub.name: _member(at, hub) for at, hub in enumerate(self.hubs)},
        }


def _member(at: int, hub: ToyBinderHub) -> dict[str, Any]:
    town = hub.name.removeprefix("toy-").title()
    return {
        "url": hub.url,
        "weight": _WEIGHTS[at % len(_WEIGHTS)],
        "prime": at == 0,
        "run_by": {"name": f"Toy Computing {town}", "url": hub.url},
        "funded_by": {"name": f"Toy Fund {town}", "url": hub.url},
        "contact": hub.url,
    }


def _name(at: int) -> str:
    town = f"toy-{_TOWNS[at % len(_TOWNS)]}"
    return town if at < len(_TOWNS) else f"{town}-{at // len(_TOWNS) + 1}"


class ToyControl:
    """A page that controls the members of a demo, and stays up when they are killed."""

    def __init__(self, hubs: Iterable[ToyBinderHub]) -> None:
        self._hubs = {hub.name: hub for hub in hubs}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The page's URL. Raises `RuntimeError` before the start."""
        if self._runner is None:
            raise RuntimeError("the control page has not been started")
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def start(self, host: str) -> None:
        """Listen on a free port."""
        application = web.Application()
        application.router.add_get("/", self._page)
        application.router.add_route("*", "/{name}/{mode}", self._set_mode)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()

    async def stop(self) -> None:
        """Stop listening."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        rows = "\n".join(self._row(hub) for hub in self._hubs.values())
        return web.Response(
            text=f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Make a toy member fail</title></head>
<body>
<h1>Make a toy member fail</h1>
<table>
{rows}
</table>
</body>
</html>
""",
            content_type="text/html",
        )

    def _row(self, hub: ToyBinderHub) -> str:
        name = html.escape(hub.name)
        buttons = "".join(
            f'<form method="post" action="/{name}/{mode}" style="display: inline">'
            f"<button{' disabled' if mode is hub.mode else ''}>{mode}</button></form> "
            for mode in Mode
        )
        return f'<tr><th><a href="{hub.url}/">{name}</a></th><td>{buttons}</td></tr>'

    async def _set_mode(self, request: web.Request) -> web.Response:
        name, mode = request.match_info["name"], request.match_info["mode"]
        if name not in self._hubs or mode not in list(Mode):
            known = {"members": list(self._hubs), "modes": [*Mode]}
            return web.json_response({"error": "no such member or mode", **known}, status=404)
        await self._hubs[name].set_mode(Mode(mode))
        if "text/html" in request.headers.get("Accept", ""):
            raise web.HTTPSeeOther("/")
        # With a line feed, for who reads it in a terminal.
        text = json.dumps({"member": name, "mode": mode}) + "\n"
        return web.Response(text=text, content_type="application/json")
