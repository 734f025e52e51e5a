"""How the control process starts worker processes.

They are forked from one process that has imported everything (`serve/forker.py`), which is started when the
first of them is, and again if it has ended when another one is. Where the kernel lacks what that needs (a
process that adopts, descriptors of processes), each worker is a program that starts by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from fedproxy.event import EventName

if TYPE_CHECKING:
    from fedproxy.observe.events import Form

_TO_FORK = 30.0  # seconds that the process may take to start, and to fork
_TO_END = 2.0  # seconds that it may take to end
_AT_A_TIME = 250  # descriptors with one message; the kernel takes a few more
_LONGEST = 4096  # bytes of an answer
_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class StartError(Exception):
    """A worker could not be started."""


class Child(Protocol):
    """A worker process, a child of this one."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it runs."""

    async def wait(self) -> int:
        """Returns its exit status when it has ended."""

    def kill(self) -> None:
        """Sends SIGKILL. Raises ProcessLookupError if it has ended."""


class Forked:
    """A child that another process has forked, so the loop does not know it. Usable in a running loop."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        # It is not waited for before, so its number is not another's.
        self._descriptor = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._on_end)

    async def wait(self) -> int:
        """As `Child` says."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """As `Child` says."""
        if self.returncode is not None:
            raise ProcessLookupError
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _on_end(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            # Somebody in this process waits for all children.
            pid, status = self.pid, 255 << 8
        if pid:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self.returncode = os.waitstatus_to_exitcode(status)
            self._ended.set_result(self.returncode)


class Starter:
    """Starts worker processes. `note` takes what operators should know. Usable in a running loop."""

    def __init__(self, note: Callable[[EventName, str], None]) -> None:
        self._note = note
        self._can_fork: bool | None = None
        self._forker: _Forker | None = None
        self._beginning = asyncio.Lock()
        self._starting = 0
        self._children: set[Child] = set()  # those that have ended too, until somebody asks

    @property
    def forker(self) -> int | None:
        """The number of the process that workers are forked from; None if there is none now."""
        return self._forker.pid if self._forker is not None else None

    def children(self) -> set[int] | None:
        """The child processes that are waited for; None while any is being started."""
        if self._starting or (self._forker is not None and self._forker.is_asked):
            return None
        self._children = {each for each in self._children if each.returncode is None}
        return {each.pid for each in self._children}

    async def start(self, channel: int, hand: int, sockets: Sequence[int], log: Form) -> Child:
        """A worker with copies of these descriptors: of the control channel, of the hand, of its sockets.

        log: the form of its own log.
        Raises StartError, and OSError if there is no room for another process.
        """
        if self._can_fork is None:
            self._can_fork = _adopt()
        self._starting += 1
        try:
            if self._can_fork:
                return await self._fork([channel, hand, *sockets], log)
            return await self._execute(channel, hand, sockets, log)
        finally:
            self._starting -= 1

    async def _fork(self, descriptors: Sequence[int], log: Form) -> Child:
        for _ in range(2):
            forker = await self._begin()
            try:
                forked = forker.ask(descriptors, log)
                break
            except BrokenPipeError:
                # It has ended since it was used last.
                await forker.ended()
        else:
            raise StartError("the process that forks workers ends at once")
        try:
            # Not `wait_for`: Python 3.11's forgets that it was cancelled if the answer is there, too. Who is
            # not wanted any more would be kept, and who cancelled would wait for that for ever.
            async with asyncio.timeout(_TO_FORK):
                return await forked
        except TimeoutError:
            forker.kill()
            raise StartError(f"no worker was forked in {_TO_FORK:g} s") from None

    async def _begin(self) -> _Forker:
        async with self._beginning:
            if self._forker is None:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.setblocking(False)
                with theirs:
                    try:
                        process = await asyncio.create_subprocess_exec(
                            *(sys.executable, "-m", "fedproxy.serve.forker"),
                            stdin=theirs.fileno(),
                            start_new_session=True,
                        )
                    except BaseException:
                        ours.close()
                        raise
                self._children.add(process)
                self._forker = _Forker(process, ours, self._children.add, self._on_end)
            return self._forker

    def _on_end(self, forker: _Forker, status: int) -> None:
        if self._forker is forker:
            self._forker = None
            text = f"process {forker.pid}, which forks workers, ended with {said(status)}"
            self._note(EventName.FORKER_END, text)

    async def _execute(self, channel: int, hand: int, sockets: Sequence[int], log: Form) -> Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fedproxy.serve.worker", str(channel), str(hand), log),
            pass_fds=[channel, hand, *sockets],
            stdin=subprocess.DEVNULL,
            # Ctrl-C in a terminal is for the control process, which says what it means for a worker.
            start_new_session=True,
        )
        self._children.add(process)
        return process

    async def close(self) -> None:
        """Ends the process that workers are forked from; workers stay. The next start begins another one."""
        forker, self._forker = self._forker, None
        if forker is not None:
            await forker.close()
            if self._forker is None and not self._starting:
                # From now on nobody is left behind who would have to be waited for here.
                _set_adopting(False)
                self._can_fork = None


class _Forker:
    """A process of `serve/forker.py`, from the control process's side."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        on_fork: Callable[[Child], None],
        on_end: Callable[[_Forker, int], None],
    ) -> None:
        self._process = process
        self._control = control
        self._on_fork = on_fork
        self._asked: deque[asyncio.Future[Child]] = deque()
        loop = asyncio.get_running_loop()
        loop.add_reader(control, self._on_answer)
        self._end = loop.create_task(self._watch(on_end))

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_asked(self) -> bool:
        """Whether it has been asked for a worker and has not answered."""
        return bool(self._asked)

    def ask(self, descriptors: Sequence[int], log: Form) -> asyncio.Future[Child]:
        """Asks for a worker. Raises BrokenPipeError if the process has ended before, and OSError."""
        for at in range(0, len(descriptors), _AT_A_TIME):
            numbers = descriptors[at : at + _AT_A_TIME]
            note = {"numbers": numbers, "log": log, "more": at + _AT_A_TIME < len(descriptors)}
            try:
                socket.send_fds(self._control, [json.dumps(note).encode()], numbers)
            except OSError as error:
                if at or isinstance(error, BrokenPipeError | ConnectionResetError):
                    # What it has of the request is of no use.
                    self.kill()
                    raise BrokenPipeError from error
                raise
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        return answer

    def _on_answer(self) -> None:
        try:
            while data := self._control.recv(_LONGEST):
                self._take(json.loads(data))
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(self._control)

    def _take(self, answer: dict[str, int]) -> None:
        asked = self._asked.popleft()
        number = answer.get("errno")
        if number is not None:
            if not asked.done():
                asked.set_exception(OSError(number, f"no worker can be forked: {os.strerror(number)}"))
            return
        try:
            child = Forked(answer["pid"])
        except OSError as error:
            # It was not waited for, so that is still its number.
            os.kill(answer["pid"], signal.SIGKILL)
            os.waitpid(answer["pid"], 0)
            if not asked.done():
                asked.set_exception(error)
            return
        self._on_fork(child)
        if not asked.done():
            # Otherwise nobody wants it any more, and it ends by itself, as its control channel is cut.
            asked.set_result(child)

    async def _watch(self, on_end: Callable[[_Forker, int], None]) -> None:
        status = await self._process.wait()
        self._on_answer()
        self._control.close()
        on_end(self, status)
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(StartError(f"the process that forks workers ended with {said(status)}"))
        self._asked.clear()

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        """Returns when it has ended."""
        await asyncio.shield(self._end)

    async def close(self) -> None:
        """Ends it."""
        if self._asked:
            self.kill()
        else:
            # It sees the end of what is sent.
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(_TO_END):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()


def _adopt() -> bool:
    """Lets this process adopt what its children leave behind. Returns whether workers can be forked."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        # Before Linux 5.3, or a Python that was built there.
        return False
    return _set_adopting(True)


def _set_adopting(adopting: bool) -> bool:
    """Sets whether this process becomes the parent of what its children leave behind. False if it cannot."""
    done: int = ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(adopting), 0, 0, 0)
    return done == 0


def said(status: int | None) -> str:
    """An exit status in words."""
    if status is not None and status < 0:
        return f"signal {-status}"
    return f"status {status}"
