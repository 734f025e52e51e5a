"""The pages that people get with the edge's own answers: finished, but for what differs between requests.

They are made when a config is put in force. A request only chooses one, by what happened and by the languages
that it accepts, and fills the slots in it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Final

NONE: Final = "none"
"""Nothing is offered: to ask again would not help, or would repeat what cannot be repeated."""
LINK: Final = "link"
"""The page has a link that asks again."""
AUTO: Final = "auto"
"""The page also asks again by itself."""

SLOTS: Final = ("status", "phrase", "detail", "request_id", "retry_after", "start")
"""What differs between requests. `start`: the target of a page that starts a session again."""

# Characters for private use, which no text has by chance.
_SLOT: Final = re.compile(rb"\xee\x80\x80([a-z_]+)\xee\x80\x81")
_RANGE: Final = re.compile(
    rb"[ \t]*([a-z]{1,8}(?:-[a-z0-9]{1,8})*)[ \t]*"
    rb"(?:;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*)?"
).fullmatch
# Browsers send a tenth of it, and each range is looked up in as many steps as it has subtags.
_LONGEST: Final = 1024


def slot(name: str) -> str:
    """What stands in a page's text where this slot is."""
    return f"\ue000{name}\ue001"


def preferred(field: bytes) -> list[bytes]:
    """The language ranges of an Accept-Language field (RFC 9110 section 12.5.4), the best first.

    They are in lower case. Those with a weight of 0 are left out, and so is what is malformed, and the
    asterisk: in a lookup it stands for nothing in particular (RFC 4647 section 3.4). Of a very long field
    only the beginning is read.
    """
    found: list[tuple[float, int, bytes]] = []
    for part in field[:_LONGEST].lower().split(b","):
        match = _RANGE(part)
        if match is not None:
            weight = float(match[2] or b"1")
            if weight > 0:
                found.append((-weight, len(found), match[1]))
    return [language for _, _, language in sorted(found)]


class Page:
    """A page in one language. `language`: its tag (RFC 5646). text: UTF-8, with slots."""

    __slots__ = ("_parts", "language")

    def __init__(self, language: str, text: bytes) -> None:
        self.language = language.encode("ascii")
        self._parts = _SLOT.split(text)

    def fill(self, values: Mapping[str, str]) -> bytes:
        """The page of one request. values: plain text for each of `SLOTS`."""
        parts = self._parts.copy()
        for at in range(1, len(parts), 2):
            parts[at] = html.escape(values[parts[at].decode("ascii")]).encode()
        return b"".join(parts)


class Translations:
    """One page in every language that there is. pages: the usual one first, as (language, text)."""

    __slots__ = ("_by_language", "_usual")

    def __init__(self, pages: Sequence[tuple[str, bytes]]) -> None:
        made = [Page(language, text) for language, text in pages]
        self._usual = made[0]
        self._by_language = {page.language.lower(): page for page in reversed(made)}

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self._by_language) > 1

    def find(self, accepted: bytes) -> Page:
        """The page for an Accept-Language field, all lines as one list, by lookup (RFC 4647 section 3.4).

        The usual one if no language matches.
        """
        for language in preferred(accepted):
            while language:
                page = self._by_language.get(language)
                if page is not None:
                    return page
                language = language.rpartition(b"-")[0]
                if language[-2:-1] == b"-":
                    # A single letter only introduces what followed it.
                    language = language[:-2]
        return self._usual


class Pages:
    """All pages of a config.

    policy: the Content-Security-Policy of them all. pages: by `key`, with the usual language first.
    """

    __slots__ = ("_pages", "policy")

    def __init__(self, policy: bytes, pages: Mapping[str, Sequence[tuple[str, bytes]]]) -> None:
        self.policy = policy
        self._pages = {key: Translations(each) for key, each in pages.items()}

    def find(self, situation: str, launch: bool, retry: str) -> Translations:
        """The page for what happened. launch: to a launch or its page. retry: NONE, LINK or AUTO."""
        return self._pages[key(situation, launch, retry)]


def key(situation: str, launch: bool, retry: str) -> str:
    """The name of a page among `Pages`."""
    return f"{situation}.{'launch' if launch else 'page'}.{retry}"
