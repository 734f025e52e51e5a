"""What a launch's events mean: whether another member should have it, how it ended, and who is to blame.

    nothing yet, or the image exists ──► HOLD ──► COMMIT      the launch goes on here
                                          └────► FAIL_OVER   this member cannot, another might

Events come from a member and may be anything: reading one returns a decision, and never raises. `ready`
carries a secret; of an event only its phase, its status, the verdict on its message and the path of the
session's server are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Any, Final

from fedproxy.decide.breaker import Outcome
from fedproxy.decide.sessions import path_of


class End(StrEnum):
    """How a launch ended on one member, as the metrics and the log name it.

    LOST: the stream ended with neither `ready` nor `failed`. ABANDONED: the visitor left before. UNKNOWN:
    nothing could be read.
    """

    READY = "ready"
    FAILED = "failed"
    LOST = "lost"
    ABANDONED = "abandoned"
    UNKNOWN = "unknown"


class LaunchVerdict(Enum):
    """What a failure says about the member.

    REPEATS: the repository's or the visitor's fault; another member would fail too. FULL: this member has no
    room now, which is not a failure of the member. FAULTY: this member failed.
    """

    REPEATS = "repeats"
    FULL = "full"
    FAULTY = "faulty"


class Decision(Enum):
    """What to do with a launch of which the visitor has seen nothing."""

    HOLD = "hold"
    COMMIT = "commit"
    FAIL_OVER = "fail-over"


_REPEATS: Final = LaunchVerdict.REPEATS
_FULL: Final = LaunchVerdict.FULL
_FAULTY: Final = LaunchVerdict.FAULTY
_HOLD: Final = Decision.HOLD
_COMMIT: Final = Decision.COMMIT
_FAIL_OVER: Final = Decision.FAIL_OVER

# Build tokens are signed with a secret that members of a federation have to share.
_NOT_SIGNED: Final = "Invalid build token"
_RATE_LIMIT: Final = "Rate limit exceeded"

# BinderHub's messages, matched from the start; the first match counts. A message may quote the visitor's
# request, so nothing is matched after such a place: a repository's name must not make a member look faulty.
MESSAGES: Final[tuple[tuple[str, LaunchVerdict], ...]] = (
    (r"No provider found for prefix ", _REPEATS),
    (r"Could not resolve ref for ", _REPEATS),
    (r"Error resolving ref for [^ ]+ GitHub rate limit exceeded\.", _FULL),
    (r"Error resolving ref for [^ ]+ HTTP (5\d\d|429)\b", _FULL),
    (r"Error resolving ref for ", _REPEATS),
    (r"Sorry, .+ is not allowed to launch", _REPEATS),
    (r"Sorry, .+ has been temporarily disabled from launching", _REPEATS),
    (r"Requests from .+ are not allowed", _REPEATS),
    (_NOT_SIGNED, _REPEATS),
    (r"User .+ already has a running server", _REPEATS),
    (r"Too many users on this BinderHub!", _FULL),
    (r"Too many users running ", _FULL),
    # BinderHub's own limit is one of launches per address: the visitor has used it up, not the member.
    (_RATE_LIMIT + r"\b", _REPEATS),
    (r"Failed to create temporary user for ", _FAULTY),
    (r"Failed to launch image ", _FAULTY),
    (r"Image .+ for user .+ (failed|took too long) to launch", _FAULTY),
    (r"(Internal Server Error|Bad Gateway|Service Unavailable|Gateway Timeout)\b", _FAULTY),
)
"""Patterns of messages, matched from the start, and what each says about the member."""

# The rest is ignored, so that no message makes a pattern slow.
_LONGEST_MESSAGE: Final = 1024

BUILDING: Final = frozenset(("waiting", "fetching", "unknown", "building", "pushing"))
"""The phases of a build, which may take an hour. `unknown` is a build that BinderHub has lost track of."""

_PHASES: Final = BUILDING | {"built", "launching", "ready", "failed"}
# BinderHub itself treats both as one.
_SAME: Final = {"failure": "failed"}
# The keys of real repositories are shorter.
_LONGEST_KEY: Final = 256


class FailureTable:
    """Judges failures. The operator's `repeats` and `elsewhere` are searched in the message first."""

    def __init__(
        self, repeats: Sequence[re.Pattern[str]] = (), elsewhere: Sequence[re.Pattern[str]] = ()
    ) -> None:
        self._repeats = tuple(repeats)
        self._elsewhere = tuple(elsewhere)

    def judge(self, message: str, status: int | None, *, built: bool = True) -> LaunchVerdict:
        """What a failure means. `status` is the event's own. Not `built`: it came while the image was built.

        An unknown failure is REPEATS: without a reason no member is blamed, and no other one is tried.
        """
        message = message[:_LONGEST_MESSAGE]
        for pattern in self._repeats:
            if pattern.search(message):
                return _REPEATS
        by_status = judge_status(status) if status is not None else _REPEATS
        for pattern in self._elsewhere:
            if pattern.search(message):
                return _FAULTY if by_status is _FAULTY else _FULL
        # The message of a failed build is the repository's own output.
        if built:
            for known, verdict in _KNOWN:
                if known(message):
                    return verdict
        return by_status


