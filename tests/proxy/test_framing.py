"""What an intermediary must do with a request's framing, head, target and names (RFC 9110, RFC 9112).

A request that two readers could understand differently is refused, with a closed connection and before
a member sees a byte of it; or the member sees exactly one request that nobody can misunderstand.
"""

from __future__ import annotations

import pytest

from tests.rig import Edge, Message, answer, chunked, edge, per_request
from tests.rig.member import Conn

MARKER = b"smuggled-marker"
HOST = b"Host: hub.test\r\n"


def get(*lines: bytes, start: bytes = b"GET /" + MARKER + b" HTTP/1.1") -> bytes:
    return b"\r\n".join((start, HOST[:-2], *lines, b"", b""))


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return get(*lines, start=b"POST /" + MARKER + b" HTTP/1.1") + body


SMUGGLED = b"GET /" + MARKER + b" HTTP/1.1\r\nHost: hub.test\r\n\r\n"
TE = b"Transfer-Encoding: chunked"

AMBIGUOUS = {
    "CL.TE": post(b"Content-Length: 6", TE, body=b"0\r\n\r\nG"),
    "TE.CL": post(TE, b"Content-Length: 4", body=chunked(SMUGGLED)),
    "CL.TE with a length of zero": post(b"Content-Length: 0", TE, body=chunked(SMUGGLED)),
    "TE twice": post(TE, TE, body=chunked(b"x")),
    "TE twice, the second one identity": post(TE, b"Transfer-Encoding: identity", body=chunked(b"x")),
    "TE twice, the second one in another case": post(TE, b"transfer-encoding: x", body=chunked(b"x")),
    "TE list that repeats chunked": post(b"Transfer-Encoding: chunked, chunked", body=chunked(b"x")),
    "TE whose last coding is not chunked": post(b"Transfer-Encoding: chunked, identity", body=chunked(b"x")),
    "TE with another coding before chunked": post(b"Transfer-Encoding: gzip, chunked", body=chunked(b"x")),
    "TE identity": post(b"Transfer-Encoding: identity", body=b"x"),
    "TE unknown": post(b"Transfer-Encoding: xchunked", body=chunked(b"x")),
    "TE cow": post(b"Transfer-Encoding: cow", b"Content-Length: 3", body=b"abc"),
    "TE empty": post(b"Transfer-Encoding:", body=chunked(b"x")),
    "TE quoted": post(b'Transfer-Encoding: "chunked"', body=chunked(b"x")),
    "TE with a parameter": post(b"Transfer-Encoding: chunked;q=1", body=chunked(b"x")),
    "TE with a trailing comma": post(b"Transfer-Encoding: chunked,", body=chunked(b"x")),
    "TE with a space before the colon": post(b"Transfer-Encoding : chunked", body=chunked(b"x")),
    "TE with a tab before the colon": post(b"Transfer-Encoding\t: chunked", body=chunked(b"x")),
    "TE behind a leading space": post(b"X: y", b" Transfer-Encoding: chunked", body=chunked(b"x")),
    "TE folded": post(b"Transfer-Encoding:", b" chunked", body=chunked(b"x")),
    "TE behind a bare LF": post(b"X: y\nTransfer-Encoding: chunked", body=chunked(b"x")),
    "TE behind a bare CR": post(b"X: y\rTransfer-Encoding: chunked", body=chunked(b"x")),
    "TE with a NUL": post(b"Transfer-Encoding: chunked\0", body=chunked(b"x")),
    "TE with a vertical tab before it": post(b"Transfer-Encoding: \x0bchunked", body=chunked(b"x")),
    "TE with a form feed after it": post(b"Transfer-Encoding: chunked\x0c", body=chunked(b"x")),
    "TE with a no-break space": post(b"Transfer-Encoding: \xa0chunked", body=chunked(b"x")),
    "TE with a dotless letter": post("Transfer-Encoding: chun\u212aed".encode(), body=chunked(b"x")),
    "TE named with a NUL": post(b"Transfer-Encoding\0: chunked", body=chunked(b"x")),
    "CL twice, different": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    "CL twice, the same": post(b"Content-Length: 5", b"content-length: 5", body=b"hello"),
    "CL list, different": post(b"Content-Length: 5, 6", body=b"hello!"),
    "CL list, the same": post(b"Content-Length: 5, 5", body=b"hello"),
    "CL with a plus": post(b"Content-Length: +5", body=b"hello"),
    "CL with a minus": post(b"Content-Length: -5", body=b"hello"),
    "CL with a space inside": post(b"Content-Length: 1 0", body=b"hello"),
    "CL with an underscore inside": post(b"Content-Length: 1_0", body=b"hello"),
    "CL hexadecimal": post(b"Content-Length: 0x5", body=b"hello"),
    "CL fractional": post(b"Content-Length: 5.0", body=b"hello"),
    "CL empty": post(b"Content-Length:", body=b"hello"),
    "CL in other digits": post("Content-Length: \u0665".encode(), body=b"hello"),
    "CL beyond 64 bits": post(b"Content-Length: 18446744073709551621", body=b"hello"),
    "CL with a space before the colon": get(b"Content-Length : 5") + SMUGGLED,
    "CL behind a leading space": get(b" Content-Length: 5") + SMUGGLED,
    "CL folded": get(b"Content-Length:", b" 5") + SMUGGLED,
    "CL with a vertical tab": post(b"Content-Length: \x0b5", body=b"hello"),
    "TE in a 1.0 request": get(TE, start=b"POST /" + MARKER + b" HTTP/1.0") + chunked(b"x"),
    "TE and keep-alive in a 1.0 request": get(TE, b"Connection: keep-alive", start=b"POST / HTTP/1.0")
    + chunked(b"x"),
}

