import gc
from collections.abc import Callable

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.errors import BadRequest, HeadTooLarge, MethodRefused, TargetTooLong, VisitorError
from fedproxy.http.request import Forwarded, HeaderBlock, Hop, host_name
from fedproxy.wire.h1.client import is_answered
from fedproxy.wire.h1.request import BlockReader, find_end, read_line, with_host
from tests.attributes import held

READER = BlockReader("fedproxy_member", "https://mybinder.org", trusted=False)
TRUSTING = BlockReader("fedproxy_member", None, trusted=True)


def block(*lines: bytes, reader: BlockReader = READER) -> HeaderBlock:
    return reader.read(b"\r\n".join((*lines, b"", b"")))


def sent(read: HeaderBlock) -> list[bytes]:
    return read.lines.removesuffix(b"\r\n").split(b"\r\n")


def test_origin_form_keeps_its_raw_target() -> None:
    line = read_line(b"GET /build/gh/a%2Fb//c%7E?x=1?y HTTP/1.1")
    assert (line.method, line.target, line.path) == (
        b"GET",
        b"/build/gh/a%2Fb//c%7E?x=1?y",
        b"/build/gh/a%2Fb//c%7E",
    )
    assert line.start == b"GET /build/gh/a%2Fb//c%7E?x=1?y HTTP/1.1\r\n"
    assert not line.http10 and line.idempotent and not line.is_head and line.authority is None


def test_version_10_and_head_are_told_apart() -> None:
    line = read_line(b"HEAD / HTTP/1.0")
    assert line.http10 and line.is_head
    assert not read_line(b"POST / HTTP/1.1").idempotent


@pytest.mark.parametrize(
    ("line", "target", "authority"),
    [
        (b"GET http://mybinder.org/a?b HTTP/1.1", b"/a?b", b"mybinder.org"),
        (b"GET HTTPS://h:8443 HTTP/1.1", b"/", b"h:8443"),
        (b"GET http://h?q HTTP/1.1", b"/?q", b"h"),
        (b"OPTIONS http://h HTTP/1.1", b"*", b"h"),
        (b"OPTIONS * HTTP/1.1", b"*", None),
    ],
)
def test_other_forms_of_target_become_origin_form(
    line: bytes, target: bytes, authority: bytes | None
) -> None:
    read = read_line(line)
    assert (read.target, read.authority) == (target, authority)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"GET / http/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /#f HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /\xc3\xa4 HTTP/1.1",
        b"GET /\r HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET a HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET ftp://h/ HTTP/1.1",
        b"GET http:///a HTTP/1.1",
        b"GET http://user@h/ HTTP/1.1",
        b"GET http://a,b/ HTTP/1.1",
    ],
)
def test_malformed_request_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequest):
        read_line(line)


@pytest.mark.parametrize("line", [b"TRACE / HTTP/1.1", b"CONNECT h:443 HTTP/1.1"])
def test_trace_and_connect_are_refused_as_methods(line: bytes) -> None:
    with pytest.raises(MethodRefused):
        read_line(line)


def test_end_to_end_fields_pass_in_order_with_their_bytes() -> None:
    read = block(b"Host: h", b"X-A:  1", b"x-b: 2 ", b"X-a: 3", b"Accept: */*")
    assert sent(read) == [
        b"X-A:  1",
        b"x-b: 2 ",
        b"X-a: 3",
        b"Accept: */*",
        b"X-Forwarded-Host: h",
        b"Origin: https://mybinder.org",
        b"Via: 1.1 fedproxy",
    ]
    assert read.plain and read.host == b"h"


def test_origin_of_the_visitor_is_not_replaced() -> None:
    assert sent(block(b"Host: h", b"Origin: null"))[0] == b"Origin: null"
    assert b"Origin: https://mybinder.org" not in sent(block(b"Host: h", b"Origin: null"))


