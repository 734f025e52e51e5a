from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp import AiohttpClient
from yarl import URL

from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot, Survey
from fedproxy.errors import ConfigError, Fault, Position
from fedproxy.proxy.explaining import Question
from fedproxy.serve.planes import Stuck
from fedproxy.web.admin import create_admin_app
from tests.rig.build import federation
from tests.rig.page import Page
from tests.rig.state import CONFIG, Client, State
from tests.rig.wire import until

TOKEN = {"Authorization": "Bearer s3cret"}
LOCKED = 'admin: {token: "s3cret", read: token}\nmembers: {gesis: {url: "https://gesis.test", prime: true}}'
NEW = {"url": "https://new.example.org", "weight": 20}
#: Bodies that are wrong for any request.
UNUSABLE = [b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 30_000]


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_admin_app(state))


async def error_of(response: Any, status: int) -> str:
    """The detail of an error in the contract's form."""
    assert response.status == status
    assert response.content_type == "application/json"
    found = await response.json()
    assert {"error", "detail", "request_id"} <= found.keys()
    assert found["request_id"] == response.headers["X-Request-ID"]
    return str(found["detail"])


# Reading


async def test_members_are_described(client: Client, state: State) -> None:
    gesis = state.federation.by_name["gesis"]
    gesis.counts.codes[200] = 3
    gesis.counts.codes[502] = 1
    gesis.counts.errors["connect"] = 2
    gesis.counts.launches |= {"ready": 5, "failed": 1}
    gesis.counts.failovers["ovh"] = 1
    found = (await (await client.get("/members")).json())["members"]
    assert [member["name"] for member in found] == ["gesis", "ovh", "shed"]
    assert found[0] == {
        "name": "gesis",
        "url": "https://gesis.mybinder.org",
        "health": "https://gesis.mybinder.org/health",
        "versions": "https://gesis.mybinder.org/versions",
        "dashboard": None,
        "last_resort": 0,
        "weight": 50,
        "auto": False,
        "ramp": None,
        "share": 0.25,
        "share_actual": None,
        "price": 0.0,
        "launch_seconds": {"with_image": 12.5, "without_image": None},
        "images_known": 3,
        "prime": True,
        "state": "ready",
        "status": "available",
        "set_by": None,
        "source": "config",
        "pending": False,
        "healthy": True,
        "reasons": [],
        "details": [],
        "checks": {},
        "pods": {},
        "quota": None,
        "breaker": "closed",
        "available": True,
        "in_flight": 0,
        "max_requests": 1000,
        "launches": 0,
        "max_launches": None,
        "requests": 4,
        "errors": {"connect": 2},
        "retries": {},
        "outcomes": {"ready": 5, "failed": 1},
        "failovers": {"ovh": 1},
        "connections": {"idle": 1, "active": 2},
        "addresses": [{"address": "192.0.2.1", "connections": 3, "failures": 2, "aside": True}],
        "bytes_in": 0,
        "bytes_out": 0,
    }


async def test_one_member_is_described_alike(client: Client, state: State) -> None:
    state.federation.by_name["ovh"].set_health(False, 0.0, ("Pod quota",))
    one = await (await client.get("/members/ovh")).json()
    assert one == (await (await client.get("/members")).json())["members"][1]
    assert (one["healthy"], one["reasons"], one["available"], one["share"]) == (
        False,
        ["Pod quota"],
        False,
        0,
    )


async def test_member_that_is_none_is_not_found(client: Client) -> None:
    assert await error_of(await client.get("/members/%3Cx%3E"), 404) == "There is no member with that name."
    assert await error_of(await client.get("/members/gke"), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/members",
        "/members/gesis",
        "/config",
        "/health/live",
        "/log",
        "/style.css",
        "/live.js",
        "/uplot.js",
    ],
)
async def test_every_answer_can_be_had_by_head(client: Client, path: str) -> None:
    response = await client.head(path)
    assert (response.status, await response.read()) == (200, b"")


