"""Programs that speak HTTP/2, as visitors: curl, nghttp, h2load and httpx, over TLS and in clear."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.real.test_curl import BODY, HELLO, Done, digest, store
from tests.rig import Conn, Edge, Message, answer, edge, per_request, programs, until
from tests.rig.ways import Way, in_clear, over_tls

SIZE = 10 << 20
PATIENCE = 60.0  # seconds
CURL = programs.needs("curl", "curl")
NGHTTP2 = programs.needs("nghttp", "nghttp2-client")
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TRAILED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


@pytest.fixture(params=["tls", "clear"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return over_tls(tmp_path) if request.param == "tls" else in_clear()


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(10).randbytes(SIZE)


@pytest.fixture
def file(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "upload.bin"
    path.write_bytes(data)
    return path


def sends(data: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


async def echo_target(conn: Conn, request: Message) -> None:
    conn.send(sends(request.target))


async def protocols(running: Edge, count: int = 1) -> set[str]:
    """By which all the requests came, that many of them."""
    return {line["protocol"] for line in await running.logged(count)}


# curl


@asynccontextmanager
async def started(
    way: Way, running: Edge, target: str, *options: str, stdin: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A curl at work, which is ended with the block. It speaks HTTP/2 unless an option says what else."""
    how = ("--http2", "--cacert", str(way.ca)) if way.ca else ("--http2-prior-knowledge",)
    always = ("--disable", "--silent", "--verbose", "--noproxy", "*")
    url = way.url(running, target)
    async with programs.started(
        "curl", *always, *how, *options, url, stdin=stdin, within=PATIENCE
    ) as process:
        yield process


async def curl(way: Way, running: Edge, target: str, *options: str) -> Done:
    async with started(way, running, target, *options) as process:
        output, told = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, output, told.decode())


@CURL
async def test_curl_gets_a_body(way: Way) -> None:
    async with edge(answer(HELLO), listen=way.listen) as running:
        done = await curl(way, running, "/v2/gh/a/b/HEAD")
        assert (done.code, done.output, done.heads()) == (0, BODY, ["HTTP/2 200"])
        assert running.member.requests[0].start == b"GET /v2/gh/a/b/HEAD HTTP/1.1"
        assert await protocols(running) == {"HTTP/2.0"}


@CURL
async def test_curl_gets_the_head_alone_and_does_not_wait_for_a_body(way: Way) -> None:
    async def head_only(conn: Conn, request: Message) -> None:
        assert request.method == b"HEAD"
        conn.send(HELLO[: -len(BODY)])

    async with edge(per_request(head_only), listen=way.listen) as running:
        done = await curl(way, running, "/", "--head")
        assert (done.code, done.heads()) == (0, ["HTTP/2 200"])
        assert b"content-length: %d\r\n" % len(BODY) in done.output.lower()


@CURL
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_curl_downloads_10_mib_whole(way: Way, data: bytes, framing: str) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        if framing == "length":
            conn.send(sends(data))
        else:
            conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, SIZE, 100_000):
                part = data[at : at + 100_000]
                conn.send(b"%x\r\n%b\r\n" % (len(part), part))
            conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script, listen=way.listen) as running:
        done = await curl(way, running, "/f")
        assert (done.code, done.heads()) == (0, ["HTTP/2 200"])
        assert (len(done.output), digest(done.output)) == (SIZE, digest(data))


@CURL
async def test_curl_reads_slowly_and_gets_10_mib_whole(way: Way, data: bytes) -> None:
    async with edge(answer(sends(data)), listen=way.listen) as running:
        done = await curl(way, running, "/f", "--limit-rate", "8M")
        assert (done.code, digest(done.output)) == (0, digest(data))


