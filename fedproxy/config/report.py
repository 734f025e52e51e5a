"""Reports about a config: its faults, and the values in force."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedproxy.config.units import MASK

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


def note_lines(file: str, notes: Iterable[Fault]) -> list[str]:
    """One line per remark on an imported file: `FILE:LINE:COLUMN: warning: key.path: what, what to do`."""
    return [f"{at(file, note)}: warning: {note}" for note in notes]


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


@dataclass(frozen=True)
class Difference:
    """A value that differs between two configs, in the types of JSON. None: it is not there.

    key: the key path. before, after: secrets are masked in both, and so differ by the text.
    """

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None and isinstance(self.after, dict):
            return f"{self.key}: added"
        if self.after is None and isinstance(self.before, dict):
            return f"{self.key}: removed"
        return f"{self.key}: {_as_text(self.before)} -> {_as_text(self.after)}"


def _as_text(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def compare(before: Mapping[str, Any], after: Mapping[str, Any], above: str = "") -> list[Difference]:
    """What differs between two configs, each as `masked` has it, in their order."""
    found: list[Difference] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        where = f"{above}{key}"
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += compare(old, new, f"{where}.")
        elif isinstance(old, list) and isinstance(new, list) and any(isinstance(e, dict) for e in old + new):
            found += compare(_numbered(old), _numbered(new), f"{where}.")
        else:
            found.append(Difference(where, old, new))
    return found


def _numbered(items: Sequence[Any]) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}


def changed_secrets(before: Config, after: Config) -> list[Difference]:
    """The secrets that differ; their values are not told."""
    old, new = before.secrets, after.secrets
    return [
        Difference(key, MASK if key in old else None, MASK if key in new else None)
        for key in dict.fromkeys([*old, *new])
        if key in old and key in new and old[key] != new[key]
    ]


def masked(config: Config) -> dict[str, Any]:
    """The whole config in force, defaults included, as JSON has it; secrets are masked."""
    return config.model_dump(mode="json")
