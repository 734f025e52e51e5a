from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.simulate import __main__ as command
from benchmarks.simulate.policies import offered
from benchmarks.simulate.scenario import load
from benchmarks.simulate.visitors import Asked, Visitors


@pytest.fixture(autouse=True)
def _without_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day before the first launch that is measured takes longer than these tests may."""
    monkeypatch.setattr(command, "load", lambda path: load(path).model_copy(update={"warm_up": 0.0}))


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def test_results_are_a_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = simulate("--launches", "500", "--seed", "3", "--json", str(file))
    assert done.exit_code == 0, done.output
    assert "federation: 500 launches, seed 3" in done.output
    found = json.loads(file.read_text())
    assert {key: found[key] for key in ("scenario", "seed", "launches", "partial")} == {
        "scenario": "federation",
        "seed": 3,
        "launches": 500,
        "partial": False,
    }
    assert list(found["policies"]) == list(offered())
    for measured in found["policies"].values():
        assert measured["launches"] == 500 == sum(measured["ends"].values())
        assert measured["builds_oracle"] == found["policies"]["oracle"]["builds"]
        assert {"ready_share", "wait_median", "wait_p99", "share_error", "moves", "overload"} <= set(measured)


def test_json_alone_goes_to_standard_output() -> None:
    done = simulate("flash-crowd.yaml", "--launches", "200", "--policy", "random", "--json", "-")
    assert list(json.loads(done.stdout)["policies"]) == ["random"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--policy", "random", "expected-wait+no-failover"),
        ("--policy", "random", "--policy", "expected-wait+no-failover"),
    ],
)
def test_policies_are_named_after_one_option_or_several(arguments: tuple[str, ...]) -> None:
    done = simulate(*arguments, "replicated.yaml", "--launches", "100", "--json", "-")
    assert list(json.loads(done.stdout)["policies"]) == ["random", "expected-wait+no-failover"]


@pytest.mark.parametrize(
    "arguments", [("--policy", "oracle+no-failover"), ("--launches", "0"), ("--json", "/no/such/folder/x")]
)
def test_wrong_argument_is_said(arguments: tuple[str, ...]) -> None:
    done = simulate(*arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_faults_of_a_scenario_are_said_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("launchs: 5\nmembers: {a: {slots: -1}}\n")
    done = simulate(str(file))
    assert done.exit_code == 2
    assert done.stderr == (
        f"{file}:1:1: launchs: is not a known key, did you mean 'launches'?\n"
        f"{file}:2:22: members.a.slots: is -1, expected a whole number from 0 to a million\n"
    )


def test_scenario_that_is_not_there_is_said() -> None:
    done = simulate("none.yaml")
    assert done.exit_code == 2
    assert done.stderr == "none.yaml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_gives_the_results_so_far(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(Visitors):
        made = 0

        def __iter__(self) -> Iterator[Asked]:
            for asked in super().__iter__():
                Interrupting.made += 1
                if Interrupting.made == 25_000:
                    signal.raise_signal(number)
                yield asked

    monkeypatch.setattr(command, "Visitors", Interrupting)
    before = signal.getsignal(number)
    file = tmp_path / "results.json"
    scenario = tmp_path / "few.yaml"
    scenario.write_text("members: {a: {slots: 900}}")
    done = simulate(str(scenario), "--launches", "20000", "--json", str(file))
    assert done.exit_code == status
    assert signal.getsignal(number) == before
    assert "Interrupted: these are the results so far." in done.output
    found = json.loads(file.read_text())
    assert found["partial"] is True
    launches = {name: measured["launches"] for name, measured in found["policies"].items()}
    # The oracle comes first, so that everybody has its builds; then the first of the others, in part.
    assert launches == {"oracle": 20_000, "rendezvous": launches["rendezvous"]}
    assert 5000 <= launches["rendezvous"] < 20_000
    assert found["policies"]["rendezvous"]["ready_share"] > 0.9


def test_chart_is_drawn_of_the_policies_with_failover(tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    words = ["--launches", "300", "--chart", str(chart), "--policy", "random", "random+no-failover"]
    result = CliRunner().invoke(command.main, words)
    assert result.exit_code == 0, result.output
    drawn = chart.read_text()
    assert drawn.startswith("<svg ")
    assert drawn.count(">random<") == 4
    assert "+no-failover" not in drawn
    missing = CliRunner().invoke(command.main, [*words[:3], str(tmp_path / "no" / "x.svg")])
    assert missing.exit_code == 2
