from __future__ import annotations

import asyncio
import errno
import gzip
import os
import socket
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.control.prober import Prober, Report, Target
from tests.rig import Conn, Scripted, blackhole, name_server, refusing, until
from tests.rig.hub import (
    ONCE,
    QUICK,
    QUOTA,
    REGISTRY,
    VERSIONS,
    Hub,
    Local,
    Secure,
    health,
    in_json,
    probing,
    reply,
    saying,
    target,
)

OTHER = {**VERSIONS, "binderhub": "1.1"}
DIFFER = "versions differ from prime: binderhub 1.1 against 1.0"
SICK = reply(b"sick")
BRIEF = replace(ONCE, timeout=0.5)


@pytest.fixture(autouse=True)
def same_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast a member answers is this machine's chance, and no news."""
    monkeypatch.setattr("fedproxy.control.prober.pace", lambda seconds: 0.5)


# --- when to ask ---


@given(st.floats(0.001, 1e6), st.floats(0.001, 1e6), st.floats(0, 0.999), st.floats(0, 1), st.booleans())
def test_next_round_is_within_the_jitter_of_its_interval(
    interval: float, unhealthy: float, jitter: float, chance: float, healthy: bool
) -> None:
    policy = replace(QUICK, interval=interval, unhealthy_interval=unhealthy, jitter=jitter)
    base = interval if healthy else unhealthy
    assert base * (1 - jitter) * 0.999 <= policy.delay(healthy, chance) <= base * (1 + jitter) * 1.001


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 13.5), (0.5, 15.0), (1.0, 16.5)])
def test_jitter_goes_to_both_sides(chance: float, delay: float) -> None:
    assert replace(QUICK, interval=15).delay(True, chance) == pytest.approx(delay)


# --- a round ---


async def test_round_asks_versions_and_then_health_once_each() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", hub)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        assert hub.targets[:6] == [b"/versions", b"/health"] * 3


async def test_healthy_round_tells_pods_quota_and_checks_and_is_reported_once() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", hub, prime=True)])
        await until(lambda: hub.rounds >= 4, lambda: hub.targets)
        expected = Report(
            name="a",
            healthy=True,
            pods={"total": 40, "build": 4, "user": 36},
            quota=300,
            checks={"versions": True, "Docker registry": True, "Pod quota": True},
            within=0.5,
        )
        assert running.seen == [expected]
        assert running.prober.reports == {"a": expected}


async def test_every_change_is_reported() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", hub)])
        await running.first()
        hub.health = health(REGISTRY, {**QUOTA, "total_pods": 41})
        await running.shows("a", pods={"total": 41, "build": 4, "user": 36})
        assert len(running.seen) == 2


async def test_versions_are_not_asked_when_they_need_not_agree() -> None:
    prime, other = Hub(), Hub(versions=in_json(OTHER))
    async with probing(prime, other) as running:
        policy = replace(QUICK, versions=False)
        running.prober.apply(policy, [target("p", prime, prime=True), target("a", other)])
        await until(lambda: other.rounds >= 3, lambda: other.targets)
        assert set(prime.targets) == set(other.targets) == {b"/health"}
        report = await running.first()
        assert report.healthy
        assert "versions" not in report.checks


async def test_request_is_plain_and_its_target_raw() -> None:
    hub = Hub(health_=reply(b"{}", fields=b"Set-Cookie: a=b; Path=/\r\n"))
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", hub, health=f"{hub.url}/x/..//health%2F%7e?q=%41+'")])
        await until(lambda: hub.has(4), lambda: hub.targets)
        request = hub.requests[3]
        assert request.target == b"/x/..//health%2F%7e?q=%41+'"
        assert request.value("host") == hub.authority.encode()
        assert request.value("accept-encoding") == b"identity"
        assert request.value("cookie") is None
        assert (request.value("user-agent") or b"").startswith(b"fedproxy/")


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    with refusing() as nobody:
        monkeypatch.setenv("http_proxy", nobody)
        async with probing(hub) as running:
            running.prober.apply(ONCE, [target("a", hub)])
            assert (await running.first()).healthy


# --- what acts when ---


