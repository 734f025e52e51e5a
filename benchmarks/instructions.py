"""`python -m benchmarks.instructions`: how many instructions parsing and decisions take, by callgrind.

The counts are the same on a busy machine and on an idle one, so a doubling shows where times only scatter.
They depend on the interpreter, and a little on the processor: the bounds in `instructions.json` are kept per
version of Python, at one and a quarter times the count. Takes about ten seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.counted import TIMES
from benchmarks.peers import BenchmarkError

BOUNDS: Final = Path(__file__).with_name("instructions.json")
ROOM: Final = 1.25
VERSION: Final = ".".join(platform.python_version_tuple()[:2])
_COUNTED: Final = Path(__file__).with_name("counted.py")
_TOTAL: Final = re.compile(r"^totals: (\d+)$", re.MULTILINE)


def counts() -> dict[str, int]:
    """Instructions of each case, once. Raises `BenchmarkError` if callgrind did not count."""
    if shutil.which("valgrind") is None:
        raise BenchmarkError("valgrind is not installed")
    program = [sys.executable, "-P", str(_COUNTED)]
    names = subprocess.run(
        [*program, "--names"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    with tempfile.TemporaryDirectory(prefix="fedproxy-callgrind-") as folder:
        tool = [
            "valgrind",
            "--tool=callgrind",
            "--dump-before=getloadavg",
            f"--callgrind-out-file={folder}/out",
        ]
        done = subprocess.run(
            [*tool, *program],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        if done.returncode:
            raise BenchmarkError(f"callgrind ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        parts = [Path(folder, f"out.{number}") for number in range(1, 2 * len(names) + 1)]
        if not all(part.exists() for part in parts):
            raise BenchmarkError("callgrind did not see every mark: is getloadavg of another name here?")
        totals = [_TOTAL.search(part.read_text()) for part in parts]
    return read(names, [int(total[1]) if total else 0 for total in totals])


def read(names: list[str], totals: list[int]) -> dict[str, int]:
    """Instructions of each case: every second part is a case's, and the first case does nothing."""
    counted = dict(zip(names, totals[1::2], strict=True))
    nothing = counted.pop(names[0])
    return {name: (total - nothing) // TIMES for name, total in counted.items()}


def bounds_of(version: str) -> dict[str, int]:
    """The bounds of a version of Python; one without any gets 1.5 times those of the last with some."""
    kept: dict[str, dict[str, int]] = json.loads(BOUNDS.read_text())
    if version in kept:
        return kept[version]
    last = max(kept, key=lambda each: [int(part) for part in each.split(".")])
    return {name: int(count * ROOM) for name, count in kept[last].items()}


def over(counted: Mapping[str, int], bounds: Mapping[str, int]) -> list[str]:
    """The cases that exceed their bound, and those without one."""
    return [name for name, count in counted.items() if count > bounds.get(name, 0)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--update", is_flag=True, help="Save one and a quarter times the current counts as the bounds.")
def main(update: bool) -> None:
    """Count, and compare with the bounds of this version of Python. Exit status 1 if one is exceeded."""
    try:
        counted = counts()
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    if update:
        kept = json.loads(BOUNDS.read_text())
        kept[VERSION] = {name: int(count * ROOM) for name, count in counted.items()}
        BOUNDS.write_text(json.dumps(kept, indent=1) + "\n")
    bounds = bounds_of(VERSION)
    _show(counted, bounds)
    raise SystemExit(bool(over(counted, bounds)))


def _show(counted: Mapping[str, int], bounds: Mapping[str, int]) -> None:
    table = Table(title="Instructions", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("counted", "at most", ""):
        table.add_column(name, justify="right", no_wrap=True)
    passed = over(counted, bounds)
    for name, count in counted.items():
        most = f"{bounds[name]:,}" if name in bounds else "-"
        table.add_row(name, f"{count:,}", most, "[red]over[/red]" if name in passed else "ok")
    Console().print(table)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.instructions")
