"""The page that makes toy members fail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from jinja2 import ChoiceLoader, PackageLoader

from fedproxy.decide.snapshot import Status
from fedproxy.demo.toy import Mode, ToyBinderHub
from fedproxy.web.answers import RefusedError, answer_errors, create_app
from fedproxy.web.origin import is_own
from fedproxy.web.page import Asset, environment, icon, stylesheet


@dataclass(frozen=True)
class Effect:
    """What a member does in a mode, the state that an edge finds it in, and what follows from that."""

    does: str
    state: Status
    follows: str

    @property
    def tone(self) -> str:
        """As on the visitors' page."""
        return {Status.AVAILABLE: "good", Status.FULL: "full"}.get(self.state, "bad")


EFFECTS: Final[Mapping[Mode, Effect]] = {
    Mode.HEALTHY: Effect(
        "Answers at once, and its checks pass.",
        Status.AVAILABLE,
        "Takes its share of visitors; if it was away, slowly at first.",
    ),
    Mode.SLOW: Effect(
        "Answers visitors 3 s late, but its checks in time.",
        Status.AVAILABLE,
        "Only the time to the first byte shows it.",
    ),
    Mode.SICK: Effect(
        "Serves visitors, but its health check says 503.",
        Status.UNHEALTHY,
        "Within 4 s, new visitors go to other members.",
    ),
    Mode.FAILING: Effect(
        "Answers visitors with 503, while its checks pass.",
        Status.EJECTED,
        "Another member answers; several failures in a row open its breaker, for 2 s, 4 s, 8 s and so on.",
    ),
    Mode.RESETTING: Effect(
        "Resets every connection on which a request comes.",
        Status.UNHEALTHY,
        "Another member answers; it is ejected first if it has visitors.",
    ),
    Mode.HANGING: Effect(
        "Reads requests and never answers.",
        Status.UNHEALTHY,
        "Another member answers after 5 s; its checks time out.",
    ),
    Mode.FULL: Effect(
        "Has no pod left: says so in its checks, and launches fail.",
        Status.FULL,
        "Within 4 s, launches go to other members. This is everyday.",
    ),
    Mode.FLAPPING: Effect(
        "Fails for 10 s, is healthy for 10 s, and so on.",
        Status.EJECTED,
        "Ejected while it fails; a trial request brings it back.",
    ),
    Mode.KILL: Effect(
        "Cuts every connection and refuses new ones.",
        Status.UNHEALTHY,
        "Another member answers; it is ejected first if it has visitors.",
    ),
}


class ToyControl:
    """A page that controls the members of a demo, and stays up when they are killed.

    links: the addresses of the edge's pages, by what to call them, once they are known.
    """

    def __init__(self, hubs: Iterable[ToyBinderHub]) -> None:
        self._hubs = {hub.name: hub for hub in hubs}
        self._runner: web.AppRunner | None = None
        self._page_style = stylesheet("/style.css")
        self._own_style = Asset("control.css", "text/css", "/control.css", package="fedproxy.demo")
        self._icon = icon("/icon.svg")
        loader = ChoiceLoader([PackageLoader("fedproxy.demo"), PackageLoader("fedproxy.web")])
        self._template = environment().overlay(loader=loader).get_template("control.html")
        self.links: Mapping[str, str] = {}

    @property
    def url(self) -> str:
        """The page's URL. Raises `RuntimeError` before the start."""
        if self._runner is None:
            raise RuntimeError("the control page has not been started")
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def start(self, host: str) -> None:
        """Listen on a free port."""
        application = create_app(answer_errors(), "form-action 'self'; img-src 'self'")
        application.router.add_get("/", self._page)
        for asset in (self._page_style, self._own_style, self._icon):
            application.router.add_get(asset.path, asset.serve)
        application.router.add_post("/{name}/{mode}", self._set_mode)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()

    async def stop(self) -> None:
        """Stop listening."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        text = self._template.render(
            css=None,
            style=self._page_style.url,
            own_style=self._own_style.url,
            icon=self._icon.url,
            hubs=list(self._hubs.values()),
            effects=EFFECTS,
            links=self.links,
        )
        return web.Response(text=text, content_type="text/html")

    async def _set_mode(self, request: web.Request) -> web.Response:
        if not is_own(request, None):
            raise RefusedError(403, "A mode can be set on this page or by a program, and by no other site.")
        name, mode = request.match_info["name"], request.match_info["mode"]
        if name not in self._hubs or mode not in list(Mode):
            known = {"members": list(self._hubs), "modes": [*Mode]}
            return web.json_response({"error": "no such member or mode", **known}, status=404)
        await self._hubs[name].set_mode(Mode(mode))
        if "text/html" in request.headers.get("Accept", ""):
            # To the card of the member, for who has many or a small screen.
            raise web.HTTPSeeOther(f"/#{name}")
        # With a line feed, for who reads it in a terminal.
        text = json.dumps({"member": name, "mode": mode}) + "\n"
        return web.Response(text=text, content_type="application/json")
