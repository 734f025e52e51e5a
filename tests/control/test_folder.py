"""A folder with a file for each member, look by look."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedproxy.control.folder import MemberFolder
from fedproxy.control.sources import SourceAnswer


async def run(call: Callable[[], SourceAnswer]) -> SourceAnswer:
    return call()


def folder(path: Path, most: int = 100, **env: str) -> MemberFolder:
    return MemberFolder(path, env, run, most)


def put(path: Path, text: str = "url: https://a.test") -> None:
    path.write_text(text)
    # A file system may not tell two writes within a moment apart.
    put.count += 1  # type: ignore[attr-defined]
    os.utime(path, ns=(put.count, put.count))  # type: ignore[attr-defined]


put.count = 0  # type: ignore[attr-defined]


def urls(answer: SourceAnswer) -> dict[str, str]:
    return {name: each.settings.url for name, each in answer.members.items()}


async def test_each_file_is_a_member_from_the_first_look_on(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", "{url: https://a.test, weight: 5, hosts: [x.test]}")
    put(tmp_path / "b.yaml", "url: https://${HOST}")
    answer = await folder(tmp_path, HOST="b.test").ask()
    assert (urls(answer), answer.complaints) == ({"a": "https://a.test", "b": "https://b.test"}, {})
    assert answer.members["a"].settings.weight == 5
    assert answer.members["a"].source == f"directory: {tmp_path}/a.yaml"


def test_hidden_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    for name in (".a.yaml", "a.yaml~", "a.yml", "README.md", ".a.yaml.swp", "4913"):
        put(tmp_path / name, "nonsense")
    (tmp_path / "sub").mkdir()
    assert folder(tmp_path).look() == SourceAnswer({}, {}, 0.4)


def test_file_is_read_once_it_is_the_same_twice(tmp_path: Path) -> None:
    watched = folder(tmp_path)
    assert urls(watched.look()) == {}
    put(tmp_path / "a.yaml")
    assert urls(watched.look()) == {}
    put(tmp_path / "a.yaml", "url: https://b.test")
    assert urls(watched.look()) == {}
    assert urls(watched.look()) == {"a": "https://b.test"}
    put(tmp_path / "a.yaml", "url: https://c.test")
    assert urls(watched.look()) == {"a": "https://b.test"}
    # One that is written all the time does not keep others from being read.
    put(tmp_path / "other.yaml", "url: https://o.test")
    assert urls(watched.look()) == {"a": "https://c.test"}
    put(tmp_path / "a.yaml", "url: https://d.test")
    assert urls(watched.look()) == {"a": "https://c.test", "other": "https://o.test"}


def test_file_that_is_gone_twice_takes_its_member_along(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml")
    watched = folder(tmp_path)
    watched.look()
    (tmp_path / "a.yaml").unlink()
    assert urls(watched.look()) == {"a": "https://a.test"}
    # An editor may write a file by removing the old one.
    put(tmp_path / "a.yaml")
    assert urls(watched.look()) == {"a": "https://a.test"}
    (tmp_path / "a.yaml").unlink()
    watched.look()
    assert urls(watched.look()) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("url: https://a.test\nweight: -1", "2:9: weight: is -1, expected auto or a number of at least 0"),
        ("url: https://a.test\nwieght: 1", "2:1: wieght: is not a known key, did you mean 'weight'?"),
        ("weight: 1", "1:1: url: is missing, expected an http:// or https:// URL"),
        ("url: ${NOT_SET}", "1:6: url: needs the environment variable NOT_SET, which is not set"),
        ("[", "1:2: not valid YAML: "),
        ("", " is empty, expected at least `url`"),
        ("- a", " is a list, expected a mapping"),
        ("url: https://a.test\nca: /not/there", "2:5: ca: is '/not/there', expected the path of a file"),
    ],
)
def test_bad_file_keeps_its_member_and_leaves_others_alone(tmp_path: Path, text: str, fault: str) -> None:
    put(tmp_path / "a.yaml")
    put(tmp_path / "b.yaml", text)
    watched = folder(tmp_path)
    answer = watched.look()
    assert urls(answer) == {"a": "https://a.test"}
    (line,) = answer.complaints.values()
    assert line.startswith(f"{tmp_path}/b.yaml:{fault}")
    assert line.endswith("; its member is left out")
    put(tmp_path / "b.yaml", "url: https://b.test")
    watched.look()
    assert (urls(watched.look())["b"], watched.look().complaints) == ("https://b.test", {})
    put(tmp_path / "b.yaml", text)
    watched.look()
    answer = watched.look()
    assert urls(answer) == {"a": "https://a.test", "b": "https://b.test"}
    (line,) = answer.complaints.values()
    assert line.endswith("; its member stays as it was")


def test_every_fault_of_a_file_is_said(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", "weight: -1\nprime: 7")
    assert len(folder(tmp_path).look().complaints) == 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a b", "is named 'a b', which cannot be a member's"),
        (b"\xff".decode(errors="surrogateescape"), "is named "),
    ],
)
def test_file_whose_name_is_no_members_is_said(tmp_path: Path, name: str, why: str) -> None:
    put(tmp_path / f"{name}.yaml")
    answer = folder(tmp_path).look()
    assert answer.members == {}
    (line,) = answer.complaints.values()
    assert why in line
    line.encode()


@pytest.mark.timeout(20)
def test_what_is_no_file_is_said_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to("nowhere")
    put(tmp_path / "locked.yaml", "url: https://a.test\n" + "#" * (1 << 20))
    lines = sorted(folder(tmp_path).look().complaints.values())
    assert [line.partition(": ")[2] for line in lines] == [
        "is no regular file, expected the settings of a member; its member is left out",
        "cannot be read: No such file or directory; its member is left out",
        "is larger than 1 MiB; its member is left out",
        "is no regular file, expected the settings of a member; its member is left out",
    ]


def test_folder_that_is_missing_is_a_complaint_and_its_members_stay(tmp_path: Path) -> None:
    path = tmp_path / "members"
    watched = folder(path)
    first = watched.look()
    assert (first.members, [*first.complaints]) == ({}, [(str(path), "read")])
    path.mkdir()
    put(path / "a.yaml")
    watched.look()
    assert urls(watched.look()) == {"a": "https://a.test"}
    path.rename(tmp_path / "away")
    for _ in range(3):
        answer = watched.look()
        assert urls(answer) == {"a": "https://a.test"}
        text = f"{path} cannot be read: No such file or directory; its last members stay"
        assert [*answer.complaints.values()] == [text]
    (tmp_path / "away").rename(path)
    assert (urls(watched.look()), watched.look().complaints) == ({"a": "https://a.test"}, {})


def test_configmap_of_kubernetes_is_swapped_as_a_whole(tmp_path: Path) -> None:
    """As the kubelet does it: files are links through `..data`, a link to a folder, which it replaces."""

    def mount(version: str, **members: str) -> None:
        (tmp_path / f"..{version}").mkdir()
        for name, url in members.items():
            put(tmp_path / f"..{version}" / f"{name}.yaml", f"url: {url}")
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        for name in members:
            if not (tmp_path / f"{name}.yaml").is_symlink():
                (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
        for link in tmp_path.glob("*.yaml"):
            if link.stem not in members:
                link.unlink()

    mount("1", a="https://a.test", b="https://b.test")
    watched = folder(tmp_path)
    assert urls(watched.look()) == {"a": "https://a.test", "b": "https://b.test"}
    mount("2", a="https://a2.test", c="https://c.test")
    watched.look()
    answer = watched.look()
    assert (urls(answer), answer.complaints) == ({"a": "https://a2.test", "c": "https://c.test"}, {})


def test_link_that_dangles_for_a_moment_does_not_take_its_member_along(tmp_path: Path) -> None:
    put(tmp_path / "real")
    (tmp_path / "a.yaml").symlink_to("real")
    watched = folder(tmp_path)
    watched.look()
    (tmp_path / "real").rename(tmp_path / "moved")
    for _ in range(3):
        assert urls(watched.look()) == {"a": "https://a.test"}
    (tmp_path / "moved").rename(tmp_path / "real")
    watched.look()
    assert watched.look().complaints == {}


def test_file_that_takes_a_value_from_another_is_read_when_that_changes(tmp_path: Path) -> None:
    host = tmp_path / "host"
    put(tmp_path / "a.yaml", f"url: https://${{file:{host}}}")
    watched = folder(tmp_path)
    assert len(watched.look().complaints) == 1
    put(host, "a.test\n")
    watched.look()
    assert urls(watched.look()) == {"a": "https://a.test"}
    put(host, "b.test\n")
    watched.look()
    assert urls(watched.look()) == {"a": "https://b.test"}


def test_more_files_than_the_limit_are_left_out_by_name_and_known_ones_stay(tmp_path: Path) -> None:
    for name in "bcd":
        put(tmp_path / f"{name}.yaml")
    watched = folder(tmp_path, most=2)
    answer = watched.look()
    assert list(urls(answer)) == ["b", "c"]
    text = f"{tmp_path} has 3 members, of which 2 are taken: without d.yaml"
    assert [*answer.complaints.values()] == [text]
    put(tmp_path / "a.yaml")
    for _ in range(3):
        assert list(urls(watched.look())) == ["b", "c"]
