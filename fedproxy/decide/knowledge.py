"""What launches have taught: which member has which image, and how long members take.

    asked ──(the image is built)──► built ──► ready
            └──── `build` ───────┘       └─ `launch` ─┘

All of it is an estimate, and forgotten in time: a newer observation counts for more than an older one. It
has a fixed size, whatever visitors ask for and members say. Images are named by digests
(`affinity.image_digest`), members by their names. Times are seconds since the epoch, as what is known
outlives a process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from fedproxy.decide.launch import BUILDING, End, Launch, LaunchVerdict

DIGEST: Final = 8
"""Bytes of an image's digest."""

FORMAT: Final = 1
"""The version of what `Knowledge.dump` returns."""

# 8 records for each value of the digest's first bits; the rest of the digest tells them apart.
_SETS: Final = 1 << 14
_WAYS: Final = 8
_RECORD: Final = Struct("<6sHIIH")  # rest of the digest, member, since, last seen, seconds of its build
_SIZE: Final = _RECORD.size
_SET: Final = _WAYS * _SIZE
_TAG: Final = 6
_NO_TAG: Final = bytes(_TAG)
_MOST_TIME: Final = 2**32 - 1
_MOST_SECONDS: Final = 2**16 - 1
_MOST_MEMBERS: Final = 1024

_MOST_BUILDS: Final = 4096  # under way
_EXPECTED: Final = 60.0  # seconds until a launch that was sent says whether it builds
_LONGEST_BUILD: Final = 3600.0
_OVERDUE: Final = 3.0  # times as long as it usually takes: nobody is sent to wait for such a build any more

_KEPT: Final = 30 * 86_400.0  # an image that was last seen so long ago is there with a chance of 1/e

# How an average forgets: each new value counts for so much, once there are a few.
_NEWEST: Final = 0.02
_LAUNCH: Final = 15.0  # seconds, before any launch was seen
_BUILD: Final = 120.0
_DELAY: Final = 90.0
_MOST_DELAY: Final = 3600.0
_TRUST: Final = 5.0  # observations of a member that count as much as those of all members
_FAILING: Final = 0.01
_FAILING_TRUST: Final = 5.0
_NEWEST_FAILURE: Final = 0.1
_MOST_FAILING: Final = 0.98
_FADING: Final = 600.0  # seconds until failures count for 1/e
_FOUND: Final = 0.98
_FOUND_TRUST: Final = 10.0
_MOST_FACTOR: Final = 4.0  # by which a member's times may differ from those of all, however long it insists


class Seen(NamedTuple):
    """What one launch on one member told.

    image: its digest. found: the image was there; None if that was not said. build: the seconds from asked to
    built, if it was built for this launch. launch: the seconds from there to `ready`. failed: the member
    could not serve it, though another might have.
    """

    image: bytes
    member: str
    found: bool | None
    build: float | None
    launch: float | None
    end: End
    failed: bool = False


def seen_of(launch: Launch, image: bytes, member: str) -> Seen | None:
    """What a launch has told that has ended; None if that is nothing."""
    if launch.end is None or launch.end is End.UNKNOWN:
        return None
    phases = launch.phases
    first = next(iter(phases), launch.phase)
    found = None if first is None or first == "failed" else first not in BUILDING
    started = sum([seconds for phase, seconds in phases.items() if phase not in BUILDING])
    build = start = None
    if launch.ready_after is not None:
        start = started if found is False else launch.ready_after
        build = launch.ready_after - started if found is False else None
    elif found is False and (started or (launch.phase != "failed" and launch.phase not in BUILDING)):
        build = sum([seconds for phase, seconds in phases.items() if phase in BUILDING])
    # That it is full is everyday, and told by its probes.
    failed = launch.end is End.LOST or launch.verdict is LaunchVerdict.FAULTY
    return Seen(image, member, found, build, start, launch.end, failed)


# A plain tuple, as one of a name costs several times as much where the hot path is compiled.
ImagePlace = tuple[int, int, int, int]
"""A member that has an image: its number, since when, when last seen, and the seconds of its build."""


def longest_build(places: Sequence[ImagePlace]) -> float:
    """The longest build of an image that is known, in seconds; 0 if none is."""
    longest = 0
    for _, _, _, build in places:
        if build > longest:
            longest = build
    return float(longest)


class Average:
    """A mean that forgets: the newest values count most. weight: of how many values it is made."""

    __slots__ = ("total", "weight")

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total = total
        self.weight = weight

    def add(self, value: float, newest: float = _NEWEST) -> None:
        """One more value. newest: the part that it counts for, once there are many."""
        self.total += value - self.total * newest
        self.weight += 1.0 - self.weight * newest

    def mean(self, prior: float, trust: float) -> float:
        """The mean, with `prior` counted as `trust` values."""
        return (self.total + prior * trust) / (self.weight + trust)


