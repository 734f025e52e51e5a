"""What both sides share: to read, or to wait until the other side has room."""

from __future__ import annotations

import asyncio


class Flow(asyncio.Protocol):
    """A connection whose reading can be paused; both calls may be made at any time and again."""

    transport: asyncio.Transport
    reading = True

    def pause(self) -> None:
        """Reads no more until `resume`."""
        if self.reading and not self.transport.is_closing():
            self.reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()
