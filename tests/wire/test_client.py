"""The member's side of HTTP/1.1 as a machine: any split of the bytes, the same result."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.errors import BadResponse
from fedproxy.http.request import HeaderBlock, Origin, Request, RequestLine
from fedproxy.wire.h1.body import BodyError
from fedproxy.wire.h1.client import Client, ClientEvent, ClientState
from tests.rig.pieces import pieces


def request(
    method: bytes = b"GET", upgrade: bytes | None = None, framed: bool = True
) -> Request[RequestLine]:
    asked: Request[RequestLine] = Request()
    asked.line = RequestLine(method, b"/x?y", None)
    asked.block = HeaderBlock(b"\r\n\r\n")
    asked.block.lines = b"Accept: */*\r\n"
    asked.block.upgrade = upgrade
    asked.origin = Origin(b"192.0.2.1", True, b"192.0.2.1", b"192.0.2.1")
    asked.request_id = b"id"
    asked.traceparent = b"00-a-b-00"
    asked.framed = framed
    return asked


def test_request_is_asked_with_all_that_the_edge_says() -> None:
    assert Client().ask(request(), b"Host: m\r\n", None) == (
        b"GET /x?y HTTP/1.1\r\nHost: m\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.1\r\n"
        b"X-Request-ID: id\r\ntraceparent: 00-a-b-00\r\n\r\n"
    )
    assert b"\r\nHost: m\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in Client().ask(
        request(), b"Host: m\r\n", b"websocket"
    )


@dataclass
class Answer:
    """A response as it is sent, and what it means."""

    raw: bytes
    interims: int
    status: int
    payload: bytes
    kept: bool
    until_close: bool


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    interims = draw(st.integers(0, 3))
    status = draw(st.sampled_from([200, 204, 304, 404, 503]))
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    payload = b"" if status in (204, 304) else draw(st.sampled_from([b"", b"x", b"event " * 60]))
    close = draw(st.booleans())
    lines, body = b"Server: m\r\n", payload
    if framing == "length" and status not in (204, 304):
        lines += b"Content-Length: %d\r\n" % len(payload)
    elif framing == "chunks" and status not in (204, 304):
        lines += b"Transfer-Encoding: chunked\r\n"
        size = draw(st.integers(1, 90))
        cut = [payload[at : at + size] for at in range(0, len(payload), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in cut) + b"0\r\n\r\n"
    until_close = framing == "close" and status not in (204, 304)
    if close:
        lines += b"Connection: close\r\n"
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * interims
    raw += b"HTTP/1.1 %d X\r\n%b\r\n%b" % (status, lines, body)
    return Answer(raw, interims, status, payload, not (close or until_close), until_close)


def read(machine: Client, parts: list[bytes]) -> tuple[int, int, bytes, bool]:
    """Interim heads, the status, the payload, and whether the end was seen."""
    interims, status, payload, done = 0, 0, b"", False
    for part in parts:
        event = machine.receive(part)
        while True:
            if event is ClientEvent.INTERIM:
                interims += 1
            elif event in (ClientEvent.WHOLE, ClientEvent.RESPONSE):
                status = machine.head.status
                payload += machine.data
                done = event is ClientEvent.WHOLE
            elif event in (ClientEvent.BODY, ClientEvent.BEHIND):
                payload += machine.data
                done = machine.done
            if not (machine.held or event is ClientEvent.BEHIND):
                break
            event = machine.more()
            if event is ClientEvent.NOTHING:
                break
    return interims, status, payload, done


@settings(max_examples=300)
@given(st.lists(answers(), min_size=1, max_size=3), st.lists(st.integers(0, 2000), max_size=10))
def test_any_split_means_the_same(sent: list[Answer], cuts: list[int]) -> None:
    machine = Client()
    for each in sent:
        machine.ask(request(framed=False), b"Host: m\r\n", None)
        found = read(machine, pieces(each.raw, cuts))
        assert found[:3] == (each.interims, each.status, each.payload)
        assert not machine.silent
        if each.until_close:
            assert not found[3]
            assert not machine.ended(clean=False)
            assert machine.ended(clean=True)
        else:
            assert found[3]
            assert machine.state is ClientState.IDLE
            assert not machine.ended(clean=True)
        assert machine.keep is each.kept
        if not machine.keep:
            return


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 33,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
)
@pytest.mark.parametrize("size", [1000, 100_000])
def test_what_is_no_answer_is_said_at_once(raw: bytes, size: int) -> None:
    machine = Client()
    machine.ask(request(), b"", None)
    with pytest.raises(BadResponse):
        read(machine, [raw[at : at + size] for at in range(0, len(raw), size)])


def test_connection_is_silent_until_a_byte_of_an_answer_comes() -> None:
    told = []
    for raw in (b"", b"HTTP/1.1 2", b"HTTP/1.1 103 X\r\n\r\n"):
        machine = Client()
        machine.ask(request(), b"", None)
        if raw:
            machine.receive(raw)
        told.append((machine.silent, machine.waiting))
    assert told == [(True, True), (False, True), (False, True)]


def test_interim_answers_count_for_the_request_that_they_answer() -> None:
    machine = Client()
    for _ in range(40):
        # From the second time on, the final head is known.
        machine.ask(request(), b"", None)
        assert machine.silent
        assert machine.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n") is ClientEvent.INTERIM
        assert machine.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") is ClientEvent.WHOLE


def test_what_one_request_asks_to_switch_to_is_not_asked_by_the_next() -> None:
    machine = Client()
    machine.ask(request(upgrade=b"websocket"), b"", b"websocket")
    machine.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    machine.ask(request(), b"", None)
    with pytest.raises(BadResponse):
        machine.receive(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")


def test_answer_that_is_known_is_whole_at_once() -> None:
    machine = Client()
    raw = b"HTTP/1.1 200 OK\r\nServer: known\r\nContent-Length: 2\r\n\r\n"
    for body in (b"ab", b"cd", b"ef"):
        machine.ask(request(), b"", None)
        assert machine.receive(raw + body) is ClientEvent.WHOLE
        assert (machine.data, machine.keep, machine.state) == (body, True, ClientState.IDLE)
    machine.ask(request(b"HEAD"), b"", None)
    assert machine.receive(raw) is ClientEvent.WHOLE
    assert machine.data == b""


def test_nothing_is_taken_for_an_answer_that_nobody_asked_for() -> None:
    machine = Client()
    with pytest.raises(BadResponse):
        machine.receive(b"HTTP/1.1 200 OK\r\n\r\n")
    assert machine.state.value in repr(machine)
    assert machine.more() is ClientEvent.NOTHING


def test_chunks_that_are_none_break_the_body_and_not_the_head() -> None:
    machine = Client()
    machine.ask(request(), b"", None)
    event = machine.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert event is ClientEvent.RESPONSE
    with pytest.raises(BodyError):
        machine.more()


@pytest.mark.parametrize(
    ("asked", "answered", "switches"),
    [
        (b"websocket", b"websocket", True),
        (b"a, websocket", b"WebSocket", True),
        (b"websocket", b"h2c", False),
        (None, b"websocket", False),
    ],
)
def test_connection_switches_only_to_what_was_asked_for(
    asked: bytes | None, answered: bytes, switches: bool
) -> None:
    machine = Client()
    machine.ask(request(upgrade=asked), b"", asked)
    raw = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\nhi" % answered
    if switches:
        assert machine.receive(raw) is ClientEvent.SWITCHED
        assert (machine.data, machine.keep) == (b"hi", False)
    else:
        with pytest.raises(BadResponse):
            machine.receive(raw)


@pytest.mark.parametrize(
    ("method", "raw", "kept"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1", False),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", False),
    ],
)
def test_bytes_beyond_an_answer_end_the_connection(method: bytes, raw: bytes, kept: bool) -> None:
    machine = Client()
    for _ in range(2):
        machine.state = ClientState.IDLE
        machine.ask(request(method), b"", None)
        assert read(machine, [raw])[3]
        assert machine.keep is kept


def test_payload_can_be_had_beside_what_goes_on() -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    told: list[bytes] = []
    machine = Client()
    machine.ask(request(), b"", None)
    assert not machine.tap(told.append)
    assert machine.receive(raw + b"2\r\nhi\r\n") is ClientEvent.RESPONSE
    assert machine.tap(told.append)
    assert machine.more() is ClientEvent.BODY
    assert (machine.data, told) == (b"2\r\nhi\r\n", [b"hi"])


def test_a_flood_of_tiny_chunks_is_read_in_several_calls() -> None:
    machine = Client()
    machine.ask(request(), b"", None)
    machine.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    event = machine.receive(b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n")
    assert event is ClientEvent.BEHIND and machine.behind
    calls = 0
    while event is ClientEvent.BEHIND:
        event = machine.more()
        calls += 1
    assert (event, machine.done, machine.behind) == (ClientEvent.BODY, True, False)
    assert calls > 2


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("size", [1, 1000])
def test_trailers_are_there_with_the_end_of_a_payload(framed: bool, size: int) -> None:
    """Where chunks are passed on, they are among what is passed on."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nAge: 5\r\n\r\n"
    machine = Client()
    machine.ask(request(framed=framed), b"", None)
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    _, status, payload, done = read(machine, parts)
    assert (status, done, machine.keep) == (200, True, True)
    assert payload == (b"2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n" if framed else b"ok")
    assert machine.trailers == (b"" if framed else b"X-Sum: 1\r\n")


def test_trailers_of_one_answer_are_not_those_of_the_next() -> None:
    machine = Client()
    for trailer in (b"X-Sum: 1\r\n", b""):
        machine.ask(request(framed=False), b"", None)
        read(machine, [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n" % trailer])
        assert machine.trailers == trailer
