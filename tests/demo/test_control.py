"""The page that makes toy members fail."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from fedproxy.decide.snapshot import Status
from fedproxy.demo.control import EFFECTS
from fedproxy.demo.federation import DemoFederation
from fedproxy.demo.toy import Mode
from tests.rig.page import Page


@pytest.fixture
async def federation() -> AsyncIterator[DemoFederation]:
    async with DemoFederation(2, pace=0) as demo:
        yield demo


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def page(client: aiohttp.ClientSession, federation: DemoFederation) -> str:
    async with client.get(federation.control_url) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        return await response.text()


def card(text: str, name: str) -> str:
    return text.partition(f'<li id="{name}">')[2].partition("</ul>")[0]


async def test_page_has_a_card_for_each_member_and_all_that_it_loads(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    parsed = Page(await page(client, federation))
    assert parsed.open == []
    assert {hub.name for hub in federation.hubs} <= set(parsed.ids)
    assert set(parsed.labelled_by) <= set(parsed.ids)
    assert len(parsed.loads) == 3
    for path in parsed.loads:
        async with client.get(federation.control_url + path) as response:
            assert response.status == 200, path


async def test_button_of_the_current_mode_is_pressed(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    await federation.hubs[1].set_mode(Mode.FULL)
    text = await page(client, federation)
    for name, mode in ("toy-oxford", "healthy"), ("toy-leuven", "full"):
        pressed = re.findall(r'action="(\S+)"><button aria-pressed="true">', card(text, name))
        assert pressed == [f"/{name}/{mode}"]
        assert f"<strong>{mode}</strong>: {EFFECTS[Mode(mode)].does}" in card(text, name)


async def test_every_mode_is_explained_with_a_state_that_other_pages_know(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    assert list(EFFECTS) == list(Mode)
    text = (await page(client, federation)).partition('id="modes"')[2]
    for mode, effect in EFFECTS.items():
        assert effect.state in Status
        explained = text.partition(f"<dt>{mode}</dt>")[2].partition("</div>")[0]
        for said in (effect.does, effect.state, effect.follows):
            assert said in explained


async def test_page_leads_to_the_edge_once_it_is_known(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    assert "<nav" not in await page(client, federation)
    federation.link("http://127.0.0.1:81", "http://127.0.0.1:82")
    text = await page(client, federation)
    for url in ("http://127.0.0.1:81/", "http://127.0.0.1:81/federation", "http://127.0.0.1:82/"):
        assert f'<a href="{url}">' in text


async def test_form_comes_back_to_the_card_of_its_member(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    form = {"Accept": "text/html", "Origin": federation.control_url}
    url = f"{federation.control_url}/toy-leuven/slow"
    async with client.post(url, headers=form, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/#toy-leuven")
    assert federation.hubs[1].mode is Mode.SLOW


async def test_program_is_told_in_json_and_of_what_is_known(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    async with client.post(f"{federation.control_url}/toy-oxford/slow") as response:
        assert await response.text() == '{"member": "toy-oxford", "mode": "slow"}\n'
    async with client.post(f"{federation.control_url}/toy-oxford/sleepy") as response:
        assert response.status == 404
        known = await response.json()
        assert known == {
            "error": "no such member or mode",
            "members": ["toy-oxford", "toy-leuven", "toy-bergen"],
            "modes": list(Mode),
        }


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Referer": "https://other.example/"}, 403),
    ],
)
async def test_no_other_site_sets_a_mode(
    client: aiohttp.ClientSession, federation: DemoFederation, headers: dict[str, str], status: int
) -> None:
    (hub, other) = federation.hubs
    for url in (f"{federation.control_url}/{hub.name}/slow", f"{other.url}/_toy/slow"):
        async with client.post(url, headers=headers) as response:
            assert response.status == status
    assert {each.mode for each in federation.hubs} == {Mode.SLOW if status == 200 else Mode.HEALTHY}


async def test_mode_is_not_set_by_a_link_or_an_image(
    client: aiohttp.ClientSession, federation: DemoFederation
) -> None:
    async with client.get(f"{federation.control_url}/toy-oxford/kill") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert federation.hubs[0].mode is Mode.HEALTHY
