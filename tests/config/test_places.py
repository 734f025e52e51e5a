"""Where a fault is in the file, and the line that is shown with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from fedproxy.config.document import read
from fedproxy.config.load import examine, parse
from fedproxy.config.places import Finding
from fedproxy.errors import ConfigError, Position

MINIMAL = "members: {gesis: {url: https://gesis.mybinder.org}}\n"


def placed(text: str, **env: str) -> list[str]:
    """Each fault as `LINE:COLUMN key.path`."""
    with pytest.raises(ConfigError) as caught:
        parse(text, env)
    return [f"{fault.place} {fault.path}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A value is where it begins, whatever its style; a key that is too much is where it is.
        ("timeouts:\n  connect:   soon\n", ["2:14 timeouts.connect"]),
        ("timeouts:\r\n  connect: 'soon'\r\n", ["2:12 timeouts.connect"]),
        ("timeouts:\n  connect: >-\n    soon\n", ["2:12 timeouts.connect"]),
        ("timeouts:\n  connect:\n    soon\n", ["3:5 timeouts.connect"]),
        ("timeouts: {drain: 1, connect: soon}\n", ["1:31 timeouts.connect"]),
        ("timeouts: {drain: 1,\n  connect: soon}\n", ["2:12 timeouts.connect"]),
        ("timeouts:\n  conect: 1s\n", ["2:3 timeouts.conect"]),
        ("timeouts:\n  drain: 1\n  drain: 2\n", ["3:3 timeouts.drain"]),
        ("'timeouts': {'ü\\u0041': 1}\n", ["1:14 timeouts.ü\\u0041"]),
        ("ban:\n  networks:\n    - 10.0.0.0/8\n    - nowhere\n", ["4:7 ban.networks.1"]),
        ("routes:\n  - path: /a\n    mode: none\n", ["3:11 routes.0.mode"]),
        ("routes:\n  - {path: /a, to: nobody}\n", ["2:20 routes.0.to"]),
        # What is missing is where it should be: at the key of its mapping, or at the item of its list.
        ("routes:\n  - path: /a\n  - to: gesis\n", ["3:5 routes.1.path"]),
        ("breaker:\n  open: 1h\n", ["1:1 breaker.open_max"]),
        ("breaker:\n  open: 1h\n  open_max: 1s\n", ["3:13 breaker.open_max"]),
        # What is empty.
        ("listen: []\n", ["1:9 listen"]),
        # Between sections, with a default on one side.
        ("admin:\n  address: 127.0.0.1:8080\n", ["2:12 admin.address"]),
        ("listen:\n  - address: '[::]:8081'\n", ["2:14 listen.0.address"]),
        ("workers: ${N}\n", ["1:10 workers"]),
        ("workers: ${NONE}\n", ["1:10 workers"]),
    ],
)
def test_fault_is_where_the_mistake_is(text: str, expected: list[str]) -> None:
    assert placed(text + MINIMAL, N="abc") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("members:\n  a: {url: x}\n", ["2:12 members.a.url"]),
        ("members:\n  a: {weight: 1}\n", ["2:3 members.a.url"]),
        ("members:\n  'a b': {url: https://a}\n", ["2:3 members.a b"]),
        ("# nothing\n\nworkers: 1\n", ["3:1 members"]),
        ('{\n\t"workers": 1,\n\t"members": {\n\t\t"a": {"url": 5}}\n}\n', ["4:16 members.a.url"]),
        ('{"hosts": {"a": {"prime": true, "url": "x"}}}', ["1:40 hosts.a.url"]),
        ('{"hosts": {"a": {\n "prime": true}}}', ["1:12 hosts.a.url"]),
        ('{"timeouts": {},\n"hosts": {"a": {"prime": true, "url": "http://a"}}}', ["1:2 timeouts"]),
        # The rules between members are those of the new format, and the keys are those of the file.
        (
            '{"admin": {"address": "0.0.0.0:8080"},\n"hosts": {"a": {"prime": true, "url": "http://a"}}}',
            ["1:23 admin.address"],
        ),
    ],
)
def test_fault_of_members_is_where_the_mistake_is(text: str, expected: list[str]) -> None:
    assert placed(text) == expected


def test_what_an_alias_brings_in_is_at_the_anchor_and_at_each_alias() -> None:
    text = """\
