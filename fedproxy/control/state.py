"""Operators' changes at run time, the file that saves them, and the rules for conflicts with the config.

A change records what the config had at that time, and applies as long as the config has the same:

- A weight applies until the config's own weight of that member changes, or the member is gone. `auto` is
  one too.
- An added member applies until the config has a different entry with its name: once it is in the config, the
  config decides.
- A deleted member stays deleted while its entry in the config stays the same.
- How far a member's ramp has come applies for as long as the member is active and has a ramp.
- An intent applies until it is changed, also while its member is absent; deleting a member discards it.
- With `sources` of members, one that is gone may only be out of their sight: what was set of it is kept.
- What no longer fits the config as a whole (a second prime member, a host that another has) is dropped.

`reconcile` applies these rules at startup and on reload, and reports what it dropped.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field

from fedproxy.config import units
from fedproxy.config.address import MEMBER_NAME
from fedproxy.config.check import config_error, model_from, show, with_members
from fedproxy.config.document import Document
from fedproxy.config.load import member_from
from fedproxy.config.model import Config, MemberSettings, Section
from fedproxy.decide.member import Intent
from fedproxy.errors import ConfigError, Fault

_VERSION: Final = 1
_MOST_BYTES: Final = 4 << 20

_Name = Annotated[str, MEMBER_NAME]
_Model = TypeVar("_Model", bound=Section)


class Weight(Section):
    """A member's weight, which overrides `over`."""

    value: Annotated[units.Weight, units.WEIGHT]
    over: Annotated[units.Weight, units.WEIGHT]


class Change(Section):
    """A member that was added or deleted at run time.

    `settings`: the member in the form of the config; None: it was deleted. `over`: the config's entry with
    that name at the time; None: there was none. Both without defaults, so that they can be compared.
    """

    settings: Mapping[str, Any] | None = None
    over: Mapping[str, Any] | None = None


class State(Section):
    """Operators' changes, by member name. Frozen: the functions of this module return the next state.

    by: who changed a member last, as long as any change of it applies. An older file has none. ramps: how far
    the ramps of members have come, which the edge itself sets.
    """

    intents: Mapping[_Name, Literal["drain", "maint"]] = Field(default={})
    weights: Mapping[_Name, Weight] = Field(default={})
    members: Mapping[_Name, Change] = Field(default={})
    by: Mapping[_Name, Annotated[str, units.TEXT]] = Field(default={})
    ramps: Mapping[_Name, Annotated[float, units.SHARE]] = Field(default={})

    def intent(self, name: str) -> Intent:
        """The operator's intent for a member."""
        return Intent(self.intents.get(name, "ready"))


class MemberOverride(Section):
    """All that operators have set of one member: its part of a `State`."""

    intent: Literal["ready", "drain", "maint"] = "ready"
    weight: Weight | None = None
    change: Change | None = None
    by: Annotated[str, units.TEXT] | None = None
    ramp: Annotated[float, units.SHARE] | None = None


def override_of(state: State, name: str) -> MemberOverride:
    """A member's part of the state."""
    return MemberOverride(
        intent=state.intent(name).value,
        weight=state.weights.get(name),
        change=state.members.get(name),
        by=state.by.get(name),
        ramp=state.ramps.get(name),
    )


def state_of(overrides: Mapping[str, MemberOverride]) -> State:
    """The state with these overrides."""
    return State(
        intents={name: each.intent for name, each in overrides.items() if each.intent != "ready"},
        weights={name: each.weight for name, each in overrides.items() if each.weight is not None},
        members={name: each.change for name, each in overrides.items() if each.change is not None},
        by={name: each.by for name, each in overrides.items() if each.by is not None},
        ramps={name: each.ramp for name, each in overrides.items() if each.ramp is not None},
    )


# -- the next state


def set_intent(state: State, name: str, intent: Intent) -> State:
    """The state with the operator's intent for a member."""
    rest = _without(state.intents, name)
    return state.model_copy(
        update={"intents": rest if intent is Intent.READY else {**rest, name: intent.value}}
    )


def sign(state: State, name: str, who: str) -> State:
    """The state with who changed a member last."""
    return _with_signers(state, {**state.by, name: who})


def _with_signers(state: State, by: Mapping[str, str]) -> State:
    """Forgets who changed members of which no change is left."""
    changed = {*state.intents, *state.weights, *state.members}
    return state.model_copy(update={"by": {name: who for name, who in by.items() if name in changed}})


def set_weight(config: Config, state: State, name: str, weight: units.Weight) -> State:
    """The state with a member's weight. Raises KeyError for an unknown name."""
    rest = state.model_copy(update={"weights": _without(state.weights, name)})
    own = overlay(config, rest).members[name].weight
    if weight == own:
        return rest
    return state.model_copy(update={"weights": {**rest.weights, name: Weight(value=weight, over=own)}})


def set_ramp(state: State, name: str, progress: float) -> State:
    """The state with how far a member's ramp has come."""
    return state.model_copy(update={"ramps": {**state.ramps, name: progress}})


