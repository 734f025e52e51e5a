from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.forwarded import Hop, read


@pytest.mark.parametrize(
    ("value", "hops"),
    [
        (b"for=192.0.2.43", [Hop(b"192.0.2.43")]),
        (b'For="[2001:db8:cafe::17]:4711"', [Hop(b"2001:db8:cafe::17")]),
        (b'for="[2001:db8:cafe::17]"', [Hop(b"2001:db8:cafe::17")]),
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


@given(st.binary(max_size=200))
def test_any_bytes_say_something_or_nothing(value: bytes) -> None:
    for text in (value, b"for=192.0.2.43;" + value, b'for="' + value):
        assert isinstance(read(text), tuple)
