"""Changes of a configuration by the names of its fields, as Python gives them."""

import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from ddengine.system.errors import UserError, unknown


def changed(part: Any, changes: Mapping[str, Any], walked: tuple[str, ...] = ()) -> Any:
    """A configuration with some of its fields changed; all at once: they are checked together.

    Mappings change some fields of what lies in it. `walked` are the names of the fields that it
    lies in itself, for what is said. Raises UserError for a field that it has not, and for a value
    of another type.
    """
    hints = typing.get_type_hints(type(part))
    values = {}
    for name, value in changes.items():
        path = (*walked, name)
        if name not in hints:
            known = [".".join((*walked, field)) for field in hints]
            raise unknown("field", ".".join(path), known)
        present = getattr(part, name)
        values[name] = _changed_value(present, value, hints[name], path)
    return replace(part, **values)


def _changed_value(present: Any, value: Any, hint: Any, walked: tuple[str, ...]) -> Any:
    """What comes of a value when it is changed; mappings change some of its fields or entries."""
    if isinstance(value, Mapping) and is_dataclass(present):
        return changed(present, value, walked)
    if isinstance(value, Mapping) and isinstance(present, Mapping):
        entries = dict(present)
        *_, of_entries = typing.get_args(hint)
        for key, change in value.items():
            entry = entries.get(key)
            entries[key] = _changed_value(entry, change, of_entries, (*walked, key))
        return entries
    if isinstance(value, list):
        value = tuple(value)
    if not _fits(value, hint):
        path = ".".join(walked)
        raise UserError(f"{path} is of type {_called(hint)}, and {value!r} is not; change it.")
    plain: Any = value
    if hint is float:
        return float(plain)
    return plain


def _called(hint: Any) -> str:
    """A type as a sentence calls it."""
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; what is no plain value is not looked at."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and _items_fit(value, arguments)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if hint in (int, str, bool, type(None)):
        return isinstance(value, hint)
    return True


def _items_fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    """Whether the entries of a tuple have the types of its field, which may be one for all."""
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(values) != len(hints):
        return False
    return all(map(_fits, values, hints))
