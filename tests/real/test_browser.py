"""Debian's Chromium on both pages of a running edge with toy members: what people see, press and are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Request, expect
from yarl import URL

from fedproxy.config.load import parse
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.toy import Mode, ToyBinderHub
from fedproxy.event import EventName
from fedproxy.serve.service import Service
from tests.rig import programs

pytestmark = [programs.needs("chromium", "chromium"), pytest.mark.asyncio(loop_scope="module")]

WITHIN = 30_000.0  # milliseconds that a test waits for what must come
MOST_BYTES = 60_000
TOKEN = "s3cret"
DARK = "rgb(22, 24, 28)"
LOGO = b"<svg xmlns='http://www.w3.org/2000/svg' width='80' height='40'><rect width='80' height='40'/></svg>"


@dataclass
class Seen:
    """What a page did: the requests that it sent, and what its console said."""

    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hosts(self) -> set[str | None]:
        return {URL(request.url).authority for request in self.requests}

    async def bytes(self) -> int:
        """Of all that came, but for the streams."""
        whole = [request for request in self.requests if not request.url.endswith("/events")]
        return sum([(await request.sizes())["responseBodySize"] for request in whole])


@dataclass
class Edge:
    """A running edge, its toy members by name, and a browser."""

    service: Service
    members: dict[str, ToyBinderHub]
    browser: Browser

    def url(self, page: str) -> str:
        if page == "federation":
            return "http://{}:{}/federation".format(*self.service.addresses[0])
        return "http://{}:{}/".format(*self.service.admin_address)

    @asynccontextmanager
    async def page(self, page: str, **settings: Any) -> AsyncIterator[tuple[Page, Seen]]:
        """An open page, `federation` or `live`; the settings are a Playwright context's."""
        context = await self.browser.new_context(**settings)
        context.set_default_timeout(WITHIN)
        opened, seen = await context.new_page(), Seen()
        opened.on("request", lambda request: seen.requests.append(request))
        opened.on("console", lambda message: seen.complaints.append(message.text))
        opened.on("pageerror", lambda error: seen.complaints.append(str(error)))
        await opened.goto(self.url(page))
        try:
            yield opened, seen
        finally:
            await context.close()

    async def visit(self, repository: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(self._launch(repository)) as response:
            await response.read()

    def _launch(self, repository: str) -> str:
        return "http://{}:{}/v2/gh/{}/HEAD".format(*self.service.addresses[0], repository)


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    expect.set_options(timeout=WITHIN)
    yield
    expect.set_options(timeout=None)


async def _logo(_request: web.Request) -> web.Response:
    return web.Response(body=LOGO, content_type="text/plain")


@pytest_asyncio.fixture(loop_scope="module")
async def edge(chromium: Browser) -> AsyncIterator[Edge]:
    elsewhere = web.Application()
    elsewhere.router.add_get("/logo.svg", _logo)
    async with DemoFederation(3) as federation, TestServer(elsewhere) as museum:
        config = federation.config_dict(0, 0, token=TOKEN)
        # A breaker that stays open for as long as anybody looks at it.
        config["breaker"] |= {"open": "1h", "open_max": "1h"}
        config["members"]["toy-past"] = {"url": "http://127.0.0.1:1", "active": False}
        first = config["members"][federation.hubs[0].name]
        first["funded_by"]["logo"] = str(museum.make_url("/logo.svg"))
        service = Service(parse(yaml.safe_dump(config), {}), log=lambda line: None)
        await service.start()
        try:
            yield Edge(service, {hub.name: hub for hub in federation.hubs}, chromium)
        finally:
            await service.stop()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
@pytest.mark.parametrize("name", ["federation", "live"])
async def test_page_fits_is_light_and_can_be_read_by_everybody(
    edge: Edge, name: str, scheme: str, width: int
) -> None:
    viewport = {"width": width, "height": 800}
    async with edge.page(name, viewport=viewport, color_scheme=scheme) as (page, seen):
        if name == "live":
            # With all that an operator can press.
            await page.get_by_label("Admin token").fill(TOKEN)
            await page.get_by_role("button", name="Use it in this tab").click()
            await page.locator("figure svg").first.wait_for()
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == DARK) is (scheme == "dark")
        assert seen.hosts() == {URL(edge.url(name)).authority}
        assert await seen.bytes() < MOST_BYTES
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert not seen.complaints


async def test_member_that_breaks_is_on_the_open_page_at_once_and_on_the_visitors_page(edge: Edge) -> None:
    broken = edge.members["toy-leuven"]
    async with edge.page("live") as (page, seen), edge.page("federation") as (public, _):
        card = page.locator('[data-member="toy-leuven"]')
        await expect(card.get_by_role("heading")).to_have_text("toy-leuven available")
        await expect(page).to_have_title("3 of 3 available - fedproxy")
        await broken.set_mode(Mode.FAILING)
        breaker = edge.service.federation.by_name[broken.name].breaker
        number = 0
        while breaker.closed:
            number += 1
            await edge.visit(f"somebody/number-{number}")
        await expect(card.get_by_role("heading")).to_have_text("toy-leuven ejected")
        wrong = page.get_by_role("region", name="What is wrong")
        await expect(wrong).to_contain_text("toy-leuven: breaker open;")
        await expect(page).to_have_title("2 of 3 available - fedproxy")
        await expect(card.get_by_text("was ejected: its breaker opened")).to_contain_text("answered 503")
        await expect(page.locator("tr", has_text=broken.name)).to_contain_text("open")
        await public.reload()
        await expect(public.locator("li", has_text=broken.name)).to_contain_text("Ejected")
        await broken.set_mode(Mode.SICK)
        await expect(wrong).to_contain_text("JupyterHub API")
        assert not seen.complaints