BAD_HEADS = {
    "bare LF as every line's end": b"GET /" + MARKER + b" HTTP/1.1\nHost: hub.test\n\n",
    "bare LF as every line's end, then a real end": b"GET / HTTP/1.1\nHost: hub.test\n\n\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: hub.test\r\n\r\n",
    "bare LF between two fields": get(b"A: b\nC: d"),
    "bare CR between two fields": get(b"A: b\rC: d"),
    "bare CR at a value's end": get(b"A: b\r"),
    "bare CR in the target": get(start=b"GET /a\rb HTTP/1.1"),
    "CR CR LF": get(b"A: b\r", b"C: d"),
    "NUL in a value": get(b"A: b\0c"),
    "NUL in a name": get(b"A\0: b"),
    "NUL in the target": get(start=b"GET /a\0b HTTP/1.1"),
    "escape in a value": get(b"A: \x1b[0m"),
    "DEL in a value": get(b"A: b\x7fc"),
    "backspace in a value": get(b"A: \x08b"),
    "control byte in a cookie": get(b"Cookie: a=\x01b"),
    "DEL in the target": get(start=b"GET /a\x7f HTTP/1.1"),
    "space before the colon": get(b"A : b"),
    "tab before the colon": get(b"A\t: b"),
    "folded with a space": get(b"A: b", b" c"),
    "folded with a tab": get(b"A: b", b"\tc"),
    "space before the first field": b"GET / HTTP/1.1\r\n Host: hub.test\r\n\r\n",
    "space before the first of two fields": b"GET / HTTP/1.1\r\n X: y\r\nHost: hub.test\r\n\r\n",
    "tab before the first field": b"GET / HTTP/1.1\r\n\tHost: hub.test\r\nHost: hub.test\r\n\r\n",
    "no colon": get(b"nonsense"),
    "no name": get(b": b"),
    "space in a name": get(b"A B: c"),
    "parentheses in a name": get(b"A(b): c"),
    "quote in a name": get(b'A": c'),
    "letter beyond ASCII in a name": get("\u00c4: b".encode()),
    "two spaces after the method": get(start=b"GET  / HTTP/1.1"),
    "two spaces before the version": get(start=b"GET /  HTTP/1.1"),
    "space after the version": get(start=b"GET / HTTP/1.1 "),
    "space before the method": get(start=b" GET / HTTP/1.1"),
    "tab for a space": get(start=b"GET\t/\tHTTP/1.1"),
    "method that is no token": get(start=b"G(T / HTTP/1.1"),
    "no version": get(start=b"GET /"),
    "no target": get(start=b"GET HTTP/1.1"),
    "space in the target": get(start=b"GET /a b HTTP/1.1"),
    "version 0.9": get(start=b"GET / HTTP/0.9"),
    "version 1.2": get(start=b"GET / HTTP/1.2"),
    "version 1.10": get(start=b"GET / HTTP/1.10"),
    "version 01.1": get(start=b"GET / HTTP/01.1"),
    "version 1": get(start=b"GET / HTTP/1"),
    "version 2.0": get(start=b"GET / HTTP/2.0"),
    "version in lower case": get(start=b"GET / http/1.1"),
    "version with a comma": get(start=b"GET / HTTP/1,1"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "start of a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}

BAD_HOSTS = {
    "missing": b"GET / HTTP/1.1\r\n\r\n",
    "missing among other fields": b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n",
    "missing beside an absolute target": b"GET http://hub.test/ HTTP/1.1\r\n\r\n",
    "two": get(b"Host: other.test"),
    "two that are the same": get(b"host: hub.test"),
    **{
        "invalid: " + value.decode("latin-1"): b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"
        for value in (
            b"hub test",
            b"hub.test,other.test",
            b"hub.test/path",
            b"hub.test?query",
            b"hub.test#fragment",
            b"user@hub.test",
            b"http://hub.test",
            b"hub.test:80:80",
            b"hub.test:port",
            b"hub.test:-1",
            b"hub.test:999999",
            b"[::1",
            b"::1]",
            b"[::1]x",
            b"hub\xff.test",
            b"hub.test\\other.test",
        )
    },
}

BAD_TARGETS = {
    "fragment": b"GET /a#b HTTP/1.1",
    "fragment alone": b"GET # HTTP/1.1",
    "no slash": b"GET a HTTP/1.1",
    "query alone": b"GET ?a HTTP/1.1",
    "asterisk but not OPTIONS": b"GET * HTTP/1.1",
    "asterisk and more": b"OPTIONS *x HTTP/1.1",
    "authority but not CONNECT": b"GET hub.test:443 HTTP/1.1",
    "other scheme": b"GET ftp://hub.test/ HTTP/1.1",
    "scheme alone": b"GET http:// HTTP/1.1",
    "scheme and path": b"GET http:/a HTTP/1.1",
    "empty authority": b"GET http:///a HTTP/1.1",
    "user in the authority": b"GET http://user@hub.test/ HTTP/1.1",
    "authority with a comma": b"GET http://hub.test,other.test/ HTTP/1.1",
    "fragment in absolute-form": b"GET http://hub.test/a#b HTTP/1.1",
    "byte beyond ASCII": "GET /\u00e4 HTTP/1.1".encode(),
}

REFUSED = {
    **{f"framing: {name}": request for name, request in AMBIGUOUS.items()},
    **{f"head: {name}": request for name, request in BAD_HEADS.items()},
    **{f"host: {name}": request for name, request in BAD_HOSTS.items()},
    **{f"target: {name}": get(start=start) for name, start in BAD_TARGETS.items()},
}


async def only_sentinel(running: Edge) -> None:
    """Asserts that the member has seen nothing, not even later than one more request."""
    response = await running.ask(b"GET /sentinel HTTP/1.1\r\nHost: hub.test\r\n\r\n")
    assert response.status == 200
    assert [request.target for request in running.member.requests] == [b"/sentinel"]
    assert running.member.received.count(b"HTTP/1.") == 1


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_ambiguous_or_malformed_request_is_refused_and_closed(request_: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(request_)
        response = await client.response()
        assert response.status == 400
        assert response.value("connection") == b"close"
        assert MARKER not in client.received
        assert await client.closed() == "eof"
        (line,) = await running.logged()
        assert (line["status"], line["termination"], line["member"]) == (400, "PR", None)
        await only_sentinel(running)


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_refusal_does_not_depend_on_how_the_bytes_are_split(request_: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        half = len(request_) // 2
        await client.send(request_[:half])
        await running.ask(get(start=b"GET /sentinel HTTP/1.1"))
        await client.send(request_[half:])
        assert (await client.response()).status == 400
        assert await client.closed() == "eof"
        assert [request.target for request in running.member.requests] == [b"/sentinel"]


async def test_every_refusal_is_the_same_fixed_line() -> None:
    async with edge(answer()) as running:
        bodies = set()
        for request in list(REFUSED.values())[::7]:
            client = await running.client()
            bodies.add((await client.ask(request)).body)
        assert len({body.replace(_id_in(body), b"") for body in bodies}) == 1


def _id_in(body: bytes) -> bytes:
    """The request's id, which is the one thing that differs."""
    words = [
        word
        for word in body.replace(b'"', b" ").replace(b"<", b" ").replace(b">", b" ").split()
        if len(word) == 32
    ]
    return words[0] if words else b"\0"


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
@pytest.mark.parametrize("target", [b"/", b"hub.test:443"])
async def test_trace_and_connect_are_not_allowed(method: bytes, target: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        response = await client.ask(get(start=method + b" " + target + b" HTTP/1.1"))
        assert response.status == 405
        assert await client.closed() == "eof"
        await only_sentinel(running)


BAD_CHUNKS = {
    "size overflows 64 bits": b"1FFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n",
    "size of many zeros": b"0" * 17 + b"1\r\nx\r\n0\r\n\r\n",
    "size with a sign": b"+1\r\nx\r\n0\r\n\r\n",
    "size with a minus": b"-1\r\nx\r\n0\r\n\r\n",
    "size with a prefix": b"0x1\r\nx\r\n0\r\n\r\n",
    "size with a space before it": b" 1\r\nx\r\n0\r\n\r\n",
    "size with an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "size empty": b"\r\nx\r\n0\r\n\r\n",
    "size that is no number": b"G\r\nx\r\n0\r\n\r\n",
    "size line that ends with LF": b"1\nx\r\n0\r\n\r\n",
    "size line that ends with CR": b"1\rx\r\n0\r\n\r\n",
    "chunk that ends with LF": b"1\r\nx\n0\r\n\r\n",
    "chunk that ends with CR": b"1\r\nx\r0\r\n\r\n",
    "chunk longer than its size": b"1\r\nxy\r\n0\r\n\r\n",
    "chunk shorter than its size": b"3\r\nx\r\n0\r\n\r\n",
    "chunk without an end": b"1\r\nx0\r\n\r\n",
    "extension with a bare LF": b"1;a\nb\r\nx\r\n0\r\n\r\n",
    "extension with a bare CR": b"1;a\rb\r\nx\r\n0\r\n\r\n",
    "extension with a NUL": b"1;\0\r\nx\r\n0\r\n\r\n",
    "extension without a semicolon": b"1 a\r\nx\r\n0\r\n\r\n",
    "extension without end": b"1;" + b"a" * 20_000 + b"\r\nx\r\n0\r\n\r\n",
    "extensions without end, over many chunks": b"1;"
    + b"a" * 900
    + b"\r\nx\r\n"
    + (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 60,
    "trailer that is malformed": b"0\r\nA : b\r\n\r\n",
    "trailer with a bare LF": b"0\r\nA: b\nC: d\r\n\r\n",
    "trailer that is folded": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailers without end": b"0\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
}


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_malformed_chunks_never_become_a_whole_request(body: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        response = await client.ask(post(TE) + body + SMUGGLED)
        assert response.status == 400
        assert await client.closed() == "eof"
        await running.ask(get(start=b"GET /sentinel HTTP/1.1"))
        assert [request.target for request in running.member.requests] == [b"/sentinel"]
        assert SMUGGLED not in running.member.received


EDGE_FIELDS = {
    *("host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "via"),
    *("x-request-id", "traceparent"),
}


def passed(request: Message) -> list[tuple[bytes, bytes]]:
    """The fields that the member saw and that are the visitor's own."""
    return [(name, value) for name, value in request.fields if name.decode().lower() not in EDGE_FIELDS]


async def seen(running: Edge, request: bytes, method: str = "GET") -> Message:
    """The one request that the member saw of it."""
    assert (await running.ask(request, method)).status == 200
    (arrived,) = running.member.requests
    return arrived


LEGAL_LENGTHS = {
    "a tab before the length": (b"Content-Length:\t5", b"hello"),
    "no space before the length": (b"Content-Length:5", b"hello"),
    "spaces around the length": (b"Content-Length:   5  ", b"hello"),
    "leading zeros": (b"Content-Length: 0005", b"hello"),
    "the length in another case": (b"cOnTeNt-LeNgTh: 5", b"hello"),
    "chunked in another case": (b"Transfer-Encoding: CHUNKED", chunked(b"hel", b"lo")),
    "a tab before chunked": (b"transfer-encoding:\tchunked \t", chunked(b"hel", b"lo")),
    "an extension": (TE, b"5;name=value\r\nhello\r\n0;last\r\n\r\n"),
    "a quoted extension": (TE, b'5;name="va;lue"\r\nhello\r\n0\r\n\r\n'),
    "a space before an extension": (TE, b"5 ;name\r\nhello\r\n0\r\n\r\n"),
    "leading zeros in a chunk's size": (TE, b"0005\r\nhello\r\n000\r\n\r\n"),
}


@pytest.mark.parametrize(("line", "body"), LEGAL_LENGTHS.values(), ids=LEGAL_LENGTHS.keys())
async def test_legal_framing_arrives_in_one_form(line: bytes, body: bytes) -> None:
    async with edge(answer()) as running:
        request = await seen(running, post(line) + body)
        assert request.body == b"hello"
        assert request.value("content-length") in (b"5", None)
        assert b"name" not in running.member.received
        assert b"last" not in running.member.received


async def test_body_that_looks_like_a_request_stays_a_body() -> None:
    async with edge(answer()) as running:
        request = await seen(running, post(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED)
        assert request.body == SMUGGLED


async def test_get_with_a_body_that_looks_like_a_request_stays_one_request() -> None:
    async with edge(answer()) as running:
        await running.ask(get(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED)
        (request,) = running.member.requests
        assert request.body == SMUGGLED


async def test_body_sent_after_a_pause_is_not_taken_for_a_request() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        await client.send(post(b"Content-Length: %d" % len(SMUGGLED)))
        await running.ask(get(start=b"GET /sentinel HTTP/1.1"))
        assert (await client.ask(SMUGGLED)).status == 200
        assert [request.body for request in running.member.requests] == [b"", SMUGGLED]


async def test_body_of_a_member_that_ignores_it_does_not_answer_the_next_visitor() -> None:
    async def ignores_bodies(conn: Conn) -> None:
        while True:
            head = await conn.head()
            conn.member.requests.append(head)
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head.target), head.target)

    async with edge(ignores_bodies) as running:
        await running.ask(
            get(b"Content-Length: %d" % len(SMUGGLED), start=b"POST /first HTTP/1.1") + SMUGGLED
        )
        for _ in range(3):
            assert (await running.ask(get(start=b"GET /second HTTP/1.1"))).body == b"/second"


TARGETS = {
    "percent-encoded": b"/v2/gh/a%2Fb/c%3Ad%7Ee%2f",
    "double slashes": b"//a///b/",
    "dot segments": b"/a/./b/../c",
    "query": b"/a?b=c&d=%20&&e=?f",
    "case": b"/AbC/dEf",
    "odd but legal bytes": b'/a|b\\c^d`e{f}g"h<i>j[k]l',
    "semicolons": b"/a;b=c;d",
    "bad percent-encoding": b"/a%zz%",
    "colon": b"/http://x/y:80",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
async def test_target_arrives_byte_for_byte(target: bytes) -> None:
    async with edge(answer()) as running:
        assert (await seen(running, get(start=b"GET " + target + b" HTTP/1.1"))).target == target


ABSOLUTE = {
    b"http://other.test/a?b": (b"/a?b", b"other.test"),
    b"HTTP://other.test:8000/a": (b"/a", b"other.test:8000"),
    b"https://[::1]:8000/a%2Fb": (b"/a%2Fb", b"[::1]:8000"),
    b"http://other.test": (b"/", b"other.test"),
    b"http://other.test?b": (b"/?b", b"other.test"),
}


@pytest.mark.parametrize(("target", "expected"), ABSOLUTE.items(), ids=[key.decode() for key in ABSOLUTE])
async def test_authority_of_absolute_form_replaces_host(target: bytes, expected: tuple[bytes, bytes]) -> None:
    async with edge(answer()) as running:
        request = await seen(running, get(start=b"GET " + target + b" HTTP/1.1"))
        assert (request.target, request.value("x-forwarded-host")) == expected
        assert request.value("host") == running.member.authority.encode()
        assert b"hub.test" not in running.member.received


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_empty_host_is_passed_on_as_none(version: bytes) -> None:
    async with edge(answer()) as running:
        request = await seen(running, b"GET /x HTTP/" + version + b"\r\nHost:\r\n\r\n")
        assert request.value("host") == running.member.authority.encode()
        assert request.value("x-forwarded-host") is None
        (line,) = await running.logged()
        assert (line["host"], line["status"]) == ("", 200)


@pytest.mark.parametrize("target", [b"*", b"http://hub.test"])
async def test_asterisk_form_of_options(target: bytes) -> None:
    async with edge(answer()) as running:
        request = await seen(running, get(start=b"OPTIONS " + target + b" HTTP/1.1"))
        assert request.start == b"OPTIONS * HTTP/1.1"


@pytest.mark.parametrize("method", [b"PROPFIND", b"PATCH", b"get", b"M-SEARCH", b"X!#$%&'*+-.^_`|~9"])
async def test_any_method_passes(method: bytes) -> None:
    async with edge(answer()) as running:
        assert (await seen(running, get(start=method + b" / HTTP/1.1"))).method == method


async def test_case_variant_duplicates_stay_in_order() -> None:
    lines = [b"X-A: 1", b"x-a: 2", b"Accept: a/b", b"X-a: 3", b"accept: c/d", b"X-A: 1", b"X-Empty:"]
    async with edge(answer()) as running:
        request = await seen(running, get(*lines))
        assert passed(request) == [
            (name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)
        ]


async def test_values_keep_bytes_beyond_ascii_and_inner_whitespace() -> None:
    value = b'\xff\xe4  \t b, "c"'
    async with edge(answer()) as running:
        assert (await seen(running, get(b"X-A: " + value))).value("x-a") == value


HOP_BY_HOP = [
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic abc",
    b"Proxy-Authenticate: Basic",
    b"Proxy-Foo: bar",
    b"TE: trailers",
    b"Trailer: X-T",
    b"Upgrade: websocket",
    b"Connection: keep-alive",
    b"Connection: close",
    b"HTTP2-Settings: abc",
]


@pytest.mark.parametrize("line", HOP_BY_HOP, ids=lambda line: line.decode())
async def test_hop_by_hop_field_does_not_pass(line: bytes) -> None:
    async with edge(answer()) as running:
        assert passed(await seen(running, get(b"X-A: 1", line, b"X-B: 2"))) == [
            (b"X-A", b"1"),
            (b"X-B", b"2"),
        ]


async def test_fields_named_in_connection_do_not_pass() -> None:
    lines = [
        b"X-Foo: 1",
        b"x-foo: 2",
        b"X-Bar: 3",
        b"Connection: x-FOO , keep-alive",
        b"connection: ,X-Gone",
        b"X-Gone: 4",
    ]
    async with edge(answer()) as running:
        assert passed(await seen(running, get(*lines))) == [(b"X-Bar", b"3")]


KEPT = [
    "Host",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Real-IP",
    "Via",
    "X-Request-ID",
]


@pytest.mark.parametrize("name", KEPT)
async def test_naming_an_edge_field_in_connection_does_not_remove_it(name: str) -> None:
    async with edge(answer()) as running:
        request = await seen(running, get(b"Connection: close, " + name.lower().encode()))
        assert request.value(name)


@pytest.mark.parametrize("name", [b"Content-Length", b"Cookie", b"Authorization", b"Origin"])
async def test_naming_an_end_to_end_field_in_connection_does_not_change_the_request(name: bytes) -> None:
    lines = [b"Cookie: a=b", b"Authorization: x", b"Origin: http://o.test", b"Connection: " + name]
    async with edge(answer()) as running:
        request = await seen(running, post(*lines, b"Content-Length: 5") + b"hello")
        assert request.body == b"hello"
        assert {key for key, _ in passed(request)} == {
            b"Cookie",
            b"Authorization",
            b"Origin",
            b"Content-Length",
        }


async def test_naming_transfer_encoding_in_connection_does_not_change_the_framing() -> None:
    async with edge(answer()) as running:
        request = await seen(running, post(TE, b"Connection: transfer-encoding") + chunked(SMUGGLED))
        assert request.body == SMUGGLED


IMITATIONS = [
    *(
        b"X_Forwarded_For: 6.6.6.6",
        b"X-Forwarded_For: 6.6.6.6",
        b"x_real_ip: 6.6.6.6",
        b"X_Forwarded_Proto: https",
    ),
    *(
        b"X_Forwarded_Host: evil.test",
        b"Content_Length: 7",
        b"Transfer_Encoding: chunked",
        b"X_Request_ID: evil",
    ),
]


@pytest.mark.parametrize("line", IMITATIONS, ids=lambda line: line.decode())
async def test_underscores_that_imitate_an_edge_field_are_dropped(line: bytes) -> None:
    async with edge(answer()) as running:
        assert passed(await seen(running, get(line, b"X_Custom: 1"))) == [(b"X_Custom", b"1")]


async def test_upgrade_with_a_length_is_forwarded_without_upgrade() -> None:
    lines = [b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: %d" % len(SMUGGLED)]
    async with edge(answer()) as running:
        request = await seen(running, post(*lines) + SMUGGLED)
        assert request.values("upgrade") == request.values("connection") == []
        assert request.body == SMUGGLED


async def test_upgrade_with_a_chunked_body_is_forwarded_without_upgrade() -> None:
    async with edge(answer()) as running:
        request = await seen(
            running, post(b"Connection: Upgrade", b"Upgrade: websocket", TE) + chunked(SMUGGLED)
        )
        assert request.values("upgrade") == request.values("connection") == []
        assert request.body == SMUGGLED


@pytest.mark.parametrize("protocol", [b"h2c", b"HTTP/2.0", b"TLS/1.0"])
async def test_upgrade_to_a_protocol_that_carries_requests_is_not_forwarded(protocol: bytes) -> None:
    async with edge(answer()) as running:
        request = await seen(
            running,
            get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: x"),
        )
        assert passed(request) == []


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n"])
async def test_empty_lines_before_the_request_line_are_passed_over(blank: bytes) -> None:
    async with edge(answer()) as running:
        assert (await seen(running, blank + get(start=b"GET /a HTTP/1.1"))).target == b"/a"


async def test_head_that_comes_byte_by_byte_is_one_request() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        for byte in get(b"X-A: 1", start=b"GET /a HTTP/1.1"):
            await client.send(bytes((byte,)))
        assert (await client.response()).status == 200
        (request,) = running.member.requests
        assert passed(request) == [(b"X-A", b"1")]


async def test_version_of_the_member_request_is_always_1_1() -> None:
    async with edge(answer()) as running:
        assert (await seen(running, get(start=b"GET /a HTTP/1.0"))).start == b"GET /a HTTP/1.1"


async def test_1_0_request_without_host_reaches_the_member() -> None:
    async with edge(answer()) as running:
        request = await seen(running, b"GET /a HTTP/1.0\r\n\r\n")
        assert request.value("host") == running.member.authority.encode()


LIMITS = {
    "a field too large": (get(b"X: " + b"a" * 40_000), 431),
    "too many fields": (get(*[b"X-%d: %s" % (n, b"a" * 50) for n in range(1000)]), 431),
    "a head without end": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 8000, 431),
    "a target too long": (get(start=b"GET /" + b"a" * 40_000 + b" HTTP/1.1"), 414),
    "a request line without end": (b"GET /" + b"a" * 40_000, 414),
    "a body too large": (post(b"Content-Length: 2049"), 413),
    "a body far too large": (post(b"Content-Length: 999999999999999999"), 413),
}


@pytest.mark.parametrize(("request_", "status"), LIMITS.values(), ids=LIMITS.keys())
async def test_request_over_a_limit_is_refused_and_closed(request_: bytes, status: int) -> None:
    async with edge(answer(), limits={"request_body": "2KiB"}) as running:
        client = await running.client()
        response = await client.ask(request_)
        assert response.status == status
        assert await client.closed() == "eof"
        await only_sentinel(running)


async def test_chunked_body_over_the_limit_is_cut() -> None:
    async with edge(answer(), limits={"request_body": "2KiB"}) as running:
        client = await running.client()
        response = await client.ask(post(TE) + chunked(b"x" * 1500, b"y" * 1500))
        assert response.status == 413
        assert await client.closed() == "eof"
        await running.ask(get(start=b"GET /sentinel HTTP/1.1"))
        assert [request.target for request in running.member.requests] == [b"/sentinel"]


async def test_refused_request_does_not_let_the_next_one_on_its_connection_pass() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        response = await client.ask(get(b"A : b") + SMUGGLED)
        assert response.status == 400
        assert await client.closed() == "eof"
        await only_sentinel(running)


async def test_request_before_a_refused_one_is_answered_first() -> None:
    async def slowly(conn: Conn, request: Message) -> None:
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        await conn.flush()
        conn.send(b"abc")

    async with edge(per_request(slowly)) as running:
        client = await running.client()
        await client.send(get(start=b"GET /a HTTP/1.1") + get(b"A : b"))
        assert (await client.response()).body == b"abc"
        assert (await client.response()).status == 400
        assert await client.closed() == "eof"
