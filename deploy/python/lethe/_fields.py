"""Fills dataclasses from JSON objects, by their fields' names and types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Read = TypeVar("Read")


def read(kind: type[Read], value: Mapping[str, Any]) -> Read:
    """Makes a dataclass of an object. A member that the class lacks is left out; one that it needs is a `KeyError`.

    A field of another name than the object's member has it as `metadata["key"]`.
    """
    return kind(**members(kind, value))


def members(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a dataclass's fields, but for those that its constructor does not take."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in filter(lambda field: field.init, dataclasses.fields(kind)):
        key = field.metadata.get("key", field.name)
        if key in value:
            found[field.name] = convert(hints[field.name], value[key])
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        else:
            raise KeyError(key)
    return found


def convert(hint: Any, value: Any) -> Any:
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else convert(arguments[0], value)
    if origin is tuple:
        return tuple(convert(arguments[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return {name: convert(arguments[1], item) for name, item in value.items()}
    return read(hint, value) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else value