@CURL
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_curl_uploads_10_mib_whole(way: Way, data: bytes, file: Path, framing: str) -> None:
    async with edge(per_request(store), listen=way.listen) as running:
        if framing == "length":
            done = await curl(way, running, "/f", "--upload-file", str(file))
        else:
            # As from a pipe, whose end nobody knows before.
            async with started(
                way, running, "/f", "--upload-file", "-", stdin=asyncio.subprocess.PIPE
            ) as process:
                output, told = await process.communicate(data)
            done = Done(process.returncode or 0, output, told.decode())
        assert (done.code, done.heads()) == (0, ["HTTP/2 201"])
        assert done.output.decode() == f"{framing} {SIZE} {digest(data)}"


@CURL
async def test_curl_is_told_that_the_member_says_continue_and_sends_it_10_mib(
    way: Way, data: bytes, file: Path
) -> None:
    async def script(conn: Conn) -> None:
        head = await conn.head()
        # curl asks and does not wait: by HTTP/2 it sends what the windows let it.
        assert head.value("expect") == b"100-continue"
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await conn.body_of(head)
        await store(conn, head)
        await conn.stall()

    async with edge(script, listen=way.listen) as running:
        patient = ("--expect100-timeout", str(PATIENCE))
        expect = ("-H", "Expect: 100-continue", *patient)
        done = await curl(way, running, "/f", "--upload-file", str(file), *expect)
        assert (done.code, done.heads()) == (0, ["HTTP/2 100", "HTTP/2 201"])
        assert done.output.decode() == f"length {SIZE} {digest(data)}"


@CURL
async def test_curl_shows_events_as_they_come(way: Way) -> None:
    shown = asyncio.Semaphore(0)
    events = [b'data: {"phase": "building", "message": "step %d"}\n\n' % step for step in range(20)]

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(EVENTS)
        for event in events:
            conn.send(b"%x\r\n%b\r\n" % (len(event), event))
            await shown.acquire()
        conn.send(b"0\r\n\r\n")
        await conn.stall()

    async with edge(script, listen=way.listen) as running:
        options = ("--no-buffer", "-H", "Accept: text/event-stream")
        async with started(way, running, "/build/gh/a/b/HEAD", *options) as process:
            assert process.stdout is not None
            for event in events:
                assert await process.stdout.readexactly(len(event)) == event
                shown.release()
            assert await process.stdout.read() == b""
            assert await process.wait() == 0
        assert await protocols(running) == {"HTTP/2.0"}


@CURL
async def test_curl_takes_an_early_hint_for_what_it_is(way: Way) -> None:
    async with edge(answer(HINTS + HELLO), listen=way.listen) as running:
        done = await curl(way, running, "/")
        assert (done.code, done.output) == (0, BODY)
        assert done.heads() == ["HTTP/2 103", "HTTP/2 200"]


