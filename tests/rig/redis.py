"""A Redis server on loopback, which a test may stop, continue and start again empty."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from fedproxy.config.store import StoreAddress, store
from fedproxy.control import redis_store
from fedproxy.control.redis_store import RedisStore
from tests.rig.programs import found, free_port, needs

#: The time limits that are not a test's own.
USUAL = redis_store._ANSWER, redis_store._WHOLE

#: Skips without one.
REDIS = needs("redis-server", "redis-server")


class RedisServer:
    """options: of its command line, `first` if they come before all others. login: as whom clients come."""

    def __init__(self, options: Sequence[str] = (), login: str = "", *, first: bool = False) -> None:
        self.port = free_port()
        self.first = first
        self.options = list(options)
        self.url = f"redis://{login}127.0.0.1:{self.port}"
        # The types of its methods are those of the blocking client as well.
        self.client: Any = Redis(port=self.port, decode_responses=True)
        self._process: Process | None = None

    @property
    def address(self) -> StoreAddress:
        found = store(self.url)
        assert isinstance(found, StoreAddress)
        return found

    def store(self, prefix: str = "fedproxy") -> RedisStore:
        return RedisStore(self.address, prefix)

    async def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        options = [*self.options, *options] if self.first else [*options, *self.options]
        self._process = await asyncio.create_subprocess_exec(
            found("redis-server"), *options, stdout=DEVNULL, stderr=DEVNULL
        )

        async def is_there() -> bool:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return True
            return False

        while not await is_there():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """What it had is lost."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()

    def hang(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        with suppress(RedisError, OSError):
            await self.client.aclose()
        await self.stop()


@asynccontextmanager
async def redis(*options: str, login: str = "") -> AsyncIterator[RedisServer]:
    server = RedisServer(options, login)
    with pytest.MonkeyPatch.context() as patch:
        if (redis_store._ANSWER, redis_store._WHOLE) == USUAL:
            # Of a busy machine nobody expects an answer within a second.
            patch.setattr(redis_store, "_ANSWER", 20.0)
            patch.setattr(redis_store, "_WHOLE", 30.0)
        await server.start()
        try:
            yield server
        finally:
            await server.close()
