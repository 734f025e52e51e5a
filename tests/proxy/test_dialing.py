from __future__ import annotations

import asyncio
import errno
import os

import pytest

from fedproxy.errors import NoWay
from fedproxy.proxy.dialing import Dial, race
from tests.rig import until


class Peers:
    """What is dialed, and how it ends: `ends[key]` is set by the test."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.ends = {key: asyncio.get_running_loop().create_future() for key in keys}
        self.dials: list[Dial[str]] = []
        self.cancelled: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.spared: list[str] = []

    async def make(self, dial: Dial[str]) -> str:
        self.dials.append(dial)
        try:
            await self.ends[dial.key]
        except asyncio.CancelledError:
            self.cancelled.append(dial.key)
            raise
        return dial.key

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.dials) == count, lambda: self.dials)

    def race(self, *, within: float = 3600.0, pause: float = 3600.0) -> asyncio.Task[str]:
        loop = asyncio.get_running_loop()
        running = race(
            self.keys,
            self.make,
            loop.time() + within,
            failed=lambda dial, error: self.failed.append((dial.key, type(error).__name__)),
            spare=self.spared.append,
            pause=pause,
        )
        return loop.create_task(running)


def refused() -> OSError:
    return OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def test_first_one_alone_is_asked_while_it_is_in_time() -> None:
    peers = Peers("a", "b")
    racing = peers.race()
    await peers.begun(1)
    peers.ends["a"].set_result(None)
    assert await racing == "a"
    assert [dial.key for dial in peers.dials] == ["a"]
    assert not peers.failed


async def test_next_one_begins_at_once_when_one_fails() -> None:
    peers = Peers("a", "b", "c")
    racing = peers.race()
    for count, key in enumerate("ab", 1):
        await peers.begun(count)
        peers.ends[key].set_exception(refused())
    await peers.begun(3)
    peers.ends["c"].set_result(None)
    assert await racing == "c"
    assert peers.failed == [("a", "ConnectionRefusedError"), ("b", "ConnectionRefusedError")]


async def test_who_is_overtaken_is_given_up_and_reported_and_who_began_later_is_not() -> None:
    peers = Peers("a", "b", "c")
    racing = peers.race(pause=0.01)
    await peers.begun(3)
    peers.ends["b"].set_result(None)
    assert await racing == "b"
    assert peers.cancelled == ["a", "c"]
    assert peers.failed == [("a", "TimeoutError")]


async def test_who_is_ready_in_the_same_turn_is_not_left_open() -> None:
    peers = Peers("a", "b")
    racing = peers.race(pause=0.01)
    await peers.begun(2)
    for end in peers.ends.values():
        end.set_result(None)
    assert await racing == "a"
    assert peers.spared == ["b"]


async def test_all_are_given_up_with_the_one_who_waits() -> None:
    peers = Peers("a", "b")
    racing = peers.race(pause=0.01)
    await peers.begun(2)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert peers.cancelled == ["a", "b"]
    assert not peers.failed


async def test_all_have_begun_when_the_time_is_over() -> None:
    peers = Peers(*"abcdefghij")
    with pytest.raises(TimeoutError):
        await peers.race(within=0.2)
    assert len(peers.dials) == 10
    assert peers.failed == [(key, "TimeoutError") for key in "abcdefghij"]


async def test_peer_that_is_there_gets_longer() -> None:
    peers = Peers("a", "b")
    dial = Dial("a", 5.0, 100.0)
    assert dial.next_at(0.25) == 5.25
    dial.heard = True
    assert dial.next_at(0.25) == 6.0
    assert dial.next_at(3.0) == 8.0
    assert Dial("a", 5.0, 0.1).next_at(0.25) == 5.1
    assert not peers.dials


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (NoWay(), refused()),
        (OSError(errno.EMFILE, "no file"), refused()),
        (refused(), NoWay()),
        (refused(), ConnectionResetError()),
    ],
)
async def test_what_blames_the_peer_is_raised_and_else_the_first(first: Exception, second: Exception) -> None:
    peers = Peers("a", "b")
    peers.ends["a"].set_exception(first)
    peers.ends["b"].set_exception(second)
    blaming = first if first.args[:1] == (errno.ECONNREFUSED,) else second
    with pytest.raises(type(blaming)) as raised:
        await peers.race()
    assert raised.value is blaming


async def test_what_came_of_a_peer_that_was_there_is_raised_rather_than_a_refusal() -> None:
    peers = Peers("a", "b")
    racing = peers.race()
    await peers.begun(1)
    peers.ends["a"].set_exception(refused())
    await peers.begun(2)
    peers.dials[1].heard = True
    peers.ends["b"].set_exception(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await racing


async def test_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="no address"):
        await Peers().race()
