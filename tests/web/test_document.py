"""The federation for programs: what it says, that its schema is true, and that any page may read it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pytest_aiohttp import AiohttpClient

from fedproxy.config.load import parse
from fedproxy.control.messages import Logo
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import Snapshot
from fedproxy.web.document import configured_document, live_document, render_schema, schema
from fedproxy.web.public import create_public_app
from fedproxy.web.view import configured_cards, shown_url
from tests.rig.build import federation, member
from tests.rig.state import CONFIG, Client, State

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft7Validator(schema())
CHECKS = {"versions": True, "Docker registry": False, "JupyterHub API": True, "Pod quota": True}


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """Of the three, the first was probed."""
    state = State()

    def members(found: Callable[[], list[Snapshot]] = state.members) -> list[Snapshot]:
        first, *others = found()
        pods = {"total": 137, "user": 133, "build": 4}
        probed = replace(first, pods=pods, quota=300, checks=CHECKS, answered=True, within=0.5)
        return [probed, *others]

    monkeypatch.setattr(state, "members", members)
    return state


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_public_app(state))


async def document(client: Client) -> dict[str, Any]:
    response = await client.get("/federation.json")
    assert (response.status, response.content_type) == (200, "application/json")
    found: dict[str, Any] = await response.json()
    VALIDATOR.validate(found)
    return found


async def test_members_have_their_state_and_their_people(client: Client, state: State) -> None:
    state.images.append(Logo("https://www.gesis.org/logo.svg", "0123abcd", "image/svg+xml", b"<svg/>"))
    found = await document(client)
    assert list(found) == ["$schema", "url", "members", "past"]
    assert found["url"] == "https://mybinder.org"
    gesis, ovh, shed = found["members"]
    assert gesis == {
        "name": "gesis",
        "url": "https://gesis.mybinder.org",
        "status": "available",
        "prime": True,
        "share": 0.25,
        "response": True,
        "response_within": 0.5,
        "registry": False,
        "hub": True,
        "pods": {"user": 133, "build": 4},
        "quota": 300,
        "checks": CHECKS,
        "run_by": {"name": "GESIS & <friends>", "url": "https://www.gesis.org", "logo": None},
        "funded_by": {"name": "GESIS", "url": None, "logo": "/federation/logo/0123abcd"},
        "contact": "mailto:help@gesis.org",
    }
    # Nobody asked these two how they are.
    assert (ovh["share"], ovh["response"], ovh["hub"], ovh["pods"]["user"], ovh["checks"]) == (
        *(0.75, None, None, None),
        {},
    )
    assert (shed["url"], shed["share"]) == (None, 0)
    assert found["past"] == [
        {
            "name": "gke",
            "url": "https://gke.mybinder.org",
            "run_by": None,
            "funded_by": {"name": "Google", "url": "https://cloud.google.com", "logo": None},
        }
    ]


async def test_member_that_does_not_answer_says_so(state: State) -> None:
    first = replace(state.members()[0], answered=False, within=None, checks={"versions": False})
    (found,) = live_document(state.config, [first], {})["members"]
    assert (found["response"], found["response_within"], found["registry"]) == (False, None, None)


async def test_nothing_private_is_told(client: Client) -> None:
    text = await (await client.get("/federation.json")).text()
    for private in (
        "/run/shed.sock",
        "localhost",
        "s3cret",
        "status.example.org",
        "deep/health",
        "192.0.2.1",
    ):
        assert private not in text
    # The edge shows its own copy, if it has one.
    assert "gesis.org/logo.svg" not in text


@pytest.mark.parametrize(
    ("own", "url", "shown"),
    [
        ("https://mybinder.org", "https://a.mybinder.org", True),
        ("https://mybinder.org", "http://binder.ns.svc.cluster.local", False),
        ("https://mybinder.org", "http://10.1.2.3:8000", False),
        ("https://mybinder.org", "http://[fd00::1]:8000", False),
        ("https://mybinder.org", "http://127.0.0.1:8000", False),
        ("https://mybinder.org", "http://binder", False),
        ("https://mybinder.org", "https://8.8.8.8", True),
        ("https://mybinder.org", "unix:/run/a.sock", False),
        (None, "http://10.1.2.3:8000", True),
        (None, "https://a.mybinder.org", True),
        ("https://binder.corp.internal", "https://a.corp.internal", True),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8001", True),
        ("http://127.0.0.1:8000", "unix:/run/a.sock", False),
    ],
)
def test_url_is_shown_to_visitors_who_can_follow_it(own: str | None, url: str, shown: bool) -> None:
    config = parse(json.dumps({"public_url": own, "members": {"a": {"url": url}}}), {})
    assert shown_url(config, url) == (url if shown else None)
    assert configured_document(config)["members"][0]["url"] == (url if shown else None)


async def test_member_that_joined_at_run_time_is_there(client: Client, state: State) -> None:
    state.federation = federation(*state.federation.members, member("new"))
    new = (await document(client))["members"][-1]
    assert (new["name"], new["url"], new["run_by"]) == ("new", None, None)


async def test_it_is_rendered_once_a_second_however_many_ask(
    state: State, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [0]
    members = state.members

    def counted() -> list[Snapshot]:
        times[0] += 1
        return members()

    monkeypatch.setattr(state, "members", counted)
    monkeypatch.setattr("fedproxy.web.public._RENDERED_FOR", 1e9)
    client = await aiohttp_client(create_public_app(state))
    for _ in range(5):
        await client.get("/federation.json")
    assert times == [1]
    monkeypatch.setattr("fedproxy.web.public._RENDERED_FOR", 0.0)
    state.federation.by_name["ovh"].set_intent(Intent.DRAIN)
    assert (await document(client))["members"][1]["status"] == "draining"
    assert times == [2]


SHARED = {
    "/federation.json": ("application/json", "public, max-age=5"),
    "/federation.js": ("text/javascript", "no-cache"),
    "/federation/schema.json": ("application/schema+json", "public, max-age=3600"),
}


@pytest.mark.parametrize("path", SHARED)
async def test_any_page_may_read_it_and_caches_ask_whether_it_is_still_so(client: Client, path: str) -> None:
    plain = await client.get(path, headers={"Accept-Encoding": "identity", "Origin": "https://a.example"})
    packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
    for response in (plain, packed):
        assert response.status == 200
        assert (response.content_type, response.headers["Cache-Control"]) == SHARED[path]
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Vary"] == "Accept-Encoding"
    assert packed.headers["Content-Encoding"] == "gzip"
    assert await plain.read() == await packed.read()
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"])
    assert plain.headers["ETag"] != packed.headers["ETag"]
    for condition in (packed.headers["ETag"], f'"x", W/{packed.headers["ETag"]}', "*"):
        known = await client.get(path, headers={"If-None-Match": condition, "Accept-Encoding": "gzip"})
        assert (known.status, await known.read()) == (304, b"")
        assert known.headers["ETag"] == packed.headers["ETag"]
        assert known.headers["Access-Control-Allow-Origin"] == "*"
    for condition in (plain.headers["ETag"], '"x"', "x", ""):
        other = await client.get(path, headers={"If-None-Match": condition, "Accept-Encoding": "gzip"})
        assert other.status == 200
    head = await client.head(path, headers={"Accept-Encoding": "identity"})
    assert (head.status, await head.read()) == (200, b"")
    assert head.headers["Content-Length"] == plain.headers["Content-Length"]


@pytest.mark.parametrize("path", SHARED)
async def test_what_a_browser_asks_first_is_answered(client: Client, path: str) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    response = await client.options(path, headers=asked | {"Access-Control-Request-Headers": "x-trace"})
    assert (response.status, await response.read()) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"
    assert response.headers["Access-Control-Allow-Headers"] == "*"
    other = await client.post(path)
    assert (other.status, set(other.headers["Allow"].split(","))) == (405, {"GET", "HEAD", "OPTIONS"})


async def test_logo_may_be_shown_by_pages_that_are_isolated(client: Client, state: State) -> None:
    state.images.append(Logo("https://www.gesis.org/logo.svg", "0123abcd", "image/svg+xml", b"<svg/>"))
    response = await client.get("/federation/logo/0123abcd")
    assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


async def test_schema_is_where_the_document_says(client: Client) -> None:
    where = (await document(client))["$schema"]
    assert where == "https://mybinder.org/federation/schema.json"
    response = await client.get(where.removeprefix("https://mybinder.org"))
    assert await response.json(content_type="application/schema+json") == schema()


def test_schema_is_one_and_the_file_is_up_to_date() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    written = (ROOT / "conf" / "federation.schema.json").read_text()
    assert written == render_schema(), "python -m fedproxy schema federation > conf/federation.schema.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda each: each.update(status="ill"),
        lambda each: each.update(url="unix:/run/a.sock"),
        lambda each: each.update(share=1.5),
        lambda each: each.update(quota=-1),
        lambda each: each.update(checks={"a": "yes"}),
        lambda each: each.update(run_by={"name": ""}),
        lambda each: each.update(contact="javascript:x"),
        lambda each: each.pop("hub"),
        lambda each: each["pods"].pop("user"),
    ],
)
def test_schema_refuses_what_is_no_member(change: Callable[[dict[str, Any]], object]) -> None:
    found = configured_document(parse(CONFIG, {}))
    VALIDATOR.validate(found)
    change(found["members"][0])
    assert list(VALIDATOR.iter_errors(found))


def test_config_alone_has_the_same_form_without_the_state() -> None:
    config = parse(CONFIG, {})
    live = live_document(config, State().members(), {})
    found = configured_document(config)
    for ours, theirs in zip(found["members"], live["members"], strict=True):
        assert list(ours) == list(theirs)
    gesis = found["members"][0]
    assert (gesis["prime"], gesis["share"], gesis["status"], gesis["response"]) == (True, 0.25, None, None)
    assert gesis["funded_by"]["logo"] == "https://www.gesis.org/logo.svg"
    past = configured_document(config, past=True)
    VALIDATOR.validate(past)
    assert (past["members"], past["past"]) == ([], found["past"])


def test_member_with_a_ramp_takes_visitors_from_the_start() -> None:
    text = """
    members:
      old: {url: "https://a.example", weight: 9, prime: true}
      new: {url: "https://b.example", weight: auto, ramp: {share: 20%}}
    """
    config = parse(text, {})
    assert [each["share"] for each in configured_document(config)["members"]] == [0.99, 0.01]
    assert [(card.open, card.share) for card in configured_cards(config, {})] == [(True, 99), (True, 1)]


async def test_compressed_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def compress(data: bytes, **more: object) -> bytes:
        times.append(len(data))
        return b"\x1f\x8b"

    monkeypatch.setattr(gzip, "compress", compress)
    for _ in range(3):
        async with client.get(
            "/federation.js", headers={"Accept-Encoding": "gzip"}, auto_decompress=False
        ) as response:
            assert response.headers["Content-Encoding"] == "gzip"
    assert len(times) == 1
