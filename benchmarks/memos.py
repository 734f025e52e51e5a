"""`python benchmarks/memos.py FILE serve --config CONFIG`: the edge, with memos that count.

Its hot path counts nothing, so that counting costs nothing. Here each table that remembers is replaced by one
that also counts its look-ups. That takes time, so nothing else is measured in this program. Each SIGUSR2
appends a line of JSON to FILE: by the memo's name `[hits, misses]` since the start.
"""

from __future__ import annotations

import json
import linecache
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fedproxy import bounded

Counts = dict[str, tuple[int, int]]

# `lines, h2_lines = Memo(...)`, `self._known: Generations[...] = Generations()`
_TARGETS: Final = re.compile(r"\s*([\w., ]+?)\s*(?::[^=]*)?=")
_HITS, _MISSES = 0, 1
_counted: Final[dict[str, list[int]]] = {}
_made: Final[Counter[tuple[str, int]]] = Counter()
_Memo: Final = bounded.Memo
_Generations: Final = bounded.Generations


class CountedMemo(bounded.Memo[Any]):
    """A memo that knows how often a key was known, and how often it had to be read."""

    def __init__(self, read: Any, *settings: Any, **named: Any) -> None:
        counts = self.counts = _counts(sys._getframe(1))

        def counted(key: bytes) -> Any:
            counts[_MISSES] += 1
            return read(key)

        super().__init__(counted, *settings, **named)

    def __getitem__(self, key: bytes) -> Any:
        before = self.counts[_MISSES]
        value = super().__getitem__(key)
        self.counts[_HITS] += self.counts[_MISSES] == before
        return value

    def get(self, key: bytes, default: Any = None) -> Any:
        """Counts only what it finds: who does not find it here asks the memo itself."""
        value = super().get(key, default)
        self.counts[_HITS] += key in self
        return value


class _Young(dict[Any, Any]):
    """A generation that counts what is found in it."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self._counts = counts

    def get(self, key: Any, default: Any = None) -> Any:
        self._counts[_HITS] += key in self
        return super().get(key, default)


class CountedGenerations(bounded.Generations[Any, Any]):
    """The same for a table of two generations; its owner looks at the young one first."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = _counts(sys._getframe(1))
        self.young = _Young(self.counts)

    def take(self, key: Any) -> Any:
        """Counts what it finds in the old generation, and what it does not find."""
        hits = self.counts[_HITS]
        value = super().take(key)
        if value is None:
            self.counts[_MISSES] += 1
        elif self.counts[_HITS] == hits:
            self.counts[_HITS] += 1
        return value

    def turn(self) -> None:
        """The next young generation counts, too."""
        super().turn()
        self.young = _Young(self.counts)


def _counts(made: FrameType) -> list[int]:
    """Those of the table that is being made there: of all that ever had this name."""
    module, line = made.f_globals["__name__"], made.f_lineno
    found = _TARGETS.match(linecache.getline(made.f_code.co_filename, line))
    targets = [part.strip().removeprefix("self.") for part in found[1].split(",")] if found else ["?"]
    # Several of one line are made from left to right.
    target = targets[_made[module, line] % len(targets)]
    _made[module, line] += 1
    return _counted.setdefault(f"{module}.{target}".removeprefix("fedproxy."), [0, 0])


def _cached_functions() -> Counts:
    """What functools remembers of this program's functions."""
    found: Counts = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("fedproxy."):
            for attribute, value in vars(module).items():
                if hasattr(value, "cache_info") and value.__module__ == name:
                    info = value.cache_info()
                    found[f"{name}.{attribute}".removeprefix("fedproxy.")] = info.hits, info.misses
    return found


def current() -> Counts:
    """Hits and misses of every memo since the start."""
    return {name: (hits, misses) for name, (hits, misses) in _counted.items()} | _cached_functions()


def between(before: Counts, after: Counts) -> Counts:
    """What was counted from `before` to `after`; memos that nobody asked are left out."""
    counts = {}
    for name, (hits, misses) in sorted(after.items()):
        hits_before, misses_before = before.get(name, (0, 0))
        if hits + misses > hits_before + misses_before:
            counts[name] = hits - hits_before, misses - misses_before
    return counts


def read(lines: Iterable[str]) -> list[Counts]:
    """What is in FILE."""
    return [{name: (hits, misses) for name, (hits, misses) in json.loads(line).items()} for line in lines]


def main(file: Path, arguments: list[str]) -> None:
    """Runs the edge. To be called before anything else of it is imported."""

    def note(*_: object) -> None:
        with file.open("a") as out:
            out.write(json.dumps(current()) + "\n")

    bounded.Memo = CountedMemo  # type: ignore[misc]
    bounded.Generations = CountedGenerations  # type: ignore[misc]
    signal.signal(signal.SIGUSR2, note)
    from fedproxy.cli import main as fedproxy

    fedproxy(arguments, prog_name="fedproxy")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
