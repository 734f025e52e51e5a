"""What changes while it serves, and that nobody is cut off by it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedproxy.control.messages import LaunchesInFlight
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.snapshot import Survey, snapshot
from fedproxy.serve.planes import Common
from tests.rig import Ended, RawClient
from tests.rig.build import member
from tests.rig.running import (
    GET,
    PAUSE,
    TOKEN,
    Running,
    families,
    patience,
    paused,
    refuses,
    running,
    serving,
    until,
    write,
)

HUP, TERM = signal.SIGHUP, signal.SIGTERM
TEAPOT: dict[str, Any] = {"routes": [{"path": "/tea", "status": 418}]}
TEA = b"GET /tea HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def in_force(edge: Running, what: bytes = b"418") -> None:
    """Waits until every worker has what `TEAPOT` says."""
    async with patience():
        alike = 0
        while alike < 10:
            alike = alike + 1 if (await edge.ask(TEA)).start.split()[1] == what else 0


@pytest.mark.parametrize("how", ["signal", "api", "file"])
async def test_routes_and_weights_change_in_every_worker(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as edge:
        before = edge.program.workers()
        stream = await edge.stream()
        edge.write(member={"weight": 7}, **TEAPOT)
        if how == "signal":
            edge.program.signal(HUP)
        elif how == "api":
            assert (await edge.admin_ask("POST", "/reload"))[0] == 200
        await edge.program.line("reloaded ")
        await in_force(edge)
        assert (await edge.members())["a"]["weight"] == 7
        assert edge.program.workers() == before
        await edge.hub.event()
        assert b"building" in await stream.chunk()
        # The file was read once: watching it does not read it again.
        assert await edge.metric("fedproxy_config_reloads_total", result="success") == 1


async def test_swapped_link_is_a_changed_file(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: the file is a link through a link to a folder, which is swapped."""
    async with running(tmp_path) as edge:
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        folder = tmp_path / "mounted"
        folder.mkdir()
        for name, config in (("one", {}), ("two", TEAPOT)):
            (folder / name).mkdir()
            write(folder / name / "edge.yaml", edge.hub, **config)
        (folder / "data").symlink_to("one")
        (folder / "edge.yaml").symlink_to("data/edge.yaml")
        async with serving(folder / "edge.yaml", edge.hub) as mounted:
            (folder / "data.new").symlink_to("two")
            (folder / "data.new").rename(folder / "data")
            await mounted.program.line("reloaded ")
            await in_force(mounted)


async def test_file_that_disappears_is_said_once_and_taken_when_it_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        away = tmp_path / "away.yaml"
        edge.file.rename(away)
        await edge.program.line("the config in force is kept")
        assert (await edge.ask()).body == b"ok"
        write(away, edge.hub, **TEAPOT)
        away.rename(edge.file)
        await edge.program.line("reloaded ")
        await in_force(edge)
        assert edge.program.output.count("the config in force is kept") == 1
        assert await edge.metric("fedproxy_config_reloads_total", result="failure") == 1