async def test_failures_that_may_pass_need_to_come_again() -> None:
    hub = Hub(health_=health(REGISTRY | {"ok": False}, ok=False))
    async with probing(hub) as running:
        running.prober.apply(replace(QUICK, fall=3), [target("a", hub)])
        report = await running.shows("a", healthy=False)
        assert report.reasons == ("Docker registry",)
        first = running.seen[0]
        assert (first.healthy, first.reasons) == (True, ())
        assert first.details == report.details == ("reports that Docker registry is not ok",)
        assert hub.rounds >= 3


async def test_member_comes_back_after_so_many_good_rounds() -> None:
    hub = Hub(health_=SICK)
    async with probing(hub) as running:
        running.prober.apply(replace(QUICK, rise=3), [target("a", hub)])
        failed = await running.shows("a", healthy=False)
        hub.health, before = health(REGISTRY), hub.rounds
        waiting = await running.shows("a", healthy=False, checks={"versions": True, "Docker registry": True})
        assert (waiting.reasons, waiting.details) == (failed.reasons, failed.details)
        await running.shows("a", healthy=True, reasons=(), details=())
        assert hub.rounds - before >= 3


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        (
            {"health": health({**QUOTA, "total_pods": 290})},
            "quota",
            "290 pods and a headroom of 10 reach the quota of 300",
        ),
        ({"versions": in_json(OTHER)}, "versions", DIFFER),
    ],
)
async def test_quota_and_versions_act_at_once(change: dict[str, bytes], reason: str, detail: str) -> None:
    prime, hub = Hub(), Hub()
    vars(hub).update(change)
    async with probing(prime, hub) as running:
        policy = replace(ONCE, fall=100)
        running.prober.apply(policy, [target("p", prime, prime=True), target("a", hub)])
        report = await running.first()
        assert (report.healthy, report.reasons, report.details) == (False, (reason,), (detail,))
        assert (await running.first("p")).healthy
        assert hub.targets == [b"/versions", b"/health"]


async def test_unhealthy_member_is_asked_at_its_own_interval() -> None:
    sick, well = Hub(health_=SICK), Hub()
    async with probing(sick, well) as running:
        policy = replace(QUICK, unhealthy_interval=3600)
        running.prober.apply(policy, [target("a", sick), target("b", well)])
        await running.shows("a", healthy=False)
        await until(lambda: well.rounds >= 5, lambda: well.targets)
        assert sick.rounds == 1


# --- prime ---


async def test_members_wait_for_primes_first_answer() -> None:
    prime, hub = Hub(), Hub(versions=in_json(OTHER))
    prime.answers.clear()
    async with probing(prime, hub) as running:
        running.prober.apply(ONCE, [target("a", hub), target("p", prime, prime=True)])
        await until(lambda: hub.rounds == 1 and prime.has(1), "both asked")
        assert not running.seen
        prime.answers.set()
        assert (await running.first()).details == (DIFFER,)


@pytest.mark.parametrize("versions", [b"", reply(b"{}", 500), reply(b"[]"), in_json(VERSIONS, 404)])
async def test_prime_that_tells_no_version_takes_nobody_with_it(versions: bytes) -> None:
    prime, hub = Hub(versions), Hub(versions=in_json(OTHER))
    async with probing(prime, hub) as running:
        running.prober.apply(BRIEF, [target("p", prime, prime=True), target("a", hub)])
        assert not (await running.first("p")).healthy
        assert (await running.first()).healthy


async def test_prime_that_cannot_be_reached_takes_nobody_with_it() -> None:
    hub = Hub()
    with refusing() as nobody, blackhole() as hole:
        async with probing(hub) as running:
            for url in (nobody, hole):
                running.prober.apply(BRIEF, [target("p", url, prime=True), target("a", hub)])
                assert not (await running.first("p")).healthy
                assert (await running.first()).healthy
                running.prober.apply(BRIEF, [])
                running.seen.clear()


async def test_prime_that_fails_later_is_no_reference_any_more() -> None:
    prime, hub = Hub(), Hub(versions=in_json(OTHER))
    async with probing(prime, hub) as running:
        running.prober.apply(QUICK, [target("p", prime, prime=True), target("a", hub)])
        await running.shows("a", healthy=False)
        prime.versions = reply(b"", 503)
        await running.shows("a", healthy=True)
        prime.versions = in_json(OTHER)
        await running.shows("p", healthy=True)
        assert running.prober.reports["a"].healthy


