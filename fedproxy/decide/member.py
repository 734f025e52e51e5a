"""One BinderHub of the federation, with everything that determines whether it gets requests."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from fedproxy.decide.breaker import Breaker, BreakerState
from fedproxy.decide.counts import MemberCounts

#: The most requests in flight to a member, if nothing else is said.
MAX_REQUESTS: Final = 1000

_FIRST_SHARE = 0.1


class Intent(StrEnum):
    """The operator's intent, apart from health. DRAIN: its visitors may stay. MAINT: nobody may."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


# Access to an enumeration's members by its class is slow, and each new visitor asks for a share.
_READY: Final = Intent.READY


class Member:
    """Lives as long as its name is in the config, across reloads. Compared by identity."""

    def __init__(
        self,
        name: str,
        url: str,
        breaker: Breaker,
        *,
        weight: float = 1.0,
        prime: bool = False,
        hosts: tuple[str, ...] = (),
        max_requests: int = MAX_REQUESTS,
        max_launches: int | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.breaker = breaker
        breaker.on_transition = self._on_transition
        self.weight = weight
        self.prime = prime
        self.hosts = hosts
        self.max_requests = max_requests
        self.max_launches = max_launches
        self.intent = Intent.READY
        self.healthy = True
        self.reasons: tuple[str, ...] = ()
        self.serving = True  # intent and health together, ...
        self.open = True  # ... and the breaker with them, so that a request asks one question
        self.in_flight = 0
        self.launches = 0
        self.failed_launches = 0  # in a row, ...
        self.launch_witnesses: set[bytes] = set()  # ... and keys of clients who saw them
        self.launches_elsewhere = 0  # in flight through other workers
        self.launch_slots: int | None = None  # of `max_launches` those of this edge; None: it is the only one
        self.on_short: Callable[[str], None] | None = None  # told the name when only other edges have slots
        self.on_trip: Callable[[str], None] | None = None  # told the name when the breaker opens
        self.on_launches: Callable[[], None] | None = None  # told when `launches` changes
        self.counts = MemberCounts()
        self.slow_start = 0.0  # seconds
        self.room: int | None = None  # pods that it has left, by the last probe
        self.price = 0.0  # what `expected-wait` adds to keep its share, in builds that count twice
        self._recovered: float | None = None

    def __repr__(self) -> str:
        health = "healthy" if self.healthy else "unhealthy"
        return f"<Member {self.name} {self.intent} {health} {self.breaker.state} in_flight={self.in_flight}>"

    def available(self, now: float, launch: bool = False, client: bytes = b"") -> bool:
        """Whether a request (or a launch) may be sent to it now: serving, breaker admits, not full.

        `client`: the visitor's address. A half-open breaker may want another client's trial first.
        """
        return (
            (self.open or (self.serving and self.breaker.admits(now, client)))
            and self.in_flight < self.max_requests
            and not (launch and self.full(launch=True))
        )

    def full(self, launch: bool = False) -> bool:
        """Whether it is at its limit of requests (or launches) in flight."""
        if self.in_flight >= self.max_requests:
            return True
        most = self.max_launches
        if not launch or most is None:
            return False
        running = self.launches + self.launches_elsewhere
        slots = self.launch_slots
        if slots is not None and slots <= running < most and self.on_short is not None:
            self.on_short(self.name)
        return running >= (most if slots is None else min(slots, most))

    def count_launch(self, change: int) -> None:
        """One launch more or less is in flight."""
        self.launches += change
        if self.on_launches is not None:
            self.on_launches()

    def share(self, now: float) -> float:
        """Its weight for new visitors: reduced while it is slow-starting."""
        if self.intent is not _READY:
            return 0.0
        if self._recovered is None:
            return self.weight
        passed = now - self._recovered
        if not 0 <= passed < self.slow_start:
            return self.weight
        return self.weight * max(_FIRST_SHARE, passed / self.slow_start)

    def set_intent(self, intent: Intent) -> None:
        """Sets the operator's intent."""
        self.intent = intent
        self._decide()

    def set_health(self, healthy: bool, now: float, reasons: tuple[str, ...] = ()) -> None:
        """Sets the verdict of the probes; `reasons` are for people."""
        if healthy and not self.healthy:
            self.recovered(now)
        self.healthy = healthy
        self.reasons = reasons
        self._decide()

    def recovered(self, now: float) -> None:
        """It is slow-starting from now on: its share starts small and grows."""
        self._recovered = now

    def roll(self, now: float) -> None:
        """Updates what depends on time; call it about once a second."""
        self.breaker.roll(now)
        if self._recovered is not None and not 0 <= now - self._recovered < self.slow_start:
            self._recovered = None

    def _decide(self) -> None:
        self.serving = self.healthy and self.intent is not Intent.MAINT
        self.open = self.serving and self.breaker.closed

    def _on_transition(self, state: BreakerState, now: float) -> None:
        self.counts.transitions[state.value] += 1
        if state is BreakerState.OPEN and self.on_trip is not None:
            self.on_trip(self.name)
        if state is BreakerState.CLOSED:
            self.recovered(now)
        self._decide()
