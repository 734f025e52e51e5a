"""What objects hold, whether their class is Python's or was compiled."""

from __future__ import annotations

from collections.abc import Collection


def held(thing: object, *, but: Collection[str] = ()) -> dict[str, object]:
    """The attributes of an object by their names, without some."""
    return {name: getattr(thing, name) for name in attributes(type(thing)) if name not in but}


def attributes(kind: type) -> tuple[str, ...]:
    """The names of the attributes that a class with slots gives its objects."""
    names: tuple[str, ...] = kind.__dict__.get("__mypyc_attrs__") or kind.__dict__["__slots__"]
    return names
