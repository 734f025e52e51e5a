"""Members that do not share the secret of their build tokens, met by a launch that moves."""

from __future__ import annotations

import pytest

from tests.rig import edge
from tests.rig.homes import cookie, cookie_of
from tests.rig.launches import CACHED, KEEPALIVE, PATIENT, QUOTA, ask, event, says

EVENTS = b"Accept: text/event-stream"
INVALID = event("failed", status_code=403, message="Invalid build token\n")
LAUNCH = ask(EVENTS, cookie(b"a"), target=b"/build/gh/org/repo/HEAD?build_token=s3cret")


async def test_launch_that_moved_tries_the_next_member_and_operators_are_told_once() -> None:
    members = {"a": says(QUOTA), "b": says(INVALID), "c": says(*CACHED)}
    weights = {"b": {"weight": 1e6}, "c": {"weight": 1e-6}}
    async with edge(members, balancer="random", settings=weights, **PATIENT) as running:
        for _ in range(3):
            response = await running.ask(LAUNCH)
            assert response.body == b"".join(CACHED)
            assert cookie_of(response) == (b"c", False)
        said = [
            event.message
            for event in running.service.history.events
            if "BINDERHUB_BUILD_TOKEN_SECRET" in event.message
        ]
        assert len(said) == 1
        assert said[0].startswith("b does not accept build tokens of a: ")
        assert "s3cret" not in said[0]
        b = running.service.edge.federation.by_name["b"]
        assert (b.breaker.closed, b.failed_launches) == (True, 0)
        lines = await running.logged(3)
        assert [(line["member"], line["attempts"], line["launch"]) for line in lines] == [
            ("c", 3, "ready")
        ] * 3


@pytest.mark.parametrize("comment", [b"", KEEPALIVE])
async def test_visitor_is_told_what_the_first_member_said_when_nobody_accepts_the_token(
    comment: bytes,
) -> None:
    members = {"a": says(QUOTA), "b": says(*filter(None, (comment,)), INVALID, ends=not comment)}
    async with edge(members, **PATIENT) as running:
        response = await running.ask(LAUNCH)
        assert response.body == QUOTA
        line = (await running.logged())[0]
        assert (line["attempts"], line["launch"], line["status"]) == (2, "failed", 200)


async def test_token_that_the_first_member_refuses_is_passed_on() -> None:
    async with edge({"a": says(INVALID), "b": says(*CACHED)}, **PATIENT) as running:
        assert (await running.ask(LAUNCH)).body == INVALID
        assert not running.members["b"].requests
