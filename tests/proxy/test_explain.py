"""Why a request goes where it goes: asked without making it, and told in its response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedproxy.decide.member import Intent
from fedproxy.errors import BadRequest
from fedproxy.proxy.explaining import Question, answer, field
from tests.rig import Edge, Message, chunked, edge
from tests.rig import answer as says
from tests.rig.h2 import H2Client, request

TOKEN = "a-token-that-nobody-guesses"
ADMIN = {"address": "127.0.0.1:0", "tokens": {"me": {"token": TOKEN}}}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
REPOSITORY = "/v2/gh/user/repo/HEAD"
READY = b'data: {"phase": "ready", "url": "/user/x/?t=y"}\n\n'
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(READY)
)


def get(target: str = "/", *fields: str, token: str = TOKEN) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: hub.test", f"X-Fedproxy-Explain: {token}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def decision(response: Message) -> dict[str, Any] | None:
    value = response.value("x-fedproxy-decision")
    return None if value is None else json.loads(value)


def explained(running: Edge, target: str, **question: Any) -> dict[str, Any]:
    return answer(running.service.edge, Question(target, **question))


def idle(running: Edge) -> bool:
    return not any(member.in_flight or member.launches for member in running.service.edge.federation.members)


async def test_question_is_answered_as_the_request_would_be() -> None:
    async with edge({"a": says(OK), "b": says(OK)}, settings={"a": {"prime": True}}) as running:
        found = explained(running, REPOSITORY)
        chosen, other = found["member"], found["next"][0]
        assert {chosen, other} == {"a", "b"} and found["next"] == [other]
        assert found["kind"], found["source"] == ("page", "key")
        assert (found["key"], found["cookie"]) == ("/build/gh/user/repo", None)
        assert (found["route"], found["action"]) == (None, "to any member")
        assert [each["member"] for each in found["ranking"]] == [chosen, other]
        assert found["ranking"][0]["score"] > found["ranking"][1]["score"]
        kept = explained(running, REPOSITORY, cookie=other)
        assert (kept["member"], kept["source"], kept["cookie"]) == (other, "cookie", other)
        assert explained(running, "/build/gh/user/repo/HEAD", accept="text/event-stream")["kind"] == "launch"
        # Nothing was taken, and nobody was asked.
        assert idle(running) and not any(member.requests for member in running.members.values())
        response = await running.ask(f"GET {REPOSITORY} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (response.value("set-cookie") or b"").startswith(f"fedproxy_member={chosen}!".encode())


async def test_who_is_out_is_told_with_the_reason() -> None:
    members = {name: says(OK) for name in "abcdef"}
    settings: dict[str, dict[str, Any]] = {"a": {"prime": True}, "b": {"weight": 0}, "f": {"max_requests": 1}}
    async with edge(members, settings=settings, breaker={"failures": 1, "witnesses": 1}) as running:
        federation = running.service.edge.federation
        await running.service.change("c", None, 3.0, "me")
        await running.service.change("c", Intent.DRAIN, None, "me")
        await running.service.change("d", Intent.MAINT, None, "me")
        federation.by_name["e"].set_health(False, 0.0, ("hub",))
        federation.by_name["f"].in_flight = 1
        found = explained(running, REPOSITORY)
        outs = {each["member"]: each["out"] for each in found["ranking"]}
        assert outs == {
            "a": None,
            "b": "has weight 0",
            "c": "is draining",
            "d": "is in maintenance",
            "e": "is unhealthy: hub",
            "f": "is full: 1 requests in flight",
        }
        federation.by_name["a"].set_health(False, 0.0, ())
        found = explained(running, REPOSITORY)
        assert (found["member"], found["last_resort"]) == ("a", True)
        # A question is no request.
        assert federation.by_name["a"].counts.last_resort == 0
        await running.service.change("a", Intent.MAINT, None, "me")
        federation.by_name["f"].in_flight = 0
        assert explained(running, REPOSITORY)["member"] == "f"
        await running.service.change("f", Intent.MAINT, None, "me")
        found = explained(running, REPOSITORY)
        assert (found["member"], found["refused"], found["next"]) == (None, "no_member", [])


@pytest.mark.parametrize(
    ("target", "route", "action"),
    [
        ("/gone", "/gone", "status 410"),
        ("/to", "/to", "redirect to https://x.test (302)"),
        ("/away/x", "/away/*", "redirect to any member"),
        ("/first", "/first", "to the prime member"),
        ("/b", "/b", "to the member b"),
        ("/federation", "/federation", "the edge's own page: federation"),
    ],
)
async def test_route_is_told(target: str, route: str, action: str) -> None:
    routes = [
        {"path": "/gone", "status": 410},
        {"path": "/to", "redirect": "https://x.test"},
        {"path": "/away/*", "mode": "redirect"},
        {"path": "/first", "to": "prime"},
        {"path": "/b", "to": "b"},
    ]
    members = {"a": says(OK), "b": says(OK)}
    async with edge(members, settings={"a": {"prime": True}}, routes=routes, admin=ADMIN) as running:
        found = explained(running, target)
        assert (found["route"], found["action"]) == (route, action)
        told = decision(await running.ask(get(target)))
        assert told is not None and told["route"] == route
        assert "member" in found or not action.startswith(("to", "redirect to any"))
        assert idle(running)


async def test_session_is_told_where_it_is_known_to_run() -> None:
    async with edge({"a": says(STREAM), "b": says(STREAM)}, admin=ADMIN) as running:
        launch = get("/build/gh/user/repo/HEAD", "Accept: text/event-stream")
        told = decision(await running.ask(launch))
        assert told is not None and told["kind"] == "launch"
        found = explained(running, "/user/x/lab")
        assert (found["kind"], found["session"], found["member"]) == (
            "session",
            told["member"],
            told["member"],
        )
        assert (found["source"], found["next"]) == ("session", [])
        assert explained(running, "/user/other/lab")["session"] is None


async def test_banned_visitor_is_refused_in_an_explanation_too() -> None:
    ban = {"networks": ["192.0.2.0/24"], "repositories": ["^gh/bad/"]}
    async with edge(says(OK), ban=ban) as running:
        assert explained(running, "/", client="192.0.2.7")["refused"] == "banned"
        assert explained(running, "/v2/gh/bad/x/HEAD")["refused"] == "banned"
        assert "refused" not in explained(running, "/")


@pytest.mark.parametrize("target", ["", "no-slash", "/a b", "/\n"])
async def test_what_no_visitor_can_ask_for_is_an_error(target: str) -> None:
    async with edge(says(OK)) as running:
        with pytest.raises(BadRequest):
            explained(running, target)


# In a response


async def test_response_says_what_became_of_the_request() -> None:
    async with edge(
        {"a": says(BUSY), "b": says(OK)}, settings={"a": {"prime": True}}, admin=ADMIN
    ) as running:
        cookie = "Cookie: fedproxy_member=a"
        response = await running.ask(get("/", cookie))
        told = decision(response)
        assert told is not None and response.body == b"ok"
        assert (told["member"], told["asked"], told["cookie"]) == ("b", ["a", "b"], "a")
        for member in running.members.values():
            assert member.requests and not any(each.values("x-fedproxy-explain") for each in member.requests)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", f"Bearer {TOKEN}"])
async def test_nobody_is_told_without_a_token(token: str) -> None:
    async with edge(says(OK), admin=ADMIN, routes=[{"path": "/gone", "status": 410}]) as running:
        for target in ("/", "/gone"):
            assert decision(await running.ask(get(target, token=token))) is None
        assert not running.member.requests[0].values("x-fedproxy-explain")
        (event,) = [each for each in running.service.history.events if each.name == "operator.refused"]
        assert (event.who, TOKEN[:9] in event.message) == ("127.0.0.1", False)


async def test_nobody_is_told_where_there_is_no_token() -> None:
    async with edge(says(OK)) as running:
        assert decision(await running.ask(get(token=""))) is None


async def test_answer_of_the_edge_itself_says_it_too() -> None:
    async with edge("http://127.0.0.1:1", admin=ADMIN) as running:
        response = await running.ask(get())
        told = decision(response)
        assert response.status == 502 and told is not None
        assert (told["member"], told["asked"]) == ("a", ["a"])


async def test_decision_is_told_over_http2() -> None:
    listen = [{"address": "127.0.0.1:0", "http2": True}]
    async with edge(says(OK), admin=ADMIN, listen=listen) as running:
        client = await H2Client(await running.client()).begin()
        response = await client.ask(request(b"/", (b"x-fedproxy-explain", TOKEN.encode())))
        assert json.loads(response.value("x-fedproxy-decision") or b"")["member"] == "a"
        assert response.body == b"ok"
        gone = await client.ask(request(b"/metrics", (b"x-fedproxy-explain", TOKEN.encode())))
        assert json.loads(gone.value("x-fedproxy-decision") or b"")["action"] == "status 404"


async def test_events_of_a_launch_are_as_they_were() -> None:
    async with edge(says(STREAM), admin=ADMIN) as running:
        response = await running.ask(get("/build/gh/user/repo/HEAD", "Accept: text/event-stream"))
        assert response.framing == "chunked"
        assert response.body == READY
        assert decision(response) is not None


def test_field_is_bounded() -> None:
    ranking = [{"member": "m" * 60, "out": "x" * 60}] * 100
    name, value = field({"kind": "page", "key": "/x", "ranking": ranking, "next": ["b"]})
    assert (name, json.loads(value)) == (b"X-Fedproxy-Decision", {"kind": "page", "key": "/x"})
    assert len(field({"key": "\u00e9" * 9000})[1]) == 2048
