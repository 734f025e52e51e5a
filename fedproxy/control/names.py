"""A name in DNS whose records are members.

What an answer means is decided in `decide.discovery`. Without an answer, or with an empty one, the last
members stay: a name server in trouble must not take members with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import aiodns
import pycares

from fedproxy.config.model import MemberSettings, SourceSettings
from fedproxy.control.sources import FoundMember, SourceAnswer
from fedproxy.decide.discovery import Damper, DnsMember, ServiceRecord, member_name, members_of, next_question

T = TypeVar("T")

_PATIENCE: Final = 1.0  # seconds for a name server's answer; twice that the second time
_LONGEST_CHANNEL: Final = 1.0  # seconds
_LONGEST: Final = 10.0  # seconds for a question, however many name servers there are
_SOON: Final = 0.1  # seconds between two questions at least, whatever is to be forgotten
_EMPTY: Final = (aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND)
_PORTS: Final = {"http": 80, "https": 443}


class NoAnswer(Exception):
    """A question has no answer that says anything; the text is for operators."""


@dataclass(frozen=True)
class ServiceAnswer:
    """The records of a name, and how many seconds they may be kept."""

    records: Sequence[ServiceRecord]
    ttl: float


class NameService(Protocol):
    """Who is asked."""

    async def services(self, name: str) -> ServiceAnswer:
        """The SRV records of a name. Raises `NoAnswer`."""

    async def exists(self, name: str) -> float:
        """How long a name that has an address may be taken to have one, in seconds. Raises `NoAnswer`."""


class NameServers:
    """The name servers of /etc/resolv.conf, or of FEDPROXY_NAMESERVERS in the environment.

    Questions within a second share a channel. None is used for longer, because c-ares keeps answers, and some
    beyond their time to live (c-ares issue 1293); one for each question would need too many descriptors.
    """

    def __init__(self, nameservers: Sequence[str] = ()) -> None:
        given = os.environ.get("FEDPROXY_NAMESERVERS", "").replace(",", " ").split()
        self._nameservers = nameservers or given
        self._dns: aiodns.DNSResolver | None = None
        self._until = float("-inf")
        self._asking: Counter[aiodns.DNSResolver] = Counter()

    async def close(self) -> None:
        """Closes what is open, once nobody asks any more."""
        dns, self._dns = self._dns, None
        await self._close_unused(dns)

    async def services(self, name: str) -> ServiceAnswer:
        """As `NameService` has it."""

        async def ask(dns: aiodns.DNSResolver) -> ServiceAnswer:
            answer = (await dns.query_dns(name, "SRV")).answer
            found = [each for each in answer if isinstance(each.data, pycares.SRVRecordData)]
            if not found:
                raise NoAnswer("it has no SRV records")
            records = [
                ServiceRecord(each.data.target, each.data.port, each.data.priority, each.data.weight)
                for each in found
                if isinstance(each.data, pycares.SRVRecordData)
            ]
            # A CNAME's time to live counts too.
            return ServiceAnswer(records, min(float(each.ttl) for each in answer))

        return await self._ask(ask)

    async def exists(self, name: str) -> float:
        """As `NameService` has it."""

        async def ask(dns: aiodns.DNSResolver) -> float:
            answer = await dns.getaddrinfo(name, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
            if not answer.nodes:
                raise NoAnswer("it has no address")
            lives = [node.ttl for node in answer.nodes] + [cname.ttl for cname in answer.cnames]
            return min(map(float, lives))

        return await self._ask(ask)

    async def _ask(self, ask: Callable[[aiodns.DNSResolver], Coroutine[Any, Any, T]]) -> T:
        dns = None
        try:
            dns = await self._open()
            self._asking[dns] += 1
            async with asyncio.timeout(_LONGEST):
                return await ask(dns)
        except aiodns.error.DNSError as error:
            if error.args[0] in _EMPTY:
                raise NoAnswer("it has no records") from error
            raise NoAnswer(f"it cannot be looked up: {error.args[-1]}") from error
        except TimeoutError as error:
            raise NoAnswer("no name server answered in time") from error
        except (ValueError, OSError, RuntimeError, pycares.AresError) as error:
            # A name that no resolver accepts, or a channel that cannot be made.
            raise NoAnswer(f"it cannot be looked up: {error}") from error
        finally:
            if dns is not None:
                self._asking[dns] -= 1
                await self._close_unused(dns)

    async def _open(self) -> aiodns.DNSResolver:
        now = time.monotonic()
        if self._dns is None or now >= self._until:
            old = self._dns
            self._dns = aiodns.DNSResolver(self._nameservers or None, timeout=_PATIENCE, tries=2)
            self._until = now + _LONGEST_CHANNEL
            await self._close_unused(old)
        return self._dns

    async def _close_unused(self, dns: aiodns.DNSResolver | None) -> None:
        if dns is not None and dns is not self._dns and not self._asking[dns]:
            del self._asking[dns]
            await dns.close()


class MembersByName:
    """The members that one name of `sources.dns` stands for.

    avoid: hosts and ports that are this edge itself.
    """

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        avoid: Collection[tuple[str, int]],
        servers: NameService,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._settings = settings
        self._avoid = avoid
        self._servers = servers
        self._clock = clock
        self._damper: Damper[DnsMember] = Damper()
        self._failures = 0
        self._complaints: dict[tuple[str, str], str] = {}

    async def ask(self) -> SourceAnswer:
        """Asks the name servers."""
        name, settings = self._name, self._settings
        ttl = settings.interval
        try:
            if name.startswith("_"):
                ttl = self._learn(await self._servers.services(name))
            else:
                ttl = await self._servers.exists(name)
                port = settings.port or _PORTS[settings.scheme]
                self._damper.learn({member_name(name): DnsMember(name, port)}, self._clock(), 0.0, 1)
                self._complaints = {}
            self._failures = 0
        except NoAnswer as error:
            self._fail(str(error))
        now = self._clock()
        self._damper.roll(now)
        wait = next_question(ttl, settings.interval, self._failures)
        members = {name: self._found(member) for name, member in sorted(self._damper.members.items())}
        return SourceAnswer(
            members, dict(self._complaints), max(_SOON, min(wait, self._damper.changes_at - now))
        )

    def _learn(self, found: ServiceAnswer) -> float:
        answer = members_of(
            self._name,
            found.records,
            avoid=self._avoid,
            known=self._damper.members.keys(),
            most=self._settings.limit,
        )
        if not answer.members:
            why = "; ".join(answer.left_out)
            raise NoAnswer(f"its answer has no member{f' ({why})' if why else ''}")
        self._damper.learn(answer.members, self._clock(), self._settings.keep, self._settings.limit)
        self._complaints = {
            (self._name, f"left out {at}"): f"{self._name}: {text}" for at, text in enumerate(answer.left_out)
        }
        return found.ttl

    def _fail(self, why: str) -> None:
        self._failures += 1
        stay = "its last members stay" if self._damper.members else "it adds no member until it has some"
        self._complaints[self._name, "answer"] = f"{self._name}: {why}; {stay}"

    def _found(self, member: DnsMember) -> FoundMember:
        settings = self._settings
        given = settings.settings.model_dump(exclude_unset=True)
        url = f"{settings.scheme}://{member.host}:{member.port}"
        found = MemberSettings.model_validate({**given, "url": url, "weight": member.weight})
        return FoundMember(found, f"dns: {self._name}")
