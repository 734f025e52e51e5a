from __future__ import annotations

import pytest

from fedproxy.decide.route import (
    Action,
    Fixed,
    Local,
    Redirect,
    Route,
    Router,
    ToMember,
    ToMembers,
    ToPrime,
)

BADGE = Redirect("https://static.example.org/badge.svg", 301)
ROUTER = Router(
    [
        Route("/badge.svg", BADGE),
        Route("/federation/logo.svg", Fixed(404)),
        Route("/build/*", ToMembers(redirect=True)),
        Route("/*/b*c", Fixed(410)),
        Route("/*/b*", ToPrime()),
        Route("/a+b", ToMember("gesis")),
        Route("*.map", Fixed(403)),
        Route("/quiet", Fixed(204)),
    ]
)


@pytest.mark.parametrize(
    ("path", "action"),
    [
        (b"/active_hosts", Local("active_hosts")),
        (b"/federation", Local("federation")),
        (b"/federation/style.css", Local("federation")),
        (b"/federation.js", Local("federation")),
        (b"/federation.json", Local("federation")),
        (b"/federation.jsonl", ToMembers()),
        (b"/federationxjs", ToMembers()),
        (b"/federations", ToMembers()),
        (b"/badge.svg", BADGE),
        (b"/badge.svgx", ToMembers()),
        (b"/badge_svg", ToMembers()),
        (b"/federation/logo.svg", Local("federation")),
        (b"/build/", ToMembers(redirect=True)),
        (b"/build/gh/user/repo\n", ToMembers(redirect=True)),
        (b"/build%2Fgh", ToMembers()),
        (b"/x/y/b1c", Fixed(410)),
        (b"/x/y/b1cd", ToPrime()),
        (b"/a+b", ToMember("gesis")),
        (b"/aab", ToMembers()),
        (b"/static/x.map", Fixed(403)),
        (b"/", ToMembers()),
    ],
)
def test_first_route_that_matches_the_whole_path_wins(path: bytes, action: Action) -> None:
    assert ROUTER.match(path) == action


@pytest.mark.parametrize(
    ("paths", "action"),
    [
        ((b"/badge.svg", b"//badge.svg"), BADGE),
        ((b"/x", b"/x/y/b1c"), Fixed(410)),
        ((b"/badge.svg", b"/x.map"), Fixed(403)),
        ((b"/x", b"/build/../x"), ToMembers(redirect=True)),
        ((b"/a+b", b"/build/../a+b"), ToMember("gesis")),
        ((b"/x", b"/y"), ToMembers()),
        ((b"/quiet", b"/badge.svg"), Fixed(204)),
        ((b"/badge.svg", b"/quiet"), BADGE),
    ],
)
def test_first_reading_counts_but_for_what_is_denied_in_another(
    paths: tuple[bytes, ...], action: Action
) -> None:
    assert ROUTER.judge(paths, paths[-1]) == action


@pytest.mark.parametrize("path", ["/a%20b", "//a b", "/%61%20b"])
def test_route_is_compared_as_paths_are(path: str) -> None:
    assert Router([Route(path, Fixed(404))]).match(b"/a b") == Fixed(404)


def test_encoded_star_of_a_route_stands_for_itself() -> None:
    router = Router([Route("/a%2A", Fixed(404))])
    assert router.match(b"/a*") == Fixed(404)
    assert router.match(b"/ab") == ToMembers()


def test_router_without_routes_sends_to_the_members() -> None:
    assert Router().match(b"/build/gh/user/repo/HEAD") == ToMembers()


def test_pattern_of_many_stars_meets_a_path_made_to_be_slow() -> None:
    router = Router([Route("/" + "*a" * 20 + "*b", Fixed(404))])
    assert router.match(b"/" + b"a" * 30_000) == ToMembers()


@pytest.mark.parametrize(
    ("path", "session"),
    [
        (b"/user/me/lab", True),
        (b"/hub/", True),
        (b"/services/x/", True),
        (b"/users/me", False),
        (b"/", False),
        (b"/build/gh/user/repo", False),
        (b"/v2/gh/user/hub/", False),
    ],
)
def test_path_of_a_session(path: bytes, session: bool) -> None:
    assert Router().is_session(path) is session


def test_routers_with_the_same_routes_are_equal() -> None:
    routes = (Route("/a/*", ToPrime()), Route("/b", Fixed(410)))
    assert Router(routes) == Router(list(routes))
    assert hash(Router(routes)) == hash(Router(routes))
    assert Router(routes) != Router(routes[:1])
    assert Router((Route("/b", Fixed(410)),)) != Router((Route("/b", Fixed(404)),))
    assert Router() != ()


@pytest.mark.parametrize(
    ("paths", "hidden"),
    [
        (["/a*", "/b*", "/a*"], [(2, "/a*")]),
        (["/a*c", "/ab*c", "/ab*"], [(1, "/a*c")]),
        (["/a", "/a/*", "/*", "/b"], [(3, "/*")]),
        (["/a b", "//a%20b"], [(1, "/a b")]),
        (["/a*b", "/a%2Ab", "/a%2A*", "/a*c"], [(1, "/a*b")]),
        (["/federation*", "/federation", "/federation/*/x"], [(1, "/federation"), (2, "/federation/*")]),
        (["/*a*", "/*"], []),
        (["/x", "/*x*", "/*y*x*"], [(2, "/*x*")]),
    ],
)
def test_route_without_a_path_of_its_own_is_hidden(paths: list[str], hidden: list[tuple[int, str]]) -> None:
    router = Router([Route(path, Fixed(404)) for path in paths])
    assert [(at, earlier.path) for at, earlier in router.hidden()] == hidden


# BinderHub below a path, sessions, Host


def test_base_paths_are_what_binderhub_sees_below_them() -> None:
    router = Router((), ["/services/binder", "/", "/services/binder/deep/"])
    assert router.below(b"/services/binder/build/gh/a/b") == b"/build/gh/a/b"
    assert router.below(b"/services/binder/deep/v2/") == b"/v2/"
    assert router.below(b"/services/binders/v2/") == b"/services/binders/v2/"
    assert Router((), ["/binder/"]).below(b"/build/") is None
    assert Router().below(b"/build/") == b"/build/"


def test_binderhub_below_a_path_is_no_session() -> None:
    router = Router((), ["/services/binder/"])
    assert not router.is_session(b"/services/binder/v2/")
    assert router.is_session(b"/services/binder")
    assert router.is_session(b"/services/other/")
    assert not Router([Route("/services/*", ToMembers(), sessions=True)], ["/services/binder/"]).is_session(
        b"/services/binder/v2/"
    )


def test_routes_that_say_so_are_the_only_sessions() -> None:
    router = Router([Route("/lab/*", ToMembers(), sessions=True), Route("/x", ToPrime())])
    assert router.is_session(b"/lab/a")
    assert not router.is_session(b"/user/me/")
    assert not router.is_session(b"/x")
    assert not router.is_session(b"/y")


def test_routes_say_whose_host_is_sent() -> None:
    router = Router([Route("/lab/*", ToMembers(), visitor_host=True), Route("/x", ToMembers())])
    assert (router.says_host, Router().says_host) == (True, False)
    assert [router.visitor_host(path) for path in (b"/lab/a", b"/x", b"/y")] == [True, None, None]


def test_routers_differ_by_base_paths_and_by_what_routes_say() -> None:
    assert Router((), ["/"]) == Router((), ["//", "/"])
    assert Router((), ["/"]) != Router((), ["/binder/"])
    route = Route("/a", ToMembers())
    assert Router([route]) != Router([Route("/a", ToMembers(), sessions=True)])
