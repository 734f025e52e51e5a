"""The report of the runs: a table for people, the targets, JSON, Markdown and a chart."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import chart
from benchmarks.memos import Counts
from benchmarks.scenarios import DIRECT, SCENARIOS, Sample

RESULTS = Path(__file__).parent / "results"
LOCAL = RESULTS / "local"
REFERENCES = ("nginx", "haproxy")
EDGES = ("fedproxy", "compiled")
"""This program, in plain Python and with its hot path compiled: the targets are for each."""


@dataclass(frozen=True)
class Target:
    """The upper bound of a ratio, or of a figure if there is no `reference`."""

    scenario: str
    reference: str | None
    most: float


ITSELF = "itself"
"""As the reference of a target: the same proxy, set up in another way."""

TARGETS = (
    *(
        Target(scenario, reference, most)
        for scenario, *limits in (
            ("warm-1k", 1.0, 1.0),
            ("cold-1k", 1.15, 1.1),
            ("launch-page", 1.0, 1.0),
            ("jupyter", 1.0, 1.0),
            ("nocookie-1k", 1.15, 1.1),
            ("warm-64k", 0.8, 1.0),
            ("warm-10m", 0.8, 1.0),
            ("post-64k", 1.0, 1.1),
            ("tls-1k", 1.1, 1.1),
            ("tls-64k", 1.1, 1.1),
            ("h2-1k", 1.1, 1.3),
            ("h2-tls-1k", 1.1, 1.3),
            ("h2-64k", 0.9, 1.3),
            ("h2-events", 1.2, 1.2),
            ("log-1k", 1.2, 1.2),
            ("events", 1.2, 1.2),
            ("echo-64b", 1.2, 1.2),
            ("echo-64k", 1.2, 1.2),
            ("idle", 1.0, 1.0),
            ("paced-1k", 1.5, 1.5),
        )
        for reference, most in zip(REFERENCES, limits, strict=True)
    ),
    Target("warm-1k", "caddy", 1 / 4),
    Target("warm-1k", "chp", 1 / 8),
    Target("warm-1k", "aiohttp", 1 / 8),
    Target("start", None, 600.0),
    Target("members-300", f"{ITSELF} 3 members", 1.1),
)


def _figures(samples: Iterable[Sample], scenario: str, peer: str) -> dict[int, float]:
    """By round."""
    return {
        sample.round: sample.figure
        for sample in samples
        if (sample.scenario, sample.peer) == (scenario, peer)
    }


def ratio(samples: Sequence[Sample], scenario: str, peer: str, reference: str) -> float | None:
    """The median of the ratios within each round; below 1: cheaper than the reference. None if nothing pairs.

    A disturbance that lasts longer than a round so touches both sides of the ratio.
    """
    mine, theirs = _figures(samples, scenario, peer), _figures(samples, scenario, reference)
    ratios = [figure / theirs[number] for number, figure in mine.items() if theirs.get(number)]
    return median(ratios) if ratios else None


def summarise(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row per scenario and proxy, in the order they were first met: medians over the rounds."""
    pairs = dict.fromkeys((sample.scenario, sample.peer) for sample in samples)
    return [_row(samples, scenario, peer) for scenario, peer in pairs]


def _row(samples: Sequence[Sample], scenario: str, peer: str) -> dict[str, Any]:
    mine = [sample for sample in samples if (sample.scenario, sample.peer) == (scenario, peer)]
    cpu = median(sample.cpu_us for sample in mine)
    return {
        "scenario": scenario,
        "peer": peer,
        "measure": SCENARIOS[scenario].measure,
        "figure": median(sample.figure for sample in mine),
        "user_us": median(sample.user_us for sample in mine),
        "kernel_us": median(sample.kernel_us for sample in mine),
        # The ticks of the kernel's accounting are coarse: a very short run can show none.
        "per_cpu_second": 1_000_000 / cpu if cpu else None,
        "per_second": median(sample.count / sample.seconds if sample.seconds else 0.0 for sample in mine),
        "p50_us": median(sample.p50_us for sample in mine),
        "p99_us": median(sample.p99_us for sample in mine),
        "memory": max(sample.memory for sample in mine),
        "not_ok": sum(sample.not_ok for sample in mine),
        "broken": sum(sample.broken for sample in mine),
        "ratios": {name: ratio(samples, scenario, peer, name) for name in REFERENCES},
    }


@dataclass(frozen=True)
class Verdict:
    """A target, and what was measured."""

    target: Target
    peer: str
    value: float

    @property
    def held(self) -> bool:
        """Whether it is reached."""
        return self.value <= self.target.most

    @property
    def against(self) -> str:
        """What it is compared with."""
        reference = self.target.reference
        return reference.replace(ITSELF, self.peer) if reference else SCENARIOS[self.target.scenario].measure


def verdicts(samples: Sequence[Sample]) -> list[Verdict]:
    """Of every target whose runs were made."""
    found = []
    for target in TARGETS:
        for peer in EDGES:
            if target.reference:
                value = ratio(samples, target.scenario, peer, target.reference.replace(ITSELF, peer))
            else:
                figures = _figures(samples, target.scenario, peer)
                value = median(figures.values()) if figures else None
            if value is not None:
                found.append(Verdict(target, peer, value))
    return found


# For people

_COLUMNS = (
    "total",
    "user",
    "kernel",
    "per\nCPU s",
    "p50\nms",
    "p99\nms",
    "MiB",
    "errors",
    "x\nnginx",
    "x HA-\nProxy",
)


