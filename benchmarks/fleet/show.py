"""The figures as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.fleet.record import PhaseFigures
    from benchmarks.fleet.run import FleetResult
    from benchmarks.fleet.scale import StoreUse


def table(title: str, first: str, columns: Sequence[str]) -> Table:
    """An empty table whose other columns hold figures."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column(first, no_wrap=True)
    for name in columns:
        made.add_column(name, justify="right")
    return made


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def visits(phases: Sequence[PhaseFigures]) -> Table:
    """What visitors met with."""
    columns = ("s", "requests", "failed", "again", "else-where", "p50 ms", "p99 ms", "longest s", "moved")
    made = table("Visitors; moved: without need", "phase", columns)
    for each in phases:
        made.add_row(
            *(each.name, f"{each.seconds:.0f}", f"{each.requests:,}", str(each.failed), str(each.again)),
            *(str(each.elsewhere), f"{each.p50:.1f}", f"{each.p99:.0f}", f"{each.longest / 1000:.1f}"),
            str(each.moves),
        )
    return made


def launches(phases: Sequence[PhaseFigures], most: int) -> Table:
    """What launches met with, and operators."""
    columns = (
        "launches",
        "ready",
        "no room",
        "unused",
        "moved",
        "roomy",
        "peak",
        "over",
        "changes",
        "median s",
        "max s",
    )
    made = table(f"Launches, at most {most} at once at a member; operators' changes", "phase", columns)
    for each in phases:
        longest = each.agreed_most if each.agreed_most is not None else each.late_most
        made.add_row(
            *(each.name, str(each.launches), str(each.ready), str(each.full), str(each.unused)),
            *(
                str(each.launch_moves),
                str(each.roomy),
                str(each.peak),
                str(each.overshoot),
                str(each.changes),
            ),
            *(_seconds(each.agreed_median), _seconds(longest)),
        )
    return made


def loads(uses: Sequence[StoreUse]) -> Table:
    """What edges cost their store, each a second."""
    columns = (
        "launches",
        "scripts",
        "published",
        "executed",
        "KiB in",
        "KiB out",
        "Redis CPU",
        "edge CPU",
        "Redis MiB",
    )
    made = table("A second of a fleet's store", "edges x members", columns)
    for each in uses:
        made.add_row(
            *(f"{each.edges} x {each.members}", f"{each.launches:g}", f"{each.calls.get('evalsha', 0):,.0f}"),
            *(f"{each.calls.get('publish', 0):,.0f}", f"{each.executed:,.0f}"),
            *(f"{each.received / 1024:,.0f}", f"{each.sent / 1024:,.0f}"),
            *(f"{each.redis_cpu:.1%}", f"{each.edge_cpu:.2%}", f"{each.memory / (1 << 20):.1f}"),
        )
    return made


def delays(uses: Sequence[StoreUse]) -> Table:
    """How long what edges agree on takes."""
    columns = ("launches", "all there s", "change ms", "max ms", "asked ms", "answers", "refused", "troubles")
    made = table("Agreement; refused: for want of a slot that another edge held", "edges x members", columns)
    for each in uses:
        change = (
            ("late", "") if each.change is None else tuple(f"{seconds * 1000:.0f}" for seconds in each.change)
        )
        asked = ("failed", "") if each.asked is None else (f"{each.asked[0] * 1000:.0f}", f"{each.asked[1]}")
        made.add_row(
            *(f"{each.edges} x {each.members}", f"{each.launches:g}", f"{each.begin:.1f}", *change, *asked),
            *(f"{each.refused:.0%}", str(each.troubles)),
        )
    return made


def show(found: FleetResult, console: Console) -> None:
    """Everything."""
    console.print(visits(found.phases))
    console.print(launches(found.phases, int(found.settings["max_launches"])))
    for each in found.phases:
        if each.cut_off:
            console.print(f"{each.name}: {each.cut_off} visits to sessions whose member was out of reach")
        if each.late_most is not None:
            console.print(
                f"{each.name}: what was said meanwhile held {each.late_most:.2f} s after it was back"
            )
        for why, times in each.why.items():
            console.print(f"{each.name}: {times} failed, {why}", markup=False)
        if each.events:
            told = ", ".join(f"{name} {times}" for name, times in sorted(each.events.items()))
            console.print(f"{each.name}: events: {told}", markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(note, markup=False)
