"""A whole config: defaults, every kind of fault with its key path, and never another exception."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedproxy.config.address import Address
from fedproxy.config.check import MAX_FAULTS
from fedproxy.config.load import load, member_from, parse
from fedproxy.config.model import Config
from fedproxy.config.reference import render
from fedproxy.config.report import fault_lines, masked
from fedproxy.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = "members: {gesis: {url: https://gesis.mybinder.org}}\n"


def faults(text: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, env or {})
    return [str(fault) for fault in caught.value.faults]


def test_only_members_is_required_and_the_rest_has_defaults() -> None:
    config = parse(MINIMAL, {})
    assert config.listen[0].address == Address("0.0.0.0", 8080)
    assert config.admin.address == Address("127.0.0.1", 8081)
    assert (config.public_url, config.workers, config.access_log) == (None, "auto", "json")
    assert (config.timeouts.request_head, config.limits.request_head) == (10.0, 32768)
    assert (config.affinity.cookie, config.affinity.max_age) == ("fedproxy_member", 14400.0)
    assert (config.members["gesis"].weight, config.members["gesis"].address.port) == (1.0, 443)
    assert [(route.path, route.status) for route in config.routes] == [("/metrics", 404)]
    assert (config.prime, list(config.active_members)) == (None, ["gesis"])


@pytest.mark.parametrize(
    ("given", "weight", "start"),
    [("auto", "auto", 100.0), ("50", 50.0, 50.0), ("'${W}'", 2.5, 2.5), ("0", 0.0, 0.0)],
)
def test_weight_is_a_number_or_auto(given: str, weight: object, start: float) -> None:
    text = f"members: {{a: {{url: https://a.example, weight: {given}, reserve: 60}}}}"
    member = parse(text, {"W": "2.5"}).members["a"]
    assert (member.weight, member.start_weight, member.reserve) == (weight, start, 60)
    assert member.model_dump(mode="json")["weight"] == weight


def test_config_cannot_be_changed() -> None:
    config = parse(MINIMAL, {})
    with pytest.raises(ValidationError, match="frozen"):
        config.timeouts.connect = 1.0


def test_key_with_no_value_is_as_if_not_there() -> None:
    text = (
        "timeouts:\nworkers: ~\nmembers: {gesis: {url: https://gesis.mybinder.org, weight: , ca: }, gone: }\n"
    )
    assert parse(text, {}) == parse(MINIMAL, {})


def test_values_are_read_from_the_environment() -> None:
    text = MINIMAL + (
        "workers: ${N}\nadmin: {token: '${TOKEN}'}\n"
        "health: {versions: '${NO}', pod_headroom: '${N}', interval: '${N}s'}"
    )
    config = parse(text, {"N": "4", "TOKEN": "12345", "NO": "false"})
    assert (config.workers, config.health.versions, config.health.pod_headroom) == (4, False, 4)
    assert config.health.interval == 4.0
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == "12345"


def test_lists_are_read_whole() -> None:
    config = parse(
        MINIMAL + "trusted_proxies: [10.0.0.0/8, '::1']\nban: {user_agents: [bot], networks: [1.2.3.4]}", {}
    )
    assert config.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert [pattern.pattern for pattern in config.ban.user_agents] == ["bot"]


@pytest.mark.parametrize("off", ["off", "'off'", "false"])
def test_access_log_is_off_however_it_is_written(off: str) -> None:
    assert parse(f"{MINIMAL}access_log: {off}", {}).access_log == "off"


@pytest.mark.parametrize("off", ["off", "false", '"off"'])
def test_nothing_is_kept_however_off_is_written(off: str) -> None:
    assert parse(MINIMAL + f"admin: {{state: {off}}}", {}).admin.state == "off"


def test_state_is_kept_in_a_file_that_need_not_be_there(tmp_path: Path) -> None:
    file = tmp_path / "none" / "state.json"
    config = parse(MINIMAL + f"admin: {{state: '{file}'}}", {})
    assert config.admin.state == file
    assert masked(config)["admin"]["state"] == str(file)
    assert parse(MINIMAL, {}).admin.state is None


def test_contact_may_be_an_address_of_mail() -> None:
    text = "members: {a: {url: https://a, contact: 'mailto:binder@example.org'}}"
    assert parse(text, {}).members["a"].contact == "mailto:binder@example.org"


def test_route_that_says_nothing_goes_to_members() -> None:
    routes = parse(
        MINIMAL + "routes: [{path: /a}, {path: /b, mode: redirect}, {path: /c, redirect: /d}]", {}
    ).routes
    assert [(route.to, route.mode, route.redirect, route.status) for route in routes] == [
        ("members", "proxy", None, None),
        ("members", "redirect", None, None),
        (None, "proxy", "/d", 302),
    ]


NUMBERS = {
    "a duration above 0, such as 250ms, 15s or 4h": [
        *(
            "timeouts.connect",
            "timeouts.keepalive",
            "affinity.max_age",
            "breaker.window",
            "health.interval",
            "rate.per",
        ),
        *("breaker.open", "breaker.open_max", "health.timeout", "health.unhealthy_interval"),
    ],
    "a duration, such as 250ms, 15s or 4h": ["timeouts.drain", "health.slow_start", "launch.hold"],
    "a size of at least 1 byte, such as 64KiB or 2MiB": ["limits.request_head"],
    "a size such as 0, 64KiB or 2MiB": ["limits.request_body", "limits.replay"],
    "a whole number of at least 1": [
        *(
            "limits.connections",
            "limits.member_requests",
            "retry.attempts",
            "breaker.failures",
            "breaker.minimum",
        ),
        *(
            "breaker.trials",
            "health.rise",
            "health.fall",
            "members.gesis.max_launches",
            "members.gesis.max_requests",
        ),
    ],
    "a whole number of at least 0": [
        *("limits.idle_connections", "health.pod_headroom", "members.gesis.reserve", "rate.launches"),
    ],
    "a number of at least 0": ["retry.budget", "retry.floor"],
    "auto or a number of at least 0": ["members.gesis.weight"],
    "a number of at least 1": ["load_bound"],
    "a number above 0 and at most 1": ["breaker.ratio", "breaker.max_ejected"],
    "a number from 0 to 1": ["health.jitter"],
    "true or false": ["breaker.count_500", "health.versions", "launch.failover", "members.gesis.prime"],
    "auto or a whole number from 1 to 1024": ["workers"],
    "json, combined or off": ["access_log"],
    "rendezvous, random, least-requests or expected-wait": ["balancer"],
    "repository, path or client": ["affinity.key"],
    "an http:// or https:// URL with no path": ["public_url"],
    "a cookie's name: letters, digits and - _ . (RFC 6265)": ["affinity.cookie"],
    "an http:// or https:// URL with no path, or unix:/PATH": ["members.gesis.url"],
    "a path such as /health, or an http:// or https:// URL": [
        "members.gesis.health",
        "members.gesis.versions",
    ],
    "an http://, https:// or mailto: URL": ["members.gesis.contact"],
    "the path of a file that can be read": ["members.gesis.ca"],
    "the path of a folder that can be read": ["pages.templates"],
    "a list": ["listen", "routes", "trusted_proxies", "ban.networks", "members.gesis.hosts"],
    "a mapping": ["admin", "timeouts", "members", "members.gesis", "members.gesis.run_by"],
}


def nested(path: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = {"members": {"gesis": {"url": "https://gesis.mybinder.org"}}}
    *sections, key = path.split(".")
    inner = data
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    return data


@pytest.mark.parametrize(
    ("path", "expected"), [(path, text) for text, paths in NUMBERS.items() for path in paths]
)
def test_value_of_the_wrong_kind_says_what_was_expected(path: str, expected: str) -> None:
    for value, shown in (-1, "-1"), ("?", "'?'"):
        assert faults(json.dumps(nested(path, value))) == [f"{path}: is {shown}, expected {expected}"]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (
            "members.gesis.url",
            "ftp://x",
            "is 'ftp://x', expected an http:// or https:// URL with no path, or unix:/PATH",
        ),
        (
            "members.gesis.url",
            "http://u:p@x/" + "y" * 99,
            "is 'http://u:***@x/" + "y" * 60 + "...', expected",
        ),
        ("members.gesis.weight", float("nan"), "is nan, expected auto or a number of at least 0"),
        ("members.gesis.weight", True, "is true, expected auto or a number of at least 0"),
        ("members.gesis.weight", "Auto", "is 'Auto', expected auto or a number of at least 0"),
        ("members.gesis.reserve", -1, "is -1, expected a whole number of at least 0"),
        ("members.gesis.reserve", 2.5, "is 2.5, expected a whole number of at least 0"),
        ("members.gesis.wieght", 1, "is not a known key, did you mean 'weight'?"),
        ("max-body", 1, "is not a known key, expected public_url, contact, listen,"),
        ("timeouts.Connect", 1, "is not a known key, did you mean 'connect'?"),
        ("breaker.ratio", 0, "is 0, expected a number above 0 and at most 1"),
        ("timeouts.connect", 0, "is 0, expected a duration above 0, such as 250ms, 15s or 4h"),
        ("timeouts.connect", "9999d", "is '9999d', expected a duration above 0"),
        ("members.gesis.hosts", ["a:1"], "is 'a:1', expected a host name or IP address, no port"),
        ("trusted_proxies", ["10.0.0.1/8"], "is '10.0.0.1/8', expected a network such as 192.0.2.0/24"),
        ("ban.networks", [5], "is 5, expected a network such as 192.0.2.0/24"),
        ("ban.repositories", ["("], "is '(', expected a regular expression"),
        (
            "members.gesis.contact",
            "javascript:x",
            "is 'javascript:x', expected an http://, https:// or mailto: URL",
        ),
        ("members.gesis.run_by", {"url": "https://x"}, "is missing, expected text"),
        ("members.gesis.run_by", {"name": "a\nb"}, "is 'a\\nb', expected text"),
        ("members.gesis.ca", "/", "is '/', expected the path of a file that can be read"),
        ("pages.templates", "/a\0", "is '/a\\x00', expected the path of a folder that can be read"),
        ("pages.templates", "", "is '', expected the path of a folder that can be read"),
        ("pages.templates", __file__, f"is {__file__!r}, expected the path of a folder that can be read"),
        ("pages.logo", "/logo.svg", "is '/logo.svg', expected an http:// or https:// URL"),
        ("pages.status_url", "javascript:x", "is 'javascript:x', expected an http:// or https:// URL"),
        ("members.gesis.ca", "/a\0", "is '/a\\x00', expected the path of a file that can be read"),
        ("members.a b", {"url": "https://x"}, "cannot be a name, expected a member's name of up to 64"),
        ("members.a\nb", {"url": "https://x"}, "cannot be a name, expected a member's name of up to 64"),
        ("members.a", {}, "is missing, expected an http:// or https:// URL with no path, or unix:/PATH"),
        ("access_log_file", "/", "is '/', expected the path of a file that can be written, or stdout"),
        ("access_log_file", "..", "is '..', expected the path of a file that can be written, or stdout"),
        ("access_log_file", "/no/log", "is '/no/log', expected the path of a file that can be written"),
        ("access_log_file", "y" * 300, "is 'yyy"),
        ("access_log_file", False, "is false, expected the path of a file that can be written, or stdout"),
        ("log", "xml", "is 'xml', expected text or json"),
        ("admin.read", "nobody", "is 'nobody', expected open or token"),
        ("admin.read", "token", "is 'token', and there is none, expected admin.token or admin.tokens"),
        ("admin.tokens.k.token", None, "is missing, expected text"),
        ("admin.tokens.k.token", 5, "is ***, expected text"),
        (
            "admin.tokens.a b",
            {"token": "x"},
            "cannot be a name, expected a token's name of up to 64 letters",
        ),
        ("admin.state", "", "is '', expected the path of a file, or off"),
        ("admin.state", "..", "is '..', expected the path of a file, or off"),
        ("admin.state", True, "is true, expected the path of a file, or off"),
        ("admin.token", 12345, "is ***, expected text"),
        ("admin.token", "", "is ***, expected text"),
        (
            "admin.address",
            ":80",
            "is ':80', expected HOST:PORT such as 0.0.0.0:8080 or [::]:8080, or unix:/PATH",
        ),
        ("listen", [], "is empty, expected at least one"),
        ("listen", [{"address": 80}], "is 80, expected HOST:PORT"),
        ("listen", [{}], "is missing, expected HOST:PORT"),
        (
            "listen",
            [{"address": "a:1", "tls": {}}],
            "is missing, expected the path of a file that can be read",
        ),
        ("routes", [5], "is 5, expected a mapping"),
        ("routes", [{"path": "a"}], "is 'a', expected a path such as /badge.svg or /build/*"),
        ("routes", [{"path": "/", "status": 99}], "is 99, expected a status from 200 to 599"),
        (
            "routes",
            [{"path": "/", "redirect": "//evil"}],
            "is '//evil', expected a path, or an http:// or https:// URL",
        ),
    ],
)
def test_fault_says_what_is_wrong_and_what_was_expected(path: str, value: object, fault: str) -> None:
    found = faults(yaml.safe_dump(nested(path, value), allow_unicode=True))
    assert found[0].startswith(path.replace("\n", "\\n"))
    assert f": {fault}" in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "breaker: {open: 10s, open_max: 2s}",
            ["breaker.open_max: is 2s, expected at least `open`, which is 10s"],
        ),
        (
            "listen: [{address: 'a:1'}, {address: 'a:1'}]",
            [
                "listen.1.address: is 'a:1', which listen.0.address already uses, "
                "expected an address of its own"
            ],
        ),
        (
            "listen: [{address: '127.0.0.1:8081'}]",
            [
                "listen.0.address: is '127.0.0.1:8081', which admin.address uses by default, "
                "expected an address of its own"
            ],
        ),
        ("routes: [{path: /, to: prime}]", ["routes.0.to: is 'prime', and no member is prime"]),
        (
            "routes: [{path: /, to: geziz}]",
            ["routes.0.to: is 'geziz', expected members, prime or a member's name, did you mean 'gesis'?"],
        ),
        (
            "routes: [{path: /, to: xyz}]",
            ["routes.0.to: is 'xyz', expected members, prime or a member's name"],
        ),
        (
            "routes: [{path: /, to: gesis, status: 404}]",
            ["routes.0.to: is 'gesis' next to `status`, expected one of them"],
        ),
        (
            "routes: [{path: /, to: gesis, redirect: /a}]",
            ["routes.0.to: is 'gesis' next to `redirect`, expected one of them"],
        ),
        (
            "routes: [{path: /, status: 404, mode: proxy}]",
            ["routes.0.mode: is 'proxy', expected only with `to`"],
        ),
        (
            "routes: [{path: /, redirect: /a, status: 404}]",
            ["routes.0.status: is 404, expected 301, 302, 303, 307 or 308 with `redirect`"],
        ),
        (
            "routes: [{path: /, status: 301}]",
            ["routes.0.status: is 301, expected `redirect` with it, or a status that is not 3xx"],
        ),
    ],
)
def test_keys_that_do_not_agree_are_a_fault(text: str, expected: list[str]) -> None:
    assert faults(MINIMAL + text) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("{}", ["members: has no active member, expected at least one"]),
        ("{a: }", ["members: has no active member, expected at least one"]),
        ("{a: {url: https://a, active: false}}", ["members: has no active member, expected at least one"]),
        (
            "{a: {url: https://a, prime: true}, b: {url: https://b, prime: true}}",
            ["members.b.prime: is true, but a is prime already, expected at most one prime member"],
        ),
        (
            "{a: {url: https://a}, b: {url: https://b, prime: true, active: false}}",
            ["members.b.prime: is true for a past member, expected an active one"],
        ),
        (
            "{a: {url: https://a, hosts: [x, y, x]}, b: {url: https://b, hosts: [Y]}}",
            [
                "members.a.hosts.2: is 'x', which a already has",
                "members.b.hosts.0: is 'y', which a already has",
            ],
        ),
    ],
)
def test_members_that_do_not_agree_are_a_fault(members: str, expected: list[str]) -> None:
    assert faults(f"members: {members}") == expected


def test_route_to_a_past_member_is_a_fault() -> None:
    text = "members: {a: {url: https://a}, b: {url: https://b, active: false}}\nroutes: [{path: /, to: b}]"
    assert faults(text) == ["routes.0.to: is 'b', a past member, expected an active one"]


def test_ca_is_only_for_https(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    text = f"members: {{a: {{url: http://a, ca: {tmp_path}/ca.pem}}}}"
    assert faults(text) == ["members.a.ca: is set for http://a, expected an https:// member"]


@pytest.mark.parametrize("to", ["members", "prime", "b"])
def test_nobody_is_redirected_to_a_unix_socket(to: str) -> None:
    members = "members: {a: {url: 'https://a'}, b: {url: 'unix:/run/b.sock', prime: true}}\n"
    assert faults(f"{members}routes: [{{path: /x, to: {to}, mode: redirect}}]") == [
        "routes.0.mode: is 'redirect' to b, whose url is 'unix:/run/b.sock', expected a URL"
    ]
    parse(f"{members}routes: [{{path: /x, to: {to}}}, {{path: /y, to: a, mode: redirect}}]", {})


def test_listener_with_tls_does_not_redirect_to_https(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("x")
    pem = f"{tmp_path}/pem"
    listener = f"{{address: 'a:1', tls: {{certificate: {pem}, private_key: {pem}, min_version: 1.3}}"
    config = parse(f"{MINIMAL}listen: [{listener}}}]", {})
    assert config.listen[0].tls is not None
    assert config.listen[0].tls.min_version == "1.3"
    assert faults(f"{MINIMAL}listen: [{listener}, redirect_to_https: true}}]") == [
        "listen.0.redirect_to_https: is true on a listener that has tls, expected it on a plain one"
    ]


def test_further_certificates_are_pairs_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("x")
    pair = f"certificate: {tmp_path}/pem, private_key: {tmp_path}/pem"
    tls = f"{{{pair}, certificates: [{{{pair}}}], hsts: 180d}}"
    config = parse(f"{MINIMAL}listen: [{{address: 'a:1', tls: {tls}}}]", {})
    assert config.listen[0].tls is not None
    assert [str(more.certificate) for more in config.listen[0].tls.certificates] == [f"{tmp_path}/pem"]
    assert config.listen[0].tls.hsts == 180 * 86400
    wrong = f"{{{pair}, hsts: -1, certificates: [{{certificate: {tmp_path}/none}}]}}"
    assert faults(f"{MINIMAL}listen: [{{address: 'a:1', tls: {wrong}}}]") == [
        "listen.0.tls.hsts: is -1, expected a duration, such as 250ms, 15s or 4h",
        "listen.0.tls.certificates.0.private_key: is missing, expected the path of a file that can be read",
        f"listen.0.tls.certificates.0.certificate: is '{tmp_path}/none', "
        "expected the path of a file that can be read",
    ]


def test_two_listeners_on_any_free_port_are_fine() -> None:
    assert len(parse(MINIMAL + "listen: [{address: 'a:0'}, {address: 'a:0'}]", {}).listen) == 2


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    text = """
routes: [{path: /x, to: gesiss}, {path: /y, to: gesis}, {path: /z, to: prime}]
workers: 0
members:
  gesis: {weight: -1, url: '${URL}', url: x}
  ovh: {url: https://ovh, prime: true, hosts: [a]}
  tu: {url: https://tu, prime: true, hosts: [a]}
memberz: 1
"""
    assert [fault.split(":")[0] for fault in faults(text)] == [
        "routes.0.to",
        "workers",
        "members.gesis.weight",
        "members.gesis.url",
        "members.gesis.url",
        "members.tu.prime",
        "members.tu.hosts.0",
        "memberz",
    ]


def test_variable_that_is_not_set_is_the_only_fault_of_its_key() -> None:
    assert faults("members: {a: {url: '${URL}'}}") == [
        "members.a.url: needs the environment variable URL, which is not set"
    ]


def test_more_faults_than_anybody_reads_are_counted() -> None:
    found = faults(MINIMAL + "routes: [" + "5, " * 500 + "]")
    assert len(found) == MAX_FAULTS + 1
    assert found[-1] == f"{500 - MAX_FAULTS} more faults"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "is a list, expected a mapping"),
        ("x", "is 'x', expected a mapping"),
        ("~", "is empty, expected a mapping"),
        ("{}", "members: is missing, expected a mapping"),
        ("# nothing", "is empty, expected at least `members`"),
    ],
)
def test_top_level_that_is_no_config_is_a_fault(text: str, expected: str) -> None:
    assert faults(text) == [expected]


def test_file_is_loaded_with_or_without_byte_order_mark(tmp_path: Path) -> None:
    for encoding in "utf-8", "utf-8-sig":
        (tmp_path / "f.yaml").write_text(MINIMAL, encoding=encoding)
        assert load(tmp_path / "f.yaml", {}) == parse(MINIMAL, {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: \xff", ":1:4: is not UTF-8: invalid start byte at byte 3"),
        (b"\xef\xbb\xbfa: b\r\n\xc3\xa9\xe9c", ":2:2: is not UTF-8: invalid continuation byte at byte 11"),
        (b"a: b\n\xff\xfe", ":2:1: is not UTF-8: invalid start byte at byte 5"),
        (b"#" * (1 << 20) + b"#", ": is larger than 1 MiB"),
        (None, ": cannot be read: No such file or directory"),
    ],
)
def test_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "f.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert fault_lines("f.yaml", caught.value.faults) == [f"f.yaml{expected}"]


def test_directory_and_impossible_name_are_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load(Path("a\0b"), {})


def test_fault_lines_name_file_and_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("members: {a: {url: ftp://x}}", {})
    assert fault_lines("conf/f.yaml", caught.value.faults) == [
        "conf/f.yaml:1:20: members.a.url: is 'ftp://x', "
        "expected an http:// or https:// URL with no path, or unix:/PATH"
    ]


def test_one_member_is_made_as_the_admin_api_takes_it() -> None:
    assert member_from("a", {"url": "https://a/", "weight": 5}).url == "https://a"
    for name, data, path in (
        ("a", {"weight": -1, "url": "https://a"}, "weight"),
        ("a b", {"url": "https://a"}, ""),
    ):
        with pytest.raises(ConfigError) as caught:
            member_from(name, data)
        assert [fault.path for fault in caught.value.faults] == [path]
    with pytest.raises(ConfigError, match="a mapping"):
        member_from("a", None)


def test_masked_config_is_json_without_secrets() -> None:
    text = (
        MINIMAL
        + "admin: {token: hunter2}\naffinity: {secret: hunter3}\n"
        + "ban: {networks: [10.0.0.0/8], user_agents: [b]}"
    )
    config = parse(text, {})
    shown = masked(config)
    assert "hunter" not in json.dumps(shown) + repr(config)
    assert (shown["admin"]["token"], shown["affinity"]["secret"]) == ("***", "***")
    assert shown["admin"]["address"] == "127.0.0.1:8081"
    assert (shown["ban"]["networks"], shown["ban"]["user_agents"]) == (["10.0.0.0/8"], ["b"])
    assert masked(parse(MINIMAL, {}))["admin"]["token"] is None


def test_example_of_the_project_is_valid_and_has_every_key() -> None:
    path = ROOT / "conf" / "mybinder.yaml"
    config = load(path, {})
    assert (config.prime, list(config.active_members)) == (
        "hetzner-2i2c",
        ["hetzner-2i2c", "hetzner-gesis", "bids-ovh"],
    )
    written = path.read_text()
    keys = {key for section in _sections(Config) for key in section}
    assert [key for key in sorted(keys) if f"{key}:" not in written] == []


def _sections(model: Any) -> list[dict[str, Any]]:
    from fedproxy.config import model as models

    sections = [
        value
        for value in vars(models).values()
        if isinstance(value, type) and issubclass(value, models.Section)
    ]
    assert model in sections
    return [section.model_fields for section in sections]


@pytest.mark.parametrize(
    ("admin", "fault"),
    [
        (
            "{token: a, tokens: {admin: {token: b}}}",
            "admin.tokens: has 'admin', which is the name of admin.token, expected another name",
        ),
        (
            "{token: same, tokens: {k: {token: same}}}",
            "admin.tokens: has the same token in k as admin.token is, expected another",
        ),
        (
            "{tokens: {k: {token: same}, l: {token: same}}}",
            "admin.tokens: has the same token in l as admin.tokens.k is, expected another",
        ),
        ("{tokens: {k: {token: s, rights: all}}}", "admin.tokens.k.rights: is 'all', expected read or write"),
    ],
)
def test_tokens_that_cannot_be_told_apart_are_faults(admin: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{{admin: {admin}, members: {{a: {{url: 'http://a.test'}}}}}}", {})
    assert [str(each) for each in caught.value.faults] == [fault]


def test_tokens_have_names_and_rights() -> None:
    tokens = "{k: {token: s}, l: {token: u, rights: write}}"
    text = f"{{admin: {{token: t, tokens: {tokens}}}, members: {{a: {{url: 'http://a'}}}}}}"
    found = parse(text, {}).admin.named_tokens
    assert {name: (each.token.get_secret_value(), each.rights) for name, each in found.items()} == {
        "admin": ("t", "write"),
        "k": ("s", "read"),
        "l": ("u", "write"),
    }
    assert parse("members: {a: {url: 'http://a'}}", {}).admin.named_tokens == {}


def test_members_may_be_left_out_where_there_are_sources() -> None:
    for members in ("", "members: {}\n", "members:\n", "members: {a: {url: 'https://a', active: false}}\n"):
        for sources in ("{dns: a.test}", "{directory: /not/there}"):
            assert not parse(f"{members}sources: {sources}", {}).active_members
    assert faults("sources: {limit: 5}") == ["members: is missing, expected a mapping"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("A.Test.", ("a.test",)),
        ("_http._tcp.a.test", ("_http._tcp.a.test",)),
        ("[a.test, b.test]", ("a.test", "b.test")),
    ],
)
def test_names_of_sources_are_one_or_many(given: str, names: tuple[str, ...]) -> None:
    assert parse(f"sources: {{dns: {given}}}", {}).sources.dns == names


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        ("{dns: 10.0.0.1}", "sources.dns.0: is '10.0.0.1', expected a DNS name such as"),
        ("{dns: [a.test, 'a b']}", "sources.dns.1: is 'a b', expected a DNS name such as"),
        ("{dns: ['[::1]']}", "sources.dns.0: is '[::1]', expected a DNS name such as"),
        ("{dns: [a.test, A.test.]}", "sources.dns: has 'a.test' twice, expected each name once"),
        ("{dns: {a: b}}", "sources.dns: is a mapping, expected a list"),
        ("{dns: a.test, interval: 61s}", "sources.interval: is 61s, expected a duration from 1s to 60s"),
        ("{dns: a.test, interval: 0.5}", "sources.interval: is 500ms, expected a duration from 1s to 60s"),
        ("{dns: a.test, port: 0}", "sources.port: is 0, expected a port from 1 to 65535"),
        ("{dns: a.test, scheme: ftp}", "sources.scheme: is 'ftp', expected https or http"),
        ("{dns: a.test, limit: 0}", "sources.limit: is 0, expected a whole number of at least 1"),
        ("{directory: ''}", "sources.directory: is '', expected the path of a folder"),
        (
            "{directorry: /x, dns: a.test}",
            "sources.directorry: is not a known key, did you mean 'directory'?",
        ),
    ],
)
def test_sources_that_cannot_be_are_faults(sources: str, fault: str) -> None:
    found = faults(f"sources: {sources}")
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_authority_needs_https() -> None:
    text = f"sources: {{dns: a.test, scheme: http, settings: {{ca: {__file__}}}}}"
    assert faults(text) == [
        "sources.settings: has a ca, and scheme is http, expected https with it",
    ]


def test_reference_is_what_the_models_say() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == render(), "python -m fedproxy.config.reference > docs/configuration.md"


KEYS = sorted({key for section in _sections(Config) for key in section} | {"hosts", "check", "load_balancer"})
LEAVES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        float("nan"),
        10**400,
        "",
        "x",
        "${A}",
        "${B}",
        "1s",
        "/",
        "unix:/a",
        "https://a",
        "\x85",
    ]
)
ANY = st.recursive(
    LEAVES | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.text() | st.text("abc:-[]{}&*!|>'\"#%@`,? \n\t$<\\~01"))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    check(text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), ANY, max_size=4))
def test_any_structure_is_a_config_or_a_config_error(data: dict[str, object]) -> None:
    check(json.dumps(data))
    check(MINIMAL + yaml.safe_dump({key: value for key, value in data.items() if key != "members"}))


def check(text: str) -> None:
    try:
        config = parse(text, {"A": "1"})
    except ConfigError as error:
        assert error.faults
        assert all("\n" not in line for line in fault_lines("f", error.faults))
    else:
        json.dumps(masked(config))
