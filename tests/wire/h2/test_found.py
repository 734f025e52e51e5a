"""What breaks, each with the smallest input that was found."""

from __future__ import annotations

import gc
import weakref

import pytest

from fedproxy.errors import ConnectionFault
from fedproxy.wire.h2.frame import Code
from fedproxy.wire.h2.server import FrameEvent
from fedproxy.wire.h2.stream import H2Stream
from tests.rig.h2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    frame,
)
from tests.wire.h2.owner import BEGIN, Owner, head, machine, plain, post, rst, settings, window


def test_head_that_resizes_the_table_is_not_remembered() -> None:
    """The same bytes change the table each time, also if it was empty and nothing had to go."""
    owner = Owner()
    block = plain(BEGIN)
    grow, shrink = b"\x3f\xe1\x1f" + block, b"\x20" + block
    indexes = block + b"\x40\x01x\x01y"
    for stream, said in ((1, grow), (3, shrink), (5, grow), (7, indexes)):
        owner.answer(owner.ask(frame(HEADERS, END_STREAM | END_HEADERS, stream, said)))
    # The peer's table has 4096 bytes, and that entry.
    told = owner.receive(frame(HEADERS, END_STREAM | END_HEADERS, 9, block + b"\xbe"))
    assert owner.fault is None
    assert [each.event for each in told] == [FrameEvent.REQUEST]
    assert owner.machine.stream.block.raw.endswith(b"\r\nx: y\r\n\r\n")


@pytest.mark.parametrize("late", [False, True])
def test_answer_to_a_refused_head_waits_for_its_window(late: bool) -> None:
    """There is no block that could say a priority."""
    owner = Owner(said=settings(_4=0 if late else 5))
    told = owner.receive(head(1, BEGIN[1:]))
    assert [(each.event, each.error) for each in told] == [(FrameEvent.FAULT, "BadRequest")]
    response = owner.answer(owner.machine.stream, b"malformed")
    assert response.body == (b"" if late else b"malfo")
    owner.receive(window(1, 100))
    owner.pump()
    assert (response.body, response.ended) == (b"malformed", True)


@pytest.mark.parametrize("more", [frame(DATA, END_STREAM, 3, b"body"), rst(3), window(3, 10)])
def test_frames_of_a_stream_that_came_after_the_last_goaway_are_ignored(more: bytes) -> None:
    """RFC 9113 section 6.8: those streams are discarded, and the others go on."""
    owner = Owner()
    stream = owner.ask(head(1))
    owner.sent(owner.machine.go())
    assert owner.receive(post(3), more) == []
    assert owner.fault is None
    assert owner.answer(stream, b"ok").body == b"ok"


def test_connection_that_is_asked_to_leave_early_still_begins_with_settings() -> None:
    """RFC 9113 section 3.4."""
    made = machine()
    made.receive(PREFACE)
    made.leave()
    assert not made.begun
    with pytest.raises(ConnectionFault):
        made.receive(frame(PING, 0, 0, bytes(8)))


def test_bodies_that_no_member_takes_do_not_stop_those_that_are_taken() -> None:
    """More than half of what a connection may send is held, and what else has come is never granted anew."""
    owner = Owner(machine(body_limit=1 << 40, streams=100))
    made = owner.machine
    part, first = bytes(16_384), owner.peer.settings[4]
    all_of_them = 65_535 + owner.peer.grants[0]
    sent = 0

    def may_send() -> int:
        return 65_535 + owner.peer.grants[0] - sent

    for number in range(1, all_of_them // first + 4, 2):
        held = owner.ask(post(number))
        made.hold(held)
        for _ in range(first // len(part)):
            owner.receive(frame(DATA, 0, number, part))
            sent += len(part)
    assert sent > all_of_them // 2
    owner.ask(post(199))
    for _ in range(2 * all_of_them // len(part)):
        assert may_send() >= len(part), "an upload that its member takes can never go on"
        owner.receive(frame(DATA, 0, 199, part))
        sent += len(part)
    assert owner.fault is None


@pytest.mark.parametrize("how", ["answered", "reset by the edge", "reset by the visitor"])
def test_connection_may_send_again_once_bodies_that_nobody_takes_are_gone(how: str) -> None:
    """Their streams ended without DATA that could make the edge look at what the connection may send."""
    owner = Owner(machine(body_limit=1 << 40, streams=100))
    made = owner.machine
    part, first = bytes(16_384), owner.peer.settings[4]
    all_of_them = 65_535 + owner.peer.grants[0]
    streams = [owner.ask(post(2 * each + 1)) for each in range(all_of_them // first)]
    for stream in streams:
        made.hold(stream)
        for _ in range(first // len(part)):
            owner.receive(frame(DATA, 0, stream.id, part))
    for stream in streams:
        if how == "answered":
            owner.answer(stream, b"no")
        elif how == "reset by the edge":
            made.reset(stream, Code.CANCEL)
            owner.sent(b"")
        else:
            owner.receive(rst(stream.id))
    assert not made.streams
    assert 65_535 + owner.peer.grants[0] - all_of_them > 0, "nothing can be sent any more"


@pytest.mark.parametrize(
    "begin", [head(1), post(1), head(1, flags=END_STREAM) + frame(CONTINUATION, END_HEADERS, 1)]
)
def test_request_that_is_taken_back_at_once_is_none(begin: bytes) -> None:
    """CVE-2023-44487: nobody is asked for what nobody waits for any more."""
    owner = Owner()
    assert [each.event for each in owner.receive(begin + rst(1))] == [FrameEvent.RESET]
    assert [each.event for each in owner.receive(head(3), rst(3))] == [FrameEvent.REQUEST, FrameEvent.RESET]
    assert not owner.machine.streams
    told = owner.receive(head(5) + rst(1) + head(7) + window(7, 1) + rst(7))
    assert [each.event for each in told][:2] == [FrameEvent.REQUEST, FrameEvent.REQUEST]
    assert owner.fault is None and [*owner.machine.streams] == [5]


@pytest.mark.parametrize("size", [5, 16_384])
def test_request_is_not_taken_back_by_what_is_no_reset(size: int) -> None:
    owner = Owner()
    begun = frame(RST_STREAM, 0, 1, bytes(size))[:13]
    assert [each.event for each in owner.read(head(1) + begun)] == [FrameEvent.REQUEST]


def test_machine_lets_go_of_its_owner() -> None:
    """Each refers to the other, which would keep both until memory is collected."""

    class Visitor:
        def __init__(self) -> None:
            self.machine = machine(make=self.make)

        def make(self, number: int, window: int, credit: int, state: int) -> H2Stream:
            return H2Stream(number, window, credit, state)

    visitor = Visitor()
    owner = Owner(visitor.machine)
    owner.ask(head(1))
    gone = weakref.ref(visitor)
    gc.disable()
    try:
        visitor.machine.let_go()
        del visitor
        assert gone() is None
        assert not owner.machine.streams
    finally:
        gc.enable()
