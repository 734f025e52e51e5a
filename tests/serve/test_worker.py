"""What a worker does with what it is told, and what it says when it does not understand."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from fedproxy.control import hand
from fedproxy.control.channel import OURS, Preamble, open_to_control
from fedproxy.control.messages import (
    Drain,
    FromWorker,
    GetAccount,
    ReopenLog,
    SessionsKnown,
    Start,
    Sync,
    SyncDone,
    ToWorker,
)
from fedproxy.errors import ChannelError
from fedproxy.observe.events import Events
from fedproxy.serve.worker import Worker
from tests.rig import until
from tests.rig.channel import FACTS, TO_WORKER
from tests.rig.running import patience


class Plane:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def borrow(self, key: int, at: int, sock: socket.socket) -> None:
        self.asked.append(f"borrow {key} {at}")
        sock.close()

    def give_back(self, key: int) -> None:
        self.asked.append(f"give_back {key}")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.asked.append(name)


class Output:
    """Where events go."""

    dropped = 0

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
async def plane() -> Plane:
    return Plane()


@pytest.fixture
async def worker(plane: Plane, output: Output, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    made = Worker(Events(cast(Any, output)))
    monkeypatch.setattr(made, "plane", plane)
    ours, theirs = socket.socketpair()
    made.channel = await open_to_control(ours, made._on_message, made._on_refused, made._on_lost)
    with theirs:
        yield made
        made.channel.close()
        await until(made._lost.is_set, "the end of the channel")
    if made._alone is not None:
        made._alone.cancel()


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
async def test_everything_that_a_worker_is_told_is_done(
    worker: Worker, plane: Plane, monkeypatch: pytest.MonkeyPatch, message: ToWorker
) -> None:
    answered, called = list[int](), list[int]()
    monkeypatch.setattr(worker, "_answer", answered.append)
    sent: list[FromWorker] = []
    monkeypatch.setattr(worker.channel, "send", sent.append)
    worker._waiting[2] = lambda: called.append(2)
    worker._serving = True
    worker._on_message(message)
    if message in FACTS:
        assert plane.asked == ["hear"]
    elif isinstance(message, Start):
        assert await worker._started is message
    elif isinstance(message, GetAccount):
        assert answered == [message.number]
    elif isinstance(message, Drain):
        assert await worker._told == message.seconds
    elif isinstance(message, Sync):
        assert sent == [SyncDone(message.number)]
    elif isinstance(message, SyncDone):
        assert called == [message.number]
    else:
        assert len(plane.asked) == 1


async def test_what_is_told_before_it_serves_waits(worker: Worker, plane: Plane) -> None:
    worker._on_message(ReopenLog())
    assert plane.asked == []
    assert worker._early == [ReopenLog()]
    worker._on_message(Drain(1.0))
    assert await worker._told == 1.0


async def test_control_process_that_is_not_understood_at_the_start_ends_the_worker(worker: Worker) -> None:
    worker._on_refused(ChannelError("why"))
    with pytest.raises(ChannelError, match="why"):
        await worker._started


async def test_control_process_that_is_not_understood_later_is_asked_for_another_worker(
    worker: Worker, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(worker.channel, "send", sent.append)
    (start,) = [message for message in TO_WORKER if isinstance(message, Start)]
    worker._on_message(start)
    worker._on_refused(ChannelError("why"))
    assert [type(message).__name__ for message in sent] == ["Stopping"]
    assert output.text.endswith(f" worker.replaced worker {os.getpid()} is to be replaced: why\n")
    assert not worker._told.done()


async def test_sockets_are_borrowed_and_given_back_and_those_with_another_note_are_closed(
    worker: Worker, plane: Plane, output: Output
) -> None:
    lent, unknown = socket.socket(), socket.socket()
    for note, sockets in (([2, 0], [lent]), ({"a": 1}, [unknown]), ([2, None], [])):
        worker._handed.put_nowait((note, sockets))
    borrowing = asyncio.create_task(worker._borrow())
    await until(lambda: len(plane.asked) == 2, "all of them")
    borrowing.cancel()
    assert plane.asked == ["borrow 2 0", "give_back 2"]
    assert unknown.fileno() == -1
    assert (
        output.text.partition(" worker.replaced ")[2]
        == f"worker {os.getpid()} cannot read a note: {{'a': 1}}\n"
    )


async def test_worker_of_another_release_than_its_control_process_says_so_and_ends() -> None:
    before = Preamble(OURS.protocol, "0.0.1")
    ours, theirs = socket.socketpair()
    hands = hand.pair()
    with ours, theirs, hands[0], hands[1]:
        numbers = theirs.fileno(), hands[1].fileno()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fedproxy.serve.worker", *map(str, numbers)),
            pass_fds=numbers,
            stderr=asyncio.subprocess.PIPE,
        )
        theirs.close()
        ours.sendall(before.pack() + b"\0\0\0\1x")
        async with patience():
            _, said = await process.communicate()
        ours.settimeout(10)
        assert Preamble.read(ours.recv(1000)) == (OURS, b"")
    assert process.returncode == 1
    assert said.decode().partition(" error   worker.failed ")[2] == (
        f"worker {process.pid}: the control process is {before}, the worker is {OURS}: "
        "fedproxy was changed while it ran; restart it\n"
    )


async def test_launches_do_not_wait_for_a_control_process_that_does_not_turn(worker: Worker) -> None:
    called: list[int] = []

    def callback(number: int) -> Callable[[], None]:
        return lambda: called.append(number)

    for number in range(1001):
        worker._synchronize(callback(number))
    assert called == [0]
    worker._on_lost()
    assert len(called) == 1001
    worker.channel.close()
    worker._synchronize(callback(2000))
    assert called[-1] == 2000


@pytest.mark.parametrize("ground", [1, 2])
async def test_launched_sessions_are_told_even_if_nobody_reads(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ground: int
) -> None:
    sent: list[object] = []
    monkeypatch.setattr(worker.channel, "send", sent.append)
    monkeypatch.setattr(worker.channel, "send_fresh", lambda message: None)
    known = SessionsKnown(((b"/user/x", ground, "https://a.test", "a", 1.0, 1.0, b""),))
    worker._tell(known)
    assert sent == ([known] if ground == 2 else [])


async def test_what_is_known_of_sessions_is_taken_before_it_serves(worker: Worker, plane: Plane) -> None:
    sent: list[FromWorker] = []
    worker.channel.send = sent.append  # type: ignore[method-assign, assignment]
    worker._on_message(SessionsKnown(()))
    worker._on_message(Sync(3))
    assert (plane.asked, worker._early, sent) == (["hear"], [], [SyncDone(3)])


async def test_message_that_comes_while_the_channel_is_opened_waits_for_it(worker: Worker) -> None:
    worker._unread = []
    worker._receive(Sync(3))
    assert worker._unread == [Sync(3)]
    worker._unread = None
    sent: list[FromWorker] = []
    worker.channel.send = sent.append  # type: ignore[method-assign, assignment]
    worker._receive(Sync(4))
    assert sent == [SyncDone(4)]
