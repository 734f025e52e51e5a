"""Configs in several files, and values that are in files of their own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.config import include
from fedproxy.config.load import examine, load, parse
from fedproxy.config.report import as_json, fault_lines
from fedproxy.errors import ConfigError

A = {"url": "https://a.example"}
B = {"url": "https://b.example"}


class Folder:
    """Files of a config, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **files: Any) -> None:
        """A name has `__` for a slash."""
        for name, data in files.items():
            file = self.path / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))

    def faults(self) -> list[str]:
        """The lines of the faults of `edge.yaml`, as seen from the folder."""
        with pytest.raises(ConfigError) as caught:
            load(self.path / "edge.yaml", {})
        return [line.removeprefix(f"{self.path}/") for line in fault_lines("edge.yaml", caught.value.faults)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_mappings_of_several_files_are_one(folder: Folder) -> None:
    folder.write(
        edge={"include": ["members/*.yaml", "limits.yaml"], "members": None},
        members__b={"members": {"b": B}},
        members__a={"members": {"a": {**A, "prime": True}}},
        limits={"limits": {"http2": {"pings": 5}}, "routes": [{"path": "/x", "status": 404}]},
    )
    config = load(folder.path / "edge.yaml", {})
    # A pattern's files come in the order of their names.
    assert list(config.members) == ["a", "b"]
    assert config.limits.http2.pings == 5
    assert [route.path for route in config.routes] == ["/x"]
    assert config.include == ("members/*.yaml", "limits.yaml")


def test_paths_are_relative_to_the_file_that_names_them(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(yaml.safe_dump({"limits": {"streams": 7}}))
    folder.write(
        edge={"include": ["in/more.yaml"]},
        in__more={"include": ["deep/last.yaml", str(elsewhere)], "members": {"a": A}},
        in__deep__last={"members": {"b": B}},
    )
    config = load(folder.path / "edge.yaml", {})
    assert list(config.members) == ["a", "b"]
    assert config.limits.streams == 7


def test_variables_stand_in_paths_and_in_included_files(folder: Folder) -> None:
    folder.write(edge={"include": ["${SITE}.yaml"]}, here={"members": {"a": {"url": "${A}"}}})
    config = load(folder.path / "edge.yaml", {"SITE": "here", "A": "https://a.example"})
    assert config.members["a"].url == "https://a.example"


def test_pattern_without_a_match_is_no_fault(folder: Folder) -> None:
    folder.write(edge={"include": ["conf.d/*.yaml"], "members": {"a": A}})
    assert list(load(folder.path / "edge.yaml", {}).members) == ["a"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "edge": "include: [m.yaml]\nmembers:\n  a: {url: https://a}",
                "m": "members: {a: {url: https://b}}",
            },
            ["m.yaml:1:15: members.a.url: is given twice, first in the config itself, line 3"],
        ),
        (
            {
                "edge": "include: [m.yaml, n.yaml]\nmembers: {a: {url: https://a}}",
                "m": "routes: []",
                "n": "routes: []",
            },
            ["n.yaml:1:1: routes: is given twice, first in {}/m.yaml, line 1"],
        ),
        (
            {"edge": "include: [m.yaml]\nmembers: {a: {url: https://a}}", "m": "members: [x]"},
            ["m.yaml:1:1: members: is given twice, first in the config itself, line 2"],
        ),
        (
            {"edge": "include: [m.yaml]", "m": "members:\n  a:\n    url: ftp://x\n    wieght: 3"},
            [
                "m.yaml:3:10: members.a.url: is 'ftp://x', expected an http:// or https:// URL with no path",
                "m.yaml:4:5: members.a.wieght: is not a known key, did you mean 'weight'?",
            ],
        ),
        (
            {"edge": "include: [m.yaml]\nmembers: {a: {url: https://a}}", "m": "a: ["},
            ["m.yaml:1:5: not valid YAML: expected the node content, but found '<stream end>'"],
        ),
        (
            {"edge": "include:\n- none.yaml"},
            ["edge.yaml:2:3: include: has {}/none.yaml, which cannot be read: No such file or directory"],
        ),
        (
            {"edge": "include: [m.yaml]", "m": "- a"},
            ["edge.yaml:1:11: include: has {}/m.yaml, which is not a mapping, expected keys of a config"],
        ),
        (
            {
                "edge": "include: [m.yaml]",
                "m": "include: [m.yaml, edge.yaml]\nmembers: {a: {url: https://a}}",
            },
            [
                "m.yaml:1:11: include: has {}/m.yaml, which is included already",
                "m.yaml:1:19: include: has {}/edge.yaml, which is included already",
            ],
        ),
        (
            {"edge": "include: m.yaml\nmembers: {a: {url: https://a}}"},
            ["edge.yaml:1:10: include: is 'm.yaml', expected a list"],
        ),
        (
            {"edge": 'include: [5, "a\\0b"]\nmembers: {a: {url: https://a}}'},
            [
                "edge.yaml:1:11: include.0: is 5, expected text",
                "edge.yaml:1:14: include.1: is 'a\\x00b', expected text",
            ],
        ),
        (
            {
                "edge": "include: [m.yaml]",
                "m": "hosts: {a: {url: https://a}}\nmembers: {a: {url: https://a}}",
            },
            ["m.yaml:1:1: hosts: is not a known key, expected"],
        ),
    ],
)
def test_fault_is_in_the_file_that_it_is_in(
    folder: Folder, files: dict[str, str], expected: list[str]
) -> None:
    folder.write(**files)
    found = folder.faults()
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start.format(folder.path))


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "~"])
def test_empty_file_adds_nothing(text: str, folder: Folder) -> None:
    folder.write(edge={"include": ["m.yaml"], "members": {"a": A}}, m=text)
    assert list(load(folder.path / "edge.yaml", {}).members) == ["a"]


