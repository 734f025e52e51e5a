"""Which member a visitor gets and keeps, what the member is told of them, and what the visitor is told."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fedproxy.decide.member import Intent
from tests.rig import Conn, Edge, Message, Script, edge, per_request, refusing
from tests.rig.homes import cookie, cookie_of, get, named

TRUSTED: dict[str, Any] = {"trusted_proxies": ["127.0.0.0/8"]}


@asynccontextmanager
async def three(**overrides: Any) -> AsyncIterator[Edge]:
    async with edge({name: named(name) for name in ("a", "b", "c")}, **overrides) as running:
        yield running


# The cookie


async def test_cookie_is_set_when_there_is_none() -> None:
    async with three() as running:
        response = await running.ask(get())
        assert cookie_of(response) == (response.body, False)


async def test_cookie_is_set_when_it_names_nobody() -> None:
    async with three() as running:
        response = await running.ask(get(b"/", cookie(b"gone")))
        assert cookie_of(response) == (response.body, False)


async def test_cookie_leads_to_its_member_and_is_not_set_again() -> None:
    async with three() as running:
        for name in (b"a", b"b", b"c", b"a"):
            response = await running.ask(get(b"/any", cookie(name)))
            assert (response.body, cookie_of(response)) == (name, None)


@pytest.mark.parametrize(
    "target", [b"/v2/gh/org/repo/HEAD", b"/build/gh/org/repo/HEAD", b"/build/gh/org/repo/HEAD?x=y"]
)
async def test_cookie_is_renewed_where_launches_begin(target: bytes) -> None:
    async with three() as running:
        response = await running.ask(get(target, cookie(b"b")))
        assert (response.body, cookie_of(response)) == (b"b", (b"b", False))


async def test_cookie_moves_with_the_visitor() -> None:
    with refusing() as url:
        async with edge({"a": url, "b": named("b")}) as running:
            response = await running.ask(get(b"/", cookie(b"a")))
            assert (response.body, cookie_of(response)) == (b"b", (b"b", False))


@pytest.mark.parametrize("control", [b"public", b"max-age=315360000, public", b"Public , max-age=1"])
@pytest.mark.parametrize("target", [b"/static/bundle.js", b"/v2/gh/org/repo/HEAD"])
async def test_cookie_is_never_on_a_public_response(target: bytes, control: bytes) -> None:
    async with edge(named("a", b"Cache-Control: " + control)) as running:
        assert cookie_of(await running.ask(get(target))) is None


@pytest.mark.parametrize("control", [b"private", b"no-cache", b'no-cache="public"', b"x-public"])
async def test_cookie_is_on_a_response_that_is_not_public(control: bytes) -> None:
    async with edge(named("a", b"Cache-Control: " + control)) as running:
        assert cookie_of(await running.ask(get())) == (b"a", False)


async def test_cookies_of_the_member_stay_beside_it() -> None:
    async with edge(named("a", b"Set-Cookie: _xsrf=1; Path=/", b"Set-Cookie: other=2")) as running:
        values = (await running.ask(get())).values("set-cookie")
        assert values[:2] == [b"_xsrf=1; Path=/", b"other=2"]
        assert len(values) == 3


COOKIES = {
    b"fedproxy_member=a": None,
    b"fedproxy_member=a; x=1": b"x=1",
    b"x=1; fedproxy_member=a": b"x=1",
    b"x=1; fedproxy_member=a; y=2": b"x=1; y=2",
    b'x="q; fedproxy_member=a; y=2': b'x="q; y=2',
    b"fedproxy_member=a; fedproxy_member=b; x=1": b"x=1",
    b"fedproxy_member2=a; xfedproxy_member=b": b"fedproxy_member2=a; xfedproxy_member=b",
    b"x=fedproxy_member; y=1": b"x=fedproxy_member; y=1",
    b"x=fedproxy_member=a": b"x=fedproxy_member=a",
    b"x=1;y=2": b"x=1;y=2",
}


@pytest.mark.parametrize(("sent", "arrives"), COOKIES.items(), ids=[key.decode() for key in COOKIES])
async def test_cookie_is_never_sent_to_the_member_and_others_stay(sent: bytes, arrives: bytes | None) -> None:
    async with edge(named("a")) as running:
        await running.ask(get(b"/", b"Cookie: " + sent))
        assert running.member.requests[0].value("cookie") == arrives


async def test_cookie_in_a_second_field_is_found_and_removed() -> None:
    async with three() as running:
        response = await running.ask(get(b"/", b"Cookie: x=1", b"cookie: fedproxy_member=c; y=2"))
        assert response.body == b"c"
        assert running.members["c"].requests[0].values("cookie") == [b"x=1", b"y=2"]


@pytest.mark.parametrize(
    "sent",
    [
        b"fedproxy_member =b",
        b"\xa0fedproxy_member=b",
        b"\xc2\xa0fedproxy_member=b",
        b"fedproxy_member\t= b",
        b"fedproxy_member",
        b'"fedproxy_member"=b',
    ],
)
async def test_cookie_is_never_sent_to_the_member_however_it_is_spelt(sent: bytes) -> None:
    async with edge(named("a")) as running:
        await running.ask(get(b"/", b"Cookie: " + sent))
        await running.ask(get(b"/", b"Cookie: x=1; " + sent + b"; y=2"))
        await running.ask(get(b"/", b"Cookie: x=1", b"cookie: " + sent))
        values = [request.value("cookie") for request in running.member.requests]
        assert values == [None, b"x=1; y=2", b"x=1"]


@pytest.mark.parametrize(
    "lines",
    [
        (b"Cookie: fedproxy_member=gone; fedproxy_member=c",),
        (b"Cookie: fedproxy_member=c; fedproxy_member=b",),
        (b"Cookie: fedproxy_member=; x=1; fedproxy_member=c; fedproxy_member=b",),
        (b"Cookie: fedproxy_member=gone", b"Cookie: fedproxy_member=c"),
        (b"cookie: x=1; fedproxy_member =c", b"Cookie: fedproxy_member=a"),
        # This one is in maintenance.
        (b"Cookie: fedproxy_member=a; fedproxy_member=c",),
    ],
)
async def test_first_of_several_cookies_that_names_an_available_member_counts(
    lines: tuple[bytes, ...],
) -> None:
    async with three() as running:
        running.service.edge.federation.by_name["a"].set_intent(Intent.MAINT)
        response = await running.ask(get(b"/", *lines))
        assert (response.body, cookie_of(response)) == (b"c", None)
        assert (await running.logged())[0]["affinity"] == "cookie"


async def test_visitor_none_of_whose_cookies_names_an_available_member_is_moved() -> None:
    async with three() as running:
        for name in ("a", "b"):
            running.service.edge.federation.by_name[name].set_intent(Intent.MAINT)
        both = b"Cookie: fedproxy_member=a; fedproxy_member=gone; fedproxy_member=b"
        response = await running.ask(get(b"/", both))
        assert (response.body, cookie_of(response)) == (b"c", (b"c", False))
        assert (await running.logged())[0]["affinity"] == "moved"


async def test_cookie_has_the_name_and_age_of_the_config() -> None:
    async with edge(named("a"), affinity={"cookie": "sticky", "max_age": "1h"}) as running:
        response = await running.ask(get(b"/", cookie(b"a")))
        expected = rb"sticky=a![0-9]+; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"
        assert re.fullmatch(expected, response.value("set-cookie") or b"")
        assert running.member.requests[0].value("cookie") == b"fedproxy_member=a"


async def test_cookie_with_a_secret_says_nothing_and_cannot_be_made_up() -> None:
    values = []
    for secret in ("one", "one", "two"):
        async with three(affinity={"secret": secret}) as running:
            response = await running.ask(get(b"/v2/gh/org/repo/HEAD"))
            value, _ = cookie_of(response) or (b"", False)
            assert response.body != value
            assert len(value) >= 16
            again = await running.ask(get(b"/other", cookie(value)))
            assert (again.body, cookie_of(again)) == (response.body, None)
            assert cookie_of(await running.ask(get(b"/", cookie(response.body)))) is not None
            values.append(value)
    assert values[0] == values[1] != values[2]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_cookie_over_https_is_secure(authority: trustme.CA, tmp_path: Path) -> None:
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = {"certificate": str(tmp_path / "tls.pem"), "private_key": str(tmp_path / "tls.pem")}
    async with edge(named("a"), listen=[{"address": "127.0.0.1:0", "tls": tls}]) as running:
        client = await running.client(tls=trusting)
        assert cookie_of(await client.ask(get())) == (b"a", True)
        assert running.member.requests[0].value("x-forwarded-proto") == b"https"


async def test_cookie_behind_a_trusted_proxy_is_secure_if_the_visitor_came_by_https() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        assert cookie_of(await running.ask(get(b"/", b"X-Forwarded-Proto: https"))) == (b"a", True)
        assert cookie_of(await running.ask(get(b"/", b"X-Forwarded-Proto: http"))) == (b"a", False)
        assert [request.value("x-forwarded-proto") for request in running.member.requests] == [
            b"https",
            b"http",
        ]


async def test_cookie_is_not_secure_because_anybody_says_https() -> None:
    async with edge(named("a")) as running:
        assert cookie_of(await running.ask(get(b"/", b"X-Forwarded-Proto: https"))) == (b"a", False)
        assert running.member.requests[0].value("x-forwarded-proto") == b"http"


# The key of visitors with no cookie

REPOSITORIES = [b"gh/org%d/repo" % n for n in range(30)] + [
    b"gist/user/%040x" % 7,
    b"zenodo/10.5281%2Fzenodo.1",
]


async def members_of(running: Edge, targets: Iterable[bytes]) -> list[bytes]:
    client = await running.client()
    return [(await client.ask(get(target))).body for target in targets]


async def test_page_and_build_of_a_repository_meet_the_same_member() -> None:
    async with three() as running:
        pages = await members_of(running, (b"/v2/%b/HEAD" % repository for repository in REPOSITORIES))
        builds = await members_of(running, (b"/build/%b/HEAD" % repository for repository in REPOSITORIES))
        assert pages == builds
        assert set(pages) == {b"a", b"b", b"c"}


async def test_every_ref_of_a_repository_meets_the_same_member() -> None:
    async with three() as running:
        for repository in REPOSITORIES[:10]:
            refs = (b"HEAD", b"main", b"v1.0", b"feature%2Fx", b"0123456789")
            assert (
                len(set(await members_of(running, (b"/build/%b/%b" % (repository, ref) for ref in refs))))
                == 1
            )


async def test_query_and_case_of_a_repository_do_not_matter() -> None:
    async with three() as running:
        targets = (
            b"/v2/gh/Org/Repo/HEAD",
            b"/v2/gh/org/repo/HEAD?urlpath=lab",
            b"/build/gh/ORG/REPO/HEAD?build_token=x",
        )
        assert len(set(await members_of(running, targets))) == 1


async def test_client_as_key_gives_one_address_one_member() -> None:
    async with three(affinity={"key": "client"}, **TRUSTED) as running:
        client = await running.client()
        found = set()
        for number in range(40):
            visitor = b"X-Forwarded-For: 203.0.113.%d" % number
            bodies = {(await client.ask(get(b"/%d" % path, visitor))).body for path in range(3)}
            assert len(bodies) == 1
            found |= bodies
        assert found == {b"a", b"b", b"c"}


async def test_two_edges_choose_alike() -> None:
    choices = []
    for _ in range(2):
        async with three() as running:
            choices.append(
                await members_of(running, (b"/v2/%b/HEAD" % repository for repository in REPOSITORIES))
            )
    assert choices[0] == choices[1]


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        b"c.hub.test",
        b"C.HUB.test",
        b"c.hub.test:8080",
        b"c.hub.test.",
        b"C.hub.TEST.:443",
        b"c.hub.test:",
        b"[2001:DB8:0::1]:80",
        b"d.hub.test",
    ],
)
async def test_host_of_a_member_leads_to_it_whatever_the_cookie_says(host: bytes) -> None:
    hosts = ["c.hub.test", "D.Hub.test.", "2001:db8::1"]
    async with three(settings={"c": {"hosts": hosts}}) as running:
        assert (await running.ask(get(b"/", cookie(b"a"), host=host))).body == b"c"
        (line,) = await running.logged()
        assert line["affinity"] == "host"


async def test_host_in_absolute_form_leads_to_its_member() -> None:
    async with three(settings={"c": {"hosts": ["c.hub.test"]}}) as running:
        assert (await running.ask(get(b"http://c.hub.test/x", host=b"a.hub.test"))).body == b"c"


@pytest.mark.parametrize("host", [b"", b".", b"c.hub.test..", b"xc.hub.test", b"hub.test."])
async def test_host_of_no_member_leads_where_the_cookie_says(host: bytes) -> None:
    async with three(settings={"c": {"hosts": ["c.hub.test"]}}) as running:
        assert (await running.ask(get(b"/", cookie(b"a"), host=host))).body == b"a"


async def test_host_of_a_member_that_is_down_goes_to_nobody_else() -> None:
    with refusing() as url:
        members: dict[str, Script | str] = {"a": named("a"), "b": url}
        async with edge(members, settings={"b": {"hosts": ["b.hub.test"]}}) as running:
            assert (await running.ask(get(host=b"b.hub.test"))).status == 502
            assert running.members["a"].received == b""


# Routes

ROUTES = [
    {"path": "/badge.svg", "redirect": "https://static.test/badge.svg", "status": 301},
    {"path": "/found", "redirect": "https://static.test/found"},
    {"path": "/metrics", "status": 404},
    {"path": "/prime/*", "to": "prime"},
    {"path": "/b/*", "to": "b"},
    {"path": "/away/*", "to": "members", "mode": "redirect"},
    {"path": "/away-b/*", "to": "b", "mode": "redirect"},
    {"path": "/b/never", "status": 500},
]


@asynccontextmanager
async def routed() -> AsyncIterator[Edge]:
    async with three(routes=ROUTES, settings={"c": {"prime": True}}) as running:
        yield running


@pytest.mark.parametrize(
    ("target", "status", "location"),
    [
        (b"/badge.svg", 301, b"https://static.test/badge.svg"),
        (b"/badge.svg?x=y", 301, b"https://static.test/badge.svg"),
        (b"/found", 302, b"https://static.test/found"),
        (b"/metrics", 404, None),
    ],
)
async def test_route_that_answers_here(target: bytes, status: int, location: bytes | None) -> None:
    async with routed() as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(get(target))
            assert (response.status, response.value("location")) == (status, location)
        assert b"".join(member.received for member in running.members.values()) == b""
        lines = await running.logged(2)
        assert {(line["status"], line["termination"], line["member"]) for line in lines} == {
            (status, "--", None)
        }


async def test_first_route_that_matches_wins() -> None:
    async with routed() as running:
        assert (await running.ask(get(b"/b/never"))).body == b"b"


@pytest.mark.parametrize(("target", "name"), [(b"/prime/x", b"c"), (b"/b/x?y", b"b")])
async def test_route_to_one_member_goes_there_whatever_the_cookie_says(target: bytes, name: bytes) -> None:
    async with routed() as running:
        for value in (b"a", b"b", b"c"):
            assert (await running.ask(get(target, cookie(value)))).body == name


@pytest.mark.parametrize("target", [b"/away/gh/a%2Fb//c%3A?d=%20&e#"[:-1], b"/away/../x", b"/away/"])
async def test_redirect_to_a_member_keeps_the_target_byte_for_byte(target: bytes) -> None:
    async with routed() as running:
        response = await running.ask(get(target, cookie(b"b")))
        assert response.status == 307
        assert response.value("location") == running.members["b"].url.encode() + target
        assert not running.members["b"].received


async def test_redirect_to_a_certain_member_names_it() -> None:
    async with routed() as running:
        response = await running.ask(get(b"/away-b/x", cookie(b"a")))
        assert response.value("location") == running.members["b"].url.encode() + b"/away-b/x"


async def test_redirect_of_an_upload_ends_the_connection_and_its_body_is_no_request() -> None:
    async with routed() as running:
        client = await running.client()
        body = get(b"/smuggled")
        response = await client.ask(get(b"/away/x", b"Content-Length: %d" % len(body), method=b"POST") + body)
        assert response.status == 307
        assert await client.closed() == "eof"
        assert b"".join(member.received for member in running.members.values()) == b""


async def test_connection_goes_on_after_an_answer_from_here() -> None:
    async with routed() as running:
        client = await running.client()
        await client.send(get(b"/badge.svg") + get(b"/b/x") + get(b"/metrics") + get(b"/b/y"))
        assert [(await client.response()).status for _ in range(4)] == [301, 200, 404, 200]


async def test_page_of_the_edge_itself_reaches_no_member_and_keeps_its_connection() -> None:
    async with three() as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(get(b"/active_hosts", b"X-Request-ID: my-id.1"))
            assert (response.status, response.values("x-request-id")) == (200, [b"my-id.1"])
            assert set(json.loads(response.body)["active_hosts"]) == {"a", "b", "c"}
        assert b"".join(member.received for member in running.members.values()) == b""


# What the member is told


async def told(*lines: bytes, target: bytes = b"/", **overrides: Any) -> Message:
    async with edge(named("a"), **overrides) as running:
        await running.ask(get(target, *lines))
        (request,) = running.member.requests
        assert request.value("host") == running.member.authority.encode()
        return request


async def test_member_is_told_where_the_visitor_came_from() -> None:
    request = await told()
    assert request.value("x-forwarded-for") == b"127.0.0.1"
    assert request.value("x-real-ip") == b"127.0.0.1"
    assert request.value("x-forwarded-proto") == b"http"
    assert request.value("x-forwarded-host") == b"hub.test"
    assert request.value("via") == b"1.1 fedproxy"


FORGED = [
    *(
        b"X-Forwarded-For: 6.6.6.6",
        b"X-Forwarded-For: 7.7.7.7",
        b"X-Real-IP: 6.6.6.6",
        b"X-Forwarded-Proto: https",
    ),
    *(
        b"X-Forwarded-Host: evil.test",
        b"Forwarded: for=6.6.6.6",
        b"X-Forwarded-Port: 666",
        b"X-Forwarded-Server: evil",
    ),
]


async def test_anybody_may_say_anything_and_none_of_it_arrives() -> None:
    request = await told(*FORGED)
    assert request.value("x-forwarded-for") == request.value("x-real-ip") == b"127.0.0.1"
    assert request.value("x-forwarded-proto") == b"http"
    assert request.value("x-forwarded-host") == b"hub.test"
    assert b"6.6.6.6" not in request.head
    assert b"evil" not in request.head
    assert request.value("x-forwarded-port") is None


async def test_trusted_proxy_is_believed() -> None:
    said = (b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: public.test")
    request = await told(*said, **TRUSTED)
    assert request.value("x-forwarded-for") == b"203.0.113.9, 127.0.0.1"
    assert request.value("x-real-ip") == b"203.0.113.9"
    assert request.value("x-forwarded-proto") == b"https"
    assert request.value("x-forwarded-host") == b"public.test"


async def test_trusted_proxy_is_believed_about_an_absolute_target_too() -> None:
    request = await told(b"X-Forwarded-For: 203.0.113.9", target=b"http://other.test/x", **TRUSTED)
    assert request.value("x-real-ip") == b"203.0.113.9"
    assert request.value("x-forwarded-host") == b"other.test"


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([b"X-Forwarded-For: 6.6.6.6, 203.0.113.9"], b"203.0.113.9"),
        ([b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 203.0.113.9"], b"203.0.113.9"),
        ([b"X-Forwarded-For: 203.0.113.9, 127.0.0.2"], b"203.0.113.9"),
        ([b"X-Forwarded-For: 203.0.113.9,127.0.0.2 , 127.0.0.3"], b"203.0.113.9"),
        ([b"X-Forwarded-For: 2001:db8::1"], b"2001:db8::1"),
        ([b"X-Real-IP: 203.0.113.9"], b"203.0.113.9"),
        ([], b"127.0.0.1"),
    ],
)
async def test_client_is_the_last_address_that_no_trusted_proxy_has(
    lines: list[bytes], client: bytes
) -> None:
    async with edge(named("a"), **TRUSTED) as running:
        await running.ask(get(b"/", *lines))
        assert running.member.requests[0].value("x-real-ip") == client
        (line,) = await running.logged()
        assert line["client"] == client.decode()


async def test_what_a_trusted_proxy_said_is_forgotten_with_its_request() -> None:
    async with edge(named("a"), **TRUSTED) as running:
        client = await running.client()
        await client.ask(
            get(
                b"/",
                b"X-Forwarded-For: 203.0.113.9",
                b"X-Forwarded-Proto: https",
                b"X-Forwarded-Host: one.test",
            )
        )
        await client.ask(get(b"/"))
        second = running.member.requests[1]
        assert (second.value("x-real-ip"), second.value("x-forwarded-proto")) == (b"127.0.0.1", b"http")
        assert second.value("x-forwarded-host") == b"hub.test"


async def test_host_line_of_a_trusted_proxy_is_not_the_members() -> None:
    request = await told(b"X-Forwarded-Host: nonsense nonsense", **TRUSTED)
    assert request.value("x-forwarded-host") == b"hub.test"


async def test_via_of_earlier_proxies_stays() -> None:
    request = await told(b"Via: 1.0 first, 1.1 second")
    assert b", ".join(request.values("via")) == b"1.0 first, 1.1 second, 1.1 fedproxy"


async def test_origin_is_the_public_url_if_the_visitor_sent_none() -> None:
    assert (await told(public_url="https://binder.test")).value("origin") == b"https://binder.test"


@pytest.mark.parametrize("origin", [b"https://other.test", b"null"])
async def test_origin_of_the_visitor_is_never_replaced(origin: bytes) -> None:
    assert (await told(b"Origin: " + origin, public_url="https://binder.test")).value("origin") == origin


async def test_origin_is_not_made_up_without_a_public_url() -> None:
    assert (await told()).value("origin") is None


@pytest.mark.parametrize(
    "accept", [b"text/event-stream", b"text/event-stream, */*", b"Text/Event-Stream;q=0.5"]
)
async def test_accept_of_a_build_arrives_untouched(accept: bytes) -> None:
    assert (await told(b"Accept: " + accept, target=b"/build/gh/o/r/HEAD")).value("accept") == accept


TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_ids_of_the_visitor_are_passed_on_and_back() -> None:
    async with edge(named("a")) as running:
        response = await running.ask(
            get(b"/", b"X-Request-ID: my-id.1", b"traceparent: " + TRACE, b"tracestate: a=b")
        )
        assert response.value("x-request-id") == b"my-id.1"
        (request,) = running.member.requests
        assert (request.value("x-request-id"), request.value("traceparent")) == (b"my-id.1", TRACE)
        assert request.value("tracestate") == b"a=b"
        (line,) = await running.logged()
        assert line["request_id"] == "my-id.1"


async def test_ids_are_made_if_the_visitor_sent_none_and_differ() -> None:
    async with edge(named("a")) as running:
        client = await running.client()
        returned = [(await client.ask(get())).value("x-request-id") for _ in range(3)]
        requests = running.member.requests
        assert [request.value("x-request-id") for request in requests] == returned
        assert len(set(returned)) == 3
        traces = [request.value("traceparent") or b"" for request in requests]
        assert all(re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", trace) for trace in traces)
        assert len(set(traces)) == 3


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"X-Request-ID: " + b"a" * 1000,
            b"X-Request-ID: a b",
            b'X-Request-ID: "><script>',
            b"X-Request-ID:",
        ),
        *(b"traceparent: nonsense", b"traceparent: 00-" + b"0" * 32 + b"-00f067aa0ba902b7-01"),
    ],
)
async def test_ids_that_are_no_ids_are_replaced(line: bytes) -> None:
    request = await told(line)
    assert re.fullmatch(rb"[0-9a-f-]{32,64}", request.value("x-request-id") or b"")
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", request.value("traceparent") or b"")


# What the visitor is told


async def test_visitor_gets_the_members_response_and_the_request_id_and_nothing_else() -> None:
    lines = [
        b"Date: x",
        b"Server: TornadoServer/6",
        b"X-A: 1",
        b"x-a: 2",
        b"Content-Encoding: gzip",
        b"X-Powered-By: y",
    ]
    async with edge(named("a", *lines)) as running:
        response = await running.ask(get(b"/", cookie(b"a")))
        own = [field for field in response.fields if field[0].lower() != b"x-request-id"]
        expected = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        assert sorted(own) == sorted([*expected, (b"Content-Length", b"1")])
        assert [field for field in own if field[0].lower() == b"x-a"] == [(b"X-A", b"1"), (b"x-a", b"2")]


@pytest.mark.parametrize(
    "line", [b"Keep-Alive: timeout=5", b"Proxy-Authenticate: x", b"Trailer: y", b"Connection: x-gone"]
)
async def test_hop_by_hop_field_of_a_response_does_not_pass(line: bytes) -> None:
    async with edge(named("a", line, b"X-Gone: 1" if b"gone" in line else b"X-Stays: 1")) as running:
        response = await running.ask(get(b"/", cookie(b"a")))
        assert {name.lower() for name, _ in response.fields} <= {
            b"content-length",
            b"x-request-id",
            b"x-stays",
        }


async def test_status_line_of_the_member_passes() -> None:
    async def script(conn: Conn, request: Message) -> None:
        conn.send(b"HTTP/1.1 418 I'm a \xe4 teapot\r\nContent-Length: 0\r\n\r\n")

    async with edge(per_request(script)) as running:
        assert (await running.ask(get())).start == b"HTTP/1.1 418 I'm a \xe4 teapot"


async def test_secrets_are_masked_in_the_log() -> None:
    async with edge(named("a")) as running:
        await running.ask(
            get(
                b"/build/gh/o/r/HEAD?build_token=s3cret&x=1&token=s3cret",
                b"Referer: http://r.test/?token=s3cret",
            )
        )
        (line,) = await running.logged()
        assert "s3cret" not in line["target"]
        assert "x=1" in line["target"]
