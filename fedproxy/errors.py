"""Every error of the edge, in one tree.

    FedproxyError
    ├── ConfigError                  an operator's input is wrong; carries every fault at once
    ├── ConnectionFault              an HTTP/2 connection breaks the protocol, and ends
    ├── ChannelError                 control process and worker do not understand each other
    ├── StoreError                   what the edges of a fleet share cannot be reached or used
    └── ExchangeError                one request cannot be served as asked
        ├── VisitorError             the visitor is to blame; answered, never retried
        ├── MemberError              the member is to blame; may be retried, charged to its breaker
        └── EdgeError                nobody is to blame: no member, or the edge is full

An `ExchangeError` knows who is to blame and in which phase; the status that the visitor sees, the label in
the metrics and the two characters in the access log follow from that. Each subclass is a row of the fault
table, so the meaning of a fault is defined here and nowhere else.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar


class FedproxyError(Exception):
    """The base of everything that fedproxy raises on purpose."""


@dataclass(frozen=True)
class Position:
    """A place in a file: its line, and its column in characters, both from 1.

    file: the name, if it is not that of the config itself but of one that it includes.
    """

    line: int
    column: int
    file: str = ""

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}"
        return f"{self.file}:{place}" if self.file else place


@dataclass(frozen=True)
class Fault:
    """One fault in a config: where it is, what it is, and what was expected.

    path: the key path. place: where that is in the file, None if it is nowhere in particular.
    """

    path: str
    message: str
    place: Position | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(FedproxyError):
    """An operator's input is wrong. `faults` holds every fault that was found, in the order of the file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


class ChannelError(FedproxyError):
    """The control process and a worker do not understand each other, as they are of different releases.

    The text is for operators."""


class StoreError(FedproxyError):
    """The store of a fleet cannot be reached, or refused a command. The text is for operators.

    command: what was to be done, in a word of the port; empty if it was not even reached.
    """

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


class ConnectionFault(FedproxyError):
    """An HTTP/2 connection breaks the protocol or goes too far, and ends (RFC 9113 section 5.4.1).

    code: its number in RFC 9113 section 7. reason: the metrics label of the limit that it exceeded, if any.
    """

    def __init__(self, code: int, reason: str | None = None) -> None:
        super().__init__(f"HTTP/2 error {code}")
        self.code = code
        self.reason = reason


class CompressionFailed(ConnectionFault):
    """A head cannot be decompressed (RFC 7541), so that nothing after it could be understood."""

    def __init__(self) -> None:
        super().__init__(9)


class ExchangeError(FedproxyError):
    """A request that cannot be served as asked.

    `status`: the status for the visitor, if nothing was sent yet. `reason`: the metrics label, from a small
    fixed set. `termination`: who ended it and in which phase, as in the access log. `detail`: one fixed
    line for the visitor that echoes nothing of the request. `situation`: which page people get.
    """

    status: ClassVar[int] = 500
    situation: ClassVar[str] = "error"
    reason: str = "internal"
    termination: str = "PH"
    detail: str = "The edge could not serve this request."


class VisitorError(ExchangeError):
    """The visitor's request is refused."""

    status = 400
    reason = "malformed"
    termination = "PR"
    detail = "The request is malformed."


class BadRequest(VisitorError):
    """Malformed, ambiguous or smuggled (RFC 9112 sections 2.2, 3, 5.1, 6)."""


class MethodRefused(VisitorError):
    """TRACE and CONNECT are not proxied."""

    status = 405
    reason = "method"
    detail = "This method is not allowed here."


class ProtocolUnknown(VisitorError):
    """An extended CONNECT asks for a protocol other than WebSocket (RFC 9220 section 3)."""

    status = 501
    reason = "protocol"
    detail = "This protocol is not known here."


class Banned(VisitorError):
    """Network, user agent or repository is on the operator's list."""

    status = 403
    situation = "refused"
    reason = "banned"
    detail = "Access from here is not allowed."


class BannedAddress(Banned):
    """The network is, so whatever else comes on the connection is not served either."""


