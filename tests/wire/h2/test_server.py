"""The visitor's side of HTTP/2 as a machine: any split and any order of frames."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedproxy.errors import ConnectionFault
from fedproxy.wire.h2.allowance import KINDS, Allowance
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.hpack import encode_lines, encode_status
from fedproxy.wire.h2.server import FrameEvent, ServerPhase
from fedproxy.wire.h2.stream import H2Stream
from tests.rig.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
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
    frame,
)
from tests.rig.pieces import pieces
from tests.wire.h2.owner import (
    BEGIN,
    BODY_LIMIT,
    CONNECT,
    HEAD_LIMIT,
    LAVISH,
    OK,
    POST,
    STREAMS,
    Owner,
    Told,
    frames,
    head,
    machine,
    number,
    plain,
    post,
    priority_update,
    rst,
    window,
)
from tests.wire.h2.owner import settings as say

WHOLE = END_STREAM | END_HEADERS
REQUEST, BODY, FAULT, RESET, BROKEN, GREW, PONG, NOTHING = (
    FrameEvent.REQUEST,
    FrameEvent.BODY,
    FrameEvent.FAULT,
    FrameEvent.RESET,
    FrameEvent.BROKEN,
    FrameEvent.GREW,
    FrameEvent.PONG,
    FrameEvent.NOTHING,
)
TRAILERS = encode_lines(b"X-Sum: 1\r\n")
FRAME = 16_384
MIB = 1 << 20
# Of a request's body: what a stream may send at first, and all streams together.
FIRST = Owner(begun=False).peer.settings[4]
ALL = 65_535 + Owner(begun=False).peer.grants[0]


def code(fault: ConnectionFault | None) -> str:
    assert fault is not None
    return Code(fault.code).name


def events(told: list[Told]) -> list[FrameEvent]:
    return [each.event for each in told]


# How a connection begins


def test_edge_says_what_it_allows() -> None:
    owner = Owner(begun=False)
    assert owner.peer.settings == {3: STREAMS, 4: FIRST, 6: HEAD_LIMIT, 8: 1, 9: 1}
    assert ALL > FIRST > 65_535
    assert owner.machine.phase is ServerPhase.PREFACE
    assert repr(owner.machine) == "<H2Server preface streams=0>"


@pytest.mark.parametrize("size", [1, 7, 23, 24, 25, 100])
def test_connection_has_begun_once_its_settings_are_there(size: int) -> None:
    owner = Owner(begun=False)
    data = PREFACE + frame(SETTINGS, 0, 0)
    for at in range(0, len(data), size):
        assert not owner.machine.begun
        assert owner.read(data[at : at + size]) == []
    assert owner.machine.begun and not owner.machine.partial
    assert (owner.machine.phase, owner.peer.acknowledged) == (ServerPhase.OPEN, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        PREFACE[:-1] + b"x",
        PREFACE.lower(),
        PREFACE + frame(PING, 0, 0, bytes(8)),
        PREFACE + frame(SETTINGS, ACK, 0),
        PREFACE + head(1),
        PREFACE + frame(0x99, 0, 0),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_begins_otherwise_is_no_http2(data: bytes, size: int) -> None:
    owner = Owner(begun=False)
    for at in range(0, len(data), size):
        owner.read(data[at : at + size])
        if owner.fault is not None:
            break
    assert code(owner.fault) == "PROTOCOL_ERROR"


@pytest.mark.parametrize(
    ("data", "partial"),
    [
        (b"\0", True),
        (head(1)[:-1], True),
        (head(1, flags=END_STREAM), True),
        (head(1, flags=END_STREAM) + frame(CONTINUATION, 0, 1)[:5], True),
        (post(1) + frame(DATA, 0, 1, b"body")[:-1], False),
        (post(1), False),
        (b"", False),
    ],
)
def test_what_has_begun_and_is_no_body_should_soon_be_whole(data: bytes, partial: bool) -> None:
    owner = Owner()
    owner.read(data)
    assert owner.machine.partial is partial


# What ends a connection, and what only ends a stream: after a whole request on stream 1, a body expected on
# 3, a stream 5 that the visitor has reset, and a stream 7 that the edge has reset.

CONNECTION_FAULTS: dict[str, tuple[bytes, str]] = {
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    "HEADERS on stream 0": (head(0), "PROTOCOL_ERROR"),
    "HEADERS on a new even stream": (head(10), "PROTOCOL_ERROR"),
    "HEADERS on an old even stream": (head(2), "STREAM_CLOSED"),
    "HEADERS on a closed stream": (head(5), "STREAM_CLOSED"),
    "DATA on an idle stream": (frame(DATA, 0, 9, b"x"), "PROTOCOL_ERROR"),
    "DATA on an even stream": (frame(DATA, 0, 2, b"x"), "PROTOCOL_ERROR"),
    "DATA on a closed stream": (frame(DATA, 0, 5, b"x"), "STREAM_CLOSED"),
    "RST_STREAM on stream 0": (rst(0), "PROTOCOL_ERROR"),
    "RST_STREAM on an idle stream": (rst(9), "PROTOCOL_ERROR"),
    "RST_STREAM of three bytes": (frame(RST_STREAM, 0, 1, b"abc"), "FRAME_SIZE_ERROR"),
    "WINDOW_UPDATE on an idle stream": (window(9, 1), "PROTOCOL_ERROR"),
    "WINDOW_UPDATE of 0": (window(0, 0), "PROTOCOL_ERROR"),
    "WINDOW_UPDATE of five bytes": (frame(WINDOW_UPDATE, 0, 0, b"12345"), "FRAME_SIZE_ERROR"),
    "a window too large": (window(0, 0x7FFFFFFF), "FLOW_CONTROL_ERROR"),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    "SETTINGS of five bytes": (frame(SETTINGS, 0, 0, b"12345"), "FRAME_SIZE_ERROR"),
    "an acknowledgement with settings": (frame(SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "an initial window too large": (say(_4=1 << 31), "FLOW_CONTROL_ERROR"),
    "an initial window too large for one stream": (
        window(1, 0x7FFFFFFF - 65_535) + say(_4=65_536),
        "FLOW_CONTROL_ERROR",
    ),
    "frames too small": (say(_5=16_383), "PROTOCOL_ERROR"),
    "frames too large": (say(_5=1 << 24), "PROTOCOL_ERROR"),
    "push that is neither": (say(_2=2), "PROTOCOL_ERROR"),
    "priorities that are neither": (say(_9=2), "PROTOCOL_ERROR"),
    "PING on a stream": (frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "PING of seven bytes": (frame(PING, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "GOAWAY too short": (frame(GOAWAY, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "PUSH_PROMISE": (frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + b"\x82"), "PROTOCOL_ERROR"),
    "PRIORITY on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    "PRIORITY of four bytes": (frame(PRIORITY, 0, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "PRIORITY_UPDATE on a stream": (frame(PRIORITY_UPDATE, 0, 1, number(1)), "PROTOCOL_ERROR"),
    "PRIORITY_UPDATE of stream 0": (priority_update(0, b"u=1"), "PROTOCOL_ERROR"),
    "PRIORITY_UPDATE of an even stream": (priority_update(2, b"u=1"), "PROTOCOL_ERROR"),
    "PRIORITY_UPDATE too short": (frame(PRIORITY_UPDATE, 0, 0, b"abc"), "FRAME_SIZE_ERROR"),
    "CONTINUATION without HEADERS": (frame(CONTINUATION, END_HEADERS, 1), "PROTOCOL_ERROR"),
    "CONTINUATION on stream 0": (frame(CONTINUATION, END_HEADERS, 0), "PROTOCOL_ERROR"),
    "a frame within a head": (head(9, flags=0) + frame(0x99, 0, 0), "PROTOCOL_ERROR"),
    "CONTINUATION of another stream": (
        head(9, flags=0) + frame(CONTINUATION, END_HEADERS, 11),
        "PROTOCOL_ERROR",
    ),
    "a frame larger than allowed": (frame(DATA, 0, 3, bytes(16_385)), "FRAME_SIZE_ERROR"),
    "padding longer than DATA": (frame(DATA, PADDED, 3, b"\2x"), "PROTOCOL_ERROR"),
    "padding longer than a head": (frame(HEADERS, WHOLE | PADDED, 9, b"\4\x82\x86\x84"), "PROTOCOL_ERROR"),
    "padding without its length": (frame(DATA, PADDED, 3), "FRAME_SIZE_ERROR"),
    "a head that cannot be read": (frame(HEADERS, WHOLE, 9, b"\x80"), "COMPRESSION_ERROR"),
    "trailers that cannot be read": (frame(HEADERS, WHOLE, 3, b"\x80"), "COMPRESSION_ERROR"),
}


def with_streams() -> Owner:
    owner = Owner()
    owner.ask(head(1))
    owner.ask(post(3))
    owner.ask(post(5))
    owner.receive(rst(5))
    owner.ask(post(7))
    owner.machine.reset(owner.machine.stream, Code.CANCEL)
    owner.sent(b"")
    owner.machine.errors.clear()
    return owner


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_connection_ends_for(name: str) -> None:
    data, expected = CONNECTION_FAULTS[name]
    owner = with_streams()
    assert owner.read(data) in ([], [Told(GREW)])
    assert code(owner.fault) == expected
    owner.sent(owner.machine.go(Code[expected]))
    assert owner.peer.goaways == [(owner.machine.last, expected.lower())]
    assert owner.machine.errors == [Code[expected]]


STREAM_FAULTS: dict[str, tuple[bytes, int, str]] = {
    "DATA after the end": (frame(DATA, 0, 1, b"x"), 1, "STREAM_CLOSED"),
    "trailers after the end": (head(1, ()), 1, "STREAM_CLOSED"),
    "WINDOW_UPDATE of 0 for a stream": (window(3, 0), 3, "PROTOCOL_ERROR"),
    "a window too large for a stream": (window(3, 0x7FFFFFFF), 3, "FLOW_CONTROL_ERROR"),
    "more than the window": (
        frame(DATA, PADDED, 3, b"\xff" + bytes(FRAME - 1)) * (FIRST // FRAME + 1),
        3,
        "FLOW_CONTROL_ERROR",
    ),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_only_a_stream_ends_for(name: str) -> None:
    data, stream, expected = STREAM_FAULTS[name]
    owner = with_streams()
    owner.machine.body_limit = 1 << 30
    owner.machine.hold(owner.machine.streams[3])
    told = [each for each in owner.read(data) if each.event is not BODY]
    assert told == [Told(BROKEN, stream)]
    assert owner.fault is None
    assert owner.peer.streams[stream].reset == expected.lower()
    assert owner.machine.errors == [Code[expected]]
    assert stream not in owner.machine.streams and len(owner.machine.streams) == 1
    # What is on its way is ignored.
    assert owner.receive(frame(DATA, 0, stream, b"x"), head(stream, ()), window(stream, 1), rst(stream)) == []
    owner.check()


IGNORED: dict[str, bytes] = {
    "an unknown frame": frame(0x99, 0xFF, 77, b"what"),
    "GOAWAY": frame(GOAWAY, 0, 0, bytes(8) + b"bye"),
    "an unknown setting": say(_1=0, _3=7, _6=9, _8=1, _9=1, _2=0, _4660=1 << 31),
    "an acknowledgement": frame(SETTINGS, ACK, 0),
    "PRIORITY": frame(PRIORITY, 0, 1, bytes(5)),
    "PRIORITY of an idle stream": frame(PRIORITY, 0, 9, bytes(5)),
    "PRIORITY_UPDATE of an idle stream": priority_update(9, b"u=1"),
    "PRIORITY_UPDATE of a closed stream": priority_update(5, b"u=1"),
    "WINDOW_UPDATE of a closed stream": window(5, 7),
    "WINDOW_UPDATE": window(0, 7) + window(1, 7),
    "RST_STREAM of a closed stream": rst(5),
    "DATA of a stream that the edge has reset": frame(DATA, END_STREAM, 7, b"x"),
    "trailers of a stream that the edge has reset": head(7, ()),
    "an answer to a PING that nobody sent": frame(PING, ACK, 0, bytes(8)),
    "an empty DATA": frame(DATA, 0, 3),
    "nothing but padding": frame(DATA, PADDED, 3, b"\3abc"),
}


@pytest.mark.parametrize("name", IGNORED)
def test_nothing_comes_of(name: str) -> None:
    owner = with_streams()
    assert owner.receive(IGNORED[name]) == []
    assert owner.fault is None
    assert sorted(owner.machine.streams) == [1, 3]
    owner.check()


def test_ping_is_answered() -> None:
    owner = Owner()
    owner.receive(frame(PING, 0, 0, b"12345678"))
    assert [(each.flags, each.payload) for each in owner.peer.pings] == [(ACK, b"12345678")]


# Requests


@pytest.mark.parametrize(
    "data",
    [
        head(1),
        frame(HEADERS, WHOLE | PADDED, 1, b"\3" + plain(BEGIN) + b"pad"),
        frame(HEADERS, WHOLE | WITH_PRIORITY, 1, bytes(5) + plain(BEGIN)),
        frame(HEADERS, WHOLE | PADDED | WITH_PRIORITY, 1, b"\1" + bytes(5) + plain(BEGIN) + b"p"),
        frame(HEADERS, END_STREAM, 1, plain(BEGIN)[:7])
        + frame(CONTINUATION, 0, 1)
        + frame(CONTINUATION, END_HEADERS, 1, plain(BEGIN)[7:]),
        frame(HEADERS, END_STREAM, 1) + frame(CONTINUATION, END_HEADERS, 1, plain(BEGIN)),
        frame(HEADERS, WHOLE, 1 << 31 | 1, plain(BEGIN)),
    ],
)
def test_head_means_the_same_however_it_is_framed(data: bytes) -> None:
    owner = Owner()
    assert owner.read(data) == [Told(REQUEST, 1, b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", True)]
    assert owner.machine.served == 1


def test_known_head_is_not_read_again_until_the_table_changes() -> None:
    owner = Owner()
    assert owner.machine.decoder.decode(b"", 0) == []
    blocks = {}
    for stream in (1, 3):
        blocks[stream] = owner.ask(head(stream)).block
        owner.answer(owner.machine.streams[stream])
    assert blocks[1] is blocks[3]
    # An index of the dynamic table means something else after each of these.
    for stream, value in ((5, b"a"), (9, b"b")):
        added = frame(HEADERS, WHOLE, stream, plain(BEGIN) + b"\x40\1x\1" + value)
        for each in (added, frame(HEADERS, WHOLE, stream + 2, plain(BEGIN) + b"\xbe")):
            asked = owner.ask(each)
            assert asked.block.value(b"x") == value
            owner.answer(asked)


def test_only_some_known_heads_are_remembered() -> None:
    owner = Owner()
    for stream in range(1, 101, 2):
        asked = owner.ask(head(stream, (*BEGIN, (b"x", b"%d" % stream), (b"y", b"z" * 2 * stream))))
        assert asked.block.value(b"x") == b"%d" % stream
        owner.answer(asked)


def test_known_head_of_a_policy_before_is_read_again() -> None:
    owner = Owner()
    owner.answer(owner.ask(head(1)))
    other = machine()
    made = owner.machine
    made.configure(other.lines, other.blocks, 100, BODY_LIMIT, STREAMS, LAVISH)
    assert owner.receive(head(3)) == [Told(FAULT, 3, error="TargetTooLong")]


@pytest.mark.parametrize(
    ("pairs", "ends", "error"),
    [
        (BEGIN[1:], True, "BadRequest"),
        ((*BEGIN, (b"content-length", b"x")), True, "BadRequest"),
        ((*BEGIN, (b"content-length", b"5")), True, "BadRequest"),
        ((*BEGIN, (b"content-length", b"5000")), False, "BodyTooLarge"),
        (((b":method", b"TRACE"), *BEGIN[1:]), True, "MethodRefused"),
        ((*BEGIN, (b"x", b"y" * HEAD_LIMIT)), True, "HeadTooLarge"),
        ((*BEGIN[:3], (b"x", b"y" * HEAD_LIMIT), BEGIN[3]), True, "TargetTooLong"),
        ((CONNECT[0], (b":protocol", b"x"), *CONNECT[2:]), False, "ProtocolUnknown"),
        ((*CONNECT, (b"content-length", b"5")), False, "BadRequest"),
    ],
)
def test_head_that_is_refused_can_be_answered(
    pairs: tuple[tuple[bytes, bytes], ...], ends: bool, error: str
) -> None:
    owner = Owner()
    told = owner.receive(head(1, pairs, WHOLE if ends else END_HEADERS))
    assert told == [Told(FAULT, 1, error=error)]
    response = owner.answer(owner.machine.stream, b"no")
    assert (response.body, response.ended, response.reset) == (b"no", True, None if ends else "no_error")
    assert not owner.machine.streams
    owner.answer(owner.ask(head(3)))


def test_empty_body_may_have_a_length() -> None:
    owner = Owner()
    owner.ask(head(1, (*BEGIN, (b"content-length", b"0"))))
    owner.ask(post(3, (b"content-length", b"0")))
    assert owner.receive(frame(DATA, END_STREAM, 3)) == [Told(BODY, 3, b"", True)]


def test_streams_beyond_the_limit_are_refused() -> None:
    owner = Owner()
    for stream in range(1, 2 * STREAMS, 2):
        owner.ask(head(stream))
    late = frame(HEADERS, END_HEADERS, 9, plain(POST) + b"\x40\1x\1y")
    assert owner.receive(late, frame(DATA, END_STREAM, 9, b"ignored")) == []
    assert owner.peer.streams[9].reset == "refused_stream"
    owner.answer(owner.machine.streams[1])
    # It was refused, but not what it says about the table.
    asked = owner.ask(frame(HEADERS, WHOLE, 11, plain(BEGIN) + b"\xbe"))
    assert asked.block.value(b"x") == b"y"


def test_head_may_not_go_on_for_ever() -> None:
    for part, most in ((b"", 64), (b"\x82" * 100, 2 * HEAD_LIMIT // 100)):
        owner = Owner()
        owner.read(frame(HEADERS, 0, 1))
        for _ in range(most):
            owner.read(frame(CONTINUATION, 0, 1, part))
        owner.read(frame(CONTINUATION, END_HEADERS, 1, part))
        assert code(owner.fault) == "ENHANCE_YOUR_CALM"
        assert owner.fault is not None and owner.fault.reason == "http2_head"


def test_websocket_is_a_request_with_a_key() -> None:
    owner = Owner()
    for stream, flags in ((1, END_HEADERS), (3, WHOLE)):
        asked = owner.ask(head(stream, CONNECT, flags))
        assert asked.connects and asked.receiving is not bool(flags & END_STREAM)
        assert asked.block.upgrade == b"websocket"
        assert asked.block.value(b"sec-websocket-key") == asked.key != b""
    # Its bytes are no body, and have no limit.
    size = 2 * BODY_LIMIT
    assert owner.receive(frame(DATA, 0, 1, bytes(size))) == [Told(BODY, 1, bytes(size))]
    # Nor has it trailers.
    assert owner.receive(head(1, ())) == [Told(FAULT, 1, error="BadRequest")]


# Bodies


def test_body_comes_in_parts_up_to_its_end() -> None:
    owner = Owner()
    asked = owner.ask(post(1))
    assert owner.receive(frame(DATA, 0, 1, b"a"), frame(DATA, PADDED | END_STREAM, 1, b"\2bcd")) == [
        Told(BODY, 1, b"a"),
        Told(BODY, 1, b"b", True),
    ]
    assert not asked.receiving
    owner.check()


def test_trailers_end_a_body_and_end_here() -> None:
    owner = Owner()
    owner.ask(post(1, (b"content-length", b"1")))
    told = owner.receive(frame(DATA, 0, 1, b"a"), head(1, ((b"x-sum", b"1"),)))
    assert told == [Told(BODY, 1, b"a"), Told(BODY, 1, b"", True)]


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([frame(DATA, 0, 1, b"123456")], "BadRequest"),
        ([frame(DATA, END_STREAM, 1, b"1234")], "BadRequest"),
        ([frame(DATA, 0, 1, b"1234"), head(1, ())], "BadRequest"),
        ([frame(DATA, 0, 1, b"12345"), frame(DATA, 0, 1, b"6")], "BadRequest"),
        ([head(1, (), END_HEADERS)], "BadRequest"),
        ([head(1, BEGIN)], "BadRequest"),
        ([head(1, ((b"connection", b"x"),))], "BadRequest"),
    ],
)
def test_body_is_as_long_as_it_says(parts: list[bytes], error: str) -> None:
    owner = Owner()
    owner.ask(post(1, (b"content-length", b"5")))
    *before, last = owner.receive(*parts)
    assert events(before) in ([], [BODY])
    assert last == Told(FAULT, 1, error=error)


@pytest.mark.parametrize("flags", [0, END_STREAM])
def test_body_is_not_larger_than_allowed(flags: int) -> None:
    owner = Owner()
    owner.ask(post(1))
    assert events(owner.receive(frame(DATA, 0, 1, bytes(BODY_LIMIT)))) == [BODY]
    assert owner.receive(frame(DATA, flags, 1, b"x")) == [Told(FAULT, 1, error="BodyTooLarge")]


def upload(owner: Owner, stream: H2Stream, size: int) -> None:
    """A part of a body."""
    for _ in range(size // FRAME):
        assert events(owner.receive(frame(DATA, 0, stream.id, bytes(FRAME)))) == [BODY]


def test_body_that_is_read_as_fast_as_it_comes_gets_a_larger_window() -> None:
    owner = Owner(machine(body_limit=1 << 40))
    stream = owner.ask(post(1))
    sent = 0
    for _ in range(3000):
        assert stream.credit >= FRAME
        upload(owner, stream, FRAME)
        sent += FRAME
        assert stream.credit == FIRST + owner.peer.grants[1] - sent
        assert 65_535 + owner.peer.grants[0] - sent >= ALL // 2
    assert stream.granted == 8 * MIB
    # What all streams together may have above the first has an end, and is given back.
    others = [owner.ask(post(number)) for number in (3, 5, 7)]
    for other in others:
        upload(owner, other, 16 * MIB)
    assert others[0].granted == 8 * MIB
    assert sum(each.granted - FIRST for each in [stream, *others]) == 16 * MIB
    for each in [stream, *others]:
        owner.receive(frame(DATA, END_STREAM, each.id))
        owner.answer(each)
    asked = owner.ask(post(9))
    upload(owner, asked, 16 * MIB)
    assert asked.granted == 8 * MIB
    owner.check()


def test_next_body_gets_no_more_than_there_is() -> None:
    owner = Owner(machine(body_limit=1 << 40))
    for stream in (1, 3, 5):
        upload(owner, owner.ask(post(stream)), 16 * MIB)
    owner.receive(frame(DATA, END_STREAM, 1))
    # The first one is not answered yet, so nothing is given back.
    assert owner.ask(post(7)).granted == FIRST
    assert not owner.peer.grants[7]
    owner.check()


def test_next_body_begins_with_what_the_last_one_came_to() -> None:
    owner = Owner(machine(body_limit=1 << 40, streams=20))
    for stream, held in ((1, False), (5, True)):
        asked = owner.ask(post(stream))
        upload(owner, asked, 4 * MIB)
        granted = asked.granted
        assert granted > FIRST
        if held:
            owner.machine.hold(asked)
        owner.receive(frame(DATA, END_STREAM, stream))
        after = owner.ask(post(stream + 2))
        # Not if its member was slower than the visitor in the end.
        expected = FIRST if held else granted
        assert (after.granted, owner.peer.grants[after.id]) == (expected, expected - FIRST)
        owner.check()
    owner.ask(head(9))
    owner.ask(head(11, CONNECT, END_HEADERS))
    assert not owner.peer.grants[9] and not owner.peer.grants[11]


def test_nothing_is_granted_while_a_body_is_held() -> None:
    owner = Owner(machine(body_limit=1 << 30))
    made = owner.machine
    stream = owner.ask(post(1))
    upload(owner, stream, FIRST // 4)
    for _ in range(2):
        made.hold(stream)
    upload(owner, stream, FIRST - FIRST // 4)
    assert (stream.credit, owner.peer.grants[1]) == (0, 0)
    for _ in range(2):
        made.release(stream)
        owner.sent(b"")
        assert owner.peer.grants[1] == stream.credit == 2 * FIRST
    made.hold(stream)
    assert owner.receive(frame(DATA, END_STREAM, 1, b"end")) == [Told(BODY, 1, b"end", True)]
    made.release(stream)
    assert made.out == []


def test_what_no_member_takes_is_bounded_for_a_connection() -> None:
    owner = Owner(machine(body_limit=1 << 30, streams=100))
    streams = [owner.ask(post(2 * each + 1)) for each in range(ALL // FIRST)]
    for stream in streams:
        owner.machine.hold(stream)
        upload(owner, stream, FIRST)
    assert owner.peer.grants[0] + 65_535 == ALL
    for stream in streams:
        owner.machine.release(stream)
        owner.sent(b"")
        owner.check()
    # Now it is taken.
    assert ALL + ALL // 2 <= owner.peer.grants[0] + 65_535 <= 2 * ALL


def test_connection_has_a_limit_too() -> None:
    """What comes on a stream that was reset counts as well (RFC 9113 section 6.9)."""
    owner = with_streams()
    before = owner.peer.grants[0]
    for _ in range(600):
        assert owner.receive(frame(DATA, 0, 7, bytes(16_384))) == []
    assert owner.peer.grants[0] - before >= 600 * 16_384 - 8 * 1024 * 1024
    assert owner.fault is None


def test_who_ignores_the_window_of_the_connection_ends_it() -> None:
    """It is told more as it comes, so this takes a window that is not the usual one."""
    owner = Owner()
    owner.ask(post(1))
    owner.machine._credit = 10
    owner.receive(frame(DATA, 0, 1, bytes(11)))
    assert code(owner.fault) == "FLOW_CONTROL_ERROR"


# Responses


def test_head_and_body_go_out_together() -> None:
    owner = Owner()
    response = owner.answer(owner.ask(head(1)), b"hello", block=encode_status(203) + TRAILERS)
    assert (response.heads, response.body, response.ended) == (
        [[(b":status", b"203"), (b"x-sum", b"1")]],
        b"hello",
        True,
    )
    assert not owner.machine.streams


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("size", [0, 5, 16_384, 16_385, 40_000])
@pytest.mark.parametrize("fields", [5, 16_380, 40_000])
def test_response_of_any_size_is_whole(size: int, fields: int, late: bool) -> None:
    owner = Owner()
    stream = owner.ask(head(1))
    block = OK + encode_lines(b"X: %b\r\n" % (b"y" * fields))
    body = bytes(range(256)) * 200
    owner.sent(owner.machine.interim(stream, encode_status(103) + encode_lines(b"Link: </x>\r\n")))
    response = owner.answer(stream, body[:size], not late, block)
    if late:
        owner.pump()
        owner.body(stream, b"", True)
    owner.pump()
    assert response.statuses == [103, 200]
    assert (response.body, response.ended) == (body[:size], True)
    assert response.value("x") == b"y" * fields
    owner.check()


def test_parts_of_a_body_go_out_as_they_come() -> None:
    owner = Owner()
    stream = owner.ask(head(1))
    response = owner.answer(stream, done=False)
    for part in (b"a", b"", b"b"):
        owner.body(stream, part)
    assert (response.body, response.ended) == (b"ab", False)
    owner.body(stream, b"c", True)
    assert (response.body, response.ended) == (b"abc", True)


@pytest.mark.parametrize("parts", [[b"abcd"], [b"ab", b"cd"], [b"abcd", b""]])
@pytest.mark.parametrize("first", [0, 2, 100])
def test_trailers_follow_the_body(parts: list[bytes], first: int) -> None:
    owner = Owner(said=say(_4=first))
    stream = owner.ask(head(1))
    response = owner.answer(stream, done=False)
    stream.trailers = TRAILERS
    for at, part in enumerate(parts):
        owner.body(stream, part, at == len(parts) - 1)
    if first < 4:
        assert not response.ended and response.body == b"abcd"[:first]
    for _ in range(4):
        owner.receive(window(1, 1))
        owner.pump()
    assert (response.body, response.trailers, response.ended) == (b"abcd", [(b"x-sum", b"1")], True)
    owner.check()


@pytest.mark.parametrize("size", [1, 17, 5000])
def test_no_more_is_sent_than_the_windows_allow(size: int) -> None:
    owner = Owner(said=say(_4=0))
    stream = owner.ask(head(1))
    body = bytes(range(256)) * 20
    response = owner.answer(stream, body)
    assert (response.body, owner.machine.held_up) == (b"", len(body))
    while not response.ended:
        before = len(response.body)
        assert owner.receive(window(1, size)) == [Told(GREW)]
        owner.pump()
        assert len(response.body) == min(before + size, len(body))
        owner.check()
    assert response.body == body


def test_window_of_the_connection_is_shared() -> None:
    owner = Owner(said=say(_4=1 << 20))
    responses = [owner.answer(owner.ask(head(stream)), bytes(50_000)) for stream in (1, 3)]
    owner.pump()
    assert sum(len(each.body) for each in responses) == 65_535
    assert owner.receive(window(0, 10)) == [Told(GREW)]
    owner.pump()
    assert sum(len(each.body) for each in responses) == 65_545
    owner.receive(window(0, 1 << 20))
    owner.pump()
    assert all(each.ended for each in responses)
    assert owner.receive(window(0, 10)) == []


def test_initial_window_changes_what_all_streams_may_send() -> None:
    """RFC 9113 section 6.9.2: also to less than nothing."""
    owner = Owner(said=say(_4=10))
    stream, other = owner.ask(head(1)), owner.ask(head(3))
    response = owner.answer(stream, bytes(30), False)
    assert len(response.body) == 10
    owner.receive(say(_4=4))
    assert stream.window == -6
    owner.body(stream, b"", True)
    assert owner.receive(window(1, 6)) == []
    assert owner.receive(window(1, 1)) == [Told(GREW)]
    assert owner.receive(say(_4=3)) == []
    assert owner.receive(say(_4=100)) == [Told(GREW)]
    owner.pump()
    assert response.ended
    assert len(owner.answer(other, bytes(200)).body) == 100
    owner.check()


@pytest.mark.parametrize(("said", "largest"), [(16_384, 16_384), (40_000, 40_000), (1 << 20, 65_536)])
def test_frames_are_as_large_as_the_peer_takes_and_the_others_can_wait(said: int, largest: int) -> None:
    owner = Owner(said=say(_4=1 << 20, _5=said))
    owner.receive(window(0, 1 << 20))
    owner.answer(owner.ask(head(1)), bytes(300_000))
    owner.pump()
    assert owner.peer.largest_data == largest


def test_one_call_sends_some_of_what_waits() -> None:
    owner = Owner(said=say(_4=1 << 20))
    owner.receive(window(0, 1 << 20))
    parts = b"".join(owner.machine.body(owner.ask(head(1)), bytes(1 << 19), False))
    assert 65_536 <= len(parts) < 2 * 65_536


def test_nothing_is_sent_while_the_system_takes_no_more() -> None:
    owner = Owner()
    owner.machine.blocked = True
    response = owner.answer(owner.ask(head(1)), b"body")
    assert (response.status, response.body, response.ended) == (200, b"", False)
    assert owner.machine.pump() == []
    owner.machine.blocked = False
    owner.pump()
    assert response.body == b"body" and response.ended


def test_what_waits_goes_first() -> None:
    owner = Owner(said=say(_4=3))
    stream = owner.ask(head(1))
    response = owner.answer(stream, b"abcdef", False)
    owner.receive(window(1, 100))
    # A window is open, and nobody has called `pump` yet.
    owner.body(stream, b"ghi", True)
    assert (response.body, response.ended) == (b"abcdefghi", True)


def test_part_that_need_not_be_written_at_once_is_a_frame_as_well() -> None:
    owner = Owner()
    stream = owner.ask(head(1))
    response = owner.answer(stream, done=False)
    owner.sent(owner.machine.body(stream, b"part", False))
    assert (response.body, response.ended) == (b"part", False)


def test_urgent_stream_does_not_wait_for_others() -> None:
    owner = Owner(said=say(_4=1 << 20))
    slow, events_ = owner.ask(head(1)), owner.ask(head(3))
    owner.machine.urge(events_)
    owner.machine.blocked = True
    owner.answer(slow, bytes(10_000))
    owner.machine.blocked = False
    response = owner.answer(events_, b"now", False)
    assert (response.body, owner.machine.turns.size) == (b"now", 1)
    owner.receive(priority_update(3, b"u=7"))
    owner.body(events_, b"!")
    assert (response.body, owner.machine.turns.size) == (b"now!", 1)
    # One that is not urgent waits for its turn.
    owner.answer(owner.ask(head(5)), b"later")
    assert owner.machine.turns.size == 0


def served(owner: Owner, sizes: dict[int, int]) -> list[int]:
    """The streams, in the order of their frames."""
    for stream, size in sizes.items():
        owner.machine.blocked = True
        owner.answer(owner.machine.streams[stream], bytes(size))
    owner.machine.blocked = False
    order = []
    while parts := owner.machine.pump():
        order += [each.stream for each in frames(b"".join(parts))]
        owner.sent(parts)
    return order


def test_urgency_and_turns_order_what_is_sent() -> None:
    owner = Owner(machine(streams=20), say(_4=1 << 20))
    owner.receive(window(0, 1 << 20))
    asked = {1: b"u=5", 3: b"", 5: b"", 7: b"u=1", 9: b"u=5", 11: b"u=0, i", 13: b"u=0, i"}
    for stream, value in asked.items():
        owner.ask(head(stream, (*BEGIN, (b"priority", value)) if value else BEGIN))
    assert served(owner, dict.fromkeys(asked, 20_000)) == [11, 13, 11, 13, 7, 7, 3, 5, 3, 5, 1, 1, 9, 9]


def test_priority_can_be_told_later() -> None:
    owner = Owner(said=say(_4=1 << 20))
    for stream in (1, 3, 5):
        owner.ask(head(stream, (*BEGIN, (b"priority", b"u=4"))))
    owner.receive(priority_update(5, b"u=2"))
    owner.machine.blocked = True
    for stream in (1, 3, 5):
        owner.answer(owner.machine.streams[stream], bytes(10))
    owner.receive(priority_update(3, b"u=1"))
    owner.machine.blocked = False
    parts = owner.machine.pump()
    assert [each.stream for each in frames(b"".join(parts))] == [3, 5, 1]


def test_response_before_the_end_of_its_request_is_whole_and_the_rest_is_not_wanted() -> None:
    """RFC 9113 section 8.1."""
    owner = Owner()
    response = owner.answer(owner.ask(post(1)), b"no")
    assert (response.body, response.ended, response.reset) == (b"no", True, "no_error")
    assert owner.receive(frame(DATA, END_STREAM, 1, b"body")) == []


def test_each_side_of_a_tunnel_ends_by_itself() -> None:
    owner = Owner()
    stream = owner.ask(head(1, CONNECT, END_HEADERS))
    response = owner.answer(stream, done=False)
    owner.body(stream, b"bye", True)
    assert (response.ended, response.reset) == (True, None)
    assert owner.receive(frame(DATA, 0, 1, b"more")) == [Told(BODY, 1, b"more")]
    assert owner.receive(frame(DATA, END_STREAM, 1)) == [Told(BODY, 1, b"", True)]
    assert not owner.machine.streams


def test_reset_stream_takes_with_it_what_waits() -> None:
    for by_peer in (True, False):
        owner = Owner(said=say(_4=5))
        stream = owner.ask(head(1))
        owner.answer(stream, bytes(100))
        assert owner.machine.held_up == 95
        owner.receive(window(1, 1))
        if by_peer:
            assert owner.receive(rst(1)) == [Told(RESET, 1)]
        else:
            owner.machine.reset(stream, Code.INTERNAL_ERROR)
            owner.sent(b"")
            assert owner.peer.streams[1].reset == "internal_error"
        assert (owner.machine.held_up, owner.machine.turns.size, stream.waiting) == (0, 0, None)
        owner.check()


def test_stream_that_was_reset_long_ago_is_just_closed() -> None:
    owner = Owner()
    for stream in range(1, 2 * 513 + 1, 2):
        owner.machine.reset(owner.ask(post(stream)), Code.CANCEL)
    assert owner.receive(frame(DATA, 0, 3, b"x")) == []
    owner.receive(frame(DATA, 0, 1, b"x"))
    assert code(owner.fault) == "STREAM_CLOSED"


# What a peer may do for nothing

SPENDING: dict[str, bytes] = {
    "resets": rst(5),
    "settings": frame(SETTINGS, ACK, 0),
    "pings": frame(PING, 0, 0, bytes(8)),
    "priorities": frame(PRIORITY, 0, 1, bytes(5)),
    "empty_frames": frame(DATA, 0, 3),
    "window_updates": window(1, 1),
    "unknown_frames": frame(0x99, 0, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_costs_a_peer_nothing_has_a_limit(kind: str) -> None:
    owner = with_streams()
    made = owner.machine
    allowance = replace(LAVISH, **{kind: 20})
    made.configure(made.lines, made.blocks, HEAD_LIMIT, BODY_LIMIT, STREAMS, allowance)
    made.refill(1.0)  # nothing was spent
    for _ in range(20):
        owner.receive(SPENDING[kind])
    # The same again does not give anything back, but time does.
    made.configure(made.lines, made.blocks, HEAD_LIMIT, BODY_LIMIT, STREAMS, allowance)
    made.refill(1.0)
    for _ in range(2):
        owner.receive(SPENDING[kind])
        assert owner.fault is None
    owner.receive(SPENDING[kind])
    assert code(owner.fault) == "ENHANCE_YOUR_CALM"
    assert owner.fault is not None and owner.fault.reason == f"http2_{kind}"


def test_time_gives_nothing_back_that_was_not_spent() -> None:
    owner = Owner(machine(allowance=Allowance(*[1] * 7)), begun=False)
    owner.machine.refill(1000.0)
    owner.receive(PREFACE + frame(SETTINGS, 0, 0))
    assert owner.fault is None
    for _ in range(3):
        owner.machine.refill(1000.0)
    owner.receive(frame(SETTINGS, 0, 0))
    assert owner.fault is None
    owner.receive(frame(SETTINGS, 0, 0))
    assert code(owner.fault) == "ENHANCE_YOUR_CALM"


def test_new_limits_begin_anew() -> None:
    owner = with_streams()
    made = owner.machine
    for pings in (3, 4, 3):
        made.configure(made.lines, made.blocks, HEAD_LIMIT, BODY_LIMIT, STREAMS, Allowance(pings=pings))
        for _ in range(pings):
            owner.receive(frame(PING, 0, 0, bytes(8)))
        assert owner.fault is None


@pytest.mark.parametrize("unit", [1, 100])
def test_who_takes_much_may_say_so_often(unit: int) -> None:
    """Four WINDOW_UPDATE frames for each DATA frame."""
    owner = Owner(machine(allowance=replace(LAVISH, window_updates=8)), say(_4=0))
    owner.answer(owner.ask(head(1)), bytes(100_000))
    for _ in range(200):
        owner.receive(window(1, unit), window(0, unit))
        owner.pump()
    assert owner.fault is None
    assert len(owner.peer.streams[1].body) == 200 * unit


@pytest.mark.parametrize(
    "parts",
    [
        [window(1, 0)],  # each makes the edge reset a stream
        [rst(1)],
        [frame(DATA, 0, 1)],
    ],
)
def test_streams_that_come_to_nothing_are_paid_for(parts: list[bytes]) -> None:
    """CVE-2023-44487 and CVE-2025-8671."""
    owner = Owner(machine(allowance=replace(LAVISH, resets=10)))
    for stream in range(1, 21, 2):
        owner.ask(head(stream))
        owner.receive(*(each[:5] + number(stream) + each[9:] for each in parts))
        assert owner.fault is None and not owner.machine.streams
    owner.ask(head(21))
    owner.receive(*(each[:5] + number(21) + each[9:] for each in parts))
    assert code(owner.fault) == "ENHANCE_YOUR_CALM"


def test_refused_streams_are_paid_for() -> None:
    owner = Owner(machine(streams=0, allowance=replace(LAVISH, resets=2)))
    owner.receive(head(1), head(3))
    assert owner.fault is None
    owner.receive(head(5))
    assert code(owner.fault) == "ENHANCE_YOUR_CALM"


# How a connection ends


def test_connection_ends_in_two_steps() -> None:
    """RFC 9113 section 6.8."""
    owner = Owner()
    stream = owner.ask(head(1))
    owner.sent(owner.machine.leave())
    assert owner.peer.goaways == [((1 << 31) - 1, "no_error")]
    assert owner.machine.phase is ServerPhase.LEAVING
    assert owner.machine.leave() == b""
    owner.answer(owner.ask(head(3)))
    (ping,) = owner.peer.pings
    assert owner.receive(frame(PING, ACK, 0, ping.payload)) == [Told(PONG)]
    owner.sent(owner.machine.go())
    assert owner.peer.goaways[1:] == [(3, "no_error")]
    assert (owner.machine.go(), owner.machine.leave()) == (b"", b"")
    # Ignored, except for what it says about the table.
    assert owner.receive(frame(HEADERS, WHOLE, 5, plain(BEGIN) + b"\x40\1x\1y")) == []
    assert owner.machine.last == 3
    assert owner.answer(stream, b"ok").ended
    assert owner.machine.errors == [0, 0]
    assert "closed" in repr(owner.machine)


def test_connection_that_has_not_begun_is_asked_to_leave_once_it_has() -> None:
    owner = Owner(begun=False)
    assert owner.machine.leave() == b""
    owner.read(PREFACE)
    assert owner.machine.leave() == b""
    assert not owner.peer.goaways
    owner.read(frame(SETTINGS, 0, 0))
    assert owner.peer.goaways == [((1 << 31) - 1, "no_error")]
    assert owner.machine.phase is ServerPhase.LEAVING
    owner.ask(head(1))


# Any split


PIECES = st.sampled_from(
    [
        *(head(stream) for stream in (1, 3, 5, 7)),
        *(post(stream) for stream in (1, 3, 5, 9)),
        *(frame(DATA, flags, stream, b"body") for stream in (1, 3, 5) for flags in (0, END_STREAM)),
        frame(DATA, PADDED, 1, b"\3body"),
        frame(DATA, 0, 3, bytes(3000)),
        head(5, flags=0) + frame(CONTINUATION, END_HEADERS, 5, plain(((b"x", b"y"),))),
        head(7, flags=END_STREAM),
        head(9, BEGIN[2:]),
        head(1, ((b"x-sum", b"1"),)),
        rst(1),
        window(0, 5),
        window(1, 0),
        say(_4=100),
        frame(PING, 0, 0, b"12345678"),
        frame(PING, ACK, 0, b"fedproxy"),
        priority_update(1, b"u=1"),
        frame(0x77, 0, 0, b"what"),
        frame(CONTINUATION, END_HEADERS, 7, b"\x82"),
        b"\0\0\1",
    ]
)


def read(parts: list[bytes]) -> tuple[list[Told], bytes, str, list[int]]:
    """Events, what is written beside, the fault, and the streams that there are."""
    owner = Owner(begun=False)
    told: list[Told] = []
    out: list[bytes] = []
    for part in parts:
        try:
            event = owner.machine.receive(part)
            while event is not NOTHING:
                told.append(owner._told(event))
                event = owner.machine.more()
        except ConnectionFault as fault:
            return told, b"".join(owner.machine.out), code(fault), sorted(owner.machine.streams)
    out += owner.machine.out
    return told, b"".join(out), "", sorted(owner.machine.streams)


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 6000), max_size=12))
def test_any_split_means_the_same(sent: list[bytes], cuts: list[int]) -> None:
    data = PREFACE + frame(SETTINGS, 0, 0) + b"".join(sent)
    assert _kept(*read(pieces(data, cuts))) == _kept(*read([data]))


def _kept(told: list[Told], *rest: object) -> tuple[list[Told], tuple[object, ...]]:
    """Without what was told of a stream before it was reset: nothing, if both come in the same read."""
    gone = {each.stream for each in told if each.event is FrameEvent.RESET}
    return [each for each in told if each.event is FrameEvent.RESET or each.stream not in gone], rest


@settings(max_examples=30)
@given(st.lists(PIECES, max_size=8))
def test_each_byte_may_come_alone(sent: list[bytes]) -> None:
    data = PREFACE + frame(SETTINGS, 0, 0) + b"".join(sent)
    data = data[:1500]
    assert _kept(*read([data[at : at + 1] for at in range(len(data))])) == _kept(*read([data]))


@settings(max_examples=150)
@given(st.binary(max_size=200), st.integers(0, 9), st.integers(0, 255), st.integers(0, 5))
def test_any_bytes_are_read_or_refused(data: bytes, kind: int, flags: int, stream: int) -> None:
    owner = with_streams()
    owner.read(frame(kind, flags, stream, data))
    if owner.fault is None:
        owner.read(data)


# Any order


PAYLOADS = st.binary(max_size=12)
HEADS = st.sampled_from(
    [
        plain(BEGIN),
        plain(POST),
        plain((*POST, (b"content-length", b"20"))),
        plain((*BEGIN, (b"priority", b"u=1, i"))),
        plain((*BEGIN, (b"priority", b"u=6"))),
        plain(CONNECT),
        plain(BEGIN[1:]),
        plain(((b"x-sum", b"1"),)),
        plain((*BEGIN, (b"x", b"y" * HEAD_LIMIT))),
        plain(BEGIN) + b"\x40\1x\1y",
        b"\x20" + plain(BEGIN),
        plain(BEGIN) + b"\xbe",
        b"",
    ]
)


class Connection(RuleBasedStateMachine):
    """No exception but a fault of the connection, and what is counted agrees with what it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.owner = Owner()
        self.told: dict[int, str] = {}  # how far the answer to each stream is

    def stream_of(self, pick: int) -> int:
        """A new stream, one that there is, or any."""
        made = self.owner.machine
        known = sorted(made.streams)
        if pick < 0:
            return made.last + 1 + made.last % 2
        if pick < 8 and known:
            return known[pick % len(known)]
        return pick % (made.last + 3)

    def say(self, data: bytes) -> None:
        owner = self.owner
        owner.receive(data)
        if owner.fault is not None:
            owner.sent(owner.machine.go(owner.fault.code))
            for each in list(owner.machine.streams.values()):
                owner.machine.reset(each, Code.CANCEL)
            assert not owner.machine.held_up and not owner.machine.turns.size
            self.begin()

    PICK = st.integers(-8, 12)

    @rule(
        block=HEADS,
        ends=st.booleans(),
        pick=PICK,
        shape=st.sampled_from(["whole"] * 8 + ["split", "begun", "padded", "broken"]),
    )
    def head(self, block: bytes, ends: bool, pick: int, shape: str) -> None:
        flags = (END_STREAM if ends else 0) | END_HEADERS
        stream = self.stream_of(pick)
        if shape == "split":
            self.say(
                frame(HEADERS, flags & END_STREAM, stream, block[:5])
                + frame(CONTINUATION, END_HEADERS, stream, block[5:])
            )
        elif shape == "begun":
            self.say(frame(HEADERS, 0, stream, block))
        elif shape == "padded":
            self.say(frame(HEADERS, flags | PADDED | WITH_PRIORITY, stream, b"\2" + bytes(5) + block + b"--"))
        elif shape == "broken":
            self.say(frame(HEADERS, flags | PADDED, stream, block))
        else:
            self.say(frame(HEADERS, flags, stream, block))

    @rule(size=st.sampled_from([0, 1, 20, 3000, 16_384]), ends=st.booleans(), pick=PICK, padded=st.booleans())
    def data(self, size: int, ends: bool, pick: int, padded: bool) -> None:
        flags = END_STREAM if ends else 0
        payload = bytes(size)
        if padded:
            flags, payload = flags | PADDED, (b"\1" + payload)[:16_384]
        self.say(frame(DATA, flags, self.stream_of(max(0, pick)), payload))

    @rule(size=st.sampled_from([1, 10, 5000, 1 << 17, 0, 0x7FFFFFFF]), pick=PICK)
    def window(self, size: int, pick: int) -> None:
        self.say(window(0 if pick < 0 else self.stream_of(pick), size if size or pick >= 0 else 1))

    @rule(
        values=st.dictionaries(
            st.sampled_from(["_4"] * 3 + ["_5", "_2", "_1", "_77"]),
            st.sampled_from([0, 1, 50, 16_384, 20_000, 100_000, 1 << 24, (1 << 31) - 1, 1 << 31]),
            max_size=3,
        )
    )
    def settings(self, values: dict[str, int]) -> None:
        self.say(say(**values))

    @rule(pick=PICK)
    def reset(self, pick: int) -> None:
        self.say(rst(self.stream_of(max(0, pick))))

    @rule(pick=PICK, value=st.sampled_from([b"", b"u=0", b"u=3, i", b"u=7", b"?"]))
    def priority(self, pick: int, value: bytes) -> None:
        self.say(priority_update(self.stream_of(pick), value))

    @rule(kind=st.integers(0, 20), flags=st.integers(0, 255), pick=PICK, payload=PAYLOADS)
    def anything(self, kind: int, flags: int, pick: int, payload: bytes) -> None:
        self.say(frame(kind, flags, self.stream_of(pick), payload))

    # What the owner does

    def pick(self, pick: int) -> H2Stream | None:
        streams = [each for each in self.owner.machine.streams.values() if self.told.get(each.id) != "all"]
        return streams[pick % len(streams)] if streams else None

    SIZE = st.sampled_from([0, 1, 30, 3000, 16_384, 16_385, 70_000])

    @rule(pick=st.integers(0, 5), size=SIZE, done=st.booleans(), urgent=st.booleans(), trailers=st.booleans())
    def answer(self, pick: int, size: int, done: bool, urgent: bool, trailers: bool) -> None:
        stream = self.pick(pick)
        if stream is None:
            return
        owner = self.owner
        if self.told.get(stream.id) is None:
            if urgent:
                owner.machine.urge(stream)
            owner.answer(stream, bytes(size), done)
        else:
            if trailers and done:
                stream.trailers = TRAILERS
            owner.body(stream, bytes(size), done)
        self.told[stream.id] = "all" if done else "some"

    @rule(pick=st.integers(0, 5))
    def interim(self, pick: int) -> None:
        stream = self.pick(pick)
        if stream is not None and self.told.get(stream.id) is None:
            self.owner.sent(self.owner.machine.interim(stream, encode_status(103)))

    @rule(pick=st.integers(0, 5))
    def break_off(self, pick: int) -> None:
        stream = self.pick(pick)
        if stream is not None:
            self.owner.machine.reset(stream, Code.INTERNAL_ERROR)
            self.owner.sent(b"")

    @rule(pick=st.integers(0, 5))
    def hold(self, pick: int) -> None:
        stream = self.pick(pick)
        if stream is not None:
            made = self.owner.machine
            if stream.held:
                made.release(stream)
            else:
                made.hold(stream)
            self.owner.sent(b"")

    @rule()
    def pump(self) -> None:
        self.owner.pump()

    @rule(blocked=st.booleans())
    def block(self, blocked: bool) -> None:
        self.owner.machine.blocked = blocked

    @precondition(lambda self: self.owner.machine.last > 6)
    @rule(last=st.booleans())
    def leave(self, last: bool) -> None:
        self.owner.sent(self.owner.machine.go() if last else self.owner.machine.leave())

    @invariant()
    def everything_agrees(self) -> None:
        self.owner.check()
        for stream_id, response in self.owner.peer.streams.items():
            if response.ended and response.reset is None:
                known = self.owner.machine.streams.get(stream_id)
                assert known is None or known.connects

    def teardown(self) -> None:
        """Whoever opens their windows gets everything."""
        owner = self.owner
        owner.machine.blocked = False
        if owner.machine.partial:
            return
        self.say(say(_4=1 << 24))
        if self.owner is owner and owner.machine.window < 1 << 30:
            self.say(window(0, 1 << 29))
            for stream in list(owner.machine.streams.values()):
                if stream.window <= 0:
                    self.say(window(stream.id, 1 << 25))
            owner.pump()
            assert not owner.machine.held_up and not owner.machine.turns.size
            owner.check()


