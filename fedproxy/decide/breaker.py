"""The circuit breaker of one member, in the style of sony/gobreaker.

                 failures in a row, or too many in the window
        CLOSED ────────────────────────────────────────────────► OPEN ◄──┐
          ▲                                                       │      │ a trial failed
          │ `trials` successes                 the open time is over     │
          └──────────────────────── HALF_OPEN ◄───────────────────┘ ─────┘

`acquire` gives the generation under which a request goes out; `settle` takes it back with the outcome. Every
transition starts a new generation, and results of an older one are dropped: what was sent before says
nothing about now. Time (seconds of any steady clock) and chance are arguments. A clock that jumps may end an
open time or a window early, never late.

A failure that only one visitor sees may be that visitor's doing: a breaker opens only if enough client
addresses saw failures, or if nobody else had success in the window. Clients are kept as keys, and only as
many as the answer needs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from fedproxy.decide.limit import known_client

UNCOUNTED: Final = -1
"""The generation of a request that goes out without the breaker's leave: its outcome is dropped."""

JUDGED: Final = -2
"""The generation of a launch whose outcome was noted before it ended: how it ends says nothing any more."""

JITTER: Final = 0.1
"""Up to this part is added to an open time, so that edges do not all come back at once."""

_BUCKETS: Final = 10
_MAX_STRIKES: Final = 32
_MOST_ELSEWHERE: Final = 64  # clients that others serve
_TO_ANSWER: Final = 0.5  # seconds that others have to say that they serve some


class BreakerState(StrEnum):
    """CLOSED: traffic flows. OPEN: none does. HALF_OPEN: a few live requests, the trials, decide."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class Outcome(Enum):
    """How a request ended for the member. IGNORED: nobody's fault, as when the visitor left."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


# Looking a member of an enumeration up by its class costs more than all else on the fast path.
_SUCCESS: Final = Outcome.SUCCESS
_FAILURE: Final = Outcome.FAILURE
_CLOSED: Final = BreakerState.CLOSED
_HALF_OPEN: Final = BreakerState.HALF_OPEN
_OPEN: Final = BreakerState.OPEN


