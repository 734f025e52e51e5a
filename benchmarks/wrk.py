"""One run of wrk, a closed loop over keep-alive connections, with the requests of `browser.lua`."""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import BenchmarkError

_SCRIPT = Path(__file__).with_name("browser.lua")

# Every cold run begins where no earlier run of the last hours has been, so no cookie comes twice.
_serials = itertools.count(int(time.time()) % 100_000 * 10_000_000, 10_000_000)


@dataclass(frozen=True)
class Result:
    """The results of wrk. `seconds` is wall-clock, latencies are in microseconds."""

    requests: int
    seconds: float
    received: int
    p50_us: float
    p99_us: float
    not_ok: int
    broken: int


def run(url: str, mode: str, cookies: Sequence[str], *, seconds: int, connections: int, core: int) -> Result:
    """Load `url` for `seconds`. `mode` is one of the script's. Raises `BenchmarkError` if wrk cannot run."""
    load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(_SCRIPT), url]
    popen = subprocess.Popen(
        ["taskset", "-c", str(core), *load, "--", mode, str(next(_serials)), *cookies],
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
    return read(output)


def read(output: str) -> Result:
    """The figures on the script's last line. Raises `BenchmarkError` if there is none."""
    for line in output.splitlines():
        if line.startswith("RESULT "):
            requests, duration, received, p50, p99, not_ok, broken = map(int, line.split()[1:])
            return Result(requests, duration / 1_000_000, received, p50, p99, not_ok, broken)
    raise BenchmarkError(f"wrk failed: {output.strip() or 'it said nothing'}")
