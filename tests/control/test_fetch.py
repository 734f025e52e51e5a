from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import TooManyRedirects
from yarl import URL

from fedproxy.control.fetch import FAULTS, Fetched, TooLarge, fetch, open_session
from tests.rig import Scripted, answer

MOVED = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
SIX = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n123456"


@asynccontextmanager
async def host(*responses: bytes) -> AsyncIterator[Scripted]:
    member = Scripted(answer(*responses))
    await member.start()
    try:
        yield member
    finally:
        await member.stop()


async def asked(member: Scripted, **limits: Any) -> Fetched:
    async with open_session({"User-Agent": "test"}) as session:
        return await fetch(session, URL(f"{member.url}/x"), **{"timeout": 10.0, **limits})


async def test_answer_is_whole() -> None:
    async with host(SIX) as member:
        found = await asked(member, most=6)
    assert (found.path, found.status, found.body) == ("/x", 200, b"123456")
    assert found.headers["content-length"] == "6"


async def test_body_that_is_too_large_is_an_error() -> None:
    async with host(SIX) as member:
        with pytest.raises(TooLarge):
            await asked(member, most=5)


async def test_redirect_is_a_result_unless_it_is_to_be_followed() -> None:
    async with host(MOVED, SIX) as member:
        assert (await asked(member)).status == 302
        assert [request.target for request in member.requests] == [b"/x"]
    async with host(MOVED, SIX) as member:
        assert (await asked(member, redirects=2)).status == 200


async def test_redirects_end() -> None:
    async with host(MOVED) as member:
        with pytest.raises(TooManyRedirects):
            await asked(member, redirects=2)
        assert len(member.requests) == 2


async def test_host_that_does_not_end_its_response_is_out_of_time() -> None:
    async with host(SIX[:-1]) as member:
        with pytest.raises(TimeoutError):
            await asked(member, timeout=0.05)


@pytest.mark.parametrize(
    "response",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"],
    ids=["head", "body"],
)
async def test_what_is_not_http_is_a_fault(response: bytes) -> None:
    async with host(response) as member:
        with pytest.raises(FAULTS):
            await asked(member)
