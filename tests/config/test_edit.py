"""Changes of a config's text: the rest of it stays as it was written, or nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.edit import CannotEdit, add_member, set_key

NEW = {"url": "https://new.example", "weight": "auto", "ramp": {"share": "20%", "over": "7d"}}
WRITTEN = """\
# The federation.
members:
    a:                      # the first
        url: http://a.example
        # its hosts
        hosts:
            - one
            - two

    # past ones
    b: {url: http://b.example}
log: json   # for programs
"""


def test_member_is_added_after_the_others_with_their_indentation() -> None:
    head, tail = WRITTEN.split("log: json")
    new = """\
    new:
      url: https://new.example
      weight: auto
      ramp: {share: 20%, over: 7d}
"""
    assert add_member(WRITTEN, "new", NEW) == f"{head}{new}log: json{tail}"


def test_key_is_added_at_the_end_of_the_member_or_replaced() -> None:
    past = set_key(WRITTEN, "a", "active", False)
    assert past == WRITTEN.replace("- two\n", "- two\n        active: false\n")
    assert set_key(past, "a", "active", True) == past.replace("active: false", "active: true")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "members:\n  new: {url: u}\n"),
        ("log: json", "log: json\nmembers:\n  new: {url: u}\n"),
        ("members:\n", "members:\n  new: {url: u}\n"),
        ("members: {}\nlog: json\n", "members:\n  new: {url: u}\nlog: json\n"),
        ("members: ~ # none\nlog: json\n", "members:  # none\n  new: {url: u}\nlog: json\n"),
        ("members:  # them\nlog: json\n", "members:  # them\n  new: {url: u}\nlog: json\n"),
        ("members: {} # none\r\nlog: json", "members:  # none\r\n  new: {url: u}\r\nlog: json"),
        ("members:\r\n  a: {url: x}\r\n", "members:\r\n  a: {url: x}\r\n  new: {url: u}\r\n"),
        ("members:\n\nlog: json\n", "members:\n  new: {url: u}\n\nlog: json\n"),
        ("members:\n  a: {url: x}", "members:\n  a: {url: x}\n  new: {url: u}\n"),
        ("members:\n  a:\n    url: x # y", "members:\n  a:\n    url: x # y\n  new: {url: u}\n"),
    ],
)
def test_member_is_added_to_what_has_none_or_no_last_line_end(before: str, after: str) -> None:
    assert add_member(before, "new", {"url": "u"}) == after


def test_what_looks_like_a_variable_is_escaped() -> None:
    after = add_member("", "new", {"run_by": {"name": "A ${HOME} B"}})
    assert after == "members:\n  new:\n    run_by: {name: 'A $${HOME} B'}\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("members: {a: {url: x}}", "members is written in braces or in another place"),
        ('{"members": {}}', "it is written in braces"),
        ("members: [1]", "`members` is not a mapping"),
        ("members: 7", "`members` is not a mapping"),
        ("- a", "it is not a mapping"),
        ("a: [", "it is not valid YAML"),
        ("members:\n  a: {}\nmembers:\n  b: {}\n", "^members is given twice, on line 1 and line 3$"),
        ("members: {\n# none\n}", "`members` has a comment in its braces"),
        ("members:\n  new: {url: x}", "new is already in this file"),
        ("all: &all\n  a: {url: x}\nmembers: *all\n", "members is written in braces or in another place"),
    ],
)
def test_member_that_cannot_be_added_is_a_sentence(text: str, fault: str) -> None:
    with pytest.raises(CannotEdit, match=fault):
        add_member(text, "new", NEW)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("log: json", "a is not in this file; if it is in a file that this one includes"),
        ("members:\n  a: {url: x}", "a is written in braces or in another place"),
        ("members:\n  b: &b\n    url: x\n  a: *b\n", "the entry of a is not a mapping of its own"),
        ("members:\n  a: 7\n", "the entry of a is not a mapping of its own"),
        ("members:\n  a:\n    active: {b: c}\n", "`active` of a is not a plain value"),
        ("members:\n  a: &a\n    url: x\n  b: *a\n", "would also change something else"),
    ],
)
def test_key_that_cannot_be_set_is_a_sentence(text: str, fault: str) -> None:
    with pytest.raises(CannotEdit, match=fault):
        set_key(text, "a", "active", False)


VALUES: Any = st.recursive(
    st.booleans()
    | st.integers(0, 99)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRIES = st.dictionaries(st.text("xyz", min_size=1, max_size=5), VALUES, min_size=1, max_size=4)


@given(
    st.dictionaries(st.text("abcd", min_size=1, max_size=4), ENTRIES, max_size=4),
    st.dictionaries(st.sampled_from(["log", "workers", "zones"]), VALUES, max_size=3),
    st.booleans(),
    st.sampled_from([None, True]),
    st.sampled_from([2, 4]),
)
def test_whatever_a_file_has_only_the_member_changes(
    members: dict[str, Any], rest: dict[str, Any], before: bool, flow: bool | None, indent: int
) -> None:
    data = {"members": members, **rest} if before else {**rest, "members": members}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, indent=indent, allow_unicode=True)
    changes: list[tuple[Callable[[], str], dict[str, Any]]] = [
        (lambda: add_member(text, "new", NEW), {**members, "new": NEW}),
        (
            lambda: set_key(text, "a", "active", False),
            {**members, "a": {**members.get("a", {}), "active": False}},
        ),
    ]
    for change, wanted in changes:
        try:
            after = change()
        except CannotEdit as error:
            assert str(error)
            continue
        assert yaml.safe_load(after) == {**data, "members": wanted}
