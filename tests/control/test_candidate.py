"""What is said of candidates that are well, and of those that are not: a verdict, whatever they do."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trustme

from fedproxy.control.candidate import Candidate, Check, CheckOutcome, examine
from fedproxy.control.candidate.client import Heard
from fedproxy.control.candidate.network import judge_certificate
from fedproxy.control.candidate.stream import find_token, judge_moves
from fedproxy.demo.toy import Mode, ToyBinderHub
from tests.rig import Conn, Script, Scripted, answer, blackhole, chunked, guard, per_request, refusing
from tests.rig.candidate import (
    BUILD,
    CORS,
    EVENT_STREAM,
    EVERY,
    FAILED,
    HEALTH,
    NO_LAUNCH,
    OK,
    PAGE,
    PATIENT,
    PREFLIGHT,
    SKIPPED,
    USUAL,
    VERSIONS,
    WARNING,
    WELL,
    Answers,
    event,
    head,
    hub,
    member,
    not_ok,
    of,
    piece,
    probe,
    probed,
    stream,
    whole,
)

JOINING = Path(__file__).parents[2] / "docs" / "joining.md"

# Well


async def test_candidate_that_is_well_is_fit_to_join() -> None:
    toy = ToyBinderHub("toy", pace=0.3)
    await toy.start()
    try:
        report = await probe(toy.url)
        assert toy.launches == 2
    finally:
        await toy.stop()
    assert report.fit
    assert not_ok(report) == {}
    checks = of(report)
    assert checks["pods"].values == {"pods": {"total": 37, "build": 4, "user": 33}, "quota": 300}
    assert checks["health: Docker registry"].outcome is OK
    assert checks["static files"].values["bytes"] > 1_500_000
    assert checks["versions"].values["versions"]["binderhub"] == "1.0.0-toy"
    assert checks["launch"].seen == "started: waiting; abandoned"


async def test_candidate_is_asked_as_an_edge_asks_and_each_check_is_told() -> None:
    told: list[Check] = []
    async with member(hub(WELL)) as candidate:
        report = await examine(Candidate(candidate.url, timeout=PATIENT), told.append)
        requests = candidate.requests
        authority = candidate.authority.encode()
    assert not_ok(report) == {}
    assert tuple(told) == report.checks
    assert [request.target for request in requests] == [
        b"/versions",
        b"/versions",
        b"/health",
        b"/",
        b"/static/bundle.js?v=1&w",
        BUILD,
        NO_LAUNCH,
        BUILD,
        b"/versions",
    ]
    assert {request.value("Host") for request in requests} == {authority}
    launch, _, preflight = requests[5:8]
    assert (preflight.method, preflight.value("Origin")) == (b"OPTIONS", b"https://embed.example")
    assert launch.values("Accept") == [b"text/event-stream"]
    assert launch.value("Origin") == b"https://mybinder.org"
    assert b"gzip" in (launch.value("Accept-Encoding") or b"")
    assert of(report)["build token"].seen == "there is no reference"


async def test_another_launch_and_origin_are_asked_for() -> None:
    answers: Answers = {**WELL, b"/build/gh/a/b%2Fc/HEAD": WELL[BUILD]}
    answers[b"OPTIONS /build/gh/a/b%2Fc/HEAD"] = WELL[PREFLIGHT]
    async with member(hub(answers)) as candidate:
        await probe(candidate.url, launch="gh/a/b%2Fc/HEAD", origin="https://other.example")
        launch = candidate.requests[5]
    assert (launch.target, launch.value("Origin")) == (b"/build/gh/a/b%2Fc/HEAD", b"https://other.example")


def test_every_check_is_explained_to_candidates() -> None:
    page = JOINING.read_text().partition("\n## The checks\n")[2]
    explained = re.findall(r"^\| `([a-z][a-z0-9 -]*)(?:: NAME)?` \|", page, re.MULTILINE)
    assert list(dict.fromkeys(explained)) == EVERY


# Not well


async def test_full_member_could_join_and_a_sick_one_could_not() -> None:
    toy = ToyBinderHub("toy")
    await toy.start()
    try:
        await toy.set_mode(Mode.FULL)
        full = await probe(toy.url)
        await toy.set_mode(Mode.SICK)
        sick = await probe(toy.url)
    finally:
        await toy.stop()
    assert full.fit
    assert not_ok(full) == {"pods": WARNING, "launch": WARNING}
    assert not sick.fit
    assert not_ok(sick) == {"health": FAILED, "health: JupyterHub API": FAILED}
    assert of(sick)["health"].seen == "503: reports that JupyterHub API is not ok"


@pytest.mark.parametrize(
    ("changes", "name", "outcome", "seen"),
    [
        ({b"/versions": whole(b"?")}, "versions", FAILED, "answered something other than its versions"),
        ({b"/versions": whole(b"", b"404 Not Found")}, "versions", FAILED, "answered 404"),
        (
            {b"/versions": whole(b"", b"302 Found", b"Location: /versions\r\n")},
            "versions",
            FAILED,
            "answered 302, a redirect to /versions",
        ),
        ({b"/health": whole(b"[]")}, "health", FAILED, "200: answered something other than its health"),
        ({b"/health": whole(b"x", b"500 No\x1b[31m")}, "health", FAILED, "answered 500"),
        ({b"/health": whole(b"x" * (1 << 20) + b"x")}, "health", FAILED, "answered more than 1 MiB"),
        (
            {b"/health": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"},
            "health",
            FAILED,
            "sent no valid HTTP",
        ),
        ({b"/health": whole(b'{"ok": true, "checks": []}')}, "pods", WARNING, "no quota"),
        (
            {b"/health": whole(json.dumps(HEALTH).replace("100", "13").encode())},
            "pods",
            WARNING,
            "3 of 13",
        ),
        ({b"/": whole(b"", b"404 Not Found")}, "static files", FAILED, "/: answered 404"),
        ({b"/": whole(b"<p>no script")}, "static files", SKIPPED, "its page at / references no script"),
        (
            # With a pattern that can match in two ways this takes an hour.
            {b"/": whole(b"'/" + b".js?" * 200_000)},
            "static files",
            SKIPPED,
            "its page at / references no script",
        ),
        (
            {b"/": whole(b'<script src="/s.js">'), b"/s.js": whole(b"", b"404 Not Found")},
            "static files",
            FAILED,
            "/s.js: answered 404",
        ),
        (
            {b"/": whole(b'<script src="/s.js">'), b"/s.js": whole(b"x" * ((32 << 20) + 1))},
            "static files",
            FAILED,
            "/s.js: answered more than 32 MiB",
        ),
        ({BUILD: whole(b"", b"404 Not Found")}, "event stream", FAILED, "answered 404"),
        (
            {BUILD: whole(b"", b"301 Moved", b"Location: https://h/\r\n")},
            "event stream",
            FAILED,
            "answered 301, a redirect to https://h/",
        ),
        ({BUILD: whole(b"x", fields=CORS)}, "event stream", FAILED, "Content-Type is missing"),
        ({BUILD: b"garbage\r\n\r\n"}, "event stream", FAILED, "sent no valid HTTP"),
    ],
)
async def test_answer_that_is_not_as_it_should_be_is_said(
    changes: Answers, name: str, outcome: CheckOutcome, seen: str
) -> None:
    report = await probed(changes)
    check = of(report)[name]
    assert (check.outcome, check.seen[: len(seen)]) == (outcome, seen)
    assert report.fit is (outcome is not FAILED)


async def test_versions_are_compared_with_the_references() -> None:
    other: Answers = {b"/versions": whole(json.dumps({**VERSIONS, "builder": "other"}).encode())}
    async with member(hub({**WELL, **other})) as reference:
        report = await probed(reference=reference.url)
    check = of(report)["versions"]
    assert not_ok(report) == {"versions": FAILED}
    assert check.seen.startswith("versions differ")
    assert "builder" in check.seen


@pytest.mark.parametrize("silent", [True, False])
async def test_reference_that_does_not_answer_is_no_fault_of_the_candidate(silent: bool) -> None:
    with refusing() as nobody:
        async with member(hub({**WELL, b"/versions": whole(b"", b"500 No")})) as failing:
            report = await probed(reference=nobody if silent else failing.url)
    assert not_ok(report) == {"versions": WARNING}
    why = "no connection: Connection refused" if silent else "answered 500"
    assert of(report)["versions"].seen == f"the reference: {why}"


async def test_connection_that_is_closed_after_one_answer_is_a_warning() -> None:
    close = whole(json.dumps(VERSIONS).encode(), fields=b"Connection: close\r\n")
    assert not_ok(await probed({b"/versions": close})) == {"keep-alive": WARNING}


async def test_second_request_that_is_not_answered_is_a_failure() -> None:
    answers = iter([WELL[b"/versions"], b"garbage\r\n\r\n", WELL[b"/versions"]])

    async def versions(conn: Conn) -> None:
        what = next(answers)
        assert isinstance(what, bytes)
        conn.send(what)

    assert not_ok(await probed({b"/versions": versions})) == {"keep-alive": FAILED}


# The build token

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJhdWQiOiJnaC9hL2IvSEVBRCJ9." + "s-_3" * 60
LAUNCH_PAGE = b"/v2/gh/binder-examples/requirements/HEAD"
WITH_TOKEN = BUILD + b"?build_token=" + TOKEN.encode()


def minting(page: bytes, status: bytes = b"200 OK") -> Answers:
    return {b"/versions": WELL[b"/versions"], LAUNCH_PAGE: whole(page, status)}


PAGE_CONFIG = b'<script>window.pageConfig = {"baseUrl": "/", "buildToken": "%b"};</script>' % TOKEN.encode()


def said(**members: Any) -> bytes:
    return head() + chunked(event(**members))


async def test_launch_carries_the_token_of_the_references_page_and_is_the_only_one() -> None:
    async with (
        member(hub(minting(PAGE_CONFIG))) as reference,
        member(hub({**WELL, WITH_TOKEN: stream})) as candidate,
    ):
        report = await probe(candidate.url, reference=reference.url, origin="https://hub.example")
        page, launches = reference.requests[-1], candidate.requests[5:6]
    checks = of(report)
    assert report.fit
    assert (checks["build token"].outcome, checks["build token"].seen) == (OK, "accepted")
    assert (page.target, page.value("Origin")) == (LAUNCH_PAGE, b"https://hub.example")
    assert [(launch.target, launch.value("Origin")) for launch in launches] == [
        (WITH_TOKEN, b"https://hub.example")
    ]
    assert TOKEN not in repr(report)


async def test_candidate_that_refuses_the_token_fails_and_the_other_checks_do_not() -> None:
    refusal = said(phase="failed", status_code=403, message="Invalid build token\n")
    async with (
        member(hub(minting(PAGE_CONFIG))) as reference,
        member(hub({**WELL, WITH_TOKEN: refusal})) as candidate,
    ):
        report = await probe(candidate.url, reference=reference.url)
        targets = [request.target for request in candidate.requests[5:7]]
    assert not report.fit
    assert not_ok(report) == {"build token": FAILED}
    check = of(report)["build token"]
    assert check.seen == "refused: Invalid build token"
    assert "BINDERHUB_BUILD_TOKEN_SECRET to the same value on all members" in check.fix
    assert targets == [WITH_TOKEN, BUILD]
    assert TOKEN not in repr(report)


@pytest.mark.parametrize(
    ("page", "seen"),
    [
        (whole(PAGE), "the reference's page has no build token"),
        (whole(PAGE_CONFIG, b"404 Not Found"), "the reference's page: answered 404"),
        (
            whole(b"", b"302 Found", b"Location: /hub/login?state=s3cret\r\n"),
            "the reference's page: answered 302, a redirect to /hub/login?state=***",
        ),
        (whole(b"x" * (1 << 20) + PAGE_CONFIG), "the reference's page: answered more than 1 MiB"),
    ],
)
async def test_reference_without_a_token_is_no_fault_of_the_candidate(page: bytes, seen: str) -> None:
    async with member(hub({b"/versions": WELL[b"/versions"], LAUNCH_PAGE: page})) as reference:
        report = await probed(reference=reference.url)
    assert not_ok(report) == {}
    check = of(report)["build token"]
    assert (check.outcome, check.seen) == (SKIPPED, seen)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (said(phase="failed", status_code=429, message="Rate limit"), "the launch failed: Rate limit"),
        (said(phase="failed", message=f"No {TOKEN}"), "the launch failed: No ***"),
        (said(message="no phase"), "no event arrived"),
        (
            whole(b"", b"301 Moved", b"Location: https://h%b\r\n" % WITH_TOKEN),
            f"answered 301, a redirect to https://h{BUILD.decode()}?build_token=***",
        ),
        (b"garbage\r\n\r\n", "sent no valid HTTP"),
    ],
)
async def test_launch_that_shows_nothing_of_the_token_is_no_verdict_on_it(answer: bytes, seen: str) -> None:
    async with member(hub(minting(PAGE_CONFIG))) as reference:
        report = await probed({WITH_TOKEN: answer}, reference=reference.url)
    check = of(report)["build token"]
    assert (check.outcome, check.seen) == (SKIPPED, seen)
    assert TOKEN[:20] not in repr(report)


@pytest.mark.parametrize(
    ("page", "token"),
    [
        (PAGE_CONFIG.decode(), TOKEN),
        ("{'buildToken' : 'a.b-c'}", "a.b-c"),
        ("{buildToken:\n'a.b'}", "a.b"),
        (f'<meta id="build-token" data-token="{TOKEN}">', TOKEN),
        ('<meta id="api-token" data-token="x">\n<meta data-token=a.b id=build-token>', "a.b"),
        ('<META  data-token = "a.b"\n id = "build-token" />', "a.b"),
        ('<meta id="build-token" data-token="">', ""),
        ('<meta id="build-token"><meta id="api-token" data-token="x">', ""),
        ('{"buildToken": null, "x": "y"}', ""),
        ('{"buildToken": "a b"}', ""),
        ('{"buildToken": "a&b=c"}', ""),
        (f'{{"buildToken": "{"x" * 4097}"}}', ""),
        ('{"rebuildToken": "a"}', ""),
        ("", ""),
    ],
)
def test_token_is_found_in_pages_of_any_age(page: str, token: str) -> None:
    assert find_token(page) == token


async def test_event_after_comments_is_waited_for() -> None:
    async def comments(conn: Conn) -> None:
        conn.send(head())
        for _ in range(20):
            conn.send(piece(b":keepalive\n\n"))
            await asyncio.sleep(0.02)
        conn.send(chunked(event(phase="failed", message="Invalid build token\n")))

    async with member(hub(minting(PAGE_CONFIG))) as reference:
        report = await probed({WITH_TOKEN: comments}, reference=reference.url)
    assert not_ok(report) == {"build token": FAILED}


async def test_hub_below_a_path_is_asked_there() -> None:
    answers: Answers = {
        target.replace(b"/", b"/services/binder/", 1): answer
        for target, answer in WELL.items()
        if b"/static/" not in target
    }
    answers[b"/static/bundle.js?v=1&w"] = WELL[b"/static/bundle.js?v=1&w"]
    answers[b"/services/binder" + WITH_TOKEN] = stream
    answers[b"/services/binder" + LAUNCH_PAGE] = whole(PAGE_CONFIG)
    async with member(hub(answers)) as candidate:
        report = await probe(candidate.url, reference=candidate.url, base_path="/services/binder/")
    assert not_ok(report) == {"membership": WARNING}
    assert of(report)["build token"].outcome is OK


# The stream


MANY = [event(phase="building", message=f"step {number}") for number in range(40)]
FEW = [event(phase=phase) for phase in ("waiting", "built", "launching", "ready")]


@pytest.mark.parametrize(
    ("response", "outcome", "seen"),
    [
        (head() + chunked(*FEW), FAILED, "all 4 events arrived at once, then it ended"),
        (head() + piece(*FEW), FAILED, "all 4 events arrived at once, broke off its response"),
        (head() + piece(*MANY), FAILED, "the first 40 events arrived at once, after "),
        (head() + chunked(), FAILED, "it ended without an event"),
        (head(), FAILED, "broke off its response"),
        (head() + chunked(event(phase="failed", message="No")), SKIPPED, "the launch failed at once"),
        (head() + piece(b":" + b"x" * (1 << 20)), FAILED, "all 0 events arrived at once, "),
    ],
)
async def test_stream_that_does_not_move_is_told_from_one_that_failed(
    response: bytes, outcome: CheckOutcome, seen: str
) -> None:
    async def at_once(conn: Conn) -> None:
        conn.send(response)
        await conn.flush()

    report = await probed({BUILD: at_once})
    check = of(report)["unbuffered"]
    assert (check.outcome, check.seen[: len(seen)]) == (outcome, seen)


async def test_failed_launch_is_said_in_the_members_words() -> None:
    said = event(phase="failed", message="Rate limit exceeded.\n\x1b[31m")
    report = await probed({BUILD: head() + chunked(said)})
    assert report.fit
    check = of(report)["launch"]
    assert (check.outcome, check.seen) == (WARNING, "failed: Rate limit exceeded.  [31m")


async def test_comments_are_a_sign_of_life() -> None:
    async def comments(conn: Conn) -> None:
        conn.send(head())
        while not conn.reader.at_eof():
            conn.send(piece(b":keepalive\n\n"))
            await asyncio.sleep(0.02)

    assert not_ok(await probed({BUILD: comments})) == {"launch": SKIPPED}


async def test_stream_that_stops_and_stays_open_is_left_after_a_while() -> None:
    async def stop(conn: Conn) -> None:
        conn.send(head() + piece(*FEW))
        await conn.stall()

    report = await probed({BUILD: stop}, timeout=0.5)
    check = of(report)["unbuffered"]
    assert (check.outcome, check.seen) == (
        FAILED,
        "all 4 events arrived at once, then nothing more arrived",
    )


async def test_stream_that_never_begins_is_left_after_a_while() -> None:
    async def nothing(conn: Conn) -> None:
        await conn.stall()

    report = await probed({BUILD: nothing}, timeout=0.5)
    rest = ("stream headers", "cors", "launch", "unbuffered", "event pacing")
    assert not_ok(report) == {"event stream": FAILED} | dict.fromkeys(rest, SKIPPED)
    assert of(report)["event stream"].seen == "no response head within 3 s"
    assert of(report)["cors"].seen == "because of: event stream"


async def test_stream_with_a_length_was_held_back() -> None:
    fields = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\n" + CORS
    report = await probed({BUILD: whole(b"".join(FEW), fields=fields)})
    assert not_ok(report) == {"event stream": FAILED, "unbuffered": FAILED}
    assert of(report)["event stream"].seen.startswith("Content-Length ")


async def test_compressed_stream_is_held_back() -> None:
    fields = EVENT_STREAM + CORS + b"Content-Encoding: gzip\r\n"
    report = await probed({BUILD: head(fields) + chunked(gzip.compress(FEW[0]))})
    assert of(report)["event stream"].seen == "Content-Encoding gzip"
    assert of(report)["launch"].values == {"phases": ["waiting"]}
    assert not report.fit
    garbage = await probed({BUILD: head(fields) + chunked(b"garbage")})
    assert of(garbage)["unbuffered"].seen == "all 0 events arrived at once, then it ended"


@pytest.mark.parametrize("allowed", [b"", b"Access-Control-Allow-Origin: https://else.example\r\n"])
async def test_page_elsewhere_that_may_not_launch_is_a_warning(allowed: bytes) -> None:
    report = await probed({BUILD: head(EVENT_STREAM + allowed) + chunked(*FEW)})
    assert of(report)["cors"].outcome is WARNING


def heard(*reads: tuple[float, int], phase: str = "building") -> Heard:
    return Heard(200, {}, reads, ({"phase": phase},))


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        (heard((1.0, 1), (1.11, 1)), OK),
        (heard((25.0, 0), (50.0, 0)), OK),
        (heard((1.0, 16), (1.2, 1)), OK),
        (heard((1.0, 17), (1.2, 1)), FAILED),
        (heard((1.0, 1), (1.05, 1)), FAILED),
        (heard((1.0, 1), phase="failed"), SKIPPED),
        (heard(), FAILED),
    ],
)
def test_stream_moves_if_its_reads_are_apart_and_small(what: Heard, outcome: CheckOutcome) -> None:
    assert judge_moves(what).outcome is outcome


# The network


async def test_name_that_does_not_resolve_ends_it() -> None:
    report = await probe("http://no-such-name.invalid")
    assert not report.fit
    rest = dict.fromkeys(EVERY[3:], SKIPPED)
    assert {name: check.outcome for name, check in of(report).items()} == {
        "address": WARNING,
        "membership": SKIPPED,
        "name": FAILED,
        **rest,
    }
    assert of(report)["name"].seen == "no-such-name.invalid does not resolve"
    assert of(report)["unbuffered"].seen == "because of: name"


async def test_addresses_of_a_name_are_each_tried() -> None:
    async with member(hub(WELL)) as candidate:
        report = await probe(candidate.url.replace("127.0.0.1", "localhost"))
    checks = of(report)
    addresses = checks["name"].values["addresses"]
    assert "127.0.0.1" in addresses
    # Only 127.0.0.1 is listened at.
    refused = [f"{address}: Connection refused" for address in addresses if address != "127.0.0.1"]
    assert checks["connection"].values["refused"] == refused
    assert checks["connection"].outcome is (WARNING if refused else OK)
    assert checks["ipv6"].outcome is (WARNING if refused else OK)
    assert report.fit


async def test_refused_connection_ends_it() -> None:
    with refusing() as nobody:
        report = await probe(nobody)
    assert not_ok(report) == {"connection": FAILED} | dict.fromkeys(
        [name for name in EVERY[4:] if name not in USUAL], SKIPPED
    )
    assert of(report)["connection"].seen == "127.0.0.1: Connection refused"


async def test_connection_that_nobody_takes_is_given_up() -> None:
    with blackhole() as nobody:
        report = await probe(nobody, timeout=0.2)
    assert of(report)["connection"].seen == "127.0.0.1: nothing within 0.2 s"
    assert not report.fit


async def leave(how: Callable[[], None]) -> None:
    how()


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        (answer(b"SSH-2.0-garbage\r\n\r\n"), "sent no valid HTTP"),
        (answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), "no complete response within 0.5 s"),
        (
            per_request(lambda conn, _: leave(conn.close)),
            "closed the connection without an answer",
        ),
        (per_request(lambda conn, _: leave(conn.reset)), "Connection reset by peer"),
        (answer(whole(b"x")[:-1] + b"\r\n" * 3), "answered something other than its versions"),
        (
            answer(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
            "sent no valid HTTP",
        ),
    ],
)
async def test_candidate_that_speaks_nonsense_gets_a_verdict(script: Script, seen: str) -> None:
    async with member(script) as candidate:
        report = await probe(candidate.url, timeout=0.5)
    check = of(report)["versions"]
    assert (check.outcome, check.seen) == (FAILED, seen)


async def test_member_that_resets_or_hangs_gets_a_verdict() -> None:
    toy = ToyBinderHub("toy")
    await toy.start()
    try:
        for mode in Mode.RESETTING, Mode.HANGING:
            await toy.set_mode(mode)
            report = await probe(toy.url, timeout=0.5)
            assert of(report)["versions"].outcome is FAILED
            assert of(report)["keep-alive"].outcome is SKIPPED
    finally:
        await toy.stop()


# TLS

AUTHORITY = trustme.CA()


@pytest.fixture
def authorities(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    return file


@asynccontextmanager
async def encrypted(certificate: trustme.LeafCert, script: Script) -> AsyncIterator[str]:
    """The URL, at localhost, of a scripted member behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    candidate = Scripted(script)
    server = await asyncio.get_running_loop().create_server(candidate._protocol, "127.0.0.1", 0, ssl=context)
    await candidate.start()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await candidate.stop()
        await server.wait_closed()


