"""Reports about a config: its faults, and the values in force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.errors import ConfigError, Fault


def fault_lines(file: str, error: ConfigError) -> list[str]:
    """One line per fault: `FILE:LINE:COLUMN: key.path: what is wrong, what was expected`.

    Without line and column if the fault is in no line.
    """
    return [f"{at(file, fault)}: {fault}" for fault in error.faults]


def at(file: str, fault: Fault) -> str:
    """The file, with the place of a fault in it, as editors read it."""
    return file if fault.place is None else f"{file}:{fault.place}"


def masked(config: Config) -> dict[str, Any]:
    """The whole config in force, defaults included, as JSON has it; secrets are masked."""
    return config.model_dump(mode="json")
