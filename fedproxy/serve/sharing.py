"""What all data planes of this edge should know of sessions: each tells the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from fedproxy.control.messages import SessionsKnown, Sync, SyncDone
from fedproxy.decide.sessions import KnownSession, SessionRecord, Sessions

_AT_A_TIME: Final = 1000


@dataclass(frozen=True)
class SharingPeer:
    """One that hears of sessions.

    send: takes what it is to know. turns: whether it answers at the moment.
    """

    send: Callable[[SessionsKnown | Sync | SyncDone], None]
    turns: Callable[[], bool]


class Sharing:
    """Passes on what each data plane tells of sessions.

    sessions: all that any of them knows. changed: those that the store does not have yet.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.sessions = Sessions()
        self.changed: dict[bytes, None] = {}
        self._wall = wall
        self._planes: dict[Hashable, SharingPeer] = {}
        self._numbers = count()
        # By the number that the others are asked with: who asked, with which number, and who has to answer.
        self._asked: dict[int, tuple[Hashable, int, set[Hashable]]] = {}

    def join(self, who: Hashable, plane: SharingPeer) -> None:
        """Another data plane, which is told everything."""
        self._planes[who] = plane
        for batch in _batches(self.sessions.items()):
            plane.send(SessionsKnown(batch))

    def leave(self, who: Hashable) -> None:
        """It is gone, and nobody waits for it."""
        self._planes.pop(who, None)
        for number in list(self._asked):
            self._answer(number, who)

    def tell(self, who: Hashable, known: SessionsKnown) -> None:
        """What one of them has learned."""
        now = self._wall()
        for record in known.records:
            self.sessions.take(record[0], KnownSession.from_record(record), now)
            self.changed[record[0]] = None
        self._prune()
        for other, plane in self._planes.items():
            if other is not who:
                plane.send(known)

    def _prune(self) -> None:
        """Forgets changes of what is not known any more, if the store takes none."""
        if len(self.changed) > 2 * len(self.sessions) + _AT_A_TIME:
            self.changed = {key: None for key in self.changed if self.sessions.look(key) is not None}

    def ask(self, who: Hashable, sync: Sync) -> None:
        """It wants to know when all others have taken what it told."""
        others = {other for other, plane in self._planes.items() if other is not who and plane.turns()}
        number = next(self._numbers)
        asked = list(others)
        # Not before all are asked: one in this process answers at once.
        others.add(self)
        self._asked[number] = who, sync.number, others
        for other in asked:
            self._planes[other].send(Sync(number))
        self._answer(number, self)

    def answered(self, who: Hashable, done: SyncDone) -> None:
        """It has taken what came before a question."""
        self._answer(done.number, who)

    def _answer(self, number: int, who: Hashable) -> None:
        if number in self._asked:
            self._asked[number][2].discard(who)
            self._end(number)

    def _end(self, number: int) -> None:
        who, asked_with, others = self._asked[number]
        if not others or who not in self._planes:
            del self._asked[number]
            if who in self._planes:
                self._planes[who].send(SyncDone(asked_with))


def _batches(items: list[tuple[bytes, KnownSession]]) -> Iterator[tuple[SessionRecord, ...]]:
    rest = iter(items)
    while batch := tuple(known.record(key) for key, known in islice(rest, _AT_A_TIME)):
        yield batch
