"""What this edge makes of a request line: its route, its affinity key, and what kind of request it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fedproxy.decide.route import Action, Local, Redirect, Router, ToMember, ToMembers, ToPrime, is_session
from fedproxy.http.request import RequestLine
from fedproxy.wire.path import canonical, readings

if TYPE_CHECKING:
    from fedproxy.decide.limit import Bans

_BUILD: Final = b"/build/"
_PAGES: Final = b"/v2/"


class RoutedRequest(RequestLine):
    """A request line, and what this edge makes of it: worked out once for each different line.

    own: for one of the edge's own pages. key: what ranks the members for it, if keys are made of paths.
    proxied: streamed through, not answered here. balanced: any member may serve it. ordinary: proxied, but no
    page of the edge's own and no launch, neither HTTP/1.0 nor in absolute-form. renews: its response renews
    the cookie. build: errors are events of a stream (BinderHub's client gives up on any other status).
    launch: a launch, if an event stream is asked for. stays: about a session, which no other member has.
    banned: asks for a repository that the operator does not serve.
    """

    __slots__ = (
        "action",
        "balanced",
        "banned",
        "build",
        "key",
        "launch",
        "ordinary",
        "own",
        "proxied",
        "renews",
        "stays",
    )

    action: Action
    key: bytes | None
    build: bool
    launch: bool
    renews: bool
    stays: bool
    banned: bool

    def __init__(self, line: RequestLine, action: Action) -> None:
        # Copied: to work it out again would cost each new line twice.
        self.method = line.method
        self.target = line.target
        self.authority = line.authority
        self.http10 = line.http10
        self.plain = line.plain
        self.path = line.path
        self.idempotent = line.idempotent
        self.is_head = line.is_head
        self.start = line.start
        self.words = line.words
        self.action = action
        self.key = None
        self.own = isinstance(action, Local)
        self.proxied = self.own or (
            isinstance(action, ToMembers | ToPrime | ToMember) and not action.redirect
        )
        self.balanced = self.ordinary = False
        self.build = self.launch = self.renews = self.stays = self.banned = False

    def redirected(self, location: str, status: int) -> RoutedRequest:
        """The same request, answered with where else it should be sent."""
        line = RoutedRequest(self, Redirect(location, status))
        line.build = self.build
        return line


def route(
    line: RequestLine, router: Router, key_of: Callable[[bytes], bytes | None] | None, bans: Bans
) -> RoutedRequest:
    """What this edge makes of a request line.

    key_of: the affinity key of a path, if keys are made of paths.
    """
    path = line.path
    paths = readings(path)
    if len(paths) == 1:
        action = router.match(path)
        key = key_of(path) if key_of is not None else None
        build = path.startswith(_BUILD)
        launch = build and path.count(b"/") > 2
        renews = build or path.startswith(_PAGES)
        stays = is_session(path)
    else:
        action = router.judge(paths, path)
        key = key_of(canonical(path)) if key_of is not None else None
        # What one of the servers behind may take it for counts here too.
        build = any(path.startswith(_BUILD) for path in paths)
        launch = any(path.startswith(_BUILD) and path.count(b"/") > 2 for path in paths)
        renews = build or any(path.startswith(_PAGES) for path in paths)
        # What is a launch in the form that is compared is no session because others may read it as one.
        stays = is_session(paths[0]) or (not paths[0].startswith(_BUILD) and any(map(is_session, paths)))
    routed = RoutedRequest(line, action)
    routed.key = key
    routed.build = build
    routed.renews = renews
    routed.stays = stays
    routed.launch = launch and line.method == b"GET"
    routed.balanced = isinstance(action, ToMembers) and not stays
    routed.ordinary = routed.proxied and line.plain and not (routed.launch or routed.own)
    routed.banned = bool(bans.repositories) and bans.repository(*paths)
    return routed