async def test_visitor_moves_without_script_and_by_the_keyboard_alone(edge: Edge) -> None:
    async with edge.page("federation", java_script_enabled=False) as (page, _):
        await expect(page.get_by_text("Nobody yet")).to_be_visible()
        button = page.get_by_role("button", name="Move to toy-bergen")
        # axe looks at one moment; a visitor goes from one to the next.
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("You are with toy-bergen.")).to_be_visible()
        assert page.url == edge.url("federation")
        await expect(page.locator("li[aria-current]")).to_contain_text("You are here.")
        (cookie,) = await page.context.cookies()
        assert (cookie["name"], cookie["value"].partition("!")[0]) == ("fedproxy_member", "toy-bergen")
        await page.get_by_role("button", name="Choose for me again").click()
        await expect(page.get_by_text("Nobody yet")).to_be_visible()
        # Nothing that the page loads comes from a member, who would be chosen for it.
        assert await page.context.cookies() == []


async def test_logo_is_shown_and_comes_from_the_edge(edge: Edge) -> None:
    async with edge.page("federation") as (page, seen):
        logo = page.locator("img.logo")
        # It comes a moment after the edge's start.
        while not await logo.count():
            await page.reload()
        assert await logo.evaluate("each => each.complete && each.naturalWidth") == 80
        assert seen.hosts() == {URL(edge.url("federation")).authority}
        assert not seen.complaints


async def test_every_button_of_the_visitors_page_is_reached_by_tab(edge: Edge) -> None:
    async with edge.page("federation") as (page, _):
        wanted = await page.get_by_role("button").all_inner_texts()
        assert len(wanted) == 3
        reached = set()
        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.innerText"))
        assert set(wanted) <= reached


async def test_operator_drains_a_member_and_sets_its_weight_from_the_page(edge: Edge) -> None:
    member = edge.service.federation.by_name["toy-oxford"]
    async with edge.page("live") as (page, _):
        card = page.locator('[data-member="toy-oxford"]')
        said = page.locator("#said")
        await expect(card.get_by_role("button", name="Drain")).to_be_hidden()
        await _give(page, "wrong")
        await card.get_by_role("button", name="Drain").click()
        await expect(said).to_contain_text("needs the admin token")
        await expect(card.get_by_role("button", name="Drain")).to_be_hidden()
        assert member.intent == "ready"
        await _give(page, TOKEN)
        await card.get_by_role("button", name="Drain").click()
        await expect(said).to_have_text("toy-oxford: drain, weight 50")
        assert member.intent == "drain"
        await expect(card.get_by_role("button", name="Drain")).to_have_attribute("aria-pressed", "true")
        await expect(page.locator("ol.events")).to_contain_text("toy-oxford was set to drain")
        await card.get_by_label("Weight").fill("12.5")
        await card.get_by_role("button", name="Set").click()
        await expect(said).to_have_text("toy-oxford: drain, weight 12.5")
        assert await page.evaluate("[Object.keys(localStorage), document.cookie]") == [[], ""]
        await page.reload()
        await card.get_by_role("button", name="Ready").click()
        await expect(said).to_contain_text("toy-oxford: ready")


async def _give(page: Page, token: str) -> None:
    await page.get_by_label("Admin token").fill(token)
    await page.get_by_role("button", name="Use it in this tab").click()


async def test_number_that_is_typed_stays_while_the_page_is_kept_up_to_date(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await _give(page, TOKEN)
        weight = page.locator('[data-member="toy-oxford"]').get_by_label("Weight")
        await weight.fill("77")
        looks = edge.service.history.looks
        while edge.service.history.looks < looks + 3:
            await asyncio.shield(edge.service.next_look())
        edge.service.note(EventName.EDGE_START, "something happened")
        await expect(page.locator("ol.events")).to_contain_text("something happened")
        assert await weight.input_value() == "77"
        assert await weight.evaluate("each => each === document.activeElement")


async def test_live_page_without_script_shows_the_members(edge: Edge) -> None:
    async with edge.page("live", java_script_enabled=False) as (page, _):
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await expect(page.get_by_label("Admin token")).to_be_hidden()
        await expect(page.locator("figure").first).to_be_hidden()


async def test_open_page_shows_that_it_is_stale_when_the_edge_is_gone(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await page.locator("figure svg").first.wait_for()
        await edge.service.stop()
        await page.locator("html[data-stale]").wait_for()
        await expect(page.get_by_role("alert")).to_contain_text("no connection to the edge since")
        await expect(page).to_have_title("No connection - fedproxy")


async def test_page_that_needs_a_token_for_reading_asks_for_it(edge: Edge) -> None:
    admin = edge.service.config.admin.model_copy(update={"read": "token"})
    edge.service.config = edge.service.config.model_copy(update={"admin": admin})
    async with edge.page("live") as (page, seen):
        await expect(page.get_by_role("alert")).to_have_text("Reading needs a token here.")
        await expect(page.locator("#live")).to_be_empty()
        await _give(page, "wrong")
        await expect(page.get_by_role("status")).to_have_text("This token is not valid.")
        await _give(page, TOKEN)
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await expect(page.get_by_role("alert")).to_be_empty()
        await page.locator("figure svg").first.wait_for()
        edge.service.note(EventName.EDGE_START, "something happened")
        await expect(page.locator("ol.events")).to_contain_text("something happened")
        await page.reload()
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await page.get_by_role("button", name="Forget it").click()
        await expect(page.locator("#live")).to_be_empty()
        assert all("401" in said for said in seen.complaints), seen.complaints