def join(config: Config, state: State, name: str, settings: object) -> State:
    """The state with this member, new or as a replacement; a weight set before is discarded.

    Raises ConfigError: for faults of the settings with key paths in the member, else in the config.
    """
    member = member_from(name, settings)
    if not member.active:
        # What was intended for it would wait for it to come back.
        state = state.model_copy(update={"intents": _without(state.intents, name)})
    return _changed(config, state, name, Change(settings=_written(member), over=_said(config, name)))


def leave(config: Config, state: State, name: str) -> State:
    """The state without this member and its settings.

    Raises KeyError for an unknown name, and ConfigError if the federation needs the member.
    """
    if name not in overlay(config, state).members:
        raise KeyError(name)
    over = _said(config, name)
    forgotten = state.model_copy(update={"intents": _without(state.intents, name)})
    return _changed(config, forgotten, name, Change(over=over) if over is not None else None)


def _changed(config: Config, state: State, name: str, change: Change | None) -> State:
    members = _without(state.members, name)
    if change is not None and change.settings != change.over:
        members[name] = change
    changed = state.model_copy(update={"members": members, "weights": _without(state.weights, name)})
    there = overlay(config, changed).members.get(name)
    if there is None or not _has_ramp(there):
        return changed.model_copy(update={"ramps": _without(state.ramps, name)})
    return changed


def _has_ramp(member: MemberSettings) -> bool:
    # A past member that comes back is a new one.
    return member.ramp is not None and member.active


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


# -- the state and the config


def overlay(config: Config, state: State) -> Config:
    """The config with the state applied; changes that the config has conflict are ignored.

    Raises ConfigError for members that do not fit, which `reconcile` drops.
    """
    holding = {name: change for name, change in state.members.items() if _holds(config, name, change)}
    changed = _with_members(config, holding) if holding else config
    members = dict(changed.members)
    for name, weight in state.weights.items():
        if name in members and members[name].weight == weight.over:
            # A weight ends a ramp, which needs `auto`.
            ended = {} if weight.value == "auto" else {"ramp": None}
            members[name] = members[name].model_copy(update={"weight": weight.value, **ended})
    return changed.model_copy(update={"members": members})


def reconcile(config: Config, state: State) -> tuple[State, list[str]]:
    """The part of the state that still applies with this config, and a line for each part that does not.

    `overlay` raises nothing for the returned state.
    """
    members, lines = _fitting(config, state.members)
    base = overlay(config, State(members=members)).members
    weights: dict[str, Weight] = {}
    for name, weight in state.weights.items():
        value = units.weight_text(weight.value)
        if name not in base and config.sources.any:
            weights[name] = weight
        elif name not in base:
            lines.append(f"{name}: its weight {value} is dropped: there is no such member")
        elif base[name].weight != weight.over:
            lines.append(
                f"{name}: its weight {value} was set over {units.weight_text(weight.over)} and is dropped: "
                f"the config says {units.weight_text(base[name].weight)}"
            )
        else:
            weights[name] = weight
    # Its progress is no intent of anybody, so that nobody need be told that it is over.
    ramps = {
        name: progress
        for name, progress in state.ramps.items()
        if (_has_ramp(base[name]) if name in base else config.sources.any)
    }
    kept = state.model_copy(update={"members": members, "weights": weights, "ramps": ramps})
    return _with_signers(kept, state.by), lines


def _fitting(config: Config, changes: Mapping[str, Change]) -> tuple[dict[str, Change], list[str]]:
    lines = []
    holding: dict[str, Change] = {}
    absent: dict[str, Change] = {}
    for name, change in changes.items():
        if _holds(config, name, change):
            holding[name] = change
        elif config.sources.any and name not in config.members:
            absent[name] = change
        else:
            lines.append(
                f"{name}: {_done(change)}, but the config has changed its entry since: the config applies"
            )
    with contextlib.suppress(ConfigError):
        _with_members(config, holding)
        return {**holding, **absent}, lines
    # They do not fit together: keep each one that fits with those before it.
    fitting: dict[str, Change] = {}
    for name, change in holding.items():
        try:
            _with_members(config, {**fitting, name: change})
        except ConfigError as error:
            lines.append(f"{name}: {_done(change)}, dropped: {error}")
        else:
            fitting[name] = change
    return {**fitting, **absent}, lines


def _done(change: Change) -> str:
    return "was deleted at run time" if change.settings is None else "was added at run time"


def _holds(config: Config, name: str, change: Change) -> bool:
    return change.over == _said(config, name)


def _said(config: Config, name: str) -> Mapping[str, Any] | None:
    member = config.members.get(name)
    return _written(member) if member is not None else None


def _written(member: MemberSettings) -> dict[str, Any]:
    return member.model_dump(mode="json", exclude_defaults=True)


