"""The config as a JSON Schema, from the models, for editors and for other people's checks.

Draft 7, which editors know best. It takes whatever is valid, and refuses what is of the wrong form; what only
makes no sense together with other keys, `fedproxy check` finds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedproxy.config import address as addr
from fedproxy.config import store as stores
from fedproxy.config import units
from fedproxy.config.advice import NAMES, WARNING
from fedproxy.config.fields import default_of, kind_of, optional
from fedproxy.config.model import ONE_OR_MANY, Config
from fedproxy.config.units import Kind

Schema = dict[str, Any]

#: Any text may have `${NAME}`, and what it becomes cannot be known here.
_VARIABLE: Final[Schema] = {"type": "string", "pattern": r"\$\{"}
_DIGITS = r"[0-9]{1,18}(\.[0-9]{1,18})?"
_NUMBER = rf"^[-+]?{_DIGITS}$"
_PERCENTAGE = rf"^[-+]?{_DIGITS}( ?%)?$"
_DURATION, _SIZE = (
    rf"^([-+]?{_DIGITS}|{_DIGITS} ?({'|'.join(each)}))$" for each in (units.DURATION_UNITS, units.SIZE_UNITS)
)
_FLAG = "^([tT][rR][uU][eE]|[yY][eE][sS]|[oO][nN]|[fF][aA][lL][sS][eE]|[nN][oO]|[oO][fF]{2})$"
_URL = r"^[hH][tT][tT][pP][sS]?://[^/\s]+/?$"
_UNIX = r"unix:/\S"


def _text(pattern: str = "") -> Schema:
    return {"type": "string", "pattern": pattern} if pattern else {"type": "string", "minLength": 1}


def _number(pattern: str, kind: str = "number", **limits: float) -> Schema:
    return {"anyOf": [{"type": kind, **limits}, _text(pattern)]}


_KINDS: Final[Mapping[Kind, Schema]] = {
    units.SECONDS: _number(_DURATION, exclusiveMinimum=0),
    units.SECONDS_OR_NONE: _number(_DURATION, minimum=0),
    units.BYTES: _number(_SIZE, "integer", minimum=1),
    units.BYTES_OR_NONE: _number(_SIZE, "integer", minimum=0),
    units.COUNT: _number(_NUMBER, "integer", minimum=1),
    units.COUNT_OR_NONE: _number(_NUMBER, "integer", minimum=0),
    units.AMOUNT: _number(_NUMBER, minimum=0),
    units.FACTOR: _number(_NUMBER, minimum=1),
    units.RATIO: _number(_NUMBER, exclusiveMinimum=0, maximum=1),
    units.SHARE: _number(_NUMBER, minimum=0, maximum=1),
    units.TARGET: _number(_PERCENTAGE, minimum=0.001, maximum=0.9),
    units.STATUS: _number(_NUMBER, "integer", minimum=200, maximum=599),
    units.FLAG: {"anyOf": [{"type": "boolean"}, _text(_FLAG)]},
    units.TEXT: _text(),
    units.SECRET: _text(),
    units.FILE: _text(),
    units.FOLDER: _text(),
    units.PATH: _text(),
    units.FILE_OR_OFF: {"anyOf": [{"enum": ["off", False]}, _text()]},
    units.LOG_FILE: {"anyOf": [{"enum": ["stdout"]}, _text()]},
    units.NETWORK: _text(r"^[0-9A-Fa-f.:]+(%[^/]*)?(/[0-9.]{1,15})?$"),
    units.PATTERN: _text(),
    units.WORKERS: {
        "anyOf": [{"enum": ["auto"]}, {"type": "integer", "minimum": 1, "maximum": 1024}, _text(_NUMBER)]
    },
    units.WEIGHT: {"anyOf": [{"enum": ["auto"]}, {"type": "number", "minimum": 0}, _text(_NUMBER)]},
    units.ACCESS_LOG: {"enum": ["json", "combined", "off", False]},
    units.TLS_VERSION: {"enum": ["1.2", "1.3", 1.2, 1.3]},
    addr.ADDRESS: _text(rf"^({_UNIX}|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{{1,5}}$)"),
    addr.ORIGIN: _text(_URL),
    addr.MEMBER_URL: _text(rf"{_URL}|^{_UNIX}"),
    addr.LINK: _text("^https?://"),
    addr.LINK_OR_OFF: {"anyOf": [{"enum": ["off", False]}, _text("^https?://")]},
    addr.CONTACT: _text("^(https?://|mailto:)"),
    addr.PROBED: _text("^(/|https?://)"),
    addr.LOCATION: _text("^(/|https?://)"),
    addr.ROUTE_PATH: _text("^/"),
    addr.BASE_PATH: _text(r"^/[^*]*$"),
    addr.HOSTNAME: _text(r"^\S+$"),
    addr.DNS_NAME: _text(r"^[A-Za-z0-9_.-]+$"),
    addr.PORT: _number(_NUMBER, "integer", minimum=1, maximum=65535),
    addr.COOKIE_NAME: _text(f"^{addr.COOKIE.pattern}$"),
    addr.MEMBER_NAME: _text(f"^{addr.NAME.pattern}$"),
    addr.TOKEN_NAME: _text(f"^{addr.NAME.pattern}$"),
    stores.STORE: _text(rf"^((?!.*://)|({'|'.join(map(re.escape, stores.SCHEMES))})://\S+$)"),
    stores.STORE_PREFIX: _text(f"^{stores.PREFIX.pattern}$"),
    stores.EDGE_NAME: _text(f"^{stores.NAME.pattern}$"),
    WARNING: {"enum": [*NAMES]},
}


def config_schema() -> Schema:
    """The JSON Schema of a config."""
    definitions: dict[str, Schema] = {}
    whole = _mapping(Config, definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The config of fedproxy",
        **whole,
        "if": {"required": ["sources"], "properties": {"sources": {"type": "object"}}},
        "else": {"required": ["members"], "properties": {"members": {"type": "object"}}},
        "definitions": dict(sorted(definitions.items())),
    }


def render() -> str:
    """The schema as text."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _mapping(model: type[BaseModel], definitions: dict[str, Schema]) -> Schema:
    fields = model.model_fields
    schema: Schema = {
        "type": "object",
        "properties": {name: _property(field, definitions) for name, field in fields.items()},
        "additionalProperties": False,
    }
    required = [name for name, field in fields.items() if field.is_required()]
    return schema | ({"required": required} if required else {})


