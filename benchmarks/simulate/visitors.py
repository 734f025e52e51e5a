"""The launches of a scenario, in the order of time: who launches what, and with what luck.

They do not depend on what the edges decide, so every policy gets the same. So does the luck: a launch of
which chance makes the build or the start slow is slow with every policy.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Final, Protocol

from benchmarks.simulate.chance import STEPS, stream, times, waits, zipf
from benchmarks.simulate.scenario import RepositorySettings, Scenario, VisitorSettings

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
_WEEK_HOURS: Final = 7 * 24

#: One launch: when it is asked for, the visitor, whether the browser has the cookie of an earlier launch,
#: whether it is the visitor's last, the repository, the image, the seconds of the session, and chances in [0,
#: 1): of how long the start takes, of how long the pull takes, of whether a failing member fails it, of the
#: edge.
Asked = tuple[float, int, bool, bool, int, int, float, float, float, float, float]


class Launches(Protocol):
    """Where the launches come from: a scenario's visitors, or a file."""

    repositories: Repositories

    def __iter__(self) -> Iterator[Asked]: ...

    def key(self, repository: int) -> bytes:
        """What the balancer hashes."""

    def digest(self, image: int) -> bytes:
        """What names the repository and the ref, in 8 bytes."""


class Repositories:
    """Every repository that there is or was: its build time in seconds, and whether its builds fail."""

    def __init__(self, settings: RepositorySettings, seed: int) -> None:
        self.build: list[float] = []
        self.fails: list[bool] = []
        #: Of each image.
        self.of: list[int] = []
        self._times = times(settings.build.median, settings.build.p95)
        self._failing = settings.failing
        self._rng = stream(seed, "repositories")

    def add(self) -> int:
        """A new repository; returns its number."""
        chance = self._rng.random
        self.build.append(self._times[int(chance() * STEPS)])
        self.fails.append(chance() < self._failing)
        return len(self.build) - 1

    def image(self, repository: int) -> int:
        """A new image of a repository; returns its number."""
        self.of.append(repository)
        return len(self.of) - 1


class _Popular:
    """Which repository is launched: by Zipf's law, while new ones come and commits make new images."""

    def __init__(self, settings: RepositorySettings, repositories: Repositories, seed: int) -> None:
        self._repositories = repositories
        self._ranks = [repositories.add() for _ in range(settings.count)]
        self._sums = zipf(settings.count, settings.exponent)
        self._rng = stream(seed, "popular")
        self._new_every = DAY / settings.new_per_day if settings.new_per_day else 0.0
        self._next_new = self._wait() * self._new_every
        self._commit_every = settings.commit_every
        #: By repository: its image, and when its next commit is.
        self._images: dict[int, tuple[int, float]] = {}

    def _wait(self) -> float:
        return waits()[int(self._rng.random() * STEPS)]

    def by_popularity(self, now: float) -> int:
        """A repository that a person launches."""
        if self._new_every:
            while self._next_new <= now:
                self._ranks[int(self._rng.random() * len(self._ranks))] = self._repositories.add()
                self._next_new += self._wait() * self._new_every
        sums = self._sums
        return self._ranks[bisect_right(sums, self._rng.random() * sums[-1], hi=len(sums) - 1)]

    def any(self) -> int:
        """One that a bot launches."""
        return self._ranks[int(self._rng.random() * len(self._ranks))]

    def of_rank(self, rank: int | None) -> int:
        """That of a rank; the last if there are fewer. None: a new one."""
        return self._repositories.add() if rank is None else self._ranks[min(rank, len(self._ranks)) - 1]

    def image(self, repository: int, now: float) -> int:
        """What has to be built of it now."""
        found = self._images.get(repository)
        every = self._commit_every
        if found is not None and (not every or now < found[1]):
            return found[0]
        image = self._repositories.image(repository)
        self._images[repository] = image, now + self._wait() * every
        return image