def test_hop_by_hop_fields_do_not_pass() -> None:
    read = block(
        b"Host: h",
        b"Connection: keep-alive, X-Gone",
        b"Keep-Alive: 5",
        b"TE: trailers",
        b"Trailer: X",
        b"Proxy-Authorization: x",
        b"X-Gone: 1",
        b"X-Stays: 1",
    )
    assert sent(read)[0] == b"X-Stays: 1"
    assert not any(line.startswith((b"X-Gone", b"TE", b"Trailer", b"Keep", b"Proxy")) for line in sent(read))
    assert read.keep_alive and not read.close


def test_naming_host_via_or_origin_in_connection_removes_nothing() -> None:
    read = block(
        b"Host: h",
        b"Via: 1.0 x",
        b"Origin: o",
        b"Connection: host, via, origin, x-forwarded-host, content-length",
        b"Content-Length: 3",
    )
    assert sent(read) == [
        b"Via: 1.0 x",
        b"Origin: o",
        b"X-Forwarded-Host: h",
        b"Content-Length: 3",
        b"Via: 1.1 fedproxy",
    ]


def test_connection_close_is_seen_and_wins() -> None:
    read = block(b"Host: h", b"Connection: Keep-Alive", b"connection: Close")
    assert read.close and not read.keep_alive and not read.plain


