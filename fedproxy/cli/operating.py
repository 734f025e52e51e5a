"""The commands for operators, which ask a running edge."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from fedproxy.cli.asking import (
    ADMIN,
    Failed,
    Refused,
    ask,
    ask_config,
    ask_list,
    ask_members,
    complete,
    not_an_edge,
    path_of,
)
from fedproxy.cli.base import (
    FILE_ARGUMENT,
    JSON,
    Syntax,
    main,
    number_text,
    say,
    say_changes,
    say_if_it_waits,
    table,
)
from fedproxy.cli.fleet import show_members_of_fleet
from fedproxy.config.report import compare
from fedproxy.config.units import WEIGHT, Weight, weight_text


@main.command()
@ADMIN
@JSON
@click.option("--fleet", is_flag=True, help="As all edges that share a store see them: sums over the edges.")
def members(admin: str, as_json: bool, fleet: bool) -> None:
    """Show the members."""
    if fleet:
        show_members_of_fleet(admin, as_json)
        return
    rows = ask_members(admin)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = (
        (
            f"{row['name']} (prime)" if row["prime"] else row["name"],
            row.get("status", row["state"]),
            "healthy" if row["healthy"] else ", ".join(row["reasons"]) or "unhealthy",
            row["breaker"],
            number_text(row["weight"]),
            f"{row.get('share', 0):.0%}",
            str(row["in_flight"]),
            str(row["launches"]),
        )
        for row in rows
    )
    headings = ("name", "state", "health", "breaker", "weight", "share", "in flight", "launches")
    table(headings, cells, "name", "health")


_DRY = click.option("--dry-run", "dry", is_flag=True, help="Only say what would change.")


def _changes(state: str, text: str) -> None:
    @main.command(state, help=text)
    @ADMIN
    @_DRY
    @click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete)
    def command(names: tuple[str, ...], admin: str, dry: bool) -> None:
        refused = False
        for name in dict.fromkeys(names):
            try:
                if dry:
                    say_changes(ask(admin, f"{path_of(name)}?dry_run=true", {"state": state}))
                    continue
                answer = ask(admin, path_of(name), {"state": state})
            except Refused as error:
                say(f"{name}: {error.message}" if len(names) > 1 else error.message)
                refused = True
            else:
                click.echo(f"{name}: {state}")
                say_if_it_waits(name, answer)
        if refused:
            raise SystemExit(1)


_changes("ready", "Send visitors to members again.")
_changes("drain", "Send no new visitors to members; current ones stay.")
_changes("maint", "Put members in maintenance: send nobody to them.")


@main.command()
@ADMIN
@_DRY
@click.argument("name", shell_complete=complete)
@click.argument("number", metavar="NUMBER|auto", type=Syntax(WEIGHT))
def weight(name: str, number: Weight, admin: str, dry: bool) -> None:
    """Set a member's weight: a number, or `auto`, by the pods that it can carry."""
    if dry:
        say_changes(ask(admin, f"{path_of(name)}?dry_run=true", {"weight": number}))
        return
    answer = ask(admin, path_of(name), {"weight": number})
    click.echo(f"{name}: weight {weight_text(number)}")
    say_if_it_waits(name, answer)


@main.command()
@ADMIN
@_DRY
@JSON
def reload(admin: str, dry: bool, as_json: bool) -> None:
    """Have the edge read its config again: exit 0 if it is in force, else 1 after listing every fault."""
    # Workers may have to start.
    timeout = 60.0
    try:
        answer = ask(admin, f"/reload{'?dry_run=true' if dry else ''}", method="POST", timeout=timeout)
    except Refused as error:
        if as_json:
            click.echo(json.dumps({"reloaded": False, "faults": error.faults}, indent=2))
        for fault in () if as_json else error.faults:
            say(_fault_line(fault))
        if error.faults:
            raise SystemExit(1) from None
        raise
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif dry:
        say_changes(answer)
    else:
        click.echo("reloaded")


def _fault_line(fault: dict[str, Any]) -> str:
    place = [str(fault[key]) for key in ("file", "line", "column") if key in fault]
    parts = [":".join(place), str(fault.get("path", "")), str(fault.get("message", ""))]
    return ": ".join(part for part in parts if part)


@main.command()
@ADMIN
@JSON
@click.option("--own", is_flag=True, help="As it is in its file, without what operators have changed.")
def config(admin: str, as_json: bool, own: bool) -> None:
    """Show the config in force, defaults included and secrets masked."""
    found = ask_config(admin, own=own)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from fedproxy.config.load import to_yaml

    click.echo(to_yaml(found), nl=False)