TestConnection = Connection.TestCase
TestConnection.settings = settings(max_examples=80, stateful_step_count=30)


# A peer that keeps to the rules


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, FRAME), st.integers(0, 255), st.booleans()), max_size=60
    )
)
def test_who_keeps_to_their_windows_is_never_refused(
    sent: list[tuple[int, int, int, bool]],
) -> None:
    """And unless a body is held, they can always go on."""
    owner = Owner(machine(body_limit=1 << 40))
    made = owner.machine
    streams = [owner.ask(post(number)) for number in (1, 3, 5)]
    spent = {0: 0, 1: 0, 3: 0, 5: 0}
    for which, size, padding, held in sent:
        stream = streams[which]
        if held:
            made.hold(stream)
        else:
            made.release(stream)
        owner.sent(b"")
        payload = (bytes((padding,)) + bytes(max(size, padding)))[:FRAME]
        credit = FIRST + owner.peer.grants[stream.id] - spent[stream.id]
        assert credit == stream.credit
        assert held or credit >= FIRST // 2
        if len(payload) > credit:
            continue
        told = owner.receive(frame(DATA, PADDED, stream.id, payload))
        assert events(told) == ([BODY] if len(payload) > padding + 1 else [])
        for each in (0, stream.id):
            spent[each] += len(payload)
        assert 65_535 + owner.peer.grants[0] - spent[0] > 0
        owner.check()


def test_settings_are_read_in_their_order() -> None:
    owner = Owner()
    payload = b"".join(struct.pack(">HL", 4, value) for value in (10, 20, 15))
    owner.receive(frame(SETTINGS, 0, 0, payload))
    assert owner.ask(head(1)).window == 15
