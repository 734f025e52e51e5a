"""Whose Host and which Origin a member is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rig import Edge, answer, edge
from tests.rig.homes import cookie, get, named

PUBLIC = "https://mybinder.test"
ORIGIN = PUBLIC.encode()
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")


def visitor(**more: Any) -> dict[str, Any]:
    return {"settings": {"a": {"host": "visitor"}}, **more}


async def told(running: Edge, name: str, field: str, *request: bytes) -> bytes | None:
    """What a member is told, by its name."""
    await running.ask(get(*request))
    return running.members[name].requests[-1].value(field)


# Host


@pytest.mark.parametrize("target", [b"/", b"/v2/gh/a/b/HEAD", b"/user/x/lab"])
async def test_member_is_sent_its_own_host_or_the_visitor_s(target: bytes) -> None:
    members = {"a": named("a"), "b": named("b")}
    async with edge(members, **visitor()) as running:
        assert await told(running, "a", "host", target, cookie(b"a")) == b"hub.test"
        own = running.members["b"].url.removeprefix("http://").encode()
        assert await told(running, "b", "host", target, cookie(b"b")) == own
        for each in running.members.values():
            assert each.requests[-1].values("host") == [each.requests[-1].value("host")]
            assert each.requests[-1].value("x-forwarded-host") == b"hub.test"


async def test_websocket_and_upload_are_sent_the_visitor_s_host_too() -> None:
    async with edge(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), **visitor()) as running:
        assert await told(running, "a", "host", b"/user/x/api", cookie(b"a"), *UPGRADE) == b"hub.test"
        upload = get(b"/user/x/api", cookie(b"a"), b"Content-Length: 2", method=b"PUT") + b"ok"
        await running.ask(upload, "PUT")
        assert running.member.requests[-1].value("host") == b"hub.test"


async def test_host_behind_a_trusted_proxy_is_what_the_visitor_typed() -> None:
    async with edge(named("a"), **visitor(trusted_proxies=["127.0.0.0/8"])) as running:
        forwarded = b"X-Forwarded-Host: mybinder.test"
        assert await told(running, "a", "host", b"/", forwarded) == b"mybinder.test"
    async with edge(named("a"), **visitor()) as running:
        assert await told(running, "a", "host", b"/", b"X-Forwarded-Host: mybinder.test") == b"hub.test"


async def test_visitor_without_a_host_leaves_the_member_its_own() -> None:
    async with edge(named("a"), **visitor()) as running:
        await running.ask(b"GET / HTTP/1.0\r\n\r\n")
        own = running.member.url.removeprefix("http://").encode()
        assert running.member.requests[0].value("host") == own
        await running.ask(b"GET http://other.test/x HTTP/1.1\r\nHost: hub.test\r\nConnection: close\r\n\r\n")
        assert running.member.requests[-1].value("host") == b"other.test"


async def test_route_says_more_than_the_member() -> None:
    routes = [
        {"path": "/user/*", "to": "members", "host": "visitor"},
        {"path": "/own/*", "to": "members", "host": "member"},
    ]
    async with edge({"a": named("a"), "b": named("b")}, **visitor(routes=routes)) as running:
        own = {name: each.url.removeprefix("http://").encode() for name, each in running.members.items()}
        assert await told(running, "b", "host", b"/user/x", cookie(b"b")) == b"hub.test"
        assert await told(running, "b", "host", b"/user/%78/./y", cookie(b"b")) == b"hub.test"
        assert await told(running, "b", "host", b"/x", cookie(b"b")) == own["b"]
        assert await told(running, "a", "host", b"/own/x", cookie(b"a")) == own["a"]
        assert await told(running, "a", "host", b"/x", cookie(b"a")) == b"hub.test"


# Origin


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        (b"/", ORIGIN),
        (b"/v2/gh/org/repo/HEAD", ORIGIN),
        (b"/build/gh/org/repo/HEAD?build_token=x", ORIGIN),
        (b"/build/gh/org/repo/HEAD?a=b&build%5Ftoken=x", ORIGIN),
        (b"/build/gh/org/repo/HEAD", None),
        (b"/build/gh/org/repo/HEAD?build_token=", None),
        (b"/build/gh/org/repo/HEAD?x=build_token=1", None),
        (b"/build/gh/org/repo/HEAD?my_build_token=1", None),
        (b"//build/gh/org/repo/HEAD", None),
        (b"/user/x/lab", None),
        (b"/hub/login", None),
        (b"/services/x/", None),
        (b"/%75ser/x/lab", None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_public_origin_is_added_where_a_token_is_bound_to_it(
    target: bytes, origin: bytes | None, stream: bool
) -> None:
    async with edge({"a": named("a"), "b": named("b")}, public_url=PUBLIC) as running:
        accept = (b"Accept: text/event-stream",) if stream else ()
        assert await told(running, "a", "origin", target, cookie(b"a"), *accept) == origin
        assert await told(running, "a", "origin", target, cookie(b"a"), b"Origin: null", *accept) == b"null"
        assert running.members["a"].requests[-1].values("origin") == [b"null"]


async def test_upload_to_a_session_has_no_origin_that_nobody_sent() -> None:
    async with edge(named("a"), public_url=PUBLIC) as running:
        for target, origin in ((b"/user/x/api", None), (b"/api", ORIGIN)):
            upload = get(target, b"Cookie: c=1", b"Content-Length: 2", method=b"PUT") + b"ok"
            await running.ask(upload, "PUT")
            sent = running.member.requests[-1]
            assert (sent.value("origin"), sent.body, sent.value("cookie")) == (origin, b"ok", b"c=1")


async def test_origin_below_a_base_path() -> None:
    policy = {"base_paths": ["/services/binder"]}
    async with edge(named("a"), public_url=PUBLIC, launch=policy) as running:
        build = b"/services/binder/build/gh/org/repo/HEAD"
        assert await told(running, "a", "origin", build) is None
        assert await told(running, "a", "origin", build + b"?build_token=1") == ORIGIN
        assert await told(running, "a", "origin", b"/services/binder/v2/gh/org/repo/HEAD") == ORIGIN
        assert await told(running, "a", "origin", b"/services/other/") is None


async def test_origin_of_a_session_is_left_out_again_when_a_connection_was_stale() -> None:
    async with edge(named("a"), public_url=PUBLIC) as running:
        client = await running.client()
        for _ in range(3):
            response = await client.ask(get(b"/user/x/lab", cookie(b"a")))
            assert response.status == 200
        assert [request.value("origin") for request in running.member.requests] == [None] * 3
        await client.ask(get(b"/", cookie(b"a")))
        assert running.member.requests[-1].value("origin") == ORIGIN
