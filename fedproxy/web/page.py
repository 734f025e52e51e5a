"""The templates, and the federation's page from a config alone."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedproxy.web.view import configured_cards, past_cards

if TYPE_CHECKING:
    from fedproxy.config import Config

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>()#+.!|~&-])")


def escape_markdown(text: str) -> str:
    """Text of which Markdown makes nothing but that text."""
    return _SPECIAL.sub(r"\\\1", text)


def environment() -> Environment:
    """The templates, with the same rules for all: text is escaped, and a mistyped name is an error."""
    made = Environment(
        loader=PackageLoader("fedproxy.web"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["md"] = escape_markdown
    return made


def stylesheet() -> str:
    """The style of every page."""
    return files("fedproxy.web").joinpath("static/style.css").read_text("utf-8")


def site(config: Config) -> str:
    """The name of the federation's address, as visitors type it; empty if the config has none."""
    return (config.public_url or "").partition("://")[2]


def render_page(config: Config, form: str) -> str:
    """The member page as one document, "html" or "markdown", with nothing of how the members are now."""
    template = environment().get_template("federation.md" if form == "markdown" else "federation.html")
    return template.render(
        site=site(config),
        css=stylesheet(),
        live=False,
        mine=None,
        members=configured_cards(config),
        past=past_cards(config),
    )