class Images:
    """Where images are: at most 131,072 records of a member with an image, in 2.4 MB.

    When there is no room for a new record, the one that was not seen for the longest time makes it.
    """

    def __init__(self) -> None:
        self.records = bytearray(_SETS * _SET)
        self.known: dict[int, int] = {}  # records, by member

    def places(self, image: bytes) -> list[ImagePlace]:
        """The members that have an image."""
        start, tag = _spot(image)
        found: list[ImagePlace] = []
        at = self.records.find(tag, start, start + _SET)
        while at >= 0:
            if (at - start) % _SIZE == 0:
                _, slot, since, seen, build = _RECORD.unpack_from(self.records, at)
                found.append((slot, since, seen, build))
                at += _SIZE - 1
            at = self.records.find(tag, at + 1, start + _SET)
        return found

    def note(self, image: bytes, slot: int, now: float, build: float = 0.0) -> None:
        """The member has the image now. build: the seconds of its build; 0 if it was there already."""
        start, tag = _spot(image)
        time = _time(now)
        oldest, stale = -1, -1
        for at in range(start, start + _SET, _SIZE):
            other, held, since, seen, took = _RECORD.unpack_from(self.records, at)
            if other == tag and held == slot:
                if build:
                    since, took = time, _seconds(build)
                self._write(at, tag, slot, since, time, took)
                return
            # What was seen in the future was seen by a clock that was wrong.
            age = _MOST_TIME + 1 if other == _NO_TAG else abs(time - seen)
            if age > stale:
                oldest, stale = at, age
        self._drop(oldest)
        self._write(oldest, tag, slot, time, time, _seconds(build))
        self.known[slot] = self.known.get(slot, 0) + 1

    def forget(self, image: bytes, slot: int) -> None:
        """The member does not have the image."""
        start, tag = _spot(image)
        for at in range(start, start + _SET, _SIZE):
            other, held, *_ = _RECORD.unpack_from(self.records, at)
            if other == tag and held == slot:
                self._drop(at)

    def forget_member(self, slot: int) -> None:
        """Nothing is known of what the member has."""
        if self.known.get(slot):
            # Unpacked in one go: visitors may be served in this loop.
            held = [other == slot for _, other, *_ in _RECORD.iter_unpack(self.records)]
            for number in [number for number, here in enumerate(held) if here]:
                self._drop(number * _SIZE)

    def count(self) -> None:
        """Counts the records anew, after they were replaced as a whole."""
        self.known = {}
        for tag, slot, *_ in _RECORD.iter_unpack(self.records):
            if tag != _NO_TAG:
                self.known[slot] = self.known.get(slot, 0) + 1

    def _write(self, at: int, tag: bytes, slot: int, since: int, seen: int, build: int) -> None:
        _RECORD.pack_into(self.records, at, tag, slot, since, seen, build)

    def _drop(self, at: int) -> None:
        tag, slot, *_ = _RECORD.unpack_from(self.records, at)
        if tag != _NO_TAG:
            self.known[slot] -= 1
            self.records[at : at + _SIZE] = bytes(_SIZE)


