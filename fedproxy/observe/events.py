"""Messages for operators on standard error, one event per line.

All of them go through one object, whatever their source: the edge itself, a library that logs, a warning, a
traceback, a `print`. Writing one never fails and never waits, so nothing depends on it.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import re
import sys
from typing import Final

from fedproxy.observe.output import Output

_LONGEST: Final = 1 << 16  # characters of a line that does not end
# Some lines quote members: they must not control a terminal or forge a line.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Events:
    """Lines for operators. May be used from any thread."""

    def __init__(self, output: Output) -> None:
        self._output = output

    @property
    def dropped(self) -> int:
        """How many lines were lost so far because the reader was too slow or gone, or the disk was full."""
        return self._output.dropped

    def say(self, message: str) -> None:
        """Writes one event."""
        self.print(message.replace("\n", "\\n"))

    def print(self, text: str) -> None:
        """Writes lines that belong together, such as those of a traceback."""
        self._output(_UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text) + "\n")


class Stream(io.TextIOBase):
    """Replaces `sys.stderr` and `sys.stdout`, so that what others write there becomes events."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, events: Events, fd: int) -> None:
        super().__init__()
        self._events = events
        self._fd = fd
        self._held = ""

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self._fd

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, text: str, /) -> int:
        """Writes whole lines, and holds back an incomplete one."""
        lines, feed, self._held = (self._held + text).rpartition("\n")
        if feed:
            self._events.print(lines)
        if len(self._held) > _LONGEST:
            held, self._held = self._held, ""
            self._events.print(held)
        return len(text)


def take_over() -> Events:
    """From now on, everything that this process prints goes to standard error without waiting.

    The last lines have a second to be written when the process ends. If it was started without descriptors
    0, 1 or 2, those are opened on /dev/null, so that no connection gets their numbers. Streams that were
    already replaced are kept, as in a test that calls a command in its own process.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    output = Output(2)
    events = Events(output)
    if sys.stderr is sys.__stderr__:
        sys.stderr = Stream(events, 2)
        sys.stdout = Stream(events, 1)
        # At exit and not at the end of a command: Python itself prints why a process ends.
        atexit.register(output.finish)
        logging.basicConfig(level=logging.WARNING, format="fedproxy: %(message)s", stream=sys.stderr)
    return events
