"""What the edges of a fleet tell each other of launches, sessions and breakers, and what the probes found, as
JSON: edges may be of different releases, and anybody may have written what is read.

A hint that is lost costs a build more or a failed attempt more, and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from fedproxy.control.foreign import read_json
from fedproxy.control.messages import (
    BreakerOpened,
    BuildBegun,
    Fact,
    LaunchMoved,
    LaunchRequested,
    LaunchSeen,
    SessionsKnown,
)
from fedproxy.control.prober import Report
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.decide.sessions import Ground, SessionRecord

#: What others are told.
Hint = BreakerOpened | LaunchMoved | LaunchRequested | BuildBegun | LaunchSeen | SessionsKnown

_LONGEST: Final = 4096  # characters of a text, or of bytes as text
_MOST: Final = 1000  # items of a list
_MOST_BYTES: Final = 4 << 20
_MOST_WITNESSES: Final = 16

#: Seconds for which a hint is worth taking that was told before; those that are not here are not kept.
WORTH: Final[Mapping[type[Fact], float]] = {
    LaunchMoved: 600.0,
    LaunchSeen: 86_400.0,
    SessionsKnown: 86_400.0,
    BuildBegun: 30.0,
}


def is_hint(fact: object) -> bool:
    """Whether other edges should know this."""
    return isinstance(fact, Hint)


def pack(hints: Iterable[Hint], now: float) -> bytes:
    """Hints as one message. now: seconds since the epoch by this edge's clock; the message has only ages."""
    return json.dumps([_written(each, now) for each in hints], separators=(",", ":")).encode()


def unpack(content: bytes, now: float) -> Iterator[Hint]:
    """The hints of a message that are understood. Raises nothing.

    now: when it was told, in seconds since the epoch by this edge's clock.
    """
    try:
        items = read_json(content, _MOST_BYTES)
    except ValueError:
        return
    for item in items[:_MOST] if isinstance(items, list) else ():
        try:
            kind, *rest = item
            yield _sessions(now, *rest) if kind == "sessions" else _READ[kind](*rest)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
            continue


def _written(hint: Hint, now: float) -> Sequence[object]:
    match hint:
        case BreakerOpened(name, witnesses):
            return "opened", name, [_text(each) for each in sorted(witnesses)]
        case LaunchMoved(key, name):
            return "moved", _text(key), name
        case LaunchRequested(client):
            return "launched", _text(client)
        case BuildBegun(image, name):
            return "build", _text(image), name
        case LaunchSeen(seen):
            return (
                *("seen", _text(seen.image), seen.member, seen.found, seen.build, seen.launch),
                *(seen.end.value, seen.failed),
            )
        case SessionsKnown(records):
            return "sessions", [
                (_text(path), int(ground), url, name, _age(since, now), _age(used, now), _text(again))
                for path, ground, url, name, since, used, again in records
            ]


def _opened(name: object, witnesses: object) -> BreakerOpened:
    keys = [_bytes(each) for each in _list(witnesses)[:_MOST_WITNESSES]]
    return BreakerOpened(_name(name), frozenset(keys))


def _seen(
    image: object, member: object, found: object, build: object, launch: object, end: object, failed: object
) -> LaunchSeen:
    if not (found is None or isinstance(found, bool)) or not isinstance(failed, bool):
        raise ValueError
    return LaunchSeen(
        Seen(_bytes(image), _name(member), found, _time(build), _time(launch), End(_name(end)), failed)
    )


def _age(at: float, now: float) -> float:
    return round(max(0.0, now - at), 3)


def _sessions(now: float, records: object) -> SessionsKnown:
    return SessionsKnown(tuple([_session(now, *each) for each in _list(records)[:_MOST]]))


def _session(
    now: float,
    path: object,
    ground: object,
    url: object,
    name: object,
    since: object,
    used: object,
    again: object,
) -> SessionRecord:
    return (
        *(_bytes(path), int(Ground(ground)), _name(url), _name(name)),  # type: ignore[arg-type]
        *(now - (_time(since) or 0.0), now - (_time(used) or 0.0), _bytes(again)),
    )


_READ: Final[Mapping[object, Callable[..., Hint]]] = {
    "opened": _opened,
    "moved": lambda key, name: LaunchMoved(_bytes(key), _name(name)),
    "launched": lambda client: LaunchRequested(_bytes(client)),
    "build": lambda image, name: BuildBegun(_bytes(image), _name(name)),
    "seen": _seen,
}


def pack_report(report: Report) -> bytes:
    """What the probes found of a member."""
    return json.dumps(
        {
            "name": report.name,
            "healthy": report.healthy,
            "reasons": report.reasons,
            "pods": dict(report.pods),
            "quota": report.quota,
            "checks": dict(report.checks),
            "details": report.details,
            "base_path": report.base_path,
            "within": report.within,
        },
        separators=(",", ":"),
    ).encode()


def unpack_report(content: bytes) -> Report | None:
    """The report; None if that is none. Raises nothing."""
    try:
        found = read_json(content, _MOST_BYTES)
        pods = {_name(kind): _whole(number) for kind, number in _mapping(found["pods"])}
        checks = {_name(check): passed is True for check, passed in _mapping(found["checks"])}
        return Report(
            name=_name(found["name"]),
            healthy=found["healthy"] is True,
            reasons=tuple(_name(each) for each in _list(found["reasons"])[:16]),
            pods=pods,
            quota=None if found["quota"] is None else _whole(found["quota"]),
            checks=checks,
            details=tuple(_name(each) for each in _list(found["details"])[:16]),
            base_path=None if found["base_path"] is None else _name(found["base_path"]),
            # An edge of an earlier version does not tell it.
            within=None if found.get("within") is None else _time(found["within"]),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(_name(value), validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _mapping(value: object) -> list[tuple[object, object]]:
    if not isinstance(value, dict):
        raise TypeError
    return list(value.items())[:64]


def _time(value: object) -> float | None:
    """Seconds; what cannot be a time is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError
    return float(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError
    return value
