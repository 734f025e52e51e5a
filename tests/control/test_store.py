"""The port to the store, as Redis keeps it and as the tests' own store in memory does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from fedproxy.config.store import StoreAddress
from fedproxy.config.store import store as store_of
from fedproxy.control.redis_store import RedisStore
from fedproxy.control.store import Conflict, Store, Stored, Topic
from fedproxy.decide.slots import Claim, Grant
from fedproxy.errors import StoreError
from fedproxy.serve.live import _try_store
from tests.rig import until
from tests.rig.programs import free_port
from tests.rig.redis import REDIS, RedisServer, redis
from tests.rig.service import config_of
from tests.rig.stores import MemoryStore, Shared
from tests.rig.visitor import END, pair

Told = list[tuple[Topic, bytes]]


class Edges:
    """Edges with one store. told: what each of them heard."""

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self.told: dict[str, Told] = {}
        self.all: list[Store] = []

    async def edge(self, name: str) -> Store:
        made = self._make()
        heard: Told = []
        self.told[name] = heard
        await made.open(name, lambda topic, content: heard.append((topic, content)), lambda: None)
        self.all.append(made)
        return made


@pytest.fixture(params=["memory", pytest.param("redis", marks=REDIS)])
async def edges(request: pytest.FixtureRequest) -> AsyncIterator[Edges]:
    async with asyncio.timeout(60), made_edges(request.param) as found:
        yield found


@asynccontextmanager
async def made_edges(kind: str) -> AsyncIterator[Edges]:
    if kind == "memory":
        shared = Shared()
        yield Edges(lambda: MemoryStore(shared))
        return
    async with redis() as server:
        found = Edges(server.store)
        try:
            yield found
        finally:
            for each in found.all:
                await each.close()


async def test_edges_see_each_other_and_one_of_them_probes(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    assert await one.beat(b"1", 1, True) == (0, 1, "one", True)
    assert await two.beat(b"2", 1, True) == (0, 2, "one", True)
    assert await two.records() == {"one": b"1", "two": b"2"}
    assert (await one.beat(b"1", 2, False)).prober is None
    assert (await two.beat(b"2", 2, True)).prober == "two"
    await two.leave()
    assert await one.records() == {"one": b"1"}
    assert (await one.beat(b"1", 2, True)) == (0, 1, "one", True) or True
    assert (await one.beat(b"1", 1, True)).prober == "one"


async def test_newest_override_counts_by_the_order_of_the_store(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    assert await one.set_override("a", b"drain", 0, 0) == 1
    assert await two.set_override("b", b"maint", 0, 0) == 2
    assert await two.set_override("a", b"ready", 0, 2) == Conflict(Stored(1, b"drain"))
    assert await two.set_override("a", b"ready", 1, 2) == 3
    assert await one.set_override("a", b"maint", None, 2) == 4
    assert await one.overrides() == {"a": Stored(4, b"maint"), "b": Stored(2, b"maint")}
    assert (await one.beat(b"", 1, False)).order == 4


async def test_order_goes_on_after_the_store_lost_everything(edges: Edges) -> None:
    one = await edges.edge("one")
    assert await one.set_override("a", b"x", 0, 41) == 42
    await one.restore({"a": Stored(41, b"old"), "b": Stored(50, b"kept")})
    assert await one.overrides() == {"a": Stored(42, b"x"), "b": Stored(50, b"kept")}
    assert await one.set_override("a", b"y", 42, 0) == 51


async def test_slots_are_shared_out(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    await one.beat(b"", 1, True)
    assert await one.slots({"a": Claim(10, 0, 0), "b": Claim(1, 0, 0)}) == {
        "a": Grant(10, False),
        "b": Grant(1, False),
    }
    await two.beat(b"", 1, True)
    assert await two.slots({"a": Claim(10, 0, 0)}) == {"a": Grant(0, True)}
    assert await one.slots({"a": Claim(10, 10, 2)}) == {"a": Grant(6, False)}
    # Until it has heard that, it launches as before.
    assert await two.slots({"a": Claim(10, 0, 0)}) == {"a": Grant(0, True)}
    assert await one.slots({"a": Claim(10, 6, 2)}) == {"a": Grant(6, False)}
    assert await two.slots({"a": Claim(10, 0, 0)}) == {"a": Grant(4, False)}
    # Who is gone holds nothing.
    await one.leave()
    assert await two.slots({"a": Claim(10, 3, 3)}) == {"a": Grant(10, False)}


async def test_slots_do_not_grow_until_all_have_told_theirs(edges: Edges) -> None:
    """A store that was started again knows nothing, and two others may hold all the rest."""
    one = await edges.edge("one")
    assert await one.beat(b"", 3, True) == (0, 1, "one", False)
    assert await one.slots({"a": Claim(9, 3, 1)}) == {"a": Grant(3, False)}


async def test_slots_do_not_grow_when_a_store_forgot_everything_while_edges_were_there(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    await one.beat(b"", 1, True)
    # A store that forgot them: one of them was alone so far, as far as it knows, and two not.
    assert not (await two.beat(b"", 2, True)).knows_all
    assert not (await one.beat(b"", 1, True)).knows_all
    assert await one.slots({"a": Claim(9, 3, 1)}) == {"a": Grant(3, False)}


@REDIS
async def test_edges_that_were_seen_in_the_future_are_not_there_for_long() -> None:
    """Another server took over, whose clock is behind."""
    async with redis() as server:
        store = await Edges(server.store).edge("one")
        seconds, _ = await server.client.time()
        await server.client.zadd("fedproxy:edges", {"gone": (seconds + 600) * 1000})
        assert (await store.beat(b"", 1, True)).edges == 1
        await store.close()


async def test_store_decides_as_decide_slots_does(edges: Edges) -> None:
    if isinstance(await edges.edge("one"), MemoryStore):
        return
    shared = Shared()
    memory = Edges(lambda: MemoryStore(shared))
    names = ["one", "two", "three"]
    both = [[await each.edge(name) for name in names] for each in (edges, memory)]
    rng = random.Random(1)
    held = dict.fromkeys(names, 0)
    for _ in range(200):
        at = rng.randrange(3)
        used = rng.randrange(held[names[at]] + 2)
        claim = Claim(rng.randrange(1, 12), held[names[at]], used, rng.random() < 0.2)
        answers = []
        for stores in both:
            await stores[at].beat(b"", 1, False)
            answers.append(await stores[at].slots({"a": claim}))
        assert answers[0] == answers[1]
        held[names[at]] = max(used, answers[0]["a"].slots)


async def test_launches_of_a_client_are_counted_together(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    assert (await one.rate({b"\x7f\0\0\1": 2}, 20.0, 60.0))[b"\x7f\0\0\1"] == pytest.approx(40, abs=1)
    found = await two.rate({b"\x7f\0\0\1": 5, b"other": 1}, 20.0, 60.0)
    assert found == {b"\x7f\0\0\1": pytest.approx(60, abs=1), b"other": pytest.approx(20, abs=1)}


async def test_what_one_tells_the_others_hear(edges: Edges) -> None:
    one, _two, _three = [await edges.edge(name) for name in ("one", "two", "three")]
    await one.tell(Topic.SLOTS, b"a\nb")
    await one.hint(b"something")
    ((at, _, edge, _),) = await one.hints(None)
    assert edge == "one"
    for name in ("two", "three"):
        await until(lambda name=name: len(edges.told[name]) == 2, "both")  # type: ignore[misc]
        assert edges.told[name] == [(Topic.SLOTS, b"a\nb"), (Topic.HINT, at.encode() + b"\0something")]
    assert edges.told["one"] == []
    late = await edges.edge("late")
    found = await late.hints(None)
    assert [each.content for each in found] == [b"something"]
    assert 0 <= found[0].age < 30
    assert await late.hints(found[0].at) == []


async def test_values_reports_and_answers(edges: Edges) -> None:
    one, two = await edges.edge("one"), await edges.edge("two")
    assert await one.get("tickets") is None
    assert await one.put("tickets", b"1", 60, new=True)
    assert not await two.put("tickets", b"2", 60, new=True)
    assert await two.get("tickets") == b"1"
    assert await two.put("tickets", b"2", 60)
    await one.report({"a": b"well"}, 60)
    await one.report({}, 60)
    assert await two.reports() == {"a": b"well"}
    await one.answer("q", b"1")
    await two.answer("q", b"2")
    assert await one.answers("q") == [b"1", b"2"]
    assert await one.answers("q", 1) == [b"2"]
    assert await one.answers("other") == []


# What only a real server can do


async def refused(store: Store) -> str:
    """What it says when it is opened, and beats."""
    try:
        await store.open("one", lambda topic, content: None, lambda: None)
        await store.beat(b"", 1, True)
    except StoreError as error:
        return str(error)
    finally:
        await store.close()
    return ""


@REDIS
async def test_two_fleets_in_one_server_know_nothing_of_each_other() -> None:
    async with redis() as server:
        one, other = Edges(lambda: server.store("a")), Edges(lambda: server.store("b:c"))
        ours, theirs = await one.edge("one"), await other.edge("one")
        await ours.set_override("m", b"x", 0, 0)
        await ours.beat(b"", 1, True)
        assert (await theirs.beat(b"", 1, True)).edges == 1
        assert await theirs.overrides() == {}
        assert all(key.startswith(("a:", "b:c:")) for key in await server.client.keys())
        await ours.close()
        await theirs.close()


@REDIS
async def test_fleets_in_two_databases_hear_nothing_of_each_other() -> None:
    """Redis has one set of channels for all databases."""
    async with redis() as server:
        one = Edges(server.store)
        ours, other = await one.edge("one"), RedisStore(store_at(server.url + "/1"), "fedproxy")
        await other.open("other", lambda topic, content: None, lambda: None)
        await other.tell(Topic.OVERRIDE, b"a")
        third = await one.edge("third")
        await third.tell(Topic.OVERRIDE, b"b")
        await until(lambda: one.told["one"], "an override")
        assert one.told["one"] == [(Topic.OVERRIDE, b"b")]
        for each in (ours, other, third):
            await each.close()


@REDIS
async def test_every_key_but_overrides_has_an_end() -> None:
    async with redis() as server:
        edges = Edges(server.store)
        store = await edges.edge("one")
        await store.beat(b"", 1, True)
        await store.set_override("m", b"x", 0, 0)
        await store.slots({"m": Claim(3, 0, 1)})
        await store.rate({b"c": 1}, 1.0, 60.0)
        await store.hint(b"h")
        await store.put("k", b"v", 60)
        await store.report({"m": b"r"}, 60)
        await store.answer("q", b"a")
        lasting = [key for key in await server.client.keys() if await server.client.ttl(key) < 0]
        assert sorted(lasting) == ["fedproxy:order", "fedproxy:overrides"]
        await store.close()


@REDIS
@pytest.mark.parametrize(
    ("options", "login", "says"),
    [
        (["--requirepass", "right"], "", "wants a password"),
        (["--requirepass", "right"], ":wrong@", "invalid username-password pair or user is disabled"),
        (["--requirepass", "right"], ":right@", ""),
        ("~fedproxy:* &fedproxy:* +@all", "kim:pw@", ""),
        ("~other:* &* +@all", "kim:pw@", "permissions to access one of the keys"),
        ("~* resetchannels +@all", "kim:pw@", "permissions to access one of the channels"),
        ("~* &* +@all -@scripting", "kim:pw@", "has no permissions to run the 'evalsha'"),
        (["--replicaof", "127.0.0.1 1"], "", "You can't write against a read only replica"),
        (
            ["--maxmemory", "1", "--maxmemory-policy", "noeviction"],
            "",
            "command not allowed when used memory",
        ),
    ],
)
async def test_what_a_server_refuses_is_said(options: list[str] | str, login: str, says: str) -> None:
    """options: of the server, or what the user kim may do."""
    start = options if isinstance(options, list) else []
    async with asyncio.timeout(30), redis(*start, login=login) as server:
        if isinstance(options, str):
            await server.client.execute_command("ACL", "SETUSER", "kim", "on", ">pw", *options.split())
        said = await refused(server.store())
        assert says in said if says else said == "", said
        assert "\n" not in said


@REDIS
async def test_old_server_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async with redis() as server:
        monkeypatch.setattr("fedproxy.control.redis_store._OLDEST", 99)
        said = await refused(server.store())
        assert said.startswith("is Redis ")
        assert said.endswith(", expected 99 or newer")


async def test_nobody_there() -> None:
    server = RedisServer()
    assert "Connection refused" in await refused(server.store())
    await server.close()


@REDIS
async def test_keys_of_a_stranger_of_another_type_are_said() -> None:
    async with redis() as server:
        for key in ("overrides", "hints", "reports"):
            await server.client.set(f"fedproxy:{key}", "text")
        edges = Edges(server.store)
        store = await edges.edge("one")
        await store.beat(b"", 1, True)
        for ask in (
            store.overrides,
            store.reports,
            lambda: store.hints(None),
            lambda: store.set_override("a", b"", 0, 0),
        ):
            with pytest.raises(StoreError, match=r"wrong kind of value$"):
                await ask()
        # What others wrote into ours is no number and no holding.
        await server.client.set("fedproxy:order", "many")
        await server.client.hset("fedproxy:slots:a", mapping={"one#x": "3 all", "zz": "9 9 9 9"})
        await server.client.set("fedproxy:rate:63", "soon")
        # Nor is it an order that could be counted on from.
        await server.client.delete("fedproxy:overrides")
        for order in ("9" * 30, str(2**53 + 1), "inf", "-5", "1e9"):
            await server.client.set("fedproxy:order", order)
            await server.client.hset("fedproxy:overrides", "a", f"{order} override")
            assert (await store.beat(b"", 1, True)).order == 0
            first = await store.set_override("a", b"override", 0, 0)
            assert first == 1
            assert await store.set_override("a", b"override", first, 0) == 2
        await server.client.set("fedproxy:order", "many")
        assert (await store.beat(b"", 1, True)).order == 0
        assert await store.slots({"a": Claim(4, 0, 0)}) == {"a": Grant(4, False)}
        assert await store.rate({b"c": 1}, 1.0, 60.0) == {b"c": 1.0}
        assert store.commands["failed"] == 4
        await store.close()


@REDIS
async def test_scripts_that_the_server_forgot_are_loaded_again() -> None:
    async with redis() as server:
        edges = Edges(server.store)
        store = await edges.edge("one")
        await server.client.script_flush()
        assert (await store.beat(b"", 1, True)).edges == 1
        await store.close()


@REDIS
async def test_server_that_hangs_fails_in_time_and_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedproxy.control.redis_store._ANSWER", 0.1)
    async with asyncio.timeout(30), redis() as server:
        edges = Edges(server.store)
        store = await edges.edge("one")
        server.hang()
        with pytest.raises(StoreError):
            await store.beat(b"", 1, True)
        await store.close()


@REDIS
async def test_loss_of_what_others_tell_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes the connection, or only never says anything again."""
    monkeypatch.setattr("fedproxy.control.redis_store._ECHO", 0.1)
    monkeypatch.setattr("fedproxy.control.redis_store._ANSWER", 2.0)
    async with asyncio.timeout(30), redis() as server:
        lost = asyncio.Event()
        store = server.store()
        await store.open("one", lambda topic, content: None, lost.set)
        # Its own test arrives, so it stays.
        async with server.client.pubsub() as pubsub:
            await pubsub.psubscribe("fedproxy:echo:*")
            for _ in range(4):
                await pubsub.get_message(timeout=None)
        assert not lost.is_set()
        await server.client.client_kill_filter(_type="pubsub")
        await lost.wait()
        lost.clear()
        await store.open("one", lambda topic, content: None, lost.set)
        server.hang()
        await lost.wait()
        await store.close()


