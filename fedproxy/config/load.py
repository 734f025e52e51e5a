"""A file or its text -> a config. This is the only entry point: its results are valid as a whole."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fedproxy.config.address import MEMBER_NAME
from fedproxy.config.check import (
    MAX_FAULTS,
    ValidParts,
    config_error,
    config_from,
    faults_of,
    model_from,
    show,
)
from fedproxy.config.document import MAX_BYTES, Document, escape, expand, interpolate, read
from fedproxy.config.include import include
from fedproxy.config.legacy import convert_data, is_legacy
from fedproxy.config.model import Config, MemberSettings
from fedproxy.config.paperwork import convert_paperwork, is_paperwork, resembles_paperwork
from fedproxy.config.places import Finding, Places
from fedproxy.errors import ConfigError, Fault


@dataclass(frozen=True)
class Reading:
    """What a file says. `config` is None if it is not valid; `findings` are then what is wrong with it.

    parts: what can be checked further in any case, valid or not.
    """

    document: Document
    config: Config | None
    findings: Sequence[Finding]
    parts: ValidParts

    def error(self, more: Sequence[Finding] = ()) -> ConfigError | None:
        """What is wrong, with `more` that was found since; None if nothing is."""
        if self.config is not None and not self.document.findings and not more:
            return None
        return config_error(self.document, [*self.findings, *more])


def load(path: Path, env: Mapping[str, str]) -> Config:
    """The config in the file at `path`, with `${NAME}` from `env`. Raises ConfigError with every fault."""
    return _config_in(examine(read_text(path), env, path))


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content[:MAX_BYTES].decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Fault("", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        # The error does not count a byte order mark.
        start = len(content[:MAX_BYTES]) - len(error.object) + error.start
        before = error.object[: error.start].decode()
        place = Places(before).place(len(before))
        message = f"is not UTF-8: {error.reason} at byte {start}"
        raise ConfigError([Fault("", message, place)]) from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError([Fault("", f"cannot be read: {error}")]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([Fault("", f"is larger than {MAX_BYTES >> 20} MiB")])
    return text


def parse(text: str, env: Mapping[str, str]) -> Config:
    """The config in `text`, in fedproxy's or federation-redirect's format. Raises ConfigError."""
    return _config_in(examine(text, env))


def examine(text: str, env: Mapping[str, str], file: Path | None = None) -> Reading:
    """All that there is to know about the config in `text`, which is that of `file`, if of any."""
    document = read(text)
    if is_legacy(document.data):
        return _examine_legacy(document)
    if document.places.root is None and not document.findings:
        document.findings.append(Finding((), "is empty, expected at least `members`"))
    is_complete = include(document, file or Path("config"), partial(expand, env=env), read_text)
    interpolate(document, env)
    if document.findings and (document.data is None or not is_complete):
        # What is missing may be in what was not understood.
        return Reading(document, None, [], ValidParts())
    return Reading(document, *config_from(document.data))


@dataclass(frozen=True)
class Imported:
    """What became of a file of another program: a config as text, and what could not be kept as it was."""

    text: str
    notes: Sequence[Fault] = ()


def convert(text: str) -> Imported:
    """federation-redirect's config or the `federation.yml` of its documentation as YAML in fedproxy's format.

    Raises ConfigError for anything else, and if nothing of it can be kept.
    """
    document = read(text)
    data = document.data
    if is_legacy(data):
        _config_in(_examine_legacy(document))
        return Imported(to_yaml(convert_data(data)[0]))
    if not is_paperwork(data):
        raise config_error(document, [] if document.findings else [Finding((), _not_imported(data))])
    converted = convert_paperwork(data)
    if not converted.data["members"]:
        raise config_error(document, converted.notes)
    notes = faults_of(document, dict.fromkeys([*document.findings, *converted.notes]))
    if len(notes) > MAX_FAULTS:
        notes[MAX_FAULTS:] = [Fault("", f"{len(notes) - MAX_FAULTS} more remarks")]
    return Imported(to_yaml(converted.data), notes)


def _not_imported(data: object) -> str:
    if resembles_paperwork(data):
        return "is a mapping, expected a list as in federation.yml: begin each entry with `- `"
    if isinstance(data, dict) and "members" in data:
        return "is in fedproxy's own format already, expected a file of another program"
    return (
        "is in no format that can be imported, expected federation-redirect's config.json with `hosts`, or a "
        "federation.yml, a list of entries with `url_binderhub`"
    )


def member_from(name: str, data: object) -> MemberSettings:
    """One member, as sent to the admin API. Raises ConfigError with key paths under the member."""
    member, findings = model_from(MemberSettings, data)
    if MEMBER_NAME.parse(name) is None:
        findings.insert(0, Finding((), f"{show(name)} cannot be a name, expected {MEMBER_NAME.expected}"))
    if member is None or findings:
        raise config_error(Document(), findings)
    return member


@dataclass(frozen=True)
class MemberFile:
    """What a file with one member says. Without `settings` there are faults.

    files: what else it was read from.
    """

    settings: MemberSettings | None
    faults: Sequence[Fault] = ()
    files: Sequence[Path] = ()


def read_member(file: Path, env: Mapping[str, str]) -> MemberFile:
    """The member in a file that has what `members.NAME` would have, under the file's name."""
    name = file.stem
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            # Opening a pipe would wait for somebody who writes to it.
            return MemberFile(None, [Fault("", "is no regular file, expected the settings of a member")])
        document = read(read_text(file))
    except OSError as error:
        return MemberFile(None, [Fault("", f"cannot be read: {error.strerror}")])
    except ConfigError as error:
        return MemberFile(None, error.faults)
    findings = []
    if MEMBER_NAME.parse(name) is None:
        text = f"is named {show(name)}, which cannot be a member's, expected {MEMBER_NAME.expected}"
        findings.append(Finding((), text))
    interpolate(document, env)
    member = None
    if document.data is not None:
        member, wrong = model_from(MemberSettings, document.data)
        findings += wrong
    elif not document.findings:
        findings.append(Finding((), "is empty, expected at least `url`"))
    if member is None or findings or document.findings:
        return MemberFile(None, config_error(document, findings).faults, document.files)
    return MemberFile(member, (), document.files)


def to_yaml(data: Mapping[str, Any]) -> str:
    """A config's data as a file: sections separated, short values on one line."""
    return "\n".join(_section(key, value) for key, value in data.items())


def _section(key: str, value: object) -> str:
    flow = None if isinstance(value, dict | list) else False
    return yaml.safe_dump(
        {key: escape(value)}, sort_keys=False, allow_unicode=True, width=110, default_flow_style=flow
    )


def _examine_legacy(document: Document) -> Reading:
    data, findings = convert_data(document.data)
    if findings:
        return Reading(document, None, findings, ValidParts())
    root = document.places.root
    if root is not None:
        # Members are hosts there, and a member's keys are a host's.
        root.items["members"] = root.items["hosts"]
    return Reading(document, *config_from(data))


def _config_in(reading: Reading) -> Config:
    error = reading.error()
    if error is not None or reading.config is None:
        raise error or config_error(reading.document, reading.findings)
    return reading.config
