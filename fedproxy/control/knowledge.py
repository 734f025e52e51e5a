"""What is kept over a restart of what launches have taught.

It is only ever a hint: without it some images may be built once more, and nothing else is lost.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

from fedproxy.control.state import beside, put_aside, read_file, write_file
from fedproxy.decide.knowledge import Knowledge

_MOST_BYTES: Final = 64 << 20


def knowledge_path(state: Path | None) -> Path | None:
    """The path of the file beside the operators' state."""
    return beside(state, "knowledge")


class KnowledgeFile:
    """Keeps it in a file, compressed; nowhere if `path` is None. Its calls may block."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self, into: Knowledge) -> list[str]:
        """Reads it; returns lines for an operator about what is wrong. Raises nothing."""
        if self.path is None:
            return []
        try:
            packed = read_file(self.path, _MOST_BYTES)
        except OSError as error:
            return [f"{error.strerror}; launches have to teach the edge again"]
        if packed is None:
            return []
        try:
            into.load(zlib.decompressobj().decompress(packed, _MOST_BYTES))
        except (zlib.error, ValueError) as error:
            line, self.path = put_aside(self.path, f"{self.path} is not what launches have taught: {error}")
            return [line]
        return []

    def save(self, content: bytes) -> None:
        """Keeps what `Knowledge.dump` returned. Raises OSError with a line for an operator."""
        if self.path is not None:
            write_file(self.path, zlib.compress(content, 1))
