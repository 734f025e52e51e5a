"""Sources of members besides the config: what they have in common, and how what they found becomes a config.

A source is asked again and again. It always answers, with all members that it is taken to have: what it
cannot learn just now stays as it was, and is a complaint. The config's own members win over those that were
found, and an earlier source over a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedproxy.config.check import config_error, with_members
from fedproxy.config.document import Document
from fedproxy.config.model import Config, MemberSettings
from fedproxy.config.places import Finding

#: What a member of the config itself comes from, and one that an operator added.
CONFIG, OPERATOR = "config", "operator"


@dataclass(frozen=True)
class FoundMember:
    """A member that a source has. source: `directory: FILE` or `dns: NAME`."""

    settings: MemberSettings
    source: str


@dataclass(frozen=True)
class SourceAnswer:
    """What a source is taken to have now.

    members: by name. complaints: sentences on what is wrong, each by what it is about and by the kind of
    trouble, which are the same as long as it lasts. wait: seconds until the source is to be asked again.
    """

    members: Mapping[str, FoundMember]
    complaints: Mapping[tuple[str, str], str]
    wait: float


class MemberSource(Protocol):
    """Where members come from."""

    async def ask(self) -> SourceAnswer:
        """What it has now. Raises nothing; it may take as long as a disk or a name server does."""


@dataclass(frozen=True)
class Gathered:
    """A config with the members that were found.

    origins: where those come from, by name. refused: what is wrong with those that do not fit, by name.
    """

    config: Config
    origins: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def gather(
    config: Config,
    answers: Sequence[Mapping[str, FoundMember]],
    before: Mapping[str, MemberSettings],
    try_out: Callable[[str, MemberSettings], str | None] = lambda name, settings: None,
) -> Gathered:
    """A config with what its sources found, as their order and the fit decide.

    before: the members in force. A found one that does not fit with the others is as it is there, if that
    fits, or else left out. try_out: says what is wrong with settings that only using them tells.

    Raises ConfigError if what does not fit is none of those: then nothing can be put in force.
    """
    found: dict[str, FoundMember] = {}
    for members in answers:
        for name, member in members.items():
            if name not in config.members:
                found.setdefault(name, member)
    if not found:
        return Gathered(config)
    settings = {name: member.settings for name, member in found.items()}
    refused: dict[str, str] = {}
    for name, each in settings.items():
        fault = try_out(name, each)
        if fault is not None:
            refused[name] = fault
    _step_back(settings, refused, before, ())
    while True:
        whole, findings = with_members(config, {**config.members, **settings})
        if whole is not None:
            return Gathered(whole, {name: member.source for name, member in found.items()}, refused)
        wrong = dict(_about(findings, settings))
        if not wrong:
            raise config_error(Document(), findings)
        again = [name for name in wrong if name in refused]
        refused = {**wrong, **refused}
        _step_back(settings, wrong, before, again)


def _step_back(
    settings: dict[str, MemberSettings],
    wrong: Mapping[str, str],
    before: Mapping[str, MemberSettings],
    again: Sequence[str],
) -> None:
    """Puts what was before in the place of what is wrong, or nothing if that is wrong again."""
    for name in wrong:
        last = before.get(name)
        if last is None or name in again or last == settings[name]:
            del settings[name]
        else:
            settings[name] = last


def _about(findings: Sequence[Finding], settings: Mapping[str, MemberSettings]) -> Iterator[tuple[str, str]]:
    """The findings that are about members that were found: the name and the text of each."""
    for finding in findings:
        if len(finding.where) > 1 and finding.where[0] == "members" and finding.where[1] in settings:
            key = ".".join(map(str, finding.where[2:]))
            yield str(finding.where[1]), f"{key}: {finding.text}" if key else finding.text
