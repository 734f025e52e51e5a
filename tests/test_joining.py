"""`join`, `leave` and `plan`: what they refuse and what to do then, and what they do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from fedproxy.cli import joining
from fedproxy.cli.asking import ask, path_of
from fedproxy.control import candidate
from fedproxy.control.candidate import Candidate, Examination
from fedproxy.control.state import set_intent
from fedproxy.decide.member import Intent
from fedproxy.serve.service import Service
from tests.rig.thread import edge_of
from tests.test_cli import run

TOKEN = "quiet enough to be a token"
CONFIG = {
    "public_url": "https://binder.example",
    "listen": [{"address": "127.0.0.1:0"}],
    "admin": {"address": "127.0.0.1:0", "token": TOKEN, "state": "off"},
    "workers": 1,
    "access_log": "off",
    "members": {
        "leuven": {"url": "http://127.0.0.1:1", "prime": True, "weight": 9},
        "oxford": {"url": "http://127.0.0.1:2", "run_by": {"name": "Oxford"}, "reserve": 3},
        "turing": {"url": "http://127.0.0.1:3", "active": False, "funded_by": {"name": "The Turing"}},
    },
}
NEW = "http://127.0.0.1:4"


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[tuple[str, Service]]:
    """A real edge without probes in another thread: its admin URL and itself."""
    file = tmp_path / "edge.yaml"
    file.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    with edge_of(file) as found:
        yield found


Edge = tuple[str, Service]


def asked(edge: Edge, *words: object) -> Result:
    return run(*words, FEDPROXY_ADMIN=edge[0], FEDPROXY_ADMIN_TOKEN=TOKEN)


def test_member_joins_with_a_ramp_and_what_is_known_of_it(edge: Edge) -> None:
    words = (
        "--share",
        "20%",
        "--over",
        "3d",
        "--contact",
        "mailto:a@b.example",
        "--run-by",
        "A",
        "--control",
        "full",
    )
    result = asked(edge, "join", "new", NEW, "--anyway", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "new has joined: it gets 1% of new visitors now, and 20% in 3d if its launches succeed\n"
    )
    settings = edge[1].config.members["new"]
    assert settings.ramp is not None
    assert (settings.ramp.share, settings.ramp.over, settings.weight) == (0.2, 3 * 86_400, "auto")
    assert settings.run_by is not None
    assert (settings.run_by.name, settings.control) == ("A", "full")
    # What was set of an earlier member of that name holds on.
    edge[1]._state = set_intent(edge[1]._state, "next", Intent.DRAIN)
    result = asked(edge, "join", "next", "http://127.0.0.1:5", "--anyway", "--share", "20%")
    assert (result.exit_code, result.stderr) == (
        0,
        "next is still set to drain, so it gets nobody yet: `fedproxy ready next` ends that\n",
    )
    # The federation has no contact of its own.
    assert edge[1].view().contacts == {"new": "mailto:a@b.example"}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("oxford", NEW), "oxford is already a member, at http://127.0.0.1:2: choose another name"),
        (("new", "HTTP://127.0.0.1:2/"), "http://127.0.0.1:2 is already a member: oxford"),
        (
            ("new", "https://binder.example:443"),
            "https://binder.example is the federation's own address: give that of the BinderHub itself",
        ),
        (("turing", NEW), "turing is a past member: choose another name, or add --again if it comes back"),
        (("new", NEW, "--again"), "new is not a past member, so leave out --again"),
    ],
)
def test_what_is_there_already_does_not_join(edge: Edge, words: tuple[str, ...], fault: str) -> None:
    before = edge[1].config
    result = asked(edge, "join", *words, "--share", "20%", "--anyway")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{fault}\n")
    assert edge[1].config is before


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("new", NEW), "Missing option '--share'"),
        (("new", NEW, "--share", "20"), "'20' is not a share from 0.1% to 90%"),
        (("new", NEW, "--share", "95%"), "'95%' is not a share from 0.1% to 90%"),
        (("new", NEW, "--share", "20%", "--over", "soon"), "'soon' is not a duration above 0"),
        (("a b", NEW, "--share", "20%"), "'a b' is not "),
        (("new", "ftp://a", "--share", "20%"), "'ftp://a' is not "),
    ],
)
def test_wrong_usage_of_join_is_status_2(edge: Edge, words: tuple[str, ...], fault: str) -> None:
    result = asked(edge, "join", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr


def test_candidate_that_is_not_fit_is_not_added(edge: Edge) -> None:
    result = asked(edge, "join", "new", NEW, "--share", "20%")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "connection: failed: 127.0.0.1: Connection refused" in result.stderr
    assert result.stderr.endswith(
        f"{NEW} is not fit to join and was not added: a check failed; `fedproxy probe` shows the whole "
        "report, and --anyway adds it without a probe\n"
    )
    assert "new" not in edge[1].config.members


def test_probe_of_join_asks_where_and_as_it_is_told(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[Candidate] = []

    async def look(found: Candidate) -> Examination:
        asked_of.append(found)
        return Examination(found.url, ())

    monkeypatch.setattr(candidate, "examine", look)
    words = ("--share", "20%", "--base-path", "/services/binder/")
    assert asked(edge, "join", "new", NEW, *words).exit_code == 0
    (found,) = asked_of
    assert (found.url, found.base_path, found.reference) == (NEW, "/services/binder/", "http://127.0.0.1:1")


def test_member_that_somebody_adds_meanwhile_is_not_replaced(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPROXY_ADMIN_TOKEN", TOKEN)
    other = {"url": "http://127.0.0.1:7"}
    monkeypatch.setattr(
        joining, "_refuse_unfit", lambda *_: ask(edge[0], "/members/new", other, method="PUT")
    )
    result = asked(edge, "join", "new", NEW, "--share", "20%")
    fault = "new is already a member, at http://127.0.0.1:7: choose another name\n"
    assert (result.exit_code, result.stderr) == (1, fault)
    assert edge[1].config.members["new"].url == "http://127.0.0.1:7"


def test_member_leaves_when_nothing_is_under_way_and_comes_back(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["2 requests are under way there", "2 requests are under way there", "the edge is away", ""]
    monkeypatch.setattr(joining, "_under_way", lambda admin, name: said.pop(0))
    monkeypatch.setattr(joining, "_LOOK", 0.0)
    result = asked(edge, "leave", "oxford")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "oxford is draining: it gets no new visitors",
            "oxford: 2 requests are under way there",
            "oxford: the edge is away",
            "oxford has left, and is listed among the past members.",
            "Thank you, Oxford!",
        ],
    )
    assert result.stderr == (
        "oxford is still in the config: `fedproxy plan leave oxford --config FILE` prints the change\n"
    )
    service = edge[1]
    assert list(service.config.active_members) == ["leuven"]
    events = [event.message for event in service.history.events]
    assert events[-1] == "oxford is now a past member"
    result = asked(edge, "join", "oxford", "http://127.0.0.1:5", "--share", "20%", "--again", "--anyway")
    assert result.exit_code == 0
    settings = service.config.active_members["oxford"]
    # It is ready, and what was known of it is still known.
    assert service._state.intent("oxford") is Intent.READY
    assert settings.run_by is not None
    assert (settings.url, settings.reserve, settings.run_by.name) == ("http://127.0.0.1:5", 3, "Oxford")


def test_what_goes_on_at_a_member_is_waited_for_as_long_as_wanted(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_under_way", lambda admin, name: "1 launch is under way there")
    result = asked(edge, "leave", "oxford", "--wait", "10ms")
    assert result.exit_code == 1
    assert result.stderr == (
        "oxford is still draining, as 1 launch is under way there; `fedproxy leave oxford` goes on from "
        "here, and --wait 0s does not wait\n"
    )
    assert edge[1]._state.intent("oxford") is Intent.DRAIN

    def interrupt(admin: str, name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(joining, "_under_way", interrupt)
    result = asked(edge, "leave", "oxford")
    assert (result.exit_code, result.stderr) == (
        1,
        "oxford is still draining; `fedproxy leave oxford` goes on from here\n",
    )
    monkeypatch.setattr(joining, "_under_way", lambda admin, name: "1 launch is under way there")
    assert asked(edge, "leave", "oxford", "--wait", "0s", "--forget").exit_code == 0
    assert "oxford" not in edge[1].config.members


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("nobody", "there is no member nobody; `fedproxy members` shows them all"),
        ("turing", "turing is already a past member"),
        (
            "leuven",
            "leuven is the prime member, whose versions are the reference: make another one prime first",
        ),
    ],
)
def test_who_cannot_leave_is_not_drained(edge: Edge, name: str, fault: str) -> None:
    result = asked(edge, "leave", name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith(f"{fault}\n")
    assert not edge[1]._state.intents


def test_dry_runs_change_nothing(edge: Edge) -> None:
    before = edge[1].config
    result = asked(edge, "join", "new", NEW, "--share", "20%", "--anyway", "--dry-run")
    assert (result.exit_code, "members.new" in result.stdout) == (0, True)
    result = asked(edge, "leave", "oxford", "--dry-run")
    assert (result.exit_code, "members.oxford" in result.stdout) == (0, True)
    assert edge[1].config is before


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"in_flight": 0, "launches": 0}, ""),
        ({"in_flight": 1, "launches": 0}, "1 request is under way there"),
        ({"in_flight": 1, "launches": 1}, "1 launch is under way there"),
        ({"in_flight": 5, "launches": 2}, "5 requests are under way there, 2 of them launches"),
        ({"in_flight": 2, "launches": 2}, "2 launches are under way there"),
    ],
)
def test_what_is_under_way_is_said(row: dict[str, int], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ask", lambda *_: {"members": [{"name": "a", **row}]})
    assert joining._under_way("", "a") == text
    assert joining._under_way("", "gone") == ""


def test_edge_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"members": [{"name": "a", "in_flight": 0, "launches": 0}], "missing": ["two"]}
    monkeypatch.setattr(joining, "ask", lambda *_: answer)
    assert joining._under_way("", "a") == "two did not say what is under way there"


def test_member_that_others_change_meanwhile_is_not_changed_back(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_LOOK", 0.0)

    # In maintenance it stays so.
    assert asked(edge, "maint", "oxford").exit_code == 0
    said = iter(("1 request is under way there", "1 request is under way there"))

    def ready_again(admin: str, name: str) -> str:
        assert edge[1]._state.intent(name) is Intent.MAINT
        ask(admin, path_of(name), {"state": "ready"})
        return next(said)

    monkeypatch.setattr(joining, "_under_way", ready_again)
    monkeypatch.setenv("FEDPROXY_ADMIN_TOKEN", TOKEN)
    result = asked(edge, "leave", "oxford")
    assert (result.exit_code, result.stderr) == (1, "oxford was set ready again meanwhile, so it stays\n")
    assert result.stdout.startswith("oxford is in maintenance: it gets no requests\n")
    assert "oxford" in edge[1].config.active_members

    def other_people(admin: str, name: str) -> str:
        settings = {"url": "http://127.0.0.1:2", "run_by": {"name": "Cambridge"}}
        ask(admin, path_of(name), settings, method="PUT")
        return ""

    monkeypatch.setattr(joining, "_under_way", other_people)
    result = asked(edge, "leave", "oxford")
    assert result.stdout.endswith("Thank you, Cambridge!\n")
    past = edge[1].config.members["oxford"]
    assert past.run_by is not None
    assert (past.active, past.run_by.name) == (False, "Cambridge")


def test_plan_prints_a_diff_that_git_applies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("link.yaml")
    file.symlink_to("edge.yaml")
    # A mark in front, as Windows has it, and what ends a line for YAML alone.
    before = (
        "\ufeff# Ours.\nmembers:\n  a:\n    url: http://a.example   # the first\u2028# one\n    weight: 3\n"
    )
    file.write_text(before)
    joined = run("plan", "join", "b", "https://b.example", "--share", "0.1", "--reserve", 4, "--config", file)
    assert (joined.exit_code, joined.stderr) == (0, "")
    assert file.read_text() == before
    subprocess.run(["git", "apply", "-"], input=joined.stdout.encode(), check=True)
    assert yaml.safe_load(file.read_text())["members"]["b"] == {
        "url": "https://b.example",
        "weight": "auto",
        "ramp": {"share": "10%", "over": "7d"},
        "reserve": 4,
    }
    left = run("plan", "leave", "b", "--config", file)
    subprocess.run(["git", "apply", "-"], input=left.stdout.encode(), check=True)
    assert yaml.safe_load(file.read_text())["members"]["b"]["active"] is False
    assert run("check", file).exit_code == 0
    assert file.read_text().startswith(before)


def test_plan_that_would_make_a_config_invalid_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("members:\n  a:\n    url: http://a.example\n    prime: true\n")
    result = run("plan", "leave", "a", "--config", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "would not be valid with that change" in result.stderr
    assert "members.a.prime: is true for a past member" in result.stderr
    result = run("plan", "leave", "b", "--config", file)
    assert (result.exit_code, result.stderr) == (
        1,
        f"{file}: b is not in this file; if it is in a file that this one includes, give that file\n",
    )
    assert run("plan", "leave", "b", "--config", tmp_path / "none").exit_code == 2