class Experience:
    """What is known of one member's launches. slot: its number in `Images`.

    Averages: launch: seconds from an image to `ready`; build: how long its builds take, as a part of what
    those of all do; found: how often an image was there that was known to be; unknown: how often one that was
    not; failing: how often a launch failed that another member might have served. with_image, without_image:
    seconds from asked to `ready`, for people.

    What is expected, worked out of these: start: seconds from an image to `ready`. slowness: of its builds.
    certain, fresh: the chance of an image that is known to be there, and of another. risk: launches that fail
    for one that does not. doubt: what its share is divided by for that. faded: when failures were last
    forgotten a little.
    """

    __slots__ = (
        *(
            "build",
            "certain",
            "doubt",
            "faded",
            "failing",
            "found",
            "fresh",
            "launch",
            "risk",
            "slot",
            "slowness",
        ),
        *("start", "unknown", "with_image", "without_image"),
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.launch = Average()
        self.build = Average()
        self.found = Average()
        self.unknown = Average()
        self.failing = Average()
        self.with_image = Average()
        self.without_image = Average()
        self.faded = 0.0
        self.start = _LAUNCH
        self.slowness = 1.0
        self.certain = _FOUND
        self.fresh = 0.0
        self.risk = _FAILING
        self.doubt = (1.0 + self.risk) ** 4


_PARTS: Final = ("found", "unknown", "failing")  # averages of values from 0 to 1
_LONGEST_TIME: Final = 4 * _LONGEST_BUILD
_AVERAGES: Final = ("launch", "build", "found", "unknown", "failing", "with_image", "without_image")


class Build:
    """A build under way. since: when it was asked for. until: nothing is expected of it after that."""

    __slots__ = ("member", "since", "until")

    # No named tuple, which costs several times as much where the hot path is compiled.
    def __init__(self, member: str, since: float, until: float) -> None:
        self.member = member
        self.since = since
        self.until = until

    def __repr__(self) -> str:
        return f"<Build at {self.member} since {self.since} until {self.until}>"


class Learned(NamedTuple):
    """What is known of a member, for people. with_image, without_image: seconds from asked to `ready`; None
    if there was none. images: how many it is known to have."""

    with_image: float | None
    without_image: float | None
    images: int


class Knowledge:
    """What launches have taught so far. replicated: members get each other's images, after a delay.

    delay: of the replication, in seconds; None if it is to be learned. usual_build: seconds that a build
    takes; pull: by how much a start takes longer where an image never ran before.
    """

    def __init__(self, *, replicated: bool = False, delay: float | None = None) -> None:
        self.images = Images()
        self.members: dict[str, Experience] = {}
        self.launch = Average()
        self.first = Average()
        self.build = Average()
        self.unknown = Average()
        self.usual_build = _BUILD
        self.pull = 0.0
        self._slots: dict[int, Experience] = {}
        self._builds: dict[bytes, Build] = {}
        self._expected: dict[bytes, Build] = {}
        self._ends: dict[tuple[int, bytes, bool], float] = {}
        self._learned_delay = _DELAY
        self.replicated = replicated
        self.given_delay = delay

    def __repr__(self) -> str:
        return f"<Knowledge of {sum(self.images.known.values())} images>"

    @property
    def delay(self) -> float:
        """Seconds until an image that one member built is at the others, if images are replicated."""
        return self._learned_delay if self.given_delay is None else self.given_delay

    def expects(self, *, replicated: bool, delay: float | None) -> None:
        """How images get to members, from now on."""
        self.replicated = replicated
        self.given_delay = delay

    def of(self, name: str) -> Experience:
        """What is known of a member; made when it is first asked for."""
        known = self.members.get(name)
        if known is None:
            if len(self.members) >= _MOST_MEMBERS:
                # The one that has taught least.
                least = min(self.members, key=lambda each: self.members[each].failing.weight)
                slot = self.members.pop(least).slot
                self.images.forget_member(slot)
            else:
                slot = next(number for number in range(_MOST_MEMBERS) if number not in self._slots)
            known = self.members[name] = self._slots[slot] = Experience(slot)
            self._expect(known)
        return known

    def about(self, name: str) -> Learned:
        """What is known of a member, or of one that nothing is known of."""
        known = self.members.get(name)
        if known is None:
            return Learned(None, None, 0)
        with_image, without_image = known.with_image, known.without_image
        return Learned(
            with_image.mean(0.0, 0.0) if with_image.weight else None,
            without_image.mean(0.0, 0.0) if without_image.weight else None,
            self.images.known.get(known.slot, 0),
        )

    # What is expected

    def refresh(self, now: float) -> None:
        """Works the expectations out anew: to be called about once a second."""
        self.usual_build = self.build.mean(_BUILD, _TRUST)
        start = self.launch.mean(_LAUNCH, _TRUST)
        self.pull = max(0.0, self.first.mean(start, _TRUST) - start)
        for known in self.members.values():
            self._fade(known, now)
            self._expect(known)

    def _fade(self, known: Experience, now: float) -> None:
        """Failures are forgotten in time: a member without launches cannot show that it is well again."""
        passed, known.faded = (now - known.faded if known.faded else 0.0), now
        if known.failing.weight and passed > 0:
            left = math.exp(-passed / _FADING)
            known.failing.total *= left
            known.failing.weight *= left

    def _expect(self, known: Experience) -> None:
        start = self.launch.mean(_LAUNCH, _TRUST)
        known.start = _near(known.launch.mean(start, _TRUST), start)
        known.slowness = _near(known.build.mean(1.0, _TRUST), 1.0)
        known.fresh = min(0.99, known.unknown.mean(self.unknown.mean(0.0, _TRUST), _FOUND_TRUST))
        known.certain = min(0.99, known.found.mean(_FOUND, _FOUND_TRUST))
        failing = min(_MOST_FAILING, known.failing.mean(_FAILING, _FAILING_TRUST))
        known.risk = failing / (1.0 - failing)
        known.doubt = (1.0 + known.risk) ** 4

    def chances(self, places: Sequence[ImagePlace], now: float) -> dict[int, float]:
        """How likely it is that members have an image, by their numbers; -1 stands for all others, if that
        differs from what is usual. places: where the image is known to be."""
        found: dict[int, float] = {}
        oldest = now
        for slot, since, seen, _ in places:
            known = self._slots.get(slot)
            certain = known.certain if known is not None else _FOUND
            found[slot] = certain * math.exp(-abs(now - seen) / _KEPT)
            oldest = min(oldest, since)
        if self.replicated and places:
            found[-1] = _FOUND if now - oldest >= self.delay else 0.0
        return found

    def under_way(self, image: bytes, now: float) -> Build | None:
        """The build of an image that is under way, or expected to be."""
        for builds in (self._builds, self._expected):
            build = builds.get(image)
            if build is not None:
                if build.since - _EXPECTED <= now < build.until:
                    return build
                del builds[image]
        return None

    # What is seen

    def expect(self, image: bytes, name: str, now: float) -> None:
        """A launch of an image that nobody has or builds, as far as is known, goes to a member, which may
        build it."""
        # Apart from those that members tell of: visitors can make up any number of repositories.
        _put(self._expected, image, Build(name, now, now + _EXPECTED))

    def begun(self, image: bytes, name: str, now: float) -> None:
        """A member builds an image, as its events say."""
        build = self.under_way(image, now)
        since = build.since if build is not None and build.member == name else now
        if build is None or build.member == name or self._builds.get(image) is not build:
            self._expected.pop(image, None)
            longest = max(self.usual_build, longest_build(self.images.places(image)))
            _put(self._builds, image, Build(name, since, since + min(_LONGEST_BUILD, _OVERDUE * longest)))

    def learn(self, seen: Seen, now: float) -> None:
        """Takes what a launch told, when it has ended."""
        image, name, found = seen.image, seen.member, seen.found
        if len(image) != DIGEST:
            return
        known = self.of(name)
        took = _sane(seen.build)
        build = self.under_way(image, now)
        if build is not None and build.member != name:
            build = None
        # Who leaves, or is refused before the build, says nothing about it.
        if seen.end is End.READY or took is not None or (seen.end is End.FAILED and found is False):
            for builds in (self._builds, self._expected):
                if image in builds and builds[image].member == name:
                    del builds[image]
        if took is not None and build is not None:
            # It may have joined a build that others had asked for.
            took = max(took, _sane(now - build.since - (seen.launch or 0.0)) or 0.0)
        if seen.end is End.READY or seen.failed:
            self._fade(known, now)
            # One image that fails again and again may be to blame itself. What starts again and again counts
            # as rarely, so that popular images do not hide how many others fail.
            if self._counts(known, image, now, failed=seen.failed):
                known.failing.add(1.0 if seen.failed else 0.0, _NEWEST_FAILURE)
        places = self.images.places(image)
        ran = any(slot == known.slot for slot, *_ in places)
        if found is not None:
            self._compare(known, places, found, now)
            if ran and not found:
                self.images.forget(image, known.slot)
        if seen.end is End.READY or took is not None:
            # A member's word that it found an image counts once a server was started from it.
            if took is not None:
                usual = max(longest_build(places) or self.usual_build, 1.0)
                self.build.add(took)
                known.build.add(min(took / usual, 2 * _MOST_FACTOR))
                self.images.note(image, known.slot, now, took)
            elif found:
                self.images.note(image, known.slot, now)
        launch = _sane(seen.launch)
        if launch is not None and seen.end is End.READY:
            if found and not ran:
                self.first.add(launch)
            else:
                self.launch.add(launch)
                known.launch.add(launch)
            if found:
                known.with_image.add(launch)
            elif took is not None:
                known.without_image.add(launch + took)

    def _compare(self, known: Experience, places: Sequence[ImagePlace], found: bool, now: float) -> None:
        """Whether what was expected of an image was right. places: where it was known to be."""
        value = 1.0 if found else 0.0
        if any(slot == known.slot for slot, *_ in places):
            known.found.add(value)
        elif self.replicated and places:
            age = abs(now - min(since for _, since, *_ in places))
            if found and age < self._learned_delay:
                self._learned_delay = max(1.0, 0.9 * self._learned_delay)
            elif not found and age >= self._learned_delay:
                self._learned_delay = min(_MOST_DELAY, 1.0 + 1.25 * self._learned_delay)
        else:
            known.unknown.add(value)
            self.unknown.add(value)

    def _counts(self, known: Experience, image: bytes, now: float, *, failed: bool) -> bool:
        """Whether the end of a launch of an image on a member counts: once in the time in which failures
        fade, for each of the two ends."""
        end = known.slot, image, failed
        last = self._ends.get(end)
        if last is not None and 0 <= now - last < _FADING:
            return False
        _put(self._ends, end, now)
        return True

    def forget(self, name: str) -> None:
        """The member has left, or another one has its name."""
        known = self.members.pop(name, None)
        if known is not None:
            del self._slots[known.slot]
            self.images.forget_member(known.slot)
            # Another member will have its number.
            self._ends = {key: at for key, at in self._ends.items() if key[0] != known.slot}
        for builds in (self._builds, self._expected):
            for image in [image for image, build in builds.items() if build.member == name]:
                del builds[image]

    # What is kept

    def dump(self) -> bytes:
        """All of it but for the builds under way: one line of JSON, and the records."""
        said = {
            "version": FORMAT,
            "delay": self._learned_delay,
            "all": {name: _pair(getattr(self, name)) for name in ("launch", "first", "build", "unknown")},
            "members": {
                name: {"slot": known.slot} | {each: _pair(getattr(known, each)) for each in _AVERAGES}
                for name, known in self.members.items()
            },
        }
        return json.dumps(said).encode() + b"\n" + self.images.records

    def load(self, content: bytes) -> None:
        """Takes what `dump` returned in place of all that is known.

        Raises ValueError, with nothing changed, for anything else.
        """
        head, _, records = content.partition(b"\n")
        try:
            said = json.loads(head)
            if said["version"] != FORMAT or len(records) != len(self.images.records):
                raise ValueError("it is of another version")
            delay = _number(said["delay"])
            averages = {
                name: _average(said["all"][name], 1.0 if name in _PARTS else _LONGEST_TIME)
                for name in ("launch", "first", "build", "unknown")
            }
            members: dict[str, Experience] = {}
            for name, told in said["members"].items():
                slot = told["slot"]
                if not isinstance(slot, int) or not 0 <= slot < _MOST_MEMBERS:
                    raise ValueError("a member has no number")
                known = members[name] = Experience(slot)
                for each in _AVERAGES:
                    setattr(known, each, _average(told[each], 1.0 if each in _PARTS else _LONGEST_TIME))
            if len({known.slot for known in members.values()}) != len(said["members"]):
                raise ValueError("two members have one number")
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"it has not what it should have: {error!r}") from error
        self.launch, self.first = averages["launch"], averages["first"]
        self.build, self.unknown = averages["build"], averages["unknown"]
        self.members = members
        self._slots = {known.slot: known for known in members.values()}
        self._learned_delay = min(max(delay, 1.0), _MOST_DELAY)
        self.images.records[:] = records
        self.images.count()
        for slot in [slot for slot in self.images.known if slot not in self._slots]:
            self.images.forget_member(slot)
        for known in members.values():
            self._expect(known)


