"""Heads of requests: what is made of them is what HTTP/1 would have said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.errors import (
    BadRequest,
    HeadTooLarge,
    MethodRefused,
    ProtocolUnknown,
    TargetTooLong,
    VisitorError,
)
from fedproxy.wire.h1 import request as h1
from fedproxy.wire.h2.hpack import Decoder, HeaderField
from fedproxy.wire.h2.request import are_trailers, assemble, read_line, too_large
from tests.wire.h2.owner import BEGIN, CONNECT, KEY, plain

Pairs = tuple[tuple[bytes, bytes], ...]
METHOD, SCHEME, AUTHORITY, PATH = BEGIN


def fields(*pairs: tuple[bytes, bytes]) -> list[HeaderField]:
    return Decoder().decode(plain(pairs), 1 << 20)


def made(*pairs: tuple[bytes, bytes], ends: bool = True) -> tuple[bytes, bytes, bytes]:
    return assemble(fields(*pairs), ends, lambda: KEY)


@pytest.mark.parametrize(
    ("pairs", "ends", "line", "block"),
    [
        (BEGIN, True, b"GET /", b"host: h\r\n\r\n"),
        ((PATH, METHOD, AUTHORITY, SCHEME), True, b"GET /", b"host: h\r\n\r\n"),
        ((*BEGIN, (b"host", b"H")), True, b"GET /", b"host: h\r\n\r\n"),
        ((METHOD, SCHEME, PATH, (b"host", b"o")), True, b"GET /", b"host: o\r\n\r\n"),
        (
            (*BEGIN, (b"accept", b"*/*"), (b"x", b"")),
            True,
            b"GET /",
            b"host: h\r\naccept: */*\r\nx: \r\n\r\n",
        ),
        (BEGIN, False, b"GET /", b"host: h\r\ntransfer-encoding: chunked\r\n\r\n"),
        (
            (*BEGIN, (b"content-length", b"5")),
            False,
            b"GET /",
            b"host: h\r\ncontent-length: 5\r\n\r\n",
        ),
        # RFC 9113 section 8.2.3.
        (
            (*BEGIN, (b"cookie", b"a=b"), (b"x", b"y"), (b"cookie", b"c=d")),
            True,
            b"GET /",
            b"host: h\r\nx: y\r\ncookie: a=b; c=d\r\n\r\n",
        ),
        (
            (*BEGIN, (b"sec-websocket-key", b"k")),
            True,
            b"GET /",
            b"host: h\r\nsec-websocket-key: k\r\n\r\n",
        ),
    ],
)
def test_head_reads_as_if_it_had_come_by_http1(pairs: Pairs, ends: bool, line: bytes, block: bytes) -> None:
    assert made(*pairs, ends=ends) == (line, block, b"")


@pytest.mark.parametrize("ends", [True, False])
def test_websocket_is_asked_for_as_http1_does(ends: bool) -> None:
    """RFC 8441 section 5: there is no key in HTTP/2, so that of a visitor means nothing."""
    asked = made(*CONNECT, (b"origin", b"o"), (b"sec-websocket-key", b"theirs"), ends=ends)
    assert asked == (
        b"GET /ws",
        b"host: h\r\norigin: o\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: %b\r\n\r\n"
        % KEY,
        KEY,
    )
    assert made(*CONNECT)[1].count(b"sec-websocket-key") == 1


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        ((), BadRequest),
        (BEGIN[1:], BadRequest),
        ((METHOD, *BEGIN), BadRequest),
        ((*BEGIN, PATH), BadRequest),
        ((METHOD, (b"accept", b"x"), SCHEME, AUTHORITY, PATH), BadRequest),
        ((METHOD, SCHEME, (b"cookie", b"x"), AUTHORITY, PATH), BadRequest),
        ((METHOD, SCHEME, (b"host", b"h"), AUTHORITY, PATH), BadRequest),
        ((METHOD, AUTHORITY, PATH), BadRequest),
        ((METHOD, (b":scheme", b"ftp"), AUTHORITY, PATH), BadRequest),
        ((METHOD, (b":scheme", b"HTTP"), AUTHORITY, PATH), BadRequest),
        ((METHOD, SCHEME, AUTHORITY), BadRequest),
        ((METHOD, SCHEME, PATH), BadRequest),
        ((METHOD, SCHEME, PATH, (b":authority", b"")), BadRequest),
        ((METHOD, SCHEME, PATH, (b"host", b"")), BadRequest),
        ((*BEGIN, (b"host", b"other")), BadRequest),
        ((*BEGIN, (b"host", b"h"), (b"host", b"h")), BadRequest),
        ((*BEGIN, (b":protocol", b"websocket")), BadRequest),
        ((*BEGIN, (b":status", b"200")), BadRequest),
        ((*BEGIN, (b"connection", b"close")), BadRequest),
        ((*BEGIN, (b"transfer-encoding", b"chunked")), BadRequest),
        ((*BEGIN, (b"te", b"gzip")), BadRequest),
        ((*BEGIN, (b"Accept", b"x")), BadRequest),
        (((b":method", b"CONNECT"), AUTHORITY), MethodRefused),
        (((b":method", b"CONNECT"), SCHEME, AUTHORITY, PATH), MethodRefused),
        ((CONNECT[0], (b":protocol", b"webtransport"), *CONNECT[2:]), ProtocolUnknown),
        ((CONNECT[0], (b":protocol", b"WebSocket"), *CONNECT[2:]), ProtocolUnknown),
        ((*CONNECT[:2], *CONNECT[3:]), BadRequest),
        (CONNECT[:4], BadRequest),
        ((*CONNECT[:3], CONNECT[4]), BadRequest),
        ((*CONNECT, (b"upgrade", b"websocket")), BadRequest),
    ],
)
def test_malformed_head_is_refused(pairs: Pairs, error: type[VisitorError]) -> None:
    """RFC 9113 sections 8.2 and 8.3, RFC 8441 section 4."""
    with pytest.raises(error) as raised:
        made(*pairs)
    assert raised.type is error


@pytest.mark.parametrize(
    "raw", [b"GET /", b"PATCH /a?b=c&d", b"OPTIONS *", b"X-1 /%7E//..;", b"GET /\x7e!\"$[]'"]
)
def test_line_says_the_same_as_that_of_http1(raw: bytes) -> None:
    line, same = read_line(raw), h1.read_line(raw + b" HTTP/1.1")
    assert (line.method, line.target, line.path, line.start, line.plain, line.idempotent, line.is_head) == (
        same.method,
        same.target,
        same.path,
        same.start,
        same.plain,
        same.idempotent,
        same.is_head,
    )
    assert (line.authority, line.http10, line.words[2]) == (None, False, "HTTP/2.0")


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"GET", BadRequest),
        (b"GET ", BadRequest),
        (b" /", BadRequest),
        (b"G(T /", BadRequest),
        (b"GET *", BadRequest),
        (b"GET a", BadRequest),
        (b"GET http://h/", BadRequest),
        (b"GET /#a", BadRequest),
        (b"GET / HTTP/1.1", BadRequest),
        (b"OPTIONS **", BadRequest),
        (b"TRACE /", MethodRefused),
        (b"CONNECT /", MethodRefused),
    ],
)
def test_malformed_line_is_refused(raw: bytes, error: type[VisitorError]) -> None:
    with pytest.raises(error) as raised:
        read_line(raw)
    assert raised.type is error


TARGET = st.text(alphabet="/ab?#* \x7f", max_size=4).map(str.encode)


@given(st.sampled_from([b"GET", b"OPTIONS", b"G T", b"", b"TRACE"]), TARGET)
def test_what_http1_refuses_is_refused(method: bytes, target: bytes) -> None:
    """The other way round it is not so: HTTP/1 has forms of targets that HTTP/2 has not."""
    raw = b"%b %b" % (method, target)
    try:
        line = read_line(raw)
    except VisitorError:
        return
    same = h1.read_line(raw + b" HTTP/1.1")
    assert (line.method, line.target) == (same.method, same.target) == (method, target)


def test_error_for_a_large_head_depends_on_whether_the_target_was_there() -> None:
    assert type(too_large(fields(*BEGIN), 10)) is HeadTooLarge
    assert type(too_large(fields(*BEGIN[:3]), 10)) is TargetTooLong
    assert type(too_large([], 10)) is TargetTooLong


@pytest.mark.parametrize(
    ("pairs", "fit"),
    [
        ((), True),
        (((b"x-sum", b"1"), (b"cookie", b"a=b"), (b"host", b"h")), True),
        (((b":path", b"/"),), False),
        (((b":status", b"200"),), False),
        (((b"x", b"1"), (b"X", b"1")), False),
        (((b"connection", b"close"),), False),
    ],
)
def test_trailers_are_fields_and_nothing_else(pairs: Pairs, fit: bool) -> None:
    assert are_trailers(fields(*pairs)) is fit


def test_empty_crumbs_of_a_cookie_are_none() -> None:
    _, block, _ = made(*BEGIN, (b"cookie", b""), (b"cookie", b"a=b"), (b"cookie", b""), (b"cookie", b"c=d"))
    assert block.endswith(b"\r\ncookie: a=b; c=d\r\n\r\n")
    assert b"ookie" not in made(*BEGIN, (b"cookie", b""))[1]
