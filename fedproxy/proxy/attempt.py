"""One attempt: the member, the way to it, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.decide.member import Member
    from fedproxy.errors import ExchangeError
    from fedproxy.proxy.ports import MemberPool, MemberStream


class Attempt:
    """One try at one member. An exchange makes it, and settles its lease exactly once.

    stream: None while a connection is being made, and after a failure. before: the attempt before this one.
    """

    __slots__ = ("_error", "before", "lease", "pool", "stream")

    # The exchange sets them: to call an `__init__` would double the cost.
    lease: Lease
    pool: MemberPool
    before: Attempt | None
    stream: MemberStream | None
    _error: ExchangeError

    def __repr__(self) -> str:
        state = "open" if self.stream else self.error or "no stream"
        return f"<Attempt {self.member.name} {state}>"

    @property
    def error(self) -> ExchangeError | None:
        """Why it failed; None if it did not."""
        return getattr(self, "_error", None)

    @error.setter
    def error(self, error: ExchangeError) -> None:
        self._error = error

    @property
    def member(self) -> Member:
        """The member that is asked."""
        return self.lease.member