def _property(field: FieldInfo, definitions: dict[str, Schema]) -> Schema:
    annotation = optional(field.annotation)
    schema = _value(annotation, field.metadata, definitions)
    if not field.is_required():
        schema = _or_empty(schema)
    default = default_of(field)
    return {"description": field.description, **({} if default is None else {"default": default}), **schema}


def _or_empty(schema: Schema) -> Schema:
    """A key without a value is as if it was not there."""
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    # A section's definition says so itself: faults in one branch of several would have no place.
    return schema if "allOf" in schema else {**schema, "type": [schema["type"], "null"]}


def _value(annotation: Any, metadata: Any, definitions: dict[str, Schema]) -> Schema:
    kind = kind_of(annotation, metadata)
    if kind is not None:
        schema = _KINDS[kind]
        return {"anyOf": [*(schema.get("anyOf") or [schema]), _VARIABLE]}
    if get_origin(annotation) is Literal:
        return {"anyOf": [{"enum": [*get_args(annotation)]}, _VARIABLE]}
    if ONE_OR_MANY in metadata:
        item = _value(get_args(annotation)[0], (), definitions)
        return {"anyOf": [*item["anyOf"], {"type": "array", "items": item}]}
    if get_origin(annotation) is tuple:
        return {"type": "array", "items": _value(get_args(annotation)[0], (), definitions)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.__name__
        if name not in definitions:
            definitions[name] = _or_empty(_mapping(annotation, definitions))
        # Draft 7 ignores what is beside a reference.
        return {"allOf": [{"$ref": f"#/definitions/{name}"}]}
    key, value = get_args(annotation)
    names = kind_of(key)
    return {
        "type": "object",
        "additionalProperties": _value(value, (), definitions),
        **({"propertyNames": _KINDS[names]} if names is not None else {}),
    }


if __name__ == "__main__":  # pragma: no cover
    sys.stdout.write(render())
