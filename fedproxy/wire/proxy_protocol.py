"""The header of the PROXY protocol, versions 1 and 2: the client according to a proxy in front of the edge.

HAProxy's `doc/proxy-protocol.txt`, sections 2.1 and 2.2. It precedes everything else on a connection, also a
TLS handshake.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from fedproxy.errors import BadProxyHeader
from fedproxy.http.address import IPAddress, unmapped

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16  # signature, version and command, family and transport, length of the rest
_LONGEST_LINE: Final = 107  # version 1, including its CRLF
_LONGEST_REST: Final = 4096 - _FIXED  # version 2: addresses and TLVs; proxies send a few hundred bytes
_LOCAL, _PROXY = 0x20, 0x21
# Family and transport -> the size of the addresses of both ends.
_ADDRESSES: Final = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_TCP4, _TCP6, _UNSPECIFIED = 0x11, 0x21, 0x00
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}").fullmatch


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """`size`: the bytes of the header. `client`: the client's address, as text; None if the header does not
    have it. `own`: the proxy connects for itself, as for a health check; otherwise for a visitor, whom
    it may not be able to name."""

    size: int
    client: bytes | None
    own: bool = field(default=False, compare=False)


def read(data: bytes) -> ProxyHeader | None:
    """The header at the start of `data`, or None while it is incomplete.

    Raises `BadProxyHeader` as soon as it cannot become one.
    """
    if data.startswith(b"PROXY "):
        return _read_line(data)
    if data.startswith(_SIGNATURE):
        return _read_binary(data)
    if _SIGNATURE.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise BadProxyHeader


def _read_line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _LONGEST_LINE)
    if end < 0:
        if len(data) >= _LONGEST_LINE:
            raise BadProxyHeader
        return None
    family, *rest = data[6:end].split(b" ")
    if family == b"UNKNOWN":
        return ProxyHeader(end + 2, None)
    if family not in (b"TCP4", b"TCP6") or len(rest) != 4:
        raise BadProxyHeader
    source, destination, *ports = rest
    client = _address(family, source)
    _address(family, destination)
    for port in ports:
        if _PORT(port) is None or int(port) > 65535:
            raise BadProxyHeader
    return ProxyHeader(end + 2, client)


def _address(family: bytes, text: bytes) -> bytes:
    try:
        if family == b"TCP4":
            return str(IPv4Address(text.decode("ascii"))).encode("ascii")
        if b"%" in text:
            raise BadProxyHeader
        return _text(IPv6Address(text.decode("ascii")))
    except (AddressValueError, UnicodeDecodeError) as error:
        raise BadProxyHeader from error


def _text(address: IPAddress) -> bytes:
    return str(unmapped(address)).encode("ascii")


def _read_binary(data: bytes) -> ProxyHeader | None:
    if len(data) >= 13 and data[12] not in (_LOCAL, _PROXY):
        raise BadProxyHeader
    if len(data) < _FIXED:
        return None
    kind = data[13]
    rest = int.from_bytes(data[14:16])
    if rest > _LONGEST_REST:
        raise BadProxyHeader
    size = _FIXED + rest
    if data[12] == _LOCAL:
        # The receiver must take any family here, and ignore it.
        return ProxyHeader(size, None, own=True) if len(data) >= size else None
    if kind != _UNSPECIFIED and (kind not in _ADDRESSES or rest < _ADDRESSES[kind]):
        raise BadProxyHeader
    if len(data) < size:
        return None
    if kind == _TCP4:
        return ProxyHeader(size, str(IPv4Address(data[16:20])).encode("ascii"))
    if kind == _TCP6:
        return ProxyHeader(size, _text(IPv6Address(data[16:32])))
    return ProxyHeader(size, None)
