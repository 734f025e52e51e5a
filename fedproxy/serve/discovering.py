"""The sources of members while the edge runs: asked in the background, and put in force when they change.

What was found becomes a part of the config as if it were in its file, so what operators set applies over it,
and it goes the way of a reload: validated as a whole, and nothing changes if it does not fit.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from fedproxy.config.address import member_address
from fedproxy.control.folder import MemberFolder
from fedproxy.control.names import MembersByName, NameServers
from fedproxy.control.sources import CONFIG, FoundMember, Gathered, MemberSource, SourceAnswer, gather
from fedproxy.errors import ConfigError
from fedproxy.event import Event, EventName
from fedproxy.serve.disk import DiskThread
from fedproxy.serve.verify import fault_of
from fedproxy.tasks import cancel

if TYPE_CHECKING:
    from fedproxy.config.model import Config, MemberSettings
    from fedproxy.errors import Fault

_FIRST: Final = 4.0  # seconds that a start or a reload waits for new sources
_APART: Final = 2.0  # seconds between two changes at least


class _Key(NamedTuple):
    """What tells sources apart: which one it is, and with which settings."""

    kind: str
    place: Hashable
    settings: Hashable


class _Asked:
    """A source that is asked.

    answer: the last one. offered: the members that were last to be put in force. said: the complaints that
    were reported. heir_of: one before a change of the settings, whose members stay until this one has some.
    """

    def __init__(self, source: MemberSource, heir_of: _Asked | None) -> None:
        self.source = source
        self._inherited: Mapping[str, FoundMember] = {} if heir_of is None else heir_of.answer.members
        self.answer: SourceAnswer = SourceAnswer(self._inherited, {}, 0.0)
        self.offered: Mapping[str, FoundMember] = {}
        self.said: Mapping[tuple[str, str], str] = {}
        self.first = asyncio.get_running_loop().create_task(self.ask())
        self.following: asyncio.Task[None] | None = None

    async def ask(self) -> None:
        """Asks once."""
        answer = await self.source.ask()
        if answer.complaints and not answer.members:
            answer = replace(answer, members=self._inherited)
        else:
            self._inherited = {}
        self.answer = answer

    async def end(self) -> None:
        """Asks no more."""
        await cancel(task for task in (self.first, self.following) if task is not None)


@dataclass(frozen=True)
class Prepared:
    """A config with what its sources have, which is not in force yet. own: as its file has it."""

    own: Config
    gathered: Gathered
    asked: Mapping[_Key, _Asked]

    @property
    def config(self) -> Config:
        """With the members that were found."""
        return self.gathered.config


def name_of(config: Config, name: str, servers: NameServers) -> MembersByName:
    """One of the names of `sources.dns`, which leads anywhere but to this edge itself."""
    avoid = []
    if config.public_url is not None:
        public = member_address(config.public_url)
        avoid.append((public.host, public.port))
    return MembersByName(name, config.sources, avoid, servers, time.monotonic)


class Discovery:
    """The sources of the config in force, from the first `commit` to `close`.

    report: takes what operators should know. adopt: puts in force what was found since; returns what is wrong
    with it. pause: waits so many seconds.
    """

    def __init__(
        self,
        report: Callable[[Event], None],
        adopt: Callable[[], Awaitable[Sequence[Fault]]],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._report = report
        self._adopt = adopt
        self._pause = pause
        self._asked: Mapping[_Key, _Asked] = {}
        self._origins: Mapping[str, str] = {}
        self._members: Mapping[str, MemberSettings] = {}
        self._refused: Mapping[str, str] = {}
        self._faults: Sequence[Fault] = ()
        self._news = asyncio.Event()
        self._adopting: asyncio.Task[None] | None = None
        self._disk = DiskThread("sources")
        self._servers = NameServers()
        self._is_started = False

    own: Config  # the one in force, as its file has it

    def origin(self, name: str) -> str:
        """Where a member comes from that no operator added."""
        return self._origins.get(name, CONFIG)

    async def prepare(self, config: Config) -> Prepared:
        """A config with what its sources have. New ones are waited for, for some seconds.

        `commit` or `drop` is to follow. Raises ConfigError for members that do not fit, with nothing changed;
        the first time it goes without them, because an edge has to start.
        """
        before = {key[:2]: each for key, each in self._asked.items()}
        asked = {
            key: self._asked.get(key) or _Asked(make(), before.get(key[:2]))
            for key, make in self._wanted(config)
        }
        new = [each for key, each in asked.items() if key not in self._asked]
        try:
            if new:
                await asyncio.wait([each.first for each in new], timeout=_FIRST)
            for each in asked.values():
                each.offered = each.answer.members
            found = [each.offered for each in asked.values()]
            try:
                gathered = gather(config, found, self._members, fault_of)
            except ConfigError as error:
                if self._is_started:
                    raise
                self._refuse(error.faults, "no member of a source is taken")
                gathered = Gathered(config)
        except BaseException:
            for each in new:
                await each.end()
            raise
        return Prepared(config, gathered, asked)

    async def start(self, config: Config) -> Config:
        """The first config, with what its sources have."""
        prepared = await self.prepare(config)
        await self.commit(prepared)
        return prepared.config

    async def drop(self, prepared: Prepared) -> None:
        """It is not put in force."""
        for key, each in prepared.asked.items():
            if key not in self._asked:
                await each.end()

    async def commit(self, prepared: Prepared) -> None:
        """It is in force now."""
        self._is_started = True
        before, self._asked = self._asked, prepared.asked
        gathered = prepared.gathered
        self.own, self._origins = prepared.own, gathered.origins
        members = gathered.config.members
        self._members = {name: members[name] for name in gathered.origins if name in members}
        for name, text in gathered.refused.items():
            if self._refused.get(name) != text:
                stays = "it stays as it was" if name in members else "it is left out"
                text = f"{name}, from {gathered.origins[name]}, does not fit: {text}; {stays}"
                self._report(Event(EventName.SOURCE_UNUSABLE, text, name))
        self._refused = gathered.refused
        loop = asyncio.get_running_loop()
        for each in self._asked.values():
            if each.following is None:
                self._say(each)
                each.following = loop.create_task(self._follow(each))
        if self._asked and self._adopting is None:
            self._adopting = loop.create_task(self._adopt_news())
        for key, each in before.items():
            if key not in self._asked:
                await each.end()

    async def close(self) -> None:
        """Asks no source any more."""
        if self._adopting is not None:
            await cancel([self._adopting])
            self._adopting = None
        for each in self._asked.values():
            await each.end()
        await self._servers.close()
        self._disk.end()

    def _wanted(self, config: Config) -> Iterator[tuple[_Key, Callable[[], MemberSource]]]:
        """The sources of a config, the first of which wins, each with what makes it another one."""
        settings = config.sources
        if settings.directory is not None:
            make: Callable[[], MemberSource] = partial(
                MemberFolder, settings.directory, os.environ, self._disk.run, settings.limit
            )
            yield _Key("directory", settings.directory, settings.limit), make
        shared = settings.model_dump_json(exclude={"directory", "dns"})
        for name in settings.dns:
            yield (
                _Key("dns", name, (shared, config.public_url)),
                partial(name_of, config, name, self._servers),
            )

    async def _follow(self, asked: _Asked) -> None:
        await asked.first
        while True:
            self._say(asked)
            if asked.answer.members != asked.offered:
                self._news.set()
            await self._pause(asked.answer.wait)
            await asked.ask()

    def _say(self, asked: _Asked) -> None:
        before, now = asked.said, asked.answer.complaints
        asked.said = dict(now)
        for key, text in now.items():
            if key not in before:
                self._report(Event(EventName.SOURCE_UNUSABLE, text, key=": ".join(key)))
        wrong = {subject for subject, _ in now}
        for subject in dict.fromkeys(subject for subject, _ in before):
            if subject not in wrong:
                self._report(Event(EventName.SOURCE_USABLE, f"{subject} can be used again"))

    def _refuse(self, faults: Sequence[Fault], what: str) -> None:
        for fault in faults:
            self._report(Event(EventName.SOURCE_REFUSED, f"{fault}; {what}"))

    async def _adopt_news(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            faults = await self._adopt()
            if faults != self._faults:
                self._refuse(faults, "the members in force are kept")
            self._faults = faults
            # What changes all the time is no reason to do nothing else.
            await self._pause(_APART)
