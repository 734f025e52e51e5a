"""All checks, from the name to a launch: the order, and what makes later ones impossible."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from fedproxy.config.address import member_address
from fedproxy.control.candidate.answers import (
    fetch_script,
    judge_again,
    judge_clock,
    judge_end,
    judge_the_health,
    judge_the_versions,
    offset_of,
)
from fedproxy.control.candidate.check import (
    EXPECTED,
    MOST_LAUNCHES,
    Candidate,
    Check,
    CheckOutcome,
    Examination,
    Redaction,
    Trial,
    make,
    skip,
)
from fedproxy.control.candidate.client import CandidateClient, Heard, Silence
from fedproxy.control.candidate.network import (
    connect,
    handshake,
    judge_address,
    judge_membership,
    measure,
    resolve,
)
from fedproxy.control.candidate.session import try_session
from fedproxy.control.candidate.stream import judge_stream, judge_token, mint
from fedproxy.control.candidate.trials import judge_trials, trial_of, worth_another
from fedproxy.control.candidate.visitors import ask_forwarded

Busy = Callable[[str], None]
_OF_LAUNCHES: Final = (
    "build token",
    "event stream",
    "stream headers",
    "cors",
    "launch",
    "unbuffered",
    "event pacing",
)
_NOT_ASKED: Final = "no launch was asked for"
_ONLY_TRIAL: Final = "only the server of a trial launch shows it: --launches 1"


def _silent(what: str) -> None:
    pass


@dataclass
class _Course:
    """One examination under way."""

    candidate: Candidate
    tls: ssl.SSLContext
    redaction: Redaction
    busy: Busy
    reached: str = ""
    trials: list[Trial] = field(default_factory=list)
    session: list[Check] = field(default_factory=list)


async def examine(
    candidate: Candidate, told: Callable[[Check], None] = lambda check: None, busy: Busy = _silent
) -> Examination:
    """Runs all checks; `told` is called with each when it is done, `busy` with what takes long meanwhile.

    Raises OSError if `authorities` cannot be read, ValueError for too many launches, and nothing because of
    the candidate. A server that it has started is told to stop, also if it is cancelled.
    """
    if candidate.launches is not None and not 0 <= candidate.launches <= MOST_LAUNCHES:
        raise ValueError(f"there are from 0 to {MOST_LAUNCHES} launches")
    hosts = [candidate.url, *([candidate.reference] if candidate.reference else ())]
    redaction = Redaction(member_address(url).host for url in hosts)
    started = time.time()
    course = _Course(candidate, ssl.create_default_context(cafile=candidate.authorities), redaction, busy)
    checks: list[Check] = []
    async with aclosing(_checks(course)) as found:
        async for raw in found:
            check = redaction.check(raw)
            told(check)
            checks.append(check)
    done = {check.name for check in checks}
    for check in skip(f"because of: {checks[-1].name}", *(name for name in EXPECTED if name not in done)):
        told(check)
        checks.append(check)
    trials = tuple(map(redaction.trial, course.trials))
    return Examination(candidate.url, tuple(checks), trials, started, time.time())


async def _checks(course: _Course) -> AsyncGenerator[Check, None]:
    """The checks in order; if this ends early, the rest is skipped."""
    candidate = course.candidate
    yield judge_address(candidate)
    yield judge_membership(candidate)
    name, addresses = await resolve(candidate)
    course.redaction.allowed.update(info[4][0] for info in addresses)
    yield name
    if not addresses:
        return
    found, course.reached = await connect(candidate, addresses)
    for check in found if course.reached else found[:1]:
        yield check
    if not course.reached:
        return
    yield await measure(candidate, course.reached)
    for check in await handshake(candidate, course.reached):
        yield check
        if check.outcome is CheckOutcome.FAILED:
            return
    async with (
        CandidateClient(candidate, course.tls, course.redaction, course.busy) as client,
        aclosing(_asked(course, client)) as asked,
    ):
        async for check in asked:
            yield check


async def _asked(course: _Course, client: CandidateClient) -> AsyncGenerator[Check, None]:
    """The checks over HTTP. Without an answer to `/versions`, the others are skipped."""
    candidate = course.candidate
    base = candidate.base_path
    versions = await client.get(f"{base}versions")
    reference = await client.get(f"{base}versions", candidate.reference) if candidate.reference else None
    theirs = offset_of(reference, time.time())
    yield judge_the_versions(candidate, versions, reference)
    if isinstance(versions, Silence):
        return
    before = client.reused
    again = await client.get(f"{base}versions")
    own = offset_of(again, time.time())
    yield judge_again(again, reused=client.reused > before)
    yield judge_clock(own, theirs)
    for check in judge_the_health(candidate, await client.get(f"{base}health")):
        yield check
    course.busy("loading a large file")
    for check in await fetch_script(candidate, client):
        yield check
    async with aclosing(_launched(course, client)) as launched:
        async for check in launched:
            yield check
    yield judge_end(candidate, versions, await client.get(f"{base}versions"))


async def _launched(course: _Course, client: CandidateClient) -> AsyncGenerator[Check, None]:
    """The checks that need a launch, and those that need one which starts nothing."""
    candidate = course.candidate
    if candidate.launches == 0:
        # One that is refused starts nothing.
        for check in skip(_NOT_ASKED, *_OF_LAUNCHES):
            yield check
        yield await ask_forwarded(candidate, client, await client.refuse(), "")
        for check in skip(_NOT_ASKED, "trial launches", "session", "websocket"):
            yield check
        return
    course.busy("asking the reference for a build token")
    token, why = await mint(candidate, client)
    heard = await _launch(course, client, token)
    verdict = judge_token(heard) if token else make("build token", CheckOutcome.SKIPPED, why)
    yield verdict
    if verdict.outcome is CheckOutcome.FAILED:
        # Nothing was started, and what the stream would show is not known yet.
        token = ""
        course.trials.clear()
        heard = await _launch(course, client)
    course.busy("asking as a page of another site")
    refused = await client.refuse()
    for check in judge_stream(candidate, heard, refused, await client.ask_embed()):
        yield check
    yield await ask_forwarded(candidate, client, refused, getattr(heard, "launch_host", ""))
    while len(course.trials) < (candidate.launches or 0) and worth_another(course.trials):
        if token:
            # A build token is valid for five minutes.
            token, _ = await mint(candidate, client)
        heard = await _launch(course, client, token)
    yield judge_trials(candidate, course.trials)
    why = _ONLY_TRIAL
    if candidate.launches:
        ready = any(trial.end == "ready" for trial in course.trials)
        why = "ready came without the URL and token of a server" if ready else "no launch became ready"
    for check in course.session or skip(why, "session", "websocket"):
        yield check


async def _launch(course: _Course, client: CandidateClient, token: str = "") -> Heard | Silence:
    """One launch; a trial is followed to its end, and the server that it started is used and stopped."""
    candidate = course.candidate
    whole = candidate.launches is not None
    label = f"launch {len(course.trials) + 1} of {candidate.launches}" if whole else "launch"
    course.busy(label)
    start = time.monotonic()
    heard = await client.listen(token, whole=whole, label=label)
    seconds = time.monotonic() - start
    stopped: bool | None = None
    # One that was to be abandoned may be ready before.
    if isinstance(heard, Heard) and heard.session is not None:
        used = await try_session(
            candidate,
            heard.session,
            course.tls,
            course.reached,
            lambda what: course.busy(f"{label}: {what}"),
            only_stop=not whole or bool(course.session),
        )
        stopped = used.stopped
        course.session = course.session or list(used.checks)
    if whole:
        course.trials.append(trial_of(heard, seconds, stopped=stopped))
    return heard
