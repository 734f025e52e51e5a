"""The `fedproxy` command."""

from __future__ import annotations

from fedproxy.cli import candidates, files, fleet, joining, operating, serving, watching
from fedproxy.cli.base import main

__all__ = ["candidates", "files", "fleet", "joining", "main", "operating", "serving", "watching"]
