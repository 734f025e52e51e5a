"""The body of a request on its way to a member: what is not sent yet, or kept for another attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.decide.member import Member
    from fedproxy.proxy.admission import Admission


class Upload:
    """One request's body. pieces: all that has come, to send it again; None once that was too much to keep.

    done: all of it has come. size: bytes that were added to `pieces`. payload: the pieces of a body without a
    length are payload, not chunks.
    """

    __slots__ = ("_admission", "_key", "done", "payload", "pieces", "size")

    def __init__(self, admission: Admission, payload: bool) -> None:
        self.payload = payload
        self._admission = admission
        self._key: tuple[Member, bytes] | None = None
        self.pieces: list[bytes] | None = []
        self.size = 0
        self.done = False

    def count(self, client: bytes | None, member: Member) -> None:
        """Counts it as one of its client's and of its member's. Raises `TooManyUploads` or `UploadsFull`."""
        self._key = self._admission.enter_upload(client, member)

    def leave(self) -> None:
        """It is over, and counts no longer."""
        key, self._key = self._key, None
        if key is not None:
            self._admission.leave_upload(key)

    def add(self, data: bytes, done: bool) -> None:
        """(A part of) it has come."""
        self.done = done
        if data and self.pieces is not None:
            self.pieces.append(data)
            self.size += len(data)
        if done:
            self.leave()

    def sent(self, limit: int) -> None:
        """`pieces` were sent. They are kept for another attempt if they have at most `limit` bytes."""
        if self.size > limit:
            self.pieces = None
