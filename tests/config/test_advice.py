"""What is valid and unwise: each warning by name, just before and just after it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.advice import NAMES, advise, certificate_ends
from fedproxy.config.check import path_of
from fedproxy.config.load import parse
from fedproxy.decide.route import Fixed, Route, Router
from fedproxy.errors import ConfigError

DAY = 86400.0
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
A, B = {"url": "https://a.example", "prime": True}, {"url": "https://b.example"}
RAMP = {"weight": "auto", "ramp": {"share": "60%"}}
LOOPBACK = [{"address": "127.0.0.1:8080"}]
GUESSED = "x" * 15
CHOSEN = "x" * 16


def advice(data: dict[str, Any], env: Mapping[str, str] | None = None) -> list[str]:
    """Each warning as `name key.path`."""
    text = yaml.safe_dump({"members": {"a": A, "b": B}, **data})
    return [f"{each.name} {path_of(each.where)}" for each in advise(parse(text, {}), env or {})]


def test_defaults_are_wise() -> None:
    assert advice({}) == []
    assert advice({"members": {"a": {"url": "https://a.example"}}}) == []
    new = {"url": "https://a.example", "weight": "auto", "ramp": {"share": 0.5}}
    assert advice({"members": {"a": new}}) == []


def with_members(a: dict[str, Any] | None = None, b: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"members": {"a": A | (a or {}), "b": B | (b or {})}}


UNWISE = [
    ("admin-reachable admin.address", {"admin": {"address": "0.0.0.0:8081"}}),
    ("admin-reachable admin.address", {"admin": {"address": "[::]:8081"}}),
    ("admin-reachable admin.address", {"admin": {"address": "10.0.0.1:8081"}}),
    ("admin-reachable admin.address", {"admin": {"address": "edge.example:8081"}}),
    ("secret-short admin.token", {"admin": {"token": GUESSED}}),
    ("secret-short admin.tokens.a.token", {"admin": {"tokens": {"a": {"token": GUESSED}}}}),
    ("secret-short affinity.secret", {"affinity": {"secret": GUESSED}}),
    ("no-limit limits.connections_per_address", {"limits": {"connections_per_address": 0}}),
    ("no-limit limits.uploads_per_address", {"limits": {"uploads_per_address": 0}}),
    (
        "proxy-protocol-open listen.0.proxy_protocol",
        {"listen": [{"address": "0.0.0.0:8080", "proxy_protocol": True}]},
    ),
    ("response-head-short timeouts.response_head", {"timeouts": {"response_head": "24s"}}),
    ("response-idle-short timeouts.response_idle", {"timeouts": {"response_idle": "29s"}}),
    ("probes-overlap health.timeout", {"health": {"interval": 4}}),
    ("retries-multiply retry.budget", {"retry": {"budget": 1.1}}),
    ("trust-everybody trusted_proxies", {"trusted_proxies": ["0.0.0.0/0"]}),
    ("trust-everybody trusted_proxies", {"trusted_proxies": ["10.0.0.0/8", "::/0"]}),
    ("trust-everybody trusted_proxies", {"trusted_proxies": ["128.0.0.0/1", "0.0.0.0/2", "64.0.0.0/2"]}),
    ("ban-everybody ban.networks", {"ban": {"networks": ["0.0.0.0/0"]}}),
    ("ban-everybody ban.repositories.1", {"ban": {"repositories": ["^gh/a", "a*"]}}),
    ("ban-everybody ban.user_agents.0", {"ban": {"user_agents": ["bot|"]}}),
    ("no-visitors members", with_members({"weight": 0}, {"weight": 0})),
    ("no-visitors members", with_members({"weight": 0}, {"active": False})),
    ("weight-scale members.b.weight", with_members({"weight": "auto"})),
    ("weight-scale members.a.weight", with_members({"weight": 0.5}, {"weight": "auto"})),
    ("ramp-balancer members.b.ramp", {"balancer": "least-requests"} | with_members(b=RAMP)),
    (
        "ramp-shares members.c.ramp.share",
        with_members({"weight": 1})
        | {"members": {"a": A, "b": B | RAMP, "c": {**A, **RAMP, "url": "https://c", "prime": False}}},
    ),
    ("no-prime members", with_members({"prime": False})),
    ("source-plain sources.dns.0", {"sources": {"dns": "_http._tcp.b.example", "scheme": "http"}}),
    ("eject-all breaker.max_ejected", {"breaker": {"max_ejected": 1}}),
    ("same-url members.b.url", with_members(b={"url": "HTTPS://a.example:443/"})),
    ("loop members.b.url", {"public_url": "https://b.example"}),
    ("host-of-one members.b.hosts.1", {"public_url": "https://x"} | with_members(b={"hosts": ["y", "X."]})),
    ("member-plain members.b.url", with_members(b={"url": "http://b.example"})),
    ("member-plain members.b.url", with_members(b={"url": "http://192.0.1.1:8000"})),
    ("route-unreachable routes.1.path", {"routes": [{"path": "/*"}, {"path": "/a", "status": 404}]}),
    ("route-unreachable routes.2.path", {"routes": [{"path": p} for p in ("/a*", "/b*", "/a*")]}),
    ("route-unreachable routes.1.path", {"routes": [{"path": p} for p in ("/a*c", "/ab*c")]}),
    ("route-unreachable routes.0.path", {"routes": [{"path": "/federation/x"}]}),
]
WISE: list[dict[str, Any]] = [
    {"admin": {"address": "127.0.0.9:8081"}},
    {"admin": {"address": "[::1]:8081"}},
    {"admin": {"address": "localhost:8081"}},
    {"admin": {"address": "unix:/run/admin.sock"}},
    {"admin": {"address": "0.0.0.0:8081", "read": "token", "token": CHOSEN}},
    {"admin": {"token": CHOSEN}, "affinity": {"secret": CHOSEN}},
    {"listen": LOOPBACK, "limits": {"connections_per_address": 0, "uploads_per_address": 0}},
    {"listen": [{"address": "127.0.0.1:8080", "proxy_protocol": True}]},
    {"listen": [{"address": "unix:/run/e.sock", "proxy_protocol": True}]},
    {"listen": [{"address": "0.0.0.0:80", "proxy_protocol": True}], "trusted_proxies": ["10.0.0.1"]},
    {"timeouts": {"response_head": "25s", "response_idle": "30s"}},
    {"health": {"interval": 5}},
    {"retry": {"budget": 1}},
    {"trusted_proxies": ["128.0.0.0/1", "0.0.0.0/2", "64.0.0.0/3"]},
    {"ban": {"networks": ["10.0.0.0/8"], "repositories": ["^gh/a"], "user_agents": ["."]}},
    with_members({"weight": 0}),
    with_members({"weight": 0}, {"weight": "auto"}),
    with_members({"weight": 50}, {"weight": "auto", "reserve": 60}),
    with_members({"weight": "auto"}, {"active": False}),
    with_members({"weight": 1}, b=RAMP),
    {"balancer": "random"} | with_members({"weight": 0}, b=RAMP),
    {"health": {"versions": False}} | with_members({"prime": False}),
    {"members": {"a": A}, "breaker": {"max_ejected": 1}},
    with_members(b={"url": "https://a.example", "active": False}),
    with_members(b={"url": "https://a.example:8443"}),
    {"public_url": "https://x:8443"} | with_members(b={"hosts": ["y"]}),
    with_members(b={"url": "http://binder"}),
    with_members(b={"url": "http://binder.prod.svc.cluster.local"}),
    with_members(b={"url": "http://binder.prod.svc"}),
    with_members(b={"url": "http://10.1.2.3:8000"}),
    with_members(b={"url": "unix:/run/b.sock"}),
    {"routes": [{"path": p} for p in ("/a", "/a*", "/b/*", "/*")]},
]


@pytest.mark.parametrize(("expected", "data"), UNWISE)
def test_what_is_unwise_has_a_name_and_a_place(expected: str, data: dict[str, Any]) -> None:
    assert advice(data) == [expected]


@pytest.mark.parametrize("data", WISE)
def test_what_is_wise_is_not_warned_about(data: dict[str, Any]) -> None:
    assert advice(data) == []


def test_time_to_drain_is_compared_with_what_a_pod_has() -> None:
    assert advice({}, KUBERNETES) == ["drain-cut-off timeouts.drain"]
    assert advice({"timeouts": {"drain": "30s"}}, KUBERNETES) == []
    assert advice({"timeouts": {"drain": "31s"}}, KUBERNETES) == ["drain-cut-off timeouts.drain"]


@pytest.mark.parametrize(
    ("lasts", "left", "text"),
    [
        (90, 14.1, None),
        (90, 13.9, "expires on 2027-01-29 05:36 UTC, expected it to be renewed by now"),
        (90, 1.2, "expires on 2027-01-16 12:48 UTC, expected it to be renewed by now"),
        (90, 0.5, "expires on 2027-01-15 20:00 UTC, expected it to be renewed by now"),
        (6, 2.1, None),
        (6, 1.9, "expires on 2027-01-17 05:36 UTC, expected it to be renewed by now"),
        (90, 0, "expired on 2027-01-15 08:00 UTC, expected one that is valid"),
        (90, -3, "expired on 2027-01-12 08:00 UTC, expected one that is valid"),
    ],
)
def test_certificate_is_to_be_renewed_in_time(lasts: float, left: float, text: str | None) -> None:
    now = 1_800_000_000.0
    ends = now + left * DAY
    found = [each.text for each in certificate_ends(("x",), ends - lasts * DAY, ends, now)]
    assert found == ([text] if text else [])


def test_every_name_is_plain_and_can_be_silenced() -> None:
    assert all(name.replace("-", "").isalpha() and name.islower() for name in NAMES)
    assert parse(yaml.safe_dump({"silence": [*NAMES], "members": {"a": A}}), {}).silence == tuple(NAMES)


@pytest.mark.parametrize("name", ["", "no-such", "NO-LIMIT", "no-limit ", 5])
def test_silence_of_an_unknown_warning_is_a_fault(name: object) -> None:
    with pytest.raises(ConfigError, match=r"silence\.0: .*, expected the name of a warning"):
        parse(yaml.safe_dump({"silence": [name], "members": {"a": A}}), {})


PATHS = st.text("ab/*", max_size=6).map(lambda rest: f"/{rest}")


@given(PATHS, PATHS, st.text("ab/", max_size=8))
def test_route_that_is_called_unreachable_is(earlier: str, later: str, rest: str) -> None:
    config = parse(yaml.safe_dump({"routes": [{"path": earlier}, {"path": later}], "members": {"a": A}}), {})
    path = f"/{rest}".encode()
    if advise(config, {}) and Router([Route(later, Fixed(410))]).match(path) == Fixed(410):
        assert Router([Route(earlier, Fixed(404))]).match(path) == Fixed(404)
