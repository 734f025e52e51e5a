"""The edge's own pages on the public listeners: who is in the federation, for programs and for visitors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import aiohttp_jinja2
from aiohttp import web

from fedproxy.web.answers import answer_errors, create_app
from fedproxy.web.page import environment, site, stylesheet
from fedproxy.web.view import active_hosts, live_cards, past_cards
from fedproxy.wire.cookie import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedproxy.config import Config
    from fedproxy.decide.snapshot import Snapshot


class PublicState(Protocol):
    """What the public pages ask for."""

    @property
    def config(self) -> Config:
        """What is in force."""

    def members(self) -> Sequence[Snapshot]:
        """The members as they are now."""

    def cookie_member(self, value: str) -> str | None:
        """The name of the member that an affinity cookie's value stands for."""


def create_public_app(state: PublicState) -> web.Application:
    """The pages of the public listeners."""
    app = create_app(answer_errors())
    app[aiohttp_jinja2.APP_KEY] = environment()
    pages = _Pages(state)
    app.router.add_get("/active_hosts", pages.active_hosts)
    app.router.add_get("/federation", pages.federation)
    app.router.add_get("/federation/style.css", pages.style)
    return app


class _Pages:
    def __init__(self, state: PublicState) -> None:
        self._state = state
        self._css = stylesheet()
        # In the address, so that a new version's page never meets an old version's style.
        self._style = f"/federation/style.css?{hashlib.sha256(self._css.encode()).hexdigest()[:12]}"

    async def active_hosts(self, request: web.Request) -> web.Response:
        state = self._state
        return web.json_response({"active_hosts": active_hosts(state.config, state.members())})

    async def federation(self, request: web.Request) -> web.Response:
        state = self._state
        context = {
            "site": site(state.config),
            "css": None,
            "style": self._style,
            "live": True,
            "mine": self._mine(request),
            "members": live_cards(state.config, state.members()),
            "past": past_cards(state.config),
        }
        return aiohttp_jinja2.render_template("federation.html", request, context)

    async def style(self, request: web.Request) -> web.Response:
        return style_response(self._css)

    def _mine(self, request: web.Request) -> str | None:
        """The member that the visitor is with, by the cookie as the hot path reads it."""
        fields = "; ".join(request.headers.getall("Cookie", ()))
        value, _ = take(
            fields.encode("utf-8", "surrogateescape"), self._state.config.affinity.cookie.encode()
        )
        return self._state.cookie_member(value.decode("latin-1")) if value else None


def style_response(css: str) -> web.Response:
    """The style sheet, which browsers may keep for a day."""
    return web.Response(
        text=css, content_type="text/css", charset="utf-8", headers={"Cache-Control": "public, max-age=86400"}
    )