async def test_another_prime_is_another_reference() -> None:
    one, two, hub = Hub(), Hub(versions=in_json(OTHER)), Hub()
    async with probing(one, two, hub) as running:
        running.prober.apply(QUICK, [target("1", one, prime=True), target("2", two), target("a", hub)])
        await running.shows("2", healthy=False)
        await running.shows("a", healthy=True)
        running.prober.apply(QUICK, [target("1", one), target("2", two, prime=True), target("a", hub)])
        await running.shows("2", healthy=True)
        await running.shows("a", healthy=False)
        await running.shows("1", healthy=False)


async def test_prime_that_is_gone_is_waited_for_no_longer() -> None:
    prime, hub = Hub(), Hub()
    prime.answers.clear()
    async with probing(prime, hub) as running:
        policy = replace(ONCE, timeout=3600)
        running.prober.apply(policy, [target("p", prime, prime=True), target("a", hub)])
        await until(lambda: hub.rounds == 1 and prime.has(1), "both asked")
        running.prober.apply(policy, [target("a", hub)])
        assert (await running.first()).healthy


# --- no answer, or no sense in it ---


async def test_member_that_hangs_delays_no_other() -> None:
    hanging, hub = Hub(), Hub()
    hanging.answers.clear()
    async with probing(hanging, hub) as running:
        running.prober.apply(replace(QUICK, timeout=3600), [target("h", hanging), target("a", hub)])
        await until(lambda: hub.rounds >= 10, lambda: hub.targets)
        assert len(hanging.requests) == 1
        assert not running.of("h")


async def test_two_hundred_members_that_hang_delay_no_other() -> None:
    hanging, hub = Hub(), Hub()
    hanging.answers.clear()
    async with probing(hanging, hub) as running:
        policy = replace(QUICK, timeout=3600)
        running.prober.apply(policy, [target(f"h{i}", hanging) for i in range(200)])
        await until(lambda: hanging.has(200), lambda: len(hanging.requests))
        running.prober.apply(policy, [*(target(f"h{i}", hanging) for i in range(200)), target("a", hub)])
        await until(lambda: hub.rounds >= 2, lambda: hub.targets)


NONSENSE = "sent no valid HTTP to /health"
BROKEN = "broke off its response to /health"
SLOW = "no complete response to /health within 0.5 s"
NO_HEALTH = "answered something other than its health"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "then", "reason", "detail"),
    [
        (b"", "close", "reset", BROKEN),
        (b"", "reset", "reset", BROKEN),
        (b"", "stall", "timeout", SLOW),
        (b"HTTP/1.1 200", "close", "reset", BROKEN),
        (b"HTTP/1.1 200", "stall", "timeout", SLOW),
        (HEAD + b"Content-Length: 9\r\n\r\n{", "close", "reset", BROKEN),
        (HEAD + b"Content-Length: 9\r\n\r\n{", "reset", "reset", BROKEN),
        (HEAD + b"Content-Length: 9\r\n\r\n{", "stall", "timeout", SLOW),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", "close", "reset", BROKEN),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "stall", "timeout", SLOW),
        (b"\x16\x03\x01\x00\x05nonsense\r\n\r\n", "stall", "nonsense", NONSENSE),
        (HEAD + b"Content-Length: -1\r\n\r\n", "stall", "nonsense", NONSENSE),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "stall", "nonsense", NONSENSE),
        (HEAD + b"X: " + b"x" * 100_000, "stall", "nonsense", NONSENSE),
        (HEAD + b"X: y\r\n" * 10_000, "stall", "nonsense", NONSENSE),
        (reply(b"", 404), "stall", "status", "answered 404 to /health"),
        (reply(b"", 302, b"Location: /elsewhere\r\n"), "stall", "status", "answered 302 to /health"),
        (b"HTTP/1.1 204 No\r\n\r\n", "stall", "status", "answered 204 to /health"),
        (in_json({"ok": True, "checks": []}, 500), "stall", "status", "answered 500 to /health"),
        (reply(b"<html>"), "stall", "health", NO_HEALTH),
        (reply(b"[1]"), "stall", "health", NO_HEALTH),
        (in_json({"ok": True, "checks": 3}), "stall", "health", NO_HEALTH),
        (reply(b"[" * 100_000), "stall", "health", NO_HEALTH),
        (
            reply(gzip.compress(b'{"ok": true, "checks": []}'), 200, b"Content-Encoding: gzip\r\n"),
            "stall",
            "health",
            NO_HEALTH,
        ),
        (reply(b"x" * ((1 << 20) + 1)), "stall", "nonsense", "answered more than 1 MiB to /health"),
    ],
)
async def test_answer_that_is_none_is_a_verdict_after_one_request(
    data: bytes, then: str, reason: str, detail: str
) -> None:
    member = Scripted(saying(data, then=then))
    async with probing(member) as running:
        policy = BRIEF if reason == "timeout" else ONCE
        running.prober.apply(replace(policy, versions=False), [target("a", member)])
        report = await running.first()
        assert (report.healthy, report.reasons, report.details) == (False, (reason,), (detail,))
        assert len(member.requests) == 1


