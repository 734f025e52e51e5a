"""Launches that are followed to their end, the servers that they start, and what is said of visitors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fedproxy.control.candidate import Candidate, CheckOutcome, examine
from fedproxy.control.candidate.client import Heard
from fedproxy.control.candidate.session import _Guarded, judge_url
from fedproxy.control.candidate.trials import judge_trials, trial_of
from fedproxy.control.candidate.visitors import Left, judge_forwarded, judge_scheme
from fedproxy.demo.toy import Mode, ToyBinderHub
from tests.rig import Conn, chunked, until
from tests.rig.candidate import (
    BUILD,
    CORS,
    EVENT_STREAM,
    FAILED,
    NO_LAUNCH,
    OK,
    PATIENT,
    SKIPPED,
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
    whole,
)

TOKEN = "the-secret-of-a-session"
STATUS = b"/user/x/api/status"
KERNELS = b"POST /user/x/api/kernels"
TERMINALS = b"POST /user/x/api/terminals"
SHUTDOWN = b"POST /user/x/api/shutdown"


async def ready(conn: Conn) -> None:
    """A launch that becomes ready, with a server at the same address."""
    conn.send(head() + piece(event(phase="launching", message="Launching")))
    await asyncio.sleep(0.11)  # so that the stream is seen to move
    url = f"{conn.member.url}/user/x/"
    conn.send(piece(event(phase="ready", url=url, token=TOKEN, message=f"running at {url}?token={TOKEN}")))
    await conn.stall()


SESSION: Answers = {
    BUILD: ready,
    STATUS: whole(b"{}", fields=CORS),
    KERNELS: whole(b'{"id": "k-1"}', b"201 Created"),
    TERMINALS: whole(b"", b"404 Not Found"),
    SHUTDOWN: whole(b"{}"),
    b"DELETE /user/x/api/kernels/k-1": whole(b"", b"204 No Content"),
    b"DELETE /user/x/api/terminals/1": whole(b"", b"204 No Content"),
}


async def test_launches_are_followed_to_their_end_used_and_stopped() -> None:
    toy = ToyBinderHub("toy", pace=0.15)
    await toy.start()
    said: list[str] = []
    try:
        candidate = Candidate(toy.url, timeout=PATIENT, launches=3)
        report = await examine(candidate, busy=said.append)
        assert toy.total_pods == toy.pods
        # The fourth was refused, and started nothing.
        assert toy.launches == 4
    finally:
        await toy.stop()
    assert not_ok(report) == {}
    checks = of(report)
    assert {checks[name].outcome for name in ("trial launches", "session", "websocket")} == {OK}
    assert checks["websocket"].values["with"] == "a kernel"
    assert [trial.end for trial in report.trials] == ["ready"] * 3
    assert [trial.stopped for trial in report.trials] == [True] * 3
    built, *cached = report.trials
    assert list(built.phases) == ["waiting", "fetching", "building", "pushing", "built", "launching"]
    assert [list(trial.phases) for trial in cached] == [["built", "launching"]] * 2
    assert checks["trial launches"].values["launches"] == [trial.plain for trial in report.trials]
    assert checks["launch"].seen.endswith("ready; ready")
    assert "launch 1 of 3: building" in said


async def test_no_launch_is_made_if_none_is_asked_for() -> None:
    async with member(hub({**WELL, **limited(believes=False)})) as candidate:
        report = await probe(candidate.url, launches=0)
        builds = [request.target for request in candidate.requests if b"/build/" in request.target]
    # These start nothing.
    assert builds == [NO_LAUNCH] * 2
    assert report.fit
    assert of(report)["forwarded addresses"].values["believed"] is False
    assert of(report)["event stream"].seen == of(report)["websocket"].seen == "no launch was asked for"
    assert of(report)["still there"].outcome is OK
    with pytest.raises(ValueError, match="from 0 to 3"):
        await probe("http://127.0.0.1:1", launches=4)


async def test_server_that_cannot_be_used_is_a_failure_and_is_stopped_still() -> None:
    answers: Answers = {**WELL, **SESSION, STATUS: whole(b"", b"502 Bad Gateway")}
    async with member(hub(answers)) as candidate:
        report = await probe(candidate.url, launches=1)
        stops = [request for request in candidate.requests if request.target == SHUTDOWN[5:]]
    assert not_ok(report) == {"session": FAILED}
    assert of(report)["session"].seen == "127.0.0.1: answered 502"
    assert [request.value("Authorization") for request in stops] == [f"token {TOKEN}".encode()]
    assert report.trials[0].stopped
    assert TOKEN not in repr(report)


async def test_server_that_was_ready_before_its_launch_was_abandoned_is_stopped() -> None:
    async def at_once(conn: Conn) -> None:
        url = f"{conn.member.url}/user/x/"
        conn.send(head() + piece(event(phase="ready", url=url, token=TOKEN)))
        await asyncio.sleep(0.11)
        conn.send(piece(b":keepalive\n\n"))
        await conn.stall()

    async with member(hub({**WELL, **SESSION, BUILD: at_once})) as candidate:
        report = await probe(candidate.url)
        assert SHUTDOWN[5:] in [request.target for request in candidate.requests]
    assert not_ok(report) == {}
    assert report.trials == ()


async def test_server_that_is_not_for_other_sites_or_does_not_stop_is_said() -> None:
    answers: Answers = {STATUS: whole(b"{}"), SHUTDOWN: whole(b"", b"403 Forbidden")}
    answers[KERNELS] = whole(b"?", b"201 Created")
    report = await probed({**SESSION, **answers}, launches=1)
    assert not_ok(report) == {"session": WARNING}
    assert of(report)["session"].seen == "127.0.0.1: no Access-Control-Allow-Origin"
    assert of(report)["websocket"].seen == "the server starts neither a kernel nor a terminal"
    assert report.trials[0].stopped is False


def accept(conn: Conn) -> bytes:
    """The head that accepts a WebSocket (RFC 6455 section 4.2.2)."""
    key = conn.member.requests[-1].value("Sec-WebSocket-Key") or b""
    signed = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % signed
    return b"HTTP/1.1 101 Switching Protocols\r\n" + fields


def frame(text: bytes, kind: int = 1) -> bytes:
    """A short frame of a server (RFC 6455 section 5.2)."""
    return bytes((0x80 | kind, len(text))) + text


BYE = frame(b"\x03\xe8", 8)


def upgraded(*frames: bytes) -> Callable[[Conn], Awaitable[None]]:
    async def script(conn: Conn) -> None:
        conn.send(accept(conn), *frames)
        await conn.until_end()

    return script


@pytest.mark.parametrize(
    ("answer", "outcome", "seen"),
    [
        (upgraded(frame(b'["setup", {}]'), frame(b'["stdout", "42"]'), BYE), OK, "a terminal answered in "),
        (upgraded(BYE), FAILED, "a terminal: it was closed before a message came back"),
        (
            upgraded(frame(b"no") * 101, BYE),
            FAILED,
            "a terminal: other messages came, and none of them an answer",
        ),
        (
            whole(b'Can "Upgrade" only to "WebSocket".', b"400 Bad Request"),
            FAILED,
            "a terminal: answered 400: the server saw no upgrade, so something on the way removed it",
        ),
        (whole(b"", b"404 Not Found"), FAILED, "a terminal: answered 404 instead of 101"),
        (whole(b"<html>"), FAILED, "a terminal: answered 200 instead of 101"),
        (
            whole(b"", b"302 Found", b"Location: /user/x/api/status\r\n"),
            FAILED,
            "a terminal: answered 302 instead of 101",
        ),
    ],
)
async def test_websocket_that_does_not_get_through_is_named(
    answer: bytes | Callable[[Conn], Awaitable[None]], outcome: CheckOutcome, seen: str
) -> None:
    answers: Answers = {KERNELS: whole(b"", b"403 Forbidden"), TERMINALS: whole(b'{"name": "1"}')}
    answers[b"/user/x/terminals/websocket/1"] = answer
    report = await probed({**SESSION, **answers}, launches=1)
    check = of(report)["websocket"]
    assert (check.outcome, check.seen[: len(seen)]) == (outcome, seen)
    assert report.trials[0].stopped


async def test_message_that_does_not_come_back_is_waited_for_only_so_long() -> None:
    answers: Answers = {KERNELS: whole(b"", b"403 Forbidden"), TERMINALS: whole(b'{"name": "1"}')}
    answers[b"/user/x/terminals/websocket/1"] = upgraded()
    report = await probed({**SESSION, **answers}, launches=1, timeout=0.5)
    assert of(report)["websocket"].seen == "a terminal: no message came back within 0.5 s"


async def test_each_launch_has_a_build_token_of_its_own_and_a_refused_one_is_none() -> None:
    page = b'{"buildToken": "%b"}'
    tokens = iter((b"first", b"second", b"third"))

    async def mint(conn: Conn) -> None:
        conn.send(whole(page % next(tokens)))

    minting: Answers = {b"/versions": WELL[b"/versions"], BUILD.replace(b"/build/", b"/v2/"): mint}
    refusal = head() + chunked(event(phase="failed", message="Invalid build token"))
    answers: Answers = {BUILD + b"?build_token=first": ready, BUILD + b"?build_token=second": ready}
    answers |= {BUILD + b"?build_token=third": refusal, KERNELS: whole(b"", b"403 Forbidden")}
    async with member(hub(minting)) as reference, member(hub({**WELL, **SESSION, **answers})) as candidate:
        for targets in ([b"first", NO_LAUNCH, b"second"], [b"third", BUILD, NO_LAUNCH, BUILD]):
            candidate.requests.clear()
            report = await probe(candidate.url, reference=reference.url, launches=2)
            builds = [
                request.target.rpartition(b"=")[2]
                for request in candidate.requests
                if b"/build/" in request.target and request.method == b"GET"
            ]
            assert builds == targets
            assert [trial.end for trial in report.trials] == ["ready"] * 2


async def test_server_is_stopped_if_the_probe_is() -> None:
    asked = asyncio.Event()

    async def hang(conn: Conn) -> None:
        asked.set()
        await conn.stall()

    async with member(hub({**WELL, **SESSION, STATUS: hang})) as candidate:
        task = asyncio.create_task(probe(candidate.url, launches=3))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert candidate.requests[-1].target == SHUTDOWN[5:]
        await until(lambda: candidate.open == 0, "every connection closed")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://93.184.216.34/user/x/", ""),
        ("https://hub.example/user/x/", ""),
        ("https://[2606:2800:220:1::1]/user/x/", ""),
        ("http://127.0.0.1/user/x/", "its URL has a private address"),
        ("http://10.1.2.3:8000/", "its URL has a private address"),
        ("http://[::1]/", "its URL has a private address"),
        ("http://169.254.169.254/latest/", "its URL has a private address"),
        ("ftp://hub.example/", "its URL is not an http:// or https:// URL"),
        ("http://a@hub.example/", "its URL is not an http:// or https:// URL"),
        ("http://hub.example/ HTTP/1.1\r\nX: y/", "its URL is not an http:// or https:// URL"),
        ("/user/x/", "its URL is not an http:// or https:// URL"),
        ("https://hub.example/user/x", "its URL has no path that ends with a slash"),
        ("https://hub.example/?a=/", "its URL has no path that ends with a slash"),
    ],
)
async def test_server_of_a_public_candidate_is_no_private_one(url: str, why: str) -> None:
    assert judge_url(url, private=False) == why
    if why == "its URL has a private address":
        assert judge_url(url, private=True) == ""


async def test_name_of_a_private_address_is_not_resolved_for_a_public_candidate() -> None:
    for private in True, False:
        resolver = _Guarded(private)
        if private:
            assert await resolver.resolve("localhost", 1)
        else:
            with pytest.raises(OSError, match="private address"):
                await resolver.resolve("localhost", 1)
        await resolver.close()


async def test_launch_whose_server_has_no_usable_url_fails() -> None:
    async def nowhere(conn: Conn) -> None:
        conn.send(head() + piece(event(phase="ready", url="x:/", token=TOKEN)))
        await conn.stall()

    async def nothing(conn: Conn) -> None:
        conn.send(head() + piece(event(phase="ready")))
        await conn.stall()

    report = await probed({BUILD: nowhere}, launches=1)
    assert of(report)["session"].seen == "its URL is not an http:// or https:// URL"
    assert of(report)["websocket"].seen == "because of: session"
    report = await probed({BUILD: nothing}, launches=1)
    assert of(report)["session"].seen == "ready came without the URL and token of a server"


# Launches that fail


async def failing(message: str, *before: str, launches: int = 2) -> tuple[Any, list[tuple[str, str]]]:
    events = [event(phase=phase) for phase in before]
    response = head() + chunked(*events, event(phase="failed", message=message))
    report = await probed({BUILD: response}, launches=launches)
    return of(report)["trial launches"], [(trial.end, trial.kind) for trial in report.trials]


@pytest.mark.parametrize(
    ("message", "before", "outcome", "trials"),
    [
        ("Too many users on this BinderHub!", (), WARNING, [("failed", "no room")] * 2),
        ("Rate limit exceeded. Try again in 3600 seconds.", (), WARNING, [("failed", "rate limit")]),
        ("Could not resolve ref for gh:a/b", (), FAILED, [("failed", "fault of the repository")] * 2),
        ("Failed to launch image x", ("built",), FAILED, [("failed", "fault of the BinderHub")] * 2),
        ("pip failed", ("fetching", "building"), FAILED, [("failed", "the build failed")] * 2),
    ],
)
async def test_launches_that_fail_are_counted_by_their_kind(
    message: str, before: tuple[str, ...], outcome: CheckOutcome, trials: list[tuple[str, str]]
) -> None:
    check, seen = await failing(message, *before)
    assert (check.outcome, seen) == (outcome, trials)
    assert f"not ready: {trials[0][1]} ({len(trials)})" in check.seen


async def test_launch_that_has_no_end_is_left_after_its_time() -> None:
    async def slow(conn: Conn) -> None:
        conn.send(head() + piece(event(phase="building")))
        await conn.stall()

    report = await probed({BUILD: slow}, launches=1, launch_timeout=0.3)
    (trial,) = report.trials
    assert (trial.end, trial.message, list(trial.phases)) == (
        "timed out",
        "its last phase: building",
        ["building"],
    )
    assert of(report)["session"].seen == "no launch became ready"
    report = await probed({BUILD: head() + chunked(event(phase="building"))}, launches=1)
    assert [(trial.end, trial.kind) for trial in report.trials] == [("lost", "the stream ended")]
    report = await probed({BUILD: whole(b"", b"404 Not Found")}, launches=3)
    assert [(trial.end, trial.message) for trial in report.trials] == [("no stream", "answered 404")]


async def test_member_that_is_full_could_join() -> None:
    toy = ToyBinderHub("toy", pace=0, linger=0)
    await toy.start()
    try:
        await toy.set_mode(Mode.FULL)
        report = await probe(toy.url, launches=1)
    finally:
        await toy.stop()
    assert report.fit
    checks = of(report)
    assert {checks[name].outcome for name in ("pods", "launch", "trial launches")} == {WARNING}


def test_median_is_of_launches_that_were_ready() -> None:
    heard = Heard(500, {})
    trials = [trial_of(heard, 3.0)]
    check = judge_trials(Candidate("http://h", launches=1), trials)
    assert (check.outcome, check.values["median"]) == (FAILED, None)
    assert judge_trials(Candidate("http://h", launches=1), []).outcome is SKIPPED


# Visitors' addresses


RATE = b"X-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: 1\r\n"


def limited(believes: bool) -> Answers:
    """A BinderHub that counts launches by address, and says how many are left."""
    left: dict[bytes, int] = {}

    async def refuse(conn: Conn) -> None:
        asked = conn.member.requests[-1]
        address = (asked.value("X-Real-IP") if believes else None) or b"here"
        left[address] = left.get(address, 10) - 1
        fields = CORS + RATE % left[address]
        no = event(phase="failed", message="No provider found for prefix fedproxy-probe\n")
        conn.send(head(EVENT_STREAM + fields) + chunked(no))

    return {NO_LAUNCH: refuse}


@pytest.mark.parametrize(
    ("believes", "from_edge", "outcome", "requests"),
    [(True, False, WARNING, 4), (True, True, OK, 4), (False, False, OK, 2), (False, True, FAILED, 2)],
)
async def test_who_names_visitors_addresses_is_believed_or_not(
    believes: bool, from_edge: bool, outcome: CheckOutcome, requests: int
) -> None:
    async with member(hub({**WELL, **limited(believes)})) as candidate:
        report = await probe(candidate.url, from_edge=from_edge)
        asked = [request for request in candidate.requests if request.target == NO_LAUNCH]
    check = of(report)["forwarded addresses"]
    assert (check.outcome, check.values["believed"]) == (outcome, believes)
    own, *named = [request.value("X-Forwarded-For") for request in asked]
    assert (own, len(asked)) == (None, requests)
    # One address, the same again, and another one.
    assert named[0] is not None
    assert named[1:] == ([] if not believes else [named[0], named[2]])
    assert len(set(named)) == (2 if believes else 1)
    assert named[0].decode() not in repr(report)


@pytest.mark.parametrize("left", [b"", RATE % 0])
async def test_rate_limit_that_is_used_up_says_nothing(left: bytes) -> None:
    no = chunked(event(phase="failed", message="Rate limit exceeded. Try again in 3600 seconds.\n"))
    async with member(hub({**WELL, NO_LAUNCH: head(EVENT_STREAM + CORS + left) + no})) as candidate:
        report = await probe(candidate.url)
        assert [request.target for request in candidate.requests].count(NO_LAUNCH) == 1
    check = of(report)["forwarded addresses"]
    assert check.seen == "the rate limit of this machine's address is used up: probe again in an hour"


@pytest.mark.parametrize(
    "left",
    [
        [9, 9, 8, 7],  # the second replica counts the rest
        [9, 9, 8, 8],
        [9, 9, 9, 9],  # each is counted by another one
        [9, 9],  # some answers say nothing
    ],
)
async def test_rate_limit_that_several_replicas_count_says_nothing(left: list[int]) -> None:
    turn = iter(left)

    async def refuse(conn: Conn) -> None:
        count = next(turn, None)
        fields = CORS if count is None else CORS + RATE % count
        conn.send(head(EVENT_STREAM + fields) + chunked(event(phase="failed", message="No")))

    check = of(await probed({NO_LAUNCH: refuse}))["forwarded addresses"]
    assert (check.outcome, check.values["believed"]) == (SKIPPED, None)
    assert "by hand" in check.seen


def test_scheme_that_does_not_reach_binderhub_is_a_warning() -> None:
    candidate = Candidate("https://binder.example")
    check = judge_forwarded(candidate, Left(9, 1), [Left(8, 1)])
    assert judge_scheme(candidate, check, "https://binder.example/") is check
    wrong = judge_scheme(candidate, check, "http://binder.example/")
    assert (wrong.outcome, "X-Forwarded-Proto" in wrong.fix) == (WARNING, True)
    assert judge_scheme(Candidate("http://binder.example"), check, "http://binder.example/") is check
