"""The templates, the files that pages load, and the federation's page rendered from a config alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedproxy.web.answers import takes_gzip
from fedproxy.web.document import configured_document
from fedproxy.web.view import configured_cards, join_contact, past_cards

if TYPE_CHECKING:
    from fedproxy.config.model import Config

_TEMPLATES: Final = {"html": "federation.html", "markdown": "federation.md", "myst": "federation.myst"}
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>()#+.!|~&-])")
# Any of these may be escaped (CommonMark), and MyST's extensions give a meaning to most.
_PUNCTUATION: Final = re.compile(r"([!-/:-@\[-`{-~])")


def escape_markdown(text: str) -> str:
    """Text escaped so that Markdown renders it literally."""
    return _SPECIAL.sub(r"\\\1", text)


def escape_myst(text: str) -> str:
    """Text escaped so that MyST renders it literally, whatever extensions it has."""
    return _PUNCTUATION.sub(r"\\\1", text)


@cache  # with the templates that it has compiled
def environment() -> Environment:
    """The template environment: text is escaped, and an undefined name is an error."""
    made = Environment(
        loader=PackageLoader("fedproxy.web"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["md"] = escape_markdown
    made.filters["myst"] = escape_myst
    return made


class Asset:
    """A file that pages load. `url` has a hash of the content: no page gets the file of another version."""

    def __init__(self, file: str, content_type: str, path: str, *, package: str = "fedproxy.web") -> None:
        self.text = files(package).joinpath("static", file).read_text("utf-8")
        self.path = path
        self._plain = self.text.encode()
        self._packed = gzip.compress(self._plain, mtime=0)
        self.url = f"{path}?{hashlib.sha256(self._plain).hexdigest()[:12]}"
        self._type = content_type

    async def serve(self, request: web.Request) -> web.Response:
        """Serves it, compressed to who takes that; browsers may cache it for a day."""
        headers = {"Cache-Control": "public, max-age=86400", "Vary": "Accept-Encoding"}
        body = self._plain
        if takes_gzip(request):
            headers["Content-Encoding"] = "gzip"
            body = self._packed
        return web.Response(body=body, content_type=self._type, charset="utf-8", headers=headers)


def stylesheet(path: str) -> Asset:
    """The style of every page, as `path`."""
    return Asset("style.css", "text/css", path)


def icon(path: str) -> Asset:
    """The icon of the edge's own pages, as `path`; without it, browsers would ask for a member's favicon."""
    return Asset("icon.svg", "image/svg+xml", path)


def site(config: Config) -> str:
    """The host name of the federation as visitors type it; empty if the config has none."""
    return (config.public_url or "").partition("://")[2]


def render_page(config: Config, form: str, *, past: bool = False) -> str:
    """The members as "html", "markdown", "myst" or "json", without their current state.

    "myst" is no page but a grid of cards to include in one: of the members, or with `past` of past members.
    All other forms have both; `past` leaves out everything but past members.
    """
    if form == "json":
        return json.dumps(configured_document(config, past=past), indent=2, ensure_ascii=False) + "\n"
    # A page loads nothing from other hosts, and without an edge there are no copies; cards are part of one.
    logos = {url: url for url in config.logos} if form == "myst" else {}
    return (
        environment()
        .get_template(_TEMPLATES[form])
        .render(
            site=site(config),
            css=stylesheet("").text,
            live=False,
            mine=None,
            join=join_contact(config),
            members=configured_cards(config, logos),
            past=past_cards(config, logos),
            only_past=past,
        )
    )
