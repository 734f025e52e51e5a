"""ApacheBench, which speaks HTTP/1.0 and with `-k` waits for the end unless it is told that there is none."""

from __future__ import annotations

import re
from asyncio.subprocess import STDOUT

import pytest

from tests.rig import Edge, answer, chunked, edge, programs

pytestmark = programs.needs("ab", "apache2-utils")

OK = b"HTTP/1.1 200 OK\r\n"
ROUTES = [
    {"path": "/found", "redirect": "https://static.test/found"},
    {"path": "/gone", "status": 410},
    {"path": "/quiet", "status": 204},
    {"path": "/away/*", "to": "members", "mode": "redirect"},
]


async def bench(running: Edge, target: str) -> dict[str, int]:
    """What `ab -k` counted of ten requests, two at a time."""
    host, port = running.address
    options = ("-k", "-n", "10", "-c", "2", "-s", "20", "-q")
    async with programs.started("ab", *options, f"http://{host}:{port}{target}", stderr=STDOUT) as process:
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    return {name: int(number) for name, number in re.findall(r"^([\w -]+):\s+(\d+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("target", ["/found", "/gone", "/quiet", "/away/x", "/metrics"])
async def test_own_answers_are_kept_alive(target: str) -> None:
    async with edge(answer(), routes=[*ROUTES, {"path": "/metrics", "status": 404}]) as running:
        found = await bench(running, target)
        assert (found["Complete requests"], found["Keep-Alive requests"], found["Failed requests"]) == (
            10,
            10,
            0,
        )


async def test_own_pages_are_kept_alive_too() -> None:
    async with edge(answer()) as running:
        found = await bench(running, "/active_hosts")
        assert (found["Complete requests"], found["Keep-Alive requests"]) == (10, 10)


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", 10),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"hello"), 0),
    ],
)
async def test_answers_of_a_member_arrive(response: bytes, kept: int) -> None:
    async with edge(answer(response)) as running:
        found = await bench(running, "/")
        assert (found["Complete requests"], found["Failed requests"]) == (10, 0)
        assert found.get("Keep-Alive requests", 0) == kept