async def test_page_shows_the_members_and_comes_again_by_itself_without_script(
    client: Client, state: State
) -> None:
    state.federation.by_name["ovh"].set_health(False, 0.0, ("<Pod quota>",))
    state.federation.by_name["shed"].set_health(False, 0.0)
    response = await client.get("/")
    text = await response.text()
    assert response.content_type == "text/html"
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    for word in ("gesis", "ovh", "shed", "&lt;Pod quota&gt;", "unhealthy", "Ready"):
        assert word in text
    assert "<Pod" not in text


@pytest.mark.parametrize("number", [0, 1, 3])
async def test_page_is_well_formed_and_loads_its_own_style_and_script_only(
    client: Client, state: State, number: int
) -> None:
    state.federation = federation(*state.federation.members[:number])
    for down in state.federation.members[1:]:
        down.set_health(False, 0.0, ('<"quota">',))
    parsed = Page(await (await client.get("/")).text())
    assert parsed.open == []
    assert [url.partition("?")[0] for url in parsed.loads] == [
        *("/style.css", "/icon.svg", "/uplot.css"),
        *("/uplot.js", "/charts.js", "/live.js"),
    ]
    expected = {"log", "members", "ask-title"} | ({"lately"} if number else set())
    if number == 3:
        expected.add("trouble")
    assert set(parsed.labelled_by) == expected
    assert set(parsed.labelled_by) <= set(parsed.ids)


@pytest.mark.parametrize(
    ("reason", "word", "tone", "place"),
    [("quota", "full", "busy", "full"), ("status", "unhealthy", "shut", "trouble")],
)
async def test_page_says_what_is_wrong_in_words(
    client: Client,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    word: str,
    tone: str,
    place: str,
) -> None:
    snapshots = [
        replace(snapshot, healthy=False, reasons=(reason,), details=("291 pods & more", "no"))
        for snapshot in state.members()[:1]
    ]
    monkeypatch.setattr(state, "members", lambda: snapshots)
    text = await (await client.get("/")).text()
    assert f'<span class="{tone}" title="291 pods &amp; more; no">{word}</span>' in text
    box = text.partition(f'<h2 id="{place}">')[2].partition("</section>")[0]
    assert '<a href="#member-gesis">gesis</a></strong>: 291 pods &amp; more; no</li>' in box
    # A full member is no alarm.
    assert ('<h2 id="trouble">' in text) is (place == "trouble")


async def test_page_of_a_busy_federation_fits_80_columns_of_text(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(snapshot: Snapshot) -> Snapshot:
        snapshot.counts.codes[200] = 12345678
        snapshot.counts.errors["connect"] = 123
        snapshot.counts.launches |= {"ready": 12345, "lost": 12}
        return replace(
            snapshot,
            name="hetzner-gesis",
            breaker=BreakerState.HALF_OPEN,
            pods={"total": 137},
            quota=300,
            in_flight=4321,
            launches=20,
        )

    snapshots = [busy(snapshot) for snapshot in state.members()]
    monkeypatch.setattr(state, "members", lambda: snapshots)
    text = await (await client.get("/")).text()
    rows = [
        [
            [unescape(re.sub("<[^>]*>", "", line)) for line in cell.split("<br>")]
            for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr\b[^>]*>(.*?)</tr>", text, re.DOTALL)
    ]
    assert len(rows) == 4
    assert ["137", "/ 300"] in rows[1]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*rows, strict=True)]
    assert sum(widths) + len(widths) - 1 <= 80


async def test_page_without_members_says_so(client: Client, state: State) -> None:
    state.federation = federation()
    text = await (await client.get("/")).text()
    assert "There are no members." in text
    assert "Not ready" in text


