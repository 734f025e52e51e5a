"""Bans, and the launch rate of a client.

Each check takes constant time, and the memory is bounded for any number of clients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from urllib.parse import unquote

from fedproxy.bounded import Generations
from fedproxy.http.address import parse

_SLASHES = re.compile("/{2,}")


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """The IPv4 network that a network of IPv4-mapped addresses stands for."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((int(mapped), network.prefixlen - 96))


def client_key(address: bytes) -> bytes:
    """The key of a client: an IPv4 address, or the /64 of an IPv6 address, which is one household's.

    `address` is text; if it is not an address, it is the key itself.
    """
    parsed = parse(address)
    if isinstance(parsed, IPv6Address):
        return parsed.packed[:8]
    return parsed.packed if parsed is not None else address


#: The same, cached for recurring clients.
known_client = lru_cache(maxsize=4096)(client_key)


class Networks:
    """A set of networks. A check takes one look-up per distinct prefix length, not one per network."""

    __slots__ = ("_lengths",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        lengths: dict[tuple[int, int], set[int]] = {}
        for network in map(_unmapped, networks):
            beyond = network.max_prefixlen - network.prefixlen
            found = lengths.setdefault((network.version, beyond), set())
            found.add(int(network.network_address) >> beyond)
        self._lengths = tuple((version, beyond, found) for (version, beyond), found in lengths.items())

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def __contains__(self, address: bytes) -> bool:
        """Whether an address, as text, is in one of the networks; other text is in none."""
        parsed = parse(address)
        if parsed is None:
            return False
        version, number = parsed.version, int(parsed)
        return any(v == version and number >> beyond in found for v, beyond, found in self._lengths)


@dataclass(frozen=True)
class Bans:
    """The operator's bans.

    `repositories` are searched in `PROVIDER/SPEC`, as it was sent and percent-decoded;
    `user_agents` in the User-Agent field.
    """

    networks: Networks = field(default_factory=lambda: Networks(()))
    repositories: tuple[re.Pattern[str], ...] = ()
    user_agents: tuple[re.Pattern[str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.networks or self.repositories or self.user_agents)

    def agent(self, user_agent: bytes) -> bool:
        """Whether a User-Agent is banned; a missing one counts as empty."""
        text = user_agent.decode("latin-1")
        return any(pattern.search(text) for pattern in self.user_agents)

    def repository(self, *paths: bytes) -> bool:
        """Whether a path without its query, in any of its readings `paths`, requests a banned repository."""
        forms: set[str] = set()
        for path in paths:
            start = next((start for start in (b"/build/", b"/v2/") if path.startswith(start)), None)
            if start is not None:
                spec = path[len(start) :].decode("latin-1")
                # A repository's URL is encoded once in the spec and once more on the way.
                once = unquote(spec)
                forms |= {_SLASHES.sub("/", form) for form in (spec, once, unquote(once))}
        return any(pattern.search(form) for pattern in self.repositories for form in forms)


class LaunchRate:
    """How often each client may launch: `launches` at once, and then one every `per / launches` seconds.

    The generic cell rate algorithm: for each client one time is kept, at which all its launches are paid for.
    It is never further ahead than `per`, so two generations of `per` seconds hold all that still matters. At
    most `entries` clients are kept in each generation. A flood of more clients makes it forget the oldest
    early, which can only allow a launch and never deny one; a client that keeps asking is not forgotten.
    """

    def __init__(self, launches: int, per: float, *, entries: int = 32_768) -> None:
        self._per = per
        self._each = per / launches
        self._entries = entries
        self._paid_until: Generations[bytes, float] = Generations()
        self._turned: float | None = None

    def __len__(self) -> int:
        return len(self._paid_until)

    def ask(self, client: bytes, now: float) -> float:
        """Counts a launch and returns 0, or counts nothing and returns the seconds until the next attempt.

        `client` is a `client_key`.
        """
        paid = self._paid(client, now)
        after = paid + self._each
        wait = after - self._per - now
        # A rounding error is not a waiting time.
        if wait > 1e-9 * (1.0 + abs(now)):
            self._keep(client, paid)
            return wait
        self._keep(client, after)
        return 0.0

    def owed(self, client: bytes, now: float) -> float:
        """In how many seconds all launches of a client are paid for."""
        paid = self._paid(client, now)
        self._keep(client, paid)
        return paid - now

    def note(self, client: bytes, now: float) -> None:
        """Counts a launch that was admitted elsewhere."""
        self._keep(client, min(self._paid(client, now) + self._each, now + self._per))

    def _paid(self, client: bytes, now: float) -> float:
        if self._turned is None or not 0 <= now - self._turned < self._per:
            self._paid_until.turn()
            self._turned = now
        paid = self._paid_until.take(client)
        # A clock that went back must not lock anybody out.
        return now if paid is None else max(now, min(paid, now + self._per))

    def _keep(self, client: bytes, paid: float) -> None:
        kept = self._paid_until
        if len(kept.young) >= self._entries and client not in kept.young:
            kept.turn()
        kept.put(client, paid)
