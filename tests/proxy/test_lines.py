"""What is made of a request line, whether its path was seen before or not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedproxy.decide.affinity import KEYS
from fedproxy.decide.limit import Bans
from fedproxy.decide.route import Redirect, Route, Router, ToMember
from fedproxy.errors import VisitorError
from fedproxy.http.request import RequestLine
from fedproxy.proxy.routing import LineReader, RoutedRequest, route
from fedproxy.wire.h1.request import read_line
from fedproxy.wire.h2.request import read_line as read_h2_line
from tests.attributes import held

ROUTER = Router(
    [
        Route("/old/*", Redirect("https://new.test")),
        Route("/own/*", ToMember("a"), visitor_host=True),
        Route("/user/*", ToMember("b"), sessions=True),
        Route("/hub/*", ToMember("b"), sessions=True),
    ],
    base_paths=("/", "/binder/"),
)
KEY = KEYS["repository"]
BANS = Bans(repositories=(re.compile("^gh/bad/"),))
ENDS: dict[Callable[[bytes], RequestLine], bytes] = {read_line: b" HTTP/1.1", read_h2_line: b""}
METHODS = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"X", b"G?", b"")
PATHS = (
    b"/",
    b"*",
    b"",
    b"/x",
    b"/user/ada/lab",
    b"/hub/login",
    b"/hub/user/ada/lab",
    b"/build/gh/a/b/HEAD",
    b"/build/gh/bad/b/HEAD",
    b"/binder/build/gh/a/b/HEAD",
    b"/v2/gh/a/b/HEAD",
    b"/own/x",
    b"/old/x",
    b"/active_hosts",
    b"/a%2Fb//../c",
    b"/a b",
    b"x",
    b"http://other.test",
    b"http://other.test/x",
    b"https://",
)
QUERIES = (
    b"",
    b"1712345678901",
    b"build_token=x",
    b"x&build_token=",
    b"next=%2Fuser%2Fada%2Flab",
    b"redirect_uri=/user/ada/oauth_callback",
    b"a?b?c",
    b"a#b",
    b"a b",
    b"\xe9",
    b"\x00",
    b"\t",
    b"\x7f",
    b"\"<>\\^`{|}'",
)


def made(read: Callable[[bytes], RoutedRequest], raw: bytes) -> object:
    """All that is known of the line, or the error."""
    try:
        line = read(raw)
    except VisitorError as error:
        return type(error)
    session = line.session
    return held(line, but=("reads_query", "session")), None if session is None else held(session)


@pytest.mark.parametrize("read", ENDS)
@given(
    st.sampled_from(METHODS),
    st.sampled_from(PATHS) | st.binary(max_size=8),
    st.none() | st.sampled_from(QUERIES) | st.binary(max_size=8),
    st.sampled_from((b"", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.1 ", b" HTTP/2")),
)
@example(b"OPTIONS", b"http://other.test", b"x", b" HTTP/1.1")
@example(b"OPTIONS", b"*", b"x", b" HTTP/1.1")
@example(b"GET", b"/x", b"x HTTP/1.1", b" HTTP/1.1")
@example(b"GET", b"/hub/login", b"next=%2Fuser%2Fada%2Flab", b" HTTP/1.1")
def test_line_means_the_same_after_others_with_its_path(
    read: Callable[[bytes], RequestLine], method: bytes, path: bytes, query: bytes | None, end: bytes
) -> None:
    raw = method + b" " + path + (b"" if query is None else b"?" + query) + end
    reader = LineReader(read, ENDS[read], ROUTER, KEY, BANS, 2048)
    alone = made(lambda line: route(read(line), ROUTER, KEY, BANS), raw)
    assert made(reader.read, raw) == made(reader.read, raw) == alone


@pytest.mark.parametrize("read", ENDS)
def test_path_is_read_once_for_all_queries_that_decide_nothing(read: Callable[[bytes], RequestLine]) -> None:
    lines: list[bytes] = []

    def reads(raw: bytes) -> RequestLine:
        lines.append(raw)
        return read(raw)

    end = ENDS[read]
    reader = LineReader(reads, end, ROUTER, KEY, BANS, 2048)
    for path in (b"GET /user/ada/api", b"GET /build/gh/a/b/HEAD"):
        for number in range(10):
            line = reader.read(path + b"?%d" % number + end)
            assert line.target == path[4:] + b"?%d" % number
            assert line.start == b"GET %b HTTP/1.1\r\n" % line.target
    # A launch may have a token in its query.
    assert lines == [
        b"GET /user/ada/api" + end,
        b"GET /build/gh/a/b/HEAD" + end,
        *[b"GET /build/gh/a/b/HEAD?%d" % number + end for number in range(10)],
    ]
