from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.simulate.__main__ import main
from benchmarks.simulate.policies import offered
from benchmarks.simulate.recorded import Recorded
from benchmarks.simulate.run import Run
from fedproxy.errors import ConfigError
from tests.simulate.worlds import world

FIRST = {"at": 1000.5, "visitor": "v", "repository": "r", "image": "i"}


def write(tmp_path: Path, *launches: dict[str, Any] | str) -> Path:
    file = tmp_path / "launches.jsonl"
    lines = [each if isinstance(each, str) else json.dumps(each) for each in launches]
    file.write_text("\n".join(lines) + "\n")
    return file


def recorded(tmp_path: Path, *launches: dict[str, Any] | str) -> Recorded:
    return Recorded(write(tmp_path, *launches), world(), 1)


def test_launches_are_those_of_the_file(tmp_path: Path) -> None:
    found = list(
        recorded(
            tmp_path,
            {**FIRST, "cookie": False, "session": 60},
            "",
            {**FIRST, "at": 1001, "visitor": "w", "image": "j", "cookie": True},
            {**FIRST, "at": 1003},
        )
    )
    assert [asked[:6] for asked in found] == [
        (0.0, 0, False, False, 0, 0),
        (0.5, 1, True, True, 0, 1),
        (2.5, 0, False, True, 0, 0),
    ]
    assert found[0][6] == 60


def test_every_visitor_of_a_file_gets_an_end(tmp_path: Path) -> None:
    launches = recorded(
        tmp_path,
        *(
            {**FIRST, "at": number, "visitor": f"v{number % 50}", "image": f"i{number % 7}"}
            for number in range(300)
        ),
    )
    run = Run(world(), launches, offered()["rendezvous"], 1)
    run.run(1000)
    assert run.tally.asked == sum(run.tally.fates.values()) == 300
    assert run.tally.visitors == 50
    assert run.faults() == []


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ('{"at": 1,, 2}', "2:10: is not JSON"),
        ("[]", "2:1: is not a JSON object"),
        ("x" * 5000, "2:1: is a line of more than 4096 bytes"),
        ({**FIRST, "at": "now"}, "2:1: at: is 'now', expected seconds"),
        ({**FIRST, "at": True}, "2:1: at: is true, expected seconds"),
        ({**FIRST, "at": 999}, "2:1: at: is 999, which is before that of the launch before"),
        ({**FIRST, "visitor": 7}, "2:1: visitor: is 7, expected text"),
        ({**FIRST, "image": ""}, "2:1: image: is '', expected text"),
        ({**FIRST, "repository": "s"}, "2:1: image: is 'i', which is an image of another repository"),
        ({**FIRST, "cookie": 1}, "2:1: cookie: is 1, expected true or false"),
        ({**FIRST, "session": -1}, "2:1: session: is -1, expected seconds above 0"),
        ({**FIRST, "ip": "192.0.2.1"}, "2:1: ip: is not a known key"),
    ],
)
def test_line_that_cannot_be_is_a_fault(tmp_path: Path, second: dict[str, Any] | str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        recorded(tmp_path, FIRST, second)
    (found,) = raised.value.faults
    assert f"{found.place}: {found}".startswith(fault)


def test_every_fault_of_a_file_is_said_and_the_command_ends(tmp_path: Path) -> None:
    file = write(tmp_path, "{]", {**FIRST, "at": None, "image": None})
    done = CliRunner().invoke(main, ["--record", str(file)])
    assert done.exit_code == 2
    assert [line.removeprefix(f"{file}:") for line in done.stderr.splitlines()] == [
        "1:2: is not JSON: Expecting property name enclosed in double quotes",
        "2:1: at: is empty, expected seconds",
        "2:1: image: is empty, expected text of at most 256 characters",
    ]


def test_file_without_launches_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no launches"):
        recorded(tmp_path, "")


def test_command_makes_all_launches_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, *({**FIRST, "at": number, "visitor": str(number)} for number in range(40)))
    done = CliRunner().invoke(main, ["replicated.yaml", "--record", str(file)])
    assert (done.exit_code, done.stderr) == (
        2,
        f"{file}: ends before the scenario's `warm_up` of 24h is over\n",
    )
    scenario = tmp_path / "plain.yaml"
    scenario.write_text("members: {a: {slots: 60}, b: {slots: 60}}")
    done = CliRunner().invoke(
        main, [str(scenario), "--record", str(file), "--policy", "random", "--json", "-"]
    )
    assert json.loads(done.stdout)["policies"]["random"]["launches"] == 40