async def test_metrics_are_prometheus_text(client: Client, state: State) -> None:
    state.counts.connections = 5
    response = await client.get("/metrics")
    found = {family.name: family for family in text_string_to_metric_families(await response.text())}
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert found["fedproxy_downstream_connections"].samples[0].value == 5
    assert {s.labels["state"]: s.value for s in found["fedproxy_upstream_connections"].samples[:2]} == {
        "idle": 1,
        "active": 2,
    }


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("br, GZIP;q=0.5", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.000", None),
        ("x-gzip", "gzip"),
        ("*", None),
    ],
)
async def test_metrics_are_compressed_for_who_takes_it(
    client: Client, accepted: str, coding: str | None
) -> None:
    plain = await (await client.get("/metrics", headers={"Accept-Encoding": "identity"})).text()
    response = await client.get("/metrics", headers={"Accept-Encoding": accepted})
    assert response.headers.get("Content-Encoding") == coding
    text = await response.text()
    assert text.splitlines()[:50] == plain.splitlines()[:50]


async def test_metrics_are_openmetrics_if_asked_for(client: Client) -> None:
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.content_type == "application/openmetrics-text"
    assert (await response.text()).endswith("# EOF\n")


async def test_live_asks_nothing_of_members_and_listeners(client: Client, state: State) -> None:
    state.listening = False
    for member in state.federation.members:
        member.set_intent(Intent.MAINT)
    response = await client.get("/health/live")
    assert (response.status, await response.json()) == (200, {"live": True})


async def test_worker_that_does_not_turn_is_named_and_makes_neither_live_nor_ready(
    client: Client, state: State
) -> None:
    state.not_turning = [Stuck(4711, 3.333)]
    named = [{"pid": 4711, "seconds": 3.3}]
    response = await client.get("/health/live")
    assert (response.status, await response.json()) == (503, {"live": False, "not_turning": named})
    response = await client.get("/health/ready")
    assert response.status == 503
    answer = await response.json()
    assert (answer["ready"], answer["listening"], answer["not_turning"]) == (False, True, named)


async def test_ready_counts_the_last_resort_and_no_member_that_takes_nobody_new(
    client: Client, state: State
) -> None:
    gesis, *others = state.federation.members
    assert gesis.prime
    for member in state.federation.members:
        member.set_health(False, 1000.0)
    assert (await client.get("/health/ready")).status == 200
    gesis.set_intent(Intent.MAINT)
    assert (await client.get("/health/ready")).status == 503
    for member in others:
        member.set_health(True, 1000.0)
    assert (await client.get("/health/ready")).status == 200
    for member in others:
        member.set_intent(Intent.DRAIN)
    assert (await client.get("/health/ready")).status == 503


async def test_ready_needs_listening_and_a_member(client: Client, state: State) -> None:
    response = await client.get("/health/ready")
    assert response.status == 200
    assert await response.json() == {"ready": True, "listening": True, "available": ["gesis", "ovh", "shed"]}
    state.listening = False
    assert (await client.get("/health/ready")).status == 503
    state.listening = True
    for member in state.federation.members:
        member.set_intent(Intent.MAINT)
    response = await client.get("/health/ready")
    assert response.status == 503
    assert await response.json() == {"ready": False, "listening": True, "available": []}


async def test_config_is_shown_without_its_secrets(client: Client) -> None:
    text = await (await client.get("/config")).text()
    assert "s3cret" not in text
    assert json.loads(text)["members"]["gesis"]["weight"] == 50


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/members", 405), ("GET", "/reload", 405)],
)
async def test_errors_are_json_whatever_is_accepted(
    client: Client, method: str, path: str, status: int
) -> None:
    await error_of(await client.request(method, path, headers={"Accept": "text/html"}), status)


# Writing


@pytest.mark.parametrize(
    ("change", "state_after", "weight_after"),
    [
        ({"state": "drain"}, "drain", 50),
        ({"state": "maint"}, "maint", 50),
        ({"weight": 0}, "ready", 0),
        ({"weight": 12.5}, "ready", 12.5),
        ({"state": "drain", "weight": 7}, "drain", 7),
    ],
)
async def test_patch_changes_a_member(
    client: Client, state: State, change: dict[str, Any], state_after: str, weight_after: float
) -> None:
    response = await client.patch("/members/gesis", json=change, headers=TOKEN)
    assert response.status == 200
    found = await response.json()
    assert (found["state"], found["weight"]) == (state_after, weight_after)
    gesis = state.federation.by_name["gesis"]
    assert (gesis.intent.value, gesis.weight) == (state_after, weight_after)


