"""Filters and observers combine, and a request goes only where its phase may lead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedproxy.http.response import ResponseHead
from fedproxy.proxy import composing
from fedproxy.proxy.attempting import Attempting
from fedproxy.proxy.exchange import Exchange
from fedproxy.proxy.phase import TRANSITIONS, Phase
from fedproxy.proxy.ports import Sink
from tests.rig import Conn, Script, answer, edge, guard, refusing, until
from tests.rig.collector import collector
from tests.rig.launches import (
    CACHED,
    HEAD,
    LAST,
    LAUNCH,
    LAUNCHING,
    PATIENT,
    QUOTA,
    READY,
    chunk,
    says,
)

# Its id keeps it off the short path, which has no filters.
GET = b"GET /x HTTP/1.1\r\nHost: hub.test\r\nX-Request-ID: mine\r\nCookie: fedproxy_member=a\r\n\r\n"
SWITCH = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


class Passing:
    """A filter that does nothing. The edge's own base class takes no subclass here if it is compiled."""

    sink: Sink

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        self.sink.head(head, body, done)

    def body(self, data: bytes, done: bool) -> None:
        self.sink.body(data, done)

    def before(self) -> bool:
        return False

    def begin(self, lease: Any) -> None: ...

    def fail(self, error: Any, blamed: bool) -> None: ...

    def give_up(self, member: Any, error: Any) -> bool:
        return False

    def refuse(self) -> None: ...

    def end(self, outcome: Any) -> None: ...

    def sweep(self, now: float) -> bool:
        return False


class Loud(Passing):
    """Changes the body, as a compression would."""

    def __init__(self, exchange: Exchange) -> None:
        exchange.framed = False

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        changed = head.with_fields([*head.fields(), (b"Content-Encoding", b"loud")])
        self.sink.head(changed, body.upper(), done)

    def body(self, data: bytes, done: bool) -> None:
        self.sink.body(data.upper(), done)


class Stored(Passing):
    """Answers by itself, as a cache would."""

    def before(self) -> bool:
        head = ResponseHead(200, b"OK").with_fields([(b"Age", b"7")], length=6)
        self.sink.head(head, b"stored", True)
        return True


