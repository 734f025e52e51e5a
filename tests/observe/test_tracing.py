from __future__ import annotations

import asyncio
import logging
import random

import pytest

from fedproxy.observe.tracing import Sampler, Tracing
from fedproxy.record import AttemptRecord, Record, TraceRecord
from tests.rig import guard, refusing
from tests.rig.collector import Span, collector

FLAGGED = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
UNFLAGGED = FLAGGED[:-1] + b"0"


ATTEMPT = AttemptRecord(span_id=b"c" * 16, member="gesis", url="unix:/run/member.sock", started=1.25)


def traced(
    *,
    parent_id: bytes | None = None,
    span_id: bytes = b"b" * 16,
    attempts: tuple[AttemptRecord, ...] = (),
    ttfb: float | None = None,
    user_agent: str = "",
) -> Record:
    return Record(
        time=0.0,
        request_id="r",
        client="203.0.113.7",
        method="GET",
        host="mybinder.org",
        target="/user/x?build_token=x&state=y&urlpath=lab",
        protocol="HTTP/1.1",
        status=200,
        ttfb=ttfb,
        attempts=len(attempts),
        user_agent=user_agent,
        secure=True,
        trace=TraceRecord(b"a" * 32, span_id, parent_id, started=1.0, ended=1.5, attempts=list(attempts)),
    )


def sampler(share: float = 0.0, follow: str = "trusted", limit: int = 1000, seed: int = 1) -> Sampler:
    chance = random.Random(seed).random
    return Sampler(share, follow, limit, chance=chance, clock=lambda: 7.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_share_of_the_requests_is_traced_by_chance(share: float) -> None:
    sampled = sampler(share, limit=1 << 30)
    count = sum(sampled.samples(None, False) for _ in range(20_000))
    assert abs(count - 20_000 * share) <= 4 * (20_000 * share * (1 - share)) ** 0.5


def test_trace_id_of_a_stranger_changes_nothing_about_chance() -> None:
    mine, strangers = sampler(0.1), sampler(0.1)
    assert [mine.samples(None, False) for _ in range(500)] == [
        strangers.samples(FLAGGED, False) for _ in range(500)
    ]


@pytest.mark.parametrize(
    ("follow", "trusted", "followed"),
    [("trusted", True, True), ("trusted", False, False), ("anyone", False, True), ("nobody", True, False)],
)
def test_flag_is_followed_of_those_whose_word_counts(follow: str, trusted: bool, followed: bool) -> None:
    assert sampler(0.0, follow).samples(FLAGGED, trusted) == followed
    assert sampler(1.0, follow).samples(UNFLAGGED, trusted) != followed


def test_no_more_than_the_limit_are_traced_in_one_second_whoever_asks() -> None:
    now = 7.5
    sampled = Sampler(1.0, "anyone", 3, clock=lambda: now)
    assert [sampled.samples(given, False) for given in (FLAGGED, None, FLAGGED, None, FLAGGED)] == [
        True
    ] * 3 + [False] * 2
    now = 8.0
    assert sampled.samples(FLAGGED, False)


async def test_spans_have_the_times_and_ids_that_were_noted() -> None:
    with collector() as found:
        tracing = Tracing(found.endpoint, "edge", sampler(), print)
        tracing.take(traced(parent_id=b"d" * 16, ttfb=0.125, attempts=(ATTEMPT,)))
        async with guard():
            await tracing.close(60.0)
    (request,) = found.requests
    (attempt,) = found.attempts(request)
    assert (request.trace, request.id, request.parent) == ("a" * 32, "b" * 16, "d" * 16)
    assert (request.ended - request.began, attempt.began - request.began) == (500_000_000, 250_000_000)
    assert attempt.ended == request.ended
    assert request.attributes["fedproxy.ttfb"] == 0.125
    assert request.attributes["url.query"] == "build_token=***&state=***&urlpath=lab"
    assert attempt.attributes["url.full"] == (
        "unix:/run/member.sock/user/x?build_token=***&state=***&urlpath=lab"
    )
    assert attempt.attributes["server.address"] == "/run/member.sock"
    assert request.resource["service.name"] == "edge"


async def test_long_values_are_cut() -> None:
    spans: list[Span] = []
    with collector() as found:
        tracing = Tracing(found.endpoint, "edge", sampler(), print)
        tracing.take(traced(user_agent="x" * 30_000))
        await tracing.close(60.0)
        spans = found.requests
    assert spans[0].attributes["user_agent.original"] == "x" * 2048


async def test_collector_that_is_gone_is_said_once_and_nothing_waits_for_it() -> None:
    said: list[str] = []
    with refusing() as url:
        tracing = Tracing(f"{url}/v1/traces", "edge", sampler(), said.append)
        # More than the queue holds: what is too much is dropped, and each batch is a reason to complain.
        for number in range(5000):
            tracing.take(traced(span_id=b"%016x" % (number + 1)))
        async with guard():
            await tracing.close(0.05)
    assert len(said) == 1
    assert said[0].startswith(f"spans cannot be sent to {url}/v1/traces: ")
    assert "\n" not in said[0]


async def test_what_the_sdk_says_when_nobody_listens_any_more_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with collector() as found:
        await Tracing(found.endpoint, "edge", sampler(), print).close(60.0)
    logging.getLogger("opentelemetry.sdk").warning("too late")
    await asyncio.sleep(0)
    assert capsys.readouterr().err == ""
