"""Addresses of clients, in one form for each client."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

IPAddress = IPv4Address | IPv6Address


def unmapped(address: IPAddress) -> IPAddress:
    """An IPv4 client of an IPv6 listener is an IPv4 client (RFC 4291 section 2.5.5.2)."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def parse(text: bytes) -> IPAddress | None:
    """The address that a text without port, brackets and zone spells; None if it spells none."""
    try:
        return unmapped(ip_address(text.decode("ascii", "replace")))
    except ValueError:
        return None
