"""The reader of event streams, against the grammar of WHATWG HTML section 9.2.5 written out once more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from fedproxy.wire.events import MOST_DATA, EventReader, asked_for
from fedproxy.wire.h1.body import LAST_CHUNK, Chunked, chunk

LINES = st.sampled_from(
    [
        b"",
        b"",
        b"data: {}",
        b"data:x",
        b"data:  two spaces",
        b"data: ",
        b"data",
        b"datax: no",
        b"dat",
        b"Data: no",
        b" data: no",
        b": comment",
        b":data: no",
        b"event: ready",
        b"id: 1",
        b"retry: 5",
        b"\xef\xbb\xbfdata: not at the start",
        b"data: " + b"x" * 40,
        b"y" * 50,
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb", b"\xef\xbb\xbf\xef\xbb\xbf"]))
    lines = draw(st.lists(st.tuples(LINES, ENDS), max_size=14))
    return start + b"".join(line + end for line, end in lines) + draw(LINES)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read(data: list[bytes], most: int = MOST_DATA) -> list[bytes | None]:
    reader = EventReader(most)
    return [event for piece in data for event in reader.feed(piece)]


def by_the_book(data: bytes, most: int) -> list[bytes | None]:
    lines = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events: list[bytes | None] = []
    values: list[bytes] = []
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        if not line:
            if values:
                joined = b"\n".join(values)
                events.append(joined if len(joined) <= most else None)
            values = []
        elif name == b"data":
            values.append(value.removeprefix(b" "))
    return events


@given(streams(), st.lists(st.integers(0, 500), max_size=12), st.sampled_from([30, MOST_DATA]))
def test_any_split_gives_the_events_of_the_grammar(data: bytes, cuts: list[int], most: int) -> None:
    expected = by_the_book(data, most)
    assert read([data], most) == expected
    assert read(pieces(data, cuts), most) == expected
    assert read([data[i : i + 1] for i in range(len(data))], most) == expected


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_are_read_without_an_error(data: bytes, cuts: list[int]) -> None:
    assert read(pieces(data, cuts)) == by_the_book(data, MOST_DATA)


def test_event_that_comes_whole_is_read_at_once() -> None:
    assert read([b'data: {"phase": "built"}\n\n', b"data: \n\n"]) == [b'{"phase": "built"}', b""]


@pytest.mark.parametrize(
    "before", [b": comment", b"data: a\n", b"dat", b"data: " + b"x" * 40, b": c\r", b"\xef\xbb"]
)
def test_event_that_looks_whole_may_go_on_with_what_came_before(before: bytes) -> None:
    whole = before + b"data: b\n\n"
    assert read([before, b"data: b\n\n"], 30) == by_the_book(whole, 30)


def test_largest_event_known_is_read() -> None:
    value = b"x" * 22_581
    assert read([b"data: ", value, b"\n\n"]) == [value]


def test_event_at_the_bound_is_read_and_one_over_it_is_told() -> None:
    for split in (1, 7, 1 << 20):
        for size, event in ((64, b"x" * 64), (65, None)):
            data = b"data: %b\n\ndata: next\n\n" % (b"x" * size)
            assert read([data[i : i + split] for i in range(0, len(data), split)], 64) == [event, b"next"]


def test_event_of_many_lines_over_the_bound_is_told() -> None:
    assert read([b"data\n" * 100 + b"\ndata: next\n\n"], 64) == [None, b"next"]


@pytest.mark.parametrize("line", [b"data: ", b": ", b"event: ", b""])
def test_megabyte_without_a_line_end_is_not_kept(line: bytes) -> None:
    reader = EventReader()
    reader.feed(line)
    for _ in range(1024):
        assert reader.feed(b"x" * 1024) == []
        assert len(reader._line) + len(reader._data) <= MOST_DATA + 1024
    events = reader.feed(b"\n\ndata: next\n\n")
    assert events == ([None, b"next"] if line == b"data: " else [b"next"])


def test_event_that_does_not_end_is_none() -> None:
    assert read([b"data: a\n\ndata: b\n"]) == [b"a"]


# The payload of a chunked body, as it passes.

SIZES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(SIZES, st.lists(st.integers(0, 500), max_size=10), st.booleans(), st.sampled_from([b"", b";a=b"]))
def test_tap_sees_the_payload_and_changes_nothing(
    parts: list[bytes], cuts: list[int], framed: bool, extension: bytes
) -> None:
    body = b"".join(chunk(part).replace(b"\r\n", extension + b"\r\n", 1) for part in parts) + LAST_CHUNK
    seen: list[bytes] = []
    plain, tapped = Chunked(framed=framed), Chunked(framed=framed, tap=seen.append)
    for piece in pieces(body, cuts):
        assert tapped.feed(piece) == plain.feed(piece)
    assert b"".join(seen) == b"".join(parts)
    assert (tapped.done, tapped.size) == (True, plain.size)


@pytest.mark.parametrize(
    ("block", "asked"),
    [
        (b"Host: a\r\nAccept: text/event-stream\r\n\r\n", True),
        (b"accept:text/event-stream\r\n\r\n", True),
        (b"Accept: \t text/event-stream \t\r\nHost: a\r\n\r\n", True),
        (b"Host: a\r\n\r\n", False),
        (b"Accept: text/event-stream, */*\r\n\r\n", False),
        (b"Accept: */*\r\n\r\n", False),
        (b"Accept: text/event-stream\r\nAccept: */*\r\n\r\n", False),
        (b"X-Accept: text/event-stream\r\n\r\n", False),
        (b"Accept: TEXT/Event-Stream\r\n\r\n", True),
        (b"Accept: text/event-stream;q=1\r\n\r\n", True),
        (b"Accept: text/event-stream ;x\r\n\r\n", True),
        (b"Accept: text/event-stream;q=0\r\n\r\n", True),
        (b"Accept: */*;q=0.1 ;\ttext/event-stream\r\n\r\n", True),
        (b"Accept: ;text/event-stream\r\n\r\n", True),
        (b"Accept: \xa0text/event-stream\x85\r\n\r\n", True),
        (b"Accept: text/event-stream;q=1, */*\r\n\r\n", True),
        (b"Accept: text/event-stream;q=1\r\naccept: */*\r\n\r\n", True),
        (b"Accept: */*;a=b\r\nHost: a\r\nACCEPT: c;text/event-stream\r\n\r\n", True),
        (b"Accept: */*; q=0.5, text/event-stream\r\n\r\n", False),
        (b"Accept:\r\nAccept: text/event-stream\r\n\r\n", False),
        (b"Accept: text/event-streams\r\n\r\n", False),
        (b"Accept: text/ event-stream\r\n\r\n", False),
        (b'Accept: "text/event-stream"\r\n\r\n', False),
    ],
)
def test_launch_is_asked_for_as_binderhub_reads_it(block: bytes, asked: bool) -> None:
    assert asked_for(block) is asked


@pytest.mark.parametrize(
    "spelled", [b"TEXT/event-stream", b"a/b;text/event-stream ;x", b"text/event-stream, */*"]
)
def test_tornado_and_edge_read_accept_alike(spelled: bytes) -> None:
    for lines in ([spelled], [spelled, b"*/*"], [b"*/*", spelled], [b"a;", spelled], [spelled, b";x"]):
        headers = HTTPHeaders()
        for line in lines:
            headers.add("Accept", line.decode("latin-1"))
        parts = {part.strip().lower() for part in headers["Accept"].split(";")}
        block = b"".join(b"Accept: %b\r\n" % line for line in lines) + b"\r\n"
        assert asked_for(block) is ("text/event-stream" in parts)


def test_nothing_in_between_changes_nothing() -> None:
    assert read([b"data: a\r", b"", b"\ndata: b\n\n"]) == [b"a\nb"]
    assert read([b"data: a\n", b"", b"\n", b""]) == [b"a"]
