"""Members' names to addresses, followed when they change.

A name that is followed is resolved again in the background whenever its time to live is over, so that no
request waits for that, and its watchers are told when it moves. What an answer means is decided in
`decide.addresses`. When a name cannot be resolved any more, its last addresses stay in use: a name server
that is down must not take healthy members with it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence

import aiodns
import pycares

from fedproxy.decide.addresses import Addresses
from fedproxy.errors import ExchangeError, NameFailed, NoResolver, own_fault
from fedproxy.event import Event, EventName
from fedproxy.tasks import Tasks, cancel

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
_SHORTEST, _LONGEST = 1.0, 60.0
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# The name does not exist, or has no such address: an answer, though an empty one.
_EMPTY = (aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND)
# c-ares cannot work here: its configuration or memory, not the name.
_BROKEN = (aiodns.error.ARES_EFILE, aiodns.error.ARES_ENOMEM, aiodns.error.ARES_ENOTINITIALIZED)
# c-ares keeps an answer without data for an hour, whatever its time to live, and cannot be told not to
# (c-ares issue 1293). Its cache ends with the channel, so none is used for more than this many seconds.
_LONGEST_CHANNEL = 1.0
_FRESHEN = 0.5  # seconds to wait for a new answer if the last one can be used
_PATIENCE = 1.0  # seconds for a name server's answer; twice that the second time


class Name:
    """A name and the port that its addresses are used with."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.addresses = Addresses()
        self.found: list[AddressInfo] = []
        self.expires = float("-inf")
        self.asking: asyncio.Task[None] | None = None
        self.error: Exception | None = None  # of the last attempt to resolve it
        self.watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Name {self.host}:{self.port} {self.addresses!r}>"


class _Channel:
    """A way to the name servers, and how many questions are under way on it."""

    def __init__(self, nameservers: Sequence[str], until: float) -> None:
        self.dns = aiodns.DNSResolver(nameservers or None, timeout=_PATIENCE, tries=2)
        self.until = until
        self.asking = 0


