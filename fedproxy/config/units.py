"""The syntax of a config's values: durations, sizes, counts and the like, each with its expected form.

A `Kind` is one such syntax. It is put into an annotation (`Annotated[float, SECONDS]`) and does three things
there: it parses, it states the expected form in a fault, and it names the type in the reference.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# Pydantic is imported where a config is made: commands that need none parse their arguments with these kinds.
if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, SecretStr
    from pydantic_core import CoreSchema

#: Replaces a secret wherever a config is shown.
MASK = "***"
# Of a store: nothing but a password may have a slash or a second @, and its query is none of ours.
_LOGIN = re.compile(r"(rediss?(?:\+[a-z]+)?://[^\s:@']*:)[^\s']*@")
_QUERY = re.compile(r"(rediss?(?:\+[a-z]+)?://[^\s?#']*[?#])[^\s']+")
_PASSWORD = re.compile(r"(//[^/@\s]*:)[^/@\s]*@")

Network = IPv4Network | IPv6Network
#: A member's weight as it is set: a number, or that the edge works it out.
Weight = float | Literal["auto"]

_NUMBER = re.compile(r"[-+]?[0-9]{1,18}(\.[0-9]{1,18})?")
_WITH_UNIT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]{1,3})")
#: What a number may be followed by, in seconds and in bytes.
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_LONGEST = 3650 * 86400.0
_LARGEST = 1 << 50
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Kind:
    """The syntax of a value.

    `name`: the type as the reference shows it. `expected`: the end of "expected ..." in a fault. `parse`:
    returns the value, or None if the input is not of this kind. `render`: the value for JSON.
    """

    name: str
    expected: str
    parse: Callable[[object], object]
    render: Callable[[object], object] | None = None

    def __call__(self, value: object) -> object:
        """Parse, or raise a ValueError that says what was expected."""
        parsed = self.parse(value)
        if parsed is None:
            raise ValueError(f"expected {self.expected}")
        return parsed

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Replace pydantic's own coercions, which would take `true` for 1."""
        from pydantic_core import core_schema

        render = core_schema.plain_serializer_function_ser_schema(self.render) if self.render else None
        return core_schema.no_info_plain_validator_function(self.__call__, serialization=render)


def without_password(shown: str) -> str:
    """A text with the passwords of its URLs masked."""
    shown = _LOGIN.sub(rf"\1{MASK}@", shown)
    return _QUERY.sub(rf"\1{MASK}", _PASSWORD.sub(rf"\1{MASK}@", shown))


def number(value: object) -> float | None:
    """A finite number, or one as text, as environment variables are."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, int | float) and abs(value) < 1e18:
        return float(value)
    return None


def count(value: object) -> int | None:
    """A whole number; `3.0` is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1e18 else None
    parsed = number(value)
    return int(parsed) if parsed is not None and parsed.is_integer() else None


def duration(value: object) -> float | None:
    """Seconds from a number of seconds or from a text with a unit: ms, s, m, h or d."""
    match = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return number(value)
    unit = DURATION_UNITS.get(match[2])
    if unit is None:
        return None
    # Division is exact where multiplication by 0.001 is not.
    return float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * unit


def size(value: object) -> int | None:
    """Bytes from a whole number or from a text with a unit: B, KiB, MiB, GiB or TiB."""
    match = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return count(value)
    unit = SIZE_UNITS.get(match[2])
    return count(float(match[1]) * unit) if unit is not None else None


def format_duration(seconds: float) -> str | float:
    """Seconds as an operator would write them; `duration` parses them to the same number."""
    if seconds >= 3600 and seconds % 3600 == 0 and seconds < _LONGEST:
        return f"{seconds / 3600:.0f}h"
    if seconds % 1 == 0:
        return f"{seconds:.0f}s"
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds / 1000 == seconds else seconds


def format_size(size_in_bytes: int) -> str | int:
    """Bytes as an operator would write them; `size` parses them to the same number."""
    for unit, factor in reversed(SIZE_UNITS.items()):
        if factor > 1 and size_in_bytes >= factor and size_in_bytes % factor == 0:
            return f"{size_in_bytes // factor}{unit}"
    return size_in_bytes


def flag(value: object) -> bool | None:
    """True or false, or the same as text, as environment variables are."""
    if isinstance(value, bool):
        return value
    return _FLAGS.get(value.lower()) if isinstance(value, str) else None


def text(value: object) -> str | None:
    """Text that is not empty and holds no control character."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def _secret(value: object) -> SecretStr | None:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return value
    parsed = text(value)
    return SecretStr(parsed) if parsed is not None else None


def _readable_file(value: object) -> Path | None:
    path = value if isinstance(value, Path) else Path(text(value) or "")
    try:
        with path.open("rb"):
            return path
    except OSError:
        return None


def _readable_folder(value: object) -> Path | None:
    path = value if isinstance(value, Path) else Path(text(value) or "")
    try:
        next(path.iterdir(), None)
    except (OSError, ValueError):  # or a NUL in the path
        return None
    return path if path.name else None


def _file_or_off(value: object) -> Path | str | None:
    """The path of a file that exists or will be created; YAML reads a bare `off` as false."""
    if value is False or value == "off":
        return "off"
    if isinstance(value, Path):
        return value
    parsed = text(value)
    return Path(parsed) if parsed and Path(parsed).name not in ("", "..") else None


def _path(value: object) -> Path | None:
    """The path of what may be there later."""
    if isinstance(value, Path):
        return value
    parsed = text(value)
    return Path(parsed) if parsed else None


def _log_file(value: object) -> Path | str | None:
    """The path of a file that can be written, or created."""
    if value == "stdout":
        return "stdout"
    path = value if isinstance(value, Path) else Path(text(value) or "")
    try:
        if path.is_dir():
            return None
        there = os.access(path, os.F_OK)
        writable = os.access(path, os.W_OK) if there else _takes_files(path.parent)
    except OSError:
        return None
    return path if writable and path.name != ".." else None


def _takes_files(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def network(value: object) -> Network | None:
    """A CIDR block without host bits set, or one address."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        return None
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        return None


