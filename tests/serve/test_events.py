"""The edge's own log, as the real program writes it: who did what, once, in the form that is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

from fedproxy.event import Event, EventName
from fedproxy.serve.service import Service
from tests.rig import RawClient
from tests.rig.heard import Heard
from tests.rig.running import TOKEN, Running, running
from tests.rig.service import config_of

ADMIN = {"address": "127.0.0.1:0", "tokens": {"kim": {"token": TOKEN, "rights": "write"}}}


class Log:
    """The lines of a running edge as objects; every one of them has to be one."""

    def __init__(self, edge: Running) -> None:
        self._edge = edge

    @property
    def events(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._edge.program.lines]
        assert all(list(event) == ["time", "level", "event", "member", "who", "message"] for event in found)
        return found

    async def event(self, name: str) -> dict[str, Any]:
        """The next one of that name."""
        await self._edge.program.line(f'"event":"{name}"')
        return self.events[-1]


async def test_what_is_done_is_logged_once_with_who_did_it(tmp_path: Path) -> None:
    async with running(tmp_path, admin=ADMIN, log="json") as edge:
        log = Log(edge)
        assert [event["event"] for event in log.events] == [
            "edge.start",
            "worker.start",
            "worker.start",
            "edge.listening",
            "edge.listening",
        ]
        status, body = await edge.admin_ask("PATCH", "/members/a", {"state": "drain", "weight": 5})
        assert (status, json.loads(body)["set_by"]) == (200, "kim 127.0.0.1")
        drained = await log.event("operator.drain")
        assert (drained["member"], drained["who"]) == ("a", "kim 127.0.0.1")
        weighed = await log.event("operator.weight")
        assert weighed["message"] == "the weight of a was set to 5, from 1"
        edge.program.signal(signal.SIGHUP)
        assert (await log.event("config.reload"))["who"] == "signal"
        await edge.admin_ask("POST", "/reload")
        assert (await log.event("config.reload"))["who"] == "kim 127.0.0.1"
        (worker, _) = edge.program.workers()
        os.kill(worker, signal.SIGKILL)
        assert (await log.event("worker.end"))["message"] == f"worker {worker} ended with signal 9"
        await log.event("worker.start")
        # The page has the same ones.
        _, body = await edge.admin_ask("GET", "/log")
        assert [event["message"] for event in json.loads(body)["events"]] == [
            event["message"] for event in log.events
        ]
        edge.write(admin=ADMIN, log="text", member={"weight": 7})
        changed = await edge.program.line("member.weight")
        assert changed == " [file] the weight of a changed from 5 to 7"
        reloaded = await edge.program.line(" info    config.reload ")
        assert reloaded == f"[file] reloaded {edge.file}"
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.line("edge.drain ")
        assert await edge.program.ended() == 0


async def test_what_several_workers_notice_is_one_event(tmp_path: Path) -> None:
    listen = [{"address": "127.0.0.1:0", "proxy_protocol": True}]
    async with running(tmp_path, listen=listen, log="json") as edge:
        log = Log(edge)

        async def refused() -> None:
            client = await RawClient.connect(edge.public)
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            await client.closed()
            await client.leave()

        await asyncio.gather(*(refused() for _ in range(40)))
        await log.event("proxy.header")
        bulk = await log.event("visitor.refused")
        assert bulk["message"].startswith("visitors were refused: proxy protocol ")
        edge.program.signal(signal.SIGTERM)
        assert await edge.program.ended() == 0
        names = [event["event"] for event in log.events]
        assert (names.count("proxy.header"), names.count("visitor.refused")) == (1, 1)


async def test_start_that_fails_is_an_event_in_the_form_of_the_config(tmp_path: Path) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("{log: json, listen: [{address: '192.0.2.1:1'}], members: {a: {url: 'http://a.test'}}}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedproxy", "serve", "--config", str(file)), stderr=PIPE
    )
    _, said = await process.communicate()
    events = [json.loads(line) for line in said.splitlines()]
    assert process.returncode == 1
    assert [event["event"] for event in events] == ["edge.start", "edge.failed"]
    assert events[1]["message"].startswith("cannot listen on 192.0.2.1:1: ")


async def test_what_workers_tell_in_floods_is_bounded() -> None:
    heard = Heard()
    service = Service(config_of("http://127.0.0.1:1"), events=heard)
    for number in range(200):
        service._common.happened(Event(EventName.MEMBER_UNRESOLVED, f"{number // 2}"))
    assert heard.said == [str(number) for number in range(50)]


async def test_what_differs_in_its_words_alone_is_told_once() -> None:
    heard = Heard()
    service = Service(config_of("http://127.0.0.1:1"), events=heard)
    for number in range(4):
        service._common.happened(Event(EventName.PROXY_ADDRESS, f"{number}", key=f"proxy {number // 2}"))
    assert heard.said == ["0", "2"]


async def test_refusals_of_the_admin_listener_are_told_in_bulk() -> None:
    heard = Heard()
    service = Service(config_of("http://127.0.0.1:1"), events=heard)
    for number in range(300):
        service.note_refusal(f"192.0.2.{number % 7}")
    (event,) = heard.named(EventName.OPERATOR_REFUSED)
    assert (event.who, event.message.startswith("an admin request was refused")) == ("192.0.2.0", True)
    service.history.flush(event.time + 61)
    assert heard.events[-1].message.startswith("299 admin requests were refused")
