"""Answers that send the visitor elsewhere: to https, and to a member."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from fedproxy.config.load import parse
from tests.rig import Conn, Edge, Message, RawClient, answer, edge, per_request, refusing, until
from tests.rig.member import OK

STREAM = b"Accept: text/event-stream"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def request(
    target: bytes = b"/", *lines: bytes, host: bytes | None = b"hub.test", method: bytes = b"GET"
) -> bytes:
    hosts = () if host is None else (b"Host: " + host,)
    version = b"HTTP/1.0" if host is None else b"HTTP/1.1"
    return b"\r\n".join((b"%b %b %b" % (method, target, version), *hosts, *lines, b"", b""))


# -- to https


@asynccontextmanager
async def plain(**overrides: Any) -> AsyncIterator[Edge]:
    listen = [{"address": "127.0.0.1:0", "redirect_to_https": True}]
    async with edge(answer(), listen=listen, **overrides) as running:
        yield running
        assert running.member.requests == []


async def test_visitor_who_came_to_a_trusted_proxy_over_https_is_served() -> None:
    listen = [{"address": "127.0.0.1:0", "redirect_to_https": True}]
    async with edge(answer(), listen=listen, trusted_proxies=["127.0.0.1"]) as running:
        client = await running.client()
        assert (await client.ask(request(b"/", b"X-Forwarded-Proto: https"))).status == 200
        assert (await client.ask(request(b"/", b"X-Forwarded-Proto: http"))).status == 301
        assert (await client.ask(request())).status == 301


@pytest.mark.parametrize(
    ("host", "target", "location"),
    [
        (b"hub.test", b"/v2/gh/a%2Fb//c?x=%20&y", b"https://hub.test/v2/gh/a%2Fb//c?x=%20&y"),
        (b"hub.test:8080", b"/", b"https://hub.test/"),
        (b"Hub.Test", b"/", b"https://hub.test/"),
        (b"[2001:db8::1]:8080", b"/x", b"https://[2001:db8::1]/x"),
        (b"hub.test", b"http://other.test:80/x", b"https://other.test/x"),
        (b"hub.test", b"/federation", b"https://hub.test/federation"),
    ],
)
async def test_request_is_sent_to_the_same_url_over_https(
    host: bytes, target: bytes, location: bytes
) -> None:
    async with plain() as running:
        client = await running.client()
        for _ in range(2):
            response = await client.ask(request(target, host=host))
            assert (response.status, response.value("location")) == (301, location)
        assert {(line["status"], line["termination"]) for line in await running.logged(2)} == {(301, "--")}


@pytest.mark.parametrize(
    ("host", "location"),
    [
        (b"binder.test:8080", b"https://binder.test:8443/x?y"),
        (b"Binder.Test", b"https://binder.test:8443/x?y"),
        # A member's own host stays; any other is only what the request says.
        (b"Pinned.test:8080", b"https://pinned.test/x?y"),
        (b"evil.test", b"https://binder.test:8443/x?y"),
        (b"binder.test.evil.test:8080", b"https://binder.test:8443/x?y"),
        (b"192.0.2.1:8080", b"https://binder.test:8443/x?y"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
async def test_host_and_port_of_https_are_those_of_the_public_url(
    host: bytes, location: bytes, absolute: bool
) -> None:
    settings = {"a": {"hosts": ["pinned.test"]}}
    async with plain(public_url="https://binder.test:8443", settings=settings) as running:
        data = request(b"http://" + host + b"/x?y") if absolute else request(b"/x?y", host=host)
        response = await running.ask(data)
        assert (response.status, response.value("location")) == (301, location)


async def test_public_url_without_tls_says_nothing_of_https() -> None:
    async with plain(public_url="http://binder.test:8080") as running:
        assert (await running.ask(request(host=b"other.test"))).value("location") == b"https://other.test/"


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS"])
async def test_method_and_body_go_with_it(method: bytes) -> None:
    async with plain() as running:
        client = await running.client()
        response = await client.ask(request(b"/x", b"Content-Length: 5", method=method) + b"hello")
        assert (response.status, response.value("location")) == (308, b"https://hub.test/x")
        assert await client.closed() == "eof"


async def test_options_of_the_server_has_no_path() -> None:
    async with plain() as running:
        response = await running.ask(request(b"*", method=b"OPTIONS"))
        assert response.value("location") == b"https://hub.test"


@pytest.mark.parametrize("host", [None, b"a b", b"hub.test/evil", b"evil@hub.test", b""])
async def test_request_without_a_valid_host_is_refused(host: bytes | None) -> None:
    async with plain() as running:
        response = await running.ask(request(host=host))
        assert (response.status, response.value("location")) == (400, None)


# -- HSTS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory: Path = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return {"certificate": str(chain), "private_key": str(key)}


@pytest.mark.parametrize(("hsts", "value"), [("1d", b"max-age=86400"), (0, None)])
async def test_hsts_is_on_every_response_over_https_if_the_operator_wants_it(
    authority: trustme.CA, files: dict[str, str], hsts: object, value: bytes | None
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    listen = [
        {"address": "127.0.0.1:0", "tls": {**files, "hsts": hsts}},
        {"address": "127.0.0.1:0"},
    ]
    async with edge(answer(), listen=listen, routes=[{"path": "/gone", "status": 410}]) as running:
        client = await running.client(tls=context)
        for target in (b"/", b"/gone", b"/bad target"):
            response = await client.ask(request(target))
            assert response.value("strict-transport-security") == value
            assert response.value("x-request-id") is not None
        other = await RawClient.connect(running.service.addresses[1])
        assert (await other.ask(request())).value("strict-transport-security") is None
        await other.leave()


# -- what a reload changes of a listener


async def reload(running: Edge, listen: list[dict[str, Any]]) -> None:
    service = running.service
    text = yaml.safe_dump({"listen": listen, "members": {"a": {"url": running.member.url}}})
    changed = parse(text, {}).listen
    service._reread = lambda: service.config.model_copy(update={"listen": changed})
    assert await service.reload() == []


@pytest.mark.parametrize("before", [False, True])
async def test_connection_that_is_kept_is_redirected_from_its_next_request_by_the_listener_s_new_word(
    before: bool,
) -> None:
    going = asyncio.Event()

    async def wait(conn: Conn, _: Message) -> None:
        await going.wait()
        conn.send(OK)

    listen = [[{"address": "127.0.0.1:0", "redirect_to_https": on}] for on in (False, True)]
    async with edge(per_request(wait), listen=listen[before]) as running:
        idle, held = await running.client(), await running.client()
        going.set()
        status = {False: 200, True: 301}
        assert (await idle.ask(request())).status == status[before]
        going.clear()
        await held.send(request() + request() + request()[:9])
        if before:
            assert [(await held.response()).status for _ in range(2)] == [301, 301]
        else:
            await until(lambda: running.member.has(requests=2), "it is under way")
        await reload(running, listen[not before])
        going.set()
        assert (await idle.ask(request())).status == status[not before]
        if not before:
            # The one under way is done as it was begun, and what was read behind it is not.
            assert [(await held.response()).status for _ in range(2)] == [200, 301]
        assert (await held.ask(request()[9:])).status == status[not before]
        await reload(running, listen[before])
        assert (await idle.ask(request())).status == status[before]


async def test_connection_that_is_kept_has_the_listener_s_new_hsts(
    authority: trustme.CA, files: dict[str, str]
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def listen(hsts: str) -> list[dict[str, Any]]:
        return [{"address": "127.0.0.1:0", "tls": {**files, "hsts": hsts}}]

    async with edge(answer(), listen=listen("1d")) as running:
        client = await running.client(tls=context)
        for hsts in ("1d", "0s", "1h"):
            await reload(running, listen(hsts))
            value = (await client.ask(request())).value("strict-transport-security")
            assert value == {"1d": b"max-age=86400", "0s": None, "1h": b"max-age=3600"}[hsts]


# -- to a member

AWAY = [
    {"path": "/build/*", "to": "members", "mode": "redirect"},
    {"path": "/mine/*", "to": "a", "mode": "redirect"},
    {"path": "/*", "to": "prime"},
]


@asynccontextmanager
async def away(**settings: Any) -> AsyncIterator[Edge]:
    members = {"a": answer(), "b": answer()}
    async with edge(members, routes=AWAY, settings={"a": {"prime": True}}, **settings) as running:
        yield running


def cookie_of(response: Message) -> bytes | None:
    value = response.value("set-cookie")
    return value.partition(b"!")[0].removeprefix(b"fedproxy_member=") if value else None


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"])
async def test_every_method_is_redirected_with_its_target_and_may_be_read_by_any_page(method: bytes) -> None:
    target = b"/build/gh/a%2Fb//c%3A?d=%20&e"
    async with away() as running:
        client = await running.client()
        response = await client.ask(
            request(target, STREAM, b"Cookie: fedproxy_member=b", method=method), method.decode()
        )
        assert response.status == 307
        assert response.value("location") == running.members["b"].url.encode() + target
        assert response.value("access-control-allow-origin") == b"*"
        assert response.value("content-length") == b"0"


async def test_redirect_counts_for_its_member_and_is_logged_with_it() -> None:
    async with away() as running:
        await running.ask(request(b"/build/gh/a/b/HEAD", STREAM, b"Cookie: fedproxy_member=b"))
        await running.ask(request(b"/mine/x", b"Cookie: fedproxy_member=b"))
        first, second = await running.logged(2)
        assert [(each["status"], each["member"], each["affinity"]) for each in (first, second)] == [
            (307, "b", "cookie"),
            (307, "a", "host"),
        ]
        by_name = running.service.edge.federation.by_name
        assert by_name["b"].counts.affinity == {"cookie": 1}
        assert by_name["a"].counts.affinity == {"host": 1}
        assert by_name["a"].counts.codes == by_name["b"].counts.codes == {307: 1}


async def test_redirected_visitor_is_kept_by_the_cookie() -> None:
    async with away() as running:
        response = await running.ask(request(b"/build/gh/a/b/HEAD"))
        name = cookie_of(response)
        assert name is not None
        assert response.value("location") == (
            running.members[name.decode()].url.encode() + b"/build/gh/a/b/HEAD"
        )
        again = await running.ask(request(b"/build/gh/x/y/HEAD", b"Cookie: fedproxy_member=" + name))
        assert again.value("location") == (
            running.members[name.decode()].url.encode() + b"/build/gh/x/y/HEAD"
        )
        assert cookie_of(again) == name
        assert cookie_of(await running.ask(request(b"/mine/x"))) is None


async def test_preflight_of_a_redirected_launch_is_answered_here() -> None:
    async with away() as running:
        client = await running.client()
        asked = (b"Origin: https://book.test", b"Access-Control-Request-Method: GET")
        for _ in range(2):
            response = await client.ask(request(b"/build/gh/a/b/HEAD", *asked, method=b"OPTIONS"))
            assert response.status == 204
            assert response.value("allow") == response.value("access-control-allow-methods") == METHODS
            assert response.value("access-control-allow-origin") == b"*"
            assert response.value("access-control-allow-headers") == b"*, Authorization"
            assert response.value("access-control-max-age") == b"7200"
            assert response.value("content-length") is None
        assert (await running.logged(2))[0]["status"] == 204
        assert not any(member.requests for member in running.members.values())


async def test_options_of_other_paths_passes() -> None:
    async with away() as running:
        assert (await running.ask(request(b"/x", method=b"OPTIONS"))).body == b"ok"


async def test_launch_that_nobody_can_take_is_a_failed_event_that_any_page_may_read() -> None:
    with refusing() as nobody:
        async with edge({"a": nobody}, settings={"a": {"weight": 0}}, routes=AWAY[:1]) as running:
            response = await running.ask(request(b"/build/gh/a/b/HEAD", STREAM))
            assert (response.status, response.value("content-type")) == (200, b"text/event-stream")
            assert response.value("access-control-allow-origin") == b"*"
            event = json.loads(response.body.removeprefix(b"data: "))
            assert (event["phase"], event["status_code"]) == ("failed", 503)
            other = await running.ask(request(b"/build/gh/a/b/HEAD"))
            assert (other.status, other.value("retry-after")) == (503, b"30")
            first, second = await running.logged(2)
            assert [(each["status"], each["termination"]) for each in (first, second)] == [(503, "PQ")] * 2
            assert running.service.edge.counts.rejected == {"no_member": 2}


async def test_redirect_to_a_full_member_says_so() -> None:
    async def stall(conn: Any) -> None:
        await conn.request()
        await conn.stall()

    settings = {"a": {"max_requests": 1}}
    async with edge({"a": stall}, settings=settings, routes=AWAY[:1]) as running:
        client = await running.client()
        await client.send(request(b"/slow"))
        await until(lambda: running.members["a"].has(requests=1), "the member is full")
        response = await running.ask(request(b"/build/gh/a/b/HEAD"))
        assert response.status == 503
        assert running.service.edge.counts.rejected == {"full": 1}
        await client.leave()
