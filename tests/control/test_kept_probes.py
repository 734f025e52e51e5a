"""Connections that probes keep from request to request and from round to round."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from fedproxy.control import fetch
from tests.rig import Conn, Message, Scripted, name_server, until
from tests.rig.hub import (
    ONCE,
    QUICK,
    QUOTA,
    REGISTRY,
    VERSIONS,
    Hub,
    Local,
    Probing,
    Secure,
    health,
    in_json,
    probing,
    reply,
    target,
)

# A quarter of the time is what a kept connection gets: enough of it on a busy machine, too.
PATIENT = replace(QUICK, timeout=60.0)
KEEPING = replace(PATIENT, connection_age=3600.0)
# One request per round.
PLAIN = replace(KEEPING, versions=False)
GOOD = health(REGISTRY, QUOTA)
BAD = health(REGISTRY | {"ok": False}, ok=False)

Answer = Callable[[Conn, Message, int], Awaitable[None]]


class Counting(Scripted):
    """Answers by `answer`, which gets the number of the request on its connection, from 0."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._serve)
        self.answer = answer
        self.asked: list[int] = []  # requests on each connection

    async def _serve(self, conn: Conn) -> None:
        index = len(self.asked)
        self.asked.append(0)
        while not conn.writer.is_closing():
            request = await conn.request()
            self.asked[index] += 1
            await self.answer(conn, request, self.asked[index] - 1)


async def good(conn: Conn, request: Message, _: int) -> None:
    conn.send(in_json(VERSIONS) if request.target == b"/versions" else GOOD)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def all_healthy(running: Probing) -> bool:
    return bool(running.seen) and all(report.healthy and not report.details for report in running.seen)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def secure(authority: trustme.CA) -> Secure:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return Secure(context)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# --- what is kept ---


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_healthy_member_is_asked_on_one_connection(
    kind: str, tmp_path: Path, authority: trustme.CA
) -> None:
    local = Local(tmp_path / "member.sock")
    hub = {"tcp": Hub(), "tls": secure(authority), "unix": local}[kind]
    ways: dict[str, dict[str, Any]] = {
        "tcp": {},
        "tls": {"tls": trusting(authority)},
        "unix": {"socket": str(local.path)},
    }
    async with probing(hub) as running:
        running.prober.apply(KEEPING, [target("a", hub, **ways[kind])])
        await until(lambda: hub.rounds >= 5, lambda: hub.targets)
        assert len(hub.connections) == 1
        assert all_healthy(running)


async def test_each_origin_and_each_member_has_a_connection_of_its_own() -> None:
    one, two = Hub(), Hub()
    async with probing(one, two) as running:
        targets = [target("a", one, versions=f"{two.url}/versions"), target("b", one)]
        running.prober.apply(KEEPING, targets)
        await until(lambda: one.rounds >= 9 and len(two.requests) >= 5, lambda: one.targets)
        assert (len(one.connections), len(two.connections)) == (2, 1)


async def test_members_beyond_the_room_are_asked_on_new_connections() -> None:
    one, two = Hub(), Hub()
    async with probing(one, two, room=1) as running:
        running.prober.apply(KEEPING, [target("a", one), target("b", two)])
        await until(lambda: one.rounds >= 4 and two.rounds >= 4, lambda: two.targets)
        assert len(one.connections) == 1
        assert len(two.connections) >= len(two.requests)
        running.prober.apply(KEEPING, [target("b", two)])
        before = len(two.connections)
        await until(lambda: len(two.requests) > before + 4, lambda: two.targets)
        assert len(two.connections) <= before + 2


async def test_page_leaves_no_connection_behind() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(replace(ONCE, pages=True), [target("a", hub)])
        await running.first()
        assert hub.targets == [b"/versions", b"/health", b"/"]
        await until(lambda: all(conn.reader.at_eof() for conn in hub.connections), "closed")


# --- until when ---


async def test_connection_of_the_greatest_age_is_replaced() -> None:
    hub, clock = Hub(), Clock()
    async with probing(hub, clock=clock) as running:
        running.prober.apply(replace(PATIENT, connection_age=60.0), [target("a", hub)])
        for number in (1, 2, 3):
            rounds = hub.rounds
            await until(lambda rounds=rounds: hub.rounds >= rounds + 3, lambda: hub.targets)  # type: ignore[misc]
            assert len(hub.connections) == number
            clock.now += 60.0
            await until(lambda number=number: len(hub.connections) > number, "a new one")  # type: ignore[misc]
        assert all_healthy(running)


