"""Whether another attempt may be made."""

from __future__ import annotations

_MOST_SECONDS = 10.0
_MOST_REQUESTS = 1000


def may_retry(
    *, idempotent: bool, delivered: bool, committed: bool, replayable: bool, attempts: int, max_attempts: int
) -> bool:
    """RFC 9110 section 9.2.2: what is not idempotent is never sent twice once a member may have seen it.

    `delivered`: the member may have seen something. `committed`: the visitor has seen something.
    `replayable`: all of the request's body is at hand.
    """
    return attempts < max_attempts and not committed and replayable and (idempotent or not delivered)


class RetryBudget:
    """A token bucket: `budget` tokens for each request and `floor` for each second; a retry takes one.

    So that a quiet hour does not pay for a storm, it holds no more than ten seconds and a thousand requests
    bring (but at least one token), and it starts with ten seconds' worth. Over any time, retries <=
    budget x requests + floor x seconds + what the bucket held.
    """

    __slots__ = ("_budget", "_floor", "_now", "_requests", "_tokens")

    def __init__(self, budget: float = 0.2, floor: float = 1.0) -> None:
        self._budget = budget
        self._floor = floor
        self._tokens = 0.0
        self._requests = 0
        self._now: float | None = None

    def take_over(self, before: RetryBudget) -> None:
        """Holds what the one before held, so that a reload brings no new tokens."""
        self._tokens, self._requests, self._now = before._tokens, before._requests, before._now

    def withdraw(self, now: float, requests: int) -> bool:
        """Takes a token if there is one. `requests` is the running count of all requests."""
        if self._now is None:
            self._now = now - _MOST_SECONDS
        seconds = max(0.0, now - self._now)
        self._tokens += self._floor * seconds + self._budget * max(0, requests - self._requests)
        most = self._floor * _MOST_SECONDS + self._budget * _MOST_REQUESTS
        self._tokens = min(self._tokens, max(1.0, most))
        self._now, self._requests = now, requests
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
