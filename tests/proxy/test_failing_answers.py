"""A member that answers 502, 503 or 504: somebody else is asked, where that can help."""

from __future__ import annotations

import pytest

from tests.rig import answer, edge

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nX-Who: a\r\n\r\nbusy"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
COOKIE = b"Cookie: fedproxy_member=a\r\n"


def ask(method: bytes = b"GET", path: bytes = b"/", body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nHost: h\r\n%b%b\r\n%b" % (method, path, COOKIE, length, body)


@pytest.mark.parametrize("status", [b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"])
async def test_another_member_is_asked_and_the_cookie_moves(status: bytes) -> None:
    failing = answer(b"HTTP/1.1 %b\r\nContent-Length: 4\r\n\r\nbusy" % status)
    async with edge({"a": failing, "b": answer(OK)}) as running:
        response = await running.ask(ask())
        assert (response.status, response.body) == (200, b"ok")
        assert b"fedproxy_member=b" in (response.value("set-cookie") or b"")
        (entry,) = await running.logged()
        assert (entry["member"], entry["attempts"], entry["affinity"]) == ("b", 2, "moved")
        first = running.service.federation.by_name["a"]
        assert dict(first.counts.retries) == {status[:3].decode(): 1}


async def test_answer_goes_on_when_everybody_gives_such_a_one() -> None:
    async with edge({"a": answer(BUSY), "b": answer(BUSY)}) as running:
        response = await running.ask(ask())
        assert (response.status, response.body) == (503, b"busy")
        (entry,) = await running.logged()
        assert (entry["attempts"], entry["termination"]) == (2, "--")


async def test_kept_connection_to_the_member_that_was_passed_over_is_used_again() -> None:
    async with edge({"a": answer(BUSY, OK), "b": answer(OK)}) as running:
        client = await running.client()
        await client.ask(ask())
        await client.ask(ask())
        assert len(running.members["a"].connections) == 1


async def test_post_is_not_sent_twice() -> None:
    async with edge({"a": answer(BUSY), "b": answer(OK)}) as running:
        response = await running.ask(ask(b"POST", body=b"once"))
        assert (response.status, len(running.members["b"].requests)) == (503, 0)


async def test_body_goes_to_the_other_member_too() -> None:
    async with edge({"a": answer(BUSY), "b": answer(OK)}) as running:
        response = await running.ask(ask(b"PUT", body=b"again"))
        assert response.status == 200
        assert running.members["b"].requests[0].body == b"again"


@pytest.mark.parametrize("path", [b"/user/me/api/status", b"/hub/spawn-pending/me"])
async def test_session_s_own_path_stays_where_the_session_is(path: bytes) -> None:
    async with edge({"a": answer(BUSY), "b": answer(OK)}) as running:
        response = await running.ask(ask(path=path))
        assert (response.status, response.body) == (503, b"busy")
        assert running.members["b"].requests == []


async def test_500_goes_on_even_if_it_counts() -> None:
    broken = answer(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    async with edge({"a": broken, "b": answer(OK)}, breaker={"count_500": True}) as running:
        assert (await running.ask(ask())).status == 500


async def test_used_up_budget_leaves_the_answer_as_it_is() -> None:
    async with edge({"a": answer(BUSY), "b": answer(OK)}, retry={"budget": 0, "floor": 0}) as running:
        assert (await running.ask(ask())).status == 503
        assert running.service.edge.counts.budget_exhausted == 1
