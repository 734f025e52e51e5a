"""HPACK: how heads are compressed (RFC 7541).

What comes in is decoded to fields that are remembered: those of the static and the dynamic table, and those
that are written out and short. Each has its line as HTTP/1 would have it, and was checked once, so that an
indexed field costs a look-up.

What goes out never uses a dynamic table: a head is made once and holds on every connection.
"""

from __future__ import annotations

import re
from typing import Final

from fedproxy.bounded import Memo
from fedproxy.errors import CompressionFailed, ConnectionFault
from fedproxy.wire.grammar import FIELD, TOKEN
from fedproxy.wire.h2 import huffman
from fedproxy.wire.h2.frame import Code

# What a field is. Those up to `PROTOCOL` are pseudo-header fields (RFC 9113 section 8.3, RFC 8441 section 4).
METHOD: Final = 0
SCHEME: Final = 1
AUTHORITY: Final = 2
PATH: Final = 3
PROTOCOL: Final = 4
PLAIN: Final = 5
COOKIE: Final = 6
HOST: Final = 7
KEY: Final = 8  # of a WebSocket, which has none in HTTP/2
MALFORMED: Final = 9

_KINDS: Final = {
    b":method": METHOD,
    b":scheme": SCHEME,
    b":authority": AUTHORITY,
    b":path": PATH,
    b":protocol": PROTOCOL,
    b"cookie": COOKIE,
    b"host": HOST,
    b"sec-websocket-key": KEY,
    # RFC 9113 section 8.2.2: they are about an HTTP/1 connection.
    b"connection": MALFORMED,
    b"proxy-connection": MALFORMED,
    b"keep-alive": MALFORMED,
    b"transfer-encoding": MALFORMED,
    b"upgrade": MALFORMED,
}
_OVERHEAD: Final = 32  # section 4.1
_TOO_MUCH: Final = 4  # times a head's limit, beyond which it is not decoded to its end
TABLE_SIZE: Final = 4096
"""Bytes of the dynamic table for what comes in: the default (RFC 9113 section 6.5.2)."""

_UPPER: Final = re.compile(rb"[A-Z]").search
_PSEUDO: Final = re.compile(rb":(" + TOKEN + rb"): ([\x21-\x7e]*)\r\n").fullmatch

# Appendix A.
_STATIC: Final = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization"
            b" cache-control content-disposition content-encoding content-language content-length"
            b" content-location content-range content-type cookie date etag expect expires from host if-match"
            b" if-modified-since if-none-match if-range if-unmodified-since last-modified link location"
            b" max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server"
            b" set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
)


class HeaderField:
    """One field of a request's head. line: as HTTP/1 has it, with its CRLF. kind: see above. size: as the
    table counts it (RFC 7541 section 4.1)."""

    __slots__ = ("kind", "line", "name", "size", "value")

    def __init__(self, name: bytes, value: bytes, line: bytes) -> None:
        self.name = name
        self.value = value
        self.line = line
        self.size = len(name) + len(value) + _OVERHEAD
        self.kind = _kind(name, value, line)


def _kind(name: bytes, value: bytes, line: bytes) -> int:
    kind = _KINDS.get(name, PLAIN)
    if kind <= PROTOCOL:
        return kind if _PSEUDO(line) is not None else MALFORMED
    # RFC 9113 section 8.2.1, and no control characters, as in HTTP/1.
    match = FIELD.fullmatch(line, 0, len(line) - 2)
    if match is None or match[1] != name or match[2] != value or _UPPER(name) is not None:
        return MALFORMED
    if name == b"te" and value.lower() != b"trailers":
        return MALFORMED
    return kind


def _read_field(line: bytes) -> HeaderField:
    # The colon that begins a pseudo-header field's name is no separator.
    at = line.find(b": ", 1)
    return HeaderField(line[:at], line[at + 2 : -2], line)


# Most fields repeat between visitors. Long ones differ for each, and are read each time.
_fields: Final = Memo(_read_field, entries=4096, longest=256)


def _field(name: bytes, value: bytes) -> HeaderField:
    if not name or b": " in name:
        # Its line would be that of another field.
        return HeaderField(name, value, b"")
    return _fields[b"%b: %b\r\n" % (name, value)]


_TABLE: Final = [HeaderField(name, value, b"%b: %b\r\n" % (name, value)) for name, value in _STATIC]
_STATIC_SIZE: Final = len(_TABLE)


