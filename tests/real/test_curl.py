"""The curl that everybody has, as a visitor."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig import Conn, Edge, Message, answer, edge, per_request, programs, refusing

pytestmark = programs.needs("curl", "curl")

BODY = b"hello from the member\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
UPLOAD = 50_000_000
PATIENCE = 30.0  # seconds


@dataclass(frozen=True)
class Done:
    """A curl that ended: what it wrote as the body, and what it told with `--verbose`."""

    code: int
    output: bytes
    told: str

    def heads(self) -> list[str]:
        """The status lines that came, in order."""
        return [line[2:].strip() for line in self.told.splitlines() if line.startswith("< HTTP/")]


@asynccontextmanager
async def started(running: Edge, target: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A curl at work, which is ended with the block."""
    host, port = running.address
    url = f"http://{host}:{port}{target}"
    always = ("--disable", "--silent", "--verbose", "--noproxy", "*")
    async with programs.started("curl", *always, *options, url) as process:
        yield process


async def curl(running: Edge, target: str, *options: str) -> Done:
    async with started(running, target, *options) as process:
        output, told = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, output, told.decode())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "upload.bin"
    path.write_bytes(random.Random(50).randbytes(UPLOAD))
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Responses


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
async def test_get_brings_the_body(version: str) -> None:
    async with edge(answer(HELLO)) as running:
        done = await curl(running, "/v2/gh/a/b/HEAD", version)
        assert (done.code, done.output) == (0, BODY)
        assert done.heads() == ["HTTP/1.1 200 OK"]
        assert running.member.requests[0].target == b"/v2/gh/a/b/HEAD"


async def test_http_1_0_gets_a_chunked_body_without_chunks() -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    async with edge(answer(chunks)) as running:
        done = await curl(running, "/", "--http1.0")
        assert (done.code, done.output) == (0, b"hello world")
        assert "transfer-encoding" not in done.told.lower()


async def test_head_brings_the_head_alone_and_does_not_wait_for_a_body() -> None:
    async def head_only(conn: Conn, request: Message) -> None:
        assert request.method == b"HEAD"
        conn.send(HELLO[: -len(BODY)])

    async with edge(per_request(head_only)) as running:
        done = await curl(running, "/", "--head")
        assert done.code == 0
        assert done.output.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: %d\r\n" % len(BODY) in done.output


async def test_two_urls_share_a_connection() -> None:
    async with edge(answer(HELLO)) as running:
        host, port = running.address
        done = await curl(running, "/one", f"http://{host}:{port}/two")
        assert (done.code, done.output) == (0, BODY * 2)
        assert "Re-using existing connection" in done.told


async def test_response_cut_short_is_an_error_for_curl() -> None:
    async def cut(conn: Conn) -> None:
        await conn.request()
        conn.send(HELLO[:-5])

    async with edge(cut) as running:
        done = await curl(running, "/")
        # 18: a part of the body; 56: the connection was reset.
        assert done.code in (18, 56)
        assert (await running.logged())[0]["termination"] == "SD"


# Uploads


async def store(conn: Conn, request: Message) -> None:
    told = f"{request.framing} {len(request.body)} {digest(request.body)}".encode()
    conn.send(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))


async def test_upload_of_50_mb_waits_for_the_member_to_say_continue(file: Path) -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        assert head.value("expect") == b"100-continue"
        # The visitor has been told nothing yet, so nothing of the body is here.
        assert conn.received == head.head
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await conn.body_of(head)
        await store(conn, head)
        await conn.stall()

    async with edge(script) as running:
        patient = ("--expect100-timeout", str(PATIENCE))
        done = await curl(running, "/f", "--upload-file", str(file), "-H", "Expect: 100-continue", *patient)
        assert done.code == 0
        assert done.heads() == ["HTTP/1.1 100 Continue", "HTTP/1.1 201 Created"]
        assert done.output.decode() == f"length {UPLOAD} {digest(file.read_bytes())}"


async def test_upload_that_the_member_refuses_is_never_sent(file: Path) -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await conn.stall()
        assert conn.received == head.head

    async with edge(script) as running:
        patient = ("--expect100-timeout", str(PATIENCE))
        done = await curl(running, "/f", "--upload-file", str(file), "-H", "Expect: 100-continue", *patient)
        assert (done.code, done.output) == (0, b"big")
        assert done.heads() == ["HTTP/1.1 413 Content Too Large"]


async def test_chunked_upload_of_50_mb_arrives_whole(file: Path) -> None:
    async with edge(per_request(store)) as running:
        chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect:")
        done = await curl(running, "/f", "--upload-file", str(file), *chunked)
        assert done.code == 0
        assert done.output.decode() == f"chunked {UPLOAD} {digest(file.read_bytes())}"


# Event streams


async def test_events_are_shown_as_they_come() -> None:
    shown = asyncio.Semaphore(0)
    events = [b'data: {"phase": "building", "message": "step %d"}\n\n' % step for step in range(20)]

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            conn.send(b"%x\r\n%b\r\n" % (len(event), event))
            await shown.acquire()
        conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script) as running:
        options = ("--no-buffer", "-H", "Accept: text/event-stream")
        async with started(running, "/build/gh/a/b/HEAD", *options) as process:
            assert process.stdout is not None
            for event in events:
                assert await process.stdout.readexactly(len(event)) == event
                shown.release()
            assert await process.stdout.read() == b""
            assert await process.wait() == 0


# The edge's own answers


async def test_error_is_a_page_for_people() -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            done = await curl(running, "/v2/gh/a/b/HEAD", "-H", "Accept: text/html,*/*;q=0.8")
            assert done.heads() == ["HTTP/1.1 502 Bad Gateway"]
            assert "content-type: text/html" in done.told.lower()
            assert b"<html" in done.output.lower()


@pytest.mark.parametrize("accept", ["application/json", "*/*"])
async def test_error_is_json_for_programs(accept: str) -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            done = await curl(running, "/api/repoproviders", "-H", f"Accept: {accept}")
            assert done.heads() == ["HTTP/1.1 502 Bad Gateway"]
            assert set(json.loads(done.output)) == {"error", "detail", "request_id"}


async def test_error_of_a_launch_is_an_event() -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            done = await curl(running, "/build/gh/a/b/HEAD", "-N", "-H", "Accept: text/event-stream")
            assert (done.code, done.heads()) == (0, ["HTTP/1.1 200 OK"])
            assert "content-type: text/event-stream" in done.told.lower()
            assert done.output.startswith(b"data: ")
            event = json.loads(done.output.removeprefix(b"data: "))
            assert (event["phase"], event["status_code"]) == ("failed", 502)
            assert event["message"]
