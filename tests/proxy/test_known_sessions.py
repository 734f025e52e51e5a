"""Sessions whose member is known: from a launch, an answer or a redirect; with a cookie, and without one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fedproxy.decide.member import Intent
from fedproxy.decide.sessions import Place
from tests.rig import (
    Conn,
    Edge,
    Message,
    RawClient,
    Script,
    Scripted,
    edge,
    guard,
    per_request,
    refusing,
    until,
)
from tests.rig.homes import COOKIE, cookie, cookie_of, get
from tests.rig.launches import BUILT, HEAD, LAST, LAUNCHING, PATIENT, QUOTA, ask, chunk, event

HTML = b"Accept: text/html,application/xhtml+xml"
EVENTS = b"Accept: text/event-stream"
QUARTER = 3600
GONE = Place("https://gone.test", "gone")


def ready(path: str = "/user/x/", host: str = "https://hub.test") -> bytes:
    return event("ready", message="server running\n", url=host + path, token="s3cret")


def hub(name: str, *events: bytes, reply: bytes = b"", ends: bool = True) -> Script:
    """A member that says these events of a launch, and its name, or `reply`, to everything else."""
    body = name.encode()
    own = reply or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def serve(conn: Conn, request: Message) -> None:
        if EVENTS in request.head:
            conn.send(HEAD, *map(chunk, events), LAST if ends else b"")
        elif request.value("upgrade"):
            conn.send(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                + body
            )
        else:
            conn.send(own)

    return per_request(serve)


def status(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 " + line, b"Content-Length: 0", *fields, b"", b""))


def redirect(location: bytes) -> bytes:
    return status(b"302 Found", b"Location: " + location)


async def begin(conn: Conn, going_on: asyncio.Event) -> None:
    """A member's first event of a launch; returns when the visitor has read it."""
    await conn.request()
    conn.send(HEAD, chunk(LAUNCHING))
    await conn.flush()
    await going_on.wait()


async def begun(running: Edge) -> RawClient:
    """A visitor who has read it."""
    client = await running.client()
    await client.send(ask(EVENTS, cookie(b"a")))
    async with guard():
        await client.head()
        assert await client.chunk() == LAUNCHING
    return client


async def launch(running: Edge, name: bytes = b"a", target: bytes = b"/build/gh/org/repo/HEAD") -> Message:
    return await running.ask(ask(EVENTS, cookie(name), target=target))


async def asked(running: Edge, target: bytes, *lines: bytes) -> bytes:
    """Who answers."""
    response = await running.ask(get(target, *lines))
    assert response.status == 200
    return response.body


def of(running: Edge, name: str) -> Any:
    return running.service.edge.federation.by_name[name]


def known(running: Edge) -> int:
    return len(running.service.edge.sessions)


# From a launch


async def test_launched_session_is_found_whoever_asks() -> None:
    async with edge({"a": hub("a", BUILT, LAUNCHING, ready()), "b": hub("b")}) as running:
        await launch(running)
        for lines in [(), (cookie(b"b"),), (cookie(b"a"),), (cookie(b"nobody"),)]:
            assert await asked(running, b"/user/x/api/status", *lines) == b"a"
        assert await asked(running, b"/user/y/api/status", cookie(b"b")) == b"b"
        log = await running.logged(6)
        assert [line["affinity"] for line in log[1:]] == ["session"] * 4 + ["cookie"]
        assert of(running, "a").counts.affinity["session"] == 4
        assert known(running) == 2
        await until(lambda: running.service.sessions_known == 2, "the control plane knows them too")


@pytest.mark.parametrize(
    "target", [b"/user/a%40b~c/", b"/user/a@b%7Ec/lab", b"//user//a@b~c/x", b"/user/y/../a%40b~c/x"]
)
async def test_names_are_the_same_however_they_are_escaped(target: bytes) -> None:
    async with edge({"a": hub("a", ready("/user/a%40b~c/")), "b": hub("b")}) as running:
        await launch(running)
        assert await asked(running, target, cookie(b"b")) == b"a"
        assert running.members["a"].requests[-1].target == target


