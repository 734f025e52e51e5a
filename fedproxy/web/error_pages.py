"""The pages of the edge's own answers, from the operator's templates or the built-in one.

They are rendered when a config is put in force: once for each situation and language. What differs between
requests is a slot, which `fedproxy.wire.pages` fills.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from jinja2 import (
    FunctionLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateNotFound,
    TemplateRuntimeError,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from fedproxy.control.messages import ErrorPages
from fedproxy.errors import ConfigError, Fault
from fedproxy.web.page import site
from fedproxy.wire.pages import AUTO, LINK, NONE, SLOTS, key, slot

if TYPE_CHECKING:
    from fedproxy.config.model import Config

LOGO: Final = "/federation/logo/site"
"""Where the edge serves `pages.logo`."""

LARGEST: Final = 256 * 1024
"""The most bytes of a template, and of a page."""

_MOST_FILES: Final = 200
_MOST_BYTES: Final = 8 << 20  # of all pages, which every worker is sent
_KEY: Final = "pages.templates"
_BUILT_IN: Final = "fedproxy/error.html"
_ENGLISH: Final = "en"
_FILE: Final = re.compile(r"([a-z]+)(?:\.([A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*))?\.html").fullmatch
#: Of each situation, the templates to look for, the best first.
_TEMPLATES: Final = {
    **{name: (name, "error") for name in ("down", "busy", "unreachable", "session", "gone", "limit")},
    "refused": ("refused", "error"),
    "launch": ("launch", "error"),
    "error": ("error",),
}
#: What a launch's page says in place of that of any other page.
_OF_LAUNCHES: Final = {"busy": "launch", "unreachable": "launch", "down": "down"}

# What can go wrong in a template that is a valid one: `StrictUndefined`, a filter's argument, an include of
# itself, the slots' own error.
_FAILURES: Final = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Slot:
    """A value that is known when a page is sent: a template can only print it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __html__(self) -> str:
        return slot(self._name)

    def _refuse(self, *_: object) -> NoReturn:
        # No TypeError, which some filters take for a reason to print something else.
        raise TemplateRuntimeError(
            f"{self._name!r} is known only when the page is sent, expected it only to be printed"
        )

    __str__ = __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __mod__ = __mul__ = __len__ = __iter__ = __getitem__ = __format__ = _refuse
    __int__ = __float__ = __index__ = _refuse
    __hash__ = object.__hash__


@cache
def _part(name: str) -> str:
    return files("fedproxy.web").joinpath("templates", name).read_text("utf-8")


@cache
def _script() -> str:
    return files("fedproxy.web").joinpath("static", "retry.js").read_text("utf-8")


@cache
def _retry() -> Markup:
    """For the head of a page that asks again by itself, with script or without."""
    # The policy allows this text and no other.
    return Markup(  # noqa: S704 -- both parts are ours
        f'<noscript><meta http-equiv="refresh" content="60"></noscript>\n'
        f'<script data-after="{slot("retry_after")}">{_script()}</script>\n'
    )


