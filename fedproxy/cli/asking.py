"""Questions to the admin listener of a running edge."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from fedproxy.cli.base import Syntax, say
from fedproxy.config.address import LINK

ADMIN = click.option(
    "--admin",
    envvar="FEDPROXY_ADMIN",
    default="http://127.0.0.1:8081",
    show_default=True,
    type=Syntax(LINK),
    help="The admin listener's URL (FEDPROXY_ADMIN).",
)


class Failed(click.ClickException):
    """Ends the command with a line on stderr and exit 1."""

    def show(self, file: Any = None) -> None:
        """As click says."""
        say(self.message)


class Refused(Failed):
    """The edge refused this one change; others may still succeed. faults: each with `path` and `message`."""

    faults: Sequence[dict[str, Any]] = ()


def ask(
    admin: str,
    path: str,
    change: dict[str, Any] | None = None,
    timeout: float = 10.0,
    method: str | None = None,
) -> Any:
    """Asks the admin API. method: PATCH with a change, GET without.

    Raises `Failed` with a message that says what to do.
    """
    token = os.environ.get("FEDPROXY_ADMIN_TOKEN")
    # Reading may need it, too.
    body, headers = None, {"Authorization": f"Bearer {token}"} if token else {}
    if change is not None:
        body = json.dumps(change).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(  # noqa: S310 -- it is an http URL: `LINK`
        admin.rstrip("/") + path,
        data=body,
        headers=headers,
        method=method or ("GET" if change is None else "PATCH"),
    )
    try:
        # The admin listener is on this machine or in this cluster: bypass proxies set in the environment.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=timeout) as response:
            # 204: there is nothing to say.
            return json.load(response) if response.status != 204 else None
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(admin, error, token) from None
    except (OSError, http.client.RemoteDisconnected) as error:
        reason = getattr(error, "reason", error)
        raise Failed(
            f"{admin}: {getattr(reason, 'strerror', None) or reason}; is the edge running there?"
        ) from None
    except (ValueError, RecursionError, http.client.HTTPException):
        raise not_an_edge(admin) from None


def _refusal(admin: str, error: urllib.error.HTTPError, token: str | None) -> Failed:
    detail, faults = "", None
    try:
        told = json.load(error)
        detail, faults = told.get("detail", ""), told.get("faults")
    except (ValueError, RecursionError, AttributeError, OSError, http.client.HTTPException):
        pass
    hint = ""
    if error.code == 401:
        hint = f" FEDPROXY_ADMIN_TOKEN is {'a different one' if token else 'not set'}."
    text = f"{admin}: {error.code}: {detail or error.reason}{hint}"
    if error.code not in (404, 422):
        return Failed(text)
    refused = Refused(text)
    if isinstance(faults, list):
        refused.faults = [fault for fault in faults if isinstance(fault, dict)]
    return refused


def not_an_edge(admin: str) -> Failed:
    """The error for an answer that no edge gives."""
    return Failed(f"{admin}: what answers there is not the edge's admin listener")


_SHOWN = {"name", "prime", "state", "healthy", "reasons", "breaker", "weight", "in_flight", "launches"}


def ask_members(admin: str, timeout: float = 10.0) -> list[dict[str, Any]]:
    """The members. Raises `Failed`."""
    return ask_list(admin, "/members", "members", *_SHOWN, timeout=timeout)


def ask_totals(admin: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The members, and what the edge counted itself: `requests` and `refused`. Raises `Failed`."""
    told = ask(admin, "/members")
    edge = told.get("edge") if isinstance(told, dict) else None
    # One of an earlier release does not say.
    return _rows(admin, told, "members", *_SHOWN), edge if isinstance(edge, dict) else {}


def complete(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """The members' names, if the edge answers quickly."""
    admin = context.params.get("admin") or os.environ.get("FEDPROXY_ADMIN") or "http://127.0.0.1:8081"
    given = context.params.get(str(parameter.name)) or ()
    try:
        rows = ask_members(admin, timeout=1.0) if LINK.parse(admin) else []
    except Failed:
        return []
    names = [str(row["name"]) for row in rows]
    return [CompletionItem(name) for name in names if name.startswith(start) and name not in given]


def ask_list(admin: str, path: str, name: str, *keys: str, timeout: float = 10.0) -> list[dict[str, Any]]:
    """The objects of a list that is the answer's `name`, each with these keys. Raises `Failed`."""
    return _rows(admin, ask(admin, path, timeout=timeout), name, *keys)


def _rows(admin: str, found: Any, name: str, *keys: str) -> list[dict[str, Any]]:
    rows = found.get(name) if isinstance(found, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= {*keys} for row in rows):
        raise not_an_edge(admin)
    return rows


def path_of(name: str) -> str:
    """The path of a member."""
    return f"/members/{urllib.parse.quote(name, safe='')}"


def ask_config(admin: str, *, own: bool = False) -> dict[str, Any]:
    """The config in force; own: without what operators changed. Raises `Failed`."""
    found = ask(admin, "/config?own=true" if own else "/config")
    if not isinstance(found, dict) or "members" not in found:
        raise not_an_edge(admin)
    return found
