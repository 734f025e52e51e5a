"""Which members an answer stands for, and how long one stays that the next answer lacks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.address import MEMBER_NAME
from fedproxy.decide.discovery import (
    Damper,
    DnsAnswer,
    DnsMember,
    ServiceRecord,
    host_of,
    member_name,
    members_of,
    next_question,
)

NAME = "_https._tcp.binder.test"


def read(*records: tuple[object, ...], known: tuple[str, ...] = (), most: int = 100) -> DnsAnswer:
    found = [ServiceRecord(*each) for each in records]  # type: ignore[arg-type]
    return members_of(NAME, found, avoid={("edge.test", 443)}, known=known, most=most)


def weights(*records: tuple[object, ...]) -> dict[str, float]:
    return {name: member.weight for name, member in read(*records).members.items()}


def test_each_target_is_a_member_with_its_port_and_weight() -> None:
    answer = read(("A.binder.test.", 443, 0, 20), ("b.binder.test", 8443, 0, 10))
    assert answer == DnsAnswer(
        {
            "a.binder.test": DnsMember("a.binder.test", 443, 20.0),
            "b.binder.test": DnsMember("b.binder.test", 8443, 10.0),
        }
    )


def test_ports_of_one_host_are_members_of_their_own() -> None:
    answer = read(("a.test", 8001), ("a.test", 8002), ("b.test", 8001))
    assert list(answer.members) == ["a.test:8001", "a.test:8002", "b.test"]


def test_same_target_twice_is_one_member_of_the_better_record() -> None:
    assert weights(("a.test", 1, 1, 9), ("a.test", 1, 0, 3), ("a.test", 1, 0, 5), ("a.test", 1, 0, 4)) == {
        "a.test": 5.0
    }


def test_only_the_lowest_priority_gets_visitors() -> None:
    assert weights(("a.test", 1, 10, 5), ("b.test", 1, 20, 50)) == {"a.test": 5.0, "b.test": 0.0}
    assert weights(("b.test", 1, 20, 50)) == {"b.test": 50.0}


def test_weight_0_is_a_small_chance_beside_others_and_an_even_one_without() -> None:
    assert weights(("a.test", 1, 0, 0), ("b.test", 1, 0, 5)) == {"a.test": 0.1, "b.test": 5.0}
    assert weights(("a.test", 1, 0, 0), ("b.test", 1, 0, 0), ("c.test", 1, 1, 7)) == {
        "a.test": 1.0,
        "b.test": 1.0,
        "c.test": 0.0,
    }


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (("no host", 443), "'no host' is no host name"),
        (("10.0.0.1", 443), "'10.0.0.1' is no host name"),
        (("a\x1b.test", 443), r"'a\x1b.test' is no host name"),
        (("a" * 300, 443), f"'{'a' * 80}' is no host name"),
        (("a.test", 0), "a.test has the port 0"),
        ((NAME, 443), f"{NAME}:443 leads back here"),
        (("edge.test", 443), "edge.test:443 leads back here"),
    ],
)
def test_what_cannot_be_a_member_is_left_out_and_said(record: tuple[object, ...], why: str) -> None:
    assert read(record, ("b.test", 1)).left_out == (f"left out: {why}",)
    assert list(read(record, ("b.test", 1)).members) == ["b.test"]


def test_no_service_is_no_member_and_no_fault() -> None:
    assert read((".", 0)) == read(("", 0)) == read() == DnsAnswer({})


def test_more_than_the_limit_are_left_out_by_name_and_known_ones_first() -> None:
    records = [(f"m{number:04}.test", 443, 0, 1) for number in range(3000)]
    answer = read(*records, known=("m2999.test",), most=3)
    assert list(answer.members) == ["m0000.test", "m0001.test", "m2999.test"]
    some = "m0002.test, m0003.test, m0004.test, m0005.test, m0006.test"
    assert answer.left_out == (f"has 3000 members, of which 3 are taken: without {some} and 2992 more",)
    standby = read(("a.test", 1, 9, 1), ("b.test", 1, 0, 1), most=1)
    assert list(standby.members) == ["b.test"]


@pytest.mark.parametrize("host", ["_x.test", "a" * 65, f"{'a' * 60}.test:8001", "_"])
def test_hosts_that_are_no_names_become_some(host: str) -> None:
    assert MEMBER_NAME.parse(member_name(host)) == member_name(host)
    assert member_name(host) != member_name(f"{host}2")
    assert re.search("-[0-9a-f]{8}$", member_name(host))


@given(st.from_regex(r"[A-Za-z0-9_.-]{0,300}", fullmatch=True) | st.text())
def test_any_host_has_a_name(text: str) -> None:
    host = host_of(text)
    if host is not None:
        assert MEMBER_NAME.parse(member_name(host)) is not None


@pytest.mark.parametrize(
    ("ttl", "failures", "wait"),
    [(0, 0, 1), (5, 0, 5), (3600, 0, 30), (5, 1, 1), (5, 2, 2), (5, 5, 16), (5, 10**6, 16)],
)
def test_time_to_live_is_followed_within_bounds(ttl: float, failures: int, wait: float) -> None:
    assert next_question(ttl, 30.0, failures) == wait


def test_member_that_an_answer_lacks_stays_for_a_while() -> None:
    damper: Damper[int] = Damper()
    damper.learn({"a": 1, "b": 1}, 0.0, 10.0, 9)
    assert damper.changes_at == float("inf")
    damper.learn({"a": 2}, 5.0, 10.0, 9)
    assert (damper.members, damper.changes_at) == ({"a": 2, "b": 1}, 15.0)
    # Missing once more does not make it stay longer.
    damper.learn({"a": 2}, 14.0, 10.0, 9)
    damper.roll(14.9)
    assert list(damper.members) == ["a", "b"]
    damper.roll(15.0)
    assert (damper.members, damper.changes_at) == ({"a": 2}, float("inf"))


def test_member_that_is_back_stays() -> None:
    damper: Damper[int] = Damper()
    damper.learn({"a": 1, "b": 1}, 0.0, 10.0, 9)
    damper.learn({"a": 1}, 5.0, 10.0, 9)
    damper.learn({"b": 3}, 14.0, 10.0, 9)
    damper.roll(20.0)
    assert damper.members == {"b": 3, "a": 1}
    damper.learn({"c": 1}, 21.0, 0.0, 9)
    assert damper.members == {"c": 1, "a": 1}


def test_those_that_stay_are_no_more_than_the_limit_and_the_latest() -> None:
    damper: Damper[int] = Damper()
    for second in range(50):
        damper.learn({f"m{second}": 1}, float(second), 3600.0, 3)
    assert list(damper.members) == ["m49", "m48", "m47"]
    damper.learn({"a": 1, "b": 1, "c": 1, "d": 1}, 50.0, 3600.0, 3)
    assert list(damper.members) == ["a", "b", "c", "d"]