@pytest.mark.parametrize(
    "lines",
    [
        (b"Host: h", b"Host: h"),
        (b"Host: a b",),
        (b"Host: ", b"Host: h"),
        (b"Host: :80",),
        (b"Host: h:port",),
        (b"Host: a,b",),
        (b"Host: [::1",),
        (b"Host : h",),
        (b" Host: h",),
        (b"Host: h", b" folded"),
        (b"Host: h", b"\tfolded"),
        (b"Host: h", b"no colon"),
        (b"Host: h", b": no name"),
        (b"Host: h", b"X: a\rb"),
        (b"Host: h", b"X: a\nb"),
        (b"Host: h", b"X: a\x00b"),
        (b"Host: h", b"X: \x7f"),
        (b"Host: h", b"X\xff: a"),
        (b"Host: h", b"Content-Length: +1"),
        (b"Host: h", b"Content-Length: -1"),
        (b"Host: h", b"Content-Length: 1, 1"),
        (b"Host: h", b"Content-Length: 1 1"),
        (b"Host: h", b"Content-Length: 0x1"),
        (b"Host: h", b"Content-Length:"),
        (b"Host: h", b"Content-Length: 9999999999999999999"),
        (b"Host: h", b"Content-Length: 1", b"Content-Length: 2"),
        (b"Host: h", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        (b"Host: h", b"Transfer-Encoding: chunked", b"Content-Length: 1"),
        (b"Host: h", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Host: h", b"Transfer-Encoding: gzip, chunked"),
        (b"Host: h", b"Transfer-Encoding: chunked, identity"),
        (b"Host: h", b"Transfer-Encoding: xchunked"),
        (b"Host: h", b"Transfer-Encoding: \x0bchunked"),
        (b"Host: h", b"Transfer-Encoding:"),
    ],
)
def test_malformed_or_ambiguous_block_is_refused(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(BadRequest):
        block(*lines)


@pytest.mark.parametrize(
    "host", [b"h", b"h.", b"h:80", b"h:", b"[::1]", b"[::1]:8080", b"127.0.0.1:1", b"a_b.c-d"]
)
def test_valid_host_is_accepted(host: bytes) -> None:
    assert block(b"Host: " + host).host == host


@pytest.mark.parametrize("line", [b"Host:", b"host: \t"])
def test_host_may_be_empty_and_then_none_is_passed_on(line: bytes) -> None:
    read = block(line)
    assert read.host == b"" and read.plain
    assert not any(each.startswith(b"X-Forwarded-Host") for each in sent(read))
    assert read.words() == ("", "", "")


def test_affinity_cookie_is_taken_out_and_the_others_stay() -> None:
    read = block(b"Host: h", b"Cookie: a=1; fedproxy_member=gesis; b=2", b"cookie: fedproxy_member=other")
    assert read.cookie == b"gesis;other"
    assert b"Cookie: a=1; b=2" in sent(read)
    assert not any(b"fedproxy_member" in line for line in sent(read))


def test_cookie_without_a_value_does_not_hide_the_next_one() -> None:
    lines = (b"Cookie: fedproxy_member=", b"cookie: fedproxy_member=other", b"cookie: a=1")
    assert block(b"Host: h", *lines).cookie == b"other"
    assert block(b"Host: h", *lines[::-1]).cookie == b"other;"


def test_cookie_that_only_looks_like_the_affinity_cookie_passes() -> None:
    read = block(b"Host: h", b"Cookie: xfedproxy_member=a")
    assert read.cookie is None
    assert sent(read)[-1] == b"Cookie: xfedproxy_member=a"


def test_cookies_are_read_alike_wherever_and_however_they_are_written() -> None:
    for lines in (
        (b"Cookie: fedproxy_member=x; a=b", b"Host: h"),
        (b"Host: h", b"Cookie: fedproxy_member=x; a=b"),
        (b"Host: h", b"cookie:fedproxy_member=x; a=b"),
        (b"Host: h", b"Cookie: a=b", b"Cookie: fedproxy_member=x"),
        (b"Host: h", b"Cookie: fedproxy_member=x", b"Cookie: a=b"),
    ):
        read = block(*lines)
        assert read.cookie == b"x"
        assert [line for line in sent(read) if line.lower().startswith(b"cookie")] == [b"Cookie: a=b"]


DIFFERING = (
    b"Cookie: a=b",
    b"Cookie: fedproxy_member=x",
    b"Cookie: fedproxy_member=x; a=b",
    b"Cookie: ",
    b"Cookie:   ",
    b"cookie: c=d",
    b"Referer: https://r/",
    b"Referer: ",
    b"Referer:  \xe9 ",
    b"referer: https://other/",
    b"REFERER: https://r/",
    b'If-None-Match: "x"',
    b'if-none-match: W/"x"',
    b"If-Modified-Since: Mon, 03 Aug 2026 10:00:00 GMT",
    b"Referer: \0",
    b"If-None-Match: \x7f",
)
SAME = (
    b"Host: h",
    b"host: h",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Connection: referer",
    b"Connection: Cookie, If-None-Match",
    b"Content-Length: 3",
    b"Expect: 100-continue",
    b"X-Request-ID: r",
    b"User-Agent: test",
    b"X: y",
)


def meaning(read: Callable[[bytes], HeaderBlock], raw: bytes) -> object:
    """All that a block says, with its lines for the member by their names; or the error."""
    try:
        found = read(raw)
    except VisitorError as error:
        return type(error)
    lines: dict[bytes, list[bytes]] = {}
    for line in sent(found):
        name, _, value = line.partition(b":")
        lines.setdefault(name.lower(), []).append(value.strip(b" \t"))
    how = ("raw", "lines", "like", "referer", "mixed", "_words", "_without")
    return lines, found.words(), held(found, but=how)


@given(st.lists(st.sampled_from(SAME + DIFFERING), max_size=7))
def test_block_means_the_same_whichever_of_its_lines_were_seen_before(lines: list[bytes]) -> None:
    reader = BlockReader("fedproxy_member", "https://mybinder.org", trusted=False)
    raw = b"\r\n".join((*lines, b"", b""))
    each = meaning(reader._read_lines, raw)
    assert meaning(reader.read, raw) == meaning(reader.read, raw) == each


@pytest.mark.parametrize("lower", [False, True])
def test_lines_that_differ_each_time_do_not_have_the_others_read_again(lower: bool) -> None:
    reader = BlockReader("fedproxy_member", None, trusted=False)
    known = []
    for number in range(10):
        lines = [b"Host: h", b"User-Agent: test", b"Cookie: a=%d" % number, b"Referer: https://r/%d" % number]
        lines += [b'If-None-Match: "%d"' % number, b"If-Modified-Since: %d" % number]
        if lower:
            lines = [line.replace(name, name.lower()) for line in lines for name in [line.partition(b":")[0]]]
        read = block(*lines, reader=reader)
        known.append(read.like)
        assert read.words() == ("h", "test", f"https://r/{number}")
        assert {line.lower() for line in lines[2:]} <= {line.lower() for line in sent(read)}
    assert known[0] is not None and known.count(known[0]) == 10


@pytest.mark.parametrize("lines", [(b"Referer: https://r/", b"REFERER: https://other/"), (b"If-Match: a",)])
def test_line_that_differs_in_its_spelling_or_meaning_is_read_with_the_others(
    lines: tuple[bytes, ...],
) -> None:
    reader = BlockReader("fedproxy_member", None, trusted=False)
    for _ in range(2):
        assert {*sent(block(b"Host: h", *lines, reader=reader))} >= {*lines}


@pytest.mark.parametrize("cookies", [(), (b"Cookie: a=b",)])
def test_words_for_the_log_are_those_that_were_sent_or_empty(cookies: tuple[bytes, ...]) -> None:
    known = block(b"Host: h", b"User-Agent: \xe9", b"Referer: https://r/", *cookies)
    assert known.words() == known.words() == ("h", "\xe9", "https://r/")
    assert block(b"Accept: a", *cookies).words() == ("", "", "")


@pytest.mark.parametrize("differing", [(), (b"Cookie: a=b", b"Referer: https://r/2")])
@pytest.mark.parametrize("known", [False, True])
def test_block_without_origin_has_the_same_words_and_does_not_hold_its_origin(
    differing: tuple[bytes, ...], known: bool
) -> None:
    """Two that refer to each other would be kept until memory is collected."""
    reader = BlockReader("fedproxy_member", "https://mybinder.org", trusted=False)
    lines = (b"Host: h", b"User-Agent: test", *differing)
    read, again = block(*lines, reader=reader), block(*lines, reader=reader)
    if known:
        read.words()
    without = read.without_origin()
    assert without is read.without_origin() and without is not read
    assert not any(each is read for each in gc.get_referents(without))
    assert without.words() == again.words() == ("h", "test", "https://r/2" if differing else "")


def test_cookie_of_white_space_is_none() -> None:
    assert not [line for line in sent(block(b"Host: h", b"Cookie:   ")) if line.startswith(b"Cookie")]


def test_malformed_cookie_line_is_refused() -> None:
    with pytest.raises(BadRequest):
        block(b"Host: h", b"Cookie: a=\x00")


def test_fields_with_underscores_that_imitate_the_edges_own_are_dropped() -> None:
    read = block(b"Host: h", b"X_Forwarded_For: 1", b"x-real_ip: 1", b"Content_Length: 5", b"my_own: 1")
    assert sent(read)[0] == b"my_own: 1"
    assert len(sent(read)) == 4


def test_forwarding_fields_of_an_untrusted_peer_are_dropped() -> None:
    read = block(b"Host: h", b"X-Forwarded-For: 1.1.1.1", b"X-Real-IP: 1.1.1.1", b"Forwarded: for=1.1.1.1")
    assert sent(read)[0] == b"X-Forwarded-Host: h"
    assert read.forwarded == Forwarded()


def test_forwarding_fields_of_a_trusted_peer_are_kept_apart() -> None:
    read = block(
        b"Host: h",
        b"X-Forwarded-For: 1.1.1.1",
        b"X-Forwarded-For: 2.2.2.2",
        b"X-Real-IP: 3.3.3.3",
        b"X-Forwarded-Proto: HTTPS",
        b"X-Forwarded-Host: outer",
        reader=TRUSTING,
    )
    assert read.forwarded == Forwarded(b"1.1.1.1, 2.2.2.2", b"3.3.3.3", b"https", b"outer")
    assert sent(read) == [b"X-Forwarded-Host: outer", b"Via: 1.1 fedproxy"]
    assert block(b"Host: h", b"X-Forwarded-Host: a b", reader=TRUSTING).forwarded.host is None


def test_forwarded_of_a_trusted_peer_is_kept_and_names_the_host() -> None:
    read = block(
        b"Host: h",
        b"Forwarded: for=1.1.1.1;host=one, for=2.2.2.2;proto=https;host=two",
        b"Forwarded: for=3.3.3.3",
        reader=TRUSTING,
    )
    assert read.forwarded.hops == (
        Hop(b"1.1.1.1", None, b"one"),
        Hop(b"2.2.2.2", b"https", b"two"),
        Hop(b"3.3.3.3"),
    )
    assert sent(read) == [b"X-Forwarded-Host: two", b"Via: 1.1 fedproxy"]


@pytest.mark.parametrize(
    "lines",
    [
        [b'Forwarded: for=1.1.1.1;host="a b"'],
        [b"Forwarded: for=1.1.1.1"],
        [b"X-Forwarded-For: 1.1.1.1", b"Forwarded: host=other"],
    ],
)
def test_host_is_the_requests_own_if_no_proxy_names_one(lines: list[bytes]) -> None:
    assert sent(block(b"Host: h", *lines, reader=TRUSTING))[0] == b"X-Forwarded-Host: h"


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        (b"Hub.test", b"hub.test"),
        (b"hub.test:8080", b"hub.test"),
        (b"[2001:DB8::1]", b"[2001:db8::1]"),
        (b"[2001:db8::1]:8080", b"[2001:db8::1]"),
        (b"[2001:0DB8:0:0::0001]:8080", b"[2001:db8::1]"),
        (b"[1.2.3]", b"[1.2.3]"),
        (b"Hub.test.", b"hub.test"),
        (b"hub.test.:8080", b"hub.test"),
        (b"hub.test..", b"hub.test."),
        (b".", b""),
        (b"", b""),
    ],
)
def test_name_of_a_host_has_one_spelling_and_no_port(authority: bytes, name: bytes) -> None:
    assert host_name(authority) == name


def test_block_is_banned_by_its_user_agent() -> None:
    reader = BlockReader("fedproxy_member", None, trusted=False, ban=lambda agent: agent in (b"bad", b""))
    assert block(b"Host: h", b"user-agent: bad", reader=reader).banned
    assert block(b"Host: h", b"Cookie: a=b", b"User-Agent: bad", reader=reader).banned
    assert block(b"Host: h", reader=reader).banned
    assert not block(b"Host: h", b"Cookie: a=b", b"User-Agent: good", reader=reader).banned
    assert not block(b"Host: h", b"User-Agent: bad").banned


def test_block_is_banned_by_any_of_its_user_agents() -> None:
    reader = BlockReader("fedproxy_member", None, trusted=False, ban=lambda agent: agent in (b"bad", b""))
    assert block(b"Host: h", b"User-Agent: good", b"USER-AGENT: bad", reader=reader).banned
    assert block(b"Host: h", b"User-Agent: good", b"User-Agent:", reader=reader).banned
    assert not block(b"Host: h", b"User-Agent: good", b"User-Agent: too", reader=reader).banned


def test_ids_are_taken_when_valid_and_only_the_first() -> None:
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    read = block(b"Host: h", b"X-Request-ID: r1", b"x-request-id: r2", b"traceparent: " + trace)
    assert (read.request_id, read.traceparent) == (b"r1", trace)
    read = block(
        b"Host: h", b'X-Request-ID: a"b', b"traceparent: 00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01"
    )
    assert (read.request_id, read.traceparent) == (None, None)


@pytest.mark.parametrize("value", [b"web socket", b"a/", b"/1", b"a/b/c", b"a;b", b"a, b c", b"\xe9", b'"a"'])
def test_upgrade_that_names_no_protocol_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest):
        block(b"Host: h", b"Upgrade: " + value)