async def test_chunk_that_is_none_is_a_verdict() -> None:
    member = Scripted(saying(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n", then="stall"))
    async with probing(member) as running:
        running.prober.apply(replace(ONCE, versions=False), [target("a", member)])
        report = await running.first()
        assert not report.healthy
        assert report.reasons in {("reset",), ("nonsense",)}


@pytest.mark.parametrize("pieces", ["fast", "slow", "interim"])
async def test_endless_answer_ends_by_its_size_or_the_time_out(pieces: str) -> None:
    async def script(conn: Conn) -> None:
        await conn.request()
        if pieces != "interim":
            conn.send(HEAD, b"Transfer-Encoding: chunked\r\n\r\n")
        while not conn.writer.is_closing() and not conn.reader.at_eof():
            if pieces == "interim":
                conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                conn.send(b"10000\r\n", b"x" * 65536, b"\r\n") if pieces == "fast" else conn.send(
                    b"1\r\n \r\n"
                )
            await conn.flush()
            await asyncio.sleep(0 if pieces == "fast" else 0.001)

    member = Scripted(script)
    async with probing(member) as running:
        policy = replace(ONCE, versions=False, timeout=5 if pieces == "fast" else 0.5)
        running.prober.apply(policy, [target("a", member)])
        report = await running.first()
        assert report.reasons == ("nonsense" if pieces == "fast" else "timeout",)
        assert len(member.requests) == 1


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", HEAD + b"Content-Length: 9\r\n\r\n{"])
async def test_health_is_asked_after_versions_that_broke_off(data: bytes) -> None:
    async def script(conn: Conn) -> None:
        request = await conn.request()
        conn.send(data if request.target == b"/versions" else health(REGISTRY, QUOTA))
        await conn.flush()

    member = Scripted(script)
    async with probing(member) as running:
        running.prober.apply(ONCE, [target("a", member)])
        report = await running.first()
        assert report.reasons == ("reset",)
        assert report.details == ("broke off its response to /versions",)
        assert report.checks == {"versions": False, "Docker registry": True, "Pod quota": True}
        assert report.quota == 300
        assert [request.target for request in member.requests] == [b"/versions", b"/health"]


async def test_both_that_fail_are_told() -> None:
    hub = Hub(reply(b"", 404), reply(b"", 500))
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub)])
        report = await running.first()
        assert report.reasons == ("status",)
        assert report.details == ("answered 404 to /versions", "answered 500 to /health")


# --- no connection ---


async def test_refused_connection_is_a_verdict() -> None:
    with refusing() as nobody:
        async with probing() as running:
            running.prober.apply(ONCE, [target("a", nobody)])
            assert await running.first() == Report(
                name="a",
                healthy=False,
                reasons=("connect",),
                checks={"versions": False},
                details=("no connection: Connection refused",),
            )


async def test_connection_that_never_comes_is_a_verdict_after_one_time_out() -> None:
    with blackhole() as hole:
        async with probing() as running:
            running.prober.apply(BRIEF, [target("a", hole)])
            report = await running.first()
            assert report.reasons == ("timeout",)
            assert report.details == ("no connection within 0.5 s",)


async def test_health_elsewhere_is_asked_when_versions_cannot_be() -> None:
    hub = Hub()
    with refusing() as nobody:
        async with probing(hub) as running:
            running.prober.apply(ONCE, [target("a", hub, versions=f"{nobody}/versions")])
            report = await running.first()
            assert (report.healthy, report.reasons, report.quota) == (False, ("connect",), 300)
            assert hub.targets == [b"/health"]