async def test_certificate_that_verifies_is_described(authorities: Path) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=60, hours=1)
    certificate = AUTHORITY.issue_cert("127.0.0.1", "a.example", not_after=soon)
    async with encrypted(certificate, hub(WELL)) as url:
        report = await probe(url, authorities=authorities)
    assert not_ok(report) == {}
    checks = of(report)
    assert checks["address"].outcome is OK
    assert checks["tls"].values == {"version": "TLSv1.3"}
    assert checks["certificate"].values["days"] == 60
    assert sorted(checks["certificate"].values["names"]) == ["127.0.0.1", "a.example"]


async def test_certificate_that_is_about_to_expire_is_a_warning(authorities: Path) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3, hours=1)
    async with encrypted(AUTHORITY.issue_cert("127.0.0.1", not_after=soon), hub(WELL)) as url:
        report = await probe(url, authorities=authorities)
    assert report.fit
    assert not_ok(report) == {"certificate": WARNING}
    assert of(report)["certificate"].seen == f"for 127.0.0.1, 3 days left, until {soon:%Y-%m-%d %H:%M} UTC"


async def test_peer_that_hangs_in_the_middle_of_tls_is_not_waited_for(authorities: Path) -> None:
    async def hang(conn: Conn) -> None:
        await conn.request()
        cast("asyncio.Transport", conn.writer.transport).pause_reading()
        await asyncio.Event().wait()

    async with encrypted(AUTHORITY.issue_cert("127.0.0.1"), hang) as url, guard():
        report = await probe(url, authorities=authorities, timeout=0.5)
    assert of(report)["versions"].seen == "no complete response within 0.5 s"


