from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedproxy.decide.limit import Bans, LaunchRate, Networks, client_key

A = client_key(b"203.0.113.7")
B = client_key(b"203.0.113.8")


def networks(*texts: str) -> Networks:
    return Networks(map(ip_network, texts))


# -- clients


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"2001:db8:1:2::7", b"2001:db8:1:2:ffff::1"),
        (b"2001:DB8:1:2::7", b"2001:0db8:1:2::7"),
        (b"203.0.113.7", b"::ffff:203.0.113.7"),
    ],
)
def test_client_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(one: bytes, other: bytes) -> None:
    assert client_key(one) == client_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(b"2001:db8:1:2::7", b"2001:db8:1:3::7"), (b"203.0.113.7", b"203.0.113.8"), (b"unix", b"203.0.113.7")],
)
def test_other_clients_are_told_apart(one: bytes, other: bytes) -> None:
    assert client_key(one) != client_key(other)


NUMBERS = st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "1000", " 1", "-1", "\u0661", "a"])


@example("192.0.2.256")
@example("192.0.2.07")
@given(st.lists(NUMBERS, min_size=3, max_size=5).map(".".join) | st.ip_addresses(v=4).map(str))
def test_client_is_what_the_library_reads(text: str) -> None:
    try:
        key = ip_address(text).packed
    except ValueError:
        key = text.encode()
    assert client_key(text.encode()) == key


# -- networks


def test_network_of_mapped_addresses_is_one_of_ipv4() -> None:
    found = networks("::ffff:10.0.0.0/104", "::ffff:192.0.2.7")
    assert b"10.1.2.3" in found and b"192.0.2.7" in found and b"::ffff:10.1.2.3" in found
    assert b"11.1.2.3" not in found and b"192.0.2.8" not in found
    assert b"10.1.2.3" not in networks("::/0")


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        (b"10.1.2.3", True),
        (b"11.1.2.3", False),
        (b"192.0.2.77", True),
        (b"192.0.2.78", False),
        (b"::ffff:10.1.2.3", True),
        (b"2001:db8::1", True),
        (b"2001:db9::1", False),
        (b"::10.1.2.3", False),
        (b"nonsense", False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_address_is_in_its_network(address: bytes, inside: bool) -> None:
    assert (address in networks("10.0.0.0/8", "192.0.2.77", "2001:db8::/32")) is inside


def test_no_networks_hold_nobody() -> None:
    assert not networks()
    assert b"10.0.0.1" not in networks()


def test_every_address_is_in_the_network_of_all() -> None:
    assert b"10.0.0.1" in networks("0.0.0.0/0")
    assert b"::1" not in networks("0.0.0.0/0")


@given(
    st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), max_size=8),
    st.lists(st.tuples(st.ip_addresses(v=6), st.integers(0, 128)), max_size=8),
    st.ip_addresses(),
)
def test_networks_agree_with_the_standard_library(v4: list, v6: list, address: object) -> None:  # type: ignore[type-arg]
    every = [ip_network(f"{base}/{length}", strict=False) for base, length in v4 + v6]
    parsed = ip_address(str(address))
    meant = getattr(parsed, "ipv4_mapped", None) or parsed
    # An IPv4 address is also in a network of IPv4-mapped addresses, but in no wider one of IPv6.
    mapped = ip_address(f"::ffff:{meant}") if meant.version == 4 else meant
    expected = any(
        meant in network
        if network.version == meant.version
        else network.prefixlen >= 96 and mapped in network
        for network in every
    )
    assert (str(address).encode() in Networks(every)) is expected


# -- bans


def test_user_agent_is_banned_where_the_expression_is_found() -> None:
    bans = Bans(user_agents=(re.compile("(?i)badbot"), re.compile("^$")))
    assert bans
    assert bans.agent(b"Mozilla/5.0 (compatible; BadBot/1.0)")
    assert bans.agent(b"")
    assert not bans.agent(b"Mozilla/5.0 \xff")


@pytest.mark.parametrize(
    "path",
    [
        b"/build/gh/miner/coins/HEAD",
        b"/v2/gh/miner/coins/HEAD",
        b"/build/gh/Miner/COINS/main",
        b"/build/gh/miner%2Fcoins/HEAD",
        b"/build/gh/%6diner/coins/HEAD",
        b"/build/gh/%256diner/coins/HEAD",
        b"/build/gh//miner///coins/HEAD",
        b"/v2/gl/miner%2fcoins/HEAD",
        b"/v2/git/https%253A%252F%252Fgit.test%252Fminer%252Fcoins/HEAD",
    ],
)
def test_banned_repository_is_known_however_it_is_written(path: bytes) -> None:
    bans = Bans(repositories=(re.compile("miner/coins(/|$)", re.IGNORECASE),))
    assert bans.repository(path)


