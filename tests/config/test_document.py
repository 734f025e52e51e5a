"""Text -> data: what YAML allows and a config does not, and environment variables."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.config.check import faults_of
from fedproxy.config.document import Document, escape, interpolate, read
from fedproxy.config.places import Finding


def messages(text: str) -> list[str]:
    return [f"{'.'.join(map(str, finding.where))}|{finding.text}" for finding in read(text).findings]


def placed(text: str) -> list[str]:
    """The messages, each behind its line and column."""
    document = read(text)
    return [f"{fault.place or ''}|{fault.message}" for fault in faults_of(document, document.findings)]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (
            "a: [1, -2, 1.5, true, off, ~, x, '1', 1:30, 2026-01-01, 010]",
            [1, -2, 1.5, True, False, None, "x", "1"],
        ),
        ("a: [.inf, -.inf, 1.5e+3, 1e-05, 2E2]", [math.inf, -math.inf, 1500.0, 0.00001, 200.0]),
    ],
)
def test_plain_scalar_is_what_it_looks_like(text: str, data: list[object]) -> None:
    assert read(text).data["a"][: len(data)] == data


def test_time_and_date_and_octal_stay_text() -> None:
    assert read("[1:30, 2026-01-01, 010, 0x10, 1_000]").data == ["1:30", "2026-01-01", "010", "0x10", "1_000"]


def test_key_is_text_whatever_it_looks_like() -> None:
    assert read("{1: a, no: b, ~: c}").data == {"1": "a", "no": "b", "~": "c"}


def test_json_is_read_as_json() -> None:
    data = {"a": {"b": [1, 2.5, True, None, '\U0001f600 / \\ " é']}}
    assert read(json.dumps(data, indent="\t")).data == data
    assert read('{"a":\t1}').data == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "1:5|not valid YAML: mapping values are not allowed here"),
        ("a:\n  - [1", "2:7|not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: *b", "1:4|not valid YAML: found undefined alias 'b'"),
        ("a\n---\nb", "2:1|not valid YAML: but found another document"),
        ("a: \x07", "1:4|not valid YAML: character U+0007 is not allowed"),
        ("a: b\r\nc:\r\n\td: 1", "3:1|not valid YAML: a tab, expected spaces"),
        ("# \u2028\x85\r\x85a: b: c", "2:6|not valid YAML: mapping values are not allowed here"),
        ('a: "\\UFFFFFFFF"', "|not valid YAML: an escape in a string is not a character"),
        ('a: "\\U00110000"', "|not valid YAML: an escape in a string is not a character"),
        ("[" * 5000, "1:32|not valid YAML: more than 32 levels"),
        ("x" * (1 << 20) + "y", "|is larger than 1 MiB"),
    ],
)
def test_text_that_is_no_yaml_says_where(text: str, message: str) -> None:
    assert placed(text) == [message]
    assert read(text).data is None


def test_key_that_is_there_twice_is_named_with_its_lines() -> None:
    text = "a:\n  b: 1\n  c: 2\n  b: 3\n"
    assert messages(text) == ["a.b|is given twice, on line 2 and line 4"]
    assert placed(text) == ["4:3|is given twice, on line 2 and line 4"]


def test_tag_is_refused_with_its_line() -> None:
    assert placed("a: 1\nb: !!python/object:os.system {}\nc: !x y\nd: !!int abc") == [
        "2:4|has the tag !!python/object:os.system, expected a plain value",
        "3:4|has the tag !x, expected a plain value",
        "4:4|has the tag !!int, expected a plain value",
    ]


def test_key_that_is_no_text_is_refused() -> None:
    assert placed("a: {[1]: 2}") == ["1:5|has a key that is a list or a mapping, expected text"]


def test_alias_and_merge_take_over() -> None:
    document = read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 0}, *a]}\nd: *a")
    assert document.findings == []
    assert document.data["b"] == {"x": 1, "y": 3}
    assert document.data["c"] == {"x": 0, "y": 2}
    assert document.data["d"] == {"x": 1, "y": 2}


def test_merge_of_no_mapping_is_refused() -> None:
    assert messages("a: {<<: 5}") == ["a.<<|merges something that is not a mapping"]


def test_aliases_that_multiply_are_bounded() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert messages(bomb) == ["|holds more than 50000 values with its aliases expanded"]


def test_merges_that_multiply_are_bounded() -> None:
    bomb = "a0: &a0 {x: 1}\n"
    bomb += "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
    assert "|holds more than 50000 values with its aliases expanded" in messages(bomb)


def test_list_that_contains_itself_is_refused() -> None:
    assert "a|contains itself, or is nested too deeply" in messages("a: &a [*a]")


def test_mapping_that_merges_itself_is_refused() -> None:
    assert messages("a: &a {<<: *a}") != []


def test_variables_are_put_in() -> None:
    document = read("a: ${ONE}\nb: ['x${ONE}y${TWO}z', 5]\nc: $${ONE} $ONE $")
    interpolate(document, {"ONE": "1", "TWO": "${ONE}"})
    assert document.data == {"a": "1", "b": ["x1y${ONE}z", 5], "c": "${ONE} $ONE $"}
    assert document.findings == []


def test_variable_that_is_not_set_is_named_at_each_place() -> None:
    document = read("a: ${ONE}\nb: [x, '${ONE}${TWO}']")
    interpolate(document, {})
    assert document.findings == [
        Finding(("a",), "needs the environment variable ONE, which is not set"),
        Finding(("b", 1), "needs the environment variable ONE, which is not set"),
        Finding(("b", 1), "needs the environment variable TWO, which is not set"),
    ]


@pytest.mark.parametrize("text", ["${}", "${a b}", "${A", "${1A}", "${A:-b}"])
def test_variable_that_has_no_name_is_refused(text: str) -> None:
    document = Document(data={"a": text})
    interpolate(document, {"A": "x"})
    assert [finding.text.split(",")[1] for finding in document.findings] == [
        " expected ${NAME} with the name of an environment variable"
    ]


@settings(deadline=None)
@given(st.recursive(st.text("${}A"), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_escaped_text_comes_through_interpolation_unchanged(data: Any) -> None:
    document = Document(data=escape(data))
    interpolate(document, {"A": "x"})
    assert (document.data, document.findings) == (data, [])


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.text(st.characters(codec="utf-8", exclude_characters="eE"))
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1), SCALARS, min_size=1))
def test_what_yaml_writes_is_read_as_it_was_meant(data: dict[str, object]) -> None:
    assert read(yaml.safe_dump(data)).data == data