def _spot(image: bytes) -> tuple[int, bytes]:
    """Where the set of an image begins, and what tells the images of a set apart."""
    tag = image[2:DIGEST]
    start = (int.from_bytes(image[:2], "big") & (_SETS - 1)) * _SET
    return start, tag if tag != _NO_TAG else b"\x01" + _NO_TAG[1:]


def _time(now: float) -> int:
    return int(min(max(now, 0.0), _MOST_TIME))


def _seconds(value: float) -> int:
    return int(min(max(value, 0.0), _MOST_SECONDS))


def _sane(seconds: float | None) -> float | None:
    """A time as it counts: a clock may jump, and an hour is as long as anything takes."""
    if seconds is None or not seconds >= 0:
        return None
    return min(seconds, _LONGEST_BUILD)


def _near(value: float, mean: float) -> float:
    """The value, as far as one is believed that says something else than the mean."""
    return min(max(value, mean / _MOST_FACTOR), mean * _MOST_FACTOR)


def _pair(average: Average) -> list[float]:
    return [average.total, average.weight]


def _average(pair: Any, most: float) -> Average:
    """most: the greatest value that it can be of."""
    total, weight = map(_number, pair)
    if weight > 1.0 / _NEWEST + 1.0 or total > most * weight:
        raise ValueError("an average is of more than there can be")
    return Average(total, weight)


def _put(table: dict[Any, Any], key: object, value: object) -> None:
    """Puts it last, and drops the first half if there are too many."""
    table.pop(key, None)
    if len(table) >= _MOST_BUILDS:
        # Not one each time: to find the first key, a dictionary passes all that were deleted before it.
        for each in list(table)[: _MOST_BUILDS // 2]:
            del table[each]
    table[key] = value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)
