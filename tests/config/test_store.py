"""Where the store is: files and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedproxy.config.advice import advise
from fedproxy.config.load import parse
from fedproxy.config.report import changed_secrets, masked
from fedproxy.config.store import STORE, StoreAddress, store
from fedproxy.config.units import without_password
from fedproxy.control.state import state_path
from fedproxy.errors import ConfigError

MEMBERS = "members: {a: {url: http://a.example}}\n"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://h", StoreAddress("server", (("h", 6379),))),
        ("redis://kim:p%40ss@h:7000/2", StoreAddress("server", (("h", 7000),), False, "kim", "p@ss", 2)),
        ("redis://:pw@[::1]:1", StoreAddress("server", (("::1", 1),), password="pw")),
        ("rediss://h/0", StoreAddress("server", (("h", 6379),), tls=True)),
        (
            "redis+sentinel://a,b:1/mine/3",
            StoreAddress("sentinel", (("a", 26379), ("b", 1)), database=3, service="mine"),
        ),
        ("rediss+cluster://a:1,b:2", StoreAddress("cluster", (("a", 1), ("b", 2)), tls=True)),
        ("/var/lib/x/state.json", Path("/var/lib/x/state.json")),
        ("state.json", Path("state.json")),
    ],
)
def test_store_is_read(url: str, found: object) -> None:
    assert store(url) == found
    assert store(found) == found


@pytest.mark.parametrize(
    "value",
    [
        *(7, None, "", "..", "http://h", "redis://", "redis://h:0", "redis://h:99999", "redis://h:x"),
        *("redis://a,b", "redis://h/x", "redis://h/1/2", "redis://h?x=1", "redis://h#x", "redis://h y"),
        *(
            "redis+sentinel://h",
            "redis+sentinel://h/a b",
            "redis+cluster://h/1",
            "redis://[::1",
            "redis://h/99999",
        ),
    ],
)
def test_what_is_no_store(value: object) -> None:
    assert store(value) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://kim:secret@h/1", "redis://kim:***@h:6379/1"),
        ("redis://:secret@h", "redis://:***@h:6379"),
        ("redis://kim@h", "redis://kim@h:6379"),
        ("redis+sentinel://a,b/mine/2", "redis+sentinel://a:26379,b:26379/mine/2"),
        ("rediss://[::1]", "rediss://[::1]:6379"),
        ("a/b", "a/b"),
    ],
)
def test_password_is_not_shown(url: str, shown: str) -> None:
    assert STORE.render is not None
    assert STORE.render(store(url)) == shown


def test_config_names_a_store_for_a_fleet_or_a_file(tmp_path: Path) -> None:
    config = parse(MEMBERS + "store: redis://:hidden@h\n", {})
    assert config.shared_store is not None
    assert config.shared_store.place == "redis://h:6379"
    assert "hidden" not in str(masked(config))
    assert "hidden" not in repr(config.shared_store)
    other = parse(MEMBERS + "store: redis://:other@h\n", {})
    assert [each.key for each in changed_secrets(config, other)] == ["store"]
    config = parse(MEMBERS + f"store: {tmp_path}/here.json\n", {})
    assert config.shared_store is None
    assert state_path(config, Path("edge.yaml"), {}) == tmp_path / "here.json"


def test_authorities_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    config = parse(MEMBERS + f"store: rediss://h\nstore_ca: {tmp_path}/ca.pem\n", {})
    assert config.shared_store is not None
    assert config.shared_store.ca == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store: a.json\nadmin: {state: b.json}\n", "store: is a file, and `admin.state` is set"),
        ("store: mysql://h\n", "store: is 'mysql://h', expected the path of a file, or redis://"),
        ("store: redis://h\nstore_ca: /dev/null\n", "store_ca: is set, expected only with a rediss:// store"),
        ("edge_name: a b\n", "edge_name: is 'a b', expected letters"),
        ("store_prefix: ''\n", "store_prefix: is '', expected letters"),
    ],
)
def test_faults(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(MEMBERS + text, {})
    assert any(says in str(fault) for fault in found.value.faults), found.value.faults


def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.config.model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedproxy\[redis\]'"):
        parse(MEMBERS + "store: redis://h\n", {})


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("redis://127.0.0.1", False),
        ("redis://10.1.2.3", False),
        ("redis://redis.default.svc.cluster.local", False),
        ("redis://redis.example.org", True),
        ("rediss://redis.example.org", False),
        ("redis+sentinel://10.1.2.3,8.8.8.8/mine", True),
    ],
)
def test_store_outside_the_site_without_tls_is_unwise(url: str, warned: bool) -> None:
    advice = advise(parse(MEMBERS + f"store: {url}\n", {}), {})
    assert ("store-plain" in [each.name for each in advice]) is warned


@pytest.mark.parametrize(
    "url",
    [
        "redis://:a@h/0?password=secret",
        "redis://u:pa/secret@h",
        "rediss+sentinel://u:a@secret@h,i/s",
        "redis://h#secret",
    ],
)
def test_what_may_be_a_password_is_not_shown_in_a_url_that_is_none(url: str) -> None:
    assert "secret" not in without_password(f"is '{url}', expected another")
