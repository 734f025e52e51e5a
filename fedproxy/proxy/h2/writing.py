"""How a visitor's HTTP/2 connection writes: once for each turn of the loop, and what is still owed then."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from fedproxy.proxy.visiting import Visiting
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.priority import URGENT
from fedproxy.wire.h2.server import H2Server
from fedproxy.wire.h2.stream import H2Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedproxy.proxy.context import Context
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.policy import ListenerOptions
    from fedproxy.proxy.ports import Owed

# What may wait in all streams of a connection before none of them is read for: a peer that takes nothing
# must not be able to fill the memory.
_CROWDED: Final = 8 * 1024 * 1024
_UNSENT: Final = 64 * 1024  # bytes
_STUFFED: Final = 256 * 1024  # bytes that wait for a peer that reads nothing, before nothing is read of it
_COPIED: Final = 16 * 1024  # bytes that are joined rather than written in parts


class Sender(H2Stream):
    """A stream, as far as its connection writes for it.

    exchange: of the request, until its response is complete. full: its owner was told that nothing more is
    taken for now.
    """

    __slots__ = ("connection", "exchange", "full")

    def __init__(self, connection: Writing[Any], number: int, window: int, credit: int, state: int) -> None:
        super().__init__(number, window, credit, state)
        self.connection = connection
        self.exchange: Exchange | None = None
        self.full = False

    @property
    def is_open(self) -> bool:
        """Whether something may still be sent on it."""
        return self.id in self.connection.machine.streams

    def pause(self) -> None:
        """Lets the visitor send no more than it may already, until `resume`."""
        if self.is_open:
            self.connection.machine.hold(self)

    def resume(self) -> None:
        """Lets the visitor send more."""
        if self.held:
            self.connection.machine.release(self)
            self.connection.flush()

    def end(self, code: Code) -> None:
        """Resets it, unless it is over. Nothing of it waits any more."""
        self.connection.full.discard(self)
        if self.is_open:
            self.connection.machine.reset(self, code)
            self.connection.flush()

    def drained(self, now: float) -> None:
        """Nothing waits any more."""
        raise NotImplementedError


S = TypeVar("S", bound=Sender)


class Writing(Visiting, Generic[S]):
    """One connection with its streams, as far as it writes.

    id_name: before a request's id in each response's head; common: the fields before that. full: streams
    that have more than their visitor takes; crowded: all streams together have too much. tunnels: streams
    that became one. owed: exchanges that are over except that the end of their response is not sent yet;
    each with the place of that end among the bytes `written`, and the time when it was. Of those bytes the
    first `passed` were given to the transport.
    """

    __slots__ = (
        "_awaited",
        "_gathered",
        "_stuffed",
        "common",
        "crowded",
        "full",
        "id_name",
        "machine",
        "owed",
        "passed",
        "soon",
        "tunnels",
        "written",
    )

    machine: H2Server[S]

    def __init__(self, context: Context, options: ListenerOptions) -> None:
        super().__init__(context, options)
        self.common = b""
        self.id_name = b""
        self.full: set[S] = set()
        self.tunnels: set[S] = set()
        self.crowded = False
        self.owed: list[tuple[int, float, Owed]] = []
        self.written = 0
        self.passed = 0
        self.soon: Callable[[Callable[[], None]], object] = asyncio.get_running_loop().call_soon
        self._gathered: list[bytes | memoryview] = []
        self._stuffed = False
        self._awaited = False

    def let_events_pass(self) -> None:
        """What the system has taken, nothing passes: so it takes little before that is sent."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    @property
    def stuffed(self) -> bool:
        """Whether nothing is read because nothing of what was written is."""
        return self._stuffed

    # What `H2Downstream` adds

    def read_on(self) -> None:
        """Reads on in what has come."""
        raise NotImplementedError

    def stream_over(self, now: float) -> None:
        """A stream is over."""
        raise NotImplementedError

    # Frames

    def send(self, data: bytes) -> None:
        """Writes frames, together with what else is written in this turn of the loop."""
        if data:
            self.written += len(data)
            gathered = self._gathered
            gathered.append(data)
            if len(gathered) == 1:
                self.soon(self.write_gathered)
        machine = self.machine
        if machine.turns.size:
            self.pump()
        if machine.out:
            self.flush()

    def send_parts(self, parts: list[bytes | memoryview]) -> None:
        """Writes frames in parts."""
        if len(parts) == 1:
            self.send(bytes(parts[0]))
        elif parts:
            self._write_parts(parts)
            if self.machine.turns.size:
                self.pump()
        if self.machine.out:
            self.flush()

    def _write_parts(self, parts: list[bytes | memoryview]) -> None:
        """Writes at once, so that `writable` says whether there is room for more."""
        self.written += sum(map(len, parts))
        self._gathered += parts
        self.write_gathered()

    def write_gathered(self) -> None:
        """Writes what was gathered: each write costs a call of the system, and over TLS a record."""
        gathered = self._gathered
        if gathered:
            size = self.written - self.passed
            self.passed = self.written
            if self.wire.is_closing():
                # The loop says so a turn later.
                self.thrown_away += size
            elif len(gathered) == 1:
                write = self.write
                write(gathered[0])
            elif size < _COPIED:
                write = self.write
                write(b"".join(gathered))
            else:
                self.transport.writelines(gathered)
                self._gathered = []
                gathered = self._gathered
            gathered.clear()
            if not self.writable and not self._stuffed and self.unsent() > _STUFFED:
                # A peer that reads nothing must not have the edge write more and more.
                self._stuffed = True
                self.pause()
        if self.owed:
            self._look_at_owed()

    def flush(self) -> None:
        """Writes what the machine has to say, and counts what it has ended."""
        machine = self.machine
        if machine.out:
            out, machine.out = machine.out, []
            self.send(b"".join(out))
        if machine.errors:
            counted = self.context.counts.http2_errors
            for code in machine.errors:
                counted[Code(code).name.lower()] += 1
            machine.errors.clear()

    def pump(self) -> None:
        """Sends what waits, as far as the visitor and the system take it."""
        machine = self.machine
        while machine.turns.size and self.writable:
            parts = machine.pump()
            if not parts:
                break
            self._write_parts(parts)
        if self.full:
            self._look_at_full()
        if machine.out:
            self.flush()

    def _look_at_full(self) -> None:
        if self.crowded and self.machine.held_up <= _CROWDED // 2:
            self.crowded = False
            for stream in [each for each in self.machine.streams.values() if not each.full]:
                if stream.exchange is not None:
                    stream.exchange.on_visitor_drained()
        now = None
        for stream in [each for each in self.full if not each.waiting]:
            if self.crowded and stream.exchange is not None:
                # What comes next would have to wait as well.
                continue
            self.full.discard(stream)
            now = self.context.clock() if now is None else now
            stream.drained(now)

    def look_at_backlog(self) -> None:
        """If too much waits, nothing is read for any stream."""
        if not self.crowded and self.machine.held_up > _CROWDED:
            self.crowded = True
            for stream in list(self.machine.streams.values()):
                # Events are few and small, and must not wait.
                if stream.exchange is not None and not stream.full and stream.place != URGENT:
                    stream.exchange.on_visitor_full()

    def pause_writing(self) -> None:
        self.writable = False
        self.machine.blocked = True
        self.waiting = self.unsent()

    def resume_writing(self) -> None:
        self.writable = True
        self.machine.blocked = False
        if self._stuffed:
            self._stuffed = False
            self.soon(self.read_on)
        if self.owed:
            self._look_at_owed()
        self.pump()

    def owe(self, exchange: Owed, now: float) -> None:
        """A response is complete `now`: the exchange is told once its end is sent."""
        self.owed.append((self.written, now, exchange))
        if not self._gathered:
            self.soon(self.write_gathered)

    def _look_at_owed(self) -> None:
        if self.wire.is_closing():
            return
        owed = self.owed
        waiting = self.unsent()
        if not waiting:
            if not self._gathered:
                self.owed = []
                for _, at, exchange in owed:
                    exchange.delivered(at)
                if self._awaited:
                    self._awaited = False
                    self.wire.set_write_buffer_limits()
            return
        self.waiting = waiting
        sent = self.passed - waiting
        now = self.context.clock()
        while owed and owed[0][0] <= sent:
            owed.pop(0)[2].delivered(now)
        if not self._awaited:
            self._awaited = True
            # So that `resume_writing` is called once all is sent.
            self.wire.set_write_buffer_limits(0)