class _Arrivals:
    """When visitors come: by chance, at the rate of the hour."""

    def __init__(self, settings: VisitorSettings, begin: float, rng: random.Random) -> None:
        busy = [day * hour for day in settings.days for hour in settings.hours]
        launches = 0.0
        chance = 1.0
        for number in range(settings.most_launches):
            launches += chance
            # A bot launches once.
            chance *= settings.again * (1 - settings.bots if not number else 1)
        scale = settings.launches_per_hour / HOUR / launches / (sum(busy) / _WEEK_HOURS)
        self._rates = [scale * each for each in busy]
        self._rng = rng
        self._now = begin

    def next(self) -> float:
        now, due = self._now, waits()[int(self._rng.random() * STEPS)]
        while True:
            hour = int(now // HOUR)
            rate = self._rates[hour % _WEEK_HOURS]
            end = (hour + 1) * HOUR
            if rate * (end - now) > due:
                break
            due -= rate * (end - now)
            now = end
        self._now = round(now + due / rate, 3)
        return self._now


_CROWD: Final = -1


class Visitors:
    """The launches of a scenario's visitors, endless.

    Time 0 is the begin of the warm-up here, and the first one that is measured comes `warm_up` later.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.repositories = Repositories(scenario.repositories, seed)
        self._scenario = scenario
        self._seed = seed
        self._keys: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}

    def key(self, repository: int) -> bytes:
        """As the edge makes it of `/build/gh/...`."""
        found = self._keys.get(repository)
        if found is None:
            found = self._keys[repository] = b"/build/gh/simulated/%d" % repository
        return found

    def digest(self, image: int) -> bytes:
        """Of a repository and a ref that only this image has."""
        found = self._digests.get(image)
        if found is None:
            found = self._digests[image] = blake2b(b"image %d" % image, digest_size=8).digest()
        return found

    def __iter__(self) -> Iterator[Asked]:
        settings, seed = self._scenario.visitors, self._seed
        popular = _Popular(self._scenario.repositories, self.repositories, seed)
        # The first hour of what is measured is that of Monday 0:00.
        shift = -self._scenario.warm_up % (7 * DAY)
        arrivals = _Arrivals(settings, shift, stream(seed, "arrivals"))
        who, luck = stream(seed, "visitors").random, stream(seed, "luck").random
        crowd = stream(seed, "crowds").random
        gaps = times(settings.gap.median, settings.gap.p95)
        sessions = times(settings.session.median, settings.session.p95)
        bot_sessions = times(settings.bot_session.median, settings.bot_session.p95)
        bots = settings.bots
        embeds = bots + (1 - bots) * settings.embeds
        # What is to come: the time, a number, the visitor with one bit for the cookie, the launches that
        # follow, and the repository.
        ahead: list[tuple[float, int, int, int, int]] = []
        numbers = visitors = 0
        for index, each in enumerate(settings.crowds):
            numbers += 1
            heappush(ahead, (self._scenario.warm_up + each.at, numbers, _CROWD, index, 0))
        arrival = arrivals.next() - shift
        while True:
            if ahead and ahead[0][0] <= arrival:
                now, _, kind, left, repository = heappop(ahead)
                if kind == _CROWD:
                    each = settings.crowds[left]
                    repository = popular.of_rank(each.rank)
                    for _ in range(each.launches):
                        visitors += 1
                        numbers += 1
                        at = round(now + crowd() * each.lasts, 3)
                        heappush(ahead, (at, numbers, visitors << 1, 0, repository))
                    if each.every is not None:
                        numbers += 1
                        heappush(ahead, (now + each.every, numbers, _CROWD, left, 0))
                    continue
                visitor, keeps = kind >> 1, bool(kind & 1)
                is_bot = False
            else:
                now = arrival
                arrival = arrivals.next() - shift
                visitors += 1
                visitor = visitors
                chance = who()
                is_bot = chance < bots
                if is_bot:
                    keeps, left, repository = False, 0, popular.any()
                else:
                    keeps = chance >= embeds and who() < settings.cookie
                    left = 0
                    while left < settings.most_launches - 1 and who() < settings.again:
                        left += 1
                    repository = popular.by_popularity(now)
            if left:
                following = repository if who() < settings.same_repository else popular.by_popularity(now)
                numbers += 1
                at = round(now + gaps[int(who() * STEPS)], 3)
                heappush(ahead, (at, numbers, visitor << 1 | keeps, left - 1, following))
            yield (
                now,
                visitor,
                keeps,
                not left,
                repository,
                popular.image(repository, now),
                (bot_sessions if is_bot else sessions)[int(luck() * STEPS)],
                luck(),
                luck(),
                luck(),
                luck(),
            )