def test_upgrade_in_several_lines_is_one_list() -> None:
    lines = (b"Host: h", b"Connection: Upgrade", b"Upgrade: foo/1.1")
    assert block(*lines, b"Upgrade: websocket").upgrade == b"foo/1.1, websocket"
    assert block(*lines, b"Upgrade: h2c").upgrade is None
    assert block(b"Host: h", b"Connection: Upgrade", b"Upgrade: ,").upgrade is None


@pytest.mark.parametrize(
    ("asked", "by", "answered"),
    [
        (b"websocket", b"WebSocket", True),
        (b"foo/1, websocket", b"foo/1", True),
        (b"foo/1, bar", b"bar, foo/1", True),
        (b"websocket", None, False),
        (b"websocket", b"", False),
        (b"websocket", b"websocket, h2c", False),
        (b"foo/1", b"foo/2", False),
    ],
)
def test_101_answers_what_was_asked_for(asked: bytes, by: bytes | None, answered: bool) -> None:
    assert is_answered(asked, by) is answered


def test_upgrade_needs_connection_and_no_body() -> None:
    assert block(b"Host: h", b"Upgrade: websocket", b"Connection: Upgrade").upgrade == b"websocket"
    assert block(b"Host: h", b"Upgrade: websocket").upgrade is None
    assert block(b"Host: h", b"Upgrade: websocket", b"Connection: close").upgrade is None
    assert (
        block(
            b"Host: h", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: x"
        ).upgrade
        is None
    )
    assert block(b"Host: h", b"Upgrade: websocket, h2c", b"Connection: Upgrade").upgrade is None
    with_body = block(b"Host: h", b"Upgrade: websocket", b"Connection: Upgrade", b"Content-Length: 5")
    assert with_body.upgrade is None