@cache
def policy() -> str:
    """The Content-Security-Policy of the pages: no script but ours, and images of the edge only."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode("ascii")
    # Who may embed the page is not said: sites that embed a launch should see why it fails.
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'"
    )


def error_pages(config: Config) -> ErrorPages:
    """The pages of a config. The templates are read again each time.

    Raises ConfigError with what is wrong with the templates, by file and, as far as it is known, line.
    """
    settings = config.pages
    return rendered_pages(
        settings.templates,
        site=settings.site or site(config),
        logo=LOGO if settings.logo else "",
        status_url=settings.status_url or "",
        public_url=config.public_url or "",
    )


def rendered_pages(folder: Path | None, **about: str) -> ErrorPages:
    """The pages from the templates in a folder. about: the variables about the site. Raises ConfigError."""
    sources = _read(folder) if folder is not None else {}
    return _render_all(str(folder), tuple(sources.items()), tuple(about.items()))


# Reading


def _read(folder: Path) -> dict[str, str]:
    """The text of each template in a folder, by file name. Raises ConfigError."""
    try:
        names = sorted(
            each.name
            for each in folder.iterdir()
            if each.suffix == ".html"
            and not each.name.startswith(".")
            # A link that leads nowhere is to be said.
            and (each.is_file() or not each.exists())
        )
    except OSError as error:
        raise _fault(f"{folder} cannot be read: {error.strerror}") from error
    if len(names) > _MOST_FILES:
        raise _fault(f"{folder} has {len(names)} templates, expected at most {_MOST_FILES}")
    sources: dict[str, str] = {}
    faults: list[Fault] = []
    for name in names:
        try:
            sources[name] = _text(folder / name)
        except ConfigError as error:
            faults += error.faults
    if not faults and not any(_FILE(name) for name in names):
        faults.append(Fault(_KEY, f"{folder} has no template, expected one such as error.html or down.html"))
    if faults:
        raise ConfigError(faults)
    return sources


def _text(file: Path) -> str:
    found = _FILE(file.name)
    if not file.name.startswith("_") and (found is None or found[1] not in _TEMPLATES):
        close = difflib.get_close_matches(file.name.partition(".")[0], _TEMPLATES, n=1)
        known = ", ".join(f"{name}.html" for name in _TEMPLATES)
        wanted = f"did you mean {close[0]}.html?" if close else f"expected {known}"
        hint = "with a language as in error.de.html, or a leading _ for a part of others"
        raise _fault(f"{file} is no known page, {wanted} ({hint})")
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise _fault(f"{file} is too large, expected at most {LARGEST >> 10} KiB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise _fault(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _fault(f"{file}:{line}: is not UTF-8: {error.reason}") from error


def _fault(text: str) -> ConfigError:
    return ConfigError([Fault(_KEY, text)])


# Rendering


@lru_cache(maxsize=2)
def _render_all(
    folder: str, sources: tuple[tuple[str, str], ...], about: tuple[tuple[str, str], ...]
) -> ErrorPages:
    """Cached, as a reload asks for it twice: to look for faults, and to put it in force."""
    return _Rendering(folder, dict(sources), dict(about)).pages()


class _Rendering:
    def __init__(self, folder: str, sources: Mapping[str, str], about: Mapping[str, str]) -> None:
        self._folder = folder
        self._sources = sources
        self._about = about
        self._faults: dict[str, None] = {}
        self._size = 0
        self._known: dict[bytes, bytes] = {}
        self._given_up: set[str] = set()
        self._environment = ImmutableSandboxedEnvironment(
            loader=FunctionLoader(self._load),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def pages(self) -> ErrorPages:
        """All of them. Raises ConfigError."""
        found: dict[str, tuple[tuple[str, bytes], ...]] = {}
        for situation in _TEMPLATES:
            if situation == "launch":
                continue
            for retry in (NONE, LINK, AUTO):
                page = found[key(situation, False, retry)] = self._translations(situation, False, retry)
                of_launch = _OF_LAUNCHES.get(situation)
                found[key(situation, True, retry)] = (
                    page if of_launch is None else self._translations(of_launch, True, retry)
                )
        # Parts are looked at by those that include them; a page that is never used is looked at here.
        for name in self._sources:
            self._template(name)
        if self._size > _MOST_BYTES:
            self._faults[f"{self._folder} makes pages of more than {_MOST_BYTES >> 20} MiB in total"] = None
        if self._faults:
            raise ConfigError([Fault(_KEY, text) for text in self._faults])
        return ErrorPages(policy(), found)

    def _translations(self, situation: str, launch: bool, retry: str) -> tuple[tuple[str, bytes], ...]:
        """The page in each language, the usual one first."""
        files = self._files(situation)
        pages: dict[str, tuple[str, bytes]] = {}
        for name, language in files:
            text = self._render(name, situation, launch, retry, language or _ENGLISH)
            tag = language or _language(text) or _ENGLISH
            pages.setdefault(tag.lower(), (tag, text))
        return tuple(pages.values())

    def _files(self, situation: str) -> list[tuple[str, str]]:
        """The templates for a situation with their languages: first the one that names none."""
        for wanted in _TEMPLATES[situation]:
            matches = [found for found in map(_FILE, self._sources) if found and found[1] == wanted]
            if matches:
                named = [(found[0], found[2] or "") for found in matches]
                usual = [each for each in named if not each[1]]
                return [*(usual or [(_BUILT_IN, "")]), *(each for each in named if each[1])]
        return [(_BUILT_IN, "")]

    def _load(self, name: str) -> tuple[str, str, None] | None:
        if name == _BUILT_IN:
            # In brackets, as it is no file of that name.
            return _part("error.html"), f"<{name}>", None
        text = self._sources.get(name)
        return None if text is None else (text, f"{self._folder}/{name}", None)

    def _template(self, name: str) -> Template | None:
        try:
            return self._environment.get_template(name)
        except _FAILURES as error:
            self._complain(name, error)
            return None

    def _render(self, name: str, situation: str, launch: bool, retry: str, language: str) -> bytes:
        template = self._template(name)
        if template is None or name in self._given_up:
            return b""
        variables = self._variables(situation, launch, retry, language)
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > LARGEST:
                    break
        except _FAILURES as error:
            self._complain(name, error)
            return b""
        text = "".join(pieces)
        content = text.encode("utf-8", "replace")
        if len(content) > LARGEST:
            # It takes long to find out, and may be so in each situation.
            self._given_up.add(name)
            self._faults[f"{self._folder}/{name} makes a page that is too large"] = None
            return b""
        for wrong in _faults_of(text):
            self._faults[f"{self._folder}/{name} {wrong}"] = None
        if content not in self._known:
            self._known[content] = content
            self._size += len(content)
        # One object for all that are equal: it is sent to the workers once.
        return self._known[content]

    def _variables(self, situation: str, launch: bool, retry: str, language: str) -> dict[str, Any]:
        return {
            **self._about,
            **{name: _Slot(name) for name in SLOTS},
            "situation": situation,
            "launch": launch,
            "lang": language,
            "can_retry": retry != NONE,
            "retries": retry == AUTO,
            "retry": _retry() if retry == AUTO else "",
        }

    def _complain(self, name: str, error: Exception) -> None:
        where, line = self._place(name, error)
        path = where if where == _BUILT_IN else f"{self._folder}/{where}"
        text = f"no template {error.name!r}" if isinstance(error, TemplateNotFound) else str(error)
        if isinstance(error, RecursionError):
            # It takes long to find out, and is the same each time.
            self._given_up.add(name)
            text = "includes or extends itself"
        self._faults[f"{path}:{line}: {' '.join(text.split())}" if line else f"{path}: {text}"] = None

    def _place(self, name: str, error: Exception) -> tuple[str, int | None]:
        """The file and line in which it happened; the innermost, if one includes another."""
        if isinstance(error, TemplateError) and getattr(error, "lineno", None):
            return getattr(error, "name", None) or name, error.lineno  # type: ignore[attr-defined]
        place: tuple[str, int | None] = name, None
        paths = {f"{self._folder}/{each}": each for each in self._sources}
        traceback = error.__traceback__
        while traceback is not None:
            file = paths.get(traceback.tb_frame.f_code.co_filename)
            if file is not None:
                place = file, traceback.tb_lineno
            traceback = traceback.tb_next
        return place


# Looking at what was rendered


_FORBIDDEN: Final = frozenset(
    ("script", "base", "iframe", "frame", "object", "embed", "form", "audio", "video")
)
_LOADED: Final = frozenset(("stylesheet", "preload", "modulepreload", "manifest"))
# Not what names a host: `//host`, which browsers also read in `/\host`.
_HERE: Final = re.compile(r"data:|/(?![/\\])", re.IGNORECASE).match


class _Outline(HTMLParser):
    """What a page has that its policy would keep browsers from loading or running, and its language."""

    def __init__(self) -> None:
        super().__init__()
        self.language: str | None = None
        self.faults: dict[str, None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Looks at one element."""
        values = {name: (value or "").strip() for name, value in attrs}
        if tag == "html":
            self.language = values.get("lang") or None
        for why in self._wrong(tag, values):
            shown = " ".join((self.get_starttag_text() or tag).split())[:80]
            self.faults[f"has {shown}, {why}"] = None

    def _wrong(self, tag: str, values: Mapping[str, str]) -> Iterator[str]:
        if tag in _FORBIDDEN:
            yield f"and a page may have no <{tag}>"
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            yield "expected {{ retry }} in its place"
        if tag == "link" and _LOADED & set(values.get("rel", "").lower().split()):
            yield "and a page may load no other file, expected <style>"
        if any(name.startswith("on") for name in values):
            yield "and a page may have no script"
        if values.get("href", "").lower().startswith("javascript:"):
            yield "and a page may have no script"
        source = values.get("src")
        if tag in ("img", "input") and source is not None and _HERE(source) is None:
            yield "expected an image of this edge (/...) or a data: URL"
        if "srcset" in values:
            yield "expected src without srcset"


def _outline(text: str) -> _Outline:
    outline = _Outline()
    outline.feed(text.replace(str(_retry()), ""))
    outline.close()
    return outline


def _faults_of(text: str) -> Iterator[str]:
    whole = text
    for name in SLOTS:
        whole = whole.replace(slot(name), "")
    if "\ue000" in whole or "\ue001" in whole or "%EE%80%80" in whole:
        yield f"changes what is known only when the page is sent ({', '.join(SLOTS)}), expected it as it is"
    if not text.strip():
        yield "makes an empty page"
    yield from _outline(text).faults


def _language(content: bytes) -> str | None:
    """What a page says of its language, if that is a tag."""
    language = _outline(content.decode()).language
    if language is None or _FILE(f"error.{language}.html") is None:
        return None
    return language
