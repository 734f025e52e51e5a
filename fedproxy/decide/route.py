"""Routes: what happens to a request, by its path."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

_SLASHES = re.compile("/{2,}")


@dataclass(frozen=True)
class Local:
    """One of the edge's own pages answers."""

    page: str


@dataclass(frozen=True)
class Redirect:
    """Answered with a fixed location."""

    location: str
    status: int = 302


@dataclass(frozen=True)
class Fixed:
    """Answered with a status."""

    status: int


@dataclass(frozen=True)
class ToMembers:
    """To the chosen member; with `redirect` the visitor is redirected there."""

    redirect: bool = False


@dataclass(frozen=True)
class ToPrime:
    """To the prime member."""

    redirect: bool = False


@dataclass(frozen=True)
class ToMember:
    """To the member with that name."""

    name: str
    redirect: bool = False


Action = Local | Redirect | Fixed | ToMembers | ToPrime | ToMember


@dataclass(frozen=True)
class Route:
    """`path` is compared with a path without its query; `*` stands for any characters, or none.

    Percent-encoding in it is decoded and slashes are merged, as in the path of a request. sessions: what runs
    there, runs at one member only. visitor_host: members are sent the visitor's Host; None leaves it to them.
    """

    path: str
    action: Action
    sessions: bool = False
    visitor_host: bool | None = None


_OWN = (
    Route("/active_hosts", Local("active_hosts")),
    Route("/federation", Local("federation")),
    Route("/federation.js", Local("federation")),
    Route("/federation.json", Local("federation")),
    Route("/federation/*", Local("federation")),
)
_DEFAULT = ToMembers()


# Without a route that says so, these are sessions: JupyterHub, its users' servers and its services.
SESSIONS = ("/user/", "/hub/", "/services/")
_SESSIONS = tuple(path.encode() for path in SESSIONS)


class Router:
    """The first route that matches wins; a path without a match goes to the members.

    base_paths: below which the members' BinderHubs are, each with a slash at both ends.
    """

    def __init__(self, routes: Sequence[Route] = (), base_paths: Collection[str] = ("/",)) -> None:
        every = (*_OWN, *routes)
        self._routes = every
        # One alternation with one group per route: a path is matched once, however many routes there are.
        self._pattern = b"|".join(b"(%b)" % _pattern(route.path) for route in every)
        self._match = re.compile(self._pattern, re.DOTALL).fullmatch
        self._says_sessions = any(route.sessions for route in every)
        self.says_host = any(route.visitor_host is not None for route in every)
        bases = {_SLASHES.sub("/", f"/{unquote(base)}/").encode() for base in base_paths}
        # The longest first.
        self._bases = tuple(sorted(bases, key=len, reverse=True))
        self._at_root = self._bases == (b"/",)
        self._not_sessions = tuple(base for base in self._bases if base != b"/")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Router):
            return NotImplemented
        return (self._routes, self._bases) == (other._routes, other._bases)

    def __hash__(self) -> int:
        return hash((self._routes, self._bases))

    def match(self, path: bytes) -> Action:
        """The action for a path that has only one reading."""
        route = self.find(path)
        return _DEFAULT if route is None else route.action

    def find(self, path: bytes) -> Route | None:
        """The route of a path that has only one reading; None if none matches."""
        found = self._match(path)
        return None if found is None or found.lastindex is None else self._routes[found.lastindex - 1]

    def hidden(self) -> Iterator[tuple[int, Route]]:
        """Routes that no path reaches, by number, each with an earlier one that matches all that it matches.

        What only several earlier routes together hide is not found.
        """
        for at, route in enumerate(self._routes[len(_OWN) :], len(_OWN)):
            # Only a star of an earlier route matches this character, and it matches any other text too.
            found = self._match(b"\0".join(_pieces(route.path)))
            if found is not None and found.lastindex is not None and found.lastindex <= at:
                yield at - len(_OWN), self._routes[found.lastindex - 1]

    def below(self, path: bytes) -> bytes | None:
        """The path as a BinderHub below one of the base paths sees it; None for a path of no BinderHub."""
        if self._at_root:
            return path
        for base in self._bases:
            if path.startswith(base):
                return path[len(base) - 1 :]
        return None

    def is_session(self, path: bytes) -> bool:
        """Whether what runs under a path runs at one member only. The path has one reading."""
        if not self._says_sessions:
            return path.startswith(_SESSIONS) and not path.startswith(self._not_sessions)
        if path.startswith(self._not_sessions):
            return False
        route = self.find(path)
        return route is not None and route.sessions

    def visitor_host(self, path: bytes) -> bool | None:
        """Whether the member is sent the visitor's Host; None if no route says so."""
        route = self.find(path) if self.says_host else None
        return None if route is None else route.visitor_host

    def judge(self, paths: Sequence[bytes], raw: bytes) -> Action:
        """The action for a path by its readings, the first of which counts.

        A path denied in any reading is denied, because a server behind the edge may read it that way. If no
        route matches the first reading, the raw path is matched.
        """
        actions = [self.match(path) for path in paths]
        for action in actions:
            if isinstance(action, Fixed) and action.status >= 400:
                return action
        return self.match(raw) if actions[0] is _DEFAULT else actions[0]


def _pieces(path: str) -> list[bytes]:
    """What is between the stars of a route's path, as a request's path has it."""
    return [unquote_to_bytes(piece) for piece in _SLASHES.sub("/", path).split("*")]


def _pattern(path: str) -> bytes:
    """A regular expression that never backtracks into a matched piece, so that no path can make it slow."""
    first, *rest = map(re.escape, _pieces(path))
    if not rest:
        return first
    *middle, last = rest
    return first + b"".join(b"(?>.*?%b)" % piece for piece in middle) + b".*" + last
