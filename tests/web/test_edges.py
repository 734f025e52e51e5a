"""The edges, and the members as all of them see them, by the admin API."""

from __future__ import annotations

import pytest
from pytest_aiohttp import AiohttpClient

from fedproxy.errors import StoreError
from fedproxy.observe.fleet import EdgeSeen, FleetSeen
from fedproxy.web.admin import create_admin_app
from tests.rig.state import Client, State, fleet_of_three, members_of_three

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def client(state: State, aiohttp_client: AiohttpClient) -> Client:
    return await aiohttp_client(create_admin_app(state))


async def test_edges_are_listed_with_their_store(client: Client, state: State) -> None:
    state.shared = fleet_of_three(pending=("ovh",))
    found = await (await client.get("/edges")).json()
    assert found["store"] == {
        "place": "redis://store.test:6379/0",
        "shared": True,
        "up": True,
        "since": "2027-01-15T08:00:00+00:00",
        "commands": {"ok": 70, "failed": 3},
        "dropped": 2,
        "pending": ["ovh"],
    }
    assert [(edge["name"], edge["here"], edge["probes"]) for edge in found["edges"]] == [
        ("here", True, True),
        ("like", False, False),
        ("other", False, False),
    ]
    assert found["edges"][0]["started_at"] == "2027-01-15T05:13:20+00:00"
    assert found["edges"][2]["disagrees"] == ["version 0.9", "another config"]
    assert found["edges"][2]["workers"] is None


async def test_edge_without_a_shared_store_is_alone(client: Client) -> None:
    found = await (await client.get("/edges")).json()
    assert [edge["name"] for edge in found["edges"]] == ["alone"]
    assert (found["store"]["place"], found["store"]["shared"]) == ("/var/state.json", False)


async def test_time_that_is_in_no_year_is_none(client: Client, state: State) -> None:
    state.shared = FleetSeen(edges=[EdgeSeen("x", here=True, started_at=1e15)])
    found = await (await client.get("/edges")).json()
    assert found["edges"][0]["started_at"] is None


async def test_members_of_the_fleet_are_sums_with_who_says_what(client: Client, state: State) -> None:
    state.across = members_of_three()
    found = await (await client.get("/members?fleet=true")).json()
    assert (found["edges"], found["missing"]) == (2, ["other"])
    assert found["members"][1] == {
        "name": "ovh",
        "in_flight": 3,
        "launches": 0,
        "requests": 7,
        "status": {"ejected": ["here"], "available": ["like"]},
        "weights": {"150": ["here"], "1": ["like"]},
    }
    assert "edge" in await (await client.get("/members?fleet=false")).json()
    assert (await client.get("/members?fleet=yes")).status == 422


async def test_members_of_the_fleet_cannot_be_had_while_the_store_is_away(
    client: Client, state: State
) -> None:
    state.across = StoreError("timed out")
    response = await client.get("/members?fleet=true")
    assert response.status == 503
    assert "the store does not answer: timed out" in (await response.json())["detail"]


async def test_writes_say_that_the_other_edges_hear_of_them_later(client: Client, state: State) -> None:
    settings = {"url": "https://new.example.org"}
    past = {**settings, "active": False}
    response = await client.patch("/members/gesis", json={"weight": 3}, headers=TOKEN)
    assert (await response.json())["pending"] is False
    assert (await client.delete("/members/shed", headers=TOKEN)).status == 204
    state.shared = fleet_of_three(up=False, pending=("gesis", "new", "old", "ovh"))
    response = await client.patch("/members/gesis", json={"weight": 4}, headers=TOKEN)
    assert (await response.json())["pending"] is True
    response = await client.put("/members/new", json=settings, headers=TOKEN)
    assert (response.status, (await response.json())["pending"]) == (201, True)
    response = await client.put("/members/old", json=past, headers=TOKEN)
    assert (response.status, await response.json()) == (200, {"pending": True})
    response = await client.delete("/members/ovh", headers=TOKEN)
    assert (response.status, await response.json()) == (200, {"pending": True})
