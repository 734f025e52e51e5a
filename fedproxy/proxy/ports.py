"""What the parts of the hot path ask of each other. It imports nothing of `proxy`.

    visitor's connection ──► Request ──► exchange ──► MemberStream
    VisitorStream ◄── filters (each a Sink for the one before) ◄── exchange ◄── head, body, failure

A connection of any protocol makes an exchange of each request, and is its `VisitorStream`. A connection to a
member is its `MemberStream`, and tells its `Receiver` what the member says. Neither side knows the other's
protocol, and an exchange knows neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fedproxy.http.request import Line, Request

if TYPE_CHECKING:
    from fedproxy.decide.breaker import Outcome
    from fedproxy.decide.counts import Histogram
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.decide.sessions import Place
    from fedproxy.errors import ExchangeError, MemberError
    from fedproxy.http.response import Response, ResponseHead
    from fedproxy.record import Record, TraceRecord


class Connection(Protocol):
    """A visitor's connection, as the sweep and a drain see it."""

    transport: asyncio.Transport

    def refresh(self) -> None:
        """The policy may have changed, or the edge has begun to drain."""

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""

    def sweep(self, now: float) -> None:
        """Looks at every deadline."""

    def close_if_idle(self, since: float) -> None:
        """Closes it if it has served nothing since then."""

    def cut(self, error: ExchangeError) -> None:
        """Drops it at once: whatever was sent does not look complete."""


class OpenTunnel(Protocol):
    """Two connections that speak to each other without HTTP."""

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""

    def sweep(self, now: float) -> None:
        """Looks at every deadline."""

    def cut(self, who: str) -> None:
        """Drops both connections at once; `who` as in the log."""


class VisitorStream(Protocol):
    """One request of a visitor, and the way back.

    trusted: a trusted proxy sent the request. peer: the address that the connection comes from.
    """

    trusted: bool
    peer: bytes

    @property
    def hsts(self) -> int:
        """Seconds for Strict-Transport-Security (RFC 6797); 0 if the field is not sent."""

    def send_interim(self, head: ResponseHead) -> None:
        """Passes a 1xx on."""

    def send_head(
        self,
        head: ResponseHead,
        request_id: bytes,
        cookie: bytes | None,
        body: bytes,
        done: bool,
        now: float,
    ) -> bool:
        """Passes the head of the final response on, and what came with it of its body.

        cookie: the value of a Set-Cookie that is added. With `done` nothing follows, and the stream has no
        exchange any more. Returns whether all of the response is sent; if it is not, the exchange is told
        later (`Owed`).
        """

    def send_trailers(self, lines: bytes) -> None:
        """The fields that follow a body of which payload was asked for; the next call to `send_body` ends it.

        lines: as HTTP/1 has them, each with its CRLF; only those that are safe to pass on.
        """

    def send_body(self, data: bytes, done: bool) -> bool:
        """Passes (a part of) the body on: chunks, if the head says so and chunks were asked for.

        `done` and what is returned are as for `send_head`.
        """

    def send_answer(self, response: Response) -> None:
        """Sends a response of the edge's own, whole. The exchange is over."""

    def broken(self) -> int:
        """The exchange is over and its response is not whole: it must not look complete.

        Returns how many bytes of it were written but not sent.
        """

    def pause(self) -> None:
        """Reads no more of the request's body until `resume`."""

    def resume(self) -> None:
        """Reads on."""

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """Gives up the connection, which becomes a tunnel: its transport, and what was read from it."""

    def gone(self) -> None:
        """The tunnel is closed."""


class Owed(Protocol):
    """A response that is complete, but not sent yet."""

    def delivered(self, now: float) -> None:
        """The end of it is sent."""

    def undelivered(self, unsent: int, who: str) -> None:
        """`unsent` bytes of it will never be sent. `who` ended it, as in the log."""


class Receiver(Request[Line]):
    """A request that a member's stream carries. The stream calls it for everything that the member sends.

    It is a base class and not a `Protocol`, because compiled code calls a base class's methods faster. full:
    it takes no more for now.
    """

    __slots__ = ("full",)

    full: bool

    def upgrade(self) -> bytes | None:
        """The protocols that the member is asked to switch to, as in Upgrade; None for none."""
        raise NotImplementedError

    @property
    def body_done(self) -> bool:
        """Whether all of the request has come."""
        raise NotImplementedError

    def gives_payload(self) -> bool:
        """Whether the parts of a body without a length are payload and not chunks."""
        raise NotImplementedError

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx."""
        raise NotImplementedError

    def on_head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        """The final response's head, and what came with it of the body."""
        raise NotImplementedError

    def on_body(self, data: bytes, done: bool) -> None:
        """(A part of) the body."""
        raise NotImplementedError

    def on_trailers(self, lines: bytes) -> None:
        """The fields after a body that is passed on as payload, whose end is told next."""
        raise NotImplementedError

    def on_upgrade(self, head: ResponseHead, rest: bytes) -> None:
        """A 101: from here on the connection carries no HTTP. rest: what came with the head."""
        raise NotImplementedError

    def on_failure(self, error: MemberError) -> None:
        """The member failed, and the stream is gone."""
        raise NotImplementedError

    def on_upstream_full(self) -> None:
        """The member reads slowly."""
        raise NotImplementedError

    def on_upstream_drained(self) -> None:
        """The member reads on."""
        raise NotImplementedError


