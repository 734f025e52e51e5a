from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fedproxy.control import logos
from fedproxy.control.logos import Logos, image_type
from fedproxy.control.messages import Logo
from tests.rig import until

PNG = b"\x89PNG\r\n\x1a\nand so on"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


class Museum:
    """Serves what is in `images`, by path; `asked` are the paths."""

    def __init__(self) -> None:
        self.images = {"/a.png": PNG, "/b.svg": SVG, "/big": b"<svg>" + b" " * (64 << 10), "/page": b"<html>"}
        self.asked: list[str] = []

    async def serve(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path == "/moved":
            raise web.HTTPFound("/b.svg")
        if request.path == "/hang":
            await asyncio.Event().wait()
        if request.path == "/round":
            raise web.HTTPFound("/round")
        if request.path not in self.images:
            raise web.HTTPNotFound
        return web.Response(body=self.images[request.path], content_type="text/plain")


@asynccontextmanager
async def museum() -> AsyncIterator[tuple[Museum, str]]:
    held = Museum()
    app = web.Application()
    app.router.add_get("/{path:.*}", held.serve)
    async with TestServer(app) as server:
        yield held, str(server.make_url("/")).rstrip("/")


async def test_logos_are_told_by_what_they_are_and_the_rest_is_said() -> None:
    told: list[Logo] = []
    said: list[str] = []
    async with museum() as (held, url):
        fetching = Logos(told.append, lambda event: said.append(event.message))
        fetching.apply(
            f"{url}{path}" for path in ("/a.png", "/moved", "/big", "/page", "/none?key=s", "/round")
        )
        await until(lambda: len(told) + len(said) == 6, "all were tried")
        await fetching.close()
    assert {(logo.url, logo.kind, logo.content) for logo in told} == {
        (f"{url}/a.png", "image/png", PNG),
        (f"{url}/moved", "image/svg+xml", SVG),
    }
    assert len({logo.key for logo in told}) == 2
    assert held.asked.count("/round") == 3
    assert said == [
        f"no logo at {url}{path}: the pages show initials, or nothing, in its place"
        for path in ("/big", "/none?key=***", "/page", "/round")
    ]


async def test_only_what_is_new_is_fetched_and_what_is_not_wanted_is_forgotten() -> None:
    told: list[Logo] = []
    async with museum() as (held, url):
        fetching = Logos(told.append)
        fetching.apply([f"{url}/a.png"])
        await until(lambda: len(told) == 1, "the first")
        fetching.apply([f"{url}/a.png", f"{url}/b.svg"])
        await until(lambda: len(told) == 2, "the second")
        assert held.asked == ["/a.png", "/b.svg"]
        fetching.apply([f"{url}/b.svg"])
        assert fetching.known == told[1:]
        await fetching.close()


async def test_logo_that_is_not_there_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logos, "_RETRY", 0.0)
    told: list[Logo] = []
    said: list[str] = []
    async with museum() as (held, url):
        fetching = Logos(told.append, lambda event: said.append(event.message))
        fetching.apply([f"{url}/late"])
        await until(lambda: held.asked.count("/late") > 2, "it was asked for again")
        held.images["/late"] = PNG
        await until(lambda: told, "it came")
        await fetching.close()
    assert len(said) == 1


async def test_host_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logos, "_TIME", 0.5)
    told: list[Logo] = []
    said: list[str] = []
    async with museum() as (_, url):
        fetching = Logos(told.append, lambda event: said.append(event.message))
        fetching.apply([f"{url}/a.png", f"{url}/hang", "http://127.0.0.1:1/refused"])
        await until(lambda: told and len(said) == 2, "all were tried")
        await fetching.close()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"\xef\xbb\xbf\n<SVG>", "image/svg+xml"),
        (b"<?xml version='1.0'?><!-- x --><svg>", "image/svg+xml"),
        (b"<!DOCTYPE svg PUBLIC ''><svg>", "image/svg+xml"),
        (b"<!doctype html><svg>", None),
        (b"<?xml version='1.0'?><feed>", None),
        (b"", None),
        (b"svg", None),
    ],
)
def test_image_is_told_by_its_first_bytes(content: bytes, kind: str | None) -> None:
    assert image_type(content) == kind
