"""What the models of a config declare about its keys."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel

from fedproxy.config.units import Kind, format_duration, format_size

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from fedproxy.config.places import Location


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


def kind_of(annotation: Any, metadata: Sequence[Any] = ()) -> Kind | None:
    """The kind of a value of this type, if it is not a list, a mapping or a fixed choice."""
    declared = (*metadata, *getattr(optional(annotation), "__metadata__", ()))
    return next((found for found in declared if isinstance(found, Kind)), None)


def default_of(field: FieldInfo) -> Any:
    """A key's default as a file would have it, in the types of JSON.

    None if there is none: the key is required, or may be absent, or is a section, whose keys have defaults.
    """
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    kind = kind_of(field.annotation, field.metadata)
    match value:
        case None | BaseModel():
            return None
        case tuple():
            return [
                item.model_dump(mode="json", exclude_defaults=True) if isinstance(item, BaseModel) else item
                for item in value
            ]
        case _ if kind is not None and kind.name == "duration":
            return format_duration(value)
        case _ if kind is not None and kind.name == "size":
            return format_size(value)
        case float() if value.is_integer():
            return int(value)
        case bool() | int() | float() | dict():
            return value
        case _:
            return str(value)
