"""Launches from a file instead of a scenario's visitors: one JSON object per line, in the order of time.

    {"at": 1764547200.25, "visitor": "5f0c", "repository": "9a1be2", "image": "77d0c4", "cookie": true}

at: seconds, from any time on. visitor, repository, image: whatever tells them apart, such as digests with a
secret that is thrown away: only which of them are equal matters. image: the repository at a commit, or at a
ref if the commit is not known; one image is of one repository. cookie: whether the visitor's browser sent the
affinity cookie, or would have; without it, a share of the visitors keeps it, as the scenario says. session:
seconds that the pod was there; without it, the scenario's.

Nothing else is known of them: build times, sessions and luck are the scenario's, by the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from benchmarks.simulate.chance import STEPS, stream, times
from benchmarks.simulate.scenario import Scenario
from benchmarks.simulate.visitors import Asked, Repositories
from fedproxy.config.check import MAX_FAULTS, show
from fedproxy.config.units import format_duration
from fedproxy.errors import ConfigError, Fault, Position

_TEXTS: Final = ("visitor", "repository", "image")
_KEYS: Final = ("at", *_TEXTS, "cookie", "session")
_LONGEST_LINE: Final = 4096
_LONGEST_TEXT: Final = 256
_LONGEST_TIME: Final = 1e12


class Recorded:
    """The launches of a file. Raises ConfigError with every fault."""

    def __init__(self, path: Path, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        reader = _Reader()
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    reader.read(line, number)
                    if len(reader.faults) >= MAX_FAULTS:
                        break
        except OSError as error:
            raise ConfigError([Fault("", f"cannot be read: {error.strerror}")]) from error
        if not reader.launches and not reader.faults:
            reader.faults.append(Fault("", "has no launches"))
        elif not reader.faults and reader.launches[-1][0] - reader.launches[0][0] < scenario.warm_up:
            warm_up = format_duration(scenario.warm_up)
            reader.faults.append(Fault("", f"ends before the scenario's `warm_up` of {warm_up} is over"))
        if reader.faults:
            raise ConfigError(reader.faults)
        self._launches = reader.launches
        self._last = {visitor: at for at, (_, visitor, *_) in enumerate(reader.launches)}
        self._keys = [b"/build/gh/" + text.encode() for text in reader.numbers["repository"]]
        self._digests = [blake2b(text.encode(), digest_size=8).digest() for text in reader.numbers["image"]]
        self.repositories = Repositories(scenario.repositories, seed)
        for _ in self._keys:
            self.repositories.add()
        for repository in reader.repository_of:
            self.repositories.image(repository)

    def __len__(self) -> int:
        return len(self._launches)

    def key(self, repository: int) -> bytes:
        """What the balancer hashes."""
        return self._keys[repository]

    def digest(self, image: int) -> bytes:
        """What names the repository and the ref, in 8 bytes."""
        return self._digests[image]

    def __iter__(self) -> Iterator[Asked]:
        settings = self._scenario.visitors
        who, luck = stream(self._seed, "visitors").random, stream(self._seed, "luck").random
        sessions = times(settings.session.median, settings.session.p95)
        begin = self._launches[0][0]
        keeping: dict[int, bool] = {}
        for number, (at, visitor, repository, image, cookie, session) in enumerate(self._launches):
            last = self._last[visitor] == number
            keeps = keeping.get(visitor)
            if keeps is None:
                keeps = who() < settings.cookie if cookie is None else cookie
            if last:
                keeping.pop(visitor, None)
            else:
                keeping[visitor] = keeps
            chance = luck()
            length = sessions[int(chance * STEPS)] if session is None else session
            yield (
                round(at - begin, 3),
                visitor,
                keeps,
                last,
                repository,
                image,
                length,
                luck(),
                luck(),
                luck(),
                luck(),
            )


class _Reader:
    """Lines -> launches with numbers for names. `faults` has what is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.launches: list[tuple[float, int, int, int, bool | None, float | None]] = []
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in _TEXTS}
        self.repository_of: list[int] = []  # each image
        self._before = -_LONGEST_TIME

    def read(self, line: bytes, number: int) -> None:
        """One line more."""
        if not line.strip():
            return
        said = self._object(line, number)
        faults = list(_faults(said)) if said is not None else []
        if said is None or faults:
            self.faults += [Fault(key, text, Position(number, 1)) for key, text in faults]
            return
        at = float(said["at"])
        if at < self._before:
            text = f"is {show(said['at'])}, which is before that of the launch before"
            self.faults.append(Fault("at", text, Position(number, 1)))
            return
        self._before = at
        visitor, repository, image = (
            self.numbers[name].setdefault(said[name], len(self.numbers[name])) for name in _TEXTS
        )
        if image == len(self.repository_of):
            self.repository_of.append(repository)
        elif self.repository_of[image] != repository:
            text = f"is {show(said['image'])}, which is an image of another repository in a line before"
            self.faults.append(Fault("image", text, Position(number, 1)))
            return
        session = said.get("session")
        cookie = said.get("cookie")
        self.launches.append(
            (at, visitor, repository, image, cookie, None if session is None else float(session))
        )

    def _object(self, line: bytes, number: int) -> dict[str, Any] | None:
        column, text = 1, "is not a JSON object"
        if len(line) > _LONGEST_LINE:
            text = f"is a line of more than {_LONGEST_LINE} bytes"
        else:
            try:
                said = json.loads(line)
            except json.JSONDecodeError as error:
                column, text = error.colno, f"is not JSON: {error.msg}"
            except (ValueError, RecursionError):
                pass
            else:
                if isinstance(said, dict):
                    return said
        self.faults.append(Fault("", text, Position(number, column)))
        return None


def _faults(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in said:
        if key not in _KEYS:
            yield str(key)[:100], f"is not a known key, expected {', '.join(_KEYS)}"
    at = said.get("at")
    if not _is_time(at):
        yield "at", f"is {show(at)}, expected seconds"
    for name in _TEXTS:
        text = said.get(name)
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_TEXT or not text.isprintable():
            yield name, f"is {show(text)}, expected text of at most {_LONGEST_TEXT} characters"
    if not isinstance(said.get("cookie"), bool | None):
        yield "cookie", f"is {show(said['cookie'])}, expected true or false"
    session = said.get("session")
    if session is not None and not (_is_time(session) and session > 0):
        yield "session", f"is {show(session)}, expected seconds above 0"


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LONGEST_TIME
