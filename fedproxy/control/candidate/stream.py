"""What the stream of a launch says: its head, its pace, its events, and who may read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedproxy.control.candidate.check import (
    EMBED,
    LONGEST_SILENCE,
    Candidate,
    Check,
    CheckOutcome,
    make,
    show_time,
    skip,
    words,
)
from fedproxy.control.candidate.client import (
    APART,
    AT_ONCE,
    CandidateClient,
    Heard,
    Silence,
    remedy,
    unexpected,
)
from fedproxy.control.fetch import Fetched
from fedproxy.decide.launch import End

# BinderHub's page has `window.pageConfig = {..., "buildToken": "TOKEN"}`; until 2024 it had
# `<meta id="build-token" data-token="TOKEN">`. The repetitions are bounded to make no page slow to search.
_JWT: Final = r"([A-Za-z0-9._~-]{1,4096})"
_TOKENS: Final = (
    re.compile(rf"""\bbuildToken["']?\s{{0,99}}:\s{{0,99}}["']{_JWT}["']"""),
    re.compile(
        rf"""<meta\b(?=[^<>]{{0,999}}\bid\s{{0,99}}=\s{{0,99}}["']?build-token\b)"""
        rf"""[^<>]{{0,999}}\bdata-token\s{{0,99}}=\s{{0,99}}["']?{_JWT}["'\s/>]""",
        re.IGNORECASE,
    ),
)
_REFUSED: Final = "Invalid build token"


async def mint(candidate: Candidate, client: CandidateClient) -> tuple[str, str]:
    """A build token from the reference's page of the launch, or else the reason why there is none."""
    if candidate.reference is None:
        return "", "there is no reference"
    # BinderHub binds the token to the Origin, or without one to the Host, which differs between members.
    target = f"{candidate.base_path}v2/{candidate.launch}"
    page = await client.get(target, candidate.reference, fields={"Origin": candidate.origin})
    if isinstance(page, Silence) or page.status != 200:
        return "", f"the reference's page: {unexpected(page)}"
    token = find_token(page.body.decode("utf-8", "replace"))
    return token, "the reference's page has no build token"


def find_token(page: str) -> str:
    """The build token in a BinderHub's page of a launch, or nothing."""
    return next((found[1] for pattern in _TOKENS if (found := pattern.search(page))), "")


def judge_token(heard: Heard | Silence) -> Check:
    """Whether the reference's token was accepted."""
    name = "build token"
    if isinstance(heard, Silence) or heard.status != 200:
        return make(name, CheckOutcome.SKIPPED, unexpected(heard))
    first = next((event for event in heard.events if event.get("phase")), None)
    if first is None:
        return make(name, CheckOutcome.SKIPPED, "no event arrived")
    if first["phase"] != "failed":
        return make(name, CheckOutcome.OK, "accepted")
    message = str(first.get("message", ""))
    if message.startswith(_REFUSED):
        fix = (
            "Set BINDERHUB_BUILD_TOKEN_SECRET to the same value on all members: by default it is random, and "
            "launches that move elsewhere fail. If it is the same, compare clocks, and let Origin through."
        )
        return make(name, CheckOutcome.FAILED, f"refused: {message}", fix)
    return make(name, CheckOutcome.SKIPPED, f"the launch failed: {message}")


def judge_stream(
    candidate: Candidate, heard: Heard | Silence, refused: Heard | Silence, preflight: Fetched | Silence
) -> list[Check]:
    """The checks of a launch's stream, beside a launch that was refused and a preflight."""
    rest = ("stream headers", "cors", "launch", "unbuffered", "event pacing")
    if isinstance(heard, Silence):
        otherwise = "A build's first event comes within 25 s. Does a proxy in front hold the response back?"
        if heard.invalid:
            otherwise = (
                "Send Transfer-Encoding: chunked, and no Content-Length: look at what a proxy in front adds."
            )
        fix = remedy(candidate, heard, otherwise)
        return [
            make("event stream", CheckOutcome.FAILED, heard.why, fix),
            *skip("because of: event stream", *rest),
        ]
    head = _judge_head(candidate, heard)
    if heard.status != 200:
        return [head, *skip("because of: event stream", *rest)]
    return [
        head,
        judge_headers(heard),
        _judge_cors(candidate, heard, refused, preflight),
        _judge_launch(heard),
        judge_moves(heard),
        judge_pacing(heard),
    ]


