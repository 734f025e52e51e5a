import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.errors import BadResponse
from fedproxy.http.response import Response, ResponseHead
from fedproxy.wire.h1.response import check_begun, read, render


def sent(head: ResponseHead) -> bytes:
    return head.start + head.lines


def head(*lines: bytes) -> ResponseHead:
    return read(b"\r\n".join((*lines, b"", b"")))


def test_head_passes_with_its_length_last() -> None:
    found = head(
        b"HTTP/1.1 200 OK", b"Server: x", b"Content-Length: 5", b"Content-Type: text/html", b"Set-Cookie: a"
    )
    assert sent(found) == (
        b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/html\r\nSet-Cookie: a\r\nContent-Length: 5\r\n"
    )
    assert (found.status, found.length, found.chunked, found.close) == (200, 5, False, False)


def test_reason_may_be_empty_or_missing() -> None:
    assert sent(head(b"HTTP/1.1 200 ")) == b"HTTP/1.1 200 \r\n"
    assert sent(head(b"HTTP/1.1 200")) == b"HTTP/1.1 200 \r\n"


def test_version_10_closes_unless_it_says_otherwise() -> None:
    assert head(b"HTTP/1.0 200 OK").close
    assert not head(b"HTTP/1.0 200 OK", b"Connection: keep-alive").close
    assert head(b"HTTP/1.1 200 OK", b"Connection: close").close


def test_hop_by_hop_fields_and_the_members_request_id_do_not_pass() -> None:
    found = head(
        b"HTTP/1.1 200 OK",
        b"Connection: X-Gone",
        b"X-Gone: 1",
        b"Keep-Alive: 1",
        b"Proxy-Authenticate: x",
        b"Trailer: y",
        b"X-Request-ID: theirs",
        b"X-Stays: 1",
    )
    assert sent(found) == b"HTTP/1.1 200 OK\r\nX-Stays: 1\r\n"


def test_chunked_is_seen_and_left_to_the_visitors_version() -> None:
    found = head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: Chunked")
    assert found.chunked and b"Transfer" not in sent(found)


def test_event_stream_and_public_are_seen() -> None:
    found = head(
        b"HTTP/1.1 200 OK",
        b"Content-Type: Text/Event-Stream; charset=utf-8",
        b"Cache-Control: max-age=1, Public",
    )
    assert found.event_stream and found.public
    assert not head(b"HTTP/1.1 200 OK", b"Cache-Control: private").public


def test_coding_is_seen_and_passes() -> None:
    for coding, encoded in ((b"gzip", True), (b"identity", False)):
        found = head(b"HTTP/1.1 200 OK", b"Content-Encoding: " + coding)
        assert found.encoded is encoded
        assert b"Content-Encoding: " + coding in sent(found)


def test_upgrade_is_seen() -> None:
    found = head(b"HTTP/1.1 101 Switching Protocols", b"Connection: upgrade", b"Upgrade: websocket")
    assert found.upgrade == b"websocket" and found.bodiless


@pytest.mark.parametrize("status", [b"204", b"304", b"100", b"103"])
def test_bodiless_statuses(status: bytes) -> None:
    assert head(b"HTTP/1.1 " + status + b" X").bodiless


def test_length_of_a_204_does_not_pass_and_of_a_304_does() -> None:
    assert b"Content-Length" not in sent(head(b"HTTP/1.1 204 X", b"Content-Length: 5"))
    assert b"Content-Length: 5" in sent(head(b"HTTP/1.1 304 X", b"Content-Length: 5"))


