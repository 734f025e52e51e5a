"""Launches of an access log, in a form that names nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.cli import main
from fedproxy.observe.recording import Recorder

SECRET = b"s" * 32
FIRST: dict[str, Any] = {
    "time": "2026-11-25T10:00:30+00:00",  # a Wednesday
    "client": "192.0.2.7",
    "user_agent": "Firefox",
    "target": "/build/gh/Somebody/secret-repo/HEAD?build_token=x",
    "duration": 30.0,
    "affinity": "key",
    "launch": "ready",
}
DAY = 86_400.0


def lines(*changes: dict[str, Any]) -> list[bytes]:
    return [json.dumps(FIRST | each).encode() + b"\n" for each in changes]


def recorded(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return list(Recorder(SECRET).read(lines(*changes)))


def test_times_count_from_monday_and_are_when_it_was_asked_for() -> None:
    later = {"time": "2026-11-25T10:00:31+00:00", "duration": 1.5}
    early = {"time": "2026-11-25T11:00:00+00:00", "duration": 3601.0}
    assert [each["at"] for each in recorded({}, later, early)] == [
        2 * DAY + 10 * 3600 - 1,
        2 * DAY + 10 * 3600,
        2 * DAY + 10 * 3600 + 29.5,
    ]


def test_only_what_is_equal_can_be_told() -> None:
    found = recorded(
        {},
        {"client": "192.0.2.8"},
        {"target": "/build/gh/somebody/secret-repo/v2"},
        {"target": "/services/binder/build/gh/somebody/other/HEAD", "affinity": "cookie"},
    )
    assert [set(each) for each in found] == [{"at", "visitor", "repository", "image", "cookie"}] * 4
    first, other, ref, repository = found
    assert first["visitor"] != other["visitor"] and first["visitor"] == ref["visitor"]
    assert first["repository"] == ref["repository"] != repository["repository"]
    assert first["image"] == other["image"] != ref["image"]
    assert [each["cookie"] for each in found] == [False, False, False, True]
    text = json.dumps(found)
    for named in ("192.0.2", "Firefox", "omebody", "secret", "2026"):
        assert named not in text
    assert next(Recorder(b"t" * 32).read(lines({})))["visitor"] != first["visitor"]


def test_other_requests_are_left_out_and_what_is_no_line_is_counted() -> None:
    recorder = Recorder(SECRET)
    wrong = [
        b"nonsense\n",
        b"[]\n",
        b"\n",
        b'{"launch": "ready"}\n',
        *lines({"time": 7}, {"duration": "x"}, {"target": None}, {"target": "/build/"}),
    ]
    assert list(recorder.read([*lines({"launch": None}), *wrong])) == []
    assert recorder.skipped == 7


@given(
    st.lists(
        st.one_of(
            st.binary(),
            st.builds(
                lambda value: json.dumps(value).encode(),
                st.recursive(
                    st.none() | st.booleans() | st.floats() | st.text(),
                    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
                ),
            ),
        )
    )
)
def test_any_file_can_be_read(content: list[bytes]) -> None:
    assert list(Recorder(SECRET).read(content)) == []


@pytest.mark.parametrize("given_as", ["file", "input"])
def test_command_prints_a_line_for_each(tmp_path: Any, given_as: str) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"".join(lines({}, {"launch": None}, {"client": "192.0.2.9"})) + b"cut")
    words = ["record", str(log)] if given_as == "file" else ["record"]
    result = CliRunner().invoke(main, words, input=log.read_bytes() if given_as == "input" else None)
    assert result.exit_code == 0
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 2
    assert result.stderr == "2 launches; 1 lines were not understood\n"
    empty = CliRunner().invoke(main, ["record"], input="")
    assert (empty.exit_code, empty.stdout) == (1, "")
