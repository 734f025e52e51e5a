"""Both pages of a real edge with two workers: what the probes find and an operator does is known to all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.rig import Conn, Message, Scripted, edge, guard, per_request
from tests.rig.homes import cookie_of
from tests.rig.service import TOKEN, running

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
QUOTA = {"service": "Pod quota", "total_pods": 37, "build_pods": 1, "user_pods": 36, "quota": 60, "ok": True}


class Hub:
    """A member that says how it is: `health` to its probes, and its name to others."""

    def __init__(self) -> None:
        self.health: dict[str, Any] = {"ok": True, "checks": [QUOTA]}
        self.member = Scripted(per_request(self._serve))

    async def _serve(self, conn: Conn, request: Message) -> None:
        body = json.dumps(self.health).encode() if request.target == b"/health" else b"{}"
        conn.send(OK % (len(body), body))


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.member.start()
    yield hub
    await hub.member.stop()


async def comes(ask: Callable[[], Any], good: Callable[[str], bool]) -> str:
    """Asks until the answer is good."""
    async with guard():
        while not good(text := await ask()):
            pass
    return str(text)


async def test_pods_are_on_the_page_of_every_worker(hub: Hub, tmp_path: Path) -> None:
    async with (
        running(tmp_path, hub.member.url, probe=True) as (service, _),
        aiohttp.ClientSession() as session,
    ):
        url = "http://{}:{}/federation".format(*service.addresses[0])

        async def page() -> str:
            # A connection of its own meets any of the workers.
            async with session.get(url, headers={"Connection": "close"}) as response:
                return await response.text()

        await comes(page, lambda text: "<dd>37 of 60</dd>" in text)
        for _ in range(20):
            await comes(page, lambda text: "<dd>37 of 60</dd>" in text)


async def test_programs_are_told_by_every_worker_what_the_probes_found(hub: Hub, tmp_path: Path) -> None:
    registry = {"service": "Docker registry", "ok": False}
    hub.health = {"ok": False, "checks": [registry, {"service": "JupyterHub API", "ok": True}, QUOTA]}
    async with (
        running(tmp_path, hub.member.url, probe=True) as (service, _),
        aiohttp.ClientSession() as session,
    ):
        url = "http://{}:{}/federation.json".format(*service.addresses[0])

        async def document() -> str:
            async with session.get(url, headers={"Connection": "close"}) as response:
                return await response.text()

        for _ in range(20):
            told = await comes(document, lambda text: '"registry":false' in text)
            (old,) = json.loads(told)["members"]
            assert (old["response"], old["registry"], old["hub"]) == (True, False, True)
            assert (old["pods"], old["quota"]) == ({"user": 36, "build": 1}, 60)
            assert old["response_within"] > 0
        async with session.options(url, headers={"Access-Control-Request-Method": "GET"}) as asked:
            assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, "*")
        async with session.head(url) as head:
            assert (head.status, head.headers["Cache-Control"]) == (200, "public, max-age=5")
        # What only begins like it, the member serves.
        async with session.get(f"{url}x") as other:
            assert await other.text() == "{}"


async def test_what_happens_is_in_the_log(hub: Hub, tmp_path: Path) -> None:
    hub.health = {"ok": False, "checks": [{"service": "Docker registry", "ok": False}, QUOTA | {"quota": 40}]}
    async with running(tmp_path, hub.member.url, probe=True) as (service, admin):

        async def log() -> str:
            async with admin.get("/log") as response:
                return "\n".join(event["message"] for event in (await response.json())["events"])

        why = "37 pods and a headroom of 10 reach the quota of 40; reports that Docker registry is not ok"
        await comes(log, lambda text: f"old is unhealthy: {why}" in text)
        async with admin.patch("/members/old", json={"state": "drain"}, headers=TOKEN) as response:
            assert response.status == 200
        async with admin.get("/events"):
            # Somebody looks on, so that it does not take long.
            await comes(log, lambda text: "old was set to drain: no new visitors" in text)
        assert [event.level for event in service.history.about("old", 9)][-1] == "warning"


async def _serve(conn: Conn, request: Message) -> None:
    conn.send(OK % (2, b"ok"))


async def test_visitor_who_moves_is_with_that_member() -> None:
    members = {"a": per_request(_serve), "b": per_request(_serve)}
    async with edge(members) as running:
        for name in ("b", "a"):
            moved = await running.ask(
                b"POST /federation/move?member=%b HTTP/1.1\r\nHost: h\r\nOrigin: http://h\r\n"
                b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n"
                % name.encode(),
                "POST",
            )
            assert (moved.status, moved.value("location")) == (303, b"/federation")
            assert cookie_of(moved) == (name.encode(), False)
            cookie = moved.value("set-cookie") or b""
            jar = b"Cookie: " + cookie.partition(b";")[0]
            page = await running.ask(b"GET /federation HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % jar)
            assert b"You are with <strong>%b</strong>" % name.encode() in page.body
            await running.ask(b"GET /somewhere HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % jar)
            assert running.members[name].requests[-1].target == b"/somewhere"


async def test_visitor_who_speaks_http_1_0_and_names_no_host_gets_the_page() -> None:
    async with edge({"a": per_request(_serve)}) as running:
        for more in (b"", b"Connection: keep-alive\r\n"):
            page = await running.ask(b"GET /active_hosts HTTP/1.0\r\n" + more + b"\r\n")
            assert (page.status, page.value("content-type")) == (200, b"application/json; charset=utf-8")


@pytest.mark.parametrize(
    "said",
    [b"Sec-Fetch-Site: cross-site", b"Origin: null", b"Origin:", b"Origin: data:", b"Referer: http://x/"],
)
async def test_other_site_moves_nobody_through_the_edge(said: bytes) -> None:
    async with edge({"a": per_request(_serve)}) as running:
        refused = await running.ask(
            b"POST /federation/move?member=a HTTP/1.1\r\nHost: h\r\n%b\r\n"
            b"Content-Length: 5\r\n\r\na=b&c" % said,
            "POST",
        )
        assert (refused.status, refused.value("set-cookie")) == (403, None)
