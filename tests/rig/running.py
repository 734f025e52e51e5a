"""The real program before one scripted member, and what its operator and its visitors do."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests import rig
from tests.rig import Conn, Ended, Message, RawClient, Scripted, per_request
from tests.rig.command import Program, fedproxy

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"
LAUNCH = (
    b"GET /build/gh/a/b/HEAD HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"phase": "building", "message": "x"}\n\n'
TOKEN = "not to be guessed"
PATIENCE = 60.0
PAUSE = 0.03  # seconds between two looks: each takes time from the processes that are waited for
GRACE = 0.9  # seconds, a little less than the edge has
#: A program that is handed a listening socket as systemd does it: its descriptor, then fedproxy's arguments.
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "fedproxy", *sys.argv[2:]])
"""


class Hub:
    """A member: `/` at once, `/slow` when told, `/stream` and launches an event at a time until told."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.tick = asyncio.Condition()
        self.member = Scripted(per_request(self._serve))

    async def _serve(self, conn: Conn, request: Message) -> None:
        if request.target == b"/slow":
            await self.go_on.wait()
        if request.target not in (b"/stream", b"/build/gh/a/b/HEAD"):
            conn.send(OK)
            return
        conn.send(_EVENTS, b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
        while not self.go_on.is_set():
            async with self.tick:
                await self.tick.wait()
            conn.send(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
        conn.send(b"0\r\n\r\n")

    async def event(self) -> None:
        """Every stream gets one more event."""
        async with self.tick:
            self.tick.notify_all()

    async def end(self) -> None:
        """What is slow is answered, and streams end."""
        self.go_on.set()
        await self.event()


@dataclass
class Operated:
    """A running `serve`, and what its operator asks and sees."""

    program: Program
    admin: tuple[str, int]

    async def admin_ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
        )
        client = await RawClient.connect(self.admin)
        response = await client.ask(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await client.leave()
        return response.status, response.body

    async def members(self) -> dict[str, dict[str, Any]]:
        _, body = await self.admin_ask("GET", "/members")
        return {member["name"]: member for member in json.loads(body)["members"]}

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with those labels."""
        _, body = await self.admin_ask("GET", "/metrics")
        samples = [sample for found in families(body, name) for sample in found.samples]
        fitting = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(fitting)

    async def counts(self, value: float, name: str, **labels: str) -> None:
        """Returns when that sum has come to the value: workers tell what they counted once a second."""
        async with patience():
            while (now := await self.metric(name, **labels)) != value:
                assert now < value
                await asyncio.sleep(PAUSE)

    async def replaced(self, old: Sequence[int], kept: Sequence[int] = ()) -> list[int]:
        """Waits until these workers are gone and as many others serve beside those that are kept."""
        count = len(old) + len(kept)
        async with patience():
            while set(now := self.program.workers()) & set(old) or len(now) != count:
                await asyncio.sleep(PAUSE)
            while await self.metric("fedproxy_workers") != count:
                await asyncio.sleep(PAUSE)
        return now


@dataclass
class Running(Operated):
    """A running `serve`, the file that it read, and where it listens."""

    file: Path
    hub: Hub
    public: tuple[str, int]
    _clients: list[RawClient] = field(default_factory=list)

    def write(self, **config: Any) -> None:
        write(self.file, self.hub, **config)

    async def client(self) -> RawClient:
        client = await RawClient.connect(self.public)
        self._clients.append(client)
        return client

    async def stream(self, request: bytes = STREAM) -> RawClient:
        """A visitor of a stream who has seen its first event."""
        client = await self.client()
        await client.send(request)
        assert (await client.head()).status == 200
        assert await client.chunk() == _EVENT
        return client

    async def ask(self, request: bytes = CLOSING) -> Message:
        """One request on a connection of its own.

        An edge that drains closes a connection on which nothing comes for a second. On a busy machine that
        much may pass here between connecting and asking: then it asks again, as a browser would.
        """
        while True:
            began = time.monotonic()
            client = await self.client()
            await client.send(request)
            was_late = paused(began)
            try:
                return await client.response()
            except Ended:
                if not was_late:
                    raise
            finally:
                await client.leave()

    async def leave(self) -> None:
        for client in self._clients:
            await client.leave()


def families(body: bytes, *names: str) -> list[Metric]:
    """What is scraped, but only of metrics whose names begin so: the whole takes long to read."""
    lines = [line for line in body.decode().splitlines(keepends=True) if line.split(" ")[0].startswith(names)]
    return [*text_string_to_metric_families("".join(lines))]


def paused(since: float) -> bool:
    """Whether an edge that drains may have closed a connection on which nothing has come since then."""
    return time.monotonic() - since > GRACE


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody new is taken there: refused, or, in the moment before that, not answered."""
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(address)
        # On loopback the answer comes with the question.
        _, answered, _ = select.select([], [sock], [], 0.05)
        return not answered or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def asks(address: str | tuple[str, int], family: int = socket.AF_INET) -> bytes:
    """What is answered to a request on a connection of its own, which blocks."""
    with socket.socket(family) as visitor:
        visitor.settimeout(10)
        visitor.connect(address)
        visitor.sendall(b"GET /active_hosts HTTP/1.0\r\nHost: h\r\n\r\n")
        return b"".join(iter(lambda: visitor.recv(65536), b""))


def write(file: Path, hub: Hub, *, member: Mapping[str, object] | None = None, **config: Any) -> None:
    base = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0", "token": TOKEN},
        "workers": 2,
        "access_log": "off",
        "health": {"interval": "1h"},
        "members": {"a": {"url": hub.member.url, **(member or {})}},
    }
    # As those write it who know that it is watched.
    new = file.with_suffix(".new")
    new.write_text(yaml.safe_dump({**base, **config}))
    new.replace(file)


def patience() -> asyncio.Timeout:
    """Nothing that a test waits for takes this long, however many processes have to start for it."""
    return asyncio.timeout(PATIENCE)


async def until(condition: Callable[[], object], what: str) -> None:
    """As the rig's, with this patience."""
    await rig.until(condition, what, within=PATIENCE, pause=PAUSE)


@asynccontextmanager
async def running(folder: Path, **config: Any) -> AsyncIterator[Running]:
    """`serve` with this config; at the end nothing of it is left, and it said no traceback."""
    hub = Hub()
    await hub.member.start()
    try:
        write(folder / "edge.yaml", hub, **config)
        async with serving(folder / "edge.yaml", hub) as edge:
            yield edge
    finally:
        await hub.member.stop()


@asynccontextmanager
async def serving(file: Path, hub: Hub) -> AsyncIterator[Running]:
    """`serve` with this file."""
    async with fedproxy("serve", "--config", file) as program:
        public = await program.address("listening on ")
        edge = Running(program, await program.address("admin on "), file, hub, public)
        try:
            yield edge
        finally:
            await edge.leave()
    assert "Traceback" not in program.output, program.output
    assert "exception" not in program.output, program.output
