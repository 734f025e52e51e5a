"""What is spelled in another way is the same: paths, `Accept` and hosts are read as a member reads them."""

from __future__ import annotations

import json

import pytest

from tests.rig import Conn, Edge, RawClient, Script, answer, chunked, edge, guard, until

STREAM = b"Accept: text/event-stream"
LAUNCH = b"/build/gh/user/repo/HEAD"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = chunked()
QUOTA = b'data: {"phase": "failed", "message": "Too many users on this BinderHub! Try again soon."}\n\n'
BUILDING = b'data: {"phase": "building"}\n\n'
READY = b'data: {"phase": "ready", "url": "https://hub.test/user/x/"}\n\n'


def get(
    target: bytes = b"/", *lines: bytes, method: bytes = b"GET", host: bytes = b"hub.test", version: int = 1
) -> bytes:
    start = b"%b %b HTTP/1.%d" % (method, target, version)
    return b"\r\n".join((start, b"Host: " + host, *lines, b"", b""))


def code(body: bytes) -> int:
    found = json.loads(body.removeprefix(b"data: "))
    return int(found["status_code"])


def says(data: bytes) -> Script:
    """A member that answers each launch with one event."""
    return answer(HEAD + chunked(data))


# -- routes

SPELLINGS = {
    "one letter encoded": b"/%6detrics",
    "escape in upper case": b"/%6Detrics",
    "all encoded": b"/%6d%65%74%72%69%63%73",
    "two slashes": b"//metrics",
    "many slashes": b"////metrics",
    "dot segment": b"/./metrics",
    "two dots": b"/x/../metrics",
    "two dots at the root": b"/../metrics",
    "dots encoded": b"/x/%2e%2E/metrics",
    "one dot encoded": b"/x/.%2e/metrics",
    "slash encoded": b"/x/..%2fmetrics",
    "leading slash encoded": b"/%2Fmetrics",
    "slashes encoded in upper case": b"/x%2F..%2Fmetrics",
    "backslash": b"/x\\..\\metrics",
    "encoded twice": b"/%256detrics",
    "dots encoded twice": b"/x/%252e%252e/metrics",
    "cut off by NUL": b"/metrics%00.html",
    "parameter": b"/metrics;a=b",
    "encoded query": b"/metrics%3Fa",
    "last dot": b"/metrics/.",
    "last two dots": b"/metrics/x/..",
    "query": b"/%6detrics?a=b",
    "absolute form": b"http://hub.test/%6detrics",
    "absolute form and two slashes": b"http://hub.test//metrics",
}


