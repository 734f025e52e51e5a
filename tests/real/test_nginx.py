"""Debian's nginx as a member: what a web server knows of HTTP reaches the visitor as it is."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig import Edge, edge, programs

pytestmark = programs.needs("nginx", "nginx")

TEXT = b"what a visitor reads\n" * 500
BIG = random.Random(10).randbytes(10 << 20)


@dataclass(frozen=True)
class Nginx:
    """A running nginx, and the folder that it serves."""

    port: int
    root: Path


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx")
    root = folder / "root"
    root.mkdir()
    (root / "text.txt").write_bytes(TEXT)
    (root / "zipped.txt").write_bytes(TEXT)
    (root / "zipped.txt.gz").write_bytes(gzip.compress(TEXT, mtime=0))
    (root / "big.bin").write_bytes(BIG)
    port = programs.free_port()
    config = folder / "nginx.conf"
    config.write_text(_config(folder, root, port))
    command = [programs.found("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config)]
    with programs.running(command, folder, port=port, ready="/text.txt"):
        yield Nginx(port, root)


def _config(folder: Path, root: Path, port: int) -> str:
    # Started by root, nginx drops to a user who cannot read a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
{temporary}
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        gzip_static on;
        # nginx compresses nothing for a request with a Via unless it is told to.
        gzip_proxied any;
        location = /connection {{ return 200 "$connection $connection_requests"; }}
    }}
}}
"""


@asynccontextmanager
async def before(nginx: Nginx) -> AsyncIterator[Edge]:
    async with edge({"a": f"http://127.0.0.1:{nginx.port}"}) as running:
        yield running


def request(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: hub.test", *fields, "", ""])
    return head.encode() + body


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("0-99", 0, 99), ("10000-", 10_000, 10_499), ("-7", 10_493, 10_499)]
)
async def test_range_is_answered_with_that_part(nginx: Nginx, asked: str, first: int, last: int) -> None:
    async with before(nginx) as running:
        response = await running.ask(request("/text.txt", f"Range: bytes={asked}"))
        assert response.status == 206
        assert response.value("content-range") == b"bytes %d-%d/10500" % (first, last)
        assert response.body == TEXT[first : last + 1]


async def test_several_ranges_come_as_the_member_wrote_them(nginx: Nginx) -> None:
    async with before(nginx) as running:
        response = await running.ask(request("/text.txt", "Range: bytes=0-4,10-14"))
        assert response.status == 206
        assert (response.value("content-type") or b"").startswith(b"multipart/byteranges; boundary=")
        assert TEXT[0:5] in response.body
        assert TEXT[10:15] in response.body


async def test_range_beyond_the_end_is_refused_by_the_member(nginx: Nginx) -> None:
    async with before(nginx) as running:
        response = await running.ask(request("/text.txt", "Range: bytes=99999-"))
        assert response.status == 416
        assert response.value("content-range") == b"bytes */10500"


async def test_what_the_visitor_has_already_is_not_sent_again(nginx: Nginx) -> None:
    async with before(nginx) as running:
        first = await running.ask(request("/text.txt"))
        etag, modified = first.value("etag") or b"", first.value("last-modified") or b""
        for field in (b"If-None-Match: " + etag, b"If-Modified-Since: " + modified):
            again = await running.ask(request("/text.txt", field.decode()))
            assert (again.status, again.body) == (304, b"")
            assert again.value("etag") == etag
        other = await running.ask(request("/text.txt", 'If-None-Match: "other"'))
        assert (other.status, other.body) == (200, TEXT)


async def test_connection_goes_on_after_a_304(nginx: Nginx) -> None:
    async with before(nginx) as running:
        client = await running.client()
        etag = ((await client.ask(request("/text.txt"))).value("etag") or b"").decode()
        for _ in range(3):
            assert (await client.ask(request("/text.txt", f"If-None-Match: {etag}"))).status == 304
            assert (await client.ask(request("/text.txt"))).body == TEXT


async def test_gzip_passes_untouched(nginx: Nginx) -> None:
    async with before(nginx) as running:
        response = await running.ask(request("/zipped.txt", "Accept-Encoding: gzip"))
        assert response.value("content-encoding") == b"gzip"
        assert response.body == (nginx.root / "zipped.txt.gz").read_bytes()
        plain = await running.ask(request("/zipped.txt"))
        assert plain.value("content-encoding") is None
        assert plain.body == TEXT


async def test_head_has_the_length_of_the_body_and_no_body(nginx: Nginx) -> None:
    async with before(nginx) as running:
        client = await running.client()
        for _ in range(3):
            response = await client.ask(request("/big.bin", method="HEAD"), "HEAD")
            assert (response.status, response.value("content-length")) == (200, b"%d" % len(BIG))
        # A body sent to one of them would be read as the next response.
        assert (await client.ask(request("/text.txt"))).body == TEXT


async def test_file_of_10_mib_arrives_byte_for_byte(nginx: Nginx) -> None:
    async with before(nginx) as running:
        response = await running.ask(request("/big.bin"))
        assert hashlib.sha256(response.body).digest() == hashlib.sha256(BIG).digest()


async def test_visitors_share_one_connection_to_the_member(nginx: Nginx) -> None:
    async with before(nginx) as running:
        answers = [(await running.ask(request("/connection"))).body.split() for _ in range(20)]
        assert len({connection for connection, _ in answers}) == 1
        assert [int(count) for _, count in answers] == list(range(1, 21))
        pool = running.service.edge.pools["a"]
        assert (len(pool.idle), pool.busy) == (1, 0)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_method_that_the_member_does_not_allow_is_refused_by_it(nginx: Nginx, method: str) -> None:
    async with before(nginx) as running:
        client = await running.client()
        for size in (0, 100_000):
            body = b"x" * size
            response = await client.ask(
                request("/text.txt", f"Content-Length: {size}", method=method, body=body), method
            )
            assert response.status == 405
            assert response.value("server") is not None
        assert (await client.ask(request("/text.txt"))).body == TEXT
