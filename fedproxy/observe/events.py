"""The edge's own log on standard error: one event per line, as text or JSON.

All of it goes through one object, whatever its source: the edge itself, a library that logs, a warning, a
traceback, a `print`. Writing an event never fails and never waits, so nothing depends on it.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, TextIO

from fedproxy.event import Event, EventName
from fedproxy.observe.output import Output

Form = Literal["text", "json"]

_MOST: Final = 1 << 16  # characters of a message, and of a line that does not end
#: Bytes of a line with its line feed, so that a pipe takes it in one piece, and it is not mixed with others.
LONGEST: Final = select.PIPE_BUF
_NAME: Final = 256  # bytes of `member` and `who`
_CUT: Final = "..."
_WITHIN: Final = "    | "  # begins the further lines of a traceback, so that they cannot look like events
_TRACEBACKS: Final = (EventName.PYTHON_WARNING, EventName.PYTHON_ERROR)
_WINDOW: Final = 60.0  # seconds in which one place in a program ...
_BURST: Final = 5  # ... may log so many lines
_PLACES: Final = 1000  # that are remembered
_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[ -~]*").fullmatch


def text_lines(event: Event) -> str:
    """An event for people, with its line feed: `TIME LEVEL EVENT [WHO] MESSAGE`.

    Nothing that is not printable is passed on. Only a traceback has more lines, which are indented.
    """
    head = f"{_stamp(event.time)} {event.level.value:<7} {event.name.value}"
    if event.who is not None:
        # The brackets end where the name does.
        head += f" [{_printable(_fit(event.who, _NAME)).replace(']', ')')}]"
    if event.name in _TRACEBACKS:
        first, *others = event.message[-_MOST:].split("\n")
    else:
        first, others = event.message[:_MOST], []
    lines = [f"{head} {_printable(first)}", *(_WITHIN + _printable(line) for line in others)]
    return "".join(f"{_short(line)}\n" for line in lines)


def json_line(event: Event) -> str:
    """An event for programs, with its line feed: one object, in printable ASCII.

    A message that is too long is cut off; of a traceback the end is kept.
    """
    found = {
        "time": _stamp(event.time),
        "level": event.level.value,
        "event": event.name.value,
        "member": _fit(event.member, _NAME) if event.member is not None else None,
        "who": _fit(event.who, _NAME) if event.who is not None else None,
        "message": "",
    }
    room = LONGEST - len(_json(found)) - 1
    message = _fit(event.message, room, at_start=event.name in _TRACEBACKS)
    return _json(found | {"message": message}) + "\n"


def _json(value: object) -> str:
    # DEL is the only character of ASCII that JSON leaves alone and a terminal does not.
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")


def _fit(text: str, room: int, *, at_start: bool = False) -> str:
    """As much of the text as takes `room` bytes in JSON; what is cut off is at its end, or at its start."""
    if len(text) <= room and len(_json(text)) - 2 <= room:
        return text
    room -= len(_CUT)
    text = text[-room:] if at_start else text[:room]
    while (size := len(_json(text)) - 2) > room:
        keep = max(1, len(text) * room // size - 1)
        text = text[-keep:] if at_start else text[:keep]
    return _CUT + text if at_start else text + _CUT


def _short(line: str) -> str:
    if len(line) < LONGEST // 4:
        return line
    data = line.encode()
    return line if len(data) < LONGEST else data[: LONGEST - 1 - len(_CUT)].decode("utf-8", "ignore") + _CUT


def _printable(text: str) -> str:
    """The text on one line, with nothing that a terminal obeys, or that turns the direction of writing."""
    if _PLAIN(text) or text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return _ESCAPES.get(char) or char.encode("unicode_escape").decode("ascii")


def _stamp(at: float) -> str:
    """ISO 8601 in UTC with milliseconds, as in the access log."""
    second, millisecond = divmod(int(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{millisecond:03d}Z"


class Events:
    """The log of one process. May be used from any thread.

    form: of the lines from now on. who: for what Python itself reports, when several processes do.
    """

    def __init__(
        self,
        output: Output,
        form: Form = "text",
        who: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.form: Form = form
        self._output = output
        self._who = who
        self._clock = clock

    @property
    def dropped(self) -> int:
        """How many lines were lost so far because the reader was too slow or gone, or the disk was full."""
        return self._output.dropped

    def emit(self, event: Event) -> None:
        """Writes an event, with the time if it has none."""
        if not event.time:
            event = Event(event.name, event.message, event.member, event.who, self._clock())
        self._output(json_line(event) if self.form == "json" else text_lines(event))

    def python(self, name: EventName, message: str) -> None:
        """Writes what Python or a library reports."""
        self.emit(Event(name, message, who=self._who))


class Stream(io.TextIOBase):
    """Replaces `sys.stderr` and `sys.stdout`, so that what others write there becomes events, one a line."""

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
        *lines, self._held = (self._held + text).split("\n")
        if len(self._held) > _MOST:
            lines.append(self._held)
            self._held = ""
        for line in lines:
            if line:
                self._events.python(EventName.PYTHON_OUTPUT, line)
        return len(text)


class Records(logging.Handler):
    """Makes events of what libraries log, a traceback within its event.

    What one place in a program logs again and again is bounded; the next event says how many are missing.
    """

    def __init__(self, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._events = events
        self._clock = clock
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        missing = self._missing((record.name, record.lineno))
        if missing is None:
            return
        try:
            message = f"{record.name}: {record.getMessage()}"
            if record.exc_info:
                message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        except Exception:  # noqa: BLE001 -- of an argument's `__str__`, or a format that does not fit
            message = (
                f"{record.name}: a log record is wrong: {record.msg!r}\n{traceback.format_exc().rstrip()}"
            )
        if missing:
            message = f"{message}\n({missing} more like this were not logged)"
        error = record.levelno >= logging.ERROR
        self._events.python(EventName.PYTHON_ERROR if error else EventName.PYTHON_WARNING, message)

    def _missing(self, place: tuple[str, int]) -> int | None:
        """How many were passed over in the window that has ended; None: this one is, too."""
        now = self._clock()
        since, count = self._places.get(place, (now, 0))
        if now - since >= _WINDOW:
            self._places[place] = now, 1
            return max(0, count - _BURST)
        if len(self._places) >= _PLACES:
            self._places.clear()
        self._places[place] = since, count + 1
        return 0 if count < _BURST else None


class _Hooks:
    """What Python calls with a warning, or with an exception that nobody handled."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """As `warnings.showwarning`."""
        self._events.python(EventName.PYTHON_WARNING, f"{category.__name__}: {message} ({filename}:{lineno})")

    def unhandled(
        self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, where: str
    ) -> None:
        """An exception that ends the process or a thread, or was ignored; `where` begins the message."""
        lines = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
        summary = "".join(traceback.format_exception_only(kind, error)).strip().replace("\n", " ")
        self._events.python(EventName.PYTHON_ERROR, f"{where}: {summary}\n{lines}")

    def install(self) -> None:
        """From now on Python calls these."""
        warnings.showwarning = self.warn
        sys.excepthook = lambda kind, error, trace: self.unhandled(kind, error, trace, "unhandled")
        threading.excepthook = self._in_thread
        sys.unraisablehook = lambda found: self.unhandled(
            found.exc_type, found.exc_value, found.exc_traceback, f"ignored in {found.object!r}"
        )

    def _in_thread(self, found: threading.ExceptHookArgs) -> None:
        if found.exc_type is not SystemExit:
            name = found.thread.name if found.thread is not None else "that is gone"
            self.unhandled(
                found.exc_type, found.exc_value, found.exc_traceback, f"unhandled in thread {name}"
            )


def take_over(form: Form = "text", who: str | None = None) -> Events:
    """From now on, everything that this process prints goes to standard error as events, without waiting.

    form, who: as of `Events`. The last lines have a second to be written when the process ends. If it was
    started without descriptors 0, 1 or 2, those are opened on /dev/null, so that no connection gets their
    numbers. Streams that were already replaced are kept, as in a test that calls a command in its process.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    output = Output(2)
    events = Events(output, form, who)
    if sys.stderr is sys.__stderr__:
        sys.stderr = Stream(events, 2)
        sys.stdout = Stream(events, 1)
        # At exit and not at the end of a command: Python itself prints why a process ends.
        atexit.register(output.finish)
        logging.basicConfig(level=logging.WARNING, handlers=[Records(events)])
        _Hooks(events).install()
    return events
