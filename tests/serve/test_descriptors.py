from __future__ import annotations

import asyncio
import json
import resource
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import yaml

from fedproxy.serve import descriptors
from tests.rig import Ended, RawClient, Scripted, answer, guard, until
from tests.rig.command import Program, fedproxy

FILES = 100
ROOM = (FILES - 64 - 3) // 2
START = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
runpy.run_module("fedproxy", run_name="__main__", alter_sys=True)
"""
HERE = b"GET /here HTTP/1.1\r\nHost: hub.test\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: hub.test\r\n\r\n"


def files_are(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    put: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: put.append(limits))
    return put


def test_limit_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    put = files_are(monkeypatch, 1024, 4096)
    descriptors.raise_limit()
    assert put == [(4096, 4096)]


def test_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: object) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_limit()


@pytest.mark.parametrize(("files", "room"), [(1024, 464), (64, 1), (10, 1), (-1, (2**30 - 1328) // 2)])
def test_visitor_takes_two_files(monkeypatch: pytest.MonkeyPatch, files: int, room: int) -> None:
    files_are(monkeypatch, files, files)
    assert descriptors.room() == room


@pytest.mark.parametrize(("files", "room"), [(100, 16), (1024, 16), (8192, 128), (262144, 256), (-1, 256)])
def test_admin_listener_has_files_of_its_own(monkeypatch: pytest.MonkeyPatch, files: int, room: int) -> None:
    files_are(monkeypatch, files, files)
    assert descriptors.admin_room() == room


@pytest.mark.parametrize(("files", "room"), [(100, 3), (1024, 32), (20_000, 625), (-1, 1024)])
def test_probes_may_keep_connections_of_their_own(
    monkeypatch: pytest.MonkeyPatch, files: int, room: int
) -> None:
    files_are(monkeypatch, files, files)
    assert descriptors.probe_room() == room


@pytest.mark.parametrize("connections", [2, 464, 465, 1000, 5000, 20_000, 1_000_000])
def test_limit_that_is_asked_for_is_enough(monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    files_are(monkeypatch, 64, 64)
    said = descriptors.shortage(connections) or ""
    files = int(said.partition("at least ")[2].partition(" ")[0])
    files_are(monkeypatch, files, files)
    assert descriptors.shortage(connections) is None


def test_shortage_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    files_are(monkeypatch, 1024, 1024)
    assert descriptors.shortage(464) is None
    assert descriptors.shortage(465) == (
        "limits.connections is 465, but this process may open 1024 files, which is enough for 464; "
        "expected a limit of at least 1026 (LimitNOFILE, ulimit -n)"
    )


# -- the program


class Running:
    """The program with few files, and its process."""

    def __init__(self, program: Program, pid: int, address: tuple[str, int]) -> None:
        self.program = program
        self.pid = pid
        self.address = address

    async def client(self) -> RawClient:
        return await RawClient.connect(self.address)

    def seconds(self) -> float:
        """The processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    async def use_up_files(self) -> list[RawClient]:
        """Allows no number beyond those in use, and takes what is free below by connections."""
        # One beyond the limit was open before there was one.
        taken = (int(each.name) for each in Path(f"/proc/{self.pid}/fd").iterdir())
        most = max(number for number in taken if number < FILES) + 1
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (most, FILES))
        clients: list[RawClient] = []
        while True:
            clients.append(await self.client())
            try:
                assert (await clients[-1].ask(HERE)).status == 404
            except Ended:
                return clients

    def give_files(self) -> None:
        """Allows as many as at the start."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (FILES, FILES))


@asynccontextmanager
async def program(
    members: dict[str, Scripted], directory: Path, routes: Sequence[dict[str, str]] = ()
) -> AsyncIterator[Running]:
    config = directory / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": [{"address": "127.0.0.1:0"}],
                "admin": {"address": "127.0.0.1:0", "state": "off"},
                "workers": 1,
                "health": {"interval": "1h", "versions": False, "fall": 100},
                "members": {name: {"url": member.url} for name, member in members.items()},
                "routes": [{"path": "/here", "status": 404}, *routes],
            }
        )
    )
    async with fedproxy("serve", "--config", config, before=("-c", START)) as running:
        yield Running(running, running.pid, await running.address("listening on "))
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0


@pytest.fixture
async def member() -> AsyncIterator[Scripted]:
    scripted = Scripted(answer())
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def other() -> AsyncIterator[Scripted]:
    scripted = Scripted(answer())
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def closing() -> AsyncIterator[Scripted]:
    """A member to which no connection is ever idle."""
    scripted = Scripted(answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"))
    await scripted.start()
    yield scripted
    await scripted.stop()


async def test_connections_beyond_the_room_are_closed_and_room_comes_back(
    member: Scripted, tmp_path: Path
) -> None:
    async with program({"a": member}, tmp_path) as running:
        await running.program.line(f"which is enough for {ROOM};")
        clients = [await running.client() for _ in range(3 * FILES)]
        await until(
            lambda: sum(c.reader.at_eof() for c in clients) == len(clients) - ROOM, "the rest is closed"
        )
        served = [client for client in clients if not client.reader.at_eof()]
        for client in served:
            assert (await client.ask(GET)).body == b"ok"
        used = running.seconds()
        await asyncio.sleep(0.5)
        assert running.seconds() - used < 0.25, "it spins"
        for client in clients:
            await client.leave()
        async with guard():
            while not await served_again(running):
                pass


async def served_again(running: Running) -> bool:
    client = await running.client()
    try:
        return (await client.ask(GET)).body == b"ok"
    except Ended:
        return False
    finally:
        await client.leave()


async def test_flood_of_the_admin_listener_leaves_visitors_and_operators_served(
    member: Scripted, tmp_path: Path
) -> None:
    async with program({"a": member}, tmp_path) as running:
        admin = await running.program.address("admin on ")
        visitors = [await running.client() for _ in range(ROOM)]
        for visitor in visitors:
            assert (await visitor.ask(GET)).body == b"ok"
        scrape = await RawClient.connect(admin)
        assert (await scrape.ask(METRICS)).status == 200
        flood: list[RawClient] = []
        for said in (b"", b"G", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"):
            for _ in range(2 * FILES):
                flood.append(await RawClient.connect(admin))
                if said:
                    with suppress(OSError, RuntimeError):
                        await flood[-1].send(said)
            operator = await RawClient.connect(admin)
            assert (await operator.ask(b"GET /members HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200
            await operator.leave()
            for visitor in visitors:
                assert (await visitor.ask(GET)).body == b"ok"
        for client in (*flood, *visitors, scrape):
            await client.leave()
        async with guard():
            while not await served_again(running):
                pass


async def test_idle_connections_to_members_make_room_for_others(
    member: Scripted, other: Scripted, tmp_path: Path
) -> None:
    routes = [{"path": "/b", "to": "b"}, {"path": "/*", "to": "a"}]
    async with program({"a": member, "b": other}, tmp_path, routes) as running:
        visitor = await running.client()
        assert (await visitor.ask(GET)).body == b"ok"
        clients = await running.use_up_files()
        assert (await visitor.ask(GET.replace(b"/ ", b"/b "))).body == b"ok"
        for client in (visitor, *clients):
            await client.leave()


async def test_request_that_no_file_is_left_for_is_503_and_accepting_does_not_spin(
    closing: Scripted, tmp_path: Path
) -> None:
    async with program({"a": closing}, tmp_path) as running:
        visitor = await running.client()
        assert (await visitor.ask(HERE)).status == 404
        clients = await running.use_up_files()
        response = await visitor.ask(GET)
        while response.status == 200:
            # The program had closed something just then.
            clients += await running.use_up_files()
            response = await visitor.ask(GET)
        assert (response.status, response.value("retry-after")) == (503, b"30")
        late = [await running.client() for _ in range(20)]
        # Each is closed, or took a file that became free just then.
        for client in late:
            with suppress(Ended):
                assert (await client.ask(GET)).status in (200, 503)
        used = running.seconds()
        await asyncio.sleep(0.5)
        assert running.seconds() - used < 0.25, "it spins"
        running.give_files()
        for client in (visitor, await running.client()):
            assert (await client.ask(GET)).body == b"ok"
            await client.leave()
        for client in (*late, *clients):
            await client.leave()
        line = json.loads('{"time"' + await running.program.line('{"time"'))
        while line["status"] != 503:
            line = json.loads('{"time"' + await running.program.line('{"time"'))
        assert (line["target"], line["termination"], line["member"]) == ("/", "PC", "a")
