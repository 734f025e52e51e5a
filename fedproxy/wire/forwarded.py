"""The Forwarded field: what proxies say about the client (RFC 7239 sections 4 to 6)."""

from __future__ import annotations

import re

from fedproxy.http.request import Hop
from fedproxy.wire.address import read_address
from fedproxy.wire.grammar import TOKEN

_PAIR = re.compile(
    rb"("
    + TOKEN
    + rb")=(?:("
    + TOKEN
    + rb')|"((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -\x7e\x80-\xff])*)")'
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NODE = re.compile(rb"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::(?:[0-9]{1,5}|_[A-Za-z0-9._\-]+))?").fullmatch
# RFC 7239 section 4 requires quotes around a port and brackets; many proxies omit them.
_UNQUOTED = re.compile(rb"\b(for=)([0-9A-Fa-f.]*[:\[][0-9A-Fa-f.:\[\]]*)(?=[ \t]*(?:;|$))", re.IGNORECASE)
_SPACES = re.compile(rb"[ \t]*").match


def read(value: bytes) -> tuple[Hop, ...]:
    """The proxies in a field's value, the nearest one last; none if the value is malformed."""
    hops: list[Hop] = []
    pairs: dict[bytes, bytes] = {}
    at = 0
    while at <= len(value):
        at = _after_spaces(value, at)
        match = _PAIR.match(value, at)
        if match is not None:
            name = match[1].lower()
            if name in pairs:
                return ()
            pairs[name] = match[2] if match[3] is None else _ESCAPED.sub(rb"\1", match[3])
            at = _after_spaces(value, match.end())
        end = value[at : at + 1]
        if end not in (b"", b";", b","):
            return ()
        if end != b";" and pairs:
            hops.append(_hop(pairs))
            pairs = {}
        at += 1
    return tuple(hops)


def read_end(value: bytes) -> tuple[Hop, ...]:
    """The valid hops at the end of a malformed or empty value, after one unknown hop.

    A proxy that appends to a value that a visitor made up sends a malformed value with a valid end. A visitor
    must not be able to become unknown in this way.
    """
    end: list[Hop] = []
    # An honest proxy sends no comma within an address, a scheme or a host.
    for part in reversed(value.split(b",")):
        hops = read(_UNQUOTED.sub(rb'\1"\2"', part))
        if not hops:
            break
        end += hops
    return (Hop(), *reversed(end))


def _after_spaces(value: bytes, at: int) -> int:
    spaces = _SPACES(value, at)
    return at if spaces is None else spaces.end()


def _hop(pairs: dict[bytes, bytes]) -> Hop:
    proto = pairs.get(b"proto")
    return Hop(
        address=_address(pairs.get(b"for", b"")),
        proto=None if proto is None else proto.lower(),
        host=pairs.get(b"host"),
    )


def _address(node: bytes) -> bytes | None:
    match = _NODE(node)
    if match is None:
        return None
    text: bytes = match[1] or match[2]
    # IPv6 addresses, and only these, are written in brackets.
    return read_address(text) or None if (b":" in text) == (match[1] is None) else None
