"""The edge's own pages on the public listeners: who is in the federation, for programs and for visitors."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp_jinja2
from aiohttp import web

from fedproxy.web.answers import RefusedError, answer_errors, create_app, takes_gzip
from fedproxy.web.document import SCHEMA_PATH, live_document, render_schema
from fedproxy.web.error_pages import LOGO
from fedproxy.web.origin import is_own
from fedproxy.web.page import environment, icon, site, stylesheet
from fedproxy.web.shared import OPEN, SharedBody, preflight
from fedproxy.web.view import active_hosts, join_contact, live_cards, past_cards
from fedproxy.wire.cookie import set_cookie, take

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedproxy.config.model import Config
    from fedproxy.control.messages import Logo
    from fedproxy.decide.snapshot import Snapshot


_PAGE: Final = "/federation"
_LOGOS: Final = f"{_PAGE}/logo/"
_RENDERED_FOR: Final = 1.0  # seconds
# A copy is used without asking while it is this old ...
_DOCUMENT_CACHE: Final = "public, max-age=5"
# ... but never the script of another version: asking costs an answer without a body.
_SCRIPT_CACHE: Final = "no-cache"
_SCHEMA_CACHE: Final = "public, max-age=3600"


class PublicState(Protocol):
    """What the public pages need to know."""

    @property
    def config(self) -> Config:
        """The config in force."""

    def members(self) -> Sequence[Snapshot]:
        """The members as they are now."""

    def logos(self) -> Mapping[str, Logo]:
        """The logos that the page can show, by the URL in the config."""

    def cookie_member(self, value: str) -> str | None:
        """The name of the member that an affinity cookie's value identifies."""

    async def metrics(self, accept: str) -> tuple[str, bytes]:
        """The metrics of all workers as the admin listener has them: media type and text. Raises OSError."""

    def cookie_for(self, name: str, secure: bool) -> str | None:
        """The Set-Cookie value that keeps a visitor with a member; None if there is no such member."""


def create_public_app(state: PublicState) -> web.Application:
    """The pages of the public listeners."""
    app = create_app(answer_errors(), "form-action 'self'; img-src 'self'")
    app[aiohttp_jinja2.APP_KEY] = environment()
    pages = _Pages(state)
    app.router.add_get("/active_hosts", pages.active_hosts)
    app.router.add_get(_PAGE, pages.federation)
    app.router.add_post(f"{_PAGE}/move", pages.move)
    for asset in (pages.style, pages.icon):
        app.router.add_get(asset.path, asset.serve)
    for path, serve in (
        (f"{_PAGE}.json", pages.document),
        (f"{_PAGE}.js", pages.widget),
        (SCHEMA_PATH, pages.schema),
    ):
        app.router.add_get(path, serve)
        app.router.add_options(path, preflight)
    app.router.add_get(LOGO, pages.site_logo)
    app.router.add_get(f"{_LOGOS}{{key}}", pages.logo)
    # Any other path comes here only if a route says so.
    app.router.add_get("/{path:(?!federation/).*}", pages.metrics)
    return app


