"""Workers without a control process: who may take their sockets over, and what they do if nobody comes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fedproxy.config.load import parse
from fedproxy.config.model import ListenerSettings
from fedproxy.control import hand
from fedproxy.control.channel import open_to_worker
from fedproxy.control.messages import ApplyConfig, Ready, Start
from fedproxy.errors import ChannelError
from fedproxy.serve import orphans
from fedproxy.serve.orphans import Bell, Orphans
from fedproxy.serve.sockets import Left
from tests.rig.command import Program, fedproxy
from tests.rig.running import ACTIVATED, Hub, Running, asks, patience, refuses, until, write


class Worker:
    """What a worker shows of itself to whoever rings."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), reuse_port=True)
        self.alone = True
        self.given = False
        self.relieved = asyncio.Event()
        self.bell = Bell(self.left, self.relieved.set)

    def left(self) -> list[Left] | None:
        return [(self.sock, self.given)] if self.alone else None

    @property
    def listeners(self) -> list[ListenerSettings]:
        host, port = self.sock.getsockname()
        return [ListenerSettings.model_validate({"address": f"{host}:{port}"})]


@pytest.fixture
async def worker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    # Only the bells of this test.
    prefix = f"\0fedproxy-test-{secrets.token_hex(8)}/"
    monkeypatch.setattr(orphans, "_prefix", lambda: prefix)
    # A busy machine is no worker that does not answer.
    monkeypatch.setattr(orphans, "_TO_ANSWER", 60.0)
    monkeypatch.setattr(orphans, "_ALL_TO_ANSWER", 60.0)
    found = Worker()
    yield found
    found.bell.close()
    found.sock.close()


async def find(listeners: Sequence[ListenerSettings]) -> Orphans:
    return await asyncio.to_thread(orphans.find, listeners)


def close(found: Orphans) -> None:
    found.close()
    for sock, _ in found.sockets:
        sock.close()


async def test_sockets_are_handed_over_and_the_worker_hears_when_others_accept(worker: Worker) -> None:
    worker.given = True
    found = await find(worker.listeners)
    ((sock, given),) = found.sockets
    await until(lambda: worker.bell.is_rung, "somebody has the sockets too")
    assert sock.getsockname() == worker.sock.getsockname()
    assert given
    assert not worker.relieved.is_set()
    assert found.relieve() == 1
    async with patience():
        await worker.relieved.wait()
    await until(lambda: not worker.bell.is_rung, "nobody has them")
    close(found)


async def test_socket_that_several_have_is_handed_over_once(worker: Worker) -> None:
    other = Bell(worker.left, asyncio.Event().set)
    found = await find(worker.listeners)
    assert len(found.sockets) == 1
    assert found.relieve() == 2
    close(found)
    other.close()


async def test_worker_with_a_control_process_hands_nothing_over(worker: Worker) -> None:
    worker.alone = False
    found = await find(worker.listeners)
    assert found.sockets == []
    assert found.relieve() == 0
    assert not worker.relieved.is_set()


async def test_worker_at_another_address_is_left_alone(worker: Worker) -> None:
    found = await find([ListenerSettings.model_validate({"address": "127.0.0.1:1"})])
    assert found.sockets == []
    await until(lambda: not worker.bell.is_rung, "it hears that nobody is there any more")
    assert not worker.relieved.is_set()


async def test_whoever_gives_up_before_the_start_leaves_the_worker_alone(worker: Worker) -> None:
    close(await find(worker.listeners))
    await until(lambda: not worker.bell.is_rung, "it hears that nobody is there any more")
    assert not worker.relieved.is_set()
    close(await find(worker.listeners))


async def test_another_user_neither_gets_a_socket_nor_is_believed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both ends are this process, which now takes itself for another.
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    (name,) = orphans._bells()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(name)
        assert await asyncio.to_thread(hand.take, stranger) == ({"sockets": 0}, [])
        assert await asyncio.to_thread(hand.take, stranger) is None
    assert not worker.bell.is_rung
    assert (await find(worker.listeners)).sockets == []