@pytest.mark.parametrize(
    "lines",
    [
        (b"",),
        (b"HTTP/2 200 OK",),
        (b"HTTP/1.1 20 OK",),
        (b"HTTP/1.1 099 OK",),
        (b"HTTP/1.1 2000 OK",),
        (b"HTTP/1.1 200 \x00",),
        (b"ICY 200 OK",),
        (b"HTTP/1.1 200 OK", b"no colon"),
        (b"HTTP/1.1 200 OK", b" folded: x"),
        (b"HTTP/1.1 200 OK", b"A: b\nc"),
        (b"HTTP/1.1 200 OK", b"Content-Length: 1", b"Content-Length: 2"),
        (b"HTTP/1.1 200 OK", b"Content-Length: -1"),
        (b"HTTP/1.1 200 OK", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        (b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip, chunked"),
        (b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked"),
    ],
)
def test_nonsense_is_refused(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(BadResponse):
        head(*lines)


WHOLE = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b; Path=/\r\nX-Empty:\r\nX: \xe9\t\x80 \r\n\r\n",
    b"HTTP/1.0 404\r\n\r\n",
    b"HTTP/1.1 103 \r\nLink: </a>\r\n\r\n",
)


@pytest.mark.parametrize("whole", WHOLE)
def test_beginning_of_a_valid_head_is_waited_with(whole: bytes) -> None:
    read(whole)
    for size in range(1, len(whole)):
        for known in (0, *(at + 2 for at in range(size - 1) if whole[at : at + 2] == b"\r\n")):
            check_begun(whole[:size], known)


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\n",
        b"HTTP/1.1 200 OK\n\r\n",
        b"\n",
        b"\r",
        b"\r\n",
        b" HTTP",
        b"http/1.1",
        b"HTTP/1.1 abc",
        b"HTTP/1.1 a",
        b"HTTP/1.1  2",
        b"HTTP/1.1 0",
        b"HTTP/1.1 2000",
        b"HTTP/1.1 20\r",
        b"HTTP/1.1 20 ",
        b"HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\rX",
        b"HTTP/1.1 200 OK\r\rX",
        b"HTTP/1.1 200 \x00",
        b"HTTP/1.2",
        b"HTTP/2",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\n X",
        b"HTTP/1.1 200 OK\r\n\tX",
        b"HTTP/1.1 200 OK\r\nno colon\r",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nnocolon\r\n",
        b"HTTP/1.1 200 OK\r\nA : b",
        b"HTTP/1.1 200 OK\r\n: b",
        b"HTTP/1.1 200 OK\r\nA: b\x00",
        b"HTTP/1.1 200 OK\r\nA: b\rc",
        b"HTTP/1.1 200 OK\r\nA: b\x7f\r\nC: d",
        b"HTTP/1.1 200 OK\r\nA\x80",
    ],
)
def test_beginning_that_no_valid_head_has_is_refused_at_once(begun: bytes) -> None:
    with pytest.raises(BadResponse):
        check_begun(begun)
    for ending in (b"\r\n\r\n", b"\n\r\n\r\n", b" OK\r\n\r\n", b": x\r\n\r\n"):
        with pytest.raises(BadResponse):
            read(begun + ending)


PIECES = st.sampled_from(
    [b"HTTP/1.1 200", b" OK", b"\r\n", b"\r", b"\n", b"A", b":", b" ", b"b", b"\0", b"Set-Cookie: x", b"\xe9"]
)


@given(st.lists(PIECES, max_size=8).map(b"".join), st.integers(0, 40))
def test_what_is_refused_of_a_head_is_refused_of_the_whole_however_it_is_cut(rest: bytes, size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + rest
    if b"\r\n\r\n" in head:
        return
    begun = head[: size + 1]
    known = begun.rfind(b"\r\n") + 2 if b"\r\n" in begun else 0
    try:
        check_begun(begun)
        check_begun(head, known)
    except BadResponse:
        for ending in (b"\r\n\r\n", b"\n\r\n", b": x\r\n\r\n"):
            whole = head + ending
            if whole.endswith(b"\r\n\r\n"):
                with pytest.raises(BadResponse):
                    read(whole)
        with pytest.raises(BadResponse):
            check_begun(head)


def test_response_of_the_edge_is_rendered_with_its_length() -> None:
    response = Response(404, b"text/plain", b"nothing\n", ((b"A", b"1"), (b"B", b"2")))
    whole = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 8\r\nA: 1\r\nB: 2\r\n"
    assert render(response, None, is_head=False) == whole + b"\r\nnothing\n"
    assert render(response, b"close", is_head=True) == whole + b"Connection: close\r\n\r\n"


def test_204_has_no_length_and_an_unregistered_status_no_phrase() -> None:
    assert render(Response(204), None, is_head=False) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert render(Response(299), None, is_head=False) == b"HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n"


def test_fields_of_an_answer_can_be_changed_for_another_body() -> None:
    found = head(
        b"HTTP/1.1 200 Fine",
        b"Content-Type: text/event-stream",
        b"Content-Length: 5",
        b"Set-Cookie: a=b",
        b"Cache-Control: public",
    )
    assert found.fields() == (
        (b"Content-Type", b"text/event-stream"),
        (b"Set-Cookie", b"a=b"),
        (b"Cache-Control", b"public"),
        (b"Content-Length", b"5"),
    )
    longer = found.with_fields([*found.fields(), (b"Content-Encoding", b"gzip")], length=9)
    assert sent(longer) == (
        b"HTTP/1.1 200 Fine\r\nContent-Type: text/event-stream\r\nSet-Cookie: a=b\r\n"
        b"Cache-Control: public\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n"
    )
    assert (longer.length, longer.whole, longer.encoded, longer.event_stream, longer.public) == (
        9,
        9,
        True,
        True,
        True,
    )
    open_ended = found.with_fields(found.fields())
    assert (open_ended.length, open_ended.chunked, open_ended.encoded) == (None, False, False)
    assert b"Content-Length" not in sent(open_ended)
    assert head(b"HTTP/1.1 304 Not Modified").with_fields([], length=5).whole < 0


def test_answer_in_chunks_can_be_given_as_its_payload() -> None:
    found = head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Content-Type: text/event-stream")
    plain = found.unframed()
    assert sent(plain) == sent(found)
    assert (plain.chunked, plain.length, plain.event_stream) == (False, None, True)
