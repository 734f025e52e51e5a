"""What a process says on standard error, whoever says it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.event import Event, EventName
from fedproxy.observe.events import LONGEST, Events, Records, Stream, json_line, text_lines
from fedproxy.observe.output import Output

ALL = """
import asyncio, logging, sys, threading, warnings
from fedproxy.event import Event, EventName
from fedproxy.observe.events import take_over
events = take_over("FORM", "worker 7")
events.emit(Event(EventName.EDGE_START, "said"))
print("printed")
print("on", "stderr", file=sys.stderr)
logging.getLogger("a.library").warning("%s", "logged")
logging.getLogger("a.library").warning("%s %s", "logged wrongly")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a.library").exception("failed")
warnings.warn("warned")
thread = threading.Thread(target=lambda: {}["forged\\nline"], name="t")
thread.start()
thread.join()
thread = threading.Thread(target=sys.exit)
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise OSError("unraisable")
Broken()
raise END
"""
END = 'SystemExit("the end")'


class Way:
    """A pipe, and what was written into it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.output = Output(self.writing)
        self.events = Events(self.output, who="worker 7")

    def read(self) -> str:
        return os.read(self.reading, 1 << 20).decode()

    def close(self) -> None:
        self.output.finish()
        os.close(self.reading)
        os.close(self.writing)

    def lines(self) -> list[str]:
        """What follows the level, of each line."""
        return [line.partition(" info    ")[2] for line in self.read().splitlines()]


AT = 1_800_000_000.25
NAMES = st.sampled_from(EventName)
#: Anything, and above all what ends lines, turns the direction of writing, or starts a command of a terminal.
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from('\n\r\x1b\x85\u2028\u202e\ud800\x7f\x00"\\][')))
MAYBE = st.one_of(st.none(), TEXTS)


@given(name=NAMES, message=TEXTS, member=MAYBE, who=MAYBE)
def test_json_is_one_line_of_printable_ascii_that_is_read_as_it_was(
    name: EventName, message: str, member: str | None, who: str | None
) -> None:
    line = json_line(Event(name, message, member, who, AT))
    assert line.endswith("\n")
    assert re.fullmatch("[ -~]*", line[:-1])
    assert len(line) <= LONGEST
    found = json.loads(line)
    assert list(found) == ["time", "level", "event", "member", "who", "message"]
    assert (found["time"], found["level"]) == ("2027-01-15T08:00:00.250Z", name.level)
    assert found["event"] == name
    if len(line) < 1000:
        assert found["message"] == message
        for key, value in (("member", member), ("who", who)):
            # With escapes a character takes up to twelve bytes, and a name has 256.
            assert found[key] == value or (
                value is not None and len(value) > 20 and found[key].endswith("...")
            )


@given(name=NAMES, message=TEXTS, who=MAYBE)
def test_text_is_one_printable_line_or_a_traceback_whose_further_lines_look_like_nothing_else(
    name: EventName, message: str, who: str | None
) -> None:
    first, *others = text_lines(Event(name, message, "a", who, AT)).removesuffix("\n").split("\n")
    assert first.isprintable()
    assert first.startswith(f"2027-01-15T08:00:00.250Z {name.level:<7} {name}")
    assert all(line.startswith("    | ") and line.isprintable() for line in others)
    assert not others or name in (EventName.PYTHON_WARNING, EventName.PYTHON_ERROR)
    assert all(len(line.encode()) < LONGEST for line in (first, *others))


@given(message=st.text(), who=TEXTS)
def test_nobody_can_pretend_in_a_message_to_be_somebody(message: str, who: str) -> None:
    line = text_lines(Event(EventName.EDGE_START, message, who=who, time=AT))
    rest = line.partition(" edge.start ")[2]
    assert rest.startswith("[")
    assert "]" not in rest[1 : rest.index("] ")]


def test_event_for_people_and_for_programs() -> None:
    event = Event(EventName.OPERATOR_DRAIN, "a was set to drain", "a", "kim 192.0.2.7", AT)
    assert text_lines(event) == (
        "2027-01-15T08:00:00.250Z info    operator.drain [kim 192.0.2.7] a was set to drain\n"
    )
    assert json_line(event) == (
        '{"time":"2027-01-15T08:00:00.250Z","level":"info","event":"operator.drain","member":"a",'
        '"who":"kim 192.0.2.7","message":"a was set to drain"}\n'
    )


@pytest.mark.parametrize("character", ["x", "é", "\n", "\U0001f600"])
def test_message_that_is_too_long_is_cut_and_a_traceback_keeps_its_end(character: str) -> None:
    for name, cut in ((EventName.MEMBER_UNHEALTHY, "begin"), (EventName.PYTHON_ERROR, "end")):
        event = Event(name, f"begin{character * 100_000}end", time=AT)
        line = json_line(event)
        assert LONGEST - 100 < len(line) <= LONGEST
        message = json.loads(line)["message"]
        assert ("..." in message, cut in message) == (True, True)
        assert (message.startswith("begin"), message.endswith("end")) == (cut == "begin", cut == "end")
        assert all(len(line.encode()) < LONGEST for line in text_lines(event).split("\n"))


def test_form_changes_from_one_event_to_the_next() -> None:
    way = Way()
    way.events.emit(Event(EventName.EDGE_START, "a"))
    way.events.form = "json"
    way.events.emit(Event(EventName.EDGE_START, "b"))
    text, line = way.read().splitlines()
    assert text.endswith(" info    edge.start a")
    assert json.loads(line)["message"] == "b"
    way.close()


def test_names_are_documented_with_level_and_meaning() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "logs.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z]+\.[a-z-]+)` \| (info|warning|error) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(name.value, name.level.value, name.meaning) for name in EventName]


