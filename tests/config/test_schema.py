"""The JSON Schema takes what the config takes, and says what the models say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedproxy.config import units
from fedproxy.config.model import Config
from fedproxy.config.schema import _KINDS, config_schema, render
from tests.config.test_advice import UNWISE, WISE
from tests.config.test_load import NUMBERS, nested

ROOT = Path(__file__).parents[2]
SCHEMA = config_schema()
EXAMPLES = [*sorted(ROOT.glob("conf/**/config.yaml")), ROOT / "conf" / "mybinder.yaml"]


def validator(schema: Any) -> Any:
    # It takes a second to import, which every process that collects the tests would pay.
    from jsonschema import Draft7Validator

    return Draft7Validator(schema)


@cache
def of_config() -> Any:
    return validator(SCHEMA)


def wrong(data: object) -> list[str]:
    """The key path of each thing that the schema does not take."""
    return [".".join(map(str, error.absolute_path)) for error in of_config().iter_errors(data)]


def test_schema_is_one_and_the_file_is_up_to_date() -> None:
    of_config().check_schema(SCHEMA)
    written = (ROOT / "conf" / "schema.json").read_text()
    assert written == render(), "python -m fedproxy.config.schema > conf/schema.json"


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_examples_fit_and_name_the_schema(path: Path) -> None:
    text = path.read_text()
    assert wrong(yaml.safe_load(text)) == []
    first = text.partition("\n")[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("$schema=")[2]).resolve() == ROOT / "conf" / "schema.json"


def test_value_of_the_wrong_kind_does_not_fit() -> None:
    for path in (path for paths in NUMBERS.values() for path in paths):
        assert wrong(nested(path, {"x": 1})) != []
        # What may be any text is looked at by `check` alone.
        assert (wrong(nested(path, "?")) != []) is (path not in ("members.gesis.ca", "pages.templates"))
        assert wrong(nested(path, None)) == ([] if path not in ("members", "members.gesis.url") else [path])


SAMPLES: list[Any] = [
    *(0, 1, -1, 2.5, 404, 1e300, True, False, None, "", "0", "1", "+1.0", "-1", "1.5", "1s", "1 ms"),
    *(
        "250ms",
        "4h",
        "1d",
        "1w",
        "1KiB",
        "2 MiB",
        "1.5GiB",
        "1kb",
        "on",
        "OFF",
        "yes",
        "x",
        "auto",
        "20%",
        "7.5 %",
        "95%",
        "json",
        "stdout",
    ),
    *("1.2", 1.2, "/", "/a/*", "a/b", "/b/", "//a", "a.example", "a.example.", "[::1]", "::1", "10.0.0.1"),
    *("10.0.0.0/8", "2001:db8::/32", "10.0.0.0/255.0.0.0", "fe80::%eth0/128", "HTTP://a.example:80/"),
    *("https://a.example", "https://a.example/x", "mailto:a@b.example", "unix:/run/a", "unix:/run/a b"),
    *("0.0.0.0:80", "[::]:80", "localhost:80", ":80", "combined", "off", "no-limit", "^a$", [], {}),
]


def test_every_form_of_a_value_that_is_taken_fits() -> None:
    for kind, schema in _KINDS.items():
        of_kind = validator(schema)
        taken = [value for value in SAMPLES if kind.parse(value) is not None]
        assert [value for value in taken if not of_kind.is_valid(value)] == [], kind
        assert kind in (units.FILE, units.FOLDER) or taken, kind


def _keys(schema: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key in the schema; a name is `gesis`, and a list's item 0."""
    for reference in schema.get("allOf", ()):
        yield from _keys(SCHEMA["definitions"][reference["$ref"].rpartition("/")[2]], prefix)
    for name, inner in schema.get("properties", {}).items():
        yield (*prefix, name)
        yield from _keys(inner, (*prefix, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _keys(schema["additionalProperties"], (*prefix, "gesis"))
    if "items" in schema:
        yield from _keys(schema["items"], (*prefix, "0"))


def test_key_that_is_misspelt_does_not_fit_anywhere() -> None:
    keys = [*_keys(SCHEMA)]
    assert {path[0] for path in keys} == set(Config.model_fields)
    assert ("listen", "0", "tls", "certificates", "0", "private_key") in keys
    assert ("members", "gesis", "run_by", "logo") in keys
    for *above, name in keys:
        data: Any = {f"{name}_x": 1}
        for part in reversed(above):
            data = [data] if part == "0" else {part: data}
        found = [
            error for error in of_config().iter_errors(data) if error.validator == "additionalProperties"
        ]
        assert [[*map(str, error.absolute_path)] for error in found] == [above]


@pytest.mark.parametrize("data", [data for _, data in UNWISE] + WISE)
def test_what_is_unwise_fits_too(data: dict[str, Any]) -> None:
    assert wrong({"members": {"a": {"url": "https://a"}}, **data}) == []


def test_key_has_its_meaning_and_default() -> None:
    text = json.dumps(SCHEMA)
    assert "description" in text
    timeouts = SCHEMA["definitions"]["TimeoutSettings"]["properties"]
    assert (timeouts["connect"]["default"], timeouts["drain"]["default"]) == ("5s", "600s")
    assert timeouts["connect"]["description"].startswith("For a connection to a member")
    assert SCHEMA["definitions"]["LimitSettings"]["properties"]["request_body"]["default"] == "512MiB"
    assert SCHEMA["properties"]["routes"]["default"] == [{"path": "/metrics", "status": 404}]
    assert SCHEMA["definitions"]["MemberSettings"]["required"] == ["url"]
