"""Which of a name's addresses do not work, and in what order a new connection tries them.

An address that fails is aside for a second, doubled with each failure in a row up to a minute. Then one
connection at a time tries it again. It is aside until that works, and forgiven once it has worked for a
while: one that takes connections only to reset them would otherwise never be aside for longer than a second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from fedproxy.decide.addresses import version

_FIRST, _LONGEST = 1.0, 60.0  # seconds
_FORGIVEN = 10.0  # seconds without a failure after a connection that worked


class _Outage:
    """failures: in a row. at: when the last was. until: it is not tried before. worked: since when."""

    __slots__ = ("at", "failures", "until", "worked")

    def __init__(self) -> None:
        self.failures = 0
        self.at = 0.0
        self.until = 0.0
        self.worked: float | None = None

    def rest(self, now: float) -> None:
        self.until = now + min(_LONGEST, _FIRST * 2.0 ** min(self.failures - 1, 10))


class Outages:
    """The failures of one member's addresses, which are text; of those that work there is nothing."""

    def __init__(self) -> None:
        self._outages: dict[str, _Outage] = {}

    def __len__(self) -> int:
        return len(self._outages)

    def __repr__(self) -> str:
        return f"<Outages {' '.join(self._outages)}>"

    def failures(self, address: str) -> int:
        """How often it failed in a row; 0 once it is forgiven."""
        outage = self._outages.get(address)
        return 0 if outage is None else outage.failures

    def aside(self, address: str) -> bool:
        """Whether it has not worked since it failed last."""
        outage = self._outages.get(address)
        return outage is not None and outage.worked is None

    def failed(self, address: str, began: float, now: float) -> bool:
        """A connection that began then has failed. True if the address was in order before.

        Those that began before an earlier failure are part of the same.
        """
        outage = self._outages.get(address)
        if outage is None:
            outage = self._outages[address] = _Outage()
        elif began < outage.at:
            return False
        outage.failures += 1
        outage.at = now
        outage.worked = None
        outage.rest(now)
        return outage.failures == 1

    def works(self, address: str, now: float) -> None:
        """There is a connection to it."""
        outage = self._outages.get(address)
        if outage is not None and outage.worked is None:
            outage.worked = outage.until = now

    def roll(self, now: float) -> list[str]:
        """Forgives the addresses that have worked for long enough, and returns them."""
        over = [
            address
            for address, outage in self._outages.items()
            if outage.worked is not None and now - outage.worked >= _FORGIVEN
        ]
        for address in over:
            del self._outages[address]
        return over

    def keep(self, addresses: Collection[str]) -> None:
        """Forgets all others: a name may move through any number of them."""
        for address in [each for each in self._outages if each not in addresses]:
            del self._outages[address]

    def rank(
        self,
        addresses: Sequence[str],
        loads: Mapping[str, int],
        chance: Callable[[], int],
        now: float,
    ) -> list[str]:
        """The order in which a new connection tries a name's addresses.

        addresses: in the resolver's order, whose first family is preferred; then the families take turns
        (RFC 8305 section 4). loads: connections by address: the fewest go first, but one that failed lately
        does not catch up with the others yet. chance: decides among equals. Those that are aside and not to
        be tried yet are last. If the first one is aside, this is its trial, and nobody else tries it first
        for as long as it was aside.
        """
        least = min([loads.get(each, 0) for each in addresses if each not in self._outages], default=0)
        fit: list[tuple[int, int, str]] = []
        resting: list[tuple[float, int, str]] = []
        for address in addresses:
            outage = self._outages.get(address)
            load = loads.get(address, 0)
            if outage is None:
                fit.append((load, chance(), address))
            elif now < outage.until:
                resting.append((outage.until, chance(), address))
            else:
                fit.append((max(load, least), chance(), address))
        fit.sort()
        resting.sort()
        preferred = version(addresses[0])
        one = [each[2] for each in fit if version(each[2]) == preferred]
        other = [each[2] for each in fit if version(each[2]) != preferred]
        order: list[str] = []
        for at in range(max(len(one), len(other))):
            order += one[at : at + 1] + other[at : at + 1]
        if order:
            trial = self._outages.get(order[0])
            if trial is not None and trial.worked is None:
                trial.rest(now)
        return order + [each[2] for each in resting]
