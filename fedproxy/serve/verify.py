"""All that is wrong or unwise with a config's file: what `check` reports is what `serve` refuses.

The files that a config names are read as they are to serve. Nothing is changed, and nothing is listened on.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedproxy.config.advice import Advice, advise, certificate_ends, in_kubernetes
from fedproxy.config.check import ValidParts, faults_of
from fedproxy.config.load import MemberFile, Reading, examine, read_member, read_text
from fedproxy.config.model import Config, MemberSettings, TlsSettings
from fedproxy.config.places import Finding, Location
from fedproxy.config.report import Warned, warning_lines
from fedproxy.control.folder import member_files, printable
from fedproxy.control.sources import FoundMember, gather
from fedproxy.errors import ConfigError, Fault, Position
from fedproxy.serve.assemble import endpoint_of
from fedproxy.serve.tls import Certificates
from fedproxy.web.error_pages import error_pages

_MOST_TEMPLATES = 1000  # that are looked at for changes


@dataclass(frozen=True)
class CheckedFile:
    """What there is to say of a file. Without faults `config` can be served.

    reading: what was read, None if the file could not be.
    """

    reading: Reading | None
    faults: Sequence[Fault]
    warnings: Sequence[Warned] = ()

    @property
    def config(self) -> Config:
        """The config. Raises ConfigError with every fault."""
        if self.reading is None or self.reading.config is None or self.faults:
            raise ConfigError(list(self.faults))
        return self.reading.config

    def with_more(self, findings: Sequence[Finding], advice: Sequence[Advice]) -> CheckedFile:
        """The same, with what was found since in a config that was read."""
        if self.reading is None:
            return self
        return replace(
            self,
            faults=[*self.faults, *faults_of(self.reading.document, findings)],
            warnings=[*self.warnings, *_warnings(self.reading, advice)],
        )


def verify(file: Path, env: Mapping[str, str]) -> CheckedFile:
    """Reads a config, with `${NAME}` from `env`, and all files that it names."""
    try:
        reading = examine(read_text(file), env, file)
    except ConfigError as error:
        return CheckedFile(None, error.faults)
    findings, advice = _look_at_files(reading.parts, env)
    if reading.config is not None:
        findings += _look_at_pages(reading.config)
    wrong = reading.error(findings)
    if reading.config is not None:
        advice += advise(reading.config, env)
    return CheckedFile(reading, wrong.faults if wrong is not None else [], _warnings(reading, advice))


def verify_all(file: Path, env: Mapping[str, str]) -> CheckedFile:
    """The same with the files of `sources.directory`. An edge serves without those that have faults."""
    checked = verify(file, env)
    if checked.faults or checked.config.sources.directory is None:
        return checked
    config, folder = checked.config, checked.config.sources.directory
    try:
        files = member_files(folder)
    except OSError as error:
        text = f"is {str(folder)!r}, which cannot be read: {error.strerror}, expected files of members there"
        return checked.with_more([], [Advice("source-unusable", ("sources", "directory"), text)])
    advice = []
    if len(files) > config.sources.limit:
        text = f"is {config.sources.limit}, and there are {len(files)} files, expected at least that many"
        advice.append(Advice("source-limit", ("sources", "limit"), text))
    read = {each: read_member(each, env) for each in files[: config.sources.limit]}
    faults = [_in_file(each, fault) for each, member in read.items() for fault in member.faults]
    for each in read:
        if each.stem in config.members:
            text = f"is also in {printable(each)}, which is not used: the config wins"
            advice.append(Advice("source-hidden", ("members", each.stem), text))
    try:
        for name, text in gather(config, [_found(read)], {}, fault_of).refused.items():
            faults.append(_in_file(folder / f"{name}.yaml", Fault("", text)))
    except ConfigError as error:
        faults += error.faults
    return replace(checked.with_more([], advice), faults=faults)


def members_in(config: Config, env: Mapping[str, str]) -> dict[str, FoundMember]:
    """The members in those files of a config's directory that have no faults."""
    folder = config.sources.directory
    with suppress(OSError):
        files = [] if folder is None else member_files(folder)
        return _found({each: read_member(each, env) for each in files[: config.sources.limit]})
    return {}


def _found(read: Mapping[Path, MemberFile]) -> dict[str, FoundMember]:
    return {
        file.stem: FoundMember(member.settings, printable(file))
        for file, member in read.items()
        if member.settings is not None
    }


def _in_file(file: Path, fault: Fault) -> Fault:
    place = fault.place or Position(1, 1)
    return replace(fault, place=replace(place, file=printable(file)))


