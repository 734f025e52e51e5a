"""The Grafana dashboard, and what it asks Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DASHBOARD = json.loads((ROOT / "conf" / "grafana" / "fedproxy.json").read_text())
GRAFANA = {
    "$__rate_interval": "5m",
    "$__all": ".*",
    "$datasource": "prometheus",
    "$job": "fedproxy",
    "$member": ".*",
}


def panels() -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def _plain(expression: str) -> str:
    """Without Grafana's variables, as Prometheus is asked."""
    for name, value in GRAFANA.items():
        expression = expression.replace(name, value)
    return expression


def _queries() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of everything that the dashboard asks Prometheus."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], _plain(target["expr"]), target["legendFormat"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], _plain(note["expr"]), note["titleFormat"]


QUERIES = list(_queries())
