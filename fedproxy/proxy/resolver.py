"""Members' names to addresses, followed when they change.

An answer is kept for its time to live, within bounds. When a name cannot be resolved any more, its last
addresses go on serving: a name server that is down must not take healthy members with it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import aiodns
import pycares

from fedproxy.errors import ExchangeError, NameFailed, NoResolver, own_fault

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
_SHORTEST, _LONGEST = 1.0, 60.0
# c-ares cannot work here: its configuration or memory, not the name.
_BROKEN = (aiodns.error.ARES_EFILE, aiodns.error.ARES_ENOMEM, aiodns.error.ARES_ENOTINITIALIZED)


class Resolver:
    """Resolves with c-ares, which reads /etc/hosts and the search domains of /etc/resolv.conf."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._dns: aiodns.DNSResolver | None = None
        self._known: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """All addresses of a name, in the resolver's order.

        Raises `NameFailed`, and a kind of `EdgeFailed` if nothing can be resolved here at all.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        now = self._clock()
        expires, found = self._known.get((host, port), (0.0, []))
        if now < expires:
            return found
        try:
            if self._dns is None:
                self._dns = aiodns.DNSResolver(timeout=2.0, tries=2)
            answer = await self._dns.getaddrinfo(
                host, family=socket.AF_UNSPEC, port=port, type=socket.SOCK_STREAM
            )
        # The other two are of a channel that cannot be made.
        except (aiodns.error.DNSError, pycares.AresError, RuntimeError) as error:
            if found:
                self._known[host, port] = (now + _SHORTEST, found)
                return found
            raise _fault(host, error) from error
        found, ttl = [], _LONGEST
        for node in answer.nodes:
            ip, number = node.addr[0], node.addr[1]
            text = ip.decode("ascii") if isinstance(ip, bytes) else str(ip)
            found.append((node.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (text, int(number))))
            ttl = min(ttl, float(node.ttl))
        if not found:
            raise NameFailed(f"{host} has no address")
        self._known[host, port] = (now + max(ttl, _SHORTEST), found)
        return found

    async def close(self) -> None:
        """Ends the resolver's own sockets."""
        if self._dns is not None:
            await self._dns.close()


def _fault(host: str, error: Exception) -> ExchangeError:
    """Whose fault it is that a name was not resolved."""
    try:
        # c-ares says of a socket that it could not have what it says of a server that does not answer.
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as refused:
        return own_fault(refused) or NoResolver()
    if not isinstance(error, aiodns.error.DNSError) or error.args[0] in _BROKEN:
        return NoResolver()
    return NameFailed(f"{host} does not resolve")