class MemberStream(Protocol):
    """One request to a member, and its answer. reused: the connection served another before."""

    transport: asyncio.Transport
    reused: bool
    writable: bool  # the member reads as fast as it is written to

    def send(self, receiver: Receiver[Any], body: list[bytes] | None) -> None:
        """Sends the request's head, with what there is of its body; None if it has none."""

    def send_body(self, data: bytes, done: bool) -> None:
        """Sends (a part of) the body; with `done` nothing follows."""

    def tap(self, callback: Callable[[bytes], object]) -> bool:
        """Calls `callback` with each piece of the response's payload before that piece goes on.

        To be called from `Receiver.on_head`. False if the body is not chunked: then the body is the payload,
        and `callback` is not called.
        """

    def pause(self) -> None:
        """Reads no more until `resume`."""

    def resume(self) -> None:
        """Reads on."""

    def unsent(self) -> int:
        """Bytes that the system has not taken yet."""

    def release(self, now: float) -> None:
        """The exchange is over: the connection may serve another."""

    def abort(self) -> None:
        """Drops the stream at once."""

    def detach(self) -> asyncio.Transport:
        """Gives up the connection, which becomes a tunnel."""

    def gone(self) -> None:
        """The tunnel is closed."""


class MemberPool(Protocol):
    """The way to one member.

    authority: its own host name, and its port if that is no default. place: as it was when the way was made.
    """

    member: Member
    authority: bytes
    place: Place

    def take(self) -> MemberStream | None:
        """A stream on a connection that is there; None if there is none."""

    def close_idle(self) -> bool:
        """Closes the connections that serve nothing; False if there is none."""

    async def connect(self) -> MemberStream:
        """A stream on a new connection. Raises a kind of `ConnectFailed` or of `EdgeFailed`."""


class Sink(Protocol):
    """Where a response goes: to a filter, or to the visitor."""

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        """The final head, and what came with it of the body. To the visitor this is the COMMIT."""

    def body(self, data: bytes, done: bool) -> None:
        """(A part of) the body."""


class Filter(Sink, Protocol):
    """Looks at a response on its way, changes it or holds it, and passes it on to `sink`.

    Calls other than `head` and `body` go to all filters of a request. `filters.passing.PassThrough` is one
    that does nothing.
    """

    sink: Sink

    def before(self) -> bool:
        """No member is chosen yet. True if the filter has answered the request itself."""

    def begin(self, lease: Lease) -> None:
        """An attempt begins, and the one before is over, whether or not it failed.

        Not called when a request is sent again to the same member because its connection was stale.
        """

    def fail(self, error: ExchangeError, blamed: bool) -> None:
        """The attempt failed. blamed: the member is to blame."""

    def give_up(self, member: Member, error: MemberError) -> bool:
        """The last attempt failed. True if the filter has answered the request itself."""

    def refuse(self) -> None:
        """The edge answers with an error: no member was asked, or the request was cut off (after `end`)."""

    def end(self, outcome: Outcome) -> None:
        """The response is complete, or broken off, or the tunnel is closed."""

    def sweep(self, now: float) -> bool:
        """Looks at its own deadlines. True if those of the exchange do not count meanwhile."""


class Observer(Protocol):
    """Notes what each attempt does. Most exchanges have no observer."""

    def begin(self, member: Member) -> None:
        """Another attempt begins, and with that the one before is over."""

    def send(self, reused: bool) -> None:
        """There is a connection for the attempt, and the request is to be sent."""

    def answer(self, status: int) -> None:
        """The member answered."""

    def fail(self, error: MemberError) -> None:
        """The attempt failed."""

    def example(self, histogram: Histogram, seconds: float) -> None:
        """A value that was counted is an example of its bucket."""

    def record(self, now: float) -> TraceRecord | None:
        """The exchange is over, and was counted. Returns its trace, or None if no spans are made of it."""

    def take(self, record: Record) -> None:
        """Takes the record of the exchange, with the trace."""


class Tracer(Protocol):
    """Makes spans of the requests that it samples."""

    def samples(self, traceparent: bytes | None, trusted: bool) -> bool:
        """Whether a request is traced. traceparent: its own, if any. trusted: a trusted proxy sent it."""

    def take(self, record: Record) -> None:
        """Takes the record of a finished request, which has a trace."""
