"""The Dockerfile keeps the rules that a linter would ask for, and the ones that this program needs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedproxy.config.load import parse

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its `--flags`, and the rest of its logical line."""

    name: str
    flags: tuple[str, ...]
    value: str


def _instructions(text: str) -> list[Instruction]:
    """The Dockerfile's instructions, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        name, _, rest = line.partition(" ")
        words = rest.split()
        flags = tuple(
            word for index, word in enumerate(words) if all(_is_flag(w) for w in words[: index + 1])
        )
        found.append(Instruction(name, flags, " ".join(words[len(flags) :])))
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("--")


INSTRUCTIONS = _instructions((ROOT / "Dockerfile").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
LAST_STAGE = INSTRUCTIONS[max(i for i, found in enumerate(INSTRUCTIONS) if found.name == "FROM") :]


def _of(name: str, stage: list[Instruction] = INSTRUCTIONS) -> list[Instruction]:
    return [found for found in stage if found.name == name]


def test_instructions_are_known_and_in_capitals() -> None:
    known = {
        *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER"),
        *("EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }
    assert {found.name for found in INSTRUCTIONS} == known


def test_both_stages_start_from_the_same_pinned_python_and_the_last_from_a_slim_one() -> None:
    (version,) = re.findall(r"^PYTHON=(3\.\d+)$", _of("ARG")[0].value)
    assert [found.value for found in _of("FROM")] == [
        "python:${PYTHON} AS build",
        "python:${PYTHON}-slim",
    ]
    requires = re.findall(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert int(version.partition(".")[2]) >= int(requires[0])


def test_only_what_is_locked_is_installed_and_nothing_of_it_is_cached() -> None:
    runs = _of("RUN")
    steps = [step.split() for run in runs for step in run.value.split(" && ")]
    pips = [step for step in steps if step[0] == "pip"]
    assert len(pips) == 4
    for step in pips:
        if "--require-hashes" in step:
            assert step[-2] == "--requirement"
            assert (ROOT / step[-1]).is_file()
        else:
            # Asks no index: the program itself with the tools that are there, then the wheels.
            assert "--no-index" in step or {"--no-build-isolation", "--no-deps"} < set(step)
    assert "PIP_NO_CACHE_DIR=1" in _of("ENV")[0].value
    # A step before a pipe or a semicolon could fail unseen.
    assert not any(re.search(r"[|;]|sudo|apt|curl|wget", run.value) for run in runs)


def test_image_has_what_a_config_may_ask_for() -> None:
    """Without the extra, an edge with a shared store or a collector would not start."""
    (installed,) = re.findall(r"'fedproxy\[([a-z,]+)\]'", " ".join(run.value for run in _of("RUN")))
    (locked,) = re.findall(r"^\t\$\(LOCK\) (.*) --output-file requirements/image", MAKEFILE, re.MULTILINE)
    assert installed.split(",") == re.findall(r"--extra (\w+)", locked) == ["otel", "redis"]


def test_last_stage_only_copies_from_the_first() -> None:
    assert _of("RUN", LAST_STAGE) == []
    copies = _of("COPY", LAST_STAGE)
    assert len(copies) == 2
    assert all("--from=build" in found.flags for found in copies)


def test_state_directory_belongs_to_the_user_that_the_program_runs_as() -> None:
    (user,) = [found.value for found in _of("USER", LAST_STAGE)]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (copied,) = [found for found in _of("COPY", LAST_STAGE) if f"--chown={user}" in found.flags]
    _, target = copied.value.split()
    assert f"STATE_DIRECTORY={target}" in _of("ENV", LAST_STAGE)[0].value.split()


def test_signal_that_drains_stops_the_container() -> None:
    assert [found.value for found in _of("STOPSIGNAL")] == ["SIGTERM"]


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD", "HEALTHCHECK"])
def test_programs_are_run_without_a_shell_that_would_keep_signals(name: str) -> None:
    (found,) = _of(name)
    assert json.loads(found.value.removeprefix("CMD "))


def test_directories_are_absolute() -> None:
    assert all(found.value.startswith("/") for found in _of("WORKDIR"))


def test_ports_are_the_defaults_of_the_config() -> None:
    config = parse("members: {a: {url: 'http://a.example'}}", {})
    ports = [*(listener.address.port for listener in config.listen), config.admin.address.port]
    assert [int(port) for found in _of("EXPOSE") for port in found.value.split()] == ports


def test_labels_are_those_of_the_open_container_initiative() -> None:
    (labels,) = _of("LABEL", LAST_STAGE)
    names = re.findall(r'org\.opencontainers\.image\.(\w+)="[^"]+"', labels.value)
    assert names == ["title", "description", "version", "licenses"]


def test_context_has_nothing_that_is_not_named() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert all(line.startswith("!") or line in ("**/__pycache__", "**/*.so") for line in lines[1:])
