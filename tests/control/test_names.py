"""Members by the records of a name, from a name server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiodns
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.model import MemberSettings, SourceSettings
from fedproxy.control import names
from fedproxy.control.names import MembersByName, NameServers, NoAnswer
from fedproxy.control.sources import SourceAnswer
from fedproxy.decide.discovery import host_of
from tests.rig.names import CNAME, NXDOMAIN, SERVFAIL, SRV, Reply, Zone, encoded, name_server

NAME = "_https._tcp.binder.test"
POD = "10-0-0-{}.hubs.default.svc.cluster.local"
PODS = "_http._tcp.hubs.default.svc.cluster.local"


SERVERS: list[NameServers] = []


@pytest.fixture
async def zone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zone]:
    # The answers change at once here, and a channel keeps them for a second.
    monkeypatch.setattr(names, "_LONGEST_CHANNEL", 0.0)
    async with name_server() as zone:
        yield zone
        # Closed, so that no channel outlives its loop.
        while SERVERS:
            await SERVERS.pop().close()


def asking(zone: Zone) -> NameServers:
    SERVERS.append(NameServers([zone.address]))
    return SERVERS[-1]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def members_by(zone: Zone, name: str = NAME, clock: Clock | None = None, **settings: Any) -> MembersByName:
    found = SourceSettings.model_validate({"dns": name, **settings})
    return MembersByName(name, found, [("edge.test", 443)], asking(zone), clock or Clock())


def shown(answer: SourceAnswer) -> dict[str, tuple[str, object]]:
    return {name: (each.settings.url, each.settings.weight) for name, each in answer.members.items()}


async def test_targets_of_a_service_are_members(zone: Zone) -> None:
    zone.replies[NAME, SRV] = Reply.services(
        (0, 20, 443, "A.binder.test."), (0, 10, 8443, "b.binder.test"), (9, 5, 443, "c.binder.test"), ttl=7
    )
    answer = await members_by(zone, settings={"max_launches": 5}).ask()
    assert shown(answer) == {
        "a.binder.test": ("https://a.binder.test", 20.0),
        "b.binder.test": ("https://b.binder.test:8443", 10.0),
        "c.binder.test": ("https://c.binder.test", 0.0),
    }
    assert {each.source for each in answer.members.values()} == {f"dns: {NAME}"}
    assert {each.settings.max_launches for each in answer.members.values()} == {5}
    assert (answer.wait, answer.complaints) == (7.0, {})


async def test_headless_service_of_kubernetes_has_its_pods(zone: Zone) -> None:
    zone.replies[PODS, SRV] = Reply.services(*((0, 50, 8585, POD.format(n)) for n in (1, 2)), ttl=5)
    answer = await members_by(zone, PODS, scheme="http").ask()
    assert shown(answer) == {
        POD.format(1): (f"http://{POD.format(1)}:8585", 50.0),
        POD.format(2): (f"http://{POD.format(2)}:8585", 50.0),
    }


async def test_other_name_is_a_member_itself(zone: Zone) -> None:
    zone.holds("hub.test", "192.0.2.1", ttl=30)
    answer = await members_by(zone, "hub.test").ask()
    assert (shown(answer), answer.wait) == ({"hub.test": ("https://hub.test", 1.0)}, 30.0)
    zone.holds("hub.test", "2001:db8::1")
    answer = await members_by(zone, "hub.test", port=8585, scheme="http").ask()
    assert shown(answer) == {"hub.test": ("http://hub.test:8585", 1.0)}


TROUBLE = [
    (Reply(), "it has no records"),
    (Reply(code=NXDOMAIN), "it has no records"),
    (Reply(code=SERVFAIL), "it cannot be looked up: "),
    (Reply(silent=True), "it cannot be looked up: "),
    (Reply.services((0, 0, 0, ".")), "its answer has no member"),
    (Reply.services((0, 0, 443, NAME)), f"its answer has no member (left out: {NAME}:443 leads back here)"),
    (Reply([(SRV, 1, b"\0\0")]), "it cannot be looked up: "),
    (Reply.alias(NAME, of_address=1, ttl=1), "it "),
]


@pytest.mark.parametrize(("reply", "why"), TROUBLE)
async def test_without_an_answer_the_last_members_stay(zone: Zone, reply: Reply, why: str) -> None:
    source = members_by(zone)
    zone.replies[NAME, SRV] = reply
    first = await source.ask()
    assert (first.members, list(first.complaints)) == ({}, [(NAME, "answer")])
    assert first.complaints[NAME, "answer"].startswith(f"{NAME}: {why}")
    assert first.complaints[NAME, "answer"].endswith("it adds no member until it has some")
    zone.replies[NAME, SRV] = Reply.services((0, 1, 443, "a.test"))
    good = await source.ask()
    assert (list(good.members), good.complaints) == (["a.test"], {})
    zone.replies[NAME, SRV] = reply
    bad = await source.ask()
    assert bad.members == good.members
    assert bad.complaints[NAME, "answer"].endswith("; its last members stay")
    assert bad.wait == 1.0


@pytest.mark.parametrize("reply", [Reply(), Reply(code=NXDOMAIN)])
async def test_name_that_has_no_address_any_more_stays_a_member(zone: Zone, reply: Reply) -> None:
    zone.holds("hub.test", "192.0.2.1")
    source = members_by(zone, "hub.test")
    good = await source.ask()
    zone.holds("hub.test")
    bad = await source.ask()
    assert bad.members == good.members
    assert list(bad.complaints) == [("hub.test", "answer")]


async def test_trouble_is_asked_about_less_and_less_often(zone: Zone) -> None:
    source = members_by(zone, interval=10)
    assert [(await source.ask()).wait for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    zone.replies[NAME, SRV] = Reply.services((0, 1, 443, "a.test"), ttl=3600)
    assert (await source.ask()).wait == 10.0


async def test_records_that_change_all_the_time_are_damped(zone: Zone) -> None:
    clock = Clock()
    source = members_by(zone, clock=clock, keep=15)
    seen = []
    for second in range(40):
        zone.replies[NAME, SRV] = Reply.services((0, 1, 443, f"m{second % 4}.test"))
        seen.append([*(await source.ask()).members])
        clock.now += 1
    # After the first round it is always the same.
    assert seen[3:] == [["m0.test", "m1.test", "m2.test", "m3.test"]] * 37
    zone.replies[NAME, SRV] = Reply.services((0, 1, 443, "m0.test"), ttl=60)
    answer = await source.ask()
    # Whoever is to be forgotten is, when its time is over.
    assert 0 < answer.wait <= 15
    clock.now += 15
    assert [*(await source.ask()).members] == ["m0.test"]


async def test_thousands_of_records_are_bounded_and_said(zone: Zone) -> None:
    zone.replies[NAME, SRV] = Reply.services(*((0, 1, 443, f"m{n:04}.test") for n in range(1500)))
    answer = await members_by(zone, limit=4).ask()
    assert [*answer.members] == [f"m{n:04}.test" for n in range(4)]
    (text,) = answer.complaints.values()
    assert text.startswith(f"{NAME}: has 1500 members, of which 4 are taken: without m0004.test, ")


async def test_name_that_no_resolver_accepts_is_a_complaint(zone: Zone) -> None:
    for name in ("a..test", "x" * 70 + ".test", "\udcff.test"):
        with pytest.raises(NoAnswer):
            await asking(zone).services(name)
    with pytest.raises(NoAnswer):
        await NameServers(["no address"]).exists("a.test")


async def test_alias_of_a_service_is_followed_and_its_time_to_live_counts(zone: Zone) -> None:
    records = Reply.services((0, 1, 443, "a.test"), ttl=50).records
    zone.replies[NAME, SRV] = Reply([(CNAME, 3, encoded("_https._tcp.other.test")), *records])
    answer = await members_by(zone).ask()
    assert (list(answer.members), answer.wait) == (["a.test"], 3.0)


async def test_new_records_each_second_add_up_to_the_limit_at_most(zone: Zone) -> None:
    clock = Clock()
    source = members_by(zone, clock=clock, keep=3600, limit=5)
    for second in range(30):
        zone.replies[NAME, SRV] = Reply.services((0, 1, 443, f"m{second}.test"))
        answer = await source.ask()
        clock.now += 1
    assert sorted(answer.members) == [f"m{second}.test" for second in range(25, 30)]


async def test_answer_that_is_cut_off_is_asked_for_by_tcp(zone: Zone) -> None:
    """What does not fit into a datagram, as CoreDNS and Consul cut it."""
    zone.replies[NAME, SRV] = Reply.services((0, 1, 443, "m0.test"))
    zone.cut[NAME, SRV] = Reply.services(*((0, 1, 443, f"m{n}.test") for n in range(90)))
    assert len((await members_by(zone).ask()).members) == 90


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,80}", fullmatch=True), st.integers(1, 65535))
def test_any_host_is_a_valid_url(text: str, port: int) -> None:
    host = host_of(text)
    if host is not None:
        assert MemberSettings.model_validate({"url": f"https://{host}:{port}"})


async def test_questions_at_once_share_a_channel_that_is_closed_when_it_is_old(
    zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[aiodns.DNSResolver] = []
    make = aiodns.DNSResolver

    def count(*given: Any, **more: Any) -> aiodns.DNSResolver:
        made.append(make(*given, **more))
        return made[-1]

    monkeypatch.setattr(aiodns, "DNSResolver", count)
    monkeypatch.setattr(names, "_LONGEST_CHANNEL", 60.0)
    zone.replies[NAME, SRV] = Reply.services((0, 1, 443, "a.test"))
    servers = asking(zone)
    await asyncio.gather(*(servers.services(NAME) for _ in range(20)))
    assert len(made) == 1
    monkeypatch.setattr(names, "_LONGEST_CHANNEL", 0.0)
    servers._until = 0.0
    await asyncio.gather(*(servers.services(NAME) for _ in range(3)))
    await servers.close()
    assert len(made) == 4
    assert all(each._closed for each in made)