class TooManyLaunches(VisitorError):
    """The client address asked for more launches than its rate allows."""

    status = 429
    situation = "limit"
    reason = "rate"
    detail = "Too many launches from this address. Please try again later."

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after = after  # seconds until the next one is allowed


class BadProxyHeader(VisitorError):
    """A connection without the required PROXY protocol header, or from a peer that may not send one.

    It is closed unanswered: the peer is a proxy, not a visitor."""

    reason = "proxy_protocol"


class HeadTimeout(VisitorError):
    """The request's head was not complete in time."""

    status = 408
    reason = "head_timeout"
    termination = "cR"
    detail = "The request took too long to arrive."


class BodyTimeout(VisitorError):
    """The request's body stopped arriving."""

    status = 408
    reason = "body_timeout"
    termination = "cR"
    detail = "The request's body stopped arriving."


class HeadTooLarge(VisitorError):
    """The header block is over `limits.request_head` (RFC 6585 section 5)."""

    status = 431
    reason = "head_too_large"
    detail = "The request's header fields are too large."


class TargetTooLong(VisitorError):
    """The request line alone is over `limits.request_head`."""

    status = 414
    reason = "target_too_long"
    detail = "The request's target is too long."


class BodyTooLarge(VisitorError):
    """The body is over `limits.request_body`."""

    status = 413
    reason = "body_too_large"
    detail = "The request's body is too large."


class VisitorGone(VisitorError):
    """The visitor closed the connection before the response was complete; nobody's fault."""

    status = 499
    reason = "visitor_gone"
    termination = "CD"
    detail = "The visitor closed the connection."


class SlowReader(VisitorGone):
    """The visitor does not read the response, or not fast enough."""

    termination = "cD"


class MemberError(ExchangeError):
    """The member failed. `delivered`: whether the member may have seen (a part of) the request."""

    status = 502
    situation = "unreachable"
    reason = "member"
    termination = "SH"
    detail = "The member that serves you could not be reached."
    delivered: ClassVar[bool] = True


class ConnectFailed(MemberError):
    """Refused or unreachable."""

    reason = "connect"
    termination = "SC"
    delivered = False


class NameFailed(ConnectFailed):
    """The member's name does not resolve."""

    reason = "dns"


class SessionUnreachable(ConnectFailed):
    """The member that has the session takes no connection, as `error` says, and no other has it."""

    status = 503
    situation = "session"

    def __init__(self, member: str, error: MemberError) -> None:
        super().__init__()
        self.reason, self.termination = error.reason, error.termination
        self.detail = f"{member}, which your session runs on, cannot be reached at the moment."


class TLSFailed(ConnectFailed):
    """The member's certificate or handshake is not acceptable."""

    reason = "tls"


class ConnectTimeout(ConnectFailed):
    """No connection within `timeouts.connect`."""

    status = 504
    reason = "connect_timeout"
    termination = "sC"
    detail = "The member that serves you did not answer in time."


class ResponseTimeout(MemberError):
    """No response head within `timeouts.response_head`."""

    status = 504
    reason = "response_timeout"
    termination = "sH"
    detail = "The member that serves you did not answer in time."


class ResponseLost(MemberError):
    """Closed or reset before a whole response head."""

    reason = "reset"
    detail = "The member that serves you closed the connection without an answer."


class StaleConnection(ResponseLost):
    """A reused connection was closed while the request was sent, without a byte of an answer."""

    reason = "stale"


class BadResponse(MemberError):
    """The member's response is malformed or ambiguous."""

    reason = "bad_response"
    termination = "PH"
    detail = "The member that serves you sent an answer that makes no sense."


class BodyLost(MemberError):
    """The member broke off after its head was passed on: the visitor's connection is aborted."""

    reason = "truncated"
    termination = "SD"


class BodyStalled(MemberError):
    """The member's response stopped for longer than `timeouts.response_idle`."""

    reason = "stalled"
    termination = "sD"


class EdgeError(ExchangeError):
    """Nobody is to blame. `elsewhere`: whether another member may be worth a try."""

    elsewhere: ClassVar[bool] = False


