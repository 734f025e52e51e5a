"""Plain data -> a config, or all of its faults: within each section, and between sections."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedproxy.config.address import MEMBER_NAME, Address, overlap
from fedproxy.config.document import Document
from fedproxy.config.fields import annotation_at, kind_of
from fedproxy.config.model import (
    AdminSettings,
    Config,
    ListenerSettings,
    MemberSettings,
    RouteSettings,
    SourceSettings,
    default_listen,
)
from fedproxy.config.places import Finding, Location
from fedproxy.config.units import MASK, SECRET, flag, without_password
from fedproxy.errors import ConfigError, Fault

M = TypeVar("M", bound=BaseModel)

#: More than anybody reads; a file that is not a config at all has a fault in every line.
MAX_FAULTS = 200
_MAX_ERRORS = 5 * MAX_FAULTS


@dataclass(frozen=True)
class ValidParts:
    """The listeners and members that are valid by themselves, by number and by name."""

    listen: Mapping[int, ListenerSettings] = field(default_factory=dict)
    members: Mapping[str, MemberSettings] = field(default_factory=dict)


def config_from(data: object) -> tuple[Config | None, list[Finding], ValidParts]:
    """The config in `data`, or None and all findings; and what can be checked further in any case."""
    config, findings = model_from(Config, data)
    # If a part of the file is invalid, the rules between the valid parts are checked all the same.
    source = data if isinstance(data, dict) else {}
    parts = ValidParts(
        _valid_parts(ListenerSettings, source.get("listen")),
        _valid_parts(MemberSettings, source.get("members")),
    )
    members = parts.members
    routes = _valid_parts(RouteSettings, source.get("routes"))
    names = _names(source)
    findings += _between_members(members)
    may_find = _has_sources(source)
    findings += _between_routes(routes, members, names, may_find=may_find)
    findings += _between_listeners(_addresses(source, parts.listen))
    if source.get("listen") == []:
        findings.append(Finding(("listen",), "is empty, expected at least one"))
    wanted = isinstance(data, dict) and not may_find
    if wanted and source.get("members") is None:
        findings.append(Finding(("members",), "is missing, expected a mapping"))
    elif wanted and not _has_active(source["members"]):
        findings.append(Finding(("members",), "has no active member, expected at least one"))
    return (None if findings else config), findings, parts


def with_members(config: Config, members: Mapping[str, object]) -> tuple[Config | None, list[Finding]]:
    """The config with these members and no others, validated as a whole as if they were in its file.

    members: settings, or what a file has for them. None and all findings if they do not fit.
    """
    data: dict[str, Any] = {key: getattr(config, key) for key in config.model_fields_set}
    data |= {key: list(data[key]) for key in ("listen", "routes") if key in data}
    changed, findings, _ = config_from(data | {"members": members})
    return changed, findings


def model_from(model: type[M], data: object) -> tuple[M | None, list[Finding]]:
    """The model in `data`, or None and the faults of each of its keys."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)[:_MAX_ERRORS]
        return None, [finding for detail in details for finding in _translate(model, detail)]


def config_error(document: Document, findings: Sequence[Finding]) -> ConfigError:
    """The findings of the document and of its content as faults, in the order of the file."""
    broken = {finding.where for finding in document.findings}
    # A value that could not be parsed is not also reported as missing or of the wrong type.
    secondary = (
        finding
        for finding in findings
        if not any(finding.where[:end] in broken for end in range(1, len(finding.where) + 1))
    )
    faults = faults_of(document, dict.fromkeys([*document.findings, *secondary]))
    if len(faults) > MAX_FAULTS:
        faults[MAX_FAULTS:] = [Fault("", f"{len(faults) - MAX_FAULTS} more faults")]
    return ConfigError(faults)


def faults_of(document: Document, findings: Iterable[Finding]) -> list[Fault]:
    """The findings with their places, in the order of the file; first what is about the whole of it."""
    places = document.places
    found = [(places.find(finding), finding) for finding in findings]
    found.sort(key=lambda each: -1 if each[0] is None else each[0])
    return [Fault(path_of(finding.where), finding.text, places.place(at)) for at, finding in found]


