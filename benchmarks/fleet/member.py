"""A toy BinderHub that notes each launch stream and each probe in a file, by the edge that it came from."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import IO

from aiohttp import web

from benchmarks.fleet.record import StreamCount
from fedproxy.demo.toy import ToyBinderHub

_PROBES = ("/health", "/versions")


class NotingHub(ToyBinderHub):
    """Notes lines of `TIME ADDRESS WHAT`: `1` and `-1` for a stream's begin and end, or a probe's path."""

    def __init__(self, name: str, notes: IO[str]) -> None:
        # Room for all sessions, and streams that end at once: only `max_launches` is to limit launches.
        super().__init__(name, pods=0, quota=None, linger=0.0)
        self._notes = notes

    def _note(self, request: web.Request, what: str) -> None:
        self._notes.write(f"{time.monotonic():.4f} {request.remote} {what}\n")

    def _application(self) -> web.Application:
        application = super()._application()
        application.on_response_prepare.append(self._note_probe)
        return application

    async def _note_probe(self, request: web.Request, _response: web.StreamResponse) -> None:
        if request.path in _PROBES:
            self._note(request, request.path)

    async def _build(self, request: web.Request) -> web.StreamResponse:
        self._note(request, "1")
        try:
            return await super()._build(request)
        finally:
            self._note(request, "-1")


async def serve(name: str, host: str, port: int, notes: Path) -> None:
    """Serves until it is ended. Raises OSError if the address is taken."""
    # Line by line: whatever ends this process, what happened before is there.
    with notes.open("a", buffering=1) as file:
        hub = NotingHub(name, file)
        await hub.start(host, port)
        await asyncio.Event().wait()


def read_streams(notes: Path, edges: dict[str, str]) -> list[StreamCount]:
    """The streams that a member noted. edges: names by address."""
    return [
        StreamCount(float(at), edges.get(address, address), int(what))
        for at, address, what in map(str.split, notes.read_text().splitlines())
        if what not in _PROBES
    ]


def count_probes(notes: Path, begin: float, end: float) -> Counter[str]:
    """Rounds of probes, as many as requests to `/health`, by the address that they came from."""
    return Counter(
        address
        for at, address, what in map(str.split, notes.read_text().splitlines())
        if what == "/health" and begin <= float(at) < end
    )
