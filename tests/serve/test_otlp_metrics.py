"""Metrics that the edge sends to a collector, in this process: turned on and off, and with no collector."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fedproxy.config.load import parse
from fedproxy.config.model import OtlpMetricsSettings
from fedproxy.errors import ConfigError
from fedproxy.event import EventName
from fedproxy.observe.metrics import View
from fedproxy.serve.otlp_metrics import MetricsExport
from tests.observe.test_metrics import busy_view
from tests.rig import RawClient, answer, blackhole, edge, guard, refusing, until
from tests.rig.collector import Collector, collector

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MEMBERS = "members: {a: {url: 'http://a.example'}}\n"


@pytest.fixture
def found() -> Iterator[Collector]:
    with collector() as running:
        yield running


def settings(endpoint: str, **more: Any) -> OtlpMetricsSettings:
    return OtlpMetricsSettings(endpoint=endpoint, **more)


async def test_edge_sends_what_it_counted_as_it_ends(found: Collector) -> None:
    sending = {"endpoint": found.metrics_endpoint, "service_name": "edge"}
    async with edge(answer(OK), otlp_metrics=sending) as running:
        await until(lambda: found.metrics, "metrics are sent at the start")
        client = await RawClient.connect(running.address)
        for _ in range(3):
            assert (await client.ask(GET)).body == b"ok"
        await client.leave()
    first, last = found.metrics
    assert first.number("fedproxy_downstream_requests", protocol="1.1") == 0
    assert last.number("fedproxy_downstream_requests", protocol="1.1") == 3
    assert last.number("fedproxy_requests", code="200") == 3
    assert last.number("fedproxy_process_cpu_seconds", process="control") > 0
    assert last.resource["service.name"] == "edge"


async def test_metrics_are_sent_again_and_again(found: Collector) -> None:
    export = MetricsExport(busy_view, print)
    export.put(settings(found.metrics_endpoint, interval=0.01))
    await until(lambda: len(found.metrics) >= 3, "they come by themselves")
    await export.close()


async def test_settings_are_changed_while_it_runs() -> None:
    with collector() as one, collector() as other:
        export = MetricsExport(busy_view, print)
        export.put(settings("off"))
        export.put(settings(one.metrics_endpoint))
        export.put(settings(one.metrics_endpoint))
        await until(lambda: one.metrics, "the first collector gets them")
        export.put(settings(other.metrics_endpoint))
        await until(lambda: other.metrics, "the second collector gets them")
        await until(lambda: len(one.metrics) == 2, "the first gets the last ones")
        export.put(settings("off"))
        await until(lambda: len(other.metrics) == 2, "the second gets the last ones")
        await export.close()
        assert (len(one.metrics), len(other.metrics)) == (2, 2)


async def test_neither_the_loop_nor_the_end_waits_for_a_collector_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedproxy.serve.otlp_metrics._LAST", 0.05)
    said: list[str] = []
    asked = asyncio.Event()

    def view() -> View:
        asked.set()
        return busy_view()

    with blackhole() as url:
        export = MetricsExport(view, said.append)
        export.put(settings(f"{url}/v1/metrics"))
        await asked.wait()
        began = time.monotonic()
        async with guard():
            await export.close()
        assert time.monotonic() - began < 4.0  # less than a request may take
    assert said == []


async def test_collector_that_is_gone_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.serve.otlp_metrics._LAST", 0.05)
    with refusing() as url:
        sending = {"endpoint": f"{url}/v1/metrics"}
        async with edge(answer(OK), otlp_metrics=sending) as running:

            def told() -> list[str]:
                events = running.service.history.events
                return [event.message for event in events if event.name is EventName.METRICS_UNSENT]

            await until(told, "operators are told")
            assert told()[0].startswith(f"metrics cannot be sent to {url}/v1/metrics: ")


def test_without_opentelemetry_it_is_a_fault_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = MEMBERS + "otlp_metrics: {endpoint: 'http://127.0.0.1:4318/v1/metrics'}"
    assert parse(text, {}).otlp_metrics.interval == 60.0
    monkeypatch.setattr("fedproxy.config.model.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        parse(text, {})
    assert str(refused.value) == (
        "otlp_metrics.endpoint: is 'http://127.0.0.1:4318/v1/metrics' and OpenTelemetry is not installed, "
        "expected off, or pip install 'fedproxy[otel]'"
    )