def path_of(where: Location) -> str:
    """The location as a key path: `members.gesis.url`, `routes.1.to`."""
    parts = (str(part)[:100] for part in where)
    return ".".join(part if part.isprintable() else repr(part)[1:-1] for part in parts)


# -- within a section


def _translate(model: type[BaseModel], details: ErrorDetails) -> Iterator[Finding]:
    """Pydantic's error in the terms of the config."""
    where = tuple(part for part in details["loc"] if part != "[key]")
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            yield Finding(where, f"is missing, expected {_expected(model, where)}")
        case "extra_forbidden":
            yield Finding(where, _unknown(str(where[-1]), list(_fields(model, where[:-1]))), of_key=True)
        case "between":
            yield from (Finding((*where, key), message) for key, message in context["faults"])
        case "value_error" if details["loc"][-1:] == ("[key]",):
            yield Finding(where, f"cannot be a name, {context['error']}", of_key=True)
        case "value_error" if kind_of(*annotation_at(model, where)) is SECRET:
            yield Finding(where, f"is {MASK}, {context['error']}")
        case "value_error":
            yield Finding(where, f"is {show(value)}, {context['error']}")
        case _:
            yield Finding(where, f"is {show(value)}, expected {_expected(model, where)}")


def show(value: object) -> str:
    """A value as a fault quotes it: short, on one line, without the password of a URL."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            quoted = repr(without_password(value[:200]))
            return quoted if len(quoted) <= 80 else f"{quoted[:76]}...{quoted[0]}"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return str(value)[:80]


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key[:100].replace("-", "_").lower(), known, n=1)
    return (
        f"is not a known key, did you mean {close[0]!r}?"
        if close
        else f"is not a known key, expected {one_of(known)}"
    )


def one_of(choices: Sequence[str]) -> str:
    """The choices as text: `a, b or c`."""
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else "".join(choices)


def _fields(model: type[BaseModel], where: Location) -> Mapping[str, Any]:
    annotation, _ = annotation_at(model, where)
    fields: Mapping[str, Any] = annotation.model_fields
    return fields


def _expected(model: type[BaseModel], where: Location) -> str:
    annotation, metadata = annotation_at(model, where)
    kind = kind_of(annotation, metadata)
    if kind:
        return kind.expected
    if get_origin(annotation) is Literal:
        return one_of(get_args(annotation))
    return "a list" if get_origin(annotation) is tuple else "a mapping"


# -- between sections


def _valid_parts(model: type[M], parts: object) -> dict[Any, M]:
    """The items of a list or mapping that are valid by themselves, by position or name."""
    pairs = parts.items() if isinstance(parts, dict) else enumerate(parts if isinstance(parts, list) else [])
    valid = {}
    for key, part in pairs:
        with contextlib.suppress(ValidationError):
            valid[key] = model.model_validate(part)
    return valid


def _names(source: Mapping[str, Any]) -> list[str]:
    members = source.get("members")
    return (
        [name for name, member in members.items() if member is not None] if isinstance(members, dict) else []
    )


def _has_sources(source: Mapping[str, Any]) -> bool:
    """Whether members may be found elsewhere; with faults in `sources` that is supposed."""
    sources = source.get("sources")
    if isinstance(sources, SourceSettings):
        return sources.any
    given = sources if isinstance(sources, dict) else {}
    return any(given.get(key) not in (None, []) for key in ("directory", "dns"))


def _has_active(members: object) -> bool:
    """Whether there may be an active one; what is no mapping is a fault of its own."""
    return not isinstance(members, dict) or any(map(_may_be_active, members.values()))


def _may_be_active(member: object) -> bool:
    return member is not None and not (isinstance(member, dict) and flag(member.get("active")) is False)


def _between_members(members: Mapping[str, MemberSettings]) -> Iterator[Finding]:
    primes = [name for name, member in members.items() if member.prime]
    for name in primes[1:]:
        message = f"is true, but {primes[0]} is prime already, expected at most one prime member"
        yield Finding(("members", name, "prime"), message)
    owners: dict[str, str] = {}
    for name, member in members.items():
        for index, host in enumerate(member.hosts):
            if host in owners:
                where = ("members", name, "hosts", index)
                yield Finding(where, f"is {host!r}, which {owners[host]} already has")
            owners.setdefault(host, name)


def _between_routes(
    routes: Mapping[int, RouteSettings],
    members: Mapping[str, MemberSettings],
    names: list[str],
    *,
    may_find: bool,
) -> Iterator[Finding]:
    """may_find: whether there may be more members than are in the file."""
    for index, route in routes.items():
        where = ("routes", index, "to")
        if route.mode == "redirect":
            yield from _away(index, route.to, members)
        if route.to is None or route.to == "members":
            continue
        if route.to == "prime":
            # The prime member may be among those with faults of their own.
            is_known = not may_find and len(members) == len(names)
            if is_known and not any(member.prime for member in members.values()):
                yield Finding(where, "is 'prime', and no member is prime")
        elif route.to not in names:
            if may_find and MEMBER_NAME.parse(route.to) is not None:
                continue
            known = ["members", "prime", *names]
            close = difflib.get_close_matches(route.to[:100], known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            message = f"is {show(route.to)}, expected members, prime or a member's name{hint}"
            yield Finding(where, message)
        elif route.to in members and not members[route.to].active:
            yield Finding(where, f"is {show(route.to)}, a past member, expected an active one")


def _away(index: int, to: str | None, members: Mapping[str, MemberSettings]) -> Iterator[Finding]:
    """A visitor cannot be redirected to a unix socket."""
    for name, member in members.items():
        meant = to in (None, "members", name) or (to == "prime" and member.prime)
        if meant and member.active and member.url.startswith("unix:"):
            message = f"is 'redirect' to {name}, whose url is {member.url!r}, expected a URL"
            yield Finding(("routes", index, "mode"), message)


def _addresses(
    source: Mapping[str, Any], listen: Mapping[int, ListenerSettings]
) -> list[tuple[Location, Address, bool]]:
    """The addresses that will be listened on: key path, address, whether it is a default. Only valid ones."""
    admin, _ = model_from(AdminSettings, {} if source.get("admin") is None else source["admin"])
    found: list[tuple[Location, Address, bool]] = []
    if admin is not None:
        found.append((("admin", "address"), admin.address, "address" not in admin.model_fields_set))
    if source.get("listen") is None:
        found += [(("listen", at, "address"), each.address, True) for at, each in enumerate(default_listen())]
    else:
        found += [(("listen", at, "address"), each.address, False) for at, each in listen.items()]
    return found


def addresses_of(config: Config) -> list[tuple[Location, Address]]:
    """Where the addresses that are listened on are in a config: the listeners', and the admin listener's."""
    found: list[tuple[Location, Address]] = [
        (("listen", at, "address"), each.address) for at, each in enumerate(config.listen)
    ]
    return [*found, (("admin", "address"), config.admin.address)]


def collisions(config: Config, resolved: Sequence[Address]) -> Iterator[Finding]:
    """What collides of `addresses_of` a config where their names lead to `resolved`, in the same order."""
    wanted = addresses_of(config)
    for at, (where, address) in enumerate(wanted):
        for (other_where, _), other in zip(wanted[:at], resolved[:at], strict=True):
            if overlap(resolved[at], other):
                shown = f"{str(address)!r}, which is {resolved[at]} here"
                text = f"is {shown}, and {path_of(other_where)} already uses {other}"
                yield Finding(where, f"{text}, expected an address of its own")
                break


def _between_listeners(addresses: Sequence[tuple[Location, Address, bool]]) -> Iterator[Finding]:
    """Sockets of workers share a port (SO_REUSEPORT), so the kernel would not refuse what collides."""
    for at, (where, address, is_default) in enumerate(addresses):
        for other_where, other, other_is_default in addresses[:at]:
            if not overlap(address, other):
                continue
            # What the file does not say is not what can be changed in it.
            if is_default and not other_is_default:
                where, address, other_where, other = other_where, other, where, address
                is_default, other_is_default = other_is_default, is_default
            shown = "" if other == address else f" ({other})"
            uses = "uses by default" if other_is_default else "already uses"
            expected = f"is {str(address)!r}, which {path_of(other_where)}{shown} {uses}"
            yield Finding(where, f"{expected}, expected an address of its own")
            break
