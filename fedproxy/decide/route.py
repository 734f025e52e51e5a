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


class Router:
    """The first route that matches wins; what matches none goes to the members."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self._routes = [(_pattern(route.path), route.action) for route in (*_OWN, *routes)]

    def match(self, path: bytes) -> Action:
        """The action for a raw path."""
        for pattern, action in self._routes:
            if pattern.fullmatch(path) is not None:
                return action
        return ToMembers()


def _pattern(path: str) -> re.Pattern[bytes]:
    return re.compile(b".*".join(re.escape(part) for part in path.encode().split(b"*")), re.DOTALL)
