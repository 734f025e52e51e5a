"""One measured run: wrk on one connection pool against one peer, and what the peer paid for it."""

from __future__ import annotations

import itertools
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import MEMBERS, SIZES, BenchmarkError, Process, fetch

_SCRIPT = Path(__file__).with_name("browser.lua")

# Every cold run begins where no earlier run of the last hours has been, so no cookie comes twice.
_serials = itertools.count(int(time.time()) % 100_000 * 10_000_000, 10_000_000)


@dataclass(frozen=True)
class Scenario:
    """What visitors ask for. `cookies`: `warm` (the same few), `cold` (never the same twice) or `none`."""

    name: str
    cookies: str
    size: str
    about: str


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("warm-1k", "warm", "1k", "1 KiB, a browser's headers, the same few cookies"),
        Scenario("cold-1k", "cold", "1k", "1 KiB, every request with a cookie header never seen before"),
        Scenario("nocookie-1k", "none", "1k", "1 KiB, new visitors: each answer carries a new cookie"),
        Scenario("warm-64k", "warm", "64k", "64 KiB, the same few cookies"),
    )
}


@dataclass(frozen=True)
class Sample:
    """One run. Times of the processor and latencies are in microseconds, `seconds` is wall-clock."""

    scenario: str
    peer: str
    round: int
    seconds: float
    requests: int
    user_us: float
    kernel_us: float
    p50_us: float
    p99_us: float
    not_ok: int
    broken: int

    @property
    def cpu_us(self) -> float:
        """Processor time per request."""
        return self.user_us + self.kernel_us

    @property
    def errors(self) -> int:
        """Answers that were an error, and connections that broke or timed out."""
        return self.not_ok + self.broken


def check(scenario: Scenario, port: int, peer: str) -> None:
    """Raise `BenchmarkError` unless the peer gives the whole answer with status 200."""
    status, length = fetch(port, f"/{scenario.size}")
    if (status, length) != (200, SIZES[scenario.size]):
        raise BenchmarkError(
            f"{peer} answered {status} with {length} bytes for /{scenario.size},"
            f" expected 200 with {SIZES[scenario.size]}"
        )


def run(
    scenario: Scenario, process: Process, port: int, *, turn: int, seconds: int, connections: int, core: int
) -> Sample:
    """Load `process` for `seconds` and return what it cost. Raises `BenchmarkError` if wrk cannot run."""
    before = process.cpu()
    result = _wrk(scenario, port, seconds, connections, core)
    used = process.cpu().since(before)
    requests, duration, received, p50, p99, not_ok, broken = result
    if requests == 0:
        raise BenchmarkError(f"{process.name} answered nothing in {scenario.name}")
    # wrk counts only 4xx and 5xx as errors: anything else that is not the file shows in the bytes.
    if not_ok == 0 and received < requests * SIZES[scenario.size]:
        raise BenchmarkError(f"{process.name} answered less than the whole body in {scenario.name}")
    return Sample(
        scenario=scenario.name,
        peer=process.name,
        round=turn,
        seconds=duration / 1_000_000,
        requests=requests,
        user_us=used.user / requests,
        kernel_us=used.kernel / requests,
        p50_us=p50,
        p99_us=p99,
        not_ok=not_ok,
        broken=broken,
    )


def _wrk(scenario: Scenario, port: int, seconds: int, connections: int, core: int) -> list[int]:
    """The numbers of the script's RESULT line."""
    url = f"http://127.0.0.1:{port}/{scenario.size}"
    load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(_SCRIPT), url]
    popen = subprocess.Popen(
        ["taskset", "-c", str(core), *load, "--", scenario.cookies, str(next(_serials)), *MEMBERS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = popen.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"wrk did not end {seconds + 30} s after its start") from error
    finally:
        if popen.poll() is None:
            popen.kill()
            popen.wait()
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return [int(number) for number in line.split()[1:]]
    raise BenchmarkError(f"wrk failed: {output.strip() or popen.returncode}")
