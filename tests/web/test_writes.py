"""Writes of the admin API before a real edge: in force in every worker when they are answered, and kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fedproxy.serve.service import Service
from tests.rig import RawClient, Scripted, answer
from tests.rig.service import running

NAMED = b"GET / HTTP/1.1\r\nHost: new.example.org\r\nConnection: close\r\n\r\n"


def named(name: bytes) -> Scripted:
    return Scripted(answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name)))


async def served_by(service: Service) -> set[bytes]:
    """Who serves visitors of one name, asked so often that no worker is left out."""

    async def ask() -> bytes:
        client = await RawClient.connect(service.addresses[0])
        response = await client.ask(NAMED)
        await client.leave()
        return response.body

    return set(await asyncio.gather(*(ask() for _ in range(40))))


async def test_member_joins_and_leaves_in_every_worker_and_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    old, new = named(b"old"), named(b"new")
    await old.start()
    await new.start()
    settings = {"url": new.url, "hosts": ["new.example.org"]}
    async with asyncio.timeout(60):
        async with running(tmp_path, old.url) as (service, admin):
            assert await served_by(service) == {b"old"}
            assert (await admin.put("/members/new", json=settings)).status == 201
            assert await served_by(service) == {b"new"}
            # Nothing can be kept any more.
            (tmp_path / "kept/state.json").unlink()
            (tmp_path / "kept").rmdir()
            response = await admin.delete("/members/new")
            assert response.status == 500
            assert "state.json cannot be written" in (await response.json())["detail"]
            assert await served_by(service) == {b"new"}
            (tmp_path / "kept").mkdir()
            assert (await admin.patch("/members/new", json={"weight": 3})).status == 200
        async with running(tmp_path, old.url) as (service, admin):
            assert (await (await admin.get("/members/new")).json())["weight"] == 3
            assert await served_by(service) == {b"new"}
            assert (await admin.delete("/members/new")).status == 204
            assert await served_by(service) == {b"old"}
            assert (await admin.delete("/members/old")).status == 422
    await old.stop()
    await new.stop()
