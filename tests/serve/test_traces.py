"""Traces of the real program: from every worker, without a collector, and turned on and off."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedproxy.config.load import parse
from fedproxy.errors import ConfigError
from tests.rig import blackhole, refusing
from tests.rig.collector import collector
from tests.rig.running import GET, running, until

HUP, TERM = signal.SIGHUP, signal.SIGTERM
MEMBERS = "members: {a: {url: 'http://a.example'}}\n"


async def test_workers_send_what_they_traced_as_they_end(tmp_path: Path) -> None:
    with collector() as found:
        tracing = {"endpoint": found.endpoint, "sample": 1, "service_name": "edge"}
        async with running(tmp_path, tracing=tracing) as edge:
            for _ in range(20):
                await edge.ask()
            edge.program.signal(TERM)
            assert await edge.program.ended() == 0
    assert len(found.requests) == 20
    instances = {span.resource["service.instance.id"] for span in found.spans}
    assert {span.resource["service.name"] for span in found.spans} == {"edge"}
    assert 1 <= len(instances) <= 2


@pytest.mark.parametrize(("workers", "collector_is"), [(2, refusing), (1, blackhole)], ids=["gone", "silent"])
async def test_visitors_and_the_end_do_not_wait_for_a_collector(
    tmp_path: Path, workers: int, collector_is: Any
) -> None:
    with collector_is() as url:
        tracing = {"endpoint": f"{url}/v1/traces", "sample": 1, "limit": 10_000}
        async with running(tmp_path, workers=workers, tracing=tracing) as edge:
            clients = [await edge.client() for _ in range(4)]
            for client in clients:
                for _ in range(200):
                    assert (await client.ask(GET)).body == b"ok"
            edge.program.signal(TERM)
            assert await edge.program.ended() == 0
    lines = [line for line in edge.program.lines if "span" in line.lower()]
    assert len(lines) <= workers
    assert all(" trace.unsent spans cannot be sent to " in line for line in lines)
    assert not [line for line in edge.program.lines if "killed" in line]


async def test_tracing_is_turned_on_and_off_by_a_reload(tmp_path: Path) -> None:
    with collector() as found:
        async with running(tmp_path, workers=1) as edge:
            await edge.ask()
            edge.write(workers=1, tracing={"endpoint": found.endpoint, "sample": 1})
            edge.program.signal(HUP)
            await edge.program.line("reloaded ")
            await edge.ask()
            edge.write(workers=1)
            edge.program.signal(HUP)
            await edge.program.line("reloaded ")
            await edge.ask()
            await until(lambda: found.requests, "what was traced is sent")
            edge.program.signal(TERM)
            assert await edge.program.ended() == 0
    assert len(found.requests) == 1


def test_tracing_without_opentelemetry_is_a_fault_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = MEMBERS + "tracing: {endpoint: 'http://127.0.0.1:4318/v1/traces'}"
    assert parse(text, {}).tracing.sample == 0.01

    def find_spec(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("fedproxy.config.model.find_spec", find_spec)
    with pytest.raises(ConfigError) as refused:
        parse(text, {})
    assert str(refused.value) == (
        "tracing.endpoint: is 'http://127.0.0.1:4318/v1/traces' and OpenTelemetry is not installed, "
        "expected off, or pip install 'fedproxy[otel]'"
    )
    assert parse(MEMBERS + "tracing: {endpoint: off}", {}).tracing.endpoint == "off"


def test_data_plane_that_traces_nothing_does_not_import_opentelemetry() -> None:
    code = "import sys, fedproxy.serve.worker, fedproxy.serve.service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not [name for name in done.stdout.split() if name.startswith("opentelemetry")]