async def test_weight_is_left_to_the_edge_and_shown_as_a_number(client: Client, state: State) -> None:
    response = await client.patch("/members/gesis", json={"weight": "auto"}, headers=TOKEN)
    found = await response.json()
    assert (response.status, found["weight"], found["auto"]) == (200, 100, True)
    response = await client.patch("/members/gesis", json={"weight": 7}, headers=TOKEN)
    found = await response.json()
    assert (found["weight"], found["auto"]) == (7, False)


@pytest.mark.parametrize(
    "body",
    [
        *UNUSABLE,
        b'"drain"',
        b'{"state": "gone"}',
        b'{"state": null}',
        b'{"state": ["drain"]}',
        b'{"state": {"a": 1}}',
        b'{"weight": -1}',
        b'{"weight": "5"}',
        b'{"weight": "Auto"}',
        b'{"weight": true}',
        b'{"weight": null}',
        b'{"weight": NaN}',
        b'{"weight": Infinity}',
        b'{"weight": 1e999}',
        b'{"weight": 1' + b"0" * 400 + b"}",
        b'{"weight": 1' + b"0" * 5000 + b"}",
        b'{"state": "drain", "weight": -1}',
        b'{"state": "drain", "weigth": 1}',
        b'{"weight": 1, "state": "gone"}',
    ],
)
async def test_bad_change_says_why_and_changes_nothing(
    client: Client, state: State, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    detail = await error_of(await client.patch("/members/gesis", data=body, headers=TOKEN), 422)
    assert detail
    gesis = state.federation.by_name["gesis"]
    assert (gesis.intent, gesis.weight) == (Intent.READY, 50)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]


async def test_change_of_nobody_is_not_found(client: Client) -> None:
    await error_of(await client.patch("/members/gke", json={"weight": 1}, headers=TOKEN), 404)


async def test_body_that_is_too_large_is_refused(client: Client) -> None:
    await error_of(await client.patch("/members/gesis", data=b" " * 100_000, headers=TOKEN), 413)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer s3cret2",
        "Basic s3cret",
        "s3cret",
        "Bearer \xff",
        "Bearer s3cre",
        "Bearer S3cret",
        "Bearer s3cret\u00a0",
        "Bearer \u2003s3cret",
        "Bearer s3cret, Bearer s3cret",
        "Bearer s3creṫ",
        "Bearer   ",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PATCH", "/members/gesis"),
        ("PATCH", "/members/gke"),
        ("PUT", "/members/gesis"),
        ("PUT", "/members/%00"),
        ("DELETE", "/members/gesis"),
        ("DELETE", "/members/nobody"),
        ("POST", "/reload"),
    ],
)
async def test_write_without_the_token_is_refused(
    client: Client, state: State, given: str | None, method: str, path: str
) -> None:
    headers = {} if given is None else {"Authorization": given}
    response = await client.request(method, path, data=b'{"state": "maint"}', headers=headers)
    await error_of(response, 401)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert state.asked == []


async def test_scheme_is_taken_in_any_case(client: Client) -> None:
    response = await client.patch(
        "/members/gesis", json={"weight": 1}, headers={"Authorization": "bearer s3cret"}
    )
    assert response.status == 200


async def test_without_a_configured_token_every_write_is_refused(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_admin_app(State(CONFIG.replace('admin: {token: "s3cret"}', ""))))
    detail = await error_of(await client.patch("/members/gesis", json={"weight": 1}, headers=TOKEN), 403)
    assert "admin.token" in detail
    await error_of(await client.put("/members/new", json=NEW, headers=TOKEN), 403)
    await error_of(await client.delete("/members/gesis", headers=TOKEN), 403)
    await error_of(await client.post("/reload", headers=TOKEN), 403)