@main.command()
@ADMIN
@JSON
@click.argument("file", type=FILE_ARGUMENT)
def diff(file: Path, admin: str, as_json: bool) -> None:
    """Show what differs between a config and that of the running edge.

    Exit 0 if nothing does, 1 if something does, 2 on a fault. What operators changed at run time is left out,
    and secrets are not compared. `fedproxy reload --dry-run` says what a reload would change.
    """
    from fedproxy.config.report import masked
    from fedproxy.errors import ConfigError
    from fedproxy.serve.verify import verify

    checked = verify(file, os.environ)
    try:
        wanted = masked(checked.config)
    except ConfigError as error:
        from fedproxy.cli.base import wrong

        raise wrong(file, error) from None
    try:
        found = compare(ask_config(admin, own=True), wanted)
    except Failed as error:
        say(error.message)
        raise SystemExit(2) from None
    if as_json:
        rows = [{"key": each.key, "before": each.before, "after": each.after} for each in found]
        click.echo(json.dumps(rows, indent=2))
    for each in () if as_json else found:
        click.echo(str(each))
    if found:
        raise SystemExit(1)


@main.command()
@ADMIN
@JSON
def certificates(admin: str, as_json: bool) -> None:
    """Show the certificates in use, and when they expire."""
    rows = ask_list(admin, "/certificates", "certificates", "name", "expires")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table(("name", "expires"), ((str(row["name"]), str(row["expires"])) for row in rows), "name")


@main.command()
@ADMIN
@JSON
@click.option("--cookie", help="The value of the visitor's affinity cookie.")
@click.option("--accept", default="*/*", show_default=True, help="Accept; `text/event-stream` for a launch.")
@click.option("--client", help="The visitor's address.")
@click.argument("url")
def explain(url: str, admin: str, as_json: bool, cookie: str | None, accept: str, client: str | None) -> None:
    """Say which member a request for URL would go to, and why.

    URL is a path such as /v2/gh/binder-examples/requirements/HEAD, or a whole URL, whose host counts too.
    """
    question = {"url": url, "accept": accept, "cookie": cookie, "client": client}
    given = {key: value for key, value in question.items() if value is not None}
    found = ask(admin, "/explain", given, method="POST")
    if not isinstance(found, dict) or "action" not in found:
        raise not_an_edge(admin)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    route = found.get("route")
    lines = [
        ("kind", found.get("kind")),
        ("route", f"{route or 'none matches'}: {found['action']}"),
        ("key", found.get("key")),
        ("cookie", found.get("cookie") and f"names {found['cookie']}"),
        ("session", found.get("session") and f"is known to run at {found['session']}"),
        ("refused", found.get("refused")),
        ("member", found.get("member") and _chosen(found)),
        ("from", found.get("origin") if found.get("origin") != "config" else None),
        ("next", ", ".join(map(str, found.get("next") or ()))),
    ]
    for name, value in lines:
        if value:
            click.echo(f"{name + ':':<9}{value}")
    ranking = found.get("ranking")
    if isinstance(ranking, list) and ranking:
        if any("wait" in each for each in ranking):
            _show_waits(ranking)
            return
        chance = found.get("balancer") == "random" or found.get("key") is None
        means = "chosen by chance; the score is a member's part" if chance else "the highest score wins"
        click.echo(f"\n{'random' if chance else found.get('balancer')}: {means}")
        rows = (
            (
                str(each.get("member")),
                "" if each.get("score") is None else f"{each['score']:.4g}",
                number_text(each.get("share", 0.0)),
                str(each.get("in_flight", "")),
                str(each.get("out") or ""),
            )
            for each in ranking
        )
        table(("member", "score", "share", "in flight", "out"), rows, "member", "out")


def _show_waits(ranking: list[dict[str, Any]]) -> None:
    click.echo("\nexpected-wait: the lowest cost wins; among equals, the key decides")
    rows = (
        (
            str(each.get("member")),
            f"{each['wait']:g} s" if "wait" in each else "",
            f"{each['price']:g} s" if "price" in each else "",
            _image_text(each.get("image")),
            number_text(each.get("share", 0.0)),
            str(each.get("in_flight", "")),
            str(each.get("out") or ""),
        )
        for each in ranking
    )
    table(("member", "wait", "price", "image", "share", "in flight", "out"), rows, "member", "out")


def _image_text(image: object) -> str:
    return f"{image:.0%}" if isinstance(image, int | float) else str(image or "")


_CHOSEN_BY = {
    "cookie": "by the cookie",
    "key": "by the key",
    "random": "by chance",
    "host": "by the host or the route",
    "moved": "moved from another",
    "session": "where the session runs",
}


def _chosen(found: dict[str, Any]) -> str:
    by = _CHOSEN_BY.get(str(found.get("source")), str(found.get("source")))
    if found.get("source") == "key" and any("wait" in each for each in found.get("ranking") or ()):
        by = "by the expected wait"
    return f"{found['member']}, {by}{', as the last resort' if found.get('last_resort') else ''}"
