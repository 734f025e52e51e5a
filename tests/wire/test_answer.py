"""The edge's own answers: who gets which form, and that nothing in them is taken for markup."""

from __future__ import annotations

import json

import pytest

from fedproxy.wire.answer import render, wants_page

BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("accept", [b"", b"*/*", b"application/json", b"text/event-stream"])
def test_program_gets_json_with_the_three_keys(accept: bytes) -> None:
    answer = render(502, "The member is away.", "abc", accept, False)
    assert (answer.status, answer.content_type) == (502, b"application/json")
    assert json.loads(answer.body) == {
        "error": "Bad Gateway",
        "detail": "The member is away.",
        "request_id": "abc",
    }


@pytest.mark.parametrize("accept", [BROWSER, b"Text/HTML"])
def test_person_gets_a_page_that_loads_nothing(accept: bytes) -> None:
    answer = render(503, "Nobody is there.", "abc", accept, False)
    page = answer.body.decode()
    assert (answer.status, answer.content_type) == (503, b"text/html; charset=utf-8")
    assert "<h1>503 Service Unavailable</h1>" in page
    assert "Nobody is there." in page
    assert "abc" in page
    assert "://" not in page
    assert "src=" not in page


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (b"text/html;q=0", b"application/json"),
        (b"text/html ; q=0.000, application/json", b"application/json"),
        (b"text/html;q=0.001", b"text/html; charset=utf-8"),
        (b"application/json, TEXT/HTML;level=1", b"text/html; charset=utf-8"),
        (b"text/htmlx", b"application/json"),
        (b'a/b;c="text/html"', b"application/json"),
    ],
)
def test_page_is_for_those_who_name_it_and_do_not_refuse_it(accept: bytes, kind: bytes) -> None:
    assert render(503, "Busy.", "abc", accept, False).content_type == kind


def test_page_escapes_what_it_is_given() -> None:
    page = render(404, "<script>&", '"><b>', BROWSER, False).body
    assert b"<script>" not in page
    assert b"&lt;script&gt;&amp;" in page
    assert b"<b>" not in page


def test_page_offers_another_try_only_where_it_may_help() -> None:
    assert b"Try again" in render(504, "Too late.", "abc", BROWSER, False).body
    assert b"Try again" not in render(403, "No.", "abc", BROWSER, False).body


def test_launch_gets_one_failed_event_with_status_200() -> None:
    answer = render(403, "Line one\nline two", "abc", b"text/event-stream", True)
    assert (answer.status, answer.content_type) == (200, b"text/event-stream")
    first, *rest = answer.body.decode().split("\n")
    assert rest == ["", ""]
    event = json.loads(first.removeprefix("data: "))
    assert event == {"phase": "failed", "status_code": 403, "message": "Line one\nline two"}


@pytest.mark.parametrize(
    ("accept", "event"),
    [
        (b"TEXT/Event-Stream", True),
        (b"text/event-stream;q=1", True),
        (b"*/*;text/event-stream", True),
        (b"text/html, text/event-stream", True),
        (b"text/html, text/event-stream;q=0", False),
        (b"text/event-streams", False),
    ],
)
def test_event_is_for_those_who_launch_or_name_it(accept: bytes, event: bool) -> None:
    answer = render(503, "Busy.", "abc", accept, True)
    assert (answer.content_type == b"text/event-stream") is event


@pytest.mark.parametrize("detail", ["Nobody answers.", "Nobody answers. Please try again in an hour."])
def test_launch_that_may_work_later_is_told_so(detail: str) -> None:
    event = json.loads(render(503, detail, "abc", b"text/event-stream", True).body.removeprefix(b"data: "))
    assert event["message"].count("try again") == 1


def test_build_url_opened_by_a_person_gets_the_page() -> None:
    assert render(503, "Busy.", "abc", BROWSER, True).content_type.startswith(b"text/html")


@pytest.mark.parametrize("accept", [BROWSER, b"*/*", b"text/event-stream", BROWSER + b", text/event-stream"])
@pytest.mark.parametrize("build", [False, True])
def test_page_is_wanted_where_one_is_made(accept: bytes, build: bool) -> None:
    made = render(503, "Busy.", "abc", accept, build).content_type
    assert wants_page(accept, build) is made.startswith(b"text/html")


def test_untrusted_request_gets_one_line_of_text() -> None:
    answer = render(400, "The request is malformed.", "abc", None, True)
    assert answer.content_type == b"text/plain; charset=utf-8"
    assert answer.body == b"400 Bad Request: The request is malformed.\n"


def test_status_that_has_no_name_is_an_error_still() -> None:
    assert json.loads(render(599, "Odd.", "abc", b"", False).body)["error"] == "Error"
