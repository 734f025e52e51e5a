"""Probes the members' health, round after round.

A round of a member is one request to its `/versions` and one to its `/health`. Each member has its own timer
and its own task, so one that hangs does not delay others. `decide.health` judges the answers; this module
decides when and how to ask, and judges missing answers. Times are of the loop's monotonic clock, so setting
the clock or a sleep of the machine moves no round. A failure because this process lacks something, above all
time, is not a verdict on a member.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final

from fedproxy.config.address import base_path
from fedproxy.control.asking import Asker, Failure, OwnFault
from fedproxy.control.fetch import Fetched
from fedproxy.decide.health import (
    HealthState,
    Verdict,
    judge_health,
    judge_versions,
    pace,
    together,
    unreachable,
)
from fedproxy.decide.pulse import Pulse
from fedproxy.proxy.resolver import Resolver
from fedproxy.tasks import Tasks

_BEAT: Final = 0.25  # seconds
_SLEPT: Final = 0.5  # seconds of lost time that do not invalidate a failure
_AGAIN: Final = 3  # attempts at a round, if this process was stopped during each
_PAGE_AGAIN: Final = 600.0  # seconds
# The config of BinderHub's page as a script has it, and as older releases wrote it.
_IS_BINDERHUB: Final = re.compile(rb"""badgeBaseUrl|badge-base-url""").search
_BASE_URL: Final = re.compile(
    rb"""["']?baseUrl["']?\s*:\s*["']([^"'\s]{1,200})["']|id=["']base-url["']\s+data-url=["']([^"'\s]{1,200})["']"""
).search


@dataclass(frozen=True)
class ProbePolicy:
    """How members are probed. Times are in seconds.

    interval, unhealthy_interval: from a round's end to the next, of a healthy and an unhealthy member,
    shifted at random by up to the share `jitter`. timeout: per request with its connection. rise: successful
    rounds in a row that make a member healthy; fall: failed ones that make it unhealthy. pod_headroom: pods
    that must be free of a quota. versions: whether a member must run the versions of prime; if not,
    `/versions` is not requested. pages: whether a member's page is asked now and then where its BinderHub is.
    connection_age: how long a connection is kept, if no round fails; 0 keeps none.
    """

    interval: float
    jitter: float
    timeout: float
    rise: int
    fall: int
    unhealthy_interval: float
    pod_headroom: int
    versions: bool
    connection_age: float
    pages: bool = False

    def delay(self, healthy: bool, chance: float) -> float:
        """Seconds until a member's next round. chance: from 0 to 1."""
        base = self.interval if healthy else self.unhealthy_interval
        return base * (1 + self.jitter * (2 * chance - 1))


@dataclass(frozen=True)
class Target:
    """A member to probe.

    health, versions: full URLs. prime: its versions are those that the others must run. socket: path of the
    Unix socket for both URLs, if the member has one. tls: for https; None trusts the system's authorities.
    reserve: pods of its quota that it keeps for others, beside the headroom.
    """

    name: str
    health: str
    versions: str
    prime: bool = False
    socket: str | None = None
    tls: ssl.SSLContext | None = None
    reserve: int = 0

    @property
    def place(self) -> tuple[str, str, str | None]:
        """If this changes, it is a different target, whose health is unknown."""
        return self.health, self.versions, self.socket

    @property
    def page(self) -> str:
        """The URL of its BinderHub's page: where `/health` is, if that is what the URL ends with."""
        start = self.health.removesuffix("/health")
        return f"{start}/" if start != self.health else "/".join(self.health.split("/", 3)[:3]) + "/"

    @property
    def one_origin(self) -> bool:
        """Whether both URLs have the same scheme, host and port."""
        return self.health.split("/", 3)[:3] == self.versions.split("/", 3)[:3]


