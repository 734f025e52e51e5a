"""Members whose names have several addresses: each has its own connections and its own failures."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import pytest
import trustme

from fedproxy.decide.snapshot import AddressState
from tests.rig import (
    Conn,
    Edge,
    Message,
    RawClient,
    Scripted,
    Zone,
    blackhole,
    edge,
    guard,
    name_server,
    until,
)
from tests.rig.faults import AT_ONCE

NAME = "member.test"
ONE, TWO, THREE, SIX = "127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"
HEAD = b" HTTP/1.1\r\nHost: hub.test\r\n\r\n"
GET, STREAM = b"GET /" + HEAD, b"GET /stream" + HEAD
POST = b"POST / HTTP/1.1\r\nHost: hub.test\r\nContent-Length: 5\r\n\r\nhello"
LATER = 61.0  # seconds: nothing is aside for longer than a minute


class At(Scripted):
    """A member at one address, which says what that is.

    fault: what it does instead. doomed: connections that end at their next request.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(self._serve, address=(host, port), tls=tls)
        self.host = host.encode()
        self.fault = ""
        self.doomed: list[Conn] = []
        self.go_on = asyncio.Event()

    async def _serve(self, conn: Conn) -> None:
        if self.fault == "drops":
            conn.reset()
            return
        while not conn.writer.is_closing():
            request = await conn.request()
            if self.fault == "resets":
                conn.reset()
            elif self.fault == "half":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-")
                await conn.flush()
                conn.reset()
            elif self.fault == "closes" or conn in self.doomed:
                return
            elif request.target == b"/stream":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.host))
                await self.go_on.wait()
                conn.send(self.host)
            else:
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.host), self.host))


class Running:
    """An edge in front of `members`, which are one member with a name. dialed: the addresses, in order."""

    def __init__(self, edge_: Edge, zone: Zone, members: dict[str, At], dialed: list[str]) -> None:
        self.edge = edge_
        self.zone = zone
        self.members = members
        self.dialed = dialed
        self.passed = 0.0
        # It stands still, so that nothing that is aside is tried again before a test says so.
        started = time.monotonic()
        self.core.clock = lambda: started + self.passed

    @property
    def core(self) -> Any:
        return self.edge.service.edge

    @property
    def pool(self) -> Any:
        return self.core.pools["a"]

    @property
    def said(self) -> list[str]:
        """What operators were told of addresses."""
        events = self.edge.service.history.events
        return [str(event.name) for event in events if event.name.startswith("address.")]

    def where(self) -> Counter[str]:
        """How many connections there are to each address."""
        return Counter(upstream.address for upstream in self.pool.connections)

    async def ask(self, request: bytes = GET) -> Message:
        """A request on a new connection to the member; `dialed` are the addresses that were tried for it."""
        self.core.close_idle_upstreams()
        self.dialed.clear()
        return await self.edge.ask(request)

    async def works(self, *, at: str | None = None) -> None:
        response = await self.ask()
        assert response.status == 200
        assert at is None or response.body == at.encode()

    async def hold(self, count: int) -> list[RawClient]:
        """So many streams at once, each on a connection of its own."""
        clients = [await self.edge.client() for _ in range(count)]
        for client in clients:
            await client.send(STREAM)
        async with guard():
            for client in clients:
                await client.head()
        return clients

    def unblamed(self) -> bool:
        return self.core.federation.by_name["a"].breaker.closed and not self.edge.errors("a")


Start = Callable[..., Any]


