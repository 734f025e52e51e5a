"""Probes of members whose names have several addresses."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohappyeyeballs
import pytest
import trustme

from tests.rig import blackhole, name_server, until
from tests.rig.hub import QUICK, Hub, Probing, probing, target

NAME = "member.test"
ONE, TWO, SIX = "127.0.0.2", "127.0.0.3", "::1"
#: No connection is kept, so each request makes one.
ANEW = replace(QUICK, connection_age=0.0, versions=False)


class At(Hub):
    """A member at one address."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(address=(host, port))
        self._tls = tls


class Running:
    def __init__(self, running: Probing, hubs: dict[str, At], url: str, tls: ssl.SSLContext | None) -> None:
        self.running = running
        self.hubs = hubs
        self._url = url
        self._tls = tls

    def apply(self) -> None:
        self.running.prober.apply(ANEW, [target("a", self._url, tls=self._tls)])

    async def stays_healthy(self, rounds: int = 4) -> None:
        self.apply()
        await until(
            lambda: sum(hub.rounds for hub in self.hubs.values()) >= rounds, lambda: self.running.seen
        )
        assert self.running.seen
        assert all(report.healthy and not report.details for report in self.running.seen)


Start = Callable[..., Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    @asynccontextmanager
    async def run(*hosts: str, tls: bool = False, **faults: str) -> AsyncIterator[Running]:
        """A member at each of the addresses, some of which have a fault: of `one`, `two` and `six`."""
        authority, other = trustme.CA(), trustme.CA()
        context, wrong = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
        authority.issue_cert(NAME).configure_cert(context)
        other.issue_cert(NAME).configure_cert(wrong)
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        fault_of = {ONE: faults.get("one"), TWO: faults.get("two"), SIX: faults.get("six")}
        hubs: dict[str, At] = {}
        async with name_server() as zone, AsyncExitStack() as stack:
            monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
            port = 0
            # Those that choose their port go first.
            for host in sorted(hosts, key=lambda each: fault_of[each] is not None):
                fault = fault_of[host]
                if fault == "silent":
                    stack.enter_context(blackhole((host, port)))
                elif fault != "refuses":
                    own = {"mute": None, "wrong": wrong}.get(fault or "", context if tls else None)
                    hubs[host] = At(host, port, own)
                    await hubs[host].start()
                    stack.push_async_callback(hubs[host].stop)
                    port = hubs[host].port
            zone.holds(NAME, *hosts, ttl=3600)
            url = f"{'https' if tls else 'http'}://{NAME}:{port or 1}"
            async with probing() as running:
                yield Running(running, hubs, url, trusting if tls else None)

    return run


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("fault", ["refuses", "silent"])
@pytest.mark.parametrize("where", ["one", "two"])
async def test_address_that_takes_no_connection_makes_no_member_unhealthy(
    where: str, fault: str, tls: bool, start: Start
) -> None:
    async with start(ONE, TWO, tls=tls, **{where: fault}) as running:
        await running.stays_healthy()


# `mute`: it takes connections, and begins no handshake.
@pytest.mark.parametrize("fault", ["mute", "wrong"])
@pytest.mark.parametrize("where", ["one", "two"])
@pytest.mark.parametrize("other", [TWO, SIX])
async def test_address_that_fails_the_handshake_makes_no_member_unhealthy(
    where: str, fault: str, other: str, start: Start
) -> None:
    at = where if where == "one" or other == TWO else "six"
    async with start(ONE, other, tls=True, **{at: fault}) as running:
        await running.stays_healthy(2)


async def test_only_one_address_is_asked_if_it_answers(start: Start) -> None:
    async with start(ONE, TWO) as running:
        await running.stays_healthy()
        asked = [len(hub.requests) for hub in running.hubs.values()]
        assert min(asked) == 0, asked


async def test_member_none_of_whose_addresses_takes_a_connection_is_unhealthy(start: Start) -> None:
    async with start(ONE, TWO, one="refuses", two="refuses") as running:
        running.apply()
        report = await running.running.shows("a", healthy=False)
        assert report.reasons == ("connect",)


async def test_wrong_certificate_says_more_than_a_refusal(start: Start) -> None:
    async with start(ONE, TWO, tls=True, one="refuses", two="wrong") as running:
        running.apply()
        assert (await running.running.shows("a", healthy=False)).reasons == ("tls",)


async def test_round_for_which_this_process_lacks_a_socket_is_no_verdict(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    async def start_connection(*asked: object, **_: object) -> None:
        tried.append(asked)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with start(ONE, TWO) as running:
        with monkeypatch.context() as patched:
            patched.setattr(aiohappyeyeballs, "start_connection", start_connection)
            running.apply()
            await until(lambda: len(tried) > 3, "rounds")
        assert running.running.seen == []
        await running.stays_healthy()