async def test_nonsense_and_silence_are_nobody(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_TO_ANSWER", 0.2)
    worker.alone = False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(f"{orphans._prefix()}silent")
        silent.listen()
        assert (await find(worker.listeners)).sockets == []
        visitor, _ = silent.accept()
        visitor.close()
        finding = asyncio.ensure_future(find(worker.listeners))
        answering, _ = await asyncio.to_thread(silent.accept)
        with answering:
            answering.send(b"{")
            assert (await finding).sockets == []


async def test_ringing_without_end_takes_no_files(worker: Worker) -> None:
    (name,) = orphans._bells()
    ringing = []
    for _ in range(20):
        ringing.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ringing[-1].settimeout(10)
        await asyncio.to_thread(ringing[-1].connect, name)
    await until(lambda: len(worker.bell._ringing) == orphans._RINGING, "the last ones are there")
    for sock in ringing:
        sock.close()


# The program

_SOON = "import fedproxy.serve.worker as worker; worker._ALONE = 0.1; worker.main()"


async def test_worker_drains_when_no_control_process_comes(tmp_path: Path) -> None:
    hub = Hub()
    await hub.member.start()
    write(tmp_path / "edge.yaml", hub, timeouts={"drain": "30s"})
    ready = asyncio.Event()
    ours, theirs = socket.socketpair()
    hands = hand.pair()
    with theirs, hands[0], hands[1], socket.create_server(("127.0.0.1", 0), reuse_port=True) as sock:
        address = sock.getsockname()
        channel = await open_to_worker(
            ours,
            lambda message: ready.set() if message == Ready() else None,
            list[ChannelError]().append,
            lambda: None,
        )
        numbers = [theirs.fileno(), hands[1].fileno()]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SOON, *map(str, numbers)), pass_fds=[*numbers, sock.fileno()]
        )
        update = ApplyConfig(parse((tmp_path / "edge.yaml").read_text(), {}), {}, 1)
        channel.send(Start(update, (), b"x" * 32, ((sock.fileno(),),), (False,)))
        async with patience():
            await ready.wait()
    edge = Running(Program(process, "-"), address, tmp_path / "edge.yaml", hub, address)
    stream = await edge.stream()
    channel.close()
    await until(lambda: refuses(address), "nobody accepts")
    assert process.returncode is None
    await hub.end()
    async with patience():
        while await stream.chunk():
            pass
        assert await process.wait() == 0
    await edge.leave()
    await hub.member.stop()


async def test_workers_at_a_socket_of_systemd_are_relieved_and_it_is_not_closed(tmp_path: Path) -> None:
    hub = Hub()
    await hub.member.start()
    file = tmp_path / "edge.yaml"
    with socket.create_server(("127.0.0.1", 0)) as given:
        host, port = given.getsockname()
        write(file, hub, listen=[{"address": f"{host}:{port}"}])
        start = {"pass_fds": [given.fileno()], "before": ("-c", ACTIVATED)}
        arguments = (given.fileno(), "serve", "--config", file)
        async with fedproxy(*arguments, **start) as first:  # type: ignore[arg-type]
            await first.address("admin on ")
            old = first.workers()
            first.signal(signal.SIGKILL)
            await until(lambda: first.pid not in first.processes(), "the end of the control process")
            for _ in range(10):
                assert b'"active_hosts"' in await asyncio.to_thread(asks, (host, port))
            async with fedproxy(*arguments, **start) as second:  # type: ignore[arg-type]
                await second.address("admin on ")
                assert f"took over from {len(old)} workers" in second.output
                await until(lambda: not first.workers(), "the end of the old workers")
                for _ in range(10):
                    assert b'"active_hosts"' in await asyncio.to_thread(asks, (host, port))
                second.signal(signal.SIGTERM)
                assert await second.ended() == 0
            # Who comes meanwhile waits for the next start.
            with socket.create_connection((host, port), timeout=10):
                pass
    await hub.member.stop()
