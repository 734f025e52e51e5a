"""Ratios of one release compared with those of the previous release."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

SCENARIOS: Final = (
    "warm-1k",
    "cold-1k",
    "nocookie-1k",
    "warm-64k",
    "post-64k",
    "tls-1k",
    "log-1k",
    "events",
    "echo-64b",
)
WORSE: Final = 1.25
"""A ratio may grow by this factor: what a shared machine does to one by itself."""

Ratios = dict[str, dict[str, float]]
EDGES: Final = {"fedproxy": "", "compiled": ", compiled"}


def ratios(rows: Iterable[Mapping[str, Any]]) -> Ratios:
    """scenario -> reference -> what fedproxy costs of it; the same for fedproxy compiled."""
    return {
        row["scenario"] + EDGES[row["peer"]]: {
            name: round(value, 3) for name, value in row["ratios"].items() if value
        }
        for row in rows
        if row["peer"] in EDGES
    }


def last(folder: Path, version: str) -> tuple[str, Ratios] | None:
    """The newest release kept before `version`; what was kept of that version itself if there is none."""
    kept = sorted(
        (path for path in folder.glob("*.json") if re.match(r"\d+\.\d+", path.stem)),
        key=lambda path: _order(path.stem),
    )
    before = [path for path in kept if _order(path.stem) < _order(version)] or [
        path for path in kept if path.stem == version
    ]
    return (before[-1].stem, json.loads(before[-1].read_text())["ratios"]) if before else None


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def grown(now: Ratios, before: Ratios) -> list[str]:
    """`SCENARIO against REFERENCE` for each ratio that grew too much."""
    return [
        f"{scenario} against {name}"
        for scenario, references in now.items()
        for name, value in references.items()
        if value > WORSE * before.get(scenario, {}).get(name, float("inf"))
    ]


def show(now: Ratios, before: tuple[str, Ratios] | None, console: Console) -> list[str]:
    """Print both; return what grew too much."""
    version, then = before or ("none kept", {})
    table = Table(
        title="Processor time of fedproxy as a part of the peer's",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("scenario", "against"):
        table.add_column(name, no_wrap=True)
    for name in ("now", version):
        table.add_column(name, justify="right", no_wrap=True)
    for scenario, references in now.items():
        for name, value in references.items():
            old = then.get(scenario, {}).get(name)
            table.add_row(scenario, name, f"{value:.2f}", f"{old:.2f}" if old else "-")
    console.print(table)
    worse = grown(now, then)
    for what in worse:
        console.print(f"Grown by more than {WORSE - 1:.0%}: {what}")
    return worse


def save(folder: Path, found: Mapping[str, Any], now: Ratios) -> Path:
    """Save it under its version."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['versions']['fedproxy']}.json"
    kept = {name: found[name] for name in ("time", "command", "machine", "versions", "settings")}
    path.write_text(json.dumps(kept | {"ratios": now}, indent=1) + "\n")
    return path
