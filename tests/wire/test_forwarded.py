from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.http.request import Hop
from fedproxy.wire.forwarded import read, read_end


@pytest.mark.parametrize(
    ("value", "hops"),
    [
        (b"for=192.0.2.43", [Hop(b"192.0.2.43")]),
        (b'For="[2001:db8:cafe::17]:4711"', [Hop(b"2001:db8:cafe::17")]),
        (b'for="[2001:db8:cafe::17]"', [Hop(b"2001:db8:cafe::17")]),
        (b'for="[2001:DB8::0:1]"', [Hop(b"2001:db8::1")]),
        (b'for="[::ffff:192.0.2.43]:80"', [Hop(b"192.0.2.43")]),
        (b'for="192.0.2.43:47011"', [Hop(b"192.0.2.43")]),
        (b'for="192.0.2.43:_http"', [Hop(b"192.0.2.43")]),
        (b'for="192.0.2\\.43"', [Hop(b"192.0.2.43")]),
        (b"for=192.0.2.60;proto=HTTP;by=203.0.113.43", [Hop(b"192.0.2.60", b"http")]),
        (
            b'for=192.0.2.60; proto=https ;host="hub.test:8443"',
            [Hop(b"192.0.2.60", b"https", b"hub.test:8443")],
        ),
        (b"for=192.0.2.43, for=198.51.100.17", [Hop(b"192.0.2.43"), Hop(b"198.51.100.17")]),
        (b"for=192.0.2.43,for=198.51.100.17;", [Hop(b"192.0.2.43"), Hop(b"198.51.100.17")]),
        (b" , for=192.0.2.43 ,, ", [Hop(b"192.0.2.43")]),
        (b"for=unknown", [Hop()]),
        (b"for=_hidden, for=_SEVKISEK", [Hop(), Hop()]),
        (b'for="_gazonk"', [Hop()]),
        (b"proto=https", [Hop(proto=b"https")]),
        (b'for="a, b";proto=http', [Hop(proto=b"http")]),
        (b'host="a;b"', [Hop(host=b"a;b")]),
        (b'for=""', [Hop()]),
        (b"for=999.0.2.43", [Hop()]),
        (b'for="[192.0.2.43]"', [Hop()]),
        (b'for="2001:db8::1"', [Hop()]),
        (b'for="[::1"', [Hop()]),
        (b"", []),
        (b";;", []),
    ],
)
def test_hops_are_read_in_their_order(value: bytes, hops: list[Hop]) -> None:
    assert read(value) == tuple(hops)


@pytest.mark.parametrize(
    "value",
    [
        b"192.0.2.43",
        b"for=192.0.2.43:80",
        b"for=[2001:db8::1]",
        b"for=192.0.2.43 for=192.0.2.44",
        b"for=192.0.2.43;for=192.0.2.44",
        b"for = 192.0.2.43",
        b'for="192.0.2.43',
        b'for="192.0.2.43\\"',
        b"for=",
        b"=x",
        b'for="a"b, for=192.0.2.43',
    ],
)
def test_malformed_value_says_nothing(value: bytes) -> None:
    assert read(value) == ()


@pytest.mark.parametrize(
    ("value", "end"),
    [
        (b'for="x, for=192.0.2.43', [Hop(b"192.0.2.43")]),
        (
            b'x"y, for=192.0.2.43;proto=https, for="[2001:DB8::1]:80"',
            [Hop(b"192.0.2.43", b"https"), Hop(b"2001:db8::1")],
        ),
        (b'for=192.0.2.43, for="x', []),
        (b"for=192.0.2.43:80", [Hop(b"192.0.2.43")]),
        (
            b"proto=https;For=[2001:db8::1]:443 , for=[2001:db8::2]",
            [Hop(b"2001:db8::1", b"https"), Hop(b"2001:db8::2")],
        ),
        (b"for=2001:db8::1", [Hop()]),
        (b'host="a, for=6.6.6.6:1', [Hop(b"6.6.6.6")]),
        (b'host="a, for=6.6.6.6:1"', []),
        (b"for=192.0.2.43;for=192.0.2.44", []),
        (b"x, ", []),
        (b"", []),
    ],
)
def test_good_end_of_a_malformed_value_counts(value: bytes, end: list[Hop]) -> None:
    assert read_end(value) == (Hop(), *end)


@given(st.binary(max_size=200))
def test_visitor_cannot_spoil_what_its_proxy_says_of_it(made_up: bytes) -> None:
    value = made_up + b", for=192.0.2.43:80;proto=https"
    assert (read(value) or read_end(value))[-1] == Hop(b"192.0.2.43", b"https")


@given(st.binary(max_size=200))
def test_any_bytes_say_something_or_nothing(value: bytes) -> None:
    for text in (value, b"for=192.0.2.43;" + value, b'for="' + value):
        assert isinstance(read(text), tuple)
        assert read_end(text)[0] == Hop()
