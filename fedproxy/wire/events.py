"""Event streams as they pass (WHATWG HTML, section 9.2: server-sent events).

Only the data of events is inspected. The original bytes are forwarded.
"""

from __future__ import annotations

import re
from typing import Final

MOST_DATA: Final = 64 * 1024
"""The most bytes kept of one event's data. The largest known event of a BinderHub has 22,581."""

_LINE_END: Final = re.compile(rb"\r\n?|\n")
_BOM: Final = b"\xef\xbb\xbf"
_STREAM: Final = "text/event-stream"
_ACCEPT: Final = re.compile(rb"(?:\A|\r\n)accept:([^\r]*)", re.IGNORECASE)


class EventReader:
    """Reads one event stream, however its bytes are split.

    `feed` returns the data of each completed event, in order; None stands for an event with more than `most`
    bytes of data, of which nothing is kept. An event without data does not count. No input is an error.
    """

    __slots__ = ("_at_start", "_cr", "_data", "_fresh", "_has_data", "_line", "_most", "_over", "_skipping")

    def __init__(self, most: int = MOST_DATA) -> None:
        self._most = most
        self._fresh = False  # nothing of what follows is set
        self._at_start = True  # where a byte order mark may stand
        self._cr = False  # the last byte was a CR, whose LF may follow
        self._line = bytearray()  # the beginning of a line
        self._skipping = False  # in a line of which nothing more is needed
        self._data = bytearray()  # of the event so far, each line with its LF
        self._has_data = False
        self._over = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The events that end in `data`."""
        if (
            self._fresh
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and data.find(b"\n") == len(data) - 2
            and b"\r" not in data
            and len(data) <= self._most
        ):
            # The usual case: one whole event.
            return [data[6:-2]]
        events = self._read(data)
        self._fresh = not (self._at_start or self._cr or self._line or self._skipping or self._has_data)
        return events

    def _read(self, data: bytes) -> list[bytes | None]:
        if self._at_start:
            data = bytes(self._line) + data
            self._line.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._line += data
                return []
            self._at_start = False
            data = data.removeprefix(_BOM)
        if self._cr and data:
            self._cr = False
            data = data.removeprefix(b"\n")
        events: list[bytes | None] = []
        at = 0
        for end in _LINE_END.finditer(data):
            self._end_line(data[at : end.start()], events)
            at = end.end()
        if at < len(data):
            if not self._skipping:
                self._keep(data[at:])
        elif data:
            self._cr = data.endswith(b"\r")
        return events

    def _keep(self, piece: bytes) -> None:
        """The beginning of a line waits for its end, unless it is a comment, or over the bound."""
        line = self._line
        line += piece
        if line.startswith(b":"):
            self._skipping = True
        elif len(line) > len(b"data: ") + self._most:
            if line.startswith(b"data:"):
                self._too_much()
            self._skipping = True
        if self._skipping:
            line.clear()

    def _end_line(self, line: bytes, events: list[bytes | None]) -> None:
        if self._skipping:
            self._skipping = False
            return
        if self._line:
            line = bytes(self._line) + line
            self._line.clear()
        if not line:
            self._end_event(events)
        elif line.startswith(b"data:"):
            self._add(line[6:] if line.startswith(b" ", 5) else line[5:])
        elif line == b"data":
            self._add(b"")

    def _add(self, value: bytes) -> None:
        self._has_data = True
        if self._over:
            return
        if len(self._data) + len(value) > self._most:
            self._too_much()
        else:
            self._data += value
            self._data += b"\n"

    def _too_much(self) -> None:
        self._has_data = self._over = True
        self._data.clear()

    def _end_event(self, events: list[bytes | None]) -> None:
        if self._over:
            events.append(None)
        elif self._has_data:
            events.append(bytes(self._data[:-1]))
        self._data.clear()
        self._has_data = self._over = False


def asked_for(block: bytes) -> bool:
    """Whether BinderHub would read a block of header fields as a request for an event stream."""
    # RFC 9110 section 5.3: lines of one name are one list; tornado joins them with a comma.
    return accepted(b",".join(value.strip(b" \t") for value in _ACCEPT.findall(block)))


def accepted(accept: bytes) -> bool:
    """The same for the value of the Accept field.

    BinderHub splits it at `;`, strips white space from each part, and ignores case. It does not split at
    commas: in a list, an event stream counts only if a `;` separates it.
    """
    # As text, because Tornado's headers are Latin-1, which has more white space than bytes do.
    return any(part.strip().lower() == _STREAM for part in accept.decode("latin-1").split(";"))
