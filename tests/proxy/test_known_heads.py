"""Heads that are known already: where they end is guessed, and no guess changes what anybody is sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fedproxy.config.load import parse
from tests.rig import Message, RawClient, answer, chunked, edge, per_request, until
from tests.rig.edge import Edge
from tests.rig.member import Conn

GET = b"GET / HTTP/1.1\r\nHost: hub.test\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nX: unframed\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"


def longer(head: bytes, by: int) -> bytes:
    """A response whose head is longer than `head` by so many bytes, its body included."""
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    return start + b"X: %b\r\n\r\nok" % (b"x" * (len(head) + by - len(start) - 7))


async def more_than(count: int, client: RawClient) -> None:
    await until(lambda: len(client.received) > count, "the head goes on at once")


@pytest.mark.parametrize("by", range(-4, 5))
@pytest.mark.parametrize("head", [STREAM, UNTIL_CLOSE, EARLY], ids=["chunked", "until close", "interim"])
async def test_known_head_alone_is_not_a_whole_response(head: bytes, by: int) -> None:
    """Its body comes later, and how long the head before was does not matter."""
    rest = {
        STREAM: chunked(b"streamed"),
        UNTIL_CLOSE: b"streamed",
        EARLY: b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nstreamed",
    }[head]
    goes_on = asyncio.Event()

    async def script(conn: Conn, request: Message) -> None:
        if len(conn.member.requests) % 2:
            conn.send(longer(head, by))
            return
        conn.send(head)
        await goes_on.wait()
        conn.send(rest)
        if head is UNTIL_CLOSE:
            await conn.flush()
            conn.close()

    async with edge(per_request(script)) as running:
        for _ in range(2):
            # The second time around, the head is known.
            client = await running.client()
            assert (await client.ask(GET)).body == b"ok"
            goes_on.clear()
            before = len(client.received)
            await client.send(GET)
            await more_than(before, client)
            goes_on.set()
            assert (await client.response()).body == b"streamed"
            await client.leave()
        assert not running.errors("a")


async def test_response_after_an_interim_one_is_never_another_visitors() -> None:
    """An interim head one byte shorter than the head before it, known, and alone."""
    goes_on = asyncio.Event()

    async def script(conn: Conn, request: Message) -> None:
        if request.target == b"/private":
            conn.send(EARLY)
            await goes_on.wait()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        elif request.target == b"/other":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
        else:
            conn.send(longer(EARLY, 1))

    def get(target: bytes) -> bytes:
        return GET.replace(b"/", target, 1)

    async with edge(per_request(script)) as running:
        for _ in range(2):
            goes_on.clear()
            await running.ask(get(b"/"))
            one, other = await running.client(), await running.client()
            await one.send(get(b"/private"))
            await more_than(0, one)
            await other.send(get(b"/other"))
            await until(lambda: running.service.edge.counts.requests % 3 == 0, "both have asked")
            goes_on.set()
            assert (await other.response()).body == b"other"
            assert (await one.response()).body == b"secret"
            await one.leave()
            await other.leave()


async def test_interim_response_to_one_request_says_nothing_about_the_next() -> None:
    """The member closes a kept connection, as it may: it is not charged, and the request goes out again."""
    goes_on = asyncio.Event()

    async def script(conn: Conn) -> None:
        for _ in range(2):
            await conn.request()
            conn.send(EARLY)
            await goes_on.wait()
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            goes_on.clear()
        if len(conn.member.connections) == 1:
            # Only once the next has come, or the pool would see it.
            await conn.head()
            conn.reset()

    async with edge(script) as running:
        client = await running.client()
        for sent in range(4):
            before = len(client.received)
            await client.send(GET)
            await more_than(before, client)
            goes_on.set()
            assert (await client.response()).body == b"ok", sent
        assert running.errors("a") == {"stale": 1}


def head(line: int, block: int) -> bytes:
    """A request whose first line and whose fields have so many bytes each, without the CRLF between them."""
    start = b"GET /%b HTTP/1.1" % (b"a" * (line - 14))
    fields = b"Host: hub.test\r\n"
    return start + b"\r\n" + fields + b"X: %b\r\n\r\n" % (b"x" * (block - len(fields) - 7))


@pytest.mark.parametrize("over", [0, 1, 2])
async def test_line_and_block_that_are_known_apart_are_together_within_the_limit(over: int) -> None:
    async with edge(answer(), limits={"request_head": 200}) as running:
        assert (await running.ask(head(99, 50))).status == 200
        assert (await running.ask(head(100, 50))).status == 200
        assert (await running.ask(head(50, 99))).status == 200
        assert (await running.ask(head(50, 100))).status == 200
        line, block = 99 + (over > 1), 99 + (over > 0)
        assert (await running.ask(head(line, block))).status == (431 if over else 200)


async def reload(running: Edge, **changes: Any) -> None:
    """Puts the same config in force with these changes at the top level."""
    service = running.service
    members = {"a": {"url": str(service.config.members["a"].url), "prime": True}}
    changed = parse(json.dumps({"members": members, **changes}), {})
    update = {key: getattr(changed, key) for key in changes}
    service._reread = lambda: service.config.model_copy(update=update)
    assert await service.reload() == []


@pytest.mark.parametrize(
    ("change", "routed", "blocks"),
    [
        ({"timeouts": {"connect": 1}}, True, True),
        ({"affinity": {"max_age": "1h"}}, True, True),
        ({"routes": [{"path": "/old/*", "status": 410}]}, False, True),
        ({"affinity": {"key": "path"}}, False, True),
        ({"affinity": {"cookie": "other"}}, True, False),
        ({"public_url": "https://hub.example.org"}, True, False),
        ({"ban": {"user_agents": ["crawler"]}}, True, False),
        ({"ban": {"repositories": ["gh/a/.*"]}}, False, True),
        ({"limits": {"request_head": 2048}}, False, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_reload_keeps_what_is_known_of_heads_if_it_means_the_same(
    change: dict[str, Any], routed: bool, blocks: bool
) -> None:
    async with edge(answer()) as running:
        await running.ask(GET)
        inner = running.service.edge
        before = inner.runtime.heads
        await reload(running, **change)
        after = inner.runtime.heads
        assert (after.lines is before.lines) is routed
        assert (after.blocks is before.blocks) is blocks
        assert (after.trusted_blocks is before.trusted_blocks) is blocks
        assert (await running.ask(GET)).body == b"ok"


async def test_members_and_weights_change_nothing_that_is_known_of_heads() -> None:
    async with edge({"a": answer(), "b": answer()}) as running:
        await running.ask(GET)
        inner = running.service.edge
        before = inner.runtime.heads
        url = str(running.service.config.members["a"].url)
        await reload(running, members={"a": {"url": url, "weight": 7, "prime": True}})
        assert [member.weight for member in inner.federation.members] == [7]
        assert inner.runtime.heads is before
        assert (await running.ask(GET)).body == b"ok"
