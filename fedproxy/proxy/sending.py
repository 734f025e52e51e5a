"""How a request is sent to a member: its head, and its body as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease
from fedproxy.errors import TooManyUploads, UploadsFull
from fedproxy.proxy.answers import refused
from fedproxy.proxy.phase import Phase
from fedproxy.proxy.retrying import Retrying
from fedproxy.proxy.upload import Upload

if TYPE_CHECKING:
    from fedproxy.proxy.attempt import Attempt
    from fedproxy.proxy.ports import MemberStream

_IGNORED: Final = Outcome.IGNORED
_CHOOSING: Final = Phase.CHOOSING


class Sending(Retrying):
    """One request, as far as sending it is concerned."""

    __slots__ = ()

    def send(self, attempt: Attempt, stream: MemberStream) -> None:
        """Sends the request, as far as it has come."""
        attempt.stream = stream
        if self.observer is not None:
            self.observer.send(stream.reused)
        upload = self.upload
        if upload is None:
            stream.send(self, None)
            return
        stream.send(self, upload.pieces)
        upload.sent(self.context.runtime.policy.limits.replay)
        if not upload.done and stream.writable:
            self.visitor.resume()

    def gives_payload(self) -> bool:
        """Whether the parts of a body without a length are payload and not chunks."""
        return self.upload is not None and self.upload.payload

    def expect_body(self, payload: bool = False) -> None:
        """A body follows the head: `send_body` for each part of it.

        payload: of a body without a length, payload is given and not chunks.

        No member is asked before the first part has arrived, so a visitor who sends nothing takes no slot of
        a member.
        """
        self.upload = Upload(self.context.admission, payload)

    def begin_expected(self) -> None:
        """With `Expect: 100-continue` the member is asked at once, as the visitor waits for it."""
        if self.phase is _CHOOSING and self.upload is not None:
            self._begin_upload(self.upload)

    def _begin_upload(self, upload: Upload) -> None:
        """As `begin`, for a request with a body; refused if its client has too many uploads under way."""
        if self.answered_before():
            return
        context = self.context
        now = context.clock()
        lease = context.runtime.choose(self.line, self.block, self.origin.client, now, self.is_launch)
        if not isinstance(lease, Lease):
            self.refuse(refused(lease))
            return
        if not upload.done:
            client, visitor = self.origin.client, self.visitor
            try:
                # A trusted proxy that names no client is not counted as one.
                upload.count(None if visitor.trusted and client == visitor.peer else client, lease.member)
            except (TooManyUploads, UploadsFull) as error:
                context.runtime.federation.settle(lease, _IGNORED, now)
                self.refuse(error)
                return
        self.ask(lease)

    def send_body(self, data: bytes, done: bool) -> None:
        """Passes (a part of) the request's body on, or holds it until there is a connection."""
        upload = self.upload
        if upload is None:
            return
        self.bytes_in += len(data)
        upload.add(data, done)
        attempt = self.attempt
        if self.last is None:
            if (data or done) and self.phase is _CHOOSING:
                self._begin_upload(upload)
        elif attempt is not None and attempt.stream is not None:
            upload.sent(self.context.runtime.policy.limits.replay)
            attempt.stream.send_body(data, done)
        elif not done and upload.size >= self.context.runtime.policy.limits.replay:
            self.visitor.pause()

    def _leave_upload(self) -> None:
        if self.upload is not None:
            self.upload.leave()

    def on_upstream_full(self) -> None:
        """The member reads slowly."""
        self.visitor.pause()

    def on_upstream_drained(self) -> None:
        """The member reads on."""
        self.visitor.resume()
