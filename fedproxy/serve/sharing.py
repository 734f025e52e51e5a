"""What all data planes of this edge should know of sessions: each tells the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
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
        # By data plane that keeps an older config: the present names of members by the names that it knows.
        self._present: dict[Hashable, dict[str, str]] = {}

    def join(self, who: Hashable, plane: SharingPeer) -> None:
        """Another data plane, which is told everything."""
        self._planes[who] = plane
        for batch in _batches(self.sessions.items()):
            plane.send(SessionsKnown(batch))

    def leave(self, who: Hashable) -> None:
        """It is gone, and nobody waits for it."""
        self._planes.pop(who, None)
        self._present.pop(who, None)
        for number in list(self._asked):
            self._answer(number, who)

    def tell(self, who: Hashable, known: SessionsKnown) -> None:
        """What one of them has learned."""
        now = self._wall()
        present = self._present.get(who, {})
        records = []
        for record in known.records:
            key, session = record[0], KnownSession.from_record(record)
            session.member = present.get(session.member, session.member)
            self.sessions.take(key, session, now)
            self.changed[key] = None
            records.append(session.record(key))
        self._prune()
        for other, plane in self._planes.items():
            if other is not who:
                names = {new: old for old, new in self._present.get(other, {}).items()}
                plane.send(SessionsKnown(tuple(_renamed(records, names))))

    def rename(
        self, names: Mapping[str, str], members: Collection[str], *, left_behind: bool
    ) -> Callable[[], None]:
        """Members have other names now, as `Sessions.rename` is told. Returns what undoes it.

        left_behind: the data planes that are there keep the config that they have, and the names in it.
        """
        before = self._present
        stay = self._planes if left_behind else before
        self._present = {
            who: {
                **{old: names.get(now, now) for old, now in before.get(who, {}).items()},
                **{old: new for old, new in names.items() if old not in before.get(who, {})},
            }
            for who in stay
        }
        self.sessions.rename(names, members)

        def undo() -> None:
            self._present = {who: known for who, known in before.items() if who in self._planes}
            self.sessions.rename({new: old for old, new in names.items()}, ())

        return undo

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


def _renamed(records: Sequence[SessionRecord], names: Mapping[str, str]) -> Iterator[SessionRecord]:
    for key, ground, member, since, used, launch in records:
        yield key, ground, names.get(member, member), since, used, launch


def _batches(items: list[tuple[bytes, KnownSession]]) -> Iterator[tuple[SessionRecord, ...]]:
    rest = iter(items)
    while batch := tuple(known.record(key) for key, known in islice(rest, _AT_A_TIME)):
        yield batch