async def test_longest_known_path_leads_to_the_member_of_a_named_server() -> None:
    members = {"a": hub("a", ready("/user/x/")), "b": hub("b", ready("/user/x/gpu/"))}
    async with edge(members) as running:
        await launch(running, b"a")
        await launch(running, b"b")
        assert await asked(running, b"/user/x/gpu/lab", cookie(b"a")) == b"b"
        assert await asked(running, b"/user/x/lab") == b"a"
        assert await asked(running, b"/user/x/gpus/lab", cookie(b"b")) == b"a"


async def test_last_launch_that_was_ready_wins() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b", ready())}) as running:
        for name in (b"a", b"b", b"a"):
            await launch(running, name)
            assert await asked(running, b"/user/x/") == name


async def test_websocket_of_a_launched_session_is_tunnelled_to_its_member() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running)
        upgrade = (b"Connection: Upgrade", b"Upgrade: websocket", cookie(b"b"))
        client = await running.client()
        await client.send(get(b"/user/x/api/kernels/1/channels", *upgrade))
        async with guard():
            head = await client.head()
            assert (head.status, head.value("set-cookie")) == (101, None)
            assert await client.reader.readexactly(1) == b"a"
        await client.leave()


@pytest.mark.parametrize("policy", [{}, {"hold": 0}, {"failover": False}])
async def test_session_is_known_before_the_visitor_reads_that_it_is_ready(policy: dict[str, Any]) -> None:
    waiting: list[Any] = []
    async with edge(
        {"a": hub("a", BUILT, LAUNCHING, ready(), ends=False), "b": hub("b")}, launch=policy
    ) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(ask(EVENTS, cookie(b"a")))
        await until(lambda: waiting, "the question whether others know")
        await until(lambda: known(running) == 1, "the session")
        waiting.pop()()
        async with guard():
            await client.head()
            assert [await client.chunk() for _ in range(3)] == [BUILT, LAUNCHING, ready()]
        await client.leave()


