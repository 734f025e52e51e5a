"""Debian's Chromium on both pages of a running edge with toy members: what people see, press and are told."""

from __future__ import annotations

import asyncio
import re
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
from fedproxy.decide.member import Intent
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.toy import Mode, ToyBinderHub
from fedproxy.event import EventName
from fedproxy.serve.service import Service
from tests.rig import programs
from tests.rig.state import fleet_of_three

pytestmark = [programs.needs("chromium", "chromium"), pytest.mark.asyncio(loop_scope="module")]

WITHIN = 30_000.0  # milliseconds that a test waits for what must come
MOST_BYTES = 60_000
TOKEN = "s3cret"
LOOK = "only-look"
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
    control: str

    def url(self, page: str) -> str:
        if page == "control":
            return f"{self.control}/"
        if page == "toy":
            return f"{self.members['toy-oxford'].url}/v2/gh/binder-examples/missing/HEAD"
        if page == "federation":
            return "http://{}:{}/federation".format(*self.service.addresses[0])
        return "http://{}:{}/".format(*self.service.admin_address)

    @asynccontextmanager
    async def page(self, page: str, **settings: Any) -> AsyncIterator[tuple[Page, Seen]]:
        """An open page, as `url` names it; the settings are a Playwright context's."""
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
        config["admin"]["tokens"] = {"viewer": {"token": LOOK, "rights": "read"}}
        config["members"]["toy-past"] = {"url": "http://127.0.0.1:1", "active": False}
        first = config["members"][federation.hubs[0].name]
        first["funded_by"]["logo"] = str(museum.make_url("/logo.svg"))
        del config["members"][federation.hubs[1].name]["funded_by"]
        config["members"][federation.hubs[2].name]["run_by"]["name"] = (
            "Somebody with a Name of Many Words " * 3
        )
        service = Service(parse(yaml.safe_dump(config), {}), log=lambda line: None)
        await service.start()
        try:
            members = {hub.name: hub for hub in federation.hubs}
            yield Edge(service, members, chromium, federation.control_url)
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
            await _give(page, TOKEN)
            await page.locator("figure canvas").first.wait_for()
            assert await page.locator("figure canvas").count() >= 2
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == DARK) is (scheme == "dark")
        assert seen.hosts() == {URL(edge.url(name)).authority}
        assert await seen.bytes() < MOST_BYTES
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert not seen.complaints


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1440, "dark")])
@pytest.mark.parametrize("name", ["control", "toy"])
async def test_page_of_the_demo_fits_and_can_be_read_by_everybody(
    edge: Edge, name: str, scheme: str, width: int
) -> None:
    async with edge.page(name, viewport={"width": width, "height": 800}, color_scheme=scheme) as (page, seen):
        if name == "toy":
            await expect(page.get_by_role("status")).to_have_text("failed")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert not seen.complaints


async def test_mode_is_set_without_script_from_the_demo_s_page_and_from_no_other(edge: Edge) -> None:
    async with edge.page("control", java_script_enabled=False) as (page, _):
        button = page.get_by_role("button", name="slow toy-leuven")
        await expect(button).to_have_attribute("aria-pressed", "false")
        await button.click()
        await expect(button).to_have_attribute("aria-pressed", "true")
        assert edge.members["toy-leuven"].mode is Mode.SLOW
    async with edge.page("toy") as (page, _):
        form = f"<form method=post action={edge.control}/toy-leuven/kill><button>Win</button></form>"
        await page.evaluate("form => { document.body.innerHTML = form }", form)
        await page.get_by_role("button").click()
        await expect(page.get_by_role("heading")).to_have_text("403 Forbidden")
        assert edge.members["toy-leuven"].mode is Mode.SLOW


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
async def test_page_of_a_federation_in_trouble_fits_and_can_be_read_by_everybody(
    edge: Edge, scheme: str, width: int
) -> None:
    prime, sick, full = edge.members.values()
    await sick.set_mode(Mode.SICK)
    await full.set_mode(Mode.FULL)
    await edge.service.change(prime.name, Intent.MAINT, None, "kim")
    viewport = {"width": width, "height": 800}
    async with edge.page("live", viewport=viewport, color_scheme=scheme) as (page, seen):
        await _give(page, TOKEN)
        await expect(page.get_by_role("region", name="What is wrong")).to_contain_text(sick.name)
        await expect(page.get_by_role("region", name="Full")).to_contain_text(full.name)
        await edge.visit("somebody/refused")
        await expect(page.get_by_role("region", name="Refusals")).to_contain_text("no member was available")
        rows = page.locator("table.members tbody tr")
        await expect(rows).to_have_text([*(re.compile(each.name) for each in (sick, full, prime))])
        await page.locator("figure canvas").first.wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        table = page.locator("table.members")
        assert await table.evaluate("each => each.getBoundingClientRect().right") <= width
        for asked in (False, True):
            if asked:
                await (
                    page.locator(f'[data-member="{full.name}"]')
                    .get_by_role("button", name="Maintenance")
                    .click()
                )
                await expect(page.get_by_role("dialog")).to_be_visible()
            found = await Axe().run(page)
            assert not found.violations_count, found.generate_report()
        assert not seen.complaints


