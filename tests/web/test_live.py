"""The operators' live page as it is sent, and its streams."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from aiohttp import ClientResponse
from pytest_aiohttp import AiohttpClient

from fedproxy import __version__, is_compiled
from fedproxy.decide.counts import BOUNDS
from fedproxy.decide.member import Intent
from fedproxy.event import Event, EventName
from fedproxy.observe.fleet import EdgeSeen
from fedproxy.observe.history import STEP, Quantile
from fedproxy.observe.metrics import REASONS
from fedproxy.web import live, refusals
from fedproxy.web.admin import create_admin_app
from fedproxy.web.refusals import describe_refusal
from tests.rig import RawClient, guard, until
from tests.rig.page import Page
from tests.rig.state import CONFIG, Client, State, fleet_of_three

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
        assert (name, charts["lines"], charts["edge_lines"], charts["seconds"]) == (
            "charts",
            {"requests": 100, "errors": 100, "first_byte": 100_000, "in_flight": 1},
            {
                "requests": 100,
                "answered": 100,
                "failed": 100,
                "refused": 100,
                "in_flight": 1,
                "connections": 1,
            },
            STEP,
        )
        assert charts["bounds"] == [*BOUNDS]
        assert charts["times"] == [1_800_000_011]
        assert charts["members"]["gesis"] == {
            "requests": [0],
            "errors": [0],
            "first_byte": [-1],
            "in_flight": [0],
        }
        assert charts["edge"] == {line: [0] for line in charts["edge_lines"]}
        await reader.page()
        state.federation.by_name["gesis"].counts.codes[200] += 40
        state.counts.requests += 50
        state.counts.rejected["no_member"] += 10
        await look(state)
        await reader.page()
        await look(state, STEP)
        assert await reader.event() == (
            "point",
            {
                "time": 1_800_000_022,
                "edge": [*(round(number * 100 / (STEP + 1)) for number in (50, 40, 0, 10)), 0, 0],
                "members": {
                    "gesis": [round(4000 / (STEP + 1)), 0, -1, 0],
                    "ovh": [0, 0, -1, 0],
                    "shed": [0, 0, -1, 0],
                },
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
    card = card_of(await (await client.get("/")).text(), "gesis")
    for words in (
        "2/s, 0 in flight",
        "0.7/s",
        "50\u00a0%: 0.025 to 0.05, 95\u00a0%: 1 to 2.5, 99\u00a0%: 1 to 2.5 s",
        "0&nbsp;% by weight; last hour 100&nbsp;% of 0&nbsp;% due",
        "repository or path 3",
        "0 running, 2 failed, 7 ready",
        '<dd class="shut">open</dd>',
        '<span class="state open">Docker registry</span>',
        '<span class="state shut">JupyterHub API failed</span>',
        "gesis was ejected: its breaker opened (connect 5 times, launch failed 2 times)",
        'value="50"',
    ):
        assert words in card, words


def card_of(text: str, name: str) -> str:
    """A member's card on the page."""
    return text.partition(f'<li id="member-{name}"')[2].partition("</form>")[0]


def listed(text: str, box: str) -> list[str]:
    """The lines of the box with this id, without their tags."""
    found = text.partition(f'<h2 id="{box}">')[2].partition("</section>")[0]
    return [unescape(re.sub("<[^>]*>", "", line)) for line in re.findall(r"<li>(.*?)</li>", found)]


def statuses(text: str) -> list[str]:
    """Each member's state, in the order of the table."""
    return re.findall(r'<td><span class="state (\w+ *">[\w -]+)</span></td>', text)


async def test_page_says_what_made_expected_wait_choose(client: Client, state: State) -> None:
    gesis = state.federation.by_name["gesis"]
    assert "Expected wait" not in await (await client.get("/")).text()
    gesis.counts.choices |= {"image": 7, "tie": 2}
    gesis.price = -0.256
    state.look()
    text = await (await client.get("/")).text()
    card = card_of(text, "gesis")
    assert "<dd>image 7, tie 2, price -0.26</dd>" in card


async def test_page_says_first_what_is_wrong_and_why(client: Client, state: State) -> None:
    def wrong(text: str) -> list[str]:
        return listed(text, "trouble")

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
    ]
    assert listed(text, "full") == ["ovh: 1000 requests and 0 launches in flight"]
    assert statuses(text) == ['shut">ejected', 'busy">full', 'rest">maintenance']
    assert 'data-title="0 of 3 available - fedproxy"' in text


