from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.body import LAST_CHUNK, BodyError, Chunked, chunk

BODY = b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
FRAMED = b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"


def feed(body: Chunked, pieces: list[bytes]) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


@given(st.lists(st.integers(0, len(BODY) + 4), max_size=12), st.booleans())
def test_any_split_gives_the_same(cuts: list[int], framed: bool) -> None:
    data = BODY + b"next"
    edges = [0, *sorted(cuts), len(data)]
    body = Chunked(framed=framed)
    out, rest = b"", b""
    for start, end in pairwise(edges):
        if body.done:
            rest += data[start:end]
            continue
        out += body.feed(data[start:end])
        rest += body.rest
    assert out == (FRAMED if framed else b"hello world")
    assert (body.done, rest, body.size) == (True, b"next", 11)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_chunks_made_are_chunks_read(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(chunk, pieces)) + LAST_CHUNK
    cut = data.draw(st.integers(0, len(whole)))
    body = Chunked(framed=False)
    assert feed(body, [whole[:cut], whole[cut:]]) == b"".join(pieces)
    assert body.done and body.rest == b""


def test_a_whole_chunk_passes_without_a_copy() -> None:
    event = chunk(b"data: {}\n\n")
    assert Chunked().feed(event) is event or Chunked().feed(event) == event


def test_trailers_that_would_change_the_message_are_left_out() -> None:
    assert Chunked().feed(b"0\r\nContent-Length: 5\r\nX-Ok: 1\r\n\r\n") == b"0\r\nX-Ok: 1\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\n",
        b"0x1\r\n",
        b"\r\n",
        b"1\n\r\n",
        b"5\nhello\n",
        b"5\rhello",
        b"5;a\n",
        b"0\n",
        b"0\r\nA: b\n",
        b"0\r\nA: b\rc",
        b"0\r\n\n",
        b"11111111111111111\r\n",
        b"1 x\r\na\r\n",
        b"1;\x00\r\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\nabcdef\r\n",
        b"5\r\nhelloXX",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\n" + b"A: " + b"b" * 1000 + b"\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 8,
        b"1;" + b"x" * 2000,
        b"1;" + b"x" * 2000 + b"\r\n",
        (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 20,
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_malformed_or_unbounded_framing_is_refused(data: bytes, at_once: bool) -> None:
    pieces = [data] if at_once else [data[i : i + 1] for i in range(len(data))]
    with pytest.raises(BodyError):
        feed(Chunked(), pieces)