async def test_outage_is_on_the_page_though_no_member_is_asked(edge: Edge) -> None:
    for name in edge.members:
        await edge.service.change(name, Intent.MAINT, None, "kim")
    async with edge.page("live") as (page, _):
        refused = page.locator(".tiles div", has_text="Refused by the edge").locator("dd")
        await expect(refused).to_have_text("0/s")
        await edge.visit("somebody/refused")
        await expect(refused).not_to_have_text("0/s")
        await expect(page.get_by_role("region", name="What is wrong")).to_contain_text(
            "no member was available"
        )
        row = page.get_by_role("region", name="Refusals").locator("tbody tr")
        await expect(row).to_have_count(1)
        await expect(page.locator(".tiles div", has_text="Failures of members").locator("dd")).to_have_text(
            "0/s"
        )


async def test_crosshair_says_the_values_in_every_chart_and_charts_follow_the_colour_scheme(
    edge: Edge,
) -> None:
    await edge.visit("somebody/a")
    async with edge.page("live", viewport={"width": 1600, "height": 1200}, color_scheme="light") as (
        page,
        seen,
    ):
        chart = page.get_by_role("img", name="Requests per second: requests ").first
        await chart.wait_for()
        first = page.locator("figure", has_text="Requests in flight, and connections")
        member = page.locator('[data-member="toy-oxford"] figure').first
        for figure in (first, member):
            await expect(figure.locator(".readout")).to_contain_text("now")
        steps = edge.service.history.steps
        # At least one point, which may be the first.
        while edge.service.history.steps < max(1, steps):
            await asyncio.shield(edge.service.next_look())
        await expect(chart).to_have_attribute("aria-label", re.compile(r"refused 0/s now, 0/s at most$"))
        box = await chart.bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
        for figure in (first, member):
            await expect(figure.locator(".readout")).to_contain_text(re.compile(r"\d\d:\d\d:\d\d UTC"))
        light = await chart.locator("canvas").evaluate("each => each.toDataURL()")
        await page.emulate_media(color_scheme="dark")
        while await chart.locator("canvas").evaluate("each => each.toDataURL()") == light:
            await asyncio.sleep(0.05)
        assert not seen.complaints


async def test_only_charts_in_sight_are_drawn(edge: Edge) -> None:
    async with edge.page("live", viewport={"width": 360, "height": 400}) as (page, _):
        first, last = page.locator("figure").first, page.locator("figure").last
        await first.scroll_into_view_if_needed()
        await first.locator("canvas").wait_for()
        assert await last.locator("canvas").count() == 0
        await last.scroll_into_view_if_needed()
        await last.locator("canvas").wait_for()
        await page.evaluate("scrollTo(0, 0)")
        await expect(last.locator("canvas")).to_have_count(0)


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
        await expect(page.locator("table.members tbody tr").first).to_contain_text(broken.name)
        await wrong.get_by_role("link", name=broken.name).click()
        await expect(card).to_be_in_viewport()
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


async def test_cards_of_the_visitors_page_are_aligned(edge: Edge) -> None:
    await edge.members["toy-leuven"].set_mode(Mode.FULL)
    async with edge.page("federation", viewport={"width": 1440, "height": 900}) as (page, _):
        full = page.locator("li", has_text="toy-leuven")
        while not await full.get_by_text("no room for more at the moment").count():
            await page.reload()
        await expect(full.locator(".full")).to_have_text("Full")
        cards = page.locator("section[aria-labelledby=members] li")
        for what in ("h3", ".how", ".share", ".run-by", ".contact"):
            tops = await cards.locator(what).evaluate_all(
                "all => all.map(e => e.getBoundingClientRect().top)"
            )
            assert len(tops) == 3, what
            assert max(tops) - min(tops) < 1, what
        for what, number in ((".funded-by", 2), ("form", 2)):
            ends = await cards.locator(what).evaluate_all(
                "all => all.map(e => e.getBoundingClientRect().bottom)"
            )
            assert len(ends) == number, what
            assert max(ends) - min(ends) < 1, what


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
        await expect(said).to_have_text("This token is wrong.")
        await expect(card.get_by_role("button", name="Drain")).to_be_hidden()
        await _give(page, TOKEN)
        await expect(page.locator("#kept")).to_contain_text("Kept in this tab as admin.")
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


async def test_maintenance_asks_once_with_cancel_first(edge: Edge) -> None:
    member = edge.service.federation.by_name["toy-oxford"]
    async with edge.page("live") as (page, _):
        await _give(page, TOKEN)
        button = page.locator('[data-member="toy-oxford"]').get_by_role("button", name="Maintenance")
        ask = page.get_by_role("dialog", name="Put toy-oxford in maintenance?")
        for refuse in ("Enter", "Escape"):
            await button.click()
            await expect(ask).to_contain_text("toy-oxford is sent no more requests")
            await expect(ask.get_by_role("button", name="Cancel")).to_be_focused()
            await page.keyboard.press(refuse)
            await expect(ask).to_be_hidden()
        assert member.intent == "ready"
        await button.click()
        await ask.get_by_role("button", name="Maintenance").click()
        await expect(page.locator("#said")).to_have_text("toy-oxford: maint, weight 50")
        assert member.intent == "maint"
        await expect(button).to_have_attribute("aria-pressed", "true")


