from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.http.request import Forwarded, Hop
from fedproxy.wire.visitor import Visitor, find_visitor

PEER = b"10.0.0.1"


def trusts(address: bytes) -> bool:
    return address.startswith(b"10.")


def find(**said: object) -> Visitor:
    return find_visitor(Forwarded(**said), PEER, trusts)  # type: ignore[arg-type]


def test_proxy_that_says_nothing_comes_for_itself() -> None:
    assert find() == Visitor(PEER, PEER, None)
    assert find(proto=b"https") == Visitor(PEER, PEER, True)


@pytest.mark.parametrize(
    ("addresses", "client", "way"),
    [
        (b"1.1.1.1", b"1.1.1.1", b"1.1.1.1, 10.0.0.1"),
        (b"6.6.6.6,1.1.1.1:80", b"1.1.1.1", b"6.6.6.6, 1.1.1.1, 10.0.0.1"),
        (b"<6>, 1.1.1.1, [::ffff:10.2.2.2]:80", b"1.1.1.1", b"<6>, 1.1.1.1, 10.2.2.2, 10.0.0.1"),
        (b"10.3.3.3, 10.2.2.2", b"10.3.3.3", b"10.3.3.3, 10.2.2.2, 10.0.0.1"),
        (b"1.1.1.1, ,", b"1.1.1.1", b"1.1.1.1, 10.0.0.1"),
    ],
)
def test_visitor_is_the_nearest_who_is_no_trusted_proxy(addresses: bytes, client: bytes, way: bytes) -> None:
    assert find(addresses=addresses) == Visitor(client, way, None)


@pytest.mark.parametrize(
    ("addresses", "way", "unread"),
    [
        (b"1.1.1.1, x", b"1.1.1.1, unknown, 10.0.0.1", b"x"),
        (b"1.1.1.1, x, 10.2.2.2", b"1.1.1.1, unknown, 10.2.2.2, 10.0.0.1", b"x"),
        (b"", b"unknown, 10.0.0.1", b""),
        (b", ", b"unknown, 10.0.0.1", b""),
    ],
)
def test_address_that_cannot_be_read_hides_what_is_before_it(
    addresses: bytes, way: bytes, unread: bytes
) -> None:
    expected = Visitor(b"unknown", way, None, (b"X-Forwarded-For", unread))
    assert find(addresses=addresses, real_ip=b"6.6.6.6", hops=(Hop(b"6.6.6.6"),)) == expected


def test_hops_count_without_a_list_of_addresses() -> None:
    hops = (Hop(b"6.6.6.6", b"http"), Hop(b"1.1.1.1", b"https"), Hop(b"10.2.2.2", b"http"))
    way = b"6.6.6.6, 1.1.1.1, 10.2.2.2, 10.0.0.1"
    assert find(hops=hops, real_ip=b"6.6.6.6") == Visitor(b"1.1.1.1", way, True)
    assert find(hops=hops, proto=b"http") == Visitor(b"1.1.1.1", way, False)
    unread = (b"Forwarded", b"unknown")
    assert find(hops=(Hop(),)) == Visitor(b"unknown", b"unknown, 10.0.0.1", None, unread)


def test_scheme_of_hops_does_not_count_beside_a_list_of_addresses() -> None:
    assert find(addresses=b"1.1.1.1", hops=(Hop(b"1.1.1.1", b"https"),)).secure is None


def test_real_ip_is_one_address() -> None:
    assert find(real_ip=b"6.6.6.6, 1.1.1.1") == Visitor(b"1.1.1.1", b"1.1.1.1, 10.0.0.1", None)
    unread = (b"X-Real-IP", b"x")
    assert find(real_ip=b"6.6.6.6, x") == Visitor(b"unknown", b"unknown, 10.0.0.1", None, unread)


@pytest.mark.parametrize(
    ("addresses", "proto", "secure"),
    [
        (b"1.1.1.1", b"https", True),
        (b"1.1.1.1", b"wss", True),
        (b"1.1.1.1", b"ws", False),
        (b"1.1.1.1", b"on", None),
        (b"1.1.1.1", b"", None),
        (b"1.1.1.1", b"https, http", True),
        (b"1.1.1.1", b"http,https", False),
        (b"6.6.6.6, 1.1.1.1", b"https, http", False),
        (b"6.6.6.6, 1.1.1.1", b"http, https", True),
        (b"1.1.1.1, 10.2.2.2", b"https, http", True),
        (b"6.6.6.6, 1.1.1.1, 10.2.2.2", b"http, https", False),
        (b"6.6.6.6, 1.1.1.1, 10.2.2.2", b"http, https, http", True),
    ],
)
def test_scheme_is_the_visitor_s(addresses: bytes, proto: bytes, secure: bool | None) -> None:
    assert find(addresses=addresses, proto=proto).secure is secure


@given(st.binary(max_size=100), st.binary(max_size=40))
def test_what_visitors_put_before_changes_nothing_of_who_they_are(made_up: bytes, proto: bytes) -> None:
    found = find(addresses=made_up + b", 1.1.1.1:80, 10.2.2.2", proto=proto)
    assert (found.client, found.unread) == (b"1.1.1.1", None)
    assert found.addresses.endswith(b"1.1.1.1, 10.2.2.2, 10.0.0.1")
