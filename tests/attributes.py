"""What objects hold, whether their class is Python's or was compiled."""

from __future__ import annotations


def attributes(kind: type) -> tuple[str, ...]:
    """The names of the attributes that a class with slots gives its objects."""
    names: tuple[str, ...] = kind.__dict__.get("__mypyc_attrs__") or kind.__dict__["__slots__"]
    return names