async def test_put_of_a_new_name_lets_a_member_join(client: Client, state: State) -> None:
    response = await client.put("/members/new", json=NEW, headers=TOKEN)
    assert response.status == 201
    found = await response.json()
    assert (found["name"], found["url"], found["weight"]) == ("new", "https://new.example.org", 20)
    assert found == await (await client.get("/members/new")).json()
    # They who serve are asked after they were told, so an answer says that they know.
    assert state.asked[:2] == ["join new", "survey"]


async def test_put_of_a_known_name_replaces_the_member(client: Client) -> None:
    response = await client.put("/members/ovh", json=NEW, headers=TOKEN)
    assert response.status == 200
    assert (await response.json())["url"] == "https://new.example.org"
    assert len((await (await client.get("/members")).json())["members"]) == 3


async def test_past_member_that_is_put_as_an_active_one_is_new(client: Client) -> None:
    assert (await client.put("/members/gke", json=NEW, headers=TOKEN)).status == 201


async def test_member_that_is_put_as_a_past_one_is_none_to_describe(client: Client, state: State) -> None:
    response = await client.put("/members/ovh", json={**NEW, "active": False}, headers=TOKEN)
    assert (response.status, await response.read()) == (204, b"")
    assert "ovh" not in state.federation.by_name


@pytest.mark.parametrize("name", ["a%2Bb", "a+b", "a%40b:c", "%61"])
async def test_name_in_the_path_may_be_percent_encoded(client: Client, state: State, name: str) -> None:
    response = await client.put(URL(f"/members/{name}", encoded=True), json=NEW, headers=TOKEN)
    assert response.status == 201
    assert (await response.json())["name"] == unquote(name)


@pytest.mark.parametrize(
    "name", ["%2F", "..%2Fgesis", "a%20b", "%00", "%FF", "%C3%A9", "%7Bname%7D", "-a", "a%0D%0Ab", "x" * 65]
)
async def test_odd_name_is_refused(client: Client, state: State, name: str) -> None:
    response = await client.put(URL(f"/members/{name}", encoded=True), json=NEW, headers=TOKEN)
    assert "cannot be a name" in await error_of(response, 422)
    assert len(state.federation.members) == 3
    await error_of(await client.delete(URL(f"/members/{name}", encoded=True), headers=TOKEN), 404)


async def test_every_fault_of_a_member_is_said_at_once(client: Client, state: State) -> None:
    bad = {"url": "ftp://x", "weight": -1, "wieght": 1, "hosts": ["a b"], "max_launches": 2.5}
    response = await client.put("/members/new", json=bad, headers=TOKEN)
    await error_of(response, 422)
    faults = (await response.json())["faults"]
    assert [fault["path"] for fault in faults] == ["url", "weight", "hosts.0", "max_launches", "wieght"]
    assert all(fault["message"] for fault in faults)
    assert "new" not in state.federation.by_name


async def test_member_that_does_not_fit_the_others_is_refused(client: Client) -> None:
    response = await client.put("/members/new", json={**NEW, "prime": True}, headers=TOKEN)
    await error_of(response, 422)
    (fault,) = (await response.json())["faults"]
    assert fault["path"] == "members.new.prime"


@pytest.mark.parametrize(
    "body",
    [
        *UNUSABLE,
        b'"https://x"',
        b"[" * 900 + b"]" * 900,
        b'{"url":' * 900 + b"1" + b"}" * 900,
        b'{"url": null}',
        b'{"url": ["http://x"]}',
        b'{"url": "http://x", "weight": NaN}',
        b'{"url": "http://x", "weight": 1e999}',
        b'{"url": "http://x", "weight": 1e300}',
        b'{"url": "http://x", "weight": 1' + b"0" * 4000 + b"}",
        b'{"url": "http://x", "max_requests": 1' + b"0" * 4000 + b"}",
        b'{"url": "http://x", "weight": 1' + b"0" * 5000 + b"}",
        b'{"url": "http://x", "weight": true}',
        b'{"url": "http://x", "run_by": {"name": "\\ud800"}}',
        b'{"url": "http://x", "\\ud800": 1}',
        b'{"url": "https://x", "ca": "/a\\u0000b"}',
        b'{"url": "unix:/\\ud800"}',
    ],
)
async def test_bad_member_says_why_and_changes_nothing(
    client: Client, state: State, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = state.config
    assert await error_of(await client.put("/members/new", data=body, headers=TOKEN), 422)
    assert state.config is before
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]


