"""What the edges of a fleet are, and how all of them see the members."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import click

from fedproxy.cli.asking import ADMIN, ask, not_an_edge
from fedproxy.cli.base import JSON, main, number_text, say, table
from fedproxy.decide.snapshot import WORST_FIRST

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


@main.command()
@ADMIN
@JSON
def edges(admin: str, as_json: bool) -> None:
    """Show the edges that share a store, and how the store is.

    The first is the edge that was asked; the last column says in what each other edge differs from it.
    """
    found = ask(admin, "/edges")
    rows = found.get("edges") if isinstance(found, dict) else None
    store = found.get("store") if isinstance(found, dict) else None
    if not (
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and isinstance(store, dict)
    ):
        raise not_an_edge(admin)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    headings = (
        *("name", "version", "config", "workers", "connections", "requests", "launches", "up"),
        *("probes", "disagrees"),
    )
    table(headings, map(_edge_cells, rows), "name", "disagrees")
    click.echo(f"\nstore: {_store_text(store)}")


def _edge_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (_shown(row.get(key)) for key in ("workers", "connections", "requests", "launches"))
    return (
        f"{row.get('name')} (here)" if row.get("here") else str(row.get("name")),
        *(_shown(row.get(key)) for key in ("version", "config")),
        *numbers,
        _uptime(row.get("started_at")),
        "yes" if row.get("probes") else "no",
        ", ".join(map(str, row.get("disagrees") or ())),
    )


def _shown(value: object) -> str:
    return "?" if value is None else str(value)


def _uptime(started: object) -> str:
    try:
        seconds = max(0, int(time.time() - datetime.fromisoformat(str(started)).timestamp()))
    except ValueError:
        return "?"
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _store_text(store: Mapping[str, Any]) -> str:
    place = store.get("place")
    if not store.get("shared"):
        where = (
            "what operators set is not kept" if place is None else f"what operators set is kept in {place}"
        )
        state = "" if store.get("up") else ", which cannot be written"
        return f"none is shared, so this edge is alone; {where}{state}"
    since = f" since {store['since']}" if store.get("since") else ""
    pending = ", ".join(map(str, store.get("pending") or ()))
    waits = f"; what was set here waits for it: {pending}" if pending else ""
    if store.get("up"):
        return f"{place} can be reached{since}{waits}"
    return f"{place} is away{since}: the other edges are shown as they were known last{waits}"


def show_members_of_fleet(admin: str, as_json: bool) -> None:
    """Prints the members as all edges see them, and a line on stderr on edges that did not answer."""
    found = ask(admin, "/members?fleet=true")
    rows = found.get("members") if isinstance(found, dict) else None
    # An edge of an earlier release passes the parameter over.
    if not isinstance(rows, list) or not isinstance(found.get("edges"), int):
        raise not_an_edge(admin)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        headings = ("name", "state", "weight", "in flight", "launches", "requests", "edges differ")
        table(headings, map(_member_cells, rows), "name", "edges differ")
    missing = found.get("missing") or ()
    if missing:
        say(f"did not answer, and are not counted: {', '.join(map(str, missing))}")


def _member_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    status, weights = row.get("status") or {}, row.get("weights") or {}
    differ = [*_differing(status), *_differing(weights, "weight ")]
    return (
        str(row.get("name")),
        _most_said(status),
        _plain(_most_said(weights)),
        *(str(row.get(key, "")) for key in ("in_flight", "launches", "requests")),
        "; ".join(differ),
    )


_PLACES = {status.value: place for place, status in enumerate(WORST_FIRST)}


def _most_said(said: Mapping[str, Any]) -> str:
    """What most edges say; of what equally many say, the worst."""
    return min(said, key=lambda each: (-len(said[each]), _PLACES.get(each, 0)), default="")


def _differing(said: Mapping[str, Any], what: str = "") -> Iterable[str]:
    """Which edges say something else than most."""
    most = _most_said(said)
    return [f"{what}{_plain(each)} at {', '.join(map(str, said[each]))}" for each in said if each != most]


def _plain(text: str) -> str:
    """A number as short as it can be; anything else as it is."""
    try:
        return number_text(float(text))
    except ValueError:
        return text
