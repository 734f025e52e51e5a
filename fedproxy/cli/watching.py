"""The commands that look at a running edge for a while: its events, and its members as they change."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from fedproxy.cli.asking import ADMIN, Failed, ask_list, ask_totals
from fedproxy.cli.base import JSON, fit, main, number_text, say
from fedproxy.decide.snapshot import WORST_FIRST, Status

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVENT = ("time", "level", "event", "member", "who", "message")
_POLL = 1.0  # seconds between two looks at the log
_SAME = 3  # events in a row by which it is known how far the log was read
_SHOWN = 8  # events below the members


@main.command()
@ADMIN
@JSON
@click.option("--follow", "-f", is_flag=True, help="Also print what happens from now on, until Ctrl-C.")
def log(admin: str, as_json: bool, follow: bool) -> None:
    """Show the edge's recent events, up to 500: breakers, health, operators, reloads, workers."""
    seen = _events(admin)
    _print_events(seen, as_json)
    away = False
    while follow:
        try:
            time.sleep(_POLL)
            now = _events(admin)
        except KeyboardInterrupt:
            return
        except Failed as error:
            # It may be restarted just now.
            if not away:
                say(error.message)
            away = True
            continue
        away = False
        _print_events(unseen(seen, now), as_json)
        seen = now


def _events(admin: str) -> list[dict[str, Any]]:
    return ask_list(admin, "/log", "events", *_EVENT)


def unseen(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """The events of a log that were not in it before. The oldest of it may be gone since."""
    end = list(before[-_SAME:])
    for at in range(len(now), 0, -1):
        start = max(0, at - len(end))
        # At the beginning, what came before may have been dropped.
        if end and list(now[start:at]) == end[len(end) - (at - start) :]:
            yield from now[at:]
            return
    yield from now


def _print_events(events: Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]], as_json: bool) -> None:
    for event in events:
        click.echo(json.dumps(event) if as_json else _line(event))
    sys.stdout.flush()


def _line(event: Mapping[str, Any]) -> str:
    who = f" [{event['who']}]" if event["who"] else ""
    text = f"{event['time']} {event['level']:<7} {event['event']}{who} {event['message']}"
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


_PLACES: Final = {status.value: place for place, status in enumerate(WORST_FIRST)}
_BAD: Final = (Status.UNHEALTHY, Status.EJECTED)


class Sample(NamedTuple):
    """The members, and what the edge counted itself, at a time, in seconds."""

    at: float
    members: list[dict[str, Any]]
    edge: dict[str, Any]


def _sample(admin: str) -> Sample:
    return Sample(time.monotonic(), *ask_totals(admin))


@main.command()
@ADMIN
@JSON
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=2.0,
    show_default=True,
    help="Seconds between two updates.",
)
def top(admin: str, as_json: bool, interval: float) -> None:
    """Watch the members: status, requests and failures per second, launches, pods. Ctrl-C ends it.

    If the output is not a terminal, or with --json, it is printed once.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(markup=False, emoji=False, highlight=False)
    before = _sample(admin)
    try:
        time.sleep(interval)
        if as_json or not console.is_terminal:
            fit(console)
            now = _sample(admin)
            found = rates(before, now)
            if as_json:
                click.echo(json.dumps(found, indent=2))
            else:
                console.print(_shown(found, (), totals(before, now)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                now = _sample(admin)
                events = _events(admin)[-_SHOWN:]
                live.update(_shown(rates(before, now), events, totals(before, now), admin), refresh=True)
                before = now
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def rates(before: Sample, now: Sample) -> list[dict[str, Any]]:
    """The members with requests and failures per second between two samples; the worst first."""
    seconds = max(now.at - before.at, 1e-3)
    known = {row["name"]: row for row in before.members}
    found = []
    for row in now.members:
        old = known.get(row["name"], row)
        found.append(
            {
                **row,
                "requests_per_second": _rate(old.get("requests", 0), row.get("requests", 0), seconds),
                "errors_per_second": _rate(_sum(old.get("errors")), _sum(row.get("errors")), seconds),
            }
        )
    return sorted(found, key=lambda row: _PLACES.get(str(row.get("status")), 0))


def totals(before: Sample, now: Sample) -> str:
    """What visitors asked for and what the edge refused, per second between two samples; why, if it did."""
    seconds = max(now.at - before.at, 1e-3)
    old, new = before.edge.get("refused") or {}, now.edge.get("refused") or {}
    refused = {reason: _rate(old.get(reason, 0), count, seconds) for reason, count in new.items()}
    by_rate = sorted(refused, key=lambda reason: -refused[reason])
    worst = [reason.replace("_", " ") for reason in by_rate if refused[reason]]
    why = f" ({', '.join(worst[:3])})" if worst else ""
    requests = _rate(before.edge.get("requests", 0), now.edge.get("requests", 0), seconds)
    return f"{number_text(requests)} requests/s, {number_text(sum(refused.values()))} refused/s{why}"


def _rate(old: float, new: float, seconds: float) -> float:
    # An edge that was restarted counts from the start.
    return round(max(0.0, new - old) / seconds, 2)


def _sum(counts: Any) -> float:
    return sum(counts.values()) if isinstance(counts, dict) else 0.0


def _shown(
    rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], total: str, admin: str = ""
) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("member", overflow="fold", min_width=max((len(row["name"]) for row in rows), default=0))
    table.add_column("status", no_wrap=True, min_width=max(map(len, Status), default=0))
    for name in ("share", "requests/s", "failures/s", "in flight", "launches", "pods"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("why", overflow="fold")
    for row in rows:
        status = str(row.get("status", row["state"]))
        tone = "green" if status == "available" else "red" if status in _BAD else "yellow"
        pods, quota = (row.get("pods") or {}).get("total"), row.get("quota")
        table.add_row(
            f"{row['name']} (prime)" if row["prime"] else str(row["name"]),
            Text(status, style=tone),
            f"{row.get('share', 0):.0%}",
            number_text(row["requests_per_second"]),
            number_text(row["errors_per_second"]),
            str(row["in_flight"]),
            str(row["launches"]) + (f"/{row['max_launches']}" if row.get("max_launches") else ""),
            "" if pods is None else f"{pods}/{quota}" if quota is not None else str(pods),
            ", ".join(row.get("details") or row.get("reasons") or ()),
        )
    failed = sum(row["errors_per_second"] for row in rows)
    head = f"{admin}  {total}, {number_text(failed)} failures/s of members".strip()
    lines = [Text(_line(event), no_wrap=True, overflow="ellipsis") for event in events]
    return Group(Text(head), Text(""), table, Text(""), *lines)