def test_framing_is_sent_on_as_understood() -> None:
    read = block(b"Host: h", b"Transfer-Encoding: CHUNKED")
    assert read.chunked and b"Transfer-Encoding: chunked" in sent(read) and not read.plain
    read = block(b"Host: h", b"Content-Length: 007")
    assert read.length == 7 and b"Content-Length: 7" in sent(read)


def test_expect_is_seen_and_passes() -> None:
    read = block(b"Host: h", b"Expect: 100-continue")
    assert read.expect and sent(read)[0] == b"Expect: 100-continue"


def test_block_without_fields_has_no_host() -> None:
    assert READER.read(b"\r\n\r\n").host is None
    assert READER.read(b"").host is None


def test_value_finds_the_first_field_of_a_name() -> None:
    read = block(b"Host: h", b"User-Agent:  curl ", b"user-agent: other")
    assert read.value(b"user-agent") == b"curl"
    assert read.value(b"referer") == b""
    assert read.values(b"user-agent") == [b"curl", b"other"]


def test_lines_of_accept_are_one_list() -> None:
    assert block(b"Host: h", b"Accept: a/b ", b"ACCEPT:c/d;q=0").accept() == b"a/b,c/d;q=0"
    assert block(b"Host: h").accept() == b""


def test_authority_takes_the_place_of_host() -> None:
    assert with_host(b"A: b\r\nhost: x\r\nC: d\r\n\r\n", b"h:1") == b"Host: h:1\r\nA: b\r\nC: d\r\n\r\n"
    assert with_host(b"", b"h") == b"Host: h\r\n\r\n"


