"""What edges tell each other: read as it was written, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.control.hints import Hint, is_hint, pack, pack_report, unpack, unpack_report
from fedproxy.control.messages import (
    BreakerInDoubt,
    BreakerOpened,
    BuildBegun,
    LaunchesInFlight,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    SessionsKnown,
)
from fedproxy.control.overrides import read_override
from fedproxy.control.prober import Report
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End

IMAGE = bytes(range(16))
NOW = 1000.0
HINTS: list[Hint] = [
    BreakerOpened("a", frozenset((b"\x7f\0\0\1", b"\0\xff"))),
    LaunchMoved(b"gh/owner/repo", "b"),
    LaunchRequested(b"\x7f\0\0\1"),
    BuildBegun(IMAGE, "a"),
    LaunchSeen(Seen(IMAGE, "a", False, 91.5, 4.0, End.READY)),
    LaunchSeen(Seen(IMAGE, "a", None, None, None, End.LOST, failed=True)),
    SessionsKnown(((b"/user/jo", 2, "https://a.example", "a", 1.5, 2.5, b"/v2/gh/o/r/HEAD"),)),
]
REPORT = Report(
    "a",
    False,
    ("Docker registry",),
    {"total": 3},
    300,
    {"Docker registry": False},
    ("it is down",),
    "/binder/",
    2.0,
)


def test_hints_are_read_as_they_were_written() -> None:
    assert list(unpack(pack(HINTS, NOW), NOW)) == HINTS


@pytest.mark.parametrize(
    "text", [r'"\ud800"', "NaN", "1e999", "-Infinity", "[" * 100_000, '"' + "x" * (5 << 20) + '"', '"\xff"']
)
def test_what_no_file_or_answer_could_take_is_not_read(text: str) -> None:
    content = text.encode("latin-1")
    report = pack_report(REPORT).replace(b'"Docker registry"', content, 1)
    assert unpack_report(report) is None
    assert list(unpack(b'[["moved","","a"],["moved","",%b]]' % content, NOW)) == []
    said = b'{"override": {}, "who": %b, "edge": "", "at": 1}' % content
    with pytest.raises(ValueError, match=r"edge writes|KiB"):
        read_override("a", said)


def test_clocks_of_edges_may_be_minutes_apart() -> None:
    """What happened 10 s ago there did so here, whatever time it is."""
    (found,) = unpack(pack([SessionsKnown(((b"/user/jo", 2, "u", "a", 990.0, 995.0, b""),))], 1000.0), 1600.0)
    assert isinstance(found, SessionsKnown)
    assert found.records[0][4:6] == (1590.0, 1595.0)
    (ahead,) = unpack(pack([SessionsKnown(((b"/user/jo", 2, "u", "a", 2e9, 2e9, b""),))], 1000.0), 1000.0)
    assert isinstance(ahead, SessionsKnown)
    assert ahead.records[0][4:6] == (1000.0, 1000.0)


def test_only_some_facts_are_for_other_edges() -> None:
    assert all(map(is_hint, HINTS))
    assert not is_hint(LaunchesInFlight({}))
    assert not is_hint(BreakerInDoubt("a"))


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        ["other", 1],
        ["moved"],
        ["moved", "!!!", "a"],
        ["moved", "AAAA", 3],
        ["moved", "AAAA", "a" * 5000],
        ["opened", "a", "AAAA"],
        ["opened", "a", [1]],
        ["seen", "AAAA", "a", 1, None, None, "ready", False],
        ["seen", "AAAA", "a", None, -1, None, "ready", False],
        ["seen", "AAAA", "a", None, True, None, "ready", False],
        ["seen", "AAAA", "a", None, 1e300, None, "ready", False],
        ["seen", "AAAA", "a", None, None, None, "well", False],
        ["seen", "AAAA", "a", None, None, None, "ready", "no"],
        ["sessions", [["AAAA", 9, "u", "a", 0, 0, "AAAA"]]],
        ["sessions", [["AAAA", 1, "u", "a", 0]]],
        ["sessions", {}],
        [["moved"], 1],
    ],
)
def test_what_is_no_hint_is_passed_over(item: object) -> None:
    content = json.dumps([item, ["build", "AAAA", "a"]]).encode()
    assert list(unpack(content, NOW)) == [BuildBegun(b"\0\0\0", "a")]


@pytest.mark.parametrize("content", [b"", b"{}", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_message_has_no_hints(content: bytes) -> None:
    assert list(unpack(content, NOW)) == []


def test_no_more_than_so_many() -> None:
    assert len(list(unpack(pack([HINTS[1]] * 1500, NOW), NOW))) == 1000
    (found,) = unpack(pack([BreakerOpened("a", frozenset(bytes([n]) for n in range(100)))], NOW), NOW)
    assert isinstance(found, BreakerOpened)
    assert len(found.witnesses) == 16


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_nothing_makes_reading_fail(value: object) -> None:
    content = json.dumps(value).encode()
    assert list(unpack(content, NOW)) == [] or isinstance(value, list)
    assert unpack_report(content) is None


@pytest.mark.parametrize("report", [REPORT, Report("a", True)])
def test_report_is_read_as_it_was_written(report: Report) -> None:
    assert unpack_report(pack_report(report)) == report


def test_report_of_an_edge_that_does_not_tell_how_fast_a_member_is() -> None:
    said = json.loads(pack_report(REPORT))
    del said["within"]
    assert unpack_report(json.dumps(said).encode()) == replace(REPORT, within=None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1),
        ("reasons", "x"),
        ("pods", []),
        ("pods", {"a": -1}),
        ("pods", {"a": True}),
        ("quota", "x"),
        ("within", -1),
    ],
)
def test_what_is_no_report(key: str, value: object) -> None:
    said = json.loads(pack_report(REPORT)) | {key: value}
    assert unpack_report(json.dumps(said).encode()) is None
