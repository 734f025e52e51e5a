"""A folder with a file for each member.

A file is read once it is the same at two looks in a row, so that whoever writes it has finished, and its
member leaves once it is gone at two. Links are followed, so that a ConfigMap of Kubernetes, which is swapped
as a whole behind them, is a change of every file that differs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedproxy.config.load import read_member
from fedproxy.config.model import MemberSettings
from fedproxy.config.report import fault_lines
from fedproxy.control.sources import FoundMember, SourceAnswer

_LOOK: Final = 0.4  # seconds between two looks
_ENDING: Final = ".yaml"
_SHOWN: Final = 5

_Signature = tuple[tuple[int, ...] | None, ...]


@dataclass
class _Watched:
    """A file. seen: its signature at the last look, None if it was not there. read: when it was read."""

    seen: _Signature | None = None
    read: _Signature | None = None
    others: list[Path] = field(default_factory=list)
    member: MemberSettings | None = None
    faults: tuple[str, ...] = ()


class MemberFolder:
    """The members in a folder.

    run: makes a call that a disk may hold up. env: what `${NAME}` stands for. most: the most members.
    """

    def __init__(
        self,
        path: Path,
        env: Mapping[str, str],
        run: Callable[[Callable[[], SourceAnswer]], Awaitable[SourceAnswer]],
        most: int,
    ) -> None:
        self._path = path
        self._env = env
        self._run = run
        self._most = most
        self._files: dict[str, _Watched] = {}
        self._looks = 0

    async def ask(self) -> SourceAnswer:
        """What is there now."""
        return await self._run(self.look)

    def look(self) -> SourceAnswer:
        """The same, in this thread."""
        complaints: dict[tuple[str, str], str] = {}
        folder = printable(self._path)
        try:
            names = [each.name for each in self._path.iterdir() if _is_member(each.name)]
        except OSError as error:
            text = f"{folder} cannot be read: {error.strerror}; its last members stay"
            complaints[folder, "read"] = text
        else:
            # Those that are known stay if there are too many.
            names.sort(key=lambda name: (name not in self._files, name))
            if len(names) > self._most:
                more = names[self._most :]
                complaints[folder, "limit"] = (
                    f"{folder} has {len(names)} members, of which {self._most} are taken: without "
                    f"{', '.join(map(printable, more[:_SHOWN]))}{' and others' if len(more) > _SHOWN else ''}"
                )
            self._look_at(names[: self._most])
        self._looks += 1
        for name, file in sorted(self._files.items()):
            stays = "its member stays as it was" if file.member is not None else "its member is left out"
            for line in file.faults:
                complaints[printable(self._path / name), line] = f"{line}; {stays}"
        members = {
            name.removesuffix(_ENDING): FoundMember(file.member, f"directory: {printable(self._path / name)}")
            for name, file in sorted(self._files.items())
            if file.member is not None
        }
        return SourceAnswer(members, complaints, _LOOK)

    def _look_at(self, names: list[str]) -> None:
        there = set(names)
        for name, file in list(self._files.items()):
            if name not in there:
                if file.seen is None:
                    del self._files[name]
                file.seen = None
        for name in names:
            file = self._files.setdefault(name, _Watched())
            path = self._path / name
            now = _signature(path, file.others)
            if now != file.read and (now == file.seen or self._looks == 0):
                self._read(path, file)
                # What it is read from may be other files now.
                now = file.read = _signature(path, file.others)
            file.seen = now

    def _read(self, path: Path, file: _Watched) -> None:
        found = read_member(path, self._env)
        file.others = list(found.files)
        file.faults = tuple(fault_lines(printable(path), found.faults))
        if found.settings is not None:
            file.member = found.settings


def member_files(path: Path) -> list[Path]:
    """The files in a folder that have members, in the order of their names. Raises OSError."""
    return sorted(each for each in path.iterdir() if _is_member(each.name))


def _is_member(name: str) -> bool:
    return name.endswith(_ENDING) and not name.startswith(".")


def printable(path: Path | str) -> str:
    """A path as text that can be written anywhere, whatever bytes it is made of."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _signature(path: Path, others: list[Path]) -> _Signature:
    return tuple(map(_one_signature, (path, *others)))


def _one_signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
