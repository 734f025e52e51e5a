"""federation-redirect's config.json: the same behaviour, as our config and as our file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.config.load import convert, parse
from fedproxy.errors import ConfigError

PRODUCTION: dict[str, Any] = {
    "enabled": True,
    "image": {"name": "x", "tag": None},
    "check": {"period": 15, "jitter": 0.1, "retries": 5, "timeout": 5, "failed_period": 90},
    "load_balancer": "random",
    "pod_headroom": 12,
    "host_cookie_age_hours": 6,
    "hosts": {
        "gke": None,
        "2i2c": {
            "prime": True,
            "url": "https://2i2c.mybinder.org/",
            "weight": 50,
            "health": "https://2i2c.mybinder.org/health",
            "versions": "https://2i2c.mybinder.org/versions",
        },
        "gesis": {"url": "https://gesis.mybinder.org", "weight": 2.5, "health": "https://other.org/health"},
        "ovh": {"url": "https://ovh.mybinder.org", "weight": 0, "versions": "/v"},
    },
}


def faults(data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps(data), {})
    return [str(fault) for fault in caught.value.faults]


def minimal(**more: object) -> dict[str, object]:
    return {"hosts": {"a": {"url": "https://a", "prime": True}}, **more}


def test_old_config_behaves_as_before() -> None:
    config = parse(json.dumps(PRODUCTION), {})
    assert (config.balancer, config.affinity.max_age, config.affinity.key) == (
        "random",
        6 * 3600,
        "repository",
    )
    health = config.health
    assert (health.interval, health.jitter, health.timeout, health.fall) == (15, 0.1, 5, 5)
    assert (health.unhealthy_interval, health.pod_headroom, health.slow_start) == (90, 12, 0)
    assert [(route.path, route.redirect, route.status, route.to, route.mode) for route in config.routes] == [
        ("/badge_logo.svg", "https://static.mybinder.org/badge_logo.svg", 301, None, "proxy"),
        ("/badge.svg", "https://static.mybinder.org/badge.svg", 301, None, "proxy"),
        ("/assets/images/badge.svg", "https://static.mybinder.org/badge.svg", 301, None, "proxy"),
        ("/metrics", None, None, None, "proxy"),
        ("/build/*", None, None, "members", "redirect"),
        ("/*", None, None, "prime", "proxy"),
    ]


def test_metrics_are_on_the_public_port_as_before() -> None:
    config = parse(json.dumps(PRODUCTION), {})
    assert [route.path for route in config.routes if route.page == "metrics"] == ["/metrics"]
    assert "page: metrics" in convert(json.dumps(PRODUCTION)).text


def test_null_hosts_and_hosts_without_weight_are_absent() -> None:
    members = parse(json.dumps(PRODUCTION), {}).members
    assert {name: (m.url, m.weight, m.prime, m.health, m.versions) for name, m in members.items()} == {
        "2i2c": ("https://2i2c.mybinder.org", 50, True, "/health", "/versions"),
        "gesis": ("https://gesis.mybinder.org", 2.5, False, "https://other.org/health", "/versions"),
    }


def test_prime_host_without_weight_still_serves_what_is_not_a_launch() -> None:
    hosts = {"a": {"url": "https://a", "weight": 0, "prime": True}, "b": {"url": "https://b", "weight": 1}}
    config = parse(json.dumps({"hosts": hosts}), {})
    assert (config.prime, config.members["a"].weight) == ("a", 0)


def test_first_of_several_prime_hosts_is_prime() -> None:
    hosts = {name: {"url": f"https://{name}", "weight": 1, "prime": True} for name in "abc"}
    assert parse(json.dumps({"hosts": hosts}), {}).prime == "a"


def test_converted_file_reads_as_the_same_config_and_says_it_shortly() -> None:
    text = convert(json.dumps(PRODUCTION)).text
    assert parse(text, {}) == parse(json.dumps(PRODUCTION), {})
    assert text.startswith(
        "affinity: {key: repository, max_age: 6h}\n\nbalancer: random\n\nload_bound: 1000\n"
    )


def test_admin_listener_and_trusted_proxies_may_stand_beside_the_old_keys() -> None:
    old = minimal(admin={"address": "0.0.0.0:8081", "token": "$x"}, trusted_proxies=["10.0.0.0/8"])
    config = parse(json.dumps(old), {})
    assert (str(config.admin.address), *map(str, config.trusted_proxies)) == ("0.0.0.0:8081", "10.0.0.0/8")
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "$x"
    assert parse(convert(json.dumps(old)).text, {}) == config
    assert parse(json.dumps(minimal(admin=None, trusted_proxies=None)), {}) == parse(
        json.dumps(minimal()), {}
    )


def test_dollar_in_an_old_config_is_a_dollar() -> None:
    old = json.dumps({"hosts": {"a": {"url": "https://a", "prime": True, "health": "/$x"}}})
    assert parse(convert(old).text, {}).members["a"].health == "/$x"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True),
        st.fixed_dictionaries(
            {"url": st.sampled_from(["https://a", "http://b:8000/"]), "weight": st.floats(0, 1e6)},
            optional={"health": st.sampled_from(["/h", "https://a/health"]), "prime": st.booleans()},
        ),
    ),
    st.sampled_from(["random", "rendezvous"]),
    st.floats(0.001, 1e5),
)
def test_any_old_config_converts_to_an_equal_one(hosts: dict[str, Any], balancer: str, period: float) -> None:
    hosts["p"] = {"url": "https://p", "prime": True}
    old = json.dumps({"hosts": hosts, "load_balancer": balancer, "check": {"period": period}})
    assert parse(convert(old).text, {}) == parse(old, {})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"hosts": {}}, ["hosts: has no host with `prime`, expected one"]),
        ({"hosts": {"a": None}}, ["hosts: has no host with `prime`, expected one"]),
        ({"hosts": []}, ["hosts: is a list, expected a mapping"]),
        ({"hosts": None}, ["hosts: is missing, expected a mapping"]),
        (
            {"hosts": {"a": {"weight": 1}}},
            ["hosts.a.url: is missing, expected an http:// or https:// URL with no path, or unix:/PATH"],
        ),
        (
            {"hosts": {"a b": {"url": "x", "weight": -1}}},
            [
                "hosts.a b: cannot be a name, expected a member's name of up to 64 letters, digits and "
                "- . _ ~ + @ :, a letter or digit first",
                "hosts.a b.url: is 'x', expected an http:// or https:// URL with no path, or unix:/PATH",
                "hosts.a b.weight: is -1, expected a number of at least 0",
            ],
        ),
        (minimal(load_balancer="x"), ["load_balancer: is 'x', expected rendezvous or random"]),
        (
            minimal(host_cookie_age_hours=-1),
            ["host_cookie_age_hours: is -1, expected a number of hours above 0"],
        ),
        (
            minimal(check={"period": 0}),
            ["check.period: is 0, expected a duration above 0, such as 250ms, 15s or 4h"],
        ),
        (minimal(check=5), ["check: is 5, expected a mapping"]),
        (
            minimal(admin={"adress": "a:1"}, trusted_proxies=["x"], load_balancer=5),
            [
                "admin.adress: is not a known key, did you mean 'address'?",
                "trusted_proxies.0: is 'x', expected a network such as 192.0.2.0/24 or 2001:db8::/32, "
                "without host bits set",
                "load_balancer: is 5, expected rendezvous or random",
            ],
        ),
        (
            minimal(timeouts={}),
            ["timeouts: is not a key of the old format, expected `members` instead of `hosts`"],
        ),
    ],
)
def test_bad_old_config_says_what_is_wrong_under_its_own_keys(data: object, expected: list[str]) -> None:
    assert faults(data) == expected


def test_only_an_old_config_is_converted() -> None:
    for text in "members: {a: {url: https://a}}", "[]", "x: [":
        with pytest.raises(ConfigError, match="expected"):
            convert(text)