@pytest.fixture
def dialed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    dialed: list[str] = []
    connect = aiohappyeyeballs.start_connection

    async def start_connection(addresses: Any, **settings: Any) -> Any:
        dialed.append(addresses[0][4][0])
        return await connect(addresses, **settings)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    return dialed


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, dialed: list[str], tmp_path: Path) -> Start:
    @asynccontextmanager
    async def run(
        *hosts: str,
        tls: bool = False,
        dead: tuple[str, ...] = (),
        silent: tuple[str, ...] = (),
        others: tuple[str, ...] = (),
        **overrides: Any,
    ) -> AsyncIterator[Running]:
        """There is a member at each of the addresses `hosts`, of which those in `dead` refuse, and those in
        `silent` answer no packet. The name has these and `others`."""
        members: dict[str, At] = {}
        context, settings = None, {}
        if tls:
            authority = trustme.CA()
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert(NAME).configure_cert(context)
            authority.cert_pem.write_to_path(tmp_path / "ca.pem")
            settings = {"a": {"ca": str(tmp_path / "ca.pem")}}
        with ExitStack() as stack:
            async with name_server() as zone:
                monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
                port = 0
                try:
                    for host in (each for each in hosts if each not in silent):
                        members[host] = At(host, port, context)
                        await members[host].start()
                        port = members[host].port
                    for host in dead:
                        await members.pop(host).stop()
                    for host in silent:
                        stack.enter_context(blackhole((host, port)))
                    zone.holds(NAME, *hosts, *others, ttl=3600)
                    url = f"{'https' if tls else 'http'}://{NAME}:{port}"
                    async with edge({"a": url}, settings=settings, **overrides) as running:
                        running.members = members  # type: ignore[assignment]
                        try:
                            yield Running(running, zone, members, dialed)
                        finally:
                            for member in members.values():
                                member.go_on.set()
                finally:
                    for member in members.values():
                        await member.stop()

    return run