def pattern(value: object) -> re.Pattern[str] | None:
    """A compiled regular expression."""
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str) or not value:
        return None
    try:
        with warnings.catch_warnings():
            # Python's warnings about future meanings of the expression are of no use to an operator.
            warnings.simplefilter("ignore")
            return re.compile(value)
    except (re.error, OverflowError, RecursionError):
        return None


def within(
    parse: Callable[[object], float | int | None], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[object], float | int | None]:
    """Only values from `low` to `high`, or, with `above`, higher than `low`."""

    def parse_within(value: object) -> float | int | None:
        parsed = parse(value)
        if parsed is None or not low <= parsed <= high or (above and parsed == low):
            return None
        return parsed

    return parse_within


def workers(value: object) -> int | str | None:
    """`auto` or a number of processes."""
    parsed = count(value)
    if parsed is None:
        return "auto" if value == "auto" else None
    return parsed if 1 <= parsed <= 1024 else None


def weight(value: object) -> Weight | None:
    """`auto` or a number of at least 0."""
    parsed = number(value)
    if parsed is None:
        return "auto" if value == "auto" else None
    return parsed if parsed >= 0 else None


def weight_text(value: Weight) -> str:
    """A weight as an operator would write it."""
    return "auto" if value == "auto" else f"{value:.12g}"


def percentage(value: object) -> float | None:
    """A part from a number, or from a text with `%`: 0.2 and 20% are the same."""
    if isinstance(value, str) and value.endswith("%"):
        parsed = number(value[:-1].rstrip(" "))
        return parsed / 100 if parsed is not None else None
    return number(value)


def access_log(value: object) -> str | None:
    """The format's name; YAML reads a bare `off` as false, and both mean off."""
    if value is False:
        return "off"
    return value if isinstance(value, str) and value in ("json", "combined", "off") else None


def tls_version(value: object) -> str | None:
    """The version's text; YAML reads a bare 1.2 as a number."""
    versions = {"1.2": "1.2", "1.3": "1.3"}
    return versions.get(str(value)) if isinstance(value, str | float) else None


def _mask(value: object) -> object:
    return None if value is None else MASK


def _plain(value: object) -> object:
    return value.pattern if isinstance(value, re.Pattern) else str(value)


_UNITS = "such as 250ms, 15s or 4h"
SECONDS = Kind("duration", f"a duration above 0, {_UNITS}", within(duration, 0, _LONGEST, above=True))
SECONDS_OR_NONE = Kind("duration", f"a duration, {_UNITS}", within(duration, 0, _LONGEST))
BYTES = Kind("size", "a size of at least 1 byte, such as 64KiB or 2MiB", within(size, 1, _LARGEST))
BYTES_OR_NONE = Kind("size", "a size such as 0, 64KiB or 2MiB", within(size, 0, _LARGEST))
COUNT = Kind("whole number", "a whole number of at least 1", within(count, 1, _LARGEST))
COUNT_OR_NONE = Kind("whole number", "a whole number of at least 0", within(count, 0, _LARGEST))
AMOUNT = Kind("number", "a number of at least 0", within(number, 0))
FACTOR = Kind("number", "a number of at least 1", within(number, 1))
RATIO = Kind("ratio", "a number above 0 and at most 1", within(number, 0, 1, above=True))
SHARE = Kind("ratio", "a number from 0 to 1", within(number, 0, 1))
TARGET = Kind("share", "a share from 0.1% to 90%, such as 20% or 0.2", within(percentage, 0.001, 0.9))
STATUS = Kind("status", "a status from 200 to 599", within(count, 200, 599))
FLAG = Kind("true or false", "true or false", flag)
TEXT = Kind("text", "text", text)
SECRET = Kind("secret", "text", _secret, _mask)
FILE = Kind("file", "the path of a file that can be read", _readable_file, _plain)
FOLDER = Kind("folder", "the path of a folder that can be read", _readable_folder, _plain)
PATH = Kind("folder", "the path of a folder", _path, _plain)
FILE_OR_OFF = Kind("file or off", "the path of a file, or off", _file_or_off, _plain)
NETWORK = Kind(
    "network",
    "a network such as 192.0.2.0/24 or 2001:db8::/32, without host bits set",
    network,
    _plain,
)
PATTERN = Kind("regular expression", "a regular expression", pattern, _plain)
WORKERS = Kind("auto or whole number", "auto or a whole number from 1 to 1024", workers)
WEIGHT = Kind("auto or number", "auto or a number of at least 0", weight)
ACCESS_LOG = Kind("json, combined or off", "json, combined or off", access_log)
LOG_FILE = Kind("file or stdout", "the path of a file that can be written, or stdout", _log_file, str)
TLS_VERSION = Kind("1.2 or 1.3", '"1.2" or "1.3"', tls_version)
