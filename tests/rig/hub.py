"""Members on TCP, TLS or a Unix socket, and a prober that is looked over at its end."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedproxy.control.prober import ProbePolicy, Prober, Report, Target
from tests.rig import Conn, Message, Script, Scripted, per_request, until

VERSIONS = {"builder_info": {"build_image": "r2d:1"}, "binderhub": "1.0"}
REGISTRY = {"service": "Docker registry", "ok": True}
QUOTA = {"service": "Pod quota", "total_pods": 40, "build_pods": 4, "user_pods": 36, "quota": 300, "ok": True}

QUICK = ProbePolicy(
    interval=0.005,
    jitter=0.1,
    timeout=5,
    rise=1,
    fall=1,
    unhealthy_interval=0.005,
    pod_headroom=10,
    versions=True,
    connection_age=60.0,
)
ONCE = replace(QUICK, interval=3600, unhealthy_interval=3600)


def reply(body: bytes, status: int = 200, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Status\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def in_json(value: object, status: int = 200) -> bytes:
    return reply(json.dumps(value).encode(), status)


def health(*checks: object, ok: bool = True) -> bytes:
    return in_json({"ok": ok, "checks": checks}, 200 if ok else 503)


class Hub(Scripted):
    """Answers `/versions` and `/health` with the bytes that `versions` and `health` hold at that time.

    With `answers` cleared it takes requests and says nothing until it is set again.
    """

    def __init__(
        self,
        versions: bytes | None = None,
        health_: bytes | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        super().__init__(per_request(self._handle), address=address)
        self.versions = in_json(VERSIONS) if versions is None else versions
        self.health = health(REGISTRY, QUOTA) if health_ is None else health_
        self.answers = asyncio.Event()
        self.answers.set()

    async def _handle(self, conn: Conn, request: Message) -> None:
        await self.answers.wait()
        conn.send(self.versions if b"versions" in request.target else self.health)

    @property
    def targets(self) -> list[bytes]:
        return [request.target for request in self.requests]

    @property
    def rounds(self) -> int:
        return self.targets.count(b"/health")


class Secure(Hub):
    """A hub behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, "127.0.0.1", 0, ssl=self.context)
        self.authority = f"localhost:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"https://{self.authority}"


class Local(Hub):
    """A hub on a Unix socket."""

    authority = "localhost"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(self._protocol, str(self.path))


def target(name: str, member: Scripted | str, **settings: Any) -> Target:
    url = member if isinstance(member, str) else member.url
    return Target(**{"name": name, "health": f"{url}/health", "versions": f"{url}/versions", **settings})


class Probing:
    """A prober, and every report that it made."""

    def __init__(self, **settings: Any) -> None:
        self.seen: list[Report] = []
        self.prober = Prober(self._report, **settings)

    def _report(self, report: Report) -> None:
        assert self.prober.reports[report.name] is report
        self.seen.append(report)

    def of(self, name: str) -> list[Report]:
        return [report for report in self.seen if report.name == name]

    async def first(self, name: str = "a") -> Report:
        """A member's first report."""
        await until(lambda: self.of(name), f"a report of {name}")
        return self.of(name)[0]

    async def shows(self, name: str, **wanted: object) -> Report:
        """The last report of a member, once it says what is wanted."""

        def told() -> bool:
            report = self.prober.reports.get(name)
            return report is not None and all(getattr(report, key) == value for key, value in wanted.items())

        await until(told, lambda: self.prober.reports.get(name))
        return self.prober.reports[name]


@asynccontextmanager
async def probing(
    *members: Scripted, chance: Callable[[], float] = lambda: 0.5, **settings: Any
) -> AsyncIterator[Probing]:
    """Starts the members and a prober with nothing in force yet. Nothing of it may be left at the end."""
    async with AsyncExitStack() as stack:
        for member in members:
            await member.start()
            stack.push_async_callback(member.stop)
        before = asyncio.all_tasks()
        running = Probing(chance=chance, **settings)
        try:
            yield running
        finally:
            await running.prober.close()
        rigs = {task for member in members for task in member.tasks}
        left = asyncio.all_tasks() - before - rigs
        assert not left, left
        ends = [conn.reader for member in members for conn in member.connections]
        await until(lambda: all(end.at_eof() for end in ends), "every connection closed")


def saying(data: bytes, *, then: str = "close") -> Script:
    """A script that sends these bytes in answer to a request, then closes, resets or stalls."""

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(data)
        await conn.flush()
        if then == "reset":
            conn.reset()
        elif then == "stall":
            await conn.stall()

    return script
