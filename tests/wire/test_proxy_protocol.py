from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.errors import BadProxyHeader
from fedproxy.wire.proxy_protocol import ProxyHeader, read

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 56324, 443)
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 56324, 443)
)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:203.0.113.7") * 2 + bytes(4)
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
TLV = b"\x04\x00\x03abc"


def binary(command: int, kind: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes((command, kind)) + struct.pack("!H", len(rest)) + rest


GOOD = {
    b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n": b"203.0.113.7",
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": b"255.255.255.255",
    b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n": b"0.0.0.0",
    b"PROXY TCP6 2001:DB8:0:0::7 2001:db8::1 1 443\r\n": b"2001:db8::7",
    b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 443\r\n": b"203.0.113.7",
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN and more, which means nothing\r\n": None,
    b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n": None,
    binary(0x21, 0x11, V4): b"203.0.113.7",
    binary(0x21, 0x11, V4 + TLV): b"203.0.113.7",
    binary(0x21, 0x21, V6 + TLV * 50): b"2001:db8::7",
    binary(0x21, 0x21, MAPPED): b"203.0.113.7",
    binary(0x21, 0x12, V4): None,
    binary(0x21, 0x22, V6): None,
    binary(0x21, 0x31, UNIX): None,
    binary(0x21, 0x32, UNIX + TLV): None,
    binary(0x21, 0x00, b""): None,
    binary(0x21, 0x00, TLV): None,
    binary(0x20, 0x00, b""): None,
    binary(0x20, 0x11, V4): None,
    binary(0x20, 0xFF, TLV): None,
    binary(0x21, 0x11, V4.ljust(4080, b"\0")): b"203.0.113.7",
}

BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"proxy TCP4 203.0.113.7 192.0.2.1 56324 443\r\n",
    b"PROXY\tTCP4 203.0.113.7 192.0.2.1 56324 443\r\n",
    b"PROXY  TCP4 203.0.113.7 192.0.2.1 56324 443\r\n",
    b"PROXY UDP4 203.0.113.7 192.0.2.1 56324 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 56324\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443 \r\n",
    b"PROXY TCP4 203.0.113.07 192.0.2.1 56324 443\r\n",
    b"PROXY TCP4 203.0.113 192.0.2.1 56324 443\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.256 56324 443\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
    b"PROXY TCP6 203.0.113.7 192.0.2.1 56324 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 443\r\n",
    b"PROXY TCP4 203.0.113.\xb7 192.0.2.1 56324 443\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 00443 443\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 443\r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 443 \r\n",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\n" + b"x" * 107,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"PROXY " + b"x" * 101,
    binary(0x11, 0x11, V4),
    binary(0x22, 0x11, V4),
    binary(0x21, 0x11, V4[:-1]),
    binary(0x21, 0x21, V4),
    binary(0x21, 0x31, V6),
    binary(0x21, 0x13, V4),
    binary(0x21, 0x41, V4),
    binary(0x21, 0x01, V4),
    binary(0x21, 0x11, V4.ljust(4081, b"\0"))[:16],
    binary(0x20, 0x00, b"\0" * 4081)[:16],
    SIGNATURE + b"\x31",
    SIGNATURE[:-1] + b"\r",
]


@pytest.mark.parametrize("header", GOOD)
def test_header_says_who_connects_and_where_it_ends(header: bytes) -> None:
    assert read(header) == ProxyHeader(len(header), GOOD[header])
    assert read(header + b"GET / HTTP/1.1\r\n") == ProxyHeader(len(header), GOOD[header])


@pytest.mark.parametrize("header", GOOD)
def test_header_that_is_cut_short_is_waited_for(header: bytes) -> None:
    assert not any(read(header[:end]) for end in range(len(header)))


@pytest.mark.parametrize("header", BAD)
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        read(header)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_the_beginning_of_one_or_refused(data: bytes) -> None:
    for text in (data, b"PROXY " + data, SIGNATURE + data, SIGNATURE + b"\x21" + data):
        try:
            found = read(text)
        except BadProxyHeader:
            continue
        assert found is None or found.size <= len(text)


@given(st.binary(max_size=5000))
def test_nobody_is_waited_for_beyond_the_longest_header(data: bytes) -> None:
    for text in (b"PROXY " + data.replace(b"\r\n", b""), SIGNATURE + data):
        try:
            found = read(text)
        except BadProxyHeader:
            continue
        assert found is not None or len(text) < 4096
