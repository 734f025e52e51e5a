"""Members' names to addresses, followed when they change.

An answer is kept for its time to live, within bounds. When a name cannot be resolved any more, its last
addresses go on serving: a name server that is down must not take healthy members with it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import aiodns

from fedproxy.errors import NameFailed

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
_SHORTEST, _LONGEST = 1.0, 60.0


class Resolver:
    """Resolves with c-ares, which reads /etc/hosts and the search domains of /etc/resolv.conf."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._dns: aiodns.DNSResolver | None = None
        self._known: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """All addresses of a name, in the resolver's order. Raises `NameFailed`."""
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
        if self._dns is None:
            self._dns = aiodns.DNSResolver(timeout=2.0, tries=2)
        try:
            answer = await self._dns.getaddrinfo(
                host, family=socket.AF_UNSPEC, port=port, type=socket.SOCK_STREAM
            )
        except aiodns.error.DNSError as error:
            if found:
                self._known[host, port] = (now + _SHORTEST, found)
                return found
            raise NameFailed(f"{host} does not resolve") from error
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
