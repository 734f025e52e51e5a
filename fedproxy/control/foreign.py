"""JSON that somebody else wrote: another release of an edge, or a stranger."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def read_json(content: bytes, most: int) -> Any:
    """What it says, if that can be written again anywhere: all numbers are finite, all text is Unicode.

    Raises ValueError for anything else, and for more than so many bytes.
    """
    if len(content) > most:
        raise ValueError(f"is larger than {most} bytes")
    try:
        found = json.loads(content, parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in content:
            # Half of a pair of surrogates passes, and no file, log or answer takes it later.
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