@CURL
async def test_curl_gets_trailers_after_the_body(way: Way, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    async with edge(answer(TRAILED), listen=way.listen) as running:
        done = await curl(way, running, "/", "--dump-header", str(heads))
        assert (done.code, done.output) == (0, b"hello")
        # What comes after the empty line.
        assert heads.read_bytes().partition(b"\r\n\r\n")[2].strip() == b"x-sum: 7"


@CURL
async def test_curl_fails_where_the_member_broke_off(way: Way) -> None:
    async def cut(conn: Conn) -> None:
        await conn.request()
        conn.send(HELLO[:-5])

    async with edge(cut, listen=way.listen) as running:
        done = await curl(way, running, "/")
        # 92: the stream was reset.
        assert done.code == 92
        assert (await running.logged())[0]["termination"] == "SD"


@CURL
async def test_curl_asks_for_many_urls_at_once(tmp_path: Path) -> None:
    # In clear Debian's curl fails with any server (16) where it has several requests at once.
    way = over_tls(tmp_path)
    async with edge(per_request(echo_target), listen=way.listen) as running:
        into = ("--parallel", "--parallel-max", "50", "--output", f"{tmp_path}/got-#1")
        done = await curl(way, running, "/[0-99]", *into)
        # What it says of a hundred transfers at once is not always whole; the files are.
        assert done.code == 0
        for number in range(100):
            assert (tmp_path / f"got-{number}").read_bytes() == b"/%d" % number
        assert await protocols(running, 100) == {"HTTP/2.0"}


@CURL
@pytest.mark.parametrize(("http2", "version"), [(True, "--http1.1"), (False, "--http2")])
async def test_curl_speaks_http_1_1_over_tls_if_either_side_wants_that(
    tmp_path: Path, http2: bool, version: str
) -> None:
    way = over_tls(tmp_path, http2=http2)
    async with edge(answer(HELLO), listen=way.listen) as running:
        done = await curl(way, running, "/", version)
        assert (done.code, done.output, done.heads()) == (0, BODY, ["HTTP/1.1 200 OK"])
        assert await protocols(running) == {"HTTP/1.1"}


@CURL
@pytest.mark.parametrize("http2", [True, False])
async def test_curl_that_asks_for_an_upgrade_to_h2c_is_answered_by_http_1_1(http2: bool) -> None:
    way = in_clear(http2=http2)
    async with edge(answer(HELLO), listen=way.listen) as running:
        # The last one counts.
        done = await curl(way, running, "/", "--http2")
        assert "> Upgrade: h2c" in done.told
        assert (done.code, done.output, done.heads()) == (0, BODY, ["HTTP/1.1 200 OK"])
        (asked,) = running.member.requests
        assert (asked.value("upgrade"), asked.value("http2-settings")) == (None, None)
        assert await protocols(running) == {"HTTP/1.1"}


@CURL
async def test_curl_that_knows_better_is_refused_where_http_2_is_not_spoken() -> None:
    way = in_clear(http2=False)
    async with edge(answer(HELLO), listen=way.listen) as running:
        done = await curl(way, running, "/")
        assert done.code != 0
        assert not running.member.requests


# nghttp and h2load


async def nghttp(way: Way, running: Edge, *arguments: str, targets: tuple[str, ...]) -> str:
    """Runs it: all that it told."""
    urls = [way.url(running, target) for target in targets]
    async with programs.started("nghttp", "--no-verify-peer", *arguments, *urls, within=PATIENCE) as process:
        output, told = await process.communicate()
        assert process.returncode == 0, told
        return (output + told).decode()


@NGHTTP2
async def test_nghttp_gets_several_urls_at_once_each_with_its_status(way: Way) -> None:
    everybody = asyncio.Barrier(3)

    async def handle(conn: Conn, request: Message) -> None:
        # None is answered before all have been asked.
        await everybody.wait()
        status = request.target.removeprefix(b"/")
        conn.send(b"HTTP/1.1 %b X\r\nContent-Length: 2\r\n\r\nok" % status)

    async with edge(per_request(handle), listen=way.listen) as running:
        told = await nghttp(way, running, "--null-out", "--stat", targets=("/200", "/404", "/500"))
        seen = re.findall(r"(\d{3}) +\d+ (/\S+)$", told, re.MULTILINE)
        assert sorted(seen) == [("200", "/200"), ("404", "/404"), ("500", "/500")], told
        assert len(await running.logged(3)) == 3


@NGHTTP2
async def test_nghttp_gets_the_same_url_a_hundred_times_at_once(way: Way) -> None:
    async with edge(answer(sends(b"x" * 50_000)), listen=way.listen) as running:
        told = await nghttp(way, running, "--null-out", "--stat", "--multiply=100", targets=("/a",))
        assert len(re.findall(r" 200 +48K /a$", told, re.MULTILINE)) == 100, told
        assert {line["status"] for line in await running.logged(100)} == {200}


@NGHTTP2
@pytest.mark.parametrize(
    "option",
    ["--padding=200", "--continuation", "--window-bits=10", "--header-table-size=0", "--no-dep"],
)
async def test_nghttp_posts_a_file_and_gets_one_whatever_else_it_does(
    way: Way, tmp_path: Path, option: str
) -> None:
    body = random.Random(1).randbytes(200_000)
    (tmp_path / "body").write_bytes(body)

    async with edge(per_request(store), listen=way.listen) as running:
        told = await nghttp(
            way, running, option, f"--data={tmp_path}/body", "--trailer=x-sum: 7", targets=("/a",)
        )
        assert f"length {len(body)} {digest(body)}" in told


@NGHTTP2
async def test_nghttp_is_told_that_the_member_does_not_want_its_file(way: Way, file: Path) -> None:
    async def script(conn: Conn) -> None:
        await conn.head()
        conn.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await conn.stall()

    async with edge(script, listen=way.listen) as running:
        told = await nghttp(way, running, "--stat", f"--data={file}", targets=("/a",))
        assert re.findall(r" 413 +3 /a$", told, re.MULTILINE), told


@NGHTTP2
@pytest.mark.parametrize("size", [2, 20_000])
async def test_h2load_has_2000_requests_answered(way: Way, size: int) -> None:
    async with edge(answer(sends(b"x" * size)), listen=way.listen) as running:
        arguments = ("-n", "2000", "-c", "8", "-m", "8", way.url(running, "/"))
        async with programs.started("h2load", *arguments, within=PATIENCE) as process:
            output, _ = await process.communicate()
            told = output.decode()
            assert process.returncode == 0, told
        assert "2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout" in told
        assert "status codes: 2000 2xx" in told
        assert await protocols(running, 2000) == {"HTTP/2.0"}


# httpx


@asynccontextmanager
async def visiting(way: Way) -> AsyncIterator[httpx.AsyncClient]:
    """A client of httpx, which in clear has to be told that no other protocol is spoken."""
    trust = way.trust or False
    async with httpx.AsyncClient(
        http1=way.trust is not None, http2=True, verify=trust, timeout=PATIENCE, trust_env=False
    ) as client:
        yield client


async def test_httpx_has_many_requests_at_once_on_one_connection(way: Way) -> None:
    count = 100
    everybody = asyncio.Barrier(count)

    async def handle(conn: Conn, request: Message) -> None:
        if request.target != b"/first":
            await everybody.wait()
        await echo_target(conn, request)

    async with edge(per_request(handle), listen=way.listen) as running, visiting(way) as client:
        # With what the edge allows on one connection it knows how many it may ask at once.
        assert (await client.get(way.url(running, "/first"))).http_version == "HTTP/2"
        async with asyncio.timeout(PATIENCE):
            asked = (client.get(way.url(running, f"/{number}")) for number in range(count))
            answers = await asyncio.gather(*asked)
        assert [each.text for each in answers] == [f"/{number}" for number in range(count)]
        assert len(running.connections) == 1
        assert await protocols(running, count + 1) == {"HTTP/2.0"}


async def test_httpx_streams_a_download_and_asks_for_other_things_meanwhile(way: Way, data: bytes) -> None:
    async def handle(conn: Conn, request: Message) -> None:
        conn.send(sends(data if request.target == b"/big" else request.target))

    async with edge(per_request(handle), listen=way.listen) as running, visiting(way) as client:
        got = b""
        async with client.stream("GET", way.url(running, "/big")) as response:
            async for part in response.aiter_raw():
                if not got:
                    assert (await client.get(way.url(running, "/small"))).text == "/small"
                got += part
        assert (len(got), digest(got)) == (SIZE, digest(data))
        assert len(running.connections) == 1


async def test_httpx_streams_an_upload(way: Way, data: bytes) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, SIZE, 300_000):
            yield data[at : at + 300_000]

    async with edge(per_request(store), listen=way.listen) as running, visiting(way) as client:
        response = await client.put(way.url(running, "/f"), content=parts())
        assert (response.status_code, response.http_version) == (201, "HTTP/2")
        assert response.text == f"chunked {SIZE} {digest(data)}"


async def test_httpx_goes_on_with_a_new_connection_after_the_edge_has_ended_an_idle_one(way: Way) -> None:
    async with (
        edge(per_request(echo_target), listen=way.listen, timeouts={"keepalive": "100ms"}) as running,
        visiting(way) as client,
    ):
        assert (await client.get(way.url(running, "/one"))).text == "/one"
        await until(lambda: not running.connections, "the idle connection is ended", PATIENCE)
        assert (await client.get(way.url(running, "/two"))).text == "/two"
