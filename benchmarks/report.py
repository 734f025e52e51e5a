"""What the runs say together: one table for people, one JSON file for comparing."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.load import Sample

RESULTS = Path(__file__).parent / "results" / "local"
REFERENCES = ("nginx", "haproxy")


def summarise(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row per scenario and peer, in the order they were first met: medians over the rounds.

    A ratio is the median of the ratios within each round, so that a disturbance which lasts longer than a
    round touches both sides of it. Below 1: cheaper than the reference.
    """
    pairs = dict.fromkeys((sample.scenario, sample.peer) for sample in samples)
    return [_row(samples, scenario, peer) for scenario, peer in pairs]


def _row(samples: Sequence[Sample], scenario: str, peer: str) -> dict[str, Any]:
    mine = [sample for sample in samples if (sample.scenario, sample.peer) == (scenario, peer)]
    cpu = median(sample.cpu_us for sample in mine)
    return {
        "scenario": scenario,
        "peer": peer,
        "user_us": median(sample.user_us for sample in mine),
        "kernel_us": median(sample.kernel_us for sample in mine),
        "cpu_us": cpu,
        # The ticks of the kernel's accounting are coarse: a very short run can show none.
        "requests_per_cpu_second": 1_000_000 / cpu if cpu else None,
        "requests_per_second": median(sample.requests / sample.seconds for sample in mine),
        "p50_us": median(sample.p50_us for sample in mine),
        "p99_us": median(sample.p99_us for sample in mine),
        "not_ok": sum(sample.not_ok for sample in mine),
        "broken": sum(sample.broken for sample in mine),
        "ratios": {name: _ratio(samples, mine, scenario, name) for name in REFERENCES},
    }


def _ratio(samples: Iterable[Sample], mine: Iterable[Sample], scenario: str, reference: str) -> float | None:
    theirs = {
        sample.round: sample.cpu_us
        for sample in samples
        if (sample.scenario, sample.peer) == (scenario, reference)
    }
    ratios = [sample.cpu_us / theirs[sample.round] for sample in mine if theirs.get(sample.round)]
    return median(ratios) if ratios else None


def show(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(
        title="Processor time of the proxy per request, medians of the rounds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for name in ("scenario", "peer"):
        table.add_column(name, no_wrap=True)
    for name in (
        "user\nµs",
        "kernel\nµs",
        "total\nµs",
        "req per\nCPU s",
        "p50\nms",
        "p99\nms",
        "errors",
        "x\nnginx",
        "x HA-\nProxy",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row["scenario"]):
            table.add_section()
        first = row["scenario"] != previous
        previous = row["scenario"]
        table.add_row(previous if first else "", *_cells(row))
    console.print(table)


def _cells(row: Mapping[str, Any]) -> list[str]:
    rate = row["requests_per_cpu_second"]
    errors = row["not_ok"] + row["broken"]
    return [
        row["peer"],
        f"{row['user_us']:.1f}",
        f"{row['kernel_us']:.1f}",
        f"{row['cpu_us']:.1f}",
        f"{rate:,.0f}" if rate else "-",
        f"{row['p50_us'] / 1000:.2f}",
        f"{row['p99_us'] / 1000:.2f}",
        f"[red]{errors}[/red]" if errors else "0",
        *(f"{ratio:.2f}" if ratio else "-" for ratio in row["ratios"].values()),
    ]


def save(
    rows: Sequence[Mapping[str, Any]],
    samples: Iterable[Sample],
    versions: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Path:
    """Write everything that was measured to a new file in `RESULTS` and return its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    result = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": dict(versions),
        "settings": dict(settings),
        "summary": list(rows),
        "runs": [asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
