"""IP addresses as proxies spell them."""

from __future__ import annotations

import re

from fedproxy.http.address import parse

# RFC 7239 section 6.3 lets a port be hidden behind a name; RFC 4007 section 11 gives IPv6 a zone.
_SPELT = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)(?:%[^\]]+)?\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._\-]+))?"
    rb"|([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)(?:%.+)?"
).fullmatch


def read_address(text: bytes) -> bytes:
    """The address alone, in its canonical form (RFC 5952); empty if the text is none.

    A port, brackets and a zone are cut off. An IPv4-mapped address is the IPv4 address (RFC 4291 section
    2.5.5.2), so that one client has one spelling.
    """
    match = _SPELT(text)
    if match is None:
        return b""
    bare: bytes = match[1] or match[2] or match[3]
    parsed = parse(bare)
    return b"" if parsed is None else str(parsed).encode("ascii")
