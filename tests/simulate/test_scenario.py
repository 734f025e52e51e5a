from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulate.reference import render
from benchmarks.simulate.scenario import MOST_MEMBERS, SHIPPED, find, load, parse
from fedproxy.errors import ConfigError

SCENARIOS = ("federation.yaml", "replicated.yaml", "one-sick.yaml", "flash-crowd.yaml")


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(text)
    return [f"{fault.place}: {fault}" for fault in raised.value.faults]


@pytest.mark.parametrize("name", SCENARIOS)
def test_shipped_scenario_is_found_by_its_bare_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = load(find(name))
    assert scenario.name == name.removesuffix(".yaml")
    assert all(hub.weight and hub.slots for hub in scenario.members.values())


def test_file_in_the_working_directory_goes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("federation.yaml").write_text("members: {a: {slots: 20}}")
    assert list(load(find("federation.yaml")).members) == ["a"]
    assert load(find("federation.yaml")).name == "federation"
    assert find("other.yaml") == Path("other.yaml")


def test_weights_of_the_federation_are_in_proportion_to_its_slots() -> None:
    scenario = load(SHIPPED / "federation.yaml")
    assert [hub.slots for hub in scenario.members.values()] == [300, 180, 60]
    assert len({hub.slots / hub.weight for hub in scenario.members.values()}) == 1
    assert scenario.visitors.launches_per_hour * 24 == 15_000


def test_each_member_is_sick_in_each_way_in_turn() -> None:
    failures = load(SHIPPED / "one-sick.yaml").failures
    kinds = {"slow", "failing", "full", "quota", "crash"}
    assert len({(each.member, each.kind) for each in failures}) == 3 * len(kinds) == len(failures)
    ends = [each.at + each.lasts for each in failures]
    assert all(end < after.at for end, after in zip(ends, failures[1:], strict=False))


def test_every_fault_is_named_at_once_with_its_place() -> None:
    text = """
launchs: 5
visitors: {launches_per_hour: -1, hours: [1, 2]}
members:
  a: {slots: 20, weight: 0}
  b: {slots: x, nodes: {cont: 3}}
failures:
  - {member: c, kind: crash, at: 1h, lasts: 1h, factor: 2}
  - {member: a, kind: crsh, at: 1h, lasts: 1h}
"""
    assert faults(text) == [
        "2:1: launchs: is not a known key, did you mean 'launches'?",
        "3:31: visitors.launches_per_hour: is -1, expected a number from 0.001 to a billion",
        "6:14: members.b.slots: is 'x', expected a whole number from 0 to a million",
        "6:25: members.b.nodes.cont: is not a known key, did you mean 'count'?",
        "8:14: failures.0.member: is 'c', expected a or b",
        "8:57: failures.0.factor: is for failures of the kind slow, and this one is crash",
        "9:23: failures.1.kind: is 'crsh', expected crash, full, quota, slow, failing or flapping",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "None: is empty, expected at least `members`"),
        ("- a", "None: is a list, expected a mapping"),
        ("a: [", "1:5: not valid YAML"),
        ("launches: 5", "1:1: members: is missing, expected a mapping"),
        ("members: {}", "1:10: members: is empty, expected at least one member"),
        ("members: {a: {weight: 1}}", "1:11: members.a.slots: is missing"),
        ("members: {a: {slots: 20, weight: 0}}", "1:10: members: has no member with a weight above 0"),
        ("members: {a: {slots: 0}}", "1:10: members: has no capacity: no member with a weight has slots"),
        (
            "members: {a: {slots: 10}, b: {slots: 99, weight: 0}}",
            "1:10: members: has no capacity: no member with a weight has more than 10 slots, and with an "
            "`edge.headroom` of 10 each would always be full",
        ),
        ("members: {a: {slots: 20, weight: -1}}", "1:34: members.a.weight: is -1, expected a number from 0"),
        ("members: {a/b: {slots: 20}}", "1:11: members.a/b: cannot be a name"),
        (
            "members: {a: {slots: 20, prime: true}, b: {slots: 20, prime: true}}",
            "1:62: members.b.prime: is true, but a is prime already",
        ),
        (
            "members: {a: {slots: 20, launch: {median: 20s, p95: 10s}}}",
            "1:53: members.a.launch.p95: is 10s, expected at least `median`, which is 20s",
        ),
    ],
)
def test_scenario_that_cannot_be_is_a_fault(text: str, fault: str) -> None:
    (found,) = faults(text)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("visitors: {hours: [" + "0, " * 24 + "]}", "visitors.hours: has only zeros"),
        ("visitors: {days: [1]}", "visitors.days: has 1 numbers, expected 7"),
        ("visitors: {bots: 1.5}", "visitors.bots: is 1.5, expected a number from 0 to 1"),
        ("visitors: {crowds: [{at: 0, launches: 0}]}", "visitors.crowds.0.launches: is 0, expected a whole"),
        (
            "visitors: {crowds: [{at: 0, launches: 1, lasts: 1h, every: 1h}]}",
            "visitors.crowds.0.every: is 1h, expected more than `lasts`, which is 1h",
        ),
        ("repositories: {count: 0}", "repositories.count: is 0, expected a whole number from 1"),
        ("edge: {count: 101}", "edge.count: is 101, expected a whole number from 1 to 100"),
        ("images: both", "images: is 'both', expected separate or replicated"),
        ("launches: 0", "launches: is 0, expected a whole number from 1 to a billion"),
        ("warm_up: -1h", "warm_up: is '-1h', expected a duration"),
        ("failures: [{member: a, kind: crash, lasts: 1h}]", "failures.0.at: is missing"),
    ],
)
def test_value_that_cannot_be_is_a_fault(more: str, fault: str) -> None:
    (found,) = faults("members: {a: {slots: 20}}\n" + more)
    assert fault in found


def test_too_many_members_are_a_fault() -> None:
    members = "\n".join(f"  m{number}: {{slots: 20}}" for number in range(MOST_MEMBERS + 1))
    assert faults(f"members:\n{members}") == ["1:1: members: has 101 members, expected at most 100"]


def test_document_is_what_the_models_say() -> None:
    written = (SHIPPED.parent / "docs" / "simulation.md").read_text()
    assert written == render(), "python -m benchmarks.simulate.reference > docs/simulation.md"