@dataclass(frozen=True)
class Report:
    """A member's health after a round.

    reasons: of the last failed round while the member is unhealthy, as labels: `dns`, `connect`, `tls`,
    `timeout`, `reset` (broke off), `nonsense` (invalid HTTP, or far too much), `status`, and those of
    `decide.health`. details: the same as sentences for people, also of failures that have not made the member
    unhealthy yet. pods, quota, checks: as in `Verdict`, of the last round, if the member reported them.
    base_path: where its BinderHub is, if its page says so. within: in so many seconds it told its health in
    the last round, as `decide.health.pace` has them; None if it did not.
    """

    name: str
    healthy: bool
    reasons: tuple[str, ...] = ()
    pods: Mapping[str, int] = field(default_factory=dict)
    quota: int | None = None
    checks: Mapping[str, bool] = field(default_factory=dict)
    details: tuple[str, ...] = ()
    base_path: str | None = None
    within: float | None = None


class Prober:
    """Probes the targets in force, from the first `apply` to `close`. Create it in a running loop.

    report: called after a target's first round, and after each later one with a different result. chance:
    random numbers from 0 to 1, for the jitter. clock: for the age of connections and of names' addresses;
    default: the loop's. room: for so many kept connections, of the first targets; those of others are closed
    after each request.

    The connections of a member that is healthy are kept from request to request and from round to round, for
    `connection_age`. A failed round closes them, and an unhealthy member is asked on a new one each time.

    If there is no connection for `/versions`, the round ends there, unless `/health` has another origin: a
    second attempt would fail the same way and take its time. Members are compared with the versions from
    prime's last round; without them, nothing is compared. A round that ends before prime's first answer waits
    for it, for at most `timeout`.

    A round that failed while this process was stopped is repeated. One that failed because this process
    lacked a file descriptor, a port or memory leaves the member as it was.
    """

    def __init__(
        self,
        report: Callable[[Report], None],
        *,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] | None = None,
        room: int = 1 << 30,
    ) -> None:
        self._report = report
        self._chance = chance
        self._watches: dict[str, _Watch] = {}
        self._prime: _Watch | None = None
        self._rounds = Tasks()
        self._pulse = Pulse()
        self._ticker: asyncio.TimerHandle | None = None
        self._room = room
        self._clock = clock or asyncio.get_running_loop().time
        self._names = Resolver(self._clock)

    @property
    def reports(self) -> Mapping[str, Report]:
        """The last report of each target that had a round."""
        reports = {name: watch.report for name, watch in self._watches.items()}
        return MappingProxyType({name: report for name, report in reports.items() if report is not None})

    def apply(
        self, policy: ProbePolicy, targets: Iterable[Target], known: Mapping[str, Report] | None = None
    ) -> None:
        """Puts a config in force.

        A new target, or one whose URLs or socket changed, is probed at once. It starts as healthy, or as it
        is by `known`, if another edge has probed it so far. Probing of a removed one stops at once, even
        within a round. The others keep their health and their schedule, and
        use the new policy from their next round on, which is moved forward if the new interval is shorter.
        """
        self._policy = policy
        loop = asyncio.get_running_loop()
        if self._ticker is None:
            self._tick()
        old, self._watches = self._watches, {}
        for target in targets:
            watch = old.get(target.name)
            if watch is None or watch.target.place != target.place:
                asker = Asker(self._names, target.socket, self._clock)
                state = HealthState(policy.rise, policy.fall)
                watch = _Watch(target, state, asker)
                if known is not None and (report := known.get(target.name)) is not None:
                    state.healthy, state.reasons = report.healthy, report.reasons
                    watch.report = report
            else:
                del old[target.name]
                watch.follow(target)
            self._watches[target.name] = watch
        self._prime = next((watch for watch in self._watches.values() if watch.target.prime), None)
        for watch in old.values():
            self._stop(watch)
        room = self._room
        for watch in self._watches.values():
            room -= 1 if watch.target.one_origin else 2
            watch.keeps = room >= 0
            if watch.timer is None:
                if watch.round is None:
                    self._start(watch)
                continue
            latest = loop.time() + policy.delay(watch.state.healthy, self._chance())
            if watch.timer.when() > latest:
                watch.timer.cancel()
                watch.timer = loop.call_at(latest, self._start, watch)

    async def check(self, policy: ProbePolicy, target: Target) -> bool:
        """Whether a target passes one round now, apart from those that are due."""
        asker = Asker(self._names, target.socket, self._clock)
        watch = _Watch(target, HealthState(policy.rise, policy.fall), asker)
        watch.keeps = False
        watch.page_at = asyncio.get_running_loop().time()
        try:
            verdict = await self._round(watch, target, replace(policy, versions=False))
        finally:
            await asker.close()
        return verdict is None or verdict.ok

    async def close(self) -> None:
        """Ends all rounds and connections. `reports` stays as it is."""
        for watch in self._watches.values():
            self._stop(watch)
        if self._ticker is not None:
            self._ticker.cancel()
        await self._rounds.wait()
        await self._names.close()

    def _stop(self, watch: _Watch) -> None:
        watch.stop()
        self._rounds.start(watch.asker.close())

    def _tick(self) -> None:
        self._pulse.beat(time.monotonic(), _BEAT)
        self._ticker = asyncio.get_running_loop().call_later(_BEAT, self._tick)

    def lost(self) -> float:
        """Seconds in which this process did not run, all together."""
        return self._pulse.lost(time.monotonic())

    def _start(self, watch: _Watch) -> None:
        watch.timer = None
        watch.state.rise, watch.state.fall = self._policy.rise, self._policy.fall
        watch.round = self._rounds.start(
            self._round(watch, watch.target, self._policy), f"probe of {watch.target.name}"
        )
        watch.round.add_done_callback(partial(self._ended, watch))

    def _ended(self, watch: _Watch, task: asyncio.Task[Verdict | None]) -> None:
        """A round has ended in any way: schedules the next one."""
        watch.round = None
        watch.asked.set()
        if watch.stopped:
            return
        loop = asyncio.get_running_loop()
        verdict = None
        if not task.cancelled():
            error = task.exception()
            if error is None:
                verdict = task.result()
                if verdict is not None:
                    watch.state.observe(verdict)
            else:
                message = f"the {task.get_name()} failed with an error; the next round follows"
                loop.call_exception_handler({"message": message, "exception": error, "task": task})
        if verdict is None or not verdict.ok:
            watch.asker.drop()
        delay = self._policy.delay(watch.state.healthy, self._chance())
        watch.timer = loop.call_later(delay, self._start, watch)
        if verdict is not None:
            before, watch.report = watch.report, watch.told(verdict)
            if watch.report != before:
                self._report(watch.report)

    async def _round(self, watch: _Watch, target: Target, policy: ProbePolicy) -> Verdict | None:
        """The verdict, or None if the member is not to blame for a failure."""
        for _ in range(_AGAIN):
            lost = self.lost()
            try:
                watch.asker.begin_round()
                verdict = await self._once(watch, target, policy)
                if not verdict.ok and watch.asker.relied:
                    # On a new connection somebody else may answer, such as the successor of a member.
                    watch.asker.drop()
                    verdict = await self._once(watch, target, policy)
            except OwnFault:
                return None
            if verdict.ok or self.lost() - lost < max(_SLEPT, policy.timeout / 4):
                return verdict
            watch.asker.drop()
        return None

    async def _once(self, watch: _Watch, target: Target, policy: ProbePolicy) -> Verdict:
        age = policy.connection_age if watch.keeps and watch.state.healthy else 0.0
        ask = partial(watch.asker.ask, timeout=policy.timeout, tls=target.tls, age=age)
        versions = None
        if not policy.versions:
            watch.versions = None
        else:
            versions = await ask(target.versions)
            watch.versions = (
                versions.body if isinstance(versions, Fetched) and versions.status == 200 else None
            )
            watch.asked.set()
            if isinstance(versions, Failure) and not versions.connected and target.one_origin:
                return unreachable(versions.reason, versions.detail, ("versions",))
        health = await ask(target.health)
        verdict = _of_health(health, policy.pod_headroom, target.reserve)
        if policy.pages and verdict.ok:
            await self._read_page(watch, target, policy.timeout)
        if versions is None:
            return verdict
        return together(_of_versions(versions, await self._reference(watch, policy.timeout)), verdict)

    async def _read_page(self, watch: _Watch, target: Target, timeout: float) -> None:
        """Finds out where the BinderHub is, now and then. A failure is no verdict."""
        now = asyncio.get_running_loop().time()
        if watch.page_at is not None and now - watch.page_at < _PAGE_AGAIN:
            return
        watch.page_at = now
        page = await watch.asker.page(target.page, timeout=timeout, tls=target.tls)
        if page is not None and page.status == 200:
            watch.base_path = base_path_of(page.body, page.path)

    async def _reference(self, watch: _Watch, timeout: float) -> bytes | None:
        """Prime's answer to `/versions`, if there is one and `watch` is not prime itself."""
        prime = self._prime
        if prime is None or prime is watch:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await prime.asked.wait()
        return prime.versions


