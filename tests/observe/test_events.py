"""What a process says on standard error, whoever says it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedproxy.observe.events import Events, Stream
from fedproxy.observe.output import Output

ALL = """
import asyncio, logging, sys, threading, warnings
from fedproxy.observe.events import take_over
events = take_over()
events.say("said")
print("printed")
print("on", "stderr", file=sys.stderr)
logging.getLogger("a.library").warning("%s", "logged")
logging.getLogger("a.library").warning("%s %s", "logged wrongly")
warnings.warn("warned")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise OSError("unraisable")
Broken()
raise SystemExit("the end")
"""


class Way:
    """A pipe, and what was written into it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.output = Output(self.writing)
        self.events = Events(self.output)

    def read(self) -> str:
        return os.read(self.reading, 1 << 20).decode()

    def close(self) -> None:
        self.output.finish()
        os.close(self.reading)
        os.close(self.writing)


def test_event_is_one_line_that_no_terminal_obeys() -> None:
    way = Way()
    way.events.say("member says \x1b[2J\r\nforged: é\x9b\ud800")
    assert way.read() == "member says \\x1b[2J\\x0d\\nforged: é\\x9b\\ud800\n"
    way.close()


def test_stream_makes_events_of_whole_lines() -> None:
    way = Way()
    stream = Stream(way.events, 2)
    print("a", "b", sep="\n", end="", file=stream, flush=True)
    assert way.read() == "a\n"
    stream.write(" c\nd\n")
    assert way.read() == "b c\nd\n"
    assert (stream.fileno(), stream.writable(), stream.isatty()) == (2, True, False)
    stream.write("x" * 70_000)
    got = ""
    while len(got) < 70_001:
        got += way.read()
    assert got == "x" * 70_000 + "\n"
    way.close()


def run(stderr: int, code: str = ALL, **streams: int) -> subprocess.CompletedProcess[bytes]:
    # Python itself says what is in its way, and nobody else.
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=stderr,
        timeout=60,
        check=False,
    )


def test_all_that_a_process_says_goes_the_same_way() -> None:
    done = run(subprocess.PIPE)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (1, b"")
    found = [
        *("said\n", "printed\n", "on stderr\n", "fedproxy: logged\n", "--- Logging error ---\n"),
        *("UserWarning: warned\n", "ZeroDivisionError: ", "OSError: unraisable\n", "the end\n"),
    ]
    places = [said.find(each) for each in found]
    assert -1 not in places, said
    assert places == sorted(places)


def test_last_words_reach_a_file(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as file:
        assert run(file.fileno()).returncode == 1
    assert (tmp_path / "err").read_bytes().endswith(b"\nthe end\n")


@pytest.mark.parametrize("full", [False, True])
def test_process_ends_as_it_would_though_nobody_can_be_told(full: bool) -> None:
    if full:
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    assert run(writing, stdout=writing).returncode == 1
    assert run(writing, ALL.replace('"the end"', "0"), stdout=writing).returncode == 0
    os.close(writing)


def test_process_ends_though_its_reader_stalls() -> None:
    reading, writing = os.pipe()
    code = ALL.replace('events.say("said")', "for _ in range(3000): events.say('x' * 99)")
    assert run(writing, code, stdout=writing).returncode == 1
    os.close(reading)
    os.close(writing)


def test_descriptors_that_are_missing_lead_nowhere(tmp_path: Path) -> None:
    code = f"""
import os, sys
for fd in (0, 1, 2):
    os.close(fd)
from fedproxy.observe.events import take_over
events = take_over()
events.say("to nobody")
null = os.stat(os.devnull).st_rdev
with open({str(tmp_path / "seen")!r}, "w") as file:
    print([os.fstat(fd).st_rdev == null for fd in (0, 1, 2)], file.fileno() > 2, events.dropped, file=file)
"""
    assert run(subprocess.DEVNULL, code, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "seen").read_text() == "[True, True, True] True 0\n"