def _judge_head(candidate: Candidate, heard: Heard) -> Check:
    headers = heard.headers
    kind, coding = headers.get("Content-Type", ""), headers.get("Content-Encoding", "identity")
    wrong, fix = "", ""
    if heard.status != 200:
        wrong = unexpected(heard)
        fix = remedy(
            candidate,
            heard,
            "BinderHub reports failures within the stream: a proxy in front must forward /build/.",
        )
    elif kind.partition(";")[0].strip().lower() != "text/event-stream":
        wrong = f"Content-Type {kind or 'is missing'}"
        fix = "Is /build/ forwarded to BinderHub, with its Accept header?"
    elif "Content-Length" in headers:
        wrong = f"Content-Length {headers['Content-Length']}"
        fix = "A proxy read the stream to its end before sending it: disable buffering in front of BinderHub."
    elif coding.lower() != "identity":
        wrong = f"Content-Encoding {coding}"
        fix = "Disable compression for text/event-stream: it delays events."
    values: dict[str, Any] = {"status": heard.status}
    if wrong:
        return make("event stream", CheckOutcome.FAILED, wrong, fix, **values)
    return make("event stream", CheckOutcome.OK, f"200, {kind}", **values)


@dataclass(frozen=True)
class _Field:
    """A field that may break streams, and what to do about it."""

    seen: str
    fix: str


def judge_headers(heard: Heard) -> Check:
    """The fields of a stream's head that delay it, store it or cut it, beyond those that break it at once."""
    faults = [*_stored(heard.headers), *_framed(heard)]
    found = [{"field": fault.seen, "fix": fault.fix} for fault in faults]
    if faults:
        seen = "; ".join(fault.seen for fault in faults)
        fix = " ".join(fault.fix for fault in faults)
        return make("stream headers", CheckOutcome.WARNING, seen, fix, found=found)
    return make("stream headers", CheckOutcome.OK, f"HTTP/{heard.http}, no such field", found=[])


def _stored(headers: Mapping[str, str]) -> list[_Field]:
    """What invites a cache or a proxy to keep the stream, or to change it."""
    cache = {part.strip().lower() for part in headers.get("Cache-Control", "").split(",")}
    between = any(name in headers for name in ("CF-Ray", "X-Cache", "X-Amz-Cf-Id", "X-Served-By"))
    found = []
    if not cache & {"no-cache", "no-store"}:
        found.append(
            _Field(
                "no Cache-Control: no-cache",
                "BinderHub sends Cache-Control: no-cache: let it through, or a cache may keep the stream.",
            )
        )
    if between and "no-transform" not in cache:
        found.append(
            _Field(
                "no no-transform behind a CDN",
                "Add no-transform to Cache-Control, so that the CDN does not compress or hold the stream.",
            )
        )
    if headers.get("X-Accel-Buffering", "no").strip().lower() != "no":
        found.append(
            _Field(
                f"X-Accel-Buffering: {words(headers['X-Accel-Buffering'])[:20]}",
                "Send X-Accel-Buffering: no: with this value an nginx on the way holds events back.",
            )
        )
    if "Age" in headers or "hit" in headers.get("X-Cache", "").lower():
        found.append(
            _Field("it came from a cache", "Exclude /build/ from caching: two visitors may get one launch.")
        )
    return found


def _framed(heard: Heard) -> list[_Field]:
    """How the stream is cut into pieces, and how its end is told."""
    headers = heard.headers
    coding = [
        part.strip().lower() for part in headers.get("Transfer-Encoding", "").split(",") if part.strip()
    ]
    found = []
    if heard.http == "1.0":
        found.append(
            _Field(
                "HTTP/1.0",
                "Let the server in front speak HTTP/1.1 (nginx: proxy_http_version 1.1): 1.0 has no chunks.",
            )
        )
    if coding and coding != ["chunked"]:
        found.append(
            _Field(
                f"Transfer-Encoding: {', '.join(coding)[:40]}",
                "Send Transfer-Encoding: chunked and nothing else: many clients know no other coding.",
            )
        )
    elif not coding and "Content-Length" not in headers:
        found.append(
            _Field(
                "neither chunks nor a length",
                "Send Transfer-Encoding: chunked: without it nobody can tell the stream's end from a cut.",
            )
        )
    if "close" in {part.strip().lower() for part in headers.get("Connection", "").split(",")}:
        found.append(
            _Field(
                "Connection: close",
                "Keep connections open: this costs one per launch, and some proxies hold such a response.",
            )
        )
    return found


