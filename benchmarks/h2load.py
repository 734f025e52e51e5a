"""One run of h2load: a closed loop over HTTP/2, with a browser's headers."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import COOKIE, BenchmarkError
from benchmarks.wrk import Result

_CONNECTIONS, _STREAMS = 8, 8
_FIELDS = (
    "user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "accept-language: en-GB,en;q=0.7,de;q=0.3",
    "accept-encoding: gzip, deflate, br, zstd",
    "referer: https://mybinder.org/",
    "upgrade-insecure-requests: 1",
    "sec-fetch-dest: document",
    "sec-fetch-mode: navigate",
    "sec-fetch-site: same-origin",
    "sec-fetch-user: ?1",
    "te: trailers",
)
_REQUESTS = re.compile(
    r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, \d+ failed, (\d+) errored"
)
_TRAFFIC = re.compile(r"traffic: .*?\((\d+)\) total.*\((\d+)\) data")


def run(url: str, cookie: str, *, seconds: int, core: int) -> Result:
    """Load `url` for `seconds`. Raises `BenchmarkError` if h2load cannot run."""
    fields = [part for field in (*_FIELDS, f"cookie: {COOKIE}={cookie}") for part in ("-H", field)]
    with tempfile.TemporaryDirectory(prefix="fedproxy-h2load-") as folder:
        log = Path(folder, "log")
        load = [
            "h2load",
            f"-c{_CONNECTIONS}",
            f"-m{_STREAMS}",
            f"-D{seconds}",
            f"--log-file={log}",
            *fields,
            url,
        ]
        try:
            done = subprocess.run(
                ["taskset", "-c", str(core), *load],
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds + 30,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"h2load did not end {seconds + 30} s after its start") from error
        return read(done.stdout, seconds, log.read_text() if log.exists() else "")


def read(output: str, seconds: float, log: str) -> Result:
    """The figures of its report and of its log: start, status and microseconds of each request."""
    requests, traffic = _REQUESTS.search(output), _TRAFFIC.search(output)
    if requests is None or traffic is None:
        raise BenchmarkError(f"h2load failed: {output.strip()[-200:] or 'it said nothing'}")
    done, succeeded, errored = map(int, requests.groups())
    delays = sorted(int(line.split("\t")[2]) for line in log.splitlines() if line.count("\t") >= 2)
    p50, p99 = (float(delays[int(share * (len(delays) - 1))]) if delays else 0.0 for share in (0.5, 0.99))
    return Result(succeeded, seconds, int(traffic[1]), p50, p99, done - succeeded, errored)
