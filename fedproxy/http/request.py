"""The head of a request, whatever protocol carried it.

It has two parts, because they repeat independently: the line, which says what is asked for, and the fields.
Both are made once and remembered, so each also carries what a protocol needs to pass it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Generic, TypeVar

# RFC 9110 section 9.2.2. TRACE is idempotent too, but never proxied.
_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))


class RequestLine:
    """What a request asks for. `target` is a path with its query, raw, or `*`; `path` is without the query.

    authority: the one that the target names; None if it names none. http10: the visitor speaks HTTP/1.0.
    plain: neither of these, and the method is not one that has a body as a rule. start: the line as an HTTP/1
    member is sent it; empty if it was not read as HTTP/1.
    """

    __slots__ = (
        "authority",
        "http10",
        "idempotent",
        "is_head",
        "method",
        "path",
        "plain",
        "start",
        "target",
        "words",
    )

    def __init__(
        self, method: bytes, target: bytes, authority: bytes | None, protocol: str = "HTTP/1.1"
    ) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.http10 = protocol == "HTTP/1.0"
        self.plain = authority is None and not self.http10 and method not in _WITH_BODY
        self.path = target.partition(b"?")[0]
        self.idempotent = method in _IDEMPOTENT
        self.is_head = method == b"HEAD"
        self.start = b""
        # Method, target and version, for the log.
        self.words = (method.decode("ascii"), target.decode("ascii"), protocol)


@dataclass(frozen=True, slots=True)
class Hop:
    """What one proxy says about its peer (RFC 7239).

    `address` is in its canonical form, without a port; None if it is not given: `unknown`, an obfuscated
    name, or nothing. `proto` is in lower case, `host` is as it was sent.
    """

    address: bytes | None = None
    proto: bytes | None = None
    host: bytes | None = None


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a proxy in front of the edge says about the visitor; used only if that proxy is trusted."""

    addresses: bytes | None = None  # X-Forwarded-For, all lines as one list
    real_ip: bytes | None = None
    proto: bytes | None = None  # X-Forwarded-Proto, all lines as one list, in lower case
    host: bytes | None = None
    hops: tuple[Hop, ...] = ()  # Forwarded, all lines as one list


_NOTHING_SAID: Final = Forwarded()


