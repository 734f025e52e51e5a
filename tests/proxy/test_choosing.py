"""A launch goes where it is expected to be ready first, by what earlier launches told as they passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fedproxy.decide.affinity import image_digest
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End
from fedproxy.decide.waits import Reason
from fedproxy.proxy.explaining import Question, answer
from tests.rig import Edge, Script, edge, per_request, until
from tests.rig.launches import (
    BUILT,
    CACHED,
    CRASH,
    EVENTS,
    HEAD,
    LAST,
    LAUNCHING,
    PATIENT,
    READY,
    ask,
    chunk,
    event,
    says,
)
from tests.rig.member import Conn
from tests.rig.message import Message

PATH = b"/build/gh/org/repo/HEAD"
IMAGE = image_digest(PATH) or b""
WAITING, BUILDING = event("waiting", message="Waiting\n"), event("building", message="Step 1\n")
BUILD = (WAITING, BUILDING, BUILT, LAUNCHING, READY)
EMBEDDED = ask(EVENTS)
PAGE = ask(b"Accept: text/html", target=b"/v2/gh/org/repo/HEAD")


def binder(*events: bytes) -> Script:
    """A member that says these for each launch, and its pages are short."""

    async def serve(conn: Conn, request: Message) -> None:
        if EVENTS in request.head:
            conn.send(HEAD, *map(chunk, events), LAST)
        else:
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return per_request(serve)


@asynccontextmanager
async def choosing(members: Mapping[str, Script], **overrides: Any) -> AsyncIterator[Edge]:
    async with edge(members, **{**PATIENT, "balancer": "expected-wait", **overrides}) as running:
        yield running


def knowledge(running: Edge) -> Knowledge:
    return running.service.edge.waits.knowledge


def known(running: Edge, image: bytes = IMAGE) -> set[str]:
    """The members that are known to have it."""
    slots = {each.slot: name for name, each in knowledge(running).members.items()}
    return {slots[place[0]] for place in knowledge(running).images.places(image)}


def taught(running: Edge, name: str, image: bytes = IMAGE) -> None:
    running.service.edge.waits.learn(
        Seen(image, name, False, 100.0, 10.0, End.READY), running.service.edge.clock()
    )


def reasons(running: Edge) -> Counter[str]:
    found = Counter[str]()
    for each in running.service.edge.federation.members:
        found.update({str(reason): count for reason, count in each.counts.choices.items()})
    return found


def asked(running: Edge) -> dict[str, int]:
    return {name: len(member.requests) for name, member in running.members.items()}


async def test_launch_that_was_built_is_known_and_the_next_goes_there() -> None:
    async with choosing({name: binder(*BUILD) for name in "abc"}) as running:
        await running.ask(EMBEDDED)
        (first,) = known(running)
        assert asked(running)[first] == 1
        for _ in range(5):
            await running.ask(EMBEDDED)
        await running.ask(PAGE)
        assert asked(running)[first] == 7
        assert reasons(running) == {Reason.TIE: 1, Reason.IMAGE: 6}
        experience = knowledge(running).of(first)
        assert (experience.without_image.weight > 0, experience.with_image.weight) == (True, 0)


async def test_image_that_was_found_is_known_as_well() -> None:
    async with choosing({name: binder(*CACHED) for name in "ab"}) as running:
        await running.ask(EMBEDDED)
        (first,) = known(running)
        assert knowledge(running).of(first).with_image.weight > 0


async def test_visitor_s_page_goes_to_the_member_that_has_the_image_and_the_launch_follows() -> None:
    for name in "abc":
        async with choosing({each: binder(*CACHED) for each in "abc"}) as running:
            taught(running, name)
            response = await running.ask(PAGE)
            cookie = (response.value("set-cookie") or b"").partition(b";")[0]
            assert cookie.startswith(b"fedproxy_member=%b" % name.encode())
            await running.ask(ask(EVENTS, b"Cookie: " + cookie))
            assert asked(running) == {each: 2 * (each == name) for each in "abc"}


async def test_visitor_with_a_cookie_stays_wherever_the_image_is() -> None:
    async with choosing({each: binder(*CACHED) for each in "ab"}) as running:
        taught(running, "b")
        await running.ask(ask(EVENTS, b"Cookie: fedproxy_member=a"))
        assert asked(running) == {"a": 1, "b": 0}
        # What it told of `a` is known now.
        assert known(running) == {"a", "b"}


async def test_launches_of_one_repository_join_the_build_that_is_under_way() -> None:
    script = says(WAITING, BUILDING, ends=False)
    async with choosing(dict.fromkeys("abc", script)) as running:
        clients = [await running.client() for _ in range(8)]
        for client in clients:
            await client.send(EMBEDDED)
        await until(lambda: sum(asked(running).values()) == len(clients), "the launches")
        assert sorted(asked(running).values()) == [0, 0, 8]
        assert reasons(running) == {Reason.TIE: 1, Reason.JOINED: 7}
        (member,) = [name for name, count in asked(running).items() if count]
        now = running.service.edge.wall()
        await until(
            lambda: getattr(knowledge(running).under_way(IMAGE, now + 200), "member", "") == member,
            "the build",
        )
        for client in clients:
            client.reset()


async def test_launch_that_fails_goes_on_elsewhere_and_its_member_is_known_to_fail() -> None:
    async with choosing({"a": binder(CRASH), "b": binder(*CACHED)}) as running:
        taught(running, "a")
        before = knowledge(running).of("a").risk
        response = await running.ask(EMBEDDED)
        assert READY in response.body
        knowledge(running).refresh(running.service.edge.wall())
        assert known(running) == {"a", "b"}
        assert knowledge(running).of("a").risk > before
        assert knowledge(running).of("b").failing.total == 0


async def test_explanation_tells_waits_and_changes_nothing() -> None:
    async with choosing({name: binder(*CACHED) for name in "abc"}) as running:
        taught(running, "b")
        found = answer(running.service.edge, Question("/v2/gh/org/repo/HEAD"))
        ranking: Any = found["ranking"]
        assert (found["balancer"], found["member"], ranking[0]["member"]) == ("expected-wait", "b", "b")
        assert ranking[0]["wait"] < 30 < ranking[1]["wait"]
        assert ranking[0]["image"] > 0.9 > 0.1 > ranking[1]["image"]
        assert [each["price"] for each in ranking] == [0.0] * 3
        assert found["next"] == [each["member"] for each in ranking[1:]]
        other = answer(running.service.edge, Question("/v2/gh/org/other/HEAD"))
        assert other["ranking"][0]["member"] == other["member"]  # type: ignore[index]
        assert reasons(running) == {}
        assert (
            knowledge(running).under_way(
                image_digest(b"/v2/gh/org/other/HEAD") or b"", running.service.edge.wall()
            )
            is None
        )
        running.service.edge.waits.begun(IMAGE, "c", running.service.edge.clock())
        joined: Any = answer(running.service.edge, Question("/v2/gh/org/repo/HEAD"))["ranking"]
        assert {each["member"]: each["image"] for each in joined}["c"] == "building"


async def test_page_without_a_repository_goes_by_weight_and_counts_as_no_choice() -> None:
    async with choosing({name: binder(*CACHED) for name in "ab"}) as running:
        await running.ask(ask(b"Accept: text/html", target=b"/about"))
        assert reasons(running) == {}


async def test_launches_teach_whatever_the_balancer_is() -> None:
    async with choosing({name: binder(*BUILD) for name in "ab"}, balancer="random") as running:
        await running.ask(EMBEDDED)
        assert len(known(running)) == 1
        assert reasons(running) == {}