async def test_rest_of_a_launch_follows_what_waited_and_ends_as_it_did() -> None:
    waiting: list[Any] = []
    more = event("ready", message="once more\n")

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD, chunk(LAUNCHING))
        await conn.flush()
        await asyncio.sleep(0)
        conn.send(chunk(ready()))
        await until(lambda: waiting, "the question")
        conn.send(chunk(more), LAST)
        await conn.stall()

    async with edge({"a": script, "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(ask(EVENTS, cookie(b"a")))
        async with guard():
            await client.head()
            assert await client.chunk() == LAUNCHING
            await until(lambda: waiting, "the question")
            waiting[0]()
            rest = [await client.chunk(), await client.chunk(), await client.chunk()]
            assert rest == [ready(), more, b""]
        await client.leave()
        assert (await running.logged())[0]["launch"] == "ready"


async def test_visitor_who_leaves_while_others_are_told_leaves_nothing_behind() -> None:
    waiting: list[Any] = []
    async with edge({"a": hub("a", LAUNCHING, ready(), ends=False), "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(ask(EVENTS, cookie(b"a")))
        await until(lambda: waiting, "the question")
        await client.leave()
        await running.logged()
        waiting.pop()()


async def test_ready_of_a_member_that_breaks_off_waits_until_others_know() -> None:
    waiting: list[Any] = []

    async def script(conn: Conn) -> None:
        await begin(conn, going_on)
        conn.send(chunk(ready()))
        await conn.flush()
        await until(lambda: waiting, "the question")

    going_on = asyncio.Event()
    async with edge({"a": script, "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await begun(running)
        async with guard():
            going_on.set()
            await until(lambda: not running.members["a"].open, "the member has broken off")
            await until(lambda: running.service.edge.busy() == 0, "the edge has seen it")
            assert not await running_log(running)
            waiting.pop()()
            assert await client.chunk() == ready()
            assert (await client.until_end())[0] == "reset"
        line = (await running.logged())[0]
        assert (line["termination"], line["launch"]) == ("SD", "ready")
        assert running.errors("a") == {"truncated": 1}


async def running_log(running: Edge) -> list[dict[str, Any]]:
    """What is in the log once the loop has turned a few times."""
    for _ in range(5):
        await asyncio.sleep(0)
    return running.log


@pytest.mark.parametrize("whole", [True, False])
async def test_whole_launch_whose_connection_closes_while_others_are_told_is_whole(whole: bool) -> None:
    waiting: list[Any] = []

    async def script(conn: Conn) -> None:
        await begin(conn, going_on)
        conn.send(chunk(ready()), LAST, b"" if whole else b"stray")

    going_on = asyncio.Event()
    async with edge({"a": script, "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await begun(running)
        async with guard():
            going_on.set()
            await until(lambda: waiting, "the question")
            await until(lambda: not running.members["a"].open, "the member has closed")
            await until(lambda: running.service.edge.busy() == 0, "the edge has seen it")
            waiting.pop()()
            assert [await client.chunk(), await client.chunk()] == [ready(), b""]
        await client.leave()
        line = (await running.logged())[0]
        assert (line["termination"], line["launch"], running.errors("a")) == ("--", "ready", {})


async def test_launch_that_is_ready_several_times_asks_once() -> None:
    waiting: list[Any] = []
    many = b"".join([ready(f"/user/x{number}/") for number in range(5)])
    async with edge({"a": hub("a", LAUNCHING + many), "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(ask(EVENTS, cookie(b"a")))
        await until(lambda: waiting, "the question")
        assert (len(waiting), known(running)) == (1, 1)
        waiting.pop()()
        async with guard():
            await client.head()
            assert await client.chunk() == LAUNCHING + many
        await client.leave()


async def test_ready_goes_on_though_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.proxy.filters.launch._CONFIRM", 0.05)
    async with edge({"a": hub("a", LAUNCHING, ready()), "b": hub("b")}) as running:
        running.service.edge.synchronize = lambda then: None
        assert (await running.ask(ask(EVENTS, cookie(b"a")))).body == LAUNCHING + ready()


@pytest.mark.parametrize("order", ["after", "with"])
async def test_no_more_than_is_held_waits_for_others(order: str) -> None:
    waiting: list[Any] = []
    much = b":" + b"x" * 40_000 + b"\n\n"

    async def script(conn: Conn) -> None:
        await conn.request()
        conn.send(HEAD)
        if order == "after":
            conn.send(chunk(LAUNCHING))
            await conn.flush()
            await until(lambda: going_on, "the visitor has read")
        conn.send(chunk(ready()))
        await conn.flush()
        await until(lambda: waiting, "the question")
        conn.send(chunk(much), chunk(much), LAST)
        await conn.stall()

    going_on: list[bool] = []
    async with edge({"a": script, "b": hub("b")}) as running:
        running.service.edge.synchronize = waiting.append
        client = await running.client()
        await client.send(ask(EVENTS, cookie(b"a")))
        async with guard():
            await client.head()
            expected = [ready(), much, much, b""]
            if order == "after":
                assert await client.chunk() == LAUNCHING
            going_on.append(True)
            assert [await client.chunk() for _ in expected] == expected
        await client.leave()
        waiting.pop()()


async def test_launch_of_a_script_without_a_cookie_and_its_calls_meet_the_same_member() -> None:
    async with edge({name: hub(name, ready(f"/user/{name}/")) for name in "abc"}) as running:
        for number in range(9):
            response = await running.ask(ask(EVENTS, target=b"/build/gh/org/repo-%d/HEAD" % number))
            url: str = json.loads(response.body.removeprefix(b"data: "))["url"]
            name: str = url.rstrip("/").rpartition("/")[2]
            assert (await asked(running, b"/user/%b/api" % name.encode())).decode() == name


# From an answer, and from a redirect


async def test_session_that_a_cookie_led_to_is_found_without_it() -> None:
    async with edge({"a": hub("a"), "b": hub("b"), "c": hub("c")}) as running:
        for name in (b"a", b"b", b"c"):
            assert await asked(running, b"/user/%b/lab" % name, cookie(name)) == name
            assert await asked(running, b"/user/%b/api" % name) == name


@pytest.mark.parametrize(
    "reply",
    [status(b"404 Not Found"), status(b"503 Busy"), redirect(b"/hub/user/x/"), redirect(b"/hub/login")],
)
async def test_answer_that_is_no_server_s_teaches_nothing(reply: bytes) -> None:
    async with edge({"a": hub("a", reply=reply), "b": hub("b")}) as running:
        await running.ask(get(b"/user/x/", cookie(b"a")))
        assert known(running) == 0


@pytest.mark.parametrize("location", [b"/user/x/", b"http://hub.test/user/x/?a", b"//hub.test/user/x"])
async def test_member_s_redirect_tells_where_a_session_is(location: bytes) -> None:
    async with edge({"a": hub("a", reply=redirect(location)), "b": hub("b")}) as running:
        await running.ask(get(b"/hub/spawn", cookie(b"a")))
        response = await running.ask(get(b"/user/x/api"))
        assert (response.status, len(running.members["b"].requests)) == (302, 0)


async def test_member_s_redirect_to_its_own_host_counts_too() -> None:
    async with edge({"a": Scripted(hub("a")), "b": hub("b")}) as running:
        its = running.members["a"]
        its.script = hub("a", reply=redirect(its.url.encode() + b"/user/x/"))
        await running.ask(get(b"/hub/spawn", cookie(b"a")))
        await running.ask(get(b"/user/x/api"))
        assert not running.members["b"].requests


async def test_answer_to_somebody_without_a_cookie_teaches_nothing() -> None:
    async with edge({name: hub(name) for name in "abc"}) as running:
        assert cookie_of(await running.ask(get(b"/user/x/"))) is not None
        assert known(running) == 0
        await running.ask(get(b"/user/x/", cookie(b"a"), method=b"OPTIONS"))
        assert known(running) == 0


async def test_redirect_elsewhere_teaches_nothing() -> None:
    async with edge({"a": hub("a", reply=redirect(b"https://hub.elsewhere/user/x/"))}) as running:
        await running.ask(get(b"/hub/spawn", cookie(b"a")))
        assert known(running) == 0


async def test_redirect_alone_never_takes_a_known_session_away() -> None:
    async with edge({"a": hub("a"), "b": hub("b", reply=redirect(b"/user/x/"))}) as running:
        await asked(running, b"/user/x/", cookie(b"a"))
        await running.ask(get(b"/hub/spawn", cookie(b"b")))
        assert await asked(running, b"/user/x/api") == b"a"


async def test_two_people_of_one_name_at_two_members_are_told_apart_by_their_cookies() -> None:
    async with edge({"a": hub("a"), "b": hub("b")}) as running:
        for _ in range(2):
            for name in (b"a", b"b"):
                assert await asked(running, b"/user/x/", cookie(name)) == name
        assert await asked(running, b"/user/x/") == b"a"


# A hub follows the cookie, or the session that a page is about


async def test_hub_follows_the_cookie_and_pages_about_a_session_follow_that() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running)
        assert await asked(running, b"/hub/home", cookie(b"b")) == b"b"
        assert await asked(running, b"/services/x/", cookie(b"b")) == b"b"
        for target in (
            b"/hub/user/x/lab",
            b"/hub/spawn-pending/x",
            b"/hub/api/oauth2/authorize?client_id=jupyterhub-user-x&redirect_uri=%2Fuser%2Fx%2Foauth_callback",
            b"/hub/login?next=%2Fhub%2Fuser%2Fx%2F",
        ):
            assert await asked(running, target, cookie(b"b")) == b"a"


async def test_login_stays_where_its_first_request_went() -> None:
    async with edge({name: hub(name) for name in "abc"}) as running:
        first = await running.ask(get(b"/hub/login"))
        value = (first.value("set-cookie") or b"").partition(b";")[0]
        assert cookie_of(first) == (first.body, False)
        for target in (b"/hub/oauth_callback?code=1&state=2", b"/hub/home", b"/user/me/"):
            response = await running.ask(get(target, b"Cookie: " + value))
            assert (response.body, cookie_of(response)) == (first.body, None)


@pytest.mark.parametrize("how", ["a launch that moved", "a page that moved"])
async def test_visitor_who_moves_keeps_what_runs_where_they_were(how: str) -> None:
    members = {"a": hub("a", QUOTA), "b": hub("b", ready("/user/y/"))}
    async with edge(members, **PATIENT) as running:
        if how == "a launch that moved":
            moved = await running.ask(ask(EVENTS, cookie(b"a")))
        else:
            await launch(running, b"b")
            of(running, "a").set_health(False, 0)
            moved = await running.ask(get(b"/v2/gh/org/repo/HEAD", cookie(b"a")))
        assert cookie_of(moved) == (b"b", False)
        both = b"Cookie: " + (moved.value("set-cookie") or b"").partition(b";")[0]
        assert await asked(running, b"/user/y/", both) == b"b"
        assert await asked(running, b"/user/x/", both) == b"a"
        assert await asked(running, b"/hub/home", both) == b"a"
        page = await running.ask(get(b"/v2/gh/org/other/HEAD", both))
        assert (page.body, cookie_of(page)) == (b"b", (b"b", False))
        assert b"!a; Path" in (page.value("set-cookie") or b"")
        of(running, "a").set_intent(Intent.MAINT)
        assert await asked(running, b"/hub/home", both) == b"b"
        # Back where they were: there is one member again.
        of(running, "a").set_intent(Intent.READY)
        of(running, "a").set_health(True, 0)
        of(running, "b").set_intent(Intent.MAINT)
        back = await running.ask(get(b"/v2/gh/org/other/HEAD", both))
        assert (back.value("set-cookie") or b"").count(b"!") == 1


# The cookie is renewed by use


def stamped(name: bytes, at: float, home: bytes = b"") -> bytes:
    return cookie(b"%b!%d" % (name, at) + (b"!" + home if home else b""))


@pytest.mark.parametrize("target", [b"/", b"/user/x/lab", b"/hub/home", b"/static/a.js"])
async def test_cookie_is_renewed_by_use_once_in_a_quarter_of_its_age(target: bytes) -> None:
    async with edge({"a": hub("a"), "b": hub("b")}) as running:
        now = running.service.edge.wall()
        for age, renewed in ((0, False), (QUARTER - 60, False), (QUARTER + 60, True), (-3600, True)):
            response = await running.ask(get(target, stamped(b"a", now - age)))
            assert (response.body, cookie_of(response)) == (b"a", (b"a", False) if renewed else None)
        assert cookie_of(await running.ask(get(target, cookie(b"a")))) is None


async def test_cookie_becomes_old_while_it_is_used() -> None:
    async with edge({"a": hub("a"), "b": hub("b")}) as running:
        its = running.service.edge
        now = its.wall()
        for pins in (its.runtime.pins,):
            assert cookie_of(await running.ask(get(b"/", stamped(b"a", now)))) is None
            pins._wall = lambda: now + QUARTER + 1
            pins.sweep()
            again = await running.ask(get(b"/", stamped(b"a", now)))
            assert cookie_of(again) == (b"a", False)
            value = COOKIE.fullmatch(again.value("set-cookie") or b"")
            assert value is not None
            assert value[1] == b"a!%d" % (now + QUARTER + 1)


async def test_cookie_has_the_time_at_which_it_is_set() -> None:
    async with edge(hub("a")) as running:
        pins = running.service.edge.runtime.pins
        for now in (1_000_000, 2_000_000):
            pins._wall = lambda now=now: float(now)  # type: ignore[misc]
            pins.sweep()
            value = (await running.ask(get())).value("set-cookie") or b""
            assert value.startswith(b"fedproxy_member=a!%d;" % now)


async def test_what_is_remembered_of_cookies_is_bounded() -> None:
    async with edge(hub("a")) as running:
        pins, now = running.service.edge.runtime.pins, running.service.edge.wall()
        for number in range(20_000):
            pins.find(b"a!%d!junk-%d" % (now, number))
        assert len(pins.fresh) <= 16_385
        before = len(pins.fresh)
        assert pins.find(b"a!%d!%b" % (now, b"x" * 5000)) is not None
        assert len(pins.fresh) == before


async def test_renewal_keeps_the_name_and_the_home() -> None:
    members = {"a": hub("a"), "b": hub("b", ready()), "c": hub("c")}
    async with edge(members) as running:
        await launch(running, b"b")
        response = await running.ask(get(b"/user/x/lab", stamped(b"a", 1, b"c")))
        assert response.body == b"b"
        assert (response.value("set-cookie") or b"").startswith(b"fedproxy_member=a!")
        assert b"!c; Path=/" in (response.value("set-cookie") or b"")


async def test_old_cookie_is_not_renewed_on_a_public_response_nor_counted_apart() -> None:
    public = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: public\r\n\r\na"
    async with edge({"a": hub("a", reply=public)}) as running:
        response = await running.ask(get(b"/static/a.js", stamped(b"a", 1)))
        assert cookie_of(response) is None
        assert (await running.logged())[0]["affinity"] == "cookie"
        assert dict(of(running, "a").counts.affinity) == {"cookie": 1}


async def test_redirected_visitor_s_old_cookie_is_renewed() -> None:
    routes = [{"path": "/away/*", "to": "members", "mode": "redirect"}]
    async with edge({"a": hub("a"), "b": hub("b")}, routes=routes) as running:
        assert cookie_of(await running.ask(get(b"/away/x", stamped(b"a", 1)))) == (b"a", False)
        fresh = stamped(b"a", running.service.edge.wall())
        assert cookie_of(await running.ask(get(b"/away/x", fresh))) is None
        assert dict(of(running, "a").counts.affinity) == {"cookie": 2}


async def test_of_several_values_one_that_names_an_available_member_counts() -> None:
    async with edge({"a": hub("a"), "b": hub("b")}) as running:
        now = running.service.edge.wall()
        both = b"Cookie: fedproxy_member=a!%d; fedproxy_member=b!%d" % (now, now)
        assert await asked(running, b"/", both) == b"a"
        of(running, "a").set_health(False, 0)
        assert await asked(running, b"/", both) == b"b"
        assert await asked(running, b"/user/x/", both) == b"a"


# What ends a session, in words


@pytest.mark.parametrize("how", ["full", "unhealthy", "ejected", "draining", "weightless"])
async def test_known_session_is_served_whatever_its_member_is_said_to_be(how: str) -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running)
        its, now = of(running, "a"), running.service.edge.clock()
        match how:
            case "full":
                its.max_requests = its.max_launches = 0
            case "unhealthy":
                its.set_health(False, now)
            case "ejected":
                its.breaker.trip(now, 0.0)
            case "draining":
                its.set_intent(Intent.DRAIN)
            case _:
                its.weight = 0.0
        for lines in [(), (cookie(b"b"),), (HTML,)]:
            assert await asked(running, b"/user/x/lab", *lines) == b"a"


async def test_person_is_told_which_member_is_in_maintenance() -> None:
    async with edge({"hetzner": hub("hetzner", ready()), "b": hub("b")}) as running:
        await launch(running, b"hetzner")
        of(running, "hetzner").set_intent(Intent.MAINT)
        page = await running.ask(get(b"/user/x/lab", cookie(b"b"), HTML))
        assert (page.status, cookie_of(page)) == (503, None)
        assert b"hetzner, which your session runs on, is in maintenance" in page.body
        said = json.loads((await running.ask(get(b"/user/x/api"))).body)
        assert said["error"] == "Service Unavailable"


async def test_nobody_is_told_that_a_session_runs_where_it_was_only_looked_for() -> None:
    with refusing() as url:
        async with edge({"a": url}) as running:
            page = await running.ask(get(b"/hub/login", HTML))
            assert (page.status, b"your session" in page.body) == (502, False)


async def test_person_is_told_which_member_cannot_be_reached() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running)
        with refusing() as url:
            await reload(running, {"a": url, "b": running.members["b"].url})
            page = await running.ask(get(b"/user/x/lab", HTML))
        assert (page.status, page.value("retry-after")) == (503, b"30")
        assert b"a, which your session runs on, cannot be reached" in page.body
        line = (await running.logged(2))[-1]
        assert (line["status"], line["termination"], line["member"]) == (503, "SC", "a")
        assert len(running.members["b"].requests) == 0


async def reload(running: Edge, members: dict[str, str]) -> None:
    """Puts another set of members in force."""
    from fedproxy.config.load import parse

    service = running.service
    config = service.config.model_dump(mode="json") | {"members": {n: {"url": u} for n, u in members.items()}}
    text = json.dumps({"members": config["members"], "admin": {"address": "127.0.0.1:0"}, "workers": 1})
    listen = {"listen": service.config.listen, "admin": service.config.admin}
    service._reread = lambda: parse(text, {}).model_copy(update=listen)
    assert await service.reload() == []


async def test_member_that_left_is_named_and_a_new_launch_is_offered() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running, target=b"/build/gh/org/repo/feature%2Fx?urlpath=lab&build_token=secret")
        await reload(running, {"b": running.members["b"].url})
        page = await running.ask(get(b"/user/x/lab", HTML, stamped(b"b", 1, b"a")))
        assert page.status == 404
        assert b"Your session ran on a, which has left the federation." in page.body
        assert b' href="/v2/gh/org/repo/feature%2Fx">' in page.body
        assert b"secret" not in page.body
        for stranger in [(), (cookie(b"b"),)]:
            page = await running.ask(get(b"/user/x/lab", HTML, *stranger))
            assert (page.status, b' href="/">' in page.body, b"org/repo" in page.body) == (404, True, False)
        said = json.loads((await running.ask(get(b"/user/x/api", cookie(b"b")))).body)
        assert said["detail"].startswith("Your session ran on a")
        assert not running.members["b"].requests


async def test_made_up_cookie_is_nobody_s_if_there_is_a_secret() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}, affinity={"secret": "s3cret"}) as running:
        mine = b"Cookie: " + ((await running.ask(get())).value("set-cookie") or b"").partition(b";")[0]
        await running.ask(ask(EVENTS, mine))
        its = running.service.edge
        its.sessions.announce(b"/user/x", GONE, its.wall(), b"/v2/gh/org/repo/HEAD")
        for own in (cookie(b"gone"), mine):
            page = await running.ask(get(b"/user/x/lab", HTML, own))
            assert (page.status, b"org/repo" in page.body) == (404, False)


async def test_launch_that_ends_after_its_member_was_renamed_is_at_the_new_name() -> None:
    async def script(conn: Conn) -> None:
        await begin(conn, going_on)
        conn.send(chunk(ready()), LAST)

    going_on = asyncio.Event()
    async with edge({"a": script, "b": hub("b")}) as running:
        client = await begun(running)
        # What was its name is another member's now.
        members = {"new": running.members["a"].url, "a": running.members["b"].url}
        await reload(running, members)
        going_on.set()
        async with guard():
            assert await client.chunk() == ready()
        await client.leave()
        (found,) = [known.place for _, known in running.service.edge.sessions.items()]
        of_now = running.service.edge.runtime.member_at(found)
        assert of_now is of(running, "new")


async def test_member_that_moves_and_keeps_its_name_keeps_its_sessions() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b"), "moved": hub("moved")}) as running:
        await launch(running)
        urls = {name: member.url for name, member in running.members.items()}
        await reload(running, {"a": urls["moved"], "b": urls["b"]})
        assert await asked(running, b"/user/x/lab", cookie(b"b")) == b"moved"


async def test_member_that_is_renamed_and_came_back_empty_is_called_by_its_new_name() -> None:
    gone = redirect(b"/hub/user/x/lab")
    async with edge({"a": Scripted(hub("a", ready(), reply=gone)), "b": hub("b")}) as running:
        await launch(running)
        await reload(running, {"new": running.members["a"].url, "a": running.members["b"].url})
        page = await running.ask(get(b"/user/x/lab", HTML, cookie(b"new")))
        assert b"Your session ran on new, and has ended there." in page.body
        assert b' href="/v2/gh/org/repo/HEAD">' in page.body


async def test_member_that_is_renamed_keeps_its_sessions() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}) as running:
        await launch(running)
        await reload(running, {"new": running.members["a"].url, "b": running.members["b"].url})
        assert await asked(running, b"/user/x/lab", cookie(b"b")) == b"a"
        assert (await running.logged(2))[-1]["member"] == "new"


@pytest.mark.parametrize(
    ("reply", "target"),
    [
        (redirect(b"/hub/user/x/lab"), b"/user/x/lab"),
        (redirect(b"http://hub.test/hub/user/x/"), b"/user/x/"),
        (status(b"404 Not Found"), b"/user/x/"),
        (status(b"410 Gone"), b"/user/x"),
    ],
)
async def test_member_that_came_back_empty_is_named_and_a_new_launch_is_offered(
    reply: bytes, target: bytes
) -> None:
    async with edge({"a": Scripted(hub("a", ready(), reply=reply)), "b": hub("b")}) as running:
        await launch(running)
        for own in (cookie(b"a"), stamped(b"b", running.service.edge.wall(), b"a")):
            page = await running.ask(get(target, HTML, own))
            assert page.status == 404
            assert b"Your session ran on a, and has ended there." in page.body
            assert b' href="/v2/gh/org/repo/HEAD">' in page.body
        # Strangers are not told what somebody has launched.
        page = await running.ask(get(target, HTML, cookie(b"b")))
        assert (page.status, b' href="/">' in page.body, b"org/repo" in page.body) == (404, True, False)
        # A program reads what the member says.
        for request in (get(target), get(target, HTML, method=b"POST"), get(target, HTML, method=b"HEAD")):
            passed = await running.ask(request, "HEAD")
            assert passed.status == int(reply[9:12])
        assert of(running, "a").breaker.closed


@pytest.mark.parametrize(
    ("reply", "target"),
    [
        (status(b"404 Not Found"), b"/user/x/files/none"),
        (status(b"424 Failed Dependency"), b"/user/x/proxy/80/"),
        (redirect(b"/user/x/lab"), b"/user/x/"),
        (redirect(b"/user/x/lab/tree/docs/hub/user/x/a.md"), b"/user/x/tree/docs"),
        (redirect(b"/user/x/lab?from=/hub/user/x"), b"/user/x/"),
        (redirect(b"https://elsewhere.test/hub/user/x"), b"/user/x/"),
        (redirect(b"/hub/user/y/"), b"/user/x/"),
        (redirect(b"/hub/api/oauth2/authorize?client_id=jupyterhub-user-x"), b"/user/x/"),
        (status(b"304 Not Modified"), b"/user/x/"),
        (status(b"403 Forbidden"), b"/user/x/"),
        (status(b"503 Service Unavailable"), b"/user/x/"),
    ],
)
async def test_what_a_server_answers_itself_is_passed_on(reply: bytes, target: bytes) -> None:
    async with edge({"a": hub("a", ready(), reply=reply), "b": hub("b")}) as running:
        await launch(running)
        page = await running.ask(get(target, HTML))
        assert page.status == int(reply[9:12])


async def test_somebody_whose_server_was_at_a_member_that_left_logs_in_elsewhere() -> None:
    async with edge({"a": hub("a"), "b": hub("b")}) as running:
        its = running.service.edge
        its.sessions.serve(b"/user/y", GONE, its.wall())
        assert await asked(running, b"/user/y/", cookie(b"a")) == b"a"
        assert (await running.ask(get(b"/user/z/"))).status == 200


# Bounds


async def test_no_more_sessions_are_known_than_the_limit_and_older_use_goes_first() -> None:
    async with edge({"a": hub("a"), "b": hub("b")}, limits={"sessions": 2}) as running:
        table, wall = running.service.edge.sessions, running.service.edge.wall
        place = Place(running.members["b"].url, "b")
        for name in (b"/user/1", b"/user/2"):
            table.announce(name, place, wall())
        assert await asked(running, b"/user/1/", cookie(b"a")) == b"b"
        table.announce(b"/user/3", place, wall())
        assert known(running) == 2
        assert await asked(running, b"/user/2/", cookie(b"a")) == b"a"
        assert await asked(running, b"/user/1/", cookie(b"a")) == b"b"
        assert running.service.sessions_known == 2


async def test_without_a_table_the_cookie_decides() -> None:
    async with edge({"a": hub("a", ready()), "b": hub("b")}, limits={"sessions": 0}) as running:
        await launch(running)
        assert await asked(running, b"/user/x/", cookie(b"b")) == b"b"
        assert known(running) == 0


# Routes


async def test_routes_say_what_is_a_session() -> None:
    routes = [{"path": "/jupyter/user/*", "sessions": True}, {"path": "/lab/*", "to": "b", "sessions": True}]
    async with edge({"a": hub("a", ready("/jupyter/user/x/")), "b": hub("b")}, routes=routes) as running:
        await launch(running)
        assert await asked(running, b"/jupyter/user/x/lab", cookie(b"b")) == b"a"
        of(running, "b").set_health(False, 0)
        assert await asked(running, b"/lab/x", cookie(b"a")) == b"b"
        # No session any more, so it moves away from a member that is not healthy.
        assert await asked(running, b"/user/y/", cookie(b"b")) == b"a"


async def test_binderhub_below_a_prefix_is_no_session_and_launches() -> None:
    policy = {"base_paths": ["/services/binder/"]}
    members = {"a": hub("a", QUOTA), "b": hub("b", ready())}
    async with edge(members, launch=policy, **PATIENT) as running:
        response = await launch(running, target=b"/services/binder/build/gh/org/repo/HEAD")
        assert b'"ready"' in response.body
        of(running, "a").set_health(False, 0)
        assert await asked(running, b"/services/binder/v2/gh/org/repo/HEAD", cookie(b"a")) == b"b"
        of(running, "a").set_health(True, 0)
        assert await asked(running, b"/services/other/", cookie(b"a")) == b"a"
        # Nothing is launched where no BinderHub is.
        assert b'"ready"' not in (await launch(running)).body