EXPIRED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("certificate", "seen"),
    [
        (
            AUTHORITY.issue_cert("127.0.0.1", not_before=EXPIRED, not_after=EXPIRED),
            "certificate has expired: on 2020-01-01",
        ),
        (
            AUTHORITY.issue_cert("a.example"),
            "IP address mismatch, certificate is not valid for '127.0.0.1'; it is for a.example",
        ),
        (trustme.CA().issue_cert("127.0.0.1"), "unable to get local issuer certificate"),
    ],
)
async def test_certificate_that_does_not_verify_ends_it(
    certificate: trustme.LeafCert, seen: str, authorities: Path
) -> None:
    async with encrypted(certificate, hub(WELL)) as url:
        report = await probe(url, authorities=authorities)
    checks = of(report)
    assert checks["tls"].outcome is OK
    assert (checks["certificate"].outcome, checks["certificate"].seen) == (FAILED, seen)
    assert checks["versions"].seen == "because of: certificate"


async def test_port_that_speaks_no_tls_ends_it() -> None:
    async with member(answer(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as candidate:
        candidate.script = say_no
        report = await probe(candidate.url.replace("http:", "https:"))
    check = of(report)["tls"]
    assert check.outcome is FAILED
    assert check.seen.startswith("no handshake: ")
    assert of(report)["certificate"].outcome is SKIPPED


async def say_no(conn: Conn) -> None:
    conn.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_file_of_authorities_that_is_none_is_the_askers_fault(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(FileNotFoundError):
        await probe("https://127.0.0.1", authorities=file)
    file.write_text("garbage")
    with pytest.raises(OSError, match="certificate"):
        await probe("https://127.0.0.1", authorities=file)


def test_many_names_of_a_certificate_are_counted() -> None:
    certificate = {
        "notAfter": "Jan  1 00:00:00 2031 GMT",
        "subjectAltName": (
            ("DirName", ((("commonName", "x"),),)),
            *(("DNS", f"{n}.example") for n in range(6)),
        ),
    }
    check = judge_certificate(certificate, ssl.cert_time_to_seconds("Dec  1 00:00:00 2030 GMT"))
    assert check.seen == (
        "for 0.example, 1.example, 2.example, 3.example and 2 more, 31 days left, until 2031-01-01 00:00 UTC"
    )
    assert check.values["not_after"] == "2031-01-01T00:00:00Z"
