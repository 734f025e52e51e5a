"""What this edge makes of a request line: its route, its affinity key, and what kind of request it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from fedproxy.bounded import Memo
from fedproxy.decide.affinity import image_digest
from fedproxy.decide.route import Action, Local, Redirect, Router, ToMember, ToMembers, ToPrime
from fedproxy.decide.sessions import SessionPath, session_of
from fedproxy.errors import VisitorError
from fedproxy.http.request import RequestLine
from fedproxy.wire.grammar import QUERY
from fedproxy.wire.path import canonical, readings

if TYPE_CHECKING:
    from fedproxy.decide.limit import Bans

_BUILD: Final = b"/build/"
_PAGES: Final = b"/v2/"
# The same few paths of a session are asked for again and again, often with a number to keep caches away.
_own_session: Final = Memo(session_of, entries=2048, longest=256)


class RoutedRequest(RequestLine):
    """A request line, and what this edge makes of it: worked out once for each different line.

    own: for one of the edge's own pages. key: what ranks the members for it, if keys are made of paths.
    image: the digest of what it launches, or of what the launch from this page will.
    proxied: streamed through, not answered here. to_members: its route names no member. balanced: any member
    may serve it. ordinary: proxied, but no page of the edge's own and no launch, neither HTTP/1.0 nor in
    absolute-form. renews: its response may set the cookie though the visitor has a good one, or tell where a
    session runs. build: errors are events of a stream (BinderHub's client gives up on any other status).
    launch: a launch, if an event stream is asked for; again: the target of the page for the same launch.
    stays: of a session, which no other member has. session: which one, if the target says so; opens: it may
    be a page of that. adds_origin: the member is told the public Origin if the visitor sends none; it may be
    False only where `renews` is True. banned: asks for a repository that the operator does not serve.
    visitor_host: the member is sent the visitor's Host; None leaves it to the member. reads_query: some of
    this depends on the query.
    """

    __slots__ = (
        "action",
        "adds_origin",
        "again",
        "balanced",
        "banned",
        "build",
        "image",
        "key",
        "launch",
        "opens",
        "ordinary",
        "own",
        "proxied",
        "reads_query",
        "renews",
        "session",
        "stays",
        "to_members",
        "visitor_host",
    )

    action: Action
    image: bytes | None
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
        self.image = self.key = None
        self.adds_origin = True
        self.own = isinstance(action, Local)
        self.proxied = self.own or (
            isinstance(action, (ToMembers, ToPrime, ToMember)) and not action.redirect
        )
        self.balanced = self.ordinary = False
        self.build = self.launch = self.renews = self.stays = self.banned = False
        self.opens = self.to_members = self.reads_query = False
        self.again = b""
        self.session: SessionPath | None = None
        self.visitor_host: bool | None = None

    def redirected(self, location: str, status: int) -> RoutedRequest:
        """The same request, answered with where else it should be sent."""
        line = RoutedRequest(self, Redirect(location, status))
        line.build = self.build
        return line

    def with_query(self, target: bytes, start: bytes) -> RoutedRequest:
        """The same request with a query, which nothing depends on but these two, as they are in it."""
        line = RoutedRequest(self, self.action)
        line.target = target
        line.start = start
        method, _, protocol = self.words
        line.words = (method, target.decode("ascii"), protocol)
        line.image = self.image
        line.key = self.key
        line.adds_origin = self.adds_origin
        line.balanced = self.balanced
        line.ordinary = self.ordinary
        line.build = self.build
        line.launch = self.launch
        line.renews = self.renews
        line.stays = self.stays
        line.banned = self.banned
        line.opens = self.opens
        line.to_members = self.to_members
        line.again = self.again
        line.session = self.session
        line.visitor_host = self.visitor_host
        return line


class LineReader:
    """Reads request lines. What was learned of a path holds for each query, as far as it does not decide.

    read: reads a line in the form of its protocol; `end` is what each line ends with there. key_of: the
    affinity key of a path, if keys are made of paths. longest: bytes of what is remembered.
    """

    def __init__(
        self,
        read: Callable[[bytes], RequestLine],
        end: bytes,
        router: Router,
        key_of: Callable[[bytes], bytes | None] | None,
        bans: Bans,
        longest: int,
    ) -> None:
        self._read = read
        self._end = end
        # As an HTTP/1 member is sent it.
        self._then = b"\r\n" if end else b" HTTP/1.1\r\n"
        self._router = router
        self._key_of = key_of
        self._bans = bans
        self._paths = Memo(self._read_path, entries=4096, longest=longest)

    def read(self, raw: bytes) -> RoutedRequest:
        """What this edge makes of a request line. Raises `BadRequest` and `MethodRefused`."""
        mark = raw.find(b"?")
        end = self._end
        if mark < 0 or not raw.endswith(end):
            return self._read_whole(raw)
        query = raw[mark : len(raw) - len(end)]
        if query.translate(QUERY) != query:
            return self._read_whole(raw)
        try:
            line = self._paths[raw[:mark]]
        except VisitorError:
            # Which error it is may depend on all of the line.
            return self._read_whole(raw)
        # The asterisk has no query, and an authority may be followed by one at once.
        if line.reads_query or line.authority is not None or line.path == b"*":
            return self._read_whole(raw)
        return line.with_query(line.path + query, raw + self._then)

    def _read_path(self, raw: bytes) -> RoutedRequest:
        return self._read_whole(raw + self._end)

    def _read_whole(self, raw: bytes) -> RoutedRequest:
        return route(self._read(raw), self._router, self._key_of, self._bans)


def route(
    line: RequestLine, router: Router, key_of: Callable[[bytes], bytes | None] | None, bans: Bans
) -> RoutedRequest:
    """What this edge makes of a request line.

    key_of: the affinity key of a path, if keys are made of paths.
    """
    path = line.path
    paths = readings(path)
    if len(paths) == 1:
        compared = path
        action = router.match(path)
        inner = router.below(path)
        inners: tuple[bytes, ...] = () if inner is None else (inner,)
        stays = router.is_session(path)
        build = inner is not None and inner.startswith(_BUILD)
        launch = inner is not None and build and inner.count(b"/") > 2
        page = inner is not None and inner.startswith(_PAGES)
    else:
        compared = canonical(path)
        action = router.judge(paths, path)
        inner = router.below(compared)
        # What one of the servers behind may take it for counts here too.
        inners = tuple([below for below in map(router.below, paths) if below is not None])
        build = any(each.startswith(_BUILD) for each in inners)
        launch = any(each.startswith(_BUILD) and each.count(b"/") > 2 for each in inners)
        page = any(each.startswith(_PAGES) for each in inners)
        # What is a launch in the form that is compared is no session because others may read it as one.
        first = router.below(paths[0])
        stays = router.is_session(paths[0]) or (
            not (first is not None and first.startswith(_BUILD)) and any(map(router.is_session, paths))
        )
    routed = RoutedRequest(line, action)
    if key_of is not None:
        routed.key = key_of(compared if inner is None else inner)
    if launch or page:
        routed.image = image_digest(compared if inner is None else inner)
    routed.build = build
    routed.renews = build or page or stays
    routed.stays = stays
    routed.launch = launch and line.method == b"GET"
    routed.to_members = isinstance(action, ToMembers)
    routed.balanced = routed.to_members and not stays
    routed.ordinary = routed.proxied and line.plain and not (routed.launch or routed.own)
    routed.banned = bool(bans.repositories) and bans.repository(*inners)
    if router.says_host:
        routed.visitor_host = router.visitor_host(paths[0])
    routed.reads_query = build
    if stays:
        _find_session(routed, compared)
        routed.reads_query = routed.session is None
    elif build:
        routed.adds_origin = _has_token(line.target)
        if launch:
            routed.again = _page_of(path, router)
    return routed


def _find_session(routed: RoutedRequest, path: bytes) -> None:
    session = _own_session[path]
    if session is None and routed.target is not routed.path:
        session = session_of(path, routed.target[len(routed.path) + 1 :])
    routed.adds_origin = False
    routed.session = session
    routed.opens = session is not None and session.opens and routed.method == b"GET"


def _page_of(path: bytes, router: Router) -> bytes:
    """The target of the page for a launch; empty if only another reading of the path is one."""
    spec = router.below(path)
    if spec is None or not spec.startswith(_BUILD):
        return b""
    return path[: len(path) - len(spec)] + _PAGES + spec[len(_BUILD) :]


def _has_token(target: bytes) -> bool:
    """Whether a target has a build token, as BinderHub would find it."""
    query = target.partition(b"?")[2].decode("latin-1")
    return "token" in query and any(name == "build_token" for name, _ in parse_qsl(query))