async def test_no_age_keeps_nothing() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(replace(QUICK, connection_age=0.0), [target("a", hub)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        assert len(hub.connections) >= len(hub.requests)


async def test_certificate_that_expired_is_found_when_the_connection_is_replaced(
    authority: trustme.CA,
) -> None:
    hub, clock = secure(authority), Clock()
    async with probing(hub, clock=clock) as running:
        trust = trusting(authority)
        running.prober.apply(replace(PATIENT, connection_age=60.0), [target("a", hub, tls=trust)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        trustme.CA().issue_cert("localhost").configure_cert(hub.context)
        rounds = hub.rounds
        await until(lambda: hub.rounds >= rounds + 3, lambda: hub.targets)
        assert all_healthy(running)
        clock.now += 60.0
        assert (await running.shows("a", healthy=False)).reasons == ("tls",)


async def test_unhealthy_member_is_asked_on_a_new_connection_each_time() -> None:
    hub = Hub(health_=BAD)
    async with probing(hub) as running:
        running.prober.apply(KEEPING, [target("a", hub)])
        await running.shows("a", healthy=False)
        before, asked = len(hub.connections), len(hub.requests)
        await until(lambda: len(hub.requests) >= asked + 6, lambda: hub.targets)
        assert len(hub.connections) - before >= 5
        hub.health = GOOD
        await running.shows("a", healthy=True)
        asked, before = len(hub.requests), len(hub.connections)
        await until(lambda: len(hub.requests) >= asked + 6, lambda: hub.targets)
        assert len(hub.connections) <= before + 2


async def test_failed_round_closes_the_connection_of_a_member_that_is_still_healthy() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(replace(ONCE, fall=100), [target("a", hub)])
        await running.first()
        hub.health = in_json({"ok": True, "checks": 3})
        running.prober.apply(replace(PATIENT, interval=3600, fall=100), [target("a", hub)])
        assert not hub.connections[0].reader.at_eof()
        running.prober.apply(replace(QUICK, fall=10**6), [target("a", hub)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        assert len(hub.connections) >= 2
        assert hub.connections[0].reader.at_eof()


async def test_another_context_for_tls_closes_the_connection_at_once(authority: trustme.CA) -> None:
    hub = secure(authority)
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub, tls=trusting(authority))])
        await running.first()
        running.prober.apply(ONCE, [target("a", hub, tls=trusting(authority))])
        await until(hub.connections[0].reader.at_eof, "closed")
        assert hub.rounds == 1


async def test_another_context_within_a_round_takes_no_request_on_the_old_connection(
    authority: trustme.CA,
) -> None:
    hub = secure(authority)
    hub.answers.clear()
    async with probing(hub) as running:
        running.prober.apply(replace(KEEPING, interval=0.05), [target("a", hub, tls=trusting(authority))])
        await until(lambda: hub.has(1), "asked")
        running.prober.apply(replace(KEEPING, interval=0.05), [target("a", hub, tls=trusting(authority))])
        hub.answers.set()
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        assert len(hub.connections) == 2
        assert all_healthy(running)


async def test_target_that_moved_leaves_no_connection_behind() -> None:
    one, two = Hub(), Hub()
    async with probing(one, two) as running:
        running.prober.apply(ONCE, [target("a", one)])
        await running.first()
        assert not one.connections[0].reader.at_eof()
        running.prober.apply(ONCE, [target("a", two)])
        await until(one.connections[0].reader.at_eof, "closed")


async def test_close_does_not_wait_for_a_peer_behind_tls(authority: trustme.CA) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    answered, over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve() -> None:
        accepted, _ = listener.accept()
        # A peer that never answers a close_notify.
        with context.wrap_socket(accepted, server_side=True) as peer:
            peer.recv(65536)
            peer.sendall(GOOD)
            loop.call_soon_threadsafe(answered.set)
            asyncio.run_coroutine_threadsafe(over.wait(), loop).result()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        async with probing() as running:
            thread = asyncio.create_task(asyncio.to_thread(serve))
            tls = trusting(authority)
            running.prober.apply(replace(ONCE, versions=False), [target("a", url, tls=tls)])
            await answered.wait()
            assert (await running.first()).healthy
            await running.prober.close()
            over.set()
            await thread


# --- a connection that is not what it was ---


async def close(conn: Conn) -> None:
    conn.close()


async def reset(conn: Conn) -> None:
    conn.reset()


async def hang(conn: Conn) -> None:
    await conn.stall()


def says(data: bytes) -> Callable[[Conn], Awaitable[None]]:
    async def say(conn: Conn) -> None:
        conn.send(data)
        await conn.flush()
        conn.close()

    return say


FAULTS = {
    "closed": close,
    "reset": reset,
    "hangs": hang,
    "part of a head": says(b"HTTP/1.1 20"),
    "part of a body": says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "no HTTP": says(b"\x15\x03\x01\r\n\r\n"),
    "408": says(reply(b"", 408, b"Connection: close\r\n")),
    "502": says(reply(b"", 502)),
    "204": says(b"HTTP/1.1 204 No\r\n\r\n"),
}
# Seconds. A busy machine must not make a good answer slow; what hangs is waited for.
LIMITS = {False: 60.0, True: 2.0}


@pytest.mark.parametrize("fault", FAULTS)
async def test_kept_connection_that_fails_is_no_verdict(fault: str) -> None:
    async def answer(conn: Conn, request: Message, number: int) -> None:
        if number == 2:
            await FAULTS[fault](conn)
        else:
            await good(conn, request, number)

    member = Counting(answer)
    async with probing(member) as running:
        running.prober.apply(replace(PLAIN, timeout=LIMITS[fault == "hangs"]), [target("a", member)])
        await until(lambda: len(member.asked) >= 3, lambda: member.asked)
        assert fault == "hangs" or member.asked[:2] == [3, 3]
        assert all_healthy(running)


@pytest.mark.parametrize("target_path", [b"/versions", b"/health"])
async def test_answer_on_a_kept_connection_that_is_bad_news_is_no_verdict(target_path: bytes) -> None:
    async def outdated(conn: Conn, request: Message, number: int) -> None:
        # What a member that is being replaced says on its last connections.
        if number > 1 and request.target == target_path:
            conn.send(reply(b"old"))
        else:
            await good(conn, request, number)

    hub = Counting(outdated)
    async with probing(hub) as running:
        running.prober.apply(replace(KEEPING, fall=1), [target("a", hub)])
        await until(lambda: len(hub.asked) >= 4, lambda: hub.asked)
        assert all_healthy(running)
        assert max(hub.asked) > 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_new_connection_that_fails_as_the_kept_one_did_is_a_verdict_after_one_request(
    fault: str,
) -> None:
    failing = False

    async def answer(conn: Conn, request: Message, number: int) -> None:
        if failing:
            await FAULTS[fault](conn)
        else:
            await good(conn, request, number)

    member = Counting(answer)
    async with probing(member) as running:
        policy = replace(PLAIN, timeout=LIMITS[fault == "hangs"], unhealthy_interval=3600)
        running.prober.apply(policy, [target("a", member)])
        await until(lambda: sum(member.asked) >= 3, lambda: member.asked)
        failing = True
        await running.shows("a", healthy=False)
        # One more on the kept connection, and one on a new one.
        assert fault == "hangs" or member.asked[1:] == [1]
        assert len(running.seen) == 2


async def test_versions_of_prime_are_not_forgotten_for_a_kept_connection_that_fails() -> None:
    async def answer(conn: Conn, request: Message, number: int) -> None:
        await (close(conn) if number else good(conn, request, number))

    prime, other = Counting(answer), Hub(versions=in_json({**VERSIONS, "binderhub": "2"}))
    async with probing(prime, other) as running:
        running.prober.apply(KEEPING, [target("p", prime, prime=True), target("a", other)])
        await until(lambda: other.rounds >= 20 and len(prime.asked) >= 20, lambda: prime.asked)
        assert [report.healthy for report in running.of("a")] == [False]


async def test_connection_that_is_closed_while_idle_is_not_asked() -> None:
    async def answer(conn: Conn, request: Message, number: int) -> None:
        await good(conn, request, number)
        await conn.flush()
        if number == 1:
            conn.close()

    member = Counting(answer)
    async with probing(member) as running:
        running.prober.apply(replace(PLAIN, interval=0.02), [target("a", member)])
        await until(lambda: len(member.asked) >= 4, lambda: member.asked)
        assert member.asked[:3] == [2, 2, 2]
        assert all_healthy(running)


async def test_member_that_restarts_between_two_rounds_stays_healthy() -> None:
    old = Hub()
    async with probing(old) as running:
        running.prober.apply(ONCE, [target("a", old)])
        await running.first()
        await old.stop()
        new = Hub(address=("127.0.0.1", old.port))
        await new.start()
        running.prober.apply(KEEPING, [target("a", new)])
        await until(lambda: new.rounds >= 3, lambda: new.targets)
        assert all_healthy(running)
        await running.prober.close()
        await new.stop()


@pytest.mark.parametrize(
    "last",
    [
        reply(b'{"ok": true, "checks": []}', fields=b"Connection: close\r\n"),
        b'HTTP/1.0 200 OK\r\nContent-Length: 26\r\n\r\n{"ok": true, "checks": []}',
        b'HTTP/1.0 200 OK\r\n\r\n{"ok": true, "checks": []}',
    ],
)
async def test_answer_after_which_there_is_no_other_ends_the_connection(last: bytes) -> None:
    async def answer(conn: Conn, request: Message, number: int) -> None:
        conn.send(last)
        await conn.flush()
        if b"Length" not in last:
            conn.close()

    member = Counting(answer)
    async with probing(member) as running:
        running.prober.apply(PLAIN, [target("a", member)])
        await until(lambda: len(member.asked) >= 4, lambda: member.asked)
        assert set(member.asked[:3]) == {1}
        assert all_healthy(running)


@pytest.mark.parametrize("stray", [b"\r\n", b"HTTP/1.1 200 OK\r\n", BAD, GOOD + BAD])
async def test_bytes_that_came_with_an_answer_are_never_the_next(stray: bytes) -> None:
    async def answer(conn: Conn, _: Message, __: int) -> None:
        conn.send(GOOD, stray)

    member = Counting(answer)
    async with probing(member) as running:
        running.prober.apply(PLAIN, [target("a", member)])
        await until(lambda: sum(member.asked) >= 6, lambda: member.asked)
        assert BAD not in stray or set(member.asked[:5]) == {1}
        assert all_healthy(running)


@pytest.mark.parametrize("stray", [b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n", BAD, GOOD + BAD])
async def test_bytes_that_came_while_idle_are_never_the_next_answer(stray: bytes) -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(replace(ONCE, versions=False), [target("a", hub)])
        await running.first()
        hub.connections[0].send(stray)
        await hub.connections[0].flush()
        running.prober.apply(PLAIN, [target("a", hub)])
        await until(lambda: hub.rounds >= 4, lambda: hub.targets)
        assert BAD not in stray or len(hub.connections) == 2
        assert all_healthy(running)


@pytest.mark.parametrize("status", [204, 304])
async def test_body_of_an_answer_that_has_none_is_never_the_next_answer(status: int) -> None:
    async def answer(conn: Conn, request: Message, number: int) -> None:
        if request.target == b"/versions":
            conn.send(b"HTTP/1.1 %d Status\r\nContent-Length: %d\r\n\r\n" % (status, len(BAD)))
            await conn.flush()
            conn.send(BAD)
        else:
            await good(conn, request, number)

    member = Counting(answer)
    async with probing(member) as running:
        running.prober.apply(ONCE, [target("a", member)])
        report = await running.first()
        assert report.details == (f"answered {status} to /versions",)
        assert report.quota == 300
        assert member.asked == [1, 1]


async def test_slow_member_is_asked_on_new_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each look at the clock is later by more than what a kept connection gets.
    passed = count(step=PATIENT.timeout / 2)
    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: next(passed)))
    member = Counting(good)
    async with probing(member) as running:
        running.prober.apply(PLAIN, [target("a", member)])
        await until(lambda: len(member.asked) >= 3, lambda: member.asked)
        assert member.asked[:2] == [1, 1]
        assert all_healthy(running)


async def test_kept_connection_to_an_address_that_the_name_has_lost_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with name_server() as zone:
        monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
        clock = Clock()
        old = Hub(address=("127.0.0.2", 0))
        new = Hub(address=("127.0.0.3", 0))
        async with probing(old, new, clock=clock) as running:
            zone.holds("member.test", "127.0.0.2")
            policy = replace(KEEPING, connection_age=10**6)
            running.prober.apply(policy, [target("a", f"http://member.test:{old.port}")])
            await until(lambda: old.rounds >= 3, lambda: old.targets)
            assert len(old.connections) == 1
            clock.now += 3600
            await until(lambda: old.rounds >= 6, lambda: old.targets)
            assert len(old.connections) == 1
            zone.holds("member.test", "127.0.0.3")
            clock.now += 3600
            # Nobody listens there at this port.
            assert (await running.shows("a", healthy=False)).reasons == ("connect",)
            await until(old.connections[0].reader.at_eof, "closed")


# --- a member that takes no more connections ---


@asynccontextmanager
async def full() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A member that serves one connection, and whose queue is full behind it: its URL, and its requests."""
    loop = asyncio.get_running_loop()
    asked: list[bytes] = []

    async def serve() -> None:
        accepted, _ = await loop.sock_accept(listener)
        with accepted:
            accepted.setblocking(False)
            for _ in range(4):
                filler = socket.socket()
                fillers.append(filler)
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            while data := await loop.sock_recv(accepted, 65536):
                asked.append(data)
                await loop.sock_sendall(accepted, GOOD)

    fillers: list[socket.socket] = []
    with socket.socket() as listener:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        serving = asyncio.create_task(serve())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for filler in fillers:
                filler.close()


async def test_member_that_takes_no_connection_fails_when_its_kept_one_is_replaced() -> None:
    clock = Clock()
    async with full() as (url, asked), probing(clock=clock) as running:
        policy = replace(PLAIN, connection_age=60.0, timeout=3.0)
        running.prober.apply(policy, [target("a", url)])
        await until(lambda: len(asked) >= 4, lambda: asked)
        assert all_healthy(running)
        clock.now += 60.0
        report = await running.shows("a", healthy=False)
        assert report.details == ("no connection within 3 s",)