async def test_member_that_is_too_large_is_refused(client: Client, state: State) -> None:
    await error_of(await client.put("/members/new", data=b" " * 100_000, headers=TOKEN), 413)
    assert state.asked == []


async def test_deleted_member_is_gone_when_it_is_answered(client: Client, state: State) -> None:
    response = await client.delete("/members/ovh", headers=TOKEN)
    assert (response.status, await response.read()) == (204, b"")
    assert state.asked == ["leave ovh", "survey"]
    await error_of(await client.get("/members/ovh"), 404)
    await error_of(await client.delete("/members/ovh", headers=TOKEN), 404)


async def test_last_member_stays(client: Client, state: State) -> None:
    for name in "gesis", "ovh":
        assert (await client.delete(f"/members/{name}", headers=TOKEN)).status == 204
    response = await client.delete("/members/shed", headers=TOKEN)
    assert "at least one" in await error_of(response, 422)
    assert (await response.json())["faults"][0]["path"] == "members"
    assert list(state.federation.by_name) == ["shed"]


WRITES = [("PATCH", {"state": "drain"}), ("PUT", NEW), ("DELETE", None)]


@pytest.mark.parametrize(("method", "body"), WRITES)
@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EACCES, 500)])
async def test_change_that_cannot_be_kept_says_so(
    client: Client,
    state: State,
    caplog: pytest.LogCaptureFixture,
    method: str,
    body: object,
    number: int,
    status: int,
) -> None:
    state.error = OSError(number, "/var/lib/state.json cannot be written: no room")
    response = await client.request(method, "/members/gesis", json=body, headers=TOKEN)
    detail = await error_of(response, status)
    assert detail == "Nothing was changed: /var/lib/state.json cannot be written: no room."
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(("method", "body"), WRITES)
async def test_change_that_a_file_stands_against_gives_its_faults(
    client: Client, state: State, method: str, body: object
) -> None:
    state.error = ConfigError([Fault("members.ovh.ca", "/ca.pem cannot be read: gone")])
    response = await client.request(method, "/members/gesis", json=body, headers=TOKEN)
    assert await error_of(response, 422) == "members.ovh.ca: /ca.pem cannot be read: gone"