class NoMember(EdgeError):
    """No member is available, not even as a last resort."""

    status = 503
    situation = "down"
    reason = "no_member"
    termination = "PQ"
    detail = "No member of the federation is available at the moment. Please try again in a minute."


class SessionAway(NoMember):
    """The member that has the session is in maintenance."""

    situation = "session"

    def __init__(self, member: str) -> None:
        super().__init__()
        self.detail = f"{member}, which your session runs on, is in maintenance. Please try again later."


class SessionGone(EdgeError):
    """The session is not there any more.

    member: where it ran. launch: the target of a page that launches it again; empty if that is not known.
    left: the member itself is not there any more.
    """

    status = 404
    situation = "gone"
    reason = "session_gone"
    termination = "PQ"

    def __init__(self, member: str, launch: bytes, *, left: bool) -> None:
        super().__init__()
        self.launch = launch
        self.detail = f"Your session ran on {member}, " + (
            "which has left the federation. It cannot be reached any more, but you can start a new one."
            if left
            else "and has ended there. You can start a new one."
        )


class AllFull(EdgeError):
    """Every available member is at its limit of requests in flight."""

    status = 503
    situation = "busy"
    reason = "full"
    termination = "PQ"
    detail = "Every member of the federation is busy at the moment. Please try again in a minute."


class TooManyUploads(EdgeError):
    """One client address is at its limit of uploads under way."""

    status = 429
    situation = "limit"
    reason = "uploads"
    termination = "PR"
    detail = "Too many uploads from this address are under way. Please try again in a minute."


class UploadsFull(EdgeError):
    """A member is at its limit of request bodies under way."""

    status = 503
    situation = "busy"
    reason = "uploads_full"
    termination = "PQ"
    detail = "Too many uploads are under way. Please try again in a minute."


class EdgeFailed(EdgeError):
    """The edge itself, or its machine, cannot make a connection to a member."""

    status = 503
    situation = "busy"
    termination = "PC"
    detail = "This edge is busy at the moment. Please try again in a minute."


class OutOfFiles(EdgeFailed):
    """No file descriptor is left for a connection to a member."""

    reason = "descriptors"


class OutOfMemory(EdgeFailed):
    """The system has no memory for a connection."""

    reason = "memory"


class OutOfPorts(EdgeFailed):
    """No local port is left for a connection to this address; for another address there may be one."""

    reason = "ports"
    elsewhere = True


class NoWay(EdgeFailed):
    """This machine has no route to the member or no address of its family, or forbids the connection."""

    reason = "network"
    detail = "This edge cannot reach the member that serves you. Please try again in a minute."
    elsewhere = True


class NoResolver(EdgeFailed):
    """This machine cannot resolve names; a member whose address is known may still be reached."""

    reason = "resolver"
    detail = NoWay.detail
    elsewhere = True


_OWN_FAULTS: dict[int, type[EdgeFailed]] = {
    errno.EMFILE: OutOfFiles,
    errno.ENFILE: OutOfFiles,
    errno.ENOMEM: OutOfMemory,
    errno.ENOBUFS: OutOfMemory,
    errno.EADDRNOTAVAIL: OutOfPorts,
}


def own_fault(error: OSError) -> EdgeFailed | None:
    """The error for what this process or its machine lacked for a connection; None for any other failure."""
    kind = _OWN_FAULTS.get(error.errno or 0)
    return kind() if kind is not None else None


class Drained(EdgeError):
    """The edge is shutting down, and the time limit for requests under way is over."""

    status = 503
    situation = "busy"
    reason = "drain"
    termination = "DD"
    detail = "This edge is shutting down. Please try again."


def reasons_of(*kinds: type[ExchangeError]) -> frozenset[str]:
    """The metrics labels of these errors and of all their subclasses."""
    found: set[str] = set()
    for kind in kinds:
        if "reason" in vars(kind):
            found.add(kind.reason)
        found |= reasons_of(*kind.__subclasses__())
    return frozenset(found)
