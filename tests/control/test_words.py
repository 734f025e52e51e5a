"""Operators' words of a fleet: which holds, and what is kept over a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedproxy.control.state import Change, Said, Weight
from fedproxy.control.store import Stored
from fedproxy.control.words import Word, Words, WordsFile, read_word

DRAIN = Word(Said(intent="drain", by="kim"), "kim", "one", 5.0)
HEAVY = Word(Said(weight=Weight(value=3.0, over=1.0)), "sam", "two", 6.0)
JOINED = Word(Said(change=Change(settings={"url": "http://a.example"})), "sam", "two", 7.0)


@pytest.mark.parametrize(
    "word", [DRAIN, HEAVY, JOINED, Word(Said())], ids=["drain", "weight", "joined", "ready"]
)
def test_word_is_read_as_it_was_written(word: Word) -> None:
    assert read_word("a", word.pack()) == word


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not what an edge writes"),
        (b"[" * 100_000, "is not what an edge writes"),
        (b'{"said": {}}', "is not what an edge writes"),
        (b'{"said": {}, "who": 1, "edge": "", "at": 0}', "is not what an edge writes"),
        (b'{"said": 7, "who": "", "edge": "", "at": 0}', "is not a JSON object"),
        (b'{"said": {"intent": "stop"}, "who": "", "edge": "", "at": 0}', "intent: is 'stop'"),
        (b'{"said": {"change": {"settings": {"ulr": 1}}}, "who": "", "edge": "", "at": 0}', "ulr: "),
        (b'{"said": {"more": 1}, "who": "", "edge": "", "at": 0}', "more: "),
        (b" " * (1 << 18) + b"{}", "is larger than 256 KiB"),
    ],
)
def test_what_is_no_word_says_so(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_word("a", content)


def test_name_that_no_member_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="intents"):
        read_word("a b", DRAIN.pack())


def test_newest_word_holds() -> None:
    words = Words()
    assert words.base("a") == 0
    assert words.word("a") is None
    assert words.take("a", Stored(3, DRAIN.pack()))
    assert not words.take("a", Stored(2, HEAVY.pack()))
    assert not words.take("a", Stored(3, DRAIN.pack()))
    assert words.take("b", Stored(2, HEAVY.pack()))
    assert (words.order, words.base("a"), words.word("a")) == (3, 3, DRAIN)
    state = words.state()
    assert state.intents == {"a": "drain"}
    assert state.weights == {"b": Weight(value=3.0, over=1.0)}
    assert state.by == {"a": "kim"}


def test_word_that_waits_holds_here_over_what_it_was_said_over() -> None:
    words = Words()
    words.take("a", Stored(3, DRAIN.pack()))
    words.wait("a", HEAVY)
    words.take("a", Stored(9, JOINED.pack()))
    words.wait("a", Word(Said(intent="maint")))
    assert words.waiting["a"] == (3, Word(Said(intent="maint")))
    assert words.state().intents == {"a": "maint"}


def test_word_that_cannot_be_read_changes_nothing_and_is_said_once() -> None:
    words = Words()
    words.take("a", Stored(3, DRAIN.pack()))
    with pytest.raises(ValueError, match="what operators said of 'a' is not what an edge writes"):
        words.take("a", Stored(4, b"?"))
    assert not words.take("a", Stored(4, b"?"))
    assert words.word("a") == DRAIN
    assert words.base("a") == 4


def test_what_the_store_has_lost() -> None:
    words = Words()
    words.take("a", Stored(3, DRAIN.pack()))
    words.take("b", Stored(5, HEAVY.pack()))
    words.take("c", Stored(6, HEAVY.pack()))
    there = {"b": Stored(4, b"older"), "c": Stored(6, HEAVY.pack()), "d": Stored(9, b"")}
    assert words.newer_than(there) == {"a": Stored(3, DRAIN.pack()), "b": Stored(5, HEAVY.pack())}


def test_file_keeps_them(tmp_path: Path) -> None:
    words = Words()
    words.take("a", Stored(3, DRAIN.pack()))
    words.wait("b", HEAVY)
    file = WordsFile(tmp_path / "edge.state.json")
    assert file.load(Words()) == []
    file.save(words.pack())
    assert oct((tmp_path / "edge.fleet").stat().st_mode)[-3:] == "600"
    found = Words()
    assert file.load(found) == []
    assert found.pack() == words.pack()
    assert found.state() == words.state()
    assert found.order == 3


def test_one_bad_word_in_the_file_loses_only_itself(tmp_path: Path) -> None:
    file = WordsFile(tmp_path / "edge.state.json")
    content = {"version": 1, "stored": {"a": [3, "?"], "b": [4, DRAIN.pack().decode()]}, "waiting": {}}
    (tmp_path / "edge.fleet").write_text(json.dumps(content))
    words = Words()
    assert file.load(words) == ["what operators said of 'a' is not what an edge writes"]
    assert words.state().intents == {"b": "drain"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not what operators said"),
        ("[]", "it has no words"),
        ('{"version": 9}', "it is of another version"),
        ('{"version": 1, "stored": {"a": 1}, "waiting": {}}', "it has no words"),
        ('{"version": 1, "stored": {}, "waiting": {"a": [1, "?"]}}', "is not what an edge writes"),
    ],
)
def test_file_that_is_something_else_is_put_aside(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "edge.fleet").write_text(content)
    file = WordsFile(tmp_path / "edge.state.json")
    (line,) = file.load(Words())
    assert says in line
    assert (tmp_path / "edge.fleet.bad-1").read_text() == content
    file.save(Words().pack())
    assert WordsFile(tmp_path / "edge.state.json").load(Words()) == []


def test_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "edge.fleet")
    assert "is no file" in WordsFile(tmp_path / "edge.state.json").load(Words())[0]
    gone = WordsFile(tmp_path / "nowhere" / "edge.state.json")
    assert gone.load(Words()) == []
    with pytest.raises(OSError, match="cannot be written"):
        gone.save(b"")
    (tmp_path / "file").write_text("")
    assert "cannot be read" in WordsFile(tmp_path / "file" / "edge.state.json").load(Words())[0]


def test_nowhere_is_nothing_kept() -> None:
    file = WordsFile(None)
    file.save(b"x")
    assert file.load(Words()) == []
