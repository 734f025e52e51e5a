"""What differs between two configs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fedproxy.config.load import parse
from fedproxy.config.report import changed_secrets, compare, masked

BASE: dict[str, Any] = {"members": {"a": {"url": "https://a.example"}}}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = (masked(parse(yaml.safe_dump(BASE | each), {})) for each in (before, after))
    return [str(each) for each in compare(old, new)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, []),
        ({}, {"timeouts": {"connect": "5s"}}, []),
        ({}, {"timeouts": {"connect": "6s"}}, ["timeouts.connect: 5.0 -> 6.0"]),
        ({}, {"public_url": "https://x"}, ['public_url: none -> "https://x"']),
        ({"public_url": "https://x"}, {}, ['public_url: "https://x" -> none']),
        (
            {},
            {"members": {"a": {"url": "https://b.example"}, "b": {"url": "https://b.example"}}},
            ['members.a.url: "https://a.example" -> "https://b.example"', "members.b: added"],
        ),
        ({"members": {"b": {"url": "https://a.example"}}}, {}, ["members.b: removed", "members.a: added"]),
        ({}, {"trusted_proxies": ["10.0.0.0/8"]}, ['trusted_proxies: [] -> ["10.0.0.0/8"]']),
        (
            {"listen": [{"address": "a:1"}]},
            {"listen": [{"address": "a:2"}, {"address": "a:3"}]},
            ['listen.0.address: "a:1" -> "a:2"', "listen.1: added"],
        ),
        (
            {"routes": [{"path": "/x", "status": 404}, {"path": "/y", "status": 404}]},
            {"routes": [{"path": "/x", "status": 410}]},
            ["routes.0.status: 404 -> 410", "routes.1: removed"],
        ),
        ({"admin": {"token": "one"}}, {"admin": {"token": "two"}}, []),
        ({}, {"admin": {"token": "two"}}, ['admin.token: none -> "***"']),
    ],
)
def test_difference_is_a_line(before: dict[str, Any], after: dict[str, Any], expected: list[str]) -> None:
    assert differences(before, after) == expected


def test_other_secret_is_told_and_its_value_is_not() -> None:
    tokens = {"x": {"token": "1"}, "y": {"token": "2"}, "z": {"token": "3"}}
    before = parse(yaml.safe_dump(BASE | {"admin": {"token": "a", "tokens": tokens}}), {})
    tokens = {"x": {"token": "1"}, "y": {"token": "5"}}
    more = {"admin": {"token": "b", "tokens": tokens}, "affinity": {"secret": "s"}}
    after = parse(yaml.safe_dump(BASE | more), {})
    assert [str(each) for each in changed_secrets(before, after)] == [
        'admin.token: "***" -> "***"',
        'admin.tokens.y.token: "***" -> "***"',
    ]
    assert [each.key for each in compare(masked(before), masked(after))] == [
        "admin.tokens.z",
        "affinity.secret",
    ]


def test_config_that_is_shown_is_valid_again() -> None:
    routes = [{"path": "/x", "status": 404}, {"path": "/y", "to": "a", "mode": "redirect"}]
    config = parse(yaml.safe_dump(BASE | {"routes": routes}), {})
    assert parse(yaml.safe_dump(masked(config)), {}) == config
