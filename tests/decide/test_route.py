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
    is_session,
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
    assert is_session(path) is session


def test_routers_with_the_same_routes_are_equal() -> None:
    routes = (Route("/a/*", ToPrime()), Route("/b", Fixed(410)))
    assert Router(routes) == Router(list(routes))
    assert hash(Router(routes)) == hash(Router(routes))
    assert Router(routes) != Router(routes[:1])
    assert Router((Route("/b", Fixed(410)),)) != Router((Route("/b", Fixed(404)),))
    assert Router() != ()
