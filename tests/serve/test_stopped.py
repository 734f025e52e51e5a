"""The program is stopped for longer than any of its time limits, as a machine that sleeps does it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rig.hub import Hub as Probed
from tests.rig.running import GET, SLOW, Running, patience, running, until

LIMITS = ("connect", "request_head", "request_idle", "response_head", "response_idle", "keepalive")
LIMIT, STOPPED = 3.0, 5.0  # seconds


async def stop(pids: Sequence[int]) -> None:
    """Stops these processes, and lets them go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # This is what happens to them, and not something that is waited for.
    await asyncio.sleep(STOPPED)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)


def who(edge: Running, stopped: str) -> list[int]:
    """The control process first: it is to find its workers as slow as they are."""
    workers = edge.program.workers()
    return {"all": [edge.program.pid, *workers], "workers": workers, "control": [edge.program.pid]}[stopped]


@pytest.mark.parametrize(
    ("workers", "stopped"), [(1, "all"), (2, "all"), (2, "workers"), (2, "control")], ids=str
)
async def test_program_that_was_stopped_charges_nobody_and_cuts_nobody(
    workers: int, stopped: str, tmp_path: Path
) -> None:
    probed = Probed()
    await probed.start()
    try:
        async with running(
            tmp_path,
            workers=workers,
            member={"health": f"{probed.url}/health"},
            health={"interval": "100ms", "timeout": LIMIT, "fall": 1, "versions": False},
            timeouts=dict.fromkeys(LIMITS, LIMIT),
            breaker={"failures": 1, "open": "300s", "max_ejected": 1.0},
        ) as edge:
            await until(lambda: probed.rounds, "a probe")
            pids = who(edge, stopped)
            if stopped != "workers":
                probed.answers.clear()
                rounds = probed.rounds
                await until(lambda: probed.rounds > rounds, "a probe that waits")
            # Not before: none of them may have reached a limit when the program is stopped.
            kept, half, waiting = [await edge.client() for _ in range(3)]
            assert (await kept.ask(GET)).body == b"ok"
            await half.send(GET[:20])
            await waiting.send(SLOW)
            asked = edge.hub.member.requests
            await until(lambda: any(request.target == b"/slow" for request in asked), "the request")
            stopping = asyncio.ensure_future(stop(pids))
            if stopped != "control":
                await stopping
            await half.send(GET[20:])
            edge.hub.go_on.set()
            async with patience():
                assert (await half.response()).body == b"ok"
                assert (await waiting.response()).body == b"ok"
                assert (await kept.ask(GET)).body == b"ok"
            await stopping
            probed.answers.set()
            rounds = probed.rounds
            await until(lambda: probed.rounds > rounds, "another probe")
            member = (await edge.members())["a"]
            assert (member["breaker"], member["healthy"], member["errors"]) == ("closed", True, {})
            assert "is unhealthy" not in edge.program.output
    finally:
        await probed.stop()
