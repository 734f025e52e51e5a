"""What this edge makes of a request line: its route, its affinity key, and what kind of request it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedproxy.decide.route import Action, Router, ToMember, ToMembers, ToPrime, is_session
from fedproxy.wire.path import canonical, readings
from fedproxy.wire.request import RequestLine, read_line

if TYPE_CHECKING:
    from fedproxy.decide.limit import Bans

_BUILD: Final = b"/build/"
_PAGES: Final = b"/v2/"


@dataclass(slots=True)
class RoutedRequest:
    """A request line, and what this edge makes of it: worked out once for each different line."""

    line: RequestLine
    action: Action
    key: bytes | None
    proxied: bool  # streamed through, not answered here
    balanced: bool  # any member may serve it: not to a certain one, and about no session
    ordinary: bool  # proxied, no launch, neither HTTP/1.0 nor in absolute-form
    renews: bool  # its response renews the cookie
    build: bool  # errors are events of a stream (BinderHub's client gives up on any other status)
    launch: bool  # a launch, if an event stream is asked for
    stays: bool = False  # about a session, which no other member has
    banned: bool = False  # asks for a repository that the operator does not serve


def route(
    raw: bytes, router: Router, key_of: Callable[[bytes], bytes | None] | None, bans: Bans
) -> RoutedRequest:
    """What a request line without its CRLF asks for. Raises `BadRequest` and `MethodRefused`.

    key_of: the affinity key of a path, if keys are made of paths.
    """
    line = read_line(raw)
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
    proxied = isinstance(action, ToMembers | ToPrime | ToMember) and not action.redirect
    launch = launch and line.method == b"GET"
    return RoutedRequest(
        line=line,
        action=action,
        key=key,
        proxied=proxied,
        balanced=isinstance(action, ToMembers) and not stays,
        ordinary=proxied and not launch and line.authority is None and not line.http10,
        renews=renews,
        build=build,
        launch=launch,
        stays=stays,
        banned=bool(bans.repositories) and bans.repository(*paths),
    )
