"""Verdicts on a candidate's clock, addresses, headers and answers, and on what stands in front of it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import pytest
import trustme

from fedproxy.control.candidate import Candidate, CheckOutcome
from fedproxy.control.candidate.answers import (
    Offset,
    judge_bandwidth,
    judge_clock,
    judge_end,
    judge_the_versions,
    offset_of,
)
from fedproxy.control.candidate.client import Heard, Silence
from fedproxy.control.candidate.network import judge_foreign, judge_ipv6, judge_membership
from fedproxy.control.candidate.stream import judge_headers, judge_pacing
from fedproxy.control.fetch import Fetched
from fedproxy.decide.launch import End, FailureTable, Launch
from tests.rig import Conn, per_request
from tests.rig.candidate import (
    BUILD,
    CORS,
    FAILED,
    NO_LAUNCH,
    OK,
    PREFLIGHT,
    SKIPPED,
    VERSIONS,
    WARNING,
    Answers,
    event,
    head,
    member,
    of,
    piece,
    probe,
    probed,
    whole,
)

# The clock


def fetched(headers: Mapping[str, str], seconds: float = 0.0, body: bytes = b"") -> Fetched:
    return Fetched("/versions", 200, headers, body, seconds)


def test_clock_is_read_from_the_middle_of_the_exchange() -> None:
    now = 1_800_000_000.0
    date = formatdate(now + 60, usegmt=True)
    offset = offset_of(fetched({"Date": date}, seconds=2.0), now + 1)
    assert offset == Offset(60.5, 1.5)
    # What a cache stored is older by its Age.
    assert offset_of(fetched({"Date": date, "Age": "40"}), now) == Offset(100.5, 0.5)
    for headers in (
        {},
        {"Date": "soon"},
        {"Date": "Mon, 99999999999999999999 Jan 2020 00:00:00 GMT"},
        {"Date": date, "Age": "old"},
        {"Date": date, "Age": "9" * 400},
    ):
        assert offset_of(fetched(headers), now) is None
    assert offset_of(Silence("no"), now) is None
    assert offset_of(fetched({"Date": date.replace("GMT", "-0000")}), now) == Offset(60.5, 0.5)


def test_versions_are_json_again() -> None:
    found = fetched({}, body=b'{"a": NaN, "b": 1e999, "c": 1.5}')
    check = judge_the_versions(Candidate("http://a"), found, None)
    assert check.values["versions"] == {"a": "NaN", "b": "1e999", "c": 1.5}


def at(seconds: float) -> Offset:
    return Offset(seconds, 0.5)


@pytest.mark.parametrize(
    ("own", "reference", "outcome", "seen"),
    [
        (None, None, SKIPPED, "its answers have no valid Date"),
        (at(2), None, OK, "within 2 s of this machine's"),
        (at(2), at(2), OK, "within 2 s of this machine's"),
        (at(2), at(90), OK, "within 2 s of this machine's; the reference's is 90 s ahead of both"),
        # A slow answer says little.
        (Offset(31, 2), None, OK, "within 33 s of this machine's"),
        (at(-90), None, WARNING, "its clock is 90 s behind this machine's: either may be wrong"),
        (
            at(90),
            at(1),
            WARNING,
            "its clock is 90 s ahead of this machine's and the reference's: it is wrong",
        ),
        (
            at(90),
            at(85),
            OK,
            "agrees with the reference's; both are 90 s ahead of this machine's, which is wrong",
        ),
        (
            at(90),
            at(-90),
            WARNING,
            "its clock is 90 s ahead of this machine's, and the reference's is 90 s behind it: "
            "at least two are wrong",
        ),
    ],
)
def test_clock_that_differs_is_named(
    own: Offset | None, reference: Offset | None, outcome: CheckOutcome, seen: str
) -> None:
    check = judge_clock(own, reference)
    assert (check.outcome, check.seen) == (outcome, seen)


# Addresses and certificates


def test_ipv6_is_judged_by_whether_this_machine_has_any() -> None:
    six = "2001:db8::1"
    assert judge_ipv6([], {}, here=False).outcome is OK
    assert judge_ipv6([], {}, here=False, literal=True).outcome is SKIPPED
    assert judge_ipv6([six], {six: "Network is unreachable"}, here=False).outcome is SKIPPED
    assert judge_ipv6([six], {}, here=True).values == {"addresses": [six], "here": True, "reached": True}
    refused = judge_ipv6([six], {six: "Connection refused"}, here=True)
    assert (refused.outcome, refused.seen) == (WARNING, f"{six}: Connection refused")


@pytest.mark.parametrize(
    ("candidate", "outcome", "seen"),
    [
        ({}, SKIPPED, "the members are not known: there is no config and no reference"),
        ({"reference": "https://b.example"}, OK, "it is not the reference"),
        ({"reference": "https://A.example:443"}, WARNING, "the reference is this BinderHub itself"),
        ({"members": {"b": "https://b.example"}}, OK, "not the only member"),
        ({"members": {"a": "https://a.example/"}}, WARNING, "it is the member a already"),
        (
            {"members": {"b": "https://b.example", "c": "unix:/run/c"}, "name": "b"},
            WARNING,
            "the name b is that of a member at https://b.example",
        ),
        (
            {"members": {"b": "https://b.example", "c": "http://a.example"}, "name": "d"},
            OK,
            "none of the 2 members",
        ),
    ],
)
def test_member_that_is_there_already_is_named(
    candidate: dict[str, Any], outcome: CheckOutcome, seen: str
) -> None:
    check = judge_membership(Candidate("https://a.example", **candidate))
    assert (check.outcome, check.seen) == (outcome, seen)


def test_certificate_that_cannot_be_read_is_judged_by_why_it_was_refused() -> None:
    candidate = Candidate("https://a.example")
    fixes = {
        "self-signed certificate": "Let's Encrypt",
        "certificate has expired": "Renew it",
        "Hostname mismatch, certificate is not valid for 'a.example'.": "is a.example set up where TLS ends?",
        "unable to get local issuer certificate": "intermediate",
    }
    for fault, fix in fixes.items():
        for encoded in b"", b"garbage", None:
            check = judge_foreign(candidate, fault, encoded)
            assert (check.outcome, check.seen, fix in check.fix) == (FAILED, fault, True)
            assert check.values == {"names": [], "not_after": ""}


async def test_http2_is_told_and_never_a_failure(tmp_path: Any) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    for protocols in ["h2", "http/1.1"], ["http/1.1"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        context.set_alpn_protocols(protocols)
        async with member(per_request(nothing), tls=context) as candidate:
            url = candidate.url.replace("http:", "https:")
            report = await probe(url, authorities=file, timeout=5.0)
        check = of(report)["http2"]
        assert (check.outcome, check.values) == (OK, {"offered": "h2" in protocols})


async def nothing(conn: Conn, _: object) -> None:
    conn.close()


# The stream's head and pace


def headed(fields: Mapping[str, str], http: str = "1.1") -> Heard:
    usual = {"Transfer-Encoding": "chunked", "Cache-Control": "no-cache"}
    return Heard(200, {name: value for name, value in (usual | dict(fields)).items() if value}, http=http)


@pytest.mark.parametrize(
    ("fields", "http", "found"),
    [
        ({}, "1.1", []),
        ({"Cache-Control": "no-store, no-transform"}, "1.1", []),
        ({"Cache-Control": ""}, "1.1", ["no Cache-Control: no-cache"]),
        ({"Cache-Control": "public, max-age=60"}, "1.1", ["no Cache-Control: no-cache"]),
        ({"CF-Ray": "1"}, "1.1", ["no no-transform behind a CDN"]),
        ({"CF-Ray": "1", "Cache-Control": "no-cache, no-transform"}, "1.1", []),
        ({"X-Accel-Buffering": "no"}, "1.1", []),
        ({"X-Accel-Buffering": "yes"}, "1.1", ["X-Accel-Buffering: yes"]),
        ({"Age": "3"}, "1.1", ["it came from a cache"]),
        ({"Connection": "Keep-Alive, Close"}, "1.1", ["Connection: close"]),
        ({"Transfer-Encoding": "gzip, chunked"}, "1.1", ["Transfer-Encoding: gzip, chunked"]),
        (
            {"Transfer-Encoding": "", "Connection": "close"},
            "1.0",
            ["HTTP/1.0", "neither chunks nor a length", "Connection: close"],
        ),
    ],
)
def test_field_that_breaks_streams_is_named_with_what_to_do(
    fields: dict[str, str], http: str, found: list[str]
) -> None:
    check = judge_headers(headed(fields, http))
    assert [each["field"] for each in check.values["found"]] == found
    assert (check.outcome is OK) == (not found)
    assert all(each["fix"] in check.fix for each in check.values["found"])


@pytest.mark.parametrize(
    ("framing", "seen"),
    [
        (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            "sent both Content-Length and Transfer-Encoding",
        ),
        (b"Content-Length: 5\r\nContent-Length: 6", "sent two Content-Length"),
    ],
)
async def test_stream_whose_end_is_ambiguous_is_named(framing: bytes, seen: str) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    report = await probed({BUILD: start + framing + b"\r\n\r\n"})
    check = of(report)["event stream"]
    assert (check.outcome, check.seen) == (FAILED, seen)
    assert "no Content-Length" in check.fix


def paced(first: float, silence: float) -> Heard:
    launch = Launch(FailureTable(), 0.0)
    launch.close(End.LOST, 60.0)
    return Heard(200, {}, ((first, 1), (60.0, 1)), comments=2, silence=silence, count=2, launch=launch)


def test_silence_that_is_longer_than_binderhubs_is_a_warning() -> None:
    assert judge_pacing(paced(25.0, 25.0)).outcome is OK
    assert judge_pacing(paced(40.0, 1.0)).outcome is WARNING
    quiet = judge_pacing(paced(1.0, 59.0))
    assert (quiet.outcome, quiet.values["longest_silence"]) == (WARNING, 59.0)
    assert quiet.values["comments"] == 2
    assert judge_pacing(Heard(200, {})).outcome is SKIPPED


async def test_pace_of_a_stream_is_counted() -> None:
    async def script(conn: Conn) -> None:
        # A comment may be split between reads, and a colon within a line is none.
        conn.send(head() + piece(b":keepalive\n\n", event(phase="waiting", message="a:b"), b"\r"))
        await asyncio.sleep(0.02)
        conn.send(piece(b":keep"), piece(b"alive\n\n"))
        await asyncio.sleep(0.11)
        conn.send(piece(event(phase="building"), event(phase="building")))
        await conn.stall()

    values = of(await probed({BUILD: script}))["event pacing"].values
    assert (values["comments"], values["events"], values["whole"]) == (2, 3, False)
    assert values["most_at_once"] >= 1


# Pages of other sites


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        (
            {NO_LAUNCH: head(b"Content-Type: text/event-stream\r\nContent-Length: 0\r\n")},
            "a launch that is refused: no Access-Control-Allow-Origin",
        ),
        ({PREFLIGHT: whole(b"", b"405 Method Not Allowed", CORS)}, "the preflight: answered 405"),
        ({PREFLIGHT: whole(b"")}, "the preflight: no Access-Control-Allow-Origin"),
        (
            {PREFLIGHT: whole(b"", fields=b"Access-Control-Allow-Origin: *\r\n")},
            "the preflight does not allow the header Cache-Control",
        ),
    ],
)
async def test_page_elsewhere_that_learns_nothing_of_a_failure_is_a_warning(
    changes: Answers, seen: str
) -> None:
    report = await probed(changes)
    check = of(report)["cors"]
    assert (check.outcome, check.seen) == (WARNING, seen)
    assert report.fit


async def test_origin_that_is_repeated_is_as_good_as_all() -> None:
    async def repeat(conn: Conn) -> None:
        origin = conn.member.requests[-1].value("Origin") or b""
        fields = b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Headers: *\r\n" % origin
        if conn.member.requests[-1].method == b"OPTIONS":
            conn.send(whole(b"", b"204 No Content", fields))
            return
        kind = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"
        conn.send(head(kind + fields) + piece(event(phase="waiting")))
        await asyncio.sleep(0.11)
        conn.send(piece(event(phase="failed", message="No")))
        await conn.stall()

    report = await probed({BUILD: repeat, NO_LAUNCH: repeat, PREFLIGHT: repeat})
    assert of(report)["cors"].seen == "Access-Control-Allow-Origin: https://mybinder.org"
    assert of(report)["cors"].outcome is OK


# What stands in front of it


@pytest.mark.parametrize(
    ("answer", "seen", "fix"),
    [
        (
            whole(b"", b"302 Found", b"Location: https://login.example/?next=x\r\n"),
            "answered 302, a redirect to https://login.example/",
            "probe that host",
        ),
        (
            whole(b"", b"301 Moved", b"Location: https://127.0.0.1/\r\n"),
            "answered 301",
            "the URL that it redir",
        ),
        (whole(b"", b"302 Found", b"Location: http://[/\r\n"), "answered 302", "pass the request on"),
        (whole(b"<!doctype html>", fields=b"Content-Type: text/html\r\n"), "answered HTML", "--base-path"),
    ],
)
async def test_answer_of_something_else_is_told_from_binderhubs(answer: bytes, seen: str, fix: str) -> None:
    check = of(await probed({b"/versions": answer}))["versions"]
    assert (check.outcome, check.seen[: len(seen)]) == (FAILED, seen)
    assert fix in check.fix
    check = of(await probed({b"/health": answer}))["health"]
    assert (check.outcome, fix in check.fix) == (FAILED, True)


async def test_candidate_that_goes_away_in_the_middle_is_told_from_one_that_never_was() -> None:
    async def leave(conn: Conn) -> None:
        conn.member._server.close()
        for other in conn.member.connections:
            other.reset()

    report = await probed({b"/health": leave}, timeout=5.0)
    assert not report.fit
    checks = of(report)
    assert checks["versions"].outcome is OK
    for name in "health", "static files", "event stream", "still there":
        assert checks[name].outcome is FAILED
        assert "See its log, and try again." in checks[name].fix
    assert checks["still there"].seen == "no connection: Connection refused"


async def test_candidate_that_was_replaced_meanwhile_is_a_warning() -> None:
    asked = iter(range(10))

    async def versions(conn: Conn) -> None:
        conn.send(whole(json.dumps({**VERSIONS, "at": next(asked) // 2}).encode()))

    report = await probed({b"/versions": versions})
    assert of(report)["still there"].outcome is WARNING
    gone = judge_end(Candidate("http://h"), fetched({}), Fetched("/", 503, {}, b"", 0.0))
    assert (gone.outcome, gone.seen) == (FAILED, "answered 503")


def test_slow_line_is_a_warning_and_a_small_file_says_nothing() -> None:
    assert judge_bandwidth(2_000_000, 2.0).values["bytes_per_second"] == 1_000_000
    assert judge_bandwidth(2_000_000, 0.0).outcome is OK
    assert judge_bandwidth(2_000_000, 8.0).outcome is WARNING
    assert judge_bandwidth(99_999, 8.0).outcome is SKIPPED


async def test_stream_that_is_endless_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedproxy.control.candidate.client._LARGEST_STREAM", 1 << 16)

    async def flood(conn: Conn) -> None:
        conn.send(head())
        while not conn.writer.is_closing():
            conn.send(piece(event(phase="building", message="x" * 1000)))
            await conn.flush()

    report = await probed({BUILD: flood}, launches=1)
    assert [(trial.end, trial.message) for trial in report.trials] == [("lost", "and it was more than 0 MiB")]
