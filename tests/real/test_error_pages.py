"""Debian's Chromium on the pages of the edge's own answers: who can read them, and when they ask again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, expect
from yarl import URL

from fedproxy.control.messages import Logo
from fedproxy.serve.service import Service
from fedproxy.web.error_pages import LOGO
from tests.rig import programs, refusing
from tests.rig.service import config_of

pytestmark = [programs.needs("chromium", "chromium"), pytest.mark.asyncio(loop_scope="module")]

IMAGE = b"<svg xmlns='http://www.w3.org/2000/svg' width='80' height='40'><rect width='80' height='40'/></svg>"
DARK = "rgb(22, 24, 28)"
ICON = "/federation/icon.svg"
ROUTES = [{"path": "/nothing", "status": 404}]


@dataclass
class Visit:
    """A running edge whose only member is away, and a browser."""

    service: Service
    browser: Browser
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    async def page(self, path: str, *, clock: bool = False, **settings: Any) -> Page:
        context = await self.browser.new_context(**settings)
        self.contexts.append(context)
        page = await context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("request", lambda request: self.asked.append(request.url))
        if clock:
            await page.add_init_script("Math.random = () => 0.4")
            await page.clock.install()
        await page.goto("http://{}:{}{}".format(*self.service.addresses[0], path))
        return page

    def times(self, path: str) -> int:
        """How often the browser has asked for a path."""
        return sum(url.endswith(path) for url in self.asked)


@pytest_asyncio.fixture(loop_scope="module")
async def visit(chromium: Browser) -> AsyncIterator[Visit]:
    pages = {"site": "Binder", "logo": "https://a.example/l.svg", "status_url": "https://status.example/"}
    with refusing() as url:
        config = config_of(url, pages=pages, routes=ROUTES, breaker={"failures": 1000})
        service = Service(config, log=lambda line: None, probe=False)
        await service.start()
        service._planes.tell(Logo(pages["logo"], "0123", "image/svg+xml", IMAGE))
        visit = Visit(service, chromium)
        try:
            yield visit
        finally:
            for context in visit.contexts:
                await context.close()
            await service.stop()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
async def test_pages_fit_are_light_and_can_be_read_by_everybody(
    visit: Visit, scheme: str, width: int
) -> None:
    for path in ("/page", "/v2/gh/a/b/HEAD", "/nothing"):
        page = await visit.page(path, viewport={"width": width, "height": 740}, color_scheme=scheme)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == DARK) is (scheme == "dark")
        assert await page.locator("header img").evaluate("each => each.complete && each.naturalWidth") == 80
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
    # Of the policy there is nothing to complain about, and no member is asked for anything but the page.
    assert [text for text in visit.complaints if "status of" not in text] == []
    paths = [URL(url).path for url in visit.asked]
    assert {path for path in paths if path.startswith("/federation/")} <= {LOGO, ICON}
    assert len([path for path in paths if not path.startswith("/federation/")]) == 3


async def test_page_asks_again_by_itself_ever_later_and_not_for_ever(visit: Visit) -> None:
    page = await visit.page("/page", clock=True)
    note = page.get_by_text("This page tries again by itself in")
    for number, seconds in enumerate((33, 66, 132, 264, 330, 330, 330, 330, 330, 330), 1):
        assert visit.times("/page") == number
        await expect(note).to_contain_text(f"in {seconds} seconds")
        await page.clock.run_for((seconds - 2) * 1000)
        await expect(note).to_contain_text("in 2 seconds")
        async with page.expect_navigation():
            await page.clock.run_for(2000)
    # Who is still there has a link.
    await expect(note).to_be_hidden()
    await page.clock.run_for(3_600_000)
    assert visit.times("/page") == 11
    async with page.expect_navigation():
        await page.get_by_role("link", name="Try again").click()
    # An hour later it is another matter.
    await expect(note).to_contain_text("in 33 seconds")


async def test_page_that_nobody_looks_at_waits(visit: Visit) -> None:
    page = await visit.page("/page", clock=True)
    hidden = "Object.defineProperty(document, 'hidden', {{get: () => {}, configurable: true}})"
    await page.evaluate(hidden.format("true"))
    await page.clock.run_for(600_000)
    assert visit.times("/page") == 1
    await page.evaluate(hidden.format("false"))
    async with page.expect_navigation():
        await page.clock.run_for(1000)
    assert visit.times("/page") == 2


async def test_page_without_script_asks_again_and_one_that_may_not_be_repeated_does_not(visit: Visit) -> None:
    page = await visit.page("/page", java_script_enabled=False)
    assert await page.locator("noscript").count() == 1
    await expect(page.get_by_text("by itself")).to_be_hidden()
    assert '<meta http-equiv="refresh" content="60">' in await page.content()
    for path in ("/build/gh/a/b/HEAD", "/nothing"):
        page = await visit.page(path)
        assert await page.locator("script").count() == 0