def _with_members(config: Config, changes: Mapping[str, Change]) -> Config:
    """The config with these members, validated as a whole as if they were in its file."""
    members = {name: _written(member) for name, member in config.members.items()}
    for name, change in changes.items():
        if change.settings is not None:
            members[name] = dict(change.settings)
        else:
            members.pop(name, None)
    changed, findings = with_members(config, members)
    if changed is None:
        raise config_error(Document(), findings)
    return changed


# -- the file


def state_path(config: Config, file: Path | None, env: Mapping[str, str]) -> Path | None:
    """The path of the state file, None for none; `file` is the config's."""
    if isinstance(config.store, Path):
        return config.store
    if config.admin.state == "off":
        return None
    if config.admin.state is not None:
        return config.admin.state
    # systemd separates several directories by colons.
    if directory := env.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(directory, "state.json")
    return file.with_name(f"{file.stem}.state.json") if file is not None else None


class StateFile:
    """The state in a file, or nowhere if `path` is None. Its calls block on the disk."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._writable = True

    def load(self) -> tuple[State, list[str]]:
        """The state, and lines for an operator about what is wrong. Raises nothing.

        Without a file the state is empty. A file that cannot be read, is invalid or of another version is
        renamed, and the state is empty.
        """
        if self.path is None:
            return State(), []
        lines: list[str] = []
        state = State()
        try:
            state = _read(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            lines.append(self._put_aside(f"{self.path} cannot be read: {error.strerror}"))
        except ConfigError as error:
            lines.append(self._put_aside(f"{self.path} is not a fedproxy state file: {error}"))
        return state, [*lines, *self._try()]

    def save(self, state: State) -> None:
        """Writes the state atomically, readable by its owner only.

        Raises OSError with a line for an operator; the file is then unchanged. A path that could not be
        written at startup was reported by `load`, and is not an error here.
        """
        if self.path is None:
            return
        try:
            write_file(self.path, _content(state))
        except OSError:
            if self._writable:
                raise
        else:
            self._writable = True

    def _put_aside(self, message: str) -> str:
        assert self.path is not None  # noqa: S101 -- asked for by those who read it
        line, self.path = put_aside(self.path, message)
        return line

    def _try(self) -> list[str]:
        if self.path is None:
            return []
        try:
            with tempfile.TemporaryFile(dir=self.path.parent):
                return []
        except OSError as error:
            self._writable = False
            return [
                f"{self.path} cannot be written: {error.strerror}; operators' changes are lost at a restart "
                "(admin.state: another path, or off)"
            ]


def _read(path: Path) -> State:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError([Fault("", f"is larger than {_MOST_BYTES >> 20} MiB")])
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError([Fault("", "is not JSON")]) from error
    if not isinstance(data, dict):
        raise ConfigError([Fault("", "is not a JSON object")])
    version = data.pop("version", None)
    if version != _VERSION:
        raise ConfigError([Fault("version", f"is {show(version)}, expected {_VERSION}")])
    return _valid(State, data)


def read_member_override(name: str, data: object) -> MemberOverride:
    """An override that another edge wrote. Raises ConfigError."""
    if not isinstance(data, dict):
        raise ConfigError([Fault("", "is not a JSON object")])
    _valid(State, {"intents": {name: "drain"}})
    override = _valid(MemberOverride, data)
    if override.change is not None and override.change.settings is not None:
        member_from(name, dict(override.change.settings))
    return override


def _valid(model: type[_Model], data: Any) -> _Model:
    found, findings = model_from(model, data)
    if found is None:
        raise config_error(Document(), findings)
    return found


def _content(state: State) -> bytes:
    return json.dumps({"version": _VERSION, **state.model_dump()}, indent=2).encode() + b"\n"


def beside(state: Path | None, name: str) -> Path | None:
    """The path of another file that is kept beside the operators' state; None if that is nowhere."""
    if state is None:
        return None
    stem = state.name.removesuffix("state.json") if state.name.endswith("state.json") else f"{state.stem}."
    return state.with_name(f"{stem}{name}")


def put_aside(path: Path, message: str) -> tuple[str, Path | None]:
    """Renames a file that is not what it should be.

    Returns a line for an operator, and the path to go on with; None if the file could not be renamed, and is
    to be left alone.
    """
    names = (path.with_name(f"{path.name}.bad-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    try:
        path.rename(aside)
    except OSError as error:
        line = f"{message}; {path} stays as it is ({error.strerror}), and nothing is saved across a restart"
        return line, None
    return f"{message}; it is now {aside}, and is ignored", path


def read_file(path: Path, most: int) -> bytes | None:
    """What a file has, up to so many bytes; None if there is none.

    Raises OSError with a line for an operator.
    """
    try:
        if not path.exists() or path.is_file():
            with path.open("rb") as file:
                return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read: {error.strerror}") from error
    # A pipe would block.
    raise OSError(errno.EINVAL, f"{path} is no file")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file atomically, readable by its owner only. Raises OSError with a line for an operator."""
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    # The new file exists; some file systems do not guarantee that it survives a power failure.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in an OSError which file it is about, as a line for an operator."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