def _judge_cors(
    candidate: Candidate, heard: Heard, refused: Heard | Silence, preflight: Fetched | Silence
) -> Check:
    """Whether a page elsewhere may launch: by its stream, by one that failed, and by a preflight."""
    stream = heard.headers.get("Access-Control-Allow-Origin")
    failure = _allowed(refused)
    before = _allowed(preflight)
    values: dict[str, Any] = {"stream": stream, "failure": failure, "preflight": before}
    everybody = ("*", EMBED)
    # An answer that repeats the origin it was asked from is as good as one for all.
    good = stream == "*" or (stream == candidate.origin and failure in everybody)
    fix = 'Set BinderHub.cors_allow_origin to "*": pages elsewhere (thebe, Jupyter Book) launch, too.'
    if not good:
        seen = f"Access-Control-Allow-Origin: {stream}" if stream else "no Access-Control-Allow-Origin"
        return make("cors", CheckOutcome.WARNING, seen, fix, **values)
    if not isinstance(refused, Silence) and failure not in everybody:
        seen = f"a launch that is refused: {_named(failure)}"
        return make("cors", CheckOutcome.WARNING, seen, f"{fix} On failures, too.", **values)
    if not _passes(preflight) or before not in everybody:
        seen = f"the preflight: {_named(before) if _passes(preflight) else unexpected(preflight)}"
        fix = (
            "Forward OPTIONS for /build/ to BinderHub: pages that send a header of their own ask this first."
        )
        return make("cors", CheckOutcome.WARNING, seen, fix, **values)
    headers = (
        "" if isinstance(preflight, Silence) else preflight.headers.get("Access-Control-Allow-Headers", "")
    )
    if not {"*", "cache-control"} & {part.strip().lower() for part in headers.split(",")}:
        seen = "the preflight does not allow the header Cache-Control"
        fix = "Let BinderHub's Access-Control-Allow-Headers through: its own script sends Cache-Control."
        return make("cors", CheckOutcome.WARNING, seen, fix, **values)
    return make("cors", CheckOutcome.OK, f"Access-Control-Allow-Origin: {stream}", **values)


def _allowed(found: Heard | Fetched | Silence) -> str | None:
    return None if isinstance(found, Silence) else found.headers.get("Access-Control-Allow-Origin")


def _passes(preflight: Fetched | Silence) -> bool:
    return not isinstance(preflight, Silence) and 200 <= preflight.status < 300


def _named(allowed: str | None) -> str:
    return f"Access-Control-Allow-Origin: {allowed}" if allowed else "no Access-Control-Allow-Origin"


def _judge_launch(heard: Heard) -> Check:
    phases = list(dict.fromkeys(str(phase)[:32] for event in heard.events if (phase := event.get("phase"))))
    values: dict[str, Any] = {"phases": phases}
    failed = heard.failure
    if failed is not None:
        fix = "See BinderHub's log for the reason, or use another --repository."
        return make("launch", CheckOutcome.WARNING, f"failed: {failed.get('message', '')}", fix, **values)
    if not heard.events:
        return make("launch", CheckOutcome.SKIPPED, "no event arrived", **values)
    end = "ready" if heard.launch is not None and heard.launch.end is End.READY else "abandoned"
    seen = f"started: {', '.join(phases) or 'no phase yet'}; {end}"
    return make("launch", CheckOutcome.OK, seen, **values)


def judge_moves(heard: Heard) -> Check:
    """Whether a stream's events arrived as they were produced."""
    fix = (
        "Disable response buffering in front of BinderHub (nginx: proxy_buffering off; Apache: "
        "flushpackets=on; a CDN: turn it off for this name)."
    )
    count = heard.count or len(heard.events)
    if not heard.reads:
        seen = heard.broken or ("it ended without an event" if heard.ended else "nothing arrived")
        return make("unbuffered", CheckOutcome.FAILED, seen, fix)
    first, at_first = heard.reads[0]
    values: dict[str, Any] = {"first": first, "apart": heard.apart, "events": count}
    if at_first > AT_ONCE:
        seen = f"the first {at_first} events arrived at once, after {show_time(first)}"
        return make("unbuffered", CheckOutcome.FAILED, seen, fix, **values)
    if heard.apart >= APART:
        seen = f"the first bytes after {show_time(first)}, more {show_time(heard.apart)} later"
        return make("unbuffered", CheckOutcome.OK, seen, **values)
    if heard.failure is not None:
        return make("unbuffered", CheckOutcome.SKIPPED, "the launch failed at once", **values)
    how = heard.broken or ("then it ended" if heard.ended else "then nothing more arrived")
    seen = f"all {count} events arrived at once, {how}"
    return make("unbuffered", CheckOutcome.FAILED, seen, fix, **values)


def judge_pacing(heard: Heard) -> Check:
    """When the first bytes came, and how long nothing did afterwards."""
    name = "event pacing"
    if not heard.reads:
        return make(name, CheckOutcome.SKIPPED, "nothing arrived")
    first = heard.reads[0][0]
    whole = heard.launch is not None and heard.launch.end in (End.READY, End.FAILED)
    values: dict[str, Any] = {
        "first": first,
        "seconds": heard.reads[-1][0],
        "events": heard.count,
        "comments": heard.comments,
        "longest_silence": heard.silence,
        "most_at_once": heard.most,
        "whole": whole,
    }
    seen = (
        f"first bytes after {show_time(first)}, then {heard.count} events and {heard.comments} comments in "
        f"{show_time(heard.apart)}, at most {heard.most} at once; longest silence {show_time(heard.silence)}"
    )
    fix = (
        "BinderHub sends a comment every 25 s: something on the way holds it back, and what cuts silent "
        "connections (browsers' networks, balancers) will cut the launch."
    )
    if first > LONGEST_SILENCE or heard.silence > LONGEST_SILENCE:
        return make(name, CheckOutcome.WARNING, seen, fix, **values)
    return make(name, CheckOutcome.OK, seen, **values)