async def test_worst_member_comes_first_in_the_table_and_in_the_cards(client: Client, state: State) -> None:
    _, ovh, shed = state.federation.members
    shed.set_health(False, 0.0, ("status",))
    ovh.in_flight = ovh.max_requests
    state.look()
    text = await (await client.get("/")).text()
    assert statuses(text) == ['shut">unhealthy', 'busy">full', 'open">available']
    assert re.findall(r'<th scope="row"><a href="#member-(\w+)">', text) == ["shed", "ovh", "gesis"]
    assert re.findall(r'<li id="member-(\w+)" data-key="(\w+)"', text) == [
        ("shed", "shed"),
        ("ovh", "ovh"),
        ("gesis", "gesis"),
    ]
    shed.set_health(True, 0.0)
    ovh.in_flight = 0
    state.look()
    text = await (await client.get("/")).text()
    assert re.findall(r'<th scope="row"><a href="#member-(\w+)">', text) == ["gesis", "ovh", "shed"]


async def test_page_counts_what_visitors_see_though_no_member_is_asked(client: Client, state: State) -> None:
    for member in state.federation.members:
        member.set_intent(Intent.MAINT)
    state.look(STEP)
    state.counts.requests += 60
    state.counts.rejected |= {"no_member": 60, "malformed": 5}
    state.look(STEP)
    text = await (await client.get("/")).text()
    text, cards = text.split('<h2 id="lately">')
    assert 'data-member="gesis"' in cards
    tiles = dict(re.findall(r"<div><dt>(?:<span[^>]*>)?([\w ]+)(?:</span>)?</dt><dd[^>]*>([^<]*)</dd>", text))
    assert (tiles["Requests"], tiles["Refused by the edge"], tiles["Failures of members"]) == (
        *("6/s", "6.5/s", "0/s"),
    )
    assert listed(text, "trouble") == [
        "Visitors: 6/s refused: no member was available, or the session's member was in maintenance"
    ]
    table = text.partition('<table class="refusals">')[2].partition("</table>")[0]
    assert "Last 20 s" in table
    assert re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", table) == [
        ("no member was available, or the session&#39;s member was in maintenance", "6/s", "60"),
        ("malformed", "0.5/s", "5"),
    ]
    state.look(4000.0)
    state.look(STEP)
    assert '<table class="refusals">' not in await (await client.get("/")).text()


def test_every_reason_of_a_refusal_is_described() -> None:
    assert {describe_refusal(reason) for reason in REASONS} >= {"banned", "malformed"}
    assert [each for each in REASONS if describe_refusal(each) == each and "_" in each] == []
    assert set(refusals._WORDS) == REASONS
    assert refusals._GRAVE <= REASONS
    # Of another release's worker, say.
    assert describe_refusal("some_reason") == "some reason"


async def test_last_resort_is_on_the_page_while_it_is_asked(client: Client, state: State) -> None:
    gesis, ovh, shed = state.federation.members
    for member in (gesis, ovh, shed):
        member.set_health(False, 0.0, ("timeout",))
    state.look(STEP)
    gesis.counts.last_resort += 60
    state.look(STEP)
    text = await (await client.get("/")).text()
    assert (
        listed(text, "trouble")[0]
        == "gesis: timeout; the last resort for 6 requests/s that no other member takes"
    )
    assert "6/s, 60 since the start" in card_of(text, "gesis")
    assert "Last resort" not in card_of(text, "ovh")
    state.look(STEP)
    state.look(STEP)
    text = await (await client.get("/")).text()
    assert listed(text, "trouble")[0] == "gesis: timeout"
    # Who comes without a cookie gets an answer, as /health/ready says.
    assert '<span class="state open">Ready</span>' in text
    assert "0/s, 60 since the start" in card_of(text, "gesis")


async def test_member_that_gets_clearly_more_than_its_share_is_marked(client: Client, state: State) -> None:
    gesis, ovh, _ = state.federation.members
    state.look(STEP)
    gesis.counts.affinity["key"] += 900
    ovh.counts.affinity["key"] += 100
    state.look(STEP)
    text = await (await client.get("/")).text()
    assert '<span class="state busy">over its share</span>' in card_of(text, "gesis")
    assert "over its share" not in card_of(text, "ovh")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([None, None, None], None),
        (
            [Quantile(0.0004, 0.0, 0.001), Quantile(0.03, 0.025, 0.05), Quantile(0.8, 0.5, 1.0)],
            "50 %: up to 1, 95 %: 25 to 50, 99 %: 500 to 1000 ms",
        ),
        (
            [Quantile(0.0004, 0.0, 0.001), Quantile(0.002, 0.001, 0.0025), Quantile(3600.0, 3600.0, None)],
            "50 %: up to 0.001, 95 %: 0.001 to 0.0025, 99 %: over 3600 s",
        ),
    ],
)
def test_percentiles_are_buckets_in_one_unit(found: list[Quantile | None], expected: str | None) -> None:
    text = live._spans(found)
    assert (text.replace("\u00a0", " ") if text else text) == expected


