"""One request, from choosing a member to the line in the log.

    choose ──► attempt ──► head ──► COMMIT ──► relay ──► settle, record
      ▲           │          │                   │
      └── retry ◄─┴──────────┘                   └── broken off: the visitor's connection is aborted

It stands between a `Visitor` (the downstream side, whatever its protocol) and an `Upstream`. It knows no
bytes of HTTP/1 but those that others prepared. Every step is a plain `def`, so no step is interrupted;
the one thing waited for is a new connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.decide.limit import known_client
from fedproxy.decide.retry import may_retry
from fedproxy.errors import (
    BodyLost,
    BodyStalled,
    BodyTimeout,
    EdgeError,
    ExchangeError,
    MemberError,
    ResponseLost,
    ResponseTimeout,
    StaleConnection,
    TooManyUploads,
    UploadsFull,
    VisitorGone,
)
from fedproxy.proxy.answers import refused
from fedproxy.proxy.tunnel import join
from fedproxy.wire.request import is_answered

if TYPE_CHECKING:
    from fedproxy.decide.member import Member
    from fedproxy.proxy.admission import Origin
    from fedproxy.proxy.edge import Edge
    from fedproxy.proxy.pools import Pool
    from fedproxy.proxy.routing import RoutedRequest
    from fedproxy.proxy.traced import Notes
    from fedproxy.proxy.upstream import Upstream
    from fedproxy.wire.request import HeaderBlock
    from fedproxy.wire.response import ResponseHead


# Looking up what an enumeration holds is slow, and these are asked for by each request.
_COOKIE = Source.COOKIE
_HOST = Source.HOST
_MOVED = Source.MOVED
_SUCCESS = Outcome.SUCCESS
_FAILURE = Outcome.FAILURE
_IGNORED = Outcome.IGNORED
# A member that says so is no worse than one that says nothing. A 500 is about the request as likely as not.
_PASSED_OVER = frozenset((502, 503, 504))


class Visitor(Protocol):
    """What an exchange asks of the downstream side."""

    transport: asyncio.Transport
    peer: bytes  # the address that the connection comes from
    trusted: bool  # the peer is a trusted proxy

    def send_interim(self, head: ResponseHead) -> None:
        """Passes a 1xx on."""

    def send_head(self, exchange: Exchange, head: ResponseHead, body: bytes, done: bool) -> None:
        """Passes the head of the final response on, and what came with it of its body."""

    def send_body(self, data: bytes, done: bool) -> None:
        """Passes (a part of) the body on."""

    def send_error(self, exchange: Exchange, error: ExchangeError) -> None:
        """Answers in the member's place."""

    def finished(self, exchange: Exchange, now: float, last: int) -> bool:
        """The exchange is over and its response is complete. `last`: the size of its last write.

        Returns whether all of it is sent. If not, `delivered` or `undelivered` follows.
        """

    def broken(self, exchange: Exchange) -> int:
        """The exchange is over and its response is not whole: it must not look complete.

        Returns how many bytes of it were written but not sent.
        """

    def pause(self) -> None:
        """Reads no more of the request's body until `resume`."""

    def resume(self) -> None:
        """Reads on."""

    def detach(self) -> bytes:
        """The connection becomes a tunnel; what was read of it too early is handed over."""

    def gone(self) -> None:
        """The tunnel is closed."""