@pytest.fixture(params=[False, True], ids=["http", "https"])
def tls(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


# -- which address


async def test_connections_are_spread_evenly(start: Start, tls: bool) -> None:
    async with start(ONE, TWO, THREE, tls=tls) as running:
        await running.hold(12)
        assert running.where() == {ONE: 4, TWO: 4, THREE: 4}


async def test_connections_made_at_once_are_spread_evenly(start: Start, tls: bool) -> None:
    async with start(ONE, TWO, THREE, tls=tls) as running:
        await running.works()
        clients = [await running.edge.client() for _ in range(12)]
        async with guard():
            await asyncio.gather(*(client.send(STREAM) for client in clients))
            await asyncio.gather(*(client.head() for client in clients))
        assert running.where() == {ONE: 4, TWO: 4, THREE: 4}


async def test_first_connection_is_not_always_to_the_same_address(start: Start) -> None:
    async with start(ONE, TWO) as running:
        found = {(await running.ask()).body for _ in range(64)}
        assert found == {ONE.encode(), TWO.encode()}


async def test_family_that_the_resolver_prefers_gets_the_connections(start: Start) -> None:
    async with start(SIX, ONE, TWO) as running:
        await running.hold(4)
        assert running.where() == {SIX: 4}


async def test_other_family_gets_the_connections_while_the_preferred_one_fails(start: Start) -> None:
    async with start(SIX, ONE, TWO, dead=(SIX,)) as running:
        await running.works()
        await running.hold(5)
        assert set(running.where()) == {ONE, TWO}
        assert running.dialed.count(SIX) == 1
        assert running.unblamed()


async def test_idle_connection_is_used_before_another_address_is_tried(start: Start) -> None:
    async with start(ONE, TWO) as running:
        for _ in range(5):
            assert (await running.edge.ask(GET)).status == 200
        assert len(running.dialed) == 1


# -- an address that takes no connection


async def test_address_that_refuses_costs_no_request_and_is_tried_once_for_a_while(
    start: Start, tls: bool
) -> None:
    async with start(ONE, TWO, dead=(TWO,), tls=tls, breaker=AT_ONCE) as running:
        tried = 0
        for request in [GET, POST] * 16:
            assert (await running.ask(request)).body == ONE.encode()
            tried += running.dialed.count(TWO)
        assert tried == 1
        assert running.unblamed()
        assert running.said == ["address.aside"]


async def test_address_that_says_nothing_costs_one_request_a_moment(start: Start, tls: bool) -> None:
    async with start(ONE, TWO, silent=(TWO,), tls=tls, breaker=AT_ONCE) as running:
        tried = 0
        for _ in range(32):
            await running.works(at=ONE)
            tried += running.dialed.count(TWO)
        assert tried == 1
        assert running.unblamed()
        assert running.said == ["address.aside"]


async def test_request_does_not_fail_however_many_addresses_are_down(start: Start, tls: bool) -> None:
    dead = tuple(f"127.0.1.{number}" for number in range(1, 20))
    async with start(ONE, *dead, dead=dead, tls=tls, breaker=AT_ONCE) as running:
        await running.works(at=ONE)
        assert running.unblamed()


async def test_request_does_not_fail_however_many_addresses_say_nothing(start: Start, tls: bool) -> None:
    silent = tuple(f"127.0.1.{number}" for number in range(1, 8))
    limits = {"connect": "1s"}
    async with start(ONE, *silent, silent=silent, tls=tls, breaker=AT_ONCE, timeouts=limits) as running:
        for _ in range(4):
            await running.works(at=ONE)
        assert running.unblamed()


async def test_address_that_is_tried_again_and_works_gets_its_share_and_operators_are_told(
    start: Start, tls: bool
) -> None:
    async with start(ONE, TWO, dead=(TWO,), tls=tls) as running:
        while not running.said:
            await running.works(at=ONE)
        port = running.members[ONE].port
        running.members[TWO] = again = At(TWO, port, running.members[ONE]._tls)
        await again.start()
        running.passed += LATER
        while (await running.ask()).body != TWO.encode():
            pass
        assert running.said == ["address.aside"]
        running.passed += LATER
        running.core.sweep(running.core.clock())
        assert running.said == ["address.aside", "address.usable"]
        assert not running.pool.outages
        await running.hold(6)
        assert running.where() == {ONE: 3, TWO: 3}


async def test_one_connection_at_a_time_tries_an_address_again(start: Start) -> None:
    async with start(ONE, TWO, silent=(TWO,)) as running:
        while not running.said:
            await running.works(at=ONE)
        running.passed += LATER
        running.dialed.clear()
        await running.hold(8)
        assert running.dialed.count(TWO) == 1
        assert running.said == ["address.aside"]


async def test_when_all_are_aside_all_are_tried_and_the_one_that_works_serves(start: Start) -> None:
    async with start(ONE, TWO, THREE, dead=(ONE, TWO)) as running:
        await running.works(at=THREE)
        for host in (ONE, TWO, THREE):
            running.pool._set_aside(host, running.core.clock(), "test")
        await running.works(at=THREE)
        assert running.unblamed()
        assert running.pool.outages.aside(ONE)
        assert not running.pool.outages.aside(THREE)


async def test_member_none_of_whose_addresses_works_is_ejected(start: Start, tls: bool) -> None:
    async with start(ONE, TWO, dead=(ONE, TWO), tls=tls, breaker=AT_ONCE) as running:
        assert (await running.ask()).status == 502
        assert running.edge.errors("a") == {"connect": 1}
        assert not running.core.federation.by_name["a"].breaker.closed


async def test_member_none_of_whose_addresses_answers_in_time_is_a_timeout(start: Start) -> None:
    limits = {"connect": "500ms"}
    async with start(ONE, TWO, THREE, silent=(TWO, THREE), dead=(ONE,), timeouts=limits) as running:
        assert (await running.ask()).status == 504
        assert sorted(running.dialed) == [ONE, TWO, THREE]
        assert running.edge.errors("a") == {"connect_timeout": 1}
        assert len(running.pool.outages) == 3


async def test_addresses_that_the_name_has_no_more_are_forgotten(start: Start) -> None:
    async with start(ONE, TWO, dead=(TWO,)) as running:
        while not running.said:
            await running.works(at=ONE)
        running.zone.holds(NAME, ONE, THREE)
        (name,) = running.core.resolver._names.values()
        name.expires = running.core.resolver._channel.until = 0.0
        running.core.resolver.sweep(time.monotonic())
        await until(lambda: set(name.addresses.current) == {ONE, THREE}, "it has moved")
        # As long as it may come back, it is known.
        assert running.pool.outages.aside(TWO)
        running.core.resolver.sweep(time.monotonic() + LATER)
        assert not running.pool.outages
        assert running.said == ["address.aside"]


async def test_only_address_that_a_name_has_is_never_aside(start: Start) -> None:
    async with start(ONE) as running:
        running.members[ONE].fault = "resets"
        assert (await running.ask()).status == 502
        assert not running.pool.outages
        assert not running.said


# -- what is seen of it


async def test_addresses_and_their_failures_are_listed(start: Start) -> None:
    async with start(ONE, TWO, dead=(TWO,)) as running:
        while not running.said:
            await running.works(at=ONE)
        await running.hold(2)
        (member,) = (await running.edge.service.survey()).members
        assert member.idle + member.busy == len(running.pool.connections)
        held = running.where()[ONE]
        assert set(member.addresses) == {AddressState(ONE, held), AddressState(TWO, 0, 1, True)}


async def test_member_given_by_address_or_socket_has_one_or_none(tmp_path: Path) -> None:
    async with edge({"a": "http://127.0.0.1:1", "b": f"unix:{tmp_path}/b"}) as running:
        listed = [member.addresses for member in (await running.service.survey()).members]
        assert listed == [(AddressState("127.0.0.1", 0),), ()]


# -- TLS


async def test_address_with_a_wrong_certificate_costs_no_request(start: Start) -> None:
    async with start(ONE, TWO, tls=True, breaker=AT_ONCE) as running:
        wrong = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert(NAME).configure_cert(wrong)
        await replaced(running, TWO, wrong)
        for request in [GET, POST] * 8:
            assert (await running.ask(request)).body == ONE.encode()
        assert running.unblamed()
        assert running.said == ["address.aside"]


async def test_address_that_never_shakes_hands_costs_no_request(start: Start) -> None:
    async with start(ONE, TWO, tls=True, breaker=AT_ONCE) as running:
        await replaced(running, TWO, None)
        for _ in range(16):
            await running.works(at=ONE)
        assert running.unblamed()
        assert running.said == ["address.aside"]
        # What was overtaken is given up, and not just left.
        await until(lambda: not running.members[TWO].open, "it is closed")


async def test_certificate_that_is_wrong_everywhere_is_the_members_fault(start: Start) -> None:
    async with start(ONE, TWO, tls=True) as running:
        wrong = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert(NAME).configure_cert(wrong)
        for host in (ONE, TWO):
            await replaced(running, host, wrong)
        assert (await running.ask()).status == 502
        assert running.edge.errors("a") == {"tls": 1}


async def test_wrong_certificate_says_more_than_a_refusal(start: Start) -> None:
    async with start(ONE, TWO, tls=True) as running:
        wrong = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert(NAME).configure_cert(wrong)
        await replaced(running, ONE, wrong)
        await running.members[TWO].stop()
        assert (await running.ask()).status == 502
        assert running.edge.errors("a") == {"tls": 1}


async def replaced(running: Running, host: str, tls: ssl.SSLContext | None) -> None:
    """Another server at an address. Without TLS, it takes connections, and waits for a whole request."""
    old = running.members[host]
    await old.stop()
    running.members[host] = At(host, old.port, tls)
    await running.members[host].start()


# -- an address that ends connections


@pytest.mark.parametrize("fault", ["resets", "half", "closes"])
async def test_address_that_ends_new_connections_without_an_answer_is_tried_last(
    fault: str, start: Start, tls: bool
) -> None:
    async with start(ONE, TWO, tls=tls) as running:
        running.members[TWO].fault = fault
        answers = [(await running.ask(request)).status for request in [GET, POST] * 16]
        # The request is lost: another address is not another member.
        assert Counter(answers) == {200: 31, 502: 1}
        assert running.said == ["address.aside"]


async def test_address_that_takes_connections_only_to_end_them_is_tried_less_and_less(start: Start) -> None:
    async with start(ONE, TWO) as running:
        running.members[TWO].fault = "resets"
        for failures in range(1, 5):
            while running.pool.outages.failures(TWO) < failures:
                await running.ask()
            running.passed += 2.0 ** (failures - 1)
            running.core.sweep(running.core.clock())
        assert running.said == ["address.aside"]


async def test_connection_that_is_dropped_as_it_is_made_costs_no_request(start: Start) -> None:
    async with start(ONE, TWO, breaker=AT_ONCE) as running:
        make, loop = running.pool.make, asyncio.get_running_loop()

        def made(pool: Any) -> Any:
            upstream = make(pool)

            def drop() -> None:
                if upstream.address in ("", TWO) and not hasattr(upstream, "transport"):
                    loop.call_soon(drop)
                elif upstream.address == TWO:
                    upstream.transport.abort()

            loop.call_soon(drop)
            return upstream

        running.pool.make = made
        for request in [GET, POST] * 8:
            assert (await running.ask(request)).body == ONE.encode()
        assert running.unblamed()
        assert running.said == ["address.aside"]


async def doomed(running: Running) -> None:
    """Three idle connections to each address, of which those to TWO end at their next request."""
    clients = await running.hold(6)
    for member in running.members.values():
        member.go_on.set()
    async with guard():
        for client in clients:
            await client.exactly(len(ONE))
    await until(lambda: running.core.idle() == 6, "all are idle")
    running.members[TWO].doomed = list(running.members[TWO].connections)


async def ask_until_one_ended(running: Running) -> None:
    """Asks on idle connections until one of the doomed has ended."""
    while len(running.members[TWO].requests) == 3:
        assert (await running.edge.ask(GET)).status == 200
        # Last in, first out: let the others have their turn.
        running.pool.idle.insert(0, running.pool.idle.pop())
    assert running.edge.errors("a") == {"stale": 1}


async def test_idle_connections_are_dropped_once_one_of_them_and_new_ones_fail(start: Start) -> None:
    async with start(ONE, TWO) as running:
        await doomed(running)
        running.pool._set_aside(TWO, running.core.clock(), "test")
        await ask_until_one_ended(running)
        assert set(running.where()) == {ONE}


async def test_idle_connection_that_ends_says_nothing_of_the_others(start: Start) -> None:
    async with start(ONE, TWO) as running:
        await doomed(running)
        await ask_until_one_ended(running)
        assert running.where()[TWO] >= 2
        assert not running.said


async def test_idle_connections_to_an_address_that_is_aside_are_used(start: Start) -> None:
    async with start(ONE, TWO) as running:
        await doomed(running)
        running.members[TWO].doomed.clear()
        running.pool._set_aside(TWO, running.core.clock(), "test")
        while len(running.members[TWO].requests) == 3:
            assert (await running.edge.ask(GET)).status == 200
            running.pool.idle.insert(0, running.pool.idle.pop())
        assert running.where() == {ONE: 3, TWO: 3}


# -- what this machine lacks


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EMFILE, "descriptors"), (errno.ENOBUFS, "memory"), (errno.EADDRNOTAVAIL, "ports")],
)
async def test_what_this_machine_lacks_sets_no_address_aside(
    number: int, reason: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(ONE, TWO, breaker=AT_ONCE) as running:

        async def start_connection(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
        assert (await running.ask()).status == 503
        assert running.core.counts.rejected[reason] == 1
        assert running.unblamed()
        assert not running.said


async def test_address_that_was_overtaken_because_this_process_slept_is_not_aside(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(ONE, TWO, silent=(TWO,)) as running:
        connect = aiohappyeyeballs.start_connection

        async def start_connection(addresses: Any, **settings: Any) -> Any:
            if addresses[0][4][0] == TWO:
                time.sleep(2.0)
            return await connect(addresses, **settings)

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
        while TWO not in running.dialed:
            await running.works(at=ONE)
        assert not running.said


async def test_address_that_gave_up_while_this_process_slept_is_not_aside(start: Start) -> None:
    async with start(ONE, TWO) as running:
        running.core._woke = running.core.clock()
        running.members[TWO].fault = "resets"
        while (await running.ask()).status == 200:
            pass
        assert not running.said


async def test_address_without_a_route_is_not_aside_and_the_other_serves(start: Start) -> None:
    # Of a broadcast the kernel says so itself.
    async with start(ONE, others=("255.255.255.255",), breaker=AT_ONCE) as running:
        for _ in range(16):
            await running.works(at=ONE)
        assert running.unblamed()
        assert not running.said


async def test_address_that_refuses_is_blamed_though_there_is_no_route_to_another(start: Start) -> None:
    async with start(ONE, dead=(ONE,), others=("255.255.255.255",)) as running:
        assert (await running.ask()).status == 502
        assert running.edge.errors("a") == {"connect": 1}
