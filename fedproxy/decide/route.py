"""What happens to a request, by its path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


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
    """To the member that is chosen; with `redirect` the visitor is sent there."""

    redirect: bool = False


@dataclass(frozen=True)
class ToPrime:
    """To the prime member."""

    redirect: bool = False


@dataclass(frozen=True)
class ToMember:
    """To the member of that name."""

    name: str
    redirect: bool = False


Action = Local | Redirect | Fixed | ToMembers | ToPrime | ToMember


@dataclass(frozen=True)
class Route:
    """`path` is compared with the raw path, without the query; `*` stands for anything, also nothing."""

    path: str
    action: Action


_OWN = (
    Route("/active_hosts", Local("active_hosts")),
    Route("/federation", Local("federation")),
    Route("/federation/*", Local("federation")),
)
_DEFAULT = ToMembers()


# What runs at one member only: JupyterHub, its services and its users' servers.
_SESSIONS = (b"/user/", b"/hub/", b"/services/")


def is_session(path: bytes) -> bool:
    """Whether a path is about a session, which no other member has."""
    return path.startswith(_SESSIONS)


class Router:
    """The first route that matches wins; what matches none goes to the members."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        every = (*_OWN, *routes)
        self._actions = tuple(route.action for route in every)
        # One alternation, one group for each route: a path is looked at once, however many routes there are.
        pattern = b"|".join(b"(%b)" % _pattern(route.path) for route in every)
        self._match = re.compile(pattern, re.DOTALL).fullmatch

    def match(self, path: bytes) -> Action:
        """The action for a raw path."""
        found = self._match(path)
        if found is None or found.lastindex is None:
            return _DEFAULT
        return self._actions[found.lastindex - 1]


def _pattern(path: str) -> bytes:
    """A regular expression that never goes back over a piece it found, so that no path can make it slow."""
    first, *rest = (re.escape(piece) for piece in path.encode().split(b"*"))
    if not rest:
        return first
    *middle, last = rest
    return first + b"".join(b"(?>.*?%b)" % piece for piece in middle) + b".*" + last
