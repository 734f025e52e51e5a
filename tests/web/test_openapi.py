"""The description of the admin API, and whether it is true."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import uvloop
from aiohttp import web
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator

from fedproxy.web.admin import create_admin_app
from fedproxy.web.openapi import description
from tests.rig.state import State

TOKEN = {"Authorization": "Bearer s3cret"}
#: What is no JSON, or a stream.
OTHER = {"/", "/events", "/metrics", "/openapi.json"}
SCHEMA = schemathesis.openapi.from_dict(description())
# What makes no sense for a member's settings, the description does not say.
LOOSE = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]


class Listener:
    """An admin listener in another thread, whose state is as at the start for each test."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.url = self._do(self._start())

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _start(self) -> str:
        self.state = State()
        self.state.answer = '{"kind": "page", "route": null, "action": "to any member"}'
        self.runner = web.AppRunner(create_admin_app(self.state), handle_signals=False)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        host, port = self.runner.addresses[0]
        return f"http://{host}:{port}"

    def stop(self) -> None:
        self._do(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.stop()


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
    for schema in description()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@SCHEMA.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_requests_are_answered_as_described(case: Any, listener: Listener) -> None:
    case.call_and_validate(base_url=listener.url, headers=TOKEN, excluded_checks=LOOSE)
