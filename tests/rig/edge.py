"""The edge between them: started in this process, and looked over when a test is done with it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from fedproxy.config.check import config_from
from fedproxy.config.model import Config
from fedproxy.serve.service import Service
from tests.rig.client import RawClient
from tests.rig.member import Script, Scripted
from tests.rig.message import Message
from tests.rig.wire import until

Member = Script | Scripted | str


class Edge:
    """A running edge, its scripted `members` by name, and its access `log` as it grows."""

    def __init__(self, service: Service, members: dict[str, Scripted], lines: list[str]) -> None:
        self.service = service
        self.members = members
        self._lines = lines
        self._clients: list[RawClient] = []

    @property
    def address(self) -> tuple[str, int]:
        """Of the first listener."""
        host, port = self.service.addresses[0]
        return host, port

    @property
    def member(self) -> Scripted:
        """The only scripted member."""
        (member,) = self.members.values()
        return member

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines]

    async def logged(self, count: int = 1) -> list[dict[str, Any]]:
        """The access log once it has that many entries, and it must have no more."""
        await until(lambda: len(self._lines) >= count, f"{count} lines in the access log")
        assert len(self._lines) == count, self._lines
        return self.log

    def errors(self, name: str) -> dict[str, int]:
        """What a member was charged with, by reason."""
        (member,) = (m for m in self.service.edge.federation.members if m.name == name)
        return {str(reason): count for reason, count in member.counts.errors.items() if count}

    @property
    def connections(self) -> set[Any]:
        """The visitors' connections, as they are inside."""
        return cast("set[Any]", self.service.edge.connections)

    @property
    def upstreams(self) -> set[Any]:
        """The connections to members, as they are inside."""
        return {each for pool in self.service.edge.pools.values() for each in pool.connections}

    @property
    def tunnels(self) -> set[Any]:
        """The tunnels, as they are inside."""
        return cast("set[Any]", self.service.edge.tunnels)

    def buffered(self) -> int:
        """Bytes that the edge holds for peers that do not read."""
        edge = self.service.edge
        transports = [visitor.transport for visitor in edge.connections]
        transports += [upstream.transport for upstream in self.upstreams]
        return sum(transport.get_write_buffer_size() for transport in transports)

    async def client(self, *, tls: ssl.SSLContext | None = None, receive_buffer: int = 0) -> RawClient:
        """A new connection to the first listener, closed at the end if the test does not do so."""
        client = await RawClient.connect(self.address, tls=tls, receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    async def ask(self, request: bytes, method: str = "GET") -> Message:
        """One request on a connection of its own."""
        client = await self.client()
        response = await client.ask(request, method)
        await client.leave()
        return response

    async def leave(self) -> None:
        """Closes every client."""
        for client in self._clients:
            await client.leave()

    def busy(self) -> list[str]:
        """What is under way; nothing at the start, and nothing when the visitors have left."""
        edge = self.service.edge
        busy = [repr(member) for member in edge.federation.members if member.in_flight]
        if edge.busy():
            busy.append(f"{edge.busy()} upstream connections in use")
        if edge.admission.under_way:
            busy.append(f"{sum(edge.admission.under_way.values())} uploads on their way")
        return busy + [repr(connection) for connection in edge.connections]

    def rig_tasks(self) -> set[asyncio.Task[Any]]:
        return {task for member in self.members.values() for task in member.tasks}


def _config(members: Mapping[str, dict[str, Any]], overrides: Mapping[str, Any]) -> Config:
    """Without YAML between, which takes longer than most tests of the edge."""
    config = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "workers": 1,
        "health": {"interval": "1h"},
        "members": members,
    }
    valid, findings, _ = config_from({**config, **overrides})
    assert valid is not None, findings
    return valid


@asynccontextmanager
async def edge(
    members: Member | Mapping[str, Member],
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **overrides: Any,
) -> AsyncIterator[Edge]:
    """Starts members and an edge in front of them; at the end the edge must be as idle as at the start.

    `members`: one script, for a member named `a`, or by name a script, a `Scripted` or a URL. `settings`
    adds to the config of members, `overrides` are top-level keys of the config.
    """
    named: Mapping[str, Member] = members if isinstance(members, Mapping) else {"a": members}
    scripted: dict[str, Scripted] = {}
    configs: dict[str, dict[str, Any]] = {}
    before = asyncio.all_tasks()
    try:
        for name, what in named.items():
            if not isinstance(what, str):
                scripted[name] = what if isinstance(what, Scripted) else Scripted(what)
                await scripted[name].start()
            url = what if isinstance(what, str) else scripted[name].url
            configs[name] = {"url": url, **(settings or {}).get(name, {})}
        async with _started(_config(configs, overrides), scripted) as running:
            yield running
        left = asyncio.all_tasks() - before - running.rig_tasks()
        assert not left, left
    finally:
        # All of them: a loop with a server that is left open does not close.
        async with AsyncExitStack() as stack:
            for member in scripted.values():
                stack.push_async_callback(member.stop)


@asynccontextmanager
async def _started(config: Config, scripted: dict[str, Scripted]) -> AsyncIterator[Edge]:
    lines: list[str] = []
    service = Service(config, log=lambda text: lines.extend(text.splitlines()), probe=False)
    await service.start()
    running = Edge(service, scripted, lines)
    try:
        assert not running.busy()
        own = asyncio.all_tasks()
        yield running
        await running.leave()
        await until(lambda: not running.busy(), running.busy)
        await until(lambda: not asyncio.all_tasks() - own - running.rig_tasks(), "no task left over")
    finally:
        await running.leave()
        await service.stop()