async def test_name_that_does_not_resolve_is_a_verdict() -> None:
    async with probing() as running:
        running.prober.apply(replace(ONCE, timeout=2), [target("a", "http://no-such-member.invalid")])
        report = await running.first()
        assert report.reasons == ("dns",)
        assert report.details[0] in {
            "the name does not resolve",
            "the name did not resolve within 2 s",
        }


async def test_probe_follows_a_name_that_moves_and_outlives_its_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with name_server() as zone:
        monkeypatch.setenv("FEDPROXY_NAMESERVERS", zone.address)
        old = Hub(address=("127.0.0.2", 0))
        async with probing(old) as running:
            new = Hub(address=("127.0.0.3", old.port))
            await new.start()
            zone.holds("member.test", "127.0.0.2")
            running.prober.apply(QUICK, [target("a", f"http://member.test:{old.port}")])
            assert (await running.first()).healthy
            zone.holds("member.test", "127.0.0.3")
            await until(lambda: new.rounds, "the new address is asked")
            asked = old.rounds
            zone.down = True
            await until(lambda: new.rounds > 20, "it is asked on, whatever the name server does")
            assert old.rounds <= asked + 1
            assert [report.healthy for report in running.seen] == [True]
            await running.prober.close()
            await new.stop()


@pytest.mark.parametrize("url", ["http://127.1", "http://[::1", "http://" + "a" * 70 + ".invalid", "nothing"])
async def test_address_that_no_client_takes_is_a_verdict(url: str) -> None:
    async with probing() as running:
        running.prober.apply(ONCE, [target("a", url)])
        report = await running.first()
        assert report.reasons[0] in {"connect", "dns"}
        assert report.details[0].isprintable()


async def test_member_on_a_unix_socket_is_asked_there(tmp_path: Path) -> None:
    hub = Local(tmp_path / "member.sock")
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", "http://localhost", socket=str(hub.path))])
        assert (await running.first()).healthy
        await until(lambda: hub.rounds >= 2, lambda: hub.targets)
        assert hub.targets[:4] == [b"/versions", b"/health"] * 2
        assert hub.requests[0].value("host") == b"localhost"


async def test_unix_socket_that_is_not_there_is_a_verdict(tmp_path: Path) -> None:
    async with probing() as running:
        running.prober.apply(ONCE, [target("a", "http://localhost", socket=str(tmp_path / "none.sock"))])
        report = await running.first()
        assert report.reasons == ("connect",)
        assert report.details == ("no connection: No such file or directory",)


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def told_of(certificate: trustme.LeafCert, trust: ssl.SSLContext | None) -> Report:
    hub = Secure(serving(certificate))
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub, tls=trust)])
        return await running.first()


async def test_member_with_a_good_certificate_is_healthy(authority: trustme.CA) -> None:
    assert (await told_of(authority.issue_cert("localhost"), trusting(authority))).healthy


@pytest.mark.parametrize(
    ("start", "end", "detail"),
    [(-9, -1, "the certificate has expired"), (1, 9, "the certificate is not valid yet")],
)
async def test_certificate_out_of_its_time_is_a_verdict(
    authority: trustme.CA, start: int, end: int, detail: str
) -> None:
    now = datetime.now(UTC)
    certificate = authority.issue_cert(
        "localhost", not_before=now + timedelta(days=start), not_after=now + timedelta(days=end)
    )
    report = await told_of(certificate, trusting(authority))
    assert (report.reasons, report.details) == (("tls",), (detail,))


async def test_certificate_of_an_unknown_authority_is_a_verdict(authority: trustme.CA) -> None:
    report = await told_of(authority.issue_cert("localhost"), None)
    assert report.reasons == ("tls",)
    assert report.details == ("the certificate is signed by an unknown authority",)


async def test_certificate_for_another_name_is_a_verdict(authority: trustme.CA) -> None:
    report = await told_of(authority.issue_cert("elsewhere.example"), trusting(authority))
    assert (report.reasons, report.details) == (("tls",), ("the certificate is for another name",))


async def test_self_signed_certificate_is_a_verdict(authority: trustme.CA) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with authority.private_key_pem.tempfile() as key, authority.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    hub = Secure(context)
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub)])
        report = await running.first()
        assert (report.reasons, report.details) == (("tls",), ("the certificate is self-signed",))