class Exchange:
    """One request and its response."""

    __slots__ = (
        "attempts",
        "block",
        "body_done",
        "bytes_in",
        "bytes_out",
        "committed",
        "connecting",
        "edge",
        "error",
        "first_byte_at",
        "framed",
        "full",
        "held",
        "held_size",
        "interims",
        "is_head",
        "is_launch",
        "lease",
        "notes",
        "origin",
        "pool",
        "progress",
        "request_id",
        "routed",
        "sets_cookie",
        "settled",
        "source",
        "started",
        "status",
        "termination",
        "traceparent",
        "tried",
        "upload",
        "upstream",
        "visitor",
    )

    pool: Pool
    upload: tuple[Member, bytes] | None  # its key in `Admission.uploads`; set only for requests with a body
    # Of a launch: whether its events are read, which tell what a status cannot, and how it ended.
    watched = False
    outcome: str | None = None

    def open(
        self,
        edge: Edge,
        visitor: Visitor,
        routed: RoutedRequest,
        block: HeaderBlock,
        origin: Origin,
        request_id: bytes,
        traceparent: bytes,
        is_launch: bool = False,
    ) -> None:
        """Sets everything: as an `__init__`, which the interpreter calls the long way, it would cost more."""
        self.edge = edge
        self.visitor = visitor
        self.routed = routed
        self.block = block
        self.origin = origin
        self.request_id = request_id
        self.traceparent = traceparent
        clock = edge.clock
        self.started = clock()
        self.is_launch = is_launch
        self.is_head = routed.line.is_head
        self.framed = not routed.line.http10
        self.lease: Lease | None = None
        self.upstream: Upstream | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.tried: tuple[Member, ...] = ()
        self.attempts = 0
        self.committed = False
        self.interims = 0
        self.settled = False
        self.source: Source | None = None
        self.sets_cookie = False  # the visitor is told where they are
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte_at: float | None = None
        self.error: ExchangeError | None = None
        self.termination = "--"
        self.notes: Notes | None = None  # of a sampled trace
        self.full = False  # the visitor's side takes no more for now
        self.held: list[bytes] | None = None  # request body not yet sent, or kept for another attempt
        self.held_size = 0
        self.body_done = True
        self.progress: tuple[int, float] | None = None  # how much had moved at the last sweep, and since when

    def __repr__(self) -> str:
        phase = "settled" if self.settled else "relaying" if self.committed else "attempting"
        return f"<Exchange {phase} attempts={self.attempts} upstream={self.upstream}>"

    # Choose and attempt

    def begin(self) -> None:
        """Chooses a member and sends it the request."""
        lease = self.edge.choose(self.routed, self.block, self.origin.client, self.started, self.is_launch)
        if isinstance(lease, Lease):
            self._attempt(lease)
        else:
            self._refuse(refused(lease))

    def _attempt(self, lease: Lease) -> None:
        source = self.source = lease.source if not self.tried else _MOVED
        if source is not _COOKIE or self.routed.renews:
            self.sets_cookie = source is not _HOST
        self.lease = lease
        self.attempts += 1
        if self.notes is not None:
            self.notes.begin(lease.member)
        pool = self.pool = self.edge.pools[lease.member.name]
        idle = pool.idle
        while idle:
            # The one used last, unless something has arrived on it that the loop has not read: an end, which
            # would lose a POST, or stray bytes, which would be taken for the answer. This does not depend on
            # how long it was idle: the loop may serve this request before what arrived in the same turn.
            upstream = idle.pop()
            if upstream.transport.is_closing():
                continue
            look = upstream.look
            if not look(0):
                self._send(upstream)
                return
            upstream.abort()
        self._connect(pool)

    def _connect(self, pool: Pool) -> None:
        self.connecting = asyncio.get_running_loop().create_task(self._connected(pool))
        self.edge.tasks.add(self.connecting)
        self.connecting.add_done_callback(self.edge.tasks.discard)

    async def _connected(self, pool: Pool) -> None:
        try:
            upstream = await pool.connect()
        except MemberError as error:
            self.connecting = None
            self.on_failure(error)
            return
        except EdgeError as error:
            self.connecting = None
            if not self.settled:
                self._on_own_fault(error)
            return
        self.connecting = None
        if self.settled:
            upstream.release(self.edge.clock())
        elif upstream.transport.is_closing():
            upstream.abort()
            self.on_failure(StaleConnection())
        else:
            self._send(upstream)

    def _on_own_fault(self, error: EdgeError) -> None:
        """There is no connection, and the member is not to blame."""
        lease = self.lease
        if error.elsewhere and lease is not None and self._may_retry(delivered=False):
            now = self.edge.clock()
            self.edge.federation.settle(lease, _IGNORED, now)
            self.lease = None
            after = self._next(lease.member, error.reason, now, delivered=False)
            if after is not None:
                self._attempt(after)
                return
        self.cut(error)

    def _send(self, upstream: Upstream) -> None:
        self.upstream = upstream
        upstream.exchange = self
        if self.notes is not None:
            self.notes.send(upstream.reused)
        head = upstream.request_head(self)
        if self.held is None:
            write = upstream.write
            write(head)
        else:
            self._send_held(upstream, head, self.held)
        if self.full:
            upstream.pause()

    def _send_held(self, upstream: Upstream, head: bytes, held: list[bytes]) -> None:
        # Together, or a head alone would be a packet and a call of its own.
        upstream.transport.writelines([head, *held])
        if self.held_size > self.edge.policy.limits.replay:
            self.held = None
        if not self.body_done and upstream.writable:
            self.visitor.resume()

    def _refuse(self, error: ExchangeError) -> None:
        self.error = error
        self.termination = error.termination
        self.status = error.status
        self.edge.counts.rejected[error.reason] += 1
        self._answer(error)

    def _answer(self, error: ExchangeError) -> None:
        self.settled = True
        self.visitor.send_error(self, error)
        self._record(self.edge.clock())

    # The request's body

    def expect_body(self) -> None:
        """A body follows the head: `send_body` for each part of it.

        No member is asked before the first part has arrived, so a visitor who sends nothing takes no slot of
        a member. With `Expect: 100-continue` the member is asked at once, as the visitor waits for it.
        """
        self.body_done = False
        self.held = []
        self.upload = None

    def begin_upload(self) -> None:
        """As `begin`, for a request with a body; refused if its client has too many uploads under way."""
        edge = self.edge
        now = edge.clock()
        lease = edge.choose(self.routed, self.block, self.origin.client, now, self.is_launch)
        if not isinstance(lease, Lease):
            self._refuse(refused(lease))
            return
        if not self.body_done:
            try:
                self.upload = edge.admission.enter_upload(self._counted(), lease.member)
            except (TooManyUploads, UploadsFull) as error:
                edge.federation.settle(lease, _IGNORED, now)
                self._refuse(error)
                return
        self._attempt(lease)

    def _counted(self) -> bytes | None:
        """The client that the request counts for; None if a trusted proxy names nobody."""
        client, visitor = self.origin.client, self.visitor
        return None if visitor.trusted and client == visitor.peer else client

    def _leave_upload(self) -> None:
        """The upload is over."""
        upload, self.upload = self.upload, None
        if upload is not None:
            self.edge.admission.leave_upload(upload)

    def send_body(self, data: bytes, done: bool) -> None:
        """Passes (a part of) the request's body on, or holds it until there is a connection."""
        self.bytes_in += len(data)
        self.body_done = done
        if data and self.held is not None:
            self.held.append(data)
            self.held_size += len(data)
        if done:
            self._leave_upload()
        if not self.attempts:
            if data or done:
                self.begin_upload()
        elif self.upstream is not None:
            if self.held_size > self.edge.policy.limits.replay:
                self.held = None
            self.upstream.write(data)
        elif not done and self.held_size >= self.edge.policy.limits.replay:
            self.visitor.pause()

    # What the upstream says

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx, which goes on at once."""
        self.interims += 1
        self.visitor.send_interim(head)

    def on_head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        """The final response's head, and what came with it of the body.

        COMMIT: from here on the visitor has seen something, and there is no other attempt.
        """
        status = head.status
        if self.notes is not None:
            self.notes.answer(status)
        if status >= 500 and not self.is_launch and self._passed_over(status, done):
            return
        lease = self.lease
        if lease is None:
            return
        self.status = status
        self.committed = True
        self.held = None
        self.bytes_out = len(body)
        clock = self.edge.clock
        now = self.first_byte_at = clock()
        if not lease.member.breaker.closed and not self.watched:
            self._answered(lease, now)
        self.visitor.send_head(self, head, body, done)
        if done:
            self._finish(now, len(body))

    def _answered(self, lease: Lease, now: float) -> None:
        # A trial need not wait for the end of a stream of an hour.
        if self.status not in self.edge.policy.failing:
            self.edge.federation.answered(lease, now, self.origin.client)

    def on_body(self, data: bytes, done: bool) -> None:
        """(A part of) the response's body."""
        self.bytes_out += len(data)
        self.visitor.send_body(data, done)
        if done:
            self._finish(self.edge.clock(), len(data))

    def on_upgrade(self, head: ResponseHead, rest: bytes) -> bool:
        """A 101: the connections become a tunnel. False if the visitor did not ask for one."""
        if self.notes is not None:
            self.notes.answer(head.status)
        upstream = self.upstream
        asked = self.block.upgrade
        if asked is None or self.is_launch or self.routed.line.http10 or upstream is None:
            return False
        if not is_answered(asked, head.upgrade):
            return False
        self.committed = True
        self.status = 101
        self.bytes_out = len(rest)
        self.first_byte_at = self.edge.clock()
        if self.lease is not None:
            self.edge.federation.answered(self.lease, self.first_byte_at, self.origin.client)
        self.visitor.send_head(self, head, rest, False)
        upstream.exchange = None
        join(self, self.visitor.transport, upstream, early=self.visitor.detach())
        return True

    def on_failure(self, error: MemberError) -> None:
        """The attempt failed; another may follow if nothing reached the visitor."""
        if self.notes is not None:
            self.notes.fail(error)
        self.upstream = None
        lease = self.lease
        if self.settled or lease is None:
            return
        edge = self.edge
        now = edge.clock()
        stale = isinstance(error, StaleConnection)
        client = self.origin.client
        edge.federation.settle(lease, _FAILURE if self._blames(error, now) else _IGNORED, now, client)
        self.lease = None
        member = lease.member
        if self.routed.stays and not error.delivered:
            # What a session's server answers says nothing about the member; that it cannot be reached does.
            edge.federation.unreached(member, now, client)
        member.counts.errors[error.reason] += 1
        if self.committed:
            self._break(error, now)
            return
        if self._may_retry(error.delivered):
            if stale and edge.pools.get(member.name) is self.pool:
                # The member's habit, not its failure: the same one again, on a connection of its own.
                again = self._same(member, lease.source, now)
                if isinstance(again, Lease):
                    member.counts.retries[error.reason] += 1
                    self._again(again)
                    return
            # That member is not available any more, or has failed.
            after = self._next(member, error.reason, now, error.delivered)
            if after is not None:
                self._attempt(after)
                return
        self._give_up(member, error)

    def _blames(self, error: ExchangeError, now: float) -> bool:
        """Whether the member is to blame."""
        if isinstance(error, ResponseLost | BodyLost):
            # Not if it was closed before it was used, or if this process slept and the member gave up on it.
            return not isinstance(error, StaleConnection) and not self.edge.slept(self.started, now)
        return isinstance(error, MemberError)

    def _same(self, member: Member, source: Source, now: float) -> Lease | Refusal:
        """Another lease of the same member."""
        federation = self.edge.federation
        if self.routed.stays:
            return federation.acquire_session(member, source, self.is_launch)
        return federation.acquire_member(member, source, self.tried, now, self.is_launch, self.origin.client)

    def _may_retry(self, delivered: bool) -> bool:
        return may_retry(
            idempotent=self.routed.line.idempotent,
            delivered=delivered,
            committed=self.committed or self.interims > 0,
            replayable=self.held is not None or not self.bytes_in,
            attempts=self.attempts,
            max_attempts=self.edge.policy.attempts,
        )

    def _passed_over(self, status: int, done: bool) -> bool:
        """Whether another member is asked, and a failing answer not passed on."""
        lease, upstream = self.lease, self.upstream
        if status not in _PASSED_OVER or lease is None or upstream is None:
            return False
        if self.routed.stays or not self._may_retry(delivered=True):
            return False
        now = self.edge.clock()
        after = self._next(lease.member, str(status), now)
        if after is None:
            return False
        self.edge.federation.settle(lease, _FAILURE, now, self.origin.client)
        self.upstream = None
        self._let_go(upstream, done, now)
        self._attempt(after)
        return True

    def _let_go(self, upstream: Upstream, done: bool, now: float) -> None:
        """Keeps a connection for others, if the request and its answer are whole."""
        if done and self.body_done and not (self.bytes_in and upstream.unsent()):
            upstream.release(now)
        else:
            # An early answer: the member has not read the whole request, so no other may follow on it.
            upstream.abort()

    def _give_up(self, member: Member, error: MemberError) -> None:
        """The last attempt failed, and the visitor is told so."""
        self.error = error
        self.termination = error.termination
        self.status = error.status
        member.counts.codes[error.status] += 1
        self._answer(error)

    def _again(self, lease: Lease) -> None:
        self.lease = lease
        self.attempts += 1
        if self.notes is not None:
            self.notes.begin(lease.member)
        self.pool = self.edge.pools[lease.member.name]
        self._connect(self.pool)

    def key(self) -> bytes | None:
        """What ranks the members for it."""
        return self.routed.key if self.edge.policy.key != "client" else self.origin.client

    def may_move(self) -> bool:
        """Whether any member may serve it."""
        return self.routed.balanced and self.edge.only(self.routed, self.block) is None

    def _next(self, member: Member, reason: str, now: float, delivered: bool = True) -> Lease | None:
        """A lease of the next in rank after `member`; None if there is none, or the budget is used up.

        `delivered`: `member` may have seen the request. A session's request goes to another member only if
        nothing said where the session is and `member` could not be reached.
        """
        edge, client = self.edge, self.origin.client
        self.tried += (member,)
        session = self.routed.stays
        if session:
            if delivered or self.source is _COOKIE or self.source is _HOST:
                return None
        elif not self.may_move():
            return None
        lease = edge.federation.acquire(self.key(), None, self.tried, now, self.is_launch, client)
        if not isinstance(lease, Lease):
            return None
        if session:
            edge.federation.spare(lease, now, client)
        if not edge.budget.withdraw(now, edge.counts.requests, known_client(client)):
            edge.counts.budget_exhausted += 1
            edge.federation.settle(lease, _IGNORED, now)
            return None
        member.counts.retries[reason] += 1
        return lease

    def on_upstream_full(self) -> None:
        """The member reads slowly."""
        self.visitor.pause()

    def on_upstream_drained(self) -> None:
        """The member reads on."""
        self.visitor.resume()

    # What the visitor's side says

    def on_visitor_full(self) -> None:
        """The visitor reads slowly."""
        self.full = True
        if self.upstream is not None:
            self.upstream.pause()

    def on_visitor_drained(self) -> None:
        """The visitor reads on."""
        self.full = False
        if self.upstream is not None:
            self.upstream.resume()

    def on_visitor_gone(self, error: ExchangeError | None = None, unsent: int = 0) -> None:
        """The visitor left, or its time or its right to go on ran out: nobody is charged.

        unsent: bytes that were written but not sent.
        """
        if self.settled:
            return
        self.bytes_out = max(0, self.bytes_out - unsent)
        now = self.edge.clock()
        self.error = error or VisitorGone()
        if not self.attempts:
            phase = "R"
        else:
            phase = "D" if self.committed else "C" if self.connecting is not None else "H"
        self.termination = self.error.termination[0] + phase
        self.status = self.status or self.error.status
        self._drop(_IGNORED, now)
        self._record(now)

    def cut(self, error: ExchangeError) -> None:
        """Ends the request from the edge: answered if nothing was sent yet, else aborted."""
        now = self.edge.clock()
        if self.committed:
            self._break(error, now)
            return
        self._drop(_IGNORED, now)
        self._refuse(error)

    # Time

    def grant(self, lost: float, now: float) -> None:
        """Puts every deadline off by the `lost` seconds in which the process did not run."""
        if self.progress is not None:
            self.progress = (self.progress[0], min(now, self.progress[1] + lost))

    def sweep(self, now: float) -> None:
        """Looks whether anything moved since the last time, and how long ago."""
        moved = self.bytes_in + self.bytes_out + self.attempts
        if self.progress is None or self.progress[0] != moved or self.connecting is not None:
            self.progress = (moved, now)
            return
        stood = now - self.progress[1]
        timeouts = self.edge.policy.timeouts
        upstream = self.upstream
        if upstream is None:
            if not self.attempts and stood > timeouts.request_idle:
                self.cut(BodyTimeout())
            return
        if self.full:
            # Nothing is read of the member meanwhile, so it cannot be the member that is late.
            if stood > timeouts.response_idle:
                self._break(VisitorGone(), now, "cD")
            return
        waiting_for_100 = self.block.expect and not self.interims and not self.bytes_in
        if not self.body_done and upstream.writable and not waiting_for_100:
            if stood > timeouts.request_idle:
                self.cut(BodyTimeout())
        elif not self.committed:
            # A member that does not read an upload has as long as one that does not send.
            limit = timeouts.response_head if self.body_done or waiting_for_100 else timeouts.response_idle
            if stood > limit:
                self._abort_upstream()
                self.on_failure(ResponseTimeout())
        elif stood > timeouts.response_idle:
            self._break(BodyStalled(), now)

    # The end, exactly once

    def _abort_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()

    def _drop(self, outcome: Outcome, now: float) -> None:
        self.settled = True
        lease, self.lease = self.lease, None
        if lease is not None:
            self.edge.federation.settle(lease, outcome, now, self.origin.client)
        self._abort_upstream()

    def _break(self, error: ExchangeError, now: float, termination: str | None = None) -> None:
        if self.lease is not None and isinstance(error, MemberError):
            self.lease.member.counts.errors[error.reason] += 1
        self._drop(_FAILURE if self._blames(error, now) else _IGNORED, now)
        self.error = error
        self.termination = termination or error.termination
        self.bytes_out = max(0, self.bytes_out - self.visitor.broken(self))
        self._record(now)

    def _finish(self, now: float, last: int) -> None:
        lease, upstream, visitor = self.lease, self.upstream, self.visitor
        if lease is None or upstream is None:
            return
        self.settled = True
        self.lease = self.upstream = None
        edge = self.edge
        failed = self.status >= 500 and self.status in edge.policy.failing
        edge.federation.settle(lease, _FAILURE if failed else _SUCCESS, now, self.origin.client)
        if self.bytes_in or not self.body_done:
            self._let_go(upstream, True, now)
        else:
            upstream.release(now)
        if visitor.finished(self, now, last):
            self._record(now)

    def delivered(self, now: float) -> None:
        """The end of the response is sent."""
        self._record(now)

    def undelivered(self, unsent: int, who: str) -> None:
        """`unsent` bytes of the response will never be sent. `who` ended it, as in the log."""
        self.bytes_out = max(0, self.bytes_out - unsent)
        self.error = VisitorGone()
        self.termination = who + "D"
        self._record(self.edge.clock())

    def end_tunnel(self, termination: str, bytes_in: int, bytes_out: int) -> None:
        """A tunnel closed; `termination` says by whom."""
        self.visitor.gone()
        now = self.edge.clock()
        self.settled = True
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.termination = termination
        lease, self.lease = self.lease, None
        if lease is not None:
            self.edge.federation.settle(lease, _SUCCESS, now, self.origin.client)
        self._record(now)

    def _record(self, now: float) -> None:
        if not self.body_done:
            self._leave_upload()
        if self.attempts:
            counts = self.pool.member.counts
            if self.error is None or self.committed:
                counts.codes[self.status] += 1
            begun, started = self.first_byte_at, self.started
            first_byte = None if begun is None else begun - started
            counts.record(self.source, now - started, first_byte, self.bytes_out)
            if self.bytes_in:
                counts.bytes_in += self.bytes_in
        if self.notes is not None or self.edge.log is not None:
            self.edge.record_exchange(self, now)
