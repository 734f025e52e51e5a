"""HTTP/2 connections that break the protocol, or do harm by it: what they are told, and what is served."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.proxy.test_h2 import h2_edge, visit
from tests.rig import Conn, Ended, Message, answer, guard, per_request, until
from tests.rig.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    H2Client,
    frame,
    request,
)


def number(value: int) -> bytes:
    return struct.pack(">L", value)


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HL", name, value)


# Faults that end the connection: what is sent after a valid beginning, and the code of the GOAWAY

CONNECTION_FAULTS: dict[str, tuple[bytes, str]] = {
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), "protocol_error"),
    "HEADERS on stream 0": (frame(HEADERS, END_HEADERS, 0, b"\x82"), "protocol_error"),
    "HEADERS on an even stream": (
        frame(HEADERS, END_HEADERS | END_STREAM, 2, b"\x82\x86\x84"),
        "protocol_error",
    ),
    "DATA on an idle stream": (frame(DATA, 0, 5, b"x"), "protocol_error"),
    "RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 5, number(8)), "protocol_error"),
    "RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, number(8)), "protocol_error"),
    "RST_STREAM of three bytes": (frame(RST_STREAM, 0, 1, b"abc"), "frame_size_error"),
    "WINDOW_UPDATE on an idle stream": (frame(WINDOW_UPDATE, 0, 5, number(1)), "protocol_error"),
    "WINDOW_UPDATE of 0": (frame(WINDOW_UPDATE, 0, 0, number(0)), "protocol_error"),
    "WINDOW_UPDATE of five bytes": (frame(WINDOW_UPDATE, 0, 0, b"12345"), "frame_size_error"),
    "a window too large": (frame(WINDOW_UPDATE, 0, 0, number(0x7FFFFFFF)), "flow_control_error"),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), "protocol_error"),
    "SETTINGS of five bytes": (frame(SETTINGS, 0, 0, b"12345"), "frame_size_error"),
    "an acknowledgement with settings": (frame(SETTINGS, ACK, 0, setting(4, 1)), "frame_size_error"),
    "an initial window too large": (frame(SETTINGS, 0, 0, setting(4, 1 << 31)), "flow_control_error"),
    "frames too small": (frame(SETTINGS, 0, 0, setting(5, 16_383)), "protocol_error"),
    "frames too large": (frame(SETTINGS, 0, 0, setting(5, 1 << 24)), "protocol_error"),
    "push that is neither": (frame(SETTINGS, 0, 0, setting(2, 2)), "protocol_error"),
    "PING on a stream": (frame(PING, 0, 1, bytes(8)), "protocol_error"),
    "PING of seven bytes": (frame(PING, 0, 0, bytes(7)), "frame_size_error"),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), "protocol_error"),
    "GOAWAY too short": (frame(GOAWAY, 0, 0, bytes(7)), "frame_size_error"),
    "PUSH_PROMISE": (frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + b"\x82"), "protocol_error"),
    "PRIORITY on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), "protocol_error"),
    "PRIORITY of four bytes": (frame(PRIORITY, 0, 1, bytes(4)), "frame_size_error"),
    "PRIORITY_UPDATE on a stream": (frame(PRIORITY_UPDATE, 0, 1, number(1) + b"u=1"), "protocol_error"),
    "PRIORITY_UPDATE of stream 0": (frame(PRIORITY_UPDATE, 0, 0, number(0) + b"u=1"), "protocol_error"),
    "PRIORITY_UPDATE too short": (frame(PRIORITY_UPDATE, 0, 0, b"abc"), "frame_size_error"),
    "CONTINUATION without HEADERS": (frame(CONTINUATION, END_HEADERS, 1, b"\x82"), "protocol_error"),
    "a frame within a head": (frame(HEADERS, 0, 1, b"\x82") + frame(PING, 0, 0, bytes(8)), "protocol_error"),
    "CONTINUATION of another stream": (
        frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, END_HEADERS, 3, b"\x86"),
        "protocol_error",
    ),
    "a frame larger than allowed": (frame(DATA, 0, 1, bytes(16_385)), "frame_size_error"),
    "padding longer than the frame": (
        frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\x09\x82\x86\x84"),
        "protocol_error",
    ),
    "padding without its length": (frame(HEADERS, END_HEADERS | PADDED, 1, b""), "frame_size_error"),
    "a priority cut short": (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0\0"), "protocol_error"),
    "index 0": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), "compression_error"),
    "an index beyond the table": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\x80\x01"),
        "compression_error",
    ),
    "an index without an end": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        "compression_error",
    ),
    "a field cut short": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40\x0aab"), "compression_error"),
    "a table larger than allowed": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe2\x1f\x82"),
        "compression_error",
    ),
    "a table size after a field": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\x20"),
        "compression_error",
    ),
    "three table sizes": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x20\x21\x22\x82"),
        "compression_error",
    ),
    "Huffman with the end of string": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x84\xff\xff\xff\xff\x01a"),
        "compression_error",
    ),
    "Huffman with long padding": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x82\x1f\xff\x01a"),
        "compression_error",
    ),
    "Huffman with zeros for padding": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x81\x00\x01a"),
        "compression_error",
    ),
    "a head of CONTINUATION frames without end": (
        frame(HEADERS, END_STREAM, 1, b"\x82")
        + b"".join(frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b") for _ in range(70)),
        "enhance_your_calm",
    ),
    "a compressed head that is too large": (
        frame(HEADERS, END_STREAM, 1, b"\x82")
        + b"".join(frame(CONTINUATION, 0, 1, bytes(16_384)) for _ in range(5)),
        "enhance_your_calm",
    ),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
async def test_a_fault_of_the_connection_ends_it(name: str) -> None:
    sent, code = CONNECTION_FAULTS[name]
    async with h2_edge(answer()) as running:
        client = await visit(running)
        client.write(sent)
        assert [said for _, said in await client.end()] == [code]
        assert not running.member.requests
        assert running.service.edge.counts.http2_errors[code] == 1
        await until(
            lambda: not running.connections or all(each._linger_until for each in running.connections), "over"
        )


@pytest.mark.parametrize("begin", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\x00", b"PRI * HTTP/2.0\r\n\r\n"])
async def test_a_preface_that_is_none_is_answered_in_http1(begin: bytes) -> None:
    async with h2_edge(answer()) as running:
        client = await running.client()
        client.write(begin)
        client.half_close()
        async with guard():
            how, rest = await client.until_end()
        assert how == "eof"
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")


async def test_the_first_frame_has_to_be_settings() -> None:
    async with h2_edge(answer()) as running:
        client = H2Client(await running.client())
        client.write(PREFACE + frame(PING, 0, 0, bytes(8)))
        assert [code for _, code in await client.end()] == ["protocol_error"]


# Requests that are malformed

MALFORMED: dict[str, list[tuple[bytes, bytes]]] = {
    "no method": [(b":scheme", b"http"), (b":authority", b"hub.test"), (b":path", b"/")],
    "no scheme": [(b":method", b"GET"), (b":authority", b"hub.test"), (b":path", b"/")],
    "no path": [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"hub.test")],
    "no authority": [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")],
    "an empty authority": [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b""),
        (b":path", b"/"),
    ],
    "an authority with a user": [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"a@hub.test"),
        (b":path", b"/"),
    ],
    "an unknown scheme": [
        (b":method", b"GET"),
        (b":scheme", b"ftp"),
        (b":authority", b"hub.test"),
        (b":path", b"/"),
    ],
    "an empty path": [*request(b"")],
    "a path with a space": [*request(b"/a b")],
    "a path with a fragment": [*request(b"/a#b")],
    "a path with a line end": [*request(b"/a HTTP/1.1\r\nX: y")],
    "an absolute path": [*request(b"http://hub.test/")],
    "a path without its slash": [*request(b"a")],
    "an asterisk for GET": [*request(b"*")],
    "two methods": [*request(), (b":method", b"GET")],
    "two paths": [(b":path", b"/x"), *request()],
    "a pseudo-header field after others": [(b":method", b"GET"), (b"x", b"y"), *list(request())[1:]],
    "a status": [*request(), (b":status", b"200")],
    "an unknown pseudo-header field": [*request(), (b":x", b"y")],
    "a protocol without CONNECT": [*request(), (b":protocol", b"websocket")],
    "a method with a space": [*request(method=b"GET /x")],
    "an empty method": [*request(method=b"")],
    "another host": [*request(), (b"host", b"evil.test")],
    "two hosts": [*request(), (b"host", b"hub.test"), (b"host", b"hub.test")],
    "a name in upper case": [*request(), (b"X-Case", b"y")],
    "an empty name": [*request(), (b"", b"y")],
    "a colon in a name": [*request(), (b"a:b", b"y")],
    "a colon and a space in a name": [*request(), (b"a: b", b"y")],
    "a space in a name": [*request(), (b"a b", b"y")],
    "a line end in a name": [*request(), (b"a\r\nb", b"y")],
    "a line end in a value": [*request(), (b"a", b"y\r\nx: z")],
    "a line feed in a value": [*request(), (b"a", b"y\nx: z")],
    "a carriage return in a value": [*request(), (b"a", b"y\rz")],
    "a zero byte in a value": [*request(), (b"a", b"y\0z")],
    "a space before a value": [*request(), (b"a", b" y")],
    "a tab after a value": [*request(), (b"a", b"y\t")],
    "a line end in a cookie": [*request(), (b"cookie", b"a=b\r\nx: y")],
    "transfer-encoding": [*request(), (b"transfer-encoding", b"chunked")],
    "connection": [*request(), (b"connection", b"close")],
    "keep-alive": [*request(), (b"keep-alive", b"1")],
    "proxy-connection": [*request(), (b"proxy-connection", b"keep-alive")],
    "upgrade": [*request(), (b"upgrade", b"websocket")],
    "te with more than trailers": [*request(), (b"te", b"trailers, deflate")],
    "two lengths": [*request(), (b"content-length", b"0"), (b"content-length", b"0")],
    "a length that is no number": [*request(), (b"content-length", b"+1")],
    "a length and no body": [*request(method=b"POST"), (b"content-length", b"1")],
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_request_is_refused_and_others_are_served(name: str) -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        first = await client.ask(MALFORMED[name])
        assert first.status == 400
        await client.until(lambda: first.reset)
        assert first.reset == "protocol_error"
        assert (await client.ask(request(b"/next"))).body == b"ok"
        assert [asked.target for asked in running.member.requests] == [b"/next"]
        refused, _ = await running.logged(2)
        assert (refused["status"], refused["protocol"], refused["termination"]) == (400, "HTTP/2.0", "PR")


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"hub.test:443")], 405),
        (request(method=b"TRACE"), 405),
        ([*request(method=b"CONNECT"), (b":protocol", b"connect-udp")], 501),
        (request(b"/" + b"x" * 40_000), 414),
        (request(b"/", *[(b"x-%d" % number, b"y" * 1000) for number in range(40)]), 431),
        ([*request(method=b"POST"), (b"content-length", b"999999999999")], 413),
    ],
)
async def test_what_is_not_served_is_answered(pairs: list[tuple[bytes, bytes]], status: int) -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        stream = client.next
        client.next += 2
        block = client.encoder.encode([*pairs])
        first, rest = block[:16_384], [block[at : at + 16_384] for at in range(16_384, len(block), 16_384)]
        client.write(frame(HEADERS, 0 if rest else END_HEADERS, stream, first))
        for part in rest:
            client.write(frame(CONTINUATION, END_HEADERS if part is rest[-1] else 0, stream, part))
        response = await client.response(stream)
        assert (response.status, response.ended) == (status, True)
        assert (await client.ask(request(b"/next"))).body == b"ok"
        assert [asked.target for asked in running.member.requests] == [b"/next"]


@pytest.mark.parametrize("declared", [b"3", b"7"])
async def test_a_body_that_is_not_as_long_as_it_says(declared: bytes) -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running)
        stream = client.head(request(b"/", (b"content-length", declared), method=b"POST"), end=False)
        client.data(stream, b"hello", end=True)
        response = await client.response(stream)
        await client.until(lambda: response.reset)
        assert (response.status, response.reset) == (400, "protocol_error")


async def test_trailers_that_are_none() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        await conn.stall()

    for trailers, end in (([(b":path", b"/")], True), ([(b"x", b"y")], False), ([(b"X", b"y")], True)):
        async with h2_edge(script) as running:
            client = await visit(running)
            stream = client.head(request(b"/", method=b"POST"), end=False)
            client.data(stream, b"hello")
            client.head(trailers, stream=stream, end=end)
            response = await client.response(stream)
            await client.until(lambda response=response: response.reset)
            assert response.reset == "protocol_error"


# Streams in the wrong state


async def waiting(conn: Conn) -> None:
    conn.member.requests.append(await conn.head())
    await conn.stall()


STREAM_FAULTS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "DATA after its end": (lambda stream: frame(DATA, 0, stream, b"x"), "stream_closed"),
    "a window of 0": (lambda stream: frame(WINDOW_UPDATE, 0, stream, number(0)), "protocol_error"),
    "a window too large": (
        lambda stream: frame(WINDOW_UPDATE, 0, stream, number(0x7FFFFFFF)),
        "flow_control_error",
    ),
    "HEADERS after its end": (
        lambda stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x82"),
        "stream_closed",
    ),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_a_fault_of_a_stream_resets_it_alone(name: str) -> None:
    make, code = STREAM_FAULTS[name]
    async with h2_edge(waiting) as running:
        client = await visit(running)
        stream, other = client.head(request()), client.head(request())
        await until(lambda: running.member.has(2), "asked")
        client.write(make(stream))
        assert (await client.response(stream)).reset == code
        assert not client.streams[other].over and not client.goaways


async def test_more_than_a_window_is_a_fault() -> None:
    async with h2_edge(waiting) as running:
        client = await visit(running)
        stream = client.head(request(b"/", (b"expect", b"100-continue"), method=b"POST"), end=False)
        await until(lambda: running.member.has(1), "asked")
        (connection,) = running.connections
        connection.machine.streams[stream].held = True
        client.data(stream, bytes(client.settings[4] + 1))
        assert (await client.response(stream)).reset == "flow_control_error"


async def test_a_stream_that_is_closed_stays_closed() -> None:
    def data(client: H2Client) -> bytes:
        return frame(DATA, 0, 1, b"x")

    def headers(client: H2Client) -> bytes:
        return frame(HEADERS, END_HEADERS | END_STREAM, 1, client.encoder.encode([*GET]))

    async with h2_edge(answer()) as running:
        for again in (data, headers):
            client = await visit(running)
            await client.ask(request())
            client.write(frame(WINDOW_UPDATE, 0, 1, number(5)) + frame(PRIORITY, 0, 1, bytes(5)))
            client.write(frame(RST_STREAM, 0, 1, number(8)))
            assert (await client.ask(request())).status == 200
            client.write(again(client))
            assert [code for _, code in await client.end()] == ["stream_closed"]


async def test_more_streams_than_allowed_are_refused() -> None:
    async with h2_edge(waiting, limits={"streams": 3}) as running:
        client = await visit(running)
        assert client.settings[3] == 3
        streams = [client.head(request()) for _ in range(5)]
        assert (await client.response(streams[3])).reset == "refused_stream"
        assert (await client.response(streams[4])).reset == "refused_stream"
        await until(lambda: running.member.has(3), "asked")


# Floods

FLOODS: dict[str, tuple[Callable[[H2Client], bytes], str]] = {
    "PING (CVE-2019-9512)": (lambda _client: frame(PING, 0, 0, bytes(8)), "http2_pings"),
    "SETTINGS (CVE-2019-9515)": (lambda _client: frame(SETTINGS, 0, 0), "http2_settings"),
    "PRIORITY (CVE-2019-9513)": (lambda _client: frame(PRIORITY, 0, 1, bytes(5)), "http2_priorities"),
    "PRIORITY_UPDATE": (lambda _client: frame(PRIORITY_UPDATE, 0, 0, number(1) + b"u=1"), "http2_priorities"),
    "WINDOW_UPDATE": (lambda _client: frame(WINDOW_UPDATE, 0, 0, number(1)), "http2_window_updates"),
    "unknown frames": (lambda _client: frame(0x55, 0, 0, b"x"), "http2_unknown_frames"),
    "GOAWAY": (lambda _client: frame(GOAWAY, 0, 0, bytes(8)), "http2_unknown_frames"),
    "RST_STREAM of what is over (CVE-2019-9514)": (
        lambda _client: frame(RST_STREAM, 0, 1, number(8)),
        "http2_resets",
    ),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection(name: str) -> None:
    make, reason = FLOODS[name]
    async with h2_edge(answer()) as running:
        client = await visit(running)
        await client.ask(request())
        other = await visit(running)
        client.write(make(client) * 3000)
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]
        assert running.service.edge.counts.rejected[reason] == 1
        assert (await other.ask(request())).status == 200


async def test_empty_frames_end_their_connection() -> None:
    """CVE-2019-9518."""
    async with h2_edge(waiting) as running:
        client = await visit(running)
        stream = client.head(request(method=b"POST"), end=False)
        client.write(frame(DATA, 0, stream) * 200)
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]
        assert running.service.edge.counts.rejected["http2_empty_frames"] == 1


async def test_rapid_reset_ends_its_connection() -> None:
    """CVE-2023-44487."""
    async with h2_edge(waiting) as running:
        client = await visit(running)
        for _ in range(400):
            client.write(frame(RST_STREAM, 0, client.head(request()), number(8)))
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]
        assert len(running.member.connections) <= 202


async def test_made_you_reset_ends_its_connection() -> None:
    """CVE-2025-8671: the edge is made to reset."""
    async with h2_edge(waiting) as running:
        client = await visit(running)
        for _ in range(400):
            client.write(frame(WINDOW_UPDATE, 0, client.head(request()), number(0)))
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]


@pytest.mark.parametrize(("times", "ends"), [(10, False), (40, True), (10_000, True)])
async def test_a_head_that_unpacks_to_much_is_refused(times: int, ends: bool) -> None:
    """A bomb: one field of 4 KB in the table, many times."""
    async with h2_edge(answer()) as running:
        client = await visit(running)
        await client.ask(request(b"/", (b"x-bomb", b"y" * 4000)))
        block = client.encoder.encode([*request()]) + b"\xbf" * times
        client.write(frame(HEADERS, END_HEADERS | END_STREAM, 3, block))
        client.next = 5
        if ends:
            assert [code for _, code in await client.end()] == ["enhance_your_calm"]
            assert running.service.edge.counts.rejected["http2_head"] == 1
        else:
            assert (await client.response(3)).status == 431
            assert (await client.ask(request())).status == 200


async def test_one_setting_said_many_times_is_done_once() -> None:
    async with h2_edge(waiting) as running:
        client = await visit(running)
        for _ in range(100):
            client.head(request())
        await until(lambda: running.member.has(100), "asked")
        (connection,) = running.connections
        flips = (setting(4, 0x7FFFFFF) + setting(4, 5)) * 1000
        client.write(frame(SETTINGS, 0, 0, flips))
        streams = connection.machine.streams
        await until(lambda: {stream.window for stream in streams.values()} == {5}, "resized")
        client.write(frame(SETTINGS, 0, 0, setting(4, 70_000) + setting(4, 1 << 31)))
        assert [code for _, code in await client.end()] == ["flow_control_error"]


@pytest.mark.parametrize("body", ["too long", "trailers without an end", "too short"])
async def test_requests_that_are_broken_off_are_counted(body: str) -> None:
    """CVE-2025-8671 in its other forms: the edge is made to answer and to reset."""
    async with h2_edge(waiting) as running:
        client = await visit(running)
        for _ in range(400):
            stream = client.head(request(b"/", (b"content-length", b"5"), method=b"POST"), end=False)
            client.data(stream, b"abc")
            if body == "too long":
                client.data(stream, b"defg")
            elif body == "too short":
                client.data(stream, b"", end=True)
            else:
                client.head([(b"x", b"y")], stream=stream, end=False)
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]
        assert running.service.edge.counts.rejected["http2_resets"] == 1


async def test_malformed_heads_end_their_connection() -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        for stream in range(1, 1001, 2):
            client.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x82"))
        assert [code for _, code in await client.end()] == ["enhance_your_calm"]


async def test_many_requests_at_once_let_others_in_between() -> None:
    """What one read brings is not all begun in one turn of the loop."""
    async with h2_edge(answer(), routes=[{"path": "/here", "status": 404}]) as running:
        client = await visit(running)
        (connection,) = running.connections
        head = client.encoder.encode([*request(b"/here", method=b"HEAD")])
        again = client.encoder.encode([*request(b"/here", method=b"HEAD")])
        heads = [frame(HEADERS, END_HEADERS | END_STREAM, 1, head)]
        heads += [frame(HEADERS, END_HEADERS | END_STREAM, stream, again) for stream in range(3, 2001, 2)]
        begun: list[int] = []
        take = connection.machine.receive

        def receive(data: bytes) -> object:
            begun.append(connection.machine.served)
            return take(data)

        if not hasattr(type(connection.machine), "__mypyc_attrs__"):
            # Compiled, a method cannot be replaced; the source is the same.
            type(connection.machine).receive, before = (lambda _self, data: receive(data)), take.__func__
        try:
            client.write(b"".join(heads))
            await client.until(lambda: client.streams[1999].ended)
        finally:
            if not hasattr(type(connection.machine), "__mypyc_attrs__"):
                type(connection.machine).receive = before
        assert all(client.streams[stream].status == 404 for stream in range(1, 2001, 2))
        assert all(after - at <= 48 for at, after in pairwise(begun))


async def test_a_peer_that_reads_nothing_is_not_answered_without_end() -> None:
    last = 2 * 5_000 - 1
    async with h2_edge(answer(), routes=[{"path": "/here", "status": 404}]) as running:
        raw = await running.client(receive_buffer=4096)
        client = await H2Client(raw).begin()
        (connection,) = running.connections
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        first, again = (client.encoder.encode([*request(b"/here", method=b"HEAD")]) for _ in range(2))
        heads = [frame(HEADERS, END_HEADERS | END_STREAM, 1, first)]
        heads += [frame(HEADERS, END_HEADERS | END_STREAM, stream, again) for stream in range(3, last + 2, 2)]
        client.write(b"".join(heads))
        await until(lambda: connection._stuffed and not connection.reading, "stuffed")
        served = connection.machine.served
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection.machine.served == served < 5_000 and connection.unsent() < 1_000_000
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.until(lambda: client.streams[last].ended)


async def test_no_member_is_asked_for_requests_that_are_taken_back_at_once() -> None:
    """CVE-2023-44487."""
    async with h2_edge(answer()) as running:
        client = await visit(running)
        block = b"\x82\x86\x84\x41\x01h"
        client.write(
            b"".join(
                frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
                + frame(RST_STREAM, 0, stream, number(8))
                for stream in range(1, 41, 2)
            )
        )
        client.next = 41
        assert (await client.ask(request(b"/after"))).status == 200
        assert [asked.target for asked in running.member.requests] == [b"/after"]
        assert len(await running.logged()) == 1


async def test_a_response_that_waits_is_not_answered_a_second_time() -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await conn.stall()

    async with h2_edge(script) as running:
        client = await visit(running, windows=False, settings=setting(4, 0))
        stream = client.head(request(b"/", (b"content-length", b"5"), method=b"POST"), end=False)
        client.data(stream, b"ab")
        await client.until(lambda: client.streams[stream].heads)
        client.data(stream, b"cdefgh")
        response = await client.response(stream)
        assert (response.statuses, response.reset, response.body) == ([200], "protocol_error", b"")
        (line,) = await running.logged()
        assert (line["bytes_out"], line["termination"]) == (0, "CD")


async def test_one_byte_windows_keep_little() -> None:
    """CVE-2019-9511 and 9517: large answers, and a visitor who takes next to nothing of each."""
    size = 300_000

    async def handle(conn: Conn, asked: Message) -> None:
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        conn.send(bytes(size))
        await conn.flush()

    async with h2_edge(per_request(handle)) as running:
        client = await visit(running, windows=False, settings=setting(4, 1))
        client.write(frame(WINDOW_UPDATE, 0, 0, number(1_000_000_000)))
        streams = [client.head(request()) for _ in range(100)]
        (connection,) = running.connections
        await until(
            lambda: len(running.upstreams) == 100 and not any(each.reading for each in running.upstreams),
            "no member is read",
        )
        assert connection.crowded
        assert connection.machine.held_up < 10 * 1024 * 1024
        client.write(b"".join([frame(WINDOW_UPDATE, 0, stream, number(1_000_000)) for stream in streams]))
        for stream in streams:
            assert len((await client.response(stream)).body) == size
        assert connection.machine.held_up == 0 and not connection.crowded


async def test_no_ping_is_no_end() -> None:
    async with h2_edge(answer()) as running:
        client = await visit(running)
        for _ in range(3):
            client.write(frame(PING, 0, 0, b"12345678"))
        await client.until(lambda: len([each for each in client.frames if each.kind == PING]) == 3)
        with pytest.raises(Ended):
            client.client.close()
            await client.frame()
