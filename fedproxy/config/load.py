"""A file or its text -> a config. This is the only entry point: its results are valid as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedproxy.config.address import MEMBER_NAME
from fedproxy.config.check import config_error, config_from, model_from, show
from fedproxy.config.document import MAX_BYTES, Document, escape, interpolate, read
from fedproxy.config.legacy import convert_data, is_legacy
from fedproxy.config.model import Config, MemberSettings
from fedproxy.errors import ConfigError, Fault


def load(path: Path, env: Mapping[str, str]) -> Config:
    """The config in the file at `path`, with `${NAME}` from `env`. Raises ConfigError with every fault."""
    return parse(read_text(path), env)


def read_text(path: Path) -> str:
    """The file's text. Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content[:MAX_BYTES].decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Fault("", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Fault("", f"is not UTF-8: {error.reason} at byte {error.start}")]) from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError([Fault("", f"cannot be read: {error}")]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([Fault("", f"is larger than {MAX_BYTES >> 20} MiB")])
    return text


def parse(text: str, env: Mapping[str, str]) -> Config:
    """The config in `text`, in fedproxy's or federation-redirect's format. Raises ConfigError."""
    document = read(text)
    if is_legacy(document.data):
        return _build(document, _from_legacy(document))
    interpolate(document, env)
    return _build(document, document.data)


def convert(text: str) -> str:
    """A federation-redirect config as YAML in fedproxy's format. Raises ConfigError."""
    document = read(text)
    if not is_legacy(document.data):
        raise config_error(document, [((), "is not in federation-redirect's format, expected `hosts`")])
    data = _from_legacy(document)
    _build(document, data)
    return to_yaml(data)


def member_from(name: str, data: object) -> MemberSettings:
    """One member, as sent to the admin API. Raises ConfigError with key paths under the member."""
    member, findings = model_from(MemberSettings, data)
    if MEMBER_NAME.parse(name) is None:
        findings.insert(0, ((), f"{show(name)} is not a member's name, expected {MEMBER_NAME.expected}"))
    if member is None or findings:
        raise config_error(Document(), findings)
    return member


def to_yaml(data: Mapping[str, Any]) -> str:
    """A config's data as a file: sections separated, short values on one line."""
    return "\n".join(_section(key, value) for key, value in data.items())


def _section(key: str, value: object) -> str:
    flow = None if isinstance(value, dict | list) else False
    return yaml.safe_dump(
        {key: escape(value)}, sort_keys=False, allow_unicode=True, width=110, default_flow_style=flow
    )


def _from_legacy(document: Document) -> dict[str, Any]:
    data, findings = convert_data(document.data)
    if findings:
        raise config_error(document, findings)
    return data


def _build(document: Document, data: object) -> Config:
    if data is None and document.findings:
        raise config_error(document, [])
    config, findings = config_from(data)
    if config is None or document.findings:
        raise config_error(document, findings)
    return config
