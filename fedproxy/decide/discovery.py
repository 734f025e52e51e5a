"""Which members a name in DNS stands for, from one answer of the name server to the next.

A service's SRV records are members (RFC 2782):

- The member's name is the target's host, or `HOST:PORT` where one host has several ports.
- Only the records of the lowest priority get new visitors, by their weights. The others are on standby, with
  weight 0.
- What cannot be a member is left out and said. A name is not taken to be without members because an answer
  has none: whoever asks keeps those that it had.

A member that an answer lacks is kept for a while, since some name servers tell a part of the records each
time, and others lose some for a moment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?").fullmatch
_LONGEST_NAME: Final = 64  # characters of a member's name
_DIGEST: Final = 4  # bytes
_RARELY: Final = 0.1  # the weight of a record with 0 beside others: "a very small chance"
_SHORTEST: Final = 1.0  # seconds between two questions
_LATEST: Final = 16.0  # seconds until a question that failed is asked again
_SHOWN: Final = 5


@dataclass(frozen=True)
class ServiceRecord:
    """An SRV record. host: as the name server has it."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0


@dataclass(frozen=True)
class DnsMember:
    """A member that DNS names. weight: 0 for one on standby."""

    host: str
    port: int
    weight: float = 1.0


@dataclass(frozen=True)
class DnsAnswer:
    """The members in an answer, by name, and a sentence on each kind of what was left out."""

    members: Mapping[str, DnsMember]
    left_out: Sequence[str] = ()


def members_of(
    name: str,
    records: Sequence[ServiceRecord],
    *,
    avoid: Collection[tuple[str, int]],
    known: Collection[str],
    most: int,
) -> DnsAnswer:
    """The members that the records of `name` stand for.

    avoid: hosts and ports that are this edge itself. known: the names of the members so far, which come first
    if there are more than `most`.
    """
    best: dict[tuple[str, int], ServiceRecord] = {}
    wrong: list[str] = []
    for record in records:
        if record.host in ("", "."):
            continue  # "the service is decidedly not available"
        host = host_of(record.host)
        if host is None:
            wrong.append(f"{_shown(record.host)} is no host name")
        elif not 0 < record.port < 65536:
            wrong.append(f"{host} has the port {record.port}")
        elif host == name or (host, record.port) in avoid:
            wrong.append(f"{host}:{record.port} leads back here")
        else:
            before = best.get((host, record.port))
            if before is None or _order(record) < _order(before):
                best[host, record.port] = record
    ports = Counter(host for host, _ in best)
    lowest = min((record.priority for record in best.values()), default=0)
    weighted = any(record.weight > 0 for record in best.values() if record.priority == lowest)
    members = {
        member_name(host if ports[host] == 1 else f"{host}:{port}"): DnsMember(
            host, port, _weight(record, weighted) if record.priority == lowest else 0.0
        )
        for (host, port), record in best.items()
    }
    ranked = sorted(members, key=lambda each: (each not in known, members[each].weight == 0, each))
    left_out = [f"left out: {_some(wrong)}"] if wrong else []
    if len(ranked) > most:
        left_out.append(
            f"has {len(ranked)} members, of which {most} are taken: without {_some(ranked[most:])}"
        )
    return DnsAnswer({each: members[each] for each in sorted(ranked[:most])}, tuple(left_out))


def _order(record: ServiceRecord) -> tuple[int, int]:
    return record.priority, -record.weight


def _weight(record: ServiceRecord, weighted: bool) -> float:
    if not weighted:
        return 1.0
    return float(record.weight) or _RARELY


def host_of(text: str) -> str | None:
    """A host name in lower case and without the dot at its end; None for an address, or anything else."""
    host = text.removesuffix(".").lower()
    labels = host.split(".")
    if len(host) > 253 or labels[-1].isdecimal() or not all(map(_LABEL, labels)):
        return None
    return host


def member_name(text: str) -> str:
    """A host, perhaps with a port, as the name of a member. Different ones have different names."""
    if len(text) <= _LONGEST_NAME and not text.startswith("_"):
        return text
    digest = blake2b(text.encode(), digest_size=_DIGEST).hexdigest()
    room = _LONGEST_NAME - len(digest) - 1
    return f"{text.lstrip('_')[:room] or 'member'}-{digest}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _shown(host: str) -> str:
    return ascii(host[:80])


def next_question(ttl: float, interval: float, failures: int) -> float:
    """Seconds until a name is asked for again.

    ttl: the records' time to live. interval: the longest time. failures: questions without an answer, in a
    row.
    """
    if failures:
        return min(_LATEST, interval, _SHORTEST * 2.0 ** min(failures - 1, 10))
    return min(interval, max(ttl, _SHORTEST))


class Damper(Generic[T]):
    """The members that a name is taken to have: those of its last answer, and for a while those before."""

    def __init__(self) -> None:
        self.members: dict[str, T] = {}
        self._until: dict[str, float] = {}  # when those end that the last answer lacked

    def learn(self, found: Mapping[str, T], now: float, keep: float, most: int) -> None:
        """Takes an answer with something in it.

        keep: seconds for which others stay, as long as there are no more than `most` together: a name whose
        records are others each time would else add up to any number.
        """
        kept = {name: member for name, member in self.members.items() if name not in found}
        until = {name: self._until.get(name, now + keep) for name in kept}
        latest = sorted(kept, key=lambda name: -until[name])[: max(0, most - len(found))]
        self._until = {name: until[name] for name in latest}
        self.members = {**found, **{name: kept[name] for name in latest}}
        self.roll(now)

    def roll(self, now: float) -> None:
        """Forgets what was kept for long enough."""
        for name in [name for name, until in self._until.items() if until <= now]:
            del self._until[name], self.members[name]

    @property
    def changes_at(self) -> float:
        """When the next one is to be forgotten; infinity if none is."""
        return min(self._until.values(), default=float("inf"))
