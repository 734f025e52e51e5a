"""What sources found, as a part of the config."""

from __future__ import annotations

from typing import Any

import pytest

from fedproxy.config.load import parse
from fedproxy.config.model import MemberSettings
from fedproxy.control.sources import FoundMember, Gathered, gather
from fedproxy.errors import ConfigError

CONFIG = """
sources: {directory: /nowhere}
members:
  own: {url: https://own.test, prime: true, hosts: [own.test]}
"""


def settings(url: str = "https://found.test", **more: Any) -> MemberSettings:
    return MemberSettings.model_validate({"url": url, **more})


def found(source: str, **members: MemberSettings) -> dict[str, FoundMember]:
    return {name: FoundMember(each, source) for name, each in members.items()}


def gathered(*answers: dict[str, FoundMember], text: str = CONFIG, **before: MemberSettings) -> Gathered:
    return gather(parse(text, {}), answers, before)


def urls(result: Gathered) -> dict[str, str]:
    return {name: each.url for name, each in result.config.members.items()}


def test_config_wins_over_the_directory_and_that_over_dns() -> None:
    folder = found("directory: F", own=settings("https://f.test"), a=settings("https://f.test"))
    dns = found(
        "dns: N", own=settings("https://n.test"), a=settings("https://n.test"), b=settings("https://n.test")
    )
    result = gathered(folder, dns)
    assert urls(result) == {"own": "https://own.test", "a": "https://f.test", "b": "https://n.test"}
    assert result.origins == {"a": "directory: F", "b": "dns: N"}


def test_past_member_of_the_config_hides_a_found_one() -> None:
    text = "{sources: {dns: a.test}, members: {own: {url: 'https://own.test', active: false}}}"
    assert urls(gathered(found("dns: N", own=settings()), text=text)) == {"own": "https://own.test"}


def test_config_may_have_no_members_of_its_own() -> None:
    text = "sources: {dns: a.test}"
    assert urls(gathered(text=text)) == {}
    assert urls(gathered(found("dns: N", a=settings()), text=text)) == {"a": "https://found.test"}


def test_member_that_does_not_fit_is_left_out_alone() -> None:
    result = gathered(
        found("directory: F", a=settings(prime=True), b=settings(hosts=["own.test"]), c=settings())
    )
    assert list(urls(result)) == ["own", "c"]
    assert result.refused == {
        "a": "prime: is true, but own is prime already, expected at most one prime member",
        "b": "hosts.0: is 'own.test', which own already has",
    }


def test_member_that_does_not_fit_any_more_stays_as_it_was() -> None:
    new = found("directory: F", a=settings("https://new.test", prime=True), c=settings())
    result = gathered(new, a=settings("https://old.test"))
    assert urls(result) == {"own": "https://own.test", "a": "https://old.test", "c": "https://found.test"}
    assert list(result.refused) == ["a"]
    # What it was may not fit either by now.
    result = gathered(new, a=settings("https://old.test", hosts=["own.test"]))
    assert list(urls(result)) == ["own", "c"]
    assert result.refused == {
        "a": "prime: is true, but own is prime already, expected at most one prime member"
    }


def test_two_that_do_not_fit_together_are_not_both_left_out() -> None:
    result = gathered(found("directory: F", a=settings(hosts=["x.test"]), b=settings(hosts=["x.test"])))
    assert list(urls(result)) == ["own", "a"]


def test_settings_that_only_fail_in_use_are_refused() -> None:
    members = found("directory: F", a=settings(), b=settings())
    result = gather(parse(CONFIG, {}), [members], {}, lambda name, each: "broken" if name == "a" else None)
    assert (list(urls(result)), result.refused) == (["own", "b"], {"a": "broken"})


def test_set_that_does_not_fit_as_a_whole_is_a_fault() -> None:
    text = f"{CONFIG}\nroutes: [{{path: /x, to: a}}]"
    with pytest.raises(ConfigError, match=r"routes\.0\.to: is 'a', a past member"):
        gathered(found("directory: F", a=settings(active=False)), text=text)


def test_route_may_name_a_member_that_is_not_found_yet() -> None:
    text = f"{CONFIG}\nroutes: [{{path: /x, to: later}}]"
    assert list(urls(gathered(text=text))) == ["own"]
    with pytest.raises(ConfigError, match="expected members, prime or a member's name"):
        parse("{members: {a: {url: 'http://a'}}, routes: [{path: /x, to: later}]}", {})
