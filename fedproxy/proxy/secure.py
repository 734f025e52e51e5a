"""TLS between a connection and its protocol, on Python's own OpenSSL.

The loop's own TLS does not suit an edge: it holds what it has decrypted while reading is paused, hides how
much is unsent, does not report an end without `close_notify`, and takes three times as long as encrypting.
Here nothing is held: what arrives is decrypted and delivered at once, and what is written is encrypted
and handed to the transport below at once. That one alone says what is unsent and when to pause.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from fedproxy.proxy.flow import Flow

_RECORD: Final = 1 << 14  # bytes: the most in one record (RFC 8446 section 5.1)
_MOST_ANSWERS: Final = 1 << 16  # bytes that OpenSSL may send by itself to a peer that reads nothing
_GOODBYE: Final = 5.0  # seconds that a member has to close, too

_AGAIN: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Handshake(Protocol):
    """Who waits for a handshake, and is told once how it ended."""

    def begins(self, wire: asyncio.Transport) -> bool:
        """The connection is there. False to drop it before anything is computed."""

    def ready(self, transport: TLSTransport) -> None:
        """It is encrypted. Sets the transport's protocol."""

    def failed(self, error: Exception | None) -> None:
        """It is lost, and why, if that is known."""


class TLSTransport(asyncio.Transport):
    """What a protocol writes to, and what the transport below, `wire`, delivers to.

    handshake: whom to tell of it, who also decides how long it may take. goodbye: seconds that the other side
    has to close after `close`; without it, the protocol decides when to `abort`. heard: something has come.
    """

    __slots__ = (
        "_answers",
        "_closing",
        "_deliver",
        "_ended",
        "_ending",
        "_goodbye",
        "_handshake",
        "_incoming",
        "_lost",
        "_outgoing",
        "_paused",
        "_protocol",
        "_timer",
        "_told",
        "heard",
        "tls",
        "wire",
    )

    wire: asyncio.Transport

    def __init__(
        self,
        context: ssl.SSLContext,
        handshake: Handshake,
        *,
        goodbye: float | None = None,
        server_hostname: str | None = None,
        server_side: bool = True,
    ) -> None:
        super().__init__()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._handshake: Handshake | None = handshake  # until it is over
        self._goodbye = goodbye
        self.heard = False
        self._protocol: Flow | None = None
        self._deliver: Callable[[bytes], None] = _drop
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False  # the protocol, or a fault, has ended the connection
        self._ending = False  # the other side has sent close_notify, ...
        self._ended = False  # ... and the protocol knows it
        self._paused = False  # the protocol reads nothing at the moment
        self._told = False  # the protocol was told to pause writing
        self._lost: Exception | None = None
        self._answers = 0  # bytes that OpenSSL said by itself since everything was sent

    def __repr__(self) -> str:
        state = "closing" if self._closing else "shaking hands" if self._handshake else "open"
        return f"<TLSTransport {state}>"

    # From the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the handshake."""
        self.wire = cast(asyncio.Transport, transport)
        if self._handshake is not None and not self._handshake.begins(self.wire):
            self.abort()
            return
        if not self.tls.server_side:
            self._shake()

    def data_received(self, data: bytes) -> None:
        """Decrypts what has come, and delivers all of it at once."""
        size = len(data)
        if size > _RECORD or self._handshake is not None or self._closing:
            self._receive_parts(data)
            return
        incoming, outgoing = self._incoming, self._outgoing
        incoming.write(data)
        try:
            # A record is larger than what it holds, so less than was asked for is all of it.
            piece = self.tls.read(size)
            whole = bool(piece) and len(piece) < size and not incoming.pending
        except _AGAIN:
            piece, whole = b"", True
        except ssl.SSLError as error:
            self._break(error)
            return
        if not whole:
            self._receive_rest(piece)
            return
        if outgoing.pending:
            self._answer()
        if piece:
            self._deliver(piece)

    def _receive_parts(self, data: bytes) -> None:
        """The same for much, in parts, as OpenSSL keeps a buffer as large as it ever was."""
        view = memoryview(data)
        pieces: list[bytes] = []
        for at in range(0, len(data), _RECORD):
            self._incoming.write(view[at : at + _RECORD])
            if self._handshake is not None:
                self.heard = True
                if self._closing:
                    return
                if not self._shake():
                    continue
            if not self._read(pieces):
                return
        self._hand_over(pieces)

    def _receive_rest(self, first: bytes) -> None:
        pieces = [first] if first else []
        if not first:
            self._ending = True
        if self._read(pieces):
            self._hand_over(pieces)

    def _read(self, pieces: list[bytes]) -> bool:
        """Takes out what OpenSSL can decrypt. False if that broke the connection."""
        read = self.tls.read
        try:
            while not self._ending:
                if piece := read(_RECORD):
                    pieces.append(piece)
                else:
                    self._ending = True
        except _AGAIN:
            pass
        except ssl.SSLZeroReturnError:
            self._ending = True
        except ssl.SSLError as error:
            self._hand_over(pieces)
            self._break(error)
            return False
        return True

    def _hand_over(self, pieces: list[bytes]) -> None:
        if self._closing:
            if self._ending:
                self.wire.close()
            return
        if self._outgoing.pending:
            self._answer()
        if pieces:
            self._deliver(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._ending and not self._paused:
            self._end()

    def _answer(self) -> None:
        """Sends what OpenSSL says by itself: parts of a handshake, tickets, keys, alerts."""
        wire, said = self.wire, self._outgoing.read()
        self._answers = self._answers + len(said) if wire.get_write_buffer_size() else len(said)
        if self._answers > _MOST_ANSWERS:
            # Somebody asks for new keys all the time, and reads nothing.
            self.abort()
        else:
            wire.write(said)

    def _end(self) -> None:
        """The other side has sent close_notify: it sends nothing more."""
        protocol = self._protocol
        if protocol is not None and not self._closing and not self._ended:
            self._ended = True
            if not protocol.eof_received():
                self.close()

    def eof_received(self) -> None:
        """Without close_notify, anybody on the way may have ended the connection. It is closed."""
        if not self._ending and not self._closing and self._protocol is not None:
            self._protocol.cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the protocol, or who waits for the handshake."""
        closed, self._closing = self._closing, True
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        exc = self._lost or exc
        protocol, handshake = self._protocol, self._handshake
        self._protocol = self._handshake = None
        self._deliver = _drop
        if handshake is not None:
            handshake.failed(exc)
        elif protocol is not None:
            if self._ending and not self._ended and not closed:
                # It came while the protocol read nothing.
                self._ended = True
                protocol.eof_received()
            protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport below has too much."""
        if self._protocol is not None:
            self._told = True
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The transport below has room again."""
        if self._told and self._protocol is not None:
            self._told = False
            self._protocol.resume_writing()

    # The handshake

    def _shake(self) -> bool:
        """Goes on with the handshake. True if it is over, and the connection open."""
        try:
            self.tls.do_handshake()
        except _AGAIN:
            if self._outgoing.pending:
                self.wire.write(self._outgoing.read())
            return False
        except (ssl.SSLError, ssl.CertificateError) as error:
            if not self._closing:
                self._break(error)
            return False
        if self._outgoing.pending:
            self.wire.write(self._outgoing.read())
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.ready(self)
        return not self._closing

    def _break(self, error: Exception) -> None:
        """Says in an alert that the other side has broken the rules, and ends the connection."""
        wire, said_all = self.wire, self._closing
        self._lost = error
        self._closing = True
        if said_all or wire.get_write_buffer_size() or wire.is_closing():
            wire.abort()
            return
        if self._outgoing.pending:
            wire.write(self._outgoing.read())
        wire.close()

    # What a protocol may do

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts, and writes at once."""
        if self._closing:
            return
        if len(data) > _RECORD:
            self._write_parts((data,))
        elif data:
            try:
                self._encrypt(data)
            except ssl.SSLError as error:
                self._break(error)
                return
            self.wire.write(self._outgoing.read())

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """The same for several parts, in as few records as there can be."""
        parts = cast("Sequence[bytes]", list_of_data)
        if sum(map(len, parts)) > _RECORD:
            if not self._closing:
                self._write_parts(parts)
        else:
            self.write(b"".join(parts))

    def _write_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """One record at a time, as OpenSSL keeps a buffer as large as it ever was."""
        encrypt, read = self._encrypt, self._outgoing.read
        records: list[bytes] = []
        begun: list[bytes | bytearray | memoryview] = []
        size = 0
        try:
            for part in parts:
                view = memoryview(part)
                while size + len(view) > _RECORD:
                    room = _RECORD - size
                    encrypt(b"".join((*begun, view[:room])) if begun else view[:room])
                    records.append(read())
                    view, begun, size = view[room:], [], 0
                begun.append(view)
                size += len(view)
            if size:
                encrypt(b"".join(begun))
                records.append(read())
        except ssl.SSLError as error:
            self._break(error)
            return
        self.wire.writelines(records)

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts all of it, in several records if the other side wants small ones (RFC 6066 section 4)."""
        write, size = self.tls.write, len(data)
        done = write(data)
        if done < size:
            view = memoryview(data)
            while done < size:
                done += write(view[done:])

    def close(self) -> None:
        """Says close_notify behind what is written, and waits for the other side to end, too.

        What comes until then is thrown away.
        """
        if self._closing:
            return
        self._closing = True
        self._deliver = _drop
        wire = self.wire
        if wire.is_closing():
            return
        if self._handshake is not None:
            wire.abort()
            return
        # It raises if the other side has not said its own yet, or says something else.
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        if self._outgoing.pending:
            wire.write(self._outgoing.read())
        if self._ending:
            wire.close()
            return
        if wire.can_write_eof():
            wire.write_eof()
        if self._paused:
            self._paused = False
            wire.resume_reading()
        if self._goodbye is not None:
            self._timer = asyncio.get_running_loop().call_later(self._goodbye, self.wire.abort)

    def abort(self) -> None:
        """Drops the connection at once."""
        self._closing = True
        self.wire.abort()

    def is_closing(self) -> bool:
        """Whether what is written from now on is lost."""
        return self._closing or self.wire.is_closing()

    def can_write_eof(self) -> bool:
        """TLS could, but hardly anybody expects it."""
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Who receives what is decrypted: a `Flow`."""
        self._protocol = cast(Flow, protocol)
        self._deliver = self._protocol.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who receives what is decrypted."""
        return cast(Flow, self._protocol)

    def is_reading(self) -> bool:
        """Whether what arrives is delivered."""
        return not self._paused

    def pause_reading(self) -> None:
        """Delivers nothing until `resume_reading`."""
        self._paused = True
        self.wire.pause_reading()

    def resume_reading(self) -> None:
        """Delivers again."""
        if not self._paused or self._closing:
            return
        self._paused = False
        self.wire.resume_reading()
        if self._ending:
            # Not now: the caller is in the middle of something.
            asyncio.get_running_loop().call_soon(self._end_if_read)

    def _end_if_read(self) -> None:
        if not self._paused:
            self._end()

    def get_write_buffer_size(self) -> int:
        """Bytes that the system has not taken yet."""
        return self.wire.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol is told to pause and to resume."""
        self.wire.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, or what the transport below says."""
        return self.tls if name == "ssl_object" else self.wire.get_extra_info(name, default)


def _drop(data: bytes) -> None:
    """Nobody reads any more."""


class _Connecting:
    """A connection to a member, until `waiter` is done: a `Handshake`."""

    def __init__(self, protocol: Flow, waiter: asyncio.Future[None]) -> None:
        self._protocol = protocol
        self._waiter = waiter

    def begins(self, _wire: asyncio.Transport) -> bool:
        return True

    def ready(self, transport: TLSTransport) -> None:
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        if not self._waiter.done():
            self._waiter.set_result(None)

    def failed(self, error: Exception | None) -> None:
        if not self._waiter.done():
            self._waiter.set_exception(error or ConnectionResetError())


async def connect(protocol: Flow, context: ssl.SSLContext, host: str, sock: Any) -> None:
    """Encrypts a connection to a member, however long that takes. Raises OSError, also as SSLError."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    secure = TLSTransport(
        context,
        _Connecting(protocol, waiter),
        goodbye=_GOODBYE,
        server_hostname=host,
        server_side=False,
    )
    wire, _ = await loop.create_connection(lambda: cast(asyncio.Protocol, secure), sock=sock)
    try:
        await waiter
    except BaseException:
        wire.abort()
        raise
    if wire.is_closing():
        raise ConnectionResetError


def wire_of(transport: asyncio.Transport) -> asyncio.Transport:
    """What is next to the system: the transport itself, or the one below its TLS."""
    return transport.wire if isinstance(transport, TLSTransport) else transport