def test_event_survives_the_way_to_another_process() -> None:
    event = Event(EventName.MEMBER_UNRESOLVED, "a", "b", "c", 1.0)
    again = pickle.loads(pickle.dumps(event))
    assert again == event
    assert again.name is EventName.MEMBER_UNRESOLVED


def test_what_is_logged_again_and_again_is_bounded_and_counted() -> None:
    way, now = Way(), 0.0
    records = Records(way.events, lambda: now)

    def log(count: int, line: int = 1) -> list[str]:
        for _ in range(count):
            records.emit(logging.LogRecord("a", logging.ERROR, "a.py", line, "again", (), None))
        way.events.emit(Event(EventName.EDGE_START, "-"))
        return [line.partition("Z ")[2] or line for line in way.read().splitlines()][:-1]

    again = "error   python.error [worker 7] a: again"
    assert log(100) == [again] * 5
    assert log(3, line=2) == [again] * 3
    now = 61.0
    assert log(2) == [again, "    | (95 more like this were not logged)", again]
    for line in range(2000):
        records.emit(logging.LogRecord("a", logging.DEBUG, "a.py", line, "again", (), None))
    assert len(records._places) <= 1000
    way.close()


def test_stream_makes_events_of_whole_lines() -> None:
    way = Way()
    stream = Stream(way.events, 2)
    print("a", "", "b", sep="\n", end="", file=stream, flush=True)
    assert way.lines() == ["python.output [worker 7] a"]
    stream.write(" c\nd\n")
    assert way.lines() == ["python.output [worker 7] b c", "python.output [worker 7] d"]
    assert (stream.fileno(), stream.writable(), stream.isatty()) == (2, True, False)
    stream.write("x" * 70_000)
    assert way.read().endswith("xxx...\n")
    way.close()


def code_of(form: str = "text", end: str = END, first: str = "") -> str:
    return ALL.replace("FORM", form).replace("END", end).replace("events.emit", f"{first}\nevents.emit")


def run(stderr: int, code: str = code_of(), **streams: int) -> subprocess.CompletedProcess[bytes]:
    # Python itself says what is in its way, and nobody else.
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=stderr,
        timeout=60,
        check=False,
    )


ORDER = [
    *(("edge.start", "said"), ("python.output", "printed"), ("python.output", "on stderr")),
    ("python.warning", "a.library: logged"),
    ("python.warning", "a.library: a log record is wrong: '%s %s'"),
    ("python.error", "a.library: failed"),
    ("python.warning", "UserWarning: warned (<string>:16)"),
    ("python.error", "unhandled in thread t: KeyError: 'forged"),
    ("python.error", "ignored in <function Broken.__del__"),
    ("python.output", "the end"),
]


def test_all_that_a_process_says_is_events() -> None:
    done = run(subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    lines = done.stderr.decode().splitlines()
    events = [line for line in lines if not line.startswith("    | ")]
    assert len(events) == len(ORDER), done.stderr.decode()
    for line, (name, start) in zip(events, ORDER, strict=True):
        assert line.partition(f" {name} ")[2].removeprefix("[worker 7] ").startswith(start), line
    assert "    | ZeroDivisionError: division by zero" in lines
    assert "    | OSError: unraisable" in lines


def test_traceback_is_one_line_of_json() -> None:
    done = run(subprocess.PIPE, code_of("json"))
    events = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert [event["event"] for event in events] == [name for name, _ in ORDER]
    assert [event["message"].startswith(start) for event, (_, start) in zip(events, ORDER, strict=True)]
    assert {event["who"] for event in events[1:]} == {"worker 7"}
    assert events[5]["message"].startswith("a.library: failed\nTraceback (most recent call last):\n")
    assert events[5]["message"].endswith("\nZeroDivisionError: division by zero")


@pytest.mark.parametrize("form", ["text", "json"])
def test_exception_that_ends_a_process_is_an_event(form: str) -> None:
    done = run(subprocess.PIPE, code_of(form, 'ValueError("the end")'))
    assert done.returncode == 1
    assert "unhandled: ValueError: the end" in done.stderr.decode()


def test_last_words_reach_a_file(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as file:
        assert run(file.fileno()).returncode == 1
    assert (tmp_path / "err").read_bytes().endswith(b" the end\n")


@pytest.mark.parametrize("full", [False, True])
def test_process_ends_as_it_would_though_nobody_can_be_told(full: bool) -> None:
    if full:
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    assert run(writing, stdout=writing).returncode == 1
    assert run(writing, code_of(end="SystemExit(0)"), stdout=writing).returncode == 0
    os.close(writing)


def test_process_ends_though_its_reader_stalls() -> None:
    reading, writing = os.pipe()
    code = code_of(first='for _ in range(3000): events.emit(Event(EventName.EDGE_START, "x" * 99))')
    assert run(writing, code, stdout=writing).returncode == 1
    os.close(reading)
    os.close(writing)


def test_descriptors_that_are_missing_lead_nowhere(tmp_path: Path) -> None:
    code = f"""
import os, sys
for fd in (0, 1, 2):
    os.close(fd)
from fedproxy.event import Event, EventName
from fedproxy.observe.events import take_over
events = take_over()
events.emit(Event(EventName.EDGE_START, "to nobody"))
null = os.stat(os.devnull).st_rdev
with open({str(tmp_path / "seen")!r}, "w") as file:
    print([os.fstat(fd).st_rdev == null for fd in (0, 1, 2)], file.fileno() > 2, events.dropped, file=file)
"""
    assert run(subprocess.DEVNULL, code, stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "seen").read_text() == "[True, True, True] True 0\n"
