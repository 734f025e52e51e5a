"""A filter that does nothing: the base class of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.decide.breaker import Outcome
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.errors import ExchangeError, MemberError
    from fedproxy.http.response import ResponseHead
    from fedproxy.proxy.ports import Sink


class PassThrough:
    """Passes everything on (`ports.Filter`)."""

    __slots__ = ("sink",)

    sink: Sink

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        """The final head, and what came with it of the body."""
        self.sink.head(head, body, done)

    def body(self, data: bytes, done: bool) -> None:
        """(A part of) the body."""
        self.sink.body(data, done)

    def before(self) -> bool:
        """No member is chosen yet. True if the filter has answered the request itself."""
        return False

    def begin(self, lease: Lease) -> None:
        """An attempt begins, and the one before is over."""

    def fail(self, error: ExchangeError, blamed: bool) -> None:
        """The attempt failed. blamed: the member is to blame."""

    def give_up(self, member: Member, error: MemberError) -> bool:
        """The last attempt failed. True if the filter has answered the request itself."""
        return False

    def refuse(self) -> None:
        """The edge answers with an error."""

    def end(self, outcome: Outcome) -> None:
        """The response is complete, or broken off, or the tunnel is closed."""

    def sweep(self, now: float) -> bool:
        """Looks at its own deadlines. True if those of the exchange do not count meanwhile."""
        return False