def fault_of(name: str, settings: MemberSettings) -> str | None:
    """What is wrong with the files that a member's settings name; None if nothing is."""
    try:
        endpoint_of(name, settings)
    except ConfigError as error:
        return "; ".join(fault.message for fault in error.faults)
    return None


def _warnings(reading: Reading, advice: Sequence[Advice]) -> list[Warned]:
    """Those that are not silenced, in the order of the file."""
    silent = _silenced(reading.document.data)
    names = {Finding(each.where, each.text): each.name for each in advice if each.name not in silent}
    places = reading.document.places
    found = sorted(names, key=lambda finding: places.find(finding) or 0)
    return [Warned(names[finding], *faults_of(reading.document, [finding])) for finding in found]


def _silenced(data: object) -> list[object]:
    """What the file silences, even if other parts of it are not valid."""
    silent = data.get("silence") if isinstance(data, dict) else None
    return silent if isinstance(silent, list) else []


def _look_at_files(parts: ValidParts, env: Mapping[str, str]) -> tuple[list[Finding], list[Advice]]:
    """Of the listeners and members that are valid by themselves."""
    findings: list[Finding] = []
    advice: list[Advice] = []
    for at, listener in parts.listen.items():
        if listener.tls is not None:
            _look_at_certificates(listener.tls, at, env, findings, advice)
    for name, member in parts.members.items():
        if member.active and member.ca is not None:
            try:
                endpoint_of(name, member)
            except ConfigError as error:
                findings += [Finding(("members", name, "ca"), fault.message) for fault in error.faults]
    return findings, advice


def _look_at_pages(config: Config) -> list[Finding]:
    try:
        error_pages(config)
    except ConfigError as error:
        return [Finding(_location(fault.path), fault.message) for fault in error.faults]
    return []


def _look_at_certificates(
    tls: TlsSettings, at: int, env: Mapping[str, str], findings: list[Finding], advice: list[Advice]
) -> None:
    try:
        certificates = Certificates(tls, f"listen.{at}.tls")
    except ConfigError as error:
        findings += [Finding(_location(fault.path), fault.message) for fault in error.faults]
        return
    for path, (begins, ends) in certificates.validity().items():
        advice += certificate_ends(_location(path), begins, ends, time.time())
    if in_kubernetes(env):
        return
    where: Location = ("listen", at, "tls")
    pairs = [(where, tls), *(((*where, "certificates", i), each) for i, each in enumerate(tls.certificates))]
    for above, pair in pairs:
        if _anybody_reads(pair.private_key):
            text = f"{pair.private_key} can be read by every user, expected one that only its owner can read"
            advice.append(Advice("key-readable", (*above, "private_key"), text))


def _location(path: str) -> Location:
    """The location of a key path in which no key is a name."""
    return tuple(int(part) if part.isdecimal() else part for part in path.split("."))


def _anybody_reads(file: Path) -> bool:
    with suppress(OSError):
        return bool(file.stat().st_mode & stat.S_IROTH)
    return False


class Reader:
    """Reads a config's file for those who serve it: first, and again for each reload.

    change: what the command line says instead of the file.
    """

    def __init__(self, file: Path, env: Mapping[str, str], change: Callable[[Config], Config]) -> None:
        self._file, self._env, self._change = file, env, change
        self._warnings: Sequence[Warned] = ()
        self._said: frozenset[tuple[str, str, str]] = frozenset()
        self._others: Sequence[Path] = ()
        self._templates: Path | None = None

    def files(self) -> list[Path]:
        """The files that the config was read from, and folders in which others may appear."""
        found = [self._file, *self._others]
        if self._templates is not None:
            found.append(self._templates)
            with suppress(OSError):
                found += sorted(self._templates.iterdir())[:_MOST_TEMPLATES]
        return found

    def read(self) -> Config:
        """The config. Raises ConfigError with every fault."""
        checked = verify(self._file, self._env)
        if checked.reading is not None:
            # Of a config with faults too: they may be in any of them.
            self._others = checked.reading.document.files
            if checked.reading.config is not None:
                self._templates = checked.reading.config.pages.templates
        config = self._change(checked.config)
        self._warnings = checked.warnings
        return config

    def warnings(self) -> list[str]:
        """A line for each warning about what was read last that is not one of those before."""
        new = [each for each in self._warnings if each.key not in self._said]
        self._said = frozenset(each.key for each in self._warnings)
        return warning_lines(str(self._file), new)
