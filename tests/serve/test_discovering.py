"""Members that come from sources, in a running edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from fedproxy.config.load import load, parse
from fedproxy.config.model import Config
from fedproxy.control import names
from fedproxy.decide.member import Intent
from fedproxy.errors import ConfigError, Fault
from fedproxy.event import Event
from fedproxy.proxy.explaining import Question
from fedproxy.serve import discovering
from fedproxy.serve.discovering import Discovery
from fedproxy.serve.service import Service
from tests.rig import RawClient, Scripted, answer, until
from tests.rig.names import NXDOMAIN, SRV, Reply, Zone, name_server
from tests.rig.running import running as processes
from tests.rig.service import TOKEN

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NAME = "_http._tcp.hubs.test"


class Edge:
    """An edge in this process, its folder of members, and a client of its admin listener."""

    def __init__(self, folder: Path, admin: aiohttp.ClientSession, service: Service) -> None:
        self.folder, self.admin, self.service = folder, admin, service

    def put(self, name: str, **settings: Any) -> None:
        file = self.folder / "members" / f".{name}.new"
        file.write_text(yaml.safe_dump(settings))
        file.rename(self.folder / "members" / f"{name}.yaml")

    def members(self) -> dict[str, str]:
        return {name: self.service.origin(name) for name in self.service.config.active_members}

    async def until_members(self, *names: str) -> None:
        await until(lambda: sorted(self.members()) == sorted(names), lambda: self.members(), within=20)
        served = self.service.federation.by_name
        assert sorted(served) == sorted(names)

    def events(self, name: str) -> list[str]:
        return [event.message for event in self.service.history.events if event.name == name]


@asynccontextmanager
async def running(folder: Path, **config: Any) -> AsyncIterator[Edge]:
    (folder / "members").mkdir(exist_ok=True)
    file = folder / "edge.yaml"
    base = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0", "token": "s3cret"},
        "workers": 1,
        "access_log": "off",
    }
    file.write_text(yaml.safe_dump(base | config))
    service = Service(load(file, {}), reread=lambda: load(file, {}), file=file, probe=False)
    await service.start()
    try:
        host, port = service.admin_address
        async with aiohttp.ClientSession(f"http://{host}:{port}", headers=TOKEN) as admin:
            yield Edge(folder, admin, service)
    finally:
        await service.stop()


@pytest.fixture
async def zone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Zone]:
    monkeypatch.setattr(discovering, "_APART", 0.05)
    monkeypatch.setattr(names, "_LONGEST_CHANNEL", 0.0)
    async with name_server() as zone:
        monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
        yield zone


def sources(folder: Path, **more: Any) -> dict[str, Any]:
    return {"sources": {"directory": str(folder / "members"), **more}}


async def test_members_of_all_sources_are_there_from_the_start(tmp_path: Path, zone: Zone) -> None:
    zone.replies[NAME, SRV] = Reply.services((0, 3, 8001, "a.test"), (0, 4, 8002, "b.test"))
    (tmp_path / "members").mkdir()
    for name in ("own", "f", "a.test"):
        (tmp_path / f"members/{name}.yaml").write_text("{url: http://folder.test, weight: 7}")
    own = {"members": {"own": {"url": "http://own.test"}}}
    async with running(tmp_path, **sources(tmp_path, dns=NAME, scheme="http"), **own) as edge:
        folder = f"directory: {tmp_path}/members"
        assert edge.members() == {
            "own": "config",
            "f": f"{folder}/f.yaml",
            "a.test": f"{folder}/a.test.yaml",
            "b.test": f"dns: {NAME}",
        }
        found = (await (await edge.admin.get("/members")).json())["members"]
        assert {each["name"]: (each["weight"], each["source"]) for each in found} == {
            "own": (1, "config"),
            "f": (7, f"{folder}/f.yaml"),
            "a.test": (7, f"{folder}/a.test.yaml"),
            "b.test": (4, f"dns: {NAME}"),
        }
        # What the file has is not what is in force.
        assert [*(await (await edge.admin.get("/config?own=true")).json())["members"]] == ["own"]
        assert len((await (await edge.admin.get("/config")).json())["members"]) == 4


async def test_edge_without_members_of_its_own_serves_those_that_come(tmp_path: Path, zone: Zone) -> None:
    async with running(tmp_path, **sources(tmp_path)) as edge:
        client = await RawClient.connect(("127.0.0.1", edge.service.addresses[0][1]))
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 503
        assert (await edge.admin.get("/health/ready")).status == 503
        hub = Scripted(answer(OK))
        await hub.start()
        edge.put("hub", url=hub.url)
        await edge.until_members("hub")
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).body == b"ok"
        assert edge.events("member.joined") == [
            f"hub joined the federation, from directory: {tmp_path}/members/hub.yaml"
        ]
        (tmp_path / "members/hub.yaml").unlink()
        await edge.until_members()
        assert edge.events("member.left") == ["hub left the federation"]
        assert (await client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 503
        await client.leave()
        await hub.stop()


async def test_records_that_change_are_members_that_join_and_leave(tmp_path: Path, zone: Zone) -> None:
    zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "a.test"))
    config = {"sources": {"dns": NAME, "scheme": "http", "keep": 0}}
    async with running(tmp_path, **config) as edge:
        await edge.until_members("a.test")
        zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "a.test"), (0, 1, 8001, "b.test"))
        await edge.until_members("a.test", "b.test")
        zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "b.test"))
        await edge.until_members("b.test")
        # An answer with nothing takes nobody away, and is said once.
        zone.replies[NAME, SRV] = Reply(code=NXDOMAIN)
        count = len(zone.asked)
        await until(lambda: len(zone.asked) > count + 1, "asked again", within=20)
        await until(lambda: edge.events("source.unusable"), "said", within=20)
        count = len(zone.asked)
        await until(lambda: len(zone.asked) > count + 1, "and again", within=20)
        assert list(edge.members()) == ["b.test"]
        text = f"{NAME}: it has no records; its last members stay"
        assert edge.events("source.unusable") == [text]
        zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "b.test"))
        await until(lambda: edge.events("source.usable"), "usable again", within=20)
        assert edge.events("source.usable") == [f"{NAME} can be used again"]


async def test_bad_file_is_said_with_its_place_and_keeps_its_member(tmp_path: Path, zone: Zone) -> None:
    async with running(tmp_path, **sources(tmp_path)) as edge:
        edge.put("a", url="https://a.test")
        edge.put("b", url="https://b.test", weight=2)
        await edge.until_members("a", "b")
        edge.put("b", url="https://b.test", weight=-2)
        await until(lambda: edge.events("source.unusable"), "said", within=20)
        (text,) = edge.events("source.unusable")
        at = f"{tmp_path}/members/b.yaml:2:9"
        expected = "weight: is -2, expected auto or a number of at least 0; its member stays as it was"
        assert text == f"{at}: {expected}"
        assert edge.service.config.members["b"].weight == 2
        edge.put("b", url="https://b.test", weight=3)
        await until(lambda: edge.service.config.members["b"].weight == 3, "read again", within=20)
        assert edge.events("source.usable") == [f"{tmp_path}/members/b.yaml can be used again"]
        assert edge.events("member.weight") == ["the weight of b changed from 2 to 3"]


async def test_member_that_does_not_fit_is_said_and_the_others_come(tmp_path: Path, zone: Zone) -> None:
    own = {"members": {"own": {"url": "http://own.test", "prime": True}}}
    async with running(tmp_path, **sources(tmp_path), **own) as edge:
        edge.put("a", url="https://a.test", prime=True)
        edge.put("b", url="https://b.test")
        await edge.until_members("own", "b")
        await until(lambda: edge.events("source.unusable"), "said", within=20)
        (text,) = edge.events("source.unusable")
        assert text.startswith(
            f"a, from directory: {tmp_path}/members/a.yaml, does not fit: prime: is true, but"
        )
        assert text.endswith("; it is left out")


async def test_set_that_does_not_fit_at_all_changes_nothing_and_says_why(tmp_path: Path, zone: Zone) -> None:
    config = {"members": {"own": {"url": "http://own.test"}}, "routes": [{"path": "/x", "to": "a"}]}
    (tmp_path / "members").mkdir()
    (tmp_path / "members/a.yaml").write_text("{url: https://a.test, active: false}")
    async with running(tmp_path, **sources(tmp_path), **config) as edge:
        # An edge has to start.
        assert list(edge.members()) == ["own"]
        text = "routes.0.to: is 'a', a past member, expected an active one"
        assert edge.events("source.refused") == [f"{text}; no member of a source is taken"]
        edge.put("b", url="https://b.test")
        await until(lambda: len(edge.events("source.refused")) > 1, "said", within=20)
        assert edge.events("source.refused")[1:] == [f"{text}; the members in force are kept"]
        assert list(edge.members()) == ["own"]
        edge.put("a", url="https://a.test")
        await edge.until_members("own", "a", "b")


async def test_what_operators_set_applies_over_what_was_found(tmp_path: Path, zone: Zone) -> None:
    async with running(tmp_path, **sources(tmp_path)) as edge:
        for name in "abc":
            edge.put(name, url=f"https://{name}.test", weight=5)
        await edge.until_members("a", "b", "c")
        await edge.admin.patch("/members/a", json={"weight": 2, "state": "drain"})
        assert (await edge.admin.delete("/members/b")).status == 204
        replaced = await edge.admin.put("/members/c", json={"url": "https://else.test"})
        assert (await replaced.json())["source"] == "operator"
        await edge.admin.put("/members/d", json={"url": "https://d.test"})
        edge.put("e", url="https://e.test")
        await edge.until_members("a", "c", "d", "e")
        assert edge.members()["d"] == "operator"
        service = edge.service
        assert (service.config.members["a"].weight, service.config.members["c"].url) == (
            2,
            "https://else.test",
        )
        assert service.federation.by_name["a"].intent is Intent.DRAIN
        # One that is away for a while is as it was set when it comes back.
        (tmp_path / "members/a.yaml").unlink()
        await edge.until_members("c", "d", "e")
        edge.put("a", url="https://a.test", weight=5)
        await edge.until_members("a", "c", "d", "e")
        assert service.config.members["a"].weight == 2
        assert service.federation.by_name["a"].intent is Intent.DRAIN
        # Whoever changes the file decides again.
        edge.put("c", url="https://c2.test")
        await until(lambda: service.config.members["c"].url == "https://c2.test", "the file", within=20)


async def test_explanation_says_where_a_member_comes_from(tmp_path: Path, zone: Zone) -> None:
    async with running(tmp_path, **sources(tmp_path)) as edge:
        edge.put("a", url="https://a.test")
        await edge.until_members("a")
        found = await (await edge.admin.post("/explain", json={"url": "/"})).json()
        assert (found["member"], found["origin"]) == ("a", f"directory: {tmp_path}/members/a.yaml")
        assert json.loads(await edge.service.explain(Question("/")) or "")["member"] == "a"


async def test_reload_takes_new_sources_and_lets_go_of_old_ones(tmp_path: Path, zone: Zone) -> None:
    zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "a.test"))
    async with running(tmp_path, members={"own": {"url": "http://own.test"}}) as edge:
        file = tmp_path / "edge.yaml"
        before = file.read_text()
        file.write_text(before + yaml.safe_dump({"sources": {"dns": [NAME], "scheme": "http"}}))
        changes = (await (await edge.admin.post("/reload?dry_run=true")).json())["changes"]
        assert "members.a.test" in [each["key"] for each in changes]
        assert list(edge.members()) == ["own"]
        assert (await edge.admin.post("/reload")).status == 200
        assert edge.members() == {"own": "config", "a.test": f"dns: {NAME}"}
        # A faulty config keeps the sources that are.
        file.write_text("nonsense")
        assert (await edge.admin.post("/reload")).status == 422
        assert len(edge.members()) == 2
        file.write_text(before)
        assert (await edge.admin.post("/reload")).status == 200
        assert list(edge.members()) == ["own"]
        count = len(zone.asked)
    assert len(zone.asked) == count


async def test_route_to_a_member_that_is_not_found_is_503(tmp_path: Path, zone: Zone) -> None:
    hub = Scripted(answer(OK))
    await hub.start()
    config = {
        "members": {"own": {"url": hub.url}},
        "routes": [{"path": "/x", "to": "later"}, {"path": "/p", "to": "prime"}],
    }
    async with running(tmp_path, **sources(tmp_path), **config) as edge:
        client = await RawClient.connect(("127.0.0.1", edge.service.addresses[0][1]))
        for path, status in ((b"/x", 503), (b"/p", 503), (b"/", 200)):
            assert (await client.ask(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)).status == status
        edge.put("later", url=hub.url, prime=True)
        await edge.until_members("own", "later")
        for path in (b"/x", b"/p"):
            assert (await client.ask(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)).status == 200
        await client.leave()
    await hub.stop()


async def test_edge_whose_sources_say_nothing_starts_all_the_same(
    tmp_path: Path, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovering, "_FIRST", 0.05)
    zone.down = True
    config = {"sources": {"directory": "/not/there", "dns": NAME}}
    async with running(tmp_path, members={"own": {"url": "http://own.test"}}, **config) as edge:
        assert list(edge.members()) == ["own"]
        assert edge.events("source.unusable") == [
            "/not/there cannot be read: No such file or directory; its last members stay"
        ]
        # What comes later joins.
        zone.down = False
        zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "a.test"))
        await edge.until_members("own", "a.test")


async def test_change_of_settings_loses_nobody_while_no_name_server_answers(
    tmp_path: Path, zone: Zone
) -> None:
    zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "a.test"))
    async with running(tmp_path, sources={"dns": NAME, "scheme": "http"}) as edge:
        zone.replies[NAME, SRV] = Reply()
        file = tmp_path / "edge.yaml"
        file.write_text(file.read_text().replace("scheme: http", "scheme: https"))
        assert (await edge.admin.post("/reload")).status == 200
        assert edge.service.config.members["a.test"].url == "http://a.test:8001"
        zone.replies[NAME, SRV] = Reply.services((0, 1, 8001, "b.test"))
        await edge.until_members("b.test")
        assert edge.service.config.members["b.test"].url == "https://b.test:8001"


async def test_workers_serve_who_joins(tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    folder = {"directory": str(tmp_path / "members")}
    async with processes(tmp_path, workers=2, sources=folder) as edge:
        new = tmp_path / "members/.b.new"
        new.write_text(f"url: {edge.hub.member.url}")
        new.rename(tmp_path / "members/b.yaml")
        await edge.program.line("b joined the federation, from directory: ")
        assert sorted(await edge.members()) == ["a", "b"]


# Without an edge


class Pauses:
    """Between two looks there are none; between two changes they wait for `go`. Both are counted."""

    def __init__(self) -> None:
        self.looks = self.changes = 0
        self.go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        if seconds == discovering._APART:
            self.changes += 1
            await self.go.wait()
        else:
            self.looks += 1
            await asyncio.sleep(0)


async def discovery_of(
    config: Config, adopt: Callable[[Discovery], list[Fault]] = lambda discovery: []
) -> tuple[Discovery, list[Event], Pauses]:
    events: list[Event] = []
    pauses = Pauses()

    async def adopted() -> list[Fault]:
        return adopt(discovery)

    discovery = Discovery(events.append, adopted, pauses)
    await discovery.start(config)
    return discovery, events, pauses


async def test_changes_are_put_in_force_at_a_bounded_rate(tmp_path: Path) -> None:
    config = parse(f"sources: {{directory: {tmp_path}}}", {})
    adopted: list[Discovery] = []

    def adopt(discovery: Discovery) -> list[Fault]:
        adopted.append(discovery)
        return []

    discovery, _, pauses = await discovery_of(config, adopt)
    (tmp_path / "a.yaml").write_text("url: https://a.test")
    await until(lambda: pauses.changes == 1, "put in force")
    (tmp_path / "b.yaml").write_text("url: https://b.test")
    looks = pauses.looks
    await until(lambda: pauses.looks > looks + 10, "looked at")
    assert len(adopted) == 1
    pauses.go.set()
    await until(lambda: len(adopted) > 1, "put in force after a while")
    await discovery.close()


async def test_what_does_not_fit_is_said_once(tmp_path: Path) -> None:
    config = parse(f"sources: {{directory: {tmp_path}}}", {})
    tries: list[int] = []

    def adopt(discovery: Discovery) -> list[Fault]:
        tries.append(1)
        return [Fault("members", "no")]

    discovery, events, pauses = await discovery_of(config, adopt)
    (tmp_path / "a.yaml").write_text("url: https://a.test")
    pauses.go.set()
    await until(lambda: len(tries) > 2, "tried again")
    assert [event.message for event in events] == ["members: no; the members in force are kept"]
    await discovery.close()


async def test_prepared_config_that_is_dropped_leaves_nothing_behind(tmp_path: Path, zone: Zone) -> None:
    before = asyncio.all_tasks()
    discovery, _, _ = await discovery_of(parse("members: {a: {url: 'http://a'}}", {}))
    prepared = await discovery.prepare(parse(f"sources: {{directory: {tmp_path}, dns: {NAME}}}", {}))
    await discovery.drop(prepared)
    (tmp_path / "a.yaml").write_text("{url: 'https://a.test', active: false}")
    text = f"{{sources: {{directory: {tmp_path}}}, routes: [{{path: /x, to: a}}]}}"
    with pytest.raises(ConfigError, match="a past member"):
        await discovery.prepare(parse(text, {}))
    await discovery.close()
    assert asyncio.all_tasks() == before
