"""Members whose names move: where their traffic goes, and how old a connection to them gets."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fedproxy.errors import NameFailed
from fedproxy.proxy.resolver import Resolver
from tests.rig import (
    Conn,
    Edge,
    Message,
    RawClient,
    Reply,
    Scripted,
    Zone,
    edge,
    guard,
    name_server,
    per_request,
    until,
)
from tests.rig.names import AAAA, NXDOMAIN, REFUSED, SERVFAIL, A

HEAD = b"Host: hub.test\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
STREAM = b"GET /stream HTTP/1.1\r\n" + HEAD
UPGRADE = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HEAD
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
NAME = "member.test"
# By the edge's clock: a name has expired by then, and what was held is held no more.
LATER, LONG_AFTER = 2.0, 8.0


async def handle(conn: Conn, request: Message) -> None:
    """Says which address was asked; streams and tunnels go on until the edge or the test ends them."""
    own = conn.writer.get_extra_info("sockname")[0].encode()
    if request.target == b"/stream":
        conn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(own), own))
        await conn.member.go_on.wait()  # type: ignore[attr-defined]
        conn.send(b"0\r\n\r\n")
    elif request.target == b"/ws":
        conn.send(SWITCHING)
        while data := await conn.reader.read(100):
            conn.send(data)
    else:
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(own), own))


class At(Scripted):
    """A member at one address, with TLS if there is a context."""

    def __init__(self, host: str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(per_request(handle), address=(host, port), tls=tls)
        self.go_on = asyncio.Event()


class Running:
    """An edge in front of a member with a name, at the addresses that `zone` says."""

    def __init__(self, edge_: Edge, zone: Zone, members: dict[str, At]) -> None:
        self.edge = edge_
        self.zone = zone
        self.members = members

    @property
    def core(self) -> Any:
        return self.edge.service.edge

    async def where(self, client: RawClient | None = None) -> str:
        """The address that answers a request."""
        response = await (client.ask(GET) if client else self.edge.ask(GET))
        assert response.status == 200
        return response.body.decode()

    async def stream_while_it_moves(self, **lives: int) -> RawClient:
        """A stream from the old address that has begun; then the name moves to the new one."""
        client = await self.edge.client()
        await client.send(STREAM)
        async with guard():
            await client.head()
            assert await client.chunk() == OLD.encode()
            self.zone.holds(NAME, NEW, **lives)
            await self.again()
        return client

    async def again(self, later: float = LATER) -> None:
        """The name expires, and is asked for again."""
        before = len(self.zone.asked)
        if self.core.resolver._channel is not None:
            # What c-ares keeps of answers without data is of an earlier second.
            self.core.resolver._channel.until = 0.0
        self.core.sweep(self.core.clock() + later)
        await until(lambda: len(self.zone.asked) > before, "the name is asked for")
        await self.asked()

    async def asked(self) -> None:
        names = self.core.resolver._names.values()
        await until(lambda: not any(name.asking for name in names), "there was an answer")


Start = Callable[..., Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    @asynccontextmanager
    async def run(
        *hosts: str, ttl: int = 0, tls: ssl.SSLContext | None = None, **overrides: Any
    ) -> AsyncIterator[Running]:
        """The name has the first of the addresses to begin with. There is a member at each of them."""
        members: dict[str, At] = {}
        async with name_server() as zone:
            monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
            port = 0
            try:
                for host in hosts:
                    members[host] = At(host, port, tls)
                    await members[host].start()
                    port = members[host].port
                zone.holds(NAME, hosts[0], ttl=ttl)
                scheme = "https" if tls else "http"
                async with edge({"a": f"{scheme}://{NAME}:{port}"}, **overrides) as running:
                    running.members.update(members)
                    yield Running(running, zone, members)
                    for member in members.values():
                        member.go_on.set()
            finally:
                for member in members.values():
                    await member.stop()

    return run


OLD, NEW, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


async def test_traffic_follows_a_name_that_moves_though_its_connection_is_in_steady_use(start: Start) -> None:
    async with start(OLD, NEW, ttl=1) as running:
        client = await running.edge.client()
        assert await running.where(client) == OLD
        running.zone.holds(NAME, NEW)
        async with guard():
            while await running.where(client) != NEW:
                await asyncio.sleep(0.05)
        for _ in range(5):
            assert await running.where(client) == NEW
        assert len(running.members[OLD].connections) == 1
        await until(lambda: not running.members[OLD].open, "the connection to the old address is closed")
        assert running.core.idle() == 1


async def test_connection_to_an_address_that_is_gone_takes_no_request_and_is_closed_soon(
    start: Start,
) -> None:
    async with start(OLD, NEW) as running:
        assert await running.where() == OLD
        running.zone.holds(NAME, NEW)
        await running.again()
        assert await running.where() == NEW
        assert running.core.idle() == 2
        running.core.sweep(running.core.clock() + LONG_AFTER)
        await until(lambda: not running.members[OLD].open, "it is closed")
        assert running.core.idle() == 1
        assert await running.where() == NEW
        assert len(running.members[NEW].connections) == 1


async def test_traffic_over_tls_follows_a_name_and_its_connections_are_kept(
    start: Start, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = {"a": {"ca": str(tmp_path / "ca.pem")}}
    async with start(OLD, NEW, tls=context, settings=settings) as running:
        assert [await running.where() for _ in range(3)] == [OLD] * 3
        running.zone.holds(NAME, NEW)
        await running.again()
        assert [await running.where() for _ in range(3)] == [NEW] * 3
        assert [len(member.connections) for member in running.members.values()] == [1, 1]


async def test_stream_to_an_address_that_is_gone_goes_on_and_its_connection_ends_with_it(
    start: Start,
) -> None:
    async with start(OLD, NEW) as running:
        client = await running.stream_while_it_moves()
        async with guard():
            running.core.sweep(running.core.clock() + LONG_AFTER)
            assert await running.where() == NEW
            running.members[OLD].go_on.set()
            assert await client.chunk() == b""
            await client.line()
        await until(lambda: not running.members[OLD].open, "the connection is closed")
        assert await running.where(client) == NEW


async def test_tunnel_to_an_address_that_is_gone_goes_on(start: Start) -> None:
    async with start(OLD, NEW) as running:
        client = await running.edge.client()
        assert (await client.ask(UPGRADE)).status == 101
        running.zone.holds(NAME, NEW)
        await running.again()
        running.core.sweep(running.core.clock() + LONG_AFTER)
        assert await running.where() == NEW
        await client.send(b"hello")
        async with guard():
            assert await client.exactly(5) == b"hello"


async def test_name_that_moves_back_is_followed_back(start: Start) -> None:
    async with start(OLD, NEW) as running:
        for _ in range(3):
            for address in (OLD, NEW):
                running.zone.holds(NAME, address, ttl=0)
                await running.again()
                assert await running.where() == address
        assert [len(member.connections) for member in running.members.values()] == [1, 1]


async def test_rotating_answers_make_no_more_connections_than_there_are_addresses(start: Start) -> None:
    async with start(OLD, NEW, THIRD) as running:
        sets = [(OLD,), (NEW,), (THIRD,), (OLD, NEW), (THIRD, OLD)]
        running.zone.rotate = [Reply.of(*each, ttl=0) for each in sets]
        for _ in range(20):
            await running.again()
            await running.where()
        assert [len(member.connections) for member in running.members.values()] == [1, 1, 1]


async def test_busy_connection_of_a_rotating_name_is_used_again_when_its_address_comes_back(
    start: Start,
) -> None:
    async with start(OLD, NEW) as running:
        client = await running.stream_while_it_moves(ttl=0)
        async with guard():
            running.members[OLD].go_on.set()
            assert await client.chunk() == b""
            await client.line()
        await until(lambda: running.core.idle() == 1, "it waits")
        assert await running.where() == NEW
        running.zone.holds(NAME, OLD, ttl=0)
        await running.again()
        assert await running.where() == OLD
        assert len(running.members[OLD].connections) == 1


BAD = {
    "SERVFAIL": Reply(code=SERVFAIL),
    "NXDOMAIN": Reply(code=NXDOMAIN),
    "REFUSED": Reply(code=REFUSED),
    "no data": Reply(),
    "silence": Reply(silent=True),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_failed_or_empty_answer_drops_no_address(start: Start, bad: Reply) -> None:
    async with start(OLD) as running:
        client = await running.edge.client()
        assert await running.where(client) == OLD
        running.zone.replies = {(NAME, A): bad, (NAME, AAAA): bad}
        for _ in range(2 if bad.silent else 4):
            await running.again()
        assert await running.where(client) == OLD
        assert len(running.members[OLD].connections) == 1
        running.core.close_idle_upstreams()
        assert await running.where(client) == OLD
        assert len(running.members[OLD].connections) == 2
        said = [event.message for event in running.edge.service.history.events]
        assert [text.startswith(f"{NAME} does not resolve any more") for text in said].count(True) == 1


async def test_no_request_waits_for_a_name_server_that_is_silent(start: Start) -> None:
    async with start(OLD) as running:
        client = await running.edge.client()
        assert await running.where(client) == OLD
        running.zone.down = True
        running.core.sweep(running.core.clock() + LATER)
        (name,) = running.core.resolver._names.values()
        asking = name.asking
        running.core.close_idle_upstreams()
        assert await running.where(client) == OLD
        assert name.asking is asking is not None
        await running.asked()


async def test_name_is_asked_for_once_however_many_wait(start: Start) -> None:
    async with start(OLD) as running:
        clients = [await running.edge.client() for _ in range(10)]
        assert await asyncio.gather(*(running.where(client) for client in clients)) == [OLD] * 10
        assert running.zone.asked == [(NAME, A), (NAME, AAAA)]


async def test_alias_that_moves_is_followed_however_long_its_addresses_live(start: Start) -> None:
    async with start(OLD, NEW) as running:
        running.zone.replies[NAME, A] = Reply.alias("old.test", OLD, ttl=0, of_address=3600)
        assert await running.where() == OLD
        running.zone.replies[NAME, A] = Reply.alias("new.test", NEW, ttl=0, of_address=3600)
        await running.again()
        assert await running.where() == NEW


SIX = "::1"


@pytest.mark.parametrize("bad", [Reply(code=SERVFAIL), Reply(silent=True), Reply(code=REFUSED)])
async def test_family_that_cannot_be_asked_for_is_kept(start: Start, bad: Reply) -> None:
    async with start(SIX, OLD) as running:
        running.zone.holds(NAME, SIX, OLD, ttl=0)
        assert await running.where() == SIX
        running.zone.replies[NAME, AAAA] = bad
        for _ in range(1 if bad.silent else 4):
            await running.again()
        assert await running.where() == SIX
        assert len(running.members[SIX].connections) == 1
        (name,) = running.core.resolver._names.values()
        assert set(name.addresses.current) == {SIX, OLD}


async def test_family_that_comes_when_it_is_asked_for_alone_is_kept(start: Start) -> None:
    async with start(SIX, OLD) as running:
        running.zone.holds(NAME, SIX, OLD, ttl=60)
        (name,) = running.core.resolver._names.values()
        resolver = running.core.resolver
        assert await running.where() == SIX
        query = resolver._query

        async def half(name: Any, family: int) -> Any:
            return ([OLD], 60.0) if not family else await query(name, family)

        resolver._query = half
        for _ in range(5):
            name.expires = 0.0
            resolver.sweep(running.core.clock())
            await running.asked()
        assert name.addresses.current == (OLD, SIX)
        assert not name.addresses.unsure


async def test_family_that_the_name_has_no_more_is_left_after_three_answers(start: Start) -> None:
    async with start(SIX, OLD) as running:
        running.zone.holds(NAME, SIX, OLD, ttl=0)
        assert await running.where() == SIX
        running.zone.holds(NAME, OLD, ttl=0)
        for _ in range(2):
            await running.again()
            assert await running.where() == SIX
        await running.again()
        assert await running.where() == OLD


async def test_member_that_leaves_is_asked_for_no_more(start: Start) -> None:
    async with start(OLD) as running:
        assert await running.where() == OLD
        resolver = running.core.resolver
        (pool,) = running.core.pools.values()
        assert resolver._names
        pool.close()
        assert not resolver._names
        pool.name = resolver.follow(NAME, 1, pool.sort)


async def test_nothing_that_the_resolver_keeps_of_an_answer_outlives_a_second() -> None:
    async with name_server() as zone:
        now = 0.0
        resolver = Resolver(lambda: now, [zone.address])
        zone.holds("a.test", OLD)
        await resolver.resolve("a.test", 80)
        first = resolver._channel
        assert first is not None
        with pytest.raises(NameFailed):
            await resolver.resolve("b.test", 80)
        # A channel takes a thread and files, so what is asked within a second shares one.
        assert resolver._channel is first
        zone.holds("b.test", NEW)
        now = 2.0
        assert [info[4] for info in await resolver.resolve("b.test", 80)] == [(NEW, 80)]
        second = resolver._channel
        assert second is not first
        assert first.dns._closed
        await resolver.close()
        assert second is not None
        assert second.dns._closed


async def test_closing_ends_questions_about_names_that_nobody_follows_any_more() -> None:
    async with name_server() as zone:
        zone.replies["a.test", A] = Reply(silent=True)
        resolver = Resolver(lambda: 0.0, [zone.address])
        watcher = zone.asked.clear
        name = resolver.follow("a.test", 80, watcher)
        assert name is not None
        resolver.sweep(0.0)
        await until(lambda: zone.asked, "it is asked for")
        asking = name.asking
        resolver.leave(name, watcher)
        await resolver.close()
        assert asking is not None
        assert asking.cancelled()


# -- age


class Aged:
    """The edge's clock, which can be put forward."""

    def __init__(self, running: Edge) -> None:
        self.passed = 0.0
        running.service.edge.clock = lambda: time.monotonic() + self.passed


