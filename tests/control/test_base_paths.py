"""Where a member's BinderHub is, as its own page says; and what the edge makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from fedproxy.config.load import parse
from fedproxy.control.messages import MemberHealth
from fedproxy.control.prober import base_path_of
from fedproxy.serve.assemble import router_of
from tests.rig import Conn, Message, Scripted, edge, per_request, until
from tests.rig.homes import cookie, get, named
from tests.rig.hub import ONCE, QUOTA, REGISTRY, VERSIONS, health, in_json, probing, reply, target
from tests.rig.launches import CACHED, PATIENT, ask, says
from tests.rig.launches import QUOTA as FULL

CONFIG = b'window.pageConfig = {"badgeBaseUrl": null, "baseUrl": "%b", "logoUrl": "/x/"}'
META = b'<meta id="base-url" data-url="%b">\n<meta id="badge-base-url" data-url="">'


@pytest.mark.parametrize("form", [CONFIG, META])
@pytest.mark.parametrize(
    ("said", "path", "found"),
    [
        (b"/services/binder/", "/services/binder/", "/services/binder/"),
        (b"/services/binder", "/services/binder/", "/services/binder/"),
        (b"/", "/", "/"),
        (b"/", "/services/binder/", "/"),
        (b"/services/binder/", "/", None),
        (b"/elsewhere/", "/services/binder/", None),
        (b"//evil.test/", "//evil.test/", None),
        (b"https://evil.test/", "/", None),
        (b"/a*/", "/a*/", None),
    ],
)
def test_page_says_where_its_binderhub_is(form: bytes, said: bytes, path: str, found: str | None) -> None:
    assert base_path_of(form % said, path) == found


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b'{"baseUrl": "/user/x/"}',
        b'badgeBaseUrl "baseUrl": ""',
        b"badgeBaseUrl" + b'"baseUrl": "/' + b"x" * 300,
    ],
)
def test_page_of_something_else_says_nothing(page: bytes) -> None:
    assert base_path_of(page, "/") is None


def hub(page: bytes, *redirects: bytes) -> Scripted:
    """A BinderHub below a path, whose page is at the last of these redirects."""

    async def serve(conn: Conn, request: Message) -> None:
        if request.target.endswith(b"/health"):
            conn.send(health(REGISTRY, QUOTA))
        elif request.target.endswith(b"/versions"):
            conn.send(in_json(VERSIONS))
        elif (
            at := len([r for r in served.requests if not r.target.endswith((b"/health", b"/versions"))])
        ) <= len(redirects):
            conn.send(reply(b"", 302, b"Location: %b\r\n" % redirects[at - 1]))
        else:
            conn.send(page)

    served = Scripted(per_request(serve))
    return served


PAGE = reply(CONFIG % b"/services/binder/")


@pytest.mark.parametrize(
    ("member", "found"),
    [
        (hub(PAGE), "/services/binder/"),
        (hub(PAGE, b"/services/binder/v2/"), "/services/binder/"),
        (hub(PAGE, b"/elsewhere/"), None),
        (hub(PAGE, b"/", b"/", b"/", b"/", b"/"), None),
        (hub(reply(CONFIG % b"/services/binder/", 404)), None),
        (hub(b"nonsense"), None),
        (hub(reply(b"")), None),
    ],
)
async def test_prober_reads_the_page_now_and_then_and_a_failure_is_no_verdict(
    member: Scripted, found: str | None
) -> None:
    async with probing(member) as running:
        url = member.url + "/services/binder/health"
        running.prober.apply(replace(ONCE, pages=True), [target("a", member, health=url)])
        await until(lambda: running.seen, "a report")
        report = running.seen[-1]
        assert (report.healthy, report.base_path) == (True, found)


async def test_page_is_beside_the_health_that_is_probed() -> None:
    member = hub(PAGE)
    async with probing(member):
        at = [
            target("a", member, health=f"{member.url}{path}").page
            for path in ("/health", "/services/binder/health", "/live?x")
        ]
        assert at == [f"{member.url}/", f"{member.url}/services/binder/", f"{member.url}/"]


async def test_launches_below_a_learned_path_move_and_its_pages_are_no_sessions() -> None:
    launch = ask(
        b"Accept: text/event-stream", cookie(b"a"), target=b"/services/binder/build/gh/org/repo/HEAD"
    )
    async with edge({"a": says(FULL), "b": says(*CACHED)}, **PATIENT) as running:
        assert (await running.ask(launch)).body == FULL
        plane = running.service._planes.plane  # type: ignore[attr-defined]
        plane.health(MemberHealth("a", True, base_path="/services/binder/"))
        assert (await running.ask(launch)).body == b"".join(CACHED)
        plane.health(MemberHealth("a", True, base_path=None))
        assert (await running.ask(launch)).body == FULL


async def test_what_a_member_said_goes_with_it() -> None:
    async with edge({"a": named("a"), "b": named("b")}) as running:
        plane = running.service._planes.plane  # type: ignore[attr-defined]
        plane.health(MemberHealth("a", True, base_path="/services/binder/"))
        router = running.service.edge.runtime.router
        plane.health(MemberHealth("b", True, base_path="/services/binder/"))
        assert running.service.edge.runtime.router is router
        await running.service.change("a", None, 2.0, "ops 127.0.0.1")
        assert not running.service.edge.runtime.router.is_session(b"/services/binder/x")
        for name in ("a", "b"):
            plane.health(MemberHealth(name, True))
        assert running.service.edge.runtime.router.is_session(b"/services/binder/x")
        assert (await running.ask(get(b"/services/binder/x", cookie(b"b")))).body == b"b"


@pytest.mark.parametrize(
    ("said", "routes", "taken"),
    [
        ("/services/binder/", [], True),
        ("/services/", [], False),
        ("/user/", [], False),
        ("/user/x/", [], False),
        ("/x/hub/", [], False),
        ("/binder/", [], True),
        ("/jupyter/", [{"path": "/jupyter/user/*", "sessions": True}], False),
        ("/jupyter/services/binder/", [{"path": "/jupyter/services/*", "sessions": True}], True),
        ("/services/", [{"path": "/jupyter/user/*", "sessions": True}], True),
    ],
)
def test_member_cannot_take_the_sessions_of_others_away(
    said: str, routes: list[dict[str, object]], taken: bool
) -> None:
    text = yaml.safe_dump({"members": {"a": {"url": "https://a"}}, "routes": routes})
    router = router_of(parse(text, {}), [said])
    inner = router.below(said.encode() + b"build/gh/a/b")
    assert (inner == b"/build/gh/a/b") is taken
