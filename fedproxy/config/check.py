"""Plain data -> a config, or all of its faults: within each section, and between sections."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedproxy.config.document import Document, Finding, Location
from fedproxy.config.model import Config, ListenerSettings, MemberSettings, RouteSettings
from fedproxy.config.units import MASK, SECRET, Kind, flag
from fedproxy.errors import ConfigError, Fault

M = TypeVar("M", bound=BaseModel)

#: More than anybody reads; a file that is not a config at all has a fault in every line.
MAX_FAULTS = 200
_MAX_ERRORS = 5 * MAX_FAULTS
_USER = re.compile(r"(//[^/@\s]*:)[^/@\s]*@")


def config_from(data: object) -> tuple[Config | None, list[Finding]]:
    """The config in `data`, or None and all findings."""
    config, findings = model_from(Config, data)
    # If a part of the file is invalid, the rules between the valid parts are checked all the same.
    source = data if isinstance(data, dict) else {}
    listen = _valid_parts(ListenerSettings, source.get("listen"))
    members = _valid_parts(MemberSettings, source.get("members"))
    routes = _valid_parts(RouteSettings, source.get("routes"))
    names = _names(source)
    findings += _between_members(members)
    findings += _between_routes(routes, members, names)
    findings += _between_listeners(listen, config.admin.address if config else None)
    if source.get("listen") == []:
        findings.append((("listen",), "is empty, expected at least one"))
    if isinstance(source.get("members"), dict) and not any(map(_may_be_active, source["members"].values())):
        findings.append((("members",), "has no active member, expected at least one"))
    return (None if findings else config), findings


def model_from(model: type[M], data: object) -> tuple[M | None, list[Finding]]:
    """The model in `data`, or None and the faults of each of its keys."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)[:_MAX_ERRORS]
        return None, [finding for detail in details for finding in _translate(model, detail)]


def config_error(document: Document, findings: Sequence[Finding]) -> ConfigError:
    """The findings of the document and of its content as faults, in the order of the file."""
    broken = {where for where, _ in document.findings}
    # A value that could not be parsed is not also reported as missing or of the wrong type.
    secondary = (
        finding
        for finding in findings
        if not any(finding[0][:end] in broken for end in range(1, len(finding[0]) + 1))
    )
    everything = dict.fromkeys([*document.findings, *secondary])
    faults = [
        Fault(path_of(where), text)
        for where, text in sorted(everything, key=lambda f: _place(document, f[0]))
    ]
    if len(faults) > MAX_FAULTS:
        faults[MAX_FAULTS:] = [Fault("", f"{len(faults) - MAX_FAULTS} more faults")]
    return ConfigError(faults)


def path_of(where: Location) -> str:
    """The location as a key path: `members.gesis.url`, `routes.1.to`."""
    parts = (str(part)[:100] for part in where)
    return ".".join(part if part.isprintable() else repr(part)[1:-1] for part in parts)


def _place(document: Document, where: Location) -> int:
    while where and where not in document.order:
        where = where[:-1]
    return document.order.get(where, 0)


# -- within a section


def _translate(model: type[BaseModel], details: ErrorDetails) -> Iterator[Finding]:
    """Pydantic's error in the terms of the config."""
    where = tuple(part for part in details["loc"] if part != "[key]")
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            yield where, f"is missing, expected {_expected(model, where)}"
        case "extra_forbidden":
            yield where, _unknown(str(where[-1]), list(_fields(model, where[:-1])))
        case "between":
            yield from (((*where, key), message) for key, message in context["faults"])
        case "value_error" if details["loc"][-1:] == ("[key]",):
            yield where, f"is not a member's name, {context['error']}"
        case "value_error" if kind_of(*annotation_at(model, where)) is SECRET:
            yield where, f"is {MASK}, {context['error']}"
        case "value_error":
            yield where, f"is {show(value)}, {context['error']}"
        case _:
            yield where, f"is {show(value)}, expected {_expected(model, where)}"


