"""What a simulation found: as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.chart import Bar, Panel, panels
from benchmarks.simulate.measures import MEASURES, Tally
from benchmarks.simulate.policies import ORACLE, WITHOUT
from fedproxy.decide.balancer import EXPECTED_WAIT

_COLUMNS = {
    "ready_share": "ready\n%",
    "wait_median": "median\ns",
    "wait_p99": "p99\ns",
    "builds": "builds\n",
    "share_error": "share\nerror",
    "moves": "moves\n",
    "overload": "over-\nload %",
    "recovery": "back\ns",
}


#: What a chart shows: by the measure, its title, its unit, and how it is shown. Shorter is better.
_CHARTED: Final[Mapping[str, tuple[str, str, Callable[[float], float]]]] = {
    "builds": ("Images that were built", "builds", float),
    "wait_median": ("Wait until ready, median", "seconds", float),
    "ready_share": (
        "Servable launches that did not become ready",
        "%",
        lambda part: 100 - 100 * part,
    ),
    "share_error": ("Largest difference of a share from the weights", "points", float),
}


@dataclass
class Result:
    """What was found. named: the policies that were asked for. tallies: by policy; that of the oracle is
    there, too.

    partial: why it is not all that was asked for; None if it is.
    """

    scenario: str
    seed: int
    launches: int
    named: Sequence[str]
    tallies: dict[str, Tally]
    partial: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything, in the types of JSON."""
        oracle = self.tallies.get(ORACLE)
        policies: dict[str, dict[str, Any]] = {}
        for name in self.named:
            tally = self.tallies.get(name)
            if tally is None:
                continue
            measured: dict[str, Any] = {key: _rounded(measure(tally)) for key, measure in MEASURES.items()}
            measured["builds_oracle"] = None if oracle is None else oracle.builds
            measured["launches"] = tally.asked
            measured["ends"] = {str(fate): count for fate, count in tally.fates.items()}
            policies[name] = measured
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "launches": self.launches,
            "partial": self.partial is not None,
            "policies": policies,
        }

    def chart(self) -> str:
        """The measures of the policies with failover, as bars in an SVG."""
        drawn = []
        measured = self.as_json()["policies"]
        for key, (title, unit, value) in _CHARTED.items():
            bars = [
                Bar(name, value(found[key]), mine=name == EXPECTED_WAIT)
                for name, found in measured.items()
                if WITHOUT not in name and found[key] is not None
            ]
            drawn.append(Panel(title, unit, bars))
        return panels(drawn)

    def table(self, console: Console) -> None:
        """Prints a table, and what is to be said of it."""
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=0,
            pad_edge=False,
            title=f"{self.scenario}: {self.launches:,} launches, seed {self.seed}",
            title_justify="left",
        )
        table.add_column("\npolicy", no_wrap=True)
        table.add_column("fail-\nover", no_wrap=True)
        for title in _COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        for name, measured in self.as_json()["policies"].items():
            balancer, without, _ = name.partition(WITHOUT)
            failover = "" if name.startswith(ORACLE) else "no" if without else "yes"
            note = "" if measured["launches"] == self.launches else f" ({measured['launches']:,})"
            table.add_row(balancer + note, failover, *(_cell(key, measured[key]) for key in _COLUMNS))
        console.print(table)
        oracle = self.tallies.get(ORACLE)
        if oracle is not None and ORACLE not in self.named:
            console.print(f"The oracle needed {oracle.builds:,} builds.", soft_wrap=True)
        if self.partial is not None:
            console.print(self.partial, soft_wrap=True)


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 6) if isinstance(value, float) else value


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    match key:
        case "ready_share":
            return f"{100 * value:.2f}"
        case "overload":
            return f"{100 * value:.0f}"
        case "share_error":
            return f"{value:.1f}"
        case "moves":
            return f"{value:.3f}"
        case "wait_median":
            return f"{value:.1f}"
        case _:
            return f"{value:,.0f}"