def judge_status(status: int) -> LaunchVerdict:
    """The verdict on a status, of an event or a response."""
    if status == 429:
        return _FULL
    return _FAULTY if 500 <= status < 600 else _REPEATS


_KNOWN: Final = tuple((re.compile(pattern, re.DOTALL).match, verdict) for pattern, verdict in MESSAGES)


class Launch:
    """One launch on one member, from the time it was sent there, fed with the data of its events.

    `decision` is HOLD until an event decides, and then fixed. `phase` is the last one known. `end` is how it
    ended, once that is known, `verdict` that on a failure, and `ready_after` how long it took, in seconds.
    `phases` are the seconds spent in each completed phase. `session` is the path of the server that is ready.

    moved: another member had it before, whose page may have signed its build token. A member that refuses the
    token has another secret then (`foreign`), and a third member may accept it.
    """

    __slots__ = (
        "_first",
        "_last",
        "_since",
        "_table",
        "decision",
        "end",
        "foreign",
        "moved",
        "phase",
        "phases",
        "ready_after",
        "session",
        "started",
        "verdict",
    )

    def __init__(self, table: FailureTable, now: float, *, moved: bool = False) -> None:
        self._table = table
        self.moved = moved
        self.foreign = False
        self.session: bytes | None = None
        # How an event of the same phase ends or begins: repo2docker's, and BinderHub's.
        self._last = self._first = b""
        self._since = now
        self.started = now
        self.decision = _HOLD
        self.phase: str | None = None
        self.phases: dict[str, float] = {}
        self.end: End | None = None
        self.verdict: LaunchVerdict | None = None
        self.ready_after: float | None = None

    def __repr__(self) -> str:
        return f"<Launch {self.end or self.phase} {self.decision.value}>"

    @property
    def building(self) -> bool:
        """Whether the image is being built."""
        return self.phase in BUILDING

    @property
    def blame(self) -> Outcome | None:
        """The outcome for the member's breaker; None if the launch says nothing about the member."""
        if self.end is None or self.end is End.UNKNOWN:
            return None
        if self.end is End.READY:
            return Outcome.SUCCESS
        return Outcome.FAILURE if self.end is End.LOST or self.verdict is _FAULTY else Outcome.IGNORED

    def goes_on(self, data: bytes | None) -> bool:
        """Whether an event brings nothing new, as most: lines of a build's log."""
        if self.phase is None or data is None:
            return False
        # A quote within a message is escaped.
        return data.startswith(self._first) or data.endswith(self._last)

    def event(self, data: bytes | None, now: float) -> bool:
        """Takes one event, None for one that was too large to be read; True if the launch ended with it."""
        if self.end is not None or self.goes_on(data):
            return False
        said = _object(data)
        phase = said.get("phase")
        phase = _SAME.get(phase, phase) if isinstance(phase, str) else None
        if phase not in _PHASES:
            self._decide(_COMMIT)
        elif phase == "failed":
            self._fail(said, now)
        else:
            self._enter(phase, now)
            if phase == "ready":
                self.end = End.READY
                self.ready_after = now - self.started
                url = said.get("url")
                self.session = path_of(url) if isinstance(url, str) else None
            # The next event, right after an image was found, shows whether there is room.
            if phase != "built":
                self._decide(_COMMIT)
        return self.end is not None

    def answered(self, status: int, body: bytes = b"") -> None:
        """There is no readable stream, only a response's status, and what came with it of the body."""
        if status < 400:
            self.end = End.UNKNOWN
            self._decide(_COMMIT)
            return
        self.end = End.FAILED
        # What limits launches per address says so, with a page as with an event.
        limited = status == 429 and body.find(_RATE_LIMIT.encode()) >= 0
        self.verdict = _REPEATS if limited else judge_status(status)
        self._decide(_COMMIT if self.verdict is _REPEATS else _FAIL_OVER)

    def close(self, end: End, now: float) -> End:
        """The stream has ended as `end` says; returns how the launch ended."""
        if self.end is None:
            self._enter(self.phase, now)
            # A server that sent only meaningless events is not a BinderHub that broke off.
            nonsense = end is End.LOST and self.phase is None and self.decision is _COMMIT
            self.end = End.UNKNOWN if nonsense else end
        return self.end

    def _fail(self, said: dict[str, Any], now: float) -> None:
        message, status = said.get("message"), said.get("status_code")
        message = message if isinstance(message, str) else ""
        status = status if isinstance(status, int) else None
        if not message and status is None and self.phase is None:
            # A failure without a message and without a phase before it; after a build, the build failed.
            self._decide(_COMMIT)
            self.end = End.UNKNOWN
            return
        self.verdict = self._table.judge(message, status, built=not self.building)
        if self.moved and message.startswith(_NOT_SIGNED) and not self.building:
            self.foreign = True
            self.verdict = _FULL
        self._enter("failed", now)
        self.end = End.FAILED
        self._decide(_COMMIT if self.verdict is _REPEATS else _FAIL_OVER)

    def _enter(self, phase: str | None, now: float) -> None:
        if self.phase is not None:
            self.phases[self.phase] = self.phases.get(self.phase, 0.0) + now - self._since
        self._since = now
        self.phase = phase
        if phase is not None:
            self._last = b'"phase": "%b"}' % phase.encode()
            self._first = b'{"phase": "%b"' % phase.encode()

    def _decide(self, decision: Decision) -> None:
        if self.decision is _HOLD:
            self.decision = decision


class MovedKeys:
    """Which member has a key that its rank would not give it: bounded, with expiry.

    `seconds` count from the last `note` of a key. With more than `entries`, the oldest is dropped; a long key
    is not noted.
    """

    def __init__(self, entries: int = 4096, seconds: float = 600.0) -> None:
        self._entries = entries
        self._seconds = seconds
        self._kept: dict[bytes, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, key: bytes, name: str, now: float) -> None:
        """The member with that name has the key now."""
        if len(key) > _LONGEST_KEY:
            return
        self._kept.pop(key, None)
        self._kept[key] = (name, now + self._seconds)
        if len(self._kept) > self._entries:
            del self._kept[next(iter(self._kept))]

    def get(self, key: bytes, now: float) -> str | None:
        """The name of the member that has the key, if it is still known."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if now >= kept[1]:
            del self._kept[key]
            return None
        return kept[0]


def _object(data: bytes | None) -> dict[str, Any]:
    """An event's JSON object; empty if it is not one."""
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
