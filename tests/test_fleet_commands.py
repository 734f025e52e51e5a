"""The commands that show a fleet, before the admin listener of a made-up edge."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fedproxy.errors import StoreError
from tests.rig.state import State, fleet_of_three, members_of_three
from tests.rig.thread import admin_listener
from tests.test_cli import run

TOKEN = "s3cret"


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def admin(state: State) -> Iterator[str]:
    with admin_listener(state) as url:
        yield url


def asked(admin: str, *words: object) -> tuple[int, list[str], str]:
    """The status of a command, its lines and what it says on stderr."""
    result = run(*words, FEDPROXY_ADMIN=admin, FEDPROXY_ADMIN_TOKEN=TOKEN, COLUMNS="200")
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_edges_are_a_table_with_this_one_first(admin: str, state: State) -> None:
    state.shared = fleet_of_three()
    code, lines, _ = asked(admin, "edges")
    rows = [line.split() for line in lines]
    assert code == 0
    assert rows[0][:3] == ["name", "version", "config"]
    assert rows[1][:8] == ["here", "(here)", "1.0", "abc", "2", "30", "4000", "6"]
    assert rows[1][-1] == "yes" and rows[2][-1] == "no"
    assert rows[3][:3] == ["other", "0.9", "def"] and set(rows[3][3:8]) == {"?"}
    assert lines[3].endswith("version 0.9, another config")
    assert lines[-1] == "store: redis://store.test:6379/0 can be reached since 2027-01-15T08:00:00+00:00"


def test_edges_say_that_the_store_is_away_and_what_waits(admin: str, state: State) -> None:
    state.shared = fleet_of_three(up=False, pending=("gesis", "ovh"))
    _, lines, _ = asked(admin, "edges")
    assert "is away since 2027-01-15T08:00:00+00:00: the other edges are shown as they were" in lines[-1]
    assert lines[-1].endswith("; what was set here waits for it: gesis, ovh")


def test_edge_that_shares_no_store_is_alone(admin: str) -> None:
    code, lines, _ = asked(admin, "edges")
    assert (code, lines[1].split()[:2]) == (0, ["alone", "(here)"])
    assert (
        lines[-1]
        == "store: none is shared, so this edge is alone; what operators set is kept in /var/state.json"
    )


def test_edges_are_json_for_programs(admin: str, state: State) -> None:
    state.shared = fleet_of_three()
    found = json.loads("\n".join(asked(admin, "edges", "--json")[1]))
    assert [edge["name"] for edge in found["edges"]] == ["here", "like", "other"]
    assert found["store"]["commands"] == {"ok": 70, "failed": 3}


def test_members_of_the_fleet_are_added_up_and_differences_are_named(admin: str, state: State) -> None:
    state.across = members_of_three()
    code, lines, said = asked(admin, "members", "--fleet")
    assert code == 0
    assert lines[1].split() == ["gesis", "available", "50", "5", "2", "100"]
    # As many edges say one as the other: the worse of the two is the state.
    assert lines[2].split()[:6] == ["ovh", "ejected", "150", "3", "0", "7"]
    assert lines[2].endswith("available at like; weight 1 at like")
    assert said == "did not answer, and are not counted: other\n"
    found = json.loads("\n".join(asked(admin, "members", "--fleet", "--json")[1]))
    assert (found["edges"], found["missing"]) == (2, ["other"])


def test_members_of_a_fleet_whose_store_is_away_are_an_error_that_says_so(admin: str, state: State) -> None:
    state.across = StoreError("connection refused")
    code, lines, said = asked(admin, "members", "--fleet")
    assert (code, lines) == (1, [])
    assert said.endswith(
        ": 503: The other edges cannot be asked: the store does not answer: connection refused.\n"
    )


@pytest.mark.parametrize(
    ("words", "first"),
    [(("drain", "gesis"), "gesis: drain"), (("weight", "gesis", 3), "gesis: weight 3")],
)
def test_change_that_waits_for_the_store_is_said_to(
    admin: str, state: State, words: tuple[object, ...], first: str
) -> None:
    assert asked(admin, *words)[1] == [first]
    state.shared = fleet_of_three(up=False, pending=("gesis",))
    later = "gesis: the store is away, so the other edges hear of it once it is back"
    assert asked(admin, *words)[1] == [first, later]
