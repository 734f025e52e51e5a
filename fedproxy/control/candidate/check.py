"""A candidate, the checks of it, and the words in which they speak."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from fedproxy.config.address import MemberAddress, member_address
from fedproxy.config.model import HealthSettings
from fedproxy.observe.access_log import MASK

FAR: Final = 0.25  # seconds of a round trip
SLOW_NAME: Final = 1.0  # seconds
DAYS_LEFT: Final = 14
CLOCK_OFF: Final = 30.0  # seconds
SLOW_LINE: Final = 500_000  # bytes per second
#: BinderHub's first event can take 25 s, and its comments come every 25 s.
LONGEST_SILENCE: Final = 35.0
MOST_LAUNCHES: Final = 3
#: A page of another site, which embeds a launch.
EMBED: Final = "https://embed.example"
_LONGEST_WORDS: Final = 200
_SHORTEST_SECRET: Final = 8
_ADDRESS: Final = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)"
)

EXPECTED: Final = {
    "address": "an https:// URL",
    "membership": "no member has the URL or the name, and the reference is another BinderHub",
    "name": f"it resolves, within {SLOW_NAME:g} s",
    "connection": "every address accepts a connection",
    "ipv6": "an IPv6 address accepts connections, if there is one",
    "round trip": f"at most {FAR * 1000:g} ms",
    "tls": "TLS 1.2 or 1.3",
    "http2": "anything: edges speak HTTP/1.1 to members",
    "certificate": f"from a known authority, for this name, valid for {DAYS_LEFT} days or more",
    "versions": "200 with a JSON object, the same as the reference's if there is one",
    "keep-alive": "a second request uses the same connection",
    "clock": f"within {CLOCK_OFF:g} s of this machine's or the reference's",
    "health": "200 with a JSON object and every check ok",
    "pods": f"a quota, with more than {HealthSettings().pod_headroom} pods free",
    "static files": "a large file arrives whole",
    "bandwidth": f"{SLOW_LINE / 1e6:g} MB/s or more",
    "build token": "a launch with a token from the reference's page is accepted",
    "event stream": "200, text/event-stream, no Content-Length, not compressed",
    "stream headers": "no field that delays, stores or cuts the stream",
    "cors": "Access-Control-Allow-Origin: * on streams, failures and preflights",
    "launch": "its first events are not a failure",
    "unbuffered": "each event arrives as it is produced",
    "event pacing": f"something arrives at least every {LONGEST_SILENCE:g} s, from the start",
    "forwarded addresses": "believed from an edge, and from nobody else",
    "trial launches": "every launch becomes ready",
    "session": "the server of a launch answers with its token, also to pages of other sites",
    "websocket": "a WebSocket to the server of a launch carries messages both ways",
    "still there": "it answers at the end as it did at the start",
}
"""The fixed set of checks in order, with what each expects."""


class CheckOutcome(StrEnum):
    """A check's result. WARNING: the member could join like this. SKIPPED: the check was not possible."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not checked"


@dataclass(frozen=True)
class Check:
    """One check: what was seen, what was expected, and how to fix it if it is not ok.

    `values`: the same for programs, as JSON has it; times in seconds.
    """

    name: str
    outcome: CheckOutcome
    seen: str
    expected: str
    fix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One launch that was followed to its end.

    end: `ready`, `failed`, `lost` (the stream ended or broke), `timed out`, or `no stream`. kind: of a
    failure, in a few words. message: the candidate's. seconds: from the request to the end. first: to the
    first bytes, None if none came. phases: seconds in each phase, in order. stopped: whether the server that
    was started was told to stop, None if none was started.
    """

    end: str
    seconds: float
    kind: str = ""
    message: str = ""
    first: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    stopped: bool | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "end": self.end,
            "kind": self.kind,
            "message": self.message,
            "seconds": round(self.seconds, 3),
            "first": None if self.first is None else round(self.first, 3),
            "phases": {name: round(seconds, 3) for name, seconds in self.phases.items()},
            "stopped": self.stopped,
        }


@dataclass(frozen=True)
class Examination:
    """All checks in order: each of a fixed set once, and a `health: NAME` for each check of its health.

    trials: the launches that were followed to their end. started, ended: seconds since the epoch.
    """

    url: str
    checks: tuple[Check, ...]
    trials: tuple[Trial, ...] = ()
    started: float = 0.0
    ended: float = 0.0

    @property
    def fit(self) -> bool:
        """Whether nothing failed."""
        return all(check.outcome is not CheckOutcome.FAILED for check in self.checks)


@dataclass(frozen=True)
class Candidate:
    """The BinderHub to check, and how.

    url: scheme, host and port. launch: PROVIDER/SPEC as in a target. reference: the URL of a member whose
    versions must match, and whose build tokens must be accepted. origin: the federation's, as the edge will
    send it. timeout: seconds per check; an abandoned launch may take six times that. authorities: a PEM file
    of trusted CAs, instead of the system's. base_path: where both have their BinderHub, with a slash at
    either end.

    launches: None for one that is abandoned once its stream delivers events; 0 for none; otherwise so many,
    up to MOST_LAUNCHES, one after the other to their end. launch_timeout: seconds for each of these. members:
    the URLs of the federation's members by name. name: the one that the candidate would have. from_edge: this
    machine is one of the federation's edges, whose word about visitors' addresses counts.
    """

    url: str
    launch: str = "gh/binder-examples/requirements/HEAD"
    reference: str | None = None
    origin: str = "https://mybinder.org"
    timeout: float = 10.0
    authorities: Path | None = None
    base_path: str = "/"
    launches: int | None = None
    launch_timeout: float = 600.0
    members: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    from_edge: bool = False

    @property
    def address(self) -> MemberAddress:
        """`url`, parsed."""
        return member_address(self.url)


class Redaction:
    """Takes out of checks what must not be published: tokens, and addresses other than the candidate's.

    A candidate may repeat the address that it was asked from. `allowed`: addresses that may be shown.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = set(allowed)
        self._secrets: set[str] = set()

    def hide(self, secret: str) -> None:
        """A token that must not appear. A very short one could not be told from other text."""
        if len(secret) >= _SHORTEST_SECRET:
            self._secrets.add(secret)

    def text(self, text: str) -> str:
        """The text without them."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return _ADDRESS.sub(self._address, text)

    def check(self, check: Check) -> Check:
        """The check without them. Versions may look like addresses, and are none."""
        if check.name == "versions":
            return check
        return replace(
            check, seen=self.text(check.seen), fix=self.text(check.fix), values=self._all(check.values)
        )

    def trial(self, trial: Trial) -> Trial:
        """The same for a launch."""
        return replace(trial, message=self.text(trial.message))

    def _all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self._all(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._all(each) for each in value]
        return value

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]
        return found[0] if str(address) in self.allowed or found[0] in self.allowed else "(an address)"


def make(name: str, outcome: CheckOutcome, seen: str, fix: str = "", **values: Any) -> Check:
    """A check of the fixed set, or of the candidate's health."""
    return Check(name, outcome, words(seen), EXPECTED.get(name, "ok"), fix, values)


def skip(why: str, *names: str) -> list[Check]:
    """Checks that were not possible."""
    return [make(name, CheckOutcome.SKIPPED, why) for name in names]


def show_time(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def reason(error: Exception) -> str:
    """Why a system call failed."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number and number > 0 else str(error) or type(error).__name__


def words(text: str) -> str:
    """Another program's text, shortened to one line."""
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return line if len(line) <= _LONGEST_WORDS else f"{line[: _LONGEST_WORDS - 3]}..."
