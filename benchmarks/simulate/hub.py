"""A member as it is: its pods, nodes, images and builds, and what is wrong with it.

The edges do not see this. What they see are answers, and probes every so often.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Final

from benchmarks.simulate.chance import STEPS, times
from benchmarks.simulate.scenario import FailureSettings, HubSettings
from fedproxy.decide.health import HealthState, Verdict, unreachable

if TYPE_CHECKING:
    from benchmarks.simulate.run import Underway

NEVER: Final = math.inf

_WELL: Final = Verdict(ok=True)
_FULL: Final = Verdict(ok=False, reasons=("quota",), immediate=True)
_GONE: Final = unreachable("connect")


class Node:
    """A machine that pods run on. `images`: since when it has each, the one launched last at the end."""

    __slots__ = ("images", "keeps", "pods", "room")

    def __init__(self, room: int, keeps: int) -> None:
        self.room = room
        self.keeps = keeps
        self.pods = 0
        self.images: dict[int, float] = {}

    def take(self, image: int, since: float) -> None:
        """A pod of this image starts."""
        self.pods += 1
        self.images[image] = self.images.pop(image, since)
        if len(self.images) > self.keeps:
            del self.images[next(iter(self.images))]


class Build:
    """A build that runs or waits for its turn. `ends`: when it is over; None while it waits."""

    __slots__ = ("ends", "image", "launches", "seconds")

    def __init__(self, image: int, seconds: float) -> None:
        self.image = image
        self.seconds = seconds
        self.ends: float | None = None
        self.launches: list[Underway] = []


class Hub:
    """One member. `pods`: of the federation's visitors; `own`: of its own community. `health`: by the
    probes.
    """

    def __init__(
        self, number: int, name: str, settings: HubSettings, rise: int, fall: int, headroom: int
    ) -> None:
        self.number = number
        self.name = name
        self.settings = settings
        self.weight = settings.weight
        self.slots = settings.slots
        self.headroom = headroom
        self.pods = 0
        self.own = 0
        each = settings.nodes
        room = -(-settings.slots // each.count)
        self.nodes = [Node(room, each.images) for _ in range(each.count)]
        self.images: dict[int, None] = {}  # in the registry, the one launched last at the end
        self.builds: dict[int, Build] = {}
        self.queue: deque[Build] = deque()
        self.building = 0
        self.waiting = 0  # launches, for builds
        self.under_way: dict[int, Underway] = {}  # whose pod starts, by the launch's number
        self.launch_times = times(settings.launch.median, settings.launch.p95)
        self.pull_times = times(settings.pull.median, settings.pull.p95)
        self.health = HealthState(rise, fall)
        self.probing = False
        self.failures: list[FailureSettings] = []
        # What they make of it
        self.reachable = True
        self.room = self.slots  # pods
        self.brim = self.slots - headroom  # pods of visitors with which it says that it is full
        self.slow = 1.0
        self.failing = 0.0
        self.early = 0.0
        self.fails_after = 60.0

    def __repr__(self) -> str:
        return f"<Hub {self.name} {self.pods}+{self.own}/{self.room} pods, {self.building} builds>"

    # What is wrong with it

    def suffer(self, failure: FailureSettings) -> None:
        """It begins."""
        self.failures.append(failure)
        self._add_up()

    def recover(self, failure: FailureSettings) -> None:
        """It is over."""
        self.failures.remove(failure)
        self._add_up()

    def set_own(self, wanted: int) -> None:
        """Its own community has as many pods, if there is room."""
        self.own = min(wanted, max(0, self.slots - self.pods))
        self._add_up()

    def _add_up(self) -> None:
        self.reachable, self.slow = True, 1.0
        room, says_full = self.slots, False
        spared = spared_early = 1.0
        for each in self.failures:
            if each.kind in ("crash", "flapping"):
                self.reachable = False
            elif each.kind == "full":
                room, says_full = 0, True
            elif each.kind == "quota":
                room = min(room, each.slots or 0)
            elif each.kind == "slow":
                self.slow *= 5.0 if each.factor is None else each.factor
            else:
                rate = 1.0 if each.rate is None else each.rate
                spared *= 1 - rate
                if each.early:
                    spared_early *= 1 - rate
                self.fails_after = each.after or 60.0
        self.room = room - self.own
        self.brim = 0 if says_full else self.slots - self.headroom - self.own
        self.failing, self.early = 1 - spared, 1 - spared_early

    def verdict(self) -> Verdict:
        """What a probe finds."""
        if not self.reachable:
            return _GONE
        return _FULL if self.pods >= self.brim else _WELL

    # Images

    def keep(self, image: int) -> None:
        """The registry has it now, or it was launched again."""
        images = self.images
        images.pop(image, None)
        images[image] = None
        if self.settings.registry is not None and len(images) > self.settings.registry:
            del images[next(iter(images))]

    def place(self, image: int) -> Node:
        """Where a pod starts: where the image is, or else on the fullest node that has room."""
        best: Node | None = None
        for node in self.nodes:
            if node.pods < node.room:
                if image in node.images:
                    return node
                if best is None or node.pods > best.pods:
                    best = node
        assert best is not None, "a pod starts only if there is room"
        return best

    def starts_in(self, node: Node, image: int, now: float, start: float, pull: float) -> tuple[float, float]:
        """When the image is on the node, and how long a pod takes to start there. start, pull: chances."""
        seconds = self.launch_times[int(start * STEPS)] * self.slow
        there = node.images.get(image)
        if there is None:
            there = now + self.pull_times[int(pull * STEPS)] * self.slow
        return there, (there - now if there > now else 0.0) + seconds

    def build_seconds(self, seconds: float) -> float:
        """How long a build takes here that takes so long elsewhere."""
        return seconds * self.slow / self.settings.build_speed

    def built_in(self, image: int, seconds: float, now: float) -> float:
        """How long until the image would be built, if it is asked for now."""
        build = self.builds.get(image)
        if build is not None and build.ends is not None:
            return build.ends - now
        if self.building < self.settings.build_slots:
            return self.build_seconds(seconds)
        ends = [each.ends for each in self.builds.values() if each.ends is not None]
        heapify(ends)
        for each in self.queue:
            if each is build:
                return ends[0] + each.seconds - now
            heapreplace(ends, ends[0] + each.seconds)
        return ends[0] - now + self.build_seconds(seconds)

    def wait(
        self, image: int, seconds: float, now: float, start: float, pull: float, failing: float
    ) -> float:
        """How long until a visitor would have a pod, if it is asked for now: the truth, as far as it is
        fixed.

        NEVER if it would not serve the launch. The chances are those of the launch.
        """
        if not self.reachable or self.pods >= self.room or failing < self.failing:
            return NEVER
        if image in self.images:
            return self.starts_in(self.place(image), image, now, start, pull)[1]
        build = self.built_in(image, seconds, now)
        # The node's pods and images will be others by then.
        return build + self.starts_in(self.place(image), image, now, start, pull)[1]
