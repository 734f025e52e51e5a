"""`docs/reference/api.md`, from the OpenAPI description: each request with its answers, and their parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from fedproxy.web.openapi import Schema, description

_INTRODUCTION = """\
# HTTP API

The API of the admin listener, which `GET /openapi.json` describes for programs (OpenAPI 3.1). Requests and
answers are JSON. Reading needs a token only with `admin.read: token`; writes always need one with the right
to write, as `Authorization: Bearer TOKEN`. [Operating](../operating.md#the-admin-listener) has examples,
and says how to keep the listener from the public. The pages, `/metrics` and `/events` are no JSON, and are
not listed here.

Every error has the form of [Error](#error). After one of them nothing has changed.
"""


def render() -> str:
    """The whole reference as Markdown."""
    api = description()
    parts = [_INTRODUCTION, "## Requests\n"]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("## Objects\n")
    for name, schema in sorted(api["components"]["schemas"].items()):
        parts += [f"### {name}\n", *_object(schema)]
    return "\n".join(parts)


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
    summary: str = operation["summary"]
    yield f"{summary.rstrip('.?')}{'?' if summary.endswith('?') else '.'}\n"
    if operation.get("parameters"):
        yield "| parameter | in | type | |\n| --- | --- | --- | --- |"
        for each in operation["parameters"]:
            yield f"| `{each['name']}` | {each['in']} | {_kind(each['schema'])} | {each['description']} |"
        yield ""
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}.\n"
    yield "| status | means | body |\n| --- | --- | --- |"
    for status, answer in sorted(operation["responses"].items()):
        yield f"| {status} | {answer['description']} | {_content(answer)} |"
    yield ""


def _content(holder: dict[str, Any]) -> str:
    if "content" not in holder:
        return ""
    return _kind(holder["content"]["application/json"]["schema"])


def _object(schema: Schema) -> Iterator[str]:
    if "description" in schema:
        yield f"{schema['description']}\n"
    required = schema.get("required", ())
    yield "| field | type | |\n| --- | --- | --- |"
    for name, field in schema.get("properties", {}).items():
        notes = [] if name in required else ["Optional."]
        notes += [field["description"]] if "description" in field else []
        yield f"| `{name}` | {_kind(field)} | {' '.join(notes)} |"
    yield ""


def _kind(schema: Schema) -> str:
    """What a value is, in a few words, with a link to an object that has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kinds = schema.get("type", "anything")
    return " or ".join(_one(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _one(kind: str, schema: Schema) -> str:
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of any names, each with {_kind(schema['additionalProperties'])}"
    if kind == "object" and "properties" in schema:
        fields = ", ".join(f"`{name}`: {_kind(field)}" for name, field in schema["properties"].items())
        return f"object ({fields})"
    return f"{schema['format']} {kind}" if "format" in schema and kind == "string" else kind


if __name__ == "__main__":  # pragma: no cover
    sys.stdout.write(render())