def show(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print the table."""
    table = _table("Processor time of the proxy in µs, medians of the rounds", gap=0)
    table.add_column("proxy", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if row["scenario"] != previous:
            if previous:
                table.add_section()
            previous = row["scenario"]
            other = "" if row["measure"].startswith("CPU") else f", {row['measure']}"
            table.add_row(f"[bold]{previous}[/bold]{other}")
        *cells, errors, nginx, haproxy = _cells(row)
        table.add_row(
            row["peer"], *cells, errors if errors == "0" else f"[red]{errors}[/red]", nginx, haproxy
        )
    console.print(table)


def show_verdicts(found: Iterable[Verdict], console: Console) -> None:
    """Print the targets with the measured values."""
    table = _table("Targets")
    for name in ("scenario", "proxy", "against"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "at most", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in found:
        target = verdict.target
        table.add_row(
            target.scenario,
            verdict.peer,
            verdict.against,
            f"{verdict.value:.2f}",
            f"{target.most:.2f}",
            "reached" if verdict.held else "[red]missed[/red]",
        )
    if table.row_count:
        console.print(table)


def _table(title: str, gap: int = 1) -> Table:
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    rate = row["per_cpu_second"]
    return [
        chart.number(row["figure"]) if row["figure"] else "-",
        *(chart.number(row[name]) if rate else "-" for name in ("user_us", "kernel_us")),
        f"{rate:,.0f}" if rate else "-",
        *(chart.number(row[name] / 1000) if row[name] else "-" for name in ("p50_us", "p99_us")),
        f"{row['memory'] / 2**20:.0f}",
        str(row["not_ok"] + row["broken"]),
        *(
            (f"{value:.2f}" if value < 100 else chart.number(value)) if value else "-"
            for value in row["ratios"].values()
        ),
    ]


# To keep


def result(
    samples: Sequence[Sample],
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
    notes: Sequence[str],
    load: Sequence[float],
    memos: Mapping[str, Counts] = MappingProxyType({}),
) -> dict[str, Any]:
    """All results and the environment.

    `load` is the machine's load average before the first run, and `memos` what those of the edge counted in
    each scenario.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, "-m", "benchmarks", *sys.argv[1:]]),
        "machine": machine() | {"load_before": [round(each, 2) for each in load]},
        "versions": dict(versions),
        "settings": dict(settings),
        "notes": list(notes),
        "targets": [
            asdict(verdict.target)
            | {
                "peer": verdict.peer,
                "reference": verdict.against,
                "measured": verdict.value,
                "held": verdict.held,
            }
            for verdict in verdicts(samples)
        ],
        "memos": {
            scenario: {
                name: {"hits": hits, "misses": misses, "hit_rate": hits / (hits + misses)}
                for name, (hits, misses) in counts.items()
            }
            for scenario, counts in memos.items()
        },
        "summary": summarise(samples),
        "runs": [asdict(sample) for sample in samples],
    }


def machine() -> dict[str, Any]:
    """Where it runs."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def save(found: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write `name`.json, .md and .svg, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        ".json": json.dumps(found, indent=1) + "\n",
        ".md": markdown(found, name),
        ".svg": chart.panels(_panels(found["summary"])),
    }
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{name}{suffix}"
        path.write_text(text)
        paths.append(path)
    return paths


def markdown(found: Mapping[str, Any], name: str) -> str:
    """The same as a page."""
    where = found["machine"]
    lines = [
        f"# Bench of {found['time']}",
        "",
        f"`{found['command']}`",
        "",
        f"{where['processor']}, {where['cores']} cores, Linux {where['kernel']}, Python {where['python']},"
        f" load average before: {', '.join(map(str, where['load_before']))}.",
        "",
        "Versions: " + ", ".join(f"{peer} {version}" for peer, version in found["versions"].items()) + ".",
        "",
        *(f"- {note}" for note in found["notes"]),
        "",
        f"![what each costs]({name}.svg)",
        "",
        *_markdown_targets(found["targets"]),
    ]
    for scenario in dict.fromkeys(row["scenario"] for row in found["summary"]):
        rows = [row for row in found["summary"] if row["scenario"] == scenario]
        columns = ["proxy", rows[0]["measure"], *(column.replace("\n", " ") for column in _COLUMNS[1:])]
        lines += [
            f"## {scenario}: {SCENARIOS[scenario].about}",
            "",
            "| " + " | ".join(columns) + " |",
            "| --- |" + " ---: |" * (len(columns) - 1),
            *("| " + " | ".join([row["peer"], *_cells(row)]) + " |" for row in rows),
            "",
            *_markdown_memos(found["memos"].get(scenario, {})),
        ]
    return "\n".join(lines)


def _markdown_memos(counts: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not counts:
        return []
    return [
        "| memo of the edge | looked up | known |",
        "| --- | ---: | ---: |",
        *(
            f"| `{name}` | {each['hits'] + each['misses']:,} | {each['hit_rate']:.1%} |"
            for name, each in counts.items()
        ),
        "",
    ]


def _markdown_targets(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    if not targets:
        return []
    return [
        "## Targets",
        "",
        "| scenario | proxy | against | measured | at most | |",
        "| --- | --- | --- | ---: | ---: | --- |",
        *(
            f"| {target['scenario']} | {target['peer']} | {target['reference']} "
            f"| {target['measured']:.2f} | {target['most']:.2f} "
            f"| {'reached' if target['held'] else 'missed'} |"
            for target in targets
        ),
        "",
    ]


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[chart.Panel]:
    return [
        chart.Panel(
            f"{scenario}: {SCENARIOS[scenario].about}",
            SCENARIOS[scenario].measure,
            [
                chart.Bar(row["peer"], row["figure"], row["peer"].startswith(EDGES))
                for row in rows
                if row["scenario"] == scenario and row["peer"] != DIRECT
            ],
        )
        for scenario in dict.fromkeys(row["scenario"] for row in rows)
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
