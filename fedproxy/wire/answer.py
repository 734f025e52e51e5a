"""The edge's own answers, as bytes: a page for people, JSON for programs, an event for a launch."""

from __future__ import annotations

import html
import json
import re
from typing import Final

from fedproxy.http.response import PHRASES, Response
from fedproxy.wire.events import accepted

PASSING: Final = frozenset((429, 502, 503, 504))
"""Errors that may be gone in a moment, so that it makes sense to try again."""

_AGAIN: Final = '<p><a href="">Try again</a></p>\n'
_START: Final = '<p><a href="{}">Start a new session</a></p>\n'
_ADVICE: Final = "Please try again in a minute."

# RFC 9110 section 12.4.2: a weight of 0 is a refusal.
_REFUSED: Final = re.compile(rb";[ \t]*q=0(?:\.0{0,3})?[ \t]*(?:;|\Z)", re.IGNORECASE).search

PAGE_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 36rem; margin: 15vh auto 2rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.3; }
small { opacity: .8; overflow-wrap: anywhere; }
"""
"""What a page has within its style element, for a policy that allows it."""

# One self-contained document: whatever is wrong with the members, this page is complete.
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{status} {phrase}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{status} {phrase}</h1>
<p>{detail}</p>
{again}<p><small>If you report this, please give the request ID: <code>{request_id}</code></small></p>
</main>
</body>
</html>
"""


def wants_page(accept: bytes, build: bool) -> bool:
    """Whether people asked, so that `render` makes a page. The arguments are its own."""
    return not (build and wants_events(accept)) and names(accept, b"text/html")


def wants_events(accept: bytes) -> bool:
    """Whether the client of a launch asked."""
    return accepted(accept) or names(accept, b"text/event-stream")


def render(
    status: int, detail: str, request_id: str, accept: bytes | None, build: bool, start: str | None = None
) -> Response:
    """The answer to a request that is not served; its status is 200 for a launch.

    `detail` is one line for the visitor, as plain text. `accept` is the request's Accept field, all lines as
    one list, empty if it has none; None means that nothing of the request can be trusted, and gives one fixed
    line. `build`: the request is for `/build/`, where a client of an event stream gives up on every status
    but 200, so that the error has to be an event (its fields are BinderHub's). `start`: the target of a page
    that starts what is not there any more.
    """
    phrase = PHRASES.get(status, "Error")
    if accept is None:
        return Response(status, b"text/plain; charset=utf-8", f"{status} {phrase}: {detail}\n".encode())
    if build and wants_events(accept):
        # A client of an event stream sees no Retry-After and no link, only this text.
        if status in PASSING and "try again" not in detail:
            detail = f"{detail} {_ADVICE}"
        event = json.dumps({"phase": "failed", "status_code": status, "message": detail})
        return Response(200, b"text/event-stream", f"data: {event}\n\n".encode())
    if names(accept, b"text/html"):
        page = _PAGE.format(
            style=PAGE_STYLE,
            status=status,
            phrase=html.escape(phrase),
            detail=html.escape(detail),
            again=(
                _START.format(html.escape(start))
                if start is not None
                else (_AGAIN if status in PASSING else "")
            ),
            request_id=html.escape(request_id),
        )
        return Response(status, b"text/html; charset=utf-8", page.encode())
    body = json.dumps({"error": phrase, "detail": detail, "request_id": request_id})
    return Response(status, b"application/json", f"{body}\n".encode())


def names(accept: bytes, kind: bytes) -> bool:
    """Whether an Accept field names a media type, or Accept-Encoding a coding, with any weight except 0.

    kind: in lower case.
    """
    for part in accept.split(b","):
        if part.partition(b";")[0].strip(b" \t").lower() == kind and _REFUSED(part) is None:
            return True
    return False
