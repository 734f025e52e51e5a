"""Overrides of a fleet: which is in force, and what is kept over a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedproxy.control.overrides import Override, Overrides, OverridesFile, read_override
from fedproxy.control.state import Change, MemberOverride, Weight
from fedproxy.control.store import Stored

DRAIN = Override(MemberOverride(intent="drain", by="kim"), "kim", "one", 5.0)
HEAVY = Override(MemberOverride(weight=Weight(value=3.0, over=1.0)), "sam", "two", 6.0)
JOINED = Override(MemberOverride(change=Change(settings={"url": "http://a.example"})), "sam", "two", 7.0)


@pytest.mark.parametrize(
    "override", [DRAIN, HEAVY, JOINED, Override(MemberOverride())], ids=["drain", "weight", "joined", "ready"]
)
def test_override_is_read_as_it_was_written(override: Override) -> None:
    assert read_override("a", override.pack()) == override


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not what an edge writes"),
        (b"[" * 100_000, "is not what an edge writes"),
        (b'{"override": {}}', "is not what an edge writes"),
        (b'{"override": {}, "who": 1, "edge": "", "at": 0}', "is not what an edge writes"),
        (b'{"override": 7, "who": "", "edge": "", "at": 0}', "is not a JSON object"),
        (b'{"override": {"intent": "stop"}, "who": "", "edge": "", "at": 0}', "intent: is 'stop'"),
        (b'{"override": {"change": {"settings": {"ulr": 1}}}, "who": "", "edge": "", "at": 0}', "ulr: "),
        (b'{"override": {"more": 1}, "who": "", "edge": "", "at": 0}', "more: "),
        (b" " * (1 << 18) + b"{}", "is larger than 256 KiB"),
    ],
)
def test_what_is_no_override_says_so(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_override("a", content)


def test_name_that_no_member_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="intents"):
        read_override("a b", DRAIN.pack())


def test_newest_override_counts() -> None:
    overrides = Overrides()
    assert overrides.base("a") == 0
    assert overrides.get("a") is None
    assert overrides.take("a", Stored(3, DRAIN.pack()))
    assert not overrides.take("a", Stored(2, HEAVY.pack()))
    assert not overrides.take("a", Stored(3, DRAIN.pack()))
    assert overrides.take("b", Stored(2, HEAVY.pack()))
    assert (overrides.order, overrides.base("a"), overrides.get("a")) == (3, 3, DRAIN)
    state = overrides.state()
    assert state.intents == {"a": "drain"}
    assert state.weights == {"b": Weight(value=3.0, over=1.0)}
    assert state.by == {"a": "kim"}


def test_override_that_is_pending_is_in_force_here_over_what_it_was_set_over() -> None:
    overrides = Overrides()
    overrides.take("a", Stored(3, DRAIN.pack()))
    overrides.hold("a", HEAVY)
    overrides.take("a", Stored(9, JOINED.pack()))
    overrides.hold("a", Override(MemberOverride(intent="maint")))
    assert overrides.pending["a"] == (3, Override(MemberOverride(intent="maint")))
    assert overrides.state().intents == {"a": "maint"}


def test_override_that_cannot_be_read_changes_nothing_and_is_reported_once() -> None:
    overrides = Overrides()
    overrides.take("a", Stored(3, DRAIN.pack()))
    with pytest.raises(ValueError, match="what operators set for 'a' is not what an edge writes"):
        overrides.take("a", Stored(4, b"?"))
    assert not overrides.take("a", Stored(4, b"?"))
    assert overrides.get("a") == DRAIN
    assert overrides.base("a") == 4


def test_what_the_store_has_lost() -> None:
    overrides = Overrides()
    overrides.take("a", Stored(3, DRAIN.pack()))
    overrides.take("b", Stored(5, HEAVY.pack()))
    overrides.take("c", Stored(6, HEAVY.pack()))
    there = {"b": Stored(4, b"older"), "c": Stored(6, HEAVY.pack()), "d": Stored(9, b"")}
    assert overrides.missing_from(there) == {"a": Stored(3, DRAIN.pack()), "b": Stored(5, HEAVY.pack())}


def test_file_keeps_them(tmp_path: Path) -> None:
    overrides = Overrides()
    overrides.take("a", Stored(3, DRAIN.pack()))
    overrides.hold("b", HEAVY)
    file = OverridesFile(tmp_path / "edge.state.json")
    assert file.load(Overrides()) == []
    file.save(overrides.pack())
    assert oct((tmp_path / "edge.fleet").stat().st_mode)[-3:] == "600"
    found = Overrides()
    assert file.load(found) == []
    assert found.pack() == overrides.pack()
    assert found.state() == overrides.state()
    assert found.order == 3


def test_one_bad_override_in_the_file_loses_only_itself(tmp_path: Path) -> None:
    file = OverridesFile(tmp_path / "edge.state.json")
    content = {"version": 1, "stored": {"a": [3, "?"], "b": [4, DRAIN.pack().decode()]}, "pending": {}}
    (tmp_path / "edge.fleet").write_text(json.dumps(content))
    overrides = Overrides()
    assert file.load(overrides) == ["what operators set for 'a' is not what an edge writes"]
    assert overrides.state().intents == {"b": "drain"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not what operators set"),
        ("[]", "it has no overrides"),
        ('{"version": 9}', "it is of another version"),
        ('{"version": 1, "stored": {"a": 1}, "pending": {}}', "it has no overrides"),
        ('{"version": 1, "stored": {}, "pending": {"a": [1, "?"]}}', "is not what an edge writes"),
    ],
)
def test_file_that_is_something_else_is_put_aside(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "edge.fleet").write_text(content)
    file = OverridesFile(tmp_path / "edge.state.json")
    (line,) = file.load(Overrides())
    assert says in line
    assert (tmp_path / "edge.fleet.bad-1").read_text() == content
    file.save(Overrides().pack())
    assert OverridesFile(tmp_path / "edge.state.json").load(Overrides()) == []


def test_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "edge.fleet")
    assert "is no file" in OverridesFile(tmp_path / "edge.state.json").load(Overrides())[0]
    gone = OverridesFile(tmp_path / "nowhere" / "edge.state.json")
    assert gone.load(Overrides()) == []
    with pytest.raises(OSError, match="cannot be written"):
        gone.save(b"")
    (tmp_path / "file").write_text("")
    assert "cannot be read" in OverridesFile(tmp_path / "file" / "edge.state.json").load(Overrides())[0]


def test_nowhere_is_nothing_kept() -> None:
    file = OverridesFile(None)
    file.save(b"x")
    assert file.load(Overrides()) == []
