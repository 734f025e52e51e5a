"""Launches of an access log in a form that names nobody: what a simulation needs to repeat them.

Visitors, repositories and images become digests with a secret that is thrown away, so that only which of them
are equal can be told. Times are kept, as they shape the load, but not the date: they count from the Monday
before the first launch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

from fedproxy.decide.affinity import Source, image_digest, repository_key

_BUILD: Final = b"/build/"
_WEEK: Final = 7 * 86_400.0
_MONDAY: Final = 4 * 86_400.0  # the first one since the epoch
_KEPT: Final = (Source.COOKIE.value, Source.MOVED.value)


class Recorder:
    """Reads lines of an access log (`access_log: json`). secret: of the digests, at least 16 bytes.

    skipped: lines that are no JSON object with what is needed; those of other requests do not count.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.skipped = 0

    def read(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """The launches in the order in which they were asked for."""
        found = sorted(
            (each for each in map(self._launch, lines) if each is not None), key=lambda each: each["at"]
        )
        begin = 0.0
        for number, each in enumerate(found):
            if number == 0:
                begin = each["at"] - (each["at"] - _MONDAY) % _WEEK
            yield {**each, "at": round(each["at"] - begin, 3)}

    def _launch(self, line: bytes) -> dict[str, Any] | None:
        try:
            said = json.loads(line)
            if said["launch"] is None:
                return None
            at = datetime.fromisoformat(said["time"]).timestamp() - float(said["duration"])
            target = said["target"].encode("utf-8", "replace").partition(b"?")[0]
            visitor = f"{said['client']} {said['user_agent']}".encode("utf-8", "replace")
            kept = said["affinity"] in _KEPT
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.skipped += bool(line.strip())
            return None
        # Below a prefix, as some BinderHubs are.
        path = target[max(target.find(_BUILD), 0) :]
        key, image = repository_key(path), image_digest(path)
        if key is None or image is None:
            self.skipped += 1
            return None
        return {
            "at": at,
            "visitor": self._digest(b"visitor " + visitor),
            "repository": self._digest(b"repository " + key),
            "image": self._digest(b"image " + image),
            "cookie": kept,
        }

    def _digest(self, what: bytes) -> str:
        return blake2b(what, digest_size=8, key=self._secret).hexdigest()
