"""Configurations, frozen dataclasses, as JSON data and back.

Parts that come in kinds are type parameters of the dataclass that has them, and say their type in
the data.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ddengine.system import typed
from ddengine.system.errors import UserError

# of a field that came later than the first stored recipes: it is left out of JSON data while it
# holds its default, so that what was stored before still equals
LATE: Mapping[str, Any] = {"late": True}
MOST_LISTED = 4  # differences in a sentence
NOT_SET = "not set"  # in one, of what is left out of JSON data


def parametrised(value: Any) -> Any:
    """The type of a dataclass with its type parameters filled in from its own values, recursively.

    `Recipe(objective=TrajectoryMatching(...), ...)` -> `Recipe[..., TrajectoryMatching]`. Each type
    parameter must be the whole annotation of one field.
    """
    cls: Any = type(value)
    parameters = getattr(cls, "__parameters__", ())  # probe: of classes, generic or not
    if not parameters:
        return cls
    owner = {f.type: f.name for f in dataclasses.fields(value) if isinstance(f.type, TypeVar)}
    return cls[tuple(parametrised(getattr(value, owner[p])) for p in parameters)]


def to_dict(value: Any) -> Any:
    """A configuration as JSON data.

    A part that comes in kinds (fills a type parameter) says its type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value


def _fields_to_dict(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON data."""
    data: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        part = getattr(value, f.name)
        if _is_left_out(f, part):
            continue
        data[f.name] = to_dict(part)
        if isinstance(f.type, TypeVar) and dataclasses.is_dataclass(part):
            data[f.name] = {"type": type(part).__name__} | data[f.name]
    return data


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> dict[str, str]:
    """What a sentence says of each setting that differs in JSON data, by its dotted name.

    Of parts of another type it says the types alone. Settings nearest to the top come first.
    """
    said: dict[str, str] = {}
    within: dict[str, str] = {}
    for key in sorted({*before, *now}):
        name, old, new = f"{prefix}{key}", before.get(key, NOT_SET), now.get(key, NOT_SET)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
            within |= differences(old, new, f"{name}.")
        else:
            said[name] = f"{name} is {_in_short(old)} there and {_in_short(new)} here"
    return said | within


def _in_short(value: Any) -> str:
    """What a sentence says of a setting: of a part its type alone."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = value["type"]
    if value is NOT_SET or value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        text = json.dumps(value)
        return text if len(text) <= typed.LONGEST else typed.shown(value)
    return typed.shown(value).strip('"')


def listed(differing: Collection[str]) -> str:
    """What is said of settings that differ, shortened, for brackets in a sentence."""
    texts = list(differing)
    if len(texts) > MOST_LISTED:
        texts[MOST_LISTED:] = [f"and {len(texts) - MOST_LISTED} more"]
    return "; ".join(texts) or "unknown"


def _is_left_out(f: dataclasses.Field, value: Any) -> bool:
    """Whether a field came late and holds its default."""
    return bool(f.metadata.get("late")) and value == _default_of(f)


def late_defaults(cls: Any) -> dict[str, Any]:
    """As JSON data, what fields of a dataclass hold that stored data leave out."""
    defaults = {}
    for f in dataclasses.fields(cls):
        if f.metadata.get("late"):
            defaults[f.name] = to_dict(_default_of(f))
    return defaults


def _default_of(f: dataclasses.Field) -> Any:
    """What a field holds that nothing was said of."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def from_dict(cls: Any, data: Any) -> Any:
    """The inverse of `to_dict` for the configurations of the core whose type is known.

    Raises UserError on data that do not fit.
    """
    try:
        typed.check(data, cls)
    except typed.Misfit as misfit:
        raise UserError(f"The stored {_called(cls)} cannot be read: {misfit}.") from None
    return _read(cls, data)


def _called(cls: Any) -> str:
    """What a type is called."""
    return cls.__name__ if isinstance(cls, type) else str(cls)


def _read(cls: Any, data: Any) -> Any:
    """The value of a type that checked JSON data stand for."""
    origin = typing.get_origin(cls)
    if dataclasses.is_dataclass(cls):
        return _config_of(cls, data)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        return _read(next(a for a in typing.get_args(cls) if a is not type(None)), data)
    if origin is tuple and isinstance(data, list):
        return tuple(_read(typing.get_args(cls)[0], item) for item in data)
    if origin is Mapping:
        return {name: _read(typing.get_args(cls)[1], part) for name, part in data.items()}
    return float(data) if cls is float else data


def _config_of(cls: Any, data: Mapping[str, Any]) -> Any:
    """A configuration of the dataclass `cls`; fields that the data lack have their defaults."""
    hints = typing.get_type_hints(cls)
    values = {}
    for field_of in dataclasses.fields(cls):
        if field_of.name in data:
            values[field_of.name] = _read(hints[field_of.name], data[field_of.name])
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(
            f"The stored {cls.__name__} does not fit this version of the engine: {error}."
        ) from None


def digest(value: Any) -> str:
    """12 hexadecimal digits that identify JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