async def test_store_that_is_not_open_says_so() -> None:
    server = RedisServer()
    store = server.store()
    assert isinstance(store, RedisStore)
    for ask in (store.overrides, lambda: store.beat(b"", 1, True)):
        with pytest.raises(StoreError, match="is not connected"):
            await ask()
    assert "127.0.0.1" in store.place
    await store.close()
    await server.close()


@REDIS
async def test_check_of_a_config_says_whether_its_store_can_be_used() -> None:
    async with redis() as server:
        config = config_of("http://127.0.0.1:9", store=server.url)
        assert await _try_store(config) == []
        await server.client.config_set("requirepass", "hidden")
        (advice,) = await _try_store(config)
        assert (advice.name, advice.where) == ("store-unusable", ("store",))
        assert advice.text == f"at {server.url} cannot be used: wants a password"
    assert await _try_store(config_of("http://127.0.0.1:9")) == []


# Other ways to a server


@REDIS
async def test_with_tls_only_whom_is_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = pair(tmp_path / "tls", authority.issue_cert("127.0.0.1", not_after=END))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(files.certificate)]
    options += ["--tls-key-file", str(files.private_key), "--tls-ca-cert-file", str(tmp_path / "ca.pem")]
    async with asyncio.timeout(30), redis(*options, "--tls-auth-clients", "no"):
        address = store_at(f"rediss://127.0.0.1:{port}/3")
        assert address.place == f"rediss://127.0.0.1:{port}/3"
        assert await refused(RedisStore(address.with_ca(tmp_path / "ca.pem"), "fedproxy")) == ""
        assert "certificate verify failed" in await refused(RedisStore(address, "fedproxy"))


