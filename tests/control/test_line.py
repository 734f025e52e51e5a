"""Messages between two processes, however they are cut, and whoever does not read."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.control.line import (
    Ask,
    Doubted,
    Drain,
    Fact,
    Health,
    Launched,
    Launches,
    Line,
    Moved,
    Ready,
    Served,
    Tripped,
)
from tests.rig import guard, until

MESSAGES: list[object] = [
    Ask(1),
    Health("a", False, ("x" * 300,)),
    Ready(),
    Tripped("b"),
    Doubted("b"),
    Served("b", frozenset((b"k",))),
    Launches({"a": 3}),
    Drain(0.5),
]


class End:
    """One end, and what came there."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.lost = 0

    line: Line

    async def open(self, sock: socket.socket) -> None:
        self.line = await Line.open(sock, self.heard.append, self.on_lost)

    def on_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def line() -> AsyncIterator[tuple[End, End]]:
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await end.open(sock)
    yield ends
    for end in ends:
        end.line.close()
    await until(lambda: all(end.lost for end in ends), "both ends are closed")


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=40))
def test_messages_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    heard: list[object] = []
    line = Line(heard.append, lambda: None)
    data = b"".join(struct.pack(">I", len(raw)) + raw for raw in map(pickle.dumps, MESSAGES))
    for cut in cuts:
        line.data_received(data[:cut])
        data = data[cut:]
    line.data_received(data)
    assert heard == MESSAGES


async def test_large_messages_go_both_ways_in_order() -> None:
    async with line() as (one, other):
        large = Health("a", True, ("x" * 5_000_000,))
        for message in (large, Ask(1), large, Ask(2)):
            one.line.send(message)
            other.line.send(message)
        await until(lambda: len(one.heard) == len(other.heard) == 4, "all of it")
        assert one.heard == other.heard == [large, Ask(1), large, Ask(2)]


async def test_facts_are_dropped_when_nobody_reads_and_the_rest_waits() -> None:
    async with line() as (one, other):
        other.line._transport.pause_reading()
        fact: Fact = Moved(b"k" * 1000, "a")
        for _ in range(10_000):
            one.line.send_fresh(fact)
        assert one.line._transport.get_write_buffer_size() < 1_000_000
        one.line.send(Ask(7))
        other.line._transport.resume_reading()
        await until(lambda: Ask(7) in other.heard, "what had to wait")
        assert 0 < other.heard.count(fact) < 10_000
        one.line.send_fresh(Launched(b"c"))
        await until(lambda: other.heard[-1] == Launched(b"c"), "fresh ones again")


async def test_end_of_one_side_is_told_once_and_sending_then_does_nothing() -> None:
    async with line() as (one, other):
        one.line.send(Ready())
        one.line.close()
        await until(lambda: other.lost, "the end")
        assert other.heard == [Ready()]
        assert not one.line.is_open and not other.line.is_open
        other.line.send(Ready())
        other.line.send_fresh(Tripped("a"))
    assert (one.lost, other.lost) == (1, 1)


async def test_what_waits_is_sent_before_the_end() -> None:
    async with line() as (one, other), guard():
        other.line._transport.pause_reading()
        one.line.send(Health("a", True, ("x" * 2_000_000,)))
        one.line.send(Ask(3))
        one.line.close()
        await asyncio.sleep(0)
        other.line._transport.resume_reading()
        await until(lambda: other.lost, "the end")
        assert other.heard[-1] == Ask(3)