class Watching(Passing):
    """Notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def begin(self, lease: Any) -> None:
        self.told.append(f"begin {lease.member.name}")

    def fail(self, error: Any, blamed: bool) -> None:
        self.told.append(f"fail {error.reason} {blamed}")

    def refuse(self) -> None:
        self.told.append("refuse")

    def end(self, outcome: Any) -> None:
        self.told.append(f"end {outcome.value}")


@pytest.fixture
def makers() -> Iterator[list[Callable[[Exchange], Any]]]:
    """What makes filters; what a test adds is gone after it."""
    before = list(composing.MAKERS)
    yield composing.MAKERS
    composing.MAKERS[:] = before


@pytest.mark.parametrize("response", [CHUNKS, OK + b"Content-Length: 5\r\n\r\nhello", OK + b"\r\nhello"])
async def test_filter_may_change_a_response_however_it_is_framed(
    makers: list[Callable[[Exchange], Any]], response: bytes
) -> None:
    makers.append(Loud)

    async def member(conn: Conn) -> None:
        await conn.request()
        conn.send(response)
        conn.close()

    async with edge(member) as running:
        client = await running.client()
        got = await client.ask(GET)
        assert (got.body, got.values("content-encoding")) == (b"HELLO", [b"loud"])
        assert got.values("transfer-encoding") == [b"chunked"]
        (line,) = await running.logged()
        assert (line["status"], line["bytes_out"], line["member"]) == (200, 5, "a")


class Reading(Passing):
    """Wants payload, and leaves it alone."""

    def __init__(self, exchange: Exchange) -> None:
        exchange.framed = False


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_filter_that_only_reads_payload_changes_nothing(
    makers: list[Callable[[Exchange], Any]], version: bytes
) -> None:
    makers.append(Reading)
    async with edge(answer(CHUNKS)) as running:
        got = await running.ask(GET.replace(b"HTTP/1.1", b"HTTP/" + version))
        assert (got.status, got.body) == (200, b"hello")


async def test_filter_may_answer_before_a_member_is_chosen(makers: list[Callable[[Exchange], Any]]) -> None:
    makers.extend([lambda _exchange: Stored(), Loud])
    async with edge(answer()) as running:
        client = await running.client()
        for request in (
            GET,
            GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi"),
        ):
            got = await client.ask(request)
            assert (got.status, got.body, got.values("age")) == (200, b"STORED", [b"7"])
        assert not running.member.connections
        first, second = await running.logged(2)
        for line in (first, second):
            assert (line["member"], line["attempts"], line["bytes_out"]) == (None, 0, 6)


async def test_launch_that_moves_is_changed_and_traced_as_any_response(
    makers: list[Callable[[Exchange], Any]],
) -> None:
    makers.append(Loud)
    launch = LAUNCH.replace(b"Host:", b"traceparent: 00-%b-00f067aa0ba902b7-01\r\nHost:" % (b"4b" * 16))
    with collector() as found:
        tracing = {"endpoint": found.endpoint, "sample": 1, "follow": "anyone"}
        async with edge({"a": says(QUOTA), "b": says(*CACHED)}, tracing=tracing, **PATIENT) as running:
            client = await running.client()
            got = await client.ask(launch)
            assert b'"PHASE": "READY"' in got.body
            assert got.values("content-encoding") == [b"loud"]
            (line,) = await running.logged()
            assert (line["member"], line["launch"], line["attempts"]) == ("b", "ready", 2)
    (request,) = found.requests
    assert [each.attributes["fedproxy.member"] for each in found.attempts(request)] == ["a", "b"]


async def test_every_filter_is_told_of_each_attempt_and_of_the_end(
    makers: list[Callable[[Exchange], Any]],
) -> None:
    told: list[str] = []
    makers.extend([lambda _exchange: Watching(told), Loud])
    with refusing() as dead:
        async with edge({"a": dead, "b": answer()}, **PATIENT) as running:
            assert (await running.ask(GET)).status == 200
            assert told == ["begin a", "fail connect True", "begin b", "end success"]
            told.clear()
        async with edge({"a": dead}, **PATIENT) as running:
            assert (await running.ask(GET)).status == 502
            assert told[:2] == ["begin a", "fail connect True"]


class Checked:
    """Stands for `Exchange.phase`, and notes each step."""

    def __init__(self, slot: Any, seen: set[tuple[Phase, Phase]]) -> None:
        self.slot = slot
        self.seen = seen

    def __get__(self, exchange: Any, kind: Any = None) -> Any:
        return self if exchange is None else self.slot.__get__(exchange, kind)

    def __set__(self, exchange: Any, phase: Phase) -> None:
        try:
            self.seen.add((self.slot.__get__(exchange), phase))
        except AttributeError:
            assert phase is Phase.CHOOSING
        self.slot.__set__(exchange, phase)


async def test_filters_are_told_that_a_tunnel_is_closed(makers: list[Callable[[Exchange], Any]]) -> None:
    told: list[str] = []
    makers.append(lambda _exchange: Watching(told))
    async with edge(tunnel) as running:
        client = await running.client()
        await client.send(SWITCH)
        assert (await client.response()).status == 101
        await client.leave()
        await running.logged()
    assert told == ["begin a", "end success"]


async def tunnel(conn: Conn) -> None:
    await conn.request()
    conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await conn.stall()


SCENARIOS: list[tuple[dict[str, Script | str], bytes]] = [
    ({"a": answer()}, GET),
    ({"a": answer(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"), "b": answer()}, GET),
    ({"a": says(QUOTA), "b": says(*CACHED)}, LAUNCH),
    ({"a": tunnel}, SWITCH),
    ({"a": "http://127.0.0.1:9"}, GET),
]


async def test_phases_follow_each_other_as_their_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(Attempting, "__mypyc_attrs__"):
        # Compiled, what is assigned to an attribute cannot be seen; the source is the same.
        return
    seen: set[tuple[Phase, Phase]] = set()
    monkeypatch.setattr(Attempting, "phase", Checked(Attempting.__dict__["phase"], seen))
    for members, request in SCENARIOS:
        async with edge(members, **PATIENT) as running:
            client = await running.client()
            await client.send(request)
            await client.response()
            await client.leave()
            await until(lambda: not running.connections, "it is over")
    assert all(after in TRANSITIONS[before] for before, after in seen)
    assert {(Phase.ASKING, Phase.ASKING), (Phase.ASKING, Phase.TUNNEL), (Phase.TUNNEL, Phase.OVER)} <= seen


@pytest.mark.parametrize("where", ["before", "behind"])
async def test_ready_of_a_launch_is_held_among_other_filters(
    makers: list[Callable[[Exchange], Any]], where: str
) -> None:
    """The launch steps out of the way of its events, and in again for the last."""
    makers.insert(0 if where == "before" else 1, lambda exchange: Passing())
    waiting: list[Callable[[], None]] = []

    async def member(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(LAUNCHING))
        await conn.flush()
        await until(lambda: going_on, "the visitor has read")
        conn.send(chunk(READY), LAST)

    going_on: list[bool] = []
    async with edge({"a": member, "b": answer()}) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(LAUNCH)
        async with guard():
            await client.head()
            assert await client.chunk() == LAUNCHING
            going_on.append(True)
            await until(lambda: waiting, "the question whether others know")
            waiting.pop()()
            assert [await client.chunk(), await client.chunk()] == [READY, b""]
        await client.leave()