async def test_plain_http_where_tls_is_due_is_a_verdict() -> None:
    async def script(conn: Conn) -> None:
        await conn.reader.readexactly(5)
        conn.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await conn.stall()

    member = Scripted(script)
    async with probing(member) as running:
        running.prober.apply(ONCE, [target("a", f"https://{member.authority}")])
        report = await running.first()
        assert report.reasons == ("tls",)
        assert report.details[0].startswith("the TLS handshake failed: ")


async def test_connection_to_a_peer_that_hangs_behind_tls_is_not_kept(authority: trustme.CA) -> None:
    context = serving(authority.issue_cert("localhost"))

    def shake_hands() -> socket.socket:
        accepted, _ = listener.accept()
        return socket.socket(fileno=context.wrap_socket(accepted, server_side=True).detach())

    def read_to_the_end(peer: socket.socket) -> None:
        peer.settimeout(10)
        while peer.recv(65536):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        async with probing() as running:
            hands = asyncio.create_task(asyncio.to_thread(shake_hands))
            policy = replace(ONCE, versions=False, timeout=1)
            running.prober.apply(policy, [target("a", url, tls=trusting(authority))])
            with await hands as peer:
                assert (await running.first()).details == ("no complete response to /health within 1 s",)
                await asyncio.to_thread(read_to_the_end, peer)


async def test_member_that_hangs_behind_tls_is_asked_for_both(authority: trustme.CA) -> None:
    hub = Secure(serving(authority.issue_cert("localhost")))
    hub.answers.clear()
    async with probing(hub) as running:
        running.prober.apply(BRIEF, [target("a", hub, tls=trusting(authority))])
        assert (await running.first()).reasons == ("timeout",)
        assert hub.targets == [b"/versions", b"/health"]


# --- a config is put in force ---


async def test_new_targets_start_at_once_and_gone_ones_stop() -> None:
    one, two = Hub(), Hub()
    async with probing(one, two) as running:
        running.prober.apply(ONCE, [target("a", one)])
        await running.first("a")
        running.prober.apply(QUICK, [target("b", two)])
        await running.first("b")
        await until(lambda: two.rounds >= 3, lambda: two.targets)
        assert one.rounds == 1
        assert list(running.prober.reports) == ["b"]


async def test_target_that_is_gone_in_the_middle_of_a_round_is_not_reported() -> None:
    hub = Hub()
    hub.answers.clear()
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub)])
        await until(lambda: hub.has(1), "asked")
        running.prober.apply(ONCE, [])
        await until(lambda: hub.connections[0].reader.at_eof(), "left alone")
        assert not running.seen
        assert not running.prober.reports


async def test_unchanged_target_keeps_its_health_and_its_schedule(authority: trustme.CA) -> None:
    hub, other = Hub(health_=SICK), Hub()
    async with probing(hub, other) as running:
        running.prober.apply(ONCE, [target("a", hub, tls=trusting(authority))])
        report = await running.shows("a", healthy=False)
        running.prober.apply(ONCE, [target("a", hub, tls=trusting(authority)), target("b", other)])
        await running.first("b")
        assert running.prober.reports["a"] is report
        assert hub.rounds == 1


async def test_target_that_moved_is_a_new_one() -> None:
    sick, well = Hub(health_=SICK), Hub()
    async with probing(sick, well) as running:
        running.prober.apply(ONCE, [target("a", sick)])
        await running.shows("a", healthy=False)
        running.prober.apply(replace(ONCE, rise=5), [target("a", well)])
        await running.shows("a", healthy=True)
        assert (sick.rounds, well.rounds) == (1, 1)