TRICKS = st.sampled_from(
    [
        b"Content-Length: 3",
        b"Content-Length: 03",
        b"Content-Length: +3",
        b"Content-Length : 3",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\tchunked ",
        b"Transfer_Encoding: chunked",
        b"X: \x0bchunked",
        b"Connection: close, content-length",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Host: other",
        b" X: folded",
        b"X: a",
        b"x: b",
        b"X-Forwarded-For: 6.6.6.6",
        b"Via: 1.1 other",
        b"Cookie: fedproxy_member=a; b=c",
        b"Expect: 100-continue",
        b"",
    ]
)
LINES = st.lists(st.one_of(TRICKS, st.binary(max_size=12)), max_size=8)


class Told:
    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))


@given(LINES)
def test_what_is_accepted_is_accepted_by_others_and_what_is_forwarded_means_the_same(
    lines: list[bytes],
) -> None:
    try:
        read = block(b"Host: h", *[line for line in lines if line])
    except BadRequest:
        return
    head = b"POST / HTTP/1.1\r\nHost: m\r\n" + read.lines + b"\r\n"
    told = Told()
    httptools.HttpRequestParser(told).feed_data(head)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    # llhttp and h11 trim white space alike; h11 lowers names as `Told` does.
    assert [(name, value.strip()) for name, value in told.fields] == [
        (bytes(n), bytes(v)) for n, v in event.headers
    ]
    fields = dict(told.fields)
    assert (fields.get(b"transfer-encoding") == b"chunked") == read.chunked
    assert (int(fields[b"content-length"]) if b"content-length" in fields else None) == read.length
    assert not {b"connection", b"upgrade", b"te", b"x-forwarded-for"} & fields.keys()
    assert b"fedproxy_member" not in fields.get(b"cookie", b"")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for read in (read_line, lambda data: READER.read(data + b"\r\n\r\n")):
        try:
            read(raw)
        except (BadRequest, MethodRefused):
            continue


