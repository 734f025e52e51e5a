"""Lines for people and programs, written to a file, pipe, socket or terminal without ever waiting for it.

A reader may stall, and a disk may be full, slow or gone. The caller notices none of it.
"""

from __future__ import annotations

import math
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

_LIMIT: Final = 1 << 20  # bytes that may wait
_AT_A_TIME: Final = 1 << 18  # bytes that the thread takes on
_ATOMIC: Final = 1 << 14  # bytes that a unix socket takes as one piece, or not at all
_REST: Final = 0.02  # seconds between two writes to a file, so that many lines become one write
_RETRY: Final = 0.01  # seconds until the next try if poll reports ready but a write would block
_GLANCE: Final = 100  # milliseconds between two checks whether to stop
_LAST_LINES: Final = 1.0  # seconds for what still waits at the end


def open_file(path: Path) -> int:
    """A descriptor that appends to the file, which is created if need be. Raises OSError."""
    # Without O_NONBLOCK, opening a pipe that nobody reads or writing to a full one would wait.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags, 0o640)


class _Target:
    """A descriptor to write to. direct: a write never waits, it raises BlockingIOError instead."""

    direct = True

    def __init__(self, fd: int, owned: bool) -> None:
        self.fd = fd
        self._owned = owned

    def end(self, data: bytes, start: int) -> int:
        """Where the next piece to write ends. Other processes may write between two pieces."""
        return len(data)

    def write(self, piece: memoryview) -> int:
        """Returns how many bytes were taken. Raises OSError."""
        return os.write(self.fd, piece)

    def close(self) -> None:
        """Closes the descriptor if it is owned."""
        if self._owned:
            self._owned = False
            os.close(self.fd)


class _Lines(_Target):
    """A pipe or terminal: whole lines, as many as a pipe takes in one piece (POSIX: PIPE_BUF)."""

    piece = select.PIPE_BUF

    def end(self, data: bytes, start: int) -> int:
        if len(data) - start <= self.piece:
            return len(data)
        end = data.rfind(b"\n", start, start + self.piece) + 1 or data.find(b"\n", start) + 1
        return end or len(data)


class _Waiting(_Lines):
    """Descriptors where a write may block: files, and pipes and terminals that cannot be reopened."""

    direct = False

    def __init__(self, fd: int, owned: bool, regular: bool) -> None:
        super().__init__(fd, owned)
        self.regular = regular

    def end(self, data: bytes, start: int) -> int:
        return len(data) if self.regular else super().end(data, start)


class _Socket(_Lines):
    """A socket, as stdout is for a service under systemd's journal."""

    piece = _ATOMIC

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        super().__init__(self._socket.fileno(), owned=False)
        self._stream = self._socket.type == socket.SOCK_STREAM

    def end(self, data: bytes, start: int) -> int:
        return super().end(data, start) if self._stream else data.find(b"\n", start) + 1 or len(data)

    def write(self, piece: memoryview) -> int:
        # For this call only: other processes share the socket and may want to wait.
        return self._socket.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._socket.close()


