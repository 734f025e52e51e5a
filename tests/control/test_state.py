"""What operators set: over which config it holds, and that no file of it can do harm."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.load import parse
from fedproxy.config.model import Config
from fedproxy.config.units import Weight
from fedproxy.control.state import (
    State,
    StateFile,
    join,
    leave,
    overlay,
    reconcile,
    set_intent,
    set_weight,
    sign,
    state_path,
)
from fedproxy.decide.member import Intent
from fedproxy.errors import ConfigError

A = {"url": "http://a.example", "weight": 50}
B = {"url": "http://b.example", "weight": 20, "hosts": ["b.example"]}
NEW = {"url": "http://new.example", "weight": 5, "run_by": {"name": "New"}}


def config(members: dict[str, Any] | None = None, **keys: Any) -> Config:
    return parse(json.dumps({"members": {"a": A, "b": B} if members is None else members, **keys}), {})


def weights(config: Config) -> dict[str, Weight]:
    return {name: member.weight for name, member in config.members.items()}


def faults(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(fault) for fault in error.value.faults]


# Setting


def test_empty_state_changes_nothing() -> None:
    assert overlay(config(), State()) == config()
    assert reconcile(config(), State()) == (State(), [])
    assert State().intent("a") is Intent.READY


def test_past_member_that_comes_back_begins_its_ramp_anew() -> None:
    new: dict[str, Any] = {"url": "https://n", "weight": "auto", "ramp": {"share": 0.5}}
    first = {"url": "https://p", "prime": True}
    state = State(ramps={"n": 0.8})
    assert reconcile(config({"p": first, "n": new}), state) == (state, [])
    assert reconcile(config({"p": first, "n": {**new, "active": False}}), state) == (State(), [])


def test_intent_is_kept_until_it_is_ready_again() -> None:
    state = set_intent(set_intent(State(), "a", Intent.DRAIN), "b", Intent.MAINT)
    assert (state.intent("a"), state.intent("b")) == (Intent.DRAIN, Intent.MAINT)
    assert set_intent(set_intent(state, "a", Intent.READY), "b", Intent.READY) == State()


def test_weight_is_over_the_configs_own() -> None:
    state = set_weight(config(), State(), "a", 7)
    assert weights(overlay(config(), state)) == {"a": 7, "b": 20}
    assert weights(config()) == {"a": 50, "b": 20}
    assert weights(overlay(config(), set_weight(config(), state, "a", 0))) == {"a": 0, "b": 20}


def test_weight_that_is_the_configs_own_is_nothing_to_keep() -> None:
    state = set_weight(config(), State(), "a", 7)
    assert set_weight(config(), state, "a", 50) == State()


def test_what_was_set_of_a_member_that_a_source_may_find_again_is_kept() -> None:
    sources = {"sources": {"dns": "a.test"}}
    both, alone = config(**sources), config({"b": B}, **sources)
    state = leave(both, set_weight(both, State(), "b", 3), "a")
    state = join(both, state, "b", NEW)
    for seen in ({}, {"a": A}, {"b": B}, {"a": A, "b": B}):
        kept, lines = reconcile(config(seen, **sources), state)
        assert (kept, lines) == (state, [])
    assert overlay(config({}, **sources), state).members == {}
    assert list(overlay(both, state).members) == ["b"]
    # One that is another by now is the config's again.
    assert reconcile(config({"a": B}, **sources), state)[1] == [
        "a: was deleted at run time, but the config has changed its entry since: the config applies"
    ]
    weighed = set_weight(alone, State(), "b", 3)
    assert reconcile(config({}, **sources), weighed) == (weighed, [])
    assert reconcile(config({"a": A}), weighed)[0] == State()


def test_weight_of_nobody_is_an_error() -> None:
    with pytest.raises(KeyError):
        set_weight(config(), State(), "nobody", 7)


def test_member_that_joins_is_behind_the_others() -> None:
    joined = overlay(config(), join(config(), State(), "new", NEW))
    assert list(joined.members) == ["a", "b", "new"]
    assert joined.members["new"].run_by is not None
    assert joined.active_members == joined.members


def test_member_that_is_put_again_stays_in_its_place() -> None:
    put = overlay(config(), join(config(), State(), "a", NEW))
    assert [member.url for member in put.members.values()] == ["http://new.example", "http://b.example"]


def test_member_that_is_put_has_the_weight_that_it_was_put_with() -> None:
    state = set_weight(config(), State(), "a", 7)
    state = join(config(), state, "a", {**A, "weight": 3})
    assert weights(overlay(config(), state)) == {"a": 3, "b": 20}
    state = set_weight(config(), state, "a", 4)
    assert weights(overlay(config(), state)) == {"a": 4, "b": 20}


def test_member_that_is_put_as_the_config_has_it_is_nothing_to_keep() -> None:
    assert join(config(), join(config(), State(), "a", NEW), "a", A) == State()


def test_member_that_leaves_is_gone_with_all_that_was_set_for_it() -> None:
    state = set_weight(config(), set_intent(State(), "a", Intent.DRAIN), "a", 7)
    state = leave(config(), state, "a")
    assert list(overlay(config(), state).members) == ["b"]
    assert (state.intents, state.weights) == ({}, {})
    with pytest.raises(KeyError):
        leave(config(), state, "a")


def test_member_that_joined_and_left_is_nothing_to_keep() -> None:
    assert leave(config(), join(config(), State(), "new", NEW), "new") == State()


def test_member_that_left_can_be_put_again() -> None:
    state = leave(config(), State(), "a")
    assert join(config(), state, "a", A) == State()
    assert weights(overlay(config(), join(config(), state, "a", NEW))) == {"a": 5, "b": 20}


def test_keys_that_were_not_set_stay_so() -> None:
    before = config(workers=2, routes=[{"path": "/x", "to": "a"}], listen=[{"address": "127.0.0.1:0"}])
    after = overlay(before, join(before, State(), "new", NEW))
    assert after.model_fields_set == before.model_fields_set
    assert after.model_copy(update={"members": before.members}) == before


def test_secrets_are_still_there_when_a_member_joined() -> None:
    before = config(admin={"token": "a word"}, affinity={"secret": "another"})
    after = overlay(before, join(before, State(), "new", NEW))
    assert (after.admin, after.affinity) == (before.admin, before.affinity)


# Refused


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (
            "new",
            {"url": "ftp://x"},
            ["url: is 'ftp://x', expected an http:// or https:// URL with no path, "],
        ),
        ("new", {"weight": 1}, ["url: is missing, expected an http:// or https:// URL with no path, "]),
        ("a b", A, ["'a b' cannot be a name"]),
        ("new", [], ["is a list, expected a mapping"]),
        (
            "new",
            {**NEW, "hosts": ["b.example"]},
            ["members.new.hosts.0: is 'b.example', which b already has"],
        ),
    ],
)
def test_member_that_does_not_fit_is_refused(name: str, settings: object, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        join(config(), State(), name, settings)
    assert len(faults(caught)) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(faults(caught), expected, strict=True))


def test_second_prime_member_is_refused() -> None:
    primes = config({"a": {**A, "prime": True}})
    with pytest.raises(ConfigError, match=r"members\.new\.prime: is true, but a is prime already"):
        join(primes, State(), "new", {**NEW, "prime": True})


def test_last_member_does_not_leave() -> None:
    state = leave(config(), State(), "a")
    with pytest.raises(ConfigError, match="members: has no active member"):
        leave(config(), state, "b")


def test_member_that_a_route_names_does_not_leave() -> None:
    routed = config(routes=[{"path": "/x", "to": "a"}])
    with pytest.raises(ConfigError, match=r"routes\.0\.to: is 'a', expected members"):
        leave(routed, State(), "a")


def test_number_is_over_auto_until_auto_is_set_again() -> None:
    own = config({"a": {**A, "weight": "auto"}, "b": B})
    state = set_weight(own, State(), "a", 7)
    assert weights(overlay(own, state)) == {"a": 7, "b": 20}
    assert set_weight(own, state, "a", "auto") == State()
    # And the other way round.
    state = set_weight(own, State(), "b", "auto")
    assert weights(overlay(own, state)) == {"a": "auto", "b": "auto"}
    assert set_weight(own, state, "b", 20) == State()


# The config changes


def test_weight_holds_while_the_configs_is_the_same() -> None:
    state = set_weight(config(), State(), "a", 7)
    other = config({"a": {**A, "hosts": ["a.example"]}, "b": B})
    assert reconcile(other, state) == (state, [])
    assert weights(overlay(other, state)) == {"a": 7, "b": 20}


def test_weight_gives_way_to_the_configs_new_one() -> None:
    state = set_weight(config(), State(), "a", 7)
    changed = config({"a": {**A, "weight": 30}, "b": B})
    assert weights(overlay(changed, state)) == {"a": 30, "b": 20}
    assert reconcile(changed, state) == (
        State(),
        ["a: its weight 7 was set over 50 and is dropped: the config says 30"],
    )


def test_weight_over_auto_gives_way_to_a_number_of_the_config() -> None:
    own = config({"a": {**A, "weight": "auto"}, "b": B})
    state = set_weight(own, set_weight(own, State(), "a", 7), "b", "auto")
    assert reconcile(config({"a": {**A, "weight": 30}, "b": {**B, "weight": 25}}), state) == (
        State(),
        [
            "a: its weight 7 was set over auto and is dropped: the config says 30",
            "b: its weight auto was set over 20 and is dropped: the config says 25",
        ],
    )


def test_weight_of_a_member_that_is_gone_is_dropped_and_its_intent_is_not() -> None:
    state = set_intent(set_weight(config(), State(), "a", 7), "a", Intent.DRAIN)
    rest, lines = reconcile(config({"b": B}), state)
    assert lines == ["a: its weight 7 is dropped: there is no such member"]
    assert rest == State(intents={"a": "drain"})
    assert reconcile(config(), rest) == (rest, [])


def test_member_that_left_stays_away_while_its_entry_is_the_same() -> None:
    state = leave(config(), State(), "a")
    same = config({"b": {**B, "weight": 1}, "a": {**A, "weight": "50", "prime": False}})
    assert reconcile(same, state) == (state, [])
    assert list(overlay(same, state).members) == ["b"]


@pytest.mark.parametrize("entry", [{**A, "weight": 1}, None])
def test_member_that_left_belongs_to_a_config_that_says_something_else(entry: object) -> None:
    changed = config({"a": entry, "b": B})
    state = leave(config(), State(), "a")
    assert overlay(changed, state) == changed
    assert reconcile(changed, state) == (
        State(),
        ["a: was deleted at run time, but the config has changed its entry since: the config applies"],
    )


def test_member_that_joined_belongs_to_the_config_that_has_it() -> None:
    state = set_weight(config(), join(config(), State(), "new", NEW), "new", 9)
    has = config({"a": A, "b": B, "new": {**NEW, "weight": 6}})
    assert overlay(has, state) == has
    rest, lines = reconcile(has, state)
    assert rest == State()
    assert lines == [
        "new: was added at run time, but the config has changed its entry since: the config applies",
        "new: its weight 9 was set over 5 and is dropped: the config says 6",
    ]


def test_member_that_no_longer_fits_is_dropped_and_the_others_stay() -> None:
    state = join(config(), State(), "x", {**NEW, "hosts": ["x.example"]})
    state = join(config(), state, "y", NEW)
    taken = config({"a": {**A, "hosts": ["x.example"]}, "b": B})
    with pytest.raises(ConfigError, match=r"members\.x\.hosts\.0"):
        overlay(taken, state)
    rest, lines = reconcile(taken, state)
    assert list(rest.members) == ["y"]
    (line,) = lines
    assert line.startswith("x: was added at run time, dropped: members.x.hosts.0: is 'x.example'")


def test_members_that_fit_together_stay_in_whatever_order_they_came() -> None:
    state = join(config(), State(), "y", NEW)
    state = leave(config(), state, "a")
    state = leave(config(), state, "b")
    # Put again, it comes after those that could not have left before it was there.
    state = join(config(), state, "y", {**NEW, "weight": 1})
    assert list(state.members) == ["a", "b", "y"]
    assert reconcile(config(), state) == (state, [])
    assert weights(overlay(config(), state)) == {"y": 1}


NAMES = st.sampled_from(["a", "b", "c"])
ENTRIES = st.fixed_dictionaries(
    {"url": st.sampled_from(["http://a.example", "http://b.example"])},
    optional={
        "weight": st.integers(0, 2) | st.just("auto"),
        "prime": st.booleans(),
        "active": st.booleans(),
        "hosts": st.lists(st.sampled_from(["x.example", "y.example"]), max_size=1),
    },
)
STEPS = st.lists(
    st.tuples(st.just("join"), NAMES, ENTRIES)
    | st.tuples(st.just("leave"), NAMES, st.none())
    | st.tuples(st.just("weigh"), NAMES, st.integers(0, 3) | st.just("auto"))
    | st.tuples(st.just("intend"), NAMES, st.sampled_from(Intent)),
    max_size=6,
)


def _valid(members: dict[str, Any]) -> bool:
    try:
        config(members)
    except ConfigError:
        return False
    return True


CONFIGS = st.dictionaries(NAMES, ENTRIES, min_size=1).filter(_valid).map(config)


def _after(config: Config, steps: list[tuple[str, str, Any]]) -> State:
    state = State()
    for what, name, value in steps:
        try:
            match what:
                case "join":
                    state = join(config, state, name, value)
                case "leave":
                    state = leave(config, state, name)
                case "weigh":
                    state = set_weight(config, state, name, value)
                case _:
                    state = set_intent(state, name, value)
        except (ConfigError, KeyError):
            continue  # refused, and nothing has changed
    return state


@given(CONFIGS, STEPS)
def test_whatever_was_set_can_be_put_over_its_config_and_is_all_kept(
    config: Config, steps: list[tuple[str, str, Any]]
) -> None:
    state = _after(config, steps)
    assert reconcile(config, state) == (state, [])
    assert overlay(config, state).active_members


@given(CONFIGS, STEPS, CONFIGS)
def test_whatever_was_set_can_be_reconciled_with_any_config(
    config: Config, steps: list[tuple[str, str, Any]], other: Config
) -> None:
    state, _ = reconcile(other, _after(config, steps))
    over = overlay(other, state)
    assert over.active_members
    assert reconcile(other, state) == (state, [])
    untouched = other.members.keys() - state.members.keys() - state.weights.keys()
    assert all(over.members[name] == other.members[name] for name in untouched)


# The file


FULL = set_intent(
    set_weight(config(), leave(config(), join(config(), State(), "new", NEW), "b"), "new", 0.5),
    "a",
    Intent.MAINT,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edge.state.json"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_state_is_read_as_it_was_written(file: Path) -> None:
    StateFile(file).save(FULL)
    assert StateFile(file).load() == (FULL, [])
    assert reconcile(config(), StateFile(file).load()[0]) == (FULL, [])
    assert (stat.S_IMODE(file.stat().st_mode), names(file)) == (0o600, [file.name])


@given(CONFIGS, STEPS)
def test_any_state_is_read_as_it_was_written(config: Config, steps: list[tuple[str, str, Any]]) -> None:
    state = _after(config, steps)
    with tempfile.TemporaryDirectory() as directory:
        file = StateFile(Path(directory, "state.json"))
        file.save(state)
        assert file.load() == (state, [])


def test_no_file_is_an_empty_state(file: Path) -> None:
    assert StateFile(file).load() == (State(), [])
    assert names(file) == []


def test_nowhere_to_keep_it_is_no_error() -> None:
    nowhere = StateFile(None)
    nowhere.save(FULL)
    assert nowhere.load() == (State(), [])


WHOLE = json.dumps({"version": 1, **FULL.model_dump()}).encode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (WHOLE[: len(WHOLE) // 2], "is not JSON"),
        (b"\xff\0garbage", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "version: is empty, expected 1"),
        (b'{"version": 2, "news": []}', "version: is 2, expected 1"),
        (b'{"version": 1, "intents": {"a": "gone"}}', "intents.a: is 'gone', expected drain or maint"),
        (b'{"version": 1, "intents": []}', "intents: is a list, expected a mapping"),
        (b'{"version": 1, "weights": {"a": 5}}', "weights.a: is 5, expected a mapping"),
        (
            b'{"version": 1, "weights": {"a": {"value": -1, "over": NaN}}}',
            "weights.a.value: is -1, expected auto or a number of at least 0; "
            "weights.a.over: is nan, expected auto or a number of at least 0",
        ),
        (
            b'{"version": 1, "members": {"a": {"settings": 5}}}',
            "members.a.settings: is 5, expected a mapping",
        ),
        (
            b'{"version": 1, "members": {"a b": {}}}',
            "members.a b: cannot be a name, expected a member's name of ",
        ),
        (
            b'{"version": 1, "more": 1}',
            "more: is not a known key, expected intents, weights, members, by or ramps",
        ),
        (b'{"version": 1}' + b" " * (4 << 20), "is larger than 4 MiB"),
    ],
)
def test_file_that_makes_no_sense_is_put_aside(file: Path, content: bytes, why: str) -> None:
    file.write_bytes(content)
    state, lines = StateFile(file).load()
    assert state == State()
    (line,) = lines
    assert line.startswith(f"{file} is not a fedproxy state file: {why}")
    assert line.endswith(f"; it is now {file}.bad-1, and is ignored")
    assert Path(f"{file}.bad-1").read_bytes() == content
    StateFile(file).save(FULL)
    assert StateFile(file).load() == (FULL, [])


def test_settings_of_a_member_that_make_no_sense_any_more_cost_only_that_member(file: Path) -> None:
    file.write_text(
        json.dumps(
            {"version": 1, "intents": {"a": "drain"}, "members": {"x": {"settings": {"url": "\ud800"}}}}
        )
    )
    state, lines = StateFile(file).load()
    assert lines == []
    rest, (line,) = reconcile(config(), state)
    assert rest == State(intents={"a": "drain"})
    assert line.startswith("x: was added at run time, dropped: members.x.url: is '\\ud800', expected")
    StateFile(file).save(state)
    assert StateFile(file).load() == (state, [])


def test_nothing_that_was_put_aside_is_lost(file: Path) -> None:
    for content in "first", "second":
        file.write_text(content)
        StateFile(file).load()
    assert [Path(f"{file}.bad-{n}").read_text() for n in (1, 2)] == ["first", "second"]


def test_what_cannot_be_read_is_put_aside(file: Path) -> None:
    file.mkdir()
    state, (line,) = StateFile(file).load()
    assert state == State()
    assert line.startswith(f"{file} cannot be read: Is a directory; it is now {file}.bad-1")


def test_bad_file_that_cannot_be_put_aside_is_not_written_over(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    file.write_text("garbage")
    monkeypatch.setattr(Path, "rename", refuse)
    kept = StateFile(file)
    _, lines = kept.load()
    assert lines == [
        f"{file} is not a fedproxy state file: is not JSON; {file} stays as it is (Operation not permitted), "
        "and nothing is saved across a restart"
    ]
    kept.save(FULL)
    assert file.read_text() == "garbage"


def test_place_that_cannot_be_written_is_said_once_and_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "none" / "state.json"
    kept = StateFile(file)
    assert kept.load() == (
        State(),
        [
            f"{file} cannot be written: No such file or directory; operators' changes are lost at a restart "
            "(admin.state: another path, or off)"
        ],
    )
    kept.save(FULL)
    file.parent.mkdir()
    kept.save(FULL)
    assert StateFile(file).load() == (FULL, [])


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_state(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = StateFile(file)
    kept.save(FULL)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="cannot be written: No space left on device") as caught:
        kept.save(State())
    assert (caught.value.errno, caught.value.strerror) == (
        errno.ENOSPC,
        f"{file} cannot be written: No space left on device",
    )
    assert kept.load() == (FULL, [])
    assert names(file) == [file.name]


def test_directory_that_cannot_be_synced_is_no_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    StateFile(file).save(FULL)
    assert StateFile(file).load() == (FULL, [])


# Where it is


@pytest.mark.parametrize(
    ("said", "file", "env", "expected"),
    [
        (None, "/etc/fedproxy/edge.yaml", {}, "/etc/fedproxy/edge.state.json"),
        (None, "fedproxy.yaml", {"STATE_DIRECTORY": ""}, "fedproxy.state.json"),
        (None, "edge.yaml", {"STATE_DIRECTORY": "/var/lib/a"}, "/var/lib/a/state.json"),
        (None, "edge.yaml", {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a/state.json"),
        (None, None, {}, None),
        ("/tmp/x", "edge.yaml", {"STATE_DIRECTORY": "/var/lib/a"}, "/tmp/x"),
        ("off", "edge.yaml", {"STATE_DIRECTORY": "/var/lib/a"}, None),
    ],
)
def test_state_is_kept_where_the_config_the_service_or_the_file_says(
    said: str | None, file: str | None, env: dict[str, str], expected: str | None
) -> None:
    found = state_path(config(admin={"state": said}), Path(file) if file else None, env)
    assert found == (Path(expected) if expected else None)


def test_who_changed_a_member_is_kept_as_long_as_a_change_applies(file: Path) -> None:
    state = sign(set_intent(State(), "a", Intent.DRAIN), "a", "kim 192.0.2.7")
    StateFile(file).save(state)
    again, lines = StateFile(file).load()
    assert (again, lines) == (state, [])
    assert again.by == {"a": "kim 192.0.2.7"}
    assert reconcile(config(), again)[0].by == again.by
    assert sign(set_intent(again, "a", Intent.READY), "a", "lee 192.0.2.8").by == {}
    weighed = sign(set_weight(config(), State(), "a", 5.0), "a", "kim 192.0.2.7")
    assert reconcile(config({"a": A | {"weight": 7}}), weighed)[0].by == {}


def test_file_from_before_it_was_kept_who_changed_a_member_is_read(file: Path) -> None:
    file.write_text('{"version": 1, "intents": {"a": "drain"}, "weights": {}, "members": {}}')
    assert StateFile(file).load() == (State(intents={"a": "drain"}), [])
