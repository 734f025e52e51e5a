"""Lines to real files, pipes, sockets and terminals, whose readers stall, are slow, or are gone."""

from __future__ import annotations

import errno
import os
import pty
import select
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedproxy.observe.output import Output, open_file

LINE = "x" * 99 + "\n"


def until(condition: Callable[[], object]) -> None:
    by = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < by
        time.sleep(0.001)


class Way:
    """A descriptor to write to, and what reads at its other end."""

    def __init__(self, kind: str) -> None:
        self.stack = ExitStack()
        if kind == "socket":
            ours, theirs = socket.socketpair()
            self.reading, self.writing = ours.detach(), theirs.detach()
        elif kind == "terminal":
            self.reading, self.writing = pty.openpty()
        else:
            self.reading, self.writing = os.pipe()
        self.terminal = kind == "terminal"
        self.held = b""
        os.set_blocking(self.reading, False)

    def read(self, most: int = 1 << 30) -> bytes:
        """What is there now. A terminal makes CRLF of a line feed, and the LF may come later."""
        got = self.held
        with suppress(BlockingIOError, OSError):
            while len(got) < most and (piece := os.read(self.reading, min(most, 1 << 16))):
                got += piece
        self.held = b"\r" if got.endswith(b"\r") else b""
        return got.removesuffix(b"\r").replace(b"\r\n", b"\n")

    def close(self) -> None:
        for fd in (self.reading, self.writing):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture(params=["pipe", "socket", "terminal", "pipe of another user", "terminal of another user"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    if "another" in request.param:
        # What they may not open anew either. As root there is nothing of the kind.
        monkeypatch.setattr("fedproxy.observe.output.os.open", refuse)
    found = Way(request.param.partition(" ")[0])
    yield found
    found.close()


def refuse(*arguments: object) -> int:
    raise PermissionError


def test_all_lines_are_written_in_their_order(way: Way) -> None:
    output = Output(way.writing)
    got = b""
    lines = [f"{number}\n" for number in range(3000)]
    for line in lines:
        output(line)
        got += way.read()
    output.close(60)
    while output.pending:
        got += way.read()
    assert (got + way.read()).decode() == "".join(lines)
    assert output.dropped == 0


def test_stalled_reader_is_not_waited_for_and_then_has_whole_lines(way: Way) -> None:
    output = Output(way.writing, limit=200_000)
    for _ in range(50):
        output(LINE * 100)
    assert output.dropped > 0
    # Others who share it may want to wait.
    assert os.get_blocking(way.writing)
    got = b""

    def read_on() -> bool:
        nonlocal got
        got += way.read()
        return len(got) >= len(LINE) * (5000 - output.dropped)

    until(read_on)
    output("last\n")
    until(lambda: (read_on(), got.endswith(b"last\n"))[1])
    assert got.decode() == LINE * (5000 - output.dropped) + "last\n"
    output.finish()


def test_what_is_written_makes_room_for_more(way: Way) -> None:
    output = Output(way.writing, limit=200_000)
    for _ in range(50):
        output(LINE * 100)
    left = len(LINE) * (5000 - output.dropped)

    def read_most() -> bool:
        nonlocal left
        left -= len(way.read(1 << 12))
        return left <= 100_000

    def is_taken() -> bool:
        before = output.dropped
        output(LINE * 100)
        return output.dropped == before

    until(read_most)
    until(is_taken)
    output.finish(0)


def test_stalled_reader_does_not_hold_up_the_end(way: Way) -> None:
    output = Output(way.writing)
    output(LINE * 9000)
    output(LINE)
    output.finish(0.05)
    dropped = output.dropped
    # Where writing waits, one piece is still within a write that does not return.
    assert abs(9001 - dropped - way.read().count(b"\n")) <= select.PIPE_BUF // len(LINE) + 1
    output("too late\n")
    assert output.dropped == dropped + 1


def test_slow_reader_gets_all_after_the_end(way: Way) -> None:
    output = Output(way.writing)
    output(LINE * 3000)
    output.close(60)
    got = b""
    while output.pending:
        got += way.read()
    got += way.read()
    assert got.decode() == LINE * 3000
    assert output.dropped == 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_lines_are_counted_when_the_reader_is_gone(kind: str) -> None:
    way = Way(kind)
    output = Output(way.writing)
    os.close(way.reading)
    output("one\ntwo\n")
    output("three\n")
    assert output.dropped == 3
    output.finish()
    os.close(way.writing)


def test_reader_who_is_gone_before_the_start_costs_lines_alone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    output = Output(writing)
    output("one\ntwo\n")
    output.finish()
    assert output.dropped == 2
    os.close(writing)


def test_reader_who_goes_while_lines_wait_costs_those() -> None:
    way = Way("pipe")
    output = Output(way.writing)
    output(LINE * 2000)
    os.close(way.reading)
    until(lambda: output.dropped)
    taken = 2000 - output.dropped
    assert taken <= (1 << 16) // len(LINE)
    output("one\n")
    until(lambda: output.dropped == 2001 - taken)
    output.finish()
    os.close(way.writing)


def test_full_device_costs_lines_alone() -> None:
    writing = os.open("/dev/full", os.O_WRONLY)
    output = Output(writing)
    output("one\ntwo\n")
    assert output.dropped == 2
    output.finish()
    os.close(writing)


def test_terminal_that_its_user_stopped_is_not_waited_for_and_has_all_lines_when_it_goes_on() -> None:
    way = Way("terminal")
    termios.tcflow(way.writing, termios.TCOOFF)
    output = Output(way.writing)
    for _ in range(3000):
        output(LINE)
    assert (way.read(), output.dropped) == (b"", 0)
    termios.tcflow(way.writing, termios.TCOON)
    got = b""

    def read_on() -> bool:
        nonlocal got
        got += way.read()
        return len(got) >= 3000 * len(LINE)

    until(read_on)
    assert got.decode() == LINE * 3000
    output.finish()
    way.close()


def test_datagrams_are_lines() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        output = Output(theirs.fileno())
        output("one\ntwo\n")
        assert [ours.recv(100), ours.recv(100)] == [b"one\n", b"two\n"]
        output.finish()


def test_file_has_all_lines_and_nobody_waits_for_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, go_on = threading.Event(), threading.Event()
    write = os.write

    def stall(fd: int, data: memoryview) -> int:
        stuck.set()
        go_on.wait()
        return write(fd, data)

    monkeypatch.setattr("fedproxy.observe.output.os.write", stall)
    output = Output(open_file(tmp_path / "log"), limit=1000, owned=True)
    output("first\n")
    stuck.wait()
    for _ in range(20):
        output(LINE)
    assert output.dropped == 11
    go_on.set()
    output.finish(60)
    assert (tmp_path / "log").read_text() == "first\n" + LINE * 9


def test_disk_that_never_answers_does_not_hold_up_the_end_and_its_file_is_closed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def stall(fd: int, data: memoryview) -> int:
        stuck.set()
        go_on.wait()
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr("fedproxy.observe.output.os.write", stall)
    fd = open_file(tmp_path / "log")
    output = Output(fd, owned=True)
    output("one\ntwo\n")
    stuck.wait()
    output("three\n")
    output.finish(0.01)
    assert output.dropped == 3
    os.fstat(fd)
    go_on.set()
    until(lambda: is_closed(fd))
    assert output.dropped == 3


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_file_of_somebody_else_is_not_closed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        output = Output(file.fileno())
        output("one\n")
        output("two\n")
        output.finish()
        os.fstat(file.fileno())
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_line_that_a_full_disk_cut_off_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(open_file(tmp_path / "log"), owned=True)
    write, room = os.write, 6

    def write_as_far_as_it_goes(fd: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr("fedproxy.observe.output.os.write", write_as_far_as_it_goes)
    output("one\ntwo\nthree\n")
    until(lambda: output.dropped == 2)
    output("four\n")
    until(lambda: output.dropped == 3)
    room = 100
    output("five\n")
    output("six\n")
    output.finish()
    assert (tmp_path / "log").read_text() == "one\ntw\nfive\nsix\n"


def test_many_writers_to_one_pipe_mix_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    pieces: list[bytes] = []
    write = os.write

    def note(fd: int, data: memoryview) -> int:
        pieces.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr("fedproxy.observe.output.os.write", note)
    output = Output(writing)
    lines = [letter * size + "\n" for letter in "abc" for size in (10, 3000, 5000, 1200)]
    output("".join(lines))
    assert os.read(reading, 1 << 20).decode() == "".join(lines)
    # POSIX: what is at most PIPE_BUF long is written in one piece.
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert [len(piece) for piece in pieces if len(piece) > select.PIPE_BUF] == [5001] * 3
    output.finish()
    os.close(reading)
    os.close(writing)


def test_opening_a_pipe_that_nobody_reads_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        open_file(tmp_path / "pipe")


def test_pipe_with_a_name_is_opened_as_a_file_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fd = open_file(tmp_path / "pipe")
    output = Output(fd, owned=True)
    output("one\n")
    assert os.read(reading, 100) == b"one\n"
    output.close()
    assert is_closed(fd)
    os.close(reading)


def test_what_is_said_while_something_is_said_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    write = os.write

    def say_more(fd: int, data: memoryview) -> int:
        monkeypatch.setattr("fedproxy.observe.output.os.write", write)
        output("from a destructor\n")
        return write(fd, data)

    output = Output(writing)
    monkeypatch.setattr("fedproxy.observe.output.os.write", say_more)
    output("one\n")
    output.finish()
    assert os.read(reading, 100) == b"one\nfrom a destructor\n"
    os.close(reading)
    os.close(writing)


def test_no_thread_to_be_had_costs_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    output = Output(open_file(tmp_path / "log"), owned=True)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        output("one\n")
    assert output.dropped == 1
    output("two\n")
    output.finish()
    assert (tmp_path / "log").read_text() == "two\n"


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(reading, 1 << 16):
            got.append(piece)

    def write(letter: str) -> None:
        for _ in range(500):
            output(letter * 200 + "\n")

    output = Output(writing)
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    output.finish(60)
    os.close(writing)
    reader.join()
    lines = b"".join(got).decode().splitlines()
    assert sorted(lines) == sorted(letter * 200 for letter in "abcd" for _ in range(500))
    os.close(reading)