class Resolver:
    """Resolves with c-ares, which reads /etc/hosts and /etc/resolv.conf.

    nameservers: used in place of those in /etc/resolv.conf, as `ADDRESS:PORT`. The default is the environment
    variable FEDPROXY_NAMESERVERS, separated by commas, if it is set. report: takes what operators should
    know.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        nameservers: Sequence[str] = (),
        report: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._clock = clock
        self._report = report
        self._nameservers = (
            nameservers or os.environ.get("FEDPROXY_NAMESERVERS", "").replace(",", " ").split()
        )
        self._channel: _Channel | None = None
        self._names: dict[tuple[str, int], Name] = {}
        self._asking = Tasks()

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """All addresses of a name, in the resolver's order.

        Raises `NameFailed`, and a kind of `EdgeFailed` if nothing can be resolved here at all. It waits for
        an answer only if there was none yet, or for a moment if the last one has expired and nobody follows
        the name.
        """
        address = _parsed(host)
        if address is not None:
            return [_info(host, address.version, port)]
        name = self._name(host, port)
        if self._clock() >= name.expires:
            asking = self._ask(name)
            if not (name.found and name.watchers):
                # Others may wait for it too, so a cancelled caller must not cancel it.
                await asyncio.wait([asking], timeout=_FRESHEN if name.found else None)
        if not name.found:
            raise _fault(host, name.error) from name.error
        return name.found

    def follow(self, host: str, port: int, watcher: Callable[[], None]) -> Name | None:
        """Keeps a name resolved. `watcher` is called when its addresses, or those on hold, change.

        None if `host` is an address itself.
        """
        if _parsed(host) is not None:
            return None
        name = self._name(host, port)
        name.watchers.append(watcher)
        return name

    def leave(self, name: Name, watcher: Callable[[], None]) -> None:
        """Undoes `follow`."""
        name.watchers.remove(watcher)
        if not name.watchers and self._names.get((name.host, name.port)) is name:
            del self._names[name.host, name.port]

    def sweep(self, now: float) -> None:
        """To be called about once a second: resolves the names that have expired."""
        for name in list(self._names.values()):
            if not name.watchers:
                continue
            if name.addresses.held and name.addresses.roll(now):
                _tell(name)
            if now >= name.expires:
                self._ask(name)

    async def close(self) -> None:
        """Ends what is under way, and the resolver's own sockets."""
        # Some may be for names that nobody follows any more.
        await cancel(self._asking)
        channel, self._channel = self._channel, None
        if channel is not None:
            await self._close_unused(channel)

    def _name(self, host: str, port: int) -> Name:
        name = self._names.get((host, port))
        if name is None:
            name = self._names[host, port] = Name(host, port)
        return name

    def _ask(self, name: Name) -> asyncio.Task[None]:
        if name.asking is None:
            name.asking = self._asking.start(self._learn(name))
        return name.asking

    async def _learn(self, name: Name) -> None:
        try:
            found, failed, ttl = await self._look_up(name)
        # ValueError: a name that no resolver accepts. The last two: a channel that cannot be made.
        except (aiodns.error.DNSError, ValueError, pycares.AresError, RuntimeError) as error:
            self._failed(name, error)
            return
        finally:
            name.asking = None
        if not found:
            self._failed(name, NameFailed("it has no address"))
            return
        now = self._clock()
        name.error = None
        addresses = name.addresses
        moved = addresses.learn(found, failed, now)
        name.expires = now + (_SHORTEST if addresses.unsure else max(ttl, _SHORTEST))
        name.found = [_info(address, 6 if ":" in address else 4, name.port) for address in addresses.current]
        if moved:
            _tell(name)

    def _failed(self, name: Name, error: Exception) -> None:
        if name.found and name.error is None:
            why = error.args[-1] if error.args else error
            message = (
                f"{name.host} does not resolve any more ({why}); its last addresses stay in use until it does"
            )
            self._report(Event(EventName.MEMBER_UNRESOLVED, message))
        name.error = error
        name.expires = self._clock() + _SHORTEST

    async def _look_up(self, name: Name) -> tuple[list[str], set[int], float]:
        """The addresses of a name, the families that could not be asked for, and seconds to live."""
        asked = self._clock()
        found, ttl = await self._query(name, socket.AF_UNSPEC)
        failed: set[int] = set()
        absent = name.addresses.absent(found) if found else ()
        if absent and self._clock() - asked >= _PATIENCE:
            # The server did not answer that half, and will not now.
            return found, set(absent), ttl
        # An answer of one family does not tell whether there is none of the other, or asking for it failed.
        for version in absent:
            try:
                more, _ = await self._query(name, _FAMILIES[version])
            except aiodns.error.DNSError as error:
                if error.args[0] not in _EMPTY:
                    failed.add(version)
            else:
                # An answer from /etc/hosts has no time to live, and is complete.
                found += more if ttl else []
        return found, failed, ttl

    async def _query(self, name: Name, family: int) -> tuple[list[str], float]:
        channel = await self._open()
        channel.asking += 1
        try:
            answer = await channel.dns.getaddrinfo(
                name.host, family=socket.AddressFamily(family), port=name.port, type=socket.SOCK_STREAM
            )
        finally:
            channel.asking -= 1
            await self._close_unused(channel)
        found = []
        for node in answer.nodes:
            ip = node.addr[0]
            found.append(plain(ip.decode("ascii") if isinstance(ip, bytes) else str(ip)))
        # A name may also move by its CNAME.
        lives = [node.ttl for node in answer.nodes] + [cname.ttl for cname in answer.cnames]
        return found, min([_LONGEST, *map(float, lives)])

    async def _open(self) -> _Channel:
        """The channel in use, or a new one if that is too old."""
        now = self._clock()
        old = self._channel
        if old is not None and now < old.until:
            return old
        channel = self._channel = _Channel(self._nameservers, now + _LONGEST_CHANNEL)
        if old is not None:
            await self._close_unused(old)
        return channel

    async def _close_unused(self, channel: _Channel) -> None:
        if channel is not self._channel and not channel.asking:
            await channel.dns.close()


def _fault(host: str, error: Exception | None) -> ExchangeError:
    """Whose fault it is that a name was not resolved."""
    try:
        # c-ares reports a socket that it could not open like a server that does not answer.
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as refused:
        return own_fault(refused) or NoResolver()
    broken = isinstance(error, aiodns.error.DNSError) and error.args[0] in _BROKEN
    if broken or isinstance(error, pycares.AresError | RuntimeError):
        return NoResolver()
    return NameFailed(f"{host} does not resolve")


def plain(address: str) -> str:
    """An IP address in its canonical form, without a zone."""
    return str(ipaddress.ip_address(address.partition("%")[0]))


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _info(address: str, version: int, port: int) -> AddressInfo:
    return (_FAMILIES[version], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))


def _tell(name: Name) -> None:
    for watcher in list(name.watchers):
        watcher()
