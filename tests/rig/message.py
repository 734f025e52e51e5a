"""Requests and responses as they were on the wire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Fields = list[tuple[bytes, bytes]]


@dataclass
class Message:
    """A request or a response. `fields` keep their case and order; `body` is without its framing."""

    start: bytes
    fields: Fields
    head: bytes
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    framing: str = "none"  # none | length | chunked | close
    interim: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    def values(self, name: str) -> list[bytes]:
        """Every value of a field, in order; `name` in any case."""
        wanted = name.lower().encode()
        return [value for key, value in self.fields if key.lower() == wanted]

    def value(self, name: str) -> bytes | None:
        """The only value of a field, or None; two of them are an error."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


def parse_head(head: bytes) -> Message:
    """Reads a head, its empty line included. It trusts the edge as little as it can."""
    start, *lines = head[:-4].split(b"\r\n")
    for line in (start, *lines):
        assert b"\r" not in line and b"\n" not in line and b"\0" not in line, line
    return Message(start, fields_of(lines), head)


def fields_of(lines: Iterable[bytes]) -> Fields:
    """Names and values of field lines."""
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        assert colon and name and name == name.strip(), line
        fields.append((name, value.strip(b" \t")))
    return fields


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """The pieces as a chunked body, each a chunk of its own. `trailers` are whole lines."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"