async def test_shorter_interval_brings_the_next_round_forward_and_a_longer_one_does_not() -> None:
    hub = Hub()
    async with probing(hub) as running:
        running.prober.apply(ONCE, [target("a", hub)])
        await running.first()
        running.prober.apply(replace(ONCE, interval=7200), [target("a", hub)])
        assert hub.rounds == 1
        running.prober.apply(QUICK, [target("a", hub)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)


async def test_changed_rise_and_fall_hold_from_the_next_round() -> None:
    hub = Hub(health_=SICK)
    async with probing(hub) as running:
        running.prober.apply(replace(QUICK, fall=10**6), [target("a", hub)])
        await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        assert running.prober.reports["a"].healthy
        running.prober.apply(QUICK, [target("a", hub)])
        await running.shows("a", healthy=False)


async def test_versions_that_were_not_asked_for_a_while_are_no_reference() -> None:
    prime, hub = Hub(), Hub(versions=in_json(OTHER))
    async with probing(prime, hub) as running:
        targets = [target("p", prime, prime=True), target("a", hub)]
        running.prober.apply(QUICK, targets)
        await running.shows("a", healthy=False)
        running.prober.apply(replace(QUICK, versions=False), targets)
        await running.shows("a", healthy=True)
        await running.shows("p", checks={"Docker registry": True, "Pod quota": True})
        prime.versions = in_json(OTHER)
        running.prober.apply(QUICK, targets)
        await running.shows(
            "a", healthy=True, checks={"versions": True, "Docker registry": True, "Pod quota": True}
        )
        assert sum(not report.healthy for report in running.of("a")) == 1


# --- the prober itself ---


async def test_error_that_nobody_thought_of_is_told_and_the_next_round_comes() -> None:
    hub = Hub()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with probing(hub) as running:
        broken: Any = "no context"
        running.prober.apply(QUICK, [target("a", hub, tls=broken), target("b", hub)])
        await until(lambda: len(told) >= 2, lambda: told)
        assert isinstance(told[0]["exception"], TypeError)
        assert told[0]["message"] == "the probe of a failed with an error; the next round follows"
        running.prober.apply(QUICK, [target("a", hub)])
        assert (await running.first()).healthy


async def test_report_that_fails_ends_no_probing() -> None:
    hub = Hub()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def report(_: Report) -> None:
        raise LookupError

    async with probing(hub):
        prober = Prober(report)
        try:
            prober.apply(QUICK, [target("a", hub)])
            await until(lambda: hub.rounds >= 3, lambda: hub.targets)
        finally:
            await prober.close()
    assert [type(context["exception"]) for context in told] == [LookupError]


async def test_round_that_somebody_else_cancels_is_followed_by_the_next() -> None:
    hub = Hub()
    hub.answers.clear()
    async with probing(hub) as running:
        running.prober.apply(QUICK, [target("a", hub)])
        await until(lambda: hub.has(1), "asked")
        (round_,) = (task for task in asyncio.all_tasks() if task.get_name() == "probe of a")
        round_.cancel()
        hub.answers.set()
        assert (await running.first()).healthy


async def test_close_ends_rounds_that_are_under_way_and_may_come_twice() -> None:
    hanging, hub = Hub(), Hub()
    hanging.answers.clear()
    async with probing(hanging, hub) as running:
        running.prober.apply(QUICK, [target("h", hanging), target("a", hub)])
        await until(lambda: hanging.has(1), "asked")
        await running.first()
        await running.prober.close()
        rounds = hub.rounds
        await running.prober.close()
        assert running.prober.reports["a"].healthy
        assert hub.rounds == rounds


async def test_prober_that_never_had_a_config_closes() -> None:
    async with probing() as running:
        assert not running.prober.reports


@pytest.mark.parametrize(
    ("health_", "versions", "one"),
    [
        ("http://a/health", "http://a/versions?x=/", True),
        ("http://a:1/health", "http://a:2/health", False),
        ("http://a/health", "https://a/health", False),
    ],
)
def test_origin_of_both_urls(health_: str, versions: str, one: bool) -> None:
    assert Target("a", health_, versions).one_origin is one


# --- what this process lacked ---


async def test_answer_that_came_while_this_process_slept_is_no_failure() -> None:
    hub = Hub()
    hub.answers.clear()
    async with probing(hub) as running:
        running.prober.apply(BRIEF, [target("a", hub)])
        await until(lambda: hub.targets, "a request")
        # Nothing turns for longer than a probe may take.
        time.sleep(1.6)
        hub.answers.set()
        await until(lambda: running.seen, "a report")
        assert [report.healthy for report in running.seen] == [True]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_probe_for_which_this_process_has_no_socket_is_no_verdict(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    tried: list[object] = []

    async def start_connection(*asked: object, **_: object) -> None:
        tried.append(asked)
        raise OSError(number, os.strerror(number))

    async with probing(hub) as running:
        monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
        running.prober.apply(QUICK, [target("a", hub)])
        await until(lambda: len(tried) > 3, "rounds")
        assert running.seen == []
        monkeypatch.undo()
        await until(lambda: running.seen, "a report")
        assert running.seen[0].healthy
