"""The edge as its operators start it, before members of other people's programs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.rig.command import Program, fedproxy
from tests.rig.members import PUBLIC, Member
from tests.rig.running import ACTIVATED, PAUSE, TOKEN, Operated, patience


class Edge:
    """`serve` with two workers, at a socket that outlives it: visitors wait while the edge is restarted."""

    def __init__(self, folder: Path, members: Mapping[str, Member], given: socket.socket) -> None:
        self.members = members
        self._file = folder / "edge.yaml"
        self._given = given
        self._running = AsyncExitStack()
        self._now: Operated

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._given.getsockname()
        return host, port

    @property
    def program(self) -> Program:
        return self._now.program

    def write(self, settings: Mapping[str, Mapping[str, Any]] | None = None, **config: Any) -> None:
        """Writes its config, with more keys of members by name, and at the top level."""
        host, port = self.address
        base = {
            "public_url": PUBLIC,
            "listen": [{"address": f"{host}:{port}"}],
            "admin": {"address": "127.0.0.1:0", "token": TOKEN},
            "workers": 2,
            "access_log": "off",
            "health": {"interval": "250ms", "unhealthy_interval": "250ms", "fall": 1, "slow_start": 0},
            # What is left then is what has no end: WebSockets.
            "timeouts": {"drain": "1s"},
            "members": {
                name: {"url": member.url, "host": "visitor", **(settings or {}).get(name, {})}
                for name, member in self.members.items()
            },
        }
        new = self._file.with_suffix(".new")
        new.write_text(yaml.safe_dump({**base, **config}))
        new.replace(self._file)

    async def start(self) -> None:
        """Starts; returns once visitors are served and every member was probed."""
        arguments = (self._given.fileno(), "serve", "--config", self._file)
        start = fedproxy(*arguments, pass_fds=[self._given.fileno()], before=("-c", ACTIVATED))
        program = await self._running.enter_async_context(start)
        self._now = Operated(program, await program.address("admin on "))
        for name in self.members:
            await self.shows(name, healthy=True)

    async def stop(self) -> None:
        """Ends as operators end it; visitors who come meanwhile wait."""
        self.program.signal(signal.SIGTERM)
        assert await self.program.ended() == 0
        await self.close()

    async def close(self) -> None:
        """Ends it, if it is there."""
        await self._running.aclose()

    async def kill_worker(self) -> None:
        """Kills a worker, and waits until another serves in its place."""
        doomed, kept = self.program.workers()
        os.kill(doomed, signal.SIGKILL)
        await self._now.replaced([doomed], kept=[kept])

    async def reload(self) -> None:
        """What is in force then is what the file says; the edge may have found that out by itself."""
        status, body = await self._now.admin_ask("POST", "/reload")
        assert status == 200, body

    async def operate(self, name: str, **intent: object) -> None:
        """What an operator sets: `state`, `weight`."""
        status, body = await self._now.admin_ask("PATCH", f"/members/{name}", intent)
        assert status == 200, body

    async def shows(self, name: str, **wanted: object) -> None:
        """Waits until a member is shown so, and every worker was told."""
        async with patience():
            while True:
                now = (await self._now.members())[name]
                if wanted.items() <= now.items():
                    return
                await asyncio.sleep(PAUSE)


@asynccontextmanager
async def federated(folder: Path, members: Mapping[str, Member], **config: Any) -> AsyncIterator[Edge]:
    """An edge before these members, until the block ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as given:
        edge = Edge(folder, members, given)
        edge.write(**config)
        try:
            await edge.start()
            yield edge
            await edge.stop()
        finally:
            await edge.close()
