"""What operators set at any edge of a fleet: one override for each member, the newest by the store's order.

An override is all that operators have changed of a member. It is set over the one that the edge knew. While
the store is away, an override is in force on its own edge, and pending. When the store is back, it is taken
if nobody has set anything for that member meanwhile; otherwise the fleet's override stays in force.

Overrides are also kept in a file, so that an edge that starts while the store is away knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedproxy.control.foreign import read_json
from fedproxy.control.state import (
    MemberOverride,
    State,
    beside,
    put_aside,
    read_file,
    read_member_override,
    state_of,
    write_file,
)
from fedproxy.control.store import Stored
from fedproxy.errors import ConfigError

_VERSION: Final = 1
_MOST_BYTES: Final = 16 << 20
_LONGEST: Final = 1 << 18  # bytes of an override
_LONGEST_NAME: Final = 200  # characters


@dataclass(frozen=True)
class Override:
    """What operators set for a member. who: set it; edge: where; at: when, in seconds since the epoch by that
    edge's clock."""

    content: MemberOverride
    who: str = ""
    edge: str = ""
    at: float = 0.0

    def pack(self) -> bytes:
        """As the store keeps it."""
        content = self.content.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"override": content, "who": self.who, "edge": self.edge, "at": self.at}).encode()


def read_override(name: str, content: bytes) -> Override:
    """An override of the member of that name. Raises ValueError, with a line for an operator."""
    if len(content) > _LONGEST:
        raise ValueError(f"is larger than {_LONGEST >> 10} KiB")
    try:
        found = read_json(content, _LONGEST)
        override = read_member_override(name, found["override"])
        who, edge, at = found["who"], found["edge"], found["at"]
        if not (isinstance(who, str) and isinstance(edge, str) and isinstance(at, int | float)):
            raise TypeError  # noqa: TRY301 -- as for any other nonsense
    except ConfigError as error:
        raise ValueError(str(error)) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("is not what an edge writes") from error
    return Override(override, who[:_LONGEST_NAME], edge[:_LONGEST_NAME], float(at))


class Overrides:
    """All overrides that this edge knows.

    stored: those of the store. pending: those that it does not have yet, with the order of the override
    that each was set over. order: the greatest that was seen.
    """

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.pending: dict[str, tuple[int, Override]] = {}
        self.order = 0
        self._read: dict[str, Override] = {}
        self._tried: dict[str, set[bytes]] = {}
        self._over: dict[str, MemberOverride] = {}  # what those that are pending were set over

    def base(self, name: str) -> int:
        """The order of the stored override of a member; 0 for none."""
        stored = self.stored.get(name)
        return stored.order if stored is not None else 0

    def get(self, name: str) -> Override | None:
        """The override that is in force on this edge."""
        pending = self.pending.get(name)
        return pending[1] if pending is not None else self._read.get(name)

    def take(self, name: str, stored: Stored) -> bool:
        """Takes an override of the store; False if it is not new. Raises ValueError; what was read stays."""
        self.order = max(self.order, stored.order)
        before = self.stored.get(name)
        if before is not None and before.order >= stored.order:
            return False
        # Only once: what cannot be read is not read again.
        self.stored[name] = stored
        try:
            self._read[name] = read_override(name, stored.content)
        except ValueError as error:
            raise ValueError(f"what operators set for {name[:_LONGEST_NAME]!r} {error}") from error
        return True

    def hold(self, name: str, override: Override) -> None:
        """Keeps an override that the store does not have yet."""
        base, _ = self.pending.get(name, (self.base(name), override))
        if name not in self.pending:
            self._over[name] = self._read[name].content if name in self._read else MemberOverride()
        self.pending[name] = base, override

    def rebased(self, name: str, override: Override) -> Override | None:
        """A pending override over the store's, if nothing but the member's ramp has moved there since; else
        None. Edges move ramps by themselves, which is not to undo what an operator sets."""
        over, by = self._over.get(name), self._read.get(name)
        if over is None or by is None:
            return None
        if over.model_copy(update={"ramp": None}) != by.content.model_copy(update={"ramp": None}):
            return None
        return replace(override, content=override.content.model_copy(update={"ramp": by.content.ramp}))

    def done(self, name: str, override: Override, taken: bool) -> None:
        """A pending override was sent to the store, which took it or refused it.

        One that was set here meanwhile remains pending: over this one, if it was taken.
        """
        base, newest = self.pending.pop(name, (0, override))
        if newest is not override:
            self.pending[name] = self.base(name) if taken else base, newest

    # A store that does not answer in time may have taken an override all the same.

    def sent(self, name: str, content: bytes) -> None:
        """An override is sent to the store."""
        self._tried.setdefault(name, set()).add(content)

    def is_own(self, name: str, content: bytes) -> bool:
        """Whether this edge has sent this override, and the store has not answered."""
        return content in self._tried.get(name, ())

    def acknowledged(self, name: str) -> None:
        """The store has answered."""
        self._tried.pop(name, None)

    def missing_from(self, overrides: Mapping[str, Stored]) -> dict[str, Stored]:
        """What the store should have and has lost, given all that it has."""
        return {
            name: stored
            for name, stored in self.stored.items()
            if name not in overrides or overrides[name].order < stored.order
        }

    def state(self) -> State:
        """What operators have set, as it is in force here."""
        contents = {name: each.content for name, each in self._read.items()}
        contents |= {name: each.content for name, (_, each) in self.pending.items()}
        return state_of(contents)

    # The file

    def pack(self) -> bytes:
        """Everything, for a file."""
        stored = {
            name: [each.order, each.content.decode("utf-8", "replace")] for name, each in self.stored.items()
        }
        pending = {name: [base, override.pack().decode()] for name, (base, override) in self.pending.items()}
        return json.dumps({"version": _VERSION, "stored": stored, "pending": pending}).encode() + b"\n"

    def unpack(self, content: bytes) -> list[str]:
        """Takes what `pack` returned; returns lines for an operator about overrides that cannot be used.

        Raises ValueError for anything else.
        """
        lines = []
        try:
            found: Any = json.loads(content)
            if found["version"] != _VERSION:
                raise ValueError("it is of another version")
            stored = {
                str(name): Stored(int(order), override.encode())
                for name, (order, override) in found["stored"].items()
            }
            pending = {
                str(name): (int(base), read_override(name, override.encode()))
                for name, (base, override) in found["pending"].items()
            }
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError("it has no overrides") from error
        for name, each in stored.items():
            try:
                self.take(name, each)
            except ValueError as error:
                lines.append(str(error))
        self.pending.update(pending)
        return lines


class OverridesFile:
    """Keeps overrides beside the operators' state; nowhere if `state` is None. Its calls may block."""

    def __init__(self, state: Path | None) -> None:
        self.path = beside(state, "fleet")

    def load(self, into: Overrides) -> list[str]:
        """Reads it; returns lines for an operator about what is wrong. Raises nothing."""
        if self.path is None:
            return []
        try:
            content = read_file(self.path, _MOST_BYTES)
        except OSError as error:
            return [str(error.strerror)]
        if content is None:
            return []
        try:
            return into.unpack(content)
        except ValueError as error:
            line, self.path = put_aside(self.path, f"{self.path} is not what operators set: {error}")
            return [line]

    def save(self, content: bytes) -> None:
        """Keeps what `Overrides.pack` returned. Raises OSError with a line for an operator."""
        if self.path is not None:
            write_file(self.path, content)