async def test_member_that_leaves_while_it_is_changed_is_not_found(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_left() -> Survey:
        return Survey([], state.counts)

    monkeypatch.setattr(state, "survey", nothing_left)
    await error_of(await client.patch("/members/gesis", json={"weight": 1}, headers=TOKEN), 404)
    state.error = KeyError("gesis")
    await error_of(await client.patch("/members/gesis", json={"weight": 1}, headers=TOKEN), 404)


async def test_reload_puts_the_config_in_force(client: Client) -> None:
    response = await client.post("/reload", headers=TOKEN)
    assert response.status == 200
    assert await response.json() == {"reloaded": True}


async def test_reload_of_a_bad_config_gives_every_fault(client: Client, state: State) -> None:
    state.faults = [Fault("members.a.url", "is missing", Position(3, 5)), Fault("", "cannot be read")]
    response = await client.post("/reload", headers=TOKEN)
    assert await error_of(response, 422) == "3:5: members.a.url: is missing; cannot be read"
    assert (await response.json())["faults"] == [
        {"path": "members.a.url", "message": "is missing", "line": 3, "column": 5},
        {"path": "", "message": "cannot be read"},
    ]


# The same without doing it


@pytest.mark.parametrize(
    ("method", "path", "body", "changes"),
    [
        (
            "PATCH",
            "/members/gesis",
            {"weight": 10},
            [{"key": "members.gesis.weight", "before": 50.0, "after": 10.0}],
        ),
        ("PUT", "/members/new", NEW, [{"key": "members.new", "before": None}]),
        ("DELETE", "/members/ovh", None, [{"key": "members.ovh", "after": None}]),
        ("POST", "/reload", None, [{"key": "workers", "before": "auto", "after": 3}]),
    ],
)
async def test_dry_run_says_what_would_change_and_changes_nothing(
    client: Client, state: State, method: str, path: str, body: object, changes: list[dict[str, object]]
) -> None:
    before = state.config_masked()
    response = await client.request(method, f"{path}?dry_run=true", json=body, headers=TOKEN)
    assert response.status == 200
    found = await response.json()
    assert found["dry_run"] is True
    assert len(found["changes"]) == len(changes)
    for change, expected in zip(found["changes"], changes, strict=True):
        assert change.keys() == {"key", "before", "after"} and expected.items() <= change.items()
    assert state.config_masked() == before
    assert all(each.startswith("preview") for each in state.asked)
    assert (await client.request(method, f"{path}?dry_run=true", json=body)).status == 401


async def test_dry_run_is_refused_as_the_change_would_be(client: Client, state: State) -> None:
    state.faults = [Fault("members.a.url", "is missing", Position(3, 5, "more.yaml"))]
    response = await client.post("/reload?dry_run=true", headers=TOKEN)
    assert await error_of(response, 422) == "more.yaml:3:5: members.a.url: is missing"
    (fault,) = (await response.json())["faults"]
    assert (fault["file"], fault["line"], fault["column"]) == ("more.yaml", 3, 5)
    await error_of(await client.delete("/members/none?dry_run=true", headers=TOKEN), 404)
    state.error = OSError(28, "no room")
    await error_of(await client.patch("/members/gesis?dry_run=true", json={"weight": 1}, headers=TOKEN), 507)


@pytest.mark.parametrize("query", ["dry-run=true", "dryrun", "x=1&dry_run=false"])
@pytest.mark.parametrize(("method", "path"), [("DELETE", "/members/ovh"), ("POST", "/reload")])
async def test_misspelt_dry_run_is_no_write(
    client: Client, state: State, method: str, path: str, query: str
) -> None:
    response = await client.request(method, f"{path}?{query}", headers=TOKEN)
    assert (await error_of(response, 422)).startswith("Unknown parameter ")
    assert state.asked == []


@pytest.mark.parametrize("query", ["dry_run", "dry_run=yes", "dry_run=true&dry_run=true", "dry_run=1"])
async def test_flag_that_is_neither_true_nor_false_changes_nothing(
    client: Client, state: State, query: str
) -> None:
    response = await client.patch(f"/members/gesis?{query}", json={"weight": 1}, headers=TOKEN)
    assert await error_of(response, 422) == "dry_run: expected true or false."
    assert state.asked == []


async def test_dry_run_that_is_false_is_none(client: Client, state: State) -> None:
    response = await client.patch("/members/gesis?dry_run=false", json={"weight": 1}, headers=TOKEN)
    assert (await response.json())["weight"] == 1


# Explanations


async def test_question_reaches_who_knows(client: Client, state: State) -> None:
    state.answer = '{"member": "gesis"}'
    response = await client.post("/explain", json={"url": "/v2/gh/a/b/HEAD"})
    assert (response.status, response.content_type) == (200, "application/json")
    assert await response.json() == {"member": "gesis", "origin": "config"}
    question = {
        "url": "HTTPS://mybinder.org:8443/a?b=c",
        "cookie": "gesis!1",
        "accept": "text/event-stream",
        "client": "2001:db8::1",
    }
    assert (await client.post("/explain", json=question)).status == 200
    assert state.questions == [
        Question("/v2/gh/a/b/HEAD"),
        Question("/a?b=c", "mybinder.org:8443", "gesis!1", "text/event-stream", "2001:db8::1"),
    ]
    await client.post("/explain", json={"url": "https://mybinder.org"})
    assert (state.questions[-1].host, state.questions[-1].target) == ("mybinder.org", "/")


@pytest.mark.parametrize(
    ("question", "detail"),
    [
        ([], "Expected an object with"),
        ({}, "Expected an object with"),
        ({"url": 5}, "Expected an object with"),
        ("x", "Expected an object with"),
        ({"url": "/", "method": "GET"}, "Unknown key: expected url, cookie, accept, client."),
        ({"url": "/a\r\nb"}, "url: expected printable ASCII text."),
        ({"url": "/\u00e9"}, "url: expected printable ASCII text."),
        ({"url": "/", "accept": 5}, "accept: expected printable ASCII text."),
        ({"url": "/", "cookie": "a; b=c"}, "cookie: expected the value of the affinity cookie."),
        ({"url": "/", "client": "somebody"}, "client: expected an IP address."),
    ],
)
async def test_question_that_makes_no_sense_is_refused(
    client: Client, state: State, question: object, detail: str
) -> None:
    assert (await error_of(await client.post("/explain", json=question), 422)).startswith(detail)
    assert state.questions == []


async def test_question_without_an_answer_is_an_error(client: Client, state: State) -> None:
    state.answer = None
    detail = await error_of(await client.post("/explain", json={"url": "no"}), 422)
    assert detail == "url: no visitor can ask for 'no'."
    state.answer = "nobody"
    await error_of(await client.post("/explain", json={"url": "/"}), 503)


async def test_question_needs_a_token_where_reading_does(aiohttp_client: AiohttpClient) -> None:
    state = State(LOCKED)
    client = await aiohttp_client(create_admin_app(state))
    await error_of(await client.post("/explain", json={"url": "/"}), 401)
    assert (await client.post("/explain", json={"url": "/"}, headers=TOKEN)).status == 200


# What is in use


async def test_certificates_are_listed(client: Client) -> None:
    assert await (await client.get("/certificates")).json() == {
        "certificates": [{"name": "mybinder.org", "expires": "2027-01-15T08:00:00+00:00"}]
    }


async def test_config_is_told_without_what_operators_changed(client: Client, state: State) -> None:
    assert (await client.get("/config?own=true")).status == 200
    assert state.owned == [True]
    await error_of(await client.get("/config?own=maybe"), 422)


# What is not even HTTP


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"PATCH /members/gesis HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_nonsense_is_answered_400_and_leaves_no_traceback(
    client: Client, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(raw)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"400"
    assert b"X-Request-ID" in head or b"text/plain" in head
    writer.close()
    await writer.wait_closed()
    assert not [record for record in caplog.records if record.exc_info and record.levelno > logging.DEBUG]


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 10"])
async def test_body_that_stops_or_makes_no_sense_is_waited_for_only_so_long(
    client: Client, framing: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fedproxy.web.admin._BODY_TIME", 0.0)
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(
        b"PATCH /members/gesis HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n"
        b"Expect: 100-continue\r\n" + framing + b"\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"zz\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408")
    writer.close()
    await writer.wait_closed()
    assert not [record for record in caplog.records if record.exc_info and record.levelno > logging.DEBUG]


async def test_client_that_leaves_in_the_middle_leaves_no_traceback(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(
        b"PATCH /members/gesis HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\n"
        b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    handler = client.server.handler
    await until(lambda: not handler.connections, "no connection left")
    assert (await client.get("/health/live")).status == 200
    assert not [record for record in caplog.records if record.exc_info and record.levelno > logging.DEBUG]


async def test_body_that_cannot_be_read_is_malformed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(request: web.BaseRequest) -> bytes:
        raise web.RequestPayloadError

    monkeypatch.setattr(web.BaseRequest, "read", broken)
    await error_of(await client.patch("/members/gesis", json={"weight": 1}, headers=TOKEN), 400)


async def test_fault_of_the_edge_s_own_is_logged_whole(
    client: Client, state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    monkeypatch.setattr(state, "view", broken)
    assert (await client.get("/metrics")).status == 500
    assert [record for record in caplog.records if record.exc_info]
