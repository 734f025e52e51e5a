"""Debian's Chromium on pages of another origin that show the federation by the edge's script."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from fedproxy.config.load import parse
from fedproxy.decide.member import Intent
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.toy import Mode
from fedproxy.serve.service import Service
from tests.rig import programs, until

pytestmark = [programs.needs("chromium", "chromium"), pytest.mark.asyncio(loop_scope="module")]

WITHIN = 30_000.0  # milliseconds that a test waits for what must come
NASTY = "<img src=x onerror=document.title='run'> & \"Sons\""
HEADS = [
    *("Member", "Status", "Response", "Docker registry", "JupyterHub API"),
    *("User/build pods", "Quota", "Funded by", "Run by"),
]
SEVERAL_TIMES = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Status</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<script async src="{edge}/federation.js"></script>
<script defer src="{edge}/federation.js?again"></script>
<script type="module" src="{edge}/federation.js"></script>
</head><body><main><h1>Status</h1>
<table id="first" data-fedproxy="{edge}"><tr><td>This needs script.</td></tr></table>
<table id="second" data-fedproxy="{edge}/"><caption>Ours</caption></table>
<table id="wrong" data-fedproxy="javascript:alert(1)"><tr><td>left alone</td></tr></table>
</main></body></html>"""
IDLE = "() => ![...window[Symbol.for('fedproxy.federation')].feeds.values()].some(feed => feed.asking)"
ONCE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Status</title>
<script src="{edge}/federation.js"></script>
</head><body><table data-fedproxy="{edge}"></table></body></html>"""


@dataclass
class Site:
    """A running edge, and a site of another origin, whose pages may do as little as possible."""

    service: Service
    federation: DemoFederation
    browser: Browser
    edge: str
    text: str = ""
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, request: web.Request) -> web.Response:
        return web.Response(
            text=self.text.replace("{edge}", html.escape(self.edge)),
            content_type="text/html",
            headers={
                "Content-Security-Policy": f"default-src 'none'; script-src {self.edge}; "
                f"connect-src {self.edge}; require-trusted-types-for 'script'",
                "Cross-Origin-Embedder-Policy": "require-corp",
                "Cross-Origin-Opener-Policy": "same-origin",
            },
        )

    @asynccontextmanager
    async def page(self, text: str, *, clock: bool = False, **settings: Any) -> AsyncIterator[Page]:
        """An open page with this text. With `clock`, only the test lets time pass, and no wait is random."""
        self.text = text
        context = await self.browser.new_context(**settings)
        context.set_default_timeout(WITHIN)
        page = await context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if clock:
            begin = datetime(2027, 1, 1, tzinfo=UTC)
            await page.clock.install(time=begin)
            await page.clock.pause_at(begin + timedelta(seconds=1))
            await page.add_init_script("Math.random = () => 0")
        try:
            await page.goto(self.url)
            yield page
        finally:
            await context.close()


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    expect.set_options(timeout=WITHIN)
    yield
    expect.set_options(timeout=None)


@pytest_asyncio.fixture(loop_scope="module")
async def site(chromium: Browser) -> AsyncIterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        # Browsers keep what they got by the time that really passed.
        patch.setattr("fedproxy.web.public._DOCUMENT_CACHE", "no-cache")
        patch.setattr("fedproxy.web.public._RENDERED_FOR", 0.0)
        async with _site(chromium) as site:
            yield site


@asynccontextmanager
async def _site(chromium: Browser) -> AsyncIterator[Site]:
    async with DemoFederation(3) as federation:
        config = federation.config_dict(0, 0)
        first = config["members"][federation.hubs[0].name]
        first["funded_by"] = {"name": NASTY, "url": "https://fund.example/?a=1&b=2"}
        del first["run_by"]
        # Without an address of its own, an edge tells nobody the addresses of a private network.
        config["public_url"] = "http://127.0.0.1:1"
        service = Service(parse(yaml.safe_dump(config), {}), log=lambda line: None)
        await service.start()
        try:
            site = Site(service, federation, chromium, "http://{}:{}".format(*service.addresses[0]))
            app = web.Application()
            app.router.add_get("/", site.serve)
            async with TestServer(app) as server:
                site.url = str(server.make_url("/").with_host("localhost"))
                yield site
        finally:
            await service.stop()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
async def test_tables_of_a_strict_page_are_filled_however_often_the_script_is_loaded(
    site: Site, width: int, scheme: str
) -> None:
    _, second, third = site.federation.hubs
    await second.set_mode(Mode.SICK)
    await third.set_mode(Mode.FULL)
    await until(
        lambda: {each.status.value for each in site.service.known().members} >= {"unhealthy", "full"},
        lambda: site.service.known().members,
    )
    viewport = {"width": width, "height": 800}
    async with site.page(SEVERAL_TIMES, viewport=viewport, color_scheme=scheme) as page:
        for name in ("first", "second"):
            table = page.locator(f"#{name}")
            await expect(table.get_by_role("columnheader")).to_have_text(HEADS)
            await expect(table.locator("tbody tr")).to_have_count(3)
            rows = [
                await row.locator("th, td").all_inner_texts() for row in await table.locator("tbody tr").all()
            ]
            shown = {name: cells for name, *cells in rows}
            state, response, *checks = shown[second.name][:4]
            assert (state, checks) == ("✗ Unhealthy", ["✓ OK", "✗ Fails"])
            assert re.fullmatch("✓ OK, within [0-9.]+ s", response)
            assert shown[third.name][0].endswith(" Full")
            state, *_, pods, quota, funder, runner = shown[site.federation.hubs[0].name]
            assert (state, funder, runner) == ("✓ Available", NASTY, "–")
            assert re.fullmatch("[0-9]+/[0-9]+", pods)
            assert quota.isdecimal()
            status = table.get_by_role("status")
            await expect(status).to_contain_text("Available: 1 of 3 members.")
            await expect(status).to_contain_text(f"{second.name}: unhealthy")
        assert await page.get_by_role("table", name=re.compile("^Ours")).count() == 1
        await expect(page.locator("#first caption")).to_contain_text("The federation of 127.0.0.1:")
        await expect(page.locator("#second caption")).to_contain_text("Ours Available: 1 of 3")
        await expect(page.locator("#first")).not_to_contain_text("This needs script.")
        await expect(page.locator("#wrong")).to_have_text("left alone")
        link = page.locator("#first").get_by_role("link", name=NASTY)
        assert await link.get_attribute("href") == "https://fund.example/?a=1&b=2"
        assert await page.title() == "Status"
        assert await page.locator("img").count() == 0
        assert await page.evaluate("crossOriginIsolated")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
    # One feed for all, and a word about the table that asks for none.
    assert site.asked.count(f"{site.edge}/federation.json") == 1
    (complaint,) = site.complaints
    assert complaint.startswith("fedproxy: expected the URL of a federation")


async def test_table_can_be_read_by_everybody(site: Site) -> None:
    # The checker is a script within the page: no policy here.
    site.text = SEVERAL_TIMES.replace("{edge}", site.edge)
    context = await site.browser.new_context(bypass_csp=True, viewport={"width": 360, "height": 800})
    try:
        page = await context.new_page()
        await page.goto(site.url)
        await expect(page.locator("#second tbody tr")).to_have_count(3)
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
    finally:
        await context.close()


async def test_table_follows_the_federation_while_somebody_looks(site: Site) -> None:
    name = site.federation.hubs[0].name
    answers: list[int] = []
    async with site.page(ONCE, clock=True) as page:
        page.on("response", lambda response: answers.append(response.status))
        row = page.locator("tbody tr", has_text=name)
        await expect(row.get_by_role("cell").first).to_contain_text("vailable")
        link = row.get_by_role("link").first
        await link.focus()
        await site.service.change(name, Intent.MAINT, None, "kim")
        await _hide(page, True)
        before = len(answers)
        await page.clock.run_for(120_000)
        assert len(answers) == before
        await _hide(page, False)
        await expect(row.get_by_role("cell").first).to_contain_text("Maintenance")
        await expect(page.get_by_role("status")).to_contain_text(f"{name}: maintenance")
        # What did not change was not touched.
        await expect(link).to_be_focused()


async def test_federation_that_is_away_is_said_and_asked_again_ever_less_often(site: Site) -> None:
    asked: list[str] = []
    answer = {"members": "nonsense"}

    async def away(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) % 3 == 0:
            await route.fulfill(status=503, headers={"Access-Control-Allow-Origin": "*"})
        elif len(asked) % 3 == 1:
            await route.abort()
        else:
            await route.fulfill(body=json.dumps(answer), headers={"Access-Control-Allow-Origin": "*"})

    async with site.page(ONCE, clock=True) as page:
        status, table = page.get_by_role("status"), page.locator("table")
        await expect(status).to_contain_text("Available: ")
        await page.route("**/federation.json", away)
        await page.clock.run_for(20_000)
        await expect(status).to_contain_text(
            "cannot be reached at the moment. What is shown here is from before."
        )
        await expect(table).to_have_attribute("data-fedproxy-stale", "")
        await expect(table.locator("tbody tr")).to_have_count(3)
        for number, seconds in enumerate((5, 10, 20, 40, 80, 160, 300, 300), 1):
            await page.wait_for_function(IDLE)
            assert len(asked) == number
            await page.clock.run_for(seconds * 1000 - 1)
            assert len(asked) == number
            await page.clock.run_for(1)
            await expect(status).to_contain_text("tries again by itself")
        await page.unroute("**/federation.json")
        await page.wait_for_function(IDLE)
        await page.clock.run_for(300_000)
        await expect(status).to_contain_text("Available: ")
        assert await table.get_attribute("data-fedproxy-stale") is None


async def test_answer_that_makes_no_sense_is_shown_as_far_as_it_does(site: Site) -> None:
    states = ["constructor", "__proto__", {"toString": 1}, ["available"], None, 7]
    deep: Any = {}
    for _ in range(200):
        deep = {"": [deep]}
    answer: list[Any] = [{"name": f"m{at}", "status": each, "url": deep} for at, each in enumerate(states)]
    answer += [None, 7, "m", [], {"name": deep}, {"name": "m0", "status": "full", "pods": "x", "run_by": 7}]

    async def nonsense(route: Route) -> None:
        body = json.dumps({"members": answer, "__proto__": {"x": 1}})
        await route.fulfill(body=body, headers={"Access-Control-Allow-Origin": "*"})

    async with site.page(ONCE, clock=True) as page:
        status = page.get_by_role("status")
        await expect(status).to_contain_text("Available: ")
        await page.route("**/federation.json", nonsense)
        await page.clock.run_for(20_000)
        await expect(status).to_have_text(
            "Available: 0 of 6 members. m0: full, m1: unknown, m2: unknown, m3: unknown, m4: unknown, "
            "m5: unknown."
        )
        await page.unroute("**/federation.json")
        await page.wait_for_function(IDLE)
        await page.clock.run_for(20_000)
        await expect(status).to_contain_text(" of 3 members")
    assert not site.complaints


async def _hide(page: Page, hidden: bool) -> None:
    await page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