async def test_invalid_file_changes_nothing_and_says_every_fault(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        before = edge.program.workers()
        edge.write(balancer="dice", mebers=3, **TEAPOT)
        status, body = await edge.admin_ask("POST", "/reload")
        assert status == 422
        assert b"balancer" in body and b"mebers" in body
        await edge.program.line("the config in force is kept")
        for key in "balancer", "mebers":
            assert re.search(rf"{re.escape(str(edge.file))}:\d+:\d+: {key}: ", edge.program.output)
        await in_force(edge, b"200")
        assert edge.program.workers() == before


CHANGES: dict[str, tuple[int, dict[str, Any]]] = {
    "one more": (1, {"workers": 2}),
    "one less": (2, {"workers": 1}),
    "three": (2, {"workers": 3}),
    "two of three": (3, {"workers": 2}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_another_number_of_workers_takes_over_and_nobody_is_cut_off(
    tmp_path: Path, change: str
) -> None:
    workers, config = CHANGES[change]
    async with running(tmp_path, workers=workers) as edge:
        old = edge.program.workers()
        streams = [await edge.stream() for _ in range(4)]
        kept = [await edge.client() for _ in range(4)]
        for client in kept:
            assert (await client.ask(GET)).body == b"ok"
        enough = asyncio.Event()
        visiting = asyncio.ensure_future(visit(edge, enough))
        asking = [asyncio.ensure_future(ask_until_the_end(client)) for client in kept]
        edge.write(**TEAPOT, **config)
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        await asyncio.gather(*asking)
        await in_force(edge)
        enough.set()
        await visiting
        assert await edge.metric("fedproxy_workers") == config["workers"]
        await edge.hub.event()
        for stream in streams:
            async with patience():
                assert b"building" in await stream.chunk()
        await edge.hub.end()
        for stream in streams:
            async with patience():
                while await stream.chunk():
                    pass
        now = config["workers"] if config["workers"] > 1 else 0
        await until(lambda: not set(edge.program.workers()) & set(old), "the end of the old workers")
        assert len(edge.program.workers()) == now
        assert (await edge.ask()).body == b"ok"
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0


async def ask_until_the_end(client: RawClient) -> None:
    """Asks again and again on a kept connection, until a response says that it ends with that.

    Who pauses for a second while the edge drains may find it closed, which on a busy machine can happen here:
    also between the answer and the moment it is seen, so it is the request before that counts.
    """
    sent = time.monotonic()
    while True:
        before, sent = sent, time.monotonic()
        await client.send(GET)
        was_late = paused(before)
        try:
            response = await client.response()
        except Ended:
            assert was_late
            return
        assert response.body == b"ok"
        if response.value("connection") == b"close":
            return


async def visit(edge: Running, enough: asyncio.Event) -> None:
    """Asks again and again, each time on a new connection."""
    while not enough.is_set():
        assert (await edge.ask()).body == b"ok"


@pytest.mark.parametrize("workers", [1, 2])
async def test_another_listener_is_taken_over_while_the_old_one_drains(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers=workers) as edge:
        stream = await edge.stream()
        path = tmp_path / "edge.sock"
        edge.write(workers=workers, listen=[{"address": f"unix:{path}"}])
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        await until(lambda: refuses(edge.public), "nobody listens there any more")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nok")
        writer.close()
        await writer.wait_closed()
        await edge.hub.event()
        assert b"building" in await stream.chunk()
        await edge.hub.end()
        async with patience():
            while await stream.chunk():
                pass
        edge.program.signal(TERM)
        assert await edge.program.ended() == 0
        assert not path.exists()


@pytest.mark.parametrize("workers", [1, 2])
async def test_listener_that_cannot_be_opened_changes_nothing(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers=workers) as edge:
        before = edge.program.workers()
        host, port = edge.admin
        listen = [{"address": "127.0.0.1:0"}, {"address": f"{host}:{port}"}]
        edge.write(workers=3, listen=listen, admin={"address": f"unix:{tmp_path}/admin.sock"}, **TEAPOT)
        edge.program.signal(HUP)
        await edge.program.line(f"cannot listen on {host}:{port}: Address already in use")
        await edge.program.line("the config in force is kept")
        await in_force(edge, b"200")
        assert (await edge.members())["a"]["weight"] == 1
        assert edge.program.workers() == before


async def test_admin_listener_moves_even_when_it_was_asked_there(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        edge.write(admin={"address": f"unix:{tmp_path}/admin.sock", "token": TOKEN})
        assert (await edge.admin_ask("POST", "/reload"))[0] == 200
        await until(lambda: refuses(edge.admin), "nobody listens there any more")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


async def test_access_log_is_turned_on_and_off(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        edge.write(access_log="combined")
        edge.program.signal(HUP)
        await edge.program.line("reloaded ")
        await edge.ask()
        await edge.program.line('"GET / HTTP/1.1" 200')


async def test_reloads_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        edge.write(workers=3, **TEAPOT)
        answers = await asyncio.gather(*(edge.admin_ask("POST", "/reload") for _ in range(4)))
        assert [status for status, _ in answers] == [200] * 4
        await in_force(edge)
        await until(lambda: len(edge.program.workers()) == 3, "the old workers are gone")
        assert await edge.metric("fedproxy_config_reloads_total", result="success") == 4


async def test_worker_that_dies_as_it_is_replaced_is_not_missed(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        old = edge.program.workers()
        edge.write(workers=3, **TEAPOT)
        edge.program.signal(HUP)
        await until(lambda: set(edge.program.workers()) - set(old), "new workers come")
        for worker in old:
            os.kill(worker, signal.SIGKILL)
        await edge.program.line("reloaded ")
        await in_force(edge)
        async with patience():
            while await edge.metric("fedproxy_workers") != 3 or len(edge.program.workers()) != 3:
                await asyncio.sleep(PAUSE)


async def test_counters_do_not_fall_when_everybody_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        kept: list[RawClient] = [await edge.client() for _ in range(6)]
        for client in kept:
            await client.ask(GET)
        seen = 6.0
        await edge.counts(seen, "fedproxy_requests_total", member="a")
        for workers in (3, 1, 2):
            edge.write(workers=workers)
            edge.program.signal(HUP)
            await edge.program.line("reloaded ")
            async with patience():
                for _ in range(20):
                    now = await edge.metric("fedproxy_requests_total", member="a")
                    assert now >= seen
                    seen = now
        assert seen == 6


def test_counts_of_who_is_gone_are_forgotten_with_the_member() -> None:
    common = Common()
    counted = [snapshot(member(name), 0.0) for name in ("a", "b")]
    common.add(Survey(counted, EdgeCounts()))
    common.forget({"b": None})
    assert list(common.members) == ["b"]


async def test_scrapes_while_members_come_and_go_are_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as edge:
        await edge.ask()
        await edge.counts(1, "fedproxy_requests_total", member="a")
        for number in range(6):
            more = {f"m{each}": {"url": "http://127.0.0.1:1"} for each in range(number % 3 * 40)}
            edge.write(members={"a": {"url": edge.hub.member.url}, **more})
            edge.program.signal(HUP)
            scrapes = await asyncio.gather(*(edge.admin_ask("GET", "/metrics") for _ in range(5)))
            for status, body in scrapes:
                names = "fedproxy_requests_total", "fedproxy_member_up", "fedproxy_member_weight"
                requests, ups, weights = (families(body, name) for name in names)
                assert (status, [each.value for found in requests for each in found.samples]) == (200, [1])
                up = sum(len(found.samples) for found in ups)
                assert up == sum(len(found.samples) for found in weights)
                assert up in (1, 41, 81)
            assert [*text_string_to_metric_families(scrapes[-1][1].decode())]


def test_launches_are_told_to_all_but_those_who_have_them() -> None:
    common, called = Common(), list[str]()
    common.listeners.add(lambda: called.append("told"))
    common.run("one", {"a": 2})
    common.run("two", {"a": 1, "b": 1})
    assert common.elsewhere("one") == LaunchesInFlight({"a": 1, "b": 1})
    assert common.elsewhere("three") == LaunchesInFlight({"a": 3, "b": 1})
    common.run("two", {})
    assert common.elsewhere("one") == LaunchesInFlight({})
    assert called == ["told"] * 3


async def test_change_of_any_file_of_the_config_is_noticed(tmp_path: Path) -> None:
    parts, secret = tmp_path / "parts", tmp_path / "secret"
    parts.mkdir()
    secret.write_text("as quiet as a mouse")
    affinity = {"secret": f"${{file:{secret}}}"}
    async with running(tmp_path, include=["parts/*.yaml"], affinity=affinity) as edge:
        (parts / "one.yaml").write_text("members: {one: {url: 'http://127.0.0.1:1'}}")
        await edge.program.line("member.joined [file] one joined")
        (parts / "one.yaml").write_text("members: {one: {url: 'http://127.0.0.1:1', weight: 5}}")
        await edge.program.line("member.weight [file] the weight of one changed from 1 to 5")
        await edge.program.line("config.reload [file]")
        secret.write_text("another one, as quiet")
        await edge.program.line("config.reload [file]")
        (parts / "two.yaml").write_text("members: [")
        await edge.program.line(f"config.refused [file] {parts}/two.yaml:1:11: not valid YAML")
        (parts / "two.yaml").unlink()
        await edge.program.line("config.reload [file]")
