"""The operators' live page as it is sent, and its streams."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientResponse
from pytest_aiohttp import AiohttpClient

from fedproxy.decide.member import Intent
from fedproxy.event import Event, EventName
from fedproxy.observe.history import STEP
from fedproxy.web import live
from fedproxy.web.admin import create_admin_app
from tests.rig import RawClient, guard, until
from tests.rig.page import Page
from tests.rig.state import CONFIG, Client, State

MARKUP = "<script>alert(1)</script>\"'&\r\n\r\ndata: x"


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look makes a page, however soon it comes."""
    monkeypatch.setattr(live, "_REST", 0.0)


@pytest.fixture
def state() -> State:
    state = State()
    state.look()
    return state


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_admin_app(state))


class Stream:
    """One reader of `/events`."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response

    async def event(self) -> tuple[str, Any]:
        """The next one: its name and its data."""
        async with guard():
            name = (await self.response.content.readline()).decode().removeprefix("event: ").rstrip("\n")
            data = (await self.response.content.readline()).decode().removeprefix("data: ")
            assert await self.response.content.readline() == b"\n"
        return name, json.loads(data)

    async def page(self) -> str:
        """The next page; what comes before it is passed over."""
        while (event := await self.event())[0] != "page":
            pass
        return str(event[1])


@asynccontextmanager
async def stream(client: Client) -> AsyncIterator[Stream]:
    async with client.get("/events") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield Stream(response)


async def look(state: State, seconds: float = 1.0) -> None:
    """A new survey, once all streams wait for one."""
    await until(lambda: state.waiting, "a stream waits for the next look")
    state.look(seconds)


async def test_open_page_is_sent_what_a_new_one_is(client: Client, state: State) -> None:
    async with stream(client) as reader:
        first = await reader.page()
        assert first in await (await client.get("/")).text()
        await until(lambda: state.waiting, "the stream waits")
        state.history.note(
            Event(EventName.OPERATOR_DRAIN, "ovh was set to drain", "ovh", "kim 192.0.2.7", 1_800_000_000.0)
        )
        state.look()
        text = await reader.page()
        assert "ovh was set to drain <small>(kim 192.0.2.7)</small>" in text
        assert text in await (await client.get("/")).text()


@pytest.mark.parametrize("accept", ["gzip, deflate", "identity"])
async def test_stream_is_packed_for_who_takes_that_and_late_readers_can_read_on(
    client: Client, state: State, accept: str
) -> None:
    async with (
        stream(client) as first,
        client.get("/events", headers={"Accept-Encoding": accept}) as response,
    ):
        assert response.headers.get("Content-Encoding") == ("gzip" if "gzip" in accept else None)
        second = Stream(response)
        assert await first.page() == await second.page()
        for _ in range(3):
            await until(lambda: state.waiting == 2, "both wait")
            state.look(STEP)
            assert (await first.event())[0] == (await second.event())[0] == "point"
            assert await first.page() == await second.page()


async def test_charts_are_sent_whole_and_then_a_point_a_step(client: Client, state: State) -> None:
    state.look(STEP)
    async with stream(client) as reader:
        name, charts = await reader.event()
        assert (name, charts["lines"], charts["seconds"]) == (
            "charts",
            {"requests": 100, "errors": 100, "first_byte": 100_000, "in_flight": 1},
            STEP,
        )
        assert charts["members"]["gesis"] == {line: [0] for line in charts["lines"]}
        await reader.page()
        state.federation.by_name["gesis"].counts.codes[200] += 40
        await look(state)
        await reader.page()
        await look(state, STEP)
        assert await reader.event() == (
            "point",
            {
                "members": {
                    "gesis": [round(4000 / (STEP + 1)), 0, 0, 0],
                    "ovh": [0] * 4,
                    "shed": [0] * 4,
                }
            },
        )


async def test_reader_that_missed_a_step_is_sent_the_charts_again(client: Client, state: State) -> None:
    async with stream(client) as reader:
        await reader.page()
        await until(lambda: state.waiting, "the stream waits")
        state.look(STEP)
        state.look(STEP)
        name, charts = await reader.event()
        assert (name, len(charts["members"]["ovh"]["requests"])) == ("charts", 2)


async def test_page_shows_rates_times_shares_checks_and_events(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    gesis = state.federation.by_name["gesis"]
    gesis.counts.codes[200] += 20
    gesis.counts.errors["connect"] += 5
    gesis.counts.affinity["key"] += 3
    gesis.counts.launches |= {"ready": 7, "failed": 2}
    for _ in range(20):
        gesis.counts.first_byte.observe(0.05)
        gesis.counts.first_byte.observe(2.0)
    gesis.breaker.trip(1000.0, 0.0)
    members = state.members()
    members[0] = replace(members[0], checks={"Docker registry": True, "JupyterHub API": False})
    monkeypatch.setattr(state, "members", lambda: members)
    state.look(STEP)
    text = await (await client.get("/")).text()
    card = text.partition('<li data-member="gesis">')[2].partition("</form>")[0]
    for words in (
        "2/s, 0 in flight",
        "0.7/s",
        "50&nbsp;ms, 2.35&nbsp;s, 2.47&nbsp;s",
        "0&nbsp;% by weight, 100&nbsp;% received",
        "0 running, 2 failed, 7 ready",
        '<dd class="shut">open</dd>',
        '<span class="state open">Docker registry</span>',
        '<span class="state shut">JupyterHub API failed</span>',
        "gesis was ejected: its breaker opened (connect 5 times, launch failed 2 times)",
        'value="50"',
    ):
        assert words in card, words


async def test_page_says_first_what_is_wrong_and_why(client: Client, state: State) -> None:
    def wrong(text: str) -> list[str]:
        found = re.findall(
            r"<li><strong>(.*?)</li>", text.partition('id="trouble"')[2].partition("</section>")[0]
        )
        return [each.replace("</strong>", "") for each in found]

    assert wrong(await (await client.get("/")).text()) == []
    gesis, ovh, shed = state.federation.members
    gesis.counts.errors["connect"] += 5
    gesis.breaker.trip(1000.0, 0.0)
    ovh.in_flight = ovh.max_requests
    shed.set_intent(Intent.MAINT)
    state.look()
    text = await (await client.get("/")).text()
    assert wrong(text) == [
        "gesis: breaker open; 08:00:02 gesis was ejected: its breaker opened (connect 5 times)",
        "ovh: full, with 1000 requests and 0 launches in flight",
    ]
    assert re.findall(r'class="state \w+">([\w -]+)</span></td>', text) == [
        "ejected",
        "full",
        "maintenance",
    ]
    assert 'data-title="0 of 3 available - fedproxy"' in text


async def test_pages_that_take_long_are_made_less_often(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_REST", 1e9)
    async with stream(client) as reader:
        await reader.page()
        await look(state)
        await look(state, STEP)
        # Charts go on, and the page is not made again.
        assert (await reader.event())[0] == "point"
        await until(lambda: state.waiting, "the stream waits again")
    async with stream(client) as reader:
        assert "gesis" in await reader.page()


async def test_log_is_shown_to_programs(client: Client, state: State) -> None:
    state.history.note(
        Event(EventName.CONFIG_RELOAD, "reloaded edge.yaml", who="signal", time=1_800_000_000.0)
    )
    assert await (await client.get("/log")).json() == {
        "events": [
            {
                "time": "2027-01-15T08:00:00+00:00",
                "level": "info",
                "event": "config.reload",
                "member": None,
                "who": "signal",
                "message": "reloaded edge.yaml",
            }
        ]
    }


async def test_markup_stays_text_on_the_page_and_in_the_stream(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.history.note(Event(EventName.MEMBER_UNHEALTHY, MARKUP, "gesis", MARKUP))
    found = replace(
        state.members()[0],
        name=MARKUP,
        healthy=False,
        reasons=(MARKUP,),
        details=(MARKUP,),
        checks={MARKUP: False},
    )
    found.counts.launches[MARKUP] = 1
    monkeypatch.setattr(state, "members", lambda: [found])
    state.look()
    text = await (await client.get("/")).text()
    async with stream(client) as reader:
        sent = await reader.page()
    for page in (text, sent):
        assert "<script>a" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;" in page
    assert Page(text).open == []


async def test_page_s_policy_allows_its_own_script_and_nothing_inline(client: Client) -> None:
    response = await client.get("/")
    policy = response.headers["Content-Security-Policy"]
    for words in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "form-action 'none'"):
        assert words in policy
    assert "unsafe" not in policy
    for url in Page(await response.text()).loads:
        assert (await client.get(url)).status == 200


async def test_streams_are_bounded_and_a_place_is_free_again_when_a_reader_leaves(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_STREAMS", 2)
    async with stream(client) as first:
        await first.page()
        async with stream(client) as second:
            await second.page()
            refused = await client.get("/events")
            assert (refused.status, refused.headers["Retry-After"]) == (503, "30")
        # That its reader has left, a stream learns when it writes.
        assert await admitted_while_looking(client, state)


async def admitted_while_looking(client: Client, state: State) -> bool:
    """Looks again and again until a new stream is admitted."""
    async with guard():
        while True:
            state.look()
            response = await client.get("/events")
            response.close()
            if response.status == 200:
                return True
            assert response.status == 503


async def test_reader_that_reads_nothing_is_dropped(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_PATIENCE", 0.1)
    monkeypatch.setattr(live, "MOST_STREAMS", 1)
    # Pages of half a megabyte: the system keeps some megabytes of what nobody reads.
    monkeypatch.setattr(live, "_SHOWN", 200)
    for number in range(200):
        state.history.note(Event(EventName.EDGE_START, "'" * 400, time=float(number)))
    reader = await RawClient.connect((client.host, client.port or 0), receive_buffer=4096)
    try:
        reader.write(b"GET /events HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: state.waiting, "the stream began")
        assert await admitted_while_looking(client, state)
    finally:
        reader.reset()


async def test_streams_end_with_the_listener(state: State, aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_admin_app(state))
    async with stream(client) as reader:
        await reader.page()
        async with guard():
            await asyncio.gather(client.server.close(), _read_to_end(reader))


async def _read_to_end(reader: Stream) -> None:
    assert await reader.response.content.read() == b""


async def test_hundred_pages_are_served_the_same(client: Client, state: State) -> None:
    async with guard():
        readers = [Stream(await client.get("/events")) for _ in range(100)]
        assert len({await reader.page() for reader in readers}) == 1
        await until(lambda: state.waiting == 100, "all wait")
        state.look()
        assert len({await reader.page() for reader in readers}) == 1
    for reader in readers:
        reader.response.close()


async def test_nothing_is_sent_of_members_before_the_first_look(aiohttp_client: AiohttpClient) -> None:
    state = State(CONFIG)
    client = await aiohttp_client(create_admin_app(state))
    async with stream(client) as reader:
        assert (await reader.event())[0] == "charts"
        await look(state)
        assert "gesis" in await reader.page()
