"""Messages between two processes, however they are cut, whoever does not read, and what is not understood."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Generic, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.control.channel import (
    OURS,
    PROTOCOL,
    ControlChannel,
    Preamble,
    Received,
    Sent,
    open_to_control,
    open_to_worker,
)
from fedproxy.control.messages import (
    Account,
    Drain,
    FromWorker,
    GetAccount,
    LaunchMoved,
    LaunchRequested,
    MemberHealth,
    Ready,
    ToWorker,
    is_from_worker,
    is_to_worker,
)
from fedproxy.errors import ChannelError
from tests.rig import guard, until
from tests.rig.channel import FROM_WORKER, TO_WORKER


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class End(Generic[Sent, Received]):
    """One end, and what came there."""

    def __init__(self) -> None:
        self.heard: list[Received] = []
        self.refused: list[str] = []
        self.lost = 0

    channel: ControlChannel[Sent, Received]

    def on_refused(self, error: ChannelError) -> None:
        self.refused.append(str(error))

    def on_lost(self) -> None:
        self.lost += 1


Control = End[ToWorker, FromWorker]
Worker = End[FromWorker, ToWorker]


async def control_over(sock: socket.socket) -> Control:
    end = Control()
    end.channel = await open_to_worker(sock, end.heard.append, end.on_refused, end.on_lost)
    return end


async def worker_over(sock: socket.socket) -> Worker:
    end = Worker()
    end.channel = await open_to_control(sock, end.heard.append, end.on_refused, end.on_lost)
    return end


@asynccontextmanager
async def both() -> AsyncIterator[tuple[Control, Worker]]:
    one, other = socket.socketpair()
    control, worker = await control_over(one), await worker_over(other)
    yield control, worker
    control.channel.close()
    worker.channel.close()
    await until(lambda: control.lost and worker.lost, "both ends are closed")


def test_samples_are_all_there_are() -> None:
    assert {*map(type, TO_WORKER)} == {*get_args(ToWorker)}
    assert {*map(type, FROM_WORKER)} == {*get_args(FromWorker)}


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=40))
def test_messages_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    worker = Worker()
    channel = ControlChannel[FromWorker, ToWorker](
        *("the worker", "the control process", is_to_worker),
        *(worker.heard.append, worker.on_refused, worker.on_lost),
    )
    data = OURS.pack() + b"".join(framed(pickle.dumps(message)) for message in TO_WORKER)
    for cut in cuts:
        channel.data_received(data[:cut])
        data = data[cut:]
    channel.data_received(data)
    assert worker.heard == TO_WORKER
    assert worker.refused == []


async def test_every_message_arrives_as_it_was() -> None:
    async with both() as (control, worker):
        for to_worker in TO_WORKER:
            control.channel.send(to_worker)
        for from_worker in FROM_WORKER:
            worker.channel.send(from_worker)
        await until(lambda: len(worker.heard) == len(TO_WORKER), "all that the worker is told")
        await until(lambda: len(control.heard) == len(FROM_WORKER), "all that it tells")
        assert worker.heard == TO_WORKER
        for heard, sent in zip(control.heard, FROM_WORKER, strict=True):
            if isinstance(heard, Account) and isinstance(sent, Account):
                # Counters are not compared with each other by value.
                assert (heard.number, heard.survey.members) == (sent.number, sent.survey.members)
            else:
                assert heard == sent


async def test_large_messages_go_both_ways_in_order() -> None:
    async with both() as (control, worker):
        health = MemberHealth("a", True, ("x" * 5_000_000,))
        moved = LaunchMoved(b"k" * 5_000_000, "a")
        for number in (1, 2):
            control.channel.send(health)
            control.channel.send(GetAccount(number))
            worker.channel.send(moved)
            worker.channel.send(Ready())
        await until(lambda: len(control.heard) == len(worker.heard) == 4, "all of it")
        assert worker.heard == [health, GetAccount(1), health, GetAccount(2)]
        assert control.heard == [moved, Ready(), moved, Ready()]


async def test_facts_are_dropped_when_nobody_reads_and_the_rest_waits() -> None:
    async with both() as (control, worker):
        worker.channel._transport.pause_reading()
        fact = LaunchMoved(b"k" * 1000, "a")
        for _ in range(10_000):
            control.channel.send_fresh(fact)
        assert control.channel._transport.get_write_buffer_size() < 1_000_000
        control.channel.send(GetAccount(7))
        worker.channel._transport.resume_reading()
        await until(lambda: GetAccount(7) in worker.heard, "what had to wait")
        assert 0 < worker.heard.count(fact) < 10_000
        control.channel.send_fresh(LaunchRequested(b"c"))
        await until(lambda: worker.heard[-1] == LaunchRequested(b"c"), "fresh ones again")


async def test_end_of_one_side_is_told_once_and_sending_then_does_nothing() -> None:
    async with both() as (control, worker):
        worker.channel.send(Ready())
        worker.channel.close()
        await until(lambda: control.lost, "the end")
        assert control.heard == [Ready()]
        assert not control.channel.is_open and not worker.channel.is_open
        control.channel.send(Drain(1.0))
        control.channel.send_fresh(LaunchRequested(b"c"))
    assert (control.lost, worker.lost) == (1, 1)


async def test_what_waits_is_sent_before_the_end() -> None:
    async with both() as (control, worker), guard():
        worker.channel._transport.pause_reading()
        control.channel.send(MemberHealth("a", True, ("x" * 2_000_000,)))
        control.channel.send(GetAccount(3))
        control.channel.close()
        await asyncio.sleep(0)
        worker.channel._transport.resume_reading()
        await until(lambda: worker.lost, "the end")
        assert worker.heard[-1] == GetAccount(3)


# What is not understood


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pickle.dumps({"a": 1}), "the worker sent builtins.dict, which is not one of its messages"),
        (
            pickle.dumps(Drain(1.0)),
            "the worker sent fedproxy.control.messages.Drain, which is not one of its messages",
        ),
        (b"", "the worker sent a message that cannot be read: EOFError"),
        (b"GET / HTTP/1.1", "the worker sent a message that cannot be read: UnpicklingError"),
        (b"cno_such_module\nName\n.", "the worker sent a message that cannot be read: ModuleNotFoundError"),
        (
            b"cfedproxy.control.messages\nNoSuchMessage\n.",
            "the worker sent a message that cannot be read: AttributeError",
        ),
    ],
    ids=["other type", "other direction", "empty", "no pickle", "other module", "other class"],
)
async def test_message_that_is_none_is_refused_once_and_nothing_after_it_is_read(
    data: bytes, why: str
) -> None:
    ours, theirs = socket.socketpair()
    control = await control_over(ours)
    with theirs:
        theirs.sendall(OURS.pack() + framed(pickle.dumps(Ready())) + framed(data))
        await until(lambda: control.refused, "the refusal")
        theirs.sendall(framed(data) * 2)
    await until(lambda: control.lost, "the end is seen all the same")
    assert control.heard == [Ready()]
    (said,) = control.refused
    assert said.startswith(why)


async def test_worker_refuses_what_only_a_worker_may_send_and_can_still_answer() -> None:
    async with both() as (control, worker):
        control.channel._transport.write(framed(pickle.dumps(Ready())))
        await until(lambda: worker.refused, "the refusal")
        assert worker.refused == [
            "the control process sent fedproxy.control.messages.Ready, which is not one of its messages"
        ]
        control.channel.send(GetAccount(1))
        worker.channel.send(Ready())
        await until(lambda: control.heard == [Ready()], "what it still says")
        assert worker.heard == []


def test_only_members_of_the_unions_are_messages() -> None:
    assert all(is_to_worker(message) for message in TO_WORKER)
    assert all(is_from_worker(message) for message in FROM_WORKER)
    nonsense: object
    for nonsense in (None, {}, "Ready", Ready, ToWorker):
        assert not is_to_worker(nonsense)
        assert not is_from_worker(nonsense)


# Who is at the other end

ADVICE = "fedproxy was changed while it ran; restart it"
OTHERS = [Preamble(PROTOCOL, "99.0"), Preamble(PROTOCOL + 1, OURS.release)]


def test_bytes_of_the_preamble_never_change() -> None:
    data = b"fedproxy\x00\x07\x051.2.3"
    assert Preamble(7, "1.2.3").pack() == data
    assert Preamble.read(data + b"rest") == (Preamble(7, "1.2.3"), b"rest")
    assert str(Preamble(7, "1.2.3")) == "fedproxy 1.2.3 (protocol 7)"
    assert [Preamble.read(data[:length]) for length in range(len(data))] == [None] * len(data)


@given(st.integers(0, 2**16 - 1), st.text(st.characters(codec="ascii"), max_size=255), st.binary(max_size=20))
def test_preamble_is_read_as_it_was_written(protocol: int, release: str, rest: bytes) -> None:
    preamble = Preamble(protocol, release)
    assert Preamble.read(preamble.pack() + rest) == (preamble, rest)


def test_protocol_is_another_when_messages_are() -> None:
    """If this fails, raise PROTOCOL and note here what the messages are now."""
    classes = sorted({*get_args(ToWorker), *get_args(FromWorker)}, key=lambda each: each.__name__)
    shapes = [f"{each.__name__}({', '.join(f.name for f in fields(each))})" for each in classes]
    assert (PROTOCOL, shapes) == (
        7,
        [
            "Account(number, survey, after)",
            "AccountPart(at, members)",
            "ApplyConfig(config, intents, workers, pages)",
            "BreakerInDoubt(name)",
            "BreakerOpened(name, witnesses)",
            "BuildBegun(image, name)",
            "ConfigRefused(faults)",
            "Drain(seconds)",
            "Explain(number, target, host, cookie, accept, client)",
            "Explained(number, text)",
            "GetAccount(number)",
            "Happened(event)",
            "LaunchMoved(key, name)",
            "LaunchRequested(client)",
            "LaunchSeen(seen)",
            "LaunchSlotWanted(name)",
            "LaunchSlots(limits)",
            "LaunchesInFlight(running)",
            "LaunchesTaught(content)",
            "Logo(url, key, kind, content)",
            "MemberHealth(name, healthy, reasons, pods, quota, base_path, weight, checks, within)",
            "MemberServes(name, clients)",
            "Ready()",
            "RenewCertificates()",
            "ReopenLog()",
            "SessionsKnown(records)",
            "Start(apply, health, tickets, sockets, given)",
            "Stopping()",
            "Sync(number)",
            "SyncDone(number)",
            "TicketSecret(secret)",
        ],
    )


@pytest.mark.parametrize("theirs", OTHERS, ids=str)
async def test_control_process_refuses_a_worker_of_another_version(theirs: Preamble) -> None:
    ours, sock = socket.socketpair()
    control = await control_over(ours)
    with sock:
        sock.sendall(theirs.pack() + framed(pickle.dumps(Ready())))
        await until(lambda: control.refused, "the refusal")
        assert control.refused == [f"the worker is {theirs}, the control process is {OURS}: {ADVICE}"]
    await until(lambda: control.lost, "the end")
    assert control.heard == []


@pytest.mark.parametrize("theirs", OTHERS, ids=str)
async def test_worker_refuses_a_control_process_of_another_version(theirs: Preamble) -> None:
    ours, sock = socket.socketpair()
    worker = await worker_over(ours)
    with sock:
        sock.sendall(theirs.pack() + framed(pickle.dumps(Drain(1.0))))
        await until(lambda: worker.refused, "the refusal")
        assert worker.refused == [f"the control process is {theirs}, the worker is {OURS}: {ADVICE}"]
    await until(lambda: worker.lost, "the end")
    assert worker.heard == []


@pytest.mark.parametrize(
    "data",
    [
        framed(pickle.dumps(Ready())),  # what fedproxy sent before there were preambles
        b"fedprox!",
        b"\0",
        b"Traceback (most recent call last):\n" * 100,
    ],
    ids=["message", "nearly", "short", "long"],
)
async def test_garbage_in_place_of_the_preamble_is_refused_unread(data: bytes) -> None:
    ours, sock = socket.socketpair()
    control = await control_over(ours)
    with sock:
        sock.sendall(data)
        await until(lambda: control.refused, "the refusal")
        assert control.refused == [
            f"the worker does not say which fedproxy it is, the control process is {OURS}: {ADVICE}"
        ]
    await until(lambda: control.lost, "the end")
    assert control.heard == []


@pytest.mark.parametrize("length", [0, 5, 9, len(OURS.pack()) - 1])
async def test_preamble_that_is_cut_off_is_only_the_end(length: int) -> None:
    ours, sock = socket.socketpair()
    control = await control_over(ours)
    with sock:
        sock.sendall(OURS.pack()[:length])
    await until(lambda: control.lost, "the end")
    assert (control.heard, control.refused) == ([], [])


async def test_each_end_says_who_it_is_before_anything_else() -> None:
    ours, sock = socket.socketpair()
    worker = await worker_over(ours)
    with sock:
        worker.channel.send(Ready())
        sock.settimeout(10)
        expected = OURS.pack() + framed(pickle.dumps(Ready()))
        said = b""
        while len(said) < len(expected):
            said += await asyncio.to_thread(sock.recv, 100)
        assert said == expected
    await until(lambda: worker.lost, "the end")