class Decoder:
    """Decodes the heads of one connection, in their order.

    changed: whether the last one changed the table, so that the same bytes may mean something else from now
    on. size: of the last one's fields, as SETTINGS_MAX_HEADER_LIST_SIZE counts them.
    """

    __slots__ = ("_limit", "_size", "_table", "changed", "size")

    def __init__(self) -> None:
        self._table: list[HeaderField] = []  # the oldest first
        self._size = 0
        self._limit = TABLE_SIZE
        self.changed = False
        self.size = 0

    def decode(self, data: bytes, most: int) -> list[HeaderField]:
        """The fields of one head; those after `most` bytes of them are left out, though `size` counts them.

        Raises `CompressionFailed`, and `ConnectionFault` for several times as much.
        """
        self.changed = False
        try:
            return self._decode(data, most)
        except IndexError:
            # It ends within a field.
            raise CompressionFailed from None

    def _decode(self, data: bytes, most: int) -> list[HeaderField]:
        fields: list[HeaderField] = []
        at, end, size = 0, len(data), 0
        resized = 0
        while at < end:
            byte = data[at]
            if byte >= 0x80:
                # Section 6.1: both are in a table.
                index = byte & 0x7F
                at += 1
                if index == 0x7F:
                    index, at = _integer(data, at, index)
                field = self._entry(index)
            elif byte & 0xE0 == 0x20:
                # Section 6.3: the table's size. Section 4.2: at the beginning, and at most twice.
                limit, at = _integer(data, at + 1, 0x1F) if byte & 0x1F == 0x1F else (byte & 0x1F, at + 1)
                resized += 1
                if size or resized > 2 or limit > TABLE_SIZE:
                    raise CompressionFailed
                self._limit = limit
                self._evict(0)
                self.changed = True
                continue
            else:
                # Section 6.2: written out; to be kept, or not.
                kept = byte >= 0x40
                mask = 0x3F if kept else 0x0F
                index = byte & mask
                at += 1
                if index == mask:
                    index, at = _integer(data, at, mask)
                if index:
                    name = self._entry(index).name
                else:
                    name, at = _string(data, at)
                value, at = _string(data, at)
                field = _field(name, value)
                if kept:
                    self._keep(field)
            size += field.size
            if size <= most:
                fields.append(field)
            elif size > most * _TOO_MUCH:
                # A bomb: whoever sends so much for so little is not answered.
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "http2_head")
        self.size = size
        return fields

    def _entry(self, index: int) -> HeaderField:
        """Section 2.3.3."""
        if index <= _STATIC_SIZE:
            if not index:
                raise CompressionFailed
            return _TABLE[index - 1]
        table = self._table
        place = len(table) - (index - _STATIC_SIZE)
        if place < 0:
            raise CompressionFailed
        return table[place]

    def _keep(self, field: HeaderField) -> None:
        """Section 4.4: what is larger than the table empties it, and is no error."""
        self._evict(field.size)
        if field.size <= self._limit:
            self._table.append(field)
            self._size += field.size
        self.changed = True

    def _evict(self, room: int) -> None:
        """Section 4.3."""
        most = self._limit - room
        gone = 0
        while self._size > most and gone < len(self._table):
            self._size -= self._table[gone].size
            gone += 1
        if gone:
            del self._table[:gone]
            self.changed = True


def _integer(data: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Section 5.1: a number that does not fit its prefix, whose bits are all ones; and where it ends."""
    value, shift = prefix, 0
    while True:
        byte = data[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 21:
            # No number here is so large.
            raise CompressionFailed


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Section 5.2: a text, and where it ends."""
    byte = data[at]
    at += 1
    size = byte & 0x7F
    if size == 0x7F:
        size, at = _integer(data, at, size)
    end = at + size
    if end > len(data):
        raise CompressionFailed
    text = data[at:end]
    return (huffman.decode(text) if byte >= 0x80 else text), end


# What goes out

NO_TABLE: Final = b"\x20"
"""Says that what is sent uses no dynamic table (section 6.3). Once it is said at the beginning of the first
head, it holds whatever size the other side allows."""

_NAMES: Final = {name: index + 1 for index, (name, _) in reversed(list(enumerate(_STATIC)))}
_STATUSES: Final = {
    int(value): index + 1 for index, (name, value) in enumerate(_STATIC) if name == b":status"
}
# Section 7.1.3: nobody on the way should keep these in a table.
_SECRET: Final = frozenset((b"set-cookie",))


def _prefixed(first: int, mask: int, number: int) -> bytes:
    """Section 5.1: a number after the bits of `first`."""
    if number < mask:
        return bytes((first | number,))
    out = [first | mask]
    number -= mask
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """A field that is not indexed (section 6.2.2), its name in lower case."""
    return literal_name(name) + _prefixed(0, 0x7F, len(value)) + value


def literal_name(name: bytes) -> bytes:
    """The same, up to its value."""
    first = 0x10 if name in _SECRET else 0
    index = _NAMES.get(name)
    if index is not None:
        return _prefixed(first, 0x0F, index)
    return bytes((first,)) + _prefixed(0, 0x7F, len(name)) + name


def _encode_line(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    return literal(name.lower(), value.strip(b" \t"))


_lines: Final = Memo(_encode_line, entries=4096, longest=512)


def encode_lines(lines: bytes) -> bytes:
    """Field lines as HTTP/1 has them, each with its CRLF, as fields that are not indexed."""
    return b"".join(
        [
            _encode_line(line) if line[:11].lower() == b"set-cookie:" else _lines[line]
            for line in lines.split(b"\r\n")[:-1]
        ]
    )


def encode_status(status: int) -> bytes:
    """The pseudo-header field of a response."""
    index = _STATUSES.get(status)
    return bytes((0x80 | index,)) if index is not None else literal(b":status", b"%d" % status)