def test_repository_is_banned_in_any_reading_of_its_path() -> None:
    bans = Bans(repositories=(re.compile("^gh/miner/coins/"),))
    assert bans.repository(b"/v2/x", b"/%62uild/gh/miner/coins/HEAD", b"/build/gh/miner/coins/HEAD")
    assert not bans.repository(b"/v2/x", b"/%62uild/gh/miner/coins/HEAD")


@pytest.mark.parametrize(
    "path",
    [b"/build/gh/miner/coinstack/HEAD", b"/repo/miner/coins/HEAD", b"/", b"/build/", b"/v2/gh/%ff/%zz/HEAD"],
)
def test_other_paths_are_not_banned(path: bytes) -> None:
    bans = Bans(repositories=(re.compile("miner/coins(/|$)"),))
    assert not bans.repository(path)


def test_nothing_is_banned_by_default() -> None:
    bans = Bans()
    assert not bans
    assert not bans.agent(b"")
    assert not bans.repository(b"/build/gh/a/b/HEAD")


# -- the launch rate


def test_client_launches_as_often_as_allowed_and_then_waits() -> None:
    rate = LaunchRate(3, 60.0)
    assert [rate.ask(A, 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(20.0)]
    assert rate.ask(A, 119.0) == pytest.approx(1.0)
    assert rate.ask(A, 120.0) == 0.0
    assert rate.ask(A, 120.0) == pytest.approx(20.0)
    assert [rate.ask(A, 300.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(20.0)]


def test_clients_do_not_count_for_each_other() -> None:
    rate = LaunchRate(1, 60.0)
    assert rate.ask(A, 0.0) == 0.0
    assert rate.ask(B, 0.0) == 0.0
    assert rate.ask(A, 1.0) == pytest.approx(59.0)


def test_launch_that_was_refused_is_not_counted() -> None:
    rate = LaunchRate(1, 60.0)
    rate.ask(A, 0.0)
    for second in range(1, 60):
        assert rate.ask(A, float(second)) > 0
    assert rate.ask(A, 60.0) == 0.0


def test_launch_elsewhere_counts_here() -> None:
    rate = LaunchRate(2, 60.0)
    rate.note(A, 0.0)
    assert rate.ask(A, 0.0) == 0.0
    assert rate.ask(A, 0.0) == pytest.approx(30.0)


def test_however_many_launches_elsewhere_cost_no_more_than_the_whole_time() -> None:
    rate = LaunchRate(2, 60.0)
    for _ in range(10):
        rate.note(A, 0.0)
    assert rate.ask(A, 0.0) == pytest.approx(30.0)
    assert rate.ask(A, 30.0) == 0.0


def test_who_does_not_ask_again_is_forgotten() -> None:
    rate = LaunchRate(1, 60.0)
    for number in range(1000):
        rate.ask(b"%d" % number, 0.0)
    assert len(rate) == 1000
    rate.ask(A, 61.0)
    rate.ask(A, 122.0)
    assert len(rate) == 1


def test_flood_of_clients_takes_a_bounded_memory_and_keeps_nobody_out() -> None:
    rate = LaunchRate(1, 60.0, entries=100)
    for number in range(10_000):
        assert rate.ask(b"%d" % number, 0.0) == 0.0
        assert len(rate) <= 200
    assert rate.ask(A, 0.0) == 0.0


def test_who_goes_on_asking_is_not_forgotten_in_a_flood() -> None:
    rate = LaunchRate(1, 60.0, entries=100)
    rate.ask(A, 0.0)
    for number in range(10_000):
        rate.ask(b"%d" % number, 0.0)
        if number % 50 == 0:
            assert rate.ask(A, 0.0) > 0


def test_clock_that_jumps_locks_nobody_out() -> None:
    rate = LaunchRate(1, 60.0)
    rate.ask(A, 1e6)
    assert rate.ask(A, 0.0) <= 60.0
    assert rate.ask(A, 61.0) == 0.0
    assert rate.ask(A, 1e9) == 0.0


@given(st.integers(1, 20), st.floats(0.5, 3600), st.lists(st.floats(0, 100), max_size=60))
def test_never_more_than_the_burst_and_what_time_brings(launches: int, per: float, gaps: list[float]) -> None:
    rate = LaunchRate(launches, per)
    now, passed = 0.0, 0
    for gap in gaps:
        now += gap
        wait = rate.ask(A, now)
        assert 0.0 <= wait <= per * (1 + 1e-6)
        passed += wait == 0.0
    assert passed <= launches + now * launches / per + 1e-3 * launches + 1


def test_what_a_client_owes() -> None:
    rate = LaunchRate(3, 60.0)
    assert rate.owed(b"jo", 100.0) == 0.0
    rate.note(b"jo", 100.0)
    rate.note(b"jo", 100.0)
    assert rate.owed(b"jo", 110.0) == 30.0
    assert rate.owed(b"jo", 200.0) == 0.0