members:
  a: &a
    url: https://a
    hosts: [one]
    weight: -1
  b: *a
  c:
    <<: *a
    hosts: [three]
  d:
    <<: [{url: ftp://d}, *a]
    weight: 1
    hosts: [five]
"""
    assert placed(text) == [
        "5:13 members.a.weight",
        "6:6 members.b.weight",
        "8:9 members.c.weight",
        "11:16 members.d.url",
    ]
    assert placed(text.replace("-1", "1").replace("ftp:", "https:")) == ["6:6 members.b.hosts.0"]


def test_alias_in_a_list_and_of_a_scalar_has_a_place() -> None:
    text = f"{MINIMAL}ban:\n  networks: &bad [x, &y y]\n  user_agents:\n    - ok\n    - *bad\n    - *y\n"
    assert placed(text) == ["3:19 ban.networks.0", "3:22 ban.networks.1", "6:7 ban.user_agents.1"]


def test_whole_file_has_no_place() -> None:
    for text in "", "[]", "x" * (1 << 20) + "y":
        assert placed(text) == ["None "]


def shown(text: str, line: int, column: int) -> tuple[str, int] | None:
    found = examine(text, {}).document.places.shown(Position(line, column))
    return None if found is None else (found.text, cell_len(found.before))


@pytest.mark.parametrize(
    ("text", "column", "line", "caret"),
    [
        ("a: b", 4, "a: b", 3),
        ("  a: b\r\nc: d", 6, "  a: b", 5),
        ("a:\u00a0\u0007b", 1, "a: �b", 0),
        ("'日本é\u0301': b", 9, "'日本é\u0301': b", 9),
        ("url: http://u:pw@h/", 6, "url: http://u:***@h/", 5),
        ("a: " + "b" * 200, 4, "a: " + "b" * 94 + "...", 3),
        ("a: '" + "b" * 200 + "' #", 205, "..." + "b" * 57 + "' #", 60),
    ],
)
def test_line_is_shown_as_it_can_be_read(text: str, column: int, line: str, caret: int) -> None:
    assert shown(text, 1, column) == (line, caret)


@pytest.mark.parametrize(
    "text",
    [
        "admin: {token: hunter2, adress: x}",
        "admin: {adress: x, token: 'hunter2, and, hunter2'}",
        "admin: {tokn: hunter2}",
        "admin: {token: [hunter2, {x: hunter2}]}",
        "admin: {token: a, token: hunter2}",
        'affinity: {"sercet": "hunter2"}',
        "affinity: {secret: &s hunter2, cookie: *s}",
        "{admin: {password: >\n hunter2\n hunter2}}",
        "admin: {<<: {token: hunter2}}",
        "admin: {x_token_of_mine: hunter2}",
        # Not understood, so nothing of it is shown.
        "admin: {token: hunter2",
        "token:\n hunter2: hunter2: x",
        "token: \x07 hunter2",
    ],
)
def test_line_is_shown_without_secrets(text: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        for column in range(1, len(line) + 1):
            found = shown(text, number, column)
            assert "hunter2" not in (found[0] if found else "")


@settings(deadline=None)
@given(
    st.recursive(st.integers(), lambda inner: st.dictionaries(st.text("abé ", min_size=1), inner, min_size=1))
)
def test_every_value_is_found_where_it_is_written(data: Any) -> None:
    def leaves(value: Any, where: tuple[str, ...]) -> list[tuple[tuple[str, ...], int]]:
        if isinstance(value, dict):
            return [leaf for key, inner in value.items() for leaf in leaves(inner, (*where, key))]
        return [(where, value)]

    for text in (
        yaml.safe_dump({"x": data}, allow_unicode=True, width=10**6),
        yaml.safe_dump({"x": data}, allow_unicode=True, default_flow_style=True, width=20),
        json.dumps({"x": data}, indent="\t"),
    ):
        places = read(text).places
        for where, value in leaves({"x": data}, ()):
            place = places.place(places.find(Finding(where, "")))
            assert place is not None
            assert text.splitlines()[place.line - 1][place.column - 1 :].startswith(str(value))


@settings(deadline=None)
@given(st.text("ab:-[]{}&*<!|>'\"# \n\r\t\\\x85\u2028é"), st.integers(1), st.integers(1))
def test_any_place_of_any_text_has_a_line_to_show(text: str, line: int, column: int) -> None:
    document = read(text)
    for finding in document.findings:
        place = document.places.place(document.places.find(finding))
        if place is not None:
            assert 1 <= place.line <= text.count("\n") + text.count("\r") + 1
            found = document.places.shown(place)
            assert found is None or (len(found.before) <= 60 and "\n" not in found.text)