class HeaderBlock:
    """The fields of a request, and what they say about its body and its connection.

    raw: all field lines as they came (RFC 9110 section 5.2), each with its CRLF, and an empty one. lines: the
    same for the member, without `Host`, without those that the edge adds for each connection or request, and
    without `Upgrade` (see `upgrade`). added: the line among them that says the public Origin, with its CRLF;
    empty if the visitor sent one. host: as it was sent; visited: as the visitor typed it, as far as trusted
    proxies tell. chunked, length: how the end of the body is told. plain: there is no body, and nothing of
    this needs a closer look. mixed: it has several lines of a kind that could be cut out of it, or Connection
    names one, so it is only read as a whole. explained: the visitor asks why the request goes where it goes.
    """

    __slots__ = (
        "_without",
        "_words",
        "added",
        "banned",
        "chunked",
        "close",
        "cookie",
        "expect",
        "explained",
        "forwarded",
        "host",
        "keep_alive",
        "length",
        "like",
        "lines",
        "mixed",
        "plain",
        "raw",
        "referer",
        "request_id",
        "traceparent",
        "upgrade",
        "visited",
    )

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.added = b""
        self._without: HeaderBlock | None = None
        self.visited: bytes | None = None
        self.like: HeaderBlock | None = None  # the same with fewer lines, until its words are known
        self.referer: bytes | None = None  # if `like` has none or another one; as it came
        self._words: tuple[str, str, str] | None = None
        self.host: bytes | None = None
        self.length: int | None = None
        self.chunked = False
        self.close = False
        self.keep_alive = False
        self.upgrade: bytes | None = None
        self.expect = False
        self.cookie: bytes | None = None  # its value; if there are several, joined by semicolons
        self.mixed = False
        self.request_id: bytes | None = None
        self.traceparent: bytes | None = None
        self.forwarded = _NOTHING_SAID
        self.lines = b""
        self.plain = False
        self.banned = False
        self.explained = False

    def with_lines(self, raw: bytes, lines: bytes) -> HeaderBlock:
        """The same block with more field lines that change nothing else of it; `lines` are for the member."""
        block = HeaderBlock(raw)
        block.like = self
        block.host = self.host
        block.length = self.length
        block.chunked = self.chunked
        block.close = self.close
        block.keep_alive = self.keep_alive
        block.upgrade = self.upgrade
        block.expect = self.expect
        block.request_id = self.request_id
        block.traceparent = self.traceparent
        block.forwarded = self.forwarded
        block.plain = self.plain
        block.banned = self.banned
        block.added = self.added
        block.visited = self.visited
        block.cookie = self.cookie
        block.lines = self.lines + lines
        return block

    def without_origin(self) -> HeaderBlock:
        """The same block without an Origin that the visitor did not send."""
        if not self.added:
            return self
        block = self._without
        if block is None:
            block = self._without = self.with_lines(self.raw, b"")
            # It does not refer to this one, or neither would be freed before memory is collected.
            block.like, block.referer, block._words = self.like, self.referer, self._words
            block.lines = (b"\r\n" + self.lines).replace(b"\r\n" + self.added, b"\r\n", 1)[2:]
            block.added = b""
        return block

    @property
    def has_body(self) -> bool:
        """Whether a body follows that is not empty."""
        return self.chunked or bool(self.length)

    def words(self) -> tuple[str, str, str]:
        """Host, User-Agent and Referer, for the log; empty where there is none."""
        words = self._words
        if words is None:
            if self.like is not None:
                words = self.like.words()
                if self.referer is not None:
                    words = (words[0], words[1], self.referer.strip(b" \t").decode("latin-1"))
                self.like = None
            else:
                agent, referer = self.value(b"user-agent"), self.value(b"referer")
                host = self.host or b""
                words = (host.decode("latin-1"), agent.decode("latin-1"), referer.decode("latin-1"))
            self._words = words
        return words

    def value(self, name: bytes) -> bytes:
        """The first value of a field, `name` in lower case; empty if there is none. Not for the hot path."""
        values = self.values(name)
        return values[0] if values else b""

    def values(self, name: bytes) -> list[bytes]:
        """All values of a field, in order; `name` in lower case. Not for the hot path."""
        start = name + b":"
        size = len(start)
        lines = self.raw.split(b"\r\n")
        return [line[size:].strip(b" \t") for line in lines if line[:size].lower() == start]

    def accept(self) -> bytes:
        """The Accept field, all lines as one list."""
        return b",".join(self.values(b"accept"))


class Origin:
    """Where a request comes from: from the peer itself, or as a trusted proxy told.

    client: the address, `-` if a trusted proxy named one that cannot be read. secure: the visitor came by
    https. forward: the field lines that tell members so, and the name of the one that follows them: the
    request's id.
    """

    __slots__ = ("client", "forward", "secure")

    def __init__(self, client: bytes, secure: bool, named: bytes, addresses: bytes) -> None:
        self.client = client
        self.secure = secure
        self.forward = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Real-IP: %b\r\nX-Request-ID: " % (
            addresses,
            b"https" if secure else b"http",
            named,
        )


NOBODY: Final = Origin(b"", False, b"", b"")
"""Of a connection whose peer is not known yet."""


def of_peer(address: bytes, secure: bool) -> Origin:
    """Of requests that a peer sends for itself."""
    return Origin(address, secure, address, address)


Line = TypeVar("Line", bound=RequestLine)


class Request(Generic[Line]):
    """One request, whatever carried it.

    framed: a chunked body of its response is wanted as chunks; otherwise, as payload.
    """

    __slots__ = ("block", "framed", "line", "origin", "request_id", "traceparent")

    line: Line
    block: HeaderBlock
    origin: Origin
    request_id: bytes
    traceparent: bytes
    framed: bool


def host_name(authority: bytes) -> bytes:
    """The host of a valid `host[:port]` in one spelling: in lower case, without the dot that ends an absolute
    name; an IPv6 address in its shortest form, in brackets. Empty for an empty one."""
    lowered = authority.lower()
    if not lowered.startswith(b"["):
        return lowered.partition(b":")[0].removesuffix(b".")
    address = lowered[1:].partition(b"]")[0]
    try:
        return b"[%b]" % IPv6Address(address.decode("ascii")).compressed.encode("ascii")
    except ValueError:
        return b"[%b]" % address
