"""Changes of a configuration, and so of a recipe, by the names of its fields."""

import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from ddengine.recipe import Recipe, resolved
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
            if isinstance(change, Mapping) and key not in entries:
                known = [".".join((*walked, entry)) for entry in entries]
                raise unknown("field", ".".join((*walked, key)), known)
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


def nested(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Changes as `changed` takes them, of values by dotted names: {"outer.steps": 5}."""
    changes: dict[str, Any] = {}
    for path, value in paths.items():
        *parts, name = path.split(".")
        inner = changes
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return changes


def kind_of(part: Any, path: str) -> Any:
    """The type of the field with this dotted name.

    Raises UserError for a name of none, and for that of a part, which has fields itself.
    """
    hint: Any = type(part)
    walked: list[str] = []
    for name in path.split("."):
        if is_dataclass(part):
            hints = typing.get_type_hints(type(part))
        else:
            *_, of_entries = typing.get_args(hint) or (None,)
            hints = dict.fromkeys(part, of_entries) if isinstance(part, Mapping) else {}
        if name not in hints:
            known = [".".join((*walked, field)) for field in hints]
            raise unknown("field", path, known or [".".join(walked)])
        hint = hints[name]
        part = part[name] if isinstance(part, Mapping) else getattr(part, name)
        walked.append(name)
    if is_dataclass(part) or isinstance(part, Mapping):
        raise UserError(f"{path} is a part and no value; name one of its fields.")
    return hint


def same_cell(recipe: Recipe, published: Recipe) -> bool:
    """Whether both are one published cell: nothing differs that decides its figure.

    How often a run is looked at or saved does not, nor does how its result is evaluated.
    """
    return _deciding(recipe) == _deciding(published)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What decides a published figure, as JSON data."""
    content = resolved(recipe)
    outer = {}
    for name, value in content["outer"].items():
        if not name.endswith("_every"):
            outer[name] = value
    content["outer"] = outer
    del content["evaluation"]
    return content


def as_changed(recipe: Recipe, before: Recipe) -> Recipe:
    """A recipe that was changed, without the published figure that belongs to it as it was before.

    Nothing happens where nothing differs that decides the figure.
    """
    if recipe.published is None or same_cell(recipe, before):
        return recipe
    note = f"{before.name} with other settings, for which nothing is published."
    return replace(recipe, published=None, note=note)


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
