"""The process that worker processes are forked from, so that each costs little time and memory to start.

It imports what a worker needs, and forks a worker whenever the control process (`serve/starting.py`) asks for
one. It has no loop, no thread and no socket of the edge, so there is nothing that a fork could break. Each
worker becomes a child of the control process at once: it depends on this process no more than on the
program's file, and whoever waits for it needs nobody in between.

Standard input is one end of a SEQPACKET pair. A request is one message or several, with descriptors
(SCM_RIGHTS) and JSON: `numbers`, their numbers in the control process, the control channel's and the hand's
first, `log`, the form of the worker's own log, and `more`, whether another message belongs to it. The answer
is `pid` or `errno`. At the end of the pair this process ends.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    # Until `freeze` in a worker. Imports leave hardly any garbage, and a search for it writes to every
    # object: no page would be left that workers share.
    gc.disable()

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.observe.events import Form

_CONTROL = 0
_STANDARD = 3  # descriptors: input, output and errors
_LONGEST = 1 << 16  # bytes of a message
_MOST = 253  # descriptors with one message: SCM_MAX_FD of the kernel
# CPython's allocator has a pool for each size of small objects (Objects/obmalloc.c). Bytes of one or none are
# not made anew, so the two smallest are left out. In each there are some ten KiB free after the imports.
_SIZES = range(48, 513, 16)
_GAPS = 96 * 1024  # bytes of each size
_PID = struct.Struct("i")
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# In `ps` the two differ by this only; they are of one length, as the name of a process cannot grow.
_NAME, _NAME_OF_WORKER = b"fedproxy.serve.forker", b"fedproxy.serve.worker"


def main() -> None:
    """Forks workers until the control process is gone; returns in each of them when it has ended too."""
    for number in _SIGNALS:
        # Whoever sends one to the whole service means the control process, which says what follows from it.
        signal.signal(number, signal.SIG_IGN)
    _close_others(())
    # Afterwards, as it takes its time.
    from fedproxy.serve import worker

    worker.prepare()
    gaps = _fill_gaps()
    gc.freeze()
    parent = os.getppid()
    asked = _serve(socket.socket(fileno=_CONTROL))
    if asked is not None:
        given, log = asked
        channel, hand, *_ = given.values()
        worker.serve(channel, hand, log, given, parent)
    del gaps


def _fill_gaps() -> list[bytes]:
    """Takes the room that is free between the objects of the imports; it is to be kept.

    A worker would put its first objects there, and each would take a page of the shared ones. So they lie
    together, and a worker has 2 MiB less of its own.
    """
    head = sys.getsizeof(b"")
    return [bytes(size - head) for size in _SIZES for _ in range(_GAPS // size)]


def _serve(control: socket.socket) -> tuple[dict[int, int], Form] | None:
    """Forks what is asked for. Returns None at the end, and in a worker what it was given.

    That is its descriptors, by their numbers in the control process, and the form of its log.
    """
    while (asked := _take(control)) is not None:
        given, log = asked
        try:
            pid = _fork()
        except OSError as error:
            answer = {"errno": error.errno or errno.EAGAIN}
        else:
            if pid == 0:
                control.detach()
                _become_worker(set(given.values()))
                return given, log
            answer = {"pid": pid}
        for number in given.values():
            os.close(number)
        if not _answer(control, answer):
            break
    return None


def _take(control: socket.socket) -> tuple[dict[int, int], Form] | None:
    """The descriptors of the next request, and the form of the log; None if the control process is gone."""
    given: dict[int, int] = {}
    complete = True
    while True:
        try:
            data, got, _, _ = socket.recv_fds(control, _LONGEST, _MOST, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        if not data:
            return None
        message = json.loads(data)
        complete = complete and len(got) == len(message["numbers"])
        given.update(zip(message["numbers"], got, strict=False))
        if message["more"]:
            continue
        if complete:
            return given, "json" if message["log"] == "json" else "text"
        # The limit of descriptors leaves no room for them.
        for number in given.values():
            os.close(number)
        given.clear()
        complete = True
        if not _answer(control, {"errno": errno.EMFILE}):
            return None


def _answer(control: socket.socket, answer: dict[str, int]) -> bool:
    try:
        control.send(json.dumps(answer).encode(), socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def _fork() -> int:
    """Forks a process that is no child of this one. Returns 0 there, and its number here. Raises OSError."""
    reading, writing = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            # The one that is left behind when this one ends goes to the nearest process above that adopts
            # (PR_SET_CHILD_SUBREAPER), which is the control process.
            try:
                pid = os.fork()
            except OSError as error:
                pid = -(error.errno or errno.EAGAIN)
            if pid != 0:
                with suppress(OSError):
                    os.write(writing, _PID.pack(pid))
                os._exit(0)
            return 0
        os.close(writing)
        writing = -1
        data = os.read(reading, _PID.size)
        os.waitpid(between, 0)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    pid = _PID.unpack(data)[0] if len(data) == _PID.size else -errno.EAGAIN
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _become_worker(own: set[int]) -> None:
    """Leaves behind what is the other process's: its session, its signals, its descriptors, its name."""
    # Ctrl-C in a terminal is for the control process, which says what it means for a worker.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, _CONTROL)
    _close_others(own)
    _rename()


def _close_others(own: Container[int]) -> None:
    for each in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(each.name)
        if descriptor >= _STANDARD and descriptor not in own:
            # The list itself is in it, and closed by now.
            with suppress(OSError):
                os.close(descriptor)


def _rename() -> None:
    """Takes a worker's name in the list of processes, where that is possible."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end (proc(5))
        arguments = Path("/proc/self/cmdline").read_bytes()
        if start and end - start == len(arguments) and arguments.count(_NAME) == 1:
            ctypes.memmove(start + arguments.index(_NAME), _NAME_OF_WORKER, len(_NAME_OF_WORKER))


if __name__ == "__main__":
    main()
