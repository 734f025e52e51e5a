"""What operators see of the edge's processes in `/metrics`, while workers come and go."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from fedproxy.serve.service import Service
from tests.rig.running import Operated, running
from tests.rig.service import config_of

PREFIX = "fedproxy_process_"
Processes = dict[tuple[str, str], dict[str, float]]


async def processes(edge: Operated) -> Processes:
    """What each process uses, by the two labels, and then by the name without the prefix."""
    _, body = await edge.admin_ask("GET", "/metrics")
    found: Processes = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                key = sample.labels["process"], sample.labels["worker"]
                found.setdefault(key, {})[sample.name.removeprefix(PREFIX)] = sample.value
    return found


async def test_series_of_a_worker_go_on_with_the_one_that_replaces_it(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        before = await processes(edge)
        assert before.keys() == {("control", ""), ("forker", ""), ("worker", "0"), ("worker", "1")}
        for (process, _), use in before.items():
            assert use["resident_memory_bytes"] > 1 << 20
            assert 3 <= use["open_fds"] < use["max_fds"]
            assert ("loop_lag_seconds_total" in use) == (process != "forker")
        killed, kept = edge.program.workers()
        os.kill(killed, signal.SIGKILL)
        await edge.replaced([killed], [kept])
        after = await processes(edge)
        assert after.keys() == before.keys()
        started = {key: use["start_time_seconds"] for key, use in after.items()}
        (replaced,) = [key for key in started if started[key] != before[key]["start_time_seconds"]]
        assert replaced[0] == "worker"
        for key, use in after.items():
            assert use["cpu_seconds_total"] >= before[key]["cpu_seconds_total"]


async def test_edge_with_one_worker_is_one_process() -> None:
    service = Service(config_of("http://127.0.0.1:9"), log=lambda line: None)
    await service.start()
    try:
        (found,) = service.view().processes
    finally:
        await service.stop()
    assert (found.role, found.worker) == ("control", "")
    assert found.cpu > 0
    assert found.lag is not None
