"""`docs/configuration.md`, from the models: every key with its type, default and meaning."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedproxy.config.advice import NAMES
from fedproxy.config.check import one_of
from fedproxy.config.fields import default_of, kind_of, optional
from fedproxy.config.model import ONE_OR_MANY, Config

_INTRODUCTION = """\
# Configuration

One YAML file (JSON is YAML too). Only `members` or `sources` is required, and of a member only `url`:

```yaml
members:
  gesis:
    url: https://gesis.mybinder.org
```

- A **duration** is a number of seconds or has a unit: `250ms`, `15s`, `10m`, `4h`, `1d`.
- A **size** is a number of bytes or has a unit: `64KiB`, `2MiB`, `1GiB`.
- `${NAME}` in any text takes the environment variable `NAME`, which must be set, and `${file:PATH}` what the
  file holds, such as a secret in `/run/secrets`, without the end of its last line; `$${` stands for `${`.
- `include` names further files. Each fault is reported with the name of the file that it is in.
- An unknown key is an error, and so is a duplicate key. A key without a value is ignored.
- Relative paths of files are relative to fedproxy's working directory, but those of `include` to the folder
  of the file that names them.
- `fedproxy check FILE` reports all faults of a file, one per line, with line and column, and what is valid
  but unwise ([warnings](#warnings)).
- `fedproxy schema` prints a JSON Schema of all this, also in `conf/schema.json`. Editors with YAML support
  use it if the first line is `# yaml-language-server: $schema=` with its path or URL.
- `config.json` of federation-redirect is accepted as it is; `fedproxy import FILE` converts it.

`conf/mybinder.yaml` has every key, with comments.
"""

_WARNINGS = """\
## Warnings

What is valid but unwise. `fedproxy check` reports it, and `fedproxy serve` does on stderr when it starts;
after a reload, only what is new. None of it is a fault: the exit status is 0. A name in `silence` ends a
warning about what is meant to be so.
"""


def render() -> str:
    """The whole reference as Markdown."""
    parts = [_INTRODUCTION, "## Top level\n", _table(Config, "")]
    for name, field in Config.model_fields.items():
        section = section_of(field)
        if section:
            model, prefix = section
            parts += [f"## {name}\n", f"{field.description}\n", _table(model, f"{name}{prefix}.")]
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in NAMES.items())
    parts.append(f"{_WARNINGS}\n| name | what is unwise |\n| --- | --- |\n{rows}")
    return "\n".join(parts)


def _table(model: type[BaseModel], prefix: str) -> str:
    rows = "\n".join(_rows(model, prefix))
    return f"| key | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field)
        yield f"| `{prefix}{name}` | {type_text(field)} | {default_text(field)} | {field.description} |"
        if section and prefix:
            inner, infix = section
            yield from _rows(inner, f"{prefix}{name}{infix}.")


def section_of(field: FieldInfo) -> tuple[type[BaseModel], str] | None:
    """The model inside a field, and the text between the field's name and its keys."""
    annotation = optional(field.annotation)
    for inner, infix in (
        (annotation, ""),
        (get_args(annotation)[:1], ".N"),
        (get_args(annotation)[1:], ".NAME"),
    ):
        model = inner[0] if isinstance(inner, tuple) and inner else inner
        if isinstance(model, type) and issubclass(model, BaseModel):
            return model, infix
    return None


def type_text(field: FieldInfo) -> str:
    """A field's type, in words."""
    annotation = optional(field.annotation)
    kind = kind_of(annotation, field.metadata)
    if kind:
        return kind.name
    if get_origin(annotation) is Literal:
        return one_of(get_args(annotation))
    if get_origin(annotation) is tuple:
        item = kind_of(get_args(annotation)[0])
        one = f"{item.name} or " if item and ONE_OR_MANY in field.metadata else ""
        return f"{one}list of {item.name}s" if item else "list of mappings"
    return "mapping"


def default_text(field: FieldInfo) -> str:
    """A field's default, as a file would have it."""
    if field.is_required():
        return "**required**"
    if isinstance(field.get_default(call_default_factory=True), BaseModel):
        return "see below"
    default = default_of(field)
    if default in (None, [], {}):
        return "none"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":  # pragma: no cover
    sys.stdout.write(render())
