"""Routes: what happens to a request, by its path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

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

    Percent-encoding in it is decoded and slashes are merged, as in the path of a request.
    """

    path: str
    action: Action


_OWN = (
    Route("/active_hosts", Local("active_hosts")),
    Route("/federation", Local("federation")),
    Route("/federation/*", Local("federation")),
)
_DEFAULT = ToMembers()


# These run at one member only: JupyterHub, its services and its users' servers.
_SESSIONS = (b"/user/", b"/hub/", b"/services/")


def is_session(path: bytes) -> bool:
    """Whether a path belongs to a session, which no other member has."""
    return path.startswith(_SESSIONS)


class Router:
    """The first route that matches wins; a path without a match goes to the members."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        every = (*_OWN, *routes)
        self._actions = tuple(route.action for route in every)
        # One alternation with one group per route: a path is matched once, however many routes there are.
        self._pattern = b"|".join(b"(%b)" % _pattern(route.path) for route in every)
        self._match = re.compile(self._pattern, re.DOTALL).fullmatch

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Router):
            return NotImplemented
        return (self._pattern, self._actions) == (other._pattern, other._actions)

    def __hash__(self) -> int:
        return hash((self._pattern, self._actions))

    def match(self, path: bytes) -> Action:
        """The action for a path that has only one reading."""
        found = self._match(path)
        if found is None or found.lastindex is None:
            return _DEFAULT
        return self._actions[found.lastindex - 1]

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


def _pattern(path: str) -> bytes:
    """A regular expression that never backtracks into a matched piece, so that no path can make it slow."""
    merged = _SLASHES.sub("/", path)
    first, *rest = (re.escape(unquote_to_bytes(piece)) for piece in merged.split("*"))
    if not rest:
        return first
    *middle, last = rest
    return first + b"".join(b"(?>.*?%b)" % piece for piece in middle) + b".*" + last