class _Watch:
    """A probed target: a round is under way, or a timer is set for the next.

    versions: the body of the last good answer to `/versions`, unless a bad one followed. asked: set after the
    first request, whatever its result. keeps: its connections, from one request to the next.
    """

    timer: asyncio.TimerHandle | None = None
    round: asyncio.Task[Verdict | None] | None = None
    report: Report | None = None
    versions: bytes | None = None
    base_path: str | None = None
    page_at: float | None = None  # when its page was read last
    stopped = False
    keeps = True

    def __init__(self, target: Target, state: HealthState, asker: Asker) -> None:
        self.target = target
        self.state = state
        self.asker = asker
        self.asked = asyncio.Event()

    def __repr__(self) -> str:
        return f"<_Watch {self.target.name} {self.state!r} {'asking' if self.round else 'waiting'}>"

    def follow(self, target: Target) -> None:
        """Takes the same target with other settings."""
        if self.round is None and target.tls is not self.target.tls:
            self.asker.drop()
        self.target = target

    def stop(self) -> None:
        """Stops its rounds, and wakes everybody who waits for one."""
        self.stopped = True
        self.asked.set()
        if self.timer is not None:
            self.timer.cancel()
        if self.round is not None:
            self.round.cancel()

    def told(self, verdict: Verdict) -> Report:
        """The report after a round; `state` has observed its verdict."""
        details = verdict.details
        if verdict.ok and not self.state.healthy and self.report is not None:
            details = self.report.details
        return Report(
            name=self.target.name,
            healthy=self.state.healthy,
            reasons=self.state.reasons,
            pods=verdict.pods,
            quota=verdict.quota,
            checks=verdict.checks,
            details=details,
            base_path=self.base_path,
            within=None if verdict.seconds is None else pace(verdict.seconds),
        )


def base_path_of(page: bytes, path: str) -> str | None:
    """Where a BinderHub is, as its page says, which was found at `path`; None if it says nothing of use.

    What does not lead to the page cannot be true.
    """
    found = _BASE_URL(page) if _IS_BINDERHUB(page) is not None else None
    said = base_path((found[1] or found[2]).decode("latin-1")) if found is not None else None
    return said if said is not None and path.startswith(said) else None


def _of_versions(found: Fetched | Failure, reference: bytes | None) -> Verdict:
    if isinstance(found, Failure):
        return unreachable(found.reason, found.detail, ("versions",))
    if found.status != 200:
        return unreachable("status", f"answered {found.status} to {found.path}", ("versions",))
    return judge_versions(found.body, reference)


def _of_health(found: Fetched | Failure, pod_headroom: int, reserve: int) -> Verdict:
    if isinstance(found, Failure):
        return unreachable(found.reason, found.detail)
    if found.status not in (200, 503):
        return unreachable("status", f"answered {found.status} to {found.path}")
    return judge_health(found.status, found.body, pod_headroom, reserve, seconds=found.seconds)
