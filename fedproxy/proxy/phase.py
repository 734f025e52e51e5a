"""Where a request is, and what may follow.

CHOOSING ──► ASKING ──► COMMIT: RELAYING ──► OVER
              │   ▲         └──► TUNNEL ───► OVER
              └───┘ another attempt
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Phase(Enum):
    """Where a request is."""

    CHOOSING = "choosing"  # no member was asked
    ASKING = "asking"  # a member is asked, or was, and the visitor has seen nothing of a final answer
    RELAYING = "relaying"  # the visitor has seen something: there is no other attempt
    TUNNEL = "tunnel"  # a 101 went on, and there is no HTTP any more
    OVER = "over"  # settled


TRANSITIONS: Final = {
    Phase.CHOOSING: {Phase.ASKING, Phase.RELAYING, Phase.OVER},
    Phase.ASKING: {Phase.ASKING, Phase.RELAYING, Phase.TUNNEL, Phase.OVER},
    Phase.RELAYING: {Phase.OVER},
    Phase.TUNNEL: {Phase.OVER},
    Phase.OVER: set(),
}
"""What may follow what."""