def test_cookie_whose_name_only_ends_like_ours_is_passed_on_in_each_line() -> None:
    found = block(b"Host: h", b"Cookie: a=1", b"Cookie: my_fedproxy_member=x")
    assert found.cookie is None
    assert b"Cookie: a=1\r\nCookie: my_fedproxy_member=x" in found.lines


HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("blank", range(5))
def test_end_of_a_head_is_found_after_a_few_empty_lines(blank: int) -> None:
    assert find_end(b"\r\n" * blank + HEAD + b"rest", 1000) == (HEAD + b"rest", len(HEAD))


@pytest.mark.parametrize("begun", [b"", b"\r", HEAD[:-2], HEAD[:-1], HEAD[:5], b"\r\nGET", HEAD[:-3]])
def test_head_that_may_still_become_valid_is_waited_for(begun: bytes) -> None:
    rest, end = find_end(begun, 1000)
    assert end == 0
    assert rest == begun.removeprefix(b"\r\n")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\r\n" * 5 + HEAD, BadRequest),
        (b" " + HEAD, BadRequest),
        (b"\tGET", BadRequest),
        (b"GET /\nHost", BadRequest),
        (b"GET /\rHost", BadRequest),
        (b"GET /\0", BadRequest),
        (b"GET /" + b"a" * 100, TargetTooLong),
        (b"GET /" + b"a" * 60 + b" HTTP/1.1\r\n" + b"b" * 60, TargetTooLong),
        (b"GET / HTTP/1.1\r\n" + b"b" * 100, HeadTooLarge),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 100 + b"\r\n\r\n", HeadTooLarge),
        # What is too long is said first.
        (b" " + b"a" * 101, TargetTooLong),
    ],
)
def test_head_that_cannot_become_valid_is_refused_at_once(data: bytes, error: type[VisitorError]) -> None:
    with pytest.raises(error):
        find_end(data, 100)


@given(st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"a", b" ", b"\0", b"GET /"])), st.integers(0, 30))
def test_end_does_not_depend_on_what_follows(parts: list[bytes], more: int) -> None:
    data = b"".join(parts)
    try:
        head, end = find_end(data, 40)
    except VisitorError:
        return
    if end:
        assert head[:end].endswith(b"\r\n\r\n")
        assert find_end(data + b"x" * more, 40) == (head + b"x" * more, end)
