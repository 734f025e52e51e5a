"""The transports within the process: a protocol is told what a socket's would tell it, and in that order."""

from __future__ import annotations

import asyncio
from typing import cast

from fedproxy.proxy.pipe import PipeEnd, connect

LARGE = bytes(100_000)


class Noting(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self, gives_up: str = "") -> None:
        self.told: list[str] = []
        self.got = b""
        self.gives_up = gives_up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.end = cast(PipeEnd, transport)

    def _note(self, what: str) -> None:
        self.told.append(what)
        if what == self.gives_up:
            self.end.abort()

    def data_received(self, data: bytes) -> None:
        self.got += data
        self._note("data")

    def eof_received(self) -> None:
        self._note("eof")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("lost")


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def pair(gives_up: str = "") -> tuple[Noting, Noting]:
    one, other = Noting(gives_up), Noting()
    connect(one, other)
    return one, other


async def test_bytes_arrive_in_order_and_never_within_the_write() -> None:
    one, other = pair()
    one.end.write(b"a")
    one.end.writelines([b"b", memoryview(b"c")])
    assert other.told == []
    await turns()
    assert (other.got, other.told) == (b"abc", ["data"])


async def test_close_comes_after_what_was_written_and_ends_both() -> None:
    one, other = pair()
    one.end.write(LARGE)
    one.end.close()
    one.end.write(b"too late")
    assert one.end.is_closing() and not other.end.is_closing()
    await turns()
    assert (other.got, other.told) == (LARGE, ["data", "eof", "lost"])
    assert one.told == ["pause", "lost"]


async def test_abort_drops_what_was_written() -> None:
    one, other = pair()
    one.end.write(b"a")
    one.end.abort()
    await turns()
    assert (other.told, one.told) == (["lost"], ["lost"])


async def test_writer_pauses_for_a_reader_that_does_not_read() -> None:
    one, other = pair()
    other.end.pause_reading()
    one.end.write(LARGE)
    one.end.write(LARGE)
    await turns()
    assert (one.told, other.told, other.end.is_reading()) == (["pause"], [], False)
    assert one.end.get_write_buffer_size() == 2 * len(LARGE)
    other.end.resume_reading()
    await turns()
    assert (one.told, other.got) == (["pause", "resume"], LARGE * 2)


async def test_end_waits_for_a_reader_that_does_not_read() -> None:
    one, other = pair()
    other.end.pause_reading()
    one.end.write(b"a")
    one.end.close()
    await turns()
    assert other.told == []
    other.end.resume_reading()
    await turns()
    assert other.told == ["data", "eof", "lost"]


async def test_protocol_that_gives_up_when_it_is_told_to_pause_is_not_told_to_resume() -> None:
    one, other = pair("pause")
    one.end.write(LARGE)
    await turns()
    assert (one.told, other.told) == (["pause", "lost"], ["lost"])


async def test_protocol_that_gives_up_when_it_resumes_is_lost_once() -> None:
    one, other = pair("resume")
    one.end.write(LARGE)
    await turns()
    assert (one.told, other.told) == (["pause", "resume", "lost"], ["data", "lost"])


async def test_protocol_may_close_while_it_reads() -> None:
    one, other = pair("data")
    other.end.write(b"a")
    other.end.write(b"b")
    await turns()
    other.end.write(b"c")
    await turns()
    assert (one.told, other.told) == (["data", "lost"], ["lost"])


async def test_another_protocol_gets_what_arrives_from_then_on() -> None:
    one, other = pair()
    later = Noting()
    one.end.write(b"a")
    await turns()
    other.end.set_protocol(later)
    assert other.end.get_protocol() is later
    one.end.write(b"b")
    await turns()
    assert (other.got, later.got) == (b"a", b"b")
    assert not one.end.can_write_eof()
    assert one.end.get_extra_info("socket") is None
