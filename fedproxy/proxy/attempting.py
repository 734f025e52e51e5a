"""How a request gets its answer: the member that is chosen, the attempts, and when there is another.

Every step is a plain `def`, so no step is interrupted. What is waited for is a new connection; and a launch
that would be refused waits a moment for a slot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fedproxy.decide.affinity import Source
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.errors import EdgeError, ExchangeError, MemberError, StaleConnection
from fedproxy.proxy.answers import refused
from fedproxy.proxy.attempt import Attempt
from fedproxy.proxy.phase import Phase
from fedproxy.proxy.ports import Receiver
from fedproxy.proxy.routing import RoutedRequest

if TYPE_CHECKING:
    from fedproxy.decide.member import Member
    from fedproxy.http.request import HeaderBlock, Origin
    from fedproxy.proxy.context import Context
    from fedproxy.proxy.extras import Extras
    from fedproxy.proxy.ports import Filter, MemberPool, MemberStream, Observer, VisitorStream
    from fedproxy.proxy.upload import Upload


# Looking up what an enumeration holds is slow, and these are asked for by each request.
_FULL: Final = Refusal.FULL
_COOKIE: Final = Source.COOKIE
_HOST: Final = Source.HOST
_MOVED: Final = Source.MOVED
_RENEWED: Final = Source.RENEWED
_SESSION: Final = Source.SESSION
_FOUND: Final = Source.FOUND
_CHOOSING: Final = Phase.CHOOSING
_ASKING: Final = Phase.ASKING
_OVER: Final = Phase.OVER
# Seconds between two looks whether there is a slot, 0.4 in all. Nothing of the store is waited for.
# Of no fixed length: compiled, a coroutine does not find a constant tuple of floats that has one.
_PAUSES: Final[tuple[float, ...]] = (0.05, 0.1, 0.1, 0.15)


class Attempting(Receiver[RoutedRequest]):
    """One request, as far as members are concerned. What the visitor gets of it is `Exchange`'s business.

    attempt: the one under way. last: the one that began last. pool: of the member that the record names.
    source: what chose that member. Neither of these two is set before the first attempt. says_member: the
    response may have to set the affinity cookie, or tells where a session runs. tried: members that are not
    asked again. progress: how much had moved at the last sweep, and since when.
    """

    __slots__ = (
        "attempt",
        "bytes_in",
        "bytes_out",
        "context",
        "error",
        "extras",
        "first_byte_at",
        "interims",
        "is_launch",
        "last",
        "phase",
        "pool",
        "progress",
        "says_member",
        "source",
        "started",
        "status",
        "termination",
        "tried",
        "upload",
        "visitor",
    )

    pool: MemberPool
    source: Source

    def open(
        self,
        context: Context,
        visitor: VisitorStream,
        line: RoutedRequest,
        block: HeaderBlock,
        origin: Origin,
        request_id: bytes,
        traceparent: bytes,
    ) -> None:
        """Sets everything: as an `__init__`, which the interpreter calls the long way, it would cost more."""
        self.context = context
        self.visitor = visitor
        self.line = line
        self.block = block
        self.origin = origin
        self.request_id = request_id
        self.traceparent = traceparent
        self.framed = True
        clock = context.clock
        self.started = clock()
        self.phase = _CHOOSING
        self.attempt: Attempt | None = None
        self.last: Attempt | None = None
        self.tried: tuple[Member, ...] = ()
        self.upload: Upload | None = None
        self.extras: Extras | None = None
        self.is_launch = False
        self.full = False
        self.interims = 0
        self.says_member = False
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte_at: float | None = None
        self.error: ExchangeError | None = None
        self.termination = "--"
        self.progress: tuple[int, float] | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.phase.value} {self.attempts}>"

    @property
    def attempts(self) -> list[Attempt]:
        """All of them, in their order."""
        attempts, attempt = [], self.last
        while attempt is not None:
            attempts.append(attempt)
            attempt = attempt.before
        return attempts[::-1]

    @property
    def stream(self) -> MemberStream | None:
        """The stream of the attempt under way, if there is one."""
        return None if self.attempt is None else self.attempt.stream

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The filters; none for most requests."""
        return () if self.extras is None else self.extras.filters

    @property
    def observer(self) -> Observer | None:
        """The observer; None for most requests."""
        return None if self.extras is None else self.extras.observer

    @property
    def outcome(self) -> str | None:
        """How a launch ended; None if it has not ended, or the request is no launch."""
        return None if self.extras is None else self.extras.outcome

    @property
    def body_done(self) -> bool:
        """Whether all of the request has come."""
        return self.upload is None or self.upload.done

    # Choose and attempt

    def begin(self) -> None:
        """Chooses a member and sends it the request."""
        if self.extras is not None and self.answered_before():
            return
        lease = self.context.runtime.choose(
            self.line, self.block, self.origin.client, self.started, self.is_launch
        )
        if isinstance(lease, Lease):
            self.ask(lease)
        elif self.is_launch and lease is _FULL and self.context.runtime.federation.is_short():
            self.context.start(self._queue())
        else:
            self.refuse(refused(lease))

    async def _queue(self) -> None:
        """A launch for which only other edges have slots: what they give back may be here in a moment."""
        context = self.context
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            if self.phase is not _CHOOSING:
                return
            now = context.clock()
            lease = context.runtime.choose(self.line, self.block, self.origin.client, now, True)
            if isinstance(lease, Lease):
                self.ask(lease)
                return
        self.refuse(refused(_FULL))

    def answered_before(self) -> bool:
        """Asks each filter for an answer. True if one has given it, so that no member is chosen."""
        return any(each.before() for each in self.filters)

    def ask(self, lease: Lease, fresh: bool = False) -> None:
        """Makes an attempt. fresh: at the same member as before, on a new connection."""
        source = self.source = lease.source if not self.tried else _MOVED
        if source is not _COOKIE or self.line.renews:
            self._expect(source)
        pool = self.pool = self.context.runtime.pools[lease.member.name]
        attempt = self.attempt = Attempt()
        attempt.lease = lease
        attempt.pool = pool
        attempt.before = self.last
        self.last = attempt
        self.phase = _ASKING
        if self.extras is not None:
            self._announce(lease, fresh)
        stream = None if fresh else pool.take()
        attempt.stream = stream
        if stream is None:
            self.context.start(self._connect(attempt))
        elif self.upload is None and self.extras is None:
            stream.send(self, None)
        else:
            self.send(attempt, stream)

    def _expect(self, source: Source) -> None:
        """Works out whether the response's head has to be looked at, and whose Origin the member is told."""
        if not self.line.adds_origin:
            self.block = self.block.without_origin()
        if source is _SESSION:
            self.says_member = self.line.opens or self.context.runtime.fresh.get(self.block.cookie) is None
        elif source is _FOUND:
            self.source = _COOKIE
            self.says_member = self.context.runtime.fresh.get(self.block.cookie) is None
        else:
            self.says_member = source is not _HOST
            if source is _RENEWED:
                self.source = _COOKIE

    def _announce(self, lease: Lease, fresh: bool) -> None:
        """Tells the filters and the observer that an attempt begins."""
        if not fresh:
            for each in self.filters:
                each.begin(lease)
        if self.observer is not None:
            self.observer.begin(lease.member)

    async def _connect(self, attempt: Attempt) -> None:
        try:
            stream = await attempt.pool.connect()
        except MemberError as error:
            self.on_failure(error)
            return
        except EdgeError as error:
            if self.phase is not _OVER:
                self.on_own_fault(attempt, error)
            return
        if self.phase is _OVER:
            stream.release(self.context.clock())
        elif stream.transport.is_closing():
            stream.abort()
            self.on_failure(StaleConnection())
        else:
            self.send(attempt, stream)

    def upgrade(self) -> bytes | None:
        """The protocols that the member is asked to switch to; None for none."""
        return None if self.is_launch or self.line.http10 else self.block.upgrade

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        if self.progress is not None:
            self.progress = (self.progress[0], min(now, self.progress[1] + lost))

    # What `Retrying`, `Sending` and `Exchange` add

    def send(self, attempt: Attempt, stream: MemberStream) -> None:
        """Sends the request, as far as it has come."""
        raise NotImplementedError

    def refuse(self, error: ExchangeError) -> None:
        """No member is asked, and the visitor is told why."""
        raise NotImplementedError

    def on_own_fault(self, attempt: Attempt, error: EdgeError) -> None:
        """There is no connection, and the member is not to blame."""
        raise NotImplementedError
