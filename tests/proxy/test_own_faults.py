"""What the edge's own machine lacks for a connection is no member's failure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import aiodns
import aiohappyeyeballs
import pytest

from tests.rig import Edge, edge
from tests.rig.faults import AT_ONCE
from tests.rig.homes import cookie, cookie_of, get, named
from tests.rig.launches import LAUNCH, READY, says

PIN = cookie(b"a")


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[Edge, int], None]:
    """Makes connections to member `a` fail by that number."""

    def prepare(running: Edge, number: int) -> None:
        connect = aiohappyeyeballs.start_connection
        port = int(running.members["a"].authority.rpartition(":")[2])

        async def start_connection(addresses: Any, **settings: Any) -> Any:
            if addresses[0][4][1] == port:
                raise OSError(number, os.strerror(number))
            return await connect(addresses, **settings)

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)

    return prepare


def unblamed(running: Edge) -> bool:
    return running.service.edge.federation.by_name["a"].breaker.closed and not running.errors("a")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EADDRNOTAVAIL, "ports"), (errno.EACCES, "network"), (errno.EPERM, "network")],
)
async def test_no_local_port_or_leave_for_one_member_asks_another_and_charges_nobody(
    number: int, reason: str, fail: Callable[[Edge, int], None]
) -> None:
    async with edge({"a": named("a"), "b": named("b")}, breaker=AT_ONCE) as running:
        fail(running, number)
        response = await running.ask(get(b"/", PIN))
        assert (response.status, response.body) == (200, b"b")
        assert unblamed(running)
        assert running.service.edge.federation.by_name["a"].counts.retries == {reason: 1}


async def test_launch_that_moves_for_the_lack_of_a_local_port_is_counted_where_it_was(
    fail: Callable[[Edge, int], None],
) -> None:
    async with edge({"a": says(READY), "b": says(READY)}) as running:
        fail(running, errno.EADDRNOTAVAIL)
        assert (await running.ask(LAUNCH)).status == 200
        by_name = running.service.edge.federation.by_name
        assert by_name["a"].counts.launches == {"abandoned": 1}
        assert by_name["a"].counts.failovers == {"b": 1}
        assert by_name["b"].counts.launches == {"ready": 1}


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EMFILE, "descriptors"),
        (errno.ENFILE, "descriptors"),
        (errno.ENOMEM, "memory"),
        (errno.ENOBUFS, "memory"),
    ],
)
async def test_no_file_or_memory_is_said_and_charges_nobody(
    number: int, reason: str, fail: Callable[[Edge, int], None]
) -> None:
    async with edge({"a": named("a"), "b": named("b")}, breaker=AT_ONCE) as running:
        fail(running, number)
        response = await running.ask(get(b"/", PIN))
        assert (response.status, cookie_of(response)) == (503, None)
        assert response.value("retry-after")
        assert unblamed(running)
        assert running.service.edge.counts.rejected[reason] == 1
        (line,) = await running.logged()
        assert line["termination"] == "PC"


async def test_no_local_port_for_the_only_member_is_503_and_the_next_request_is_served(
    fail: Callable[[Edge, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with edge(named("a"), breaker=AT_ONCE) as running:
        fail(running, errno.EADDRNOTAVAIL)
        assert (await running.ask(get())).status == 503
        assert unblamed(running)
        monkeypatch.undo()
        assert (await running.ask(get())).status == 200


async def test_session_whose_member_has_no_port_left_stays_with_it(
    fail: Callable[[Edge, int], None],
) -> None:
    async with edge({"a": named("a"), "b": named("b")}, breaker=AT_ONCE) as running:
        fail(running, errno.EADDRNOTAVAIL)
        response = await running.ask(get(b"/user/mine/", PIN))
        assert (response.status, cookie_of(response)) == (503, None)
        assert not running.members["b"].requests
        assert unblamed(running)


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH])
async def test_what_somebody_else_says_of_the_member_is_charged(
    number: int, fail: Callable[[Edge, int], None]
) -> None:
    # There is a way to where it listens, so it is not this machine that has none.
    async with edge({"a": named("a"), "b": named("b")}, breaker=AT_ONCE) as running:
        fail(running, number)
        assert (await running.ask(get(b"/", PIN))).body == b"b"
        assert not unblamed(running)
        assert running.errors("a") == {"connect": 1}


async def test_address_that_this_machine_lets_nobody_connect_to_charges_nobody() -> None:
    # Of a broadcast the kernel says so itself (EACCES, or ENETUNREACH without a route).
    async with edge({"a": "http://255.255.255.255:81", "b": named("b")}, breaker=AT_ONCE) as running:
        assert (await running.ask(get(b"/", PIN))).body == b"b"
        assert unblamed(running)


@pytest.mark.parametrize(
    ("code", "blamed"),
    [
        (aiodns.error.ARES_ENOMEM, False),
        (aiodns.error.ARES_EFILE, False),
        (aiodns.error.ARES_ENOTFOUND, True),
        (aiodns.error.ARES_ETIMEOUT, True),
    ],
)
async def test_resolver_that_cannot_work_here_is_no_fault_of_the_name(
    code: int, blamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise aiodns.error.DNSError(code, "cannot")

    monkeypatch.setattr(aiodns.DNSResolver, "getaddrinfo", getaddrinfo)
    async with edge({"a": "http://name.test", "b": named("b")}, breaker=AT_ONCE) as running:
        assert (await running.ask(get(b"/", PIN))).body == b"b"
        assert unblamed(running) is not blamed
        assert running.errors("a") == ({"dns": 1} if blamed else {})
