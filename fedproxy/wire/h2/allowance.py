"""What an HTTP/2 peer may do that costs it nothing."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Final


@dataclass(frozen=True)
class Allowance:
    """What a peer may do at once, by kind, beyond what serves its requests (RFC 9113 section 10.5).

    Each is a limit that an operator can set, and with `http2_` before it a metrics label. window_updates:
    besides a few for each DATA frame that it was sent.
    """

    resets: int = 200
    settings: int = 100
    pings: int = 200
    priorities: int = 500
    empty_frames: int = 100
    window_updates: int = 1000
    unknown_frames: int = 200

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """All of them, in the order of `KINDS`."""
        return astuple(self)


KINDS: Final = tuple(each.name for each in fields(Allowance))
RESETS: Final = KINDS.index("resets")
SETTINGS: Final = KINDS.index("settings")
PINGS: Final = KINDS.index("pings")
PRIORITIES: Final = KINDS.index("priorities")
EMPTY: Final = KINDS.index("empty_frames")
WINDOW_UPDATES: Final = KINDS.index("window_updates")
UNKNOWN: Final = KINDS.index("unknown_frames")
