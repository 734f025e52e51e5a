"""Reports about a config: its faults, and the values in force."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.errors import Fault


def fault_lines(file: str, faults: Iterable[Fault]) -> list[str]:
    """One line per fault: `FILE:LINE:COLUMN: key.path: what is wrong, what was expected`.

    Without line and column if the fault is in no line.
    """
    return [f"{at(file, fault)}: {fault}" for fault in faults]


def at(file: str, fault: Fault) -> str:
    """The file, with the place of a fault in it, as editors read it."""
    if fault.place is None:
        return file
    return str(fault.place) if fault.place.file else f"{file}:{fault.place}"


@dataclass(frozen=True)
class Warned:
    """A warning. name: one of `advice.NAMES`. what: as that of a fault."""

    name: str
    what: Fault

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others, wherever it is in the file."""
        return self.name, self.what.path, self.what.message


def warning_lines(file: str, warnings: Iterable[Warned]) -> list[str]:
    """One line per warning: `FILE:LINE:COLUMN: warning: NAME: key.path: what, expected`."""
    return [f"{at(file, each.what)}: warning: {each.name}: {each.what}" for each in warnings]


def as_json(file: str, faults: Iterable[Fault], warnings: Iterable[Warned]) -> list[dict[str, Any]]:
    """Faults and warnings for programs. None: `line` and `column` where there is none, `name` of a fault."""
    rows: list[tuple[str, str | None, Fault]] = [("error", None, fault) for fault in faults]
    rows += [("warning", each.name, each.what) for each in warnings]
    return [
        {
            "file": what.place.file if what.place and what.place.file else file,
            "line": what.place.line if what.place else None,
            "column": what.place.column if what.place else None,
            "key": what.path,
            "level": level,
            "name": name,
            "message": what.message,
        }
        for level, name, what in rows
    ]


def masked(config: Config) -> dict[str, Any]:
    """The whole config in force, defaults included, as JSON has it; secrets are masked."""
    return config.model_dump(mode="json")