def test_number_of_files_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(include, "MAX_FILES", 2)
    folder.write(edge={"include": ["*.yaml"], "members": {"a": A}}, m="{}", n="{}")
    assert folder.faults() == [
        f"edge.yaml:2:3: include: has {folder.path}/edge.yaml, which is included already",
    ]
    folder.write(o="{}")
    assert "edge.yaml:2:3: include: is of more than 2 files" in folder.faults()


def test_all_files_together_are_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(include, "MAX_TEXT", 1 << 20)
    folder.write(edge={"include": ["[mno].yaml"], "members": {"a": A}})
    folder.write(m=f"#{'x' * 600_000}", n=f"#{'x' * 600_000}", o="{}")
    assert folder.faults() == ["edge.yaml:2:3: include: is of more than 1 MiB"]


def test_line_of_an_included_file_is_shown_without_its_secrets(folder: Folder) -> None:
    folder.write(
        edge="include: [m.yaml, n.yaml]\nmembers:\n  a: {url: https://a}",
        m="# nothing\nadmin: {token: hush, state: 5}",
        n="affinity: {secret: [hush, key: x}",
    )
    reading = examine((folder.path / "edge.yaml").read_text(), {}, folder.path / "edge.yaml")
    error = reading.error()
    assert error is not None
    places = [fault.place for fault in error.faults if fault.place is not None]
    assert [place.file.rpartition("/")[2] for place in places] == ["n.yaml"]
    # What was not understood might have a secret anywhere.
    assert [reading.document.places.shown(place) for place in places] == [None]
    folder.write(n="affinity: {}")
    reading = examine((folder.path / "edge.yaml").read_text(), {}, folder.path / "edge.yaml")
    error = reading.error()
    assert error is not None
    (place,) = [fault.place for fault in error.faults if fault.place is not None]
    shown = reading.document.places.shown(place)
    assert shown is not None
    assert (shown.text, shown.before) == ("admin: {token: ***, state: 5}", "admin: {token: ***, state: ")
    (row,) = as_json("edge.yaml", error.faults, [])
    assert (row["file"], row["line"], row["column"]) == (f"{folder.path}/m.yaml", 2, 29)


ALL: dict[str, Any] = {
    "members": {"a": {**A, "prime": True}, "b": B},
    "limits": {"streams": 5, "http2": {"pings": 3, "resets": 9}},
    "timeouts": {"connect": "1s"},
    "routes": [{"path": "/x", "status": 404}],
    "ban": {"networks": ["192.0.2.0/24"], "user_agents": ["bot"]},
}


def leaves(data: Any, where: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(data, dict):
        return [(where, data)]
    return [leaf for key, value in data.items() for leaf in leaves(value, (*where, key))]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=len(leaves(ALL)), max_size=len(leaves(ALL))))
def test_config_is_the_same_however_it_is_cut(numbers: list[int]) -> None:
    parts: list[dict[str, Any]] = [{"include": ["1.yaml", "2.yaml", "3.yaml"]}, {}, {}, {}]
    for (where, value), number in zip(leaves(ALL), numbers, strict=True):
        part = parts[number]
        for key in where[:-1]:
            part = part.setdefault(key, {})
        part[where[-1]] = value
    with tempfile.TemporaryDirectory() as name:
        for number, part in enumerate(parts):
            Path(name, f"{number}.yaml").write_text(yaml.safe_dump(part))
        found = load(Path(name, "0.yaml"), {}).model_dump(exclude={"include", "members"})
    assert found == parse(yaml.safe_dump(ALL), {}).model_dump(exclude={"include", "members"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"s3cret", "s3cret"), (b"s3cret\n", "s3cret"), (b"s3cret\r\n", "s3cret"), (b" s \n", " s ")],
)
def test_value_is_in_a_file(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    text = yaml.safe_dump({"members": {"a": A}, "admin": {"token": f"${{file:{file}}}"}})
    token = parse(text, {}).admin.token
    assert token is not None
    assert token.get_secret_value() == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff", "is not UTF-8"),
        (b"x" * 65537, "is larger than 64 KiB"),
    ],
)
def test_file_that_cannot_be_a_value_is_named(content: bytes | None, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump({"members": {"a": A}, "admin": {"token": f"${{file:{file}}}"}}), {})
    (fault,) = caught.value.faults
    assert (fault.path, fault.message) == ("admin.token", f"needs the file {str(file)!r}, which {expected}")


@pytest.mark.parametrize("name", ["", "/etc", "a\0b"])
def test_odd_name_of_a_file_is_a_fault(name: str) -> None:
    text = yaml.safe_dump({"members": {"a": A}, "admin": {"token": f"${{file:{name}}}"}})
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert [fault.path for fault in caught.value.faults] == ["admin.token"]
    assert "which cannot be read" in caught.value.faults[0].message