async def test_token_for_reading_shows_no_buttons(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await _give(page, LOOK)
        await expect(page.locator("#kept")).to_contain_text("viewer, which is only for reading")
        await expect(page.get_by_role("button", name="Drain").first).to_be_hidden()
        await page.get_by_role("button", name="Forget it").click()
        await expect(page.get_by_label("Admin token")).to_be_visible()


async def test_token_that_became_invalid_is_dropped(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await page.evaluate("sessionStorage.setItem('token', 'of-yesterday')")
        await page.reload()
        await expect(page.locator("#said")).to_contain_text("not valid any more")
        assert await page.evaluate("sessionStorage.length") == 0
        await _give(page, TOKEN)
        drain = page.locator('[data-member="toy-oxford"]').get_by_role("button", name="Drain")
        await expect(drain).to_be_visible()
        await page.evaluate("sessionStorage.setItem('token', 'of-yesterday')")
        await drain.click()
        await expect(page.locator("#said")).to_contain_text("not valid any more")
        await expect(drain).to_be_hidden()


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


async def test_cards_keep_their_places_while_somebody_is_at_one(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await _give(page, TOKEN)
        cards, rows = page.locator("ul.cards > li"), page.locator("table.members tbody tr")
        names = "all => all.map((each) => each.dataset.member)"
        weight = page.locator('[data-member="toy-oxford"]').get_by_label("Weight")
        await weight.fill("77")
        order = await cards.evaluate_all(names)
        worst = next(name for name in reversed(order) if name != "toy-oxford")
        await edge.members[worst].set_mode(Mode.SICK)
        # It comes first in the table, and a box about it above the cards.
        await expect(rows.first).to_contain_text(worst)
        await expect(page.get_by_role("region", name="What is wrong")).to_contain_text(worst)
        assert await cards.evaluate_all(names) == order
        assert await weight.input_value() == "77"
        assert await weight.evaluate("each => each === document.activeElement")
        await page.get_by_role("button", name="Forget it").focus()
        await page.mouse.move(0, 0)
        await expect(cards.first).to_contain_text(worst)
        # What was typed went with its member.
        assert await weight.input_value() == "77"
        await edge.members[worst].set_mode(Mode.HEALTHY)
        await expect(page.get_by_role("region", name="What is wrong")).to_have_count(0)
        assert await weight.input_value() == "77"


async def test_live_page_without_script_shows_the_members(edge: Edge) -> None:
    async with edge.page("live", java_script_enabled=False) as (page, _):
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await expect(page.get_by_label("Admin token")).to_be_hidden()
        await expect(page.locator("figure").first).to_be_hidden()


async def test_open_page_shows_that_it_is_stale_when_the_edge_is_gone(edge: Edge) -> None:
    async with edge.page("live") as (page, _):
        await page.locator("figure canvas").first.wait_for()
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
        await expect(page.get_by_role("status")).to_have_text("This token is wrong.")
        await _give(page, TOKEN)
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await expect(page.get_by_role("alert")).to_be_empty()
        await page.locator("figure canvas").first.wait_for()
        edge.service.note(EventName.EDGE_START, "something happened")
        await expect(page.locator("ol.events")).to_contain_text("something happened")
        await page.reload()
        await expect(page.locator("tr", has_text="toy-oxford")).to_contain_text("healthy")
        await page.get_by_role("button", name="Forget it").click()
        await expect(page.locator("#live")).to_be_empty()
        assert all("401" in said for said in seen.complaints), seen.complaints


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
async def test_edges_of_a_fleet_fit_and_can_be_read_by_everybody(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, scheme: str, width: int
) -> None:
    fleet = fleet_of_three()
    monkeypatch.setattr(edge.service, "fleet", lambda: fleet)
    viewport = {"width": width, "height": 800}
    async with edge.page("live", viewport=viewport, color_scheme=scheme) as (page, seen):
        section = page.get_by_role("region", name="Edges")
        await expect(section).to_contain_text("Store up")
        rows = section.locator("tbody tr")
        await expect(rows).to_have_text([re.compile(name) for name in ("other", "here", "like")])
        await expect(page.get_by_role("region", name="What is wrong")).to_have_count(0)
        fleet = fleet_of_three(up=False, pending=("toy-oxford",))
        # By the keyboard alone, as soon as it is on the open page.
        link = page.get_by_role("region", name="What is wrong").get_by_role("link", name="Store")
        await link.focus()
        await page.keyboard.press("Enter")
        await expect(section.get_by_role("heading")).to_be_focused()
        await expect(section).to_be_in_viewport()
        await expect(section).to_contain_text("hear later of what was set here for toy-oxford.")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await section.locator("table").evaluate("each => each.getBoundingClientRect().right") <= width
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
        assert not seen.complaints