class OnSocket(Scripted):
    """A member on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(per_request(ok))
        self.path = path

    @property
    def url(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(self._protocol, str(self.path))


@pytest.mark.parametrize("where", ["address", "socket"])
async def test_connection_that_is_too_old_takes_no_other_request(where: str, tmp_path: Path) -> None:
    member = OnSocket(tmp_path / "member") if where == "socket" else Scripted(per_request(ok))
    timeouts = {"connection_age": "10s", "keepalive": "1h"}
    async with edge(member, timeouts=timeouts) as running:
        clock = Aged(running)
        client = await running.client()
        for passed, connections in ((0, 1), (7, 1), (11, 2), (18, 2), (22, 3)):
            clock.passed = passed
            running.service.edge.sweep(running.service.edge.clock())
            assert (await client.ask(GET)).body == b"ok"
            assert len(member.connections) == connections, passed
        await until(lambda: member.open == 1, "the others are closed")


async def ok(conn: Conn, request: Message) -> None:
    conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def test_connection_in_steady_use_ends_at_its_age(start: Start) -> None:
    async with start(OLD, timeouts={"connection_age": "10s"}) as running:
        clock = Aged(running.edge)
        client = await running.edge.client()
        assert await running.where(client) == OLD
        clock.passed = 11
        # No sweep in between: it is closed as it is released.
        assert await running.where(client) == OLD
        assert await running.where(client) == OLD
        assert len(running.members[OLD].connections) == 2


async def test_stream_on_a_connection_that_is_too_old_goes_on(start: Start) -> None:
    async with start(OLD, timeouts={"connection_age": "10s"}) as running:
        clock = Aged(running.edge)
        client = await running.edge.client()
        await client.send(STREAM)
        async with guard():
            await client.head()
            await client.chunk()
            clock.passed = 11
            running.core.sweep(running.core.clock())
            running.members[OLD].go_on.set()
            assert await client.chunk() == b""
            await client.line()
        await until(lambda: not running.members[OLD].open, "the connection is closed")


async def test_connections_made_together_do_not_all_end_together(start: Start) -> None:
    async with start(OLD, timeouts={"connection_age": "100s"}) as running:
        clients = [await running.edge.client() for _ in range(20)]
        for client in clients:
            await client.send(STREAM)
        await until(lambda: running.members[OLD].has(requests=20), "all are there")
        (pool,) = running.core.pools.values()
        ages = sorted(each.ends_at - each.born for each in pool.connections)
        assert 80 <= ages[0] < ages[-1] <= 100
        assert ages[-1] - ages[0] > 2


async def test_age_of_zero_is_no_limit(start: Start) -> None:
    async with start(OLD, timeouts={"connection_age": 0, "keepalive": "1000h"}) as running:
        clock = Aged(running.edge)
        client = await running.edge.client()
        for passed in (0, 1e5, 1e6):
            clock.passed = passed
            running.core.sweep(running.core.clock())
            assert await running.where(client) == OLD
        assert len(running.members[OLD].connections) == 1
