"""OpenSSL's own client, which keeps a session in a file."""

from __future__ import annotations

import ssl
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
import trustme

from fedproxy.serve.tls import Certificates
from tests.rig import answer, edge, programs
from tests.rig.visitor import listening, pair, section

pytestmark = programs.needs("openssl", "openssl")


async def s_client(port: int, name: str, *arguments: str) -> str:
    """What it told of one connection."""
    options = ("s_client", "-connect", f"127.0.0.1:{port}", "-servername", name, *arguments)
    async with programs.started("openssl", *options, stdin=PIPE, stderr=STDOUT) as process:
        assert process.stdin and process.stdout
        # The echo comes after the tickets of TLS 1.3; an end of input before that would end the connection.
        process.stdin.write(b"hello from the client\n")
        told = b""
        while b"\nhello from the client" not in told:
            data = await process.stdout.read(65536)
            assert data, told
            told += data
        process.stdin.write(b"Q\n")
        told += (await process.communicate())[0]
    return told.decode("ascii", "replace")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_session_in_a_file_is_resumed_by_another_process_of_the_edge(
    tmp_path: Path, version: str
) -> None:
    authority = trustme.CA()
    pairs = [pair(tmp_path / name, authority.issue_cert(f"{name}.test")) for name in ("first", "second")]
    here, there, elsewhere = (Certificates(section(*pairs), "listen.0.tls") for _ in range(3))
    for certificates, secret in ((here, b"a" * 32), (there, b"a" * 32), (elsewhere, b"b" * 32)):
        assert certificates.set_ticket_key(secret) is None
    kept = str(tmp_path / "session")
    async with listening(here) as a, listening(there) as b, listening(elsewhere) as c:
        assert "\nNew, " in await s_client(a, "second.test", version, "-sess_out", kept)
        assert "\nReused, " in await s_client(b, "second.test", version, "-sess_in", kept)
        assert "\nNew, " in await s_client(c, "second.test", version, "-sess_in", kept)


@pytest.mark.parametrize(
    ("http2", "asked", "agreed"),
    [
        (True, "http/1.1,h2", "ALPN protocol: h2"),
        (True, "http/1.1", "ALPN protocol: http/1.1"),
        (True, "spdy/3", "No ALPN negotiated"),
        (False, "h2,http/1.1", "ALPN protocol: http/1.1"),
    ],
)
async def test_protocol_that_is_agreed_on(tmp_path: Path, http2: bool, asked: str, agreed: str) -> None:
    files = pair(tmp_path / "first", trustme.CA().issue_cert("first.test"))
    async with listening(Certificates(section(files), "listen.0.tls", http2=http2)) as port:
        told = await s_client(port, "first.test", "-alpn", asked)
    assert agreed in told
    assert ssl.TLSVersion.TLSv1_3.name.replace("_", ".") in told


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_visitor_who_wants_small_records_gets_all_of_a_response(tmp_path: Path, version: str) -> None:
    files = pair(tmp_path / "edge", trustme.CA().issue_cert("localhost"))
    listen = [{"address": "127.0.0.1:0", "tls": {key: str(path) for key, path in files}}]
    body = bytes(range(256)) * 256
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with edge(
        answer(response, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nthe other"), listen=listen
    ) as it:
        address = "{}:{}".format(*it.address)
        asked = ("-connect", address, version, "-maxfraglen", "512", "-quiet", "-ign_eof")
        async with programs.started("openssl", "s_client", *asked, stdin=PIPE) as process:
            head = b"GET / HTTP/1.1\r\nHost: hub.test\r\n"
            told, _ = await process.communicate(head + b"\r\n" + head + b"Connection: close\r\n\r\n")
    first, _, second = told.partition(b"\r\n\r\n" + body)
    assert first and second.endswith(b"\r\n\r\nthe other")
