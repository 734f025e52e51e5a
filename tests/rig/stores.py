"""The store of a fleet in memory, whose connection a test may cut. Time is an argument."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fedproxy.control.store import PRESENCE, Beat, Conflict, OldHint, OnTold, Stored, Topic
from fedproxy.decide.slots import Claim, Grant, Holding, grant, kept
from fedproxy.errors import StoreError


class Shared:
    """What several stores share.

    now: seconds. refused: commands that fail though the store is there. late: those that it does and does not
    answer in time.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.refused: set[str] = set()
        self.late: set[str] = set()
        self.stores: list[MemoryStore] = []
        self.empty()

    def empty(self) -> None:
        self.seen: dict[str, float] = {}
        self.records: dict[str, bytes] = {}
        self.overrides: dict[str, Stored] = {}
        self.order = 0
        self.lease: str | None = None
        self.held: dict[str, dict[str, Holding]] = {}
        self.hints: list[tuple[int, float, str, bytes]] = []
        self.values: dict[str, bytes] = {}
        self.reports: dict[str, bytes] = {}
        self.paid: dict[bytes, float] = {}
        self.answers: dict[str, list[bytes]] = {}
        self.settling_until = 0.0
        self.lost = False

    def cut(self, down: bool = True) -> None:
        """Nobody reaches it any more, or all may again."""
        for each in self.stores:
            each.cut(down)


class MemoryStore:
    """One edge's way to it. holds: commands that it answers when the event is set."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.place = "memory"
        self.down = False
        self.opened = 0
        self.calls: Counter[str] = Counter()
        self.holds: dict[str, asyncio.Event] = {}
        self._edge = ""
        self._told: OnTold | None = None
        self._lost: Callable[[], None] | None = None
        self._known = 1
        shared.stores.append(self)

    @property
    def commands(self) -> Mapping[str, int]:
        return self.calls

    def cut(self, down: bool = True) -> None:
        self.down = down
        if down and self._lost is not None:
            lost, self._lost, self._told = self._lost, None, None
            lost()

    async def _come(self, command: str) -> None:
        self.calls[command] += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreError("is down", command)
        if command in self.shared.refused:
            raise StoreError(f"no permission for {command}", command)

    async def _go(self, command: str) -> None:
        """The answer is on its way."""
        if command in self.shared.late:
            raise StoreError("did not answer in time", command)
        if command in self.holds:
            await self.holds[command].wait()

    async def open(self, edge: str, told: OnTold, lost: Callable[[], None]) -> None:
        self.opened += 1
        await self._come("open")
        self._edge, self._told, self._lost = edge, told, lost

    async def close(self) -> None:
        self._told = self._lost = None

    async def beat(self, record: bytes, known: int, wants_lease: bool) -> Beat:
        await self._come("beat")
        shared = self.shared
        self._known = known
        dead = [edge for edge, at in shared.seen.items() if shared.now - at >= PRESENCE]
        if dead or not shared.seen:
            shared.lost &= not self._settled()
            shared.settling_until = shared.now + 2
        if known > 1 and self._edge not in shared.seen:
            shared.lost, shared.settling_until = True, shared.now + 2
        for edge in dead:
            del shared.seen[edge], shared.records[edge]
            if shared.lease == edge:
                shared.lease = None
        shared.seen[self._edge] = shared.now
        shared.records[self._edge] = record
        if shared.lease in (None, self._edge):
            shared.lease = self._edge if wants_lease else None
        return Beat(shared.order, len(shared.seen), shared.lease, self._settled())

    def _settled(self) -> bool:
        shared = self.shared
        if shared.now >= shared.settling_until:
            return True
        return not shared.lost and len(shared.seen) >= self._known

    async def leave(self) -> None:
        await self._come("leave")
        self.shared.seen.pop(self._edge, None)
        self.shared.records.pop(self._edge, None)
        if self.shared.lease == self._edge:
            self.shared.lease = None

    async def records(self) -> Mapping[str, bytes]:
        await self._come("records")
        return dict(self.shared.records)

    async def overrides(self) -> Mapping[str, Stored]:
        await self._come("overrides")
        await self._go("overrides")
        return dict(self.shared.overrides)

    async def set_override(self, member: str, word: bytes, base: int | None, known: int) -> int | Conflict:
        await self._come("set_override")
        before = self.shared.overrides.get(member)
        if base is not None and before is not None and before.order > base:
            return Conflict(before)
        self.shared.order = max(self.shared.order, known) + 1
        order = self.shared.order
        self.shared.overrides[member] = Stored(order, word)
        await self._go("set_override")
        return order

    async def restore(self, overrides: Mapping[str, Stored]) -> None:
        await self._come("restore")
        for member, stored in overrides.items():
            if stored.order > self.shared.overrides.get(member, Stored(0, b"")).order:
                self.shared.overrides[member] = stored
            self.shared.order = max(self.shared.order, stored.order)

    async def slots(self, claims: Mapping[str, Claim]) -> Mapping[str, Grant]:
        await self._come("slots")
        found = {}
        for member, claim in claims.items():
            held = self.shared.held.setdefault(member, {})
            others = [each for edge, each in held.items() if edge != self._edge and edge in self.shared.seen]
            edges = len({*self.shared.seen, self._edge})
            may_grow = self._settled() and self._edge in self.shared.seen
            answer = found[member] = grant(claim, others, edges, may_grow)
            held[self._edge] = Holding(kept(claim, answer.slots), claim.used, claim.wants)
            await self._go("slots")
        return found

    async def rate(self, launches: Mapping[bytes, int], each: float, per: float) -> Mapping[bytes, float]:
        await self._come("rate")
        now = self.shared.now
        for client, count in launches.items():
            paid = max(now, self.shared.paid.get(client, now))
            self.shared.paid[client] = min(paid + count * each, now + per)
        await self._go("rate")
        return {client: self.shared.paid[client] - now for client in launches}

    async def tell(self, topic: Topic, content: bytes) -> None:
        await self._come("tell")
        for each in self.shared.stores:
            if each is not self and each._told is not None:
                each._told(topic, content)

    async def hint(self, content: bytes) -> None:
        await self._come("hint")
        at = len(self.shared.hints) + 1
        self.shared.hints.append((at, self.shared.now, self._edge, content))
        await self.tell(Topic.HINT, b"%d\0%b" % (at, content))

    async def hints(self, after: str | None) -> Sequence[OldHint]:
        await self._come("hints")
        first = int(after or 0)
        return [
            OldHint(str(number), self.shared.now - at, edge, content)
            for number, at, edge, content in self.shared.hints
            if number > first
        ]

    async def put(self, key: str, content: bytes, seconds: float, *, new: bool = False) -> bool:
        await self._come("put")
        if new and key in self.shared.values:
            return False
        self.shared.values[key] = content
        return True

    async def get(self, key: str) -> bytes | None:
        await self._come("get")
        return self.shared.values.get(key)

    async def report(self, reports: Mapping[str, bytes], seconds: float) -> None:
        await self._come("report")
        self.shared.reports.update(reports)

    async def reports(self) -> Mapping[str, bytes]:
        await self._come("reports")
        return dict(self.shared.reports)

    async def answer(self, question: str, content: bytes) -> None:
        await self._come("answer")
        self.shared.answers.setdefault(question, []).append(content)

    async def answers(self, question: str, after: int = 0) -> Sequence[bytes]:
        await self._come("answers")
        return self.shared.answers.get(question, [])[after:]
