from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.h1.body import LAST_CHUNK, Body, BodyError, Chunked, Counted, chunk

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


def test_request_keeps_no_trailer() -> None:
    assert Chunked(request=True).feed(b"0\r\nX-Ok: 1\r\n\r\n") == LAST_CHUNK


def whole(body: Chunked, data: bytes) -> bytes:
    out = body.feed(data)
    while body.behind:
        out += body.feed(b"")
    return out


@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=1500), st.sampled_from((b"%x", b"%X", b"0%x", b"%x;a"))),
        max_size=60,
    ),
    st.lists(st.integers(0, 20_000), max_size=6),
    st.booleans(),
)
def test_payload_is_the_same_whatever_the_chunks_and_the_split(
    pieces: list[tuple[bytes, bytes]], cuts: list[int], framed: bool
) -> None:
    """And the tap, the count and, once more read, what is forwarded agree with it."""
    payload = b"".join(piece for piece, _ in pieces)
    data = b"".join(style % len(piece) + b"\r\n" + piece + b"\r\n" for piece, style in pieces) + LAST_CHUNK
    edges = [0, *sorted(cuts), len(data)]
    tapped: list[bytes] = []
    body = Chunked(framed=framed, tap=tapped.append)
    out = b"".join(whole(body, data[start:end]) for start, end in pairwise(edges))
    if framed:
        out = whole(Chunked(framed=False), out)
    assert (out, b"".join(tapped), body.size, body.done) == (payload, payload, len(payload), True)


@pytest.mark.parametrize("tiny", [b"1\r\nx\r\n", b"01\r\nx\r\n", b"F\r\n123456789012345\r\n"])
def test_many_tiny_chunks_are_read_some_at_a_time_and_joined(tiny: bytes) -> None:
    body, calls, out = Chunked(), 0, b""
    data = tiny * 30_000 + LAST_CHUNK
    while not body.done:
        out += body.feed(data)
        data = b""
        calls += 1
        assert body.behind != body.done
    assert calls > 10
    assert whole(Chunked(framed=False), out) == whole(Chunked(framed=False), tiny * 30_000 + LAST_CHUNK)
    if tiny[0:1] != b"0":
        assert len(out) < len(tiny) * 30_000 * 0.9


@pytest.mark.parametrize("tiny", [b"1\r\nx\r\n", b"01\r\nx\r\n", b"1;a\r\nx\r\n"])
def test_request_of_too_many_tiny_chunks_is_refused(tiny: bytes) -> None:
    with pytest.raises(BodyError):
        Chunked(request=True).feed(tiny * 20_000)


def test_request_of_tiny_chunks_that_come_one_by_one_or_beside_large_ones_passes() -> None:
    body = Chunked(request=True)
    for _ in range(20_000):
        body.feed(b"1\r\nx\r\n1\r\ny\r\n")
    for _ in range(40):
        body.feed(b"1\r\nx\r\n" * 1000 + chunk(b"x" * 20_000))
    assert body.feed(LAST_CHUNK) == LAST_CHUNK and body.done


def test_chunks_that_are_not_tiny_pass_as_they_came() -> None:
    data = b"".join(chunk(b"data: %d and so on\n\n" % number) for number in range(100))
    assert Chunked().feed(data) == data
    assert Chunked().feed(b"1\r\nx\r\n" * 3) == b"1\r\nx\r\n" * 3


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
        b"1;a\r\nab\r\n",
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


@pytest.mark.parametrize("framed", [True, False])
def test_chunk_of_its_own_is_tapped(framed: bool) -> None:
    tapped: list[bytes] = []
    body = Chunked(framed=framed, tap=tapped.append)
    assert body.feed(b"5\r\nhello\r\n") == (b"5\r\nhello\r\n" if framed else b"hello")
    assert tapped == [b"hello"]


TRAILED = b"2\r\nok\r\n0\r\nX-Sum: 1\r\nContent-Length: 5\r\nX_Real_IP: 1\r\nx-more:\r\n\r\n"


@given(st.lists(st.integers(0, len(TRAILED)), max_size=8), st.booleans(), st.booleans())
def test_trailers_are_kept_beside_the_payload_unless_they_are_forwarded(
    cuts: list[int], framed: bool, request_: bool
) -> None:
    """Those of a request are not, whatever becomes of its body."""
    edges = [0, *sorted(cuts), len(TRAILED)]
    body = Chunked(framed=framed, request=request_)
    out = b"".join(body.feed(TRAILED[start:end]) for start, end in pairwise(edges))
    kept = b"" if request_ else b"X-Sum: 1\r\nx-more:\r\n"
    assert out == (b"2\r\nok\r\n0\r\n" + kept + b"\r\n" if framed else b"ok")
    assert body.trailers == (b"" if framed else kept)
    assert body.done


@pytest.mark.parametrize("body", [Body(), Counted(2), Chunked(framed=False)])
def test_body_without_trailers_has_none(body: Body) -> None:
    body.feed(b"2\r\nok\r\n0\r\n\r\n")
    assert body.trailers == b""