@dataclass(frozen=True)
class BreakerPolicy:
    """When a breaker opens, and for how long. `window`, `open` and `open_max` are seconds.

    It opens after `failures` in a row, or when at least `minimum` requests were settled in the last `window`
    and `ratio` of them failed; but only if `witnesses` different clients saw failures in the window, or
    nobody else saw a success. The first open time is `open`; it doubles each time, up to `open_max`, and
    halves again for every `open` spent closed. Then `trials` requests must succeed.

    Raises ValueError for a policy that could never open, or never close again.
    """

    failures: int = 5
    ratio: float = 0.5
    window: float = 10.0
    minimum: int = 20
    open: float = 5.0
    open_max: float = 300.0
    trials: int = 1
    witnesses: int = 2

    def __post_init__(self) -> None:
        if (
            min(self.failures, self.minimum, self.trials, self.witnesses) < 1
            or min(self.window, self.open, self.open_max) <= 0
        ):
            raise ValueError(f"a breaker needs counts of at least 1 and times above 0: {self}")


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A past part of the window: how many succeeded and failed, and the keys of clients who saw it."""

    good: int
    bad: int
    served: frozenset[bytes]
    failed: frozenset[bytes]


_NOBODY: Final[frozenset[bytes]] = frozenset()
_EMPTY: Final = _Bucket(0, 0, _NOBODY, _NOBODY)


class Breaker:
    """One member's breaker.

    `state`, `generation` and `closed` (whether `state` is CLOSED) are for reading, as is `opened_by`: the
    clients whose failures opened it last, as far as they were counted. `on_transition` is called with the new
    state and the time, after every transition. `policy` may be replaced at any time.
    `on_doubt`, where there are other workers, is called to ask them whether they serve somebody.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        on_transition: Callable[[BreakerState, float], None] | None = None,
    ) -> None:
        self.policy = policy
        self.on_transition = on_transition
        self.on_doubt: Callable[[], None] | None = None
        self.state = _CLOSED
        self.closed = True
        self.generation = 0
        # CLOSED: a sliding window in buckets, the current one apart
        self._in_a_row = 0
        self._good = 0
        self._bad = 0
        self._past: deque[_Bucket] = deque(maxlen=_BUCKETS - 1)
        self._bucket_start: float | None = None  # the time is not known yet
        self._healthy_since = 0.0
        # Who saw what in the current bucket, at most `witnesses` of each kind
        self._served: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._last_served: bytes | None = None  # as it was given
        self._crowded = False  # enough clients are known, and no more are noted
        # The clients that other workers serve, and when they said so; when they were asked
        self._elsewhere: dict[bytes, float] = {}
        self._asked_at = -math.inf
        # OPEN
        self._strikes = 0
        self._opened_at = 0.0
        self._open_for = 0.0
        self.opened_by: frozenset[bytes] = frozenset()
        self._alone = True  # there was only one client when it opened
        # HALF_OPEN
        self._trials = 0
        self._passed = 0
        self._trial_by = b""  # the client of the trial that began last, ...
        self._trial_at = 0.0  # ... and when it began
        self._tried_by: bytes | None = None  # the client of the last trial, if that did not succeed ...
        self._tried_at = 0.0  # ... and when it ended

    def __repr__(self) -> str:
        return f"<Breaker {self.state} generation={self.generation} strikes={self._strikes}>"

    @property
    def trials(self) -> int:
        """Trials in flight."""
        return self._trials

    @property
    def open_for(self) -> float:
        """How long the current (or the last) open time is, in seconds."""
        return self._open_for

    def admits(self, now: float, client: bytes = b"") -> bool:
        """Whether a request of `client` (an address, as text) may go out. Changes nothing."""
        if self.closed:
            return True
        # Not a comparison with a time to come: a clock that is set back must not keep the breaker open.
        opened_for = now - self._opened_at
        if self.state is _OPEN:
            if 0 <= opened_for < self._open_for:
                return False
        elif not (self._trials == 0 or self._trials + self._passed < self.policy.trials) and (
            # Nor by one that never ends, such as a slow upload: somebody else need not wait for it.
            0 <= now - self._trial_at < self.policy.open or known_client(client) == self._trial_by
        ):
            return False
        # No client may keep it open by taking every trial: for as long again, others come first.
        return (
            self._alone
            or self._tried_by is None
            or not (0 <= opened_for < 2 * self._open_for or 0 <= now - self._tried_at < self._open_for)
            or known_client(client) != self._tried_by
        )

    def acquire(self, now: float, client: bytes = b"") -> int:
        """Notes that a request goes out, and gives the generation to settle it with.

        The first one after the open time makes the breaker half-open; each one then is a trial. A request
        that the breaker does not admit gets `UNCOUNTED`.
        """
        if self.closed:
            return self.generation
        if not self.admits(now, client):
            return UNCOUNTED
        if self.state is _OPEN:
            self._become(_HALF_OPEN, now)
        self._trials += 1
        self._trial_by = known_client(client)
        self._trial_at = now
        return self.generation

    def settle(
        self,
        generation: int,
        outcome: Outcome,
        now: float,
        chance: float = 0.0,
        may_open: Callable[[], bool] | None = None,
        client: bytes = b"",
    ) -> bool:
        """Notes the outcome of a request that `acquire` gave `generation` to; True if the state changed.

        `chance` in [0, 1) is the jitter of the open time that may follow. `may_open` is asked only if the
        breaker would open from closed; if it says no, it stays closed and asks again at the next failure.
        `client` is the address, as text, of the visitor who saw it.
        """
        if generation != self.generation:
            return False
        if self.closed:
            if outcome is _SUCCESS:
                self.succeed(generation, now, client)
                return False
            return outcome is _FAILURE and self._fail(now, chance, may_open, client)
        return self._tried(outcome, now, chance, client)

    def succeed(self, generation: int, now: float, client: bytes) -> None:
        """The same as `settle` of a success, which is what nearly all are."""
        if generation == self.generation:
            if not self.closed:
                self._tried(_SUCCESS, now, 0.0, client)
                return
            self._in_a_row = 0
            self._good += 1
            if not self._crowded and client != self._last_served:
                self._serve(client)
        elif generation == UNCOUNTED and self.closed and not self._crowded and client != self._last_served:
            # It says nothing about the member but that somebody is served there.
            self._serve(client)

    def serve_elsewhere(self, clients: Collection[bytes], now: float) -> None:
        """Another worker serves these clients (keys) fine."""
        elsewhere = self._elsewhere
        for client in clients:
            elsewhere.pop(client, None)
            elsewhere[client] = now
        while len(elsewhere) > _MOST_ELSEWHERE:
            del elsewhere[next(iter(elsewhere))]

    def served(self, now: float) -> frozenset[bytes]:
        """Keys of clients who saw success here in the window, as many as the question needs."""
        self._move_window(now)
        here = _NOBODY.union(self._served, *(bucket.served for bucket in self._past))
        return frozenset(sorted(here)[: self.policy.witnesses])

    def convinced(self, witnesses: Collection[bytes], now: float) -> bool:
        """Whether failures that these clients (keys) saw may open it: they are enough, or all there are."""
        self._move_window(now)
        return self._is_sure(frozenset(witnesses), now)

    def convinced_with(self, witnesses: Collection[bytes], now: float) -> bool:
        """The same, together with the clients whose failures are counted here."""
        self._move_window(now)
        return self._believes(self._failed_all(frozenset(witnesses)))

    def trip(self, now: float, chance: float, witnesses: Collection[bytes] = ()) -> None:
        """Opens the breaker, unless it is open already. `witnesses` saw failures that it did not count."""
        if self.state is not _OPEN:
            self._forgive(now)
            self._open(now, chance, self._failed_all(frozenset(witnesses)))

    def roll(self, now: float) -> None:
        """Moves the window on and forgives old strikes. To be called about once a second."""
        if self.closed:
            self._move_window(now)
            self._forgive(now)

    def is_due(self, now: float) -> bool:
        """Whether it would open by what it has seen, now that the other workers had time to answer."""
        if not self.closed or not _TO_ANSWER <= now - self._asked_at < self.policy.window:
            return False
        self._move_window(now)
        return self._has_failed() and self._believes(self._failed_all(_NOBODY))

    def _serve(self, client: bytes) -> None:
        """Notes who had success, as one of the first in this bucket."""
        self._last_served = client
        self._served.add(known_client(client))
        self._crowded = len(self._served) >= self.policy.witnesses

    def _fail(self, now: float, chance: float, may_open: Callable[[], bool] | None, client: bytes) -> bool:
        self._move_window(now)
        self._in_a_row += 1
        self._bad += 1
        policy = self.policy
        if len(self._failed) < policy.witnesses:
            self._failed.add(known_client(client))
        if not self._has_failed():
            return False
        if not self._is_sure(self._failed_all(_NOBODY), now):
            return False
        if may_open is not None and not may_open():
            return False
        self.trip(now, chance)
        return True

    def _has_failed(self) -> bool:
        """Whether there were enough failures, whoever saw them."""
        policy = self.policy
        bad = self._bad + sum(bucket.bad for bucket in self._past)
        total = bad + self._good + sum(bucket.good for bucket in self._past)
        return self._in_a_row >= policy.failures or (total >= policy.minimum and bad >= policy.ratio * total)

    def _failed_all(self, others: frozenset[bytes]) -> frozenset[bytes]:
        """Who saw failures in the window, and these others."""
        return others.union(self._failed, *(bucket.failed for bucket in self._past))

    def _served_all(self) -> frozenset[bytes]:
        """Who saw success in the window, here or elsewhere."""
        return _NOBODY.union(self._served, self._elsewhere, *(bucket.served for bucket in self._past))

    def _believes(self, failed: frozenset[bytes]) -> bool:
        return len(failed) >= self.policy.witnesses or self._served_all() <= failed

    def _is_sure(self, failed: frozenset[bytes], now: float) -> bool:
        """Like `_believes`, but asks the other workers first: they may serve somebody else."""
        if not self._believes(failed):
            return False
        if self.on_doubt is None or len(failed) >= self.policy.witnesses:
            return True
        since = now - self._asked_at
        if 0 <= since < self.policy.window:
            return since >= _TO_ANSWER
        self._asked_at = now
        self.on_doubt()
        return False

    def _tried(self, outcome: Outcome, now: float, chance: float, client: bytes) -> bool:
        """A trial is over. (An open breaker gives its generation to nobody.)"""
        self._trials -= 1
        if outcome is _SUCCESS:
            self._passed += 1
            if self._passed >= self.policy.trials:
                self._tried_by = None
                self._become(_CLOSED, now)
                self._serve(client)
                return True
            return False
        key = known_client(client)
        # If the client is not given, the next trial is open to all.
        self._tried_by = key or None
        self._tried_at = now
        if outcome is _FAILURE:
            self._open(now, chance, frozenset((key,)))
            return True
        return False

    def _open(self, now: float, chance: float, witnesses: frozenset[bytes]) -> None:
        policy = self.policy
        if self._nominal(self._strikes) < policy.open_max and self._strikes < _MAX_STRIKES:
            self._strikes += 1
        self._open_for = min(self._nominal(self._strikes), policy.open_max) * (1 + JITTER * chance)
        self._opened_at = now
        self.opened_by = witnesses
        if self.closed:
            self._alone = len(witnesses | self._served_all()) <= 1
        self._become(_OPEN, now)

    def _nominal(self, strikes: int) -> float:
        """The open time after so many strikes, before its limit and jitter; 0 without any."""
        return float(self.policy.open * 2 ** (strikes - 1)) if strikes else 0.0

    def _become(self, state: BreakerState, now: float) -> None:
        """The one place where the state changes."""
        self.state = state
        self.closed = state is _CLOSED
        self.generation += 1
        self._in_a_row = self._good = self._bad = 0
        self._past.clear()
        self._forget_clients()
        self._bucket_start = self._healthy_since = now
        self._trials = self._passed = 0
        if self.on_transition is not None:
            self.on_transition(state, now)

    def _move_window(self, now: float) -> None:
        if self._bucket_start is None:
            self._bucket_start = now
            return
        width = self.policy.window / _BUCKETS
        elapsed = now - self._bucket_start
        if 0 <= elapsed < width:
            return
        if not 0 <= elapsed < width * _BUCKETS:
            self._past.clear()
            self._bucket_start = now
        else:
            steps = int(elapsed / width)
            self._past.append(
                _Bucket(self._good, self._bad, frozenset(self._served), frozenset(self._failed))
            )
            self._past.extend([_EMPTY] * (steps - 1))
            self._bucket_start += steps * width
        self._good = self._bad = 0
        self._forget_clients()
        if self._elsewhere:
            window = self.policy.window
            self._elsewhere = {key: at for key, at in self._elsewhere.items() if 0 <= now - at < window}

    def _forget_clients(self) -> None:
        self._served.clear()
        self._failed.clear()
        self._last_served = None
        self._crowded = False

    def _forgive(self, now: float) -> None:
        """Takes one strike back for each `open` seconds spent closed."""
        if not self.closed:
            return
        intervals = int((now - self._healthy_since) / self.policy.open)
        if now < self._healthy_since:
            self._healthy_since = now
        elif intervals:
            self._strikes = max(0, self._strikes - intervals)
            self._healthy_since += intervals * self.policy.open
