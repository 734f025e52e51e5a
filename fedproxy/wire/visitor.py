"""Who the visitor is, according to the headers of a trusted proxy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedproxy.bounded import Memo
from fedproxy.wire.address import read_address

if TYPE_CHECKING:
    from fedproxy.http.request import Forwarded

#: Represents an address that is not given (RFC 7239 section 6.1).
UNKNOWN: Final = b"unknown"

_addresses: Memo[bytes] = Memo(read_address, longest=64)
# For a WebSocket some proxies send the scheme of the browser's URL.
_SECURE: Final = {b"https": True, b"wss": True, b"http": False, b"ws": False}


@dataclass(slots=True)
class Visitor:
    """A visitor, and the route to the edge.

    client: the address in its canonical form, or `unknown`. addresses: all on the way as a list, the
    visitor's own claims first, the trusted proxy's address last. secure: None if no header says. unread: the
    field and the address in it that cannot be parsed; None if there is none.
    """

    client: bytes
    addresses: bytes
    secure: bool | None
    unread: tuple[bytes, bytes] | None = None


def find_visitor(said: Forwarded, peer: bytes, trusts: Callable[[bytes], bool]) -> Visitor:
    """The visitor of a request that the trusted `peer` forwarded.

    Each proxy appends the address of its own peer. So the list is followed from its end while `trusts` says
    that the address is a trusted proxy. An address that cannot be parsed ends it too: its owner may have
    written everything to the left of it.
    """
    if said.addresses is not None:
        told, field = _members(said.addresses), b"X-Forwarded-For"
    elif said.hops:
        told, field = [hop.address or UNKNOWN for hop in said.hops], b"Forwarded"
    elif said.real_ip is not None:
        told, field = _members(said.real_ip)[-1:], b"X-Real-IP"
    else:
        return Visitor(peer, peer, _is_secure(said.proto, 0, 0))
    unread = None
    way = [peer]
    for address in reversed(told):
        client = _addresses[address]
        if not client:
            unread = field, address
            client = UNKNOWN
        way.append(client)
        if unread is not None or not trusts(client):
            break
    depth = len(way) - 1
    way += reversed(told[: len(told) - depth])
    way.reverse()
    secure = _is_secure(said.proto, len(told), depth)
    if secure is None and said.hops and field == b"Forwarded":
        # The scheme is known to the proxy that the visitor connected to.
        secure = _SECURE.get(said.hops[-depth].proto or b"")
    return Visitor(client, b", ".join(way), secure, unread)


def _members(value: bytes) -> list[bytes]:
    """The elements of a list, without empty ones (RFC 9110 section 5.6.1), but at least one."""
    return [part for each in value.split(b",") if (part := each.strip(b" \t"))] or [b""]


def _is_secure(proto: bytes | None, count: int, depth: int) -> bool | None:
    """What X-Forwarded-Proto says about the visitor, who is at `depth` from the end of `count` addresses.

    If there is one entry per address, every proxy added to both lists, and the visitor's entry is in the same
    place as the address, where no visitor can write. Otherwise only some proxies add to the list (`https,
    http`: TLS ends at the first, which asks the second in plain), and the first entry counts, as in most
    frameworks. A visitor may have sent that one, but affects nobody else: it gets a cookie that it will not
    send back, or no redirect.
    """
    if proto is None:
        return None
    protos = _members(proto)
    return _SECURE.get(protos[-depth] if len(protos) == count else protos[0])
