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

from fedproxy.control.channel import ControlChannel
from fedproxy.control.messages import (
    BreakerInDoubt,
    BreakerOpened,
    Drain,
    Fact,
    GetAccount,
    LaunchesInFlight,
    LaunchMoved,
    LaunchRequested,
    MemberHealth,
    MemberServes,
    Ready,
)
from tests.rig import guard, until

MESSAGES: list[object] = [
    GetAccount(1),
    MemberHealth("a", False, ("x" * 300,)),
    Ready(),
    BreakerOpened("b"),
    BreakerInDoubt("b"),
    MemberServes("b", frozenset((b"k",))),
    LaunchesInFlight({"a": 3}),
    Drain(0.5),
]


class End:
    """One end, and what came there."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.lost = 0

    channel: ControlChannel

    async def open(self, sock: socket.socket) -> None:
        self.channel = await ControlChannel.open(sock, self.heard.append, self.on_lost)

    def on_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def channel() -> AsyncIterator[tuple[End, End]]:
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        await end.open(sock)
    yield ends
    for end in ends:
        end.channel.close()
    await until(lambda: all(end.lost for end in ends), "both ends are closed")


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=40))
def test_messages_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    heard: list[object] = []
    made = ControlChannel(heard.append, lambda: None)
    data = b"".join(struct.pack(">I", len(raw)) + raw for raw in map(pickle.dumps, MESSAGES))
    for cut in cuts:
        made.data_received(data[:cut])
        data = data[cut:]
    made.data_received(data)
    assert heard == MESSAGES


async def test_large_messages_go_both_ways_in_order() -> None:
    async with channel() as (one, other):
        large = MemberHealth("a", True, ("x" * 5_000_000,))
        for message in (large, GetAccount(1), large, GetAccount(2)):
            one.channel.send(message)
            other.channel.send(message)
        await until(lambda: len(one.heard) == len(other.heard) == 4, "all of it")
        assert one.heard == other.heard == [large, GetAccount(1), large, GetAccount(2)]


async def test_facts_are_dropped_when_nobody_reads_and_the_rest_waits() -> None:
    async with channel() as (one, other):
        other.channel._transport.pause_reading()
        fact: Fact = LaunchMoved(b"k" * 1000, "a")
        for _ in range(10_000):
            one.channel.send_fresh(fact)
        assert one.channel._transport.get_write_buffer_size() < 1_000_000
        one.channel.send(GetAccount(7))
        other.channel._transport.resume_reading()
        await until(lambda: GetAccount(7) in other.heard, "what had to wait")
        assert 0 < other.heard.count(fact) < 10_000
        one.channel.send_fresh(LaunchRequested(b"c"))
        await until(lambda: other.heard[-1] == LaunchRequested(b"c"), "fresh ones again")


async def test_end_of_one_side_is_told_once_and_sending_then_does_nothing() -> None:
    async with channel() as (one, other):
        one.channel.send(Ready())
        one.channel.close()
        await until(lambda: other.lost, "the end")
        assert other.heard == [Ready()]
        assert not one.channel.is_open and not other.channel.is_open
        other.channel.send(Ready())
        other.channel.send_fresh(BreakerOpened("a"))
    assert (one.lost, other.lost) == (1, 1)


async def test_what_waits_is_sent_before_the_end() -> None:
    async with channel() as (one, other), guard():
        other.channel._transport.pause_reading()
        one.channel.send(MemberHealth("a", True, ("x" * 2_000_000,)))
        one.channel.send(GetAccount(3))
        one.channel.close()
        await asyncio.sleep(0)
        other.channel._transport.resume_reading()
        await until(lambda: other.lost, "the end")
        assert other.heard[-1] == GetAccount(3)
