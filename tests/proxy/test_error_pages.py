"""What people see when the edge itself answers, on real connections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedproxy.decide.member import Intent
from fedproxy.web.error_pages import policy
from tests.rig import Edge, Message, answer, edge, refusing, until
from tests.rig.faults import resets_before_the_head
from tests.rig.h2 import H2Client, request

HTML = b"Accept: text/html,application/xhtml+xml,*/*;q=0.8"
LAUNCH = b"/build/gh/user/repo/HEAD"
PAGES: dict[str, Any] = {"pages": {"site": "Our <Binder>", "status_url": "https://status.example/"}}


def get(target: bytes = b"/page", *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    start = method + b" " + target + b" HTTP/" + version
    return b"\r\n".join((start, b"Host: hub.test", HTML, *lines, b"", b""))


def write(folder: Path, **files: str) -> dict[str, Any]:
    """A config with these templates; `error_de` is `error.de.html`."""
    for name, text in files.items():
        (folder / f"{name.replace('_', '.')}.html").write_text(text)
    return {"pages": {"templates": str(folder)}}


async def away(running: Edge, *requests: bytes) -> list[str]:
    """What is answered when the only member is away."""
    running.service.federation.by_name["a"].set_intent(Intent.MAINT)
    return [(await running.ask(each)).body.decode() for each in requests]


def retries(message: Message) -> str:
    text = message.body.decode()
    if "<script" in text:
        return "by itself"
    return "by a link" if "Try again</a>" in text else "not"


async def test_page_has_the_site_the_request_id_and_a_policy() -> None:
    async with edge(answer(), **PAGES) as running:
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        response = await running.ask(get(b"/<b>?<i>", b"X-Request-ID: abc-1"))
        text = response.body.decode()
        assert (response.status, response.value("content-type")) == (503, b"text/html; charset=utf-8")
        assert "We are down at the moment - Our &lt;Binder&gt;</title>" in text
        assert "<code>abc-1</code>" in text and 'href="https://status.example/"' in text
        assert not any(each in text for each in ("<b>", "<i>", "hub.test"))
        assert response.value("content-security-policy") == policy().encode()
        assert response.value("content-language") == b"en"
        assert response.value("cache-control") == b"no-store"
        assert response.value("retry-after") == b"30" and 'data-after="30"' in text
        assert response.value("vary") == b"Accept"


@pytest.mark.parametrize(
    ("target", "method", "wanted"),
    [
        (b"/page", b"GET", "by itself"),
        (b"/v2/gh/user/repo/HEAD", b"GET", "by itself"),
        (b"/user/kim/lab", b"GET", "by itself"),
        (LAUNCH, b"GET", "by a link"),
        (b"/page", b"POST", "not"),
        (b"/page", b"DELETE", "not"),
        (b"/fixed", b"GET", "by a link"),
        (b"/teapot", b"GET", "not"),
    ],
)
async def test_only_what_may_be_repeated_is_asked_for_again(
    target: bytes, method: bytes, wanted: str
) -> None:
    routes = [{"path": "/fixed", "status": 503}, {"path": "/teapot", "status": 418}]
    with refusing() as url:
        async with edge({"a": url}, routes=routes) as running:
            response = await running.ask(get(target, method=method))
            assert response.status in (502, 503, 418)
            assert retries(response) == wanted


async def test_launch_and_page_have_different_words_and_each_fault_its_own() -> None:
    async with edge(resets_before_the_head, **PAGES) as running:
        for target, words in (
            (b"/page", b"This page could not be loaded"),
            (b"/v2/gh/user/repo/HEAD", b"Your launch could not be started"),
            (LAUNCH, b"Your launch could not be started"),
            (b"/hub/v2/gh/x/y", b"This page could not be loaded"),
        ):
            response = await running.ask(get(target))
            assert response.status == 502 and words in response.body, target


async def test_banned_have_a_page_of_their_own() -> None:
    async with edge(answer(), ban={"user_agents": ["bot"]}, **PAGES) as running:
        refused = await running.ask(get(b"/page", b"User-Agent: bot"))
        assert refused.status == 403 and b"Access is not allowed" in refused.body


async def test_too_many_uploads_have_a_page_that_says_when_to_go_on() -> None:
    upload = get(b"/page", b"Content-Length: 1000", method=b"PUT") + b"a"
    async with edge(answer(), limits={"uploads_per_address": 1}, **PAGES) as running:
        await (await running.client()).send(upload)
        await until(lambda: sum(running.service.edge.admission.under_way.values()), "an upload is under way")
        limited = await (await running.client()).ask(upload)
        assert limited.status == 429 and b"You can go on in 30 seconds" in limited.body
        assert retries(limited) == "not"


async def test_programs_and_streams_get_what_they_got() -> None:
    async with edge(answer(), **PAGES) as running:
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        response = await running.ask(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n")
        assert set(json.loads(response.body)) == {"error", "detail", "request_id"}
        assert response.value("content-security-policy") is None
        assert response.value("vary") == b"Accept"
        stream = b"GET %b HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n" % LAUNCH
        response = await running.ask(stream)
        assert response.status == 200
        assert json.loads(response.body.removeprefix(b"data: "))["status_code"] == 503


async def test_head_has_the_fields_of_get() -> None:
    async with edge(answer(), **PAGES) as running:
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        same = b"X-Request-ID: abc"
        whole = await running.ask(get(b"/", same))
        head = await running.ask(get(b"/", same, method=b"HEAD"), "HEAD")
        assert head.body == b"" and head.fields == whole.fields
        assert head.value("content-length") == b"%d" % len(whole.body)


async def test_old_client_gets_the_page() -> None:
    async with edge(answer(), **PAGES) as running:
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        response = await running.ask(get(version=b"1.0"))
        assert response.status == 503 and b"We are down" in response.body


async def test_page_by_http2() -> None:
    listen = [{"address": "127.0.0.1:0", "http2": True}]
    async with edge(answer(), listen=listen, **PAGES) as running:
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        client = await H2Client(await running.client()).begin()
        response = await client.ask(request(b"/page", (b"accept", b"text/html")))
        assert response.status == 503 and b"We are down" in response.body
        assert response.value("content-security-policy") == policy().encode()
        assert response.value("vary") == b"Accept"


# -- the operator's templates


async def test_operators_page_is_shown_when_everybody_is_away(tmp_path: Path) -> None:
    pages = write(tmp_path, down="away {{ launch }} {{ detail }} {{ request_id }}")
    async with edge(answer(), **pages) as running:
        detail = "No member of the federation is available at the moment. Please try again in a minute."
        assert await away(
            running,
            get(b"/", b"X-Request-ID: abc"),
            get(b"/v2/gh/a/b/HEAD", b"X-Request-ID: def"),
        ) == [f"away False {detail} abc", f"away True {detail} def"]


async def test_page_is_in_the_visitors_language(tmp_path: Path) -> None:
    pages = write(tmp_path, error="error {{ status }}", error_de="Fehler {{ status }}", down="down")
    async with edge(answer(), **pages, routes=[{"path": "/x", "status": 404}]) as running:
        response = await running.ask(
            get(b"/x", b"Accept-Language: fr, en;q=0.1", b"accept-language: de-AT;q=0.5")
        )
        assert (response.body, response.value("content-language")) == (b"Fehler 404", b"de")
        assert response.value("vary") == b"Accept, Accept-Language"
        response = await running.ask(get(b"/x"))
        assert (response.body, response.value("content-language")) == (b"error 404", b"en")
        assert response.value("vary") == b"Accept, Accept-Language"
        running.service.federation.by_name["a"].set_intent(Intent.MAINT)
        response = await running.ask(get(b"/", b"Accept-Language: de"))
        assert (response.body, response.value("vary")) == (b"down", b"Accept")


async def test_session_that_cannot_be_reached_is_told_where_it_was(tmp_path: Path) -> None:
    pages = write(tmp_path, session="{{ situation }}: {{ detail }}")
    async with edge(answer(), **pages) as running:
        cookie = b"Cookie: fedproxy_member=a"
        (text,) = await away(running, get(b"/user/kim/lab", cookie))
        assert text == "session: a, which your session runs on, is in maintenance. Please try again later."