@pytest.mark.parametrize("target", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_denied_path_is_denied_however_it_is_spelled(target: bytes) -> None:
    async with edge(answer(), routes=[{"path": "/metrics", "status": 404}]) as running:
        for request in (get(target), get(target, method=b"POST"), get(target, method=b"HEAD")):
            response = await running.ask(request, request.partition(b" ")[0].decode())
            assert response.status == 404
        assert running.member.requests == []
        raw = target.removeprefix(b"http://hub.test").decode()
        assert {line["target"] for line in await running.logged(3)} == {raw}


@pytest.mark.parametrize(
    "target",
    [
        b"/Metrics",
        b"/%4detrics",
        b"/metricsx",
        b"/metrics%2e",
        b"/metrics/x",
        b"/metrics%",
        b"/x/metrics",
        b"/%zz",
    ],
)
async def test_other_path_goes_to_the_member_as_it_was_sent(target: bytes) -> None:
    async with edge(answer(), routes=[{"path": "/metrics", "status": 404}]) as running:
        assert (await running.ask(get(target))).status == 200
        (request,) = running.member.requests
        assert request.target == target


@pytest.mark.parametrize("target", [b"/%62adge.svg", b"//badge.svg", b"/x/../badge.svg", b"/badge%2Esvg"])
async def test_redirect_is_for_every_spelling_of_its_path(target: bytes) -> None:
    routes = [{"path": "/badge.svg", "redirect": "https://static.test/badge.svg"}]
    async with edge(answer(), routes=routes) as running:
        response = await running.ask(get(target))
        assert (response.status, response.value("location")) == (302, b"https://static.test/badge.svg")


@pytest.mark.parametrize(
    "target", [b"/%62uild/gh/a%2Fb/HEAD?x=%20", b"/build//gh/a/b/HEAD", b"//build/gh/a/b/HEAD"]
)
async def test_visitor_is_sent_to_a_member_with_the_target_as_it_came(target: bytes) -> None:
    routes = [{"path": "/build/*", "to": "members", "mode": "redirect"}]
    async with edge(answer(), routes=routes) as running:
        response = await running.ask(get(target))
        location = running.member.url.encode() + target
        assert (response.status, response.value("location")) == (307, location)


async def test_route_to_one_member_is_for_every_spelling_of_its_path() -> None:
    members = {"a": answer(), "b": answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")}
    async with edge(members, routes=[{"path": "/b/*", "to": "b"}]) as running:
        for target in (b"/b/x", b"/%62/x", b"//b/x", b"/a/../b/x", b"/b%2Fx"):
            assert (await running.ask(get(target, b"Cookie: fedproxy_member=a"))).body == b"b"


@pytest.mark.parametrize("version", [1, 0])
@pytest.mark.parametrize(
    "target",
    [b"/%61ctive_hosts", b"//active_hosts?a=b", b"/x/../active_hosts", b"http://other.test/%61ctive_hosts"],
)
async def test_own_page_is_there_by_every_spelling_and_the_log_has_what_was_sent(
    target: bytes, version: int
) -> None:
    async with edge(answer()) as running:
        response = await running.ask(get(target, b"X-Original-Target: /evil", version=version))
        assert response.status == 200
        assert "active_hosts" in json.loads(response.body)
        (line,) = await running.logged()
        assert line["target"] == target.removeprefix(b"http://other.test").decode()
        assert running.member.requests == []


async def test_own_page_logs_no_target_that_a_visitor_makes_up() -> None:
    async with edge(answer()) as running:
        assert (await running.ask(get(b"/active_hosts", b"X_Original-Target: /evil"))).status == 200
        (line,) = await running.logged()
        assert line["target"] == "/active_hosts"


# -- bans


@pytest.mark.parametrize(
    "target",
    [
        b"/%62uild/gh/miner/coins/HEAD",
        b"/build//gh/miner/coins/HEAD",
        b"//build/gh/miner/coins/HEAD",
        b"/build/./gh/miner/coins/HEAD",
        b"/build/x/../gh/miner/coins/HEAD",
        b"/x/%2e%2e/build/gh/miner/coins/HEAD",
        b"/build%2Fgh%2Fminer%2Fcoins%2FHEAD",
        b"/v2/gh/x/..%2fminer/coins/HEAD",
        b"/%76%32/gh/Miner/c%6Fins/HEAD",
        b"/%2562uild/gh/miner/coins/HEAD",
    ],
)
async def test_repository_is_banned_however_its_path_is_spelled(target: bytes) -> None:
    async with edge(answer(), ban={"repositories": ["^gh/miner/coins(/|$)"]}) as running:
        assert (await running.ask(get(target))).status == 403
        assert running.member.requests == []


async def test_second_user_agent_is_no_way_around_a_ban() -> None:
    async with edge(answer(), ban={"user_agents": ["(?i)^badbot"]}) as running:
        for lines in ((b"User-Agent: x", b"USER-AGENT: BadBot"), (b"user-agent: badbot", b"User-Agent: x")):
            assert (await running.ask(get(b"/", *lines))).status == 403
        assert running.member.requests == []


# -- launches

ACCEPTS = [
    b"TEXT/EVENT-STREAM",
    b"Text/Event-Stream",
    b"text/event-stream;q=1",
    b" text/event-stream ;x",
    b"text/event-stream\t; charset=utf-8",
    b"*/*;q=0.1;text/event-stream",
    b"text/event-stream;q=1, */*",
    b"text/event-stream;q=1\r\nAccept: */*",
]
TARGETS = [
    b"/%62uild/gh/user/repo/HEAD",
    b"/build//gh/user/repo/HEAD",
    b"//build/gh/user/repo/HEAD",
    b"/build/gh/user%2Frepo/HEAD",
    b"/x/../build/gh/user/repo/HEAD",
    b"/user/../build/gh/user/repo/HEAD",
    b"/hub/%2e%2e/build/gh/user/repo/HEAD",
    b"/build%2fgh%2fuser%2frepo%2fHEAD",
    b"/build/gh/user/repo/HEAD/../../../../..",
]
LAUNCHES = [get(LAUNCH, b"Accept:" + accept) for accept in ACCEPTS] + [
    get(target, STREAM) for target in TARGETS
]


@pytest.mark.parametrize("launch", LAUNCHES)
async def test_launch_counts_for_the_rate_however_it_is_spelled(launch: bytes) -> None:
    async with edge(answer(), rate={"launches": 1, "per": "1h"}) as running:
        client = await running.client()
        assert (await client.ask(launch)).body == b"ok"
        for other in (launch, get(LAUNCH, STREAM)):
            response = await client.ask(other)
            assert (response.status, code(response.body)) == (200, 429)
        assert len(running.member.requests) == 1


async def waits(conn: Conn) -> None:
    """A member whose launch goes on."""
    await conn.request()
    conn.send(HEAD, chunked(BUILDING).removesuffix(LAST))
    await conn.stall()


async def places_are_taken(running: Edge, launch: bytes) -> RawClient:
    """The visitor whose launch has the only place of its member, so that another one is refused."""
    client = await running.client()
    await client.send(launch)
    async with guard():
        await client.head()
    assert running.service.federation.by_name["a"].launches == 1
    response = await running.ask(launch)
    assert (response.status, code(response.body)) == (200, 503)
    return client


@pytest.mark.parametrize("launch", LAUNCHES)
async def test_launch_takes_one_of_the_places_of_its_member_however_it_is_spelled(launch: bytes) -> None:
    async with edge(waits, settings={"a": {"max_launches": 1}}) as running:
        client = await places_are_taken(running, launch)
        await client.leave()


async def test_launch_that_is_a_session_for_some_takes_a_place_too() -> None:
    session = get(b"/build/gh/u/r/HEAD/../../../../../user/x", STREAM, b"Cookie: fedproxy_member=a")
    async with edge({"a": waits, "b": answer()}, settings={"a": {"max_launches": 1}}) as running:
        client = await places_are_taken(running, session)
        assert not running.members["b"].requests
        await client.leave()
        await until(lambda: not running.service.federation.by_name["a"].launches, "its place is free")


@pytest.mark.parametrize("launch", LAUNCHES)
async def test_launch_moves_on_however_it_is_spelled_and_arrives_as_it_was_sent(launch: bytes) -> None:
    pinned = launch.replace(b"\r\n", b"\r\nCookie: fedproxy_member=a\r\n", 1)
    async with edge({"a": says(QUOTA), "b": says(READY)}) as running:
        response = await running.ask(pinned)
        assert response.body == READY
        assert b"fedproxy_member=b" in (response.value("set-cookie") or b"")
        (line,) = await running.logged()
        assert (line["launch"], line["member"], line["attempts"]) == ("ready", "b", 2)
        (request,) = running.members["b"].requests
        assert request.start == launch.partition(b"\r\n")[0]
        sent = [
            line.partition(b":")[2].strip() for line in launch.split(b"\r\n") if line.startswith(b"Accept")
        ]
        assert [value for name, value in request.fields if name.lower() == b"accept"] == sent


@pytest.mark.parametrize("method", [b"HEAD", b"POST", b"OPTIONS", b"get"])
async def test_other_methods_launch_nothing(method: bytes) -> None:
    # BinderHub knows only GET there, and OPTIONS.
    async with edge(answer(), rate={"launches": 1, "per": "1h"}) as running:
        for _ in range(3):
            assert (await running.ask(get(LAUNCH, STREAM, method=method), method.decode())).status == 200


# -- who stays where


@pytest.mark.parametrize(
    "path", [b"/%75ser/me/x", b"//user/me/x", b"/x/../hub/spawn", b"/user%2Fme/x", b"/hub/../x"]
)
async def test_session_is_one_however_its_path_is_spelled(path: bytes) -> None:
    busy = answer(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
    async with edge({"a": busy, "b": answer()}) as running:
        assert (await running.ask(get(path, b"Cookie: fedproxy_member=a"))).body == b"busy"
        assert running.members["b"].requests == []


@pytest.mark.parametrize("target", [b"/%76%32/gh/a/b/HEAD", b"/v2//gh/a/b/HEAD", b"//build/gh/a/b/HEAD"])
async def test_cookie_is_renewed_by_every_spelling(target: bytes) -> None:
    async with edge(answer()) as running:
        response = await running.ask(get(target, b"Cookie: fedproxy_member=a"))
        assert b"fedproxy_member=a" in (response.value("set-cookie") or b"")


async def test_spellings_of_a_repository_lead_to_one_member() -> None:
    names = {name: answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name.encode()) for name in "abc"}
    async with edge(names) as running:
        for number in range(12):
            chosen = set()
            for spelled in (
                b"/v2/gh/org/repo-%d/HEAD",
                b"/%%762/gh/org/repo-%d/HEAD",
                b"/v2/gh/%%6Frg/repo%%2d%d/HEAD",
                b"//v2/gh//org/./repo-%d/main",
                b"/build/gh/x/../org/repo-%d/HEAD",
            ):
                chosen.add((await running.ask(get(spelled % number))).body)
            assert len(chosen) == 1


# -- heads that can never be whole


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\rHost: hub.test\r", b"GET / HTTP/1.1\r\r", b"GET / HTTP/1.1\r\nA: b\rc"]
)
async def test_bare_cr_in_a_request_is_refused_before_its_time_is_over(data: bytes) -> None:
    async with edge(answer()) as running:
        client = await running.client()
        for byte in data + b"xx":
            await client.send(bytes((byte,)))
        assert (await client.response()).status == 400


async def test_nothing_is_read_twice_of_what_was_read_once() -> None:
    async with edge(answer()) as running:
        client = await running.client()
        target = b"/a%2Fb//c/../d"
        assert (await client.ask(get(target))).status == 200
        line = b"GET " + target + b" HTTP/1.1"
        ask = running.service.edge.runtime.heads.lines[line]
        assert (await client.ask(get(target))).status == 200
        assert running.service.edge.runtime.heads.lines[line] is ask
