"""A loop in another thread, for tests of programs that wait for an answer without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from aiohttp import web

from fedproxy.serve.service import Service
from fedproxy.serve.verify import Reader
from fedproxy.web.admin import create_admin_app
from tests.rig.state import State

T = TypeVar("T")


class LoopThread:
    """Runs coroutines there, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield LoopThread(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@contextmanager
def edge_of(file: Path) -> Iterator[tuple[str, Service]]:
    """A real edge without probes: its admin URL, and itself."""

    async def start() -> Service:
        reader = Reader(file, {}, lambda config: config)
        service = Service(reader.read(), reread=reader.read, file=file, probe=False)
        await service.start()
        return service

    with loop_thread() as there:
        service = there.do(start())
        host, port = service.admin_address
        try:
            yield f"http://{host}:{port}", service
        finally:
            there.do(service.stop())


@contextmanager
def admin_listener(state: State) -> Iterator[str]:
    """The URL of an admin listener of a made-up state."""
    runner = web.AppRunner(create_admin_app(state), handle_signals=False)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        return f"http://{host}:{port}"

    with loop_thread() as there:
        yield there.do(start())
        there.do(runner.cleanup())
