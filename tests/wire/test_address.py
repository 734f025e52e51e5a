from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.address import read_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"203.0.113.5", b"203.0.113.5"),
        (b"203.0.113.5:51234", b"203.0.113.5"),
        (b"203.0.113.5:_http", b"203.0.113.5"),
        (b"[203.0.113.5]:80", b"203.0.113.5"),
        (b"2001:db8::1", b"2001:db8::1"),
        (b"[2001:db8::1]", b"2001:db8::1"),
        (b"[2001:db8::1]:443", b"2001:db8::1"),
        (b"2001:0DB8:0000::0001", b"2001:db8::1"),
        (b"fe80::1%eth0", b"fe80::1"),
        (b"[fe80::1%25eth0.1]:80", b"fe80::1"),
        (b"::ffff:203.0.113.5", b"203.0.113.5"),
        (b"[::FFFF:cb00:7105]:80", b"203.0.113.5"),
        # Not IPv4-mapped, however alike it looks (RFC 2765).
        (b"::ffff:0:203.0.113.5", b"::ffff:0:cb00:7105"),
        (b"", b""),
        (b"unknown", b""),
        (b"_hidden", b""),
        (b"unix:", b""),
        (b"unix:/run/a.sock", b""),
        (b"203.0.113", b""),
        (b"203.0.113.5:", b""),
        (b"203.0.113.5:123456", b""),
        (b"203.0.113.5:http", b""),
        (b"203.0.113.005", b""),
        (b"203.0.113.256", b""),
        (b"203.0.113.5 ", b""),
        (b"203.0.113.5\n", b""),
        (b"203.0.113.5, 203.0.113.6", b""),
        (b'"203.0.113.5"', b""),
        (b"203.0.113.5/32", b""),
        (b"203.0.113.5%eth0", b""),
        (b"3405803781", b""),
        (b"0x7f.1", b""),
        (b"[2001:db8::1", b""),
        (b"2001:db8::1]", b""),
        (b"[2001:db8::1]443", b""),
        (b"[]", b""),
        (b":", b""),
        (b"2001:db8:::1", b""),
        (b"2001:db8:0:0:0:0:0:1:443", b""),
        (b"\xd9\xa1.1.1.1", b""),
    ],
)
def test_address_is_read_without_what_is_around_it(text: bytes, address: bytes) -> None:
    assert read_address(text) == address


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_spelling_of_an_address_is_one_address(address: object, port: int) -> None:
    text = str(address)
    parsed = ip_address(text)
    bracketed = f"[{text}]" if parsed.version == 6 else text
    canonical = read_address(text.encode())
    assert ip_address(canonical.decode()) in (parsed, getattr(parsed, "ipv4_mapped", None))
    for spelling in (text.upper(), bracketed, f"{bracketed}:{port}", parsed.exploded):
        assert read_address(spelling.encode()) == canonical


@given(st.binary(max_size=80))
def test_any_bytes_are_an_address_or_none(data: bytes) -> None:
    for text in (data, b"[" + data, b"1.2.3.4" + data, b"::" + data):
        found = read_address(text)
        assert not found or ip_address(found.decode())
