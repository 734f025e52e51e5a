"""Sessions in a file: what is kept comes back, whatever happened to the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.control.sessions import SessionFile, sessions_path
from fedproxy.decide.sessions import SessionRecord


def told(name: str = "x", member: str = "a", used: float = 2.0, launch: bytes = b"") -> SessionRecord:
    return f"/user/{name}".encode(), 2, f"https://{member}", member, 1.0, used, launch


def keep(
    store: SessionFile, *changed: SessionRecord, everything: tuple[SessionRecord, ...] = (), count: int = 1
) -> bool:
    """Whether it was enough to add what has changed."""
    added = store.save(changed, count)
    if not added:
        store.save_all(everything or changed)
    return added


def loaded(path: Path) -> list[SessionRecord]:
    return SessionFile(path).load()[0]


@pytest.mark.parametrize(
    ("state", "path"),
    [
        (None, None),
        (Path("/etc/edge.state.json"), Path("/etc/edge.sessions.jsonl")),
        (Path("/var/lib/state.json"), Path("/var/lib/sessions.jsonl")),
        (Path("/var/lib/operators"), Path("/var/lib/operators.sessions.jsonl")),
    ],
)
def test_file_is_beside_the_operators_state(state: Path | None, path: Path | None) -> None:
    assert sessions_path(state) == path


def test_without_a_path_nothing_is_kept() -> None:
    store = SessionFile(None)
    assert store.load() == ([], [])
    assert keep(store, told())
    store.save_all([told()])


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    store = SessionFile(path)
    assert store.load() == ([], [])
    assert not keep(store, told(launch=b"/v2/gh/a/b/HEAD"))
    assert keep(store, told("y", "b"))
    assert keep(store, told(used=9.0))
    kept = [told(launch=b"/v2/gh/a/b/HEAD"), told("y", "b"), told(used=9.0)]
    assert SessionFile(path).load() == (kept, [])
    assert path.stat().st_mode & 0o777 == 0o600


NAMES = st.text(st.characters(codec="utf-8"), max_size=4).filter(str.isprintable)


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=20),
            st.sampled_from((0, 1, 2)),
            NAMES,
            NAMES,
            st.integers(0, 2**40).map(float),
            st.integers(0, 2**40).map(float),
            st.text(st.characters(codec="ascii"), max_size=20).map(str.encode),
        )
    )
)
def test_any_session_comes_back(every: list[SessionRecord]) -> None:
    # In memory: a file for each example would take its time.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s")
        SessionFile(path).save_all(every)
        assert loaded(path) == every


def test_line_that_is_not_whole_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    keep(SessionFile(path), told())
    with path.open("ab") as file:
        file.write(b'{"path": "/user/half", "gr')
    store = SessionFile(path)
    store.load()
    assert keep(store, told("y"))
    assert loaded(path) == [told(), told("y")]


def test_file_is_written_anew_before_it_grows_without_end(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    store = SessionFile(path)
    keep(store, told())
    added = [keep(store, told(used=float(number))) for number in range(1000)]
    assert added.count(False) == 1
    assert len(path.read_bytes().splitlines()) < 1010
    assert loaded(path)[-1] == told(used=999.0)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"[1]\n", b'{"version": 9}\n', b"\xff\n"])
def test_file_that_is_another_one_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_bytes(content)
    store = SessionFile(path)
    assert store.load() == (
        [],
        [f"{path} is not a file of sessions; it is now {path}.bad-1, and is ignored"],
    )
    keep(store, told())
    assert loaded(path) == [told()]
    assert Path(f"{path}.bad-1").read_bytes() == content


def changed_line(**changes: object) -> bytes:
    said = {"path": "/user/y", "ground": "served", "url": "https://a", "member": "a", "since": 1, "used": 1}
    return json.dumps({**said, **changes}).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"1",
        b"{}",
        b'{"path": "/user/y"}',
        changed_line(path=1),
        changed_line(path="/user/\u20ac"),
        changed_line(ground="known"),
        changed_line(url=1),
        changed_line(member=[]),
        changed_line(member="\ud800"),
        changed_line(member="a\r\nb"),
        changed_line(since="x"),
        changed_line(since=math.nan),
        changed_line(used=math.inf),
        changed_line(launch="\u00e9"),
    ],
)
def test_line_that_makes_no_sense_is_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "sessions.jsonl"
    keep(SessionFile(path), told())
    with path.open("ab") as file:
        file.write(line + b"\n" + changed_line() + b"\n")
    assert [key for key, *_ in loaded(path)] == [b"/user/x", b"/user/y"]


def test_folder_in_its_place_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.mkdir()
    store = SessionFile(path)
    assert store.load()[1] == [f"{path} cannot be read: Is a directory; sessions are found by cookies"]
    with pytest.raises(OSError, match=r"sessions\.jsonl cannot be written: Is a directory"):
        keep(store, told())


def test_file_that_vanished_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    store = SessionFile(path)
    keep(store, told())
    path.unlink()
    with pytest.raises(OSError, match="cannot be written: No such file"):
        keep(store, told("y"))
    assert not keep(store, told("y"), everything=(told(), told("y")))
    assert loaded(path) == [told(), told("y")]


def test_pipe_in_its_place_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    store = SessionFile(path)
    keep(store, told())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="cannot be written: Not a file"):
        keep(store, told("y"))
    assert SessionFile(path).load()[1] == [
        f"{path} cannot be read: Not a file; sessions are found by cookies"
    ]


@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_file_that_somebody_else_has_written_to_is_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sessions.jsonl"
    store = SessionFile(path)
    keep(store, told())
    path.write_bytes(content)
    assert not keep(store, told("y"), everything=(told(), told("y")))
    assert loaded(path) == [told(), told("y")]


def test_file_that_is_too_large_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sessions.jsonl"
    keep(SessionFile(path), *map(told, "abc"))
    monkeypatch.setattr("fedproxy.control.sessions._MOST_BYTES", 100)
    assert "is not a file of sessions" in SessionFile(path).load()[1][0]