class _Pages:
    def __init__(self, state: PublicState) -> None:
        self._state = state
        self.style = stylesheet(f"{_PAGE}/style.css")
        self.icon = icon(f"{_PAGE}/icon.svg")
        script = files("fedproxy.web").joinpath("static", "federation.js").read_text("utf-8")
        self._widget = SharedBody(script, "text/javascript", _SCRIPT_CACHE)
        self._schema = SharedBody(render_schema(), "application/schema+json", _SCHEMA_CACHE)
        self._document: SharedBody | None = None
        self._rendered_at = 0.0

    async def active_hosts(self, request: web.Request) -> web.Response:
        state = self._state
        return web.json_response({"active_hosts": active_hosts(state.config, state.members())})

    async def metrics(self, request: web.Request) -> web.Response:
        """The edge's metrics, where a route has them on the public port."""
        try:
            kind, text = await self._state.metrics(",".join(request.headers.getall("Accept", ())))
        except OSError:
            raise RefusedError(503, "The metrics cannot be had at the moment.") from None
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
        response = web.Response(body=text, headers=headers)
        if takes_gzip(request):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def federation(self, request: web.Request) -> web.Response:
        state = self._state
        logos = {url: _LOGOS + logo.key for url, logo in state.logos().items()}
        context = {
            "site": site(state.config),
            "css": None,
            "style": self.style.url,
            "icon": self.icon.url,
            "live": True,
            "mine": self._mine(request),
            "join": join_contact(state.config),
            "members": live_cards(state.config, state.members(), logos),
            "past": past_cards(state.config, logos),
            "only_past": False,
        }
        return aiohttp_jinja2.render_template("federation.html", request, context)

    async def document(self, request: web.Request) -> web.Response:
        """The members for programs. However many ask, it is rendered once a second."""
        now = asyncio.get_running_loop().time()
        if self._document is None or now - self._rendered_at >= _RENDERED_FOR:
            self._rendered_at = now
            self._document = SharedBody(self._render(), "application/json", _DOCUMENT_CACHE)
        return self._document.answer(request)

    def _render(self) -> str:
        state = self._state
        logos = {url: _LOGOS + logo.key for url, logo in state.logos().items()}
        found = live_document(state.config, state.members(), logos)
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"

    async def widget(self, request: web.Request) -> web.Response:
        """The script that fills tables of other sites with the members."""
        return self._widget.answer(request)

    async def schema(self, request: web.Request) -> web.Response:
        """The JSON Schema of the members for programs."""
        return self._schema.answer(request)

    async def logo(self, request: web.Request) -> web.Response:
        """A logo. Its key is derived from its content, so it can be cached for long."""
        key = request.match_info["key"]
        logo = next((logo for logo in self._state.logos().values() if logo.key == key), None)
        if logo is None:
            raise RefusedError(404, "There is no such image.")
        headers = {
            "Content-Type": logo.kind,
            "Cache-Control": "public, max-age=604800, immutable",
            # Other sites show it beside what they read of the members.
            **OPEN,
        }
        return web.Response(body=logo.content, headers=headers)

    async def site_logo(self, request: web.Request) -> web.Response:
        """The logo of the site. Pages that show it were made before it was known."""
        logo = self._state.logos().get(self._state.config.pages.logo or "")
        if logo is None:
            raise RefusedError(404, "There is no such image.")
        headers = {"Content-Type": logo.kind, "Cache-Control": "public, max-age=3600"}
        return web.Response(body=logo.content, headers=headers)

    async def move(self, request: web.Request) -> web.Response:
        """Moves the visitor to `member`; without one, the next request chooses a member anew.

        The parameters are in the query: no page of the edge takes a body.
        """
        if not is_own(request, self._state.config.public_url):
            raise RefusedError(403, "This can only be asked for on the federation's own page.")
        name = request.query.get("member", "")
        secure = request.headers.get("X-Forwarded-Proto") == "https"
        if name:
            cookie = self._cookie_for(name, secure)
        else:
            cookie = set_cookie(self._state.config.affinity.cookie, b"", 0, secure=secure).decode("ascii")
        return web.Response(status=303, headers={"Location": _PAGE, "Set-Cookie": cookie})

    def _cookie_for(self, name: str, secure: bool) -> str:
        member = next((member for member in self._state.members() if member.name == name), None)
        cookie = self._state.cookie_for(name, secure)
        if member is None or cookie is None:
            raise RefusedError(404, "There is no member with that name.")
        if not member.takes_visitors:
            raise RefusedError(409, "This member takes no new visitors at the moment.")
        return cookie

    def _mine(self, request: web.Request) -> str | None:
        """The visitor's member according to the cookie, read as the hot path reads it."""
        fields = "; ".join(request.headers.getall("Cookie", ()))
        value, _ = take(
            fields.encode("utf-8", "surrogateescape"), self._state.config.affinity.cookie.encode()
        )
        named = [
            name
            for each in (value or b"").decode("latin-1").split(";")
            if each and (name := self._state.cookie_member(each)) is not None
        ]
        available = [member.name for member in self._state.members() if member.available]
        return next((name for name in named if name in available), named[0] if named else None)
