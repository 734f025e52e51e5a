"""Who the visitor is, by what a trusted proxy says of whom it forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedproxy.wire.address import read_address
from fedproxy.wire.grammar import Memo

if TYPE_CHECKING:
    from fedproxy.wire.request import Forwarded

#: The word for an address that is not told (RFC 7239 section 6.1).
UNKNOWN: Final = b"unknown"

_addresses: Memo[bytes] = Memo(read_address, longest=64)
# Some proxies say for a WebSocket what the browser's URL says.
_SECURE: Final = {b"https": True, b"wss": True, b"http": False, b"ws": False}


@dataclass(slots=True)
class Visitor:
    """Who came, and how.

    client: the address in its canonical form, or `unknown`. addresses: those on the way as a list, the
    visitor's own claims first, the trusted proxy's own address last. secure: None if nobody says it.
    unread: the field that named an address that cannot be read, and that address; None if there was none.
    """

    client: bytes
    addresses: bytes
    secure: bool | None
    unread: tuple[bytes, bytes] | None = None


def find_visitor(said: Forwarded, peer: bytes, trusts: Callable[[bytes], bool]) -> Visitor:
    """The visitor of a request that the trusted `peer` forwarded.

    Each proxy names whoever came to it, to the right of what it was told itself. So the list is followed from
    its end for as long as `trusts` says that it was a trusted proxy who came. An address that cannot be read
    ends it too: whoever that was wrote all that stands before it, and the proxy did not come for itself.
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
        # How the visitor came is known to the one it came to.
        secure = _SECURE.get(said.hops[-depth].proto or b"")
    return Visitor(client, b", ".join(way), secure, unread)


def _members(value: bytes) -> list[bytes]:
    """The members of a list, without empty ones (RFC 9110 section 5.6.1); a list of nothing has one."""
    return [part for each in value.split(b",") if (part := each.strip(b" \t"))] or [b""]


def _is_secure(proto: bytes | None, count: int, depth: int) -> bool | None:
    """What X-Forwarded-Proto says of the visitor, who is at `depth` from the end of `count` addresses.

    If there is one for each address, every proxy wrote to both lists: the visitor's is in the same place,
    where no visitor can write. Otherwise only some proxies add to the list (`https, http`: TLS ends at the
    first, and the second is asked in plain), and it is the first, as most frameworks read it. A visitor may
    have sent that one, but fools only itself: it gets a cookie that it will not send back, or no redirect.
    """
    if proto is None:
        return None
    protos = _members(proto)
    return _SECURE.get(protos[-depth] if len(protos) == count else protos[0])
