"""The line between the control process and a worker: messages both ways, over a pair of sockets.

Neither side waits for the other. What is only good while it is fresh is dropped when the other side does not
read; the rest waits. When the line is cut, a worker goes on with what it last knew.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.decide.member import Intent
    from fedproxy.decide.snapshot import Snapshot, Survey
    from fedproxy.errors import Fault

_LENGTH = struct.Struct(">I")
_FRESH_ONLY = 1 << 18  # bytes that wait to be read by the other side


# From the control process


@dataclass(frozen=True)
class Health:
    """The probes' word on a member. pods, quota: as far as it told them, for the visitors' page."""

    name: str
    healthy: bool
    reasons: tuple[str, ...] = ()
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None


@dataclass(frozen=True)
class Put:
    """A config to put in force, and the operators' intent, by member. workers: how many share the work."""

    config: Config
    intents: Mapping[str, Intent]
    workers: int


@dataclass(frozen=True)
class Start:
    """The first message. sockets: for each listener of the config, the numbers of its descriptors.

    given: for each listener, whether its socket was given to the control process and outlives it.
    """

    put: Put
    health: tuple[Health, ...]
    tickets: bytes
    sockets: tuple[tuple[int, ...], ...]
    given: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Renew:
    """The certificates have changed."""


@dataclass(frozen=True)
class Reopen:
    """The access log's file was moved away: another is to be opened in its place."""


@dataclass(frozen=True)
class Tickets:
    """The secret of TLS session tickets has changed."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Logo:
    """An image for the visitors' page, as it was found at `url`. key: names the content. kind: media type."""

    url: str
    key: str
    kind: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Ask:
    """To be answered with `Told`, which then says that all that was sent before is in force."""

    number: int


@dataclass(frozen=True)
class Drain:
    """Stop accepting, give what is under way so many seconds, and end."""

    seconds: float


# From a worker


@dataclass(frozen=True)
class Ready:
    """Visitors are accepted."""


@dataclass(frozen=True)
class Part:
    """Some members of an account, told one part after the other: with hundreds, visitors would have to wait.

    at: so many members of this account were told of before. `Told` ends it.
    """

    at: int
    members: Sequence[Snapshot]


@dataclass(frozen=True)
class Told:
    """What was counted so far; with the number of the question, if there was one.

    after: so many members were told of before, in `Part`s.
    """

    number: int | None
    survey: Survey
    after: int = 0


@dataclass(frozen=True)
class Refused:
    """A config that was put cannot be used; the one before stays in force."""

    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Leaving:
    """This worker was told to end by a signal; it accepts until its successor does."""


# What one worker learns and the others should know: passed on by the control process


@dataclass(frozen=True)
class Tripped:
    """A member's breaker opened. witnesses: keys of the clients whose failures opened it."""

    name: str
    witnesses: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class Doubted:
    """A breaker would open for what one client saw. Where the member serves others, `Served` answers."""

    name: str


@dataclass(frozen=True)
class Served:
    """A member serves clients well; `clients` are some of their keys."""

    name: str
    clients: frozenset[bytes]


@dataclass(frozen=True)
class Moved:
    """Launches of a key run on another member than the one that the key chooses."""

    key: bytes
    name: str


@dataclass(frozen=True)
class Launched:
    """A client, or its network, asked for a launch."""

    client: bytes


@dataclass(frozen=True)
class Launches:
    """How many launches are in flight, by member: the sender's own, or those of all others."""

    running: Mapping[str, int]


Fact = Tripped | Doubted | Served | Moved | Launched | Launches


class Line(asyncio.Protocol):
    """One end. `on_message` is called with each message, `on_lost` when the other end is gone."""

    def __init__(self, on_message: Callable[[object], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._held = b""

    @classmethod
    async def open(
        cls, sock: socket.socket, on_message: Callable[[object], None], on_lost: Callable[[], None]
    ) -> Line:
        """The line over `sock`, one of a pair of stream sockets, which it owns from now on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, line = await loop.create_unix_connection(lambda: cls(on_message, on_lost), sock=sock)
        return line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def is_open(self) -> bool:
        """Whether the other end is there."""
        return not self._transport.is_closing()

    def send(self, message: object) -> None:
        """Sends a message, which waits for as long as the other side does not read."""
        if self.is_open:
            data = pickle.dumps(message)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    @property
    def is_read(self) -> bool:
        """Whether the other end is there and reads, so that few messages wait."""
        return self.is_open and self._transport.get_write_buffer_size() < _FRESH_ONLY

    def send_fresh(self, message: object) -> None:
        """Sends a message, unless many wait: the next one will say more."""
        if self.is_read:
            self.send(message)

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        data = self._held + data
        at = 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            # Only the other end of a pair that this program made itself writes here.
            message = pickle.loads(data[at + _LENGTH.size : end])  # noqa: S301
            at = end
            self._on_message(message)
        self._held = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._on_lost()

    def close(self) -> None:
        """Sends what waits, and ends the line."""
        self._transport.close()
