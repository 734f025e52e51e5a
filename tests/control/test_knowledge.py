"""What launches taught, in a file: it comes back, whatever happened to the file."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from fedproxy.control.knowledge import KnowledgeFile, knowledge_path
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End


def taught() -> Knowledge:
    knowledge = Knowledge()
    knowledge.learn(Seen(b"12345678", "a", False, 60.0, 5.0, End.READY), 1e9)
    return knowledge


@pytest.mark.parametrize(
    ("state", "path"),
    [
        (None, None),
        (Path("/etc/edge.state.json"), Path("/etc/edge.knowledge")),
        (Path("/var/lib/state.json"), Path("/var/lib/knowledge")),
        (Path("/var/lib/operators"), Path("/var/lib/operators.knowledge")),
    ],
)
def test_file_is_beside_the_operators_state(state: Path | None, path: Path | None) -> None:
    assert knowledge_path(state) == path


def test_without_a_path_nothing_is_kept() -> None:
    store = KnowledgeFile(None)
    store.save(taught().dump())
    assert store.load(Knowledge()) == []


def test_what_is_kept_comes_back_and_is_small(tmp_path: Path) -> None:
    path = tmp_path / "knowledge"
    knowledge = Knowledge()
    assert KnowledgeFile(path).load(knowledge) == []
    KnowledgeFile(path).save(taught().dump())
    assert path.stat().st_size < 50_000
    assert path.stat().st_mode & 0o077 == 0
    assert KnowledgeFile(path).load(knowledge) == []
    assert knowledge.dump() == taught().dump()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        zlib.compress(b"{}"),
        zlib.compress(taught().dump())[:-20],
        zlib.compress(bytes(70 << 20), 1),
    ],
    ids=["empty", "nonsense", "another", "cut", "bomb"],
)
def test_file_of_something_else_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "knowledge"
    path.write_bytes(content)
    knowledge = Knowledge()
    store = KnowledgeFile(path)
    (line,) = store.load(knowledge)
    assert line.startswith(f"{path} is not what launches have taught: ")
    assert line.endswith(f"; it is now {path}.bad-1, and is ignored")
    assert (path.with_name("knowledge.bad-1")).read_bytes() == content
    assert not knowledge.members
    store.save(taught().dump())
    assert KnowledgeFile(path).load(knowledge) == []


def test_what_is_no_file_is_said_and_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert KnowledgeFile(pipe).load(Knowledge()) == [
        f"{pipe} is no file; launches have to teach the edge again"
    ]
    (tmp_path / "file").touch()
    beyond = tmp_path / "file" / "knowledge"
    assert KnowledgeFile(beyond).load(Knowledge()) == [
        f"{beyond} cannot be read: Not a directory; launches have to teach the edge again"
    ]
    with pytest.raises(OSError, match="cannot be written: Not a directory"):
        KnowledgeFile(beyond).save(b"x")
