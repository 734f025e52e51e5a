"""The description of the admin API, and whether it is true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from fedproxy.web.admin import create_admin_app
from fedproxy.web.openapi import description
from tests.rig.state import State
from tests.rig.thread import admin_listener

TOKEN = {"Authorization": "Bearer s3cret"}
#: What is no JSON, or a stream.
OTHER = {"/", "/events", "/metrics", "/openapi.json"}
SCHEMA = schemathesis.openapi.from_dict(description())
# What makes no sense for a member's settings, the description does not say; and what is tried without a token
# has one here.
LOOSE = schemathesis.checks.CHECKS.get_by_names(["positive_data_acceptance", "negative_data_rejection"])


@pytest.fixture(scope="module")
def listener() -> Iterator[str]:
    """Its URL."""
    state = State()
    state.answer = '{"kind": "page", "route": null, "action": "to any member"}'
    with admin_listener(state) as url:
        yield url


def test_every_path_is_described_and_every_description_is_a_path() -> None:
    app = create_admin_app(State())
    served: dict[str, set[str]] = {}
    for route in app.router.routes():
        path = str(route.resource.canonical if route.resource else "")
        if path not in OTHER and not path.endswith((".css", ".svg", ".js")) and route.method != "HEAD":
            served.setdefault(path, set()).add(route.method.lower())
    described = {path: {*item} for path, item in description()["paths"].items()}
    assert described == served


def test_schemas_are_schemas() -> None:
    # It takes a second to import, which every process that collects the tests would pay.
    from jsonschema import Draft202012Validator

    for schema in description()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@SCHEMA.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_requests_are_answered_as_described(case: Any, listener: str) -> None:
    case.call_and_validate(base_url=listener, headers=TOKEN, excluded_checks=LOOSE)
