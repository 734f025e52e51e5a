"""Which addresses a name has, from one answer of the name server to the next.

The last good answer counts, and new connections go where it says. What an answer leaves out is not always
gone:

- If there is no answer, or no address in it, nothing changes. A name server in trouble must not take members
  with it.
- If one address is missing, it is gone. But some names answer with different addresses each time, so its
  connections are held for `HOLD` seconds: they take no request, and can be used again if it comes back.
- If all addresses of a family (IPv4 or IPv6) are missing, perhaps only half of the question was answered.
  They stay until `_AGREE` answers in a row agree that they are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

HOLD = 5.0  # seconds
_AGREE = 3


def version(address: str) -> int:
    """4 or 6, of an address as text."""
    return 6 if ":" in address else 4


class Addresses:
    """The addresses of one name, as text: `current` in the name server's order, `held` by when that ends."""

    def __init__(self) -> None:
        self.current: tuple[str, ...] = ()
        self.held: dict[str, float] = {}
        self._without: dict[int, int] = {}  # answers in a row that had no address of a family that is kept

    def __repr__(self) -> str:
        return f"<Addresses {' '.join(self.current)}{' held: ' if self.held else ''}{' '.join(self.held)}>"

    @property
    def unsure(self) -> bool:
        """Whether a family is kept that the last answers lacked."""
        return bool(self._without)

    def absent(self, found: Sequence[str]) -> set[int]:
        """The families that the name had and that an answer lacks."""
        return set(map(version, self.current)) - set(map(version, found))

    def learn(self, found: Sequence[str], failed: Collection[int], now: float) -> bool:
        """Takes an answer. True if the current addresses changed.

        failed: families for which the query is known to have failed.
        """
        if not found:
            return False
        kept = self.absent(found)
        for family in (4, 6):
            if family not in kept:
                self._without.pop(family, None)
            elif family not in failed:
                self._without[family] = self._without.get(family, 0) + 1
                if self._without[family] >= _AGREE:
                    del self._without[family]
                    kept.remove(family)
        before = self.current
        still = [address for address in before if version(address) in kept]
        self.current = tuple(dict.fromkeys([*found, *still]))
        for address in before:
            if address not in self.current:
                self.held[address] = now + HOLD
        for address in self.current:
            self.held.pop(address, None)
        return set(before) != set(self.current)

    def roll(self, now: float) -> bool:
        """Forgets addresses that were held for long enough. True if there were any."""
        over = [address for address, until in self.held.items() if until <= now]
        for address in over:
            del self.held[address]
        return bool(over)
