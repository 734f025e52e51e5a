"""Heads of responses, as another implementation reads them."""

from __future__ import annotations

import hpack
import pytest

from fedproxy.http.response import Response, ResponseHead
from fedproxy.wire.h1 import response as h1
from fedproxy.wire.h2.response import accepts, compress, compress_response

KEY, ANSWER = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def read(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True)]


def head(raw: bytes) -> ResponseHead:
    return h1.read(raw + b"\r\n\r\n")


def test_answer_of_a_member_is_compressed_once() -> None:
    made = head(
        b"HTTP/1.1 203 Said\r\nServer: M\r\nConnection: X-Gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Content-Length: 2\r\nSet-Cookie: a=b\r\nX:  y \r\nX: z"
    )
    block = compress(made)
    assert made.compressed is block
    assert read(block) == [
        (b":status", b"203"),
        (b"server", b"M"),
        (b"set-cookie", b"a=b"),
        (b"x", b"y"),
        (b"x", b"z"),
        (b"content-length", b"2"),
    ]


def test_chunks_are_not_passed_on() -> None:
    """RFC 9113 section 8.2.2."""
    made = head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y")
    assert read(compress(made)) == [(b":status", b"200"), (b"x", b"y")]


@pytest.mark.parametrize(
    "line", [b"Sec-WebSocket-Accept: " + ANSWER, b"sec-websocket-accept:\t" + ANSWER + b" "]
)
def test_accepted_websocket_has_no_key(line: bytes) -> None:
    """RFC 8441 section 5."""
    made = head(
        b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%b\r\nSec-WebSocket-Protocol: p"
        % line
    )
    assert read(accepts(made, KEY)) == [(b":status", b"200"), (b"sec-websocket-protocol", b"p")]


@pytest.mark.parametrize(
    "lines",
    [
        b"X: y",
        b"Sec-WebSocket-Accept: " + ANSWER.swapcase(),
        b"Sec-WebSocket-Accept:",
        b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Accept: %b" % (ANSWER, ANSWER),
        b"X-Sec-WebSocket-Accept: " + ANSWER,
    ],
)
def test_answer_to_another_key_accepts_nothing(lines: bytes) -> None:
    made = head(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + lines)
    assert accepts(made, KEY) == b""


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (
            Response(404, b"text/plain", b"gone", ((b"X-Up", b"1"), (b"Set-Cookie", b"a=b"))),
            [
                (b":status", b"404"),
                (b"content-type", b"text/plain"),
                (b"content-length", b"4"),
                (b"x-up", b"1"),
                (b"set-cookie", b"a=b"),
            ],
        ),
        (
            Response(302, fields=((b"location", b"/"),)),
            [(b":status", b"302"), (b"content-length", b"0"), (b"location", b"/")],
        ),
        (Response(204), [(b":status", b"204")]),
    ],
)
def test_response_of_the_edge_itself(response: Response, said: list[tuple[bytes, bytes]]) -> None:
    assert read(compress_response(response)) == said