@pytest.mark.parametrize(
    ("days", "words", "tone"),
    [(14.5, "in 14 days", ""), (13.9, "in 13 days", ' class="shut"'), (1.5, "in 1 day", ' class="shut"')],
)
async def test_page_says_which_edge_it_is_and_which_certificate_ends_first(
    client: Client, state: State, days: float, words: str, tone: str
) -> None:
    state.started_at = time.time() - 3 * 3600 - 5 * 60
    state.reloaded_at = 1_800_000_000.0
    end = time.time() + days * 86400
    state.expiries = {"later.test": end + 1e6, "first.test": end}
    about = (await (await client.get("/")).text()).partition('<dl class="about"')[2].partition("</dl>")[0]
    assert f"<dd>{socket.gethostname()}</dd>" in about
    assert f"<dd>{__version__}, {'compiled' if is_compiled() else 'not compiled'}</dd>" in about
    assert "up 3 h 5 min" in about
    assert "2027-01-15 08:00 UTC" in about
    assert f"<dd{tone}>first.test, <time" in about
    assert f"</time>, {words}</dd>" in about


async def test_page_without_tls_or_with_a_certificate_that_ended_says_so(
    client: Client, state: State
) -> None:
    state.expiries = {"first.test": time.time() - 10}
    assert "it has expired" in await (await client.get("/")).text()
    state.expiries = {}
    assert "certificate" not in await (await client.get("/")).text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (59, "59 s"), (3599, "59 min"), (3600 * 47, "47 h 0 min"), (3600 * 48, "2 days")],
)
def test_times_are_in_the_units_that_matter(seconds: float, words: str) -> None:
    assert live._lasted(seconds) == words


async def test_member_that_was_found_says_where(client: Client) -> None:
    text = await (await client.get("/")).text()
    assert "dns: _https._tcp.example.org" in card_of(text, "ovh")
    assert "Comes from" not in card_of(text, "gesis")


async def test_member_s_dashboard_is_a_link(aiohttp_client: AiohttpClient) -> None:
    url = "https://grafana.example.org/d/x?a=1&b=2"
    config = CONFIG.replace("    weight: 150\n", f"    weight: 150\n    dashboard: {url}\n")
    state = State(config)
    client = await aiohttp_client(create_admin_app(state))
    text = await (await client.get("/")).text()
    assert f'<a href="{url.replace("&", "&amp;")}" rel="noreferrer">' in card_of(text, "ovh")
    assert "Dashboard" not in card_of(text, "gesis")
    members = (await (await client.get("/members")).json())["members"]
    assert [member["dashboard"] for member in members] == [None, url, None]


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


# The edges of a fleet


def edges_of(text: str) -> list[str]:
    """The rows of the table of edges, as text."""
    table = text.partition('<table class="edges">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr data-key[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [" ".join(unescape(re.sub("<[^>]*>", " ", row)).split()) for row in rows]


async def test_edge_that_is_alone_shows_no_edges(client: Client) -> None:
    text = await (await client.get("/")).text()
    assert "Edges" not in text and 'id="edges"' not in text and "Store" not in text


async def test_edges_are_shown_with_those_that_disagree_first(client: Client, state: State) -> None:
    state.shared = fleet_of_three()
    text = await (await client.get("/")).text()
    rows = edges_of(text)
    assert rows[0] == "other no: version 0.9, another config 0.9 def unknown no - - - - -"
    assert re.fullmatch(r"here this one yes 1\.0 abc .+ yes 2 30 5 6 4000", rows[1])
    assert [row.split()[0] for row in rows] == ["other", "here", "like"]
    assert "Store up" in text and '<h2 id="trouble">' not in text
    assert Page(text).open == []


async def test_store_that_is_away_is_what_is_wrong_and_what_waits_is_named(
    client: Client, state: State
) -> None:
    state.shared = fleet_of_three(up=False, pending=("gesis",))
    text = await (await client.get("/")).text()
    trouble = text.partition('<h2 id="trouble">')[2].partition("</section>")[0]
    assert '<a href="#edges">Store</a></strong>: away since 08:00:00; this edge goes on' in trouble
    assert 'what was set here for <a href="#member-gesis">gesis</a>.' in text
    assert text.count("the other edges hear of it later") == 1
    page = Page(text)
    assert {"edges", "trouble"} <= set(page.ids) and set(page.labelled_by) <= set(page.ids)


async def test_what_another_edge_says_is_only_text(client: Client, state: State) -> None:
    edges = [EdgeSeen(MARKUP, here=False, version=MARKUP, config=MARKUP, disagrees=[MARKUP], id=MARKUP)]
    state.shared = replace(fleet_of_three(), edges=edges)
    text = await (await client.get("/")).text()
    assert "<script>alert" not in text
    assert Page(text).open == []
