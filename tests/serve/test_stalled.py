"""The real program with readers of its output who stall or are gone, and disks that are full."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import ssl
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.rig import RawClient
from tests.rig.command import Program, fedproxy
from tests.rig.running import CLOSING, GET, PAUSE, Hub, Running, patience, refuses, until, write

pytestmark = pytest.mark.no_cover  # the edge is a process of its own

KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
LONG = b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"x" * 8000)

STALLED = ["socket", "pipe", "terminal"]
BROKEN = ["full", "socket that is gone", "pipe that is gone"]


@dataclass
class Writing:
    """What a program is given to write to; `here` is the other end, which nobody reads."""

    fd: int
    here: int | None

    def read(self) -> bytes:
        """What is there now."""
        assert self.here is not None
        os.set_blocking(self.here, False)
        got = b""
        with suppress(BlockingIOError):
            while piece := os.read(self.here, 1 << 16):
                got += piece
        return got


@pytest.fixture
def writing(request: pytest.FixtureRequest) -> Iterator[Writing]:
    kind = request.param
    here: int | None
    if kind == "full":
        here, fd = None, os.open("/dev/full", os.O_WRONLY)
    elif kind.startswith("socket"):
        ours, theirs = socket.socketpair()
        here, fd = ours.detach(), theirs.detach()
    else:
        here, fd = pty.openpty() if kind.startswith("terminal") else os.pipe()
    if kind.endswith("gone") and here is not None:
        os.close(here)
        here = None
    yield Writing(fd, here)
    os.close(fd)
    if here is not None:
        os.close(here)


def found(pid: int, host: str) -> int:
    """The port at which a process listens at this address of loopback; 0 if it does not."""
    packed = socket.inet_aton(host)[::-1].hex().upper()
    links = []
    with suppress(OSError):
        links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, _, _, _, _, _, inode = line.split()[:10]
        if state == "0A" and local.startswith(f"{packed}:") and f"socket:[{inode}]" in links:
            return int(local.partition(":")[2], 16)
    return 0


async def listens(program: Program, host: str) -> tuple[str, int]:
    """Where one of its processes listens. /proc may leave a socket out while others come and go."""
    async with patience():
        while not (port := max((found(pid, host) for pid in program.processes()), default=0)):
            await asyncio.sleep(PAUSE)
    return host, port


@asynccontextmanager
async def running(
    folder: Path,
    stdout: int,
    stderr: int,
    env: dict[str, str] | None = None,
    before: Sequence[str] = ("-m", "fedproxy"),
    **config: Any,
) -> AsyncIterator[Running]:
    """`serve` with these outputs, in which nobody can read where it listens."""
    hub = Hub()
    await hub.member.start()
    file = folder / "edge.yaml"
    write(file, hub, admin={"address": "127.0.0.2:0"}, access_log="json", **config)
    try:
        command = "serve", "--config", file
        async with fedproxy(*command, env=env, before=before, stdout=stdout, stderr=stderr) as program:
            admin = await listens(program, "127.0.0.2")
            edge = Running(program, admin, file, hub, ("127.0.0.1", 0))
            async with patience():
                while (await edge.admin_ask("GET", "/health/ready"))[0] != 200:
                    await asyncio.sleep(PAUSE)
            edge.public = await listens(program, "127.0.0.1")
            try:
                yield edge
            finally:
                await edge.leave()
    finally:
        await hub.member.stop()


async def is_well(edge: Running, workers: int) -> None:
    """Visitors are served, a worker that is killed is replaced, and SIGTERM drains."""
    assert (await edge.ask()).body == b"ok"
    assert (await edge.admin_ask("GET", "/health/live"))[0] == 200
    if workers > 1:
        gone, kept = edge.program.workers()
        os.kill(gone, KILL)
        await edge.replaced([gone], [kept])
        assert (await edge.ask()).body == b"ok"
    stream = await edge.stream()
    edge.program.signal(TERM)
    await until(lambda: refuses(edge.public), "nobody is accepted")
    await edge.hub.event()
    async with patience():
        assert await stream.chunk()
        await edge.hub.end()
        while await stream.chunk():
            pass
    assert await edge.program.ended() == 0
    assert edge.program.processes() == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("writing", STALLED, indirect=True)
async def test_stalled_reader_holds_up_nobody_and_what_it_misses_is_counted(
    tmp_path: Path, writing: Writing, workers: int
) -> None:
    async with running(tmp_path, writing.fd, writing.fd, workers=workers) as edge:
        client = await edge.client()
        async with patience():
            while not await edge.metric("fedproxy_log_lines_dropped_total", log="access"):
                for _ in range(50):
                    assert (await client.ask(LONG)).body == b"ok"
        assert os.get_blocking(writing.fd)
        await is_well(edge, workers)


@pytest.mark.parametrize("writing", STALLED, indirect=True)
async def test_reader_who_comes_back_gets_whole_lines_again(tmp_path: Path, writing: Writing) -> None:
    async with running(tmp_path, writing.fd, writing.fd, workers=1) as edge:
        client = await edge.client()
        for _ in range(100):
            await client.ask(LONG)
        got = b""

        def last() -> bool:
            nonlocal got
            got += writing.read()
            return got.count(b'"status":200') == 100

        await until(last, "all lines")
        await client.ask(GET)
        await until(lambda: (last(), b'"target":"/",' in got)[1], "another line")
        lines = got.replace(b"\r\n", b"\n").split(b"\n")
        assert [line for line in lines if line[:1] == b"{" and line[-1:] != b"}"] == []
        assert await edge.metric("fedproxy_log_lines_dropped_total") == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("writing", BROKEN, indirect=True)
async def test_nothing_hangs_on_a_line_that_cannot_be_written(
    tmp_path: Path, writing: Writing, workers: int
) -> None:
    async with running(tmp_path, writing.fd, writing.fd, workers=workers) as edge:
        await edge.ask()
        async with patience():
            while await edge.metric("fedproxy_log_lines_dropped_total", log="events") < 3:
                await asyncio.sleep(PAUSE)
            while await edge.metric("fedproxy_log_lines_dropped_total", log="access") != 1:
                await asyncio.sleep(PAUSE)
        await is_well(edge, workers)


async def issued(authority: trustme.CA, folder: Path) -> None:
    made = authority.issue_cert("127.0.0.1", "localhost")
    (folder / "new.key").write_bytes(made.private_key_pem.bytes())
    (folder / "new.pem").write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    for name in ("key", "pem"):
        (folder / f"new.{name}").replace(folder / f"tls.{name}")


@pytest.mark.parametrize(
    ("writing", "workers"), [("full", 2), ("pipe that is gone", 1)], indirect=["writing"]
)
async def test_certificate_is_renewed_and_config_reloaded_though_nobody_can_be_told(
    tmp_path: Path, writing: Writing, workers: int
) -> None:
    authority = trustme.CA()
    await issued(authority, tmp_path)
    tls = {"certificate": str(tmp_path / "tls.pem"), "private_key": str(tmp_path / "tls.key")}
    listen = [{"address": "127.0.0.1:0", "tls": tls}]
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def served() -> bytes:
        client = await RawClient.connect(edge.public, tls=trusting)
        seen = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert (await client.ask(CLOSING)).status in (200, 503)
        await client.leave()
        assert isinstance(seen, bytes)
        return seen

    async with running(tmp_path, writing.fd, writing.fd, workers=workers, listen=listen) as edge:
        before = await served()
        await issued(authority, tmp_path)
        async with patience():
            while await served() == before:
                await asyncio.sleep(0.05)
            edge.file.write_text("members: nonsense")
            while not await edge.metric("fedproxy_config_reloads_total", result="failure"):
                await asyncio.sleep(PAUSE)
            write(edge.file, edge.hub, admin={"address": "127.0.0.2:0"}, workers=workers, listen=listen)
            while not await edge.metric("fedproxy_config_reloads_total", result="success"):
                await asyncio.sleep(PAUSE)
        assert await served() != before
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0


@pytest.mark.parametrize("writing", ["pipe that is gone"], indirect=True)
async def test_watchdog_is_fed_though_nobody_can_be_told(tmp_path: Path, writing: Writing) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        name = f"\0fedproxy-test-{os.getpid()}-{tmp_path.name}"
        notified.bind(name)
        notified.setblocking(False)
        env = {"NOTIFY_SOCKET": f"@{name[1:]}", "WATCHDOG_USEC": "200000"}
        async with running(tmp_path, writing.fd, writing.fd, env) as edge:
            gone, kept = edge.program.workers()
            os.kill(gone, KILL)
            await edge.replaced([gone], [kept])
            async with patience():
                with suppress(BlockingIOError):
                    while True:
                        notified.recv(100)
                loop = asyncio.get_running_loop()
                assert [await loop.sock_recv(notified, 100) for _ in range(5)] == [b"WATCHDOG=1"] * 5


@pytest.mark.parametrize("writing", ["full", "pipe that is gone", "pipe"], indirect=True)
async def test_status_of_a_faulty_config_is_2_whoever_can_be_told(tmp_path: Path, writing: Writing) -> None:
    (tmp_path / "edge.yaml").write_text("members: nonsense")
    if writing.here is not None:
        os.set_blocking(writing.fd, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing.fd, b"x" * 4096)
        os.set_blocking(writing.fd, True)
    command = "serve", "--config", tmp_path / "edge.yaml"
    async with fedproxy(*command, stdout=writing.fd, stderr=writing.fd) as program:
        assert await program.ended() == 2


@pytest.mark.parametrize("workers", [1, 2])
async def test_program_without_standard_descriptors_serves(tmp_path: Path, workers: int) -> None:
    closing = (
        "-c",
        "import os, sys; [os.close(fd) for fd in (0, 1, 2)];"
        "os.execv(sys.executable, [sys.executable, '-m', 'fedproxy', *sys.argv[1:]])",
    )
    async with running(tmp_path, DEVNULL, DEVNULL, before=closing, workers=workers) as edge:
        await is_well(edge, workers)


# Workers that do not turn


async def live(edge: Running) -> int:
    return (await edge.admin_ask("GET", "/health/live"))[0]


async def test_worker_that_does_not_turn_makes_the_edge_neither_live_nor_ready(tmp_path: Path) -> None:
    async with running(tmp_path, DEVNULL, DEVNULL) as edge:
        hung, _ = edge.program.workers()
        assert await live(edge) == 200
        os.kill(hung, STOP)
        async with patience():
            while await live(edge) == 200:
                await asyncio.sleep(0.05)
        asked = [edge.admin_ask("GET", path) for path in ("/health/live", "/health/ready") * 30]
        for status, body in await asyncio.gather(*asked):
            assert status == 503
            assert b'"not_turning": [{"pid": %d, "seconds": ' % hung in body
        os.kill(hung, signal.SIGCONT)
        async with patience():
            while (await live(edge), (await edge.admin_ask("GET", "/health/ready"))[0]) != (200, 200):
                await asyncio.sleep(0.05)
        assert hung in edge.program.workers()


async def test_worker_that_ended_is_no_reason_to_end_the_edge(tmp_path: Path) -> None:
    async with running(tmp_path, DEVNULL, DEVNULL) as edge:
        gone, kept = edge.program.workers()
        os.kill(gone, KILL)
        await edge.replaced([gone], [kept])
        assert await live(edge) == 200
