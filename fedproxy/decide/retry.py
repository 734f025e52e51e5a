"""Whether another attempt may be made."""

from __future__ import annotations

_MOST_SECONDS = 10.0
_MOST_REQUESTS = 1000
_MOST_CLIENTS = 1024


def may_retry(
    *, idempotent: bool, delivered: bool, committed: bool, replayable: bool, attempts: int, max_attempts: int
) -> bool:
    """RFC 9110 section 9.2.2: what is not idempotent is never sent twice once a member may have seen it.

    `delivered`: the member may have seen something. `committed`: the visitor has seen something.
    `replayable`: the whole request body is buffered.
    """
    return attempts < max_attempts and not committed and replayable and (idempotent or not delivered)


class RetryBudget:
    """A token bucket: `budget` tokens for each request and `floor` for each second; a retry takes one.

    So that a quiet hour does not pay for a storm, it holds at most the tokens of ten seconds plus those of a
    thousand requests (but at least one), and it starts with those of ten seconds. Over any time, retries <=
    budget x requests + floor x seconds + what the bucket held.

    So that one client cannot use up the retries of all, it gets at most `per_client` of the tokens in the
    bucket plus those that it took lately (but at least one), and then that share of the inflow. The tokens
    taken are remembered for the last thousand clients that had a retry.
    """

    __slots__ = ("_budget", "_earned", "_floor", "_now", "_per_client", "_requests", "_taken", "_tokens")

    def __init__(self, budget: float, floor: float, per_client: float = 1.0) -> None:
        self._budget = budget
        self._floor = floor
        self._per_client = per_client
        self._tokens = 0.0
        self._requests = 0
        self._now: float | None = None
        self._earned = 0.0  # tokens that flowed in, ever
        # By client: the tokens taken and not yet replenished, and the inflow by then.
        self._taken: dict[bytes, tuple[float, float]] = {}

    def take_over(self, before: RetryBudget) -> None:
        """Takes over the tokens of its predecessor, so that a reload adds none."""
        self._tokens, self._requests, self._now = before._tokens, before._requests, before._now
        self._earned, self._taken = before._earned, before._taken

    def withdraw(self, now: float, requests: int, client: bytes = b"") -> bool:
        """Takes a token for a client (a `client_key`) if there is one for it.

        `requests` is the running count of all requests.
        """
        if self._now is None:
            self._now = now - _MOST_SECONDS
        seconds = max(0.0, now - self._now)
        flow = self._floor * seconds + self._budget * max(0, requests - self._requests)
        most = self._floor * _MOST_SECONDS + self._budget * _MOST_REQUESTS
        self._earned += flow
        self._tokens = min(self._tokens + flow, max(1.0, most))
        self._now, self._requests = now, requests
        if self._tokens < 1:
            return False
        taken, since = self._taken.pop(client, (0.0, 0.0))
        taken = max(0.0, taken - self._per_client * (self._earned - since))
        allowed = taken + 1 <= max(1.0, self._per_client * (self._tokens + taken))
        if allowed:
            self._tokens -= 1
            taken += 1
        # The most recent one is last.
        self._taken[client] = (taken, self._earned)
        if len(self._taken) > _MOST_CLIENTS:
            del self._taken[next(iter(self._taken))]
        return allowed
