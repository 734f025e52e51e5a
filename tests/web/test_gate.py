"""Tokens of the admin listener: who may read, who may write, and what is said of it."""

from __future__ import annotations

import pytest
from pytest_aiohttp import AiohttpClient

from fedproxy.web.admin import create_admin_app
from tests.rig.page import Page
from tests.rig.state import CONFIG, Client, State

ADMIN = "admin: {token: s3cret}"
READER, WRITER = {"Authorization": "Bearer look"}, {"Authorization": "Bearer do"}
TOKENS = "{prometheus: {token: look, rights: read}, kim: {token: do, rights: write}}"
READS = ["/metrics", "/members", "/members/gesis", "/config", "/log", "/events", "/nothing"]


def state_of(admin: str) -> State:
    assert ADMIN.replace("s3cret", '"s3cret"') in CONFIG
    return State(CONFIG.replace(ADMIN.replace("s3cret", '"s3cret"'), f"admin: {admin}"))


@pytest.fixture
def state() -> State:
    return state_of(f"{{read: token, tokens: {TOKENS}}}")


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_admin_app(state))


@pytest.mark.parametrize("path", READS)
async def test_reading_needs_a_token_if_the_config_says_so(client: Client, state: State, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic look"}):
        response = await client.get(path, headers=headers)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="fedproxy"')
        assert b"gesis" not in await response.read()
    assert (await client.head(path)).status == 401
    # Who sends none has not tried one.
    assert state.refused == ["127.0.0.1", "127.0.0.1"]
    for headers in (READER, WRITER):
        response = await client.get(path, headers=headers)
        assert response.status == (404 if path == "/nothing" else 200)
        response.close()


@pytest.mark.parametrize(
    "path",
    [
        *("/health/live", "/health/ready", "/style.css", "/icon.svg"),
        *("/live.js", "/charts.js", "/uplot.js", "/uplot.css"),
    ],
)
async def test_probes_and_files_of_the_page_need_no_token(client: Client, path: str) -> None:
    assert (await client.get(path)).status == 200


async def test_page_without_the_token_asks_for_it_and_shows_nothing(client: Client) -> None:
    response = await client.get("/")
    text = await response.text()
    for url in Page(text).loads:
        assert (await client.get(url)).status == 200
    assert (response.status, response.content_type) == (401, "text/html")
    assert "WWW-Authenticate" in response.headers
    assert "gesis" not in text
    assert "Admin token, to see the members" in text
    assert "data-locked" in text
    assert Page(text).open == []
    response = await client.get("/", headers=READER)
    assert (response.status, "gesis" in await response.text()) == (200, True)


async def test_token_for_reading_writes_nothing(client: Client, state: State) -> None:
    for method, path in (("PATCH", "/members/gesis"), ("PUT", "/members/x"), ("POST", "/reload")):
        response = await client.request(method, path, json={"state": "drain"}, headers=READER)
        assert response.status == 403
        assert (await response.json())["detail"] == "The token prometheus is for reading only."
    assert (await client.delete("/members/ovh", headers=READER)).status == 403
    assert (await client.patch("/members/gesis", json={"state": "drain"})).status == 401
    assert state.asked == []
    assert state.refused == ["127.0.0.1"] * 4


async def test_token_says_whose_it_is_and_what_it_may_do(client: Client, state: State) -> None:
    for headers, name, rights in ((READER, "prometheus", "read"), (WRITER, "kim", "write")):
        response = await client.get("/whoami", headers=headers)
        assert (response.status, await response.json()) == (
            200,
            {"name": name, "rights": rights, "reading": "token"},
        )
    assert state.refused == []


@pytest.mark.parametrize("read", ["open", "token"])
async def test_who_has_no_valid_token_is_nobody(aiohttp_client: AiohttpClient, read: str) -> None:
    state = state_of(f"{{read: {read}, tokens: {TOKENS}}}")
    client = await aiohttp_client(create_admin_app(state))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic look"}):
        response = await client.get("/whoami", headers=headers)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="fedproxy"')
        assert (await response.json())["detail"] == "This is not a valid token."
    assert state.refused == ["127.0.0.1"] * 2
    assert (await (await client.get("/whoami", headers=READER)).json())["reading"] == read


async def test_who_wrote_is_told_with_the_member(client: Client) -> None:
    response = await client.patch("/members/gesis", json={"state": "drain"}, headers=WRITER)
    assert (await response.json())["set_by"] == "kim 127.0.0.1"
    members = (await (await client.get("/members", headers=READER)).json())["members"]
    assert [member["set_by"] for member in members] == ["kim 127.0.0.1", None, None]


async def test_admin_token_is_one_of_them(aiohttp_client: AiohttpClient) -> None:
    state = state_of(f"{{token: s3cret, tokens: {TOKENS}}}")
    client = await aiohttp_client(create_admin_app(state))
    for word, name in (("s3cret", "admin"), ("do", "kim")):
        headers = {"Authorization": f"Bearer {word}"}
        response = await client.patch("/members/gesis", json={"weight": 3}, headers=headers)
        assert (response.status, (await response.json())["set_by"]) == (200, f"{name} 127.0.0.1")


async def test_reading_is_open_by_default_and_no_token_there_is_looked_at(
    aiohttp_client: AiohttpClient,
) -> None:
    state = state_of(f"{{tokens: {TOKENS}}}")
    client = await aiohttp_client(create_admin_app(state))
    assert (await client.get("/members", headers={"Authorization": "Bearer wrong"})).status == 200
    assert state.refused == []


async def test_writes_are_off_if_all_tokens_are_for_reading(aiohttp_client: AiohttpClient) -> None:
    state = state_of("{tokens: {prometheus: {token: look}}}")
    client = await aiohttp_client(create_admin_app(state))
    for headers in ({}, READER):
        response = await client.patch("/members/gesis", json={"weight": 3}, headers=headers)
        assert (response.status, "no token for them" in (await response.json())["detail"]) == (403, True)


async def test_secrets_are_not_in_the_config_that_is_shown(client: Client) -> None:
    text = await (await client.get("/config", headers=READER)).text()
    for secret in ("look", "do"):
        assert f'"{secret}"' not in text
    assert text.count('"token": "***"') == 2