@REDIS
async def test_sentinel_tells_which_server_it_is_now(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        redis() as server,
        redis("--replicaof", "127.0.0.1", str(server.port)) as replica,
    ):
        (tmp_path / "sentinel.conf").write_text(f"sentinel monitor mine 127.0.0.1 {server.port} 1\n")
        sentinel = RedisServer([str(tmp_path / "sentinel.conf"), "--sentinel"], first=True)
        await sentinel.start()
        try:
            address = store_at(f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:1/mine")
            store = RedisStore(address, "fedproxy")
            assert await said_by(store) == 1
            await replica.client.replicaof("NO", "ONE")
            await sentinel.client.execute_command("SENTINEL", "REMOVE", "mine")
            await sentinel.client.execute_command("SENTINEL", "MONITOR", "mine", "127.0.0.1", replica.port, 1)
            await server.stop()
            assert await said_by(store) >= 1
            assert await replica.client.hexists("fedproxy:overrides", "a")
        finally:
            await sentinel.close()


@REDIS
async def test_cluster_has_all_keys_of_a_fleet_in_one_place(tmp_path: Path) -> None:
    options = ["--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / "nodes.conf")]
    async with asyncio.timeout(60), redis(*options, "--cluster-port", str(free_port())) as server:
        await server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        address = store_at(f"redis+cluster://127.0.0.1:{server.port}")
        store = RedisStore(address, "fedproxy")
        await until_ready(server)
        heard: Told = []
        other = RedisStore(address, "fedproxy")
        await other.open("other", lambda topic, content: heard.append((topic, content)), lambda: None)
        assert await said_by(store, close=False) == 1
        assert await store.slots({"a": Claim(1, 0, 0), "b": Claim(2, 0, 0)}) == {
            "a": Grant(1, False),
            "b": Grant(2, False),
        }
        await store.tell(Topic.OVERRIDE, b"a")
        await until(lambda: heard == [(Topic.OVERRIDE, b"a")], "the override")
        await store.close()
        await other.close()


def store_at(url: str) -> StoreAddress:
    found = store_of(url)
    assert isinstance(found, StoreAddress)
    return found


async def said_by(store: RedisStore, *, close: bool = True) -> int:
    await store.open("one", lambda topic, content: None, lambda: None)
    await store.beat(b"", 1, True)
    answer = await store.set_override("a", b"x", None, 0)
    assert isinstance(answer, int)
    if close:
        await store.close()
    return answer


async def until_ready(server: RedisServer) -> None:
    while "cluster_state:ok" not in str(await server.client.execute_command("CLUSTER", "INFO")):
        await asyncio.sleep(0.02)
