"""A request's head: its meaning, and the bytes to send to the member (RFC 9112 sections 2, 3 and 6).

A head is parsed in two parts, because they repeat independently: the request line, and the block of fields
below it. The caller caches the results (`bounded.Memo`), so that a browser's second request costs two
dictionary look-ups. Parsing is strict: what two parsers could understand differently is refused, never
repaired.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from fedproxy.bounded import Memo
from fedproxy.errors import BadRequest, HeadTooLarge, MethodRefused, TargetTooLong
from fedproxy.http.request import HeaderBlock, RequestLine
from fedproxy.wire import cookie, forwarded
from fedproxy.wire.grammar import FIELD, LENGTH, TOKEN, VALUE, tokens

_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])").fullmatch
_ABSOLUTE = re.compile(rb"https?://([^/?]+)((?:[/?].*)?)", re.IGNORECASE).fullmatch
_HOST = re.compile(rb"(?:[A-Za-z0-9._~\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?").fullmatch
_REQUEST_ID = re.compile(rb"[0-9A-Za-z._:@/+=~\-]{1,128}").fullmatch
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_NO_START = b"\r\n \t"  # no request line begins with one of these
# RFC 9110 section 7.8: protocols, each with a version or without, in a list.
_PROTOCOL = TOKEN + rb"(?:/" + TOKEN + rb")?"
_UPGRADE = re.compile(
    rb"[ \t]*+(?:" + _PROTOCOL + rb")?[ \t]*+(?:,[ \t]*+(?:" + _PROTOCOL + rb")?[ \t]*+)*+"
).fullmatch
# Protocols that would carry requests past the edge's own rules.
_NOT_TUNNELLED = frozenset((b"h2", b"h2c", b"h3", b"http", b"https", b"tls", b"ssl"))

_KEEP_ALIVE = (b"keep-alive",)

# What is set by the edge, or read by it; a name with underscores that a member could take for one is dropped.
_OWN = frozenset(
    b"host connection content-length transfer-encoding cookie expect upgrade via origin x-request-id"
    b" traceparent x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port x-forwarded-scheme"
    b" x-forwarded-server x-forwarded-ssl x-scheme x-real-ip forwarded keep-alive te trailer"
    b" http2-settings x-fedproxy-explain".split()
)

# What differs from request to request, and means nothing to the edge but for its cookie.
_DIFFERING = frozenset(b"cookie referer if-none-match if-modified-since".split())
# How those lines begin as browsers write them, the last two with what they have in common, and in HTTP/2.
_CAPITAL = (
    b"\r\nCookie: ",
    b"\r\nReferer: ",
    b"\r\nIf-",
    (b"\r\nIf-None-Match: ", b"\r\nIf-Modified-Since: "),
)
_LOWER = (
    b"\r\ncookie: ",
    b"\r\nreferer: ",
    b"\r\nif-",
    (b"\r\nif-none-match: ", b"\r\nif-modified-since: "),
)
_NAMED_OFTEN = frozenset((b"close", b"keep-alive", b"upgrade"))

# Naming one of these in Connection does not remove it (RFC 9110 section 7.6.1 forbids naming them at all).
_KEPT = _OWN | {b"authorization", b"cache-control", b"content-type", b"content-encoding"}


def find_end(data: bytes, limit: int) -> tuple[bytes, int]:
    """Finds the end of the head that `data` begins with, which may be at most `limit` bytes.

    Returns the data without empty lines before the request line, and the place behind the head in it; 0 if
    the end has not come yet. Raises `BadRequest`, `HeadTooLarge` or `TargetTooLong` as soon as nothing that
    follows could make it a valid head.
    """
    # RFC 9112 section 2.2: an empty line before the request line is passed over; many are nonsense.
    for _ in range(4):
        data = data.removeprefix(b"\r\n")
    if not data or data == b"\r":
        return data, 0
    end = data.find(b"\r\n\r\n") + 4
    if 4 <= end <= limit:
        if data[0] in _NO_START:
            raise BadRequest
        return data, end
    if end > limit or len(data) > limit:
        line_end = data.find(b"\r\n")
        raise TargetTooLong if line_end < 0 or line_end > limit // 2 else HeadTooLarge
    # A CR at the end may be half of a CRLF.
    left = data.removesuffix(b"\r").replace(b"\r\n", b"")
    if b"\n" in left or b"\r" in left or b"\0" in left or data[0] in _NO_START:
        raise BadRequest
    return data, 0


def read_line(raw: bytes) -> RequestLine:
    """Reads a request line without its CRLF. Raises `BadRequest` and `MethodRefused`."""
    match = _LINE(raw)
    if match is None:
        raise BadRequest
    method, target, minor = match.groups()
    if method in (b"TRACE", b"CONNECT"):
        raise MethodRefused
    authority = None
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE(target)
        if absolute is not None:
            authority, target = absolute.groups()
            if _HOST(authority) is None:
                raise BadRequest
            if not target.startswith(b"/"):
                # RFC 9112 section 3.2.4: OPTIONS of an authority without a path is the asterisk-form.
                target = b"*" if method == b"OPTIONS" and not target else b"/" + target
        elif target != b"*" or method != b"OPTIONS":
            raise BadRequest
    line = RequestLine(method, target, authority, "HTTP/1.0" if minor == b"0" else "HTTP/1.1")
    line.start = raw + b"\r\n" if authority is None and minor == b"1" else start(line)
    return line


def start(line: RequestLine) -> bytes:
    """A request line with its CRLF, as members are sent it."""
    return b"%b %b HTTP/1.1\r\n" % (line.method, line.target)


def _read_field(line: bytes) -> tuple[bytes, bytes] | None:
    """The name in lower case and the value; None for a line that is only forwarded. Raises `BadRequest`."""
    match = FIELD.fullmatch(line)
    if match is None:
        raise BadRequest
    name = match[1].lower()
    special = name in _OWN or name in _DIFFERING or name.startswith(b"proxy-") or b"_" in name
    return (name, match[2]) if special else None


def _cut(block: bytes, name: bytes) -> tuple[bytes, bytes | None]:
    """A block without the first line that begins so, and what follows in that line; None if there is no such
    line. Raises `BadRequest`."""
    # `partition` takes half the time of `find`.
    before, there, after = block.partition(name)
    if not there:
        return block, None
    value, _, after = after.partition(b"\r\n")
    if value.translate(VALUE) != value:
        raise BadRequest
    return before + b"\r\n" + after, value


class BlockReader:
    """Reads header blocks for one policy.

    `cookie_name` is the affinity cookie's; it is never sent to a member. `origin` is sent if the visitor sent
    none. With `trusted`, the forwarding fields of the peer are kept in `forwarded`. A block is `banned` if
    `ban` applies to its User-Agent.
    """

    def __init__(
        self,
        cookie_name: str,
        origin: str | None,
        *,
        trusted: bool,
        ban: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._cookie = cookie_name.encode("ascii")
        self._origin = b"Origin: " + origin.encode("ascii") if origin else b""
        self._trusted = trusted
        self._ban = ban
        # Most lines repeat between visitors. Long ones differ for each, and are parsed each time.
        self._fields = Memo(_read_field, entries=4096, longest=256)
        self._same = Memo(self._read_lines, entries=1024)

    def read(self, raw: bytes) -> HeaderBlock:
        """Reads a block, from below the request line to the empty line, with it. Raises `BadRequest`."""
        # Requests of the same browser for the same kind of thing differ in these lines, and in no others.
        of_cookie, of_referer, beginning, conditions = _LOWER if raw[:1].islower() else _CAPITAL
        rest, cookies = _cut(raw, of_cookie)
        rest, referer = _cut(rest, of_referer)
        lines = b""
        found: bytes | None = None
        if cookies is not None:
            found, others = cookie.take(cookies.strip(b" \t"), self._cookie)
            if others:
                lines = b"Cookie: " + others + b"\r\n"
        if referer is not None:
            lines += of_referer[2:] + referer + b"\r\n"
        if rest.partition(beginning)[1]:
            for name in conditions:
                rest, value = _cut(rest, name)
                if value is not None:
                    lines += name[2:] + value + b"\r\n"
        if rest is raw:
            return self._read_lines(raw)
        same = self._same[rest]
        if same.mixed:
            return self._read_lines(raw)
        block = same.with_lines(raw, lines)
        block.cookie = found
        block.referer = referer
        return block

    def _read_lines(self, raw: bytes) -> HeaderBlock:
        block = HeaderBlock(raw)
        fields = self._fields
        lines: list[bytes] = []
        special: list[tuple[bytes, bytes, bytes]] = []
        for line in raw[:-4].split(b"\r\n") if len(raw) > 4 else ():
            field = fields[line]
            if field is None:
                lines.append(line)
            else:
                special.append((*field, line))
        self._read_special(block, special, lines)
        if self._ban is not None:
            # There must not be a second User-Agent, but a member may take either.
            block.banned = any(map(self._ban, block.values(b"user-agent") or (b"",)))
        return block

    def _read_special(
        self, block: HeaderBlock, special: list[tuple[bytes, bytes, bytes]], lines: list[bytes]
    ) -> None:
        named: tuple[bytes, ...] = ()
        origin = self._origin
        for name, value, line in special:
            if name == b"host":
                # RFC 9112 section 3.2: empty where the target has no authority.
                if block.host is not None or (value and _HOST(value) is None):
                    raise BadRequest
                block.host = value
            elif name == b"cookie":
                self._read_cookie(block, value, lines)
            elif name == b"connection":
                named += tokens(value)
            elif name == b"content-length":
                if block.length is not None or LENGTH(value) is None:
                    raise BadRequest
                block.length = int(value)
            elif name == b"transfer-encoding":
                if block.chunked or value.lower() != b"chunked":
                    raise BadRequest
                block.chunked = True
            elif name == b"origin":
                origin = b""
                lines.append(line)
            elif name == b"via":
                lines.append(line)
            elif name in _DIFFERING:
                block.mixed = True
                lines.append(line)
            elif name == b"expect":
                block.expect = value.lower() == b"100-continue"
                lines.append(line)
            else:
                self._read_rare(block, name, value, lines, line)
        if block.chunked and block.length is not None:
            raise BadRequest
        self._read_connection(block, named, lines)
        self._finish(block, lines, origin)

    def _read_cookie(self, block: HeaderBlock, value: bytes, lines: list[bytes]) -> None:
        block.mixed = True
        found, rest = cookie.take(value, self._cookie)
        if found is not None:
            block.cookie = found if not block.cookie else block.cookie + b";" + found
        if rest:
            lines.append(b"Cookie: " + rest)

    def _read_rare(
        self, block: HeaderBlock, name: bytes, value: bytes, lines: list[bytes], line: bytes
    ) -> None:
        said = block.forwarded
        if name == b"x-request-id":
            if block.request_id is None and _REQUEST_ID(value) is not None:
                block.request_id = value
        elif name == b"traceparent":
            if block.traceparent is None and _TRACEPARENT(value) is not None:
                block.traceparent = value
        elif name == b"upgrade":
            if _UPGRADE(value) is None:
                raise BadRequest
            block.upgrade = value if block.upgrade is None else block.upgrade + b", " + value
        elif self._trusted and name == b"x-forwarded-for":
            block.forwarded = replace(said, addresses=_with(said.addresses, value))
        elif self._trusted and name == b"x-real-ip":
            block.forwarded = replace(said, real_ip=value)
        elif self._trusted and name == b"x-forwarded-proto":
            block.forwarded = replace(said, proto=_with(said.proto, value.lower()))
        elif self._trusted and name == b"x-forwarded-host":
            block.forwarded = replace(said, host=value if _HOST(value) is not None else None)
        elif self._trusted and name == b"forwarded":
            hops = forwarded.read(value) or forwarded.read_end(value)
            block.forwarded = replace(said, hops=said.hops + hops)
        elif name == b"x-fedproxy-explain":
            block.explained = block.mixed = True
        elif b"_" in name and name.replace(b"_", b"-") not in _OWN:
            lines.append(line)

    def _read_connection(self, block: HeaderBlock, named: tuple[bytes, ...], lines: list[bytes]) -> None:
        if block.upgrade is not None and not (b"upgrade" in named and may_be_tunnelled(block.upgrade)):
            block.upgrade = None
        if not named or named == _KEEP_ALIVE:
            block.keep_alive = bool(named)
            return
        block.mixed = block.mixed or not _NAMED_OFTEN.issuperset(named)
        block.close = b"close" in named
        block.keep_alive = b"keep-alive" in named and not block.close
        gone = set(named) - _KEPT
        if gone:
            lines[:] = [line for line in lines if line.partition(b":")[0].lower() not in gone]

    def _finish(self, block: HeaderBlock, lines: list[bytes], origin: bytes) -> None:
        if block.chunked or block.length:
            # CVE-2026-69243: what follows an upgrade is not a body, so one with a body is not an upgrade.
            block.upgrade = None
        host = block.forwarded.host or _host_of_hops(block) or block.host
        block.visited = host
        if host:
            lines.append(b"X-Forwarded-Host: " + host)
        if block.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif block.length is not None:
            lines.append(b"Content-Length: %d" % block.length)
        if origin:
            lines.append(origin)
            block.added = origin + b"\r\n"
        lines.append(b"Via: 1.1 fedproxy\r\n")
        block.lines = b"\r\n".join(lines)
        block.plain = (
            block.host is not None
            and not block.chunked
            and not block.length
            and not block.close
            and not block.expect
            and block.upgrade is None
            and block.request_id is None
            and block.traceparent is None
            and not block.explained
        )


def _with(before: bytes | None, value: bytes) -> bytes:
    """A list with one more line (RFC 9110 section 5.3)."""
    return value if before is None else before + b", " + value


def _host_of_hops(block: HeaderBlock) -> bytes | None:
    """The host that the nearest proxy names in Forwarded; X-Forwarded-For takes precedence over all of it."""
    if block.forwarded.addresses is None:
        for hop in reversed(block.forwarded.hops):
            if hop.host is not None:
                return hop.host if _HOST(hop.host) is not None else None
    return None


def may_be_tunnelled(upgrade: bytes) -> bool:
    """Whether an Upgrade field names protocols, and only those that the edge tunnels."""
    asked = tokens(upgrade)
    return bool(asked) and not any(token.partition(b"/")[0] in _NOT_TUNNELLED for token in asked)


def with_host(raw: bytes, authority: bytes) -> bytes:
    """The block with `authority` for its Host: what absolute-form asks for (RFC 9112 section 3.2.2)."""
    lines = [line for line in raw[:-2].split(b"\r\n") if line and line[:5].lower() != b"host:"]
    return b"\r\n".join([b"Host: " + authority, *lines, b"", b""])
