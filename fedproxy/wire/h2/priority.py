"""Which stream's turn it is (RFC 9218)."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

from fedproxy.bounded import Memo

if TYPE_CHECKING:
    from fedproxy.wire.h2.stream import H2Stream

URGENT: Final = 0
"""The place of what must not wait: events, and what goes through a tunnel."""

_PLACES: Final = 9  # that one, and one for each of the eight urgencies
UNTOLD: Final = 1 + 3, True
"""The place of a stream of which nothing is told (section 4.1), and that it shares with others."""

# Section 4: a dictionary of which these two members count (RFC 8941 section 3.2). The last of each counts.
_MEMBER: Final = re.compile(rb"(?:^|,)[ \t]*(?:(u)=([0-7])|(i)(?:=\?([01]))?)[ \t]*(?=;|,|$)").finditer


def _read(value: bytes) -> tuple[int, bool]:
    urgency, incremental = 3, False
    for match in _MEMBER(value):
        if match[1] is not None:
            urgency = int(match[2])
        else:
            incremental = match[4] != b"0"
    return 1 + urgency, incremental


_read_known: Final = Memo(_read, entries=256, longest=64)


def read(value: bytes) -> tuple[int, bool]:
    """What a Priority field says: the place of a stream, and whether it takes turns with others there."""
    return _read_known[value] if value else UNTOLD


class Turns:
    """The streams that have something to send, and whose windows are open."""

    __slots__ = ("_places", "size")

    def __init__(self) -> None:
        # Made when they are needed: most connections never have anything that waits.
        self._places: list[deque[H2Stream] | None] = [None] * _PLACES
        self.size = 0

    def add(self, stream: H2Stream) -> None:
        """It has something to send."""
        if not stream.in_turn:
            stream.in_turn = True
            self.size += 1
            place = self._places[stream.place]
            if place is None:
                place = self._places[stream.place] = deque()
            place.append(stream)

    def discard(self, stream: H2Stream) -> None:
        """It has nothing to send any more."""
        if stream.in_turn:
            stream.in_turn = False
            self.size -= 1
            place = self._places[stream.place]
            if place is not None:
                place.remove(stream)

    def first(self) -> H2Stream | None:
        """The one whose turn it is."""
        for place in self._places:
            if place:
                return place[0]
        return None

    def next(self, stream: H2Stream) -> None:
        """The one whose turn it was has sent a frame, and has more."""
        place = self._places[stream.place]
        if stream.incremental and place is not None:
            place.rotate(-1)
