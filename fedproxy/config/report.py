"""Reports about a config: its faults, and the values in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.errors import ConfigError


def fault_lines(file: str, error: ConfigError) -> list[str]:
    """One line per fault: `FILE: key.path: what is wrong, what was expected`."""
    return [f"{file}: {fault}" for fault in error.faults]


def masked(config: Config) -> dict[str, Any]:
    """The whole config in force, defaults included, as JSON has it; secrets are masked."""
    return config.model_dump(mode="json")
