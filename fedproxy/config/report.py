"""What is said about a config: its faults, what is in force, and what is not in force yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fedproxy.config.model import Config
from fedproxy.errors import ConfigError

#: Keys that are accepted and whose behaviour comes in a later version; `*` is any member or list position.
PENDING: tuple[str, ...] = (
    "workers",
    "health",
)


def fault_lines(file: str, error: ConfigError) -> list[str]:
    """One line per fault: `FILE: key.path: what is wrong, what was expected`."""
    return [f"{file}: {fault}" for fault in error.faults]


def not_in_force(config: Config) -> list[str]:
    """The key paths that the operator set and whose behaviour comes later."""
    return [
        path
        for key in PENDING
        for path, value in _explicit(config, key.split("."), ())
        # These ask for nothing that is not there.
        if value is not False and value is not None and (path != "workers" or value not in (1, "auto"))
    ]


def masked(config: Config) -> dict[str, Any]:
    """The whole config in force, defaults included, as JSON has it; secrets are masked."""
    return config.model_dump(mode="json")


def _explicit(value: Any, pattern: list[str], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The paths that match the pattern and are in the file, with their values."""
    if not pattern:
        yield ".".join(path), value
        return
    key, rest = pattern[0], pattern[1:]
    if isinstance(value, BaseModel):
        if key in value.model_fields_set:
            yield from _explicit(getattr(value, key), rest, (*path, key))
        return
    for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _explicit(item, rest, (*path, str(name)))