def _target(fd: int, owned: bool) -> _Target:
    """Raises OSError if nothing is open there."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _Socket(fd)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        if owned:
            return _Lines(fd, owned)  # by `open_file`
        try:
            # Setting O_NONBLOCK on `fd` would affect all processes that share it, such as a terminal's shell.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return _Lines(os.open(f"/proc/self/fd/{fd}", flags), owned=True)
        except OSError:
            return _Waiting(fd, owned=False, regular=False)
    return _Waiting(fd, owned, regular=True)


class Output:
    """Writes whole lines to a descriptor, in order. Calling it never waits and never raises.

    What can be written without waiting is written at once. Up to `limit` bytes of the rest wait for a thread
    of this object. More than that, or anything while there is no reader, is dropped; `dropped` counts these
    lines. `owned`: this object closes the descriptor. It may be called from any thread.

    Several processes may write to the same file or pipe. Their lines are not mixed, except for lines in a
    pipe that are longer than it takes in one piece.
    """

    def __init__(self, fd: int = 1, limit: int = _LIMIT, *, owned: bool = False) -> None:
        self._target = _target(fd, owned)
        self._limit = limit
        # Reentrant: a destructor may write a line while this thread is writing one.
        self._lock = threading.RLock()
        self._busy = False  # somebody is writing, so others leave their lines in `_waiting`
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes that wait, including those in `_held`
        self._held = b""  # what the thread is writing, ...
        self._done = 0  # ... and how many bytes of it are written
        self._within_line = False  # the last write ended within a line ...
        self._cut = False  # ... and the rest was dropped, so the next line must start with a line feed
        self._thread: threading.Thread | None = None
        self._wake = threading.Semaphore(0)
        self._until = math.inf  # once set, no more lines are taken; what still waits then is dropped
        self._ended = False
        self.dropped = 0

    def __call__(self, text: str) -> None:
        """Writes whole lines."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._until < math.inf:
                self.dropped += _count(data)
                return
            if not self._busy and self._target.direct:
                self._busy = True
                data = self._write(data)
                self._done = 0
                self._busy = False
                if data:
                    self._waiting.appendleft(data)
                    self._size += len(data)
            elif self._size and self._size - self._done + len(data) > self._limit:
                self.dropped += _count(data)
            else:
                self._waiting.append(data)
                self._size += len(data)
            if self._waiting and not self._busy:
                self._hand_over()

    def _write(self, data: bytes) -> bytes:
        """Writes as much as it can without waiting, and returns the rest."""
        fix = self._cut
        if fix:
            data = b"\n" + data
        at = 0
        with memoryview(data) as view:
            try:
                while at < len(data) and not self._ended:
                    written = self._target.write(view[at : self._target.end(data, at)])
                    if not written:
                        break
                    at += written
                    self._done = at
                    self._within_line = data[at - 1] != 0x0A
                    self._cut = False
            except BlockingIOError:
                pass
            except OSError:
                # The reader is gone or the disk is full. That costs lines, but must not cost requests.
                with self._lock:
                    if not self._ended:
                        self.dropped += _count(data[at:])
                self._cut = self._within_line
                return b""
        return data[at + (fix and not at) :]

    # The thread

    def _hand_over(self) -> None:
        """Lets the thread write what waits; called with the lock held."""
        self._busy = True
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No more threads are allowed, or the interpreter is shutting down.
                self._drop()
                self._busy = False
                return
            self._thread = thread
        self._wake.release()

    def _drop(self) -> None:
        """Drops what waits; called with the lock held."""
        self.dropped += _count(self._held[self._done :]) + sum(map(_count, self._waiting))
        self._held = b""
        self._waiting.clear()
        self._size = 0

    def _run(self) -> None:
        while not self._ended:
            self._wake.acquire()
            while data := self._take():
                self._write_all(data)
                if not (self._target.direct or self._waiting or self._until < math.inf):
                    # Lines accumulate meanwhile, and this thread need not be woken for each.
                    time.sleep(_REST)

    def _take(self) -> bytes:
        """What to write next. If there is nothing, callers write directly again."""
        with self._lock:
            taken = 0
            pieces = []
            while self._waiting and taken < _AT_A_TIME:
                pieces.append(self._waiting.popleft())
                taken += len(pieces[-1])
            self._held, self._done = b"".join(pieces), 0
            if not pieces:
                self._busy = False
                if self._until < math.inf:
                    self._end()
            return self._held

    def _write_all(self, data: bytes) -> None:
        polled = False
        while rest := self._write(data):
            self._note_written(len(data) - len(rest), rest)
            if polled and len(rest) == len(data):
                time.sleep(_RETRY)
            data = rest
            poll = select.poll()
            poll.register(self._target.fd, select.POLLOUT)
            while not (polled := bool(poll.poll(_GLANCE))) and not self._is_over():
                pass
            if self._is_over():
                return
        self._note_written(len(data), b"")

    def _note_written(self, count: int, rest: bytes) -> None:
        with self._lock:
            if not self._ended:
                self._size -= count
                self._held, self._done = rest, 0

    def _is_over(self) -> bool:
        if time.monotonic() >= self._until:
            self.give_up()
        return self._ended

    # The end

    def close(self, within: float = _LAST_LINES) -> None:
        """Stops taking lines. Waiting lines are written for up to `within` seconds, without blocking here."""
        with self._lock:
            if self._until < math.inf:
                return
            self._until = time.monotonic() + within
            if self._thread is None:
                self._end()
            elif not self._busy:
                # Closing a file may wait for the disk too, so the thread does it.
                self._busy = True
                self._wake.release()

    @property
    def pending(self) -> bool:
        """Whether lines from before `close` still wait and have time left."""
        return self._until < math.inf and not self._is_over()

    def finish(self, within: float = _LAST_LINES) -> None:
        """Closes it and waits until all is written, at most `within` seconds: at the end of a process."""
        self.close(within)
        while self.pending:
            time.sleep(_RETRY)

    def give_up(self) -> None:
        """Drops what waits, and closes what this object owns."""
        with self._lock:
            if not self._ended:
                self._until = -math.inf
                self._drop()
                self._end()

    def _end(self) -> None:
        """Called with the lock held."""
        self._ended = True
        # Otherwise the thread still uses the descriptor, perhaps in a write that never returns; it closes the
        # descriptor afterwards.
        if not self._busy:
            self._target.close()
            self._wake.release()


def _count(data: bytes) -> int:
    """The number of lines. A leading line feed only ends a line that was cut off."""
    return data.count(b"\n") - data.startswith(b"\n")
