"""Programs that read logs read the combined one: goaccess, and awk as an operator would use it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.rig import programs
from tests.rig.running import running, until

pytestmark = programs.needs("goaccess", "goaccess")

AGENT = b'Mozilla/5.0 (X11; "Linux" x86_64) \xfc\\ Gecko/20100101'
REQUESTS = [
    b"GET /v2/gh/a/b/HEAD?token=secret HTTP/1.1\r\nHost: h\r\nUser-Agent: %b\r\n\r\n" % AGENT,
    b"GET /caf%C3%A9?x=%22 HTTP/1.1\r\nHost: h\r\nReferer: https://mybinder.org/\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok",
    b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /active_hosts HTTP/1.1\r\nHost: h\r\n\r\n",
]
"""Each on a connection of its own; the log has them in this order."""


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    log = tmp_path / "access.log"
    config = {"workers": 1, "access_log": "combined", "access_log_file": str(log)}
    async with running(tmp_path, trusted_proxies=["127.0.0.1"], **config) as edge:
        await edge.hub.end()
        for number, request in enumerate(REQUESTS):
            address = b"X-Forwarded-For: %b\r\n\r\n" % (b"2001:db8::7" if number else b"203.0.113.7")
            head, _, body = request.partition(b"\r\n\r\n")
            client = await edge.client()
            await client.send(head + b"\r\n" + address + body)
            await until(partial(has_lines, log, number + 1), "its line")
            await client.leave()
    return log


def has_lines(log: Path, count: int) -> bool:
    return log.read_bytes().count(b"\n") == count


async def run(*command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    return done.stdout.decode()


async def test_goaccess_reads_every_line_of_the_combined_log(log: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    await run(
        *(programs.found("goaccess"), "--no-global-config", "--log-format=COMBINED", "--no-query-string"),
        *(f"--invalid-requests={tmp_path / 'invalid'}", f"--output={report}", str(log)),
    )
    found: dict[str, Any] = json.loads(report.read_text())
    general = found["general"]
    assert (general["total_requests"], general["failed_requests"]) == (len(REQUESTS), 0)
    assert {each["data"] for each in found["hosts"]["data"]} == {"203.0.113.7", "2001:db8::7"}
    assert "/v2/gh/a/b/HEAD" in {each["data"] for each in found["requests"]["data"]}
    methods = {each["method"] for kind in ("requests", "not_found") for each in found[kind]["data"]}
    assert methods == {"GET", "HEAD", "POST"}


async def test_awk_finds_fields_of_the_combined_log_where_they_always_are(log: Path) -> None:
    rows = (await run("awk", "{print $1, $6, $7, $9, $10}", str(log))).splitlines()
    assert rows[0] == '203.0.113.7 "GET /v2/gh/a/b/HEAD?token=*** 200 2'
    assert [row.split()[3] for row in rows] == ["200", "200", "200", "200", "404", "200"]
