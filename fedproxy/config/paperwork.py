"""The `federation.yml` of mybinder.org's documentation, a list of members for its pages, as a config.

It was kept by hand, so a fault is no reason to refuse it: what can be kept is kept, and each fault is told.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from fedproxy.config.address import LINK, MEMBER_NAME, ORIGIN, origin
from fedproxy.config.check import one_of, show
from fedproxy.config.places import Finding, Location
from fedproxy.config.units import flag

_URL: Final = "url_binderhub"
_KEYS: Final = (
    "name",
    _URL,
    "logo",
    "funded_by",
    "funded_by_link",
    "run_by",
    "run_by_link",
    "active",
)
_MARKUP: Final = re.compile(r"[<>`|\[\]\\]|:::|\*\*|__|&#?\w+;|\{\{|\$\$")
_LONGEST_NAME: Final = 64


def is_paperwork(data: object) -> bool:
    """Whether `data` is of this format."""
    return isinstance(data, list)


def resembles_paperwork(data: object) -> bool:
    """Whether `data` is one entry, or entries that are in no list."""
    parts = [data, *data.values()] if isinstance(data, dict) else []
    return any(isinstance(part, dict) and _URL in part for part in parts)


@dataclass
class Converted:
    """data: of a config, with `members` only. notes: what is wrong, and what became of it."""

    data: dict[str, Any]
    notes: list[Finding] = field(default_factory=list)


def convert_paperwork(data: list[Any]) -> Converted:
    """The list as the members of a config. Without any member, all that is wrong is in the notes."""
    notes: list[Finding] = []
    entries = [entry for at, each in enumerate(data) if (entry := _Entry.read(at, each, notes)) is not None]
    parents = Counter(entry.host.partition(".")[2] for entry in entries)
    members: dict[str, Any] = {}
    for entry in entries:
        name = _name(entry, parents, members, notes)
        members[name] = entry.settings
    if not entries:
        notes.append(Finding((), f"has no member that can be kept, expected a list of entries with `{_URL}`"))
    elif all(settings.get("active") is False for settings in members.values()):
        notes.append(Finding((), "has only past members: add one that is active before you use this config"))
    return Converted({"members": members}, notes)


@dataclass
class _Entry:
    """One member. host: of its URL. name: as the file has it, if it can be one."""

    at: int
    host: str
    name: str | None
    settings: dict[str, Any]

    @classmethod
    def read(cls, at: int, data: object, notes: list[Finding]) -> _Entry | None:
        """The entry at a position; None if it cannot be a member."""
        if not isinstance(data, dict):
            notes.append(Finding((at,), f"is {show(data)} and was left out: write a mapping with `{_URL}`"))
            return None
        notes += [Finding((at, key), _unknown(key), of_key=True) for key in data if key not in _KEYS]
        url = _url(at, data.get(_URL), notes)
        if url is None:
            return None
        settings: dict[str, Any] = {"url": url}
        reader = _Reader(at, data, notes)
        funder, runner = reader.organisation("funded_by", url), reader.organisation("run_by", url)
        logo, owner = reader.link("logo", "pages show no logo"), funder or runner
        if logo is not None and owner is not None:
            owner["logo"] = logo
        elif logo is not None:
            text = "belongs to nobody and was left out: add `funded_by` with a name"
            notes.append(Finding((at, "logo"), text))
        if funder is not None:
            settings["funded_by"] = funder
        if runner is not None:
            settings["run_by"] = runner
        if not reader.active():
            settings["active"] = False
        return cls(at, urlsplit(url).hostname or "member", reader.name(), settings)


class _Reader:
    """The keys of one entry."""

    def __init__(self, at: int, data: dict[str, Any], notes: list[Finding]) -> None:
        self._at = at
        self._data = data
        self._notes = notes

    def _note(self, key: str, text: str) -> None:
        self._notes.append(Finding((self._at, key), text))

    def name(self) -> str | None:
        """The name of the member, if it can be one."""
        found = self._data.get("name")
        if found is None or MEMBER_NAME.parse(found) is not None:
            return found
        expected = f"expected {MEMBER_NAME.expected}"
        self._note(
            "name", f"is {show(found)}, {expected}: a name was made from the URL, change it if you like"
        )
        return None

    def active(self) -> bool:
        """Whether it is not a past member."""
        found = self._data.get("active")
        is_active = True if found is None else flag(found)
        if is_active is None:
            self._note("active", f"is {show(found)} and was taken for true: write true or false")
        return is_active is not False

    def organisation(self, key: str, url: str) -> dict[str, Any] | None:
        """Who runs or funds it. The old page took the funder for who runs it, if nobody else was named."""
        name = self._text(key)
        link = self.link(f"{key}_link", "" if name is None else f"`{key}` is shown without a link")
        if name is None and link is not None:
            name = (urlsplit(link).hostname or link).removeprefix("www.")
            self._note(key, f"is missing, and {name!r} was taken from `{key}_link`: write the name to show")
        if name is None:
            if key == "funded_by":
                self._note(key, f"is missing: add who pays for {url}, or nobody is thanked on the pages")
            return None
        return {"name": name} | ({} if link is None else {"url": link})

    def link(self, key: str, otherwise: str = "") -> str | None:
        """A URL that pages can show, if it is one. otherwise: what happens without one."""
        found = self._data.get(key)
        if found is None and otherwise:
            self._note(key, f"is missing: add it, or {otherwise}")
        if found is None or LINK.parse(found) is not None:
            return found
        self._note(key, f"is {show(found)} and was left out: write {LINK.expected}, percent-encoded")
        return None

    def _text(self, key: str) -> str | None:
        found = self._data.get(key)
        if found is None:
            return None
        if isinstance(found, list) and found and all(isinstance(each, str | int) for each in found):
            found = ", ".join(map(str, found))
            self._note(key, f"is a list and was joined to {show(found)}: write one name")
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            self._note(key, f"is {show(found)} and was left out: write a name as text")
            return None
        words = " ".join("".join(char if char.isprintable() else " " for char in str(found)).split())
        if not words:
            self._note(key, "is empty and was left out: write a name")
            return None
        if _MARKUP.search(words) is not None:
            self._note(key, f"is {show(words)}: pages show these characters as they are, so write plain text")
        return words


def _url(at: int, found: object, notes: list[Finding]) -> str | None:
    """The address of a member: the edge asks it at the root of a host."""
    where: Location = (at, _URL)
    if found is None:
        notes.append(Finding(where, "is missing, and the entry was left out: add the URL of the BinderHub"))
        return None
    url = origin(found)
    if url is not None:
        return url
    if not isinstance(found, str) or LINK.parse(found) is None:
        text = f"is {show(found)}, and the entry was left out: write {ORIGIN.expected}"
        notes.append(Finding(where, text))
        return None
    parts = urlsplit(found)
    text = (
        f"is {show(found)} and became its host alone, as the edge requests the same paths at each member: if "
        "this one is active, its BinderHub has to answer at /"
    )
    notes.append(Finding(where, text))
    return origin(f"{parts.scheme}://{parts.netloc}")


def _name(entry: _Entry, parents: Counter[str], taken: dict[str, Any], notes: list[Finding]) -> str:
    """A member's name that nobody has yet: the first label of hosts in one domain, or else the host."""
    first, _, parent = entry.host.partition(".")
    wanted = entry.name
    if wanted is None:
        wanted = first if parents[parent] > 1 and MEMBER_NAME.parse(first) is not None else entry.host
        if MEMBER_NAME.parse(wanted) is None:
            # An address of IPv6, or a very long host.
            wanted = re.sub(r"[^0-9A-Za-z.-]+", "-", wanted).strip("-.")[:_LONGEST_NAME] or "member"
    name, number = wanted, 2
    while name in taken:
        end = f"-{number}"
        name, number = f"{wanted[: _LONGEST_NAME - len(end)]}{end}", number + 1
    if name != wanted:
        text = f"would be {wanted!r}, like another entry, and became {name!r}: give it a `name` of its own"
        notes.append(Finding((entry.at,), text))
    return name


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(key[:100].lower(), _KEYS, n=1)
    known = f"did you mean {close[0]!r}?" if close else f"expected {one_of(_KEYS)}"
    return f"is not a key of an entry and was left out, {known}"
