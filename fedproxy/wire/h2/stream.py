"""One stream of an HTTP/2 connection, as the server sees it: its state and its windows (RFC 9113 section 5).

                 ┌──────► HALF_CLOSED_REMOTE ──┐   the visitor has sent everything
IDLE ──► OPEN ───┤                             ├──► CLOSED
  │       │      └──────► HALF_CLOSED_LOCAL ───┘   the response is out
  │       └──────────────────────────────────────────►  RST_STREAM of either side
  └───── a stream that the visitor may still open; one that is not known is IDLE or CLOSED
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from fedproxy.errors import ConnectionFault
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.priority import UNTOLD

if TYPE_CHECKING:
    from fedproxy.http.request import HeaderBlock

# States.
IDLE: Final = 0
OPEN: Final = 1
HALF_CLOSED_REMOTE: Final = 2
HALF_CLOSED_LOCAL: Final = 3
CLOSED: Final = 4
STATES: Final = ("idle", "open", "half-closed (remote)", "half-closed (local)", "closed")

# What happens to a stream.
HEADERS: Final = 0  # the visitor sends a head, or trailers
DATA: Final = 1  # ... a part of the body
END: Final = 2  # ... the end of its side
RESET: Final = 3  # ... RST_STREAM
WINDOW: Final = 4  # ... WINDOW_UPDATE
PRIORITY: Final = 5
SENT_END: Final = 6  # the edge sends the end of its side
SENT_RESET: Final = 7  # ... RST_STREAM
_EVENTS: Final = 8

# What is no state.
STREAM_FAULT: Final = 8  # a stream error of STREAM_CLOSED
CONNECTION_FAULT: Final = 9  # a connection error of PROTOCOL_ERROR
CLOSED_FAULT: Final = 10  # a connection error of STREAM_CLOSED

# Section 5.1, for each state: what an event comes to. What a state does not name is the edge's own fault.
_TABLE: Final[dict[int, dict[int, int]]] = {
    IDLE: {
        HEADERS: OPEN,
        DATA: CONNECTION_FAULT,
        END: CONNECTION_FAULT,
        RESET: CONNECTION_FAULT,
        WINDOW: CONNECTION_FAULT,
        PRIORITY: IDLE,
    },
    OPEN: {
        HEADERS: OPEN,
        DATA: OPEN,
        END: HALF_CLOSED_REMOTE,
        RESET: CLOSED,
        WINDOW: OPEN,
        PRIORITY: OPEN,
        SENT_END: HALF_CLOSED_LOCAL,
        SENT_RESET: CLOSED,
    },
    HALF_CLOSED_REMOTE: {
        HEADERS: STREAM_FAULT,
        DATA: STREAM_FAULT,
        END: STREAM_FAULT,
        RESET: CLOSED,
        WINDOW: HALF_CLOSED_REMOTE,
        PRIORITY: HALF_CLOSED_REMOTE,
        SENT_END: CLOSED,
        SENT_RESET: CLOSED,
    },
    HALF_CLOSED_LOCAL: {
        HEADERS: HALF_CLOSED_LOCAL,
        DATA: HALF_CLOSED_LOCAL,
        END: CLOSED,
        RESET: CLOSED,
        WINDOW: HALF_CLOSED_LOCAL,
        PRIORITY: HALF_CLOSED_LOCAL,
        SENT_RESET: CLOSED,
    },
    CLOSED: {
        # One that the edge has reset is an exception: see `server`.
        HEADERS: CLOSED_FAULT,
        DATA: CLOSED_FAULT,
        END: CLOSED_FAULT,
        RESET: CLOSED,
        WINDOW: CLOSED,
        PRIORITY: CLOSED,
    },
}
_STEPS: Final = [_TABLE[state].get(event, -1) for state in range(5) for event in range(_EVENTS)]


def step(state: int, event: int) -> int:
    """The state after an event, or `STREAM_FAULT`. Raises `ConnectionFault`."""
    after = _STEPS[state * _EVENTS + event]
    if after == CONNECTION_FAULT:
        raise ConnectionFault(Code.PROTOCOL_ERROR)
    if after == CLOSED_FAULT:
        raise ConnectionFault(Code.STREAM_CLOSED)
    if after < 0:
        raise AssertionError(f"event {event} in state {STATES[state]}")
    return after


class H2Stream:
    """One request and its response.

    line, block: of the request; the line is of the owner's kind. connects: it asks for a WebSocket (RFC
    8441); key: what that one's member was asked with. window: bytes of the response that the visitor takes;
    may be below 0 (section 6.9.2). waiting: what has to wait for that or for its turn, in all `backlog`
    bytes; ending: nothing follows, but perhaps `trailers`, as HPACK has them.

    Of the request's body: credit: bytes that the visitor may still send; granted: the most that this was;
    owed: bytes that have come and were not granted anew; held: nothing is, for now. left: bytes until its
    Content-Length is reached, or below 0 if it has none. size: bytes so far.
    """

    __slots__ = (
        "backlog",
        "block",
        "connects",
        "credit",
        "ending",
        "granted",
        "held",
        "id",
        "in_turn",
        "incremental",
        "key",
        "left",
        "line",
        "owed",
        "place",
        "placed",
        "size",
        "state",
        "trailers",
        "waiting",
        "window",
    )

    line: Any
    block: HeaderBlock

    def __init__(self, number: int, window: int, credit: int, state: int) -> None:
        self.id = number
        self.state = state
        self.window = window
        self.waiting: deque[memoryview] | None = None
        self.backlog = 0
        self.ending = False
        self.trailers = b""
        self.connects = False
        self.key = b""
        self.credit = self.granted = credit
        self.owed = 0
        self.held = False
        self.left = -1
        self.size = 0
        self.place, self.incremental = UNTOLD
        self.placed = False
        self.in_turn = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {STATES[self.state]}>"

    @property
    def receiving(self) -> bool:
        """Whether the visitor has not sent everything."""
        return self.state in (OPEN, HALF_CLOSED_LOCAL)
