"""Where sessions run: which member has the server of a JupyterHub user.

A session is known by the path of its server, `/user/NAME` or `/user/NAME/SERVER`. It runs at one member, and
no other can serve it. What is known of it has one of three grounds, the strongest first:

- ANNOUNCED: a launch through this federation ended with `ready`, which has the server's URL. It counts for
  everybody, and only another launch changes it.
- SERVED: the member that a visitor's cookie names answered for it.
- CLAIMED: a member redirected somebody there. That alone never takes a session away from another member.

Where people log in, one name may have a server at several members. So a cookie decides before the last two;
they are for visitors without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import islice
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

DAY: Final = 86_400.0
_CLAIMS: Final = 4096
_CLAIM: Final = 1200.0  # seconds for which a claim counts from its last use: a login goes on at once
_TOLD: Final = 600.0  # seconds after which it is told again that a session is in use
_SETTLES: Final = 60.0  # seconds for which another member's answer for the same name changes nothing
_LONGEST: Final = 512

_USER: Final = b"/user/"
_HUB: Final = b"/hub/"
# Pages and calls of a hub about one user, and the server after it.
_ABOUT: Final = re.compile(
    rb"/hub/(?:user|spawn|spawn-pending|api/users)/([^/]+)(?:/(?:servers/)?([^/]+))?", re.DOTALL
).match
_CALLED: Final = re.compile(rb"(?:[^/]+/)?(?:api|static)(?:/|\Z)").match
_ORIGIN: Final = re.compile(rb"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#]*)").match
_PATH: Final = re.compile(rb"[^?#]*").match
# Where a hub's login and OAuth say what they are for, each of which may have another one in it.
_FOR: Final = frozenset((b"next", b"redirect_uri"))
_NESTED: Final = 3


#: What workers tell each other of a session: its path, the ground, the member's URL and its name, since when,
#: the last use, and the target of the page that launches it again (see `KnownSession`).
SessionRecord = tuple[bytes, int, str, str, float, float, bytes]


class Place(NamedTuple):
    """A member, as one that may have another config knows it: names change hands, and URLs stay."""

    url: str
    name: str


class Ground(IntEnum):
    """Why it is known where a session runs; the greater, the stronger."""

    CLAIMED = 0
    SERVED = 1
    ANNOUNCED = 2


_CLAIMED: Final = Ground.CLAIMED
_SERVED: Final = Ground.SERVED
_ANNOUNCED: Final = Ground.ANNOUNCED


class SessionPath:
    """The sessions that a path may belong to.

    keys: their paths, the longest first. own: it is a path of the session's own server, and not one of a hub
    about the session; opens: a page of it, or at least no call of one. rest: what follows the user's name,
    without the slashes around it.
    """

    __slots__ = ("keys", "opens", "own", "rest")

    def __init__(self, keys: tuple[bytes, ...], own: bool, rest: bytes = b"") -> None:
        self.keys = keys
        self.own = own
        self.rest = rest
        self.opens = own and _CALLED(rest) is None

    def is_start(self, key: bytes) -> bool:
        """Whether it is where the server of the session `key` begins."""
        return self.own and (
            not self.rest or (key == self.keys[0] != self.keys[-1] and b"/" not in self.rest)
        )


def session_of(path: bytes, query: bytes = b"") -> SessionPath | None:
    """The session that a request is about; None if it names no user.

    `path`: raw, without empty or dot segments. `query`: without its question mark. A hub's login and OAuth
    pages name the session, as `next` or `redirect_uri`, in there.
    """
    return _session_of(path, query, _NESTED)


def _session_of(path: bytes, query: bytes, nested: int) -> SessionPath | None:
    user, hub = path.find(_USER), path.find(_HUB)
    if user >= 0 and (hub < 0 or user < hub):
        name, _, rest = path[user + len(_USER) :].partition(b"/")
        if not name:
            return None
        keys = _keys(path[:user], name, rest.partition(b"/")[0])
        return SessionPath(keys, True, rest.strip(b"/"))
    if hub < 0:
        return None
    about = _ABOUT(path, hub)
    if about is not None:
        return SessionPath(_keys(path[:hub], about[1], about[2] or b""), own=False)
    if nested and (b"user" in query or b"spawn" in query):
        for part in query.split(b"&"):
            name, _, value = part.partition(b"=")
            if name in _FOR:
                _, inner, asked = _split(unquote_to_bytes(value))
                found = _session_of(inner, asked, nested - 1)
                if found is not None:
                    return SessionPath(found.keys, own=False)
    return None


def _split(url: bytes) -> tuple[bytes | None, bytes, bytes]:
    """The host (with its port) of a URL, None if it has none, its path and its query."""
    origin = _ORIGIN(url)
    start = 0 if origin is None else origin.end()
    found = _PATH(url, start)
    end = start if found is None else found.end()
    query = url[end + 1 :].partition(b"#")[0] if url[end : end + 1] == b"?" else b""
    return None if origin is None else origin[1].lower(), url[start:end], query


def path_of(url: str) -> bytes:
    """The raw path of a URL, without what may be secret: its query."""
    return _split(url.encode("utf-8", "surrogatepass"))[1]


def announced_by(path: bytes) -> bytes | None:
    """The session whose server has this path, as `ready` or a redirect to it says; None for any other path.

    `path`: as `session_of` takes it. The server's name counts only if nothing but a slash follows it.
    """
    session = session_of(path)
    if session is None or not session.own:
        return None
    key = session.keys[0] if path.endswith(b"/") and b"/" not in session.rest else session.keys[-1]
    return key if len(key) <= _LONGEST else None


def redirected_to(location: bytes, hosts: Iterable[bytes], plain: Callable[[bytes], bytes]) -> bytes | None:
    """The session that a member redirects to, as `announced_by`; None for any other place.

    `hosts`: names under which visitors reach the member through this edge, with their ports. `plain` removes
    empty and dot segments from a path.
    """
    host, path, _ = _split(location)
    if not path.startswith(b"/") or (host is not None and host not in {each.lower() for each in hosts}):
        return None
    return announced_by(plain(path))


def sent_to_hub(location: bytes, session: SessionPath, hosts: Iterable[bytes]) -> bool:
    """Whether a redirect leads from a session's server to the hub's page about that user, which is where a
    hub sends those whose server does not run."""
    host, path, _ = _split(location)
    if host is not None and host not in {each.lower() for each in hosts}:
        return False
    key = session.keys[-1]
    prefix = key[: key.find(_USER)]
    if not path.startswith(prefix + _HUB + _USER[1:]):
        return False
    about = session_of(path)
    return about is not None and about.keys[-1] == key


def _keys(prefix: bytes, name: bytes, server: bytes) -> tuple[bytes, ...]:
    own = prefix + _USER + _spelled(name)
    return (own + b"/" + _spelled(server), own) if server else (own,)


def _spelled(segment: bytes) -> bytes:
    """A segment in one spelling: names are not escaped alike everywhere (`@`, `~`, `:`)."""
    if b"%" not in segment:
        return segment
    return unquote_to_bytes(segment).replace(b"%", b"%25").replace(b"/", b"%2F")


class KnownSession:
    """What is known of one session.

    place: the member that has it. since: when that was learned, in seconds since the epoch. used: when
    somebody asked for it, to within ten minutes. launch: the target of the page that launches it again; empty
    if it is not known.
    """

    __slots__ = ("ground", "launch", "place", "since", "used")

    def __init__(self, ground: Ground, place: Place, since: float, used: float, launch: bytes = b"") -> None:
        self.ground = ground
        self.place = place
        self.since = since
        self.used = used
        self.launch = launch

    def __repr__(self) -> str:
        return f"<KnownSession {self.ground.name.lower()} {self.place.name}>"

    def record(self, key: bytes) -> SessionRecord:
        """All of it, as plain values."""
        return key, int(self.ground), *self.place, self.since, self.used, self.launch

    @staticmethod
    def from_record(record: SessionRecord) -> KnownSession:
        """What `record` gave."""
        _, ground, url, name, since, used, launch = record
        return KnownSession(Ground(ground), Place(url, name), since, used, launch)


class Sessions:
    """The sessions that are known: at most `most`, each for `seconds` from its last use.

    If there are too many, those go first that are known on the weakest ground, and of these the ones that
    were used longest ago. A session is never pushed out by one that is known on a weaker ground: anybody can
    make up names. `on_change` is called with each that is new, has changed, or is still in use. Times are in
    seconds since the epoch.
    """

    def __init__(
        self,
        most: int = 100_000,
        seconds: float = DAY,
        on_change: Callable[[bytes, KnownSession], None] | None = None,
    ) -> None:
        self.most = most
        self.on_change = on_change
        self._seconds = seconds
        self._all: dict[bytes, KnownSession] = {}
        # By ground, each in the order of use.
        self._by: tuple[dict[bytes, KnownSession], ...] = ({}, {}, {})

    def __len__(self) -> int:
        return len(self._all)

    def items(self) -> list[tuple[bytes, KnownSession]]:
        """All of them, the weakest ground first, and of each what was used longest ago."""
        return [*self._by[0].items(), *self._by[1].items(), *self._by[2].items()]

    def find(self, keys: Sequence[bytes], now: float) -> KnownSession | None:
        """The session with the longest of these paths, which is used now."""
        for key in keys:
            known = self._all.get(key)
            if known is None:
                continue
            kept = self._by[known.ground]
            del kept[key]
            if now - known.used < _TOLD:
                kept[key] = known
                return known
            if self._is_over(known, now):
                del self._all[key]
                continue
            kept[key] = known
            known.used = now
            if self.on_change is not None:
                self.on_change(key, known)
            return known
        return None

    def announce(self, key: bytes, place: Place, now: float, launch: bytes = b"") -> None:
        """A launch through this federation got it: whatever was known of the name, it runs there now."""
        before = self.look(key)
        # The clock may have gone back, and this is the later one all the same.
        since = now if before is None or before.ground is not _ANNOUNCED else max(now, before.since)
        launch = launch if len(launch) <= _LONGEST else b""
        self._put(key, KnownSession(_ANNOUNCED, place, since, now, launch))

    def serve(self, key: bytes, place: Place, now: float) -> None:
        """The member answered for it, as the visitor's cookie says that it should."""
        self._learn(key, place, _SERVED, now)

    def claim(self, key: bytes, place: Place, now: float) -> None:
        """The member redirected a visitor there."""
        self._learn(key, place, _CLAIMED, now)

    def _learn(self, key: bytes, place: Place, ground: Ground, now: float) -> None:
        if len(key) > _LONGEST:
            return
        known = self.look(key)
        if known is not None and not self._is_over(known, now) and ground <= known.ground:
            # The name may have servers at two members, and both be in use.
            settled = known.place.url == place.url or now - known.since < _SETTLES
            if ground is _CLAIMED or known.ground is _ANNOUNCED or settled:
                return
        self._put(key, KnownSession(ground, place, now, now))

    def take(self, key: bytes, other: KnownSession, now: float) -> None:
        """Learns what another worker or an earlier process knew."""
        known = self.look(key)
        if self._is_over(other, now):
            return
        newer = known is None or (other.ground, other.since) >= (known.ground, known.since)
        if known is None or newer or self._is_over(known, now):
            self._put(key, other, tell=False)
        else:
            known.used = max(known.used, other.used)

    def shrink(self, most: int) -> None:
        """There may be so many from now on."""
        self.most = most
        excess = len(self) - most
        for kept in self._by:
            excess -= self._forget(kept, excess)

    def expire(self, now: float) -> None:
        """Forgets what is over; to be called about once a minute."""
        for kept in self._by:
            over = 0
            for known in kept.values():
                if not self._is_over(known, now):
                    break
                over += 1
            self._forget(kept, over)

    def look(self, key: bytes) -> KnownSession | None:
        """What is known of it, without using it."""
        return self._all.get(key)

    def _is_over(self, known: KnownSession, now: float) -> bool:
        return now - known.used >= (_CLAIM if known.ground is _CLAIMED else self._seconds)

    def _put(self, key: bytes, known: KnownSession, *, tell: bool = True) -> None:
        before = self._all.get(key)
        if before is not None:
            del self._by[before.ground][key]
        claimed = self._by[_CLAIMED]
        self._all[key] = self._by[known.ground][key] = known
        if len(claimed) > _CLAIMS:
            self._forget(claimed, 1)
        if len(self) > self.most:
            self._make_room(known.ground)
        if tell and self._all.get(key) is known and self.on_change is not None:
            self.on_change(key, known)

    def _make_room(self, ground: Ground) -> None:
        excess = len(self) - self.most
        for kept in self._by[: ground + 1]:
            if excess > 0:
                # Some at once: to find the oldest takes the longer, the more were removed before it.
                excess -= self._forget(kept, excess + len(kept) // 64)

    def _forget(self, kept: dict[bytes, KnownSession], most: int) -> int:
        gone = list(islice(kept, max(0, most)))
        for key in gone:
            del kept[key], self._all[key]
        return len(gone)