def show(value: object) -> str:
    """A value as a fault quotes it: short, on one line, without the password of a URL."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            quoted = repr(_USER.sub(rf"\1{MASK}@", value[:200]))
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


def annotation_at(model: type[BaseModel], where: Location) -> tuple[Any, Sequence[Any]]:
    """The declaration at a location: the type, and its metadata."""
    annotation: Any = model
    metadata: Sequence[Any] = ()
    for part in where:
        annotation = optional(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields[str(part)]
            annotation, metadata = field.annotation, field.metadata
        else:
            annotation, metadata = _item(annotation), ()
    return optional(annotation), metadata


def optional(annotation: Any) -> Any:
    """The type without the `None` that stands for an absent key."""
    if get_origin(annotation) in (UnionType, Union) and type(None) in get_args(annotation):
        return next(argument for argument in get_args(annotation) if argument is not type(None))
    return annotation


def _item(annotation: Any) -> Any:
    """The type of a list's or mapping's items."""
    arguments = get_args(annotation)
    return arguments[0] if get_origin(annotation) is tuple else arguments[1]


def _fields(model: type[BaseModel], where: Location) -> Mapping[str, Any]:
    annotation, _ = annotation_at(model, where)
    fields: Mapping[str, Any] = annotation.model_fields
    return fields


def kind_of(annotation: Any, metadata: Sequence[Any] = ()) -> Kind | None:
    """The kind of a value of this type, if it is not a list, a mapping or a fixed choice."""
    declared = (*metadata, *getattr(optional(annotation), "__metadata__", ()))
    return next((found for found in declared if isinstance(found, Kind)), None)


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


def _may_be_active(member: object) -> bool:
    return member is not None and not (isinstance(member, dict) and flag(member.get("active")) is False)


def _between_members(members: Mapping[str, MemberSettings]) -> Iterator[Finding]:
    primes = [name for name, member in members.items() if member.prime]
    for name in primes[1:]:
        yield (
            ("members", name, "prime"),
            f"is true, but {primes[0]} is prime already, expected at most one prime member",
        )
    owners: dict[str, str] = {}
    for name, member in members.items():
        for index, host in enumerate(member.hosts):
            if host in owners:
                where = ("members", name, "hosts", index)
                yield where, f"is {host!r}, which {owners[host]} already has"
            owners.setdefault(host, name)


def _between_routes(
    routes: Mapping[int, RouteSettings], members: Mapping[str, MemberSettings], names: list[str]
) -> Iterator[Finding]:
    for index, route in routes.items():
        where = ("routes", index, "to")
        if route.mode == "redirect":
            yield from _away(index, route.to, members)
        if route.to is None or route.to == "members":
            continue
        if route.to == "prime":
            # The prime member may be among those with faults of their own.
            if len(members) == len(names) and not any(member.prime for member in members.values()):
                yield where, "is 'prime', and no member is prime"
        elif route.to not in names:
            known = ["members", "prime", *names]
            close = difflib.get_close_matches(route.to[:100], known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            yield where, f"is {show(route.to)}, expected members, prime or a member's name{hint}"
        elif route.to in members and not members[route.to].active:
            yield where, f"is {show(route.to)}, a past member, expected an active one"


def _away(index: int, to: str | None, members: Mapping[str, MemberSettings]) -> Iterator[Finding]:
    """A visitor cannot be redirected to a unix socket."""
    for name, member in members.items():
        meant = to in (None, "members", name) or (to == "prime" and member.prime)
        if meant and member.active and member.url.startswith("unix:"):
            yield (
                ("routes", index, "mode"),
                f"is 'redirect' to {name}, whose url is {member.url!r}, expected a URL",
            )


def _between_listeners(listen: Mapping[int, ListenerSettings], admin: object) -> Iterator[Finding]:
    seen: dict[object, str] = {admin: "admin.address"} if admin else {}
    for index, listener in listen.items():
        address = listener.address
        if not address.path and address.port == 0:
            continue
        if address in seen:
            yield ("listen", index, "address"), f"is {str(address)!r}, which {seen[address]} already uses"
        seen.setdefault(address, f"listen.{index}.address")
